"""Soft labels: each estimate by hand, what holds for all replies, and the loss that follows."""

import math
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sp2dpo.betas.arms import Arm, compute_arm, compute_betas, load_arm
from sp2dpo.betas.baselines import Constant
from sp2dpo.betas.compute import explain_uncovered, schedule_store
from sp2dpo.betas.estimators import Signed
from sp2dpo.betas.label_slope import fit_slope
from sp2dpo.betas.published_arms import CwPo
from sp2dpo.betas.schedule import load_schedule
from sp2dpo.betas.soft_labels import LARGEST_SMOOTHING, Anchored, Calibrated, Free, Latent
from sp2dpo.pairs.sources import Source
from sp2dpo.panel.rubric import CHOSEN_FIRST, REJECTED_FIRST, load_rubric
from sp2dpo.store.annotations import build_annotation_table
from support.harness import ROOT, SCHEDULE, kept_reply, pairs_of, panel_of

PAPER = replace(load_schedule(SCHEDULE), quorum=1)
BLIND, LABELLED = load_rubric("semantic-gap-blind"), load_rubric("semantic-gap")
ARMS = ROOT / "recipes" / "schedules" / "arms"
EVERY = (Free(), Calibrated(3.0), Calibrated(), Latent(), Anchored())
quick = settings(
    derandomize=True, deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow]
)


def pair(number):
    return f"{number:064x}"


def blind_panel(*gaps, order=CHOSEN_FIRST):
    """One reply of each teacher about each pair: signed gaps in tenths, None for a missing one."""
    rows = [
        (pair(n), teacher, "direct", order, 0, "style", abs(tenths), 10,
         "A" if (tenths > 0) == (order == CHOSEN_FIRST) else "B", None, None)
        for n, by_teacher in enumerate(gaps)
        for teacher, tenths in zip("abcdefghi", by_teacher, strict=False)
        if tenths is not None
    ]  # fmt: skip
    pair_ids = [pair(n) for n in range(len(gaps))]
    return build_annotation_table(rows, pair_ids=pair_ids, rubric=BLIND)


def soft(annotations, label_smoothing, *, of=PAPER):
    return compute_arm(annotations, Arm(of=of, label_smoothing=label_smoothing))


def probabilities(result):
    """The probability that each label is right, from flip and label_smoothing."""
    table = result.table
    eps = table["label_smoothing"]
    p = table.select(pl.when("flip").then(eps).otherwise(1 - eps)).to_series()
    return p.to_list()


def test_the_signed_gap_alone_is_a_probability():
    result = soft(blind_panel([8], [-6], [0], [None]), Free())
    table = result.table
    assert table["flip"].to_list() == [False, True, False, False]
    # (1 + 0.8) / 2 = 0.9; (1 - 0.6) / 2 = 0.2, exchanged; 1/2 is written just below.
    assert table["label_smoothing"].to_list() == [
        pytest.approx(0.1), pytest.approx(0.2), LARGEST_SMOOTHING, None,
    ]  # fmt: skip
    assert table["keep"].to_list() == [True, True, True, False]
    # The gap is that of the responses as they are trained.
    assert table["gap"].to_list()[:2] == pytest.approx([0.8, 0.6])
    assert (result.labels.pairs, result.labels.exchanged) == (3, 1)
    assert result.labels.right == pytest.approx((0.9 + 0.2 + 0.5) / 3)


def test_a_known_slope_gives_the_sigmoid_of_slope_times_gap():
    result = soft(blind_panel([5], [-5], [2]), Calibrated(4.0))
    by_hand = [1 / (1 + math.exp(-4 * s)) for s in (0.5, -0.5, 0.2)]
    assert probabilities(result) == pytest.approx(by_hand)
    # A slope that was given is not an estimate.
    assert result.labels.slope is None


def test_the_fitted_slope_is_that_of_the_labels():
    # Seven labels agree at 0.4 and two do not: log(7.5 / 2.5) / 0.4 with Firth's half cases.
    result = soft(blind_panel(*[[4]] * 7, *[[-4]] * 2), Calibrated())
    assert result.labels.slope.estimate == pytest.approx(math.log(3) / 0.4)
    assert probabilities(result) == pytest.approx([0.75] * 7 + [0.25] * 2)
    assert result.labels.slope.low < 0
    assert "the slope may be 0" in result.labels.cautions()[0]


def test_gaps_that_contradict_the_labels_or_say_nothing_are_refused():
    against = (
        r"label_smoothing: calibrated: the signed gaps contradict the labels: their slope is -.*"
        "use `label_smoothing: anchored`"
    )
    with pytest.raises(ValueError, match=against):
        soft(blind_panel(*[[-4]] * 9, [4]), Calibrated())
    # One pair more on one side is no evidence: the interval has numbers on both sides of 0.
    with pytest.raises(ValueError, match=r"do not show which labels are right.*is -.*% -.* to \d"):
        soft(blind_panel([4], [-4], [-4]), Calibrated())
    with pytest.raises(ValueError, match=r"every signed gap is 0.*calibrated\(slope=3\)"):
        soft(blind_panel([0], [0]), Calibrated())
    # Other estimates have an answer for both.
    assert probabilities(soft(blind_panel([0], [0]), Anchored())) == pytest.approx([0.8, 0.8])
    assert probabilities(soft(blind_panel([-4], [-4]), Anchored())) == pytest.approx([0.8, 0.8])
    assert probabilities(soft(blind_panel([0], [0]), Free())) == pytest.approx(
        [1 - LARGEST_SMOOTHING] * 2
    )


def test_the_slope_of_known_truths_must_be_shown_to_be_above_0(new_store):
    store = new_store()
    rows = pairs_of(60)
    store.corpus.add(Source(name="hand.jsonl"), rows)
    store.record_panel(panel_of("a", rubric=BLIND))
    # The teacher prefers the chosen response of the first 40 pairs, with the gap 0.8.
    store.add_replies(
        [
            kept_reply(row.pair.id, "a", variant, 8, 10, order=order,
                       better="A" if (n < 40) == (order == CHOSEN_FIRST) else "B")
            for n, row in enumerate(rows)
            for variant in ("direct", "critic", "reader")
            for order in (CHOSEN_FIRST, REJECTED_FIRST)
        ]
    )  # fmt: skip
    ids = [row.pair.id for row in rows]

    def fitted(*right):
        truths = dict(zip(ids, right, strict=False))
        return schedule_store(store.path, ARMS / "soft-calibrated.yaml", truths=truths)

    # Of 40 labels that it prefers, 30 are right, of 20 others 5: 45 of 60 opinions are right.
    right = [True] * 30 + [False] * 10 + [True] * 5 + [False] * 15
    known = fitted(*right)
    slope = fit_slope([0.8] * 40 + [-0.8] * 20, right)
    assert known.betas.labels.slope.estimate == pytest.approx(slope.slope, abs=1e-6)
    assert known.betas.labels.truths == 60
    with pytest.raises(ValueError, match=r"4 of the 4 known truths .* too few, or too little"):
        fitted(True, True, False, False)
    # Strongly related, but the wrong way round: more truths would not help.
    with pytest.raises(ValueError, match=r"slope of the truth .* is not above 0 on 60") as error:
        fitted(*(not known for known in right))
    assert "omit --gold" not in str(error.value)


def test_teachers_who_see_the_label_cannot_calibrate_it_unless_the_gap_is_signed():
    rows = [
        (pair(n), "a", "direct", CHOSEN_FIRST, 0, "style", 5, confidence, None, None, None)
        for n, confidence in enumerate((9, 9, 9, 2))
    ]
    annotations = build_annotation_table(
        rows, pair_ids=[pair(n) for n in range(4)], rubric=LABELLED
    )
    for choice in (Calibrated(), Anchored()):
        with pytest.raises(ValueError, match="teachers who see the label cannot dispute it"):
            soft(annotations, choice)
    assert not any(soft(annotations, Calibrated(3.0)).table["flip"])
    fit = soft(annotations, Calibrated(), of=replace(PAPER, gap=Signed())).labels
    assert any("how far they follow them" in caution for caution in fit.cautions())


@pytest.mark.parametrize("choice", EVERY, ids=str)
def test_a_pair_below_the_quorum_has_neither_beta_nor_label_smoothing(choice):
    annotations = blind_panel([5, 5, None], [5, None, None], [None] * 3, [3, 3, -2], [4, 4, 1])
    result = soft(annotations, choice, of=replace(PAPER, quorum=2))
    table = result.table
    without = [False, True, True, False, False]
    for name in ("beta", "label_smoothing"):
        assert table[name].is_null().to_list() == without
    assert table["keep"].to_list() == [not each for each in without]
    assert not table["flip"].is_null().any()
    assert table.filter(~pl.col("keep"))["flip"].sum() == 0
    assert result.labels.pairs == 3


@pytest.mark.parametrize("choice", EVERY, ids=str)
def test_without_any_beta_the_quorum_is_the_reason(choice):
    result = soft(blind_panel([5, 5], [5, 5]), choice, of=replace(PAPER, quorum=9))
    assert not result.table["has_beta"].any()
    assert result.table["label_smoothing"].is_null().all()
    assert result.labels.pairs == 0
    assert result.labels.right is None


@pytest.mark.parametrize("choice", EVERY, ids=str)
@pytest.mark.parametrize(
    "gaps", [[[5]], [[5, 5, 5]] * 40, [[7, None, -1]], [[3, 3, 3]] * 5 + [[-3, -3, -3]]], ids=str
)
def test_one_pair_one_teacher_and_equal_pairs_have_probabilities(choice, gaps):
    result = soft(blind_panel(*gaps), choice)
    p = probabilities(result)
    assert all(0 < each <= 1 for each in p)
    assert all(0 <= eps <= LARGEST_SMOOTHING for eps in result.table["label_smoothing"])
    # Equal pairs have equal probabilities, and agreement never speaks against a label.
    assert len(set(p)) == len({tuple(row) for row in gaps})
    assert p[0] > 0.5


@pytest.mark.parametrize("choice", [Free(), Calibrated(3.0)], ids=str)
def test_exchanging_all_responses_exchanges_the_probabilities(choice):
    gaps = [[7, -2], [-3, -1], [1, None], [-9, 9]]
    turned = [[None if s is None else -s for s in row] for row in gaps]
    there, back = (probabilities(soft(blind_panel(*each), choice)) for each in (gaps, turned))
    # 1/2 is written just below, on either side.
    assert back == pytest.approx([1 - p for p in there], abs=2.1e-4)


def test_a_slope_that_is_fitted_exchanges_with_the_responses_where_it_stays_positive():
    gaps = [[5], [-5], [3], [-3], [2]]
    there = soft(blind_panel(*gaps), Calibrated())
    with pytest.raises(ValueError, match="do not show which labels are right"):
        soft(blind_panel(*[[-s] for (s,) in gaps]), Calibrated())
    assert there.labels.slope.estimate > 0


panels = st.lists(
    st.lists(st.one_of(st.none(), st.integers(-10, 10)), min_size=3, max_size=3),
    min_size=1,
    max_size=12,
).filter(lambda rows: any(s is not None for row in rows for s in row))


@quick
@given(panels, st.sampled_from([Free(), Calibrated(2.5), Latent(), Anchored()]))
def test_pairs_are_exchanged_below_one_half_and_eps_is_a_valid_smoothing(gaps, choice):
    table = soft(blind_panel(*gaps), choice).table
    trained = table.filter("has_beta")
    assert trained["label_smoothing"].is_between(0, LARGEST_SMOOTHING).all()
    assert (table["label_smoothing"].is_null() == ~table["has_beta"]).all()
    if isinstance(choice, Free | Calibrated):
        assert (trained["flip"] == (trained["signed_gap"] < 0)).all()


@settings(quick, max_examples=20)
@given(
    panels,
    st.sampled_from([Free(), Calibrated(2.5), Latent(), Anchored()]),
    st.randoms(use_true_random=False),
)
def test_the_order_of_pairs_and_of_teachers_does_not_matter(gaps, choice, random):
    before = probabilities(soft(blind_panel(*gaps), choice))
    order = list(range(len(gaps)))
    random.shuffle(order)
    turned = [2, 0, 1]
    after = soft(blind_panel(*([gaps[n][t] for t in turned] for n in order)), choice)
    by_pair = dict(zip(order, probabilities(after), strict=True))
    for number, p in enumerate(before):
        q = by_pair[number]
        assert (p is None) == (q is None)
        assert p is None or q == pytest.approx(p, abs=1e-4)


@quick
@given(st.floats(0.001, 0.999), st.floats(-20, 20), st.floats(0.01, 1))
def test_an_exchanged_pair_with_eps_p_has_the_loss_of_the_soft_label(p, difference, beta):
    import torch

    from sp2dpo.training.losses import LogRatios, Pairwise, sigmoid

    def log_s(z):
        return -np.logaddexp(0, -z)

    z = beta * difference
    expected = -p * log_s(z) - (1 - p) * log_s(-z)
    flip = p < 0.5
    turned = -difference if flip else difference
    one = torch.ones(1, dtype=torch.float64)
    loss = sigmoid(
        LogRatios(chosen=turned * one, rejected=0 * one, chosen_length=one, rejected_length=one),
        Pairwise(
            beta=beta * one, margin=0 * one, tau=1.0, label_smoothing=(p if flip else 1 - p) * one
        ),
    )
    assert loss.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_latent_trusts_two_teachers_who_agree_over_a_label():
    # Most labels are confirmed by all; the last one is disputed by all.
    gaps = [[6, 6, 6]] * 30 + [[-6, -6, -6]] * 5 + [[6, 6, -6]] * 3 + [[-6, -6, 6]]
    result = soft(blind_panel(*gaps), Latent())
    p = probabilities(result)
    assert p[0] > 0.99
    assert p[30] < 0.2
    assert p[0] > p[35] > p[38] > p[30]
    assert result.labels.teacher_accuracy.keys() == {"a", "b", "c"}
    assert result.labels.converged
    assert result.labels.exchanged == sum(each < 0.5 for each in p)


def test_an_adaptive_panel_covers_the_gap_but_not_the_readings_of_single_teachers():
    """What `explain_uncovered` says of latent: equal signed gaps, other probabilities."""
    rng = np.random.default_rng(0)
    gaps = rng.integers(-9, 10, (200, 3)).tolist() + [[8, 8, 8]] * 40 + [[-8, -8, -8]] * 10
    # The teachers agree about the last 50 pairs, so one reply gives the gap of all three.
    settled = [by_teacher if n < 200 else by_teacher[:1] for n, by_teacher in enumerate(gaps)]
    full, adaptive = (soft(blind_panel(*panel), Latent()) for panel in (gaps, settled))
    assert full.table["signed_gap"].to_list() == pytest.approx(
        adaptive.table["signed_gap"].to_list()
    )
    p, other = probabilities(full)[200], probabilities(adaptive)[200]
    assert abs(p - other) > 0.05
    # What uses the signed gap alone is the same.
    free, other_free = (soft(blind_panel(*panel), Free()) for panel in (gaps, settled))
    assert probabilities(free) == pytest.approx(probabilities(other_free))


def test_the_form_signed_separates_gaps_that_an_adaptive_panel_takes_for_equal():
    rows = [
        (pair(n), "a", "direct", CHOSEN_FIRST, 0, "style", magnitude, confidence, None, None, None)
        for n, (magnitude, confidence) in enumerate([(6, 5), (3, 10)])
    ]
    annotations = build_annotation_table(rows, pair_ids=[pair(0), pair(1)], rubric=LABELLED)
    product = compute_betas(annotations, Arm(of=PAPER))["signed_gap"]
    signed = compute_betas(annotations, Arm(of=replace(PAPER, gap=Signed())))["signed_gap"]
    assert product.to_list() == pytest.approx([0.3, 0.3])
    assert signed.to_list() == pytest.approx([0.0, 0.3])


@pytest.mark.parametrize(
    ("arm", "rubric", "covers", "expected"),
    [
        ({}, BLIND, "beta", None),
        ({"label_smoothing": Latent()}, BLIND, "signed_gap", "single teachers"),
        ({"weight": CwPo("latent")}, BLIND, "signed_gap", "single teachers"),
        ({"label_smoothing": Calibrated()}, BLIND, "signed_gap", None),
        ({"of": replace(PAPER, gap=Signed())}, LABELLED, "signed_gap", "this schedule"),
        ({"of": replace(PAPER, over_teachers="median")}, BLIND, "signed_gap", "this schedule"),
        ({"label_smoothing": Free()}, BLIND, "beta", "signed gaps below 0"),
        ({"disputed": "flip"}, BLIND, "beta", "signed gaps below 0"),
        ({"disputed": "flip"}, LABELLED, "beta", None),
    ],
)
def test_what_an_adaptive_panel_does_not_cover_is_named(arm, rubric, covers, expected):
    arm = Arm(**{"of": PAPER} | arm)
    panel = replace(panel_of("a", rubric=rubric), budget="adaptive", covers=covers)
    found = explain_uncovered(panel, arm)
    assert found is None if expected is None else expected in found
    assert explain_uncovered(replace(panel, budget="full"), arm) is None


def test_few_annotators_are_reported():
    one = soft(blind_panel(*[[5]] * 8, [-5]), Latent()).labels
    assert any("1 teacher(s) and the labels are too few" in each for each in one.cautions())
    two = soft(blind_panel(*[[5, 5]] * 8, [-5, 5]), Latent()).labels
    assert not any("too few" in caution for caution in two.cautions())


def test_an_arm_file_of_each_estimate_keeps_one_beta():
    for name in ("soft-free", "soft-latent", "soft-calibrated", "soft-anchored"):
        arm = load_arm(ARMS / f"{name}.yaml")
        arm = replace(arm, of=replace(arm.of, quorum=1))
        table = compute_betas(blind_panel([5], [-5], [4], [2]), arm)
        assert arm.beta == Constant(0.1)
        assert table["beta"].to_list() == [0.1] * 4
        assert table["label_smoothing"].is_not_null().all()
        # With one teacher, the prior of the labels decides, unless the sizes of gaps count.
        assert table["flip"][1] == (name != "soft-latent")


def test_both_orders_of_a_blind_panel_give_the_same_probabilities():
    gaps = [[7], [-2], [4]]
    for choice in EVERY:
        there = probabilities(soft(blind_panel(*gaps), choice))
        back = probabilities(soft(blind_panel(*gaps, order=REJECTED_FIRST), choice))
        assert there == back
