"""The commands and functions that read what strangers wrote.

A reader runs in the folder of a case. It returns what followed from the files, which is compared
with what follows from the unchanged ones, or raises Refused.
"""

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from attack.probe import Refused, digest, read_text

# Data sets

_COLUMNS = (
    "pair_id", "prompt", "chosen", "rejected", "beta", "category", "keep", "label_disputed",
    "weight", "topic", "score",
)  # fmt: skip
INCONSISTENT = 3


def _rows(table):
    columns = [table[name] for name in _COLUMNS if name in table.column_names]
    # A data set's column is a sequence, Arrow's is not.
    return digest([c.to_pylist() if isinstance(c, pa.ChunkedArray) else c[:] for c in columns])


def _listed_rows():
    """Return the rows of the files that the manifest lists, read by Arrow alone."""
    names = sorted(json.loads(read_text("dataset/manifest.json"))["files"])
    files = [Path("dataset", name) for name in names if name.startswith("data/")]
    return _rows(pa.concat_tables(map(pq.read_table, files)))


def verify_and_load(probe):
    """Run `verify` and `load_pairs`, which must agree."""
    from sp2dpo.dataset.load import load_pairs

    done = probe.command("verify", "dataset", "--json", codes=(0, 1, INCONSISTENT))
    if done.code == 1 and "manifest" not in done.errors:
        probe.report("exit code", f"verify: 1, not {INCONSISTENT}: {done.errors[-300:]}")
    if probe.rng.randrange(3):  # `load_pairs` verifies once more, which takes most of the time
        done.unless_refused()
        return _listed_rows()
    try:
        rows = probe.call(load_pairs, "dataset")
    except Refused as refusal:
        if done.code == 0:
            probe.report("readers differ", f"verify: consistent, load_pairs: {refusal}")
        raise
    if done.code:
        probe.report("readers differ", f"verify: {(done.output or done.errors)[-300:]}, it loads")
    return _rows(rows)


def train(probe):
    """Read the rows as `train.py` does before it loads a model; `load_pairs` must read the same."""
    from sp2dpo.dataset.load import load_pairs
    from sp2dpo.training.columns import apply_marks, fill_missing_values
    from sp2dpo.training.data import DataConfig, load_data
    from sp2dpo.training.rows import check_rows

    def read_rows():
        rows = load_data(DataConfig(dataset="dataset")).sources[0].read
        marked, _ = apply_marks(rows, name="train")
        filled, _ = fill_missing_values(
            marked, ("beta",), name="train", missing="drop", constant=0.1
        )
        check_rows(filled, "train")
        return rows

    rows = _rows(probe.script(read_rows, 1))
    try:
        loaded = _rows(load_pairs("dataset"))
    except (ValueError, OSError):
        return rows  # `verify` tells the difference
    if loaded != rows:
        probe.report("readers differ", "load_pairs and train.py read other rows")
    return rows


def inspect(probe):
    """Open the data set in the inspector."""
    from errors import UnusableDataset
    from loader import open_folder
    from opening import Limits
    from tables import Meter

    scratch = probe.folder / "scratch"
    scratch.mkdir()

    def open_dataset():
        meter = Meter(most_rows=Limits().rows, most_bytes=Limits().unpacked)
        opened = open_folder(Path("dataset"), scratch, name="x", commit=None, meter=meter)
        return opened, opened.packed, opened.packed_scores

    opened, _, _ = probe.call(open_dataset, errors=(UnusableDataset,))
    fields = {name: [str(value) for value in each.values] for name, each in opened.fields.items()}
    return digest([opened.ids, fields])


# Stores, betas and scores

_STORE, _BETAS = ("--store", "run.sqlite"), ("--betas", "betas.parquet")
_DRAWS = ("--draws", 3)
_STORE_COMMANDS = (
    ("explain", "q3", *_STORE, *_BETAS),
    ("report", *_STORE, *_BETAS, "--json", *_DRAWS),
    ("audit", *_STORE, *_BETAS, *_DRAWS),
    ("agreement", *_STORE, *_DRAWS),
    ("build", *_STORE, *_BETAS, "--out", "new", *_DRAWS),
    ("merge", "--out", "merged.sqlite", "run.sqlite", "shard.sqlite"),
    ("annotate", "--dry-run", "--panel", "panel.yaml", *_STORE),
    ("export-requests", "--panel", "panel.yaml", *_STORE, "--out", "requests.jsonl"),
    ("annotate", "--reread", *_STORE),
)
_BETAS_COMMANDS = (
    ("explain", "q3", *_STORE, *_BETAS),
    ("audit", *_STORE, *_BETAS, *_DRAWS, "--json"),
    ("compare", "betas.parquet", "signed.parquet", *_DRAWS, "--json"),
    ("report", *_STORE, *_BETAS, "--json", *_DRAWS),
)


def _betas(path="out.parquet"):
    import polars as pl

    return digest(pl.read_parquet(path).rows())


def _schedule(probe, name, *more):
    return probe.command("schedule", *_STORE, "--schedule", name, *more, "--out", "out.parquet")


def store(probe):
    """Run `status`, `schedule` and one of the other commands that read a store."""
    status = probe.command("status", *_STORE, "--json")
    done = _schedule(probe, "sp2dpo.yaml")
    probe.command(*probe.rng.choice(_STORE_COMMANDS))
    done.unless_refused()
    status.unless_refused()
    # The counts of pairs and of missing replies tell a person that some are gone.
    counts = [line for line in done.output.splitlines() if not line.startswith("beta ")]
    return [_betas(), *counts]


def betas(probe):
    """Run a command that reads betas; what `build` makes of them must be consistent."""
    from sp2dpo.betas.file import read_betas

    probe.command(*probe.rng.choice(_BETAS_COMMANDS)).unless_refused()
    if probe.rng.randrange(3) == 0:
        built = probe.command("build", *_STORE, *_BETAS, "--out", "new", *_DRAWS).unless_refused()
        checked = probe.command("verify", "new", codes=(0, INCONSISTENT))
        if built.code == 0 and checked.code:
            probe.report("silently other", f"build took it, verify: {checked.output[-500:]}")
    return digest(probe.call(read_betas, "betas.parquet").table.rows())


def scores(probe):
    """Run `schedule` with an arm that needs scores."""
    _schedule(probe, "madpo.yaml", "--scores", "scores.parquet").unless_refused()
    return _betas()


# Evaluation

_WAIT = ("--patience", 0.01)


def generate(probe):
    """Resume a generation that is complete."""
    probe.command(
        "evaluate", "generate", "--prompts", "prompts.json", "--student", "student.yaml", "--out",
        "outputs", *_WAIT,
    ).unless_refused()  # fmt: skip
    return digest(json.loads(read_text("outputs/outputs.json")))


def judge(probe):
    """Resume a judgement that is complete."""
    probe.command(
        "evaluate", "judge", "--outputs", "outputs", "--prompts", "prompts.json", "--judge",
        "judge.yaml", "--out", "judged", *_WAIT, *_DRAWS, "--no-length-control",
    ).unless_refused()  # fmt: skip
    return digest(json.loads(read_text("judged/annotations.json")))


def compare(probe):
    """Compare win rates."""
    done = probe.command("evaluate", "compare", "judged", *_DRAWS, "--json").unless_refused()
    return digest(json.loads(done.output))


# What a person writes for a command


def annotate(probe):
    """Plan an annotation."""
    names = ("pairs.jsonl", "pairs.jsonl.gz", "pairs.parquet")
    pairs = next(name for name in names if os.path.lexists(name))
    done = probe.command(
        "annotate", "--dry-run", "--pairs", pairs, "--panel", "panel.yaml", "--store", "new.sqlite"
    )
    if os.path.lexists("new.sqlite"):
        probe.report("silently other", "a dry run left a store")
    return digest(done.unless_refused().output)


def import_replies(probe):
    """Import the replies of a batch."""
    probe.command(
        "import-replies", "--panel", "panel.yaml", "--store", "shard.sqlite", "replies.jsonl"
    ).unless_refused()
    return digest(probe.command("status", "--store", "shard.sqlite", "--json").output)


def schedule(probe):
    """Compute betas by a schedule or an arm."""
    names = ("madpo.yaml", "signed.yaml")
    name = next(name for name in names if os.path.lexists(name))
    more = ("--scores", "scores.parquet") if name == "madpo.yaml" else ()
    _schedule(probe, name, *more).unless_refused()
    return _betas()


def gold(probe):
    """Audit with pairs whose labels are known."""
    done = probe.command(
        "audit", *_STORE, *_BETAS, "--gold", "gold.jsonl", *_DRAWS, "--json"
    ).unless_refused()
    return digest(done.output)


def study(probe):
    """Read the files of a study."""
    from config import load_config
    from methods import load_methods

    config = probe.call(load_config, Path("study/smoke.yaml"))
    methods = probe.call(load_methods, Path("study/methods.yaml"))
    return digest([repr(config), sorted(methods)])


def training_settings(probe):
    """Read the settings of a training run."""
    from support.training import parse

    data, _, model = probe.script(parse, 2, ["--config", "train.yaml"])
    return digest([repr(data), repr(model)])
