"""Convert replies to rows of a store: kept with an annotation, or refused with a reason."""

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from sp2dpo.panel.advice import LENGTH, LENGTH_OF_THINKING
from sp2dpo.panel.annotation import (
    Annotation,
    Key,
    Refusal,
    is_thinking,
    object_span,
    parse_annotation,
)
from sp2dpo.panel.logprobs import ValueToken, expected_scores, format_tokens, tokens_of_values
from sp2dpo.panel.rubric import Rubric
from sp2dpo.text import shorten

if TYPE_CHECKING:  # keeps the HTTP client out of commands that only read a store
    from sp2dpo.inference.client import Reply

UNREADABLE = (
    "empty", "not-json", "schema", "length", "unfinished", "reasoning-only", "tool-call"
)  # fmt: skip
"""Reasons of refusals that are retried with another seed: the form of the reply was wrong.

All others are final. A model that refuses to judge a pair, or a filter that stops it, answers about
the pair: asking until the answer changes would cost money and favour the odd one.
"""
OF_REPLIES = (*UNREADABLE, "refusal", "content-filter")
"""Reasons of refusals of replies; all others are of requests that were not answered."""

COLUMNS = (
    "pair_id", "teacher", "variant", "order", "attempt", "status", "reason", "detail",
    "category", "magnitude", "confidence", "rationale", "raw", "finish_reason", "model", "rubric",
    "prompt_tokens", "completion_tokens", "cached_tokens", "seconds", "arrived",
    "better", "logprobs", "expected_magnitude", "expected_confidence",
)  # fmt: skip
"""Columns of the table `replies`, in order."""


@dataclass(frozen=True, kw_only=True)
class ReplyRecord:
    """A reply as it is stored.

    Attributes:
        key: Key of the request that the reply answers.
        annotation: Parsed annotation; None if the reply was refused.
        reason: One-word reason of the refusal; None if the reply was kept.
        detail: Explanation of the reason.
        raw: Text of the reply, unchanged; JSON of its message if it was refused and has more or
            other than text.
        reply: Parsed reply with its token counts and latency; None if the server declined the
            request.
        arrived: Arrival time, in seconds since 1970.
        tokens: Top log-probabilities of the tokens that spell the values; None if not requested.
        magnitude, confidence: Expectations under these log-probabilities, on the rubric's scales.
    """

    key: Key
    annotation: Annotation | None
    reason: str | None
    detail: str | None
    raw: str
    reply: "Reply | None"
    arrived: float
    tokens: list[ValueToken] | None = None
    magnitude: float | None = None
    confidence: float | None = None


class StoredReply(NamedTuple):
    """A reply as it is read from a store; a tuple, because a store has hundreds of thousands.

    Attributes:
        pair_id, teacher, variant, order, attempt: Key of the reply; see `annotation.Key`.
        status: `kept` or `refused`.
        reason, detail: Reason of a refusal, in one word and in full; None for a kept reply.
        category, magnitude, confidence, better, rationale: See `annotation.Annotation`; None for a
            refused reply.
        expected_magnitude, expected_confidence: Expectations over the teacher's tokens; None
            without log-probabilities.
        raw: Text of the reply, unchanged; JSON of its message if it was refused and has more or
            other than text.
        logprobs: JSON of `logprobs.ValueToken` objects; None if not requested.
        finish_reason: Why the server stopped, in its words.
        model, revision: Model of the teacher, from the panel.
        served_model: Model that the server reported.
        rubric: Hash of the rubric.
        prompt_tokens, completion_tokens, cached_tokens: Counts that the server reported.
        seconds: Latency in seconds; None for an imported reply.
        arrived: Arrival time, in seconds since 1970.
    """

    pair_id: str
    teacher: str
    variant: str
    order: str
    attempt: int
    status: str
    reason: str | None
    category: str | None
    magnitude: int | None
    confidence: int | None
    better: str | None
    # `Questions.replied_pairs` reads only the fields above, so these need default values.
    expected_magnitude: float | None = None
    expected_confidence: float | None = None
    rationale: str | None = None
    detail: str | None = None
    raw: str = ""
    logprobs: str | None = None
    finish_reason: str | None = None
    model: str | None = None
    revision: str | None = None
    served_model: str | None = None
    rubric: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    seconds: float | None = None
    arrived: float | None = None


@dataclass(frozen=True, kw_only=True)
class ReadAgain:
    """A refused reply that can be read now.

    Attributes:
        reply: The reply as it is stored.
        annotation: Its annotation.
        raw: Its text.
    """

    reply: StoredReply
    annotation: Annotation
    raw: str


def record_reply(key: Key, reply: "Reply", rubric: Rubric) -> ReplyRecord:
    """Return the record of a reply: kept if it is complete and has a valid annotation."""
    annotation, reason, detail, tokens = None, None, None, None
    try:
        annotation = read_reply(reply, rubric)
    except Refusal as refusal:
        reason, detail = refusal.reason, refusal.detail
    if annotation and reply.logprobs is not None:
        tokens = tokens_of_values(reply.logprobs, reply.text, object_span(reply.text))
    return ReplyRecord(
        key=key,
        annotation=annotation,
        reason=reason,
        detail=detail,
        raw=reply.text if annotation or reply.message is None else reply.message,
        reply=reply,
        arrived=time.time(),
        tokens=tokens,
        magnitude=expected_scores(tokens, "magnitude", rubric.magnitude) if tokens else None,
        confidence=expected_scores(tokens, "confidence", rubric.confidence) if tokens else None,
    )


def read_reply(reply: "Reply", rubric: Rubric) -> Annotation:
    """Return the annotation in a reply.

    Raises:
        Refusal: `refusal`, `content-filter`, `length`, `unfinished`, `tool-call`, `reasoning-only`,
            or a reason of `parse_annotation`.
    """
    text, ending = reply.text, reply.finish_reason
    if reply.refusal is not None or ending == "refusal":
        raise Refusal("refusal", shorten(reply.refusal or text))
    if ending == "content_filter":
        raise Refusal("content-filter", "a content filter stopped the reply")
    if ending == "length":
        raise Refusal("length", LENGTH if _begins_answer(text) else LENGTH_OF_THINKING)
    if not text.strip():
        _refuse_without_text(reply)
    # A tool call beside the text does not end it early.
    if ending not in ("stop", "tool_calls", None):
        raise Refusal("unfinished", f"the server says {reply.served_finish_reason or ending!r}")
    try:
        return parse_annotation(text, rubric)
    except Refusal as refusal:
        if reply.has_tool_calls:
            raise Refusal("tool-call", "the model called a tool and sent no annotation") from None
        # Without a reason, only a complete object shows that the reply has ended.
        if reply.served_finish_reason is None and refusal.reason == "not-json":
            raise Refusal("unfinished", "the server states no finish_reason") from None
        raise


def _begins_answer(text: str) -> bool:
    start, end = object_span(text)
    return start < end and text[start] == "{" and not is_thinking(text)


def _refuse_without_text(reply: "Reply") -> NoReturn:
    if reply.has_tool_calls or reply.finish_reason == "tool_calls":
        raise Refusal("tool-call", "the model called a tool and sent no text")
    if reply.reasoning is not None:
        raise Refusal("reasoning-only", "the reply is thinking without an answer after it")
    if reply.finish_reason not in ("stop", None):
        raise Refusal("unfinished", f"the server says {reply.finish_reason!r}")
    raise Refusal("empty", "" if reply.message is None else "the message has no text")


def record_refusal(key: Key, reason: str, detail: str) -> ReplyRecord:
    """Return the record of a request that the server declined; `detail` is the server's message."""
    return ReplyRecord(
        key=key,
        annotation=None,
        reason=reason,
        detail=detail,
        raw="",
        reply=None,
        arrived=time.time(),
    )


def record_row(record: ReplyRecord, rubric: str | None) -> tuple[Any, ...]:
    """Return a record as a row of the table `replies`.

    Args:
        record: The reply.
        rubric: Hash of the rubric.
    """
    # Values are in the order of `COLUMNS`, which names them in the INSERT.
    key, annotation, reply = record.key, record.annotation, record.reply
    return (
        key.pair_id, key.teacher, key.variant, key.order, key.attempt,
        "refused" if annotation is None else "kept", record.reason, record.detail,
        annotation and annotation.category, annotation and annotation.magnitude,
        annotation and annotation.confidence, annotation and annotation.rationale,
        record.raw, reply and reply.served_finish_reason, reply and reply.model, rubric,
        reply and reply.prompt_tokens, reply and reply.completion_tokens,
        reply and reply.cached_tokens, reply and reply.seconds, record.arrived,
        annotation and annotation.better,
        None if record.tokens is None else format_tokens(record.tokens),
        record.magnitude, record.confidence,
    )  # fmt: skip
