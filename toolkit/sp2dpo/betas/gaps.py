"""Compute effective semantic gaps from annotations, vectorised over a table.

    g_iapo = gap of one reply, in [-1, 1]: see `estimators`
    g_iap  = mean over o of g_iapo                              the reading under a variant
    s_i    = over a of ( over p of g_iap ): see `estimators`    the signed gap
    g_i    = max(0, s_i)                                        the gap, in [0, 1]

JMAMP (SP2DPO, arXiv 2601.22385, section 4.3.3) takes the median over the variants p of a teacher,
then the mean over the teachers a. The gap of one reply, its sign, the mean over the orders o and
missing replies are our choice: where orders, variants or teachers are missing, the values that
exist are combined.

The labelled protocol has one order, and its s_i is below 0 only under the form `signed`. A label is
disputed if s_i < 0.
"""

from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from sp2dpo.betas.estimators import WAYS, Estimator, combine_expr
from sp2dpo.panel.rubric import CHOSEN_FIRST, Rubric
from sp2dpo.store.annotations import AnnotationTable
from sp2dpo.store.records import StoredReply

NOISE = 1e-9
"""Smaller absolute gaps are floating-point residue of values that cancel; they count as 0."""
_VALUES = ("gap", "magnitude", "confidence")


def compute_gaps(annotations: AnnotationTable, estimator: Estimator) -> pl.DataFrame:
    """Return one row for every pair of a store, sorted by pair_id.

    Args:
        annotations: annotations of one store.
        estimator: how replies become a gap.

    Returns:
        pair_id, gap, signed_gap, label_disputed, category, magnitude, confidence, spread,
        agreement, votes, teachers: see `schedule.schedule_betas`. A pair without replies that count
        has nulls and 0 votes.

    Raises:
        ValueError: as for `compute_reply_gaps`.
    """
    rubric = annotations.rubric
    replies = compute_reply_gaps(annotations, estimator)
    by_teacher = combine_variants(average_orders(replies), estimator.over_variants)
    combined = combine_teachers(by_teacher, estimator.over_teachers).join(
        find_majority(replies, list(rubric.categories)), on="pair_id"
    )
    signed = pl.col("gap")
    settled = pl.when(signed.abs() <= NOISE).then(0.0).otherwise(signed)
    disputed = pl.col("signed_gap") < 0
    if not disputes_labels(rubric, estimator):
        # With a type, because a column of plain nulls would have none in the file.
        disputed = pl.lit(None, pl.Boolean)
    return (
        # With a schema: an empty list would give a column of type Null, which cannot be joined.
        pl.DataFrame({"pair_id": annotations.pair_ids}, schema={"pair_id": pl.String})
        # Pairs without replies that count stay in the table: nothing disappears.
        .join(combined, on="pair_id", how="left", maintain_order="left")
        .with_columns(pl.col("votes", "teachers").fill_null(0), signed_gap=settled)
        # A second step, because expressions of one step do not see each other's columns.
        .with_columns(gap=pl.col("signed_gap").clip(lower_bound=0.0), label_disputed=disputed)
    )


def disputes_labels(rubric: Rubric, estimator: Estimator) -> bool:
    """Return whether a signed gap can be negative, that is, dispute a label."""
    return rubric.blind or estimator.gap.tells_labels


def count_votes(annotations: AnnotationTable, estimator: Estimator) -> pl.DataFrame:
    """Return the replies that count, with magnitude and confidence as the estimate defines them.

    Raises:
        ValueError: the estimate is `expected` and no reply has expectations, or as for
            `Estimator.select_replies`.
    """
    replies = estimator.select_replies(annotations)
    if estimator.estimate == "sampled":
        return replies
    # A reply with one expectation alone is not a vote, rather than half of one.
    scored = replies.drop_nulls(["expected_magnitude", "expected_confidence"])
    if scored.is_empty():
        raise ValueError(
            "no reply has expected scores, which the schedule's `estimate: expected` needs: use "
            "teachers with `logprobs: true` and `top_logprobs` in their sampling, or set "
            "`estimate: sampled`"
        )
    return scored.with_columns(magnitude="expected_magnitude", confidence="expected_confidence")


def compute_reply_gaps(annotations: AnnotationTable, estimator: Estimator) -> pl.DataFrame:
    """Return the replies that count, sorted by key, each with its signed gap in the column `gap`.

    Raises:
        ValueError: as for `count_votes`.
    """
    rubric = annotations.rubric
    sign = None
    if rubric.blind:
        # A is the chosen response in one order, and the rejected one in the other.
        # Strict, so that an unknown value fails instead of becoming null, which a mean leaves out.
        named = pl.col("better").replace_strict({"A": 1.0, "B": -1.0, "tie": 0.0})
        sign = named * pl.when(pl.col("order") == CHOSEN_FIRST).then(1.0).otherwise(-1.0)
    m = rubric.magnitude.share(pl.col("magnitude"))
    c = rubric.confidence.share(pl.col("confidence"))
    return count_votes(annotations, estimator).with_columns(gap=estimator.gap.gap(m, c, sign))


def compute_teacher_gaps(
    annotations: AnnotationTable, estimator: Estimator
) -> tuple[tuple[str, ...], NDArray[np.float64]]:
    """Return the names of the T teachers, and the (N, T) signed gaps s_ai, NaN where missing.

    The rows are in the order of `annotations.pair_ids`. An estimator that selects one variant or
    one teacher selects it here too.

    Raises:
        ValueError: as for `compute_reply_gaps`.
    """
    replies = compute_reply_gaps(annotations, estimator)
    gaps = combine_variants(average_orders(replies), estimator.over_variants)
    teachers = tuple(gaps["teacher"].unique().sort())
    rows = {pair_id: row for row, pair_id in enumerate(annotations.pair_ids)}
    columns = {teacher: column for column, teacher in enumerate(teachers)}
    values = np.full((len(rows), len(teachers)), np.nan)
    at = gaps["pair_id"].replace_strict(rows), gaps["teacher"].replace_strict(columns)
    values[at[0].to_numpy(), at[1].to_numpy()] = gaps["gap"].to_numpy()
    return teachers, values


def compute_signed_gap(reply: StoredReply, rubric: Rubric, estimator: Estimator) -> float | None:
    """Return the signed gap of one kept reply of `Store.replies`; None if it does not count.

    Does the same as `compute_reply_gaps`, for a single reply.
    """
    for name, way in (
        (reply.variant, estimator.over_variants),
        (reply.teacher, estimator.over_teachers),
    ):
        if way not in WAYS and name != way:
            return None
    m, c = reply.magnitude, reply.confidence
    if estimator.estimate == "expected":
        m, c = reply.expected_magnitude, reply.expected_confidence
    if m is None or c is None:
        return None
    sign = None
    if rubric.blind:
        turned = 1 if reply.order == CHOSEN_FIRST else -1
        sign = {"A": 1, "B": -1, "tie": 0}[str(reply.better)] * turned
    return estimator.gap.gap(rubric.magnitude.share(m), rubric.confidence.share(c), sign)


def average_orders(replies: pl.DataFrame) -> pl.DataFrame:
    """Return one row per pair, teacher and variant of reply gaps: means over the orders."""
    return _aggregate(
        replies,
        ["pair_id", "teacher", "variant"],
        *(pl.col(name).mean() for name in _value_columns(replies)),
        votes=pl.len(),
    )


def combine_variants(readings: pl.DataFrame, way: str) -> pl.DataFrame:
    """Return one row per pair and teacher (first step of JMAMP: `median`)."""
    columns = (combine_expr(name, way) for name in _value_columns(readings))
    return _aggregate(readings, ["pair_id", "teacher"], *columns, votes=pl.col("votes").sum())


def combine_teachers(by_teacher: pl.DataFrame, way: str) -> pl.DataFrame:
    """Return one row per pair (second step of JMAMP: `mean`), with spread and teachers."""
    return _aggregate(
        by_teacher,
        ["pair_id"],
        *(combine_expr(name, way) for name in _value_columns(by_teacher)),
        # The population's, so that a single teacher has the spread 0; a sample's would be null.
        spread=pl.col("gap").std(ddof=0),
        # Counts are UInt32 in polars; `columns.BETA_COLUMNS` declares int32.
        votes=pl.col("votes").sum().cast(pl.Int32),
        teachers=pl.len().cast(pl.Int32),
    )


def _value_columns(table: pl.DataFrame) -> list[str]:
    """Return which of gap, magnitude and confidence a table has."""
    return [name for name in _VALUES if name in table.columns]


def _aggregate(
    table: pl.DataFrame, names: list[str], *aggregations: pl.Expr, **more: pl.Expr
) -> pl.DataFrame:
    """Aggregate each group of rows with equal names; the table must be sorted by them."""
    # Sorted rows form runs, and grouping by the number of a run is faster than by names.
    runs = table.with_columns(run=pl.struct(names).rle_id().set_sorted())
    return (
        # In order, because the next step relies on sorted rows again.
        runs.group_by("run", maintain_order=True)
        .agg(pl.col(names).first(), *aggregations, **more)
        .drop("run")
    )


def find_majority(
    replies: pl.DataFrame, categories: list[str], by: Sequence[str] = ("pair_id",)
) -> pl.DataFrame:
    """Return the most frequent category of each group, and the share of replies that name it.

    Args:
        replies: table with category and the columns of `by`; rows of a group are consecutive.
        categories: categories in order of priority; a tie goes to the earlier one.
        by: columns that define a group.

    Returns:
        The columns of `by`, category, agreement in (0, 1].
    """
    names, size = dict(enumerate(categories)), len(categories)
    # One number encodes a count and, in its lower digits, a priority: the maximum is the majority.
    # Int64, because codes are UInt8 and runs UInt32, in which the products below would overflow.
    place = pl.col("category").cast(pl.Enum(categories)).to_physical().cast(pl.Int64)
    numbered = replies.select(*by, run=pl.struct(by).rle_id().cast(pl.Int64), cell=place)
    groups = numbered.group_by("run", maintain_order=True).agg(pl.col(by).first(), total=pl.len())
    counts = numbered.group_by(pl.col("run") * size + pl.col("cell")).len()
    ranked = pl.col("len").cast(pl.Int64) * size + size - 1 - pl.col("run") % size
    return (
        counts.group_by(run=pl.col("run") // size)
        .agg(best=ranked.max())
        .join(groups, on="run")
        # Groups come in no fixed order; runs are numbered in the order of the replies.
        .sort("run")
        .select(
            *by,
            category=(size - 1 - pl.col("best") % size).replace_strict(
                names, return_dtype=pl.String
            ),
            agreement=(pl.col("best") // size) / pl.col("total"),
        )
    )
