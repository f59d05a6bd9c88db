"""The models of the labels: independent maximisations, known truths, coverage of intervals."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import expit, log_softmax

from sp2dpo.betas import label_models
from sp2dpo.betas.label_fit import Interval, LabelFit, parse_label_fit
from sp2dpo.betas.label_models import BIN_EDGES, fit_anchored, fit_classes, sigmoid
from support.panels import BIN_VALUES, emissions, simulate_anchored, simulate_classes


def log_posterior(by_teacher, accuracy, rows):
    """The log posterior of the class model, written out pair by pair.

    `rows` are the probabilities of the seven bins of each teacher if the label is right; the other
    class has them in reverse. Beta(9, 3) and Dirichlet(2) priors.
    """
    total = 8 * math.log(accuracy) + 2 * math.log(1 - accuracy) + np.log(rows).sum()
    for gaps in by_teacher:
        right, wrong = accuracy, 1 - accuracy
        for row, gap in zip(rows, gaps, strict=True):
            if math.isnan(gap):
                continue
            place = sum(abs(gap) >= edge for edge in BIN_EDGES)
            signed = 3 + (place if gap >= 0 else -place)
            right *= row[signed]
            wrong *= row[6 - signed]
        total += math.log(right + wrong)
    return total


def test_em_finds_the_maximum_that_a_general_optimiser_finds():
    rng = np.random.default_rng(5)
    panel = simulate_classes(rng, pairs=150, accuracy=0.75, strength=0.8, missing=0.1)
    model = fit_classes(panel.by_teacher, mirrored=True)
    best = log_posterior(panel.by_teacher, model.label_accuracy.estimate, model.emissions[0])

    def unpacked(parameters):
        rows = np.exp(log_softmax(parameters[1:].reshape(3, 7), axis=1))
        return 0.5 + 0.5 * expit(parameters[0]), rows

    def loss(parameters):
        return -log_posterior(panel.by_teacher[:, :], *unpacked(parameters))

    start = np.r_[0.0, np.tile(np.linspace(-0.3, 0.3, 7), 3)]
    found = minimize(loss, start, method="L-BFGS-B", options={"maxfun": 3_000})
    accuracy, rows = unpacked(found.x)
    assert -found.fun == pytest.approx(best, abs=0.01)
    assert accuracy == pytest.approx(model.label_accuracy.estimate, abs=0.01)
    assert rows == pytest.approx(model.emissions[0], abs=0.01)
    assert best >= -found.fun - 1e-6


def test_the_posterior_of_a_pair_is_bayes_rule_over_the_fitted_values():
    rng = np.random.default_rng(1)
    panel = simulate_classes(rng, pairs=80, accuracy=0.7, strength=0.7)
    model = fit_classes(panel.by_teacher, mirrored=True)
    a = model.label_accuracy.estimate
    for gaps, p in zip(panel.by_teacher[:10], model.right[:10], strict=True):
        bins = [list(BIN_VALUES).index(gap) for gap in gaps]
        right = a * math.prod(model.emissions[0, t, b] for t, b in enumerate(bins))
        wrong = (1 - a) * math.prod(model.emissions[0, t, 6 - b] for t, b in enumerate(bins))
        assert p == pytest.approx(right / (right + wrong), rel=1e-6)


@pytest.mark.parametrize("mirrored", [True, False])
def test_no_step_of_em_lowers_the_posterior(monkeypatch, mirrored):
    rng = np.random.default_rng(2)
    by_teacher = simulate_classes(rng, pairs=60, accuracy=0.8, strength=0.4).by_teacher
    patterns, counts = np.unique(label_models._bins(by_teacher), axis=0, return_counts=True)
    before = -math.inf
    for steps in range(1, 80):
        monkeypatch.setattr(label_models, "_MAX_STEPS", steps)
        start = label_models._Parameters.first(3)
        em = label_models._run_em(patterns, counts, start, mirrored=mirrored)
        assert em.objective >= before - 1e-9
        assert em.converged or steps <= em.iterations <= steps + 2
        before = em.objective


def test_em_that_is_cut_short_is_reported(monkeypatch):
    monkeypatch.setattr(label_models, "_MAX_STEPS", 3)
    rng = np.random.default_rng(2)
    model = fit_classes(
        simulate_classes(rng, pairs=60, accuracy=0.8, strength=0.4).by_teacher, mirrored=True
    )
    assert not model.converged
    assert 3 <= model.iterations <= 5


def test_gaps_beside_an_edge_fall_in_opposite_bins():
    gaps = np.array([[-0.45, -0.449, -0.15, -0.02, -0.019, 0, 0.019, 0.02, 0.15, 0.449, 0.45]])
    assert label_models._bins(gaps).tolist() == [[0, 1, 1, 2, 3, 3, 3, 4, 5, 5, 6]]
    assert label_models._bins(np.array([[math.nan]])).tolist() == [[7]]


def test_truths_of_a_simulated_panel_are_recovered():
    rng = np.random.default_rng(3)
    panel = simulate_classes(rng, pairs=20_000, accuracy=0.72, strength=(0.9, 0.6, 0.3))
    model = fit_classes(panel.by_teacher, mirrored=True)
    assert model.label_accuracy.estimate == pytest.approx(0.72, abs=0.02)
    truth = np.stack([emissions(strength) for strength in (0.9, 0.6, 0.3)])
    assert model.emissions[0] == pytest.approx(truth, abs=0.02)
    # Probability of a bin for the better response, among the bins that prefer one.
    assert model.teacher_accuracy == pytest.approx(
        truth[:, 4:].sum(1) / (1 - truth[:, 3]), abs=0.02
    )
    # Calibration: among pairs with about the same probability, that share of labels is right.
    edges = np.quantile(model.right, np.linspace(0, 1, 11))
    deciles = np.searchsorted(edges[1:-1], model.right)
    for decile in range(10):
        here = deciles == decile
        error = math.sqrt(0.25 / here.sum())
        assert panel.right[here].mean() == pytest.approx(model.right[here].mean(), abs=4 * error)


def test_teachers_who_see_the_label_have_bins_of_their_own_in_each_class():
    rng = np.random.default_rng(4)
    right = rng.random(20_000) < 0.7
    # Gaps of 0 or 0.3, which no teacher counts against the label: 0.8 and 0.4 of the pairs.
    agrees = rng.random((20_000, 3)) < np.where(right, 0.8, 0.4)[:, None]
    model = fit_classes(np.where(agrees, 0.3, 0.0), mirrored=False)
    assert model.label_accuracy.estimate == pytest.approx(0.7, abs=0.03)
    assert model.emissions[0, :, 5] == pytest.approx([0.8] * 3, abs=0.03)
    assert model.emissions[1, :, 5] == pytest.approx([0.4] * 3, abs=0.03)


def test_teachers_who_share_an_opinion_are_taken_for_the_truth():
    # Why `cautions` compares two models: three copies of one coin beside labels of which 75 % are
    # right look like good teachers beside useless labels.
    rng = np.random.default_rng(6)
    opinion = rng.choice([-0.5, 0.5], size=3_000)
    model = fit_classes(np.repeat(opinion[:, None], 3, axis=1), mirrored=True)
    assert model.label_accuracy.estimate == pytest.approx(0.5, abs=0.03)
    assert model.teacher_accuracy.min() > 0.95
    anchored = fit_anchored(opinion)
    assert anchored.label_accuracy.estimate > 0.7
    assert anchored.right.min() > 0.5


def test_many_guessing_teachers_are_taken_for_annotators_whose_labels_are_wrong():
    # The class that fits the noise best is unrelated to the labels: the low accuracy shows it, not
    # the interval. Three guessing teachers leave the prior of the labels as it is.
    rng = np.random.default_rng(0)
    nine = simulate_classes(rng, pairs=1_000, accuracy=0.72, strength=0.0, teachers=9)
    model = fit_classes(nine.by_teacher, mirrored=True)
    assert model.label_accuracy.estimate < 0.65
    assert model.right.min() < 0.1
    assert fit_anchored(nine.signed_gap).right.min() > 0.5
    few = fit_classes(nine.by_teacher[:, :3], mirrored=True)
    assert few.label_accuracy.high - few.label_accuracy.low > 0.3
    assert few.right.min() > 0.5


def test_anchored_finds_the_maximum_that_a_general_optimiser_finds():
    rng = np.random.default_rng(7)
    s = simulate_anchored(rng, pairs=400, accuracy=0.75, slope=8.0).signed_gap

    def loss(parameters):
        a, c = parameters
        agrees = (1 - a) + (2 * a - 1) * expit(c * s)
        prior = 8 * math.log(a) + 2 * math.log(1 - a) - c**2 / 200
        return -np.log(agrees).sum() - prior

    found = min(
        (
            minimize(loss, (a, c), bounds=((0.5, 0.999), (0, 100)))
            for a in (0.6, 0.9)
            for c in (1, 10, 30)
        ),
        key=lambda result: result.fun,
    )
    model = fit_anchored(s)
    assert model.label_accuracy.estimate == pytest.approx(found.x[0], abs=1e-3)
    assert model.slope.estimate == pytest.approx(found.x[1], rel=1e-3)
    a, c = model.label_accuracy.estimate, model.slope.estimate
    assert loss((a, c)) <= found.fun + 1e-6
    # At both ends of an interval the best posterior is lower by half the quantile of chi-square.
    for fixed, interval in ((0, model.label_accuracy), (1, model.slope)):
        for end in (interval.low, interval.high):
            bounds = [(0.5, 0.999), (0, 100)]
            bounds[fixed] = (end, end)
            starts = [(end, c) if fixed == 0 else (0.8, end) for c in (1, 10, 30)]
            profile = min(minimize(loss, start, bounds=bounds).fun for start in starts)
            assert profile - found.fun == pytest.approx(3.841459 / 2, abs=1e-3)
    by_hand = expit(math.log(a / (1 - a)) + c * s)
    assert model.right == pytest.approx(by_hand, abs=1e-9)


def test_anchored_keeps_the_labels_of_a_panel_that_says_nothing_about_them():
    rng = np.random.default_rng(8)
    s = rng.uniform(-1, 1, 4_000)
    model = fit_anchored(s)
    assert model.slope.low == 0
    assert model.label_accuracy.low < 0.6 < 0.95 < model.label_accuracy.high
    assert model.right.min() > 0.5
    # A panel that contradicts the labels is not turned round.
    assert fit_anchored(-np.abs(s)).slope.estimate == 0
    assert fit_anchored(-np.abs(s)).right == pytest.approx(np.full(4_000, 0.8))


def test_the_sigmoid_neither_overflows_nor_warns():
    z = np.array([-1e9, -800.0, -1.0, 0.0, 1.0, 800.0, 1e9, math.nan])
    by_hand = [0, 0, 1 / (1 + math.e), 0.5, math.e / (1 + math.e), 1, 1]
    assert sigmoid(z)[:-1] == pytest.approx(by_hand)
    assert math.isnan(sigmoid(z)[-1])


def test_what_was_found_is_read_back_from_its_mapping():
    fit = LabelFit(
        pairs=9, exchanged=2, blind=True, right=0.7,
        label_accuracy=Interval(estimate=0.7, low=0.6, high=0.8), teacher_accuracy={"a": 0.9},
        iterations=7, converged=False,
    )  # fmt: skip
    assert parse_label_fit(fit.as_mapping(), where="file") == fit
    assert fit.as_mapping()["converged"] is False
    assert "slope" not in fit.as_mapping()


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ([], "labels: Input should be an object"),
        ({"pairs": 1}, "exchanged: Field required"),
        ({"pairs": True, "exchanged": 1, "blind": True}, "pairs: Input should be a valid integer"),
        (
            {"pairs": 1, "exchanged": 0, "blind": True, "slope": {"estimate": math.nan}},
            "slope.estimate: Input should be a finite number",
        ),
        (
            {"pairs": 1, "exchanged": 0, "blind": True, "teacher_accuracy": {"a": "high"}},
            "teacher_accuracy.a: Input should be a valid number",
        ),
    ],
    ids=str,
)
def test_a_mapping_that_no_estimate_has_written_is_refused(values, problem):
    with pytest.raises(ValueError, match=problem):
        parse_label_fit(values, where="betas.parquet: labels")


def fitted(estimate, low, high, *, other=None, teachers=3, blind=True):
    return LabelFit(
        pairs=9, exchanged=2, blind=blind, right=0.7,
        label_accuracy=Interval(estimate=estimate, low=low, high=high),
        anchored_accuracy=other and Interval(estimate=other[0], low=other[1], high=other[2]),
        teacher_accuracy=dict.fromkeys("abcdef"[:teachers], 0.8), iterations=7, converged=True,
    )  # fmt: skip


def test_labels_that_seem_mostly_wrong_or_differ_between_the_models_raise_a_doubt():
    assert fitted(0.72, 0.7, 0.74).cautions() == []
    assert fitted(0.72, 0.7, 0.74, other=(0.8, 0.6, 0.9)).cautions() == []
    # The intervals do not meet, but the estimates hardly differ.
    assert fitted(0.72, 0.719, 0.721, other=(0.76, 0.755, 0.765)).cautions() == []
    assert fitted(0.51, 0.5, 0.6).cautions() == [
        "the estimated accuracy of the labels is 0.51 (95 % 0.5 to 0.6): either many labels are "
        "wrong, or the teachers err together or guess; the estimate `anchored` does not rely on "
        "their independence"
    ]
    apart = fitted(0.7, 0.68, 0.72, other=(0.8, 0.75, 0.85)).cautions()
    assert "and 0.8 (95 % 0.75 to 0.85) if teachers may err together" in apart[0]
    assert "hardly known: 0.7 (95 % 0.5 to 0.95)" in fitted(0.7, 0.5, 0.95).cautions()[0]
    assert "too few annotators" in fitted(0.5, 0.5, 0.6, teachers=1).cautions()[0]
    # Labels are no annotators of teachers who saw them.
    assert (
        "2 teacher(s) are too few" in fitted(0.7, 0.6, 0.8, teachers=2, blind=False).cautions()[0]
    )


# Four standard errors of 300 trials at 0.95 are 0.05. The upper bound is for intervals that are
# much too wide. At 0.75, its mean, the prior helps; at 0.65 and 0.9 it pulls the estimate away from
# the truth.
LEAST, MOST = 0.9, 0.993


@pytest.mark.slow
@pytest.mark.parametrize("accuracy", [0.65, 0.75, 0.9])
@pytest.mark.parametrize("strength", [0.6, 0.9])
def test_the_interval_of_latent_covers_the_true_accuracy(strength, accuracy):
    rng = np.random.default_rng(int(strength * 10))
    covered = 0
    for _ in range(300):
        panel = simulate_classes(rng, pairs=500, accuracy=accuracy, strength=strength)
        interval = fit_classes(panel.by_teacher, mirrored=True).label_accuracy
        covered += interval.low <= accuracy <= interval.high
    assert LEAST <= covered / 300 <= MOST


@pytest.mark.slow
@pytest.mark.parametrize("accuracy", [0.65, 0.75, 0.9])
def test_the_intervals_of_anchored_cover_the_truths(accuracy):
    rng = np.random.default_rng(9)
    covered = np.zeros(2)
    for _ in range(300):
        panel = simulate_anchored(rng, pairs=1_000, accuracy=accuracy, slope=10.0)
        model = fit_anchored(panel.signed_gap)
        for place, (interval, truth) in enumerate(
            ((model.label_accuracy, accuracy), (model.slope, 10.0))
        ):
            covered[place] += interval.low <= truth <= interval.high
    assert ((covered / 300 >= LEAST) & (covered / 300 <= MOST)).all()


gaps = st.one_of(st.just(math.nan), st.sampled_from([-1, -0.3, -0.1, 0, 1e-12, 0.1, 0.3, 1]))


@settings(deadline=None, max_examples=12, derandomize=True)
@given(st.lists(st.tuples(gaps, gaps), min_size=1, max_size=30), st.booleans())
def test_estimates_lie_in_their_intervals_and_probabilities_are_probabilities(rows, mirrored):
    by_teacher = np.array(rows, dtype=float)
    classes = fit_classes(by_teacher, mirrored=mirrored)
    signed = by_teacher[~np.isnan(by_teacher)]
    fits = [(classes.right, [classes.label_accuracy])]
    if len(signed):
        anchored = fit_anchored(signed)
        fits.append((anchored.right, [anchored.label_accuracy, anchored.slope]))
    for right, intervals in fits:
        assert ((right >= 0) & (right <= 1)).all()
        assert all(each.low <= each.estimate <= each.high for each in intervals)
    assert np.isfinite(classes.emissions).all()
    assert classes.emissions.sum(-1) == pytest.approx(np.ones((2, 2)))
    assert ((classes.teacher_accuracy > 0) & (classes.teacher_accuracy < 1)).all()


def test_a_fit_that_did_not_converge_or_whose_slope_may_be_0_raises_a_doubt():
    cut = LabelFit(pairs=9, exchanged=2, blind=True, iterations=5_000, converged=False)
    assert "EM did not converge in 5000 steps" in cut.cautions()[0]
    assert not any("converged" in line for line in cut.lines())
    flat = Interval(estimate=0.2, low=-0.1, high=0.5)
    weak = LabelFit(pairs=9, exchanged=2, blind=True, slope=flat)
    assert weak.cautions() == [
        "the slope may be 0 (95 % -0.1 to 0.5): the signed gaps hardly tell right labels from "
        "wrong ones"
    ]
    # Known truths are a witness of their own; `schedule --gold` refuses a slope that may be 0.
    assert LabelFit(pairs=9, exchanged=2, blind=True, slope=flat, truths=40).cautions() == []
