"""Parse a row of a data set in any common preference format into a `Pair`.

The supported formats are those that TRL documents (explicit and implicit prompts, plain text and
conversations, and the mixture of these in UltraFeedback-binarized) and the dialogues of hh-rlhf. A
row in any other format is refused with a reason; nothing is repaired by guessing. `shapes` brings
the columns of other well-known data sets into these formats.
"""

import json
import re
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

from sp2dpo.files import refuse_duplicate_keys
from sp2dpo.pairs.media import (
    InvalidMedia,
    attach_images,
    check_no_media,
    is_media,
    split_content,
)
from sp2dpo.pairs.pair import Message, Pair, normalise
from sp2dpo.pairs.prompts import ask_for_prompt, other_prompts, possible_prompts

_DIALOGUE_TURN = re.compile(r"\n\n(Human|Assistant): ?")
# JSON, or Python's text of a list, as a table without nested columns holds it. Its beginning would
# pass for a prompt.
_MESSAGES_AS_TEXT = re.compile(r"""\s*\[\s*\{\s*["'](?:role|content|from|value)["']\s*:""")
_DIALOGUE_ROLES = {"Human": "user", "Assistant": "assistant"}
_OURS = ("prompt", "chosen", "rejected", "tools")
Turns = tuple[Message, ...]


class InvalidPair(ValueError):
    """A row does not contain a usable pair; the message says why.

    Do not reword these messages: stores hash them as a part of their source, so an existing store
    would take the same file for another source and refuse it.
    """


def parse_row(row: Mapping[str, Any], *, images: bool = False, implicit: bool = False) -> Pair:
    """Parse the pair in a row.

    Args:
        row: Values by column; `chosen` and `rejected` are required, `prompt` and `tools` (a list,
            or the JSON text of one) optional.
        images: Whether images are read: each becomes a data or https URI in the list `images` of
            its message. Otherwise a row with images is refused.
        implicit: Whether the prompt is known to be the beginning that the responses share, even
            if another column may hold it.

    Raises:
        InvalidPair: If a column is missing, a text is empty, the responses are equal after Unicode
            normalization, they have no common prompt, another column may hold the prompt, or a
            message cannot be written as JSON.
    """
    others = {} if implicit else row
    chosen, rejected = _column(row, "chosen", images), _column(row, "rejected", images)
    prompt = _prompt(row, images)
    # Both are either text or a tuple of turns by now.
    if type(chosen) is not type(rejected):
        raise InvalidPair("chosen and rejected are of different kinds")
    if isinstance(chosen, str):
        parts = _from_texts(prompt, chosen, rejected, others)
    else:
        parts = _from_conversations(prompt, chosen, rejected, others)
    _check(*parts)
    parts = _with_images(row, *parts, images=images)
    return _check_identity(
        Pair(prompt=parts[0], chosen=parts[1], rejected=parts[2], tools=_tools(row.get("tools")))
    )


def _tools(value: Any) -> tuple[Any, ...]:
    tools = value or ()
    if isinstance(tools, str):
        try:
            # TRL reads this text too: Parquet cannot store lists of unlike objects.
            tools = json.loads(tools, object_pairs_hook=refuse_duplicate_keys)
        except RecursionError:
            raise InvalidPair("nested too deeply") from None
        except ValueError:
            raise InvalidPair("tools is text that is not JSON") from None
        tools = () if tools is None else tools
    if isinstance(tools, str | bytes) or not isinstance(tools, Sequence):
        raise InvalidPair("tools is not a list")
    return tuple(tools)


def _with_images(
    row: Mapping[str, Any], prompt: Turns, chosen: Turns, rejected: Turns, *, images: bool
) -> tuple[Turns, Turns, Turns]:
    try:
        check_no_media(row, images=images)
        return (attach_images(row, prompt) if images else prompt), chosen, rejected
    except InvalidMedia as error:
        raise InvalidPair(str(error)) from None


def _check_identity(pair: Pair) -> Pair:
    """Return the pair; raise InvalidPair unless it has an id and its responses differ."""
    try:
        # Normalised, because a difference in the encoding of an accent alone is not a preference.
        same = normalise(pair.chosen) == normalise(pair.rejected)
        # Computed now, so that a value that cannot be hashed sets the row aside instead of ending
        # the run.
        _ = pair.id
    except UnicodeEncodeError:
        raise InvalidPair("holds half of a surrogate pair, not a character") from None
    except (TypeError, ValueError):
        raise InvalidPair("holds a value that JSON does not know") from None
    except RecursionError:
        raise InvalidPair("nested too deeply") from None
    if same:
        raise InvalidPair("chosen equals rejected")
    return pair


def _column(row: Mapping[str, Any], name: str, images: bool) -> str | Turns:
    if name not in row:
        raise InvalidPair(f"missing column {name}")
    value = row[name]
    if value is None or (isinstance(value, str | Sequence) and not value):
        raise InvalidPair(f"empty {name}")
    return _text_or_turns(value, name, images)


def _prompt(row: Mapping[str, Any], images: bool) -> str | Turns | None:
    prompt = row.get("prompt")
    return None if prompt is None else _text_or_turns(prompt, "prompt", images)


def _text_or_turns(value: Any, name: str, images: bool) -> str | Turns:
    if isinstance(value, str):
        _check_text(value, name)
        return value
    if not isinstance(value, Sequence):
        raise InvalidPair(f"{name} is neither text nor a list of messages")
    return tuple(_turn(turn, name, images) for turn in value)


def _turn(turn: Any, name: str, images: bool) -> Message:
    if not isinstance(turn, Mapping) or not isinstance(turn.get("role"), str):
        raise InvalidPair(f"{name} holds something that is not a message with a role")
    _check_text(turn["role"], name)
    try:
        turn = split_content(turn, name, images=images)
    except InvalidMedia as error:
        raise InvalidPair(str(error)) from None
    content = turn.get("content")
    if content is not None and not isinstance(content, str):
        raise InvalidPair(f"{name} holds content that is not text")
    if content is None and not turn.get("tool_calls"):
        raise InvalidPair(f"empty {name}")
    _check_text(content or "", name)
    # Parquet gives every message the keys of all messages, with null where a message has none.
    more = {key: turn[key] for key in turn if turn[key] is not None}
    return {"role": turn["role"], "content": content} | more


def _check_text(text: str, name: str) -> None:
    try:
        # Files and SQLite store text as UTF-8, which cannot represent half of a surrogate pair.
        text.encode()
    except UnicodeEncodeError:
        raise InvalidPair(f"{name} holds half of a surrogate pair, not a character") from None


def _from_texts(
    prompt: str | Turns | None, chosen: Any, rejected: Any, others: Mapping[str, Any]
) -> tuple[Turns, Turns, Turns]:
    if _lists_messages(chosen) and _lists_messages(rejected):
        raise InvalidPair("chosen and rejected are text that lists messages, not lists of messages")
    if isinstance(prompt, str) and _lists_messages(prompt, texts=True):
        raise InvalidPair("prompt is text that lists messages, not a list of messages")
    if prompt is None:
        # If only one is a dialogue, `dialogue_turns` refuses the row: they have no common prompt.
        if is_dialogue(chosen) or is_dialogue(rejected):
            parts = _common_beginning(dialogue_turns(chosen), dialogue_turns(rejected))
            _check_others(other_prompts(_without_ours(others), parts[0]), others)
            return parts
        _check_others(possible_prompts(_without_ours(others)), others)
        return split_texts(chosen, rejected)
    if not isinstance(prompt, str) and not prompt:
        raise InvalidPair("empty prompt")
    return prompt_turns(prompt), _assistant(chosen), _assistant(rejected)


def _lists_messages(text: str, *, texts: bool = False) -> bool:
    """Return whether a text is JSON of messages, and not only an answer that is JSON.

    Args:
        text: The text.
        texts: Whether a list of texts counts, too.
    """
    if _MESSAGES_AS_TEXT.match(text):
        return True
    if text.lstrip()[:1] not in ("[", "{"):
        return False
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return False
    if isinstance(value, Mapping):
        more = next((value[key] for key in ("messages", "conversations") if key in value), None)
        value = more if isinstance(more, list) else [value]
    if not value:
        return False
    messages = all(
        isinstance(item, Mapping)
        and ({"role", "content"} <= item.keys() or {"from", "value"} <= item.keys())
        for item in value
    )
    return messages or (texts and all(isinstance(item, str) for item in value))


def _without_ours(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value
        for name, value in row.items()
        if name not in _OURS and not is_media(name, value)
    }


def _check_others(names: Sequence[str], row: Mapping[str, Any]) -> None:
    """Raise InvalidPair if a prompt would be invented although these columns may hold it."""
    if names:
        raise InvalidPair(ask_for_prompt(names, row, implicit=True))


def is_dialogue(text: str) -> bool:
    """Return whether a text is a dialogue of hh-rlhf."""
    return _DIALOGUE_TURN.match(text) is not None


def prompt_turns(value: str | Turns) -> Turns:
    """Return the messages of a prompt: of a text, one turn of the user, or those of a dialogue."""
    if not isinstance(value, str):
        return value
    if is_dialogue(value):
        turns = dialogue_turns(value)
        # Prompts in the style of hh-rlhf end with an empty turn of the assistant.
        open_end = turns[-1]["role"] == "assistant" and not turns[-1]["content"].strip()
        return turns[:-1] if open_end else turns
    return ({"role": "user", "content": value},)


def _assistant(text: str) -> Turns:
    return ({"role": "assistant", "content": text},)


def dialogue_turns(text: str) -> Turns:
    """Return the turns of an hh-rlhf dialogue: blank line, `Human:`, blank line, `Assistant:`."""
    # `split` returns the pattern's group too, so speakers and contents alternate after the first
    # item.
    before, *parts = _DIALOGUE_TURN.split(text)
    if before or not parts:
        raise InvalidPair("no common prompt: one response is a dialogue and the other is not")
    return tuple(
        {"role": _DIALOGUE_ROLES[speaker], "content": content}
        for speaker, content in zip(parts[::2], parts[1::2], strict=True)
    )


def split_texts(chosen: str, rejected: str) -> tuple[Turns, Turns, Turns]:
    """Split two texts after their common beginning, the prompt, which ends with a complete word."""
    length = _common_length(chosen, rejected)
    # Back to white space, because the common beginning may end inside a word. The end of a text
    # does not count: its response would be empty.
    while length and not (
        chosen[length - 1].isspace()
        or (chosen[length : length + 1].isspace() and rejected[length : length + 1].isspace())
    ):
        length -= 1
    # The space belongs to the responses, as in TRL's `extract_prompt`.
    if length and chosen[length - 1].isspace():
        length -= 1
    prompt: Turns = ({"role": "user", "content": chosen[:length]},)
    if not chosen[:length].strip():
        raise InvalidPair("no common prompt")
    return prompt, _assistant(chosen[length:]), _assistant(rejected[length:])


def _common_length(left: Sequence[Any], right: Sequence[Any]) -> int:
    items = zip(left, right, strict=False)
    return sum(1 for _ in takewhile(lambda item: item[0] == item[1], items))


def _from_conversations(
    prompt: str | Turns | None, chosen: Any, rejected: Any, others: Mapping[str, Any]
) -> tuple[Turns, Turns, Turns]:
    explicit = () if prompt is None else prompt_turns(prompt)
    # Both conversations begin with a response, so they do not repeat the prompt.
    if explicit and chosen[0]["role"] == rejected[0]["role"] == "assistant":
        return explicit, chosen, rejected
    parts = _common_beginning(chosen, rejected)
    # UltraFeedback-binarized repeats a plain prompt as the first turn of both conversations.
    if isinstance(prompt, str) and not any(
        (turn["content"] or "").strip() == prompt.strip() for turn in parts[0]
    ):
        raise InvalidPair("the prompt column is not in the conversations' common beginning")
    if explicit and not isinstance(prompt, str) and explicit != parts[0]:
        raise InvalidPair("the prompt column is not the conversations' common beginning")
    if not explicit and not isinstance(prompt, str):
        _check_others(other_prompts(_without_ours(others), parts[0]), others)
    return parts


def _common_beginning(chosen: Turns, rejected: Turns) -> tuple[Turns, Turns, Turns]:
    length = _common_length(chosen, rejected)
    if length == len(chosen) == len(rejected):
        raise InvalidPair("chosen equals rejected")
    return chosen[:length], chosen[length:], rejected[length:]


def _check(prompt: Turns, chosen: Turns, rejected: Turns) -> None:
    if not prompt:
        raise InvalidPair("no common prompt")
    # The content is null in a turn that only calls a tool.
    if not any((turn["content"] or "").strip() for turn in prompt):
        raise InvalidPair("empty prompt")
    for name, turns in (("chosen", chosen), ("rejected", rejected)):
        if not turns:
            raise InvalidPair(f"empty {name}: nothing follows the common beginning")
        if turns[0]["role"] != "assistant":
            raise InvalidPair(f"no common prompt: {name} goes on with a {turns[0]['role']} turn")
        if not any((turn["content"] or "").strip() or turn.get("tool_calls") for turn in turns):
            raise InvalidPair(f"empty {name}")
