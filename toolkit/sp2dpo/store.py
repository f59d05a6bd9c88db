"""The store of a run: one SQLite file with the pairs, their source rows and every reply.

Replies are added and never changed. The file can be read with any SQLite tool; a write-ahead log
beside it (`-wal`) belongs to it.
"""

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sp2dpo.annotation_table import AnnotationTable, annotation_table
from sp2dpo.annotations import LABELLED, Annotation, Key
from sp2dpo.corpus import Corpus, pair_from
from sp2dpo.database import connect, read_meta, snapshot, transaction, write_meta
from sp2dpo.pairs import Pair
from sp2dpo.panel import Panel
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
    """An open store, for reading unless `write` is given; use it in a `with` block.

    Attributes:
        path: of the file.
        corpus: its pairs.

    Raises:
        ValueError: the file is no store, or of another format.
        OSError: it is not there, or cannot be opened.
    """

    def __init__(self, path: Path, *, write: bool = False) -> None:
        self.path = path
        self._db = connect(path, write=write)
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

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Whatever is read inside the block is of one moment, even while others write."""
        with snapshot(self._db):
            yield

    def check(self, panel: Panel) -> None:
        """Refuses a panel that contradicts the replies that are here.

        Raises:
            ValueError: another rubric, or a teacher whose model, revision or sampling changed.
        """
        replies = self._db.execute("SELECT EXISTS (SELECT 1 FROM replies)").fetchone()[0]
        held = read_meta(self._db, "rubric_hash")
        if replies and held is not None and held != panel.rubric.hash:
            raise ValueError(
                f"{self.path} was annotated under the rubric {held[:12]} ({self.rubric().name}), "
                f"the panel asks under {panel.rubric.hash[:12]} ({panel.rubric.name}); use another "
                "--store"
            )
        heard = {teacher["name"]: teacher for teacher in self.teachers()}
        for teacher in panel.teachers:
            for what in ("model", "revision", "sampling") if teacher.name in heard else ():
                before, now = heard[teacher.name][what], getattr(teacher, what)
                if before != now:
                    raise ValueError(
                        f"{self.path} knows the teacher {teacher.name} with {what} {before}, the "
                        f"panel says {now}; give the changed teacher another name, or use another "
                        "--store"
                    )

    def adopt(self, panel: Panel) -> None:
        """Records the rubric and the teachers; from their first reply on they cannot change.

        Raises:
            ValueError: as `check`.
        """
        self.check(panel)
        rubric = json.dumps(panel.rubric.as_mapping(), ensure_ascii=False)
        heard = {teacher["name"] for teacher in self.teachers()}
        with transaction(self._db):
            write_meta(self._db, "rubric_hash", panel.rubric.hash)
            write_meta(self._db, "rubric", rubric)
            for teacher in panel.teachers:
                if teacher.name not in heard:
                    sampling = json.dumps(teacher.sampling, sort_keys=True)
                    self._db.execute(
                        "INSERT OR REPLACE INTO teachers VALUES (?, ?, ?, ?)",
                        (teacher.name, teacher.model, teacher.revision, sampling),
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
        """name, model, revision and sampling of every teacher that has replied, by name."""
        rows = self._db.execute(
            "SELECT name, model, revision, sampling FROM teachers "
            "WHERE EXISTS (SELECT 1 FROM replies WHERE teacher = name) ORDER BY name"
        )
        return [
            {"name": name, "model": model, "revision": revision, "sampling": json.loads(sampling)}
            for name, model, revision, sampling in rows
        ]

    def variants(self) -> list[str]:
        """The variants that a reply came under, kept or refused, in the rubric's order."""
        heard = {row[0] for row in self._db.execute("SELECT DISTINCT variant FROM replies")}
        return [variant for variant in self.rubric().variants if variant in heard]

    def pending(
        self, teacher: str, variants: Sequence[str], *, again: bool, after: int, limit: int
    ) -> list[tuple[int, Pair, dict[str, int]]]:
        """The next pairs of which a teacher's reply is missing, in the order of the source.

        Args:
            teacher: its name.
            variants: those asked for.
            again: whether a refused reply counts as missing.
            after: the number of the last pair seen; 0 to begin.
            limit: pairs at most.

        Returns:
            (number, pair, missing variant -> the attempt that comes next), variants in the given
            order.
        """
        marks = ", ".join("?" * len(variants))
        done = "status = 'kept'" if again else "true"
        asked = f'r.pair_id = p.pair_id AND teacher = ? AND "order" = ? AND variant IN ({marks})'
        values = (teacher, LABELLED, *variants)
        rows = self._db.execute(
            f"""
            SELECT number, prompt, chosen, rejected, tools,
                (SELECT json_group_array(json_array(variant, {done}, attempt))
                 FROM replies r WHERE {asked})
            FROM pairs p WHERE number > ? AND (
                SELECT count(DISTINCT variant) FROM replies r WHERE {asked} AND {done}
            ) < ?
            ORDER BY number LIMIT ?
            """,
            (*values, after, *values, len(variants), limit),
        )
        return [
            (number, pair_from(said), _missing(variants, json.loads(replies)))
            for number, *said, replies in rows
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
        """How often each outcome came back: `kept`, or the reason of the last refusal."""
        marks = ", ".join("?" * len(variants))
        # SQLite takes the bare column `reason` from the row that has the maximum.
        return dict(
            self._db.execute(
                "SELECT coalesce(reason, 'kept'), count(*) FROM ("
                "SELECT reason, max((status = 'kept') * 1000000 + attempt) FROM replies "
                f'WHERE teacher = ? AND "order" = ? AND variant IN ({marks}) '
                "GROUP BY pair_id, variant) GROUP BY 1 ORDER BY 1",
                (teacher, LABELLED, *variants),
            )
        )


def _missing(variants: Sequence[str], replies: list[tuple[str, int, int]]) -> dict[str, int]:
    done = {variant for variant, is_done, _ in replies if is_done}
    last = {variant: attempt for variant, _, attempt in sorted(replies)}
    return {variant: last.get(variant, -1) + 1 for variant in variants if variant not in done}


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
