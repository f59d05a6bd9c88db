"""Read the replies of batch services and people to exported requests into a store.

The format is that of OpenAI's Batch API, which `vllm run-batch` writes too: one line of JSON per
reply, matched to its request by `custom_id`. A reply is parsed like one received over HTTP.

To answer requests by other means, write one such line per request; `content` is the JSON object
that the request's schema asks for, as text:

    {"custom_id": "...", "response": {"status_code": 200, "body": {"choices": [{"finish_reason":
    "stop", "message": {"content": "{...}"}}]}}, "error": null}
"""

import json
import re
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sp2dpo.annotation.reply_lines import OtherFormat, parse_answer
from sp2dpo.annotation.request_files import CustomIds
from sp2dpo.annotation.run import do_nothing
from sp2dpo.files import parse_json_object, read_lines
from sp2dpo.inference.client import Declined, EndpointError, Unavailable, parse_reply
from sp2dpo.inference.errors import status_error
from sp2dpo.panel.advice import advise_all
from sp2dpo.panel.annotation import Key
from sp2dpo.panel.panel import Panel, load_panel
from sp2dpo.store.counts import ReplyCounts, count_replies
from sp2dpo.store.database import connect
from sp2dpo.store.records import COLUMNS, ReplyRecord, record_refusal, record_reply, record_row
from sp2dpo.store.store import Store, open_store_for_writing
from sp2dpo.text import shorten

_PAGE = 500
"""Replies committed at a time."""
_CUSTOM_ID = re.compile(r"([0-9a-f]{40})\.([0-9a-f]{16})")
_MAX_REPORTED = 20
"""Number of lines reported for each problem; further ones are only counted."""
_CONTENT = [name for name in COLUMNS if name not in ("rubric", "seconds", "arrived")]
"""Columns that are equal when the same reply is imported again."""
_REPLY = ("raw", "finish_reason", "model", "prompt_tokens", "completion_tokens", "cached_tokens")
"""Columns that state what the service sent, not how it was read."""


@dataclass(frozen=True, kw_only=True)
class ImportResult:
    """What became of the lines of reply files, and the state of the store.

    Attributes:
        lines: Non-empty lines: kept + refused + known + failed + left_out.
        kept: New replies that hold an annotation.
        refused: New replies that hold none, by reason.
        known: Replies that the store already contained.
        failed: Requests that the service did not answer, by reason; they stay pending.
        left_out: Lines that match no request or contradict the store, by problem.
        empty: Files without any line.
        teachers: What the store holds, for each teacher of the panel.
        silent: Teachers that have replied, but without any reply that could be kept.
        advice: What to do about the replies of these teachers; empty if there are none.
    """

    lines: int
    kept: int
    refused: Counter[str]
    known: int
    failed: Counter[str]
    left_out: Counter[str]
    empty: tuple[Path, ...]
    teachers: tuple[ReplyCounts, ...]
    silent: tuple[str, ...]
    advice: str


def import_replies(
    paths: Iterable[str | Path],
    panel: Panel | str | Path,
    store: Store | str | Path,
    *,
    report: Callable[[str], object] = do_nothing,
) -> ImportResult:
    """Store the replies to exported requests. The same replies again change nothing.

    A line that matches no request is reported and left out; the others are stored. What was not
    answered stays pending, and the next export contains it.

    Args:
        paths: The reply files.
        panel: The panel of the export: loaded, or its YAML file. Recorded in the store with the
            first reply.
        store: The store that the requests were exported from: its file, or an open store.
        report: Called with a line for people about what was left out.

    Raises:
        ValueError: If the panel contradicts the store, or the store has none of its teachers.
            Or a file is in UTF-16, or damaged.
        OSError: If a file cannot be read.
    """
    panel = panel if isinstance(panel, Panel) else load_panel(Path(panel))
    with ExitStack() as stack:
        if not isinstance(store, Store):
            path = Path(store)
            if not path.exists():
                raise FileNotFoundError(
                    f"{path}: no such store; `sp2dpo export-requests` creates one"
                )
            store = stack.enter_context(open_store_for_writing(path))
        store.check_panel(panel)
        reader = stack.enter_context(closing(connect(store.path, write=False)))
        _refuse_strangers(store, panel, reader)
        inbox = _Inbox(store, panel, reader, report)
        empty = []
        for path in map(Path, paths):
            before = inbox.lines
            for number, line in read_lines(path):
                inbox.take(line, f"{path}: line {number}")
            if inbox.lines == before:
                empty.append(path)
        inbox.commit()
        for kind, count in sorted(inbox.left_out.items()):
            if count > _MAX_REPORTED:
                report(f"and {count - _MAX_REPORTED} more lines that cannot be stored: {kind}")
        silent, advice = [], []
        for teacher in panel.teachers:
            counts = store.counts(teacher.name, panel.variants)
            if counts and "kept" not in counts:
                silent.append(teacher.name)
                advice.append(advise_all(counts, inbox.details, structured=teacher.structured))
        return ImportResult(
            lines=inbox.lines,
            kept=inbox.kept,
            refused=inbox.refused,
            known=inbox.known,
            failed=inbox.failed,
            left_out=inbox.left_out,
            empty=tuple(empty),
            teachers=tuple(count_replies(store, panel)),
            silent=tuple(silent),
            advice="; ".join(dict.fromkeys(advice)),
        )


def _refuse_strangers(store: Store, panel: Panel, reader: sqlite3.Connection) -> None:
    """Raise ValueError if the panel belongs to another run."""
    known = {row[0] for row in reader.execute("SELECT name FROM teachers")}
    if known and known.isdisjoint(teacher.name for teacher in panel.teachers):
        raise ValueError(
            f"{store.path} has none of the panel's teachers (it has "
            f"{', '.join(sorted(known))}): use the panel that the requests were exported with"
        )


class _Problem(ValueError):
    """A line that cannot be stored. Arguments: the kind of problem, and its details."""


class _Inbox:
    """Parses lines, and stores their replies in batches."""

    def __init__(
        self, store: Store, panel: Panel, reader: sqlite3.Connection, say: Callable[[str], object]
    ) -> None:
        self.lines = self.kept = self.known = 0
        self.refused: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.left_out: Counter[str] = Counter()
        self.details: dict[str, str] = {}
        self._store = store
        self._panel = panel
        self._reader = reader
        self._say = say
        last_attempt = reader.execute("SELECT max(attempt) FROM replies").fetchone()[0]
        retries = max(teacher.retries for teacher in panel.teachers)
        # Attempts up to one after the last: refused replies may have been exported once more.
        self._requests_by_hash = CustomIds(panel).by_hash(
            max(retries, -1 if last_attempt is None else last_attempt) + 2
        )
        self._teachers = {teacher.name: teacher for teacher in panel.teachers}
        self._shard = store.questions.shard()
        self._waiting: dict[Key, ReplyRecord] = {}
        self._has_recorded_panel = False

    def take(self, line: bytes, where: str) -> None:
        """Parse a line; its reply is stored by the next commit."""
        self.lines += 1
        try:
            values = _object(line)
            key = self._key(values)
            entry = self._entry(key, values)
            if self._is_known(entry):
                self.known += 1
                return
        except _Problem as problem:
            kind, detail = problem.args
            self.left_out[kind] += 1
            if self.left_out[kind] <= _MAX_REPORTED:
                self._say(f"{where}: {kind}: {detail}")
            return
        except EndpointError as error:
            self.failed[error.reason] += 1
            if self.failed[error.reason] == 1:  # what the service says of others is much the same
                self._say(f"{where}: no reply, {error.reason}: {error}")
            return
        self._waiting[key] = entry
        if entry.reason is None:
            self.kept += 1
        else:
            self.refused[entry.reason] += 1
            self.details.setdefault(entry.reason, entry.detail or "")
        if len(self._waiting) >= _PAGE:
            self.commit()

    def commit(self) -> None:
        """Store the replies taken since the last commit."""
        if not self._waiting:
            return
        # Only with the first reply: a panel that does not belong here must leave no trace.
        if not self._has_recorded_panel:
            self._store.record_panel(self._panel)
            self._has_recorded_panel = True
        self._store.add_replies(list(self._waiting.values()))
        self._waiting.clear()

    def _key(self, line: dict[str, Any]) -> Key:
        custom_id = line.get("custom_id")
        if not isinstance(custom_id, str):
            keys = ", ".join(map(repr, list(line)[:8]))
            raise _Problem("malformed", f"no custom_id; the line has {keys or 'no key'}")
        match = _CUSTOM_ID.fullmatch(custom_id)
        if match is None:
            raise _Problem("unknown", f"custom_id {custom_id[:80]!r} was not exported by sp2dpo")
        # A search by prefix: `g` comes after all hexadecimal digits.
        pairs = self._reader.execute(
            "SELECT pair_id FROM pairs WHERE pair_id >= ? AND pair_id < ?",
            (match[1], match[1] + "g"),
        ).fetchall()
        # A custom_id has only 40 of the 64 digits of the id, and must mean one pair.
        if len(pairs) != 1 or (self._shard is not None and not self._shard.contains(pairs[0][0])):
            raise _Problem("unknown", f"{custom_id} is about no pair of this store")
        if match[2] not in self._requests_by_hash:
            raise _Problem(
                "unknown",
                f"{custom_id} is about a pair of this store, but this panel does not ask it: "
                "another rubric, variant, or teacher (its model, revision and sampling count)",
            )
        teacher, variant, order, attempt = self._requests_by_hash[match[2]]
        return Key(
            pair_id=pairs[0][0], teacher=teacher, variant=variant, order=order, attempt=attempt
        )

    def _entry(self, key: Key, values: dict[str, Any]) -> ReplyRecord:
        """Return the reply of a line.

        Raises:
            EndpointError: If the service did not reply, and the request may be sent again.
        """
        try:
            answer = parse_answer(values)
        except OtherFormat as error:
            raise _Problem("malformed", str(error)) from error
        teacher, text = self._teachers[key.teacher], json.dumps(answer.error or answer.body)
        try:
            # As over HTTP: some are refusals, and any other status leaves the request pending.
            if answer.status is not None and answer.status != 200:
                raise status_error(teacher, answer.status, text.encode())
            if answer.status is None or answer.error is not None:
                raise Unavailable(shorten(text), reason="no-answer")
            reply = parse_reply(teacher, answer.body, None)
        except Declined as refusal:
            return record_refusal(key, refusal.reason, str(refusal))
        return record_reply(key, reply, self._panel.rubric)

    def _is_known(self, entry: ReplyRecord) -> bool:
        """Whether the store contains this reply.

        Raises:
            _Problem: If it contains another reply to the same request.
        """
        key = entry.key
        request = (key.pair_id, key.teacher, key.variant, key.order, key.attempt)
        stored: tuple[Any, ...] | None
        if key in self._waiting:
            # Not committed yet, so the store does not have it.
            stored = _content(self._waiting[key])
        else:
            names = ", ".join(f'"{name}"' for name in _CONTENT)
            stored = self._reader.execute(
                f'SELECT {names} FROM replies WHERE (pair_id, teacher, variant, "order", attempt) '
                "= (?, ?, ?, ?, ?)",
                request,
            ).fetchone()
        if stored is not None and not _is_same(stored, _content(entry)):
            asked_for = f"pair {key.pair_id[:12]}, {', '.join(map(str, request[1:]))}"
            raise _Problem("conflict", f"the store holds another reply to {asked_for}")
        return stored is not None


def _is_same(stored: tuple[Any, ...], entry: tuple[Any, ...]) -> bool:
    """Return whether two replies are the same, even if today's rules read one differently."""
    if stored == entry:
        return True
    ours, theirs = (dict(zip(_CONTENT, values, strict=True)) for values in (stored, entry))
    # Without a text, the reason is all that the service has said.
    return (bool(ours["raw"]) or ours["reason"] == theirs["reason"]) and all(
        ours[name] == theirs[name] for name in _REPLY
    )


def _content(entry: ReplyRecord) -> tuple[Any, ...]:
    return tuple(
        value
        for name, value in zip(COLUMNS, record_row(entry, None), strict=True)
        if name in _CONTENT
    )


def _object(line: bytes) -> dict[str, Any]:
    try:
        return parse_json_object(line)
    except ValueError as error:
        raise _Problem("malformed", f"the line {error}") from error
