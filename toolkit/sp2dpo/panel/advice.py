"""Say what to do about replies that hold no annotation: one table for all messages."""

import re
from collections.abc import Mapping

from sp2dpo.inference.endpoint import Endpoint
from sp2dpo.text import shorten

LENGTH = "the reply reached the token limit"
LENGTH_OF_THINKING = "the reply reached the token limit before its JSON object began"
"""Details of the reason `length`; the second one is typical of a model that thinks first."""
_LESS_THINKING = (
    "shorten or turn off its thinking in its sampling (reasoning_effort: low, or for many models "
    "chat_template_kwargs: {enable_thinking: false})"
)
_ADVICE = {
    "not-json": "does its server support response_format json_schema? If not, set `structured` to "
    "a form that it supports; read the replies in the store",
    "schema": "its server does not enforce the JSON schema of a reply: use one that does, or a "
    "model that follows the rubric's format; read the replies in the store",
    "length": "raise max_tokens in its sampling",
    "empty": "its server sends replies without text: read its log",
    "unfinished": "its server ends replies early: read its log",
    "reasoning-only": "raise max_tokens in its sampling, start its server without a reasoning "
    f"parser if the answer is in the reasoning, or {_LESS_THINKING}",
    "refusal": "the model refuses to judge these pairs: read the replies in the store, then use "
    "another model or leave these pairs out",
    "content-filter": "a content filter of the provider stops the replies: turn it off, use "
    "another provider, or leave these pairs out",
    "tool-call": "the model calls a tool, although the request offers none: turn off tools and "
    "automatic tool choice at its server or gateway",
    "too-long": "raise --max-model-len, or leave out the longest pairs",
    "too-large": "its server sends more than a reply of max_tokens takes: read its log, or use "
    "another server",
    "no-answer": "its server answers other requests, but not these: read its log",
    "server-error": "its server answers other requests, but not these: read its log",
}
_WEAKER = {
    "not-json": "its replies hold more than one JSON object: set `structured: json_schema` if its "
    "server supports it, or ask for JSON alone in the rubric",
    "schema": "its server does not enforce the whole schema: set `structured: json_schema` if it "
    "supports that, or describe the format more exactly in the rubric",
}
"""The same, for teachers whose server is asked for less than the whole schema (`structured`)."""
_NO_SYSTEM = re.compile("system.{0,20}role|role.{0,20}system", re.I)


def advise(reason: str, detail: str | None = None, *, structured: str = Endpoint.structured) -> str:
    """Return what to do about replies that were refused for a reason.

    Args:
        reason: Reason of the refusals.
        detail: Detail of one of them; None if it is unknown.
        structured: Setting of the teacher.
    """
    if structured != Endpoint.structured and reason in _WEAKER:
        return _WEAKER[reason]
    if reason == "length" and detail == LENGTH_OF_THINKING:
        return f"{_ADVICE['length']}, or {_LESS_THINKING}"
    if reason in _ADVICE:
        return _ADVICE[reason]
    if reason.startswith("http-"):
        # The client adds its advice to the server's message, which it has shortened.
        answer = f"the server says: {shorten(detail or 'nothing', 500)}"
        if _NO_SYSTEM.search(detail or ""):
            return (
                "the chat template of the model has no system role: use a copy of the rubric with "
                f'`system: ""`; {answer}'
            )
        return answer
    return shorten(detail or "read the replies in the store")


def advise_all(
    reasons: Mapping[str, int],
    details: Mapping[str, str],
    *,
    structured: str = Endpoint.structured,
) -> str:
    """Return what to do about each reason of refusals, the most frequent one first.

    Args:
        reasons: Number of refusals by reason.
        details: Detail of one refusal by reason; may lack some.
        structured: Setting of the teacher.
    """
    # The sort is stable, so equally frequent reasons stay in alphabetical order.
    ordered = sorted(sorted(reasons), key=lambda reason: -reasons[reason])
    return "; ".join(
        f"{reason} {reasons[reason]}: {advise(reason, details.get(reason), structured=structured)}"
        for reason in ordered
    )
