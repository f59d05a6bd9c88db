"""Defects of the libraries below us, each by a script that stands alone: are they still there?"""

import pytest

from support.harness import ROOT, CommandServer

pytestmark = pytest.mark.slow

SCRIPTS = sorted((ROOT / "tests" / "upstream").glob("*.py"))


@pytest.fixture(scope="module")
def server():
    """Runs the scripts in processes that share the import of TRL, most of the time of a script."""
    settings = {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    server = CommandServer(settings, modules=["trl.trainer.dpo_trainer"])
    yield server
    server.close()


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_defect_is_still_there(path, server):
    result = server.run(script=path, env={"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"})
    last = result.stderr.strip().splitlines()[-1]
    assert result.returncode, f"cured upstream: see whether our own cure can go ({path.name})"
    assert last.startswith("defect: "), result.stderr[-2000:]
