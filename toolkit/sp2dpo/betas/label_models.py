"""Fit two models of which labels are right, without any known truth.

`fit_classes` is the model of Dawid and Skene (1979, Applied Statistics 28:20) with the label as one
more annotator; `fit_anchored` is logistic regression with label noise (Bootkrajang and Kaban 2012,
ECML PKDD, LNCS 7523:143). Bins, priors and symmetries are our choice.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq, minimize
from scipy.special import expit, logit
from scipy.stats import chi2

Floats = NDArray[np.float64]

BIN_EDGES = (0.02, 0.15, 0.45)
"""Bounds of |s_ai| between the bins; below the first, a teacher has no preference."""
_MIDDLE = len(BIN_EDGES)
_BINS = 2 * _MIDDLE + 1
_MISSING = _BINS
"""Bin of a teacher without a reply, which has the same probability in both classes."""
_RIGHT, _WRONG = 9.0, 3.0
"""Parameters of the Beta prior of the share of right labels; its mean is 0.75."""
_PSEUDO_COUNT = 1.0
"""Observations added to each bin of each teacher: a Dirichlet(2) prior."""
_LIMITS = (0.5, 1 - 1e-6)
"""Range of the share of right labels. Below 1/2, the classes would only exchange their names."""
_MAX_STEPS = 5_000
_TOLERANCE = 1e-10
"""EM has converged if a step adds less than this to the mean log posterior of a pair."""
_SLOPE_SCALE = 10.0
"""Standard deviation of the normal prior of the slope c."""
_HALF_WIDTH = chi2.ppf(0.95, 1) / 2
"""Fall of the log-likelihood at the ends of a 95 % interval."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate with its 95 % interval of the profile likelihood."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class ClassModel:
    """A fitted model with two classes: the label is right, or it is wrong.

    Attributes:
        right: (N,) posterior probability that the label is right.
        label_accuracy: Share of right labels, the prior of the class.
        emissions: (2, T, 7) probability of each bin of a teacher's signed gap, from strongly
            against the label to strongly for it; first if the label is right, then if it is wrong.
        iterations: Number of EM steps.
        converged: Whether EM converged within 5,000 steps.
    """

    right: Floats
    label_accuracy: Interval
    emissions: Floats
    iterations: int
    converged: bool

    @property
    def teacher_accuracy(self) -> Floats:
        """(T,) probability that a teacher that prefers a response prefers the better one."""
        right, wrong = self.emissions
        a = self.label_accuracy.estimate
        for_label, against = slice(_MIDDLE + 1, None), slice(None, _MIDDLE)
        better = a * right[:, for_label].sum(1) + (1 - a) * wrong[:, against].sum(1)
        worse = a * right[:, against].sum(1) + (1 - a) * wrong[:, for_label].sum(1)
        return better / (better + worse)


@dataclass(frozen=True, kw_only=True)
class AnchoredModel:
    """A fitted logistic regression with label noise.

    Attributes:
        right: (N,) posterior probability that the label is right.
        label_accuracy: a, the probability that a label is right.
        slope: c, the slope of the panel's log odds.
    """

    right: Floats
    label_accuracy: Interval
    slope: float


def fit_classes(by_teacher: Floats, *, mirrored: bool) -> ClassModel:
    """Fit the model of `soft_labels.Latent` by EM.

    Args:
        by_teacher: (N, T) signed gaps, NaN where missing.
        mirrored: Whether a teacher is as often wrong about wrong labels as about right ones, so
            that its bins are mirrored between the classes, as with blind teachers. Otherwise both
            classes have their own probabilities.
    """
    patterns, inverse, counts = np.unique(
        _bins(by_teacher), axis=0, return_inverse=True, return_counts=True
    )
    start = _Parameters.first(by_teacher.shape[1])
    em = _run_em(patterns, counts, start, mirrored=mirrored)

    def fall(accuracy: float) -> float:
        fixed = replace(em.parameters, accuracy=accuracy)
        there = _run_em(patterns, counts, fixed, mirrored=mirrored, fix_accuracy=True)
        return em.objective - there.objective

    accuracy = em.parameters.accuracy
    low, high = _interval(fall, accuracy)
    return ClassModel(
        right=em.right[inverse.reshape(-1)],
        label_accuracy=Interval(estimate=accuracy, low=low, high=high),
        emissions=em.parameters.emissions,
        iterations=em.iterations,
        converged=em.converged,
    )


def fit_anchored(signed_gaps: Floats) -> AnchoredModel:
    """Fit the model of `soft_labels.Anchored` to (N,) signed gaps."""

    def fit(limits: tuple[float, float], slopes: tuple[float, ...]) -> tuple[float, float, float]:
        """Return the best objective, a and c with a within the limits."""
        tries = [
            minimize(
                _anchored_loss,
                (np.clip(0.8, *limits), slope),
                args=(signed_gaps,),
                jac=True,
                bounds=(limits, (0.0, None)),
            )
            for slope in slopes
        ]
        best = min(tries, key=lambda result: result.fun)
        return -float(best.fun), float(best.x[0]), float(best.x[1])

    # The likelihood can have several maxima: a steep curve with many wrong labels is like a flat
    # curve with few.
    objective, accuracy, slope = fit(_LIMITS, (0.5, 3.0, 10.0))
    low, high = _interval(
        lambda at: objective - fit((at, at), (slope, 3.0))[0],
        accuracy,
    )
    return AnchoredModel(
        right=expit(logit(accuracy) + slope * signed_gaps),
        label_accuracy=Interval(estimate=accuracy, low=low, high=high),
        slope=slope,
    )


def _anchored_loss(parameters: Floats, s: Floats) -> tuple[float, Floats]:
    """Return the negative log posterior of (a, c), and its gradient."""
    a, c = parameters
    teacher = expit(c * s)
    agrees = (1 - a) + (2 * a - 1) * teacher
    prior = (_RIGHT - 1) * np.log(a) + (_WRONG - 1) * np.log(1 - a) - (c / _SLOPE_SCALE) ** 2 / 2
    by_a = ((2 * teacher - 1) / agrees).sum() + (_RIGHT - 1) / a - (_WRONG - 1) / (1 - a)
    by_c = ((2 * a - 1) * teacher * (1 - teacher) * s / agrees).sum() - c / _SLOPE_SCALE**2
    return -float(np.log(agrees).sum() + prior), -np.array([by_a, by_c])


def _bins(by_teacher: Floats) -> NDArray[np.int64]:
    """Return the bin of each signed gap; opposite gaps have opposite places around the middle."""
    place = np.searchsorted(BIN_EDGES, np.abs(by_teacher), side="right")
    bins = _MIDDLE + np.where(by_teacher < 0, -place, place)
    return np.where(np.isnan(by_teacher), _MISSING, bins)


@dataclass(frozen=True, kw_only=True)
class _Parameters:
    """Share of right labels, and emissions (2, T, 7) as in `ClassModel`."""

    accuracy: float
    emissions: Floats

    @classmethod
    def first(cls, teachers: int) -> "_Parameters":
        """Return where EM starts: labels mostly right, teachers slightly better than chance."""
        rising = np.linspace(0.6, 1.4, _BINS) / _BINS
        right = np.tile(rising, (teachers, 1))
        accuracy = _RIGHT / (_RIGHT + _WRONG)
        return cls(accuracy=accuracy, emissions=np.stack([right, right[:, ::-1]]))


@dataclass(frozen=True, kw_only=True)
class _Em:
    """Result of EM: (P,) posterior of each pattern, the parameters, and the log posterior."""

    right: Floats
    parameters: _Parameters
    objective: float
    iterations: int
    converged: bool


def _run_em(
    patterns: NDArray[np.int64],
    counts: NDArray[np.int64],
    parameters: _Parameters,
    *,
    mirrored: bool,
    fix_accuracy: bool = False,
) -> _Em:
    """Maximise the posterior by EM.

    Args:
        patterns: (P, T) the different rows of bins.
        counts: (P,) number of pairs with each.
        parameters: Where to start.
        mirrored: Whether the bins of the second class are those of the first, reversed.
        fix_accuracy: Whether the share of right labels keeps its value.
    """
    total = counts.sum()
    # One row of indicators for each pattern and teacher; a missing reply has none.
    hot = (patterns[:, :, None] == np.arange(_BINS)).astype(float)
    before = -np.inf
    for step in range(1, _MAX_STEPS + 1):
        accuracy, logs = parameters.accuracy, np.log(parameters.emissions)
        by_class = np.einsum("ptb,ctb->cp", hot, logs)
        by_class += np.log([[accuracy], [1 - accuracy]])
        likelihood = np.logaddexp(*by_class)
        right = np.exp(by_class[0] - likelihood)
        prior = (_RIGHT - 1) * np.log(accuracy) + (_WRONG - 1) * np.log(1 - accuracy)
        # Mirrored bins are one set of parameters, so their prior counts once.
        prior += _PSEUDO_COUNT * logs[: 1 if mirrored else 2].sum()
        objective = float(counts @ likelihood + prior)
        converged = objective - before <= _TOLERANCE * total
        if converged or step == _MAX_STEPS:
            return _Em(
                right=right, parameters=parameters, objective=objective, iterations=step,
                converged=bool(converged),
            )  # fmt: skip
        before = objective
        if not fix_accuracy:
            expected = (counts @ right + _RIGHT - 1) / (total + _RIGHT + _WRONG - 2)
            accuracy = float(np.clip(expected, *_LIMITS))
        in_bins = np.einsum("cp,ptb->ctb", counts * np.stack([right, 1 - right]), hot)
        if mirrored:
            in_bins = in_bins[0] + in_bins[1, :, ::-1] + _PSEUDO_COUNT
            emissions = np.stack([in_bins, in_bins[:, ::-1]])
        else:
            emissions = in_bins + _PSEUDO_COUNT
        emissions /= emissions.sum(-1, keepdims=True)
        parameters = _Parameters(accuracy=accuracy, emissions=emissions)
    raise AssertionError("the loop returns at its last step")


def _interval(fall: Callable[[float], float], estimate: float) -> tuple[float, float]:
    """Return where the profile falls by `_HALF_WIDTH` on both sides, within `_LIMITS`."""

    def end(limit: float) -> float:
        if fall(limit) <= _HALF_WIDTH:
            return limit
        root: Any = brentq(lambda at: fall(at) - _HALF_WIDTH, limit, estimate, xtol=1e-4)
        return float(root)

    return end(_LIMITS[0]), end(_LIMITS[1])
