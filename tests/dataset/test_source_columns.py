"""One list of columns: what is added to it appears everywhere."""

import subprocess
import sys

import pyarrow.parquet as pq

from support.harness import SCHEDULE

PROGRAM = """
import sys
from pathlib import Path
import polars as pl
from sp2dpo.betas import columns

doubled = columns.Column("doubled", "float64", "twice the gap", ranged=True)
columns.BETA_COLUMNS += (doubled,)
columns.REQUIRED += ("doubled",)

from sp2dpo.betas import schedule
compute_gaps = schedule.compute_gaps
schedule.compute_gaps = lambda *args: compute_gaps(*args).with_columns(doubled=pl.col("gap") * 2)

from sp2dpo import build_dataset, verify_dataset, write_betas
from sp2dpo.betas.compute import schedule_store

store_file, schedule_file, folder = map(Path, sys.argv[1:])
write_betas(schedule_store(store_file, schedule_file).betas, folder / "betas.parquet")
build_dataset(store_file, folder / "betas.parquet", folder / "dataset", draws=20)
if folder.name == "wrong":
    schedule.compute_gaps = lambda *args: compute_gaps(*args).with_columns(
        doubled=pl.col("gap") * 3
    )
for check in verify_dataset(folder / "dataset").checks:
    if not check.holds:
        print(check.message)
"""


def build(store_file, schedule_file, folder):
    folder.mkdir()
    command = [sys.executable, "-c", PROGRAM, store_file, schedule_file, folder]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_column_added_to_the_list_is_built_described_and_verified(demo, tmp_path):
    assert build(demo / "run.sqlite", SCHEDULE, tmp_path / "right") == ""
    folder = tmp_path / "right" / "dataset"
    rows = pq.read_table(folder / "data" / "train-00000-of-00001.parquet")
    assert rows["doubled"].to_pylist()[:5] == [
        None if gap is None else 2 * gap for gap in rows["gap"].to_pylist()[:5]
    ]
    assert "| `doubled` | 0 to 2 | twice the gap |" in (folder / "README.md").read_text()
    differences = build(demo / "run.sqlite", SCHEDULE, tmp_path / "wrong")
    assert differences.startswith("doubled of ")
