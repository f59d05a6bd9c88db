"""Run a study: every method at every trial for every seed, then a table and a figure.

    python recipes/study/run.py recipes/study/smoke.yaml --out study-smoke/

What is compared, and how: `RULES.md`, and the presets beside it. Each student is one file in
`runs/`: a run that was stopped goes on where it was. Then

    table.md, table.json   the comparison
    runs.csv               every run
    *.svg, *.png           figures
"""

import argparse
import json
import multiprocessing
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import polars as pl
import torch
from tqdm import tqdm

import figures
import ground
import measures
import mechanism
from comparison import compared, lines, outcomes
from methods import load_methods
from preset import Preset, Run, load_preset
from sp2dpo.betas.schedule import load_schedule, schedule_betas
from sp2dpo.files import atomic_write
from sp2dpo.report import plots
from students import quiet, rows_of, train


def main(arguments: list[str]) -> int:
    """Runs what is missing, then writes the tables."""
    parser = argparse.ArgumentParser(description="Run a study of preference optimisation.")
    parser.add_argument("preset", type=Path, help="smoke.yaml, cpu.yaml, ...")
    parser.add_argument("--out", type=Path, required=True, help="where everything goes")
    parser.add_argument("--workers", type=int, default=2, help="processes (2)")
    options = parser.parse_args(arguments)
    if options.workers < 1:
        parser.error(f"--workers {options.workers} must be at least 1")
    try:
        preset = load_preset(options.preset)
        check_same(preset, options.out)
    except (ValueError, OSError) as error:
        print(f"run.py: {error}", file=sys.stderr)
        return 2
    try:
        run_all(options.preset, preset, options.out, workers=options.workers)
    except KeyboardInterrupt:
        print("run.py: stopped; the same command goes on from here", file=sys.stderr)
        return 130
    except BrokenProcessPool:
        print(
            "run.py: a process of it died, for want of memory perhaps; the same command goes on "
            "from here, --workers 1 takes less",
            file=sys.stderr,
        )
        return 1
    report(preset, options.out)
    return 0


def run_all(file: Path, preset: Preset, out: Path, *, workers: int) -> None:
    """Makes what is missing."""
    folder = out / "runs"
    folder.mkdir(parents=True, exist_ok=True)
    left = [one for one in preset.runs() if not (folder / f"{one.name}.json").exists()]
    if not left:
        return
    with ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), initializer=prepared
    ) as pool:
        each(pool, build, [(file, seed, out) for seed in preset.seeds], "grounds")
        each(pool, student, [(file, one, out) for one in left], "students")


def report(preset: Preset, out: Path) -> None:
    """Writes the table, the figures and every run; prints the table."""
    found = outcomes(preset, out)
    about = compared(preset, found)
    told = mechanism.mechanism(preset, found)
    text = "\n".join([*lines(about), "", *mechanism.lines(told), "", *ground.about(preset, out)])
    write(out / "table.json", json.dumps(about | {"mechanism": told}, indent=1) + "\n")
    write(out / "table.md", text)
    columns = ("method", "panel", "scale", "seed", "corrected", "chosen", "pairs", "validation")
    rows = pl.DataFrame(
        [
            {name: one[name] for name in columns}
            | {f"reward_{heat}": worth for heat, worth in one["reward"].items()}
            | {name: one[name] for name in ("kl", "accuracy", "length")}
            | {f"D_{name}": one["epochs"][-1][name] for name in ("right", "wrong", "flipped")}
            for one in found
        ]
    )
    with atomic_write(out / "runs.csv") as path:
        rows.write_csv(path, float_precision=4)
    with mpl.rc_context(plots.STYLE):
        for name, figure in (
            ("results", figures.results(about, found)),
            ("mechanism", figures.mechanism(preset, found)),
        ):
            for kind in plots.FORMATS:
                plots.save(figure, out / f"{name}.{kind}")
    print(text, end="")


def write(path: Path, text: str) -> None:
    """Writes a file, whole or not at all."""
    with atomic_write(path) as unfinished:
        unfinished.write_text(text)


def each(pool: ProcessPoolExecutor, work: Any, jobs: list[Any], what: str) -> None:
    """Does all jobs; the first that fails ends the rest."""
    waiting = [pool.submit(work, *job) for job in jobs]
    try:
        for one in tqdm(as_completed(waiting), total=len(waiting), desc=what, disable=None):
            one.result()
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise


def prepared() -> None:
    """What a process needs before its first job."""
    torch.set_num_threads(1)
    quiet()


def check_same(preset: Preset, out: Path) -> None:
    """A folder belongs to one preset.

    Raises:
        ValueError: it was begun with another.
        OSError: nothing can be written there.
    """
    said, kept = json.loads(json.dumps(asdict(preset))), out / "preset.json"
    if kept.exists():
        before = json.loads(kept.read_text())
        differs = sorted(key for key in {*before, *said} if before.get(key) != said.get(key))
        if differs:
            raise ValueError(
                f"{out} was begun with another {', '.join(differs)}: choose another folder"
            )
    out.mkdir(parents=True, exist_ok=True)
    write(kept, json.dumps(said, indent=1) + "\n")


def build(preset: Path, seed: int, out: Path) -> None:
    """The ground of a seed."""
    ground.build(load_preset(preset), seed, out / f"seed-{seed}")


@lru_cache(maxsize=2)
def the_ground(preset: Path, seed: int, out: Path) -> ground.Ground:
    """The ground of a seed, read once in a process."""
    return ground.read(load_preset(preset), seed, out / f"seed-{seed}")


def student(preset: Path, run: Run, out: Path) -> None:
    """Trains one student, measures it, and writes its file."""
    found = outcome(load_preset(preset), run, the_ground(preset, run.seed, out))
    with atomic_write(out / "runs" / f"{run.name}.json") as path:
        path.write_text(json.dumps(found))


def outcome(preset: Preset, run: Run, base: ground.Ground) -> dict[str, Any]:
    """What came of one run."""
    labels = base.corrected if run.corrected else base.as_given
    method = load_methods()[run.method].at(run.scale)
    annotations = ground.replies(preset, run.panel, labels.pairs, run.seed)
    table = method.table(annotations, labels.scores)
    data, acting = rows_of(labels.pairs, labels.reference, table)
    standard = load_schedule(ground.SCHEDULES / "sp2dpo.yaml")
    deciles = deciles_of(schedule_betas(annotations, standard)["beta"].to_numpy())
    epochs: list[dict[str, Any]] = []

    def look(model: Any) -> None:
        was = model.training
        model.eval()
        epochs.append(
            measures.gradient(model, labels.pairs, labels.reference, table, deciles, method)
        )
        model.train(was)

    with tempfile.TemporaryDirectory() as scratch:
        model = train(
            base.start, data, acting, method, settings=preset.training, seed=run.seed, look=look,
            scratch=Path(scratch),
        )  # fmt: skip
    kept = table.filter("keep")["beta"].to_numpy()
    return asdict(run) | {
        "pairs": len(data),
        "beta": {"mean": float(kept.mean()), "harmonic": float(1 / (1 / kept).mean())},
        **measures.of_student(
            model, base.reference, base.world, validation=base.split.validation,
            test=base.split.test, clean=base.clean, of_clean=base.of_clean, each=preset.samples,
            seed=1000 + run.seed,
        ),
        "epochs": epochs,
    }  # fmt: skip


def deciles_of(values: np.ndarray) -> np.ndarray:
    """(N,) the decile of each value, from 0; of equal ones the first comes first."""
    places = np.argsort(np.argsort(values, kind="stable"), kind="stable")
    return places * 10 // len(values)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
