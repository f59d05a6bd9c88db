"""Annotate beside hostile teachers; `python tests/benchmarks/hostile_teachers.py` is the same."""

import json
import subprocess
import sys

import pytest

from benchmarks.hostile_teachers import PAIRS, Outcome
from servers.hostile_servers import CASES
from support.harness import TESTS

pytestmark = pytest.mark.attack

LONGEST = 60.0
"""Seconds of a run, of which those without an answer are its patience and a few time-outs."""
MOST_GROWN = 350.0
"""Megabytes that a run may add; eight replies of the largest size are 64."""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """The outcome of every case beside a good teacher; the table is printed."""
    out = tmp_path_factory.mktemp("hostile") / "outcomes.json"
    command = [sys.executable, TESTS / "benchmarks" / "hostile_teachers.py", "--out", out]
    subprocess.run(list(map(str, command)), check=True, timeout=900)
    rows = json.loads(out.read_text())
    return dict(zip(CASES, (Outcome(**row) for row in rows), strict=True))


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
    if hostile.models:  # it is refused before anybody is asked
        assert outcome.given == 0
    assert (outcome.kept == 3 * PAIRS) == hostile.is_kept
    assert outcome.leaks == []
    assert not outcome.escapes
    assert outcome.strangers_requests == 0


def test_the_good_teacher_has_answered_nearly_everywhere(outcomes):
    # A run that a refusal ends at once may be faster than its first reply.
    asked = [hostile for hostile in CASES if not hostile.models]
    whole = [hostile for hostile in asked if outcomes[hostile].given == 3 * PAIRS]
    assert len(whole) >= 0.8 * len(asked)
