"""From annotations to effective semantic gaps: JMAMP, vectorised over a table.

SP2DPO's joint multi-annotator multi-prompt estimator takes the median over the prompt variants of a
teacher, then the mean over the teachers (arXiv 2601.22385, section 4.3.3). The gap of a single
reply is our choice, and so is what happens where replies are missing:

    g_iap = share of magnitude * share of confidence          effective gap of one reply, in [0, 1]
    g_i   = mean over a of ( median over p of g_iap )         JMAMP

A missing reply: the median of those that came; an even number of them: the mean of the middle two.
A missing teacher: the mean of the rest.
"""

import polars as pl

from sp2dpo.annotation_table import AnnotationTable
from sp2dpo.rubric import Scale


def gaps(annotations: AnnotationTable) -> pl.DataFrame:
    """One row for every pair of a store, sorted by pair_id.

    Returns:
        pair_id, gap, category, magnitude, confidence, spread, agreement, votes, teachers: see
        `schedule.betas`. A pair without replies has nulls and no votes.
    """
    replies = effective(annotations)
    by_teacher = over_variants(replies)
    found = over_teachers(by_teacher).join(
        majority(replies, list(annotations.rubric.categories)), on="pair_id"
    )
    return (
        pl.DataFrame({"pair_id": annotations.pair_ids}, schema={"pair_id": pl.String})
        .join(found, on="pair_id", how="left")
        .with_columns(pl.col("votes", "teachers").fill_null(0))
        .sort("pair_id")
    )


def share(column: str, scale: Scale) -> pl.Expr:
    """Where a column's values stand on their scale, in [0, 1]."""
    return (pl.col(column) - scale.min) / (scale.max - scale.min)


def effective(annotations: AnnotationTable) -> pl.DataFrame:
    """The replies with the effective gap of each: g_iap = magnitude share * confidence share."""
    rubric = annotations.rubric
    gap = share("magnitude", rubric.magnitude) * share("confidence", rubric.confidence)
    return annotations.replies.with_columns(gap=gap)


def over_variants(replies: pl.DataFrame) -> pl.DataFrame:
    """One row per pair and teacher: medians over the variants (JMAMP, first half)."""
    return (
        replies.sort("pair_id", "teacher", "variant")
        .group_by("pair_id", "teacher", maintain_order=True)
        .agg(pl.col("gap", "magnitude", "confidence").median(), votes=pl.len())
    )


def over_teachers(by_teacher: pl.DataFrame) -> pl.DataFrame:
    """One row per pair: means over the teachers (JMAMP, second half), their spread and counts."""
    return by_teacher.group_by("pair_id", maintain_order=True).agg(
        pl.col("gap", "magnitude", "confidence").mean(),
        spread=pl.col("gap").std(ddof=0),
        votes=pl.col("votes").sum().cast(pl.Int32),
        teachers=pl.len().cast(pl.Int32),
    )


def majority(replies: pl.DataFrame, categories: list[str]) -> pl.DataFrame:
    """The category that most replies name, and their share.

    Args:
        replies: with pair_id and category.
        categories: in order of priority; a tie goes to the earlier.

    Returns:
        pair_id, category, agreement in (0, 1].
    """
    return (
        replies.group_by("pair_id", pl.col("category").cast(pl.Enum(categories)))
        .agg(count=pl.len())
        .sort("pair_id", -pl.col("count").cast(pl.Int64), pl.col("category").to_physical())
        .group_by("pair_id", maintain_order=True)
        .agg(
            pl.col("category").first().cast(pl.String),
            agreement=pl.col("count").first() / pl.col("count").sum(),
        )
    )
