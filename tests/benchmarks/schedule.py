"""From a full store to a file of betas, beside the straightforward pipeline in pandas.

A store as a large run leaves it (scale.py makes it), 59,960 pairs with nine replies each, goes from
file to file, each contender a process of its own from its start to its exit, in turn on the same
cores: `sp2dpo schedule` with all it writes and tells (votes, spread, agreement, hash, what is
pending), the functions of the package for gap and beta alone (same_columns.py), and pandas for the
same columns and for all of them (peers/pandas_pipeline.py, in an environment of its own). All must
come to the same betas. Nothing is asserted about time.

    python tests/benchmarks/schedule.py --peer ENVS/pandas_pipeline/bin/python [--rounds 5]
"""

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import polars as pl

sys.path.insert(0, str(Path(__file__).parents[1]))

from scale import QUIET, TEACHERS, make_store

from annotate import HERE
from support.harness import COMMAND, SCHEDULE, process, write_panel

PIPELINE = HERE / "peers" / "pandas_pipeline.py"
SAME = HERE / "same_columns.py"


def contenders(store, folder, peer):
    """Name -> command and the file that it writes."""
    outs = {name: folder / f"{name}.parquet" for name in ("all", "same", "pandas", "pandas-all")}
    return {
        "sp2dpo schedule": (
            [*COMMAND, "schedule", "--store", store, "--schedule", SCHEDULE, "--out", outs["all"]],
            outs["all"],
        ),
        "sp2dpo, gap and beta alone": ([sys.executable, SAME, store, outs["same"]], outs["same"]),
        "pandas, gap and beta alone": ([peer, PIPELINE, store, outs["pandas"]], outs["pandas"]),
        "pandas, the columns of sp2dpo": (
            [peer, PIPELINE, store, outs["pandas-all"], "--all-columns"],
            outs["pandas-all"],
        ),
        "sp2dpo agreement": ([*COMMAND, "agreement", "--store", store], None),
        "sp2dpo estimators": (
            [*COMMAND, "estimators", "--store", store, "--schedule", SCHEDULE],
            None,
        ),
        "sp2dpo report": (
            [
                *COMMAND,
                "report",
                "--store",
                store,
                "--betas",
                outs["all"],
                "--out",
                folder / "r.html",
            ],
            None,
        ),
        "sp2dpo audit": ([*COMMAND, "audit", "--store", store, "--betas", outs["all"]], None),
    }


def timed(command):
    """Seconds and peak memory in MB of a command that must succeed."""
    started = time.perf_counter()
    running = subprocess.Popen([*map(str, command)], **QUIET)
    _, status, usage = os.wait4(running.pid, 0)
    if status:
        sys.exit(f"this failed: {' '.join(map(str, command))}")
    return time.perf_counter() - started, usage.ru_maxrss / 1024


def check(outs):
    """All must have come to the same betas."""
    first, *tables = (pl.read_parquet(out).sort("pair_id") for out in outs)
    for table in tables:
        same = first["pair_id"].equals(table["pair_id"])
        if not same or (first["beta"] - table["beta"]).abs().max() > 1e-9:
            sys.exit("the contenders do not agree on the betas")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--peer", default=sys.executable, help="a Python with pandas and pyarrow")
    parser.add_argument("--pairs", type=int, default=59_960)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the "
        f"start, Python {platform.python_version()}, polars {pl.__version__}"
    )
    with tempfile.TemporaryDirectory() as name, process(HERE / "zero_latency.py") as url:
        folder = Path(name)
        panel = write_panel(folder / "panel.yaml", url, names=TEACHERS, max_in_flight=64)
        make_store(folder, options.pairs, panel)
        entries = contenders(folder / "run.sqlite", folder, options.peer)
        times, peaks = {name: [] for name in entries}, dict.fromkeys(entries, 0.0)
        for number in range(options.rounds + 1):
            for name, (command, _) in entries.items():
                seconds, peak = timed(command)
                peaks[name] = max(peaks[name], peak)
                if number:  # the first round warms up
                    times[name].append(seconds)
        check([out for _, out in entries.values() if out])
    for name, seconds in times.items():
        print(f"{name:32}{min(seconds):6.2f}-{max(seconds):.2f} s{peaks[name]:8.0f} MB")
    for ours, theirs in (
        ("sp2dpo, gap and beta alone", "pandas, gap and beta alone"),
        ("sp2dpo schedule", "pandas, the columns of sp2dpo"),
    ):
        ratios = [a / b for a, b in zip(times[ours], times[theirs], strict=True)]
        print(f"{ours} / {theirs}: {median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})")


if __name__ == "__main__":
    main()
