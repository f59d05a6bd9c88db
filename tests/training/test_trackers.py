"""What trackers are told of a run, and what becomes of a run whose tracker fails."""

import importlib.util
import json
import os
from types import SimpleNamespace

import pytest
from datasets import Dataset
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import TrainerCallback
from transformers.integrations import integration_utils

from sp2dpo.training.card import card_section, changed_settings
from sp2dpo.training.config import PairDPOConfig
from sp2dpo.training.console import ConsoleLine, console_line
from sp2dpo.training.data import DataConfig
from sp2dpo.training.sources import SourceConfig
from sp2dpo.training.trackers import (
    PACKAGES,
    SwanLab,
    check_trackers,
    describe_run,
    flatten,
)
from support.harness import ROOT
from support.training import BETAS, conversations

pytestmark = [
    # TRL still uses the names that transformers 5.2x deprecates.
    pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing:FutureWarning"),
]
DEMO = ROOT / "spaces" / "inspector" / "demo"


class Recorder(TrainerCallback):
    """A tracker of transformers that keeps what it gets, and fails at a step if it is to."""

    fails_at, config, logged = None, {}, []

    def on_train_begin(self, args, state, control, **more):
        Recorder.config, Recorder.logged = json.loads(args.to_json_string()), []
        Recorder.names = (args.run_name, args.project)
        if Recorder.fails_at == 0:
            raise OSError("no account: token=hf_planted0planted0planted0planted0xx")

    def on_log(self, args, state, control, logs=None, **more):
        if state.global_step == Recorder.fails_at:
            raise ConnectionResetError("the tracker is gone")
        Recorder.logged.append(state.global_step)


@pytest.fixture
def train(script, model_dir, tmp_path):
    """Trains three steps with a tracker; the output folder."""

    def train(dataset, tracker):
        script.main([
            "--config", str(ROOT / "recipes" / "dpo" / "tiny-demo.yaml"), "--model_name_or_path",
            model_dir, "--dataset", str(dataset), "--output_dir", str(tmp_path / "my-run"),
            "--max_steps", "3", "--max_length", "64", "--held_out", "0", "--eval_strategy", "no",
            "--use_cpu", "true", "--report_to", tracker, "--logging_steps", "1",
        ])  # fmt: skip
        return tmp_path / "my-run"

    return train


@pytest.fixture
def track(train, monkeypatch):
    """Trains with the recorder as tracker."""
    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "trackio", Recorder)
    monkeypatch.setitem(PACKAGES, "trackio", ("json", "trackio"))  # a module that is there

    def track(dataset, fails_at=None):
        Recorder.fails_at = fails_at
        train(dataset, "trackio")
        return Recorder

    return track


@pytest.fixture
def rows(tmp_path):
    folder = tmp_path / "pairs"
    folder.mkdir()
    Dataset.from_dict(conversations(beta=BETAS)).to_parquet(folder / "train.parquet")
    return folder


def test_a_tracker_knows_the_settings_the_schedule_and_the_name_of_a_run(track):
    recorder = track(DEMO)
    schedule = json.loads((DEMO / "manifest.json").read_text())["schedule"]
    assert recorder.config["pair_columns"] == ["beta"]
    assert recorder.config["data/dataset"] == "demo"
    assert recorder.config["data/schedule/beta_min"] == schedule["beta_min"]
    assert len(recorder.config["data/columns_sha256"]) == 64
    assert recorder.names == ("my-run", "sp2dpo")
    assert recorder.logged[:3] == [1, 2, 3]


def test_tensorboard_stores_the_metrics_and_the_settings(train, tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    train(DEMO, "tensorboard")
    events = EventAccumulator(str(tmp_path / "events")).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3]
    assert {"train/beta/max", "train/rewards/margins"} <= set(events.Tags()["scalars"])
    text = events.Tensors("args/text_summary")[0].tensor_proto.string_val[0].decode()
    assert json.loads(text)["data/dataset"] == "demo"


def test_a_training_goes_on_without_a_tracker_that_fails(track, rows, tmp_path, caplog):
    recorder = track(rows, fails_at=2)
    assert recorder.logged == [1]
    assert (tmp_path / "my-run" / "results.json").exists()
    assert caplog.text.count("trackio failed at step 2") == 1


def test_a_tracker_that_cannot_start_ends_the_run_with_one_line(track, rows, capsys):
    with pytest.raises(SystemExit) as stopped:
        track(rows, fails_at=0)
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert stopped.value.code == 1
    assert "report_to: trackio cannot start (OSError: no account" in line
    assert "hf_planted" not in line


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("trackio", "run `pip install trackio`"),
        ("wandb", "run `pip install wandb`"),
        ("mlflow", "run `pip install mlflow`"),
        ("azure_ml", "run `pip install azureml-core`"),
        ("trakio", "did you mean 'trackio'?"),
    ],
)
def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch, name, message):
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None)
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        check_trackers([name])


def test_every_tracker_of_transformers_has_a_package():
    assert set(integration_utils.INTEGRATION_TO_CALLBACK) - {"kubeflow"} == set(PACKAGES)


def test_neither_the_card_nor_a_tracker_gets_a_secret_or_a_path(tmp_path):
    token = "hf_" + "planted0" * 4
    (tmp_path / "a.json").write_text("{}")
    args = PairDPOConfig(
        output_dir="unused", bf16=False, use_cpu=True, hub_token=token,
        model_init_kwargs={"token": token, "dtype": "float32"},
    )  # fmt: skip
    source = SourceConfig(path=str(tmp_path), data_files=[str(tmp_path / "a.json")])
    data = DataConfig(datasets=[source])
    settings = changed_settings([data, args])
    assert settings["datasets"] == [{"path": tmp_path.name, "data_files": ["a.json"]}]
    assert settings["model_init_kwargs"] == {"dtype": "float32"}
    assert token not in card_section({}, settings)
    assert token not in args.to_json_string()


def test_nested_facts_become_flat():
    facts = {"a": {"b": 1, "c": None}, "sources": [{"path": "x"}, {"path": "y"}], "d": [1]}
    flat = {"a/b": 1, "sources/0/path": "x", "sources/1/path": "y", "d": [1]}
    assert flatten(facts) == flat


def test_a_line_of_the_console_has_what_a_person_watches():
    logs = {
        "loss": 0.69314, "rewards/accuracies": 0.5, "margins/unscaled": -0.01234, "beta/min": 0.03,
        "beta/max": 0.3, "learning_rate": 5e-7, "epoch": 0.251, "grad_norm": 3.0,
    }  # fmt: skip
    assert console_line(logs, 10, 40, 3700, 12345.6) == (
        "step 10/40  epoch 0.25  loss 0.6931  accuracy 0.50  margin -0.012 nats  beta 0.03 to 0.3"
        "  learning rate 5.00e-07  12,346 tokens/s  1:01:40 left"
    )
    equal = console_line({"loss": 1.0, "beta/min": 0.1, "beta/max": 0.1}, 1, 2, None)
    assert equal == "step 1/2  loss 1.0000  beta 0.1"
    evaluation = {"eval_math_loss": 0.5, "eval_math_rewards/accuracies": 1.0, "epoch": 2}
    line = console_line(evaluation, 1, 2, 5)
    assert line == "step 1/2  epoch 2.00  eval math loss 0.5000  accuracy 1.00"


def test_only_the_main_process_prints_one_line_for_a_log_entry(capsys):
    state = SimpleNamespace(is_world_process_zero=True, global_step=1, max_steps=2)
    line = ConsoleLine()
    line.on_log(None, state, None, logs={"loss": 1.0, "num_tokens": 10})
    state.is_world_process_zero = False
    line.on_log(None, state, None, logs={"loss": 1.0})
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1
    assert "\r" not in printed


@pytest.mark.parametrize(
    ("project", "given", "expected"),
    [
        (None, {}, "sp2dpo"),
        ("mine", {}, "mine"),
        ("mine", {"WANDB_PROJECT": "theirs", "MLFLOW_EXPERIMENT_ID": "7"}, "theirs"),
    ],
)
def test_the_project_is_that_of_every_tracker_unless_its_own_variable_is_set(
    monkeypatch, project, given, expected
):
    for name in ("WANDB_PROJECT", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"):
        monkeypatch.setenv(name, given.get(name, ""))
    args = SimpleNamespace(
        run_name=None, output_dir="student", project=project or "huggingface",
        report_to=["wandb", "mlflow", "tensorboard"],
    )  # fmt: skip
    describe_run(args, {})
    assert os.environ["WANDB_PROJECT"] == expected
    assert os.environ["MLFLOW_EXPERIMENT_NAME"] == ("" if given else expected)
    assert args.run_name == "student"


def test_swanlab_is_started_with_the_project_where_it_has_no_run():
    def no_run():
        raise RuntimeError("No active Run. Call swanlab.init() first.")

    module = SimpleNamespace(get_run=no_run, init=lambda **options: options, config={})
    swanlab = SwanLab(module, SimpleNamespace(project="mine"))
    assert swanlab.get_run() is None
    started = swanlab.init(project=None, experiment_name="student")
    assert started == {"project": "mine", "experiment_name": "student"}
    assert swanlab.config is module.config


def test_a_second_run_of_a_process_has_its_own_project(monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "")
    for project in ("first", "second"):
        describe_run(
            SimpleNamespace(run_name="a", output_dir="a", project=project, report_to=["wandb"]), {}
        )
        assert os.environ["WANDB_PROJECT"] == project
