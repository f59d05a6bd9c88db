"""Console output of a training run: one short line per log entry, and errors in one line."""

import os
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import datasets
import torch
import transformers
import yaml
from datasets.exceptions import DatasetsError
from tqdm import tqdm
from transformers import PrinterCallback, ProgressCallback, TrainerCallback

from sp2dpo.text import one_line

PATIENCE = 10
"""Seconds that a process waits before it prints an error that the main process may have printed."""


@contextmanager
def one_line_errors(program: str, exit_code: int, *, traceback: bool) -> Iterator[None]:
    """Print an error about settings, files or data as one line and exit with `exit_code`.

    The processes of a run usually fail alike: the main process prints its error at once, another
    one only if it is still running after `PATIENCE`, since the launcher ends all processes when one
    has failed.

    Args:
        program: Name of the script, printed before the message.
        exit_code: Exit code of the process after such an error.
        traceback: Whether to raise the error unchanged instead of printing it.
    """
    try:
        yield
    except (
        ValueError,
        TypeError,
        OSError,
        ArithmeticError,
        DatasetsError,
        yaml.YAMLError,
    ) as error:
        if traceback:
            raise
        rank = os.environ.get("RANK", "0")
        if rank != "0":
            time.sleep(PATIENCE)
            program = f"{program} (process {rank})"
        # Not print: a progress bar may still be open in this line of the terminal.
        tqdm.write(f"{program}: {one_line(error)}", file=sys.stderr)
        raise SystemExit(exit_code) from None


def quiet_libraries(args: Any) -> None:
    """Turn off progress bars if stderr is not a terminal, and warnings that nobody can act on.

    Args:
        args: TrainingArguments; `disable_tqdm` is set to True if stderr is not a terminal.
    """
    if not torch.accelerator.is_available():
        # DeepSpeed is imported even if it is not used; it then warns that it found no accelerator.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    if not sys.stderr.isatty():
        args.disable_tqdm = True
        datasets.disable_progress_bars()
        transformers.utils.logging.disable_progress_bar()
    # TRL 1.16 reads this property of the model; no argument makes it use the new name.
    warnings.filterwarnings(
        "ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning
    )


def use_console(trainer: Any) -> None:
    """Replace the output of a Trainer by ConsoleLine and, in a terminal, a progress bar."""
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    if not trainer.args.disable_tqdm:
        trainer.add_callback(QuietBar)
    trainer.add_callback(ConsoleLine)


class QuietBar(ProgressCallback):
    """The Trainer's progress bar, without the log entries that it normally prints."""

    def on_log(self, *_: Any, **__: Any) -> None:
        """Print nothing: see ConsoleLine."""


class ConsoleLine(TrainerCallback):
    """Print the most important numbers of a log entry, on the main process.

    The trackers, `trainer_state.json` and results.json get the complete entry.
    """

    def __init__(self) -> None:
        self._started = self._counted = time.monotonic()
        self._first_step, self._tokens = 0, 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the clock and note the first step, which is not 0 in a resumed run."""
        self._started = self._counted = time.monotonic()
        self._first_step = state.global_step

    def on_evaluate(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Do not count the time of an evaluation as that of training tokens."""
        metrics = more.get("metrics") or {}
        self._counted += sum(v for name, v in metrics.items() if name.endswith("_runtime"))

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        """Print one line."""
        if state.is_world_process_zero and logs:
            # The steps before a resume took no time in this process.
            done = state.global_step - self._first_step
            seconds = time.monotonic() - self._started
            left = seconds / done * (state.max_steps - state.global_step) if done else None
            line = console_line(
                logs, state.global_step, state.max_steps, left, self._count_tokens(logs)
            )
            if line:
                tqdm.write(line)  # above the bar, if there is one
                sys.stdout.flush()  # into a file too, where somebody may read along

    def _count_tokens(self, logs: dict[str, Any]) -> float | None:
        """Return the tokens per second since the last training line; None if they are unknown."""
        if "num_tokens" not in logs or "loss" not in logs:
            return None
        now, tokens = time.monotonic(), float(logs["num_tokens"])
        rate = (tokens - self._tokens) / max(now - self._counted, 1e-3)
        self._counted, self._tokens = now, tokens
        return rate


def console_line(
    logs: dict[str, Any],
    step: int,
    steps: int,
    seconds_left: float | None,
    tokens_per_second: float | None = None,
) -> str:
    """Return the console line of a log entry, empty if it has no loss.

    The line has the epoch, the loss, the accuracy, the mean margin D in nats (not multiplied by
    beta), and for a training step the range of the betas, the learning rate, the speed and the time
    left.

    Args:
        logs: The entry; the keys of an evaluation begin with `eval_`.
        step: The current step.
        steps: The number of steps of the run.
        seconds_left: Estimated time left; None if it is not known yet.
        tokens_per_second: Speed over all processes; None if it is not known.
    """
    if "train_loss" in logs:
        return f"trained {step} steps, mean loss {logs['train_loss']:.4f}"
    # With several evaluation sets the key is `eval_NAME_loss`.
    key = next((key for key in logs if key == "loss" or key.endswith("_loss")), None)
    if key is None:
        return ""
    prefix = key.removesuffix("loss")
    words = [f"step {step}/{steps}"]
    if "epoch" in logs:
        words.append(f"epoch {float(logs['epoch']):.2f}")
    words.append(f"{prefix.replace('_', ' ')}loss {float(logs[key]):.4f}")
    for name, word in (
        ("rewards/accuracies", "accuracy {:.2f}"),
        ("accuracy", "accuracy {:.2f}"),  # of a reward model
        ("margins/unscaled", "margin {:+.3f} nats"),
    ):
        if prefix + name in logs:
            words.append(word.format(float(logs[prefix + name])))
    if prefix:
        return "  ".join(words)
    if "beta/min" in logs and "beta/max" in logs:
        low, high = (f"{float(logs[f'beta/{end}']):.3g}" for end in ("min", "max"))
        words.append(f"beta {low}" if low == high else f"beta {low} to {high}")
    if "learning_rate" in logs:
        words.append(f"learning rate {float(logs['learning_rate']):.2e}")
    if tokens_per_second is not None:
        words.append(f"{tokens_per_second:,.0f} tokens/s")
    if seconds_left is not None:
        words.append(f"{timedelta(seconds=round(seconds_left))} left")
    return "  ".join(words)
