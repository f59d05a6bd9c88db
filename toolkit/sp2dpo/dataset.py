"""The data set on disk: a folder that stock `datasets` loads, with every reply behind every beta.

DIR/README.md                                 the card; its YAML names the two configs
DIR/data/train-00000-of-00001.parquet         `default`: all source rows, in their order
DIR/annotations/train-00000-of-00001.parquet  one row per reply, kept or refused
DIR/set_aside.jsonl                           rows that hold no pair, with the reason
DIR/manifest.json                             where all of it comes from, and its SHA-256
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import polars as pl
import pyarrow.parquet as pq

from sp2dpo import __version__
from sp2dpo.betas_file import Betas
from sp2dpo.card import card
from sp2dpo.columns import RowColumns, annotation_features
from sp2dpo.formulas import formulas
from sp2dpo.gaps import tells_labels
from sp2dpo.store import Store

MANIFEST = "manifest.json"
ROWS = "data/train-00000-of-00001.parquet"
ANNOTATIONS = "annotations/train-00000-of-00001.parquet"
SET_ASIDE = "set_aside.jsonl"
_BATCH = 1000


def build(store: Store, made: Betas, out: Path) -> tuple[int, int]:
    """Writes the folder; the same store and betas give the same bytes.

    Args:
        store: pairs, source rows and replies.
        made: betas of that store.
        out: the folder. One that this function made is replaced; any other must be empty.

    Returns:
        How many rows and how many annotations it holds.

    Raises:
        ValueError: the folder holds something else.
        OSError: the disk does not take it; what was there before stays.
    """
    out = out.resolve()
    _check_ours(out)
    unfinished = out.with_name(f".{out.name}.{os.getpid()}.unfinished")
    try:
        (unfinished / "data").mkdir(parents=True)
        (unfinished / "annotations").mkdir()
        counts = _write(store, made, unfinished)
        _take_place(unfinished, out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return counts


def _check_ours(out: Path) -> None:
    """Refuses a folder that holds anything but what `build` wrote there."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; --out names a folder")
    if out == Path.cwd():
        raise ValueError(f"{out} is the folder that you are in; name one inside it")
    if not out.is_dir() or not any(out.iterdir()):
        return
    try:
        manifest = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
        ours = {MANIFEST, *manifest["files"]} if manifest["toolkit"]["name"] == "sp2dpo" else set()
    except (OSError, ValueError, KeyError, TypeError):
        ours = set()
    foreign = sorted(
        name
        for path in out.rglob("*")
        if not path.is_dir() and (name := path.relative_to(out).as_posix()) not in ours
    )
    if foreign:
        raise ValueError(
            f"{out} holds files that `sp2dpo build` did not write ({foreign[0]}); name an empty or "
            "a new folder"
        )


def _take_place(unfinished: Path, out: Path) -> None:
    """Puts the new folder in the place of the old one, which is deleted last."""
    old = unfinished.with_suffix(".old")
    if out.exists():
        out.rename(old)
    try:
        unfinished.rename(out)
    except OSError:
        if old.exists():
            old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _write(store: Store, made: Betas, folder: Path) -> tuple[int, int]:
    rubric = store.rubric()
    layout = RowColumns.of(store, rubric, made.table.columns)
    by_pair = {row["pair_id"]: row for row in made.table.iter_rows(named=True)}
    rows = write_parquet(
        (layout.values(row, by_pair[pair_id]) for row, pair_id in store.corpus.rows()),
        layout.features,
        folder / ROWS,
    )
    features = annotation_features(rubric)
    annotations = write_parquet(
        ({name: reply[name] for name in features} for reply in store.replies()),
        features,
        folder / ANNOTATIONS,
    )
    statuses = pl.read_parquet(folder / ANNOTATIONS, columns=["status"], glob=False)["status"]
    kept = int((statuses == "kept").sum())
    facts = _facts(store, made, rows=rows, annotations=annotations, kept=kept)
    made_from = facts["source"]["name"]
    with (folder / SET_ASIDE).open("w", encoding="utf-8") as lines:
        for aside in store.corpus.set_aside():
            said = {"file": made_from, "row": aside.row, "reason": aside.reason}
            lines.write(json.dumps(said, ensure_ascii=False) + "\n")
    facts["files"] = {name: _file(folder / name) for name in (ROWS, ANNOTATIONS, SET_ASIDE)}
    features_of = {"default": layout.features, "annotations": features}
    (folder / "README.md").write_text(card(facts, features_of, rubric), encoding="utf-8")
    facts["files"]["README.md"] = _file(folder / "README.md")
    manifest = json.dumps(facts, indent=2, ensure_ascii=False) + "\n"
    (folder / MANIFEST).write_text(manifest, encoding="utf-8")
    return rows, annotations


def write_parquet(rows: Iterable[dict[str, Any]], features: datasets.Features, path: Path) -> int:
    """Writes rows to one Parquet file in memory that does not grow with them; returns how many.

    Pages are indexed and chunks are cut by content, so that a changed column leaves the bytes of
    the others alike between two releases.
    """
    schema = features.arrow_schema
    count = 0
    with pq.ParquetWriter(
        path, schema, write_page_index=True, use_content_defined_chunking=True
    ) as writer:
        for batch in _batches(rows):
            encoded: Any = datasets.Dataset.from_list(batch, features=features)
            writer.write_table(encoded.with_format("arrow")[:].cast(schema))
            count += len(batch)
    return count


def _batches(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    rows = iter(rows)
    while batch := list(islice(rows, _BATCH)):
        yield batch


def _facts(store: Store, made: Betas, *, rows: int, annotations: int, kept: int) -> dict[str, Any]:
    source, rubric = store.corpus.source(), store.rubric()
    if source is None:
        raise ValueError(f"{store.path} holds no pairs")
    tells = tells_labels(rubric, made.schedule.estimator)
    disputed = int(made.table["label_disputed"].sum()) if tells else None
    beta = made.table["beta"].drop_nulls()
    return {
        "toolkit": {"name": "sp2dpo", "version": __version__},
        "source": asdict(source),
        "rubric": {"name": rubric.name, "sha256": rubric.hash, "protocol": rubric.protocol},
        "teachers": store.teachers(),
        "variants": store.variants(),
        "schedule": made.schedule.as_mapping(),
        "arm": made.arm.departures(),
        "formulas": asdict(formulas(made.arm, rubric)),
        "annotations_sha256": made.annotations_hash,
        "scores_sha256": made.scores_hash,
        "counts": {
            "rows": rows,
            "pairs": len(made.table),
            "pairs_with_beta": len(beta),
            "pairs_kept": int(made.table["keep"].sum()),
            "labels_disputed": disputed,
            "annotations": annotations,
            "kept": kept,
            "votes": int(made.table["votes"].sum()),
            "refused": annotations - kept,
        },
        "beta": {"mean": beta.mean(), "min": beta.min(), "max": beta.max()},
    }


def _file(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"sha256": digest, "bytes": path.stat().st_size}
