"""The attacks that are programs of their own, with options; each prints a table."""

import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest

pytestmark = pytest.mark.attack

LIMIT = 3000
"""Seconds after which a program counts as hanging; beside other tests, each may take 1500."""


@pytest.mark.parametrize("program", ["kills.py", "fuzz.py"])
def test_an_attack_crashes_nothing_and_changes_no_result_in_silence(program):
    with (
        tempfile.TemporaryFile("w+", errors="replace") as errors,
        subprocess.Popen(
            [sys.executable, Path(__file__).with_name(program)],
            env=os.environ | {"PYTHONFAULTHANDLER": "1"},
            stderr=errors,
            start_new_session=True,
        ) as running,
    ):
        try:
            code = running.wait(LIMIT)
            errors.seek(0)
            # The end of a long log is all that a CI server shows of it.
            assert code == 0, errors.read()[-20_000:]
        finally:
            # Its processes print where they are, and none of them is left.
            for number in (signal.SIGABRT, signal.SIGKILL):
                with suppress(ProcessLookupError):
                    os.killpg(running.pid, number)
                with suppress(subprocess.TimeoutExpired):
                    running.wait(5)
