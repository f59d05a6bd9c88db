"""A published data set, opened: columns to filter by, texts, replies, and what the page is sent.

Texts and replies lie on the disk, uncompressed, and are read from there where they are asked for;
in memory are a few numbers for each pair.
"""

import base64
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from filters import Field, Query, Refused, chosen

pc: Any = pyarrow.compute  # its functions are made when it is imported

SEARCHED = "__text"
"""A column of ours beside those of the data set: all of a pair that is searched, in one text."""
BATCH = 4096


class Unusable(ValueError):
    """A data set that cannot be shown; the message is for people."""


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """A data set.

    Attributes:
        name: as the page shows it.
        commit: of the repo; None for a folder.
        facts: of its manifest.
        rubric: categories, scales and protocol.
        ids: of the pairs, in the order of the data set.
        fields: that a query can name.
        labels: field -> the source's own name of the column, where it is one.
        schedules: the columns of betas that are published beside each other, one value per pair.
        texts: all columns of each pair's first row.
        replies: all replies.
        places: of the replies in `replies`, those of one pair in a row.
        starts: where those of each pair begin; one more than there are pairs.
        scores: for the page, what each kept reply says, packed.
    """

    name: str
    commit: str | None
    facts: Mapping[str, Any]
    rubric: Mapping[str, Any]
    ids: Sequence[str]
    fields: Mapping[str, Field]
    labels: Mapping[str, str]
    schedules: Mapping[str, Any]
    texts: pa.Table
    replies: pa.Table
    places: Any
    starts: Any
    scores: Mapping[str, Any]

    def search(self, text: str) -> Any:
        """The pairs whose prompt or responses contain a text, whatever its case; as flags."""
        found = pc.match_substring(self.texts[SEARCHED], text, ignore_case=True)
        return found.to_numpy(zero_copy_only=False).astype(bool)

    def chosen(self, query: Query) -> Any:
        """The places of the pairs that a query chooses, in its order."""
        return chosen(query, self.fields, len(self.ids), self.search)

    def starting(self, start: str) -> Any:
        """The pairs whose id begins so; as flags."""
        start = start.lower()
        found = (one.startswith(start) for one in self.ids)
        return np.fromiter(found, bool, len(self.ids))

    def place(self, pair_id: str) -> int:
        """Where a pair stands, by its id or the beginning of it.

        Raises:
            Refused: there is none, or more than one.
        """
        found = np.flatnonzero(self.starting(pair_id))
        if len(found) != 1:
            what = "more than one pair" if len(found) else "no pair"
            raise Refused(f"{what} with an id that begins with {pair_id!r}")
        return int(found[0])

    def row(self, place: int) -> dict[str, Any]:
        """All that the data set says of a pair."""
        (said,) = self.texts.slice(place, 1).drop_columns([SEARCHED]).to_pylist()
        category = self.fields["category"].levels
        said["category"] = None if said["category"] is None else category[said["category"]]
        return said

    def messages(self, place: int) -> dict[str, list[dict[str, Any]]]:
        """The conversations of a pair."""
        told = self.texts.select(["prompt", "chosen", "rejected"]).slice(place, 1).to_pylist()
        return {name: said or [] for name, said in told[0].items()}

    def parts(self, places: Any) -> Iterator[pa.Table]:
        """All columns of some pairs, some thousand rows at a time; one part at least."""
        categories = pa.array(self.fields["category"].levels)
        held = self.texts.drop_columns([SEARCHED])
        where = held.schema.get_field_index("category")
        for at in range(0, max(len(places), 1), BATCH):
            part = taken(held, places[at : at + BATCH])
            named = categories.take(part["category"].combine_chunks())
            yield part.set_column(where, "category", named).replace_schema_metadata()

    def heard(self, place: int) -> list[dict[str, Any]]:
        """All replies about a pair."""
        rows = self.places[self.starts[place] : self.starts[place + 1]]
        category = self.fields["category"].levels
        found = taken(self.replies, rows).to_pylist()
        for one in found:
            one["category"] = None if one["category"] is None else category[one["category"]]
        return found

    @cached_property
    def packed(self) -> dict[str, Any]:
        """What the page starts with: the facts, and every field of every pair."""
        arrays = {
            f"field {name}": one.values for name, one in self.fields.items() if one.kind != "id"
        }
        arrays |= {f"schedule {name}": values for name, values in self.schedules.items()}
        return {
            "name": self.name,
            "commit": self.commit,
            "count": len(self.ids),
            "facts": self.facts,
            "rubric": self.rubric,
            "fields": {
                name: {"kind": one.kind, "levels": list(one.levels)}
                for name, one in self.fields.items()
            },
            "labels": dict(self.labels),
            "schedules": list(self.schedules),
            **pack(arrays),
        }

    @cached_property
    def packed_scores(self) -> dict[str, Any]:
        """What the kept replies say, for recomputing betas in the page."""
        arrays = {name: one for name, one in self.scores.items() if isinstance(one, np.ndarray)}
        return {"slots": self.scores["slots"], **pack(arrays)}


def taken(table: pa.Table, places: Any) -> pa.Table:
    """Some rows of a table, in that order.

    Batch by batch: Arrow's own `take` would first put the whole table into one piece.
    """
    batches = table.to_batches()
    ends = np.cumsum([len(batch) for batch in batches])
    wanted = np.asarray(places, np.int64)
    where = np.searchsorted(ends, wanted, side="right")
    order = np.argsort(where, kind="stable")
    pieces = []
    for one in np.unique(where):
        begins = ends[one] - len(batches[one])
        pieces.append(batches[one].take(pa.array(wanted[where == one] - begins)))
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    found = pa.Table.from_batches(pieces, schema=table.schema)
    return found.combine_chunks().take(pa.array(back))


def pack(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Arrays as one compressed text, and how to take them apart."""
    layout, parts, place = [], [], 0
    for name, values in arrays.items():
        held = np.ascontiguousarray(values)
        data = held.tobytes()
        layout.append({"name": name, "type": held.dtype.str[1:], "at": place, "count": held.size})
        data += bytes(-len(data) % 8)
        parts.append(data)
        place += len(data)
    blob = zlib.compress(b"".join(parts), 6)
    return {"layout": layout, "blob": base64.b64encode(blob).decode()}
