"""Agreement: how alike different teachers, or different variants, read the same pairs."""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import polars as pl

from sp2dpo.annotation_table import AnnotationTable
from sp2dpo.gaps import effective, majority, over_variants


def steady(annotations: AnnotationTable) -> pl.DataFrame:
    """The replies with their effective gaps, rounded to 9 decimals.

    0.2 x 0.6 and 0.3 x 0.4 are one gap; floating point must not put one above the other.
    """
    return effective(annotations).with_columns(pl.col("gap").round(9))


def by_teacher(replies: pl.DataFrame, categories: Sequence[str]) -> pl.DataFrame:
    """What each teacher says of each pair: what would be, were it the only one asked.

    Args:
        replies: as `steady` makes them.
        categories: in order of priority.

    Returns:
        reader (the teacher), pair_id, gap (median over its variants), category (of most of its
        replies, ties to the higher priority).
    """
    medians = over_variants(replies).select("pair_id", pl.col("gap").round(9), reader="teacher")
    return _with_category(medians, replies, "teacher", categories)


def by_variant(replies: pl.DataFrame, categories: Sequence[str]) -> pl.DataFrame:
    """What is said of each pair under each variant: what would be, were it the only one used.

    Args:
        replies: as `steady` makes them.
        categories: in order of priority.

    Returns:
        reader (the variant), pair_id, gap (mean over the teachers), category (of most teachers,
        ties to the higher priority).
    """
    means = replies.group_by("pair_id", reader="variant").agg(pl.col("gap").mean().round(9))
    return _with_category(means, replies, "variant", categories)


def _with_category(
    read: pl.DataFrame, replies: pl.DataFrame, by: str, categories: Sequence[str]
) -> pl.DataFrame:
    named = [
        majority(replies.filter(pl.col(by) == reader), list(categories)).select(
            "pair_id", "category", reader=pl.lit(reader)
        )
        for reader in sorted(set(replies[by]))
    ]
    return read.join(pl.concat(named), on=["reader", "pair_id"]).sort("reader", "pair_id")


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
        difference: mean absolute difference of their gaps, in [0, 1]; None without pairs.
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
        replies: with pair_id, teacher and gap.

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
