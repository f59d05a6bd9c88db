"""The suggested use of the annotations, for panels of known quality."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from sp2dpo.betas.schedule import load_schedule
from sp2dpo.diagnostics.uses import ANCHORED, CALIBRATED, LATENT, SP2DPO, suggest_use
from sp2dpo.panel.rubric import load_rubric
from sp2dpo.recipes import find_recipe
from sp2dpo.store.annotations import build_annotation_table
from support.harness import SCHEDULE

BLIND, LABELLED = load_rubric("semantic-gap-blind"), load_rubric("semantic-gap")
PAPER = replace(load_schedule(SCHEDULE), quorum=1)
ACCURACY = 0.75
"""Share of the simulated labels that are right."""


def annotate(opinions, *, rubric=BLIND):
    """Replies of teachers whose opinions, (N, T), are in [-1, 1], above 0 for the label."""
    rows = []
    for number, opinion in enumerate(opinions):
        for teacher, value in zip("abc", opinion, strict=False):
            magnitude = round(10 * abs(value))
            better = "tie" if not magnitude else "A" if value > 0 else "B"
            if not rubric.blind:
                magnitude, better = (magnitude if value > 0 else 0), None
            rows.append(
                (f"{number:064x}", teacher, "direct", "chosen-first", 0, "style", magnitude, 10,
                 better, None, None)
            )  # fmt: skip
    pair_ids = [f"{number:064x}" for number in range(len(opinions))]
    return build_annotation_table(rows, pair_ids=pair_ids, rubric=rubric)


def panel(pairs, *, signal, noise, shared=0.0, seed=0):
    """Opinions of three teachers: the truth, errors of their own, and an error that they share."""
    draw = np.random.default_rng(seed)
    truth = draw.normal(size=(pairs, 1))
    label = np.sign(truth) * np.where(draw.random((pairs, 1)) < ACCURACY, 1, -1)
    errors = noise * draw.normal(size=(pairs, 3)) + shared * draw.normal(size=(pairs, 1))
    return np.tanh((signal * truth + errors) * label)


def suggested(suggestion):
    names = [use.recipe for use in suggestion.uses if use.suggested]
    assert len(names) == 1
    return names[0]


def test_a_good_panel_is_calibrated():
    suggestion = suggest_use(annotate(panel(600, signal=1.5, noise=0.4)), PAPER)
    assert suggested(suggestion) == CALIBRATED
    assert suggestion.slope.slope > 1
    accuracy = suggestion.independent
    assert accuracy.low < ACCURACY < accuracy.high


@pytest.mark.parametrize("shared", [0.0, 1.0], ids=["guessing", "a shared opinion"])
def test_a_panel_without_information_leaves_the_labels_their_say(shared):
    suggestion = suggest_use(annotate(panel(600, signal=0, noise=0.4, shared=shared)), PAPER)
    assert suggested(suggestion) == ANCHORED
    assert suggestion.slope.low <= 0
    assert "may say nothing" in suggestion.reason


def test_a_suggestion_names_what_it_takes_for_granted():
    annotations = annotate(panel(600, signal=1.5, noise=0.4))
    plain = suggest_use(annotations, PAPER)
    assert any("do not share the errors" in caution for caution in plain.cautions)
    checks = [
        SimpleNamespace(name=name, verdict=verdict)
        for name, verdict in (("length-bias", "look"), ("guessing", "bad"))
    ]
    doubted = suggest_use(annotations, PAPER, checks)
    assert [*doubted.cautions][: len(plain.cautions)] == [*plain.cautions]
    assert "length of the responses" in doubted.cautions[-1]
    fine = [SimpleNamespace(name="length-bias", verdict="ok")]
    assert suggest_use(annotations, PAPER, fine).cautions == plain.cautions


def test_a_weak_panel_leaves_the_labels_their_say():
    suggestion = suggest_use(annotate(panel(3000, signal=0.2, noise=1.0)), PAPER)
    assert suggested(suggestion) == ANCHORED
    assert 0 < suggestion.slope.low < suggestion.slope.slope < 1
    assert "say little" in suggestion.reason


def test_estimates_that_assume_independence_are_shown_beside_those_that_do_not():
    suggestion = suggest_use(annotate(panel(600, signal=0, noise=0.1, shared=1.5)), PAPER)
    assert suggestion.independent.estimate < 0.6 < suggestion.dependent.estimate
    evidence = {use.recipe: use.evidence for use in suggestion.uses}
    assert f"{suggestion.independent.estimate:.3g}" in evidence[LATENT]
    assert f"{suggestion.dependent.estimate:.3g}" in evidence[ANCHORED]


def test_teachers_who_saw_the_labels_cannot_witness_against_themselves():
    annotations = annotate(panel(100, signal=1.5, noise=0.4), rubric=LABELLED)
    suggestion = suggest_use(annotations, PAPER)
    assert suggested(suggestion) == SP2DPO
    assert suggestion.slope is None
    assert {use.recipe for use in suggestion.uses}.isdisjoint({CALIBRATED, LATENT, ANCHORED})


def test_no_pair_and_no_preference_are_no_error():
    ties = suggest_use(annotate(np.zeros((5, 3))), PAPER)
    assert suggested(ties) == ANCHORED
    assert "every gap is 0" in [use.evidence for use in ties.uses]
    below_quorum = suggest_use(annotate(np.ones((5, 1))), replace(PAPER, quorum=3))
    assert suggested(below_quorum) == SP2DPO


def test_every_use_is_a_recipe_of_the_package():
    for use in suggest_use(annotate(panel(50, signal=1, noise=1)), PAPER).uses:
        assert find_recipe(use.recipe) is not None
