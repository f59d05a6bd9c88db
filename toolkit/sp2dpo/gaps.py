"""From annotations to effective semantic gaps: JMAMP, vectorised over a table.

SP2DPO's joint multi-annotator multi-prompt estimator takes the median over the prompt variants of a
teacher, then the mean over the teachers (arXiv 2601.22385, section 4.3.3). The gap of a single
reply is our choice, and so are the sign, the mean over the orders and what happens where replies
are missing:

    g_iapo = sign * share of magnitude * share of confidence   gap of one reply, in [-1, 1]
    g_iap  = mean over o of g_iapo                             the reading under a variant
    s_i    = mean over a of ( median over p of g_iap )         JMAMP: the signed gap
    g_i    = max(0, s_i)                                       the gap, in [0, 1]

The labelled protocol knows one order and only the sign +1, so that s_i is g_i. Under the blind one
the sign is +1 where the reply names the chosen response, -1 where it names the rejected one, 0 for
a tie; a label is disputed where s_i < 0.

A missing reply: the mean of the other order, the median of the variants that came (of an even
number of them the mean of the middle two). A missing teacher: the mean of the rest.
"""

from collections.abc import Mapping
from typing import Any

import polars as pl

from sp2dpo.annotation_table import AnnotationTable
from sp2dpo.rubric import CHOSEN_FIRST, Rubric, Scale

ESTIMATES = ("sampled", "expected")
"""How a reply's magnitude and confidence are read: as it says them, or as their expectations over
the tokens that it could have said. Both are our choice."""
NOISE = 1e-9
"""Readings that cancel leave this much at most of floating point; it counts as 0."""


def gaps(annotations: AnnotationTable, estimate: str) -> pl.DataFrame:
    """One row for every pair of a store, sorted by pair_id.

    Args:
        annotations: of one store.
        estimate: one of `ESTIMATES`.

    Returns:
        pair_id, gap, signed_gap, label_disputed, category, magnitude, confidence, spread,
        agreement, votes, teachers: see `schedule.betas`. A pair without replies that count has
        nulls and no votes.

    Raises:
        ValueError: as `counted`.
    """
    rubric = annotations.rubric
    replies = effective(annotations, estimate)
    found = over_teachers(over_variants(over_orders(replies))).join(
        majority(replies, list(rubric.categories)), on="pair_id"
    )
    signed = pl.col("gap")
    settled = pl.when(signed.abs() <= NOISE).then(0.0).otherwise(signed)
    disputed = pl.col("signed_gap") < 0 if rubric.blind else pl.lit(None, pl.Boolean)
    return (
        pl.DataFrame({"pair_id": annotations.pair_ids}, schema={"pair_id": pl.String})
        .join(found, on="pair_id", how="left")
        .with_columns(pl.col("votes", "teachers").fill_null(0), signed_gap=settled)
        .with_columns(gap=pl.col("signed_gap").clip(lower_bound=0.0), label_disputed=disputed)
        .sort("pair_id")
    )


def share(column: str, scale: Scale) -> pl.Expr:
    """Where a column's values stand on their scale, in [0, 1]."""
    return (pl.col(column) - scale.min) / (scale.max - scale.min)


def counted(annotations: AnnotationTable, estimate: str) -> pl.DataFrame:
    """The replies that count, their magnitude and confidence as the estimate reads them.

    Raises:
        ValueError: expectations are wanted and no reply has them.
    """
    if estimate == "sampled":
        return annotations.replies
    told = annotations.replies.drop_nulls(["expected_magnitude", "expected_confidence"])
    if told.is_empty():
        raise ValueError(
            "no reply came with expectations, which the schedule's `estimate: expected` needs: ask "
            "teachers whose sampling in the panel says `logprobs: true` and `top_logprobs`, or "
            "write `estimate: sampled`"
        )
    return told.with_columns(magnitude="expected_magnitude", confidence="expected_confidence")


def effective(annotations: AnnotationTable, estimate: str) -> pl.DataFrame:
    """The replies that count, with the signed gap of each in the column `gap`.

    Raises:
        ValueError: as `counted`.
    """
    rubric = annotations.rubric
    gap = share("magnitude", rubric.magnitude) * share("confidence", rubric.confidence)
    replies = counted(annotations, estimate)
    if not rubric.blind:
        return replies.with_columns(gap=gap)
    named = pl.col("better").replace_strict({"A": 1.0, "B": -1.0, "tie": 0.0})
    turned = pl.when(pl.col("order") == CHOSEN_FIRST).then(1.0).otherwise(-1.0)
    return replies.with_columns(gap=named * turned * gap)


def signed_gap(reply: Mapping[str, Any], rubric: Rubric, estimate: str) -> float | None:
    """The signed gap of one kept reply, as `Store.replies` gives it; None where it does not count.

    The same as `effective`, for a reply on its own.
    """
    prefix = "expected_" if estimate == "expected" else ""
    magnitude, confidence = reply[f"{prefix}magnitude"], reply[f"{prefix}confidence"]
    if magnitude is None or confidence is None:
        return None
    gap = rubric.magnitude.share(magnitude) * rubric.confidence.share(confidence)
    return sign(reply, rubric) * gap


def sign(reply: Mapping[str, Any], rubric: Rubric) -> int:
    """+1 for the label, -1 against it, 0 for a tie."""
    if not rubric.blind:
        return 1
    turned = 1 if reply["order"] == CHOSEN_FIRST else -1
    return {"A": 1, "B": -1, "tie": 0}[reply["better"]] * turned


def over_orders(replies: pl.DataFrame) -> pl.DataFrame:
    """One row per pair, teacher and variant: means over the orders that came."""
    return (
        replies.sort("pair_id", "teacher", "variant", "order")
        .group_by("pair_id", "teacher", "variant", maintain_order=True)
        .agg(pl.col("gap", "magnitude", "confidence").mean(), votes=pl.len())
    )


def over_variants(readings: pl.DataFrame) -> pl.DataFrame:
    """One row per pair and teacher: medians over the variants (JMAMP, first half).

    Args:
        readings: as `over_orders` makes them.
    """
    return readings.group_by("pair_id", "teacher", maintain_order=True).agg(
        pl.col("gap", "magnitude", "confidence").median(), pl.col("votes").sum()
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
