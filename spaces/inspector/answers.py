"""Keep answers short: parts of long ones for the page, and fewer or shorter pairs for programs."""

import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from threading import Lock
from typing import Any

import numpy as np

from errors import BadRequest

MAX_ANSWER = 100_000
"""Largest number of characters of an answer as ASCII JSON; Gradio keeps answers in memory."""
MAX_WHOLE = 60_000_000
"""Largest number of characters of the long answers that stay in memory for their next parts."""
_MAX_KEPT = 200
"""Largest number of these answers."""
MAX_CUT = 50
"""Shortest length to which a text or a list is cut."""
MAX_UNFETCHED = 100
"""Largest number of answers in Gradio's queue that nobody has fetched."""
_ENVELOPE = 2_000
"""Characters for what surrounds the pairs in an answer."""


class Answers:
    """Answers to the page, of which the long ones are returned in parts."""

    def __init__(self) -> None:
        """Create an empty memory of long answers."""
        self._texts: OrderedDict[str, str] = OrderedDict()
        self._lock = Lock()

    def part(
        self,
        opening: int,
        function: Callable[[Any, dict[str, Any]], Any],
        dataset: Any,
        request: dict[str, Any],
    ) -> Any:
        """Return the answer to a request, or a part of it if it is long.

        Raises:
            BadRequest: The part that is asked for does not exist.
        """
        offset = request.get("offset", 0)
        if not isinstance(offset, int) or isinstance(offset, bool) or offset < 0:
            raise BadRequest("offset: takes a whole number")
        parameters = {key: value for key, value in request.items() if key != "offset"}
        request_text = json.dumps([opening, function.__name__, parameters], sort_keys=True)
        # Of one length: a request may be much longer than its answer.
        key = hashlib.sha256(request_text.encode()).hexdigest()
        with self._lock:
            text = self._texts.get(key)
        if text is None:
            answer = function(dataset, parameters)
            text = json.dumps(to_json(answer), separators=(",", ":"), allow_nan=False)
            if len(text) <= MAX_ANSWER and not offset:
                return answer
            self._keep(key, text)
        if offset >= len(text):
            raise BadRequest(f"offset: the answer has {len(text):,} characters")
        return {
            "piece": text[offset : offset + MAX_ANSWER],
            "size": len(text),
            "of": hashlib.sha256(text.encode()).hexdigest()[:16],
        }

    def _keep(self, key: str, text: str) -> None:
        with self._lock:
            self._texts[key] = text
            size = sum(map(len, self._texts.values()))
            while len(self._texts) > 1 and (size > MAX_WHOLE or len(self._texts) > _MAX_KEPT):
                size -= len(self._texts.popitem(last=False)[1])


def to_json(value: Any) -> Any:
    """Return a value with JSON types only: NaN and infinity become null, other types text."""
    if isinstance(value, dict):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value if value is None or isinstance(value, (str, int, float)) else str(value)


def format_json(value: Any) -> str:
    """Return a value as JSON."""
    return json.dumps(to_json(value), ensure_ascii=False, allow_nan=False)


def fit(
    facts: Mapping[str, Any],
    pairs: Iterable[dict[str, Any]],
    wanted: int,
    offset: int,
    text_from: int,
) -> str:
    """Return JSON of some facts and of as many pairs as fit into an answer.

    If the first pair alone does not fit, its texts and lists are cut.

    Args:
        facts: What the answer contains besides `pairs`.
        pairs: The pairs that were asked for.
        wanted: Number of the pairs.
        offset: Number of pairs before the first. If not all fit, `next_offset` of the answer is the
            offset of the first that does not.
        text_from: Number of characters to skip in each text of the first pair. If one of its texts
            is cut, `next_text` of the answer is the number for the next call.
    """
    texts, room, more = [], MAX_ANSWER - _ENVELOPE, {}
    for pair in pairs:
        whole = to_json(pair)
        text = json.dumps(whole, ensure_ascii=False, allow_nan=False)
        size = _size(text)
        if not texts and (size > room or text_from):
            whole, more = _shorten(whole, room, text_from)
            text = json.dumps(whole, ensure_ascii=False, allow_nan=False)
            size = _size(text)
        if size > room:
            break
        texts.append(text)
        room -= size
    if len(texts) < wanted:
        more["next_offset"] = offset + len(texts)
    head = json.dumps({**facts, **more}, ensure_ascii=False)
    return f'{head[:-1]}, "pairs": [{", ".join(texts)}]}}'


def _size(text: str) -> int:
    """Return about the number of characters that a text has with escapes for all but ASCII."""
    return len(text.encode("ascii", "backslashreplace"))


def _shorten(pair: dict[str, Any], room: int, start: int) -> tuple[dict[str, Any], dict[str, int]]:
    """Return a pair with the longest texts that fit, and where they go on if they are cut."""
    length = room
    while True:
        longest = 0

        def cut(value: Any, length: int = length) -> Any:
            nonlocal longest
            if isinstance(value, str):
                longest = max(longest, len(value))
                # A short text, such as an id, is not skipped.
                return value[start : start + length] if len(value) > MAX_CUT else value
            if isinstance(value, dict):
                return {key: cut(item) for key, item in value.items()}
            return [cut(item) for item in value[:length]] if isinstance(value, list) else value

        short = cut(pair)
        left_out = len(pair.get("replies", [])) - len(short.get("replies", []))
        if left_out:
            short["replies_left_out"] = left_out
        size = len(json.dumps(short))
        if size <= room:
            break
        if length <= MAX_CUT // 10:
            return {"pair_id": pair["pair_id"], "error": "too many columns to be shown"}, {}
        # In proportion, to need few rounds for long texts.
        length = min(length - 1, max(length * room // size, MAX_CUT if length > MAX_CUT else 0))
    return short, {"next_text": start + length} if longest > start + length else {}


def forget_unfetched(queue: Any) -> None:
    """Remove the oldest answers from Gradio's queue if too many have not been fetched."""
    waiting = queue.pending_event_ids_session
    for session in [session for session, events in waiting.items() if not events]:
        del waiting[session]
        queue.pending_messages_per_session.pop(session, None)
    count = sum(map(len, waiting.values()))
    while count >= MAX_UNFETCHED:
        session = next(iter(waiting))
        events = waiting.pop(session)
        count -= len(events)
        for event in events:
            if event in queue.event_ids_to_events:
                queue.event_ids_to_events[event].alive = False
        queue.pending_messages_per_session.pop(session, None)
