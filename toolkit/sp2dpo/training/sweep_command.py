"""The command `sweep`: from its arguments to the runs, their table and an exit code."""

import argparse
import itertools
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from sp2dpo.text import one_line
from sp2dpo.training.sweep import Interrupted, SweepRun, run_sweep, sweep_lines


def sweep_command(
    arguments: Sequence[str],
    share_interval: Callable[[int, int], Any],
    *,
    program: str = "sp2dpo sweep",
    command: Sequence[str] = (),
) -> int:
    """Train one model with several settings, and print a table of the runs.

    Args:
        arguments: `--out DIR`, `--config FILE`, `--vary KEY=VALUE,VALUE`, `--arm FILE`, `--engine
            ENGINE` and `--processes N` of `sp2dpo train`, and settings, which apply to all runs.
        share_interval: As for `sweep_lines`.
        program: Name of the program, with which messages begin.
        command: Words of the command that a user has to repeat to resume the sweep; empty for those
            of this process.

    Returns:
        The exit code: 1 if a run failed, 2 if the settings are wrong, and 128 + N if signal N
        stopped the sweep.
    """
    try:
        options, runs = _parse(arguments)
        launch = [
            word
            for option in ("engine", "processes")
            if (value := getattr(options, option)) is not None
            for word in (f"--{option}", str(value))
        ]
        results = run_sweep(runs, options.out, launch=launch, report=tqdm.write)
    except Interrupted as stopped:
        name = signal.Signals(stopped.number).name
        words = shlex.join(command or ["python", *sys.argv])
        _complain(f"{program}: stopped by {name}; run the same command again to resume: {words}")
        return 128 + stopped.number
    except (ValueError, OSError) as error:
        if "--traceback" in arguments:
            raise
        _complain(f"{program}: {one_line(error)}")
        return 2
    tqdm.write("\n".join(sweep_lines(results, share_interval)))
    failed = [result.run for result in results if result.exit_code]
    if failed:
        _complain(
            f"{program}: {len(failed)} of {len(results)} runs failed ({', '.join(failed)}): see"
            f" {options.out}/RUN.log, then run the same command again"
        )
    return int(bool(failed))


def _complain(line: str) -> None:
    tqdm.write(line, file=sys.stderr)


def _parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[SweepRun]]:
    """Return the options and the runs; raise ValueError if there are none, or names are equal."""
    parser = argparse.ArgumentParser(
        usage="sweep --out DIR --config FILE ... [--key value ...]", allow_abbrev=False
    )
    parser.add_argument("--out", type=Path, required=True, help="output folder")
    parser.add_argument("--engine", help="as that of `sp2dpo train`")
    parser.add_argument("--processes", type=int, help="as that of `sp2dpo train`")
    parser.add_argument("--config", type=Path, action="append", default=[], help="a YAML file")
    parser.add_argument("--vary", action="append", default=[], help="KEY=VALUE,VALUE,...")
    parser.add_argument("--arm", type=Path, action="append", default=[], help="a YAML file")
    # All other options are settings, which the runs check.
    options, more = parser.parse_known_args(arguments)
    if not options.config:
        raise ValueError("no settings: give --config FILE.yaml")
    grid = []
    for option in options.vary:
        key, _, values = option.partition("=")
        if not key or not all(values.split(",")):
            raise ValueError(f"--vary takes KEY=VALUE,VALUE,..., not {option!r}")
        grid.append([(key, value) for value in values.split(",")])
    base = tuple(options.config)
    runs = [SweepRun(path.stem, (*base, path), tuple(more)) for path in options.arm]
    # The product of no options is one empty combination, which is not a run.
    for point in itertools.product(*grid) if grid else ():
        # The name becomes that of a folder, and a value may be a path or a Hub name.
        name = "-".join(f"{key}-{value.replace('/', '-')}" for key, value in point)
        words = [word for key, value in point for word in (f"--{key}", value)]
        # Last, because the last value of an option counts.
        runs.append(SweepRun(name, base, (*more, *words)))
    names = [run.name for run in runs]
    if not runs:
        raise ValueError("nothing to run: give --vary beta=0.005,0.01,... or --arm FILE.yaml")
    if len(set(names)) < len(names):
        raise ValueError(f"two runs have the same name: {', '.join(names)}")
    for run in runs:
        run.definition()  # refuse a bad file before the first run starts
    return options, runs
