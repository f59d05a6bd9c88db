"""A schedule: how annotations become gaps, and gaps become betas."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

import polars as pl
from pydantic import ConfigDict, Field, ValidationInfo, field_validator

from sp2dpo.betas.choices import choice_of, format_choice
from sp2dpo.betas.columns import REQUIRED
from sp2dpo.betas.estimators import ESTIMATES, GAP_FORMS, Estimator, GapForm
from sp2dpo.betas.gaps import compute_gaps
from sp2dpo.betas.maps import BETA, MAPS, Envelope, Map, Quantile, places
from sp2dpo.panel.rubric import Rubric
from sp2dpo.settings import NAME, Settings, number, one_of, validate
from sp2dpo.store.annotations import AnnotationTable
from sp2dpo.yaml_files import YamlFile, read_yaml_file

_ESTIMATE = (
    "write `estimate: sampled` to use the magnitude and confidence that a reply states, "
    "or `estimate: expected` to use their expectations, which needs replies with log-probabilities"
)
_LARGEST_QUORUM = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How betas are computed from annotations. No key has a default: each changes the result.

    Attributes:
        beta_min, beta_max: the betas of a gap of 0 and of 1, above 0. SP2DPO: 0.03 and 0.3.
        quorum: minimum number of votes for a beta; at least 1. Each kept reply is a vote; under
            the blind protocol each order is one. Our choice.
        estimate: source of a reply's magnitude and confidence. `sampled`: the values that it
            states. `expected`: their expectations over its token probabilities; a reply without
            log-probabilities is not a vote. Our choice.
        gap: gap form of one reply; see `estimators` (our choice: the paper's formula is not in the
            sources that we have).
        over_variants, over_teachers: how the gaps of a teacher's variants, and then those of the
            teachers, are combined; see `Estimator`. SP2DPO: `median` and `mean`.
        map: map from the gap to beta; see `maps`. SP2DPO: `linear`.
        envelopes: other ranges of beta by category (SP2DPO's open question 3); may be empty.
    """

    beta_min: float
    beta_max: float
    quorum: int
    estimate: str
    gap: GapForm
    over_variants: str
    over_teachers: str
    map: Map
    envelopes: Mapping[str, Envelope] = field(default_factory=dict)

    @property
    def estimator(self) -> Estimator:
        """How the replies about a pair become its gap."""
        return Estimator(
            estimate=self.estimate,
            gap=self.gap,
            over_variants=self.over_variants,
            over_teachers=self.over_teachers,
        )

    def envelope(self, category: str | None) -> Envelope:
        """Return the range of the betas of a category."""
        common = Envelope(beta_min=self.beta_min, beta_max=self.beta_max)
        # A pair without replies that count has no category.
        return self.envelopes.get(category, common) if category else common

    @property
    def widest(self) -> Envelope:
        """The range from the lowest to the highest beta that a pair of any category can get."""
        every = (self.envelope(None), *self.envelopes.values())
        return Envelope(
            beta_min=min(envelope.beta_min for envelope in every),
            beta_max=max(envelope.beta_max for envelope in every),
        )

    def check_categories(self, rubric: Rubric, *, where: str) -> None:
        """Check that the rubric has every category that has an envelope.

        Raises:
            ValueError: it does not.
        """
        for category in self.envelopes:
            rubric.check_category(category, where=f"{where}: envelopes: ")

    def as_mapping(self) -> dict[str, Any]:
        """Return the keys and values of its YAML file; `parse_schedule` reads them back."""
        config: dict[str, Any] = {key.name: getattr(self, key.name) for key in fields(self)}
        config |= {"gap": format_choice(self.gap, GAP_FORMS), "map": format_choice(self.map, MAPS)}
        config["envelopes"] = {category: asdict(ends) for category, ends in self.envelopes.items()}
        if not self.envelopes:
            del config["envelopes"]
        return config


class EnvelopeConfig(Settings):
    """The range of the betas of a category."""

    beta_min: Annotated[float, BETA]
    """Beta of a gap of 0. SP2DPO: 0.03."""
    beta_max: Annotated[float, BETA]
    """Beta of a gap of 1; above beta_min. SP2DPO: 0.3."""

    @field_validator("beta_max")
    @classmethod
    def _is_above_beta_min(cls, beta_max: float, info: ValidationInfo) -> float:
        # pydantic validates in the order of declaration, so `beta_min` must stand above `beta_max`.
        if "beta_min" in info.data:  # absent if it is invalid itself
            Envelope(beta_min=info.data["beta_min"], beta_max=beta_max)
        return beta_max


class ScheduleConfig(EnvelopeConfig):
    """How replies become gaps, and gaps betas. No key but envelopes has a default."""

    model_config = ConfigDict(title="SP2DPO schedule")

    quorum: Annotated[int, number(least=1, most=_LARGEST_QUORUM, integer=True)]
    """Replies that a pair needs to get a beta."""
    estimate: Annotated[str, one_of(ESTIMATES)]
    """How magnitude and confidence are read: as the reply states them (sampled), or as expectations
    over its log-probabilities (expected)."""
    gap: Annotated[GapForm, choice_of(GAP_FORMS)]
    """Form of the gap of one reply."""
    over_variants: Annotated[str, NAME]
    """How the gaps of a teacher's variants are combined. SP2DPO: median."""
    over_teachers: Annotated[str, NAME]
    """How the gaps of the teachers are combined. SP2DPO: mean."""
    map: Annotated[Map, choice_of(MAPS)]
    """Map from the gap to beta. SP2DPO: linear."""
    envelopes: dict[Annotated[str, NAME], EnvelopeConfig] = Field(default_factory=dict)
    """Other ranges of beta for some categories, by category."""


def load_schedule(path: Path | str) -> Schedule:
    """Return the schedule in a YAML file.

    Raises:
        ValueError: It is invalid; the message lists line, key, rule and value of each problem.
        OSError: The file cannot be read.
    """
    path = Path(path)
    source = read_yaml_file(path)
    if "of" in source.values:
        raise ValueError(
            f"{path}: this is an arm of a comparison, not a schedule: name {source.values['of']}"
        )
    return parse_schedule(source.values, where=str(path), source=source)


def parse_schedule(
    config: Mapping[str, Any], *, where: str, source: YamlFile | None = None
) -> Schedule:
    """Parse a schedule from a mapping.

    Args:
        config: The mapping, as `Schedule.as_mapping` returns it.
        where: File or place that the mapping comes from, for messages.
        source: The YAML file, if the mapping is its complete content.

    Raises:
        ValueError: The mapping is invalid; the message lists each problem.
    """
    try:
        checked = validate(ScheduleConfig, config, where=where, source=source)
    except ValueError as error:
        missing = "missing key 'estimate'"
        raise ValueError(str(error).replace(missing, f"{missing}: {_ESTIMATE}")) from None
    values: dict[str, Any] = {name: getattr(checked, name) for name in ScheduleConfig.model_fields}
    values["envelopes"] = {
        category: Envelope(beta_min=envelope.beta_min, beta_max=envelope.beta_max)
        for category, envelope in checked.envelopes.items()
    }
    return Schedule(**values)


def schedule_betas(annotations: AnnotationTable, schedule: Schedule) -> pl.DataFrame:
    """Return the table of betas, one row for every pair, sorted by pair_id.

    Args:
        annotations: annotations of one store.
        schedule: how to compute betas from them.

    Returns:
        The columns `columns.REQUIRED`; `keep` equals `has_beta`. beta, gap, signed_gap and
        label_disputed are null below the quorum; label_disputed is also null if the replies cannot
        dispute a label (see `gaps.disputes_labels`).

    Raises:
        ValueError: no reply counts under the schedule, or the rubric lacks a category that the
            schedule names.
    """
    return add_betas(schedule_gaps(annotations, schedule), schedule).select(REQUIRED)


def schedule_gaps(annotations: AnnotationTable, schedule: Schedule) -> pl.DataFrame:
    """Return the table of `schedule_betas` without beta, has_beta and keep; raises like it."""
    schedule.check_categories(annotations.rubric, where="the schedule")
    # Null below the quorum before betas are computed: the map `quantile` must not rank these.
    enough = pl.col("votes") >= schedule.quorum
    return compute_gaps(annotations, schedule.estimator).with_columns(
        pl.when(enough).then(name).alias(name) for name in ("gap", "signed_gap", "label_disputed")
    )


def add_betas(table: pl.DataFrame, schedule: Schedule) -> pl.DataFrame:
    """Add beta, has_beta and keep to a table of gaps.

    If the table has the column `flip`, the gap of a pair that is trained with its responses
    exchanged becomes that of the exchanged responses, max(0, -s_i), before its beta is computed.
    """
    if "flip" in table.columns:
        exchanged = (-pl.col("signed_gap")).clip(lower_bound=0.0)
        # A pair below the quorum is not exchanged, so it keeps its null.
        table = table.with_columns(gap=pl.when("flip").then(exchanged).otherwise("gap"))
    has_beta = pl.col("gap").is_not_null()
    return table.with_columns(beta=beta(schedule), has_beta=has_beta, keep=has_beta)


def beta(schedule: Schedule) -> pl.Expr:
    """Return the expression that computes beta from the columns gap and category of all pairs."""
    gap = pl.col("gap")
    if isinstance(schedule.map, Quantile):
        gap = places(gap)
    low, high = category_envelopes(schedule)
    # Rounding must not put a beta outside its envelope.
    return schedule.map.beta(gap, low, high).clip(low, high)


def category_envelopes(schedule: Schedule) -> tuple[pl.Expr, pl.Expr]:
    """Return expressions for both ends of a pair's envelope, from the column category."""
    common = schedule.envelope(None)
    low, high = pl.lit(float(common.beta_min)), pl.lit(float(common.beta_max))
    for category, envelope in schedule.envelopes.items():
        here = pl.col("category") == category
        low = pl.when(here).then(float(envelope.beta_min)).otherwise(low)
        high = pl.when(here).then(float(envelope.beta_max)).otherwise(high)
    return low, high
