"""Baselines for a schedule: the same pairs with other betas, or the gap as a weight or margin.

All baselines are pure functions of a table from `schedule.schedule_betas`. Rand-beta and a tuned
global beta are the paper's baselines (arXiv 2601.22385); the others are ours. Means and the
permutation cover only the kept pairs, so that all arms of a comparison train on the same pairs.

Formulas use the loss l = -log sigmoid(beta D), where D is the log-ratio of policy to reference for
the chosen response minus that for the rejected one.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray

from sp2dpo.betas.choices import check_arguments
from sp2dpo.betas.maps import BETA, LARGEST_BETA, PLACE_DECIMALS
from sp2dpo.betas.schedule import Schedule, category_envelopes
from sp2dpo.settings import number, one_of

_SEED = number(least=0, below=2**63, integer=True)


@dataclass(frozen=True)
class Constant:
    """The same beta for all pairs, as in standard DPO.

    Attributes:
        beta: the common beta; above 0.
    """

    beta: float

    def __post_init__(self) -> None:
        check_arguments(self, beta=BETA)
        # `constant(1)` and `constant(1.0)` are the same choice, and must be recorded alike.
        object.__setattr__(self, "beta", float(self.beta))

    def betas(self, table: pl.DataFrame, schedule: Schedule) -> pl.Series:
        """Return the common beta for every pair that has a beta, null for the others."""
        return _same(table, self.beta)


@dataclass(frozen=True)
class ArithmeticMean:
    """The same beta for all pairs: the mean of beta_i.

    At D = 0, |dl/dD| = beta / 2, so the sum of the gradients is the same as under the schedule.
    """

    def betas(self, table: pl.DataFrame, schedule: Schedule) -> pl.Series:
        """Return the common beta for every pair that has a beta, null for the others."""
        return _same(table, _kept_betas(table).mean())


@dataclass(frozen=True)
class HarmonicMean:
    """The same beta for all pairs: 1 / (mean of 1 / beta_i).

    For a pair whose label is right with probability p, the expected loss is lowest at
    D* = logit(p) / beta. If p is the same for all pairs, the mean of D* is the same as under the
    schedule.
    """

    def betas(self, table: pl.DataFrame, schedule: Schedule) -> pl.Series:
        """Return the common beta for every pair that has a beta, null for the others."""
        return _same(table, 1 / (1 / _kept_betas(table)).mean())


@dataclass(frozen=True)
class Uniform:
    """Rand-beta: beta_i ~ U[beta_min, beta_max], independently per pair (SP2DPO's baseline).

    Attributes:
        seed: random seed; equal seeds give equal betas for the same set of pairs.
    """

    seed: int

    def __post_init__(self) -> None:
        check_arguments(self, seed=_SEED)

    def betas(self, table: pl.DataFrame, schedule: Schedule) -> pl.Series:
        """Return a beta in the pair's own envelope for every pair that has one."""
        # Drawn for all pairs, so that a pair keeps its beta when another pair loses its own.
        drawn = np.random.default_rng(self.seed).uniform(size=len(table))
        # The paper's Rand-beta has one envelope; a range for each category is our choice.
        low, high = category_envelopes(schedule)
        u = pl.col("u")
        # Rounding must not put a beta outside its envelope.
        inside = (low * (1 - u) + high * u).clip(low, high)
        return table.with_columns(u=drawn).select(pl.when("has_beta").then(inside)).to_series()


@dataclass(frozen=True)
class Permuted:
    """The betas of the schedule, assigned to other pairs.

    The kept pairs are arranged in a random cycle, and each one gets the beta of its neighbour. So
    no pair keeps its own beta, although its neighbour's may be equal.

    Attributes:
        seed: random seed of the cycle.
    """

    seed: int

    def __post_init__(self) -> None:
        check_arguments(self, seed=_SEED)

    def betas(self, table: pl.DataFrame, schedule: Schedule) -> pl.Series:
        """Return the permuted betas; a pair that is not kept keeps its own."""
        kept = np.flatnonzero(table["keep"].to_numpy())
        # One cycle through all pairs; a random permutation would leave about one pair unchanged.
        circle = np.random.default_rng(self.seed).permutation(kept)
        source = np.arange(len(table))
        source[circle] = np.roll(circle, 1)
        return table["beta"].gather(source)


TIES = ("hash", "drop", "keep")


@dataclass(frozen=True)
class DropLowest:
    """Leave out the pairs with the lowest gaps.

    Gaps tie often: blind teachers who find no difference give many pairs the gap 0. If there are
    more of those than `percent`, `hash` leaves out some of them and keeps the others, chosen at
    random; `drop` and `keep` treat pairs with equal gaps alike. All three are our choice.

    Attributes:
        percent: share of the kept pairs to leave out, in (0, 100), rounded down to whole pairs.
        ties: pairs that tie with the last one to leave out: `hash` takes them in the order of
            pair_id, a hash, until `percent` is reached; `drop` leaves all of them out, so more than
            `percent`; `keep` keeps all of them if not all fit into `percent`. None is `hash`, as in
            the published study.
    """

    percent: float
    ties: str | None = None

    def __post_init__(self) -> None:
        rules = {} if self.ties is None else {"ties": one_of(TIES)}
        check_arguments(self, percent=number(above=0, below=100), **rules)

    def keep(self, table: pl.DataFrame) -> pl.Series:
        """Return whether each pair is kept."""
        kept = table["keep"].to_numpy().copy()
        left = np.flatnonzero(kept)
        gap = table["gap"].round(PLACE_DECIMALS).to_numpy()[left]
        # 1e-9: 29 percent of 100 pairs is 28.999999999999996 in floating point.
        count = int(self.percent / 100 * len(left) + 1e-9)
        # Rows are sorted by pair_id, so a stable sort breaks ties by it.
        lowest = np.argsort(gap, kind="stable")[:count]
        if count and self.ties in ("drop", "keep"):
            last = gap[lowest[-1]]
            divided = (gap == last).sum() > (gap[lowest] == last).sum()
            below = gap < last if divided and self.ties == "keep" else gap <= last
            lowest = np.flatnonzero(below)
        kept[left[lowest]] = False
        return pl.Series("keep", kept)


@dataclass(frozen=True)
class GapWeight:
    """w_i = g_i / mean of g: the gap as a loss weight, 1 on average."""

    def values(self, table: pl.DataFrame) -> pl.Series:
        """Return the weights of pairs with a gap.

        Raises:
            ValueError: every gap is 0.
        """
        mean = table.filter("keep")["gap"].to_numpy().mean()
        if not mean:
            raise ValueError("weight: gap: every kept pair has the gap 0, so no weight is above 0")
        return table["gap"] / mean


@dataclass(frozen=True)
class BetaWeight:
    """w_i = beta_i / mean of beta: the schedule's beta as a loss weight, 1 on average.

    With the constant beta `arithmetic-mean`, the gradient of a pair at D = 0 is beta_i / 2, exactly
    as under the schedule. Away from D = 0, only the temperature inside the sigmoid differs.
    """

    def values(self, table: pl.DataFrame) -> pl.Series:
        """Return the weights of pairs with a beta."""
        return table["beta"] / _kept_betas(table).mean()


@dataclass(frozen=True)
class InverseBetaWeight:
    """w_i = mean of beta / beta_i: cancels the beta_i in the gradient at D = 0.

    With the schedule's betas, the gradient of every pair at D = 0 is then half the mean beta: of
    SP2DPO only the temperature inside the sigmoid is left.
    """

    def values(self, table: pl.DataFrame) -> pl.Series:
        """Return the weights of pairs with a beta."""
        return float(_kept_betas(table).mean()) / table["beta"]


def apply_temperature(table: pl.DataFrame, tau: float) -> pl.DataFrame:
    """Replace beta_i by b (beta_i / b)^tau, and add the weight (beta_i / b)^(1 - tau).

    b is the mean beta of the kept pairs. The product of beta and weight is beta_i for every tau, so
    the gradient at D = 0 is that of the schedule; only the temperature inside the sigmoid differs.
    tau = 1 is the schedule, 0 one beta for all pairs with `beta` as the weight, and with tau = -1
    the loss of a pair with a large beta_i is lowest at a large D. Our choice.
    """
    beta, mean = table["beta"], float(_kept_betas(table).mean())
    # In this form, tau = 1 leaves every bit of the betas.
    turned = beta**tau * mean ** (1 - tau)
    return table.with_columns(turned.alias("beta"), ((beta / mean) ** (1 - tau)).alias("weight"))


@dataclass(frozen=True)
class GapMargin:
    """gamma_i = scale g_i: the gap as an offset in the loss.

    Attributes:
        scale: offset of a gap of 1, in nats; above 0.
    """

    scale: float

    def __post_init__(self) -> None:
        check_arguments(self, scale=number(above=0, most=LARGEST_BETA))

    def values(self, table: pl.DataFrame) -> pl.Series:
        """Return the offsets of pairs with a gap, in nats."""
        return table["gap"] * float(self.scale)


def _kept_betas(table: pl.DataFrame) -> NDArray[np.float64]:
    return table.filter("keep")["beta"].to_numpy()


def _same(table: pl.DataFrame, beta: float) -> pl.Series:
    return table.select(pl.when("has_beta").then(pl.lit(float(beta)))).to_series()


LARGEST = 1e4
"""Larger reward margins are refused; the formulas are numerically stable up to here."""
ONLY = ("amplify", "regularise")
SCALINGS = ("log", "identity")


@dataclass(frozen=True)
class Madpo:
    """MADPO's weight of a pair (arXiv 2510.05342 and its released code).

        c(m) = c_min + (c_max - c_min) / (1 + (c_max - 1) / (1 - c_min) exp(lam (m - tau)))
        w(h) = s(c(|h|) h) / s(h) if h > -tau, else 1

    w is continuous, 1 at 0 and at -tau. The released notebook uses c_max 2, c_min 0.5, lam 1, tau
    6.906755; its headline runs use c_max 4, c_min 0.25, lam 1, tau 7.

    Attributes:
        c_max: approximate factor of the margin for a reward margin of 0; above 1.
        c_min: factor for a very large reward margin; in (0, 1).
        lam: rate at which the factor falls from c_max to c_min; above 0.
        tau: reward margin at which the factor is 1; above 0.
        only: `amplify` keeps c at 1 or above, `regularise` at 1 or below (our choice: the paper's
            ablations would divide by zero at c_min = 1); None for the full method.
    """

    c_max: float
    c_min: float
    lam: float
    tau: float
    only: str | None = None

    def __post_init__(self) -> None:
        check_arguments(
            self,
            c_max=number(above=1, most=LARGEST),
            c_min=number(above=0, below=1),
            lam=number(above=0, most=LARGEST),
            tau=number(above=0, most=LARGEST),
            **({} if self.only is None else {"only": one_of(ONLY)}),
        )

    def values(self, reward_margin: ArrayLike) -> NDArray[np.float64]:
        """Return the weights of reward margins of any shape, above 0 unless they underflow."""
        h = np.asarray(reward_margin, dtype=np.float64)
        # Computed from logarithms, so that exp(lam (m - tau)) does not overflow for any h.
        odds = np.log((self.c_max - 1) / (1 - self.c_min)) + self.lam * (np.abs(h) - self.tau)
        # c(m): 1 / (1 + exp(odds)) is sigmoid(-odds).
        c = self.c_min + (self.c_max - self.c_min) * np.exp(_log_sigmoid(-odds))
        if self.only is not None:
            c = np.maximum(c, 1.0) if self.only == "amplify" else np.minimum(c, 1.0)
        inside = h > -self.tau
        # np.where evaluates both branches: replace h first, so that exp does not overflow.
        safe = np.where(inside, h, 0.0)
        # From logarithms: the quotient s(c h) / s(h) is 0 / 0 for very negative h.
        return np.where(inside, np.exp(_log_sigmoid(c * safe) - _log_sigmoid(safe)), 1.0)


@dataclass(frozen=True)
class Odpo:
    """ODPO's offset gamma = alpha f(h); a pair with h <= 0 has no offset.

    ODPO orders the responses of a pair by their scores, so there h is always above 0. The paper
    uses f = log; `identity` is our choice.

    Attributes:
        alpha: factor of the offset; above 0.
        f: function of the reward margin, `log` or `identity`.
    """

    alpha: float
    f: str

    def __post_init__(self) -> None:
        check_arguments(self, alpha=number(above=0, most=LARGEST), f=one_of(SCALINGS))

    def values(self, reward_margin: ArrayLike) -> NDArray[np.float64]:
        """Return the offsets of pairs, in nats; NaN where h <= 0."""
        h = np.asarray(reward_margin, dtype=np.float64)
        ordered = h > 0
        # np.where evaluates both branches: replace h first, so that np.log does not warn.
        scaled = np.log(np.where(ordered, h, 1.0)) if self.f == "log" else h
        return np.where(ordered, self.alpha * scaled, np.nan)


def _log_sigmoid(z: Any) -> NDArray[np.float64]:
    # log(1 + exp(-z)) as it stands would overflow for z below about -709.
    return -np.logaddexp(0.0, -z)
