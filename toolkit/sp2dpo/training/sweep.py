"""Train one model with several settings, each in its own process, with a shared reference cache."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from sp2dpo.files import write_json
from sp2dpo.inference import keeper
from sp2dpo.interrupts import Interrupted, forward_signals
from sp2dpo.replacement import lock_exclusively
from sp2dpo.text import UNKNOWN, format_duration, format_fixed, format_interval, format_table
from sp2dpo.training.engines import PATIENCE
from sp2dpo.training.run_config import compose

ACCURACY, MARGIN = "eval_rewards/accuracies", "eval_margins/unscaled"
RESERVED = ("sweep", "reference")
"""Names that no run may have: the table sweep.json, and the folder of the reference cache."""


@dataclass(frozen=True)
class SweepRun:
    """One run of a sweep.

    Attributes:
        name: Name of its output folder.
        configs: Its YAML files; a later file overrides an earlier one.
        arguments: Its command-line options.
    """

    name: str
    configs: tuple[Path, ...]
    arguments: tuple[str, ...]

    def definition(self) -> dict[str, Any]:
        """Return everything that the result of the run depends on, as NAME.json holds it.

        Raises:
            ValueError: If a file is not a YAML file of settings.
            OSError: If a file cannot be read.
        """
        return {
            "settings": dict(compose(self.configs).settings),
            "command_line": list(self.arguments),
        }

    def can_cache(self) -> bool:
        """Return whether the reference log-probs can be computed before the training.

        Not for a stream, which is not in memory, nor if the reference model follows the policy.
        """
        return not (self._is_set("streaming") or self._is_set("sync_ref_model"))

    def _is_set(self, key: str) -> bool:
        words = [part for word in self.arguments for part in word.split("=", 1)]
        value = str(compose(self.configs).settings.get(key, "false"))
        for option, following in itertools.pairwise([*words, "--"]):
            if option == f"--{key}":  # a flag, or with a value; the last one counts
                value = "true" if following.startswith("--") else following
        return value.lower() in ("true", "yes", "1", "t", "y")


@dataclass(frozen=True, kw_only=True)
class SweepResult:
    """The outcome of one run of a sweep.

    Attributes:
        run: Name of the run.
        exit_code: Exit code of `sp2dpo train`; 0 if the run was already complete.
        seconds: Duration of the run; None if it was already complete.
        results: Content of the run's results.json; empty if the run failed.
    """

    run: str
    exit_code: int
    seconds: float | None
    results: Mapping[str, Any]

    def record(self) -> dict[str, Any]:
        """Return the row of this run in sweep.json."""
        row = {"run": self.run, "exit_code": self.exit_code, "seconds": self.seconds}
        return row | dict(self.results)


def run_sweep(
    runs: Sequence[SweepRun],
    folder: Path,
    *,
    launch: Sequence[str] = (),
    report: Callable[[str], object] = lambda line: None,
) -> list[SweepResult]:
    """Run all runs that are not complete yet, and write sweep.json.

    A run that fails does not stop the others; a second call runs it again.

    Args:
        runs: The runs; their names must differ.
        folder: Output folder, with NAME/, NAME.json (the definition) and NAME.log for each run.
        launch: Options of `sp2dpo train` that say how to launch a run, such as `--engine zero3`.
        report: Called with a line of text before each run, and with the error of one that failed.

    Raises:
        ValueError: If the folder of a run has results of other settings, its name is reserved, or
            another process runs a sweep in the folder.
        OSError: If a file cannot be read or written.
        Interrupted: If a signal was received; the current run has saved a checkpoint, with which
            a second call continues.
    """
    for run in runs:
        if run.name in RESERVED:
            raise ValueError(
                f"a run cannot be named {run.name}, as {folder / run.name} belongs to the sweep:"
                " rename its YAML file"
            )
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "sweep.lock").open("a") as lock:
        try:
            lock_exclusively(lock)
        except BlockingIOError:
            raise ValueError(
                f"{folder}: another process runs a sweep in this folder: wait for it, stop it, or"
                " name another folder"
            ) from None
        results = [_run(run, folder, launch, report) for run in runs]
    write_json(folder / "sweep.json", [result.record() for result in results], indent=2)
    return results


def _run(
    run: SweepRun, folder: Path, launch: Sequence[str], report: Callable[[str], object]
) -> SweepResult:
    output, log = folder / run.name, folder / f"{run.name}.log"
    record, results = folder / f"{run.name}.json", output / "results.json"
    definition = run.definition()
    cache = ("--reference_cache", str(folder / "reference")) if run.can_cache() else ()
    if record.exists() and json.loads(record.read_text(encoding="utf-8")) != definition:
        raise ValueError(f"{output} holds a run with other settings: choose another --out")
    # Before the run: a later call has to recognise a run that was killed.
    write_json(record, definition, indent=2)
    code, seconds = 0, None
    if not results.exists():
        report(f"{run.name}: runs, its output goes to {log}")
        started = time.monotonic()
        command = [
            # The package of this interpreter, not the first one on the PATH.
            *(sys.executable, "-m", "sp2dpo", "train", *launch),
            *(word for path in run.configs for word in ("--config", str(path))),
            # The last value of an option counts: a run may set its own cache, but no other folder.
            *cache,
            # Of a run that was stopped; there is none before the first step.
            *("--resume_from_checkpoint", "true", *run.arguments),
            *("--output_dir", str(output)),
        ]
        with log.open("w", encoding="utf-8") as file:
            code = _launch(command, file)
        seconds = time.monotonic() - started
        if not results.exists():
            # Without results a run has failed, whatever its exit code says.
            code = code or 1
        if code:
            report(f"{run.name}: failed with exit code {code}{_reason(log)}")
    content = {} if code else json.loads(results.read_text(encoding="utf-8"))
    return SweepResult(run=run.name, exit_code=code, seconds=seconds, results=content)


def _launch(command: list[str], log: IO[str]) -> int:
    """Run a command and return its exit code; a signal stops it and everything it has started.

    Raises:
        Interrupted: If a signal was received, after the command has ended. Another one, at least 3
            seconds later, kills it.
    """
    # The keeper passes the signal on to all processes, also if this process is killed.
    words = [sys.executable, "-I", "-S", keeper.__file__, "--wait-for-all"]
    words += [str(os.getpid()), str(PATIENCE), *command]
    # A file of the current folder must not take the place of a module of the same name.
    env = os.environ | {"PYTHONSAFEPATH": "1"}
    with (
        subprocess.Popen(words, stdout=log, stderr=log, start_new_session=True, env=env) as process,
        forward_signals(lambda _: process.send_signal(signal.SIGTERM)) as received,
    ):
        code = process.wait()
    if received:
        raise Interrupted(received[0])
    return code


def _reason(log: Path) -> str:
    """Return the error that the training printed, after a colon; empty if there is none."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    errors = [line for line in lines if line.startswith("sp2dpo train: ")]
    return f": {errors[-1]}" if errors else ""


def sweep_lines(
    results: Sequence[SweepResult], share_interval: Callable[[int, int], Any]
) -> list[str]:
    """Return a sweep's table as lines of text, the best accuracy first.

    Args:
        results: The result of `run_sweep`.
        share_interval: Takes (count, total) and returns an object with share, low and high, as
            `sp2dpo.wilson_interval` does.
    """
    head = ["run", "beta", "held-out pairs", "accuracy (95 %)", "unscaled margin", "took"]
    lines = []
    for result in sorted(results, key=lambda result: -(_metrics(result).get(ACCURACY) or 0)):
        if result.exit_code:
            lines.append([result.run, "failed", *[UNKNOWN] * 4])
            continue
        beta, metrics = result.results["beta"], _metrics(result)
        pairs = result.results["rows"].get("eval", {}).get("used", 0)
        # The betas of a stream are not known.
        betas = f"{beta['min']:g}" if beta else UNKNOWN
        if beta and beta["max"] > beta["min"]:
            betas += f" to {beta['max']:g}"
        accuracy = UNKNOWN
        if pairs:
            # Rounded, because TRL averages the accuracies of batches, and the last may be smaller.
            share = share_interval(round(metrics[ACCURACY] * pairs), pairs)
            accuracy = format_interval(share.share, share.low, share.high, 3)
        lines.append(
            [
                result.run,
                betas,
                str(pairs or UNKNOWN),
                accuracy,
                format_fixed(metrics.get(MARGIN), 3, signed=True),
                format_duration(result.seconds),
            ]
        )
    return format_table(head, lines)


def _metrics(result: SweepResult) -> Mapping[str, Any]:
    return result.results.get("eval") or {}  # null without an evaluation
