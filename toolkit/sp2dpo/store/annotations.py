"""Read the kept annotations of a store into one table, from which gaps are computed."""

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
"""Separator between the values of a column in one text; printable names cannot contain it."""
# Rows formatted at a time for the hash, so that the text of all rows is never in memory at once.
_SLICE = 50_000


@dataclass(frozen=True, kw_only=True)
class AnnotationTable:
    """All kept annotations of a store, and the ids of all its pairs.

    Attributes:
        replies: One row per kept reply, sorted by key, with the columns pair_id, teacher, variant,
            order, attempt, category, magnitude, confidence, better (null under the labelled
            protocol), expected_magnitude and expected_confidence (null without log-probabilities).
        pair_ids: Ids of all pairs in the store, sorted; some may have no reply.
        rubric: Rubric that all replies answer.
    """

    replies: pl.DataFrame
    pair_ids: list[str]
    rubric: Rubric

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the rubric's hash and the replies in key order, as 64 hexadecimal digits.

        It covers only values that a beta can depend on, so not times, raw texts or rationales.
        """
        digest = hashlib.sha256(self.rubric.hash.encode())
        # Betas files and manifests contain this hash, so the form of the lines must not change.
        # Names cannot contain tabs, so lines are unambiguous. `concat_str` would turn a row with a
        # null into a null line.
        values = pl.all().cast(pl.String).fill_null("")
        line = pl.concat_str(pl.concat_str(values, separator="\t"), pl.lit("\n"))
        for part in self.replies.iter_slices(_SLICE):
            # In Arrow's older string layout, the data buffer is the concatenation of all lines.
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
    # Rows are usually sorted already, and checking that is cheaper than sorting them again.
    # From the last column of the key to the first: a later one only decides where all earlier ones
    # are equal.
    rises = pl.lit(False)
    for name in reversed(COLUMNS[:5]):
        value, before = pl.col(name), pl.col(name).shift()
        rises = (value > before) | ((value == before) & rises)
    # The first row has no row before it, so its comparison is null.
    is_sorted = replies.select(rises.slice(1).all()).item()
    return replies if is_sorted else replies.sort(COLUMNS[:5])


def parse_columns(
    texts: Mapping[str, str], numbers: Mapping[str, Sequence[float | None]], count: int
) -> pl.DataFrame:
    """Return rows of `AnnotationTable.replies`, parsed from one text for each column.

    Args:
        texts: Values of each column, joined by `SEPARATOR`; an empty value is null.
        numbers: Values of each column that is not in `texts`. Columns in neither mapping are null.
        count: Number of rows.
    """
    split = pl.DataFrame({name: [text] for name, text in texts.items()}).select(
        pl.all().str.split(SEPARATOR)
    )
    # Needs equally many values in every column; `_kept_parts` joins nulls as empty texts for this.
    table = split.explode(split.columns).with_columns(
        pl.Series(name, values, dtype=pl.Float64) for name, values in numbers.items()
    )
    missing = [
        pl.repeat(None, count, dtype=kind).alias(name)
        for name, kind in _SCHEMA.items()
        if name not in table.columns
    ]
    # Only a null `better` was joined as an empty text.
    words = pl.col(pl.String).replace("", None)
    return table.with_columns(words).with_columns(missing).select(COLUMNS).cast(_SCHEMA)
