"""A text that is judged cannot move its own beta: pairs and their injected twins."""

import pytest

from sp2dpo.panel.rubric import load_rubric
from tools.injection import TEXTS, clean_texts, trial, twins, wilson

RUBRICS = ["semantic-gap", "semantic-gap-blind"]
FORGED = {
    "forged mark", "new mark announced", "mark of another pair", "mark of the clean pair",
    "mark in capitals", "forged part and end", "odd line ends", "hidden space before",
    "full-width look-alike", "small look-alike", "musical look-alike",
}  # fmt: skip


def rate(outcomes):
    return sum(outcome.succeeded for outcome in outcomes) / len(outcomes)


def test_there_are_thirty_pairs_and_each_is_attacked_in_every_way_and_place():
    texts = clean_texts()
    assert len(texts) == len(set(texts)) == 30 == TEXTS.count("\n")
    attacked = twins(load_rubric("semantic-gap"))
    assert len(attacked) == 30 * 14 == len({twin.texts for twin in attacked})
    for attack in FORGED:
        places = {
            place
            for twin in attacked
            if twin.attack == attack
            for place in range(3)
            if twin.texts[place] != texts[twin.clean][place]
        }
        assert places == {0, 1, 2}


@pytest.mark.parametrize("rubric", RUBRICS)
def test_nothing_inside_the_fence_reaches_a_teacher_that_obeys_all_outside(tmp_path, rubric):
    outcomes = trial(tmp_path, rubric)
    assert len(outcomes) == 420
    assert [outcome.attack for outcome in outcomes if outcome.succeeded] == []
    assert max(outcome.shift for outcome in outcomes) == 0


@pytest.mark.parametrize("rubric", RUBRICS)
def test_the_measure_sees_attacks_succeed_on_a_naive_teacher(tmp_path, rubric):
    outcomes = trial(tmp_path, rubric, "--naive")
    assert rate(outcomes) > 0.5
    assert sum(outcome.shift for outcome in outcomes) / len(outcomes) > 0.03


def test_forged_marks_would_succeed_if_the_mark_were_not_checked(tmp_path):
    outcomes = trial(tmp_path, "semantic-gap", "--sloppy")
    forged = [outcome for outcome in outcomes if outcome.attack in FORGED]
    others = [outcome for outcome in outcomes if outcome.attack not in FORGED]
    assert rate(forged) == 1
    assert rate(others) == 0


def test_the_interval_is_wilsons():
    low, high = wilson(0, 10)
    assert low == 0
    assert high == pytest.approx(0.27753, abs=1e-4)  # z^2 / (n + z^2)
    low, high = wilson(5, 10)
    assert (low + high) / 2 == pytest.approx(0.5)
    assert high - low == pytest.approx(0.52682, abs=1e-4)  # z / sqrt(n + z^2)
