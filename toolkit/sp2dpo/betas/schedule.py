"""A schedule: how annotations become gaps, and gaps betas."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import polars as pl

from sp2dpo.betas.choices import format_choice, read_choice
from sp2dpo.betas.estimators import ESTIMATES, GAP_FORMS, Estimator, GapForm
from sp2dpo.betas.gaps import compute_gaps
from sp2dpo.betas.maps import MAPS, Envelope, Map, Quantile, places
from sp2dpo.panel.rubric import Rubric
from sp2dpo.settings import check_keys, check_name, check_type, did_you_mean, read_yaml
from sp2dpo.store.annotations import AnnotationTable

_ESTIMATE = (
    "write `estimate: sampled` to take a reply's magnitude and confidence as it says them, "
    "`estimate: expected` to take their expectations, which needs replies with log-probabilities"
)
_LARGEST_QUORUM = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """From annotations to betas. No key has a default: each defines the result.

    Attributes:
        beta_min: the beta of a gap of 0; above 0. SP2DPO: 0.03.
        beta_max: the beta of a gap of 1; above `beta_min`. SP2DPO: 0.3.
        quorum: votes below which a pair gets no beta; at least 1. A kept reply is a vote, each
            order of a blind protocol for itself. Our choice.
        estimate: of a reply's magnitude and confidence. `sampled`: as the reply says them.
            `expected`: their expectations over the tokens that it could have said; a reply without
            log-probabilities is no vote. Our choice.
        gap: of one reply; see `estimators` (our choice: the sources we hold do not print the
            paper's formula).
        over_variants: how a teacher's variants are combined; see `Estimator`. SP2DPO: `median`.
        over_teachers: likewise the teachers. SP2DPO: `mean`.
        map: from the gap to beta; see `maps`. SP2DPO: `linear`.
        envelopes: other ends for the pairs of a category (SP2DPO's open question 3); none where
            the file has no such key.
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
        """The ends that the betas of a category lie between."""
        common = Envelope(beta_min=self.beta_min, beta_max=self.beta_max)
        return self.envelopes.get(category, common) if category else common

    @property
    def widest(self) -> Envelope:
        """The lowest and the highest beta that any pair could get."""
        every = (self.envelope(None), *self.envelopes.values())
        return Envelope(
            beta_min=min(one.beta_min for one in every), beta_max=max(one.beta_max for one in every)
        )

    def check_categories(self, rubric: Rubric, *, where: str) -> None:
        """Refuses an envelope for a category that the rubric does not know.

        Raises:
            ValueError: with `where`, the category and those that it knows.
        """
        for category in self.envelopes:
            if category not in rubric.categories:
                raise ValueError(
                    f"{where}: envelopes: the rubric {rubric.name} has no category {category!r}"
                    f"{did_you_mean(category, rubric.categories)} "
                    f"(known: {', '.join(rubric.categories)})"
                )

    def as_mapping(self) -> dict[str, Any]:
        """What its YAML file says; `parse_schedule` reads it back."""
        said: dict[str, Any] = {one.name: getattr(self, one.name) for one in fields(self)}
        said |= {"gap": format_choice(self.gap, GAP_FORMS), "map": format_choice(self.map, MAPS)}
        if not self.envelopes:
            del said["envelopes"]
            return said
        ends = {
            category: {"beta_min": one.beta_min, "beta_max": one.beta_max}
            for category, one in self.envelopes.items()
        }
        return said | {"envelopes": ends}


def load_schedule(path: Path) -> Schedule:
    """The schedule in a YAML file.

    Raises:
        ValueError: naming the file, the key and the value.
        OSError: the file cannot be read.
    """
    said = read_yaml(path)
    if "of" in said:
        raise ValueError(
            f"{path}: this is an arm of a comparison, and a schedule is asked for: name "
            f"{said['of']}"
        )
    return parse_schedule(said, where=str(path))


def parse_schedule(said: dict[str, Any], *, where: str) -> Schedule:
    """The schedule that a mapping says, checked.

    Raises:
        ValueError: with `where` and what is wrong.
    """
    required = [one for one in Schedule.__dataclass_fields__ if one != "envelopes"]
    try:
        check_keys(where, said, required=required, optional=["envelopes"])
    except ValueError as error:
        if "estimate" in said:
            raise
        raise ValueError(f"{error}; {_ESTIMATE}") from None
    if said["estimate"] not in ESTIMATES:
        hint = did_you_mean(said["estimate"], ESTIMATES)
        raise ValueError(
            f"{where}: estimate {said['estimate']!r} is not known{hint} "
            f"(known: {', '.join(ESTIMATES)})"
        )
    for key in ("over_variants", "over_teachers"):
        check_name(where, key, said[key])
    check_type(where, "quorum", said["quorum"], int)
    if not 1 <= said["quorum"] <= _LARGEST_QUORUM:
        raise ValueError(f"{where}: quorum {said['quorum']} must be at least 1, at most 1e6")
    _envelope(where, {key: said[key] for key in ("beta_min", "beta_max")})
    choices = {
        "gap": read_choice(where, "gap", said["gap"], GAP_FORMS),
        "map": read_choice(where, "map", said["map"], MAPS),
        "envelopes": _envelopes(where, said.get("envelopes", {})),
    }
    return Schedule(**(said | choices))


def _envelopes(where: str, said: Any) -> dict[str, Envelope]:
    check_type(where, "envelopes", said, dict)
    found = {}
    for category, ends in said.items():
        check_name(where, "a category of envelopes", category)
        place = f"{where}: envelopes: {category}"
        check_type(place, "it", ends, dict)
        check_keys(place, ends, required=("beta_min", "beta_max"))
        found[category] = _envelope(place, ends)
    return found


def _envelope(where: str, ends: Mapping[str, Any]) -> Envelope:
    try:
        return Envelope(**ends)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


COLUMNS = (
    "pair_id", "beta", "has_beta", "keep", "gap", "signed_gap", "label_disputed", "category",
    "magnitude", "confidence", "spread", "agreement", "votes", "teachers",
)  # fmt: skip


def schedule_betas(
    annotations: AnnotationTable, schedule: Schedule, *, flip: bool = False
) -> pl.DataFrame:
    """The table of betas, one row for every pair, sorted by pair_id.

    Args:
        annotations: of one store.
        schedule: how to combine them.
        flip: whether pairs with a disputed label are to be trained with their responses exchanged;
            the gap of such a pair is then what the teachers see the other way round, -s_i.

    Returns:
        pair_id: 64 hexadecimal digits.
        beta: in the envelope; null below the quorum.
        has_beta: whether there is one.
        keep: whether the pair is trained on; here that is the same.
        gap: effective semantic gap in [0, 1]: the signed gap, at least 0; null below the quorum.
        signed_gap: in [-1, 1], below 0 where the teachers think the label wrong, which the labelled
            protocol tells under the form `signed` alone; null below the quorum. Ours.
        label_disputed: whether the signed gap is below 0; null below the quorum and where that
            cannot be told. Ours.
        category: of most replies, ties to the higher priority; null without replies.
        magnitude, confidence: combined like the gaps, each alone, without a sign, on the rubric's
            scale, for display.
        spread: population standard deviation of the teachers' signed gaps: in [0, 0.5], where they
            may be below 0 in [0, 1].
        agreement: share of the replies that name that category, in (0, 1].
        votes: kept replies that count under the schedule.
        teachers: teachers with at least one of them.

    Raises:
        ValueError: no reply counts under the schedule, or it names a category that is not there.
    """
    schedule.check_categories(annotations.rubric, where="the schedule")
    enough = pl.col("votes") >= schedule.quorum
    table = compute_gaps(annotations, schedule.estimator).with_columns(
        pl.when(enough).then(name).alias(name) for name in ("gap", "signed_gap", "label_disputed")
    )
    if flip:
        disputed = pl.col("label_disputed")
        table = table.with_columns(
            gap=pl.when(disputed).then(-pl.col("signed_gap")).otherwise("gap")
        )
    has_beta = pl.col("gap").is_not_null()
    return table.with_columns(beta=beta(schedule), has_beta=has_beta, keep=has_beta).select(COLUMNS)


def beta(schedule: Schedule) -> pl.Expr:
    """The beta of each pair, from the columns gap and category of all of them."""
    gap = pl.col("gap")
    if isinstance(schedule.map, Quantile):
        gap = places(gap)
    low, high = category_envelopes(schedule)
    # Floating point must not put a beta outside of its envelope.
    return schedule.map.beta(gap, low, high).clip(low, high)


def category_envelopes(schedule: Schedule) -> tuple[pl.Expr, pl.Expr]:
    """Both ends of each pair's envelope, from the column category."""
    common = schedule.envelope(None)
    low, high = pl.lit(float(common.beta_min)), pl.lit(float(common.beta_max))
    for category, envelope in schedule.envelopes.items():
        here = pl.col("category") == category
        low = pl.when(here).then(float(envelope.beta_min)).otherwise(low)
        high = pl.when(here).then(float(envelope.beta_max)).otherwise(high)
    return low, high
