"""The kept annotations of a store as one table: what gaps are computed from."""

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
"""Of the replies; the first five are their key."""
SEPARATOR = "\x1f"
"""Stands between the values of a column in one text; names are printable and hold none."""
_SLICE = 50_000


@dataclass(frozen=True, kw_only=True)
class AnnotationTable:
    """All kept annotations, and all pairs that they could be of.

    Attributes:
        replies: one row per kept reply, sorted by key: pair_id, teacher, variant, order, attempt,
            category, magnitude, confidence; better (null under the labelled protocol);
            expected_magnitude, expected_confidence (null without log-probabilities).
        pair_ids: of all pairs of the store, sorted; some may have no reply.
        rubric: that all of them were asked under.
    """

    replies: pl.DataFrame
    pair_ids: list[str]
    rubric: Rubric

    @cached_property
    def hash(self) -> str:
        """64 hexadecimal digits over the replies in the order of their keys and the rubric.

        No times, no raw text, no rationale: only what a beta can depend on. Names hold no tabs.
        """
        digest = hashlib.sha256(self.rubric.hash.encode())
        values = pl.all().cast(pl.String).fill_null("")  # joined to a null, a line would be null
        line = pl.concat_str(pl.concat_str(values, separator="\t"), pl.lit("\n"))
        for part in self.replies.iter_slices(_SLICE):
            # An Arrow column of text, in its older layout, holds all its lines end to end.
            lines: Any = (
                part.select(line).to_series().to_arrow(compat_level=pl.CompatLevel.oldest())
            )
            digest.update(lines.buffers()[2])
        return digest.hexdigest()


def build_annotation_table(
    rows: list[tuple[object, ...]], *, pair_ids: list[str], rubric: Rubric
) -> AnnotationTable:
    """The table of rows as a store gives them; their order does not matter.

    Args:
        rows: the columns of `AnnotationTable.replies`, in that order.
        pair_ids: of all pairs.
        rubric: that they were asked under.
    """
    replies = pl.DataFrame(rows, schema=_SCHEMA, orient="row")
    return AnnotationTable(replies=sort_by_key(replies), pair_ids=sorted(pair_ids), rubric=rubric)


def sort_by_key(replies: pl.DataFrame) -> pl.DataFrame:
    """The replies sorted by their keys; a look is cheaper than a sort of what is sorted."""
    rises = pl.lit(False)
    for name in reversed(COLUMNS[:5]):
        value, before = pl.col(name), pl.col(name).shift()
        rises = (value > before) | ((value == before) & rises)
    is_sorted = replies.select(rises.slice(1).all()).item()
    return replies if is_sorted else replies.sort(COLUMNS[:5])


def parse_columns(
    texts: Mapping[str, str], numbers: Mapping[str, Sequence[float | None]], count: int
) -> pl.DataFrame:
    """Some of the rows of `AnnotationTable.replies`, from whole columns.

    Args:
        texts: the values of a column, `SEPARATOR` between them, nothing for null.
        numbers: the values of others as they are; a column that is in neither is null.
        count: of rows.
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
