"""Train one model many ways and compare: the reference's log-probs are computed once for all.

    python recipes/sweep.py --out sweep --engine recipes/accelerate/single.yaml \
        --config recipes/dpo/tiny-demo.yaml --config recipes/dpo/methods/tuned-beta.yaml \
        --vary beta=0.005,0.01,0.02,0.05,0.1,0.3 --arm recipes/dpo/methods/sp2dpo.yaml

Every value of `--vary` is a run of the `--config`s with that value; several `--vary`s are all their
combinations. Every `--arm` is a run of the `--config`s with that file laid over them. Other words
go to all runs: `--learning_rate 1.0e-6`. Each run is an `accelerate launch` of train.py; one that
is complete is not run again, one that failed does not stop the others.

It prints a table of what each run says of the held-out pairs, and writes it to sweep.json. Losses
of runs with other betas cannot be compared; accuracies and unscaled margins can.
"""

import argparse
import itertools
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sp2dpo.diagnostics.agreement import wilson_interval
from sp2dpo.text import UNKNOWN, format_duration, format_fixed, format_interval, format_table
from sp2dpo.training.run_config import compose

TRAIN = Path(__file__).with_name("train.py")
ACCURACY = "eval_rewards/accuracies"


@dataclass(frozen=True)
class Run:
    """One way to train.

    Attributes:
        name: Of its folder.
        configs: Its files, each laid over those before.
        more: What stands on its command line.
    """

    name: str
    configs: tuple[Path, ...]
    more: tuple[str, ...]

    def says(self) -> dict[str, Any]:
        """Return all that decides what comes out of it."""
        return {"settings": dict(compose(self.configs).settings), "command_line": list(self.more)}


def main(arguments: list[str]) -> int:
    """Run what is not complete, print the table; 1 if a run failed, 2 if the settings are wrong."""
    try:
        options, runs = parse(arguments)
        rows = [carry_out(run, options) for run in runs]
    except (ValueError, OSError) as error:
        print("sweep.py:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    Path(options.out, "sweep.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    print("\n".join(shown(rows)))
    failed = [row["run"] for row in rows if row["exit_code"]]
    if failed:
        print(
            f"sweep.py: {len(failed)} of {len(rows)} runs failed ({', '.join(failed)}): see"
            f" {options.out}/RUN.log, then say the same sentence again",
            file=sys.stderr,
        )
    return int(bool(failed))


def parse(arguments: list[str]) -> tuple[argparse.Namespace, list[Run]]:
    """Return the options and the runs; ValueError if there are none, or two of one name."""
    parser = argparse.ArgumentParser(usage="sweep.py --out DIR --config FILE ... [--key value ...]")
    parser.add_argument("--out", type=Path, required=True, help="a folder of its own")
    parser.add_argument("--engine", type=Path, help="a YAML file of accelerate")
    parser.add_argument("--config", type=Path, action="append", required=True, help="as train.py's")
    parser.add_argument("--vary", action="append", default=[], help="KEY=VALUE,VALUE,...")
    parser.add_argument("--arm", type=Path, action="append", default=[], help="a YAML file")
    options, more = parser.parse_known_args(arguments)
    grid = []
    for said in options.vary:
        key, _, values = said.partition("=")
        if not key or not all(values.split(",")):
            raise ValueError(f"--vary takes KEY=VALUE,VALUE,..., not {said!r}")
        grid.append([(key, value) for value in values.split(",")])
    base = tuple(options.config)
    runs = [Run(path.stem, (*base, path), tuple(more)) for path in options.arm]
    for point in itertools.product(*grid) if grid else ():
        name = "-".join(f"{key}-{value.replace('/', '-')}" for key, value in point)
        words = [word for key, value in point for word in (f"--{key}", value)]
        runs.append(Run(name, base, (*more, *words)))
    names = [run.name for run in runs]
    if not runs:
        raise ValueError("nothing to run: give --vary beta=0.005,0.01,... or --arm FILE.yaml")
    if len(set(names)) < len(names):
        raise ValueError(f"two runs have one name: {', '.join(names)}")
    for run in runs:
        run.says()  # its files can be read
    return options, runs


def carry_out(run: Run, options: argparse.Namespace) -> dict[str, Any]:
    """Return what a run says, having run it if it is not complete.

    Raises:
        ValueError: If its folder holds a run with other settings.
    """
    folder = Path(options.out, run.name)
    sentence = Path(f"{folder}.json")
    says = run.says()
    if sentence.exists() and json.loads(sentence.read_text(encoding="utf-8")) != says:
        raise ValueError(f"{folder} holds a run with other settings: choose another --out")
    options.out.mkdir(parents=True, exist_ok=True)
    sentence.write_text(json.dumps(says, indent=2) + "\n", encoding="utf-8")
    results = folder / "results.json"
    row: dict[str, Any] = {"run": run.name, "exit_code": 0, "seconds": None}
    if not results.exists():
        print(f"{run.name}: runs, {folder}.log has what it prints", flush=True)
        begun = time.monotonic()
        with Path(f"{folder}.log").open("w", encoding="utf-8") as log:
            command = launch(run, folder, options)
            done = subprocess.run(command, stdout=log, stderr=log, check=False)
        row |= {"exit_code": done.returncode, "seconds": time.monotonic() - begun}
    if row["exit_code"] or not results.exists():
        return row | {"exit_code": row["exit_code"] or 1}
    return row | json.loads(results.read_text(encoding="utf-8"))


def launch(run: Run, folder: Path, options: argparse.Namespace) -> list[str]:
    """Return the command of a run."""
    engine = ["--config_file", str(options.engine)] if options.engine else []
    configs = [word for path in run.configs for word in ("--config", str(path))]
    cache = ["--reference_cache", str(Path(options.out, "reference"))]
    return [
        *(sys.executable, "-m", "accelerate.commands.launch", *engine, str(TRAIN), *configs),
        *(*cache, *run.more, "--output_dir", str(folder)),
    ]


def shown(rows: list[dict[str, Any]]) -> list[str]:
    """Return the table for people, the best accuracy first."""
    head = ["run", "beta", "held-out pairs", "accuracy (95 %)", "unscaled margin", "took"]
    lines = []
    for row in sorted(rows, key=lambda row: -((row.get("eval") or {}).get(ACCURACY) or 0)):
        if row["exit_code"]:
            lines.append([row["run"], "failed", *[UNKNOWN] * 4])
            continue
        beta, found = row["beta"], row["eval"] or {}
        pairs = row["rows"].get("eval", {}).get("used", 0)
        share = wilson_interval(round(found[ACCURACY] * pairs), pairs) if pairs else {"share": None}
        lines.append(
            [
                row["run"],
                f"{beta['min']:g}" + (f" to {beta['max']:g}" if beta["max"] > beta["min"] else ""),
                str(pairs or UNKNOWN),
                format_interval(share | {"value": share["share"]}, 3),
                format_fixed(found.get("eval_margins/unscaled"), 3, signed=True),
                format_duration(row["seconds"]),
            ]
        )
    return format_table(head, lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
