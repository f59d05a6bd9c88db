"""`sp2dpo train` with an engine and two processes: the weights of one process.

The launcher and its processes are forks, which do without their imports; the keeper around them is
tested in `tests/cli/test_training_commands.py`.
"""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import yaml
from datasets import Dataset
from safetensors.torch import load_file

from sp2dpo.training.engines import choose_engine
from support.training import BETAS, conversations, launch, settings

pytestmark = [
    pytest.mark.slow,
    # TRL still uses the names that transformers 5.2x deprecates.
    pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing:FutureWarning"),
]


@pytest.fixture
def train(script, model_dir, tmp_path, monkeypatch):
    """Trains on an engine, None for this process; the weights and the content of results.json."""
    monkeypatch.chdir(tmp_path)

    def train(name, engine, **changes):
        run = settings(tmp_path, max_steps=4, global_batch_size=4)
        run |= {"model_name_or_path": model_dir, "output_dir": name}
        # Plain gradient descent: AdamW would divide a gradient by its own size.
        run |= {"optim": "sgd", "learning_rate": 0.1, **changes}
        run |= {"per_device_train_batch_size": 4 if engine is None else 2}
        Path(f"{name}.yaml").write_text(yaml.safe_dump(run))
        words = ["--config", f"{name}.yaml"]
        if engine is None:
            script.main([*words, "--traceback", "true"])
        else:
            chosen = json.dumps(asdict(choose_engine(engine, 2)))
            result = launch(
                "sp2dpo.training.process", "launcher", chosen, "train", *words, folder=tmp_path
            )
            assert result.returncode == 0, result.stderr[-3000:]
        return load_file(f"{name}/model.safetensors"), json.loads(
            Path(name, "results.json").read_text()
        )

    return train


def assert_close(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-6)


MIXTURE = [{"path": "a.parquet", "weight": 1}, {"path": "b.parquet", "weight": 2}]
STREAM = {"streaming": True, "shuffle_buffer": 4}
CASES = {
    "zero2": ("zero2", {"dataset": "a.parquet"}),
    "mixture": ("ddp", {"datasets": MIXTURE}),
    "stream": ("ddp", {"dataset": "a.parquet", "global_batch_size": 8} | STREAM),
    "stream mixture": ("ddp", {"datasets": MIXTURE} | STREAM),
}


@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_the_weights_of_one(train, case):
    Dataset.from_dict(conversations(beta=BETAS)).to_parquet("a.parquet")
    Dataset.from_dict(conversations(beta=BETAS[::-1])).to_parquet("b.parquet")
    engine, changes = CASES[case]
    ours, results = train("ours", engine, **changes)
    assert results["processes"] == 2
    assert results["distributed_type"] == ("DEEPSPEED" if engine == "zero2" else "MULTI_CPU")
    theirs, expected = train("theirs", None, **changes)
    assert_close(ours, theirs)
    assert results["train_loss"] == pytest.approx(expected["train_loss"], rel=1e-5)
    assert results["rows"] == expected["rows"]
