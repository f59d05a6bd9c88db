"""Refuse rows whose pair would leave out a part of the prompt, or hold something twice.

A column `prompt` is the prompt; but beside it, a row may have the question, the passage or the
earlier turns that it is about, a system message in a column of another name, responses that repeat
the prompt, or responses that are only the names of other columns.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sp2dpo.pairs.formats import InvalidPair, is_dialogue
from sp2dpo.pairs.media import PLACEHOLDER, is_media
from sp2dpo.pairs.prompts import SYSTEM, is_context_name, is_system_name, reads_as_prompt
from sp2dpo.pairs.reading import Reading

_LABEL = re.compile(r"(?:(?:response|answer|model|option)[ _-]?)?(?:[ab]|\d)", re.IGNORECASE)
_ONE_OF_TWO = re.compile(r"(?:response|answer|completion|output)_?(?:[ab]|\d)", re.IGNORECASE)
_LISTS = ("responses", "answers", "completions", "generations", "outputs")
_BEGUN = ("initial_reason_steps", "prefill", "response_prefix", "assistant_prefix")
"""Columns that hold the beginning of both responses, such as those of Step-DPO."""


def check_context(row: Mapping[str, Any], values: Mapping[str, Any], reading: Reading) -> None:
    """Raise InvalidPair if a part of a row's prompt is not in its pair, or is in it twice.

    Args:
        row: Values by role and column.
        values: Values of the pair, as `formats.parse_row` reads them.
        reading: How the source is read.
    """
    _check_labels(row, values)
    _check_placeholder(row, values, reading)
    # What is named is the prompt, whatever there is beside it.
    named = "prompt" in reading.columns
    if not named and isinstance(values.get("prompt"), str):
        _check_repetition(values["prompt"], values)
    chosen = values.get("chosen")
    # Of plain texts, the column of the prompt is asked for first.
    is_text = isinstance(chosen, str) and not is_dialogue(chosen)
    if is_text and not named and not values.get("prompt"):
        return
    columns = [name for name in row if name in values and _is_context(name, row, named, reading)]
    if not columns:
        return
    contents = [text for key in _PARTS for text in _texts(values.get(key))]
    for name in columns:
        if not all(any(text in content for content in contents) for text in _needed(row[name])):
            raise InvalidPair(_ask(name, row[name]))


_PARTS = ("prompt", "chosen", "rejected")


def _is_context(name: str, row: Mapping[str, Any], named: bool, reading: Reading) -> bool:
    if is_system_name(name) and name not in SYSTEM:
        return "system" not in reading.columns and isinstance(row[name], str)
    prompt = row.get("prompt")
    if named or name in reading.columns or not prompt or not str(prompt).strip():
        return False
    return is_context_name(name) or name in _BEGUN


def _ask(name: str, value: Any) -> str:
    if is_system_name(name):
        return (
            f"the system message may be in column {name!r}: give --columns system={name}, or "
            "system= to leave it out"
        )
    follows = name in ("input", *_BEGUN)
    join = f"prompt={f'prompt+{name}' if follows else f'{name}+prompt'} to join them"
    if not isinstance(value, str):
        join = f"messages={name},prompt=prompt for earlier turns"
    return (
        f"column {name!r} may be a part of the prompt that column 'prompt' does not hold: give "
        f"--columns prompt=prompt to leave it out, or {join}"
    )


def _texts(value: Any) -> Iterator[str]:
    """Yield the texts in a text, in messages, or in lists of texts, without extra white space."""
    if isinstance(value, str):
        yield " ".join(value.split())
    elif isinstance(value, Mapping):
        yield from _texts(value.get("content") or value.get("value"))
        yield from _texts(value.get("text"))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)


def _needed(value: Any) -> Iterator[str]:
    """Yield the texts of a column that must be in the pair; its last turn may be a response."""
    if isinstance(value, list | tuple):
        last = value[-1] if value else None
        speaker = last.get("role") or last.get("from") if isinstance(last, Mapping) else None
        if speaker in ("assistant", "gpt"):
            value = value[:-1]
    yield from _texts(value)


def _check_repetition(prompt: str, values: Mapping[str, Any]) -> None:
    sides = values.get("chosen"), values.get("rejected")
    responses = [response for response in sides if isinstance(response, str)]
    if len(responses) < len(sides):
        return
    text = prompt.strip()
    repeated = all(response.startswith("\n\nHuman:") for response in responses) or (
        reads_as_prompt(text)
        and all(
            response.lstrip().startswith(text) and response.strip() != text
            for response in responses
        )
    )
    if repeated:
        raise InvalidPair(
            "chosen and rejected repeat the prompt: give --columns prompt= to take what both begin "
            "with for the prompt, or prompt=prompt if they quote it"
        )


def _check_placeholder(row: Mapping[str, Any], values: Mapping[str, Any], reading: Reading) -> None:
    if "images" in reading.columns or any(row[name] and is_media(name, row[name]) for name in row):
        return
    texts = [values.get("prompt")] if isinstance(values.get("prompt"), str) else []
    for part in ("prompt", "chosen"):
        turns = values.get(part)
        first = turns[:2] if isinstance(turns, list) else []
        texts += [
            turn.get("content")
            for turn in first
            if isinstance(turn, Mapping) and turn.get("role") == "user"
        ]
    if any(isinstance(text, str) and PLACEHOLDER.search(text) for text in texts):
        raise InvalidPair(
            "the prompt states the place of an image, a video or sound that is in no column: give "
            "--columns images= to judge by the text alone"
        )


def _check_labels(row: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    labels: Sequence[Any] = [row.get("chosen"), row.get("rejected")]
    if not all(isinstance(label, str) and len(label) < 40 for label in labels):
        return
    others = {name for name in row if name not in ("prompt", "chosen", "rejected")}
    names = all(label in others and isinstance(row[label], str | list) for label in labels)
    if not names and all(_LABEL.fullmatch(label.strip()) for label in labels):
        lists = [row[name] for name in _LISTS if isinstance(row.get(name), list)]
        names = any(_ONE_OF_TWO.fullmatch(name) and row[name] for name in others) or any(
            len(items) > 1 and not any(label in items for label in labels) for items in lists
        )
    if names and values.get("chosen") == labels[0]:
        pair = next(
            (p for p in _PAIRS if all(isinstance(row.get(name), str | list) for name in p)), None
        )
        way = "replace them by the texts"
        if pair is not None:
            roles = "response_a={},response_b={}" if pair[0][-1] in "aA" else "{0}={0},{1}={1}"
            way = f"give --columns {roles.format(*pair)},winner=chosen"
        raise InvalidPair(f"chosen and rejected are labels of responses, not responses: {way}")


_PAIRS = (
    ("response_a", "response_b"),
    ("response_0", "response_1"),
    ("response_1", "response_2"),
)
"""Columns of two responses of which another may say which is preferred."""
