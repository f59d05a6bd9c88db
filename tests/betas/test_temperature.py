"""Another temperature at the same gradient at D = 0, and the temperature alone."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sp2dpo.betas.arms import Arm, compute_betas, load_arm, parse_arm
from sp2dpo.betas.baselines import DropLowest, InverseBetaWeight
from sp2dpo.betas.schedule import load_schedule
from sp2dpo.panel.rubric import load_rubric
from sp2dpo.store.annotations import build_annotation_table
from support.harness import ROOT, SCHEDULE

PAPER = replace(load_schedule(SCHEDULE), quorum=1)
ARMS = ROOT / "recipes" / "schedules" / "arms"
RUBRIC = load_rubric("semantic-gap")


def annotations_of(*magnitudes):
    """One reply of each pair; None for a pair without one."""
    rows = [
        (f"{n:064x}", "a", "direct", "chosen-first", 0, "style", m, 10, None, None, None)
        for n, m in enumerate(magnitudes)
        if m is not None
    ]
    pair_ids = [f"{n:064x}" for n in range(len(magnitudes))]
    return build_annotation_table(rows, pair_ids=pair_ids, rubric=RUBRIC)


def test_betas_and_weights_by_hand():
    # The schedule's betas are 0.03 and 0.3, with the mean 0.165.
    table = compute_betas(annotations_of(0, 10, None), Arm(of=PAPER, temperature=-1.0))
    low, high = 0.03 / 0.165, 0.3 / 0.165
    assert table["beta"].to_list() == [
        pytest.approx(0.165 / low), pytest.approx(0.165 / high), None,
    ]  # fmt: skip
    assert table["weight"].to_list() == [pytest.approx(low**2), pytest.approx(high**2), None]


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.integers(0, 10), min_size=1, max_size=20),
    st.floats(-3, 3),
    st.sampled_from([0, 40]),
)
def test_beta_times_weight_is_the_beta_of_the_schedule_for_every_temperature(magnitudes, tau, drop):
    annotations = annotations_of(*magnitudes)
    keep = DropLowest(drop) if drop else None
    own = compute_betas(annotations, Arm(of=PAPER, keep=keep))["beta"].to_list()
    table = compute_betas(annotations, Arm(of=PAPER, temperature=tau, keep=keep))
    assert (table["beta"] * table["weight"]).to_list() == pytest.approx(own, rel=1e-9)
    assert (table["beta"] > 0).all()
    assert (table["weight"] > 0).all()


def test_temperature_1_is_the_schedule_bit_for_bit():
    annotations = annotations_of(*range(11), None)
    own = compute_betas(annotations, Arm(of=PAPER))
    table = compute_betas(annotations, Arm(of=PAPER, temperature=1.0))
    assert table["beta"].to_list() == own["beta"].to_list()
    assert table["weight"].to_list() == [1.0] * 11 + [None]


def test_temperature_0_is_beta_as_weight():
    annotations = annotations_of(*range(11), None)
    arm = load_arm(ARMS / "beta-as-weight.yaml")
    by_weight = compute_betas(annotations, replace(arm, of=PAPER))
    table = compute_betas(annotations, Arm(of=PAPER, temperature=0.0))
    for name in ("beta", "weight"):
        assert table[name].to_list()[:11] == pytest.approx(by_weight[name].to_list()[:11])
        assert table[name][11] is None


def test_the_inverse_beta_leaves_the_temperature_alone():
    # 0.165 / 0.03 and 0.165 / 0.3: both products are the mean beta.
    arm = Arm(of=PAPER, weight=InverseBetaWeight())
    table = compute_betas(annotations_of(0, 10, None), arm)
    assert table["beta"].to_list()[:2] == pytest.approx([0.03, 0.3])
    assert table["weight"].to_list()[:2] == pytest.approx([5.5, 0.55])
    assert (table["beta"] * table["weight"]).to_list()[:2] == pytest.approx([0.165, 0.165])
    assert table["weight"][2] is None
    assert load_arm(ARMS / "temperature-only.yaml").weight == InverseBetaWeight()


def test_temperatures_without_any_beta_leave_the_quorum_to_be_reported():
    arm = Arm(of=replace(PAPER, quorum=9), temperature=-1.0)
    assert not compute_betas(annotations_of(2, 4), arm)["has_beta"].any()


@pytest.mark.parametrize(
    ("departures", "problem"),
    [
        ({"temperature": 11}, "temperature: must be a number of at least -10, at most 10, not 11"),
        ({"temperature": 0, "beta": "constant(0.1)"}, "temperature and beta exclude each other"),
        ({"temperature": 0, "weight": "gap"}, "temperature and weight exclude each other"),
        (
            {"label_smoothing": "free", "disputed": "drop"},
            "label_smoothing and disputed exclude each other",
        ),
        ({"label_smoothing": "calibrated(slope=0)"}, "slope must be"),
        ({"label_smoothing": "latent(3)"}, "latent"),
    ],
    ids=str,
)
def test_departures_that_set_the_same_column_are_refused(departures, problem):
    with pytest.raises(ValueError, match=problem):
        parse_arm(departures, PAPER, where="arm.yaml")


def test_departures_are_read_back_as_they_are_recorded():
    for departures in (
        {"temperature": -1},
        {"label_smoothing": "calibrated(slope=2.5)"},
        {"label_smoothing": "latent", "beta": "constant(0.1)"},
        {"weight": "inverse-beta"},
    ):
        arm = parse_arm(departures, PAPER, where="arm.yaml")
        assert parse_arm(arm.departures(), PAPER, where="betas.parquet") == arm


def test_scaled_betas_keep_their_weights():
    annotations = annotations_of(2, 5, 9)
    arm = Arm(of=PAPER, temperature=-1.0)
    own, tripled = compute_betas(annotations, arm), compute_betas(annotations, arm.scale_betas(3.0))
    assert tripled["beta"].to_list() == pytest.approx((own["beta"] * 3).to_list())
    assert tripled["weight"].to_list() == pytest.approx(own["weight"].to_list())
