"""The audit and the pilot tell the study's panels that help from those that do not."""

import pytest

from benchmarks.audit_power import false_go, panel_row, passing
from sp2dpo.diagnostics.gold_size import rule_power

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", ["published", "noise 0", "noise 2"])
def test_panels_that_help_pass(name):
    row = panel_row(name, samples=2)
    assert (row["fails"], row["bad"]) == (0, {})
    assert row["decisions"] == {"go": 2}


def test_each_look_at_known_labels_adds_to_the_chance_that_guessing_teachers_pass():
    one, two = false_go(25, third=0)
    # The first look is the power of the rule at chance.
    assert one == pytest.approx(rule_power((0.5, 0.5), (25, 25)), abs=1e-7)
    assert (round(one, 3), round(two, 3)) == (0.032, 0.048)
    # 10 of 10 right for either label are 1 (0.80 to 1): one more truth cannot change the verdict.
    assert passing((10, 10), (10, 10), (1, 0)) == pytest.approx(1)


def test_a_panel_that_guesses_fails():
    row = panel_row("guessing", samples=2)
    assert (row["fails"], row["bad"]["guessing"]) == (2, 2)
    assert row["decisions"] == {"no-go": 2}


def test_a_panel_that_nearly_guesses_fails_in_most_samples():
    row = panel_row("noise 8", samples=3)
    assert row["bad"]["guessing"] == row["fails"] >= 2
    assert row["decisions"] == {"no-go": 3}
