"""Whole runs on a mixture and on a stream, with a tiny model."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from datasets import Dataset
from safetensors.torch import load_file

from support.harness import ROOT
from support.training import BETAS, conversations

pytestmark = [
    # TRL still uses the names that transformers 5.2x deprecates.
    pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing:FutureWarning"),
]
MIXTURE = ROOT / "recipes" / "dpo" / "data" / "mixture.yaml"


@pytest.fixture
def train(script, model_dir, tmp_path):
    """Trains with these settings on a CPU; the content of results.json."""

    def train(name, *configs, **changes):
        settings = {
            "model_name_or_path": model_dir, "output_dir": str(tmp_path / name), "max_length": 128,
            "use_cpu": True, "bf16": False, "gradient_checkpointing": False, "report_to": "none",
            "learning_rate": 1.0e-2, "logging_steps": 1, "per_device_train_batch_size": 2,
            "save_strategy": "no", "max_steps": 2,
        } | changes  # fmt: skip
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(settings))
        words = [word for file in (path, *configs) for word in ("--config", str(file))]
        script.main([*words, "--traceback", "true"])
        return json.loads((tmp_path / name / "results.json").read_text())

    return train


def test_the_mixture_of_the_recipes_is_trained_on_and_named_on_the_card(
    train, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    pairs = conversations()
    for folder in ("dataset", "org/math-preferences"):
        Path(folder).mkdir(parents=True)
    Dataset.from_dict(pairs | {"beta": BETAS}).to_parquet("dataset/train.parquet")
    renamed = dict(zip(("question", "good", "bad"), list(pairs.values())[:3], strict=True))
    Dataset.from_dict(renamed).to_parquet("org/math-preferences/train.parquet")
    rows = [dict(zip(pairs, row, strict=True)) for row in zip(*pairs.values(), strict=True)]
    lines = [json.dumps(row | {"strength": 0.2}) + "\n" for row in rows]
    Path("pairs.jsonl").write_text("".join(lines))
    results = train("mixed", MIXTURE)
    # All 8 pairs of the first are 3/5 of 13.3, and 2.7 of each other are 1/5.
    used = results["rows"]["train"]["used_by_source"]
    assert used == {"dataset": 8, "math-preferences": 3, "pairs.jsonl": 3}
    assert results["beta"]["mean"] == pytest.approx((sum(BETAS) + 3 * 0.1 + 3 * 0.2) / 14)
    sources = results["data"]["sources"]
    assert [source["rows"]["available"] for source in sources] == [8, 8, 8]
    assert sources[1]["constants"] == {"beta": 0.1}
    card = (tmp_path / "mixed" / "README.md").read_text()
    assert f"fingerprint: {sources[2]['fingerprint']}" in card
    assert train("again", MIXTURE)["data"] == results["data"]


def test_a_stream_resumes_with_the_rows_that_come_next(train, tmp_path):
    path = tmp_path / "pairs.parquet"
    Dataset.from_dict(conversations(beta=BETAS)).to_parquet(path)
    # Two steps an epoch: the checkpoint of the third is one of the second epoch.
    stream = {"dataset": str(path), "streaming": True, "max_steps": 6}
    stream["per_device_train_batch_size"] = 4
    saved = {"save_strategy": "steps", "save_steps": 3}
    results = train("run", **stream, **saved)
    assert results["streaming"]
    assert (results["beta"], results["rows"]) == (None, {})
    whole = load_file(tmp_path / "run" / "model.safetensors")
    shutil.rmtree(tmp_path / "run" / "checkpoint-6")
    train("run", **stream, **saved, resume_from_checkpoint=True)
    resumed = load_file(tmp_path / "run" / "model.safetensors")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_stream_without_steps_or_by_epochs_is_refused_before_the_model_is_read(train, tmp_path):
    with pytest.raises(ValueError, match="streaming: true needs max_steps"):
        train("run", dataset=str(tmp_path), streaming=True, max_steps=-1, num_train_epochs=1)
    with pytest.raises(ValueError, match="set save_strategy to steps, not to epoch"):
        train("run", dataset=str(tmp_path), streaming=True, save_strategy="epoch")


def test_a_training_of_no_epochs_evaluates_the_model_as_it_is(train, tmp_path):
    Dataset.from_dict(conversations(beta=BETAS)).to_parquet(tmp_path / "pairs.parquet")
    path = str(tmp_path / "pairs.parquet")
    data = {"dataset": path, "eval_dataset": path, "held_out": 0}
    results = train("run", **data, max_steps=-1, num_train_epochs=0, eval_strategy="steps")
    assert results["eval"]["eval_loss"] == pytest.approx(0.6931, abs=1e-3)
