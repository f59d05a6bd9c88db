"""The store of a run: one SQLite file with the pairs, their source rows and every reply.

Replies are added and never changed, except that a refused reply that today's rules can read becomes
kept (`reread`). The file can be read with any SQLite tool; a write-ahead log
beside it (`-wal`) belongs to it.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self, TypeVar

import polars as pl

from sp2dpo.panel.panel import Panel, PanelRecord, parse_record
from sp2dpo.panel.rubric import CHOSEN_FIRST, Rubric, parse_rubric
from sp2dpo.store.annotations import COLUMNS as READ
from sp2dpo.store.annotations import SEPARATOR, AnnotationTable, parse_columns, sort_by_key
from sp2dpo.store.corpus import Corpus
from sp2dpo.store.database import (
    connect,
    only_writer,
    read_meta,
    transaction,
    write_meta,
)
from sp2dpo.store.digests import (
    add_reply_digests,
    complete_digests,
    forget_reply_digests,
    record_table_digests,
)
from sp2dpo.store.integrity import Problem, check_store, damage_message, read_while_checking
from sp2dpo.store.questions import Questions, SettledPair, count_outcomes
from sp2dpo.store.records import COLUMNS, ReadAgain, ReplyRecord, StoredReply, record_row
from sp2dpo.store.usage import UsageLog
from sp2dpo.text import shorten

_KEY = '(pair_id, teacher, variant, "order", attempt)'
Result = TypeVar("Result")


class NotAnnotated(ValueError):
    """A store has no panel and no rubric yet."""


@dataclass(frozen=True, kw_only=True)
class StoredTeacher:
    """The definition of a teacher with replies, which cannot change any more.

    Attributes:
        name: Name of the teacher.
        model: Name of the model.
        revision: Revision of the model; None if not stated.
        sampling: Sampling parameters of every request, and `extra` and `structured` if they are
            set.
    """

    name: str
    model: str
    revision: str | None
    sampling: dict[str, Any]


class Store:
    """An open store, read-only unless `write` is set. Use it in a `with` block.

    Attributes:
        path: Path of the file.
        corpus: Pairs and source rows.
        questions: Questions to be asked, and outcomes of those that were already asked.
        usage: Tokens and time that the replies took.

    Raises:
        ValueError: If the file is not a store, has another format, or is damaged (checked only when
            opened for writing).
        OSError: If the file does not exist or cannot be opened.
    """

    def __init__(self, path: Path | str, *, write: bool = False) -> None:
        path = Path(path)
        self.path = path
        # Before `connect`, which creates the file.
        existed = write and path.exists()
        self._db = connect(path, write=write)
        if existed:
            try:
                self._check_and_complete()
            except BaseException:
                self._db.close()
                raise
        self.corpus = Corpus(self._db, path)
        self.questions = Questions(self._db, path)
        self.usage = UsageLog(self._db)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._db.close()

    def _check_and_complete(self) -> None:
        """Check a file that will be written to, and add the digests that it lacks."""
        problems = [problem for problem in check_store(self.path) if not problem.is_panel]
        if problems:
            raise ValueError(damage_message(self.path, problems))
        with transaction(self._db):
            complete_digests(self._db)

    def integrity(self) -> list[str]:
        """Return what is damaged, see `integrity.check_store`; empty if nothing is."""
        return [problem.text for problem in check_store(self.path)]

    def read_checked(self, read: Callable[[], Result]) -> Result:
        """Return what `read` reads from this store, while the file is checked.

        Raises:
            ValueError: If the file is damaged.
        """
        problems, result = self.read_while_checking(read)
        if result is None:
            raise ValueError(damage_message(self.path, problems))
        return result

    def read_while_checking(
        self, read: Callable[[], Result]
    ) -> tuple[list[Problem], Result | None]:
        """Return the problems of the file, and what `read` reads if there are none."""
        return read_while_checking(self.path, self._db, read)

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Make all reads inside the block see the same state, even while others write."""
        # Does not block writers; SQLite fixes the state at the first read inside the block.
        self._db.execute("BEGIN")
        try:
            yield
        finally:
            self._db.execute("ROLLBACK")

    def check_panel(self, panel: Panel) -> None:
        """Refuse a panel that contradicts the stored replies.

        Raises:
            ValueError: If the rubric, or a teacher's model, revision or sampling, has changed.
        """
        replies = self._db.execute("SELECT EXISTS (SELECT 1 FROM replies)").fetchone()[0]
        stored_hash = read_meta(self._db, "rubric_hash")
        # Without replies, the rubric may still change.
        if replies and stored_hash is not None and stored_hash != panel.rubric.hash:
            raise ValueError(
                f"{self.path} was annotated under the rubric {stored_hash[:12]} "
                f"({self.rubric().name}), "
                f"the panel uses {panel.rubric.hash[:12]} ({panel.rubric.name}); use another "
                "--store"
            )
        recorded = {teacher.name: teacher for teacher in self.teachers()}
        for teacher in panel.teachers:
            described = {
                "model": teacher.model,
                "revision": teacher.revision,
                "sampling": teacher.recorded_sampling,
            }
            for what, now in described.items() if teacher.name in recorded else ():
                before = getattr(recorded[teacher.name], what)
                if before != now:
                    raise ValueError(
                        f"{self.path} has the teacher {teacher.name} with {what} {before}, but "
                        f"the panel has {now}; give the changed teacher another name, or use "
                        "another --store"
                    )

    def record_panel(self, panel: Panel) -> None:
        """Record the rubric and the teachers, which cannot change after the first reply.

        Raises:
            ValueError: If `check_panel` refuses the panel.
        """
        self.check_panel(panel)
        panel = self.complete_panel(panel)
        # Before the new panel is recorded: a run that is killed in between
        # leaves no pair that the old panel has settled.
        self.reopen_settled(panel)
        rubric = json.dumps(panel.rubric.as_mapping(), ensure_ascii=False)
        replied = {teacher.name for teacher in self.teachers()}
        with transaction(self._db):
            write_meta(self._db, "rubric_hash", panel.rubric.hash)
            write_meta(self._db, "rubric", rubric)
            write_meta(self._db, "panel", json.dumps(asdict(panel.record()), ensure_ascii=False))
            for teacher in panel.teachers:
                if teacher.name not in replied:  # until then, its definition may change
                    # Sorted, because `merge` compares this text.
                    sampling = json.dumps(teacher.recorded_sampling, sort_keys=True)
                    self._db.execute(
                        "INSERT OR REPLACE INTO teachers VALUES (?, ?, ?, ?)",
                        (teacher.name, teacher.model, teacher.revision, sampling),
                    )
            record_table_digests(self._db, "teachers")

    def check_teacher(self, teacher: StoredTeacher) -> None:
        """Refuse a teacher without a server whose definition differs from the recorded one.

        Raises:
            ValueError: If it does.
        """
        for recorded in self.teachers():
            if recorded.name == teacher.name and recorded != teacher:
                raise ValueError(
                    f"{self.path} has the teacher {teacher.name} with {recorded.model}, "
                    f"{recorded.sampling}, not {teacher.model}, {teacher.sampling}; give the "
                    "changed teacher another name, or use another --store"
                )

    def record_teacher(self, teacher: StoredTeacher) -> None:
        """Record a teacher that the panel does not ask, before its first reply.

        Raises:
            ValueError: If `check_teacher` refuses it.
        """
        self.check_teacher(teacher)
        with transaction(self._db):
            self._db.execute(
                "INSERT OR REPLACE INTO teachers VALUES (?, ?, ?, ?)",
                (teacher.name, teacher.model, teacher.revision,
                 json.dumps(teacher.sampling, sort_keys=True)),
            )  # fmt: skip
            record_table_digests(self._db, "teachers")

    def replied_pairs(self, teacher: str) -> set[str]:
        """Return the ids of the pairs with a reply of a teacher."""
        rows = self._db.execute("SELECT DISTINCT pair_id FROM replies WHERE teacher = ?", [teacher])
        return {pair_id for (pair_id,) in rows}

    def complete_panel(self, panel: Panel) -> Panel:
        """Return the panel with what it leaves to the store: see `Panel.with_covers`."""
        return panel.with_covers(self._recorded_panel())

    def reopen_settled(self, panel: Panel) -> None:
        """Mark pairs as not settled if the adaptive panel differs from the recorded one."""
        if panel.budget == "adaptive" and read_meta(self._db, "panel") is not None:
            before, now = self._recorded_panel(), self.complete_panel(panel).record()
            if before is None or _settling(before) != _settling(now):
                self.questions.reopen()

    def _recorded_panel(self) -> PanelRecord | None:
        """Return the record of the last panel; None without one, or if it is damaged."""
        stored = read_meta(self._db, "panel")
        try:
            return None if stored is None else parse_record(stored)
        except ValueError:  # unknown which panel has settled pairs
            return None

    def rubric(self) -> Rubric:
        """Return the rubric of all replies.

        Raises:
            NotAnnotated: If nothing was annotated yet.
            ValueError: If its record is damaged.
        """
        stored = read_meta(self._db, "rubric")
        if stored is None:
            raise NotAnnotated(_not_annotated(self.path))
        return parse_rubric(json.loads(stored), where=f"{self.path}: rubric")

    def panel(self) -> PanelRecord:
        """Return the record of the last panel.

        Raises:
            NotAnnotated: If nothing was annotated yet.
            ValueError: If its record is damaged.
        """
        stored = read_meta(self._db, "panel")
        if stored is None:
            raise NotAnnotated(_not_annotated(self.path))
        try:
            return parse_record(stored)
        except ValueError as error:
            raise ValueError(
                f"{self.path}: the record of its panel is damaged; run `sp2dpo annotate` with the "
                f"panel, which writes it again: {shorten(str(error))}"
            ) from error

    def teachers(self) -> list[StoredTeacher]:
        """Return every teacher with replies, by name."""
        rows = self._db.execute(
            "SELECT name, model, revision, sampling FROM teachers "
            "WHERE EXISTS (SELECT 1 FROM replies WHERE teacher = name) ORDER BY name"
        )
        return [
            StoredTeacher(name=name, model=model, revision=revision, sampling=json.loads(sampling))
            for name, model, revision, sampling in rows
        ]

    def variants(self) -> list[str]:
        """Return the variants with replies, kept or refused, in the rubric's order."""
        used = {row[0] for row in self._db.execute("SELECT DISTINCT variant FROM replies")}
        return [variant for variant in self.rubric().variants if variant in used]

    def add_replies(
        self, records: Sequence[ReplyRecord], settled: Sequence[SettledPair] = ()
    ) -> None:
        """Store replies and settled pairs in one transaction; durable when it returns."""
        names = ", ".join(f'"{name}"' for name in COLUMNS)
        marks = ", ".join("?" * len(COLUMNS))
        rubric = read_meta(self._db, "rubric_hash")
        with transaction(self._db):
            # Without REPLACE or IGNORE: replies never change, so a second one is an error.
            self._db.executemany(
                f"INSERT INTO replies ({names}) VALUES ({marks})",
                [record_row(entry, rubric) for entry in records],
            )
            self._db.executemany(
                "INSERT OR REPLACE INTO settled VALUES (?, ?, ?)",
                [(pair.pair_id, pair.replies, pair.chance) for pair in settled],
            )
            add_reply_digests(self._db)

    def keep_replies(self, replies: Sequence[ReadAgain]) -> None:
        """Keep refused replies that can be read now, all in one transaction."""
        with transaction(self._db):
            for again in replies:
                reply, annotation = again.reply, again.annotation
                key = (reply.pair_id, reply.teacher, reply.variant, reply.order, reply.attempt)
                forget_reply_digests(self._db, f"{_KEY} = (?, ?, ?, ?, ?)", key)
                self._db.execute(
                    "UPDATE replies SET status = 'kept', reason = NULL, detail = NULL, "
                    "category = ?, magnitude = ?, confidence = ?, rationale = ?, better = ?, "
                    f"raw = ? WHERE status = 'refused' AND {_KEY} = (?, ?, ?, ?, ?)",
                    (
                        annotation.category, annotation.magnitude, annotation.confidence,
                        annotation.rationale, annotation.better, again.raw, *key,
                    ),
                )  # fmt: skip
                # The decision to ask no more about the pair did not take this reply into account.
                self._db.execute("DELETE FROM settled WHERE pair_id = ?", (reply.pair_id,))
            if replies:
                complete_digests(self._db)

    def refused_replies(self) -> Iterator[StoredReply]:
        """Yield the refused replies to questions without a kept reply, sorted by key."""
        yield from self._select(
            "WHERE status = 'refused' AND NOT EXISTS (SELECT 1 FROM replies k WHERE "
            '(k.pair_id, k.teacher, k.variant, k."order") = '
            '(replies.pair_id, replies.teacher, replies.variant, replies."order") '
            "AND k.status = 'kept')"
        )

    def replies(self, pair_id: str | None = None) -> Iterator[StoredReply]:
        """Yield all replies, or those of one pair, sorted by key, with the teachers' revisions."""
        if pair_id is None:
            yield from self._select("")
        else:
            yield from self._select("WHERE pair_id = ?", pair_id)

    def _select(self, where: str, *values: str) -> Iterator[StoredReply]:
        columns = {name: f'replies."{name}"' for name in COLUMNS} | {
            "model": "teachers.model",
            "revision": "teachers.revision",
            "served_model": "replies.model",
        }
        names = ", ".join(columns[name] for name in StoredReply._fields)
        with closing(self._db.cursor()) as cursor:
            cursor.execute(
                f"SELECT {names} FROM replies JOIN teachers ON teachers.name = teacher {where} "
                'ORDER BY pair_id, teacher, variant, "order", attempt',
                values,
            )
            yield from map(StoredReply._make, cursor)

    def annotations(self) -> AnnotationTable:
        """Return all kept annotations as a table. The file is checked meanwhile.

        Raises:
            ValueError: If there are no kept annotations, or the file is damaged.
        """
        return self.read_checked(self._read_annotations)

    def _read_annotations(self) -> AnnotationTable:
        rubric = self.rubric()
        pair_ids = self.corpus.pair_ids()
        # The extra thread lets SQLite read one part while polars parses the previous one.
        with ThreadPoolExecutor(max_workers=1) as executor:
            parts = [
                executor.submit(parse_columns, *part)
                for part in self._kept_parts(len(pair_ids), rubric.blind)
            ]
            tables = [part.result() for part in parts]
        if not tables:
            raise ValueError(f"{self.path}: no reply was kept, so there are no gaps to compute")
        return AnnotationTable(
            replies=sort_by_key(pl.concat(tables)), pair_ids=pair_ids, rubric=rubric
        )

    def _kept_parts(
        self, pairs: int, blind: bool
    ) -> Iterator[tuple[dict[str, str], dict[str, list[float | None]], int]]:
        """Yield the kept replies in parts of about 4,000 pairs, for `parse_columns`.

        Joining a column to one text inside SQLite is many times faster than creating a Python
        object for each value. ADBC's driver would be as fast, but it brings its own copy of SQLite,
        and two copies in one process release each other's file locks while others write.
        """
        names = [name for name in READ[:9] if blind or name not in ("order", "better")]
        listed = ", ".join(
            f"group_concat({_text_expression(name)}, '{SEPARATOR}')" for name in names
        )
        source = (
            "FROM replies INDEXED BY replies_narrow "
            "WHERE status = 'kept' AND pair_id >= ? AND pair_id < ?"
        )
        for span in _spans(pairs // 4000):
            expected = "count(expected_magnitude) + count(expected_confidence)"
            count, expected, *texts = self._db.execute(
                f"SELECT count(*), {expected}, {listed} {source}", span
            ).fetchone()
            texts_by_name = dict(zip(names, texts, strict=True))
            if not blind and count:
                # Under the labelled protocol, every reply has this order.
                texts_by_name["order"] = SEPARATOR.join([CHOSEN_FIRST] * count)
            numbers = {}
            if expected:  # read as numbers, because their text is not exact
                rows = self._db.execute(
                    f"SELECT expected_magnitude, expected_confidence {source}", span
                )
                # In the same order as the joined texts, because both queries scan the same range of
                # the index.
                columns = zip(*rows, strict=True)
                numbers = dict(zip(READ[9:], map(list, columns), strict=True))
            if count:
                yield texts_by_name, numbers, count

    def counts(self, teacher: str, variants: Sequence[str]) -> dict[str, int]:
        """Count a teacher's keys by outcome: `kept`, or the reason of the last refusal."""
        return count_outcomes(
            [
                outcome
                for outcome in self.questions.outcomes()
                if outcome.teacher == teacher and outcome.variant in variants
            ]
        )


@contextmanager
def open_store_for_writing(path: Path, *, keep: bool = True) -> Iterator[Store]:
    """Open a store for writing, and lock it against other writers until the block is left.

    Args:
        path: The file; created if it does not exist.
        keep: Whether to keep a file that this call has created. A file without pairs is always
            removed.

    Raises:
        ValueError: If another process writes to the store, or the file is not a store.
        OSError: If the folder does not exist, or the file cannot be written to.
    """
    with only_writer(path):
        remove = not path.exists()  # under the lock: nobody else can create it meanwhile
        try:
            with Store(path, write=True) as store:
                try:
                    yield store
                finally:
                    source = store.corpus.source()
                    remove = remove and not (keep and source and source.pairs)
        finally:
            if remove:
                path.unlink(missing_ok=True)


def _settling(record: PanelRecord) -> PanelRecord:
    """Return a panel's record without prices and licences, which settle no pair."""
    teachers = [replace(teacher, price=None, license=None) for teacher in record.teachers]
    return replace(record, teachers=teachers)


def _not_annotated(path: Path) -> str:
    return f"{path}: nothing was annotated yet; run `sp2dpo annotate` first"


def _text_expression(name: str) -> str:
    # `group_concat` omits nulls, which would shift the column against the others; `order` is a
    # keyword.
    return "ifnull(better, '')" if name == "better" else f'"{name}"'


def _spans(parts: int) -> list[tuple[str, str]]:
    """Split the range of pair ids, which are random hexadecimal digits, into about `parts`."""
    # Each digit divides the range into 16 spans of about equal size.
    digits = 0 if parts < 2 else 1 if parts < 64 else 2
    starts = [f"{number:0{digits}x}" for number in range(16**digits)] if digits else [""]
    return list(zip(starts, [*starts[1:], "g"], strict=True))  # "g" follows all digits
