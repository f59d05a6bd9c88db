"""The table of betas that a schedule makes of annotations."""

import polars as pl

from sp2dpo.annotation_table import AnnotationTable
from sp2dpo.gaps import gaps
from sp2dpo.maps import Quantile, places
from sp2dpo.schedule import Schedule

COLUMNS = (
    "pair_id", "beta", "has_beta", "keep", "gap", "signed_gap", "label_disputed", "category",
    "magnitude", "confidence", "spread", "agreement", "votes", "teachers",
)  # fmt: skip


def betas(annotations: AnnotationTable, schedule: Schedule, *, flip: bool = False) -> pl.DataFrame:
    """The table of betas, one row for every pair, sorted by pair_id.

    Args:
        annotations: of one store.
        schedule: how to combine them.
        flip: whether pairs with a disputed label are to be trained with their responses exchanged;
            the gap of such a pair is then what the teachers see the other way round, -s_i.

    Returns:
        pair_id: 64 hexadecimal digits.
        beta: in the envelope; null below the quorum.
        has_beta: whether there is one.
        keep: whether the pair is trained on; here that is the same.
        gap: effective semantic gap in [0, 1]: the signed gap, at least 0; null below the quorum.
        signed_gap: in [-1, 1], below 0 where the teachers think the label wrong, which the labelled
            protocol tells under the form `signed` alone; null below the quorum. Ours.
        label_disputed: whether the signed gap is below 0; null below the quorum and where that
            cannot be told. Ours.
        category: of most replies, ties to the higher priority; null without replies.
        magnitude, confidence: combined like the gaps, each alone, without a sign, on the rubric's
            scale, for display.
        spread: population standard deviation of the teachers' signed gaps: in [0, 0.5], where they
            may be below 0 in [0, 1].
        agreement: share of the replies that name that category, in (0, 1].
        votes: kept replies that count under the schedule.
        teachers: teachers with at least one of them.

    Raises:
        ValueError: no reply counts under the schedule, or it names a category that is not there.
    """
    schedule.check_categories(annotations.rubric, where="the schedule")
    enough = pl.col("votes") >= schedule.quorum
    table = gaps(annotations, schedule.estimator).with_columns(
        pl.when(enough).then(name).alias(name) for name in ("gap", "signed_gap", "label_disputed")
    )
    if flip:
        disputed = pl.col("label_disputed")
        table = table.with_columns(
            gap=pl.when(disputed).then(-pl.col("signed_gap")).otherwise("gap")
        )
    has_beta = pl.col("gap").is_not_null()
    return table.with_columns(beta=beta(schedule), has_beta=has_beta, keep=has_beta).select(COLUMNS)


def beta(schedule: Schedule) -> pl.Expr:
    """The beta of each pair, from the columns gap and category of all of them."""
    gap = pl.col("gap")
    if isinstance(schedule.map, Quantile):
        gap = places(gap)
    low, high = ends(schedule)
    # Floating point must not put a beta outside of its envelope.
    return schedule.map.beta(gap, low, high).clip(low, high)


def ends(schedule: Schedule) -> tuple[pl.Expr, pl.Expr]:
    """Both ends of each pair's envelope, from the column category."""
    common = schedule.envelope(None)
    low, high = pl.lit(float(common.beta_min)), pl.lit(float(common.beta_max))
    for category, envelope in schedule.envelopes.items():
        here = pl.col("category") == category
        low = pl.when(here).then(float(envelope.beta_min)).otherwise(low)
        high = pl.when(here).then(float(envelope.beta_max)).otherwise(high)
    return low, high
