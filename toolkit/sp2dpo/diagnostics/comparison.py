"""Two tables of betas side by side: how alike they rank the pairs, what shifted, what moved."""

from typing import Any

import numpy as np
import polars as pl

from sp2dpo.betas.arms import OPTIONAL
from sp2dpo.betas.file import BetaTable
from sp2dpo.diagnostics.agreement import spearman
from sp2dpo.diagnostics.bootstrap import bootstrap_estimates, correlation, rank_correlation


def compare_betas(one: BetaTable, other: BetaTable, *, movers: int, draws: int) -> dict[str, Any]:
    """What `sp2dpo compare` says, as JSON values; what is not defined is None.

    Intervals hold 95 %; pairs are drawn again. Shifts are the other's beta less the one's.

    Args:
        one: the betas to start from.
        other: those to compare with them.
        movers: how many pairs to list.
        draws: bootstrap samples.

    Returns:
        pairs: both (in both tables), compared (with a beta in both), and those only in one, only in
            the other, with a beta only in one, only in the other.
        kept: pairs of both tables that both keep, only one, only the other.
        differs: key -> what one says and what the other does, of their schedules and arms.
        draws: bootstrap samples.
        same_annotations: whether both were made from the same replies.
        pearson, spearman, shift: value, low, high.
        distance: mean absolute difference; largest: the largest.
        one, other: mean, std, min and max of the compared betas.
        categories: by the one's category: pairs, one, other (means), shift, spearman.
        movers: pair_id, category, one, other, shift of the pairs that moved most.

    Raises:
        ValueError: no pair has a beta in both.
    """
    joined = one.table.join(other.table, on="pair_id", how="full", suffix="_other", coalesce=True)
    both = joined.filter(pl.col("has_beta").is_not_null() & pl.col("has_beta_other").is_not_null())
    compared = both.filter(pl.col("has_beta") & pl.col("has_beta_other")).sort("pair_id")
    if compared.is_empty():
        raise ValueError("no pair has a beta in both tables: they are of other pairs")
    a, b = compared["beta"].to_numpy(), compared["beta_other"].to_numpy()
    return {
        "pairs": {
            "both": len(both),
            "compared": len(compared),
            "only_one": int(joined["has_beta_other"].null_count()),
            "only_other": int(joined["has_beta"].null_count()),
            "beta_only_one": len(both.filter(pl.col("has_beta") & ~pl.col("has_beta_other"))),
            "beta_only_other": len(both.filter(~pl.col("has_beta") & pl.col("has_beta_other"))),
        },
        "kept": {
            "both": len(both.filter(pl.col("keep") & pl.col("keep_other"))),
            "only_one": len(both.filter(pl.col("keep") & ~pl.col("keep_other"))),
            "only_other": len(both.filter(~pl.col("keep") & pl.col("keep_other"))),
        },
        "differs": _differs(one, other),
        "draws": draws,
        "same_annotations": one.annotations_hash == other.annotations_hash,
        "pearson": bootstrap_estimates(lambda w: correlation(a, b, w), len(a), draws=draws),
        "spearman": rank_correlation(a, b, draws=draws),
        "shift": bootstrap_estimates(lambda w: float(w @ (b - a) / w.sum()), len(a), draws=draws),
        "distance": float(np.abs(b - a).mean()),
        "largest": float(np.abs(b - a).max()),
        "one": _about(compared["beta"]),
        "other": _about(compared["beta_other"]),
        "categories": _categories(compared),
        "movers": _movers(compared, movers),
    }


def _differs(one: BetaTable, other: BetaTable) -> dict[str, list[Any]]:
    said = [betas.schedule.as_mapping() | _arm(betas) for betas in (one, other)]
    keys = [*said[0], *(key for key in said[1] if key not in said[0])]
    return {
        key: [said[0].get(key), said[1].get(key)]
        for key in keys
        if said[0].get(key) != said[1].get(key)
    }


def _arm(betas: BetaTable) -> dict[str, Any]:
    """What its arm departs in; a column that only one of two tables has shows here."""
    said = {f"arm: {key}": value for key, value in betas.arm.departures().items()}
    columns = [name for name in OPTIONAL if name in betas.table.columns]
    return said | ({"scores": betas.scores_hash} if "reward_margin" in columns else {})


def _about(beta: pl.Series) -> dict[str, Any]:
    return {
        "mean": beta.mean(), "std": beta.std(ddof=0), "min": beta.min(), "max": beta.max(),
    }  # fmt: skip


def _categories(compared: pl.DataFrame) -> list[dict[str, Any]]:
    """A row for each category, the one with most pairs first."""
    rows = []
    for (category,), some in compared.group_by("category"):
        a, b = some["beta"], some["beta_other"]
        rho = spearman(a.round(9), b.round(9))
        rows.append(
            {
                "category": category,
                "pairs": len(some),
                "one": a.mean(),
                "other": b.mean(),
                "shift": (b - a).mean(),
                "spearman": rho,
            }
        )
    return sorted(rows, key=lambda row: (-row["pairs"], row["category"]))


def _movers(compared: pl.DataFrame, count: int) -> list[dict[str, Any]]:
    """Those that did not move at all are none."""
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
