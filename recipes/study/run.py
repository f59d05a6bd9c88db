"""Run a study: train all trials of every method for every seed, then write tables and figures.

    python recipes/study/run.py recipes/study/smoke.yaml --out study-smoke/

`RULES.md` and the configurations in the same folder define what is compared, and how. The results
of each student are one file in `runs/`, so an interrupted study resumes with the missing students.
The output folder has

    table.md, table.json   the comparison
    runs.csv               every run
    *.svg, *.png           figures
"""

import argparse
import gc
import json
import multiprocessing
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from tqdm import tqdm

from config import Run, StudyConfig, load_config
from figures import save_figures
from language_model import DEVICE
from mechanism import format_mechanism, summarise_mechanism
from methods import load_methods
from metrics import measure_gradient, measure_student
from results import compare_methods, format_comparison, load_runs
from seed_data import SP2DPO, SeedData, annotate, build_seed, describe_seeds, load_seed
from sp2dpo import compute_betas, load_arm
from sp2dpo.files import write_text
from training import build_training_set, silence_libraries, train_student

ORDER_STEP = 100_000
"""Distance of the trainer's seeds of two orders; larger than any seed of a study."""


def main(arguments: list[str]) -> int:
    """Train the missing students, write the tables, and return the exit code."""
    parser = argparse.ArgumentParser(description="Run a study of preference optimisation.")
    parser.add_argument("config", type=Path, help="configuration: smoke.yaml, cpu.yaml, ...")
    parser.add_argument("--out", type=Path, required=True, help="output folder")
    parser.add_argument("--workers", type=int, default=2, help="number of processes (2)")
    options = parser.parse_args(arguments)
    if options.workers < 1:
        parser.error(f"--workers {options.workers} must be at least 1")
    try:
        config = load_config(options.config)
        claim_folder(config, options.out)
    except (ValueError, OSError) as error:
        print(f"run.py: {error}", file=sys.stderr)
        return 2
    try:
        run_all(options.config, config, options.out, workers=options.workers)
    except KeyboardInterrupt:
        print("run.py: interrupted; run the same command again to resume", file=sys.stderr)
        return 130
    except BrokenProcessPool:
        print(
            "run.py: a worker process died, perhaps for lack of memory; run the same command again "
            "to resume, with --workers 1 to use less memory",
            file=sys.stderr,
        )
        return 1
    write_results(config, options.out)
    return 0


def claim_folder(config: StudyConfig, out: Path) -> None:
    """Create the output folder for a configuration.

    Raises:
        ValueError: If the folder belongs to another configuration.
        OSError: If the folder cannot be written to.
    """
    path = out / "config.json"
    values = json.loads(json.dumps(asdict(config)))
    if path.exists():
        stored = json.loads(path.read_text())
        differs = sorted(key for key in {*stored, *values} if stored.get(key) != values.get(key))
        if differs:
            raise ValueError(
                f"{out} was begun with another {', '.join(differs)}: choose another folder"
            )
    out.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(values, indent=1) + "\n")


def run_all(config_file: Path, config: StudyConfig, out: Path, *, workers: int) -> None:
    """Train every student whose file is missing."""
    folder = out / "runs"
    folder.mkdir(parents=True, exist_ok=True)
    missing = [run for run in config.runs() if not (folder / f"{run.name}.json").exists()]
    if not missing:
        return
    # Forks share the imports, which take longer than a student of smoke.yaml. CUDA allows none.
    can_fork = sys.platform == "linux" and DEVICE == "cpu"
    context = multiprocessing.get_context("fork" if can_fork else "spawn")
    with ProcessPoolExecutor(workers, context, initializer=set_up_worker) as pool:
        run_jobs(pool, build_seed_job, [(config_file, seed, out) for seed in config.seeds], "seeds")
        run_jobs(pool, student_job, [(config_file, run, out) for run in missing], "students")


def run_jobs(
    pool: ProcessPoolExecutor, work: Callable[..., None], jobs: list[Any], label: str
) -> None:
    """Run all jobs; the first failure cancels those that have not started."""
    futures = [pool.submit(work, *job) for job in jobs]
    try:
        for future in tqdm(as_completed(futures), total=len(futures), desc=label, disable=None):
            future.result()
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise


def set_up_worker() -> None:
    """Prepare a worker process."""
    torch.set_num_threads(1)  # a result must not depend on the number of cores
    silence_libraries()
    gc.freeze()  # each training collects garbage: not among the objects of the modules


def build_seed_job(config_file: Path, seed: int, out: Path) -> None:
    """Create the data of a seed, in a worker."""
    build_seed(load_config(config_file), seed, out / f"seed-{seed}")


@lru_cache(maxsize=2)
def cached_seed(config_file: Path, seed: int, out: Path) -> SeedData:
    """Return the data of a seed, read once in each process."""
    return load_seed(load_config(config_file), seed, out / f"seed-{seed}")


def student_job(config_file: Path, run: Run, out: Path) -> None:
    """Train and measure one student, and write its file, in a worker."""
    result = run_student(load_config(config_file), run, cached_seed(config_file, run.seed, out))
    write_text(out / "runs" / f"{run.name}.json", json.dumps(result))


def run_student(config: StudyConfig, run: Run, seed: SeedData) -> dict[str, Any]:
    """Train and measure one student; return its results as they are written to its file."""
    labelled = seed.corrected if run.corrected else seed.given
    method = load_methods()[run.method].with_scale(run.scale)
    annotations = annotate(config, run.panel, labelled.pairs, run.seed)
    table = method.compute_table(annotations, labelled.scores)
    data, columns = build_training_set(labelled.pairs, labelled.reference, table)
    deciles = rank_deciles(compute_betas(annotations, load_arm(SP2DPO))["beta"].to_numpy())
    epochs: list[dict[str, Any]] = []

    def measure_epoch(model: Any) -> None:
        was_training = model.training
        model.eval()
        epochs.append(
            measure_gradient(model, labelled.pairs, labelled.reference, table, deciles, method)
        )
        model.train(was_training)

    with tempfile.TemporaryDirectory() as scratch:
        model = train_student(
            seed.start, data, columns, method, settings=config.training,
            seed=run.seed + ORDER_STEP * run.order,
            on_epoch=measure_epoch, scratch=Path(scratch),
        )  # fmt: skip
    betas = table.filter("keep")["beta"].to_numpy()
    return asdict(run) | {
        "pairs": len(data),
        "beta": {"mean": float(betas.mean()), "harmonic": float(1 / (1 / betas).mean())},
        **measure_student(
            model, seed.reference, seed.world, validation=seed.split.validation,
            test=seed.split.test, clean=seed.clean, clean_reference=seed.clean_reference,
            each=config.samples, each_at_one=config.samples_at_one, judge=config.judge,
            name=run.name, seed=1000 + run.seed,
        ),
        "epochs": epochs,
    }  # fmt: skip


def rank_deciles(values: np.ndarray) -> np.ndarray:
    """Return the decile of each value by rank, from 0, (N,); equal values keep their order."""
    ranks = np.argsort(np.argsort(values, kind="stable"), kind="stable")
    return ranks * 10 // len(values)


def write_results(config: StudyConfig, out: Path) -> None:
    """Write every run; if one method is compared with the others, also tables and figures."""
    runs = load_runs(config, out)
    write_text(out / "runs.csv", tabulate_runs(runs).write_csv(float_precision=4))
    if not config.against:
        print(f"wrote {out / 'runs.csv'}")
        return
    comparison = compare_methods(config, runs)
    mechanism = summarise_mechanism(config, runs)
    text = "\n".join(
        [
            *format_comparison(comparison), "",
            *format_mechanism(mechanism), "",
            *describe_seeds(config, out),
        ]
    )  # fmt: skip
    write_text(
        out / "table.json", json.dumps(comparison | {"mechanism": mechanism}, indent=1) + "\n"
    )
    write_text(out / "table.md", text)
    save_figures(config, comparison, runs, out)
    print(text, end="")


def tabulate_runs(runs: Sequence[Mapping[str, Any]]) -> pl.DataFrame:
    """Return the runs as a table with one row each.

    The columns after `length` describe the mechanism: D of right, wrong and flipped labels before
    training (0) and after each epoch; the mean loss slope of the pairs in each decile of SP2DPO's
    beta, before training and at the end.
    """
    names = ("method", "panel", "scale", "seed", "order", "corrected", "chosen", "pairs")
    rows = []
    for run in runs:
        epochs = run["epochs"]
        rows.append(
            {name: run[name] for name in (*names, "validation")}
            | {f"reward_{temperature}": reward for temperature, reward in run["reward"].items()}
            | {name: run[name] for name in ("kl", "accuracy", "length")}
            | {
                f"D_{label}_{number}": epoch[label]
                for label in ("right", "wrong", "flipped")
                for number, epoch in enumerate(epochs)
            }
            | {
                f"slope_{when}_{decile}": slope
                for when, epoch in (("start", epochs[0]), ("end", epochs[-1]))
                for decile, slope in enumerate(epoch["slope"])
            }
        )
    return pl.DataFrame(rows)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
