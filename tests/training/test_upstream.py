"""Defects of the libraries below us, each by a script that stands alone: are they still there?"""

import json
import os
import subprocess
import sys

import pytest

from support.harness import ROOT

pytestmark = pytest.mark.slow

SCRIPTS = sorted((ROOT / "tests" / "upstream").glob("*.py"))
# The scripts share the imports, which take longer than what they do: each runs in a fork.
FORKS = """
import json, os, runpy, sys, tempfile, traceback
import torch, datasets, tokenizers, transformers, trl

def run(path):
    with tempfile.TemporaryFile("w+") as errors:
        child = os.fork()
        if child == 0:
            os.dup2(errors.fileno(), 2)
            code = 0
            try:
                sys.argv = [path]
                runpy.run_path(path, run_name="__main__")
            except SystemExit as ended:
                if isinstance(ended.code, str):
                    print(ended.code, file=sys.stderr)
                code = int(bool(ended.code))
            except BaseException:
                traceback.print_exc()
                code = 1
            sys.stderr.flush()
            os._exit(code)
        _, status = os.waitpid(child, 0)
        errors.seek(0)
        return os.waitstatus_to_exitcode(status), errors.read()

print(json.dumps({path: run(path) for path in sys.argv[1:]}))
"""


@pytest.fixture(scope="module")
def outcomes():
    """What each script ended with: exit code and stderr, by path."""
    done = subprocess.run(
        [sys.executable, "-c", FORKS, *map(str, SCRIPTS)],
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_defect_is_still_there(outcomes, path):
    code, errors = outcomes[str(path)]
    assert code, f"cured upstream: see whether our own cure can go ({path.name})"
    last = errors.strip().splitlines()[-1]
    assert last.startswith("defect: "), errors[-2000:]
