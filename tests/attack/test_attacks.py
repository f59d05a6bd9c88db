"""The attacks that are programs of their own, with options; each prints a table."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.attack


@pytest.mark.parametrize("program", ["fuzz.py", "kills.py"])
def test_an_attack_crashes_nothing_and_changes_no_result_in_silence(program):
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name(program)],
        capture_output=True,
        text=True,
        check=False,
    )
    print(f"\n{done.stdout}")
    assert done.returncode == 0, done.stdout + done.stderr
