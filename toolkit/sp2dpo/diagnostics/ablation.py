"""Compute betas of the same annotations under every estimator, gap form and map: an ablation.

Each row applies another schedule to the stored replies; no request is sent.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl

from sp2dpo.betas.choices import format_choice
from sp2dpo.betas.estimators import COMPARED_GAPS, GAP_FORMS, JMAMP, WAYS, Signed
from sp2dpo.betas.gaps import count_votes
from sp2dpo.betas.maps import MAPS, Linear, LogLinear, Power, Quantile
from sp2dpo.betas.schedule import Schedule, load_schedule, schedule_betas
from sp2dpo.diagnostics.agreement import full_panel_estimator
from sp2dpo.diagnostics.bootstrap import DRAWS, Estimate, rank_correlation
from sp2dpo.diagnostics.checks import END, envelope_shares, share_of
from sp2dpo.diagnostics.gold import (
    LabelDetection,
    Truth,
    label_detection,
    load_gold,
    magnitude_rank,
    with_gold,
)
from sp2dpo.store.annotations import AnnotationTable
from sp2dpo.store.store import Store


@dataclass(frozen=True, kw_only=True)
class Variation:
    """A schedule that differs from the base schedule in one setting.

    Attributes:
        group: the setting that is varied.
        name: value of this setting.
        schedule: the complete schedule.
    """

    group: str
    name: str
    schedule: Schedule


@dataclass(frozen=True, kw_only=True)
class VariationGold:
    """How well the betas of a variation follow known labels.

    Attributes:
        magnitude: Spearman's rho between beta and the known magnitude, over pairs whose label is
            right.
        labels: how well the rule `weak` detects wrong labels.
    """

    magnitude: Estimate
    labels: LabelDetection


@dataclass(frozen=True, kw_only=True)
class VariationResult:
    """The betas of a variation, compared with those of the base schedule.

    Attributes:
        group: the setting that is varied.
        name: value of this setting.
        pairs: number of pairs with a beta.
        mean: mean of the betas.
        std: population standard deviation of the betas.
        floor: share of the betas in the lowest 5 % of the envelope.
        ceiling: share of the betas in the highest 5 % of the envelope.
        rho: Spearman's rho with the betas of the base schedule, over the pairs with a beta in both.
        moved: mean absolute difference from the betas of the base schedule; None without pairs.
        gold: comparison with known labels; None without them.
    """

    group: str
    name: str
    pairs: int
    mean: float | None
    std: float | None
    floor: float | None
    ceiling: float | None
    rho: Estimate
    moved: float | None
    gold: VariationGold | None


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """The betas of a store under every estimator, gap form and map.

    Attributes:
        schedule: the base schedule.
        draws: number of bootstrap samples.
        rows: the variations; the first one is the base schedule itself.
    """

    schedule: Schedule
    draws: int
    rows: tuple[VariationResult, ...]


def compare_store_estimators(
    store_file: Path | str,
    schedule_file: Path | str,
    *,
    gold_file: Path | str | None = None,
    draws: int = DRAWS,
) -> Ablation:
    """Compute the betas of a store under every estimator, gap form and map.

    Args:
        store_file: annotation store.
        schedule_file: YAML file of the base schedule.
        gold_file: JSON Lines file of pairs with known labels; see `diagnostics.gold`.
        draws: number of bootstrap samples.

    Raises:
        ValueError: a file is invalid, or no reply counts under a schedule.
        OSError: a file cannot be read.
    """
    schedule = load_schedule(schedule_file)
    with Store(store_file) as store, store.snapshot():
        annotations = store.annotations()
        truths = load_gold(gold_file, store)[0] if gold_file else None
    rows = compare_estimators(annotations, schedule, truths=truths, draws=draws)
    return Ablation(schedule=schedule, draws=draws, rows=tuple(rows))


def variations(annotations: AnnotationTable, schedule: Schedule) -> Iterator[Variation]:
    """Yield the base schedule and all its variations that these annotations allow.

    A single teacher or variant has fewer replies than the full panel, so its quorum is 1. If the
    schedule names a single teacher or variant, each of the others is tried in its place.
    """
    yield Variation(group="the schedule", name=describe_combination(schedule), schedule=schedule)
    panel_estimator = full_panel_estimator(schedule.estimator)
    # Otherwise a schedule that names one reader would hide the others, so that none were tried.
    panel = replace(
        schedule,
        over_variants=panel_estimator.over_variants,
        over_teachers=panel_estimator.over_teachers,
    )
    votes = count_votes(annotations, panel_estimator)
    names = {axis: votes[axis].unique().sort() for axis in ("teacher", "variant")}
    for over_variants in _combinations(len(names["variant"])):
        for over_teachers in _combinations(len(names["teacher"])):
            other = replace(panel, over_variants=over_variants, over_teachers=over_teachers)
            if other != schedule:
                yield Variation(group="combined", name=describe_combination(other), schedule=other)
    for axis, across in (("teacher", "variant"), ("variant", "teacher")):
        for name in names[axis]:
            way = getattr(panel, f"over_{across}s")
            # Replies of one teacher may be under too few variants for `trimmed`, or the reverse.
            count = votes.filter(pl.col(axis) == name)[across].n_unique()
            usable = way if count >= WAYS[way].fewest else getattr(JMAMP, f"over_{across}s")
            title = name if usable == way else f"{name}, {usable} over {across}s"
            settings = {f"over_{axis}s": name, f"over_{across}s": usable, "quorum": 1}
            other = replace(panel, **settings)
            yield Variation(group=f"one {axis}", name=title, schedule=other)
    for gap in COMPARED_GAPS:
        # Under the blind protocol, `signed` gives the same gaps as `product`.
        if gap != schedule.gap and not (annotations.rubric.blind and isinstance(gap, Signed)):
            name = format_choice(gap, GAP_FORMS)
            yield Variation(group="gap", name=name, schedule=replace(schedule, gap=gap))
    # Without any log-probabilities, `estimate: expected` is an error.
    expected = ("expected_magnitude", "expected_confidence")
    # Of the replies that the schedule uses: a teacher that it does not name may have them alone.
    used = schedule.estimator.select_replies(annotations)
    if len(used.drop_nulls(expected)):
        estimate = "sampled" if schedule.estimate == "expected" else "expected"
        other = replace(schedule, estimate=estimate)
        yield Variation(group="estimate", name=estimate, schedule=other)
    for map_ in (Linear(), LogLinear(), Power(0.5), Power(2.0), Quantile()):
        if map_ != schedule.map:
            name = format_choice(map_, MAPS)
            yield Variation(group="map", name=name, schedule=replace(schedule, map=map_))


def describe_combination(schedule: Schedule) -> str:
    """Return a short description of how a schedule combines replies."""
    return f"{schedule.over_variants} over variants, {schedule.over_teachers} over teachers"


def _combinations(count: int) -> tuple[str, ...]:
    # With fewer readers than it needs, `trimmed` is an error.
    return tuple(name for name, way in WAYS.items() if count >= way.fewest)


def compare_estimators(
    annotations: AnnotationTable,
    schedule: Schedule,
    *,
    truths: Mapping[str, Truth] | None,
    draws: int,
) -> list[VariationResult]:
    """Return statistics of the betas under each variation."""
    rows, base = [], None
    for variation in variations(annotations, schedule):
        table = schedule_betas(annotations, variation.schedule)
        # The first variation is the schedule itself.
        base = table if base is None else base
        gold = None
        if truths is not None:
            pairs = with_gold(table, truths)
            gold = VariationGold(
                magnitude=magnitude_rank(pairs, "beta", draws=draws),
                labels=label_detection(pairs, "weak"),
            )
        rows.append(_compare(variation, table, base, gold, draws=draws))
    return rows


def _compare(
    variation: Variation,
    table: pl.DataFrame,
    base: pl.DataFrame,
    gold: VariationGold | None,
    *,
    draws: int,
) -> VariationResult:
    """Compare two tables of betas with the same pairs in the same order."""
    shares = envelope_shares(table, variation.schedule).drop_nulls()
    statistics = table.drop_nulls("beta").select(
        mean=pl.col("beta").mean(), std=pl.col("beta").std(ddof=0)
    )
    # Variations differ in their quorum and replies, so a pair may have a beta in one table only.
    both = (table["has_beta"] & base["has_beta"]).to_numpy()
    own, other = (side["beta"].to_numpy()[both] for side in (table, base))
    rho = rank_correlation(own, other, draws=draws)
    same_gaps = (table["gap"] == base["gap"]).to_numpy()[both].all()
    if same_gaps and rho.value is not None and rho.value >= 1 - 1e-12:
        # By construction, such as with another map, and so in any other pairs as well.
        rho = Estimate(value=rho.value, low=rho.value, high=rho.value)
    return VariationResult(
        group=variation.group,
        name=variation.name,
        pairs=len(shares),
        **statistics.row(0, named=True),
        floor=share_of(shares <= END),
        ceiling=share_of(shares >= 1 - END),
        rho=rho,
        moved=float(np.abs(own - other).mean()) if len(own) else None,
        gold=gold,
    )
