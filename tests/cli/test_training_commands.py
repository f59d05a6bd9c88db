"""`sp2dpo train`, `reward` and `sweep`: names of recipes and engines, signals, exit codes."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import psutil
import pytest
import yaml
from datasets import Dataset
from trl import DPOConfig, RewardConfig

import sp2dpo.cli.training as cli_training
from sp2dpo.cli.settings import REWARD, TRAIN
from sp2dpo.inference import keeper
from sp2dpo.training import engines
from sp2dpo.training.config import PairDPOConfig
from sp2dpo.training.data import DataConfig
from sp2dpo.training.engines import Engine, choose_engine
from sp2dpo.training.launcher import check_engine
from sp2dpo.training.reward_run import FoldConfig, RewardModelConfig
from support.harness import COMMAND, ROOT, fail, run, succeed
from support.training import BETAS, conversations, settings

RECIPES = ROOT / "recipes"
DATASET = ROOT / "spaces" / "inspector" / "demo"  # as `sp2dpo recipes copy demo/dataset` copies it
DEMO = ("--config", "dpo/tiny-demo", "--dataset", str(DATASET), "--use_cpu", "true")


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    """A folder with a space in its name, and no default configuration of accelerate."""
    monkeypatch.setattr(engines, "HF_HOME", str(tmp_path / "home"))
    folder = tmp_path / "an empty folder"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def test_a_recipe_trains_in_an_empty_folder(tiny_student, empty_folder):
    done = run("train", *DEMO, "--model_name_or_path", tiny_student, "--max_steps", 1,
               "--output_dir", "a student")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"--config dpo/tiny-demo is the recipe {RECIPES / 'dpo' / 'tiny-demo.yaml'}" in (
        done.stderr
    )
    assert done.stdout.splitlines()[-1] == "a student: the model and results.json are written"
    results = json.loads((empty_folder / "a student" / "results.json").read_text())
    assert results["rows"]["train"]["used"] > 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config", "tiny-demo"], "no such recipe, did you mean 'dpo/tiny-demo'?"),
        (["--config", "../an empty folder"], "is a folder: name a YAML file in it"),
        (["run.yaml"], "'run.yaml' is no option: a YAML file is given as --config FILE"),
        ([*DEMO, "--engine", "zero_3"], "neither a file nor an engine, did you mean 'zero3'?"),
        ([*DEMO, "--engine", "."], "--engine . is a folder"),
        ([*DEMO, "--engine", "ddp", "--engine", "zero3"], "--engine is given 2 times: ddp, zero3"),
        ([*DEMO, "--engine", "single", "--processes", 3], "is one process, not 3"),
        ([*DEMO, "--machine-rank", 0], "need an engine of several processes"),
        ([*DEMO, "--learning_rat", 1], "did you mean 'learning_rate'?"),
        ([*DEMO, "--beta", "-1"], "beta must be a finite number above 0"),
    ],
    ids=lambda value: " ".join(map(str, value))[-30:] if isinstance(value, list) else "",
)
def test_wrong_words_are_one_line_and_exit_code_2(words, message):
    *others, error = fail("train", *words, code=2).splitlines()
    assert error.startswith("sp2dpo train: ")
    assert message in error
    assert all("is the recipe" in line for line in others)


def test_bad_data_is_one_line_and_exit_code_1():
    error = fail("train", *DEMO, "--dataset", "no/folder", code=1).splitlines()[-1]
    assert error.startswith("sp2dpo train: no/folder is neither a file")


def test_debug_shows_the_traceback_of_a_training():
    assert "Traceback" in run("--debug", "train", *DEMO, "--dataset", "no/folder").stderr


@pytest.mark.parametrize(
    ("command", "listed", "ours", "theirs"),
    [
        ("train", TRAIN, (DataConfig, PairDPOConfig), DPOConfig),
        ("reward", REWARD, (FoldConfig, RewardModelConfig), RewardConfig),
    ],
)
def test_help_lists_every_setting_that_is_not_one_of_trl(command, listed, ours, theirs):
    inherited = {field.name for field in fields(theirs)}
    settings = [field for config in ours for field in fields(config) if field.name not in inherited]
    assert listed == {field.name: field.metadata["help"] for field in settings}
    words = succeed(command, "--help").split()
    assert {*listed} <= {*words}
    assert f"`trl {'dpo' if command == 'train' else 'reward'} --help`" in " ".join(words)


@pytest.mark.parametrize("command", ["train", "reward", "sweep"])
def test_without_the_libraries_one_sentence_names_the_extra(monkeypatch, command):
    monkeypatch.setattr(cli_training, "find_spec", lambda name: None if name == "trl" else name)
    options = ["--out", "x"] if command == "sweep" else []
    error = fail(command, *options, "--config", "dpo/tiny-demo")
    assert error == (
        f"sp2dpo {command} needs trl, which is not installed: pip install 'sp2dpo[train]'\n"
    )


def test_a_dry_run_prints_the_settings_and_the_launch(empty_folder):
    Path("more.yaml").write_text("beta: 0.2\nglobal_batch_size: 32\n")
    words = [*DEMO, "--config", "more.yaml", "--seed", 3]
    lines = succeed("train", *words, "--dry-run").splitlines()
    assert "beta: 0.2  # more.yaml" in lines
    assert "held_out: 0.25  # tiny-demo.yaml" in lines
    assert lines[-2].endswith("--seed 3")
    assert lines[-1] == "# one process, without a launcher; nothing was started"
    lines = succeed(
        "train", *words, "--dry-run", "--engine", "zero3", "--processes", 2
    ).splitlines()
    launch = lines[-1].partition(": ")[2]
    config = RECIPES / "accelerate" / "zero3.yaml"
    assert launch.startswith(f"accelerate launch --config_file {config} --num_processes 2 ")
    assert "--module sp2dpo.training.process commands train --config " in launch
    error = fail(
        "train", *words, "--dry-run", "--engine", "ddp", "--processes", 3, code=2
    ).splitlines()[-1]
    assert error == "sp2dpo train: global_batch_size 32 is not a multiple of the 3 processes"
    assert [path.name for path in empty_folder.iterdir()] == ["more.yaml"]


def test_a_dry_run_of_a_reward_model_prints_its_settings(tiny_student):
    lines = succeed(
        "reward", "--config", "reward/tiny-demo", "--dry-run", "--folds", 3
    ).splitlines()
    assert "num_train_epochs: 2  # tiny-demo.yaml" in lines
    assert lines[-2].endswith("--folds 3")


def test_the_engine_is_single_or_the_default_of_accelerate_or_ddp(tmp_path):
    assert choose_engine(None, None) == Engine(name="single", config=None)
    several = choose_engine(None, 2)
    assert (several.name, several.processes, several.is_carried) == ("ddp", 2, True)
    default = tmp_path / "home" / "accelerate" / "default_config.yaml"
    default.parent.mkdir(parents=True)
    default.write_text((RECIPES / "accelerate" / "single.yaml").read_text())
    assert choose_engine(None, None) == Engine(name=str(default), config=str(default))
    assert choose_engine("single", None).config is None


def test_a_default_of_accelerate_is_used_and_named(tmp_path):
    default = tmp_path / "home" / "accelerate" / "default_config.yaml"
    default.parent.mkdir(parents=True)
    default.write_text((RECIPES / "accelerate" / "single.yaml").read_text())
    done = run("train", *DEMO, "--dry-run")
    assert f"runs with --engine {default}; --engine single is one process" in done.stderr
    assert f"accelerate launch --config_file {default} --num_processes 1 " in done.stdout


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        ({}, {}, "no GPU is visible; give --processes N"),
        ({}, {"processes": 3, "machines": 2}, "cannot be spread evenly over 2 machines"),
        ({}, {"processes": 2, "machines": 2}, "need the address of the first: give --main-process"),
        ({"distributed_type": "MULTI_CPU"}, {"processes": 2}, "accelerate starts one process"),
        ({"distributed_type": "NO"}, {"processes": 2}, "accelerate starts one process"),
        ({"distributed_type": "FSDP"}, {"processes": 2}, "needs GPUs and none is visible"),
    ],
)
def test_an_engine_that_cannot_run_here_is_refused(monkeypatch, config, options, message):
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    Path("engine.yaml").write_text(yaml.safe_dump({"distributed_type": "MULTI_GPU"} | config))
    engine = Engine(name="mine", config="engine.yaml", is_carried=True, **options)
    with pytest.raises(ValueError, match=message):
        check_engine(engine)


def test_each_process_needs_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr("torch.accelerator.is_available", lambda: True)
    monkeypatch.setattr("torch.accelerator.device_count", lambda: 2)
    config = str(RECIPES / "accelerate" / "zero3.yaml")
    engine = Engine(name="zero3", config=config, is_carried=True)
    assert check_engine(engine).processes == 2
    with pytest.raises(ValueError, match="3 processes on this machine need as many GPUs, and 2"):
        check_engine(Engine(name="zero3", config=config, is_carried=True, processes=3))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_to_the_command_leaves_a_checkpoint_and_no_process(
    model_dir, empty_folder, number
):
    rows = conversations(beta=BETAS)
    Path("dataset").mkdir()
    Dataset.from_dict(rows).to_parquet("dataset/train.parquet")
    run_settings = settings(empty_folder, max_steps=100_000, logging_steps=1)
    run_settings |= {"model_name_or_path": model_dir, "dataset": "dataset", "output_dir": "out"}
    Path("run.yaml").write_text(yaml.safe_dump(run_settings))
    words = [*COMMAND, "train", "--config", "run.yaml", "--engine", "ddp", "--processes", "2"]
    with Path("log").open("w+") as log:
        running = subprocess.Popen(words, stdout=log, stderr=log)
        try:
            end = time.monotonic() + 300
            while "step 2/" not in Path("log").read_text():
                assert running.poll() is None, Path("log").read_text()
                assert time.monotonic() < end
                time.sleep(0.1)
            started = psutil.Process(running.pid).children(recursive=True)
            running.send_signal(number)
            code = running.wait(120)
            _, left = psutil.wait_procs(started, timeout=120)
        finally:
            running.kill()
    output = Path("log").read_text()
    assert len(started) >= 4  # keeper, launcher, two processes
    assert left == [], output
    assert code == (-number if number == signal.SIGKILL else 128 + number)
    (checkpoint,) = Path("out").glob("checkpoint-*")
    assert f"stopped by SIGTERM after step {checkpoint.name.partition('-')[2]} of" in output
    command = "python -m sp2dpo train --config run.yaml --engine ddp --processes 2"
    assert f"to resume, run: {command} --resume_from_checkpoint true" in output
    assert "Traceback" not in output


STUBBORN = """
import signal, time
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, signal.SIG_IGN)
print("begun", flush=True)
time.sleep(100)
"""


@pytest.mark.slow
def test_a_second_signal_ends_what_does_not_stop_at_the_first():
    words = ["--wait-for-all", str(os.getpid()), "60", sys.executable, "-c", STUBBORN]
    with subprocess.Popen(
        [sys.executable, keeper.__file__, *words], stdout=subprocess.PIPE, start_new_session=True
    ) as running:
        assert running.stdout.readline() == b"begun\n"
        (child,) = psutil.Process(running.pid).children()
        for _ in range(2):  # within 3 seconds: they count as one
            running.send_signal(signal.SIGINT)
        time.sleep(3.5)
        assert child.is_running()
        running.send_signal(signal.SIGINT)
        assert running.wait(10) == 143
    assert not child.is_running()


@pytest.mark.slow
def test_several_processes_end_with_the_exit_code_of_the_first_and_without_a_traceback():
    words = [*DEMO, "--engine", "ddp", "--processes", "3", "--learning_rat", "1"]
    error = fail("train", *words, code=2, own_process=True)
    message = "unknown setting learning_rat, did you mean 'learning_rate'?"
    # Another process says it, too, if the main process takes much longer to start.
    assert all(line.endswith(message) for line in error.splitlines()[1:]), error
