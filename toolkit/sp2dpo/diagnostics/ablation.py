"""The ensembling ablation: the same annotations under every estimator, gap form and map.

It needs no teacher: each row is another schedule over the replies that are there.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl

from sp2dpo.betas.choices import format_choice
from sp2dpo.betas.estimators import FEWEST_TO_TRIM, GAP_FORMS, Magnitude, Product, Shrink, Signed
from sp2dpo.betas.gaps import count_votes
from sp2dpo.betas.maps import MAPS, Linear, LogLinear, Power, Quantile
from sp2dpo.betas.schedule import Schedule, schedule_betas
from sp2dpo.diagnostics.agreement import of_all
from sp2dpo.diagnostics.bootstrap import rank_correlation
from sp2dpo.diagnostics.checks import END, envelope_shares
from sp2dpo.diagnostics.gold import Truth, label_detection, magnitude_rank, with_gold
from sp2dpo.store.annotations import AnnotationTable


@dataclass(frozen=True, kw_only=True)
class Variation:
    """A schedule that differs from the one that is asked about in one thing.

    Attributes:
        group: what is varied.
        name: the value that it takes.
        schedule: the whole of it.
    """

    group: str
    name: str
    schedule: Schedule


def variations(annotations: AnnotationTable, schedule: Schedule) -> Iterator[Variation]:
    """The schedule itself, and what can be varied over these annotations.

    A single teacher and a single variant have fewer replies than the whole panel: there the quorum
    is 1. Where the schedule names an only one, the others are tried in its place.

    Args:
        annotations: of one store.
        schedule: that is asked about.
    """
    yield Variation(group="the schedule", name=ways(schedule), schedule=schedule)
    whole = of_all(schedule.estimator)
    panel = replace(schedule, over_variants=whole.over_variants, over_teachers=whole.over_teachers)
    votes = count_votes(annotations, whole)
    heard = {axis: votes[axis].unique().sort() for axis in ("teacher", "variant")}
    for over_variants in _combinations(len(heard["variant"])):
        for over_teachers in _combinations(len(heard["teacher"])):
            other = replace(panel, over_variants=over_variants, over_teachers=over_teachers)
            if other != schedule:
                yield Variation(group="combined", name=ways(other), schedule=other)
    for axis in ("teacher", "variant"):
        for name in heard[axis]:
            other = replace(panel, **{f"over_{axis}s": name, "quorum": 1})
            yield Variation(group=f"one {axis}", name=name, schedule=other)
    for gap in (Product(), Magnitude(), Shrink(0.5), Signed()):
        if gap != schedule.gap and not (annotations.rubric.blind and isinstance(gap, Signed)):
            name = format_choice(gap, GAP_FORMS)
            yield Variation(group="gap", name=name, schedule=replace(schedule, gap=gap))
    told = ("expected_magnitude", "expected_confidence")
    if len(annotations.replies.drop_nulls(told)):
        estimate = "sampled" if schedule.estimate == "expected" else "expected"
        other = replace(schedule, estimate=estimate)
        yield Variation(group="estimate", name=estimate, schedule=other)
    for map_ in (Linear(), LogLinear(), Power(0.5), Power(2.0), Quantile()):
        if map_ != schedule.map:
            name = format_choice(map_, MAPS)
            yield Variation(group="map", name=name, schedule=replace(schedule, map=map_))


def ways(schedule: Schedule) -> str:
    """How a schedule combines replies, in a few words."""
    return f"{schedule.over_variants} over variants, {schedule.over_teachers} over teachers"


def _combinations(heard: int) -> tuple[str, ...]:
    return ("median", "mean", "trimmed") if heard >= FEWEST_TO_TRIM else ("median", "mean")


def compare_estimators(
    annotations: AnnotationTable,
    schedule: Schedule,
    *,
    truths: Mapping[str, Truth] | None,
    draws: int,
) -> list[dict[str, Any]]:
    """A row for each variation; intervals hold 95 %, pairs are drawn again.

    Args:
        annotations: of one store.
        schedule: that the others are compared with.
        truths: what is known of some pairs, by pair_id; None where nothing is.
        draws: bootstrap samples.

    Returns:
        group, name: of the variation.
        pairs: with a beta.
        mean, std: of the betas.
        floor, ceiling: share of the betas in the lowest, the highest 5 % of the envelope.
        rho: Spearman's of its betas with the schedule's, over the pairs that both give one: value,
            low, high.
        moved: mean absolute difference of the two betas.
        gold: None without truths; else magnitude (rho of beta and known magnitude over right
            labels) and labels (see `detection.detection`, by the rule `weak`).
    """
    rows, base = [], None
    for variation in variations(annotations, schedule):
        table = schedule_betas(annotations, variation.schedule)
        base = table if base is None else base
        rows.append(
            {
                "group": variation.group,
                "name": variation.name,
                **_spread(table, variation.schedule),
                **_beside(table, base, draws=draws),
                "gold": None if truths is None else _gold(with_gold(table, truths), draws=draws),
            }
        )
    return rows


def _spread(table: pl.DataFrame, schedule: Schedule) -> dict[str, Any]:
    beta, shares = table["beta"].drop_nulls(), envelope_shares(table, schedule).drop_nulls()
    return {
        "pairs": len(beta),
        "mean": beta.mean(),
        "std": beta.std(ddof=0),
        "floor": (shares <= END).mean(),
        "ceiling": (shares >= 1 - END).mean(),
    }


def _beside(table: pl.DataFrame, base: pl.DataFrame, *, draws: int) -> dict[str, Any]:
    """Both tables name the same pairs in the same order."""
    there = (table["has_beta"] & base["has_beta"]).to_numpy()
    own, other = (one["beta"].to_numpy()[there] for one in (table, base))
    return {
        "rho": rank_correlation(own, other, draws=draws),
        "moved": float(np.abs(own - other).mean()) if len(own) else None,
    }


def _gold(pairs: pl.DataFrame, *, draws: int) -> dict[str, Any]:
    return {
        "magnitude": magnitude_rank(pairs, "beta", draws=draws),
        "labels": label_detection(pairs, "weak", draws=draws),
    }
