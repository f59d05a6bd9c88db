"""What a teacher's server answers, read from its JSON."""

import json
from dataclasses import dataclass
from typing import Any

from sp2dpo.faults import Unavailable
from sp2dpo.panel import Teacher
from sp2dpo.terminal import brief


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What a server answered.

    Attributes:
        text: of the message; empty where it gave none.
        finish_reason: `stop` where the model ended by itself, `length` at the token limit.
        model: as the server names it.
        prompt_tokens: of the request, as the server counted.
        completion_tokens: of the reply.
        cached_tokens: of the prompt, served from the prefix cache; None where it does not tell.
        seconds: from sending to the whole reply; None where nobody took the time.
        logprobs: of its tokens, as the server gives them; None where it gives none.
    """

    text: str
    finish_reason: str | None
    model: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    cached_tokens: int | None
    seconds: float | None
    logprobs: list[Any] | None = None


def parsed(teacher: Teacher, body: bytes) -> dict[str, Any]:
    """The JSON object of an answer.

    Raises:
        Unavailable: it is none: a proxy's page, or cut off.
    """
    try:
        said = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise _no_answer(teacher, body) from error
    if not isinstance(said, dict):
        raise _no_answer(teacher, body)
    return said


def _no_answer(teacher: Teacher, body: bytes) -> Unavailable:
    text = f"{teacher.label}: not an answer: {brief_of(body)}"
    return Unavailable(text, reason="no-answer")


def reply_of(teacher: Teacher, said: dict[str, Any], seconds: float | None) -> Reply:
    """What a chat completion says.

    Args:
        teacher: that was asked.
        said: the completion, as JSON.
        seconds: from sending to the whole reply; None where nobody took the time.

    Raises:
        Unavailable: it is no chat completion.
    """
    try:
        choice = said["choices"][0]
        text = choice["message"].get("content") or ""
        usage = said.get("usage") or {}
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
        return Reply(
            text=storable(str(text)),
            finish_reason=_text(choice.get("finish_reason")),
            model=_text(said.get("model")),
            prompt_tokens=count_of(usage.get("prompt_tokens")),
            completion_tokens=count_of(usage.get("completion_tokens")),
            cached_tokens=count_of(cached),
            seconds=seconds,
            logprobs=_logprobs(choice),
        )
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        brief = brief_of(json.dumps(said).encode())
        text = f"{teacher.label}: not a chat completion: {brief}"
        raise Unavailable(text, reason="no-answer") from error


def _logprobs(choice: dict[str, Any]) -> list[Any] | None:
    """Of the reply's tokens; a reply is whole without them."""
    said = choice.get("logprobs")
    content = said.get("content") if isinstance(said, dict) else None
    return content if isinstance(content, list) else None


def storable(text: str) -> str:
    """The text with halves of surrogate pairs written as escapes: no file takes them as they are.

    A reply that holds one is refused all the same: the escape stands for the half in JSON too.
    """
    return text.encode("utf-8", "backslashreplace").decode()


def _text(value: Any) -> str | None:
    return storable(value) if isinstance(value, str) else None


def count_of(value: Any) -> int | None:
    """A number of tokens; None for what cannot be one."""
    return value if isinstance(value, int) and 0 <= value < 2**31 else None


def brief_of(body: bytes) -> str:
    """The beginning of an answer, for a message."""
    return brief(body.decode(errors="replace"))
