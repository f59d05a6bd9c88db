"""The kept annotations of a store as one table: what gaps are computed from."""

import hashlib
from dataclasses import dataclass
from functools import cached_property

import polars as pl

from sp2dpo.rubric import Rubric

_SCHEMA = {
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
        said = pl.all().cast(pl.String).fill_null("")  # joined to a null, a line would be null
        lines = self.replies.select(pl.concat_str(said, separator="\t"))
        for line in lines.to_series():
            digest.update(line.encode() + b"\n")
        return digest.hexdigest()


def annotation_table(
    rows: list[tuple[object, ...]], *, pair_ids: list[str], rubric: Rubric
) -> AnnotationTable:
    """The table of rows as a store gives them; their order does not matter.

    Args:
        rows: the columns of `AnnotationTable.replies`, in that order.
        pair_ids: of all pairs.
        rubric: that they were asked under.
    """
    replies = pl.DataFrame(rows, schema=_SCHEMA, orient="row")
    return AnnotationTable(
        replies=replies.sort("pair_id", "teacher", "variant", "order", "attempt"),
        pair_ids=sorted(pair_ids),
        rubric=rubric,
    )
