"""Builds the demo corpus as the inspector keeps it: spaces/inspector/demo.

python tests/tools/inspector_demo.py
"""

import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.browser import INSPECTOR
from support.harness import DEMO, ROOT, SCHEDULE, process, succeed, write_panel

SCHEDULES = ROOT / "recipes" / "schedules"
ALSO = {"signed": SCHEDULES / "signed.yaml", "rand": SCHEDULES / "arms" / "rand.yaml"}
KEPT = ("manifest.json", "rubric.yaml", "data", "annotations", "schedules")
"""What the inspector reads of a data set."""


def build(folder):
    """The data set, made from recipes/demo in an empty folder."""
    store, betas = ("--store", folder / "run.sqlite"), folder / "betas.parquet"
    names = ("reader-a", "reader-b", "reader-c")
    with process(DEMO / "replay_teacher.py") as url:
        panel = write_panel(folder / "panel.yaml", url, names=names)
        succeed("annotate", "--pairs", DEMO / "pairs.jsonl", "--panel", panel, *store)
    succeed("schedule", *store, "--schedule", SCHEDULE, "--out", betas)
    also = []
    for name, schedule in ALSO.items():
        also_betas = folder / f"{name}.parquet"
        succeed("schedule", *store, "--schedule", schedule, "--out", also_betas)
        also += ["--also", f"{name}={also_betas}"]
    out = ("--license", "apache-2.0", "--out", folder / "dataset")
    succeed("build", *store, "--betas", betas, *also, *out)
    return folder / "dataset"


def main():
    stored = INSPECTOR / "demo"
    with tempfile.TemporaryDirectory() as name:
        rebuilt = build(Path(name))
        shutil.rmtree(stored, ignore_errors=True)
        stored.mkdir()
        for part in KEPT:
            shutil.move(rebuilt / part, stored / part)


if __name__ == "__main__":
    main()
