"""Replies as files: what batch services and people answered to exported requests.

The files are those of OpenAI's Batch API, which `vllm run-batch` writes too: a line of JSON for
each reply, joined to its request by `custom_id`. A reply is judged as one that came over HTTP.

Whoever answers by other means, people among them, writes one such line for each request; `content`
is the JSON object that the request's schema asks for, as text:

    {"custom_id": "...", "response": {"status_code": 200, "body": {"choices": [{"finish_reason":
    "stop", "message": {"content": "{...}"}}]}}, "error": null}
"""

import json
import re
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sp2dpo.annotation.request_files import CustomIds
from sp2dpo.inference.client import Unavailable, parse_reply
from sp2dpo.panel.annotation import Key
from sp2dpo.panel.panel import Panel
from sp2dpo.settings import type_name
from sp2dpo.store.database import connect
from sp2dpo.store.records import COLUMNS, ReplyRecord, record_refusal, record_reply, record_row
from sp2dpo.store.store import Store
from sp2dpo.text import shorten

_PAGE = 500
"""Replies committed at a time."""
_CUSTOM_ID = re.compile(r"([0-9a-f]{40})\.([0-9a-f]{16})")
_DECLINED = (400, 413, 422)
"""Statuses of a request that is no use to send again, as over HTTP."""
_SAID = 20
"""Lines that cannot be filed, named for each problem; the others are only counted."""
_CONTENT = [name for name in COLUMNS if name not in ("rubric", "seconds", "arrived")]
"""Columns that are the same when the same reply comes again."""


@dataclass(kw_only=True)
class ImportCounts:
    """What became of the lines of reply files; they add up to `lines`.

    Attributes:
        lines: read, empty ones left out.
        kept: stored replies that hold an annotation.
        refused: stored replies that hold none, by reason.
        known: replies that the store had before.
        failed: requests that the service did not get answered, by reason; they stay pending.
        left_out: lines that cannot be filed, by problem.
        empty: files without any line.
    """

    lines: int = 0
    kept: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    known: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    empty: list[Path] = field(default_factory=list)


def import_replies(
    store: Store, panel: Panel, paths: Iterable[Path], *, say: Callable[[str], None]
) -> ImportCounts:
    """Files the replies to exported requests; the same replies again change nothing.

    A line that cannot be filed is named and left out, and the others go on. What was not answered
    stays pending, and the next export asks for it.

    Args:
        store: the panel's, which the requests were exported from; it adopts the panel with the
            first reply that it files.
        panel: the same as for the export.
        paths: of the files.
        say: called with a line for people about what was left out.

    Raises:
        ValueError: the panel contradicts the store, or none of its teachers is known there.
        OSError: a file cannot be read.
    """
    store.check_panel(panel)
    with closing(connect(store.path, write=False)) as reader:
        _refuse_strangers(store, panel, reader)
        inbox = _Inbox(store, panel, reader, say)
        for path in paths:
            before = inbox.so_far.lines
            with path.open("rb") as source:
                for number, line in enumerate(source, 1):
                    if line.strip():
                        inbox.take(line, f"{path}: line {number}")
            if inbox.so_far.lines == before:
                inbox.so_far.empty.append(path)
        inbox.commit()
    for kind, count in sorted(inbox.so_far.left_out.items()):
        if count > _SAID:
            say(f"and {count - _SAID} more that cannot be filed: {kind}")
    return inbox.so_far


def _refuse_strangers(store: Store, panel: Panel, reader: sqlite3.Connection) -> None:
    """Refuses the panel of another run: nothing of it could be filed here."""
    known = {row[0] for row in reader.execute("SELECT name FROM teachers")}
    if known and known.isdisjoint(teacher.name for teacher in panel.teachers):
        raise ValueError(
            f"{store.path} knows none of the panel's teachers (it knows "
            f"{', '.join(sorted(known))}): give the panel that the requests were exported with"
        )


class _Problem(ValueError):
    """A line that cannot be filed: the problem in a word or two, and what is wrong."""


class _Inbox:
    """Replies on their way into a store."""

    def __init__(
        self, store: Store, panel: Panel, reader: sqlite3.Connection, say: Callable[[str], None]
    ) -> None:
        self.so_far = ImportCounts()
        self._store = store
        self._panel = panel
        self._reader = reader
        self._say = say
        most = reader.execute("SELECT max(attempt) FROM replies").fetchone()[0]
        retries = max(teacher.retries for teacher in panel.teachers)
        self._meant = CustomIds(panel).meant(max(retries, -1 if most is None else most) + 2)
        self._teachers = {teacher.name: teacher for teacher in panel.teachers}
        self._shard = store.questions.shard()
        self._waiting: dict[Key, ReplyRecord] = {}
        self._adopted = False

    def take(self, line: bytes, where: str) -> None:
        """Reads a line, and stores its reply with the next commit."""
        so_far = self.so_far
        so_far.lines += 1
        try:
            said = _object(line)
            key = self._key(said.get("custom_id"))
            entry = self._entry(key, said)
            if self._is_known(entry):
                so_far.known += 1
                return
        except _Problem as problem:
            kind, detail = problem.args
            so_far.left_out[kind] += 1
            if so_far.left_out[kind] <= _SAID:
                self._say(f"{where}: {kind}: {detail}")
            return
        except Unavailable as error:
            so_far.failed[error.reason] += 1
            return
        self._waiting[key] = entry
        if entry.reason is None:
            so_far.kept += 1
        else:
            so_far.refused[entry.reason] += 1
        if len(self._waiting) >= _PAGE:
            self.commit()

    def commit(self) -> None:
        """Stores what waits."""
        if not self._waiting:
            return
        if not self._adopted:
            self._store.record_panel(self._panel)
            self._adopted = True
        self._store.add_replies(list(self._waiting.values()))
        self._waiting.clear()

    def _key(self, custom_id: Any) -> Key:
        if not isinstance(custom_id, str):
            raise _Problem("malformed", "no custom_id")
        named = _CUSTOM_ID.fullmatch(custom_id)
        if named is None:
            raise _Problem("unknown", f"custom_id {custom_id[:80]!r} is none of ours")
        pairs = self._reader.execute(
            "SELECT pair_id FROM pairs WHERE pair_id >= ? AND pair_id < ?",
            (named[1], named[1] + "g"),
        ).fetchall()
        if len(pairs) != 1 or (self._shard is not None and not self._shard.contains(pairs[0][0])):
            raise _Problem("unknown", f"{custom_id} is about no pair of this store")
        if named[2] not in self._meant:
            raise _Problem(
                "unknown",
                f"{custom_id} is about a pair of this store, but this panel does not ask it: "
                "another rubric, variant, or teacher (its model, revision and sampling count)",
            )
        teacher, variant, order, attempt = self._meant[named[2]]
        return Key(
            pair_id=pairs[0][0], teacher=teacher, variant=variant, order=order, attempt=attempt
        )

    def _entry(self, key: Key, said: dict[str, Any]) -> ReplyRecord:
        """The reply of a line.

        Raises:
            Unavailable: there is none, and the request may be sent again.
        """
        teacher, response, error = (
            self._teachers[key.teacher],
            said.get("response"),
            said.get("error"),
        )
        if not isinstance(response, dict):
            if error is None:
                raise _Problem("malformed", "neither a response nor an error")
            raise Unavailable(_shown(error), reason="no-answer")
        status, answer = response.get("status_code"), response.get("body")
        if not isinstance(status, int) or isinstance(status, bool):
            raise _Problem("malformed", f"status_code {_shown(status)} is no number")
        if status in _DECLINED:
            return record_refusal(
                key, f"http-{status}", f"HTTP {status}: {_shown(error or answer)}"
            )
        if status != 200:
            raise Unavailable(_shown(error or answer), reason=f"http-{status}")
        if error is not None or not isinstance(answer, dict):
            raise Unavailable(_shown(error), reason="no-answer")
        return record_reply(key, parse_reply(teacher, answer, None), self._panel.rubric)

    def _is_known(self, entry: ReplyRecord) -> bool:
        """Whether the store has this reply.

        Raises:
            _Problem: it has another one to the same request.
        """
        key = entry.key
        asked = (key.pair_id, key.teacher, key.variant, key.order, key.attempt)
        held: tuple[Any, ...] | None
        if key in self._waiting:
            held = _content(self._waiting[key])
        else:
            names = ", ".join(f'"{name}"' for name in _CONTENT)
            held = self._reader.execute(
                f'SELECT {names} FROM replies WHERE (pair_id, teacher, variant, "order", attempt) '
                "= (?, ?, ?, ?, ?)",
                asked,
            ).fetchone()
        if held is not None and held != _content(entry):
            asked_for = f"pair {key.pair_id[:12]}, {', '.join(map(str, asked[1:]))}"
            raise _Problem("conflict", f"the store holds another reply to {asked_for}")
        return held is not None


def _content(entry: ReplyRecord) -> tuple[Any, ...]:
    return tuple(
        value
        for name, value in zip(COLUMNS, record_row(entry, None), strict=True)
        if name in _CONTENT
    )


def _object(line: bytes) -> dict[str, Any]:
    try:
        said = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _Problem("malformed", f"not JSON: {error}") from error
    if not isinstance(said, dict):
        raise _Problem("malformed", f"an object was expected, this is {type_name(said)}")
    return said


def _shown(said: Any) -> str:
    return shorten(json.dumps(said))
