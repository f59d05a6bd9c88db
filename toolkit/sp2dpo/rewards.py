"""What a reward model's margin makes of a pair: MADPO's weight and ODPO's offset.

    h = r(chosen) - r(rejected)    the reward margin, from a reward model trained with -log s(h)

It is always called `reward_margin`; `margin` always means the offset gamma of the loss
w_i * -log s(beta_i D_i - gamma_i).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sp2dpo.choices import check_number

LARGEST = 1e4
"""Reward margins beyond it are no reward model's; the formulas are stable up to there."""
ONLY = ("amplify", "regularise")
SCALINGS = ("log", "identity")


@dataclass(frozen=True)
class Madpo:
    """MADPO's weight (arXiv 2510.05342); see `madpo_weight`.

    The released notebook: c_max 2, c_min 0.5, lam 1, tau 6.906755; its headline runs: c_max 4,
    c_min 0.25, lam 1, tau 7.

    Attributes:
        c_max: what the margin of a pair without a difference is multiplied by, about; above 1.
        c_min: what that of a pair with a very large one is; in (0, 1).
        lam: how fast it falls from one to the other; above 0.
        tau: the margin at which it is 1; above 0.
        only: `amplify` or `regularise` for the ablations (our choice of how: c is clamped at 1).
    """

    c_max: float
    c_min: float
    lam: float
    tau: float
    only: str | None = None

    def __post_init__(self) -> None:
        check_number("c_max", self.c_max, above=1, most=LARGEST)
        check_number("c_min", self.c_min, above=0, below=1)
        check_number("lam", self.lam, above=0, most=LARGEST)
        check_number("tau", self.tau, above=0, most=LARGEST)
        if self.only not in (None, *ONLY):
            raise ValueError(f"only must be one of {', '.join(ONLY)}, not {self.only!r}")

    def values(self, reward_margin: ArrayLike) -> NDArray[np.float64]:
        """The weights of pairs, above 0."""
        return madpo_weight(
            reward_margin,
            c_max=self.c_max,
            c_min=self.c_min,
            lam=self.lam,
            tau=self.tau,
            only=self.only,
        )


@dataclass(frozen=True)
class Odpo:
    """ODPO's offset gamma = alpha f(h); a pair with h <= 0 has none.

    ODPO orders the responses of a pair by their scores, so that h is above 0 there. f = log is the
    paper's; `identity` is our choice.

    Attributes:
        alpha: above 0.
        f: `log` or `identity`.
    """

    alpha: float
    f: str

    def __post_init__(self) -> None:
        check_number("alpha", self.alpha, above=0, most=LARGEST)
        if self.f not in SCALINGS:
            raise ValueError(f"f must be one of {', '.join(SCALINGS)}, not {self.f!r}")

    def values(self, reward_margin: ArrayLike) -> NDArray[np.float64]:
        """The offsets of pairs, in nats; NaN where h <= 0."""
        h = np.asarray(reward_margin, dtype=np.float64)
        ordered = h > 0
        scaled = np.log(np.where(ordered, h, 1.0)) if self.f == "log" else h
        return np.where(ordered, self.alpha * scaled, np.nan)


def madpo_weight(
    h: ArrayLike, *, c_max: float, c_min: float, lam: float, tau: float, only: str | None = None
) -> NDArray[np.float64]:
    """MADPO's weight of a pair (arXiv 2510.05342, its released code).

        c(m) = c_min + (c_max - c_min) / (1 + (c_max - 1) / (1 - c_min) exp(lam (m - tau)))
        w(h) = s(c(|h|) h) / s(h) if h > -tau, else 1

    It is continuous, 1 at 0 and at -tau, and computed from logarithms, so that no h overflows.

    Args:
        h: reward margins, any shape.
        c_max: above 1.
        c_min: in (0, 1).
        lam: above 0.
        tau: above 0.
        only: `amplify` keeps c at 1 or above, `regularise` at 1 or below (our choice: the paper's
            ablations would divide by zero at c_min = 1).

    Returns:
        Weights of the shape of h; above 0 but where floating point has nothing left of them.
    """
    h = np.asarray(h, dtype=np.float64)
    odds = np.log((c_max - 1) / (1 - c_min)) + lam * (np.abs(h) - tau)
    c = c_min + (c_max - c_min) * np.exp(_log_sigmoid(-odds))
    if only is not None:
        c = np.maximum(c, 1.0) if only == "amplify" else np.minimum(c, 1.0)
    inside = h > -tau
    safe = np.where(inside, h, 0.0)
    return np.where(inside, np.exp(_log_sigmoid(c * safe) - _log_sigmoid(safe)), 1.0)


def _log_sigmoid(z: Any) -> NDArray[np.float64]:
    return -np.logaddexp(0.0, -z)
