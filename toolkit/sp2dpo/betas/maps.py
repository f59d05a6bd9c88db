"""Map a gap in [0, 1] to a beta in an envelope, in one of four ways.

The linear map and its range are from SP2DPO (arXiv 2601.22385); the other three are our choice. All
accept numbers and columns. A gap of 0 gives exactly the lower end and a gap of 1 exactly the upper
one, except under `quantile`, which uses the rank of the gap among all gaps instead.
"""

from dataclasses import dataclass
from typing import Any

import polars as pl

from sp2dpo.betas.choices import check_arguments
from sp2dpo.settings import number

LARGEST_BETA = 1_000_000
"""Larger betas are refused as typing errors."""
BETA = number(above=0, most=LARGEST_BETA)
"""Rule of a beta."""
PLACE_DECIMALS = 9
"""Number of decimals to which gaps are rounded before they are ranked: in floating point,
0.2 x 0.9 and 0.3 x 0.6 differ in the last bit."""


@dataclass(frozen=True, kw_only=True)
class Envelope:
    """The range of betas.

    Attributes:
        beta_min: the beta of a gap of 0; above 0. SP2DPO: 0.03.
        beta_max: the beta of a gap of 1; above `beta_min`. SP2DPO: 0.3.
    """

    beta_min: float
    beta_max: float

    def __post_init__(self) -> None:
        check_arguments(self, beta_min=BETA, beta_max=BETA)
        if self.beta_min >= self.beta_max:
            raise ValueError(f"beta_min {self.beta_min} must be below beta_max {self.beta_max}")


@dataclass(frozen=True)
class Linear:
    """beta = beta_min + (beta_max - beta_min) g (SP2DPO).

    Computed as a weighted mean of the two ends, so that both are reached exactly.
    """

    def beta(self, gap: Any, beta_min: Any, beta_max: Any) -> Any:
        """Return the beta of a gap."""
        return beta_min * (1 - gap) + beta_max * gap

    def words(self, gap: str, low: str, high: str) -> str:
        """Return the formula as text."""
        return f"{low} + ({high} - {low}) x {gap}"


@dataclass(frozen=True)
class LogLinear:
    """beta = beta_min^(1 - g) beta_max^g: log beta is linear in the gap (our choice)."""

    def beta(self, gap: Any, beta_min: Any, beta_max: Any) -> Any:
        """Return the beta of a gap."""
        # A power of 0 is exactly 1 and a power of 1 the base itself, so both ends are exact.
        return beta_min ** (1 - gap) * beta_max**gap

    def words(self, gap: str, low: str, high: str) -> str:
        """Return the formula as text."""
        return f"{low}^(1 - {gap}) x {high}^{gap}"


@dataclass(frozen=True)
class Power:
    """beta = beta_min + (beta_max - beta_min) g^exponent (our choice).

    Attributes:
        exponent: in (0, 100]; below 1 it raises the betas of small gaps, above 1 it lowers them.
    """

    exponent: float

    def __post_init__(self) -> None:
        check_arguments(self, exponent=number(above=0, most=100))
        # `power(2)` and `power(2.0)` are the same choice, and must be recorded alike.
        object.__setattr__(self, "exponent", float(self.exponent))

    def beta(self, gap: Any, beta_min: Any, beta_max: Any) -> Any:
        """Return the beta of a gap."""
        raised = gap**self.exponent
        return beta_min * (1 - raised) + beta_max * raised

    def words(self, gap: str, low: str, high: str) -> str:
        """Return the formula as text."""
        return f"{low} + ({high} - {low}) x {gap}^{self.exponent:g}"


@dataclass(frozen=True)
class Quantile:
    """beta = beta_min + (beta_max - beta_min) q, q = (mean rank of g - 1/2) / n (our choice).

    Ranks start at 1 and cover all n pairs with a gap; equal gaps get their mean rank (Hazen's
    plotting position). Whatever the distribution of the gaps, the betas are spread evenly over the
    envelope; in return, the beta of a pair depends on all other pairs.
    """

    def beta(self, gap: Any, beta_min: Any, beta_max: Any) -> Any:
        """Return the beta of a scaled rank, which `places` computes; `gap` is that rank."""
        return beta_min * (1 - gap) + beta_max * gap

    def words(self, gap: str, low: str, high: str) -> str:
        """Return the formula as text."""
        return f"{low} + ({high} - {low}) x {gap}, the gap's place among all gaps"


Map = Linear | LogLinear | Power | Quantile
MAPS: dict[str, type] = {
    "linear": Linear,
    "log-linear": LogLinear,
    "power": Power,
    "quantile": Quantile,
}


def places(gap: pl.Expr) -> pl.Expr:
    """Return the rank of each gap in its column, scaled to (0, 1); null for a null gap."""
    # `count` leaves out nulls, as `rank` does.
    return (gap.round(PLACE_DECIMALS).rank("average") - 0.5) / gap.count()
