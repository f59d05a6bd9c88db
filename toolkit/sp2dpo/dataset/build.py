"""Build the data set: a folder that stock `datasets` loads, with all betas and all replies.

DIR/README.md                    the card; its YAML lists the configs and their files
DIR/data/train-*.parquet         config `default`: all source rows, in their order
DIR/annotations/train-*.parquet  config `annotations`: one row per reply, kept or refused
DIR/schedules/train-*.parquet    config `schedules`: the betas of other schedules, if there are any
DIR/rubric.yaml                  the prompts of the teachers
DIR/label_noise.jsonl            pairs whose label may be wrong, the most doubtful first
DIR/set_aside.jsonl              source rows without a valid pair, with the reason
DIR/assets/betas.png             the histogram on the card
DIR/manifest.json                origin and settings, and the SHA-256 of every other file
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl
import yaml
from datasets import Features

from sp2dpo.betas.file import BetaTable, check_origin, open_store_and_betas, read_betas
from sp2dpo.dataset.card import digest, render_card
from sp2dpo.dataset.columns import RowColumns, annotation_features, schedule_features
from sp2dpo.dataset.facts import collect_facts, find_suspects
from sp2dpo.dataset.manifest import Manifest, parse_manifest_head
from sp2dpo.dataset.parquet import Progress, no_progress, write_rows
from sp2dpo.diagnostics.bootstrap import DRAWS
from sp2dpo.listing import (
    CARD,
    CONFIGS,
    LABEL_NOISE,
    MANIFEST,
    PICTURE,
    RUBRIC,
    SET_ASIDE,
    compute_fingerprint,
)
from sp2dpo.replacement import atomic_folder
from sp2dpo.report import plots
from sp2dpo.report.charts import build_histogram
from sp2dpo.store.annotations import AnnotationTable
from sp2dpo.store.store import Store

_ACTING = ("weight", "margin", "label_smoothing", "flip")
"""Columns beside beta that change how a pair is trained."""
_COLUMN_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True, kw_only=True)
class BuildResult:
    """A finished build.

    Attributes:
        folder: Folder of the data set.
        rows: Number of rows of the config `default`.
        annotations: Number of rows of the config `annotations`.
        json_columns: Columns of the source stored as JSON text -> the reason.
    """

    folder: Path
    rows: int
    annotations: int
    json_columns: Mapping[str, str]


def build_dataset(
    store_file: Path | str,
    betas_file: Path | str,
    out: Path | str,
    *,
    others: Mapping[str, Path] | None = None,
    license: str | None = None,
    draws: int = DRAWS,
    progress: Progress = no_progress,
) -> BuildResult:
    """Build the data set of a store and the betas computed from it.

    Equal inputs give equal bytes.

    Args:
        store_file: Annotation store.
        betas_file: Betas computed from this store.
        out: Folder to write: a new or an empty one, or an earlier build, which is replaced.
        others: Further files of betas of this store; key: column name in the config `schedules`.
        license: Licence of the data set; None for the licence of the source.
        draws: Number of bootstrap samples for the intervals on the card.
        progress: Called with the rows of each config; see `parquet.Progress`.

    Raises:
        ValueError: The folder contains other files, betas belong to another store, or the config
            `schedules` cannot represent them.
        OSError: A file cannot be read or written. An earlier build stays in place.
    """
    store_file = Path(store_file)
    betas_file = Path(betas_file)
    out = Path(out)
    with open_store_and_betas(store_file, betas_file) as (store, betas, annotations):
        tables = {name: read_betas(path) for name, path in (others or {}).items()}
        for name, path in (others or {}).items():
            check_origin(tables[name], annotations, path=path, store=store_file)
        return write_dataset(
            store, betas, out, others=tables, license=license, draws=draws, progress=progress
        )


def write_dataset(
    store: Store,
    betas: BetaTable,
    out: Path,
    *,
    others: Mapping[str, BetaTable] | None = None,
    license: str | None = None,
    draws: int = DRAWS,
    progress: Progress = no_progress,
) -> BuildResult:
    """Build the data set of an open store; arguments and errors as in `build_dataset`."""
    # Resolved, so that a link to a folder stays a link and its target is replaced.
    out, others = out.resolve(), others or {}
    _check_folder(out)
    _check_others(others)
    with atomic_folder(out, lambda replaced: _check_folder(replaced, shown=out)) as unfinished:
        manifest = _write(
            store, betas, others, unfinished, license=license, draws=draws, progress=progress
        )
    return BuildResult(
        folder=out,
        rows=manifest.counts.rows,
        annotations=manifest.counts.annotations,
        json_columns=manifest.json_columns,
    )


def _check_folder(out: Path, *, shown: Path | None = None) -> None:
    """Raise ValueError if the folder contains a file that `build` did not write.

    Args:
        out: Folder to look into.
        shown: Its path in the message; None for the path itself.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; --out names a folder")
    # The rename would leave the user's shell in the old folder, which is then deleted.
    if out == Path.cwd():
        raise ValueError(f"{out} is the current folder; name a folder inside it")
    if not out.is_dir() or not any(out.iterdir()):
        return
    try:
        # Only the head, so that a build whose manifest is damaged can be replaced too. The card is
        # not among the files, because people may edit it.
        text = (out / MANIFEST).read_bytes()
        written = {MANIFEST, CARD, *parse_manifest_head(text, where=MANIFEST).files}
    except (OSError, ValueError):
        written = set()
    foreign = sorted(
        relative
        for path in out.rglob("*")
        if not path.is_dir() and (relative := path.relative_to(out).as_posix()) not in written
    )
    if foreign:
        raise ValueError(
            f"{shown or out} holds files that `sp2dpo build` did not write ({foreign[0]}); name an "
            "empty or a new folder"
        )


def _check_others(others: Mapping[str, BetaTable]) -> None:
    """Raise ValueError for an invalid name, or an arm that does more than set betas."""
    for name, betas in others.items():
        # `pair_id` and `default` are columns of the config already.
        if not _COLUMN_NAME.fullmatch(name) or name in ("pair_id", "default"):
            raise ValueError(
                f"{name!r} cannot name a schedule: use letters, digits, - and _, and neither "
                "pair_id nor default"
            )
        acts = [name for name in _ACTING if name in betas.table.columns]
        if acts:
            raise ValueError(
                f"{name}: the config `schedules` holds betas only, and this arm also has "
                f"{acts[0]}: build a separate data set from it"
            )


def _write(
    store: Store,
    betas: BetaTable,
    others: Mapping[str, BetaTable],
    folder: Path,
    *,
    license: str | None,
    draws: int,
    progress: Progress,
) -> Manifest:
    """Write all files into an empty folder."""
    annotations = store.annotations()
    rubric = annotations.rubric
    # The configs, in parts of bounded size.
    features, counts, names = {}, {}, []
    columns = RowColumns.collect(store, rubric, betas.table.columns)
    for config, content in _configs(store, betas, others, annotations, columns).items():
        rows = progress(content.rows, f"{config} rows", content.count)
        counts[config], files = write_rows(rows, content.features, folder / CONFIGS[config])
        features[config] = content.features
        names += [f"{CONFIGS[config]}/{file}" for file in files]
    # The small files, and the facts for manifest and card.
    text = yaml.safe_dump(rubric.as_mapping(), sort_keys=False, allow_unicode=True)
    (folder / RUBRIC).write_text(text, encoding="utf-8")
    suspects = find_suspects(store, betas, rubric)
    manifest = collect_facts(
        store,
        betas,
        others,
        annotations,
        suspects,
        rows=counts["default"],
        replies=counts["annotations"],
        license=license,
        draws=draws,
    )
    _write_lines(folder / LABEL_NOISE, map(asdict, suspects))
    _write_lines(
        folder / SET_ASIDE,
        (
            {"file": manifest.source.name, "row": row.row, "reason": row.reason}
            for row in store.corpus.set_aside()
        ),
    )
    names += [RUBRIC, LABEL_NOISE, SET_ASIDE]
    # Without any beta there is nothing to draw.
    if manifest.beta["mean"] is not None:
        (folder / PICTURE).parent.mkdir()
        figure = plots.draw_histogram(build_histogram(betas, list(rubric.categories)))
        plots.save_figure(figure, folder / PICTURE)
        names.append(PICTURE)
    # The card contains the hashes of these files, and the manifest that of the card.
    files = {name: compute_fingerprint(folder / name) for name in names}
    manifest = replace(manifest, files=files, json_columns=columns.json_columns)
    text = render_card(manifest, features, rubric, suspects)
    (folder / CARD).write_text(text, encoding="utf-8")
    manifest = replace(manifest, card_sha256=digest(text, where=CARD))
    # Last, because it contains the hashes of all other files.
    (folder / MANIFEST).write_text(manifest.format_json(), encoding="utf-8")
    return manifest


@dataclass(frozen=True)
class _Content:
    """Columns of a config, its rows, and how many rows are expected."""

    features: Features
    rows: Iterable[dict[str, Any]]
    count: int


def _configs(
    store: Store,
    betas: BetaTable,
    others: Mapping[str, BetaTable],
    annotations: AnnotationTable,
    columns: RowColumns,
) -> dict[str, _Content]:
    by_pair = {row["pair_id"]: row for row in betas.table.iter_rows(named=True)}
    source = store.corpus.source()
    usable = source.usable if source else 0
    features = annotation_features(annotations.rubric)
    replies = sum(outcome.count for outcome in store.questions.outcomes())
    configs = {
        "default": _Content(
            columns.features,
            (columns.values(row, by_pair[pair_id]) for row, pair_id in store.corpus.rows()),
            usable,
        ),
        # In a config of their own, one per row: the Hub's viewer fails on a row over 2 MB.
        "annotations": _Content(
            features,
            ({name: getattr(reply, name) for name in features} for reply in store.replies()),
            replies,
        ),
    }
    if others:
        rows = _schedule_rows(store, betas, others)
        configs["schedules"] = _Content(schedule_features(others), rows, usable)
    return configs


def _schedule_rows(
    store: Store, betas: BetaTable, others: Mapping[str, BetaTable]
) -> Iterator[dict[str, Any]]:
    """Yield for each source row its beta under every schedule; null if the pair is not kept."""
    trained = pl.when("keep").then("beta")
    # Looked up by id: the source may repeat a pair, and its rows are in another order than the
    # table's.
    tables = {"default": betas.table, **{name: other.table for name, other in others.items()}}
    columns = {
        name: dict(table.select("pair_id", trained.alias("beta")).iter_rows())
        for name, table in tables.items()
    }
    for pair_id, _ in store.corpus.names():
        yield {"pair_id": pair_id, **{name: by_pair[pair_id] for name, by_pair in columns.items()}}


def _write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as lines:
        for row in rows:
            lines.write(json.dumps(row, ensure_ascii=False) + "\n")
