"""Train one model with several settings and compare them; the reference log-probs are shared.

    python recipes/sweep.py --out sweep --engine recipes/accelerate/single.yaml \
        --config recipes/dpo/tiny-demo.yaml --config recipes/dpo/methods/tuned-beta.yaml \
        --vary beta=0.005,0.01,0.02,0.05,0.1,0.3 --arm recipes/dpo/methods/sp2dpo.yaml

Each value of `--vary` gives a run with the `--config` files and that value; several `--vary`
options give all combinations of their values. Each `--arm` gives a run with the `--config` files
and that file. Other options, such as `--learning_rate 1.0e-6`, apply to all runs. Each run is an
`accelerate launch` of train.py. A run that is complete is not repeated, and a run that fails does
not stop the others. After Ctrl-C or the signal of a scheduler, the current run saves a checkpoint;
the same command goes on from there.

The script prints a table of the runs' results on the held-out pairs, and writes sweep.json. The
losses of runs with different betas cannot be compared; accuracies and unscaled margins can.
"""

import argparse
import itertools
import shlex
import signal
import sys
from pathlib import Path

from sp2dpo import wilson_interval
from sp2dpo.training import Interrupted, SweepRun, run_sweep, sweep_lines

TRAIN = Path(__file__).with_name("train.py")


def main(arguments: list[str]) -> int:
    """Run all incomplete runs, print the table, and return the exit code.

    It is 1 if a run failed, 2 if the settings are wrong, and 128 + N if signal N stopped the sweep.
    """
    try:
        options, runs = parse(arguments)
        results = run_sweep(
            runs, options.out, TRAIN, engine=options.engine,
            report=lambda line: print(line, flush=True),
        )  # fmt: skip
    except Interrupted as stopped:
        name = signal.Signals(stopped.number).name
        command = shlex.join(["python", *sys.argv])
        print(
            f"sweep.py: stopped by {name}; run the same command again to resume: {command}",
            file=sys.stderr,
        )
        return 128 + stopped.number
    except (ValueError, OSError) as error:
        print("sweep.py:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    print("\n".join(sweep_lines(results, wilson_interval)))
    failed = [result.run for result in results if result.exit_code]
    if failed:
        print(
            f"sweep.py: {len(failed)} of {len(results)} runs failed ({', '.join(failed)}): see"
            f" {options.out}/RUN.log, then run the same command again",
            file=sys.stderr,
        )
    return int(bool(failed))


def parse(arguments: list[str]) -> tuple[argparse.Namespace, list[SweepRun]]:
    """Return the options and the runs; raise ValueError if there are none, or names are equal."""
    parser = argparse.ArgumentParser(usage="sweep.py --out DIR --config FILE ... [--key value ...]")
    parser.add_argument("--out", type=Path, required=True, help="output folder")
    parser.add_argument("--engine", type=Path, help="configuration file of accelerate")
    parser.add_argument("--config", type=Path, action="append", required=True, help="as train.py's")
    parser.add_argument("--vary", action="append", default=[], help="KEY=VALUE,VALUE,...")
    parser.add_argument("--arm", type=Path, action="append", default=[], help="a YAML file")
    # All other options are those of train.py, which checks them.
    options, more = parser.parse_known_args(arguments)
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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
