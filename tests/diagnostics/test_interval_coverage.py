"""Simulated coverage of the intervals where percentiles of the bootstrap would be too narrow."""

import pytest

from benchmarks.coverage import cases, cover

pytestmark = pytest.mark.slow

TRIALS = 200
# Three standard errors of 200 trials at 0.95 are 0.046.
LEAST = 0.95 - 0.046
# An interval that misses no truth at all is too wide, except Newcombe's of an AUC near 1.
MOST = 0.995
CONSERVATIVE = "AUC of wrong labels (audit)"
MENDED = {
    ("alpha, nominal (agreement)", "readers right 99%"): 20,
    ("alpha, ordinal (agreement)", "noise 0.3"): 20,
    ("Spearman's rho (audit, compare)", "1 % differ"): 20,
    ("mean rho of teachers (audit)", "noise 0.1"): 100,
    ("mean rho of teachers (audit)", "1 % differ"): 20,
    ("ICC (audit)", "noise 0.4"): 50,
    ("deviation of beta (audit)", "a third at the floor"): 50,
    ("AUC of wrong labels (audit)", "noise 0.3, 12 % wrong"): 100,
    ("balanced accuracy (pilot)", "70% and 70%"): 48,
    ("slope k (audit, pilot)", "k = 8"): 50,
}
"""Number of units by interval and data."""


def test_the_mended_intervals_cover_what_they_say():
    coverage = {
        (case.name, case.setting): cover(case, MENDED[case.name, case.setting], trials=TRIALS)[0]
        for case in cases()
        if (case.name, case.setting) in MENDED
    }
    assert coverage.keys() == MENDED.keys()
    assert {key: share for key, share in coverage.items() if not share >= LEAST} == {}
    wide = {key for key, share in coverage.items() if share > MOST and key[0] != CONSERVATIVE}
    assert wide == set()
