"""Read the refused replies of a store again: what today's rules can read becomes kept.

A reply was paid for once. One that was refused because of a finish reason that was not known, or
because of thinking before its annotation, needs no second request.
"""

import ast
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sp2dpo.inference.completion import parse_reply
from sp2dpo.inference.endpoint import Endpoint
from sp2dpo.inference.errors import EndpointError
from sp2dpo.panel.rubric import Rubric
from sp2dpo.store.records import OF_REPLIES, ReadAgain, StoredReply, read_reply
from sp2dpo.store.store import Store
from sp2dpo.text import count_noun

_OF_TEXT = ("not-json", "schema")
"""Reasons whose replies are stored as text, which may itself be JSON."""


@dataclass(frozen=True, kw_only=True)
class RereadResult:
    """The replies that are kept now, although they were refused.

    Attributes:
        kept: Their number by the reason of the refusal.
        refused: Number of the refused replies that hold text and remain refused.
    """

    kept: dict[str, int]
    refused: int


def reread_replies(store: Store) -> RereadResult:
    """Keep the refused replies of a store that today's rules can read; no request is sent.

    Of several such replies to one question, the first one is kept, as if it had been read when it
    arrived. Questions with a kept reply do not change, and a second call changes nothing. Pairs
    whose replies change are no longer settled: an adaptive panel decides about them again.

    Args:
        store: Store that is open for writing.
    """
    kept, refused = _read_all(store)
    store.keep_replies([reply for reply, _ in kept])
    return RereadResult(kept=_by_reason(kept), refused=refused)


def count_readable(store: Store) -> int:
    """Return how many refused replies `reread_replies` would keep."""
    return len(_read_all(store)[0])


def reread_lines(result: RereadResult) -> list[str]:
    """Return a line with the counts; none if no refused reply holds text."""
    total = sum(result.kept.values())
    if not total and not result.refused:
        return []
    reasons = ", ".join(f"{reason} {count}" for reason, count in result.kept.items())
    listed = f" ({reasons})" if reasons else ""
    return [
        f"{total} of {count_noun(total + result.refused, 'refused reply', 'refused replies')} read "
        f"again and kept{listed}; no request was sent for them"
    ]


def _by_reason(kept: list[tuple[ReadAgain, str]]) -> dict[str, int]:
    return dict(sorted(Counter(reason for _, reason in kept).items()))


def _read_all(store: Store) -> tuple[list[tuple[ReadAgain, str]], int]:
    """Return the readable replies, each with its reason, and the number of the others."""
    kept, refused, questions = [], 0, set()
    teachers = {teacher.name: teacher for teacher in store.teachers()}
    if not teachers:
        return [], 0
    rubric = store.rubric()
    endpoints = {
        name: Endpoint(
            name=name,
            model=teacher.model,
            revision=teacher.revision,
            base_urls=(),
            sampling=teacher.sampling,
            extra=teacher.sampling.get("extra") or {},
        )
        for name, teacher in teachers.items()
    }
    for reply in _candidates(store):
        question = (reply.pair_id, reply.teacher, reply.variant, reply.order)
        if question in questions:
            continue
        read = _read(reply, endpoints[reply.teacher], rubric)
        if read is None:
            refused += 1
        else:
            kept.append((read, reply.reason or ""))
            questions.add(question)
    return kept, refused


def _candidates(store: Store) -> Iterator[StoredReply]:
    for reply in store.refused_replies():
        # Requests that were not answered have no text to read.
        if reply.reason in OF_REPLIES and reply.raw:
            yield reply


def _read(reply: StoredReply, endpoint: Endpoint, rubric: Rubric) -> ReadAgain | None:
    """Return the annotation of a refused reply; None if it remains refused."""
    choice = {"message": _message(reply), "finish_reason": reply.finish_reason}
    answer = {
        "choices": [choice],
        "model": reply.served_model,
        "usage": {"completion_tokens": reply.completion_tokens},
    }
    try:
        parsed = parse_reply(endpoint, answer, None)
        annotation = read_reply(parsed, rubric)
    # The reasons of a refusal are ValueErrors.
    except (EndpointError, ValueError):
        return None
    return ReadAgain(reply=reply, annotation=annotation, raw=parsed.text)


def _message(reply: StoredReply) -> dict[str, Any]:
    """Return the message that the stored text of a reply came from."""
    if reply.reason not in _OF_TEXT:
        try:
            message = json.loads(reply.raw)
        except (ValueError, RecursionError):
            message = None
        if isinstance(message, dict) and not message.keys().isdisjoint(("role", "content")):
            return message
    # Earlier releases stored content that was a list of parts as Python writes it.
    elif reply.raw.startswith("[{'"):
        try:
            content = ast.literal_eval(reply.raw)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            content = None
        if isinstance(content, list):
            return {"content": content}
    return {"content": reply.raw}
