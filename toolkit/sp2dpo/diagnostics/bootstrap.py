"""Bootstrap confidence intervals over pairs.

The bootstrap (Efron 1979) gives the standard error; the 95 % interval is Student's, on a scale on
which the statistic is about normal (`SCALES`). Percentiles of the samples would be too narrow over
few pairs: `tests/benchmarks/coverage.py` measures the coverage. Whole pairs are resampled, because
the replies about one pair depend on each other. The random generator is seeded: results are
reproducible, and two statistics over the same units see the same samples.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

DRAWS = 1000
"""Default number of bootstrap samples."""
SEED = 0
FEWEST_UNITS = 10
"""Minimum number of units for an interval: over fewer, the bootstrap's standard error is much too
small. Our choice."""
_QUANTILE = 1.959964
_LARGE = 200
"""Degrees of freedom from which Student's quantile is computed by its expansion."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """A scale on which a statistic is about normally distributed.

    Attributes:
        to: function from the statistic to the scale.
        back: its inverse.
        slope: derivative of `to`.
        limit: largest value of the statistic, at which `to` is infinite; infinite if there is none.
        lowest: the smallest such value.
    """

    to: Callable[[float], float]
    back: Callable[[float], float]
    slope: Callable[[float], float]
    limit: float
    lowest: float = -math.inf


PLAIN = Scale(to=float, back=float, slope=lambda value: 1.0, limit=math.inf)
"""Means and differences."""
FISHER = Scale(
    to=math.atanh,
    back=math.tanh,
    slope=lambda value: 1 / (1 - value**2),
    limit=1.0,
    lowest=-1.0,
)
"""Correlations (Fisher 1921)."""
DISAGREEMENT = Scale(
    to=lambda value: -math.log(1 - value),
    back=lambda value: 1 - math.exp(-value),
    slope=lambda value: 1 / (1 - value),
    limit=1.0,
)
"""Krippendorff's alpha: the logarithm of observed by expected disagreement. Our choice."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A statistic with its 95 % interval.

    Attributes:
        value: statistic of the full sample; None if undefined.
        low, high: ends of the interval; None if the value is undefined, or if there are too few
            units for an interval.
    """

    value: float | None = None
    low: float | None = None
    high: float | None = None


def resampled_rows(units: int, *, draws: int, seed: int = SEED) -> Iterator[NDArray[np.int64]]:
    """Yield bootstrap samples as the indices, (units,), of the drawn units."""
    rng = np.random.default_rng(seed)
    for _ in range(draws):
        yield rng.integers(units, size=units)


def resamples(
    units: int, *, draws: int, counts: NDArray[np.int64] | None = None
) -> Iterator[NDArray[np.float64]]:
    """Yield bootstrap samples as weights: how often each unit is drawn.

    Args:
        units: number of distinct units (rows).
        draws: number of samples.
        counts: (units,) how many identical units each row represents; 1 each if None.

    Yields:
        (units,) nonnegative integers as floats; their sum is the sum of the counts.
    """
    if counts is None:
        for rows in resampled_rows(units, draws=draws):
            # `minlength`: units after the last one drawn must have the weight 0.
            yield np.bincount(rows, minlength=units).astype(np.float64)
        return
    rng = np.random.default_rng(SEED)
    total = int(counts.sum())
    for _ in range(draws):
        # How often each row is drawn among all units has a multinomial distribution.
        yield rng.multinomial(total, counts / total).astype(np.float64)


def estimate(
    value: float | None, samples: Iterable[float | None], *, units: int, scale: Scale = PLAIN
) -> Estimate:
    """Return a statistic with its interval.

    The interval is that of Student's t with units - 1 degrees of freedom on the scale; the standard
    error there is the bootstrap's, times the derivative (delta method).

    At the end of the scale, such as a rho of 1, the relation is exact in every sample, but need not
    be in new units. The interval then extends to the end minus the upper end of the Wilson interval
    of 0 deviating units, as for alpha: a unit that deviates does so as much as by chance. Our
    choice.

    Args:
        value: statistic of the full sample.
        samples: statistic of each bootstrap sample; None where it is undefined.
        units: number of units that the statistic is computed from.
        scale: scale of the interval.
    """
    # A sample may lack what the statistic needs, such as a second category.
    defined = [sample for sample in samples if sample is not None and np.isfinite(sample)]
    if value is None or units < FEWEST_UNITS or len(defined) < 2:
        return Estimate(value=value)
    # A bootstrap variance divides by the number of units, not by one less.
    error = float(np.std(defined, ddof=1)) * math.sqrt(units / (units - 1))
    unseen = _QUANTILE**2 / (units + _QUANTILE**2)
    if value >= scale.limit - 1e-12:
        return Estimate(value=float(value), low=scale.limit - unseen, high=scale.limit)
    if value <= scale.lowest + 1e-12:
        return Estimate(value=float(value), low=scale.lowest, high=scale.lowest + unseen)
    if error == 0:
        return Estimate(value=float(value), low=float(value), high=float(value))
    half = student_quantile(units - 1) * error * scale.slope(value)
    centre = scale.to(value)
    low, high = scale.back(centre - half), scale.back(centre + half)
    return Estimate(value=float(value), low=low, high=high)


def percentile_estimate(value: float | None, samples: Iterable[float | None]) -> Estimate:
    """Return a statistic with the percentile interval of its samples, over hundreds of units."""
    defined = [sample for sample in samples if sample is not None and np.isfinite(sample)]
    if value is None or not defined:
        return Estimate(value=value)
    low, high = np.percentile(defined, [2.5, 97.5])
    return Estimate(value=float(value), low=float(low), high=float(high))


@lru_cache
def student_quantile(freedom: int) -> float:
    """Return the quantile of Student's t for a 95 % interval, such as 2.262 for 9 degrees.

    Raises:
        ValueError: there is no degree of freedom.
    """
    if freedom < 1:
        raise ValueError(f"{freedom} degrees of freedom; at least 1 is needed")
    z = _QUANTILE
    if freedom >= _LARGE:
        # The first terms of the expansion of t in 1 / freedom (Abramowitz and Stegun 26.7.5).
        return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    low, high = z, 13.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _student_share(middle, freedom) < 0.95 else (low, middle)
    return (low + high) / 2


def _student_share(t: float, freedom: int) -> float:
    """Return P(|T| < t) by the finite series of Abramowitz and Stegun 26.7.3 and 26.7.4."""
    angle = math.atan2(t, math.sqrt(freedom))
    sine, square = math.sin(angle), math.cos(angle) ** 2
    odd = freedom % 2
    term, total = (math.cos(angle), 0.0) if odd else (1.0, 0.0)
    for step in range(odd, freedom - 1, 2):
        total += term
        term *= square * (step + 1) / (step + 2)
    return 2 / math.pi * (angle + sine * total) if odd else sine * total


def bootstrap_estimates(
    statistic: Callable[[NDArray[np.float64]], float | None],
    units: int,
    *,
    draws: int,
    counts: NDArray[np.int64] | None = None,
    scale: Scale = PLAIN,
) -> Estimate:
    """Compute a statistic of weighted units with its interval.

    Args:
        statistic: function of (units,) weights.
        units: number of distinct units.
        draws: number of bootstrap samples.
        counts: see `resamples`.
        scale: scale of the interval.
    """
    if units == 0:
        return Estimate()
    total = units if counts is None else int(counts.sum())
    value = statistic(np.ones(units) if counts is None else counts.astype(np.float64))
    samples = map(statistic, resamples(units, draws=draws, counts=counts))
    return estimate(value, samples, units=total, scale=scale)


def correlation(x: Any, y: Any, weights: NDArray[np.float64]) -> float | None:
    """Return Pearson's correlation of weighted values; None if either side is constant."""
    total = weights.sum()
    dx, dy = x - (weights @ x) / total, y - (weights @ y) / total
    square = (weights @ (dx * dx)) * (weights @ (dy * dy))
    # The variance of a constant side may differ from 0 by floating-point error.
    # `square` contains total**2, so the bound is one on the product of the two variances.
    if not square > 1e-24 * total**2:
        return None
    return float((weights @ (dx * dy)) / np.sqrt(square))


class Ranked:
    """Values prepared for repeated ranking under different weights.

    Attributes:
        codes: (n,) index of each value among the sorted distinct values.
        distinct: number of distinct values.
    """

    def __init__(self, values: Any) -> None:
        # Round, so that values that differ only by floating-point error are ties.
        unique, codes = np.unique(
            np.round(np.asarray(values, dtype=np.float64), 9), return_inverse=True
        )
        # Values are sorted once; a sample then costs a count of codes, not a sort.
        self.codes, self.distinct = codes, len(unique)

    def ranks(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return (n,) mean ranks from 1; a value of weight w counts as w equal values."""
        sizes = np.bincount(self.codes, weights=weights, minlength=self.distinct)
        # A value of weight w that ends at rank r has the ranks r - w + 1 to r; this is their mean.
        return (np.cumsum(sizes) - (sizes - 1) / 2)[self.codes]


class RankedWithin:
    """Values ranked within groups, centred and divided by the weight of the group.

    This removes every difference between the groups, whatever its form.
    """

    def __init__(self, values: Any, parts: Any) -> None:
        _, self._part = np.unique(np.asarray(parts), return_inverse=True)
        both = np.stack([self._part, Ranked(values).codes])
        unique, self._codes = np.unique(both, axis=1, return_inverse=True)
        # Columns are sorted by group first, so the values of a group are consecutive.
        self._part_of = unique[0]
        # `initial`, because an empty array has no maximum.
        self._first = np.searchsorted(self._part_of, np.arange(self._part.max(initial=-1) + 1))

    def ranks(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return (n,) ranks in [-0.5, 0.5]; a value of weight w counts as w equal values."""
        sizes = np.bincount(self._codes, weights=weights, minlength=len(self._part_of))
        upto = np.cumsum(sizes)
        # The weight of all groups before this one: ranks restart at 1 in each group.
        before = (upto - sizes)[self._first][self._part_of]
        totals = np.add.reduceat(sizes, self._first)[self._part_of]
        ranks = upto - (sizes - 1) / 2 - before
        # A bootstrap sample may contain no value of a group: do not divide by 0.
        centred = (ranks - (totals + 1) / 2) / np.where(totals > 0, totals, 1.0)
        return centred[self._codes]


def weighted_spearman(
    x: Ranked | RankedWithin, y: Ranked | RankedWithin, weights: NDArray[np.float64]
) -> float | None:
    """Return Spearman's rho of weighted values; ties get their mean rank."""
    return correlation(x.ranks(weights), y.ranks(weights), weights)


def rank_correlation(x: Any, y: Any, *, draws: int, parts: Any = None) -> Estimate:
    """Compute Spearman's rho of two columns with its interval.

    Args:
        x: (n,) values.
        y: (n,) values.
        draws: number of bootstrap samples.
        parts: (n,) group of each row; if given, ranks are taken within groups (`RankedWithin`).
    """
    sides = [Ranked(x).codes, Ranked(y).codes]
    if parts is not None:
        sides.append(np.unique(np.asarray(parts), return_inverse=True)[1])
    if not len(sides[0]):
        return Estimate()
    # Equal rows are resampled as one weighted unit: the distribution is the same, and there are
    # fewer rows to rank if there are few distinct values.
    rows, counts = np.unique(np.stack(sides), axis=1, return_counts=True)
    if parts is None:
        ranked = [Ranked(side) for side in rows]
    else:
        ranked = [RankedWithin(side, rows[2]) for side in rows[:2]]
    return bootstrap_estimates(
        lambda weights: weighted_spearman(ranked[0], ranked[1], weights),
        rows.shape[1],
        draws=draws,
        counts=counts,
        scale=FISHER,
    )
