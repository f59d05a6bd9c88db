"""Intervals by the bootstrap: pairs are drawn again with replacement, what is computed stays.

95 % percentile intervals (Efron 1979) over whole pairs, since the replies about one pair depend on
each other. The draws are seeded: what is computed twice is the same, and two statistics that are
resampled over the same units see the same draws.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

DRAWS = 1000
"""Bootstrap samples, unless one asks for another number."""
SEED = 0
LOW, HIGH = 2.5, 97.5
"""Percentiles: the ends of an interval that holds 95 %."""


def resamples(
    units: int, *, draws: int, counts: NDArray[np.int64] | None = None
) -> Iterator[NDArray[np.float64]]:
    """How often each unit is drawn, in one bootstrap sample after the other.

    Args:
        units: rows of what is resampled.
        draws: samples.
        counts: how many units each row stands for; 1 each where it is None.

    Yields:
        (units,) numbers from 0, their sum that of the counts.
    """
    rng = np.random.default_rng(SEED)
    for _ in range(draws):
        if counts is None:
            yield np.bincount(rng.integers(units, size=units), minlength=units).astype(np.float64)
        else:
            total = int(counts.sum())
            yield rng.multinomial(total, counts / total).astype(np.float64)


def estimate(value: float | None, drawn: Iterable[float | None]) -> dict[str, float | None]:
    """A value with its interval, as JSON.

    Args:
        value: of the whole sample; None where it is not defined.
        drawn: of the bootstrap samples; those where it is not defined are left out.

    Returns:
        value, low, high; low and high are None where the value is.
    """
    told = [one for one in drawn if one is not None and np.isfinite(one)]
    if value is None or not told:
        return {"value": value, "low": None, "high": None}
    low, high = np.percentile(told, [LOW, HIGH])
    return {"value": float(value), "low": float(low), "high": float(high)}


def bootstrap_estimates(
    statistic: Callable[[NDArray[np.float64]], float | None],
    units: int,
    *,
    draws: int,
    counts: NDArray[np.int64] | None = None,
) -> dict[str, float | None]:
    """A statistic of weighted units with its interval; see `estimate`.

    Args:
        statistic: of (units,) weights.
        units: how many.
        draws: bootstrap samples.
        counts: as `resamples`.
    """
    if units == 0:
        return {"value": None, "low": None, "high": None}
    value = statistic(np.ones(units) if counts is None else counts.astype(np.float64))
    return estimate(value, map(statistic, resamples(units, draws=draws, counts=counts)))


def correlation(x: Any, y: Any, weights: NDArray[np.float64]) -> float | None:
    """Pearson's correlation of weighted values; None where one side is all equal."""
    total = weights.sum()
    dx, dy = x - (weights @ x) / total, y - (weights @ y) / total
    square = (weights @ (dx * dx)) * (weights @ (dy * dy))
    if not square > 1e-24 * total**2:
        return None
    return float((weights @ (dx * dy)) / np.sqrt(square))


class Ranked:
    """Values whose ranks are wanted again and again, under other weights.

    Attributes:
        codes: (n,) which of the distinct values, in their order, each one is.
        distinct: how many there are.
    """

    def __init__(self, values: Any) -> None:
        found, codes = np.unique(
            np.round(np.asarray(values, dtype=np.float64), 9), return_inverse=True
        )
        self.codes, self.distinct = codes, len(found)

    def ranks(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """(n,) mean ranks from 1, a value of weight w standing for w equal ones."""
        sizes = np.bincount(self.codes, weights=weights, minlength=self.distinct)
        return (np.cumsum(sizes) - (sizes - 1) / 2)[self.codes]


class RankedWithin:
    """Values ranked each within its own part, centred, as shares of the part's weight.

    What differs between the parts is taken out, whatever its form.
    """

    def __init__(self, values: Any, parts: Any) -> None:
        _, self._part = np.unique(np.asarray(parts), return_inverse=True)
        both = np.stack([self._part, Ranked(values).codes])
        found, self._codes = np.unique(both, axis=1, return_inverse=True)
        self._part_of = found[0]
        self._first = np.searchsorted(self._part_of, np.arange(self._part.max(initial=-1) + 1))

    def ranks(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """(n,) in [-0.5, 0.5]; a value of weight w stands for w equal ones."""
        sizes = np.bincount(self._codes, weights=weights, minlength=len(self._part_of))
        upto = np.cumsum(sizes)
        before = (upto - sizes)[self._first][self._part_of]
        totals = np.add.reduceat(sizes, self._first)[self._part_of]
        ranks = upto - (sizes - 1) / 2 - before
        centred = (ranks - (totals + 1) / 2) / np.where(totals > 0, totals, 1.0)
        return centred[self._codes]


def spearman(
    one: Ranked | RankedWithin, other: Ranked | RankedWithin, weights: NDArray[np.float64]
) -> float | None:
    """Spearman's rho of weighted values, ties given their mean rank."""
    return correlation(one.ranks(weights), other.ranks(weights), weights)


def rank_correlation(
    one: Any, other: Any, *, draws: int, parts: Any = None
) -> dict[str, float | None]:
    """Spearman's rho of two columns with its interval; see `estimate`.

    Equal rows are drawn together, which is the same and, where values are few, quicker.

    Args:
        one: (n,) values.
        other: (n,) values.
        draws: bootstrap samples.
        parts: (n,) where given, ranks are taken within equal ones: see `RankedWithin`.
    """
    sides = [Ranked(one).codes, Ranked(other).codes]
    if parts is not None:
        sides.append(np.unique(np.asarray(parts), return_inverse=True)[1])
    if not len(sides[0]):
        return estimate(None, [])
    rows, counts = np.unique(np.stack(sides), axis=1, return_counts=True)
    if parts is None:
        ranked = [Ranked(side) for side in rows]
    else:
        ranked = [RankedWithin(side, rows[2]) for side in rows[:2]]
    return bootstrap_estimates(
        lambda weights: spearman(ranked[0], ranked[1], weights),
        rows.shape[1],
        draws=draws,
        counts=counts,
    )
