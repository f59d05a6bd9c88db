"""Krippendorff's alpha and the bootstrap, held to the package and to brute force."""

import math

import krippendorff
import numpy as np
import pytest

from sp2dpo.diagnostics.agreement import wilson_interval
from sp2dpo.diagnostics.alpha import Alpha, Ratings, alpha_from_entries
from sp2dpo.diagnostics.bootstrap import (
    DISAGREEMENT,
    FISHER,
    Estimate,
    Ranked,
    RankedWithin,
    bootstrap_estimates,
    correlation,
    estimate,
    rank_correlation,
    resamples,
    student_quantile,
    weighted_spearman,
)

NOT = -1
# Four observers, twelve units: the data of Krippendorff 2011, "Computing Krippendorff's
# Alpha-Reliability", values 1 to 5.
OBSERVERS = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, NOT, NOT, NOT],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NOT, 3],
    [NOT, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NOT],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NOT],
]


def ratings(observers):
    table = np.array(observers).T
    return Ratings(np.where(table > 0, table - 1, NOT), 5)


@pytest.mark.parametrize(("level", "alpha"), [("nominal", 0.743), ("ordinal", 0.815)])
def test_alpha_is_the_published_one(level, alpha):
    alpha_estimate = ratings(OBSERVERS).alpha(level, draws=200)
    assert alpha_estimate.value == pytest.approx(alpha, abs=5e-4)
    assert alpha_estimate.low < alpha_estimate.value < alpha_estimate.high
    assert alpha_estimate.pairs == 11


@pytest.mark.parametrize("level", ["nominal", "ordinal"])
@pytest.mark.parametrize("seed", range(5))
def test_alpha_is_that_of_the_krippendorff_package(level, seed):
    dice = np.random.default_rng(seed)
    truth = dice.integers(0, 6, 80)
    readings = np.clip(truth[:, None] + dice.integers(-1, 2, (80, 4)), 0, 5)
    readings[dice.random((80, 4)) < 0.3] = NOT
    theirs = krippendorff.alpha(
        np.where(readings < 0, np.nan, readings).T,
        level_of_measurement=level,
        value_domain=range(6),
    )
    assert Ratings(readings, 6).alpha(level, draws=1).value == pytest.approx(theirs, abs=1e-9)
    expected_alpha = krippendorff.alpha(
        np.where(readings < 0, np.nan, readings)[:, [0, 2]].T,
        level_of_measurement=level,
        value_domain=range(6),
    )
    alpha = Ratings(readings, 6).alpha(level, [0, 2], draws=1).value
    assert alpha == pytest.approx(expected_alpha, abs=1e-9)


def test_alpha_of_readings_that_are_all_equal_is_not_defined():
    equal = Ratings(np.zeros((5, 3), dtype=int), 2).alpha("nominal", draws=3)
    assert equal == Alpha(value=None, low=None, high=None, pairs=5)
    alone = np.array([[0, NOT], [NOT, 1]])
    assert Ratings(alone, 2).alpha("ordinal", draws=3).value is None
    assert alpha_from_entries(np.zeros((3, 3)), "ordinal") is None


def test_a_sample_draws_as_many_units_as_there_are():
    plain = list(resamples(7, draws=5))
    weighed = list(resamples(3, draws=5, counts=np.array([4, 1, 2])))
    assert [draw.sum() for draw in plain] == [7] * 5
    assert [draw.sum() for draw in weighed] == [7] * 5
    again = list(resamples(7, draws=5))
    assert all(
        (draw == repeated_draw).all() for draw, repeated_draw in zip(plain, again, strict=True)
    )


def repeated(values, weights):
    return np.repeat(np.asarray(values), weights)


def test_a_weighted_rank_correlation_is_that_of_repeated_rows():
    dice = np.random.default_rng(0)
    x, y, w = dice.integers(0, 5, 30), dice.integers(0, 5, 30), dice.integers(0, 4, 30)
    rho = weighted_spearman(Ranked(x), Ranked(y), w.astype(float))
    plain = weighted_spearman(Ranked(repeated(x, w)), Ranked(repeated(y, w)), np.ones(int(w.sum())))
    assert rho == pytest.approx(plain)
    ranks = Ranked([3, 1, 3, 2]).ranks(np.ones(4))
    assert ranks.tolist() == [3.5, 1, 3.5, 2]
    assert correlation(np.array([1.0, 2, 3]), np.array([1.0, 3, 2]), np.ones(3)) == pytest.approx(
        0.5
    )
    assert weighted_spearman(Ranked([1, 1]), Ranked([1, 2]), np.ones(2)) is None


def test_ranks_within_parts_take_out_what_differs_between_them():
    ranks = RankedWithin([1, 2, 101, 102, 103], ["a", "a", "b", "b", "b"]).ranks(np.ones(5))
    assert ranks == pytest.approx([-0.25, 0.25, -1 / 3, 0, 1 / 3])
    weighted = RankedWithin([1, 2, 5], [0, 0, 0]).ranks(np.array([2.0, 1.0, 0.0]))
    assert weighted[:2] == pytest.approx([(1.5 - 2) / 3, (3 - 2) / 3])


def test_drawing_alike_rows_together_changes_no_value():
    dice = np.random.default_rng(1)
    x, y = dice.integers(0, 3, 200), dice.integers(0, 3, 200)
    together = rank_correlation(x, y, draws=300)
    apart = bootstrap_estimates(
        lambda w: weighted_spearman(Ranked(x), Ranked(y), w), 200, draws=300
    )
    assert together.value == pytest.approx(apart.value)
    assert together.low == pytest.approx(apart.low, abs=0.03)
    assert together.high == pytest.approx(apart.high, abs=0.03)
    parts = np.arange(200) % 4
    within = rank_correlation(x, y, parts=parts, draws=2).value
    plain = weighted_spearman(RankedWithin(x, parts), RankedWithin(y, parts), np.ones(200))
    assert within == pytest.approx(plain)


def test_an_interval_of_nothing_is_nothing():
    nothing = Estimate(value=None, low=None, high=None)
    assert estimate(None, [1.0], units=20) == nothing
    assert bootstrap_estimates(lambda w: 1.0, 0, draws=3) == nothing
    assert rank_correlation([], [], draws=3) == nothing
    samples = [None, float("nan"), 0.5]
    assert estimate(1.0, samples, units=20) == Estimate(value=1.0, low=None, high=None)
    # Over nine units there is no interval.
    assert estimate(1.0, [0.5, 1.5], units=9) == Estimate(value=1.0, low=None, high=None)


def test_an_interval_is_students_on_its_scale():
    # Standard deviation of 0.4 and 0.6: 0.1 sqrt(2); for 10 units times sqrt(10 / 9).
    error = 0.1 * math.sqrt(2) * math.sqrt(10 / 9)
    plain = estimate(0.5, [0.4, 0.6], units=10)
    assert plain.high - 0.5 == pytest.approx(2.262157 * error, rel=1e-6)
    assert 0.5 - plain.low == pytest.approx(2.262157 * error, rel=1e-6)
    fisher = estimate(0.5, [0.4, 0.6], units=10, scale=FISHER)
    half = 2.262157 * error / (1 - 0.25)
    assert fisher.low == pytest.approx(math.tanh(math.atanh(0.5) - half), rel=1e-6)
    assert fisher.high == pytest.approx(math.tanh(math.atanh(0.5) + half), rel=1e-6)
    alpha = estimate(0.5, [0.4, 0.6], units=10, scale=DISAGREEMENT)
    half = 2.262157 * error / 0.5
    assert alpha.low == pytest.approx(1 - 0.5 * math.exp(half), rel=1e-5)
    assert alpha.high == pytest.approx(1 - 0.5 * math.exp(-half), rel=1e-6)
    equal = estimate(0.3, [0.3, 0.3], units=30, scale=FISHER)
    assert equal == Estimate(value=0.3, low=0.3, high=0.3)


def test_a_correlation_of_one_in_the_sample_is_not_taken_as_certain():
    # Wilson's upper end of 0 deviating pairs of 30: z^2 / (30 + z^2).
    unseen = wilson_interval(0, 30).high
    assert unseen == pytest.approx(1.959964**2 / (30 + 1.959964**2))
    exact = estimate(1.0, [1.0, 1.0], units=30, scale=FISHER)
    assert (exact.low, exact.high) == (pytest.approx(1 - unseen), 1.0)
    opposite = estimate(-1.0, [-1.0, -1.0], units=30, scale=FISHER)
    assert (opposite.low, opposite.high) == (-1.0, pytest.approx(unseen - 1))
    ranks = rank_correlation(np.arange(30), np.arange(30) ** 2, draws=20)
    assert (ranks.value, ranks.low) == (pytest.approx(1), pytest.approx(1 - unseen))
    # An alpha of -1 is no end of its scale.
    alpha = estimate(-1.0, [-1.1, -0.9], units=30, scale=DISAGREEMENT)
    assert alpha.low < -1 < alpha.high


def test_a_correlation_near_one_is_covered_over_few_pairs():
    # Two teachers who differ about 1 % of the pairs: most samples of 25 pairs have a rho of 1.
    rng, covered = np.random.default_rng(0), 0
    for _ in range(100):
        one, other = rng.integers(0, 11, (2, 25))
        result = rank_correlation(one, np.where(rng.random(25) < 0.01, other, one), draws=20)
        # The true rho of a share p of independent pairs is 1 - p.
        covered += result.low <= 0.99 <= result.high
    # Three standard errors of 100 trials are 0.065.
    assert covered / 100 >= 0.95 - 0.065


@pytest.mark.parametrize(
    ("freedom", "quantile"),
    [(1, 12.7062), (2, 4.3027), (3, 3.1824), (9, 2.2622), (30, 2.0423), (199, 1.9720),
     (200, 1.9719), (1000, 1.9623)],
)  # fmt: skip
def test_students_quantile_is_that_of_the_tables(freedom, quantile):
    assert student_quantile(freedom) == pytest.approx(quantile, abs=5e-5)


def test_alpha_of_readers_who_hardly_differ_is_not_taken_as_certain():
    # Every bootstrap sample of 20 equal units has an alpha of 1.
    codes = np.repeat(np.arange(4), 5)[:, None].repeat(3, axis=1)
    alpha = Ratings(codes, 4).alpha("nominal", draws=20)
    # Wilson's upper end of 0 of 20: z^2 / (20 + z^2).
    assert (alpha.value, alpha.high) == (1.0, 1.0)
    assert alpha.low == pytest.approx(1 - 1.959964**2 / (20 + 1.959964**2))
    codes[0, 0] = 1
    one = Ratings(codes, 4).alpha("nominal", draws=200)
    upper = wilson_interval(1, 20).high
    assert one.low <= 1 - (1 - one.value) * 20 * upper + 1e-12
    assert one.value < one.high < 1
