"""Krippendorff's alpha: agreement beyond chance; 1 is perfect, 0 is chance level.

    alpha = 1 - (n - 1) sum_ck o_ck d2_ck / sum_ck n_c n_k d2_ck

o is the coincidence matrix, n_c its row sums, n their sum, d2 the squared difference of two values:
nominal 0 or 1, ordinal (sum of n_g from c to k - (n_c + n_k) / 2)^2 (Krippendorff 2011, "Computing
Krippendorff's Alpha-Reliability"). Missing readings are allowed. The contribution of a unit to o
depends only on its readings, so identical units are stored once with a weight, which lets a
thousand bootstrap samples of a large store take seconds. The `krippendorff` package cannot
resample; a test checks that it gives the same values of alpha.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sp2dpo.diagnostics.agreement import Proportion, wilson_interval
from sp2dpo.diagnostics.bootstrap import DISAGREEMENT, Estimate, estimate, resamples


@dataclass(frozen=True, kw_only=True)
class Alpha(Estimate):
    """Krippendorff's alpha with its interval, at most 1.

    Attributes:
        pairs: number of units with readings of at least two readers.
    """

    pairs: int


class Ratings:
    """The readings of units by readers, as integer codes.

    Attributes:
        patterns: (patterns, readers) distinct rows of codes; -1 marks a missing reading.
        counts: (patterns,) number of units with each row.
        values: number of distinct values; codes are their ranks.
    """

    def __init__(self, codes: NDArray[np.int64], values: int) -> None:
        self.patterns, self.counts = np.unique(codes, axis=0, return_counts=True)
        self.values = values

    def alpha(self, level: str, readers: Sequence[int] | None = None, *, draws: int) -> Alpha:
        """Compute alpha with its interval, resampling units.

        Args:
            level: `nominal` or `ordinal`.
            readers: columns to compare; all if None.
            draws: number of bootstrap samples.
        """
        pairs, disputed = self.count_pairs(readers)
        value, samples = self.resample(level, readers, draws=draws)
        fit = estimate(value, samples, units=pairs, scale=DISAGREEMENT)
        return Alpha(**asdict(_widen(fit, wilson_interval(disputed, pairs))), pairs=pairs)

    def count_pairs(self, readers: Sequence[int] | None = None) -> tuple[int, int]:
        """Return the number of units with two readings or more, and of those where they differ."""
        codes = self.patterns if readers is None else self.patterns[:, list(readers)]
        shared = (codes >= 0).sum(axis=1) >= 2
        lowest = np.where(codes >= 0, codes, self.values).min(axis=1, initial=self.values)
        differ = shared & (codes.max(axis=1, initial=-1) > lowest)
        return int(self.counts[shared].sum()), int(self.counts[differ].sum())

    def resample(
        self, level: str, readers: Sequence[int] | None = None, *, draws: int
    ) -> tuple[float | None, list[float | None]]:
        """Return alpha of all units, and alpha of each bootstrap sample."""
        # Only weights change between samples, so the entries of o are found once.
        unit, cell, share = self._entries(readers)
        if not len(unit):
            return None, []

        def alpha(weights: NDArray[np.float64]) -> float | None:
            coincidences: NDArray[Any] = np.bincount(
                cell, weights=weights[unit] * share, minlength=self.values**2
            )
            return alpha_from_entries(coincidences.reshape(self.values, self.values), level)

        # Every pattern is drawn, also those without two of these readers: another choice of readers
        # then sees the same samples, and differences of alpha can be taken sample by sample.
        everything = self.counts.astype(np.float64)
        samples = resamples(len(everything), draws=draws, counts=self.counts)
        return alpha(everything), [alpha(weights) for weights in samples]

    def _entries(
        self, readers: Sequence[int] | None
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
        """Return, for every two readings of a pattern: its index, their cell of o, their share."""
        codes = self.patterns if readers is None else self.patterns[:, list(readers)]
        present = codes >= 0
        size = present.sum(axis=1)
        units, cells, shares = [], [], []
        for left in range(codes.shape[1]):
            for right in range(codes.shape[1]):
                # A reading is not paired with itself; o is symmetric, so both orders count.
                both = np.flatnonzero(present[:, left] & present[:, right]) if left != right else []
                # With a type: an empty list would become floats, which cannot be indices.
                units.append(np.asarray(both, dtype=np.int64))
                cells.append(codes[units[-1], left] * self.values + codes[units[-1], right])
                # Each unit adds as many coincidences to o as it has readings (Krippendorff 2011).
                shares.append(1 / (size[units[-1]] - 1))
        return np.concatenate(units), np.concatenate(cells), np.concatenate(shares)


def _widen(fit: Estimate, disputed: Proportion) -> Estimate:
    """Extend an interval of alpha by the uncertainty of the share of units that disagree.

    If few units disagree, bootstrap samples vary less than new units would: those without any such
    unit have an alpha of 1. 1 - alpha is this share times a factor, so the ends of the share's
    Wilson interval, times the same factor, bound alpha at least. If no unit disagrees, the factor
    is unknown; 1 is taken: a unit that disagrees does so as much as by chance. Our choice.
    """
    share, lowest, highest = disputed.share, disputed.low, disputed.high
    if fit.value is None or fit.low is None or fit.high is None:
        return fit
    if share is None or lowest is None or highest is None:
        return fit
    factor = (1 - fit.value) / share if disputed.count else 1.0
    low, high = 1 - factor * highest, 1 - factor * lowest
    return replace(fit, low=min(fit.low, low), high=max(fit.high, high))


def alpha_from_entries(coincidences: NDArray[np.float64], level: str) -> float | None:
    """Return alpha of a coincidence matrix; None if all readings are equal or there are none.

    Args:
        coincidences: (values, values) matrix o; for the ordinal level, values in ascending order.
        level: `nominal` or `ordinal`.
    """
    sums = coincidences.sum(axis=0)
    total = sums.sum()
    if level == "ordinal":
        # The sum of n_g from c to k, less (n_c + n_k) / 2, is the difference of two midpoints.
        upto = np.cumsum(sums) - sums / 2
        squares = (upto[:, None] - upto[None, :]) ** 2
    else:
        squares = 1.0 - np.eye(len(sums))
    expected = sums @ squares @ sums
    if not expected > 0:
        return None
    return float(1 - (total - 1) * (coincidences * squares).sum() / expected)
