"""The audit and the pilot tell the study's panels that help from those that do not."""

import pytest

from benchmarks.audit_power import panel_row

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", ["published", "noise 0", "noise 2"])
def test_panels_that_help_pass(name):
    row = panel_row(name, samples=2)
    assert (row["fails"], row["bad"]) == (0, {})
    assert row["decisions"] == {"go": 2}


def test_a_panel_that_guesses_fails():
    row = panel_row("guessing", samples=2)
    assert (row["fails"], row["bad"]["guessing"]) == (2, 2)
    assert row["decisions"] == {"no-go": 2}


def test_a_panel_that_nearly_guesses_fails_in_most_samples():
    row = panel_row("noise 8", samples=3)
    assert row["bad"]["guessing"] == row["fails"] >= 2
    assert row["decisions"] == {"no-go": 3}
