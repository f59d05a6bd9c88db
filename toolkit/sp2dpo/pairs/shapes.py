"""Recognise the columns of well-known preference data sets.

A shape is recognised by the names of all the columns that it needs. It turns a row into comparisons
of two responses in the columns that `formats.parse_row` reads. A row that could be read in two ways
is refused with the columns to choose from; docs/pairs.md has a table of the shapes.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sp2dpo.pairs.context import check_context
from sp2dpo.pairs.formats import InvalidPair, dialogue_turns, is_dialogue, split_texts
from sp2dpo.pairs.prompts import SYSTEM, ask_for_prompt, empty_prompts, named_prompts
from sp2dpo.pairs.rankings import TIE, Ranked, choose, rank_lists, rank_objects
from sp2dpo.pairs.reading import ROLES, Reading
from sp2dpo.pairs.turns import as_turns, begins_with_user, to_turns, with_system
from sp2dpo.pairs.winners import TwoResponses, find_two_responses, with_winner

Row = Mapping[str, Any]
_PROMPTS = ("prompt", "question", "instruction", "input")
"""Columns that hold a prompt as text or messages."""
_CONVERSATIONS = ("messages", "conversations", "conversation", "context", "history")
"""Columns that hold a prompt if they are a list of messages."""
_TITLES = {"question": "orca", "instruction": "distilabel", "conversations": "ShareGPT"}
"""Names of the shapes with `chosen` and `rejected`, by the column of their prompt."""
_RESPONSE_LISTS = ("responses", "completions", "generations", "answers")
_SCORE_LISTS = ("scores", "ratings", "rating", "ranks")
_BESIDE = {"prompt", "system", "messages", "tools", "images", "videos", "source_id"}
"""Roles that say nothing about the responses."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two responses of a row, or the reason why there are none.

    Attributes:
        shape: Name of the shape and its columns; empty for TRL's own.
        used: Columns that the pair holds; all others stay with the row.
        values: Values by column, as `formats.parse_row` reads them.
        places: Numbers of the two responses in the row, from 0; None if the row is one pair.
        facts: More about the two responses of a row of several.
        reason: Why there is no pair; None if there may be one.
    """

    shape: str
    used: frozenset[str]
    values: Row
    places: tuple[int, int] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    reason: str | None = None


def compare(row: Row, reading: Reading) -> Iterator[Comparison]:
    """Yield the comparisons in a row, at least one.

    Args:
        row: Values by role and column.
        reading: How the source is read.

    Raises:
        InvalidPair: If no shape is recognised, or it could be more than one, or no response is
            preferred.
    """
    for comparison in _compare(row, reading):
        if comparison.reason is not None:
            yield comparison
            continue
        try:
            check_context(row, comparison.values, reading)
        except InvalidPair as error:
            # Of a row of several pairs, only this one is set aside.
            if comparison.places is None:
                raise
            yield replace(comparison, reason=str(error))
        else:
            yield comparison


def _compare(row: Row, reading: Reading) -> Iterator[Comparison]:
    if _is_plain(row, reading):
        yield Comparison(shape="", used=_PLAIN, values=row)
        return
    # What is named wins over what is recognised.
    named = reading.columns.keys() & (set(ROLES) - _BESIDE)
    if ("chosen" in row or "rejected" in row) and named <= {"chosen", "rejected"}:
        yield _labelled(row, "chosen", "rejected", reading)
        return
    for title, chosen, rejected in _LABELLED:
        if chosen in row and rejected in row and not named:
            yield _labelled(row, chosen, rejected, reading, title=title)
            return
    if "winner" not in reading.columns:
        row = with_winner(row)
    two = find_two_responses(row, reading)
    ranked = _ranked(row, reading)
    if two and ranked and not named:
        raise InvalidPair(
            f"two responses and a list of responses: give --columns winner={two[1]}, or --columns "
            f"responses={ranked[0]},scores={ranked[1] or 'COLUMN'}"
        )
    if two and not named & {"responses", "scores", "ranks"}:
        yield _decided(row, *two, reading)
    elif ranked:
        yield from _several(row, *ranked, reading)
    else:
        unread = next((names for names in _UNREAD if names <= row.keys()), None)
        if unread is not None:
            raise InvalidPair(
                f"{', '.join(sorted(unread))} hold the responses and which is preferred: write "
                "them as the columns prompt, response_0, response_1 and winner (0, 1 or tie)"
            )
        raise InvalidPair("missing column chosen")


_UNREAD = ({"summaries", "choice"}, {"answer_0", "answer_1", "score_0", "score_1"})
"""Columns of data sets that are not read, of summarize_from_feedback and webgpt_comparisons."""
_PLAIN = frozenset({"prompt", "chosen", "rejected", "tools"})


def _is_plain(row: Row, reading: Reading) -> bool:
    """Return whether a row is of texts in TRL's columns, which most rows are; a shortcut."""
    return (
        isinstance(row.get("prompt"), str)
        and isinstance(row.get("chosen"), str)
        and isinstance(row.get("rejected"), str)
        and not reading.columns
        and not any(row.get(name) for name in SYSTEM)
    )


_LABELLED = (
    ("argilla", "chosen_response", "rejected_response"),
    ("stack-exchange", "response_j", "response_k"),
    ("OpenAI", "preferred_output", "non_preferred_output"),
)
"""Shapes that have other names for `chosen` and `rejected`."""


def _labelled(
    row: Row, chosen_name: str, rejected_name: str, reading: Reading, *, title: str = ""
) -> Comparison:
    chosen = to_turns(row.get(chosen_name), chosen_name)
    rejected = to_turns(row.get(rejected_name), rejected_name)
    values = {
        name: value
        for name, value in ((chosen_name, chosen), (rejected_name, rejected))
        if name in row
    }
    name, prompt = _labelled_prompt(row, (chosen_name, rejected_name), values, reading)
    if title == "OpenAI" and isinstance(row.get("input"), Mapping):
        request = row["input"]
        row = {**row, "tools": request.get("tools")}
        name, prompt = "input", to_turns(request.get("messages"), "input")
    used = {chosen_name, rejected_name, "prompt", "tools", *([name] if name else ())}
    prompt = _without_responses(prompt, name, [chosen, rejected])
    prompt, chosen, rejected, with_columns = _with_context(
        row, reading, prompt, values.get(chosen_name), values.get(rejected_name)
    )
    used |= with_columns
    # `instruction` stays with a conversation that repeats it, so that its row does not change.
    if name == "instruction" and begins_with_user(chosen):
        used -= {name}
    read = [*sorted(with_columns), name or "prompt", chosen_name, rejected_name]
    title = title or (_TITLES.get(name or "", "") if name != "question" or with_columns else "")
    is_plain = not title and name in (None, "prompt") and not with_columns
    result = {"prompt": prompt, "tools": row.get("tools")}
    result |= {"chosen": chosen} if chosen_name in row else {}
    result |= {"rejected": rejected} if rejected_name in row else {}
    return Comparison(
        shape="" if is_plain else _phrase(title, read),
        used=frozenset(used),
        values=_beside(row, used) | result,
    )


def _labelled_prompt(
    row: Row, names: tuple[str, str], values: Row, reading: Reading
) -> tuple[str | None, Any]:
    """Return the column of the prompt and its value; None if the responses share it."""
    prompt = to_turns(row.get("prompt"), "prompt")
    if reading.columns.get("prompt") == "" or (prompt is not None and prompt != []):
        return "prompt", prompt
    if reading.columns.get("messages"):
        return "messages", to_turns(row["messages"], "messages")
    responses = [values.get(name) for name in names]
    if any(begins_with_user(value) for value in responses):
        # distilabel repeats its instruction in both conversations.
        if {"instruction", "generations", "ratings"} <= row.keys():
            return "instruction", row["instruction"]
        return None, prompt
    if any(isinstance(value, str) and is_dialogue(value) for value in responses):
        return None, prompt
    name = _prompt_column(row, names, required=False)
    if name is None and prompt is None and "prompt" in row:
        chosen, rejected = responses
        if isinstance(chosen, str) and isinstance(rejected, str):
            split_texts(chosen, rejected)  # says so where they share nothing
            raise InvalidPair("empty prompt")
    return name, prompt if name is None else to_turns(row[name], name)


def _prompt_column(row: Row, taken: Sequence[str], *, required: bool) -> str | None:
    """Return the column that holds the prompt.

    Args:
        row: Values by role and column.
        taken: Columns that hold something else.
        required: Whether the responses do not share a prompt, so that a column must hold it.

    Raises:
        InvalidPair: If more than one column may hold it, or one whose name is not known.
    """
    rest = {name: row[name] for name in row if name not in (*taken, *SYSTEM, "tools")}
    names = named_prompts(rest)
    if "prompt" in names:
        return "prompt"
    known = [
        name
        for name in names
        if name in _PROMPTS or (name in _CONVERSATIONS and not isinstance(row[name], str))
    ]
    if len(names) == 1 and known:
        return names[0]
    if names:
        raise InvalidPair(ask_for_prompt(names, row, implicit=not required))
    known = (*_PROMPTS, *_CONVERSATIONS) if required else (*_PROMPTS[1:], *_CONVERSATIONS[:3])
    empty = [name for name in known if name in rest]
    empty = empty or [name for name in empty_prompts(rest) if required or name != "prompt"]
    if empty:
        raise InvalidPair(f"empty {empty[0]}")
    if required:
        raise InvalidPair("no column holds the prompt: give --columns prompt=COLUMN")
    return None


def _without_responses(prompt: Any, name: str | None, responses: Sequence[Any]) -> Any:
    """Return the prompt in a column of messages without the response with which it ends.

    Args:
        prompt: Value of the column.
        name: The column; None if the responses share the prompt.
        responses: The responses of the row.

    Raises:
        InvalidPair: If the column ends with another turn of the assistant.
    """
    if name not in _CONVERSATIONS or not isinstance(prompt, list) or not prompt:
        return prompt
    for response in responses:
        turns = [{"content": response}] if isinstance(response, str) else response
        if isinstance(turns, list) and 0 < len(turns) < len(prompt):
            end = prompt[-len(turns) :]
            # The user may have written the same words as a response.
            is_response = isinstance(end[0], Mapping) and end[0].get("role") == "assistant"
            if is_response and all(map(_is_same_turn, end, turns)):
                return prompt[: -len(turns)]
    if isinstance(prompt[-1], Mapping) and prompt[-1].get("role") == "assistant":
        raise InvalidPair(
            f"{name} ends with a turn of the assistant that is no response of the row: give "
            f"--columns prompt={name} if the responses continue it"
        )
    return prompt


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_same_turn(turn: Any, other: Any) -> bool:
    content = _content(turn)
    # Turns that only call tools have no content.
    if content is None and isinstance(turn, Mapping) and isinstance(other, Mapping):
        calls = turn.get("tool_calls")
        return bool(calls) and calls == other.get("tool_calls")
    return content is not None and content == _content(other)


def _content(turn: Any) -> Any:
    content = turn.get("content") if isinstance(turn, Mapping) else None
    return content.strip() if isinstance(content, str) else content


def _with_context(
    row: Row, reading: Reading, prompt: Any, chosen: Any, rejected: Any
) -> tuple[Any, Any, Any, set[str]]:
    """Return prompt, chosen and rejected with earlier messages and the system message."""
    used: set[str] = set()
    is_text = isinstance(prompt, str)
    if reading.columns.get("messages") and "prompt" in reading.columns and prompt:
        earlier = to_turns(row["messages"], "messages")
        if not isinstance(earlier, list):
            raise InvalidPair("messages is not a list of messages")
        prompt, used, is_text = [*earlier, *as_turns(prompt)], {"messages"}, False
    name = _system_column(row, reading)
    if name is None:
        return prompt, chosen, rejected, used
    system = row[name]
    if prompt is None and _are_dialogues(chosen, rejected):
        chosen, rejected = list(dialogue_turns(chosen)), list(dialogue_turns(rejected))
    elif reading.columns.get("prompt") == "" and _are_texts(chosen, rejected):
        beginning, left, right = split_texts(chosen, rejected)
        chosen, rejected = [*beginning, *left], [*beginning, *right]
    whole = begins_with_user(chosen) and begins_with_user(rejected)
    if whole:
        before = [chosen, rejected]
        chosen, rejected = with_system(chosen, system), with_system(rejected, system)
        used |= {name} if before != [chosen, rejected] else set()
    if isinstance(prompt, list) or (is_text and not whole):
        turns = as_turns(prompt)
        prompt = with_system(turns, system) if turns else turns
        used |= {name} if prompt != turns else set()
    return prompt, chosen, rejected, used


def _are_texts(*responses: Any) -> bool:
    return all(isinstance(response, str) for response in responses)


def _are_dialogues(*responses: Any) -> bool:
    return all(isinstance(response, str) and is_dialogue(response) for response in responses)


def _system_column(row: Row, reading: Reading) -> str | None:
    """Return the column that holds the system message; None if there is none."""
    known = ("system",) if "system" in reading.columns else SYSTEM
    names = [name for name in known if row.get(name) is not None]
    for name in names:
        if not isinstance(row[name], str):
            raise InvalidPair(f"{name} is not text")
    names = [name for name in names if row[name].strip()]
    if len({row[name] for name in names}) > 1:
        listed = " or ".join(names)
        raise InvalidPair(
            f"the system message may be in column {listed}: give --columns system={names[0]}"
        )
    return names[0] if names else None


def _decided(row: Row, shape: TwoResponses, decider: str, reading: Reading) -> Comparison:
    if row[decider] is None:
        raise InvalidPair(f"empty {decider}")
    # HelpSteer writes a strength from -3 to 3, whose 1 prefers the second response.
    may_be_strength = shape.responses[0] in ("response_1", "response1")
    if decider == "preference" and may_be_strength and _is_number(row[decider]):
        raise InvalidPair(
            "preference may be the number of a response or a strength: give --columns "
            "winner=preference if 1 is the first response"
        )
    best = shape.decide(row[decider], decider)
    if best is None:
        raise InvalidPair(TIE)
    left, right = (to_turns(row[name], name) for name in shape.responses)
    chosen, rejected = (left, right) if best == 0 else (right, left)
    if shape.title == "LMArena":
        for column, value in zip(shape.responses, (left, right), strict=True):
            if not isinstance(value, list) or not value:
                state = f"{column} is not a list of messages" if value else f"empty {column}"
                raise InvalidPair(state)
    name = shape.prompt
    # Two conversations share their prompt.
    if name is None and not (begins_with_user(left) and begins_with_user(right)):
        name = _prompt_column(row, [*shape.responses, decider], required=True)
    prompt = to_turns(row.get(name or "prompt"), name or "prompt")
    if name is not None and not prompt:
        raise InvalidPair(f"empty {name}")
    # Beside two conversations, a prompt is compared with what they share.
    if name is None and not (prompt and isinstance(prompt, str | list)):
        prompt = None
    prompt = _without_responses(prompt, name, [left, right])
    prompt, chosen, rejected, context = _with_context(row, reading, prompt, chosen, rejected)
    used = {*shape.responses, decider, "prompt", "tools", *context, *([name] if name else ())}
    read = [*sorted(context), *([name] if name else ()), *shape.responses, f"by {decider}"]
    return Comparison(
        shape=_phrase(shape.title, read),
        # What decided stays with the row: it may say by how much.
        used=frozenset(used - {decider}),
        values=_beside(row, used)
        | {"prompt": prompt, "chosen": chosen, "rejected": rejected, "tools": row.get("tools")},
    )


def _ranked(row: Row, reading: Reading) -> tuple[str, str | None, list[Ranked]] | None:
    """Return the columns of responses and scores, and the responses; None without scores."""
    found: list[tuple[str, str | None, list[Ranked]]] = []
    names = ("responses",) if "responses" in reading.columns else _RESPONSE_LISTS
    scores = [name for name in _SCORE_LISTS if isinstance(row.get(name), list)]
    scores = [name for name in scores if name in reading.columns] or scores
    for name in names:
        items = row.get(name)
        if not isinstance(items, list):
            continue
        ranked = rank_objects(items, name)
        if ranked is not None:
            found.append((name, None, ranked))
        found += [
            (name, key, rank_lists(items, row[key], ranks=key == "ranks"))
            for key in scores
            if ranked is None or key in reading.columns
        ]
    if len(found) > 1:
        name, key, _ = found[0]
        raise InvalidPair(
            "more than one list may hold the responses or their scores: give --columns "
            f"responses={name}{f',{_score_role(key)}={key}' if key else ''}"
        )
    return found[0] if found else None


def _score_role(name: str) -> str:
    return "ranks" if name == "ranks" else "scores"


def _several(
    row: Row, responses: str, scores: str | None, ranked: list[Ranked], reading: Reading
) -> Iterator[Comparison]:
    taken = [responses, *([scores] if scores else ())]
    name = _prompt_column(row, taken, required=True)
    if name is None:
        raise InvalidPair("no column holds the prompt: give --columns prompt=COLUMN")
    pairs_from = reading.pairs_from or "best-rest"
    # Copied, because the responses are parsed anew for each pair.
    candidates = [to_turns(item.response, responses) for item in ranked]
    value = _without_responses(to_turns(row[name], name), name, candidates)
    title = {"answers": "Nectar", "completions": "UltraFeedback"}.get(responses, "")
    for choice in choose(ranked, pairs_from):
        better, worse = ranked[choice.better], ranked[choice.worse]
        reason, responses_of = choice.reason, (candidates[choice.better], candidates[choice.worse])
        try:
            prompt, chosen, rejected, context = _with_context(row, reading, value, *responses_of)
        except InvalidPair as error:
            # The other pairs of the row may be usable.
            reason, context = reason or str(error), set()
            prompt, (chosen, rejected) = value, responses_of
        used = {*taken, name, "prompt", "tools", *context}
        kind = "rank" if better.is_rank else "score"
        facts = {
            "chosen": choice.better,
            "rejected": choice.worse,
            f"chosen_{kind}": better.score,
            f"rejected_{kind}": worse.score,
            **({"chosen_details": better.details} if better.details else {}),
            **({"rejected_details": worse.details} if worse.details else {}),
        }
        yield Comparison(
            shape=f"{_phrase(title, [*sorted(context), name, *taken])}; {_RULES[pairs_from]}",
            used=frozenset(used),
            values=_beside(row, used)
            | {"prompt": prompt, "chosen": chosen, "rejected": rejected, "tools": row.get("tools")},
            places=(choice.better, choice.worse),
            facts=facts,
            reason=reason,
        )


_RULES = {
    "best-rest": "the best response against each worse one",
    "all": "all pairs of responses with different scores",
}


def _beside(row: Row, used: set[str]) -> dict[str, Any]:
    return {name: row[name] for name in row if name not in used}


def _phrase(title: str, columns: Sequence[str]) -> str:
    return f"{title}: {', '.join(columns)}" if title else ", ".join(columns)
