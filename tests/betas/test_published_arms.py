"""GDPO, CW-PO and gamma-PO: their columns by hand, and what follows from their formulas."""

import math
import re
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sp2dpo.betas.arms import Arm, compute_betas, parse_arm
from sp2dpo.betas.baselines import ArithmeticMean, Constant
from sp2dpo.betas.estimators import Product, Signed
from sp2dpo.betas.published_arms import CwPo, GammaPo, Gdpo, project_margins
from sp2dpo.betas.schedule import load_schedule
from sp2dpo.betas.scores import Scores
from sp2dpo.betas.soft_labels import Free
from sp2dpo.panel.rubric import load_rubric
from sp2dpo.store.annotations import build_annotation_table
from support.harness import SCHEDULE

SIGNED = replace(load_schedule(SCHEDULE), quorum=1, gap=Signed())
RUBRIC = load_rubric("semantic-gap")
GAPS = (0.64, -0.64, 0.0, -0.28)
# Under the form `signed`, a reply of magnitude m and confidence c has the gap m (2 c - 1), of 10.
REPLIES = ((8, 9), (8, 1), (0, 1), (7, 3))


def annotations_of(*replies):
    rows = [
        (f"{n:064x}", "a", "direct", "chosen-first", 0, "style", *reply, None, None, None)
        for n, reply in enumerate(replies)
        if reply is not None
    ]
    ids = [f"{n:064x}" for n in range(len(replies))]
    return build_annotation_table(rows, pair_ids=ids, rubric=RUBRIC)


def table_of(replies=REPLIES, scores=None, **departures):
    annotations = annotations_of(*replies)
    if scores is not None:
        table = pl.DataFrame({"pair_id": annotations.pair_ids, "reward_margin": scores})
        scores = Scores(table=table, name="scores.parquet")
    return compute_betas(annotations, Arm(of=SIGNED, **departures), scores)


def test_the_replies_of_this_file_have_the_gaps_that_it_states():
    assert table_of(beta=ArithmeticMean())["signed_gap"].to_list() == pytest.approx(GAPS)


def test_gdpo_scales_beta_by_how_sure_the_label_is():
    # p = (1 + s) / 2 = .82, .18, .5, .36: 2 p - 1 is the gap of the responses as they are trained.
    table = table_of(beta=Gdpo(beta=0.1, p="free"))
    assert table["keep"].to_list() == [True, True, False, True]
    assert table["flip"].to_list() == [False, True, False, True]
    assert table["beta"].to_list() == pytest.approx([0.064, 0.064, 0.03, 0.028])
    assert "label_smoothing" not in table.columns
    assert "right" not in table.columns


def test_gdpo_has_the_slope_of_the_geometric_average():
    # The loss of the paper: pi(chosen)^p pi(rejected)^(1-p) over pi(chosen)^(1-p) pi(rejected)^p.
    p, beta, d = 0.82, 0.1, 3.0
    (row,) = table_of(((8, 9),), beta=Gdpo(beta=beta, p="free")).to_dicts()
    paper = -math.log(1 / (1 + math.exp(-beta * (p * d - (1 - p) * d))))
    assert math.log1p(math.exp(-row["beta"] * d)) == pytest.approx(paper)


def test_cw_po_weighs_by_the_confidence_of_the_panel():
    table = table_of(weight=CwPo(p="free"), beta=Constant(0.1))
    assert table["weight"].to_list() == pytest.approx([0.64, 0.64, 0.0, 0.28])
    assert table["flip"].to_list() == [False, True, False, True]
    assert table["keep"].all()
    assert table["beta"].to_list() == [0.1] * 4


def test_cw_po_with_a_reward_model_is_the_formula_of_the_paper():
    # 2 (s(1) - 1/2) = .4621172, 2 (s(2) - 1/2) = .7615942
    table = table_of(scores=[1.0, -2.0, 0.0, 2.0], weight=CwPo(p="scores"), beta=Constant(0.1))
    assert table["weight"].to_list() == pytest.approx([0.4621172, 0.7615942, 0, 0.7615942])
    # The reward model chooses: its margin is never below 0 for the responses as they are trained.
    assert table["flip"].to_list() == [False, True, False, False]
    assert table["reward_margin"].to_list() == [1, 2, 0, 2]


def test_a_pair_without_a_beta_has_neither_a_weight_nor_a_margin():
    replies = ((8, 9), None, (7, 3))
    weighted = table_of(replies, weight=CwPo(p="free"), beta=Gdpo(beta=0.2, p="free"))
    assert weighted["weight"].to_list() == [pytest.approx(0.64), None, pytest.approx(0.28)]
    assert weighted["beta"].to_list() == [pytest.approx(0.128), None, pytest.approx(0.056)]
    assert weighted["flip"].to_list() == [False, False, True]
    margins = table_of(replies, margin=GammaPo(gamma=1, tau=10, scale=1))["margin"]
    assert margins[1] is None


@pytest.mark.parametrize("p", ["latent", "anchored", "calibrated"])
def test_every_estimate_of_soft_labels_is_a_source(p):
    dice = np.random.default_rng(0)
    replies = [(int(m), int(c)) for m, c in dice.integers((0, 4), 11, size=(60, 2))]
    table = table_of(replies, beta=Gdpo(beta=0.1, p=p), weight=CwPo(p=p))
    kept = table.filter("keep")
    assert (kept["beta"] > 0).all()
    # One probability stands behind both: beta_i = beta w_i.
    assert (kept["beta"] - 0.1 * kept["weight"]).abs().max() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("departures", "named"),
    [
        ({"beta": Gdpo(0.1, "calibrated")}, "beta: gdpo"),
        ({"weight": CwPo("calibrated")}, "weight: cw-po"),
        (
            {"beta": Gdpo(0.1, "calibrated"), "weight": CwPo("calibrated")},
            "beta: gdpo and weight: cw-po",
        ),
    ],
)
@pytest.mark.parametrize(
    ("replies", "message"),
    [
        ([(8, 1)] * 9, "the signed gaps contradict the labels: .*, or use `p=anchored`, which"),
        (
            [(8, 1), (8, 1), (8, 9)],
            "do not show which labels are right: .*, or use `p=anchored`, which",
        ),
        ([(0, 1)], "every signed gap is 0, so no slope can be fitted: use `p=anchored`, which"),
    ],
)
def test_a_slope_that_cannot_be_fitted_names_the_departure_and_what_it_accepts(
    departures, named, replies, message
):
    with pytest.raises(ValueError, match=f"^{named} with p=calibrated: .*{message}") as error:
        table_of(replies, **departures)
    assert "label_smoothing" not in str(error.value)
    assert "slope=" not in str(error.value)
    assert table_of(replies, beta=Gdpo(0.1, "anchored"))["keep"].any()


@pytest.mark.parametrize("p", ["calibrated", "anchored"])
def test_a_gap_form_that_cannot_dispute_labels_names_the_departure(p):
    arm = Arm(of=replace(SIGNED, gap=Product()), beta=Gdpo(0.1, p))
    with pytest.raises(ValueError, match=f"^beta: gdpo with p={p}: teachers who see") as error:
        compute_betas(annotations_of(*REPLIES), arm)
    assert str(error.value).endswith("use the blind rubric, or `gap: signed` in the schedule")


def mirror_descent(rewards, gamma, tau):
    """gamma-PO's margins as its released code computes them, on shares instead of logarithms."""
    count = len(rewards)
    shares = np.full(count, 1 / count)
    for _ in range(20):
        divergence = tau * (1 + np.log(count * (shares + 1e-10)))
        descent = gamma * count / (1 + np.exp(rewards - gamma * count * shares)) / count
        shares = shares * np.exp(-min(0.5 / tau, 1) * (divergence + descent))
        shares = shares / shares.sum()
    return gamma * count * shares - gamma


def test_the_margins_of_gamma_po_are_those_of_the_released_code_on_the_gaps():
    margins = table_of(margin=GammaPo(gamma=4, tau=10, scale=3), beta=Constant(0.1))["margin"]
    expected = mirror_descent(3 * np.array(GAPS), 4, 10)
    assert margins.to_list() == pytest.approx(expected.tolist(), abs=1e-6)
    flipped = table_of(margin=GammaPo(gamma=4, tau=10, scale=3), disputed="flip")["margin"]
    expected = mirror_descent(3 * np.abs(GAPS), 4, 10)
    assert flipped.to_list() == pytest.approx(expected.tolist(), abs=1e-6)


def test_pairs_that_are_left_out_have_no_part_in_the_margins():
    table = table_of(margin=GammaPo(gamma=4, tau=10, scale=3), disputed="drop")
    assert table["keep"].to_list() == [True, False, True, False]
    expected = mirror_descent(3 * np.array([0.64, 0.0]), 4, 10)
    assert table["margin"].to_list() == pytest.approx([expected[0], 0, expected[1], 0], abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    rewards=st.lists(st.floats(-50, 50), min_size=1, max_size=40),
    # Where a step of the descent cannot overshoot; the released values of DPO's scale are here.
    gamma=st.floats(1e-3, 1),
    tau=st.floats(1, 100),
)
def test_the_margins_are_ordered_as_the_gaps_and_0_on_average(rewards, gamma, tau):
    margins = project_margins(np.array(rewards), gamma=gamma, tau=tau)
    assert margins.mean() == pytest.approx(0, abs=1e-9 * max(1, gamma))
    assert (margins >= -gamma - 1e-12).all()
    order = np.argsort(rewards, kind="stable")
    assert (np.diff(margins[order]) >= -1e-9).all()
    extreme = project_margins(1e5 * np.array(rewards), gamma=100 * gamma, tau=tau / 100)
    assert np.isfinite(extreme).all()


def test_a_scale_for_tuning_multiplies_the_beta_of_gdpo():
    arm = Arm(of=SIGNED, beta=Gdpo(beta=0.1, p="free")).scale_betas(2)
    assert arm.beta == Gdpo(beta=0.2, p="free")


def test_choices_are_written_and_read_back():
    arm = Arm(of=SIGNED, beta=Gdpo(beta=0.1, p="latent"), weight=CwPo(p="latent"))
    assert arm.departures() == {
        "beta": "gdpo(beta=0.1, p=latent)", "weight": "cw-po(p=latent)"
    }  # fmt: skip
    assert parse_arm(arm.departures(), SIGNED, where="here") == arm


@pytest.mark.parametrize(
    ("departures", "message"),
    [
        (
            {"beta": "gdpo(0.1, free)", "weight": "cw-po(latent)"},
            "arm.yaml: beta: gdpo and weight: cw-po must have the same source of p, not free and "
            "latent",
        ),
        (
            {"beta": "gdpo(0.1, free)", "disputed": "flip"},
            "arm.yaml: beta: gdpo and disputed exclude each other",
        ),
        (
            {"weight": "cw-po(free)", "label_smoothing": "free"},
            "arm.yaml: weight: cw-po and label_smoothing exclude each other",
        ),
        ({"beta": "gdpo(0.1, fre)"}, "p 'fre' is not known, did you mean 'free'?"),
        ({"margin": "gamma-po(0, 10, 1)"}, "gamma must be a number above 0"),
        ({"margin": "gamma-po(1, 10)"}, "write gamma-po(gamma, tau, scale)"),
    ],
)
def test_departures_that_contradict_each_other_are_refused(departures, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_arm(departures, SIGNED, where="arm.yaml")


def test_a_reward_model_is_asked_for_and_soft_labels_are_a_class_of_their_own():
    with pytest.raises(ValueError, match="requires a reward model's scores"):
        table_of(weight=CwPo(p="scores"))
    with pytest.raises(ValueError, match="exclude each other"):
        Arm(of=SIGNED, beta=Gdpo(beta=0.1, p="free"), label_smoothing=Free())


def test_gdpo_on_gaps_of_0_leaves_nothing_to_train_on():
    with pytest.raises(ValueError, match="leaves no pair to train on"):
        table_of(((0, 1), (0, 9)), beta=Gdpo(beta=0.1, p="free"))
