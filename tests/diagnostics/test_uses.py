"""The suggested use of the annotations, for panels of known quality."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from sp2dpo.betas.label_slope import fit_slope
from sp2dpo.betas.schedule import load_schedule
from sp2dpo.diagnostics.gold import Truth
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
    # Blind teachers did not see the labels: the reason is another one.
    texts = [below_quorum.reason, *(use.evidence for use in below_quorum.uses)]
    assert all("no pair has the quorum of 3 replies" in text for text in texts)
    assert not any("saw the labels" in text for text in texts)


def test_a_handful_of_pairs_that_agree_is_no_evidence():
    few = suggest_use(annotate(np.ones((19, 3))), PAPER)
    assert few.slope.low > 0
    assert suggested(few) == ANCHORED
    assert ", of 19 pairs alone;" in few.uses[0].evidence
    assert suggested(suggest_use(annotate(np.ones((20, 3))), PAPER)) == CALIBRATED


def truths_of(right):
    """The known labels of the first pairs, by whether each is right; None is a tie."""
    labels = {True: "chosen", False: "rejected", None: "tie"}
    return {
        f"{number:064x}": Truth(name=f"{number:064x}", label=labels[known])
        for number, known in enumerate(right)
    }


def test_known_labels_answer_the_caution_about_shared_errors():
    # 80 labels are right, 20 wrong; the teachers know all but 10 of either.
    right = [True] * 80 + [False] * 20
    opinions = [[0.8 if known else -0.8] * 3 for known in right]
    for mistaken in (*range(10), *range(80, 90)):
        opinions[mistaken] = [-value for value in opinions[mistaken]]
    annotations = annotate(opinions)
    alone = suggest_use(annotations, PAPER)
    assert (suggested(alone), alone.truth_slope) == (CALIBRATED, None)
    assert any("check some pairs with known labels" in caution for caution in alone.cautions)
    checked = suggest_use(annotations, PAPER, truths=truths_of(right))
    assert (suggested(checked), checked.cautions) == (CALIBRATED, ())
    gaps = [0.8 if opinion[0] > 0 else -0.8 for opinion in opinions]
    assert checked.truth_slope == fit_slope(gaps, right)
    # 80 of 100 opinions are right: sigmoid(0.8 k) = 0.8, but for the penalty.
    assert checked.truth_slope.slope == pytest.approx(np.log(4) / 0.8, rel=0.03)
    assert "On 100 known labels: 1.7" in checked.uses[0].evidence


def test_known_labels_that_are_too_few_are_asked_for():
    right = [True] * 12 + [None] * 30
    suggestion = suggest_use(annotate([[0.8] * 3] * 60), PAPER, truths=truths_of(right))
    assert suggested(suggestion) == CALIBRATED
    # A tie has no direction, so it says nothing about the slope.
    assert "12 known labels about pairs with a gap are too few" in suggestion.cautions[0]


def test_known_labels_show_that_labels_and_teachers_share_errors():
    # The teachers agree with 190 of 200 labels, of which 120 are right, whatever the truth is.
    opinions = [[0.9] * 3] * 190 + [[-0.9] * 3] * 10
    right = ([True] * 6 + [False] * 4) * 20
    suggestion = suggest_use(annotate(opinions), PAPER, truths=truths_of(right))
    assert suggestion.truth_slope.low > 0
    assert suggestion.truth_slope.high < suggestion.slope.low
    assert "labels and teachers share errors" in suggestion.cautions[0]
    wrong = suggest_use(annotate(opinions), PAPER, truths=truths_of([False] * 150 + [True] * 50))
    assert suggested(wrong) == ANCHORED
    assert "contradict the gaps" in wrong.reason
    assert "below 0 on 200 known labels" in wrong.cautions[0]


def test_known_labels_are_the_witness_where_teachers_saw_the_labels():
    # Teachers who saw the labels give wrong ones a lower gap: 0.1 in place of 0.7.
    right = [True] * 30 + [False] * 10
    good = annotate([[0.7 if known else 0.1] * 3 for known in right], rubric=LABELLED)
    assert "do not show" in suggest_use(good, PAPER).reason
    shown = suggest_use(good, PAPER, truths=truths_of(right))
    assert (suggested(shown), shown.cautions) == (SP2DPO, ())
    assert "the known labels show that a wrong label has a lower gap" in shown.reason
    assert shown.uses[0].evidence.startswith("AUC of known wrong labels: 1 (95 % ")
    useless = annotate([[0.7 if n % 2 else 0.1] * 3 for n in range(400)], rubric=LABELLED)
    doubted = suggest_use(useless, PAPER, truths=truths_of(right * 10))
    assert "do not show that the gaps tell wrong labels" in doubted.cautions[0]
    few = suggest_use(good, PAPER, truths=truths_of(right[25:35]))
    assert "5 known wrong labels and 5 right ones are too few" in few.cautions[0]


def test_pairs_that_the_recipe_leaves_without_a_beta_are_counted():
    # An adaptive panel: 70 pairs have a single reply, 30 have all three.
    opinions = [[0.8]] * 70 + [[0.8, 0.7, 0.9]] * 30
    suggestion = suggest_use(annotate(opinions), PAPER)
    assert suggested(suggestion) == CALIBRATED
    caution = suggestion.cautions[-1]
    assert "a quorum of 3 replies, which leaves 70 pairs of 100 without a beta" in caution
    assert "`quorum: 1`" in caution
    labelled = suggest_use(annotate(opinions, rubric=LABELLED), PAPER)
    assert "use schedules/adaptive" in labelled.cautions[-1]
    # With the quorum of the recipe, nothing is lost that the report has.
    assert not any(
        "quorum" in text
        for text in suggest_use(annotate(opinions), replace(PAPER, quorum=3)).cautions
    )


def test_every_use_is_a_recipe_of_the_package():
    for use in suggest_use(annotate(panel(50, signal=1, noise=1)), PAPER).uses:
        assert find_recipe(use.recipe) is not None
