"""Compare the annotations of the same pairs across teachers, variants and orders of responses.

A reader is a teacher or a variant. Under the blind protocol all gaps are signed: in [-1, 1],
negative if the reader disagrees with the label.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from sp2dpo.betas.estimators import JMAMP, WAYS, Estimator
from sp2dpo.betas.gaps import average_orders, combine_variants, compute_reply_gaps, find_majority
from sp2dpo.diagnostics.bootstrap import Ranked, student_quantile, weighted_spearman
from sp2dpo.panel.rubric import CHOSEN_FIRST, REJECTED_FIRST
from sp2dpo.store.annotations import AnnotationTable

_SCORES = ["gap", "magnitude", "confidence"]
Z = 1.959964
"""Quantile of the standard normal distribution for a 95 % interval."""


@dataclass(frozen=True, kw_only=True)
class Proportion:
    """A share of cases with its 95 % Wilson interval.

    Attributes:
        count: number of cases in the share.
        share: `count` divided by the number of all cases, in [0, 1]; None without any case.
        low, high: ends of the interval, in [0, 1]; None without any case.
    """

    count: int
    share: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, kw_only=True)
class ReaderComparison:
    """The agreement of two readers over the preference pairs that both have annotated.

    Attributes:
        one, other: names of the two readers.
        pairs: number of pairs annotated by both.
        same_category: share of these pairs with the same category; None without pairs.
        spearman: Spearman's rho of the gaps, in [-1, 1]; None if undefined, see `spearman`.
        difference: mean absolute difference of the gaps, in [0, 1], or in [0, 2] for signed gaps;
            None without pairs.
    """

    one: str
    other: str
    pairs: int
    same_category: float | None
    spearman: float | None
    difference: float | None


@dataclass(frozen=True, kw_only=True)
class OrderConsistency:
    """How a teacher's preference changes when the two responses swap places.

    Attributes:
        teacher: name of the teacher.
        both: number of (pair, variant) with replies in both orders.
        consistent: those with a preference for the same response twice.
        first, second: those with a preference for A (shown first), or for B, twice.
        tie: those with at least one tie.
    """

    teacher: str
    both: int
    consistent: Proportion
    first: Proportion
    second: Proportion
    tie: Proportion


def panel_reply_gaps(annotations: AnnotationTable, estimator: Estimator) -> pl.DataFrame:
    """Return the replies of the full panel that count, with their gaps rounded to 9 decimals."""
    # 0.2 x 0.9 and 0.3 x 0.6 are the same gap, but differ in the last bit: rounding makes them tie.
    return compute_reply_gaps(annotations, full_panel_estimator(estimator)).with_columns(
        pl.col("gap").round(9)
    )


def full_panel_estimator(estimator: Estimator) -> Estimator:
    """Return the estimator with JMAMP's median or mean in place of a single named reader."""
    variants, teachers = estimator.over_variants, estimator.over_teachers
    return replace(
        estimator,
        over_variants=variants if variants in WAYS else JMAMP.over_variants,
        over_teachers=teachers if teachers in WAYS else JMAMP.over_teachers,
    )


def teacher_readings(
    replies: pl.DataFrame, categories: Sequence[str], estimator: Estimator
) -> pl.DataFrame:
    """Return each teacher's reading of each pair, as if it were the only teacher.

    Args:
        replies: from `panel_reply_gaps`.
        categories: categories of the rubric, in order of priority.
        estimator: decides how the variants are combined.

    Returns:
        pair_id, gap, magnitude, confidence, category (the most frequent one; ties go to the higher
        priority), reader (the teacher), sorted by reader and pair.
    """
    way = full_panel_estimator(estimator).over_variants
    scores = combine_variants(average_orders(replies), way)
    readings = _with_category(scores, replies, categories, ["pair_id", "teacher"])
    return readings.sort("reader", "pair_id")


def variant_readings(replies: pl.DataFrame, categories: Sequence[str]) -> pl.DataFrame:
    """Return the panel's reading of each pair under each variant, as if it were the only variant.

    Arguments and columns are those of `teacher_readings`; the reader is the variant. Scores are
    means over the teachers of the means over the orders.
    """
    key = ["pair_id", "variant"]
    means = average_orders(replies).group_by(key).agg(pl.col(_SCORES).mean())
    # Replies are sorted by teacher before variant, but a majority needs consecutive groups.
    readings = _with_category(means, replies.sort(key), categories, key)
    return readings.sort("reader", "pair_id")


def single_readings(replies: pl.DataFrame, categories: Sequence[str]) -> pl.DataFrame:
    """Return each teacher's reading of each pair under each variant, averaged over the orders.

    Arguments and columns are those of `teacher_readings`, and teacher; the reader is the variant.
    """
    key = ["pair_id", "teacher", "variant"]
    return _with_category(average_orders(replies), replies, categories, key)


def _with_category(
    scores: pl.DataFrame, replies: pl.DataFrame, categories: Sequence[str], key: list[str]
) -> pl.DataFrame:
    """Add the majority category of each group; the last column of the key is the reader."""
    return (
        scores.join(find_majority(replies, list(categories), key), on=key)
        .select(*key[:-1], *_SCORES, "category", reader=key[-1])
        # A mean of rounded gaps has residue again, which would break ties between readers.
        .with_columns(pl.col("gap").round(9))
    )


def compare_readers(readings: pl.DataFrame, readers: Sequence[str]) -> list[ReaderComparison]:
    """Compare every two readers over the preference pairs that both have annotated."""
    by_reader = {reader: readings.filter(pl.col("reader") == reader) for reader in readers}
    comparisons = []
    for first, second in combinations(readers, 2):
        both = by_reader[first].join(by_reader[second], on="pair_id", suffix="_other")
        same, difference = both.select(
            (pl.col("category") == pl.col("category_other")).mean(),
            difference=(pl.col("gap") - pl.col("gap_other")).abs().mean(),
        ).row(0)
        comparisons.append(
            ReaderComparison(
                one=first,
                other=second,
                pairs=len(both),
                same_category=same,
                spearman=spearman(both["gap"], both["gap_other"]),
                difference=difference,
            )
        )
    return comparisons


def compare_orders(replies: pl.DataFrame, teachers: Sequence[str]) -> list[OrderConsistency]:
    """Measure how each teacher's preference changes when the two responses swap places.

    For a pair and a variant in both orders, a teacher prefers the same response twice, prefers the
    same position twice, or reports a tie at least once: the four shares add up to 1.

    Args:
        replies: replies kept under the blind protocol: pair_id, teacher, variant, order, better.
        teachers: teachers to report, in this order.
    """
    key = ["teacher", "pair_id", "variant"]
    original, swapped = (
        replies.filter(pl.col("order") == order).select(*key, "better")
        for order in (CHOSEN_FIRST, REJECTED_FIRST)
    )
    both = original.join(swapped, on=key, suffix="_turned").with_columns(
        outcome=pl.when((pl.col("better") == "tie") | (pl.col("better_turned") == "tie"))
        .then(pl.lit("tie"))
        # The letter names a position: the same response has a different letter in each order.
        .when(pl.col("better") != pl.col("better_turned"))
        .then(pl.lit("consistent"))
        # From here on both letters are equal: the teacher prefers a position, not a response.
        .when(pl.col("better") == "A")
        .then(pl.lit("first"))
        .otherwise(pl.lit("second"))
    )
    counts = {
        (teacher, outcome): count
        for teacher, outcome, count in both.group_by("teacher", "outcome").len().iter_rows()
    }
    rows = []
    for teacher in teachers:
        by_outcome = {
            outcome: counts.get((teacher, outcome), 0)
            for outcome in ("consistent", "first", "second", "tie")
        }
        total = sum(by_outcome.values())
        shares = {outcome: wilson_interval(count, total) for outcome, count in by_outcome.items()}
        rows.append(OrderConsistency(teacher=teacher, both=total, **shares))
    return rows


def wilson_interval(count: int, total: int) -> Proportion:
    """Return a share with its 95 % Wilson interval (Wilson 1927).

    The interval assumes independent cases. The variants of one pair are not fully independent, so
    the interval is slightly too narrow.

    Args:
        count: number of cases in the share.
        total: number of all cases.
    """
    if not total:
        return Proportion(count=count)
    share, square = count / total, Z**2
    centre = (share + square / (2 * total)) / (1 + square / total)
    half = Z * math.sqrt(share * (1 - share) / total + square / (4 * total**2))
    half /= 1 + square / total
    # Floating-point error can put an end of a share of 0 or 1 slightly outside of [0, 1].
    low, high = max(0.0, centre - half), min(1.0, centre + half)
    return Proportion(count=count, share=share, low=low, high=high)


def spearman(x: pl.Series, y: pl.Series) -> float | None:
    """Return Spearman's rho: Pearson's correlation of the ranks; ties get their mean rank.

    None if undefined: fewer than two values, or one side is constant.
    """
    if not len(x):
        return None
    return weighted_spearman(Ranked(x), Ranked(y), np.ones(len(x)))


def intraclass_correlation(replies: pl.DataFrame) -> pl.DataFrame:
    """Compute ICC(1) of each teacher's gaps, grouped by pair (one-way analysis of variance).

        ICC(1) = (MSB - MSW) / (MSB + (k0 - 1) MSW),   k0 = (N - sum n_i^2 / N) / (pairs - 1)

    (Shrout and Fleiss 1979; k0 for groups of unequal size.) Pairs with one reply are left out. The
    interval is that of log(MSB / MSW), with the jackknife's standard error over pairs and Student's
    t: gaps are not normal, as an F interval would suppose. Our choice.

    Args:
        replies: table of pair_id, teacher and gap, one row per variant.

    Returns:
        teacher, pairs, icc, low, high, sorted by teacher; icc is null for fewer than two pairs or
        equal gaps, and the ends of its interval also where one pair alone has variants that differ.
    """
    gap = pl.col("gap")
    groups = (
        replies.group_by("teacher", "pair_id")
        .agg(
            size=pl.len().cast(pl.Float64),
            mean=gap.mean(),
            square=((gap - gap.mean()) ** 2).sum(),
            low=gap.min(),
            high=gap.max(),
        )
        .filter(pl.col("size") > 1)
        # Groups come in no fixed order, and the last bits of the sums below depend on it.
        .sort("teacher", "pair_id")
    )
    rows = []
    for (teacher,), pairs in groups.group_by("teacher", maintain_order=True):
        # Not by the variance: that of equal gaps may differ from 0 by floating-point error.
        is_defined = len(pairs) > 1 and pairs["high"].max() != pairs["low"].min()
        values = _icc_interval(pairs) if is_defined else (None, None, None)
        rows.append((teacher, len(pairs), *values))
    schema = {"teacher": pl.String, "pairs": pl.UInt32}
    schema |= dict.fromkeys(("icc", "low", "high"), pl.Float64)
    return pl.DataFrame(rows, schema=schema, orient="row")


def _icc_interval(pairs: pl.DataFrame) -> tuple[float, float | None, float | None]:
    """Return ICC(1) and its interval from the size, mean and squares of each pair's gaps."""
    size, mean, square = (pairs[name].to_numpy() for name in ("size", "mean", "square"))
    # Centred: sums of squares of small differences lose no digits.
    mean = mean - (size @ mean) / size.sum()

    def mean_squares(left_out: NDArray[np.float64]) -> tuple[Any, Any, Any]:
        # Sums less the terms of the pair that is left out: all jackknife samples at once.
        total, count = size.sum() - left_out * size, len(size) - left_out
        first = size @ mean - left_out * size * mean
        between = (size @ mean**2 - left_out * size * mean**2 - first**2 / total) / (count - 1)
        within = (square.sum() - left_out * square) / (total - count)
        each = (total - ((size**2).sum() - left_out * size**2) / total) / (count - 1)
        return between, within, each

    between, within, each = (float(values[0]) for values in mean_squares(np.zeros(len(size))))
    icc = (between - within) / (between + (each - 1) * within)
    if within <= 1e-18:
        return icc, icc, icc
    if len(size) < 3:
        return icc, None, None
    drawn_between, drawn_within, _ = mean_squares(np.ones(len(size)))
    # Without the only pair whose variants differ, or whose mean does, the logarithm is infinite.
    if between <= 0 or min(drawn_between.min(), drawn_within.min()) <= 1e-18:
        return icc, None, None
    logs, n = np.log(drawn_between / drawn_within), len(size)
    error = math.sqrt((n - 1) / n * float(((logs - logs.mean()) ** 2).sum()))
    factor = math.exp(student_quantile(n - 1) * error)
    low, high = (
        (ratio - 1) / (ratio + each - 1)
        for ratio in (between / within / factor, between / within * factor)
    )
    return icc, low, high
