"""How far a panel agrees: Krippendorff's alpha with intervals, the odd one out, what splits it."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from sp2dpo.betas.estimators import Estimator
from sp2dpo.betas.gaps import majority
from sp2dpo.diagnostics.agreement import by_reading, by_teacher, by_variant, comparisons, steady
from sp2dpo.diagnostics.alpha import Ratings
from sp2dpo.diagnostics.bootstrap import bootstrap_estimates, estimate
from sp2dpo.settings import did_you_mean
from sp2dpo.store.annotations import AnnotationTable

MEASURES = {
    "category": "nominal",
    "magnitude": "ordinal",
    "confidence": "ordinal",
    "gap": "ordinal",
}
"""What readers are compared in, and the level of each."""
STANDS_OUT = 0.05
"""A teacher without whom the gaps' alpha is higher by so much is the odd one out. Our choice."""
SPLITS = 10
"""Pairs listed that split a panel."""
_DECIMALS = {"magnitude": 6, "confidence": 6, "gap": 2}
"""Gaps are compared to a hundredth: finer steps than any scale has only make alpha slow."""


def measure_agreement(
    annotations: AnnotationTable, estimator: Estimator, *, draws: int
) -> dict[str, Any]:
    """What `sp2dpo agreement` says, as JSON values; what is not defined is None.

    Alphas are between teachers (each one's variants combined as the estimator does), between
    variants (each one's teachers averaged), and between the variants of a teacher. Intervals hold
    95 %; pairs are drawn again.

    Args:
        annotations: of a store, or of some of its pairs: see `subset`.
        estimator: how a reply becomes a gap, and a teacher's replies one.
        draws: bootstrap samples.

    Returns:
        pairs, replies, draws.
        teachers, variants: names, alpha (by measure: value, low, high, pairs) and twos (see
            `agreement.comparisons`); under variants also by_teacher, the alphas of each.
        outliers: see `_outliers`.
        splits: see `_splits`.
    """
    categories = list(annotations.rubric.categories)
    replies = steady(annotations, estimator)
    teachers, variants = (sorted(replies[axis].unique()) for axis in ("teacher", "variant"))
    variants = [name for name in annotations.rubric.variants if name in variants]
    said = by_teacher(replies, categories, estimator)
    under = by_variant(replies, categories)
    readings = by_reading(replies, categories)
    ratings = {what: build_ratings(said, teachers, what, categories) for what in MEASURES}
    twos = comparisons(said, teachers)
    return {
        "pairs": replies["pair_id"].n_unique(),
        "replies": len(replies),
        "draws": draws,
        "teachers": {
            "names": teachers,
            "alpha": _alphas(ratings, draws),
            "twos": twos,
        },
        "variants": {
            "names": variants,
            "alpha": _alphas(
                {what: build_ratings(under, variants, what, categories) for what in MEASURES}, draws
            ),
            "twos": comparisons(under, variants),
            "by_teacher": {
                teacher: _alphas(
                    {
                        what: build_ratings(own, variants, what, categories)
                        for what in ("category", "gap")
                    },
                    draws,
                )
                for teacher in teachers
                for own in [readings.filter(pl.col("teacher") == teacher)]
            },
        },
        "outliers": _outliers(said, teachers, twos, ratings, draws),
        "splits": _splits(said, teachers),
    }


def select_pairs(
    annotations: AnnotationTable,
    *,
    pair_ids: Collection[str] | None = None,
    category: str | None = None,
    sample: int | None = None,
) -> AnnotationTable:
    """The annotations of some pairs.

    Args:
        annotations: of a store.
        pair_ids: only these pairs.
        category: only pairs in it, by most of their replies.
        sample: so many of what is left, those whose ids are lowest: ids are hashes, so that they
            are drawn at random, and the same ones every time.

    Raises:
        ValueError: there is no such category, or nothing is left.
    """
    replies = annotations.replies
    categories = list(annotations.rubric.categories)
    if category is not None and category not in categories:
        raise ValueError(
            f"the rubric {annotations.rubric.name} has no category {category!r}"
            f"{did_you_mean(category, categories)} (known: {', '.join(categories)})"
        )
    if pair_ids is not None:
        replies = replies.filter(pl.col("pair_id").is_in(list(pair_ids)))
    if category is not None and len(replies):
        of = majority(replies, categories).filter(pl.col("category") == category)
        replies = replies.filter(pl.col("pair_id").is_in(of["pair_id"].to_list()))
    left = replies["pair_id"].unique().sort()[:sample].to_list()
    if not left:
        raise ValueError("no kept reply is about these pairs")
    chosen = replies.filter(pl.col("pair_id").is_in(left))
    return replace(annotations, replies=chosen, pair_ids=left)


def build_ratings(
    said: pl.DataFrame, readers: Sequence[str], what: str, categories: Sequence[str]
) -> Ratings:
    """What readers said of pairs, for one measure, in the order of the pairs' ids.

    Args:
        said: pair_id, reader, and the measure.
        readers: whom to compare.
        what: one of `MEASURES`.
        categories: in order.
    """
    if what == "category":
        codes = said["category"].cast(pl.Enum(categories)).to_physical().to_numpy()
        values = len(categories)
    else:
        found, codes = np.unique(
            said[what].round(_DECIMALS[what]).to_numpy() + 0.0, return_inverse=True
        )
        values = len(found)
    row = said["pair_id"].rank("dense").to_numpy() - 1
    column = said["reader"].cast(pl.Enum(readers)).to_physical().to_numpy()
    table: NDArray[np.int64] = np.full((row.max() + 1, len(readers)), -1, dtype=np.int64)
    table[row, column] = codes
    return Ratings(table, values)


def _alphas(ratings: dict[str, Ratings], draws: int) -> dict[str, Any]:
    return {
        what: one.alpha(MEASURES[what], draws=draws) | {"pairs": one.pairable()}
        for what, one in ratings.items()
    }


def _outliers(
    said: pl.DataFrame,
    teachers: Sequence[str],
    twos: Sequence[Mapping[str, Any]],
    ratings: dict[str, Ratings],
    draws: int,
) -> list[dict[str, Any]]:
    """What each teacher does to the agreement, the one that lowers it most first.

    Returns:
        teacher.
        without: by measure (category, gap), how much higher alpha is without it: value, low, high,
            from the same draws of pairs; None of two teachers.
        bias: mean of its gap less the mean of the others' for the pair, with its interval.
        spearman: mean rho of its gaps with each other teacher's; None of one.
        stands_out: whether the gaps' alpha is higher without it by `STANDS_OUT`, and beyond chance.
    """
    shown = ("category", "gap")
    everyone = {what: ratings[what].resample(MEASURES[what], draws=draws) for what in shown}
    found = []
    for place, teacher in enumerate(teachers):
        others = [column for column in range(len(teachers)) if column != place]
        without = {
            what: _gain(everyone[what], ratings[what], MEASURES[what], others, draws)
            for what in shown
        }
        known = [
            one["spearman"]
            for one in twos
            if teacher in (one["one"], one["other"]) and one["spearman"] is not None
        ]
        gain, low = without["gap"]["value"], without["gap"]["low"]
        found.append(
            {
                "teacher": teacher,
                "without": without,
                "bias": _bias(said, teacher, draws),
                "spearman": sum(known) / len(known) if known else None,
                "stands_out": gain is not None
                and low is not None
                and gain >= STANDS_OUT
                and low > 0,
            }
        )
    # Of two teachers none has a gain, and they stay in their order.
    return sorted(found, key=lambda one: -(one["without"]["gap"]["value"] or 0.0))


def _gain(
    of_all: tuple[float | None, list[float | None]],
    ratings: Ratings,
    level: str,
    others: Sequence[int],
    draws: int,
) -> dict[str, float | None]:
    """Alpha of the others less alpha of all."""
    if len(others) < 2:
        return estimate(None, [])
    everyone, all_drawn = of_all
    rest, rest_drawn = ratings.resample(level, others, draws=draws)
    return estimate(
        None if rest is None or everyone is None else rest - everyone,
        (
            None if one is None or other is None else one - other
            for one, other in zip(rest_drawn, all_drawn, strict=True)
        ),
    )


def _bias(said: pl.DataFrame, teacher: str, draws: int) -> dict[str, float | None]:
    own = said.filter(pl.col("reader") == teacher).select("pair_id", own="gap")
    rest = (
        said.filter(pl.col("reader") != teacher).group_by("pair_id").agg(rest=pl.col("gap").mean())
    )
    both = own.join(rest, on="pair_id").sort("pair_id")
    difference = (both["own"] - both["rest"]).round(9).to_numpy()
    values, counts = np.unique(difference, return_counts=True)
    return bootstrap_estimates(
        lambda w: float(w @ values / w.sum()), len(values), draws=draws, counts=counts
    )


def _splits(said: pl.DataFrame, teachers: Sequence[str]) -> dict[str, Any]:
    """The pairs that the teachers read most differently.

    Returns:
        of: pairs that two teachers or more have read.
        apart: share of them whose lowest and highest gap are 0.5 apart or more.
        no_majority: share of them for which no category is that of more than half the teachers.
        pairs: the `SPLITS` with the largest spread: pair_id, spread (population standard deviation
            of the teachers' gaps), gaps and categories by teacher.
    """
    gap = pl.col("gap")
    by_pair = (
        said.group_by("pair_id")
        .agg(
            spread=gap.std(ddof=0).round(9),
            apart=(gap.max() - gap.min()).round(9) >= 0.5,
            most=pl.col("category").unique_counts().max(),
            readers=pl.len(),
        )
        .filter(pl.col("readers") > 1)
        .sort(["spread", "pair_id"], descending=[True, False])
    )
    shown = by_pair.head(SPLITS)
    details = said.filter(pl.col("pair_id").is_in(shown["pair_id"].to_list()))
    of = {
        (pair_id, reader): (value, category)
        for pair_id, reader, value, category in details.select(
            "pair_id", "reader", "gap", "category"
        ).iter_rows()
    }
    return {
        "of": len(by_pair),
        "apart": by_pair["apart"].mean(),
        "no_majority": (by_pair["most"] * 2 <= by_pair["readers"]).mean(),
        "pairs": [
            {
                "pair_id": pair_id,
                "spread": spread,
                "said": {
                    teacher: {"gap": of[pair_id, teacher][0], "category": of[pair_id, teacher][1]}
                    for teacher in teachers
                    if (pair_id, teacher) in of
                },
            }
            for pair_id, spread in shown.select("pair_id", "spread").iter_rows()
        ],
    }
