"""Store and read the pairs of a store, and the source rows that they come from."""

import hashlib
import json
import re
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl

from sp2dpo.pairs.pair import Pair
from sp2dpo.pairs.reading import Reading
from sp2dpo.pairs.sources import SetAside, Source, SourceRow
from sp2dpo.pairs.tally import ReadingSummary, ReadingTally
from sp2dpo.panel.rubric import holds_chat_marks
from sp2dpo.store.database import read_meta, transaction, write_meta
from sp2dpo.store.digests import record_table_digests

_ID_BEGINNING = re.compile(r"[0-9a-f]{8,64}")


@dataclass(frozen=True, kw_only=True)
class SourceSummary:
    """Counts of the rows read from a source.

    Attributes:
        name: Name of the source, as in `Source`.
        revision: Commit of a Hub data set; None for a file.
        license: License of a Hub data set; None if unknown.
        rows: Number of rows.
        usable: Number of rows with a usable pair.
        pairs: Number of distinct pairs.
        set_aside: Number of rows without a usable pair, by reason.
    """

    name: str
    revision: str | None
    license: str | None
    rows: int
    usable: int
    pairs: int
    set_aside: dict[str, int]


class Corpus:
    """The pairs of an open store, which all come from one source."""

    def __init__(self, database: sqlite3.Connection, path: Path) -> None:
        self._db = database
        self.path = path

    def add(self, source: Source, rows: Iterable[SourceRow | SetAside]) -> None:
        """Add all rows of a source in one transaction; adding the same source again has no effect.

        Raises:
            ValueError: If the store already has the pairs of another source.
        """
        digest, marked, tally = hashlib.sha256(), 0, ReadingTally()
        with transaction(self._db):
            stored_digest = read_meta(self._db, "source_digest")
            # All rows are read also if the store has them: only their hash shows that it does.
            for row in rows:
                record = _record(row)
                digest.update(json.dumps(record).encode())
                if stored_digest is None:
                    marked += self._insert(row, record)
                    tally.add(row)
            if stored_digest is None:
                write_meta(self._db, "source_digest", digest.hexdigest())
                write_meta(self._db, "source_name", source.name)
                # An empty text for None, because values of `meta` cannot be null.
                write_meta(self._db, "source_revision", source.revision or "")
                write_meta(self._db, "source_license", source.license or "")
                write_meta(self._db, "marked_pairs", str(marked))
                write_meta(self._db, "source_reading", source.reading.dump())
                write_meta(
                    self._db, "source_summary", tally.summary(source.reading.options()).dump()
                )
                record_table_digests(self._db, "pairs", "source_rows", "set_aside")
            elif stored_digest != digest.hexdigest():
                images = source.reading.images != self.reading().images
                raise ValueError(
                    f"{self.path} contains the pairs of {read_meta(self._db, 'source_name')}, but "
                    f"{source} has other pairs{' with this panel' if images else ''}; use another "
                    "--store, or omit --pairs to continue with the pairs in the store"
                )

    def resume_reading(self, source: Source) -> Source:
        """Return a source that is read as the pairs in the store were.

        Args:
            source: Source to read; one without `columns` and `pairs_from` gets those of the store.

        Raises:
            ValueError: If the source is to be read in another way than the store's was.
        """
        if read_meta(self._db, "source_digest") is None:
            return source
        stored, reading = self.reading(), source.reading
        if not reading.columns and reading.pairs_from is None:
            return replace(source, reading=stored)
        if (reading.columns, reading.pairs_from) != (stored.columns, stored.pairs_from):
            raise ValueError(
                f"{self.path} was created with {stored.options() or 'no --columns'}, now the "
                f"options are {reading.options()}: give the same or none, or use another --store"
            )
        return replace(source, reading=replace(reading, images=stored.images))

    def reading(self) -> Reading:
        """Return how the rows of the source were read."""
        text = read_meta(self._db, "source_reading")
        return Reading.load(text) if text else Reading()

    def reading_summary(self) -> ReadingSummary:
        """Return the shapes and implicit prompts of the rows; empty if they were not counted."""
        text = read_meta(self._db, "source_summary")
        return ReadingSummary.load(text) if text else ReadingSummary()

    def _insert(self, row: SourceRow | SetAside, record: list[Any]) -> bool:
        """Insert a row; return whether it holds a new pair with control tokens."""
        if isinstance(row, SetAside):
            self._db.execute("INSERT INTO set_aside VALUES (?, ?, ?)", record)
            return False
        # IGNORE, because several rows may contain the same pair.
        texts = [row.pair.prompt, row.pair.chosen, row.pair.rejected, row.pair.tools]
        # NULL, so that SQLite numbers the pairs in the order of the source.
        inserted = self._db.execute(
            "INSERT OR IGNORE INTO pairs VALUES (NULL, ?, ?, ?, ?, ?)",
            [row.pair.id, *(json.dumps(part, ensure_ascii=False) for part in texts)],
        )
        self._db.execute("INSERT INTO source_rows VALUES (?, ?, ?, ?)", record)
        return inserted.rowcount == 1 and holds_chat_marks(row.pair)

    def marked_pairs(self) -> int | None:
        """Return how many pairs contain control tokens; None in a store that did not count them."""
        count = read_meta(self._db, "marked_pairs")
        return None if count is None else int(count)

    def image_pairs(self) -> int:
        """Return how many pairs have images."""
        if not self.reading().images:
            return 0
        images = "SELECT 1 FROM json_each({}) WHERE json_array_length(value, '$.images')"
        has_any = " OR ".join(
            f"EXISTS ({images.format(name)})" for name in ("prompt", "chosen", "rejected")
        )
        return self._db.execute(f"SELECT count(*) FROM pairs WHERE {has_any}").fetchone()[0]

    def source(self) -> SourceSummary | None:
        """Return counts of the rows of the source; None if no source was added yet."""
        name = read_meta(self._db, "source_name")
        if name is None:
            return None
        reasons = "SELECT reason, count(*) FROM set_aside GROUP BY reason ORDER BY 2 DESC, 1"
        set_aside = dict(self._db.execute(reasons))
        usable = self._count("source_rows")
        return SourceSummary(
            name=name,
            revision=read_meta(self._db, "source_revision") or None,
            license=read_meta(self._db, "source_license") or None,
            rows=usable + sum(set_aside.values()),
            usable=usable,
            pairs=self._count("pairs"),
            set_aside=set_aside,
        )

    def pair(self, name: str) -> Pair:
        """Return the pair with a name.

        Args:
            name: The source's own id of the pair, its `Pair.id`, or the first eight or more digits
                of it.

        Raises:
            ValueError: If no pair, or more than one, has this name.
        """
        queries: list[tuple[str, tuple[str, ...]]] = [
            ("SELECT pair_id FROM source_rows WHERE source_id = ?", (name,)),
            ("SELECT pair_id FROM pairs WHERE pair_id = ?", (name,)),
        ]
        if _ID_BEGINNING.fullmatch(name):
            # A range, because LIKE would not use the index; "g" follows all hexadecimal digits.
            beginning = "SELECT pair_id FROM pairs WHERE pair_id >= ? AND pair_id < ?"
            queries.append((beginning, (name, name + "g")))
        # A set, because one pair may match in several of these ways.
        pair_ids = {row[0] for query, values in queries for row in self._db.execute(query, values)}
        if len(pair_ids) != 1:
            problem = "several pairs are called" if pair_ids else "no pair is called"
            raise ValueError(f"{self.path}: {problem} {name!r}")
        row = self._db.execute(
            "SELECT prompt, chosen, rejected, tools FROM pairs WHERE pair_id = ?", (pair_ids.pop(),)
        )
        return load_pair(row.fetchone())

    def rows(self) -> Iterator[tuple[SourceRow, str]]:
        """Yield the rows with a usable pair, in source order, each with its pair's id."""
        # Closed even if the caller stops early: an open cursor keeps its read transaction.
        with closing(self._db.cursor()) as cursor:
            cursor.execute(
                "SELECT row, pair_id, source_id, columns, prompt, chosen, rejected, tools "
                "FROM source_rows JOIN pairs USING (pair_id) ORDER BY row"
            )
            for row, pair_id, source_id, columns, *texts in cursor:
                yield (
                    SourceRow(
                        row=row,
                        pair=load_pair(texts),
                        source_id=source_id,
                        columns=json.loads(columns),
                    ),
                    pair_id,
                )

    def source_ids(self, pair_ids: Collection[str]) -> dict[str, str | None]:
        """Return source ids by pair id; for a pair in several rows, that of the first row."""
        marks = ", ".join("?" * len(pair_ids))
        return dict(
            self._db.execute(
                "SELECT pair_id, source_id FROM source_rows WHERE row IN (SELECT min(row) "
                f"FROM source_rows WHERE pair_id IN ({marks}) GROUP BY pair_id)",
                tuple(pair_ids),
            )
        )

    def names(self) -> Iterator[tuple[str, str | None]]:
        """Yield pair_id and source_id of every row with a usable pair, in source order."""
        yield from self._db.execute("SELECT pair_id, source_id FROM source_rows ORDER BY row")

    def lengths(self) -> pl.DataFrame:
        """Return the columns pair_id, chosen and rejected: the response lengths in characters.

        Rows are sorted by pair_id. If the content of a turn is a list of parts, the length of its
        JSON is counted.
        """
        # `total` is 0.0 where `sum` is null: for a turn without content, such as a tool call.
        length = "(SELECT total(length(value ->> '$.content')) FROM json_each({}))"
        query = f"SELECT pair_id, {length.format('chosen')}, {length.format('rejected')} FROM pairs"
        return pl.DataFrame(
            self._db.execute(f"{query} ORDER BY pair_id").fetchall(),
            schema={"pair_id": pl.String, "chosen": pl.Float64, "rejected": pl.Float64},
            orient="row",
        )

    def set_aside(self) -> Iterator[SetAside]:
        """Yield the rows without a usable pair, in source order."""
        for row, reason, raw in self._db.execute("SELECT * FROM set_aside ORDER BY row"):
            yield SetAside(row=row, reason=reason, raw=raw)

    def pair_ids(self) -> list[str]:
        """Return the ids of all pairs, sorted."""
        return [row[0] for row in self._db.execute("SELECT pair_id FROM pairs ORDER BY pair_id")]

    def _count(self, table: str) -> int:
        return self._db.execute(f"SELECT count(*) FROM {table}").fetchone()[0]


def _record(row: SourceRow | SetAside) -> list[Any]:
    if isinstance(row, SetAside):
        return [row.row, row.reason, row.raw]
    # The source's digest covers this list: in another form, stores would refuse their own source.
    return [row.row, row.pair.id, row.source_id, json.dumps(row.columns)]


def load_pair(texts: Sequence[str], pair_id: str | None = None) -> Pair:
    """Return the pair in four JSON texts of a store.

    Args:
        texts: JSON of prompt, chosen, rejected and tools.
        pair_id: Id of the pair, if known: computing the hash would take most of the time.
    """
    prompt, chosen, rejected, tools = (tuple(json.loads(part)) for part in texts)
    pair = Pair(prompt=prompt, chosen=chosen, rejected=rejected, tools=tools)
    if pair_id is not None:
        pair.__dict__["id"] = pair_id  # fill the cached property
    return pair
