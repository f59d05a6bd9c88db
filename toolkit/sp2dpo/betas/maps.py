"""From a gap in [0, 1] to a beta in an envelope: four maps, none of which leaves it.

The linear map and its ends are SP2DPO's (arXiv 2601.22385); the other three are our choice. All
take numbers and columns alike. A gap of 0 gives the lower end and a gap of 1 the upper one, to the
last bit, but under `quantile`, where the gap is replaced by its place among all gaps.
"""

from dataclasses import dataclass
from typing import Any

import polars as pl

from sp2dpo.betas.choices import check_number

LARGEST_BETA = 1_000_000
"""A beta above it is a slip of the pen."""
PLACE_DECIMALS = 9
"""Gaps are compared to so many decimals: 0.2 x 0.6 and 0.3 x 0.4 are one gap."""


@dataclass(frozen=True, kw_only=True)
class Envelope:
    """What betas lie in.

    Attributes:
        beta_min: the beta of a gap of 0; above 0. SP2DPO: 0.03.
        beta_max: the beta of a gap of 1; above `beta_min`. SP2DPO: 0.3.
    """

    beta_min: float
    beta_max: float

    def __post_init__(self) -> None:
        for name in ("beta_min", "beta_max"):
            check_number(name, getattr(self, name), above=0, most=LARGEST_BETA)
        if self.beta_min >= self.beta_max:
            raise ValueError(f"beta_min {self.beta_min} must be below beta_max {self.beta_max}")


@dataclass(frozen=True)
class Linear:
    """beta = beta_min + (beta_max - beta_min) g (SP2DPO).

    Written as a mean of the two ends, so that they are met exactly.
    """

    def beta(self, gap: Any, beta_min: Any, beta_max: Any) -> Any:
        """The beta of a gap."""
        return beta_min * (1 - gap) + beta_max * gap

    def words(self, gap: str, low: str, high: str) -> str:
        """The formula, for people."""
        return f"{low} + ({high} - {low}) x {gap}"


@dataclass(frozen=True)
class LogLinear:
    """beta = beta_min^(1 - g) beta_max^g: log beta is linear in the gap (our choice)."""

    def beta(self, gap: Any, beta_min: Any, beta_max: Any) -> Any:
        """The beta of a gap."""
        return beta_min ** (1 - gap) * beta_max**gap

    def words(self, gap: str, low: str, high: str) -> str:
        """The formula, for people."""
        return f"{low}^(1 - {gap}) x {high}^{gap}"


@dataclass(frozen=True)
class Power:
    """beta = beta_min + (beta_max - beta_min) g^exponent (our choice).

    Attributes:
        exponent: below 1 it lifts small gaps, above 1 it presses them down; in (0, 100].
    """

    exponent: float

    def __post_init__(self) -> None:
        check_number("exponent", self.exponent, above=0, most=100)
        object.__setattr__(self, "exponent", float(self.exponent))

    def beta(self, gap: Any, beta_min: Any, beta_max: Any) -> Any:
        """The beta of a gap."""
        raised = gap**self.exponent
        return beta_min * (1 - raised) + beta_max * raised

    def words(self, gap: str, low: str, high: str) -> str:
        """The formula, for people."""
        return f"{low} + ({high} - {low}) x {gap}^{self.exponent:g}"


@dataclass(frozen=True)
class Quantile:
    """beta = beta_min + (beta_max - beta_min) q, q = (mean rank of g - 1/2) / n (our choice).

    The ranks are among all n pairs with a gap, from 1, equal gaps sharing their mean rank (Hazen's
    plotting position). The betas spread evenly over the envelope however the gaps are distributed,
    and the beta of a pair depends on all the others.
    """

    def beta(self, gap: Any, beta_min: Any, beta_max: Any) -> Any:
        """The beta of a gap's place, as `places` gives it."""
        return beta_min * (1 - gap) + beta_max * gap

    def words(self, gap: str, low: str, high: str) -> str:
        """The formula, for people."""
        return f"{low} + ({high} - {low}) x {gap}, the gap's place among all gaps"


Map = Linear | LogLinear | Power | Quantile
MAPS: dict[str, type] = {
    "linear": Linear,
    "log-linear": LogLinear,
    "power": Power,
    "quantile": Quantile,
}


def places(gap: pl.Expr) -> pl.Expr:
    """The place of each gap among all of a column, in (0, 1); null where the gap is."""
    return (gap.round(PLACE_DECIMALS).rank("average") - 0.5) / gap.count()
