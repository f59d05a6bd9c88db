"""The kept annotations of a store as one table, from which gaps are computed."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import polars as pl

from sp2dpo.panel.rubric import Rubric

_SCHEMA: dict[Any, Any] = {
    "pair_id": pl.String,
    "teacher": pl.String,
    "variant": pl.String,
    "order": pl.String,
    "attempt": pl.Int32,
    "category": pl.String,
    "magnitude": pl.Int32,
    "confidence": pl.Int32,
    "better": pl.String,
    "expected_magnitude": pl.Float64,
    "expected_confidence": pl.Float64,
}


COLUMNS = tuple(_SCHEMA)
"""Columns of `AnnotationTable.replies`; the first five are the key of a reply."""
SEPARATOR = "\x1f"
"""Separates the values of a column in one text; names are printable, so none contains it."""
_SLICE = 50_000


@dataclass(frozen=True, kw_only=True)
class AnnotationTable:
    """All kept annotations of a store, and the ids of all its pairs.

    Attributes:
        replies: One row per kept reply, sorted by key: pair_id, teacher, variant, order, attempt,
            category, magnitude, confidence; better (null under the labelled protocol);
            expected_magnitude, expected_confidence (null without log-probabilities).
        pair_ids: Ids of all pairs in the store, sorted; some may have no reply.
        rubric: Rubric that all replies answer.
    """

    replies: pl.DataFrame
    pair_ids: list[str]
    rubric: Rubric

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the rubric's hash and the replies in key order, as 64 hexadecimal digits.

        It covers only what a beta can depend on: no times, raw texts or rationales.
        """
        digest = hashlib.sha256(self.rubric.hash.encode())
        # Names cannot contain tabs. A null would make the whole line null.
        values = pl.all().cast(pl.String).fill_null("")
        line = pl.concat_str(pl.concat_str(values, separator="\t"), pl.lit("\n"))
        for part in self.replies.iter_slices(_SLICE):
            # The data buffer of Arrow's older string layout is all lines, end to end.
            lines: Any = (
                part.select(line).to_series().to_arrow(compat_level=pl.CompatLevel.oldest())
            )
            digest.update(lines.buffers()[2])
        return digest.hexdigest()


def build_annotation_table(
    rows: list[tuple[object, ...]], *, pair_ids: list[str], rubric: Rubric
) -> AnnotationTable:
    """Build the table from rows in any order.

    Args:
        rows: Values in the order of the columns of `AnnotationTable.replies`.
        pair_ids: Ids of all pairs.
        rubric: Rubric that the replies answer.
    """
    replies = pl.DataFrame(rows, schema=_SCHEMA, orient="row")
    return AnnotationTable(replies=sort_by_key(replies), pair_ids=sorted(pair_ids), rubric=rubric)


def sort_by_key(replies: pl.DataFrame) -> pl.DataFrame:
    """Return the replies sorted by key."""
    # Checking whether rows are sorted is cheaper than sorting sorted rows.
    rises = pl.lit(False)
    for name in reversed(COLUMNS[:5]):
        value, before = pl.col(name), pl.col(name).shift()
        rises = (value > before) | ((value == before) & rises)
    is_sorted = replies.select(rises.slice(1).all()).item()
    return replies if is_sorted else replies.sort(COLUMNS[:5])


def parse_columns(
    texts: Mapping[str, str], numbers: Mapping[str, Sequence[float | None]], count: int
) -> pl.DataFrame:
    """Return rows of `AnnotationTable.replies` from the texts of whole columns.

    Args:
        texts: Column -> its values joined by `SEPARATOR`; an empty value is null.
        numbers: Column -> its values. A column in neither mapping is null.
        count: Number of rows.
    """
    split = pl.DataFrame({name: [text] for name, text in texts.items()}).select(
        pl.all().str.split(SEPARATOR)
    )
    table = split.explode(split.columns).with_columns(
        pl.Series(name, values, dtype=pl.Float64) for name, values in numbers.items()
    )
    missing = [
        pl.repeat(None, count, dtype=kind).alias(name)
        for name, kind in _SCHEMA.items()
        if name not in table.columns
    ]
    words = pl.col(pl.String).replace("", None)
    return table.with_columns(words).with_columns(missing).select(COLUMNS).cast(_SCHEMA)
