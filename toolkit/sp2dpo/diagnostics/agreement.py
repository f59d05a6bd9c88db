"""Agreement: how alike teachers, variants, or the two orders of responses, read the same pairs.

Under the blind protocol all gaps here are signed: in [-1, 1], below 0 against the label.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import polars as pl

from sp2dpo.betas.estimators import JMAMP, WAYS, Estimator
from sp2dpo.betas.gaps import effective, majority, over_orders, over_variants
from sp2dpo.panel.rubric import CHOSEN_FIRST, REJECTED_FIRST
from sp2dpo.store.annotations import AnnotationTable

_SCORES = ["gap", "magnitude", "confidence"]
_Z = 1.959964
"""Of the normal distribution, for an interval that holds 95 %."""


def steady(annotations: AnnotationTable, estimator: Estimator) -> pl.DataFrame:
    """The replies of the whole panel that count, with their gaps, rounded to 9 decimals.

    0.2 x 0.6 and 0.3 x 0.4 are one gap; floating point must not put one above the other.
    """
    return effective(annotations, of_all(estimator)).with_columns(pl.col("gap").round(9))


def of_all(estimator: Estimator) -> Estimator:
    """The estimator, but with JMAMP's median or mean where it names an only variant or teacher."""
    return replace(
        estimator,
        over_variants=_way(estimator.over_variants, JMAMP.over_variants),
        over_teachers=_way(estimator.over_teachers, JMAMP.over_teachers),
    )


def _way(way: str, otherwise: str) -> str:
    return way if way in WAYS else otherwise


def by_teacher(
    replies: pl.DataFrame, categories: Sequence[str], estimator: Estimator
) -> pl.DataFrame:
    """What each teacher says of each pair: what would be, were it the only one asked.

    Args:
        replies: as `steady` makes them.
        categories: in order of priority.
        estimator: says how its variants are combined.

    Returns:
        reader (the teacher), pair_id, gap, magnitude, confidence, category (of most of its replies,
        ties to the higher priority), by reader and pair.
    """
    way = of_all(estimator).over_variants
    key = ["pair_id", "teacher"]
    return (
        over_variants(over_orders(replies), way)
        .join(majority(replies, list(categories), key), on=key)
        .select("pair_id", *_SCORES, "category", reader="teacher")
        .with_columns(pl.col("gap").round(9))
        .sort("reader", "pair_id")
    )


def by_variant(replies: pl.DataFrame, categories: Sequence[str]) -> pl.DataFrame:
    """What is said of each pair under each variant: what would be, were it the only one used.

    Args:
        replies: as `steady` makes them.
        categories: in order of priority.

    Returns:
        reader (the variant), pair_id, gap, magnitude, confidence (means over the teachers of the
        means over the orders), category (of most replies, ties to the higher priority), by reader
        and pair.
    """
    key = ["pair_id", "variant"]
    means = over_orders(replies).group_by(key).agg(pl.col(_SCORES).mean())
    return (
        means.join(majority(replies.sort(key), list(categories), key), on=key)
        .select("pair_id", *_SCORES, "category", reader="variant")
        .with_columns(pl.col("gap").round(9))
        .sort("reader", "pair_id")
    )


def by_reading(replies: pl.DataFrame, categories: Sequence[str]) -> pl.DataFrame:
    """What each teacher says of each pair under each variant, both orders taken together.

    Args:
        replies: as `steady` makes them.
        categories: in order of priority.

    Returns:
        pair_id, teacher, reader (the variant), gap, magnitude, confidence, category.
    """
    key = ["pair_id", "teacher", "variant"]
    return (
        over_orders(replies)
        .join(majority(replies, list(categories), key), on=key)
        .select("pair_id", "teacher", *_SCORES, "category", reader="variant")
        .with_columns(pl.col("gap").round(9))
    )


def comparisons(read: pl.DataFrame, readers: Sequence[str]) -> list[dict[str, Any]]:
    """All twos of readers, compared over the pairs that both have read.

    Args:
        read: as `by_teacher` or `by_variant` makes it.
        readers: whom to compare, in this order.

    Returns:
        one, other: the readers.
        pairs: read by both.
        same_category: share of them that both give the same category; None without pairs.
        spearman: rho of their gaps, in [-1, 1]; see `spearman`.
        difference: mean absolute difference of their gaps, in [0, 1], of signed ones in [0, 2];
            None without pairs.
    """
    apart = {reader: read.filter(pl.col("reader") == reader) for reader in readers}
    found = []
    for one, other in combinations(readers, 2):
        both = apart[one].join(apart[other], on="pair_id", suffix="_other")
        same, difference = both.select(
            (pl.col("category") == pl.col("category_other")).mean(),
            difference=(pl.col("gap") - pl.col("gap_other")).abs().mean(),
        ).row(0)
        found.append(
            {
                "one": one,
                "other": other,
                "pairs": len(both),
                "same_category": same,
                "spearman": spearman(both["gap"], both["gap_other"]),
                "difference": difference,
            }
        )
    return found


def by_position(replies: pl.DataFrame, teachers: Sequence[str]) -> list[dict[str, Any]]:
    """What becomes of a teacher's word when the two responses change places.

    Asked once about a pair under a variant in each order, a teacher names the same response twice,
    the same place twice, or calls it a tie at least once: the four shares add up to 1.

    Args:
        replies: kept under the blind protocol: pair_id, teacher, variant, order, better.
        teachers: in this order.

    Returns:
        teacher.
        both: (pair, variant) read in both orders.
        consistent, first, second, tie: count, share, low and high: the same response twice, A
            (shown first) twice, B twice, a tie; see `wilson` for low and high.
    """
    key = ["teacher", "pair_id", "variant"]
    one, other = (
        replies.filter(pl.col("order") == order).select(*key, "better")
        for order in (CHOSEN_FIRST, REJECTED_FIRST)
    )
    both = one.join(other, on=key, suffix="_turned").with_columns(
        found=pl.when((pl.col("better") == "tie") | (pl.col("better_turned") == "tie"))
        .then(pl.lit("tie"))
        .when(pl.col("better") != pl.col("better_turned"))
        .then(pl.lit("consistent"))
        .when(pl.col("better") == "A")
        .then(pl.lit("first"))
        .otherwise(pl.lit("second"))
    )
    counts = {
        (teacher, found): count
        for teacher, found, count in both.group_by("teacher", "found").len().iter_rows()
    }
    kinds = ("consistent", "first", "second", "tie")
    table = []
    for teacher in teachers:
        told = {kind: counts.get((teacher, kind), 0) for kind in kinds}
        total = sum(told.values())
        shares = {kind: wilson(count, total) for kind, count in told.items()}
        table.append({"teacher": teacher, "both": total, **shares})
    return table


def wilson(count: int, total: int) -> dict[str, Any]:
    """A share with its 95 % interval (Wilson 1927), each case taken as independent of the others.

    The variants of one pair are not quite that, so the interval is somewhat narrow.

    Returns:
        count; share, low and high in [0, 1], None of nothing.
    """
    if not total:
        return {"count": count, "share": None, "low": None, "high": None}
    share, square = count / total, _Z**2
    centre = (share + square / (2 * total)) / (1 + square / total)
    half = _Z * math.sqrt(share * (1 - share) / total + square / (4 * total**2))
    half /= 1 + square / total
    low, high = max(0.0, centre - half), min(1.0, centre + half)
    return {"count": count, "share": share, "low": low, "high": high}


def spearman(one: pl.Series, other: pl.Series) -> float | None:
    """Spearman's rho: Pearson's correlation of the ranks, ties given their mean rank.

    None where it is not defined: fewer than two values, or all of a side equal.
    """
    if one.n_unique() < 2 or other.n_unique() < 2:
        return None
    return pl.select(pl.corr(one.rank("average"), other.rank("average"))).item()


def intraclass(replies: pl.DataFrame) -> pl.DataFrame:
    """ICC(1) of each teacher's gaps, grouped by pair (one-way analysis of variance).

        ICC(1) = (MSB - MSW) / (MSB + (k0 - 1) MSW),   k0 = (N - sum n_i^2 / N) / (pairs - 1)

    (Shrout and Fleiss 1979; k0 for groups of unequal size.) Pairs with one reply are left out.

    Args:
        replies: with pair_id, teacher and gap; one row per variant.

    Returns:
        teacher, pairs, icc, by teacher; icc is null for fewer than two pairs or equal gaps.
    """
    size, mean = pl.col("size"), pl.col("mean")
    pairs, total = pl.len(), size.sum()
    grand = (size * mean).sum() / total
    between = (size * (mean - grand) ** 2).sum() / (pairs - 1)
    within = pl.col("square").sum() / (total - pairs)
    each = (total - (size**2).sum() / total) / (pairs - 1)
    told = (pairs > 1) & (pl.col("high").max() > pl.col("low").min())
    gap = pl.col("gap")
    return (
        replies.group_by("teacher", "pair_id")
        .agg(
            size=pl.len().cast(pl.Float64),
            mean=gap.mean(),
            square=((gap - gap.mean()) ** 2).sum(),
            low=gap.min(),
            high=gap.max(),
        )
        .filter(size > 1)
        .sort("teacher", "pair_id")
        .group_by("teacher", maintain_order=True)
        .agg(
            pairs=pairs,
            icc=pl.when(told).then((between - within) / (between + (each - 1) * within)),
        )
    )
