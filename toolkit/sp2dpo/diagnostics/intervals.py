"""Confidence intervals in closed form: of an AUC, of a mean of shares.

All intervals are 95 % intervals.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from sp2dpo.diagnostics.agreement import Proportion, Z
from sp2dpo.diagnostics.bootstrap import Estimate, Ranked

_BISECTIONS = 60


def auc_estimate(positive: ArrayLike, negative: ArrayLike) -> Estimate:
    """Return the AUC of two samples with its interval.

    The AUC is the probability that a positive case has a higher score than a negative one; equal
    scores count one half.

    Args:
        positive: (m,) scores of the positive cases.
        negative: (n,) scores of the negative cases.

    Returns:
        The estimate; undefined if either sample is empty.
    """
    above, below = np.asarray(positive, float), np.asarray(negative, float)
    m, n = len(above), len(below)
    if not m or not n:
        return Estimate()
    ranks = Ranked(np.concatenate([above, below])).ranks(np.ones(m + n))
    # The Mann-Whitney U statistic of the positive cases, divided by its maximum.
    auc = (float(ranks[:m].sum()) - m * (m + 1) / 2) / (m * n)
    low, high = newcombe_interval(auc, m, n)
    return Estimate(value=auc, low=low, high=high)


def newcombe_interval(auc: float, m: int, n: int) -> tuple[float, float]:
    """Return the interval of an AUC: method 5 of Newcombe (2006, Statistics in Medicine 25:559).

    The ends are the values t on either side of the AUC with |AUC - t| = z sqrt(V(t)), where

        V(t) = t (1 - t) / (m n) (1 + (N - 1) ((1 - t) / (2 - t) + t / (1 + t))),   N = (m + n) / 2

    is Hanley and McNeil's variance with both m - 1 and n - 1 replaced by N - 1. It is a score
    interval: it stays in [0, 1], and has a width above 0 for an AUC of 0 or 1.

    Args:
        auc: the estimate, in [0, 1].
        m: number of positive cases, at least 1.
        n: number of negative cases, at least 1.

    Raises:
        ValueError: a number is out of its range.
    """
    if not 0 <= auc <= 1 or m < 1 or n < 1:
        raise ValueError(f"AUC {auc} of {m} and {n} cases: it must be in [0, 1], of 1 case or more")
    mean_count = (m + n) / 2

    def is_inside(t: float) -> bool:
        spread = 1 + (mean_count - 1) * ((1 - t) / (2 - t) + t / (1 + t))
        return (auc - t) ** 2 <= Z**2 * t * (1 - t) * spread / (m * n)

    # V is 0 at 0 and at 1, so an AUC of 0 or 1 is the end on its own side.
    low = 0.0 if auc == 0 else _find_end(is_inside, auc, 0.0)
    high = 1.0 if auc == 1 else _find_end(is_inside, auc, 1.0)
    return low, high


def _find_end(is_inside: Callable[[float], bool], inside: float, outside: float) -> float:
    for _ in range(_BISECTIONS):
        middle = (inside + outside) / 2
        if is_inside(middle):
            inside = middle
        else:
            outside = middle
    return (inside + outside) / 2


def mean_share(parts: Sequence[Proportion]) -> Estimate:
    """Return the unweighted mean of independent shares with its MOVER interval.

        low = mean - sqrt(sum_i (share_i - low_i)^2) / k,   high = mean + sqrt(...) / k

    for k shares: the distances to the ends of each share's own (Wilson) interval are squared and
    added (Newcombe 1998, Statistics in Medicine 17:873; Zou and Donner 2008, Statistics in Medicine
    27:1693). The mean of the low ends would be lower: it supposes that all shares err together.

    Returns:
        The estimate; undefined without any share, or if one of them is of no case.
    """
    shares, below, above = [], [], []
    for part in parts:
        if part.share is None or part.low is None or part.high is None:
            return Estimate()
        shares.append(part.share)
        below.append(part.share - part.low)
        above.append(part.high - part.share)
    if not shares:
        return Estimate()
    mean, k = math.fsum(shares) / len(shares), len(shares)
    low, high = mean - math.hypot(*below) / k, mean + math.hypot(*above) / k
    return Estimate(value=mean, low=max(0.0, low), high=min(1.0, high))
