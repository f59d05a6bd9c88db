"""Stop a training run at a signal: finish the step, save a checkpoint, end with 128 + N.

A scheduler sends a signal some time before it ends a job: SIGTERM (Kubernetes, Slurm) or what a
user has chosen, such as SIGUSR1 (`sbatch --signal=USR1@300`). The same command with
`resume_from_checkpoint: true` continues.
"""

import ctypes
import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from tqdm import tqdm
from transformers import TrainerCallback, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from sp2dpo.text import redact

_SIGNALS = (
    signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU,
)  # fmt: skip
_ONE_STOP = 3.0
"""Seconds within which a repeated signal counts as one: a launcher forwards to its processes what
the terminal or Slurm has sent to them already."""
_SET_PDEATHSIG = 1
_LAUNCHERS = ("accelerate", "accelerate-launch", "torchrun")
_LAUNCHER_MODULES = ("accelerate.commands.launch", "torch.distributed.run")


class Stopped(Exception):
    """A signal has stopped the run, after its checkpoint was saved.

    Attributes:
        number: Number of the signal.
        step: Number of steps that were done.
        steps: Number of steps of the run.
        checkpoint: Folder of the checkpoint; None if the signal came before the first step.
    """

    def __init__(
        self, number: int, *, step: int = 0, steps: int = 0, checkpoint: Path | None = None
    ) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number
        self.step = step
        self.steps = steps
        self.checkpoint = checkpoint


class StopSignals:
    """Receives the signals that stop a run; the second ends the process at once.

    Attributes:
        number: Number of the first signal; None as long as there was none.
        notice: What happens after a signal; None if it raises Stopped at once.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self.notice: str | None = None
        self._at = 0.0

    def receive(self, number: int, frame: FrameType | None = None) -> None:
        """React to a signal; the handler of all of them."""
        if self.number is not None:
            if time.monotonic() - self._at > _ONE_STOP:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        self.number, self._at = number, time.monotonic()
        if self.notice is None:
            raise Stopped(number)
        if os.environ.get("RANK", "0") == "0":
            # Not print: the signal may have interrupted another one.
            os.write(2, f"{signal.Signals(number).name}: {self.notice}\n".encode())


_active: list[StopSignals] = []


@contextmanager
def stoppable(program: str, command: Sequence[str] = ()) -> Iterator[None]:
    """Let signals stop the run in the block, and exit with 128 + N after it.

    Also SIGUSR1 and SIGUSR2 that the process ignores: a job script lets its launcher ignore them
    (`trap '' USR1`), and the launcher passes that on. An ignored SIGHUP (`nohup`) or SIGINT stays
    ignored.

    Args:
        program: Name of the script, with which the message begins.
        command: Words of the command that resumes the run; empty for those of the launcher, or of
            this process.
    """
    # Now, because the launcher may end first.
    launcher = _launcher_words()
    if launcher:
        _follow_launcher()
    signals = StopSignals()
    before = {}
    for number in _SIGNALS:
        handler = signal.getsignal(number)
        if handler is not signal.SIG_IGN or number in (signal.SIGUSR1, signal.SIGUSR2):
            before[number] = signal.signal(number, signals.receive)
    _active.append(signals)
    try:
        yield
    except Stopped as stopped:
        if os.environ.get("RANK", "0") == "0":
            tqdm.write(
                "\n".join(_stop_lines(program, stopped, [*command] or launcher)), file=sys.stderr
            )
        raise SystemExit(128 + stopped.number) from None
    finally:
        _active.remove(signals)
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop_lines(program: str, stopped: Stopped, launcher: list[str]) -> list[str]:
    where = "before the first step: nothing is lost"
    if stopped.checkpoint is not None:
        where = (
            f"after step {stopped.step} of {stopped.steps}; the checkpoint is {stopped.checkpoint}"
        )
    return [
        f"{program}: stopped by {signal.Signals(stopped.number).name} {where}",
        f"{program}: to resume, run: {redact(shlex.join(_resuming_command(launcher)))}",
    ]


def _resuming_command(launcher: list[str]) -> list[str]:
    words = launcher or ["python", *sys.argv]
    if any(word.partition("=")[0] == "--resume_from_checkpoint" for word in words):
        return words
    return [*words, "--resume_from_checkpoint", "true"]


def _launcher_words() -> list[str]:
    """Return the command of the parent process if that is a launcher; else an empty list."""
    try:
        line = Path("/proc", str(os.getppid()), "cmdline").read_bytes()
    except OSError:
        return []
    words = [os.fsdecode(word) for word in line.split(b"\0")[:-1]]
    # A program, an interpreter with its file, or `python -m MODULE`.
    is_program = any(Path(word).name in _LAUNCHERS for word in words[:2])
    is_module = len(words) > 2 and words[1] == "-m" and words[2] in _LAUNCHER_MODULES
    return words if is_program or is_module else []


def _follow_launcher() -> None:
    """Ask the kernel for SIGTERM when the launcher ends, which forwards no signal itself.

    `accelerate launch` with one process ends at SIGTERM and would leave the training behind, which
    would then write to the same folder as the next job.
    """
    ctypes.CDLL(None).prctl(_SET_PDEATHSIG, signal.SIGTERM)


class StopAtSignal(TrainerCallback):
    """Save a checkpoint and end the training after the step in which a signal arrived.

    All processes agree on the step, whichever of them received the signal: otherwise the others
    would wait for it in their next step. With several processes, that is the step after the one in
    which it arrived; see `Agreement`. A signal during an evaluation ends the evaluation; the
    resumed run repeats it.

    Attributes:
        stopping: Number of the signal at which the training ends; None as long as it goes on.
        saved: Step of the last checkpoint that this process has saved; None if there is none.
    """

    def __init__(self, trainer: Any, signals: StopSignals) -> None:
        self._trainer = trainer
        self._signals = signals
        self._agreement = Agreement()
        self.stopping: int | None = None
        self.saved: int | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Make up for the evaluation that was due at the step of the checkpoint."""
        if state.global_step and _evaluation_is_missing(args, state):
            metrics = self._trainer.evaluate()
            self._trainer._determine_best_metric(metrics=metrics, trial=None)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Stop if any process has received a signal."""
        last = state.global_step >= state.max_steps
        self.stopping = self._agree(args, wait=last)
        if self.stopping is not None:
            args.save_only_model = False  # to resume, the optimizer is needed
            control.should_save = control.should_training_stop = True
            # So that the mean loss of the whole run can be computed, and without delay.
            control.should_log, control.should_evaluate = True, False

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Do nothing more at the end of an epoch that was stopped."""
        if self.stopping is not None:
            control.should_log = control.should_evaluate = control.should_save = False

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Note the step of a checkpoint."""
        self.saved = state.global_step

    def on_prediction_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """End an evaluation if any process has received a signal."""
        number = self._agree(args)
        if number is not None:
            raise Stopped(number)

    def finish(self) -> None:
        """Wait for the last exchange with the other processes."""
        self._agreement.read()

    def _agree(self, args: Any, *, wait: bool = False) -> int | None:
        return self._agreement.exchange(self._signals.number or 0, args.device, wait=wait) or None


class Agreement:
    """Tells every process the largest number of all, which is sent now and read one call later.

    In training, a process queues work for its GPU in advance. To read at once what the processes
    send each other would let it wait for all that is queued, in every step.
    """

    def __init__(self) -> None:
        self._sent: tuple[torch.Tensor, Callable[[], Any]] | None = None

    def exchange(self, number: int, device: torch.device, *, wait: bool = False) -> int:
        """Return the largest number of the previous call, and send one for the next call.

        A single process gets its own number. Otherwise all processes have to call this function
        equally often.

        Args:
            number: A number of 0 or more. It is not sent if the answer is above 0.
            device: Device on which the processes communicate.
            wait: Whether to return the largest number of this call if the previous one gave 0.
        """
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return number
        answer = self.read()
        if answer:
            return answer
        # `tensor` would wait for the device, too.
        flag = torch.full((1,), number, device=device)
        work: Any = torch.distributed.all_reduce(
            flag, op=torch.distributed.ReduceOp.MAX, async_op=True
        )
        self._sent = flag, work.wait
        if flag.is_cuda:
            work.wait()  # the stream waits, not this process
            copy = torch.empty_like(flag, device="cpu", pin_memory=True)
            copy.copy_(flag, non_blocking=True)
            copied = torch.cuda.Event()
            copied.record()
            self._sent = copy, copied.synchronize
        return self.read() if wait else 0

    def read(self) -> int:
        """Return the largest of the numbers sent last; 0 if they were read or none was sent."""
        if self._sent is None:
            return 0
        (flag, wait), self._sent = self._sent, None
        wait()
        return int(flag.item())


def _evaluation_is_missing(args: Any, state: Any) -> bool:
    step = state.global_step
    if args.eval_strategy == "steps":
        due = step % state.eval_steps == 0 and step >= args.eval_delay
    elif args.eval_strategy == "epoch":
        # The epoch is a sum of fractions.
        due = abs(state.epoch - round(state.epoch)) < 1e-6 and args.eval_delay <= state.epoch
    else:
        return False
    logged = any(
        entry["step"] == step and any(key.startswith("eval_") for key in entry)
        for entry in state.log_history
    )
    return due and not logged


@contextmanager
def stopping_at_signals(trainer: Any) -> Iterator[StopAtSignal | None]:
    """Stop the trainer at a signal inside the block, if the block is inside `stoppable`.

    Raises:
        Stopped: If the block raises it, with the checkpoint, which is saved if it is not there.
    """
    if not _active:
        yield None
        return
    callback = StopAtSignal(trainer, _active[-1])
    trainer.add_callback(callback)
    _active[-1].notice = "saving a checkpoint after this step, then the run ends"
    try:
        yield callback
        callback.finish()
        if callback.stopping is not None:
            raise Stopped(callback.stopping)
    except Stopped as stopped:
        step = trainer.state.global_step
        folder = Path(str(trainer.args.output_dir), f"{PREFIX_CHECKPOINT_DIR}-{step}")
        if step and callback.saved != step:
            _record_loss(trainer)
            trainer.args.save_only_model = False
            trainer._save_checkpoint(trainer.model, trial=None)
        # A process that ends would let the launcher end those that are still saving.
        trainer.accelerator.wait_for_everyone()
        raise Stopped(
            stopped.number, step=step, steps=trainer.state.max_steps,
            checkpoint=folder if step else None,
        ) from None  # fmt: skip
    finally:
        trainer.remove_callback(callback)
        # What follows is short, and cannot be resumed in the middle.
        _active[-1].notice = "the run is complete as soon as its results are written"


def _record_loss(trainer: Any) -> None:
    """Add the mean loss since the last log entry to the state, for `whole_mean_loss`."""
    state, last = trainer.state, getattr(trainer, "_globalstep_last_logged", 0)
    # A local variable in older versions of transformers.
    if hasattr(trainer, "_tr_loss") and state.global_step > last:
        loss = trainer.accelerator.gather(trainer._tr_loss.reshape(1)).mean().item()
        entry = {"loss": loss / (state.global_step - last), "step": state.global_step}
        state.log_history.append(entry)


def whole_mean_loss(trainer: Any, loss: float, checkpoint: str) -> float:
    """Return the mean loss of all steps of a resumed run.

    Args:
        trainer: The Trainer, which has trained from `checkpoint` on.
        loss: Mean loss that it returned, which covers only the steps after the checkpoint.
        checkpoint: Folder of the checkpoint.
    """
    state = trainer.state
    first = TrainerState.load_from_json(str(Path(checkpoint, TRAINER_STATE_NAME))).global_step
    new = state.global_step - first
    # Older versions of transformers divide by the number of all steps.
    total = loss * (new if hasattr(trainer, "_initial_global_step") else state.global_step)
    logged = 0
    for entry in state.log_history:
        if "loss" in entry and entry["step"] <= first:
            total += entry["loss"] * (entry["step"] - logged)
            logged = entry["step"]
    return total / max(1, logged + new)


def is_complete(checkpoint: Path) -> bool:
    """Return whether a run can be resumed from a checkpoint.

    A killed process leaves a part of it, and `save_only_model` one without the optimizer, which the
    Trainer would start anew without a word.
    """
    # Written last by the main process.
    try:
        json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    # `global_step*` is DeepSpeed's.
    return any(checkpoint.glob("optimizer*")) or any(checkpoint.glob("global_step*"))
