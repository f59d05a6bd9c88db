"""How well wrong labels are found, where it is known which ones are wrong."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from sp2dpo.agreement import wilson
from sp2dpo.gold import NEAR, Truth
from sp2dpo.intervals import Ranked, rank_correlation, resampled

RULES = {
    "weak": f"a gap below {NEAR}",
    "disputed": f"a signed gap of -{NEAR} or less",
}
"""Which pairs count as found. A weak pair may as well be a tie; a disputed one is told apart."""


def known(table: pl.DataFrame, truths: Mapping[str, Truth]) -> pl.DataFrame:
    """The pairs with a gap whose truth is known, by pair_id, with label and known_magnitude.

    Args:
        table: of betas.
        truths: by pair_id.
    """
    said = pl.DataFrame(
        [(pair_id, truth.label, truth.magnitude) for pair_id, truth in truths.items()],
        schema={"pair_id": pl.String, "label": pl.String, "known_magnitude": pl.Float64},
        orient="row",
    )
    return table.drop_nulls("gap").join(said, on="pair_id").sort("pair_id")


def detection(pairs: pl.DataFrame, rule: str, *, draws: int) -> dict[str, Any]:
    """How well a rule finds wrong labels.

    Args:
        pairs: as `known` makes them.
        rule: one of `RULES`.
        draws: bootstrap samples.

    Returns:
        wrong, found: pairs with a wrong label, pairs that the rule finds.
        recall, precision: count, share, low, high: see `agreement.wilson`.
        auc: the chance that a wrong label has a lower signed gap than a right one (ties in the
            truth left out), half of it where they are equal; value, low, high.
    """
    signed = pl.col("signed_gap").round(9)
    finds = signed < NEAR if rule == "weak" else signed <= -NEAR
    marked = pairs.select(wrong=pl.col("label") == "rejected", found=finds)
    both = int((marked["wrong"] & marked["found"]).sum())
    return {
        "wrong": int(marked["wrong"].sum()),
        "found": int(marked["found"].sum()),
        "recall": wilson(both, int(marked["wrong"].sum())),
        "precision": wilson(both, int(marked["found"].sum())),
        "auc": _auc(pairs.filter(pl.col("label") != "tie"), draws=draws),
    }


def magnitude_rank(pairs: pl.DataFrame, column: str, *, draws: int) -> dict[str, float | None]:
    """Spearman's rho of a column with the known magnitude, over labels that are not wrong.

    Args:
        pairs: as `known` makes them.
        column: gap or beta.
        draws: bootstrap samples.
    """
    told = pairs.filter(pl.col("label") != "rejected").drop_nulls(["known_magnitude", column])
    return rank_correlation(told["known_magnitude"], told[column], draws=draws)


def _auc(pairs: pl.DataFrame, *, draws: int) -> dict[str, float | None]:
    wrong = (pairs["label"] == "rejected").to_numpy()
    ranked = Ranked(-pairs["signed_gap"].to_numpy())

    def auc(weights: NDArray[np.float64]) -> float | None:
        ones = float(weights[wrong].sum())
        others = float(weights.sum()) - ones
        if not ones or not others:
            return None
        above = float((weights * ranked.ranks(weights))[wrong].sum()) - ones * (ones + 1) / 2
        return above / (ones * others)

    return resampled(auc, len(pairs), draws=draws)
