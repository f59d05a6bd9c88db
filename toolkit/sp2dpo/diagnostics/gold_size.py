"""How many known labels a gold file needs for the rule `gold` of a pilot to have a wanted power.

The rule passes if the lower end of the interval of the balanced accuracy (`intervals.mean_share`)
is above chance. Its power is the probability of that, for teachers who are right about a given
share of the pairs with each true label: the sum over both binomial distributions, without an
approximation. Sizes are our choice where no source is given.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sp2dpo.diagnostics.agreement import wilson_interval
from sp2dpo.diagnostics.checks import FEWEST

CHANCE = 0.5
"""Accuracy of random guessing between two responses."""
POWER = 0.8
"""Power that the rule should have."""
LARGEST = 1000
"""Largest number of truths of a label that is considered: more are hardly worth their labour."""


@dataclass(frozen=True, kw_only=True)
class GoldSize:
    """Number of truths that a gold file needs.

    Attributes:
        accuracies: assumed accuracy for the pairs with each of the two true labels.
        power: wanted power of the rule.
        each: number of truths of each label; None if `LARGEST` are too few, or if the accuracies
            are on average not above `CHANCE`, so that no number would do.
        reached: power of the rule with that number; None if there is none.
    """

    accuracies: tuple[float, float]
    power: float
    each: int | None
    reached: float | None


def gold_size(accuracies: Sequence[float], *, power: float = POWER) -> GoldSize:
    """Return how many truths of each label the rule `gold` needs for a power.

    Args:
        accuracies: accuracy of the panel for the pairs with each of the two true labels, in [0, 1].
        power: wanted probability that the rule passes, above 0 and below 1.

    Raises:
        ValueError: a number is out of its range.
    """
    one, other = _check_accuracies(accuracies)
    if not 0 < power < 1:
        raise ValueError(f"power {power} must be above 0 and below 1")
    each = _needed((one, other), (0, 0), power)
    reached = None if each is None else rule_power((one, other), (each, each))
    return GoldSize(accuracies=(one, other), power=power, each=each, reached=reached)


def further_truths(shares: Sequence[float], counts: Sequence[int]) -> tuple[int, int] | None:
    """Return how many more truths of each label give the rule its `POWER` at these accuracies.

    Args:
        shares: estimated accuracy for the pairs with each of the two true labels.
        counts: number of truths of each label so far.

    Returns:
        The two numbers; None if `LARGEST` truths of each label are too few.
    """
    one, other = counts
    shares = _check_accuracies(shares)
    each = _needed(shares, (one, other), POWER)
    return None if each is None else (max(each - one, 0), max(each - other, 0))


def rule_power(accuracies: Sequence[float], counts: Sequence[int]) -> float:
    """Return the probability that the rule `gold` passes.

    Args:
        accuracies: accuracy for the pairs with each of the two true labels.
        counts: number of truths of each label; at least 1 each.
    """
    parts = [_outcomes(count) for count in counts]
    (one, one_below), (other, other_below) = parts
    low = (one[:, None] + other[None, :]) / 2 - np.hypot(
        one_below[:, None], other_below[None, :]
    ) / 2
    chances = [_binomial(count, p) for count, p in zip(counts, accuracies, strict=True)]
    return float(chances[0] @ (low > CHANCE) @ chances[1])


def _check_accuracies(accuracies: Sequence[float]) -> tuple[float, float]:
    one, other = accuracies
    for accuracy in (one, other):
        if not 0 <= accuracy <= 1:
            raise ValueError(f"accuracy {accuracy} must be from 0 to 1")
    return one, other


def _needed(accuracies: tuple[float, float], counts: tuple[int, int], power: float) -> int | None:
    """Return the number of truths of each label; a label with more already keeps its own."""

    def is_enough(each: int) -> bool:
        return rule_power(accuracies, [max(each, count) for count in counts]) >= power

    fewest = FEWEST // 2
    if sum(accuracies) / 2 <= CHANCE:
        return None
    # The power rises in a saw-tooth: doubling and halving end within a tooth of the least number.
    each = fewest
    while not is_enough(each):
        if each >= LARGEST:
            return None
        each = min(2 * each, LARGEST)
    low = each // 2
    if each == fewest or is_enough(low):
        return each if each == fewest else low
    while each - low > 1:
        middle = (low + each) // 2
        low, each = (low, middle) if is_enough(middle) else (middle, each)
    return each


def _outcomes(count: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the share of each outcome 0 to `count`, and its distance to the Wilson low end."""
    parts = [wilson_interval(right, count) for right in range(count + 1)]
    shares = np.array([part.share for part in parts], dtype=np.float64)
    return shares, shares - np.array([part.low for part in parts], dtype=np.float64)


def _binomial(count: int, p: float) -> NDArray[np.float64]:
    """Return the probability of each number of successes from 0 to `count`."""
    if p in (0.0, 1.0):
        return np.eye(count + 1)[count if p else 0]
    outcomes = np.arange(count + 1)
    logs = np.array([math.lgamma(k + 1) for k in range(count + 1)])
    logs = logs[count] - logs - logs[::-1]
    return np.exp(logs + outcomes * math.log(p) + (count - outcomes) * math.log1p(-p))
