"""Convert replies to rows of a store: kept with an annotation, or refused with a reason."""

import json
import time
from dataclasses import dataclass
from typing import Any

from sp2dpo.inference.client import Reply
from sp2dpo.panel.annotation import Annotation, Key, Refusal, parse_annotation
from sp2dpo.panel.logprobs import expected_scores, tokens_of_values
from sp2dpo.panel.rubric import Rubric

UNREADABLE = ("empty", "not-json", "schema", "length", "unfinished")
"""Reasons of refusals that are retried with another seed; all others are final."""

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
        raw: Text of the reply, unchanged.
        reply: Parsed reply with its token counts and latency; None if the server declined the
            request.
        arrived: Arrival time, in seconds since 1970.
        tokens: Top log-probabilities of the tokens that spell the values; None if not requested.
        magnitude: Expected magnitude under these log-probabilities, on the scale of the rubric.
        confidence: Expected confidence under these log-probabilities, on the scale of the rubric.
    """

    key: Key
    annotation: Annotation | None
    reason: str | None
    detail: str | None
    raw: str
    reply: Reply | None
    arrived: float
    tokens: list[dict[str, Any]] | None = None
    magnitude: float | None = None
    confidence: float | None = None


def record_reply(key: Key, reply: Reply, rubric: Rubric) -> ReplyRecord:
    """Return the record of a reply: kept if it is complete and has a valid annotation."""
    annotation, reason, detail, tokens = None, None, None, None
    try:
        if reply.finish_reason == "length":
            raise Refusal("length", "the reply reached the token limit")
        if reply.finish_reason != "stop":
            raise Refusal("unfinished", f"the server says {reply.finish_reason!r}")
        annotation = parse_annotation(reply.text, rubric)
    except Refusal as refusal:
        reason, detail = refusal.reason, refusal.detail
    if annotation and reply.logprobs is not None:
        tokens = tokens_of_values(reply.logprobs, reply.text)
    return ReplyRecord(
        key=key,
        annotation=annotation,
        reason=reason,
        detail=detail,
        raw=reply.text,
        reply=reply,
        arrived=time.time(),
        tokens=tokens,
        magnitude=expected_scores(tokens, "magnitude", rubric.magnitude) if tokens else None,
        confidence=expected_scores(tokens, "confidence", rubric.confidence) if tokens else None,
    )


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
    key, annotation, reply = record.key, record.annotation, record.reply
    return (
        key.pair_id, key.teacher, key.variant, key.order, key.attempt,
        "refused" if annotation is None else "kept", record.reason, record.detail,
        annotation and annotation.category, annotation and annotation.magnitude,
        annotation and annotation.confidence, annotation and annotation.rationale,
        record.raw, reply and reply.finish_reason, reply and reply.model, rubric,
        reply and reply.prompt_tokens, reply and reply.completion_tokens,
        reply and reply.cached_tokens, reply and reply.seconds, record.arrived,
        annotation and annotation.better,
        None if record.tokens is None else json.dumps(record.tokens, ensure_ascii=False),
        record.magnitude, record.confidence,
    )  # fmt: skip
