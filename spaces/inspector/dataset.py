"""Read an open data set: columns to filter by, texts, replies, and the data for the page.

Texts and replies stay on disk, uncompressed, and are read when needed; a few numbers for each pair
are in memory.
"""

import base64
import dataclasses
import itertools
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from errors import BadRequest
from query import Field, Query, select_pairs
from searches import Searches

pc: Any = pyarrow.compute  # type checkers do not see its functions, which exist at run time only

SEARCHED = "__text"
"""Column added by the inspector, with all searchable texts of a pair joined."""
BATCH = 4096
"""Number of rows that are read or written at once."""
SCAN_BYTES_PER_SECOND = 300_000_000
"""Measured speed of a search, for the estimate of the first one."""
_OPENINGS = itertools.count()


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """An open data set.

    Attributes:
        name: Name that the page shows.
        commit: Commit of the repo; None for a folder.
        fingerprint: SHA-256 of the manifest, which lists the SHA-256 of every file.
        facts: What the page shows of the manifest.
        rubric: Categories, scales and protocol.
        ids: Ids of the pairs, in the order of the data set. A pair's position in this order is its
            place.
        fields: Fields that a query can name.
        labels: Original column names of the fields that are made of columns of the source.
        schedules: Betas of each published schedule, by place.
        texts: All columns of the first row of each pair, by place.
        replies: All replies.
        reply_rows: Rows of `replies`, grouped by pair.
        starts: (pairs + 1,) start of each pair's group in `reply_rows`.
        scores: Scores of the kept replies, for the page.
        opening: Number that no other opened data set of this process has.
    """

    name: str
    commit: str | None
    fingerprint: str
    facts: Mapping[str, Any]
    rubric: Mapping[str, Any]
    ids: Sequence[str]
    fields: Mapping[str, Field]
    labels: Mapping[str, str]
    schedules: Mapping[str, Any]
    texts: pa.Table
    replies: pa.Table
    reply_rows: Any
    starts: Any
    scores: Mapping[str, Any]
    opening: int = dataclasses.field(default_factory=_OPENINGS.__next__)

    @cached_property
    def searches(self) -> Searches:
        """The scans of its texts and ids."""
        size = self.texts[SEARCHED].nbytes
        return Searches(len(self.ids), first_seconds=size / SCAN_BYTES_PER_SECOND)

    def search(self, text: str) -> Any:
        """Return which pairs contain a text in prompt or responses, ignoring case, as flags.

        Raises:
            NotYet: Too many searches wait.
        """
        return self.searches.run(
            ("text", text),
            lambda: pc.match_substring(self.texts[SEARCHED], text, ignore_case=True),
        )

    def match_ids(self, start: str) -> Any:
        """Return which ids begin with a text, as flags.

        Raises:
            NotYet: Too many searches wait.
        """
        start = start.lower()
        return self.searches.run(
            ("id", start), lambda: pc.starts_with(self.texts["pair_id"], start)
        )

    def select(self, query: Query) -> Any:
        """Return the places of the pairs that a query selects, in its order.

        Raises:
            NotYet: Too many searches wait.
        """
        return select_pairs(query, self.fields, len(self.ids), self.search, self.match_ids)

    def find_pair(self, pair_id: str) -> int:
        """Return the place of a pair, by its id or the beginning of its id.

        Raises:
            BadRequest: If no pair, or more than one, has an id that begins with the text.
        """
        places = np.flatnonzero(self.match_ids(pair_id))
        if len(places) != 1:
            count = "more than one pair" if len(places) else "no pair"
            raise BadRequest(f"{count} with an id that begins with {pair_id!r}")
        return int(places[0])

    def row(self, place: int) -> dict[str, Any]:
        """Return all columns of a pair."""
        (row,) = self.texts.slice(place, 1).drop_columns([SEARCHED]).to_pylist()
        category = self.fields["category"].levels
        row["category"] = None if row["category"] is None else category[row["category"]]
        return row

    def messages(self, place: int) -> dict[str, list[dict[str, Any]]]:
        """Return prompt, chosen and rejected of a pair, each as a list of messages."""
        (row,) = self.texts.select(["prompt", "chosen", "rejected"]).slice(place, 1).to_pylist()
        return {name: messages or [] for name, messages in row.items()}

    def parts(self, places: Any) -> Iterator[pa.Table]:
        """Yield all columns of some pairs, in tables of up to `BATCH` rows; at least one table."""
        categories = pa.array(self.fields["category"].levels)
        table = self.texts.drop_columns([SEARCHED])
        column = table.schema.get_field_index("category")
        for start in range(0, max(len(places), 1), BATCH):
            part = take_rows(table, places[start : start + BATCH])
            names = categories.take(part["category"].combine_chunks())
            # The metadata of `datasets` declare `category` as numbers of labels, not as words.
            yield part.set_column(column, "category", names).replace_schema_metadata()

    def pair_replies(self, place: int) -> list[dict[str, Any]]:
        """Return all replies about a pair."""
        rows = self.reply_rows[self.starts[place] : self.starts[place + 1]]
        category = self.fields["category"].levels
        replies = take_rows(self.replies, rows).to_pylist()
        for reply in replies:
            code = reply["category"]
            reply["category"] = None if code is None else category[code]
        return replies

    @property
    def packed(self) -> dict[str, Any]:
        """The data that the page loads first: the facts, and all fields of all pairs."""
        arrays = {
            f"field {name}": field.values
            for name, field in self.fields.items()
            # Ids are hashes, which hardly compress: 32 bytes each, more than all other fields.
            if field.kind != "id"
        }
        arrays |= {f"schedule {name}": values for name, values in self.schedules.items()}
        return {
            "name": self.name,
            "commit": self.commit,
            "fingerprint": self.fingerprint,
            "count": len(self.ids),
            "facts": self.facts,
            "rubric": self.rubric,
            "fields": {
                name: {"kind": field.kind, "levels": list(field.levels)}
                for name, field in self.fields.items()
            },
            "labels": dict(self.labels),
            "schedules": list(self.schedules),
            **pack(arrays),
        }

    @property
    def packed_scores(self) -> dict[str, Any]:
        """The scores of the kept replies, from which the page computes betas."""
        arrays = {
            name: values for name, values in self.scores.items() if isinstance(values, np.ndarray)
        }
        return {"slots": self.scores["slots"], **pack(arrays)}


def take_rows(table: pa.Table, places: Any) -> pa.Table:
    """Return some rows of a table, in the order of `places`."""
    # Take rows batch by batch, because Arrow's `take` would first copy the table into one piece.
    batches = table.to_batches()
    ends = np.cumsum([len(batch) for batch in batches])
    rows = np.asarray(places, np.int64)
    # `right`, because the row after the last one of a batch is in the next batch.
    batch_of_row = np.searchsorted(ends, rows, side="right")
    # Stable, because the loop below takes the rows of each batch in their order in `rows`.
    order = np.argsort(batch_of_row, kind="stable")
    pieces = []
    for index in np.unique(batch_of_row):
        batch = batches[index]
        first = ends[index] - len(batch)
        pieces.append(batch.take(pa.array(rows[batch_of_row == index] - first)))
    original_order = np.empty_like(order)
    original_order[order] = np.arange(len(order))
    result = pa.Table.from_batches(pieces, schema=table.schema)
    return result.combine_chunks().take(pa.array(original_order))


def pack(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Pack arrays into one compressed text, with the layout that the page needs to unpack it."""
    layout, parts, offset = [], [], 0
    for name, values in arrays.items():
        array = np.ascontiguousarray(values)
        data = array.tobytes()
        # The page knows a type by its name without the byte order: `f4` for `<f4`.
        layout.append(
            {"name": name, "type": array.dtype.str[1:], "at": offset, "count": array.size}
        )
        data += bytes(-len(data) % 8)  # typed arrays in JavaScript must be aligned
        parts.append(data)
        offset += len(data)
    blob = zlib.compress(b"".join(parts), 6)
    return {"layout": layout, "blob": base64.b64encode(blob).decode()}
