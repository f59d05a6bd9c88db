"""The data set on disk: a folder that stock `datasets` loads, with every reply behind every beta.

DIR/README.md                    the card; its YAML names the configs and their files
DIR/data/train-*.parquet         `default`: all source rows, in their order
DIR/annotations/train-*.parquet  one row per reply, kept or refused
DIR/schedules/train-*.parquet    where there are several: a column of betas for each
DIR/rubric.yaml                  what the teachers were told, word for word
DIR/label_noise.jsonl            pairs whose label may be wrong, the most doubtful first
DIR/set_aside.jsonl              rows that hold no pair, with the reason
DIR/assets/betas.png             the histogram on the card
DIR/manifest.json                where all of it comes from, and its SHA-256
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import polars as pl
import yaml

from sp2dpo.betas.file import BetaTable
from sp2dpo.betas.gaps import disputes_labels
from sp2dpo.dataset.card import digest, render_card
from sp2dpo.dataset.columns import RowColumns, annotation_features, schedule_features
from sp2dpo.dataset.facts import collect_facts, find_suspects
from sp2dpo.dataset.manifest import (
    CARD,
    CONFIGS,
    LABEL_NOISE,
    MANIFEST,
    PICTURE,
    RUBRIC,
    SET_ASIDE,
    fingerprint,
    read_manifest,
    write_manifest,
)
from sp2dpo.dataset.parquet import write_rows
from sp2dpo.report import plots
from sp2dpo.report.report import build_histogram
from sp2dpo.store.annotations import AnnotationTable
from sp2dpo.store.store import Store

Watch = Callable[[Iterable[dict[str, Any]], str, int], Iterable[dict[str, Any]]]
"""Passes rows on and shows how many of how many went by; the text says what they are."""


_COLUMN = re.compile(r"[A-Za-z0-9_-]{1,64}")


def _unwatched(rows: Iterable[dict[str, Any]], what: str, of: int) -> Iterable[dict[str, Any]]:
    return rows


def build_dataset(
    store: Store,
    made: BetaTable,
    out: Path,
    *,
    others: Mapping[str, BetaTable] | None = None,
    license: str | None = None,
    watch: Watch = _unwatched,
) -> tuple[int, int]:
    """Writes the folder; the same store and betas give the same bytes.

    Args:
        store: pairs, source rows and replies.
        made: betas of that store.
        out: the folder. One that this function made is replaced; any other must be empty.
        others: betas of other schedules, by the name of their column in the config `schedules`.
        license: of the data set; that of the source where it is None.
        watch: shows progress.

    Returns:
        How many rows and how many annotations it holds.

    Raises:
        ValueError: the folder holds something else, or other betas cannot stand beside these.
        OSError: the disk does not take it; what was there before stays.
    """
    out = out.resolve()
    _check_ours(out)
    _check_others(others or {})
    unfinished = out.with_name(f".{out.name}.{os.getpid()}.unfinished")
    try:
        unfinished.mkdir(parents=True)
        counts = _write(store, made, others or {}, unfinished, license=license, watch=watch)
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
        facts = read_manifest((out / MANIFEST).read_bytes(), where=str(out / MANIFEST))
        ours = {MANIFEST, CARD, *facts["files"]}
    except (OSError, ValueError):
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


def _check_others(others: Mapping[str, BetaTable]) -> None:
    """Refuses betas that one column cannot say, and names that are taken."""
    for name, one in others.items():
        if not _COLUMN.fullmatch(name) or name in ("pair_id", "default"):
            raise ValueError(
                f"{name!r} cannot name a schedule: take letters, digits, - and _, and neither "
                "pair_id nor default"
            )
        acts = [key for key in ("weight", "margin") if key in one.arm.departures()]
        acts += ["disputed: flip"] * (one.arm.disputed == "flip")
        if acts:
            raise ValueError(
                f"{name}: the config `schedules` holds betas alone, and this arm's {acts[0]} acts "
                "too: build a data set of its own from it"
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


def _write(
    store: Store,
    made: BetaTable,
    others: Mapping[str, BetaTable],
    folder: Path,
    *,
    license: str | None,
    watch: Watch,
) -> tuple[int, int]:
    annotations = store.annotations()
    rubric = annotations.rubric
    features, counts, names = {}, {}, []
    for config, (columns, rows, of) in _configs(store, made, others, annotations).items():
        watched = watch(rows, f"{config} rows", of)
        counts[config], files = write_rows(watched, columns, folder / CONFIGS[config])
        features[config] = columns
        names += [f"{CONFIGS[config]}/{file}" for file in files]
    said = yaml.safe_dump(rubric.as_mapping(), sort_keys=False, allow_unicode=True)
    (folder / RUBRIC).write_text(said, encoding="utf-8")
    facts = collect_facts(
        store,
        made,
        others,
        annotations,
        rows=counts["default"],
        replies=counts["annotations"],
        license=license,
    )
    doubtful = list(_doubtful(store, made, annotations))
    _write_lines(folder / LABEL_NOISE, doubtful)
    _write_lines(folder / SET_ASIDE, _set_aside(store))
    names += [RUBRIC, LABEL_NOISE, SET_ASIDE]
    if facts["beta"]["mean"] is not None:
        (folder / PICTURE).parent.mkdir()
        figure = plots.draw_histogram(build_histogram(made, list(rubric.categories)))
        plots.save_figure(figure, folder / PICTURE)
        names.append(PICTURE)
    facts["files"] = {name: fingerprint(folder / name) for name in names}
    text = render_card(facts, features, rubric, doubtful)
    (folder / CARD).write_text(text, encoding="utf-8")
    facts["card_sha256"] = digest(text, where=CARD)
    (folder / MANIFEST).write_text(write_manifest(facts), encoding="utf-8")
    return counts["default"], counts["annotations"]


def _configs(
    store: Store, made: BetaTable, others: Mapping[str, BetaTable], annotations: AnnotationTable
) -> dict[str, Any]:
    """Config -> its columns, its rows, and how many they are."""
    layout = RowColumns.collect(store, annotations.rubric, made.table.columns)
    by_pair = {row["pair_id"]: row for row in made.table.iter_rows(named=True)}
    source = store.corpus.source()
    usable = source.usable if source else 0
    features = annotation_features(annotations.rubric)
    replies = sum(one.count for one in store.questions.outcomes())
    found: dict[str, Any] = {
        "default": (
            layout.features,
            (layout.values(row, by_pair[pair_id]) for row, pair_id in store.corpus.rows()),
            usable,
        ),
        "annotations": (
            features,
            ({name: reply[name] for name in features} for reply in store.replies()),
            replies,
        ),
    }
    if others:
        columns = schedule_features(others)
        found["schedules"] = (columns, _schedules(store, made, others), usable)
    return found


def _schedules(
    store: Store, made: BetaTable, others: Mapping[str, BetaTable]
) -> Iterator[dict[str, Any]]:
    """A row for each source row: the betas that each schedule trains the pair with."""
    trained = pl.when("keep").then("beta")
    tables = {"default": made.table, **{name: one.table for name, one in others.items()}}
    betas = {
        name: dict(table.select("pair_id", trained.alias("beta")).iter_rows())
        for name, table in tables.items()
    }
    for pair_id, _ in store.corpus.names():
        yield {"pair_id": pair_id, **{name: of[pair_id] for name, of in betas.items()}}


def _doubtful(
    store: Store, made: BetaTable, annotations: AnnotationTable
) -> Iterator[dict[str, Any]]:
    """The pairs whose label may be wrong, with the source's own names."""
    tells = disputes_labels(annotations.rubric, made.schedule.estimator)
    names: dict[str, str | None] = {}
    for pair_id, name in store.corpus.names():
        names.setdefault(pair_id, name)
    for row in find_suspects(made, tells=tells).iter_rows(named=True):
        yield {"pair_id": row["pair_id"], "source_id": names[row["pair_id"]]} | row


def _set_aside(store: Store) -> Iterator[dict[str, Any]]:
    source = store.corpus.source()
    for aside in store.corpus.set_aside():
        yield {"file": source and source.name, "row": aside.row, "reason": aside.reason}


def _write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as lines:
        for row in rows:
            lines.write(json.dumps(row, ensure_ascii=False) + "\n")
