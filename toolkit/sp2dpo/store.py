"""The store of a run: one SQLite file with the pairs, their source rows and every reply.

Replies are added and never changed. The file can be read with any SQLite tool; a write-ahead log
beside it (`-wal`) belongs to it.
"""

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sp2dpo.annotation_table import AnnotationTable, annotation_table
from sp2dpo.annotations import LABELLED, Annotation, Key
from sp2dpo.corpus import Corpus, pair_from
from sp2dpo.database import connect, read_meta, transaction, write_meta
from sp2dpo.pairs import Pair
from sp2dpo.panel import Panel, Teacher
from sp2dpo.rubric import Rubric, rubric_of
from sp2dpo.teachers import Reply

_REPLY_COLUMNS = (
    "pair_id", "teacher", "variant", "order", "attempt", "status", "reason", "detail",
    "category", "magnitude", "confidence", "rationale", "raw", "finish_reason", "model", "rubric",
    "prompt_tokens", "completion_tokens", "cached_tokens", "seconds", "arrived",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A reply as it is stored: kept with its annotation, or refused with its reason.

    Attributes:
        key: what it answers.
        annotation: None where it was refused.
        reason: why it was refused, one word; None where it was kept.
        detail: more of the reason.
        raw: what came back, word for word.
        reply: the counts around it; None where the server declined the request.
        arrived: seconds since 1970.
    """

    key: Key
    annotation: Annotation | None
    reason: str | None
    detail: str | None
    raw: str
    reply: Reply | None
    arrived: float


class Store:
    """An open store; use it in a `with` block.

    Attributes:
        path: of the file.
        corpus: its pairs.

    Raises:
        ValueError: the file is no store, or of another format.
        OSError: it is not there, or cannot be opened.
    """

    def __init__(self, path: Path, *, create: bool = False) -> None:
        self.path = path
        self._db = connect(path, create=create)
        self.corpus = Corpus(self._db, path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._db.close()

    def adopt(self, panel: Panel) -> None:
        """Records the rubric and the teachers; what is recorded cannot change.

        Raises:
            ValueError: another rubric, or a teacher whose model, revision or sampling changed.
        """
        with transaction(self._db):
            self._adopt_rubric(panel.rubric)
            for teacher in panel.teachers:
                self._adopt_teacher(teacher)

    def _adopt_rubric(self, rubric: Rubric) -> None:
        held = read_meta(self._db, "rubric_hash")
        if held is None:
            write_meta(self._db, "rubric_hash", rubric.hash)
            write_meta(self._db, "rubric", json.dumps(rubric.as_mapping(), ensure_ascii=False))
        elif held != rubric.hash:
            raise ValueError(
                f"{self.path} was annotated under the rubric {held[:12]} ({self.rubric().name}), "
                f"the panel asks under {rubric.hash[:12]} ({rubric.name}); use another --store"
            )

    def _adopt_teacher(self, teacher: Teacher) -> None:
        held = self._db.execute(
            "SELECT model, revision, sampling FROM teachers WHERE name = ?", (teacher.name,)
        ).fetchone()
        said = (teacher.model, teacher.revision, json.dumps(teacher.sampling, sort_keys=True))
        if held is None:
            self._db.execute("INSERT INTO teachers VALUES (?, ?, ?, ?)", (teacher.name, *said))
            return
        for what, before, now in zip(("model", "revision", "sampling"), held, said, strict=True):
            if before != now:
                raise ValueError(
                    f"{self.path} knows the teacher {teacher.name} with {what} {before}, the panel "
                    f"says {now}; give the changed teacher another name, or use another --store"
                )

    def rubric(self) -> Rubric:
        """The rubric of all replies.

        Raises:
            ValueError: nothing was annotated yet.
        """
        said = read_meta(self._db, "rubric")
        if said is None:
            raise ValueError(f"{self.path}: nothing was annotated yet; run `sp2dpo annotate` first")
        return rubric_of(json.loads(said), where=f"{self.path}: rubric")

    def teachers(self) -> list[dict[str, Any]]:
        """name, model, revision and sampling of every teacher that was ever asked, by name."""
        rows = self._db.execute(
            "SELECT name, model, revision, sampling FROM teachers ORDER BY name"
        )
        return [
            {"name": name, "model": model, "revision": revision, "sampling": json.loads(sampling)}
            for name, model, revision, sampling in rows
        ]

    def pending(
        self, teacher: str, variants: Sequence[str], *, after: int, limit: int
    ) -> list[tuple[int, Pair, list[str]]]:
        """The next pairs of which a teacher's reply is missing, in the order of the source.

        Args:
            teacher: its name.
            variants: those asked for.
            after: the number of the last pair seen; 0 to begin.
            limit: pairs at most.

        Returns:
            (number, pair, the missing variants in the given order).
        """
        marks = ", ".join("?" * len(variants))
        rows = self._db.execute(
            f"""
            SELECT number, prompt, chosen, rejected, tools,
                (SELECT group_concat(variant, char(10)) FROM replies r
                 WHERE r.pair_id = p.pair_id AND teacher = ? AND "order" = ?) AS answered
            FROM pairs p
            WHERE number > ? AND (
                SELECT count(*) FROM replies r WHERE r.pair_id = p.pair_id
                AND teacher = ? AND "order" = ? AND attempt = 0 AND variant IN ({marks})
            ) < ?
            ORDER BY number LIMIT ?
            """,
            (teacher, LABELLED, after, teacher, LABELLED, *variants, len(variants), limit),
        )
        return [
            (number, pair_from(said), _without(variants, answered or ""))
            for number, *said, answered in rows
        ]

    def add(self, entries: Sequence[Entry]) -> None:
        """Stores replies in one transaction: when it returns, they are on the disk."""
        names = ", ".join(f'"{name}"' for name in _REPLY_COLUMNS)
        marks = ", ".join("?" * len(_REPLY_COLUMNS))
        rubric = read_meta(self._db, "rubric_hash")
        with transaction(self._db):
            self._db.executemany(
                f"INSERT INTO replies ({names}) VALUES ({marks})",
                [_columns(entry, rubric) for entry in entries],
            )

    def replies(self, pair_id: str | None = None) -> Iterator[dict[str, Any]]:
        """All replies, or those of one pair, by their keys; teachers' revisions included."""
        names = ", ".join(f'replies."{name}"' for name in _REPLY_COLUMNS if name != "model")
        where = "" if pair_id is None else "WHERE pair_id = ?"
        with closing(self._db.cursor()) as cursor:
            cursor.row_factory = sqlite3.Row
            cursor.execute(
                f"SELECT {names}, teachers.model, teachers.revision, replies.model AS served_model "
                f"FROM replies JOIN teachers ON teachers.name = teacher {where} "
                'ORDER BY pair_id, teacher, variant, "order", attempt',
                () if pair_id is None else (pair_id,),
            )
            for row in cursor:
                yield dict(row)

    def annotations(self) -> AnnotationTable:
        """All kept annotations as a table.

        Raises:
            ValueError: there is none.
        """
        names = (*_REPLY_COLUMNS[:5], "category", "magnitude", "confidence")
        quoted = ", ".join(f'"{name}"' for name in names)
        rows = self._db.execute(f"SELECT {quoted} FROM replies WHERE status = 'kept'").fetchall()
        rubric = self.rubric()
        if not rows:
            raise ValueError(f"{self.path}: no reply was kept, so there are no gaps to compute")
        return annotation_table(rows, pair_ids=self.corpus.pair_ids(), rubric=rubric)

    def counts(self, teacher: str, variants: Sequence[str]) -> dict[str, int]:
        """How often each outcome came back: `kept`, or the reason of a refusal."""
        marks = ", ".join("?" * len(variants))
        return dict(
            self._db.execute(
                "SELECT coalesce(reason, 'kept'), count(*) FROM replies WHERE teacher = ? "
                f'AND "order" = ? AND attempt = 0 AND variant IN ({marks}) GROUP BY 1 ORDER BY 1',
                (teacher, LABELLED, *variants),
            )
        )


def _without(variants: Sequence[str], answered: str) -> list[str]:
    return [variant for variant in variants if variant not in answered.split("\n")]


def _columns(entry: Entry, rubric: str | None) -> tuple[Any, ...]:
    key, said, reply = entry.key, entry.annotation, entry.reply
    return (
        key.pair_id, key.teacher, key.variant, key.order, key.attempt,
        "refused" if said is None else "kept", entry.reason, entry.detail,
        said and said.category, said and said.magnitude,
        said and said.confidence, said and said.rationale,
        entry.raw, reply and reply.finish_reason, reply and reply.model, rubric,
        reply and reply.prompt_tokens, reply and reply.completion_tokens,
        reply and reply.cached_tokens, reply and reply.seconds, entry.arrived,
    )  # fmt: skip
