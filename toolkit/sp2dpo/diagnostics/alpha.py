"""Krippendorff's alpha: how far readers agree beyond chance, 1 for always, 0 for as by chance.

    alpha = 1 - (n - 1) sum_ck o_ck d2_ck / sum_ck n_c n_k d2_ck

o is the coincidence matrix, n_c its row sums, n their sum, d2 the squared difference of two values:
nominal 0 or 1, ordinal (sum of n_g from c to k - (n_c + n_k) / 2)^2 (Krippendorff 2011, "Computing
Krippendorff's Alpha-Reliability"). Missing readings are allowed. A unit's share in o depends only
on what was said of it, so alike units are counted once and weighed: that makes a thousand bootstrap
samples of a large corpus a matter of seconds, which the `krippendorff` package, held to the same
values by a test, does not offer.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sp2dpo.diagnostics.bootstrap import estimate, resamples


class Ratings:
    """What readers said of units, values as numbers.

    Attributes:
        patterns: (patterns, readers) the distinct rows; -1 where a reader said nothing.
        counts: (patterns,) units with that row.
        values: how many values there are, in their order.
    """

    def __init__(self, codes: NDArray[np.int64], values: int) -> None:
        self.patterns, self.counts = np.unique(codes, axis=0, return_counts=True)
        self.values = values

    def alpha(
        self, level: str, readers: Sequence[int] | None = None, *, draws: int
    ) -> dict[str, float | None]:
        """Alpha and its interval, units drawn again; see `intervals.estimate`.

        Args:
            level: `nominal` or `ordinal`.
            readers: the columns to compare; all where it is None.
            draws: bootstrap samples.
        """
        value, drawn = self.resample(level, readers, draws=draws)
        return estimate(value, drawn)

    def resample(
        self, level: str, readers: Sequence[int] | None = None, *, draws: int
    ) -> tuple[float | None, list[float | None]]:
        """Alpha of all units, and of each bootstrap sample."""
        unit, cell, share = self._entries(readers)
        if not len(unit):
            return None, []

        def alpha(weights: NDArray[np.float64]) -> float | None:
            met: NDArray[Any] = np.bincount(
                cell, weights=weights[unit] * share, minlength=self.values**2
            )
            return alpha_from_entries(met.reshape(self.values, self.values), level)

        everything = self.counts.astype(np.float64)
        samples = resamples(len(everything), draws=draws, counts=self.counts)
        return alpha(everything), [alpha(weights) for weights in samples]

    def pairable(self, readers: Sequence[int] | None = None) -> int:
        """Units that at least two of the readers read."""
        said = self.patterns if readers is None else self.patterns[:, list(readers)]
        return int(self.counts[(said >= 0).sum(axis=1) >= 2].sum())

    def _entries(
        self, readers: Sequence[int] | None
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
        """Of every two readings of a pattern: the pattern, the cell of o, what they add to it."""
        said = self.patterns if readers is None else self.patterns[:, list(readers)]
        there = said >= 0
        size = there.sum(axis=1)
        units, cells, shares = [], [], []
        for one in range(said.shape[1]):
            for other in range(said.shape[1]):
                both = np.flatnonzero(there[:, one] & there[:, other]) if one != other else []
                units.append(np.asarray(both, dtype=np.int64))
                cells.append(said[units[-1], one] * self.values + said[units[-1], other])
                shares.append(1 / (size[units[-1]] - 1))
        return np.concatenate(units), np.concatenate(cells), np.concatenate(shares)


def alpha_from_entries(met: NDArray[np.float64], level: str) -> float | None:
    """Alpha of a coincidence matrix; None where all readings are equal, or there are none.

    Args:
        met: (values, values), the values of an ordinal level in their order.
        level: `nominal` or `ordinal`.
    """
    sums = met.sum(axis=0)
    total = sums.sum()
    if level == "ordinal":
        upto = np.cumsum(sums) - sums / 2
        squares = (upto[:, None] - upto[None, :]) ** 2
    else:
        squares = 1.0 - np.eye(len(sums))
    expected = sums @ squares @ sums
    if not expected > 0:
        return None
    return float(1 - (total - 1) * (met * squares).sum() / expected)
