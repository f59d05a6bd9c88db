"""What a schedule is compared with: the same pairs with other betas, or the gap put to other use.

Everything here is a pure function of a table of betas (`betas.betas`) in the order of pair_id.
Rand-beta and a tuned global beta are the paper's baselines (arXiv 2601.22385); the others are ours.
The means and the permutation go over the pairs that are kept, so that all arms of a comparison
train on the same ones.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from sp2dpo.betas import ends
from sp2dpo.choices import check_number, check_seed
from sp2dpo.maps import LARGEST_BETA, PLACE_DECIMALS
from sp2dpo.schedule import Schedule


@dataclass(frozen=True)
class Constant:
    """One beta for all pairs: DPO's own.

    Attributes:
        beta: above 0.
    """

    beta: float

    def __post_init__(self) -> None:
        check_number("beta", self.beta, above=0, most=LARGEST_BETA)
        object.__setattr__(self, "beta", float(self.beta))

    def betas(self, table: pl.DataFrame, schedule: Schedule) -> pl.Series:
        """Its beta for every pair that has one."""
        return _same(table, self.beta)


@dataclass(frozen=True)
class ArithmeticMean:
    """One beta for all: mean of beta_i.

    At D = 0, where |dl/dD| = beta / 2, the sum of the gradients is that of the schedule.
    """

    def betas(self, table: pl.DataFrame, schedule: Schedule) -> pl.Series:
        """Its beta for every pair that has one."""
        return _same(table, _kept(table).mean())


@dataclass(frozen=True)
class HarmonicMean:
    """One beta for all: 1 / mean of 1 / beta_i.

    A pair whose label is right with probability p ends at D* = logit(p) / beta: where p is the same
    for all, the mean of D* is that of the schedule.
    """

    def betas(self, table: pl.DataFrame, schedule: Schedule) -> pl.Series:
        """Its beta for every pair that has one."""
        return _same(table, 1 / (1 / _kept(table)).mean())


@dataclass(frozen=True)
class Uniform:
    """Rand-beta: beta_i ~ U[beta_min, beta_max], each pair drawn on its own (SP2DPO's baseline).

    Attributes:
        seed: the same one gives the same pair of the same set the same beta.
    """

    seed: int

    def __post_init__(self) -> None:
        check_seed(self.seed)

    def betas(self, table: pl.DataFrame, schedule: Schedule) -> pl.Series:
        """Its beta for every pair that has one, in the pair's own envelope."""
        drawn = np.random.default_rng(self.seed).uniform(size=len(table))
        low, high = ends(schedule)
        u = pl.col("u")
        inside = (low * (1 - u) + high * u).clip(low, high)
        return table.with_columns(u=drawn).select(pl.when("has_beta").then(inside)).to_series()


@dataclass(frozen=True)
class Permuted:
    """The same betas on the wrong pairs.

    In a random circle of the kept pairs each takes its neighbour's beta, so that none keeps its own
    (its neighbour's may be equal).

    Attributes:
        seed: of the circle.
    """

    seed: int

    def __post_init__(self) -> None:
        check_seed(self.seed)

    def betas(self, table: pl.DataFrame, schedule: Schedule) -> pl.Series:
        """Its beta for every pair that has one; a pair that is not kept keeps its own."""
        kept = np.flatnonzero(table["keep"].to_numpy())
        circle = np.random.default_rng(self.seed).permutation(kept)
        source = np.arange(len(table))
        source[circle] = np.roll(circle, 1)
        return table["beta"].gather(source)


@dataclass(frozen=True)
class DropLowest:
    """Leaves out the pairs with the lowest gaps; of equal ones the first by pair_id, a hash.

    Attributes:
        percent: of the kept pairs, in (0, 100), rounded down to whole pairs.
    """

    percent: float

    def __post_init__(self) -> None:
        check_number("percent", self.percent, above=0, below=100)

    def keep(self, table: pl.DataFrame) -> pl.Series:
        """Whether each pair is kept."""
        kept = table["keep"].to_numpy().copy()
        left = np.flatnonzero(kept)
        gap = table["gap"].round(PLACE_DECIMALS).to_numpy()[left]
        lowest = np.argsort(gap, kind="stable")[: int(self.percent / 100 * len(left) + 1e-9)]
        kept[left[lowest]] = False
        return pl.Series("keep", kept)


@dataclass(frozen=True)
class GapWeight:
    """w_i = g_i / mean of g: the gap as a loss weight, 1 on average."""

    def values(self, table: pl.DataFrame) -> pl.Series:
        """The weights of pairs with a gap.

        Raises:
            ValueError: every gap is 0.
        """
        mean = table.filter("keep")["gap"].to_numpy().mean()
        if not mean:
            raise ValueError("weight: gap: every kept pair has the gap 0, so no weight is above 0")
        return table["gap"] / mean


@dataclass(frozen=True)
class BetaWeight:
    """w_i = beta_i / mean of beta, by the schedule's betas: 1 on average.

    Under the constant beta `arithmetic-mean` a pair's gradient at D = 0 is exactly the one that it
    has under the schedule, beta_i / 2: what differs later is the temperature alone.
    """

    def values(self, table: pl.DataFrame) -> pl.Series:
        """The weights of pairs with a beta."""
        return table["beta"] / _kept(table).mean()


@dataclass(frozen=True)
class GapMargin:
    """gamma_i = scale g_i: the gap as an offset.

    Attributes:
        scale: the offset of a gap of 1, in nats; above 0.
    """

    scale: float

    def __post_init__(self) -> None:
        check_number("scale", self.scale, above=0, most=LARGEST_BETA)

    def values(self, table: pl.DataFrame) -> pl.Series:
        """The offsets of pairs with a gap, in nats."""
        return table["gap"] * float(self.scale)


def _kept(table: pl.DataFrame) -> NDArray[np.float64]:
    return table.filter("keep")["beta"].to_numpy()


def _same(table: pl.DataFrame, beta: float) -> pl.Series:
    return table.select(pl.when("has_beta").then(pl.lit(float(beta)))).to_series()
