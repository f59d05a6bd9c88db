"""Annotate beside hostile teachers; `python tests/benchmarks/hostile_teachers.py` is the same."""

import pytest

from benchmarks.hostile_teachers import PAIRS, print_table, run_cases
from servers.hostile_servers import CASES

pytestmark = pytest.mark.attack

LONGEST = 60.0
"""Seconds of a run, of which those without an answer are its patience and a few time-outs."""
MOST_GROWN = 350.0
"""Megabytes that a run may add; eight replies of the largest size are 64."""


@pytest.fixture(scope="module")
def outcomes():
    """The outcome of every case beside a good teacher, several at a time."""
    outcomes = list(run_cases(CASES, jobs=4))
    print_table(CASES, outcomes)
    return dict(zip(CASES, outcomes, strict=True))


@pytest.mark.parametrize("hostile", CASES, ids=lambda hostile: hostile.name)
def test_a_run_with_a_hostile_teacher_ends_and_keeps_the_good_replies(hostile, outcomes):
    outcome = outcomes[hostile]
    assert outcome.code == hostile.exits, outcome.output
    assert "Traceback" not in outcome.output
    # A machine that is busy with other things may need longer than the time-out of a request.
    assert hostile.message in outcome.output or "no answer in time" in outcome.output
    assert outcome.seconds < LONGEST
    assert outcome.grown < MOST_GROWN
    assert outcome.stored == outcome.given
    assert (outcome.given == 0) == hostile.models
    assert (outcome.kept == 3 * PAIRS) == hostile.is_kept
    assert outcome.leaks == []
    assert not outcome.escapes
    assert outcome.strangers_requests == 0
