"""A schedule: how annotations become gaps, and gaps betas."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from sp2dpo.choices import read_choice, written
from sp2dpo.estimators import ESTIMATES, Estimator
from sp2dpo.gap_forms import GAP_FORMS, GapForm
from sp2dpo.maps import MAPS, Envelope, Map
from sp2dpo.rubric import Rubric
from sp2dpo.settings import check_keys, check_name, check_type, did_you_mean, read_yaml

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
        gap: of one reply; see `gap_forms` (our choice: the sources we hold do not print the
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
        """What its YAML file says; `schedule_of` reads it back."""
        said: dict[str, Any] = {one.name: getattr(self, one.name) for one in fields(self)}
        said |= {"gap": written(self.gap, GAP_FORMS), "map": written(self.map, MAPS)}
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
    return schedule_of(said, where=str(path))


def schedule_of(said: dict[str, Any], *, where: str) -> Schedule:
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
