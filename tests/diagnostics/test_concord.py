"""How far a panel agrees: alpha, who stands out, what splits it, on all pairs and on some."""

import json

import krippendorff
import numpy as np
import pytest

from sp2dpo.betas.estimators import JMAMP
from sp2dpo.diagnostics.agreement import panel_reply_gaps, teacher_readings
from sp2dpo.diagnostics.panel_agreement import Reading, measure_agreement, select_pairs
from sp2dpo.panel.rubric import load_rubric
from sp2dpo.store.annotations import build_annotation_table
from sp2dpo.store.store import Store
from support.harness import fail, run, succeed

RUBRIC = load_rubric("semantic-gap")


def panel_says(magnitudes, *, confidence=10, categories=None):
    """A table in which each teacher says one magnitude of each pair, under `direct` alone."""
    categories = categories or {}
    rows = [
        (pair(number), teacher, "direct", "chosen-first", 0,
         categories.get((number, teacher), "style"), magnitude, confidence, None, None, None)
        for teacher, teacher_magnitudes in magnitudes.items()
        for number, magnitude in enumerate(teacher_magnitudes)
        if magnitude is not None
    ]  # fmt: skip
    pair_ids = sorted({row[0] for row in rows})
    return build_annotation_table(rows, pair_ids=pair_ids, rubric=RUBRIC)


def pair(number):
    return f"{number:064x}"


def test_the_alphas_of_the_demo_are_those_of_the_krippendorff_package(demo):
    with Store(demo / "run.sqlite") as store:
        annotations = store.annotations()
    alphas = measure_agreement(annotations, JMAMP, draws=50).teachers.alpha
    readings = teacher_readings(
        panel_reply_gaps(annotations, JMAMP), list(RUBRIC.categories), JMAMP
    )
    places = {name: place for place, name in enumerate(RUBRIC.categories)}
    for what, level in (("category", "nominal"), ("magnitude", "ordinal"), ("gap", "ordinal")):
        wide = readings.pivot("reader", index="pair_id", values=what).drop("pair_id")
        values = wide.to_numpy().T
        if what == "category":
            values = np.vectorize(places.get)(values)
        if what == "gap":
            values = np.round(values, 2)
        theirs = krippendorff.alpha(values.astype(float), level_of_measurement=level)
        assert alphas[what].value == pytest.approx(theirs, abs=1e-9)
        assert alphas[what].low <= theirs <= alphas[what].high


def test_a_teacher_that_rolls_dice_stands_out():
    dice = np.random.default_rng(0)
    truth = [n % 11 for n in range(60)]
    result = measure_agreement(
        panel_says({"a": truth, "b": truth, "dice": dice.integers(0, 11, 60).tolist()}),
        JMAMP,
        draws=200,
    )
    first = result.outliers[0]
    assert (first.teacher, first.stands_out) == ("dice", True)
    assert first.without["gap"].low > 0
    assert not any(teacher.stands_out for teacher in result.outliers[1:])


def test_the_bias_of_a_teacher_is_its_gap_less_the_mean_of_the_others():
    result = measure_agreement(
        panel_says({"a": [2, 4, 6], "b": [2, 4, 6], "strict": [0, 2, None]}), JMAMP, draws=50
    )
    bias = {teacher.teacher: teacher.bias.value for teacher in result.outliers}
    assert bias["strict"] == pytest.approx(-0.2)
    assert bias["a"] == pytest.approx((0.1 + 0.1 + 0) / 3)


def test_two_teachers_leave_open_which_one_is_odd():
    result = measure_agreement(panel_says({"a": [1, 5, 9], "b": [9, 5, 1]}), JMAMP, draws=20)
    assert [teacher.without["gap"].value for teacher in result.outliers] == [None, None]
    assert not any(teacher.stands_out for teacher in result.outliers)


def test_the_pairs_that_split_the_panel_come_first():
    categories = {(2, "a"): "safety", (2, "b"): "clarity"}
    splits = measure_agreement(
        panel_says({"a": [5, 9, 3], "b": [5, 1, 3], "c": [5, 5, None]}, categories=categories),
        JMAMP,
        draws=20,
    ).splits
    assert [split.pair_id for split in splits.pairs] == [pair(1), pair(0), pair(2)]
    assert splits.pairs[0].spread == pytest.approx(np.std([0.9, 0.1, 0.5]))
    assert splits.pairs[0].readings["b"] == Reading(gap=pytest.approx(0.1), category="style")
    assert (splits.of, splits.apart) == (3, pytest.approx(1 / 3))
    assert splits.no_majority == pytest.approx(1 / 3)  # pair 2: one for each of two categories


def test_a_subset_is_of_the_named_pairs_of_a_category_of_a_size():
    categories = {(1, "a"): "safety", (1, "b"): "safety"}
    table = panel_says({"a": [1, 2, 3, 4], "b": [1, 2, 3, 4]}, categories=categories)
    assert select_pairs(table, pair_ids=[pair(0), pair(3)]).pair_ids == [pair(0), pair(3)]
    assert select_pairs(table, category="safety").pair_ids == [pair(1)]
    assert select_pairs(table, sample=2).pair_ids == [pair(0), pair(1)]
    assert select_pairs(table, category="style", sample=1).replies["magnitude"].to_list() == [1, 1]
    with pytest.raises(ValueError, match="has no category 'fun'"):
        select_pairs(table, category="fun")
    with pytest.raises(ValueError, match="no kept reply is about these pairs"):
        select_pairs(table, category="factuality")


def test_agreement_is_printed_for_people_and_as_json(demo):
    output = succeed("agreement", "--store", demo / "run.sqlite", "--draws", 50)
    assert "between teachers" in output
    assert "reader-a, between variants" in output
    assert "no teacher is an outlier" in output
    result = json.loads(
        succeed("agreement", "--store", demo / "run.sqlite", "--json", "--draws", 50)
    )
    assert result["pairs"] == 96
    assert result["splits"]["pairs"][0]["source_id"].startswith("demo-")


def test_agreement_on_some_pairs_names_them_by_their_own_names(demo, tmp_path):
    ids = tmp_path / "ids.txt"
    ids.write_text("demo-001\ndemo-002\n\ndemo-003\n")
    store = demo / "run.sqlite"
    assert succeed("agreement", "--store", store, "--ids", ids).startswith("3 pairs, 27 replies")
    ids.write_text("demo-001\nnobody\n")
    error = fail("agreement", "--store", store, "--ids", ids)
    assert "1 of 2 lines name no pair" in error
    assert "'nobody'" in error
    ids.write_text("\n")
    assert "no line names a pair" in fail("agreement", "--store", store, "--ids", ids)
    assert "no category 'stile'" in fail("agreement", "--store", store, "--category", "stile")
    assert run("agreement", "--store", store, "--sample", 0).returncode == 2
