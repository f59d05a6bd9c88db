"""Estimate how well signed gaps predict which response a label names: a logistic slope.

    P(label right | s) = sigmoid(k s)

s is the signed gap of a pair, positive where the teachers agree with the label. The model has no
intercept: a gap of 0 says nothing about the label. k = 0 means that the gaps are unrelated to the
labels. Labels may be wrong at random; this lowers k, but cannot give it a sign. The teachers must
not have seen the labels (the blind protocol), or k also measures how far they follow them.

k maximises Firth's penalised likelihood (Firth 1993, Biometrika 80:27), which stays finite where
gaps and labels never contradict each other:

    l*(k) = sum_i log sigmoid(k z_i) + 1/2 log I(k),    I(k) = sum_i z_i^2 p_i (1 - p_i)

with z = s where the label is right, z = -s where it is wrong, and p_i = sigmoid(k z_i). The 95 %
interval is that of the profile of l* (Heinze and Schemper 2002, Statistics in Medicine 21:2409):
all k with 2 (l*(k_hat) - l*(k)) <= 3.84. The model itself is our choice.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sp2dpo.betas.label_fit import Interval

_DECIMALS = 9
"""Gaps are rounded to this, so that floating-point residue of a gap of 0 is not information."""
_CHI_SQUARE = 3.841459
"""95 % quantile of the chi-square distribution with one degree of freedom."""
_GROWTH = 1.1
"""Factor between the slopes at which the penalised likelihood is first evaluated."""
_BISECTIONS = 80


@dataclass(frozen=True, kw_only=True)
class LabelSlope:
    """The slope of the labels on the signed gaps. Undefined values are None.

    Attributes:
        slope: penalised maximum-likelihood estimate of k; None without an informative pair.
        low: lower end of its 95 % interval.
        high: upper end of the interval.
        pairs: number of informative pairs: those whose gap is not 0.
    """

    slope: float | None
    low: float | None
    high: float | None
    pairs: int

    @property
    def interval(self) -> Interval | None:
        """The slope with its interval; None without an informative pair."""
        if self.slope is None or self.low is None or self.high is None:
            return None
        return Interval(estimate=self.slope, low=self.low, high=self.high)


def fit_slope(signed_gaps: ArrayLike, right: ArrayLike | None = None) -> LabelSlope:
    """Fit k of P(label right | s) = sigmoid(k s) with its 95 % interval.

    Without `right`, the labels themselves are the outcome: whether the label is the response that
    the gap favours. With it, the outcome is the known truth about each label.

    Args:
        signed_gaps: (n,) signed gaps in [-1, 1], positive where the teachers agree with the label.
        right: (n,) whether each label is right, as booleans; all are if None.

    Raises:
        ValueError: a gap is not finite, `right` is not boolean, or the shapes differ.
    """
    gaps = np.asarray(signed_gaps, dtype=np.float64)
    if gaps.ndim != 1:
        raise ValueError(f"signed_gaps has the shape {gaps.shape}; it must be (n,)")
    if not np.isfinite(gaps).all():
        place = int(np.flatnonzero(~np.isfinite(gaps))[0])
        raise ValueError(f"signed_gaps[{place}] is {gaps[place]}; leave out pairs without a gap")
    if right is not None:
        truths = np.asarray(right)
        if truths.shape != gaps.shape:
            raise ValueError(f"right has the shape {truths.shape}, signed_gaps {gaps.shape}")
        if truths.dtype != np.bool_:
            raise ValueError(f"right has the type {truths.dtype}; it must be boolean")
        gaps = np.where(truths, gaps, -gaps)
    rounded = np.round(gaps, _DECIMALS)
    # Equal gaps are evaluated once: a panel's gaps have few distinct values.
    z, counts = np.unique(rounded[rounded != 0], return_counts=True)
    pairs = int(counts.sum())
    if not pairs:
        return LabelSlope(slope=None, low=None, high=None, pairs=0)
    # l*(k) - l*(-k) = k sum z, so the maximum has the sign of the sum: flip to search above 0.
    sign = -1.0 if counts @ z < 0 else 1.0
    ends = _maximise(_PenalisedLikelihood(sign * z, counts))
    slope, low, high = (sign * end for end in ends)
    return LabelSlope(slope=slope, low=min(low, high), high=max(low, high), pairs=pairs)


class _PenalisedLikelihood:
    """l*(k) and its derivative for the outcomes z; `counts` of them are equal."""

    def __init__(self, z: NDArray[np.float64], counts: NDArray[np.int64]) -> None:
        self._z, self._counts = z, counts.astype(np.float64)
        size = np.abs(z)
        self.scale = float(size.max())
        self._log_weights = np.log(self._counts) + 2 * np.log(size)

    def value(self, k: float) -> float:
        """Return l*(k)."""
        log_right, log_wrong = self._log_shares(k)
        return float(self._counts @ log_right + self._log_information(log_right + log_wrong) / 2)

    def slope(self, k: float) -> float:
        """Return the derivative of l* at k."""
        log_right, log_wrong = self._log_shares(k)
        right, wrong = np.exp(log_right), np.exp(log_wrong)
        # d/dk log I = sum of z (1 - 2 p), weighted by each outcome's share of I.
        terms = self._log_weights + log_right + log_wrong
        shares = np.exp(terms - terms.max())
        penalty = shares @ (self._z * (wrong - right)) / shares.sum()
        return float(self._counts @ (self._z * wrong) + penalty / 2)

    def _log_shares(self, k: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return log p and log(1 - p), without overflow for any k."""
        return -np.logaddexp(0.0, -k * self._z), -np.logaddexp(0.0, k * self._z)

    def _log_information(self, log_variance: NDArray[np.float64]) -> float:
        terms = self._log_weights + log_variance
        return float(terms.max() + np.log(np.exp(terms - terms.max()).sum()))


def _maximise(likelihood: _PenalisedLikelihood) -> tuple[float, float, float]:
    """Return the maximum k >= 0 of l*, and the two ends of its profile interval."""
    step = 0.01 / likelihood.scale
    if likelihood.slope(step) <= 0:
        slope = _bisect(likelihood.slope, 0.0, step)
    else:
        k = step
        while likelihood.slope(k * _GROWTH) > 0:
            k *= _GROWTH
        slope = _bisect(likelihood.slope, k, k * _GROWTH)
    bound = likelihood.value(slope) - _CHI_SQUARE / 2

    def excess(k: float) -> float:
        return likelihood.value(k) - bound

    ends = []
    for direction in (-1.0, 1.0):
        inside, reach = slope, direction * step
        while excess(slope + reach) > 0:
            inside, reach = slope + reach, reach * _GROWTH
        ends.append(_bisect(excess, inside, slope + reach))
    return slope, ends[0], ends[1]


def _bisect(function: Callable[[float], float], inside: float, outside: float) -> float:
    """Return where a function that is positive at `inside` and not at `outside` changes sign."""
    for _ in range(_BISECTIONS):
        middle = (inside + outside) / 2
        if function(middle) > 0:
            inside = middle
        else:
            outside = middle
    return (inside + outside) / 2
