"""The slope of labels on signed gaps: by hand, by an independent maximisation, and at the edges."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sp2dpo.betas.label_slope import LabelSlope, fit_slope


def test_agreements_and_contradictions_at_one_gap_give_the_log_odds_with_half_added():
    # With one distinct |gap|, Firth's penalty adds half a case to either outcome.
    fit = fit_slope([0.4] * 7 + [-0.4] * 2)
    assert fit.slope == pytest.approx(math.log(7.5 / 2.5) / 0.4, rel=1e-9)
    assert fit.pairs == 9


def test_the_interval_ends_where_twice_the_penalised_likelihood_falls_by_the_quantile():
    def penalised(k):
        p = 1 / (1 + math.exp(-0.4 * k))
        # 7 log p + 2 log(1 - p) + 1/2 log(9 x 0.4^2 p (1 - p))
        return 7.5 * math.log(p) + 2.5 * math.log(1 - p) + math.log(9 * 0.16) / 2

    fit = fit_slope([0.4] * 7 + [-0.4] * 2)
    top = penalised(fit.slope)
    for end in (fit.low, fit.high):
        assert 2 * (top - penalised(end)) == pytest.approx(3.841459, abs=1e-6)
    assert fit.low < 0 < fit.slope < fit.high


def test_labels_that_are_never_contradicted_give_a_finite_slope():
    # Half a case against 20: log(20.5 / 0.5) / 0.5.
    fit = fit_slope([0.5] * 20)
    assert fit.slope == pytest.approx(2 * math.log(41), rel=1e-9)
    assert 0 < fit.low < fit.slope < fit.high < math.inf
    opposed = fit_slope([-0.5] * 20)
    expected = LabelSlope(slope=-fit.slope, low=-fit.high, high=-fit.low, pairs=20)
    assert opposed == expected


def test_gaps_of_zero_carry_no_information():
    assert fit_slope([]) == LabelSlope(slope=None, low=None, high=None, pairs=0)
    assert fit_slope([0.0, 1e-12, -1e-12]).slope is None
    with_zeros = fit_slope([0.3, -0.2, 0.6, 0.0, 0.0, 1e-15])
    assert with_zeros == fit_slope([0.3, -0.2, 0.6])
    assert with_zeros.pairs == 3


def test_gaps_that_cancel_give_a_slope_of_zero_and_an_interval_around_it():
    fit = fit_slope([0.3, -0.3, 0.7, -0.7])
    assert fit.slope == pytest.approx(0, abs=1e-9)
    assert fit.low == pytest.approx(-fit.high, rel=1e-9)


def test_known_truths_turn_the_gaps_of_wrong_labels():
    gaps, right = [0.5, -0.4, 0.2, 0.9], [True, False, False, True]
    assert fit_slope(gaps, right) == fit_slope([0.5, 0.4, -0.2, 0.9])


def test_what_is_no_gap_is_refused():
    with pytest.raises(ValueError, match=r"signed_gaps\[1\] is nan; leave out pairs without a gap"):
        fit_slope([0.1, math.nan])
    with pytest.raises(ValueError, match=r"shape \(1, 2\); it must be \(n,\)"):
        fit_slope([[0.1, 0.2]])
    with pytest.raises(ValueError, match=r"right has the shape \(1,\), signed_gaps \(2,\)"):
        fit_slope([0.1, 0.2], [True])
    with pytest.raises(ValueError, match="must be boolean"):
        fit_slope([0.1, 0.2], [0.9, 1.0])


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.floats(-1, 1).map(lambda gap: round(gap, 2)).filter(lambda gap: gap != 0),
        min_size=1,
        max_size=60,
    )
)
def test_no_slope_nearby_is_more_likely_and_the_order_does_not_matter(gaps):
    z = np.array(gaps)

    def penalised(k):
        p = 1 / (1 + np.exp(-k * z))
        return np.log(p).sum() + np.log((z**2 * p * (1 - p)).sum()) / 2

    fit = fit_slope(gaps)
    assert fit.low < fit.slope < fit.high
    for factor in (0.999, 1.001):
        assert penalised(fit.slope * factor) <= penalised(fit.slope) + 1e-9
    for end in (fit.low, fit.high):
        if abs(end) * np.abs(z).max() < 30:  # beyond, this plain formula overflows
            assert 2 * (penalised(fit.slope) - penalised(end)) == pytest.approx(3.841459, abs=1e-5)
    assert fit_slope(gaps[::-1]) == fit


def test_the_largest_corpus_takes_no_memory_for_each_pair_and_a_sure_tiny_gap_does_not_end_it():
    gaps = np.r_[np.full(60_000, 0.8), 1e-6]
    fit = fit_slope(gaps)
    assert fit.pairs == 60_001
    assert 0 < fit.low < fit.slope < fit.high < math.inf


@pytest.mark.slow
@pytest.mark.parametrize("truth", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("pairs", [20, 50, 300])
def test_the_interval_covers_the_true_slope(truth, pairs):
    rng = np.random.default_rng(pairs + int(truth))
    covered = 0
    for _ in range(400):
        gaps = rng.uniform(0, 1, pairs) ** 2
        right = rng.random(pairs) < 1 / (1 + np.exp(-truth * gaps))
        fit = fit_slope(np.where(right, gaps, -gaps))
        covered += fit.low <= truth <= fit.high
    # Four standard errors of 400 trials at 0.95 are 0.044.
    assert covered / 400 == pytest.approx(0.95, abs=0.044)
