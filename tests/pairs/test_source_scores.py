"""The scores of a data set itself, read from the columns beside its pairs."""

import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sp2dpo.pairs.source_scores import NoScore, ScoreColumns, SourceScore, read_score

TWO = ScoreColumns(chosen="score_chosen", rejected="score_rejected", width=9)
STRENGTH = ScoreColumns(strength="overall_preference", votes="individual_preference", width=3)


def test_two_scores_give_their_difference_as_a_share_of_the_width():
    # UltraFeedback-binarized: scores from 1 to 10.
    row = {"score_chosen": 8.5, "score_rejected": 4, "source": "evol"}
    assert read_score(row, TWO) == SourceScore(
        difference=0.5, agreement=None, text="score_chosen 8.5, score_rejected 4 of 9"
    )
    assert read_score({"score_chosen": 2, "score_rejected": 11}, TWO).difference == -1
    assert read_score({"score_chosen": "7", "score_rejected": "7.0"}, TWO).difference == 0


def test_the_scores_of_a_row_with_several_responses_are_inside_a_column():
    names = ScoreColumns(
        chosen="comparison.chosen_score", rejected="comparison.rejected_score", width=9
    )
    row = {"comparison": {"row": 3, "chosen_score": 7.5, "rejected_score": 3.0}}
    assert read_score(row, names).difference == 0.5
    # A column of that whole name comes first: names of data sets may contain dots.
    row |= {"comparison.chosen_score": 3.0}
    assert read_score(row, names).difference == 0


def test_a_strength_says_by_how_much_and_its_votes_how_surely():
    # HelpSteer3: negative prefers the first response, which is then the chosen one.
    row = {
        "overall_preference": -2,
        "individual_preference": [
            {"score": -3, "reasoning": "..."},
            {"score": -2, "reasoning": "..."},
            {"score": 1, "reasoning": "..."},
        ],
    }
    score = read_score(row, STRENGTH)
    assert score.difference == pytest.approx(2 / 3)
    assert score.agreement == pytest.approx(1 / 3)  # two for the chosen response, one against it
    assert score.text == "overall_preference -2 of 3; individual_preference -3, -2, 1"
    assert read_score(row | {"individual_preference": [-1, 0]}, STRENGTH).agreement == 0.5
    assert read_score(row | {"individual_preference": [2, 1]}, STRENGTH).agreement == 0
    alone = ScoreColumns(strength="overall_preference", width=3)
    assert read_score(row, alone).agreement is None


# On a busy machine, drawing a few numbers alone may exceed a second.
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    strength=st.integers(-3, 3).filter(bool),
    votes=st.lists(st.integers(-3, 3), min_size=1, max_size=5),
)
def test_which_response_stands_first_changes_nothing(strength, votes):
    row = {"overall_preference": strength, "individual_preference": votes}
    mirrored = {"overall_preference": -strength, "individual_preference": [-v for v in votes]}
    ours, theirs = read_score(row, STRENGTH), read_score(mirrored, STRENGTH)
    assert (ours.difference, ours.agreement) == (theirs.difference, theirs.agreement)
    assert 0 < ours.difference <= 1
    assert ours.agreement is not None
    assert 0 <= ours.agreement <= 1


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"score_rejected": 1}, "no column score_chosen"),
        ({"score_chosen": None, "score_rejected": 1}, "no number in score_chosen"),
        ({"score_chosen": True, "score_rejected": 1}, "no number in score_chosen"),
        ({"score_chosen": 3, "score_rejected": "N/A"}, "no number in score_rejected"),
        ({"score_chosen": 3, "score_rejected": float("nan")}, "no number in score_rejected"),
        ({"score_chosen": 3, "score_rejected": [1]}, "no number in score_rejected"),
    ],
)
def test_a_row_without_a_number_has_no_score(row, message):
    with pytest.raises(NoScore, match=re.escape(message)):
        read_score(row, TWO)


def test_votes_must_be_a_list_of_numbers():
    row = {"overall_preference": 1, "individual_preference": "1, 2"}
    with pytest.raises(NoScore, match="no list of votes in individual_preference"):
        read_score(row, STRENGTH)
    with pytest.raises(NoScore, match="no number in individual_preference"):
        read_score(row | {"individual_preference": [{"reasoning": "..."}]}, STRENGTH)


def test_a_difference_beyond_the_width_is_an_error_of_the_width():
    with pytest.raises(ValueError, match=r"a difference of 9\.5 is more than the width 9"):
        read_score({"score_chosen": 10, "score_rejected": 0.5}, TWO)
    narrow = ScoreColumns(chosen="a", rejected="b", width=0.2)
    assert read_score({"a": 0.9, "b": 0.7}, narrow).difference == 1.0


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            {"width": 3},
            r"two scores \(--chosen and --rejected\), or the column `strength` \(--strength\)",
        ),
        ({"width": 3, "chosen": "a"}, "name either the columns `chosen` and `rejected`"),
        (
            {"width": 3, "chosen": "a", "rejected": "b", "strength": "c"},
            "name either the columns `chosen` and `rejected`",
        ),
        (
            {"width": 3, "chosen": "a", "rejected": "b", "votes": "c"},
            r"`votes` \(--votes\) are compared .* with `strength` \(--strength\)",
        ),
        ({"width": 0, "strength": "c"}, r"`width` \(--width\) must be a number above 0, not 0"),
    ],
)
def test_columns_that_do_not_fit_together_are_refused(names, message):
    with pytest.raises(ValueError, match=message):
        ScoreColumns(**names)
