"""Train one model with several settings, each in its own process, with a shared reference cache."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sp2dpo.files import write_json
from sp2dpo.text import UNKNOWN, format_duration, format_fixed, format_interval, format_table
from sp2dpo.training.run_config import compose

ACCURACY, MARGIN = "eval_rewards/accuracies", "eval_margins/unscaled"


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
        """Return everything that the result of the run depends on.

        Raises:
            ValueError: If a file is not a YAML file of settings.
            OSError: If a file cannot be read.
        """
        return {
            "settings": dict(compose(self.configs).settings),
            "command_line": list(self.arguments),
        }


def run_sweep(
    runs: Sequence[SweepRun],
    folder: Path,
    script: Path,
    *,
    engine: Path | None = None,
    report: Callable[[str], object] = lambda line: None,
) -> list[dict[str, Any]]:
    """Run all runs that are not complete yet, and write sweep.json.

    A run that fails does not stop the others; a second call runs it again.

    Args:
        runs: The runs; their names must differ.
        folder: Output folder, with NAME/, NAME.json (the definition) and NAME.log for each run.
        script: The training script that `accelerate launch` starts.
        engine: Configuration file of accelerate.
        report: Called with a line of text before each run.

    Returns:
        One row for each run, with the keys run (its name), exit_code, seconds (None if the run was
        already complete), and the content of its results.json.

    Raises:
        ValueError: If the folder of a run has results of other settings.
        OSError: If a file cannot be read or written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = [_run(run, folder, script, engine, report) for run in runs]
    write_json(folder / "sweep.json", rows, indent=2)
    return rows


def _run(
    run: SweepRun,
    folder: Path,
    script: Path,
    engine: Path | None,
    report: Callable[[str], object],
) -> dict[str, Any]:
    output, log = folder / run.name, folder / f"{run.name}.log"
    record, results = folder / f"{run.name}.json", output / "results.json"
    definition = run.definition()
    if record.exists() and json.loads(record.read_text(encoding="utf-8")) != definition:
        raise ValueError(f"{output} holds a run with other settings: choose another --out")
    write_json(record, definition, indent=2)
    row: dict[str, Any] = {"run": run.name, "exit_code": 0, "seconds": None}
    if not results.exists():
        report(f"{run.name}: runs, its output goes to {log}")
        started = time.monotonic()
        command = [
            *(sys.executable, "-m", "accelerate.commands.launch"),
            *(["--config_file", str(engine)] if engine else []),
            str(script),
            *(word for path in run.configs for word in ("--config", str(path))),
            *("--reference_cache", str(folder / "reference"), *run.arguments),
            *("--output_dir", str(output)),
        ]
        with log.open("w", encoding="utf-8") as file:
            done = subprocess.run(command, stdout=file, stderr=file, check=False)
        row |= {"exit_code": done.returncode, "seconds": time.monotonic() - started}
    if row["exit_code"] or not results.exists():
        return row | {"exit_code": row["exit_code"] or 1}
    return row | json.loads(results.read_text(encoding="utf-8"))


def sweep_lines(
    rows: Sequence[Mapping[str, Any]],
    share_interval: Callable[[int, int], Any],
) -> list[str]:
    """Return a sweep's table as lines of text, the best accuracy first.

    Args:
        rows: The result of `run_sweep`.
        share_interval: Takes (count, total) and returns an object with share, low and high, as
            `sp2dpo.wilson_interval` does.
    """
    head = ["run", "beta", "held-out pairs", "accuracy (95 %)", "unscaled margin", "took"]
    lines = []
    for row in sorted(rows, key=lambda row: -((row.get("eval") or {}).get(ACCURACY) or 0)):
        if row["exit_code"]:
            lines.append([row["run"], "failed", *[UNKNOWN] * 4])
            continue
        beta, metrics = row["beta"], row["eval"] or {}
        pairs = row["rows"].get("eval", {}).get("used", 0)
        accuracy = UNKNOWN
        if pairs:
            share = share_interval(round(metrics[ACCURACY] * pairs), pairs)
            accuracy = format_interval(share.share, share.low, share.high, 3)
        lines.append(
            [
                row["run"],
                f"{beta['min']:g}" + (f" to {beta['max']:g}" if beta["max"] > beta["min"] else ""),
                str(pairs or UNKNOWN),
                accuracy,
                format_fixed(metrics.get(MARGIN), 3, signed=True),
                format_duration(row["seconds"]),
            ]
        )
    return format_table(head, lines)
