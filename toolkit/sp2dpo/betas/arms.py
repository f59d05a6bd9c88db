"""Compute betas under an arm of a comparison: a schedule, with or without departures.

The YAML file of an arm names its schedule (`of`) and its departures from that schedule. Rows are
marked (`keep`, `flip`) and never deleted, so every table shows which pairs are used for training.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import polars as pl
from pydantic import ConfigDict

from sp2dpo.betas.baselines import (
    ArithmeticMean,
    BetaWeight,
    Constant,
    DropLowest,
    GapMargin,
    GapWeight,
    HarmonicMean,
    InverseBetaWeight,
    Madpo,
    Odpo,
    Permuted,
    Uniform,
    apply_temperature,
)
from sp2dpo.betas.choices import choice_of, format_choice
from sp2dpo.betas.columns import OPTIONAL, REQUIRED
from sp2dpo.betas.gaps import compute_teacher_gaps, disputes_labels
from sp2dpo.betas.label_fit import LabelFit
from sp2dpo.betas.label_models import sigmoid
from sp2dpo.betas.published_arms import ESTIMATES, RIGHT, SCORES, CwPo, GammaPo, Gdpo
from sp2dpo.betas.schedule import Schedule, add_betas, parse_schedule, schedule_gaps
from sp2dpo.betas.scores import Scores
from sp2dpo.betas.soft_labels import (
    LARGEST_SMOOTHING,
    Anchored,
    Calibrated,
    Free,
    Latent,
    Readings,
    SoftLabel,
)
from sp2dpo.panel.rubric import Rubric
from sp2dpo.settings import ABSENT, Keys, Settings, number, one_of, validate
from sp2dpo.store.annotations import AnnotationTable
from sp2dpo.yaml_files import YamlFile, read_yaml_file

Beta = Constant | ArithmeticMean | HarmonicMean | Uniform | Permuted | Gdpo
Weight = GapWeight | BetaWeight | InverseBetaWeight | Madpo | CwPo
Margin = GapMargin | Odpo | GammaPo
_KNOWN: dict[str, dict[str, type]] = {
    "beta": {
        "constant": Constant,
        "arithmetic-mean": ArithmeticMean,
        "harmonic-mean": HarmonicMean,
        "uniform": Uniform,
        "permuted": Permuted,
        "gdpo": Gdpo,
    },
    "keep": {"drop-lowest": DropLowest},
    "weight": {
        "gap": GapWeight,
        "beta": BetaWeight,
        "inverse-beta": InverseBetaWeight,
        "madpo": Madpo,
        "cw-po": CwPo,
    },
    "margin": {"gap": GapMargin, "odpo": Odpo, "gamma-po": GammaPo},
    "label_smoothing": {
        "free": Free,
        "calibrated": Calibrated,
        "latent": Latent,
        "anchored": Anchored,
    },
}
_EXCLUSIVE = (
    ("temperature", "beta", "the betas"),
    ("temperature", "weight", "the weights"),
    ("label_smoothing", "disputed", "what happens to labels that are probably wrong"),
)
"""Departures that exclude each other, and why."""
DISPUTED = ("drop", "flip")
_LARGEST_TEMPERATURE = 10


@dataclass(frozen=True, kw_only=True)
class Arm:
    """How a table of betas is computed: a schedule and the departures from it.

    An arm with `of` alone is the schedule itself.

    Attributes:
        of: the schedule.
        beta: what replaces the betas of the schedule; see `baselines` and `published_arms`.
        keep: which pairs are left out because of their gap.
        disputed: what happens to pairs whose label the teachers dispute: `drop` leaves them out,
            `flip` exchanges their responses. Both are our choice.
        weight: weight of each pair's loss; see `baselines` and `published_arms`.
        margin: margin gamma in each pair's loss, in nats; see `baselines` and `published_arms`.
        label_smoothing: soft labels; see `soft_labels`. A pair whose label is more likely wrong
            than right is trained with its responses exchanged.
        temperature: exponent tau of the schedule's betas, whose gradient at D = 0 is kept by a
            weight; see `baselines.apply_temperature`.
    """

    of: Schedule
    beta: Beta | None = None
    keep: DropLowest | None = None
    disputed: str | None = None
    weight: Weight | None = None
    margin: Margin | None = None
    label_smoothing: SoftLabel | None = None
    temperature: float | None = None

    def __post_init__(self) -> None:
        sources = self._probability_sources
        if len(set(sources.values())) > 1:
            raise ValueError(
                f"{' and '.join(sources)} must have the same source of p, not "
                f"{' and '.join(sources.values())}"
            )
        for key in ("label_smoothing", "disputed"):
            if sources and getattr(self, key) is not None:
                raise ValueError(
                    f"{' and '.join(sources)} and {key} exclude each other, because both decide "
                    "what happens to labels that are probably wrong"
                )

    @property
    def _probability_sources(self) -> dict[str, str]:
        """Source of the label's probability, by the departure that uses one."""
        uses = {"beta: gdpo": self.beta, "weight: cw-po": self.weight}
        return {key: use.p for key, use in uses.items() if isinstance(use, Gdpo | CwPo)}

    @property
    def probability_source(self) -> str | None:
        """Source of the label's probability for GDPO and CW-PO; None for other arms."""
        return next(iter(self._probability_sources.values()), None)

    @property
    def uses_scores(self) -> bool:
        """Whether the arm needs a reward model's scores."""
        uses = isinstance(self.weight, Madpo) or isinstance(self.margin, Odpo)
        return uses or self.probability_source == SCORES

    def scale_betas(self, factor: float) -> "Arm":
        """Return a copy of the arm with its betas multiplied by `factor`, for tuning.

        Both ends of every envelope and a constant beta are multiplied; weights and margins are not.
        """

        def scale(envelope: Any) -> Any:
            low, high = envelope.beta_min * factor, envelope.beta_max * factor
            return replace(envelope, beta_min=low, beta_max=high)

        envelopes = {category: scale(ends) for category, ends in self.of.envelopes.items()}
        schedule = replace(scale(self.of), envelopes=envelopes)
        constant = self.beta
        # Every map scales with both ends, and other baselines with the betas: they need no factor.
        beta = constant
        if isinstance(constant, Constant | Gdpo):
            beta = replace(constant, beta=constant.beta * factor)
        return replace(self, of=schedule, beta=beta)

    def departures(self) -> dict[str, str]:
        """Return the keys and values of the arm's YAML file without `of`; empty for a schedule."""
        config = {}
        for key in _DEPARTURES:
            value = getattr(self, key)
            if value is not None:
                config[key] = format_choice(value, _KNOWN[key]) if key in _KNOWN else value
        return config


class Departures(Settings):
    """How an arm departs from its schedule, as a table of betas records it."""

    beta: Annotated[Beta, choice_of(_KNOWN["beta"])] = ABSENT
    """What replaces the betas of the schedule."""
    keep: Annotated[DropLowest, choice_of(_KNOWN["keep"])] = ABSENT
    """Which pairs are left out because of their gap."""
    disputed: Annotated[str, one_of(DISPUTED)] = ABSENT
    """What happens to pairs whose label the teachers dispute: drop leaves them out, flip exchanges
    their responses."""
    weight: Annotated[Weight, choice_of(_KNOWN["weight"])] = ABSENT
    """Weight of a pair's loss."""
    margin: Annotated[Margin, choice_of(_KNOWN["margin"])] = ABSENT
    """Margin in a pair's loss, in nats."""
    label_smoothing: Annotated[SoftLabel, choice_of(_KNOWN["label_smoothing"])] = ABSENT
    """How the probability that a label is right is estimated, for soft labels; pairs with a
    probability below 1/2 have their responses exchanged."""
    temperature: Annotated[
        float, number(least=-_LARGEST_TEMPERATURE, most=_LARGEST_TEMPERATURE)
    ] = ABSENT
    """Exponent of beta inside the sigmoid; a weight keeps the gradient at D = 0. 1 is the schedule,
    0 is one beta for all pairs."""

    @classmethod
    def conflicts(cls, values: Mapping[str, Any]) -> Iterator[tuple[Keys, str]]:
        """Yield the pairs of keys that would set the same column."""
        for key, other, column in _EXCLUSIVE:
            if values.get(key) is not None and values.get(other) is not None:
                yield (key,), f"{key} and {other} exclude each other, because both set {column}"


_DEPARTURES = tuple(Departures.model_fields)


class ArmConfig(Departures):
    """A comparison with a schedule: the same annotations, used in another way."""

    model_config = ConfigDict(
        title="SP2DPO arm",
        # For editors, the rule of `parse_arm`: at least one departure.
        json_schema_extra={"anyOf": [{"required": [key]} for key in _DEPARTURES]},
    )

    of: str
    """YAML file of the schedule; a relative path starts from this file's folder."""


def load_arm(path: Path | str) -> Arm:
    """Return the arm in a YAML file; a schedule's file is an arm without departures.

    Raises:
        ValueError: A file is invalid; the message lists line, key, rule and value of each problem.
        OSError: A file cannot be read.
    """
    path = Path(path)
    source = read_yaml_file(path)
    if "of" not in source.values:
        # Parsed as a schedule, the file would only be told that these keys are unknown.
        if any(key in source.values for key in _DEPARTURES):
            raise ValueError(f"{path}: an arm must name its schedule: add `of: FILE`")
        return Arm(of=parse_schedule(source.values, where=str(path), source=source))
    # Report the arm's own problems before those of another file.
    validate(ArmConfig, source.values, where=str(path), source=source)
    base = source.values["of"]
    schedule = read_yaml_file(path.parent / base)
    if "of" in schedule.values:
        raise ValueError(
            f"{path}:{source.line(('of',))}: of: {base} is an arm itself; name its schedule"
        )
    return parse_arm(
        source.values,
        parse_schedule(schedule.values, where=str(schedule.path), source=schedule),
        where=str(path),
        source=source,
    )


def parse_arm(
    config: Mapping[str, Any], schedule: Schedule, *, where: str, source: YamlFile | None = None
) -> Arm:
    """Parse an arm from a mapping.

    Args:
        config: The departures, as `Arm.departures` returns them; a key `of` is not used.
        schedule: The schedule that the arm departs from.
        where: File or place that the mapping comes from, for messages.
        source: The YAML file, if the mapping is its complete content.

    Raises:
        ValueError: The mapping is invalid; the message lists each problem.
    """
    # The metadata of a table of betas hold the departures without `of`.
    model = ArmConfig if "of" in config else Departures
    departures = validate(model, config, where=where, source=source)
    if not departures.model_fields_set.intersection(_DEPARTURES):
        raise ValueError(
            f"{where}: an arm departs from its schedule in one of {', '.join(_DEPARTURES)}"
        )
    try:
        return Arm(of=schedule, **{key: getattr(departures, key) for key in _DEPARTURES})
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


@dataclass(frozen=True, kw_only=True)
class ArmResult:
    """The table of betas of an arm.

    Attributes:
        table: The table, as `compute_betas` returns it.
        labels: What the estimate of the soft labels found; None without soft labels.
    """

    table: pl.DataFrame
    labels: LabelFit | None = None


def compute_betas(
    annotations: AnnotationTable, arm: Arm, scores: Scores | None = None
) -> pl.DataFrame:
    """Compute the table of betas of an arm.

    Args:
        annotations: annotations of one store.
        arm: how betas are computed from them.
        scores: reward model's scores, for an arm that uses them.

    Returns:
        The columns of `schedule.schedule_betas`, sorted by pair_id, and those that the arm adds:
        flip: whether the pair is trained with its responses exchanged.
        weight: weight of its loss, at least 0; null without a beta.
        margin: margin gamma in its loss, in nats; null without a beta, and for a pair that has no
            offset and is therefore not kept.
        label_smoothing: eps in [0, 1/2), the probability that the label of the pair as it is
            trained is wrong; null without a beta.
        reward_margin: h from the scores, of chosen over rejected as the pair is trained (negated
            where its responses are exchanged); null without a beta.

    Raises:
        ValueError: the arm needs scores that are not given, or disputed labels although the
            replies cannot dispute any; scores are given that it does not use; or no pair is left.
    """
    return compute_arm(annotations, arm, scores).table


def compute_arm(annotations: AnnotationTable, arm: Arm, scores: Scores | None = None) -> ArmResult:
    """Compute the table of betas, and what was estimated for it; as `compute_betas`."""
    _check(arm, annotations.rubric, scores)
    table = schedule_gaps(annotations, arm.of)
    labels = None
    if arm.disputed == "flip":
        # Null below the quorum: such a pair is not trained on, so it is not exchanged.
        table = table.with_columns(flip=pl.col("label_disputed").fill_null(False))
    elif arm.label_smoothing is not None:
        table, labels = _with_soft_labels(table, annotations, arm, arm.label_smoothing)
    elif arm.probability_source == SCORES and scores is not None:
        table = _with_score_labels(table, scores)
    elif arm.probability_source is not None:
        estimate = ESTIMATES[arm.probability_source]
        table, labels = _with_soft_labels(table, annotations, arm, estimate)
    table = add_betas(table, arm.of)
    if arm.disputed == "drop":
        undisputed = ~pl.col("label_disputed").fill_null(False)
        table = table.with_columns(keep=pl.col("keep") & undisputed)
    if scores is not None:
        # After `flip`, which decides the sign of h.
        table = _scored(table, scores)
    # A pair without an offset is left out first: `percent` counts the pairs that can be trained on.
    if isinstance(arm.margin, Odpo):
        table = _with_values(table, "margin", arm.margin.values)
        table = table.with_columns(keep=pl.col("keep") & pl.col("margin").is_not_null())
    if isinstance(arm.beta, Gdpo):
        table = table.with_columns(keep=arm.beta.keep(table))
    if arm.keep is not None:
        table = table.with_columns(keep=arm.keep.keep(table))
    # Without any beta, the quorum is the reason, which `schedule_store` reports.
    if table["has_beta"].any() and not table["keep"].any():
        raise ValueError("the arm leaves no pair to train on")
    # Weights follow all changes of `keep`: their mean is 1 over the pairs that are trained on.
    if isinstance(arm.weight, Madpo):
        table = _with_values(table, "weight", arm.weight.values)
    elif arm.weight is not None and table["keep"].any():
        table = table.with_columns(weight=arm.weight.values(table))
    if isinstance(arm.margin, GapMargin | GammaPo) and table["keep"].any():
        table = table.with_columns(margin=arm.margin.values(table))
    # A mean over no kept pair is undefined.
    # Last, because weights are computed from the schedule's own betas.
    if isinstance(arm.beta, Gdpo):
        table = table.with_columns(beta=arm.beta.betas(table))
    elif arm.beta is not None and table["keep"].any():
        table = table.with_columns(beta=arm.beta.betas(table, arm.of))
    if arm.temperature is not None and table["keep"].any():
        table = apply_temperature(table, arm.temperature)
    columns = (*REQUIRED, *(name for name in OPTIONAL if name in table.columns))
    return ArmResult(table=table.select(columns), labels=labels)


def _with_soft_labels(
    table: pl.DataFrame, annotations: AnnotationTable, arm: Arm, estimate: SoftLabel
) -> tuple[pl.DataFrame, LabelFit]:
    """Add flip to a table of gaps, and label_smoothing or the probability of each label."""
    rubric, estimator = annotations.rubric, arm.of.estimator
    s = table["signed_gap"].cast(pl.Float64).fill_null(np.nan).to_numpy()
    if np.isnan(s).all():
        # Without any beta, the quorum is the reason, which `schedule_store` reports.
        p, found = s, LabelFit(pairs=0, exchanged=0, blind=rubric.blind)
    else:
        teachers, by_teacher = compute_teacher_gaps(annotations, estimator)
        readings = Readings(
            signed_gap=s,
            by_teacher=by_teacher,
            teachers=teachers,
            can_dispute=disputes_labels(rubric, estimator),
            blind=rubric.blind,
            departures=tuple(arm._probability_sources),
        )
        p, found = estimate.estimate(readings)
    # Comparisons with NaN are false: a pair without a beta is not exchanged.
    flip = p < 0.5
    if arm.label_smoothing is None:
        right = pl.Series(RIGHT, np.where(flip, 1 - p, p)).fill_nan(None)
        return table.with_columns(pl.Series("flip", flip), right), found
    smoothing = np.where(flip, p, 1 - p).clip(0.0, LARGEST_SMOOTHING)
    return table.with_columns(
        pl.Series("flip", flip), pl.Series("label_smoothing", smoothing).fill_nan(None)
    ), found


def _with_score_labels(table: pl.DataFrame, scores: Scores) -> pl.DataFrame:
    """Add flip and the probability of each label from a reward model: p = s(h)."""
    known = table["signed_gap"].is_not_null()
    h = np.full(len(table), np.nan)
    h[known.to_numpy()] = scores.margins(table["pair_id"].filter(known)).to_numpy()
    return table.with_columns(
        pl.Series("flip", h < 0), pl.Series(RIGHT, sigmoid(np.abs(h))).fill_nan(None)
    )


def _check(arm: Arm, rubric: Rubric, scores: Scores | None) -> None:
    if arm.disputed and not disputes_labels(rubric, arm.of.estimator):
        raise ValueError(
            f"disputed: {arm.disputed}: under this gap form, teachers who see the label cannot "
            "dispute it: set `gap: signed` in the schedule, or use the blind rubric"
        )
    if arm.uses_scores and scores is None:
        raise ValueError("this arm requires a reward model's scores: give --scores SCORES.parquet")
    if scores is not None and not arm.uses_scores:
        raise ValueError(
            "--scores is not used: give an arm with `weight: madpo(...)`, `margin: odpo(...)` or "
            "`p=scores`, or omit --scores"
        )


def _scored(table: pl.DataFrame, scores: Scores) -> pl.DataFrame:
    """Add the reward margins, negated for pairs that are trained with responses exchanged."""
    # Pairs below the quorum are not trained on, so they need no score.
    with_beta = table.filter("has_beta")["pair_id"]
    margins = pl.DataFrame({"pair_id": with_beta, "reward_margin": scores.margins(with_beta)})
    # Rows stay sorted by pair_id, on which ties and random draws rely.
    table = table.join(margins, on="pair_id", how="left", maintain_order="left")
    if "flip" not in table.columns:
        return table
    h = pl.col("reward_margin")
    return table.with_columns(pl.when("flip").then(-h).otherwise(h))


def _with_values(table: pl.DataFrame, name: str, values: Callable[[Any], Any]) -> pl.DataFrame:
    """Add a column derived from the reward margins; NaN becomes null."""
    h = table["reward_margin"]
    # NumPy has no null: compute with 0 there, and discard these values below.
    column = pl.Series(name, values(h.fill_null(0.0).to_numpy())).fill_nan(None)
    return table.with_columns(pl.when(h.is_not_null()).then(column).alias(name))
