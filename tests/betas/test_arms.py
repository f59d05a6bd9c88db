"""Arms: the same annotations put to another use, each by hand on a small table."""

import math
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from sp2dpo.betas.arms import Arm, compute_betas, load_arm, parse_arm
from sp2dpo.betas.baselines import (
    ArithmeticMean,
    BetaWeight,
    Constant,
    DropLowest,
    GapMargin,
    GapWeight,
    HarmonicMean,
    Madpo,
    Odpo,
    Permuted,
    Uniform,
)
from sp2dpo.betas.columns import REQUIRED
from sp2dpo.betas.estimators import Signed
from sp2dpo.betas.file import BetaTable, read_betas, write_betas
from sp2dpo.betas.maps import Envelope
from sp2dpo.betas.schedule import load_schedule
from sp2dpo.betas.scores import Scores
from sp2dpo.panel.rubric import load_rubric
from sp2dpo.store.annotations import build_annotation_table
from support.harness import ROOT, SCHEDULE, succeed

PAPER = replace(load_schedule(SCHEDULE), quorum=1)
SIGNED = replace(PAPER, gap=Signed())
RUBRIC = load_rubric("semantic-gap")
FILES = sorted((ROOT / "recipes" / "schedules").rglob("*.yaml"))
MADPO = Madpo(2, 0.5, 1, 7)


def pair(number):
    return f"{number:064x}"


def annotations_of(*magnitudes, confidence=10):
    """One reply of each pair; None for a pair without one."""
    rows = [
        (pair(n), "a", "direct", "chosen-first", 0, "style", m, c, None, None, None)
        for n, magnitude in enumerate(magnitudes)
        if magnitude is not None
        for m, c in [magnitude if isinstance(magnitude, tuple) else (magnitude, confidence)]
    ]
    pair_ids = [pair(n) for n in range(len(magnitudes))]
    return build_annotation_table(rows, pair_ids=pair_ids, rubric=RUBRIC)


def arm_table(annotations, scores=None, *, of=PAPER, **departures):
    scores_table = None
    if scores is not None:
        table = pl.DataFrame({"pair_id": annotations.pair_ids[: len(scores)]})
        table = table.with_columns(reward_margin=pl.Series(scores, dtype=pl.Float64))
        scores_table = Scores(table=table, name="scores.parquet")
    return compute_betas(annotations, Arm(of=of, **departures), scores_table)


def column(name, *arguments, **departures):
    return arm_table(*arguments, **departures)[name].to_list()


def test_a_constant_is_the_beta_of_every_pair_that_has_one():
    assert column("beta", annotations_of(0, None, 10), beta=Constant(0.1)) == [0.1, None, 0.1]


def test_the_means_are_over_the_betas_of_the_kept_pairs():
    # 0.03, 0.165, 0.3
    assert column("beta", annotations_of(0, 5, 10), beta=ArithmeticMean())[0] == pytest.approx(
        0.165
    )
    harmonic = 3 / (1 / 0.03 + 1 / 0.165 + 1 / 0.3)
    assert column("beta", annotations_of(0, 5, 10), beta=HarmonicMean())[2] == pytest.approx(
        harmonic
    )
    betas = column("beta", annotations_of(0, 5, 10), beta=ArithmeticMean(), keep=DropLowest(34))
    assert betas[0] == pytest.approx((0.165 + 0.3) / 2)


def test_rand_beta_is_drawn_from_the_envelope_by_its_seed():
    annotations = annotations_of(*range(11), None)
    betas = column("beta", annotations, beta=Uniform(0))
    assert betas == column("beta", annotations, beta=Uniform(0))
    assert betas != column("beta", annotations, beta=Uniform(1))
    assert betas[11] is None
    assert all(0.03 <= beta <= 0.3 for beta in betas[:11])
    narrow = replace(PAPER, envelopes={"style": Envelope(beta_min=0.1, beta_max=0.2)})
    inside = column("beta", annotations, of=narrow, beta=Uniform(0))
    assert all(0.1 <= beta <= 0.2 for beta in inside[:11])


def test_permuted_betas_are_the_same_on_the_wrong_pairs():
    annotations = annotations_of(*range(11), None)
    own = arm_table(annotations)["beta"]
    permuted = arm_table(annotations, beta=Permuted(3))["beta"]
    assert sorted(own.drop_nulls()) == sorted(permuted.drop_nulls())
    assert not (own == permuted).any()
    assert permuted[11] is None


def test_the_lowest_gaps_are_marked_and_no_row_is_deleted():
    annotations = annotations_of(3, 1, 1, 9, None, 1)
    table = arm_table(annotations, keep=DropLowest(40))
    assert len(table) == 6
    assert table["keep"].to_list() == [True, False, False, True, False, True]
    assert table["has_beta"].sum() == 5


@pytest.mark.parametrize(
    ("ties", "percent", "left_out"),
    [
        # Gaps .3, .1, .1, .9, none, .1, .0: two of six pairs are 40 %, four are 70 %.
        (None, 40, [1, 6]),
        ("hash", 40, [1, 6]),
        ("drop", 40, [1, 2, 5, 6]),
        ("keep", 40, [6]),
        # Where no tie is divided, all three agree.
        (None, 70, [1, 2, 5, 6]),
        ("drop", 70, [1, 2, 5, 6]),
        ("keep", 70, [1, 2, 5, 6]),
        # Not even one whole pair.
        ("drop", 10, []),
        ("keep", 10, []),
    ],
)
def test_pairs_with_equal_gaps_are_left_out_by_hash_or_together(ties, percent, left_out):
    annotations = annotations_of(3, 1, 1, 9, None, 1, 0)
    table = arm_table(annotations, keep=DropLowest(percent, ties))
    gone = table.filter(pl.col("has_beta") & ~pl.col("keep"))["pair_id"].to_list()
    assert gone == [pair(number) for number in left_out]


def test_arms_that_treat_ties_alike_are_written_and_read_back():
    arm = Arm(of=PAPER, keep=DropLowest(20, "drop"))
    assert arm.departures() == {"keep": "drop-lowest(percent=20, ties=drop)"}
    assert parse_arm(arm.departures(), PAPER, where="here") == arm
    with pytest.raises(ValueError, match="ties 'dropp' is not known, did you mean 'drop'"):
        parse_arm({"keep": "drop-lowest(20, dropp)"}, PAPER, where="here")
    with pytest.raises(ValueError, match="leaves no pair to train on"):
        arm_table(annotations_of(1, 1, 1), keep=DropLowest(50, "drop"))


def test_disputed_pairs_are_dropped_or_flipped():
    annotations = annotations_of((8, 9), (8, 1), (0, 1))  # signed gaps 0.64, -0.64, 0
    dropped = arm_table(annotations, of=SIGNED, disputed="drop")
    assert dropped["keep"].to_list() == [True, False, True]
    assert dropped["beta"][1] == pytest.approx(0.03)
    flipped = arm_table(annotations, of=SIGNED, disputed="flip")
    assert flipped["flip"].to_list() == [False, True, False]
    assert flipped["gap"].to_list() == pytest.approx([0.64, 0.64, 0])
    assert flipped["signed_gap"].to_list() == pytest.approx([0.64, -0.64, 0])
    assert flipped["beta"][1] == pytest.approx(0.03 + 0.27 * 0.64)
    assert flipped["keep"].all()


@pytest.mark.parametrize("weight", [GapWeight(), BetaWeight()], ids=["gap", "beta"])
def test_weights_without_any_beta_leave_the_quorum_to_be_reported(weight):
    table = arm_table(annotations_of(2, 4), of=replace(PAPER, quorum=9), weight=weight)
    assert not table["has_beta"].any()


def test_gap_and_beta_serve_as_weights_of_mean_1():
    annotations = annotations_of(2, 4, None)
    by_gap = arm_table(annotations, beta=ArithmeticMean(), weight=GapWeight())
    assert by_gap["weight"].to_list() == [pytest.approx(2 / 3), pytest.approx(4 / 3), None]
    by_beta = arm_table(annotations, beta=ArithmeticMean(), weight=BetaWeight())
    own = arm_table(annotations)["beta"]
    at_zero = by_beta["beta"] * by_beta["weight"]
    assert at_zero.to_list()[:2] == pytest.approx(own.to_list()[:2])


def test_the_gap_serves_as_a_margin():
    assert column("margin", annotations_of(2, None), margin=GapMargin(5)) == [
        pytest.approx(1.0),
        None,
    ]


def test_madpo_weighs_by_the_reward_margin():
    table = arm_table(
        annotations_of(2, 4, None), [1.0, -4.0, 9.0], beta=Constant(0.1), weight=MADPO
    )
    expected = Madpo(c_max=2, c_min=0.5, lam=1, tau=7).values([1.0, -4.0])
    assert table["weight"].to_list() == [*map(pytest.approx, expected), None]
    assert table["reward_margin"].to_list() == [1.0, -4.0, None]
    assert "margin" not in table.columns


def test_odpo_leaves_out_pairs_that_the_reward_model_orders_otherwise():
    table = arm_table(annotations_of(2, 4, 6), [math.e, 0.0, -1.0], margin=Odpo(2, "log"))
    assert table["margin"].to_list() == [pytest.approx(2.0), None, None]
    assert table["keep"].to_list() == [True, False, False]
    assert table["has_beta"].all()


def test_the_reward_margin_of_exchanged_responses_turns_its_sign():
    annotations = annotations_of((8, 9), (8, 1))
    table = arm_table(annotations, [3.0, -3.0], of=SIGNED, disputed="flip", weight=MADPO)
    assert table["reward_margin"].to_list() == [3.0, 3.0]
    assert table["weight"][0] == table["weight"][1]


@pytest.mark.parametrize(
    ("arguments", "departures", "message"),
    [
        (
            (annotations_of(1),),
            {"disputed": "drop"},
            "teachers who see the label cannot dispute it",
        ),
        ((annotations_of(1),), {"weight": MADPO}, "give --scores"),
        ((annotations_of(1), [1.0]), {"beta": Constant(0.1)}, "--scores is not used"),
        (
            (annotations_of(1, 2), [1.0]),
            {"weight": MADPO},
            "1 of 2 pairs with a beta have no score",
        ),
        ((annotations_of(0, 0),), {"weight": GapWeight()}, "every kept pair has the gap 0"),
        ((annotations_of(1), [-1.0]), {"margin": Odpo(1, "log")}, "leaves no pair to train on"),
    ],
)
def test_an_arm_that_cannot_be_made_says_why(arguments, departures, message):
    with pytest.raises(ValueError, match=message):
        arm_table(*arguments, **departures)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_schedule_and_arm_of_the_recipes_makes_betas_that_explain_themselves(
    path, demo, tmp_path
):
    store, out, scores = demo / "run.sqlite", tmp_path / "betas.parquet", tmp_path / "s.parquet"
    pair_ids = read_betas(demo / "betas.parquet").table["pair_id"]
    margins = np.random.default_rng(0).normal(2, 2, len(pair_ids))
    pl.DataFrame({"pair_id": pair_ids, "reward_margin": margins}).write_parquet(scores)
    arm = load_arm(path)
    scores_options = ("--scores", scores) if arm.uses_scores else ()
    succeed("schedule", "--store", store, "--schedule", path, "--out", out, *scores_options)
    read = read_betas(out)
    assert read.arm == arm
    assert tuple(read.table.columns[: len(REQUIRED)]) == REQUIRED
    assert len(read.table) == 96
    lines = succeed("explain", "demo-002", "--store", store, "--betas", out)
    row = read.table.filter(pl.col("pair_id").str.starts_with(lines.split()[1][:12]))
    assert f"{row['beta'][0]:.6g}" in lines


@pytest.mark.parametrize(
    "departures",
    [
        {},
        {"beta": Uniform(7), "keep": DropLowest(12.5)},
        {"beta": Constant(0.05), "weight": Madpo(4, 0.25, 1, 7, "amplify")},
        {"disputed": "flip", "margin": Odpo(0.5, "identity")},
    ],
    ids=str,
)
def test_the_file_of_betas_says_what_made_it(tmp_path, departures):
    annotations = annotations_of((8, 9), (8, 1), (5, 8), (3, 9))
    uses = Arm(of=SIGNED, **departures).uses_scores
    table = arm_table(annotations, [1.0, -2.0, 3.0, 4.0] if uses else None, of=SIGNED, **departures)
    written = BetaTable(
        table=table,
        arm=Arm(of=SIGNED, **departures),
        annotations_hash=annotations.hash,
        scores_hash="f" * 64 if uses else None,
    )
    first_path, second_path = tmp_path / "one.parquet", tmp_path / "other.parquet"
    write_betas(written, first_path)
    write_betas(written, second_path)
    assert first_path.read_bytes() == second_path.read_bytes()
    read = read_betas(first_path)
    assert read.arm == written.arm
    assert read.table.equals(table)
    assert (read.annotations_hash, read.scores_hash) == (annotations.hash, written.scores_hash)
