"""Fit two models of which labels are right, without any known truth.

`fit_classes` is the model of Dawid and Skene (1979, Applied Statistics 28:20) with the label as one
more annotator; `fit_anchored` is logistic regression with label noise (Bootkrajang and Kaban 2012,
ECML PKDD, LNCS 7523:143). Bins, priors and symmetries are our choice.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sp2dpo.betas.label_fit import Interval

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
_ACCURACIES = (0.5, 1 - 1e-6)
"""Range of the share of right labels. Below 1/2, the classes would only exchange their names."""
_MAX_STEPS = 5_000
_TOLERANCE = 1e-10
"""EM has converged if a step adds less than this to the mean log posterior of a pair."""
_GROWTH = 4.0
"""Factor by which the longest extrapolation grows after a success, and shrinks after a failure."""
_SMALLEST_SHARE = 1e-12
"""Smallest probability of a bin after an extrapolation."""
_SLOPE_SCALE = 10.0
"""Standard deviation of the normal prior of the slope c."""
_STARTS = (0.5, 3.0, 10.0)
"""Slopes at which the search for c starts."""
_SLOPES = (0.0, 100.0)
"""Range of the slope c: to ten standard deviations of its prior."""
_SMALLEST_STEP = 1e-10
_HALF_WIDTH = 3.841459 / 2
"""Fall of the log posterior at the ends of a 95 % interval: half the quantile of chi-square."""
_END = 1e-5
"""Largest error of an end of an interval."""


def sigmoid(z: Floats) -> Floats:
    """Return 1 / (1 + exp(-z)), without overflow for any z; NaN for NaN."""
    small = np.exp(-np.abs(z))
    return np.where(z >= 0, 1.0, small) / (1 + small)


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
    slope: Interval


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
    return ClassModel(
        right=em.right[inverse.reshape(-1)],
        label_accuracy=_interval(fall, accuracy, _ACCURACIES),
        emissions=em.parameters.emissions,
        iterations=em.iterations,
        converged=em.converged,
    )


def fit_anchored(signed_gaps: Floats) -> AnchoredModel:
    """Fit the model of `soft_labels.Anchored` to (N,) signed gaps."""
    # A panel's gaps have few distinct values: each is evaluated once.
    gaps, inverse, counts = np.unique(signed_gaps, return_inverse=True, return_counts=True)
    posterior = _AnchoredPosterior(gaps, counts)
    # The posterior can have several maxima: a steep curve with many wrong labels is like a flat
    # curve with few.
    best = max((posterior.climb((0.8, slope)) for slope in _STARTS), key=lambda top: top.value)

    def fall_by_accuracy(accuracy: float) -> float:
        starts = (best.slope, _STARTS[1])
        tops = [posterior.climb((accuracy, slope), fixed=0).value for slope in starts]
        return best.value - max(tops)

    def fall_by_slope(slope: float) -> float:
        return best.value - posterior.climb((best.accuracy, slope), fixed=1).value

    log_odds = math.log(best.accuracy / (1 - best.accuracy))
    return AnchoredModel(
        right=sigmoid(log_odds + best.slope * gaps)[inverse],
        label_accuracy=_interval(fall_by_accuracy, best.accuracy, _ACCURACIES),
        slope=_interval(fall_by_slope, best.slope, _SLOPES),
    )


@dataclass(frozen=True, kw_only=True)
class _Top:
    """A maximum of the posterior of (a, c)."""

    value: float
    accuracy: float
    slope: float


class _AnchoredPosterior:
    """Log posterior of (a, c), with its derivatives; `counts` gaps are equal."""

    def __init__(self, gaps: Floats, counts: NDArray[np.int64]) -> None:
        self._s, self._counts = gaps, counts.astype(np.float64)

    def value(self, a: float, c: float) -> float:
        """Return the log posterior, up to a constant."""
        agrees = (1 - a) + (2 * a - 1) * sigmoid(c * self._s)
        prior = (_RIGHT - 1) * math.log(a) + (_WRONG - 1) * math.log(1 - a)
        return float(self._counts @ np.log(agrees)) + prior - (c / _SLOPE_SCALE) ** 2 / 2

    def derivatives(self, a: float, c: float) -> tuple[Floats, Floats]:
        """Return the gradient, (2,), and the expected information, (2, 2)."""
        teacher = sigmoid(c * self._s)
        agrees = (1 - a) + (2 * a - 1) * teacher
        by = np.stack([2 * teacher - 1, (2 * a - 1) * teacher * (1 - teacher) * self._s])
        gradient = by @ (self._counts / agrees)
        gradient += ((_RIGHT - 1) / a - (_WRONG - 1) / (1 - a), -c / _SLOPE_SCALE**2)
        information = (by * (self._counts / (agrees * (1 - agrees)))) @ by.T
        information += np.diag(
            ((_RIGHT - 1) / a**2 + (_WRONG - 1) / (1 - a) ** 2, 1 / _SLOPE_SCALE**2)
        )
        return gradient, information

    def climb(self, start: tuple[float, float], *, fixed: int | None = None) -> _Top:
        """Maximise by Fisher scoring within the ranges of a and c, with steps that never descend.

        Args:
            start: a and c to start from.
            fixed: 0 to keep a as it is, 1 to keep c.
        """
        at, value = np.array(start), self.value(*start)
        lowest, highest = np.array([_ACCURACIES, _SLOPES]).T
        for _ in range(_MAX_STEPS):
            gradient, information = self.derivatives(*at)
            # At the end of its range, a parameter that would leave it stays where it is.
            free = ~((at <= lowest) & (gradient < 0) | (at >= highest) & (gradient > 0))
            if fixed is not None:
                free[fixed] = False
            step = np.zeros(2)
            step[free] = np.linalg.solve(information[np.ix_(free, free)], gradient[free])
            before = value
            while value <= before and np.abs(step).max() > _SMALLEST_STEP:
                there = np.clip(at + step, lowest, highest)
                if (reached := self.value(*there)) > value:
                    at, value = there, reached
                step = step / 2
            if value - before <= _TOLERANCE * self._counts.sum():
                break
        return _Top(value=value, accuracy=float(at[0]), slope=float(at[1]))


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


@dataclass(frozen=True, kw_only=True)
class _Step:
    """One step of EM: the log posterior and `right` before it, and the parameters after it."""

    before: _Parameters
    objective: float
    right: Floats
    after: _Parameters


def _run_em(
    patterns: NDArray[np.int64],
    counts: NDArray[np.int64],
    parameters: _Parameters,
    *,
    mirrored: bool,
    fix_accuracy: bool = False,
) -> _Em:
    """Maximise the posterior by EM, extrapolated by SQUAREM.

    After every two steps, the parameters are extrapolated along the path of these steps (Varadhan
    and Roland 2008, Scandinavian Journal of Statistics 35:335, scheme S3). EM alone needs thousands
    of steps if the teachers guess. An extrapolation that lowers the posterior is discarded.

    Args:
        patterns: (P, T) the different rows of bins.
        counts: (P,) number of pairs with each.
        parameters: Where to start.
        mirrored: Whether the bins of the second class are those of the first, reversed.
        fix_accuracy: Whether the share of right labels keeps its value.
    """
    em = _ClassPosterior(patterns, counts, mirrored=mirrored, fix_accuracy=fix_accuracy)
    first, steps = em.step(parameters), 1
    longest = 1.0
    while True:
        second, steps = em.step(first.after), steps + 1
        converged = second.objective - first.objective <= em.tolerance
        if converged or steps >= _MAX_STEPS:
            return _Em(
                right=second.right, parameters=second.before, objective=second.objective,
                iterations=steps, converged=bool(converged),
            )  # fmt: skip
        length = _extrapolation_length(first, second)
        far, steps = em.step(_extrapolate(first, second, min(length, longest))), steps + 1
        if far.objective > second.objective:
            first = far
            longest *= _GROWTH if length >= longest else 1
        else:
            first, steps = em.step(second.after), steps + 1
            longest = max(1.0, longest / _GROWTH)


class _ClassPosterior:
    """The log posterior of the model with two classes, and its EM step."""

    def __init__(
        self,
        patterns: NDArray[np.int64],
        counts: NDArray[np.int64],
        *,
        mirrored: bool,
        fix_accuracy: bool,
    ) -> None:
        self._counts, self._total = counts, counts.sum()
        # (P, T x 7) one row of indicators for each pattern; a missing reply has none.
        hot = (patterns[:, :, None] == np.arange(_BINS)).astype(float)
        self._hot = hot.reshape(len(patterns), -1)
        self._mirrored, self._fix_accuracy = mirrored, fix_accuracy

    @property
    def tolerance(self) -> float:
        """Gain of the log posterior in one step below which EM has converged."""
        return _TOLERANCE * float(self._total)

    def step(self, parameters: _Parameters) -> _Step:
        """Return the posterior at some parameters, and the next parameters of EM."""
        accuracy, logs = parameters.accuracy, np.log(parameters.emissions)
        by_class = logs.reshape(2, -1) @ self._hot.T + np.log([[accuracy], [1 - accuracy]])
        likelihood = np.logaddexp(*by_class)
        right = np.exp(by_class[0] - likelihood)
        prior = (_RIGHT - 1) * np.log(accuracy) + (_WRONG - 1) * np.log(1 - accuracy)
        # Mirrored bins are one set of parameters, so their prior counts once.
        prior += _PSEUDO_COUNT * logs[: 1 if self._mirrored else 2].sum()
        if not self._fix_accuracy:
            expected = self._counts @ right + _RIGHT - 1
            accuracy = float(np.clip(expected / (self._total + _RIGHT + _WRONG - 2), *_ACCURACIES))
        in_bins = (self._counts * np.stack([right, 1 - right]) @ self._hot).reshape(logs.shape)
        if self._mirrored:
            in_bins = in_bins[0] + in_bins[1, :, ::-1] + _PSEUDO_COUNT
            emissions = np.stack([in_bins, in_bins[:, ::-1]])
        else:
            emissions = in_bins + _PSEUDO_COUNT
        emissions /= emissions.sum(-1, keepdims=True)
        return _Step(
            before=parameters,
            objective=float(self._counts @ likelihood + prior),
            right=right,
            after=_Parameters(accuracy=accuracy, emissions=emissions),
        )


def _extrapolation_length(first: _Step, second: _Step) -> float:
    """Return how far to go along the path of two steps; 1 is where the second step ends."""
    change, bend = _path(first, second)
    size = float(np.linalg.norm(bend))
    return max(1.0, float(np.linalg.norm(change)) / size) if size else 1.0


def _extrapolate(first: _Step, second: _Step, length: float) -> _Parameters:
    """Return parameters further along the path of two steps."""
    change, bend = _path(first, second)
    there = _to_vector(first.before) + 2 * length * change + length**2 * bend
    logs = there[1:].reshape(second.after.emissions.shape)
    emissions = np.exp(logs - logs.max(-1, keepdims=True)).clip(_SMALLEST_SHARE)
    return _Parameters(
        accuracy=float(np.clip(sigmoid(there[0]), *_ACCURACIES)),
        emissions=emissions / emissions.sum(-1, keepdims=True),
    )


def _path(first: _Step, second: _Step) -> tuple[Floats, Floats]:
    """Return the first and the second difference of the parameters along two steps."""
    points = [_to_vector(each) for each in (first.before, second.before, second.after)]
    return points[1] - points[0], points[2] - 2 * points[1] + points[0]


def _to_vector(parameters: _Parameters) -> Floats:
    """Return the parameters as log odds and log probabilities, which have no bounds."""
    log_odds = np.log(parameters.accuracy) - np.log1p(-parameters.accuracy)
    return np.concatenate([[log_odds], np.log(parameters.emissions).ravel()])


def _interval(
    fall: Callable[[float], float], estimate: float, limits: tuple[float, float]
) -> Interval:
    """Return the interval in which the profile falls by less than `_HALF_WIDTH`, within limits."""

    def excess(at: float) -> float:
        # The root of the fall is nearly linear, so that few evaluations find the end.
        return math.sqrt(max(0.0, fall(at))) - math.sqrt(_HALF_WIDTH)

    def end(limit: float) -> float:
        if limit == estimate or (outside := excess(limit)) <= 0:
            return limit
        return _find_root(excess, (estimate, -math.sqrt(_HALF_WIDTH)), (limit, outside))

    return Interval(estimate=estimate, low=end(limits[0]), high=end(limits[1]))


def _find_root(
    function: Callable[[float], float], inside: tuple[float, float], outside: tuple[float, float]
) -> float:
    """Return a root between two places, each with its value, by regula falsi (Illinois)."""
    side = 0
    while abs(outside[0] - inside[0]) > _END:
        share = inside[1] / (inside[1] - outside[1])
        at = inside[0] + share * (outside[0] - inside[0])
        value = function(at)
        if abs(value) < _END:
            return at
        if value < 0:
            # A second point on the same side: halve the value at the other, so that it moves too.
            outside = (outside[0], outside[1] / 2) if side == -1 else outside
            inside, side = (at, value), -1
        else:
            inside = (inside[0], inside[1] / 2) if side == 1 else inside
            outside, side = (at, value), 1
    return (inside[0] + outside[0]) / 2
