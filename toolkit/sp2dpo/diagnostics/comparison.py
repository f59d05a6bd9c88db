"""Compare two tables of betas: rank correlation, shift, and the pairs that moved most."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from sp2dpo.betas.columns import OPTIONAL
from sp2dpo.betas.file import BetaTable
from sp2dpo.diagnostics.agreement import spearman
from sp2dpo.diagnostics.bootstrap import (
    DRAWS,
    bootstrap_estimates,
    correlation,
    rank_correlation,
)
from sp2dpo.store.store import Store


@dataclass(frozen=True, kw_only=True)
class BetaComparison:
    """The comparison of two tables of betas. Undefined values are None.

    Estimates are mappings of value, low and high: a 95 % bootstrap interval over pairs. A shift is
    the second table minus the first.

    Attributes:
        pairs: number of pairs in both tables (both), with a beta in both (compared), in only one
            table (only_one, only_other), and with a beta in only one table (beta_only_one,
            beta_only_other).
        kept: number of pairs kept for training by both tables (both) and by only one (only_one,
            only_other).
        differs: values in the schedules and arms of the two tables, by key, where they differ.
        draws: number of bootstrap samples.
        same_annotations: whether both tables were computed from the same annotations.
        pearson: estimate of Pearson's correlation of the betas.
        spearman: estimate of Spearman's rho of the betas.
        shift: estimate of the mean shift.
        distance: mean absolute shift.
        largest: maximum absolute shift.
        one: mean, std, min and max of the compared betas of the first table.
        other: the same of the second table.
        categories: by category of the first table, largest first: category, pairs, one, other
            (means), shift, spearman.
        movers: the pairs with the largest absolute shift: pair_id, category, one, other, shift, and
            source_id if a store is given.
    """

    pairs: dict[str, int]
    kept: dict[str, int]
    differs: dict[str, list[Any]]
    draws: int
    same_annotations: bool
    pearson: dict[str, float | None]
    spearman: dict[str, float | None]
    shift: dict[str, float | None]
    distance: float
    largest: float
    one: dict[str, Any]
    other: dict[str, Any]
    categories: list[dict[str, Any]]
    movers: list[dict[str, Any]]

    def as_mapping(self) -> dict[str, Any]:
        """Return the output of `sp2dpo compare --json`."""
        return asdict(self)


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
    store_file = None if store_file is None else Path(store_file)
    joined = one.table.join(other.table, on="pair_id", how="full", suffix="_other", coalesce=True)
    both = joined.filter(pl.col("has_beta").is_not_null() & pl.col("has_beta_other").is_not_null())
    compared = both.filter(pl.col("has_beta") & pl.col("has_beta_other")).sort("pair_id")
    if compared.is_empty():
        raise ValueError("no pair has a beta in both tables: they are from different pairs")
    a, b = compared["beta"].to_numpy(), compared["beta_other"].to_numpy()
    moved = _movers(compared, movers)
    if store_file:
        with Store(store_file) as store:
            moved = store.corpus.with_source_ids(moved)
    return BetaComparison(
        pairs={
            "both": len(both),
            "compared": len(compared),
            "only_one": int(joined["has_beta_other"].null_count()),
            "only_other": int(joined["has_beta"].null_count()),
            "beta_only_one": len(both.filter(pl.col("has_beta") & ~pl.col("has_beta_other"))),
            "beta_only_other": len(both.filter(~pl.col("has_beta") & pl.col("has_beta_other"))),
        },
        kept={
            "both": len(both.filter(pl.col("keep") & pl.col("keep_other"))),
            "only_one": len(both.filter(pl.col("keep") & ~pl.col("keep_other"))),
            "only_other": len(both.filter(~pl.col("keep") & pl.col("keep_other"))),
        },
        differs=_differs(one, other),
        draws=draws,
        same_annotations=one.annotations_hash == other.annotations_hash,
        pearson=bootstrap_estimates(lambda w: correlation(a, b, w), len(a), draws=draws),
        spearman=rank_correlation(a, b, draws=draws),
        shift=bootstrap_estimates(lambda w: float(w @ (b - a) / w.sum()), len(a), draws=draws),
        distance=float(np.abs(b - a).mean()),
        largest=float(np.abs(b - a).max()),
        one=_about(compared["beta"]),
        other=_about(compared["beta_other"]),
        categories=_categories(compared),
        movers=moved,
    )


def _differs(one: BetaTable, other: BetaTable) -> dict[str, list[Any]]:
    configs = [betas.schedule.as_mapping() | _arm(betas) for betas in (one, other)]
    keys = [*configs[0], *(key for key in configs[1] if key not in configs[0])]
    return {
        key: [configs[0].get(key), configs[1].get(key)]
        for key in keys
        if configs[0].get(key) != configs[1].get(key)
    }


def _arm(betas: BetaTable) -> dict[str, Any]:
    """Return the settings of the arm, and the hash of its scores if the table uses them."""
    departures = {f"arm: {key}": value for key, value in betas.arm.departures().items()}
    columns = [name for name in OPTIONAL if name in betas.table.columns]
    return departures | ({"scores": betas.scores_hash} if "reward_margin" in columns else {})


def _about(beta: pl.Series) -> dict[str, Any]:
    return {
        "mean": beta.mean(), "std": beta.std(ddof=0), "min": beta.min(), "max": beta.max(),
    }  # fmt: skip


def _categories(compared: pl.DataFrame) -> list[dict[str, Any]]:
    """Return a row per category, largest first."""
    rows = []
    for (category,), pairs in compared.group_by("category"):
        a, b = pairs["beta"], pairs["beta_other"]
        rho = spearman(a.round(9), b.round(9))
        rows.append(
            {
                "category": category,
                "pairs": len(pairs),
                "one": a.mean(),
                "other": b.mean(),
                "shift": (b - a).mean(),
                "spearman": rho,
            }
        )
    return sorted(rows, key=lambda row: (-row["pairs"], row["category"]))


def _movers(compared: pl.DataFrame, count: int) -> list[dict[str, Any]]:
    """Return the pairs that moved most; pairs that did not move are left out."""
    moved = compared.with_columns(shift=pl.col("beta_other") - pl.col("beta"))
    moved = moved.with_columns(distance=pl.col("shift").abs().round(9))
    first = moved.filter(pl.col("distance") > 0).sort(
        ["distance", "pair_id"], descending=[True, False]
    )
    return (
        first.head(count)
        .select("pair_id", "category", one="beta", other="beta_other", shift="shift")
        .to_dicts()
    )
