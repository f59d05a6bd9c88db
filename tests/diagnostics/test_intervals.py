"""Intervals of an AUC and of a mean of shares: by their equations, at the edges, by simulation."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sp2dpo.diagnostics.agreement import wilson_interval
from sp2dpo.diagnostics.bootstrap import Estimate
from sp2dpo.diagnostics.intervals import auc_estimate, mean_share, newcombe_interval

Z = 1.959964


def variance(t, m, n):
    """V(t) of method 5, written from the paper's equation."""
    mean_count = 0.5 * (m + n)
    return t * (1 - t) * (1 + (mean_count - 1) * ((1 - t) / (2 - t) + t / (1 + t))) / (m * n)


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.floats(0.02, 0.98))
def test_either_end_is_as_far_off_as_the_variance_at_this_end_says(m, n, auc):
    low, high = newcombe_interval(auc, m, n)
    assert 0 < low < auc < high < 1
    for end in (low, high):
        assert (auc - end) ** 2 == pytest.approx(Z**2 * variance(end, m, n), rel=1e-6)
    turned = newcombe_interval(1 - auc, m, n)
    assert turned == pytest.approx((1 - high, 1 - low), abs=1e-9)
    assert newcombe_interval(auc, n, m) == pytest.approx((low, high))


def test_one_case_of_each_by_hand():
    # m = n = 1: V(t) = t (1 - t), so (1 - t)^2 = z^2 t (1 - t) and t = 1 / (1 + z^2).
    low, high = newcombe_interval(1.0, 1, 1)
    assert (low, high) == (pytest.approx(1 / (1 + Z**2)), 1.0)
    assert newcombe_interval(0.0, 1, 1) == (0.0, pytest.approx(Z**2 / (1 + Z**2)))


def test_equal_scores_count_one_half_and_an_empty_side_has_no_auc():
    estimate = auc_estimate([2.0, 1.0], [1.0, 0.0, 0.1 + 0.2 - 0.3])
    # 2 is above three; 1 is above two and equal to one.
    assert estimate.value == pytest.approx((3 + 2.5) / 6)
    assert auc_estimate([1.0, 1.0], [1.0]).value == 0.5
    assert auc_estimate([], [1.0]) == auc_estimate([1.0], []) == Estimate()
    apart = auc_estimate([2.0, 3.0], [0.0, 1.0])
    assert (apart.value, apart.high) == (1.0, 1.0)
    assert 0.2 < apart.low < 0.6
    with pytest.raises(ValueError, match=r"AUC 1\.5 of 2 and 2 cases: it must be in"):
        newcombe_interval(1.5, 2, 2)
    with pytest.raises(ValueError, match="of 1 case or more"):
        newcombe_interval(0.5, 0, 2)


def test_the_mean_of_shares_squares_and_adds_their_distances():
    one, other = wilson_interval(6, 8), wilson_interval(30, 42)
    mean = mean_share([one, other])
    assert mean.value == pytest.approx((6 / 8 + 30 / 42) / 2)
    low = math.sqrt((one.share - one.low) ** 2 + (other.share - other.low) ** 2) / 2
    high = math.sqrt((one.high - one.share) ** 2 + (other.high - other.share) ** 2) / 2
    assert mean.low == pytest.approx(mean.value - low)
    assert mean.high == pytest.approx(mean.value + high)
    # Closer than the mean of both low ends, which supposes that both err together.
    assert mean.low > (one.low + other.low) / 2
    alone = mean_share([one])
    assert (alone.low, alone.high) == (pytest.approx(one.low), pytest.approx(one.high))
    assert mean_share([one, wilson_interval(0, 0)]) == mean_share([]) == Estimate()


def scores(rng, pairs, noise):
    """Gaps of right and of wrong labels (about one in eight) from three noisy teachers."""
    wrong = rng.random(pairs) < 0.12
    truth = np.abs(rng.normal(1.2, 1, pairs)) * np.where(wrong, -1, 1)
    readings = truth[:, None] + noise * rng.normal(size=(pairs, 3))
    gaps = np.round(np.clip(readings / 4, -1, 1).mean(axis=1), 2)
    return -gaps[wrong], -gaps[~wrong]


@pytest.mark.slow
@pytest.mark.parametrize("pairs", [50, 300])
@pytest.mark.parametrize("noise", [0.3, 1.0, 4.0])
def test_the_interval_of_an_auc_covers_it(noise, pairs):
    rng = np.random.default_rng(pairs)
    truth = auc_estimate(*scores(rng, 100_000, noise)).value
    covered, defined = 0, 0
    for _ in range(600):
        estimate = auc_estimate(*scores(rng, pairs, noise))
        if estimate.value is not None:
            defined += 1
            covered += estimate.low <= truth <= estimate.high
    # The method is conservative for few cases; three standard errors of 600 trials are 0.027.
    assert covered / defined >= 0.95 - 0.027
