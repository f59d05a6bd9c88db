"""A finished run on the Hub of the tests: its card and results, and a push that fails."""

import json
import os
import subprocess
import sys
import urllib.request

import pytest
from datasets import Dataset

from support.harness import ROOT
from support.hub import TOKEN
from support.training import BETAS, conversations

pytestmark = [pytest.mark.slow]


def file(hub, repo, path, revision="main"):
    where = urllib.request.Request(
        f"{hub.url}/{repo}/resolve/{revision}/{path}", headers={"Authorization": f"Bearer {TOKEN}"}
    )
    with urllib.request.urlopen(where) as answer:
        return answer.read().decode()


def train(hub, model, data, output, repo, *more):
    words = [
        sys.executable, ROOT / "recipes" / "train.py", "--config",
        ROOT / "recipes" / "dpo" / "tiny-demo.yaml", "--model_name_or_path", model, "--dataset",
        data, "--output_dir", output, "--max_steps", 1, "--max_length", 128, "--held_out", 0,
        "--eval_strategy", "no", "--use_cpu", "true", "--push_to_hub", "true", "--hub_model_id",
        repo, *more,
    ]  # fmt: skip
    return subprocess.run(
        list(map(str, words)), env=os.environ | hub.env | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pushed") / "data"
    folder.mkdir()
    Dataset.from_dict(conversations(beta=BETAS)).to_parquet(folder / "train.parquet")
    return folder


def test_every_pushed_card_has_the_data_and_the_last_commit_the_results(
    hub, model_dir, data, tmp_path
):
    every_step = ("--save_strategy", "steps", "--save_steps", 1, "--hub_strategy", "every_save")
    result = train(hub, model_dir, data, tmp_path / "run", "me/student", *every_step)
    assert result.returncode == 0, result.stderr[-3000:]
    card = file(hub, "me/student", "README.md")
    results = json.loads(file(hub, "me/student", "results.json"))
    assert card.count("## Data and settings") == 1
    assert f"columns_sha256: {results['data']['columns_sha256']}" in card
    assert card == (tmp_path / "run" / "README.md").read_text()
    commits = hub.ask("/api/models/me/student/commits/main")
    (early,) = [commit["id"] for commit in commits if "step 1" in commit["title"]]
    assert file(hub, "me/student", "README.md", early) == card


def test_a_push_that_fails_says_how_to_repeat_it_without_training(hub, model_dir, data, tmp_path):
    hub.fault(status=403, count=1000, match="preupload|commit")
    result = train(hub, model_dir, data, tmp_path / "run", "me/refused")
    hub.clear()
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    line = result.stderr.strip().splitlines()[-1]
    assert line.startswith(f"train.py: the run in {tmp_path / 'run'} is complete, but its push")
    assert line.endswith(f"run `hf upload me/refused {tmp_path / 'run'}`")
    assert json.loads((tmp_path / "run" / "results.json").read_text())["train_loss"] > 0
