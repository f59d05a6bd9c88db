"""The attack with changed files; `python tests/attack/fuzz.py` is the same, with options."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.attack


def test_no_changed_file_crashes_a_command_or_changes_a_result_in_silence():
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("fuzz.py")],
        capture_output=True,
        text=True,
        check=False,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
