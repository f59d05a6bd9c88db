"""The attack with kills; `python tests/attack/kills.py` is the same, with options."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.attack


def test_no_kill_loses_anything_or_changes_a_result_in_silence():
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("kills.py")],
        capture_output=True,
        text=True,
        check=False,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
