"""Bring conversations into messages with `role` and `content`, and add a system message."""

from collections.abc import Mapping, Sequence
from typing import Any

from sp2dpo.pairs.formats import InvalidPair, prompt_turns
from sp2dpo.pairs.pair import Message

_SPEAKERS = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
}
"""Roles by the names of ShareGPT's speakers."""
_MORE_SPEAKERS = {"function_call": "assistant", "function_response": "tool", "function": "tool"}


def to_turns(value: Any, name: str) -> Any:
    """Return messages with `role` and `content` for a conversation; any other value as it is.

    Args:
        value: A column: a message or a list of messages, each with `role` and `content` or with
            ShareGPT's `from` and `value`, or a list of `[question, answer]`.
        name: Name of the column, for the error.

    Raises:
        InvalidPair: If a speaker of ShareGPT is not known.
    """
    if isinstance(value, Mapping) and ("role" in value or "from" in value):
        value = [value]
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
        return value
    if value and all(_is_exchange(item) for item in value):
        return [
            {"role": role, "content": text}
            for item in value
            for role, text in zip(("user", "assistant"), item, strict=True)
        ]
    return [_turn(item, name) if isinstance(item, Mapping) else item for item in value]


def _is_exchange(item: Any) -> bool:
    return (
        isinstance(item, list | tuple)
        and len(item) == 2
        and all(isinstance(text, str) for text in item)
    )


def _turn(turn: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    # Parquet gives a message the keys of both forms, with null in those that it does not use.
    if turn.get("role") is not None or turn.get("from") is None:
        return turn
    speaker = turn["from"]
    known = _SPEAKERS | _MORE_SPEAKERS
    role = known.get(speaker.casefold()) if isinstance(speaker, str) else None
    if role is None:
        raise InvalidPair(
            f"{name} holds a turn whose speaker is not known (known: {', '.join(_SPEAKERS)})"
        )
    more = {key: turn[key] for key in turn if key not in ("from", "value", "role", "content")}
    return {"role": role, "content": turn.get("value"), **more}


def as_turns(prompt: Any) -> Any:
    """Return a prompt of text as messages; messages and other values as they are."""
    return list(prompt_turns(prompt)) if isinstance(prompt, str) else prompt


def begins_with_user(value: Any) -> bool:
    """Return whether a response is a whole conversation, which repeats its prompt."""
    return (
        isinstance(value, Sequence)
        and not isinstance(value, str | bytes)
        and bool(value)
        and isinstance(value[0], Mapping)
        and value[0].get("role") != "assistant"
    )


def with_system(turns: Sequence[Message], system: str) -> list[Message]:
    """Return messages with a system message at their beginning.

    Raises:
        InvalidPair: If they begin with another one.
    """
    first = turns[0] if turns else {}
    if not isinstance(first, Mapping) or first.get("role") != "system":
        return [{"role": "system", "content": system}, *turns]
    content = first.get("content")
    if not isinstance(content, str) or content.strip() != system.strip():
        raise InvalidPair("the system column is not the system message of the conversation")
    return list(turns)
