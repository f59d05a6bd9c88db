"""Measure the agreement of a panel: Krippendorff's alpha, outliers and disputed pairs."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from sp2dpo.betas.estimators import JMAMP, Estimator
from sp2dpo.betas.gaps import find_majority
from sp2dpo.betas.schedule import load_schedule
from sp2dpo.diagnostics.agreement import (
    ReaderComparison,
    compare_readers,
    panel_reply_gaps,
    single_readings,
    teacher_readings,
    variant_readings,
)
from sp2dpo.diagnostics.alpha import Alpha, Ratings
from sp2dpo.diagnostics.bootstrap import DRAWS, Estimate, bootstrap_estimates, estimate
from sp2dpo.files import read_text
from sp2dpo.store.annotations import AnnotationTable
from sp2dpo.store.store import Store

MEASURES = {
    "category": "nominal",
    "magnitude": "ordinal",
    "confidence": "ordinal",
    "gap": "ordinal",
}
"""Measures that readers are compared on, and the level of measurement of each."""
_COMPARED = ("category", "gap")
"""Measures whose alpha is computed for each teacher."""
STANDS_OUT = 0.05
"""A teacher is an outlier if alpha of the gaps rises by this much without it. Our choice."""
SPLITS = 10
"""Number of disputed pairs to list."""
_DECIMALS = {"magnitude": 6, "confidence": 6, "gap": 2}
"""Number of decimals to which values are rounded before alpha is computed. Two are enough for gaps,
as steps finer than those of any scale would only make alpha slow to compute."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """The agreement of the teachers, or of the variants.

    Attributes:
        names: the readers.
        alpha: Krippendorff's alpha by measure; see `MEASURES`.
        twos: comparisons of every two readers.
    """

    names: tuple[str, ...]
    alpha: Mapping[str, Alpha]
    twos: tuple[ReaderComparison, ...]


@dataclass(frozen=True, kw_only=True)
class VariantAgreement(Agreement):
    """The agreement of the variants.

    Attributes:
        by_teacher: alpha between the variants of each teacher, by measure (category, gap).
    """

    by_teacher: Mapping[str, Mapping[str, Alpha]]


@dataclass(frozen=True, kw_only=True)
class TeacherEffect:
    """The effect of a teacher on the agreement of the panel.

    Attributes:
        teacher: name of the teacher.
        without: gain in alpha without this teacher, by measure (category, gap), over the same
            bootstrap samples; undefined for two teachers.
        bias: mean of its gap minus the mean gap of the other teachers.
        spearman: mean of Spearman's rho between its gaps and those of each other teacher, in
            [-1, 1]; None for a single teacher.
        stands_out: whether the gain for gaps is at least `STANDS_OUT` and significant.
    """

    teacher: str
    without: Mapping[str, Estimate]
    bias: Estimate
    spearman: float | None
    stands_out: bool


@dataclass(frozen=True, kw_only=True)
class Reading:
    """A teacher's reading of a pair.

    Attributes:
        gap: its gap, in [0, 1], or in [-1, 1] if gaps are signed.
        category: its most frequent category.
    """

    gap: float
    category: str


@dataclass(frozen=True, kw_only=True)
class SplitPair:
    """A pair on which the teachers differ.

    Attributes:
        pair_id: id of the pair.
        spread: population standard deviation of the teachers' gaps.
        readings: reading of each teacher, by name.
        source_id: name of the pair in the source; None if it has none or no store was read.
    """

    pair_id: str
    spread: float
    readings: Mapping[str, Reading] = field(metadata={"json": "said"})
    source_id: str | None = None


@dataclass(frozen=True, kw_only=True)
class Splits:
    """How often the teachers differ about a pair.

    Attributes:
        of: number of pairs annotated by at least two teachers.
        apart: share of these whose lowest and highest gap differ by 0.5 or more; None without any.
        no_majority: share of these without a category given by more than half of the teachers.
        pairs: the `SPLITS` pairs with the largest spread.
    """

    of: int
    apart: float | None
    no_majority: float | None
    pairs: tuple[SplitPair, ...]

    def with_source_ids(self, store: Store) -> "Splits":
        """Return a copy whose pairs have their names in the source."""
        names = store.corpus.source_ids([pair.pair_id for pair in self.pairs])
        pairs = (replace(pair, source_id=names.get(pair.pair_id)) for pair in self.pairs)
        return replace(self, pairs=tuple(pairs))


@dataclass(frozen=True, kw_only=True)
class PanelAgreement:
    """How far teachers and variants agree.

    Attributes:
        pairs, replies: number of pairs with replies that count, and of these replies.
        draws: number of bootstrap samples.
        teachers: agreement of the teachers; their variants are combined as the estimator does.
        variants: agreement of the variants, averaged over the teachers.
        outliers: effect of each teacher, starting with the one that lowers agreement most.
        splits: pairs on which the teachers differ.
    """

    pairs: int
    replies: int
    draws: int
    teachers: Agreement
    variants: VariantAgreement
    outliers: tuple[TeacherEffect, ...]
    splits: Splits


def measure_store_agreement(
    store_file: Path | str,
    *,
    schedule_file: Path | str | None = None,
    ids_file: Path | str | None = None,
    category: str | None = None,
    sample: int | None = None,
    draws: int = DRAWS,
) -> PanelAgreement:
    """Measure how far the teachers and the variants of a store agree.

    Args:
        store_file: annotation store.
        schedule_file: YAML file of a schedule, which defines the gaps; SP2DPO's if None.
        ids_file: text file of the pairs to use, with one id or name in the source per line.
        category: use only pairs whose most frequent category is this one.
        sample: maximum number of pairs; see `select_pairs`.
        draws: number of bootstrap samples.

    Raises:
        ValueError: a file is invalid, the rubric does not have the category, or no pair is left.
        OSError: a file cannot be read.
    """
    estimator = load_schedule(schedule_file).estimator if schedule_file else JMAMP
    with Store(store_file) as store, store.snapshot():
        pair_ids = _read_pair_ids(Path(ids_file), store) if ids_file else None
        annotations = select_pairs(
            store.annotations(), pair_ids=pair_ids, category=category, sample=sample
        )
        agreement = measure_agreement(annotations, estimator, draws=draws)
        return replace(agreement, splits=agreement.splits.with_source_ids(store))


def _read_pair_ids(path: Path, store: Store) -> set[str]:
    """Return the ids of the pairs that the lines of a file name.

    Raises:
        ValueError: a line names no pair of the store, or the file is empty.
    """
    # `splitlines` would also split at other separators, such as U+2028, inside a name.
    lines = [line.strip() for line in read_text(path).split("\n")]
    names = [line for line in lines if line]
    if not names:
        raise ValueError(f"{path}: no line names a pair")
    pair_by_name: dict[str, str] = {}
    for pair_id, source_id in store.corpus.names():
        pair_by_name[pair_id] = pair_id
        if source_id is not None:
            pair_by_name.setdefault(source_id, pair_id)
    missing = [name for name in names if name not in pair_by_name]
    if missing:
        raise ValueError(
            f"{path}: {len(missing)} of {len(names)} lines name no pair of {store.path}, the first "
            f"is {missing[0]!r}; a name is a pair's id, or its name in the source"
        )
    return {pair_by_name[name] for name in names}


def measure_agreement(
    annotations: AnnotationTable, estimator: Estimator, *, draws: int
) -> PanelAgreement:
    """Measure how far the teachers and the variants agree.

    Alpha is computed between teachers (variants combined as the estimator does), between variants
    (teachers averaged), and between the variants of each teacher. Intervals are 95 % bootstrap
    intervals over pairs.

    Args:
        annotations: annotations of a store, or of some of its pairs: see `select_pairs`.
        estimator: how a reply becomes a gap, and how a teacher's replies are combined.
        draws: number of bootstrap samples.
    """
    categories = list(annotations.rubric.categories)
    replies = panel_reply_gaps(annotations, estimator)
    teachers, variants = (sorted(replies[axis].unique()) for axis in ("teacher", "variant"))
    # In the order of the rubric, as everywhere else.
    variants = [name for name in annotations.rubric.variants if name in variants]
    # Readings by teacher (variants combined), by variant (teachers averaged), and by both.
    readings = teacher_readings(replies, categories, estimator)
    by_variant = variant_readings(replies, categories)
    singles = single_readings(replies, categories)

    def alphas(readings: pl.DataFrame, measures: Collection[str] = MEASURES) -> dict[str, Alpha]:
        return {
            measure: _ratings(readings, variants, measure, categories).alpha(
                MEASURES[measure], draws=draws
            )
            for measure in measures
        }

    # One object for alpha and for `_outliers`, which compares both on the same samples.
    ratings = {measure: _ratings(readings, teachers, measure, categories) for measure in MEASURES}
    twos = tuple(compare_readers(readings, teachers))
    return PanelAgreement(
        pairs=replies["pair_id"].n_unique(),
        replies=len(replies),
        draws=draws,
        teachers=Agreement(
            names=tuple(teachers),
            alpha={
                measure: ratings[measure].alpha(level, draws=draws)
                for measure, level in MEASURES.items()
            },
            twos=twos,
        ),
        variants=VariantAgreement(
            names=tuple(variants),
            alpha=alphas(by_variant),
            twos=tuple(compare_readers(by_variant, variants)),
            by_teacher={
                teacher: alphas(singles.filter(pl.col("teacher") == teacher), _COMPARED)
                for teacher in teachers
            },
        ),
        outliers=tuple(_outliers(readings, teachers, twos, ratings, draws)),
        splits=_splits(readings, teachers),
    )


def select_pairs(
    annotations: AnnotationTable,
    *,
    pair_ids: Collection[str] | None = None,
    category: str | None = None,
    sample: int | None = None,
) -> AnnotationTable:
    """Return the annotations of a subset of the pairs.

    Args:
        annotations: annotations of a store.
        pair_ids: select these pairs only.
        category: select pairs whose most frequent category is this one.
        sample: maximum number of pairs, those with the lowest ids. Ids are hashes, so the sample is
            random and reproducible.

    Raises:
        ValueError: the rubric does not have the category, or no pair is left.
    """
    replies = annotations.replies
    categories = list(annotations.rubric.categories)
    if category is not None:
        annotations.rubric.check_category(category)
    if pair_ids is not None:
        replies = replies.filter(pl.col("pair_id").is_in(list(pair_ids)))
    if category is not None and len(replies):
        majority = find_majority(replies, categories).filter(pl.col("category") == category)
        replies = replies.filter(pl.col("pair_id").is_in(majority["pair_id"].to_list()))
    # Without a sample size, `[:None]` keeps all.
    left = replies["pair_id"].unique().sort()[:sample].to_list()
    if not left:
        raise ValueError("no kept reply is about these pairs")
    chosen = replies.filter(pl.col("pair_id").is_in(left))
    return replace(annotations, replies=chosen, pair_ids=left)


def _ratings(
    readings: pl.DataFrame, readers: Sequence[str], what: str, categories: Sequence[str]
) -> Ratings:
    """Return the readings of one measure, with one row per pair in the order of their ids."""
    if what == "category":
        codes = readings["category"].cast(pl.Enum(categories)).to_physical().to_numpy()
        values = len(categories)
    else:
        # These codes ascend with the values, as the ordinal level of alpha requires.
        unique, codes = np.unique(
            readings[what].round(_DECIMALS[what]).to_numpy() + 0.0, return_inverse=True
        )
        values = len(unique)
    row = readings["pair_id"].rank("dense").to_numpy() - 1
    column = readings["reader"].cast(pl.Enum(readers)).to_physical().to_numpy()
    table: NDArray[np.int64] = np.full((row.max() + 1, len(readers)), -1, dtype=np.int64)
    table[row, column] = codes
    return Ratings(table, values)


def _outliers(
    readings: pl.DataFrame,
    teachers: Sequence[str],
    twos: Sequence[ReaderComparison],
    ratings: Mapping[str, Ratings],
    draws: int,
) -> list[TeacherEffect]:
    """Return each teacher's effect on agreement, starting with the one that lowers it most."""
    # The full panel is resampled once, not once for each teacher.
    everyone = {what: ratings[what].resample(MEASURES[what], draws=draws) for what in _COMPARED}
    effects = []
    for place, teacher in enumerate(teachers):
        others = [column for column in range(len(teachers)) if column != place]
        without = {
            what: _gain(everyone[what], ratings[what], MEASURES[what], others, draws)
            for what in _COMPARED
        }
        correlations = [
            pair.spearman
            for pair in twos
            if teacher in (pair.one, pair.other) and pair.spearman is not None
        ]
        gain, low = without["gap"].value, without["gap"].low
        effects.append(
            TeacherEffect(
                teacher=teacher,
                without=without,
                bias=_bias(readings, teacher, draws),
                spearman=sum(correlations) / len(correlations) if correlations else None,
                stands_out=gain is not None and low is not None and gain >= STANDS_OUT and low > 0,
            )
        )
    # With two teachers there are no gains: keep their order.
    return sorted(effects, key=lambda effect: -(effect.without["gap"].value or 0.0))


def _gain(
    panel_samples: tuple[float | None, list[float | None]],
    ratings: Ratings,
    level: str,
    others: Sequence[int],
    draws: int,
) -> Estimate:
    """Return alpha of the other readers minus alpha of all."""
    # A single reader has nobody to agree with.
    if len(others) < 2:
        return Estimate()
    panel_alpha, panel_drawn = panel_samples
    other_alpha, other_drawn = ratings.resample(level, others, draws=draws)

    def difference(without: float | None, full: float | None) -> float | None:
        return None if without is None or full is None else without - full

    # Sample by sample: both see the same pairs, so their common variation cancels.
    drawn = map(difference, other_drawn, panel_drawn)
    units, _ = ratings.count_pairs(others)
    return estimate(difference(other_alpha, panel_alpha), drawn, units=units)


def _bias(readings: pl.DataFrame, teacher: str, draws: int) -> Estimate:
    own = readings.filter(pl.col("reader") == teacher).select("pair_id", own="gap")
    rest = (
        readings.filter(pl.col("reader") != teacher)
        .group_by("pair_id")
        .agg(rest=pl.col("gap").mean())
    )
    both = own.join(rest, on="pair_id").sort("pair_id")
    difference = (both["own"] - both["rest"]).round(9).to_numpy()
    # Equal differences are resampled as one weighted unit, as in `bootstrap.rank_correlation`.
    values, counts = np.unique(difference, return_counts=True)
    return bootstrap_estimates(
        lambda w: float(w @ values / w.sum()), len(values), draws=draws, counts=counts
    )


def _splits(readings: pl.DataFrame, teachers: Sequence[str]) -> Splits:
    """Return the pairs on which the teachers differ most."""
    gap = pl.col("gap")
    by_pair = (
        readings.group_by("pair_id")
        .agg(
            # Rounded, so that equal spreads are ordered by pair_id.
            spread=gap.std(ddof=0).round(9),
            # In floating point, 0.7 - 0.2 is below 0.5.
            apart=(gap.max() - gap.min()).round(9) >= 0.5,
            most=pl.col("category").unique_counts().max(),
            readers=pl.len(),
        )
        .filter(pl.col("readers") > 1)
        .sort(["spread", "pair_id"], descending=[True, False])
    )
    shown = by_pair.head(SPLITS)
    details = readings.filter(pl.col("pair_id").is_in(shown["pair_id"].to_list()))
    by_reader = {
        (row["pair_id"], row["reader"]): Reading(gap=row["gap"], category=row["category"])
        for row in details.iter_rows(named=True)
    }
    apart, no_majority = by_pair.select(
        pl.col("apart").mean(), no_majority=(pl.col("most") * 2 <= pl.col("readers")).mean()
    ).row(0)
    return Splits(
        of=len(by_pair),
        apart=apart,
        no_majority=no_majority,
        pairs=tuple(
            SplitPair(
                pair_id=pair_id,
                spread=spread,
                readings={
                    teacher: by_reader[pair_id, teacher]
                    for teacher in teachers
                    if (pair_id, teacher) in by_reader
                },
            )
            for pair_id, spread in shown.select("pair_id", "spread").iter_rows()
        ),
    )
