"""Compare two tables of betas: rank correlation, shift, and the pairs that moved most."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from sp2dpo.betas.file import BetaTable
from sp2dpo.diagnostics.agreement import spearman
from sp2dpo.diagnostics.bootstrap import (
    DRAWS,
    FISHER,
    Estimate,
    bootstrap_estimates,
    correlation,
    rank_correlation,
)
from sp2dpo.store.store import Store


@dataclass(frozen=True, kw_only=True)
class PairCounts:
    """Numbers of pairs in two tables.

    Attributes:
        both, compared: pairs in both tables, and those of them with a beta in both.
        only_one, only_other: pairs in the first, or in the second, table alone.
        beta_only_one, beta_only_other: pairs in both tables with a beta in one alone.
    """

    both: int
    compared: int
    only_one: int
    only_other: int
    beta_only_one: int
    beta_only_other: int


@dataclass(frozen=True, kw_only=True)
class KeptCounts:
    """Numbers of the pairs in both tables that are kept for training.

    Attributes:
        both, only_one, only_other: pairs kept by both tables, or by one of them alone.
    """

    both: int
    only_one: int
    only_other: int


@dataclass(frozen=True, kw_only=True)
class BetaDistribution:
    """Statistics of the compared betas of a table.

    Attributes:
        mean, std, min, max: mean, population standard deviation, and ends of the range.
    """

    mean: float
    std: float
    min: float
    max: float


@dataclass(frozen=True, kw_only=True)
class CategoryComparison:
    """The comparison of the betas of one category.

    Attributes:
        category: category in the first table.
        pairs: number of compared pairs.
        one, other: mean beta in either table.
        shift: `other` minus `one`.
        spearman: Spearman's rho of the betas, in [-1, 1]; None if undefined.
    """

    category: str
    pairs: int
    one: float
    other: float
    shift: float
    spearman: float | None


@dataclass(frozen=True, kw_only=True)
class Mover:
    """A pair whose beta differs between two tables.

    Attributes:
        pair_id, category: id of the pair, and its category in the first table.
        one, other: its beta in either table.
        shift: `other` minus `one`.
    """

    pair_id: str
    category: str
    one: float
    other: float
    shift: float


@dataclass(frozen=True, kw_only=True)
class NamedMover(Mover):
    """A mover with its name in the source.

    Attributes:
        source_id: name of the pair in the source; None if it has none.
    """

    source_id: str | None


@dataclass(frozen=True, kw_only=True)
class BetaComparison:
    """The comparison of two tables of betas. A shift is the second table minus the first.

    Attributes:
        pairs, kept: numbers of pairs in the tables, and of pairs kept for training.
        differs: values in the schedules and arms of the two tables, by key, where they differ.
        draws: number of bootstrap samples.
        same_annotations: whether both tables were computed from the same annotations.
        pearson, spearman: Pearson's correlation and Spearman's rho of the betas, in [-1, 1].
        shift: mean shift.
        distance, largest: mean and maximum absolute shift.
        one, other: statistics of the betas of either table.
        categories: comparison by category, the largest first.
        movers: the pairs with the largest absolute shift; `NamedMover` if a store is given.
    """

    pairs: PairCounts
    kept: KeptCounts
    differs: Mapping[str, tuple[Any, Any]]
    draws: int
    same_annotations: bool
    pearson: Estimate
    spearman: Estimate
    shift: Estimate
    distance: float
    largest: float
    one: BetaDistribution
    other: BetaDistribution
    categories: tuple[CategoryComparison, ...]
    movers: tuple[Mover, ...]


def compare_betas(
    one: BetaTable,
    other: BetaTable,
    *,
    store_file: Path | str | None = None,
    movers: int = 10,
    draws: int = DRAWS,
) -> BetaComparison:
    """Compare two tables of betas over the pairs that have a beta in both.

    Args:
        one: first table (A).
        other: second table (B).
        store_file: store that contains the source_id of each pair; None to leave these out.
        movers: number of pairs with the largest shift to list.
        draws: number of bootstrap samples.

    Raises:
        ValueError: no pair has a beta in both tables.
    """
    joined = one.table.join(other.table, on="pair_id", how="full", suffix="_other", coalesce=True)
    # A table always states `has_beta`: a null marks a pair that this table does not contain.
    both = joined.filter(pl.col("has_beta").is_not_null() & pl.col("has_beta_other").is_not_null())
    # Sorted, because bootstrap samples are drawn by row and a full join has no fixed order.
    compared = both.filter(pl.col("has_beta") & pl.col("has_beta_other")).sort("pair_id")
    if compared.is_empty():
        raise ValueError("no pair has a beta in both tables: they are from different pairs")
    a, b = compared["beta"].to_numpy(), compared["beta_other"].to_numpy()
    moved = _movers(compared, movers)
    if store_file:
        with Store(store_file) as store:
            names = store.corpus.source_ids([mover.pair_id for mover in moved])
        moved = [NamedMover(**asdict(row), source_id=names.get(row.pair_id)) for row in moved]
    _, beta_only_one, beta_only_other = _overlap(both, "has_beta")
    kept_by_both, kept_only_one, kept_only_other = _overlap(both, "keep")
    return BetaComparison(
        pairs=PairCounts(
            both=len(both),
            compared=len(compared),
            only_one=joined["has_beta_other"].null_count(),
            only_other=joined["has_beta"].null_count(),
            beta_only_one=beta_only_one,
            beta_only_other=beta_only_other,
        ),
        kept=KeptCounts(both=kept_by_both, only_one=kept_only_one, only_other=kept_only_other),
        differs=_differs(one, other),
        draws=draws,
        same_annotations=one.annotations_hash == other.annotations_hash,
        pearson=bootstrap_estimates(
            lambda w: correlation(a, b, w), len(a), draws=draws, scale=FISHER
        ),
        spearman=rank_correlation(a, b, draws=draws),
        shift=bootstrap_estimates(lambda w: float(w @ (b - a) / w.sum()), len(a), draws=draws),
        distance=float(np.abs(b - a).mean()),
        largest=float(np.abs(b - a).max()),
        one=_distribution(compared, "beta"),
        other=_distribution(compared, "beta_other"),
        categories=tuple(_categories(compared)),
        movers=tuple(moved),
    )


def _overlap(both: pl.DataFrame, column: str) -> tuple[int, int, int]:
    """Return how often a column is true in both tables, in the first and in the second alone."""
    one, other = pl.col(column), pl.col(f"{column}_other")
    counts = both.select((one & other).sum(), only=(one & ~other).sum(), rest=(~one & other).sum())
    return counts.row(0)


def _differs(one: BetaTable, other: BetaTable) -> dict[str, tuple[Any, Any]]:
    first, second = (betas.schedule.as_mapping() | _arm(betas) for betas in (one, other))
    return {
        key: (first.get(key), second.get(key))
        for key in first | second
        if first.get(key) != second.get(key)
    }


def _arm(betas: BetaTable) -> dict[str, Any]:
    """Return the settings of the arm, and the hash of its scores if the table uses them."""
    departures = {f"arm: {key}": value for key, value in betas.arm.departures().items()}
    return departures | ({"scores": betas.scores_hash} if betas.arm.uses_scores else {})


def _distribution(compared: pl.DataFrame, column: str) -> BetaDistribution:
    beta = pl.col(column)
    statistics = compared.select(
        mean=beta.mean(), std=beta.std(ddof=0), min=beta.min(), max=beta.max()
    )
    return BetaDistribution(**statistics.row(0, named=True))


def _categories(compared: pl.DataFrame) -> list[CategoryComparison]:
    rows = []
    for (category,), pairs in compared.group_by("category"):
        one, other = pl.col("beta"), pl.col("beta_other")
        means = pairs.select(one=one.mean(), other=other.mean(), shift=(other - one).mean())
        # Rounded, so that betas that differ only by floating-point error are ties.
        rho = spearman(pairs["beta"].round(9), pairs["beta_other"].round(9))
        rows.append(
            CategoryComparison(
                category=str(category), pairs=len(pairs), **means.row(0, named=True), spearman=rho
            )
        )
    return sorted(rows, key=lambda row: (-row.pairs, row.category))


def _movers(compared: pl.DataFrame, count: int) -> list[Mover]:
    """Return the pairs that moved most; pairs that did not move are left out."""
    moved = (
        compared.with_columns(shift=pl.col("beta_other") - pl.col("beta"))
        # Rounded, so that equal shifts are ordered by pair_id and residue is not a shift.
        .with_columns(distance=pl.col("shift").abs().round(9))
        .filter(pl.col("distance") > 0)
        .sort(["distance", "pair_id"], descending=[True, False])
        .head(count)
        .select("pair_id", "category", "shift", one="beta", other="beta_other")
    )
    return [Mover(**row) for row in moved.to_dicts()]
