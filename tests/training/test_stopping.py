"""A signal ends a training run after its step, with a checkpoint from which it goes on."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest
from transformers import TrainerCallback

from sp2dpo.training import stoppable, stopping
from sp2dpo.training.run import find_checkpoint, train_and_evaluate
from sp2dpo.training.stopping import StopSignals, is_complete
from support.training import BETAS, FSDP_ON_CPUS, assert_same, make, pairs, run_in, settings

pytestmark = [
    # TRL still uses the names that transformers 5.2x deprecates.
    pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]

SIGNALS = [
    signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU,
]  # fmt: skip


class Sender(TrainerCallback):
    """Sends this process a signal in a step, or in the evaluation after it."""

    def __init__(self, number, step, *, evaluating=False):
        self.number, self.step, self.evaluating = number, step, evaluating

    def on_step_begin(self, args, state, control, **_):
        if state.global_step == self.step and not self.evaluating:
            os.kill(os.getpid(), self.number)

    def on_prediction_step(self, args, state, control, **_):
        if state.global_step == self.step and self.evaluating:
            self.step = None
            os.kill(os.getpid(), self.number)


OPTIONS = {"max_steps": 4, "eval_strategy": "steps", "eval_steps": 2, "logging_steps": 3}


def run(model_dir, folder, sender=None, **changes):
    """Train in this folder; the parameters, the mean loss and what was logged."""
    options = OPTIONS | changes
    data = pairs(beta=BETAS)
    trainer = make(model_dir, folder, data, eval_dataset=data, **options)
    if sender is not None:
        trainer.add_callback(sender)
    with stoppable("train.py"):
        loss, metrics = train_and_evaluate(
            trainer, checkpoint=find_checkpoint(trainer.args), evaluate=True
        )
    weights = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
    evaluations = {
        entry["step"]: entry["eval_loss"]
        for entry in trainer.state.log_history
        if "eval_loss" in entry
    }
    return weights, loss, metrics["eval_loss"], evaluations


@pytest.fixture(scope="module")
def undisturbed(model_dir, tmp_path_factory):
    return run(model_dir, tmp_path_factory.mktemp("undisturbed"))


def check_resumed(model_dir, folder, undisturbed, **changes):
    resumed = run(model_dir, folder, resume_from_checkpoint="true", **changes)
    assert_same(resumed[0], undisturbed[0])
    assert resumed[1] == pytest.approx(undisturbed[1], rel=1e-6)
    assert resumed[2:] == undisturbed[2:]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGUSR1])
def test_a_stopped_run_resumes_to_the_same_model(model_dir, tmp_path, undisturbed, capsys, number):
    with pytest.raises(SystemExit) as ended:
        run(model_dir, tmp_path, Sender(number, 2))
    assert ended.value.code == 128 + number
    name = signal.Signals(number).name
    error = capsys.readouterr().err
    checkpoint = tmp_path / "run" / "checkpoint-3"
    assert f"stopped by {name} after step 3 of 4; the checkpoint is {checkpoint}" in error
    assert "--resume_from_checkpoint true" in error
    assert is_complete(checkpoint)
    check_resumed(model_dir, tmp_path, undisturbed)


@pytest.mark.parametrize(
    ("sender", "step"),
    [
        (Sender(signal.SIGTERM, 0), 1),
        (Sender(signal.SIGTERM, 1), 2),  # the evaluation that is due is made up for
        (Sender(signal.SIGTERM, 3), 4),  # all steps are done
        (Sender(signal.SIGTERM, 2, evaluating=True), 2),
        (Sender(signal.SIGTERM, 4, evaluating=True), 4),
    ],
    ids=["first step", "due evaluation", "last step", "in an evaluation", "in the last evaluation"],
)
def test_a_run_may_be_stopped_anywhere(model_dir, tmp_path, undisturbed, sender, step):
    with pytest.raises(SystemExit) as ended:
        run(model_dir, tmp_path, sender)
    assert ended.value.code == 143
    assert find_checkpoint(
        make(model_dir, tmp_path, pairs(beta=BETAS), resume_from_checkpoint="true").args
    ) == str(tmp_path / "run" / f"checkpoint-{step}")
    check_resumed(model_dir, tmp_path, undisturbed)


def test_a_run_that_is_stopped_again_and_again_ends_at_the_same_model(
    model_dir, tmp_path, undisturbed
):
    for step in range(4):
        with pytest.raises(SystemExit):
            run(model_dir, tmp_path, Sender(signal.SIGUSR1, step), resume_from_checkpoint="true")
    check_resumed(model_dir, tmp_path, undisturbed)


def test_a_run_that_ends_inside_an_epoch_makes_no_step_more_when_it_is_resumed(model_dir, tmp_path):
    options = {"max_steps": 3, "lr_scheduler_type": "constant", "logging_steps": 1}
    first = run(model_dir, tmp_path, save_strategy="steps", save_steps=3, **options)
    again = run(model_dir, tmp_path, resume_from_checkpoint="true", **options)
    assert_same(again[0], first[0])
    assert again[1] == pytest.approx(first[1], rel=1e-6)
    assert again[2:] == first[2:]


def test_a_checkpoint_that_a_kill_left_incomplete_is_passed_over(model_dir, tmp_path, undisturbed):
    often = {"save_strategy": "steps", "save_steps": 1, "logging_steps": 1}
    with pytest.raises(SystemExit):
        run(model_dir, tmp_path, Sender(signal.SIGTERM, 2), **often)
    for step, state in ((3, '{"epoch": 0.'), (17, None)):
        folder = tmp_path / "run" / f"checkpoint-{step}"
        folder.mkdir(exist_ok=True)
        if state is not None:
            (folder / "trainer_state.json").write_text(state)
    (tmp_path / "run" / "checkpoint-mine").mkdir()
    args = make(model_dir, tmp_path, pairs(beta=BETAS), resume_from_checkpoint="true").args
    assert find_checkpoint(args) == str(tmp_path / "run" / "checkpoint-2")
    check_resumed(model_dir, tmp_path, undisturbed)


def test_weights_alone_are_no_checkpoint_to_resume_from(model_dir, tmp_path, undisturbed):
    with pytest.raises(SystemExit):
        run(model_dir, tmp_path, Sender(signal.SIGTERM, 2), save_only_model=True)
    assert (tmp_path / "run" / "checkpoint-3" / "optimizer.pt").exists()
    check_resumed(model_dir, tmp_path, undisturbed)


def test_a_signal_before_the_training_ends_the_run_at_once(capsys):
    with pytest.raises(SystemExit) as ended, stoppable("train.py"):
        os.kill(os.getpid(), signal.SIGUSR1)
    assert ended.value.code == 128 + signal.SIGUSR1
    assert "stopped by SIGUSR1 before the first step: nothing is lost" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("files", "complete"),
    [
        ({"trainer_state.json": "{}", "optimizer.pt": ""}, True),
        ({"trainer_state.json": "{}", "optimizer.pt": "", "rng_state_0.pth": ""}, True),
        ({"trainer_state.json": "{}", "global_step3/shard.pt": ""}, True),  # DeepSpeed
        ({"trainer_state.json": "{}", "optimizer_0/shard": ""}, True),  # FSDP
        ({"trainer_state.json": "{}", "model.safetensors": ""}, False),
        ({"trainer_state.json": '{"a": ', "optimizer.pt": ""}, False),
        ({"optimizer.pt": ""}, False),
        ({}, False),
    ],
)
def test_a_checkpoint_to_resume_from_has_all_it_takes(tmp_path, monkeypatch, files, complete):
    monkeypatch.setenv("WORLD_SIZE", "4")  # also on more processes than have written it
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert is_complete(tmp_path) == complete


@pytest.mark.parametrize(
    ("command", "launches"),
    [
        ("/venv/bin/python /venv/bin/accelerate launch train.py", True),
        ("python -m accelerate.commands.launch train.py", True),
        ("torchrun train.py", True),
        ("python -m torch.distributed.run train.py", True),
        ("/opt/conda/envs/accelerate/bin/python work.py", False),
        ("bash /home/me/accelerate-runs/run.sh", False),
        ("bash train_accelerate.sh", False),
        ("bash", False),
    ],
)
def test_only_a_launcher_takes_its_training_with_it(monkeypatch, command, launches):
    line = "".join(f"{word}\0" for word in command.split()).encode()
    monkeypatch.setattr(Path, "read_bytes", lambda self: line)
    assert stopping._launcher_words() == (command.split() if launches else [])


def test_a_token_on_the_command_line_is_not_printed(monkeypatch, capsys):
    token = "hf_" + "planted0" * 4
    monkeypatch.setattr(sys, "argv", ["train.py", "--hub_token", token])
    with pytest.raises(SystemExit), stoppable("train.py"):
        os.kill(os.getpid(), signal.SIGTERM)
    error = capsys.readouterr().err
    assert "to resume, run: python train.py --hub_token" in error
    assert token not in error


def test_a_launcher_that_forwards_a_signal_at_once_is_no_second_signal(monkeypatch):
    signals, sent, now = StopSignals(), [], [100.0]
    signals.notice = "the run ends"
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(os, "kill", lambda _, number: sent.append(number))
    before = signal.getsignal(signal.SIGTERM)
    try:
        for seconds in (0, 1, 1):
            now[0] += seconds
            signals.receive(signal.SIGTERM)
        assert sent == []
        now[0] += 2
        signals.receive(signal.SIGTERM)
        assert sent == [signal.SIGTERM]
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)


def test_handlers_are_what_they_were_after_the_run():
    before = [signal.getsignal(number) for number in SIGNALS]
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # for a launcher
        with stoppable("train.py"):
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN  # nohup
            receives = signal.getsignal(signal.SIGTERM)
            assert receives not in before
            assert {signal.getsignal(number) for number in SIGNALS} == {receives, signal.SIG_IGN}
            assert signal.getsignal(signal.SIGUSR1) == receives
    finally:
        signal.signal(signal.SIGHUP, before[2])
        signal.signal(signal.SIGUSR1, before[3])
    assert [signal.getsignal(number) for number in SIGNALS] == before


TWO_PROCESSES = (
    FSDP_ON_CPUS
    + """
import json, os, signal, sys
from datasets import Dataset
import deepspeed
from sp2dpo.training import stoppable
from sp2dpo.training.run import find_checkpoint, train_and_evaluate
from sp2dpo.training.trainer import PairDPOConfig, PairDPOTrainer
from transformers import TrainerCallback

deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
job = json.load(open(sys.argv[1]))

class Sender(TrainerCallback):
    def on_step_begin(self, args, state, control, **_):
        if args.process_index == 1 and state.global_step == job["step"]:
            os.kill(os.getpid(), signal.SIGUSR1)

trainer = PairDPOTrainer(
    job["model"], args=PairDPOConfig(**job["settings"]),
    train_dataset=Dataset.from_dict(job["pairs"]),
)
rank = trainer.accelerator.process_index
if job["phase"] == "stopped":
    trainer.add_callback(Sender())
code = loss = None
try:
    with stoppable("train.py"):
        loss, _ = train_and_evaluate(
            trainer, checkpoint=find_checkpoint(trainer.args), evaluate=False
        )
except SystemExit as ended:
    code = ended.code
result = {
    "engine": str(trainer.accelerator.distributed_type), "code": code, "loss": loss,
    "step": trainer.state.global_step,
}
with open(f"{job['phase']}-{rank}.json", "w") as file:
    json.dump(result, file)
sys.stdout.flush()
os._exit(0)  # gloo's threads sometimes abort a process that is tidied up
"""
)
ZERO_3 = {
    "zero_optimization": {"stage": 3},
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
}
FSDP_2 = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
}
ENGINES = {"MULTI_CPU": ({}, {}), "DEEPSPEED": ({"deepspeed": ZERO_3}, {}), "FSDP": ({}, FSDP_2)}
"""Settings and environment variables by the engine that accelerate names."""


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_two_processes_stop_after_the_same_step_and_resume(
    model_dir, tmp_path, undisturbed, monkeypatch, engine
):
    """One of them receives a signal in step 2; both stop after the next step, and go on."""
    engine_settings, environment = ENGINES[engine]
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    options = settings(
        tmp_path, max_steps=4, per_device_train_batch_size=2, resume_from_checkpoint="true",
        **engine_settings,
    )  # fmt: skip
    job = {"model": str(model_dir), "pairs": pairs(beta=BETAS)[:], "step": 1, "settings": options}

    def launch(phase):
        run_in(2, TWO_PROCESSES, tmp_path, phase=phase, **job)
        names = (f"{phase}-{rank}.json" for rank in range(2))
        return [json.loads((tmp_path / name).read_text()) for name in names]

    for stopped in launch("stopped"):
        assert stopped["engine"].endswith(engine)
        assert (stopped["step"], stopped["code"]) == (3, 128 + signal.SIGUSR1)
    assert is_complete(tmp_path / "run" / "checkpoint-3")
    for resumed in launch("resumed"):
        assert (resumed["step"], resumed["code"]) == (4, None)
        assert resumed["loss"] == pytest.approx(undisturbed[1], abs=1e-4)
