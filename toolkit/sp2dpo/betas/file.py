"""Read and write the Parquet file of betas: the table, its arm, and the hashes of its inputs."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from sp2dpo.batches import TooLarge, open_parquet, read_batches
from sp2dpo.betas.arms import Arm, compute_arm, parse_arm
from sp2dpo.betas.columns import BETA_COLUMNS, OPTIONAL, REQUIRED
from sp2dpo.betas.label_fit import LabelFit, parse_label_fit
from sp2dpo.betas.schedule import Schedule, parse_schedule
from sp2dpo.betas.scores import Scores
from sp2dpo.files import check_overwrite
from sp2dpo.replacement import atomic_write
from sp2dpo.store.annotations import AnnotationTable
from sp2dpo.store.store import Store

_METADATA = "sp2dpo"
_COLUMNS = {column.name: column for column in BETA_COLUMNS}
_TYPES: dict[str, Any] = {
    "string": pl.String, "bool": pl.Boolean, "int32": pl.Int32, "float64": pl.Float64,
    "category": pl.String,
}  # fmt: skip
_BYTES_PER_ROW = 16
"""Half of the bytes of a pair's id, whatever the compression."""
_BATCH = 50_000
"""Rows that are read at a time."""
_NO_TABLE = (KeyError, TypeError, AttributeError, ValueError, RecursionError)
_ROUNDING = 1e-9
"""Largest relative difference between the sums of two releases."""


@dataclass(frozen=True, kw_only=True)
class BetaTable:
    """A table of betas, with its arm and the hashes of its inputs.

    Attributes:
        table: the table of betas, as `arms.compute_betas` returns it.
        arm: the arm that the table was computed with.
        annotations_hash: hash of the annotations that the table was computed from.
        scores_hash: hash of the reward scores that it was computed from; None without scores.
        labels: what the estimate of the labels found; None for an arm without one.
    """

    table: pl.DataFrame
    arm: Arm
    annotations_hash: str
    scores_hash: str | None = None
    labels: LabelFit | None = None

    @property
    def schedule(self) -> Schedule:
        """The schedule of the arm."""
        return self.arm.of


def write_betas(betas: BetaTable, path: Path | str) -> None:
    """Write the table atomically, with its arm and the hashes in the metadata of the file.

    Equal betas give equal bytes.

    Raises:
        ValueError: the path is an existing file that is not a table of betas.
        OSError: the file cannot be written.
    """
    path = Path(path)
    origin = {
        "schedule": betas.schedule.as_mapping(),
        "arm": betas.arm.departures(),
        "annotations": betas.annotations_hash,
        "scores": betas.scores_hash,
    }
    if betas.labels is not None:
        origin["labels"] = betas.labels.as_mapping()
    check_overwrite(path, _is_betas, "a table of betas")
    # Sorted, so that equal betas give equal bytes.
    metadata = {_METADATA: json.dumps(origin, sort_keys=True)}
    with atomic_write(path) as unfinished:
        try:
            betas.table.write_parquet(unfinished, metadata=metadata)
        except pl.exceptions.PolarsError as error:  # a full disk, among others
            raise OSError(f"{path}: cannot be written: {error}") from error


def _is_betas(path: Path) -> bool:
    try:
        # A relative `file:x` would be an address.
        return _METADATA.encode() in (pq.read_metadata(path.absolute()).metadata or {})
    except (pa.ArrowException, OSError):
        return False


def read_betas(path: Path | str) -> BetaTable:
    """Read the betas in a Parquet file written by `write_betas`.

    Raises:
        ValueError: the file was not written by `write_betas`, or was changed.
        OSError: the file cannot be read.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; `sp2dpo schedule` writes one")
    path.open("rb").close()  # raises an OSError of its own; later ones mean damage
    try:
        # Before any row is read: a small file may state very many rows, or name other columns.
        with open_parquet(path) as file:
            origin = json.loads(file.metadata.metadata[_METADATA.encode()])
            # Files from before there were arms hold neither `arm` nor `scores`.
            config, departures, annotations_hash = (
                origin["schedule"],
                origin.get("arm"),
                origin["annotations"],
            )
            if not isinstance(annotations_hash, str):
                raise TypeError("the hash of the annotations is not text")
            found = origin.get("labels")
            labels = None if found is None else parse_label_fit(found, where="labels")
            _check_columns(file.schema_arrow, path)
            _check_size(file.metadata.num_rows, path)
        table = read_columns(path)
    except (_Changed, TooLarge):
        raise
    except (pa.ArrowException, OSError, *_NO_TABLE) as error:
        raise ValueError(f"{path}: not a table of betas; `sp2dpo schedule` writes one") from error
    _check_values(table, path)
    schedule = parse_schedule(config, where=f"{path}: schedule")
    arm = parse_arm(departures, schedule, where=f"{path}: arm") if departures else Arm(of=schedule)
    return BetaTable(
        table=table,
        arm=arm,
        annotations_hash=annotations_hash,
        scores_hash=origin.get("scores"),
        labels=labels,
    )


class _Changed(ValueError):
    """A table of betas was written or changed by another program."""


def _check_columns(arrow: pa.Schema, path: Path) -> None:
    schema = _empty(arrow).schema
    optional = [name for name in OPTIONAL if name in schema]
    expected = {name: _TYPES[column.type] for name, column in _COLUMNS.items() if name in
                (*REQUIRED, *optional)}  # fmt: skip
    # As lists, because the order counts.
    if list(schema.items()) == list(expected.items()):
        return
    foreign = [name for name in schema if name not in expected]
    problem = f" (it has {', '.join(map(repr, foreign))})" if foreign else ""
    raise _Changed(
        f"{path}: its columns are not those that `sp2dpo schedule` writes{problem}; run it again"
    )


def _check_size(rows: int, path: Path) -> None:
    """Refuse more rows than the file can hold: ids are hashes, which cannot be compressed."""
    if rows > path.stat().st_size // _BYTES_PER_ROW:
        raise _Changed(
            f"{path}: states {rows:,} rows, more than its {path.stat().st_size:,} bytes hold: not "
            "a table that `sp2dpo schedule` wrote"
        )


def _empty(schema: pa.Schema) -> pl.DataFrame:
    return pl.DataFrame(pl.from_arrow(pa.table(
        [pa.array([], each.type.value_type if pa.types.is_dictionary(each.type) else each.type)
         for each in schema],
        names=schema.names,
    )))  # fmt: skip


def read_columns(path: Path) -> pl.DataFrame:
    """Read a Parquet file with bounded memory; raises like `batches.read_batches`."""
    # Not with polars, which ends the process at damage of several kinds.
    with open_parquet(path) as file:
        empty = _empty(file.schema_arrow)
    parts = [pl.DataFrame(pl.from_arrow(batch)) for batch in read_batches(path, rows=_BATCH)]
    return pl.concat([empty, *parts], rechunk=True)


def _check_values(table: pl.DataFrame, path: Path) -> None:
    """Refuse ids that occur twice, and betas that no pair can be trained with."""
    beta, numbers = pl.col("beta"), pl.col(pl.Float64)
    problems = {
        "a pair occurs twice": pl.col("pair_id").is_duplicated(),
        "a pair has no id": pl.col("pair_id").is_null(),
        "has_beta or keep is null": pl.any_horizontal(pl.col("has_beta", "keep").is_null()),
        "a pair is kept without a beta": pl.col("keep") & (beta.is_null() | ~pl.col("has_beta")),
        "a beta is below 0": beta < 0,
        "a number is infinite or NaN": pl.any_horizontal(~numbers.is_finite()),
    }
    for problem, condition in problems.items():
        rows = table.filter(condition)
        if len(rows):
            pair_id = str(rows["pair_id"][0])[:12]
            raise ValueError(
                f"{path}: {problem} (pair {pair_id}): the file was changed or is damaged; run "
                "`sp2dpo schedule` again"
            )


def check_origin(
    betas: BetaTable, annotations: AnnotationTable, *, path: Path, store: Path
) -> None:
    """Check that betas were computed from the annotations that the store holds now.

    Raises:
        ValueError: the betas belong to other pairs, the replies in the store have changed since,
            or a value differs from what follows from the replies.
    """
    # The hash covers replies alone; pairs without any are compared by their ids.
    if set(betas.table["pair_id"]) != set(annotations.pair_ids):
        problem = f"the betas in {path} belong to other pairs than those in {store}"
    elif betas.annotations_hash != annotations.hash:
        problem = f"the betas in {path} were computed from other replies than those in {store}"
    elif difference := _difference(betas, annotations):
        problem = f"{path} was changed or is damaged: {difference} does not follow from the replies"
    else:
        return
    raise ValueError(f"{problem}; run `sp2dpo schedule` again on this store")


def _difference(betas: BetaTable, annotations: AnnotationTable) -> str | None:
    """Return the first value that differs from the betas of the annotations; None if none does."""
    result = compute_arm(annotations, betas.arm, _scores(betas))
    computed = result.table
    if computed.columns != betas.table.columns:
        return "the list of its columns"
    for name in computed.columns:
        ours, theirs = computed[name], betas.table[name]
        same = ours.eq_missing(theirs)
        if ours.dtype == pl.Float64:
            # Another release may add numbers in another order.
            same |= ((ours - theirs).abs() <= _ROUNDING * (1 + ours.abs())).fill_null(False)
        if not same.all():
            pair_id = betas.table["pair_id"].filter(~same)[0]
            return f"{name} of pair {str(pair_id)[:12]}"
    # Files of earlier releases do not say what was found.
    if betas.labels and not (result.labels and betas.labels.matches(result.labels)):
        return "what the estimate of the labels found"
    return None


def _scores(betas: BetaTable) -> Scores | None:
    """Return the reward margins of a table, without the sign changes for `flip`."""
    if not betas.arm.uses_scores or "reward_margin" not in betas.table.columns:
        return None
    h = pl.col("reward_margin")
    if "flip" in betas.table.columns:
        h = pl.when("flip").then(-h).otherwise(h)
    table = betas.table.drop_nulls("reward_margin").select("pair_id", reward_margin=h)
    return Scores(table=table, name="the column reward_margin")


@contextmanager
def open_store_and_betas(
    store_file: Path | str, betas_file: Path | str
) -> Iterator[tuple[Store, BetaTable, AnnotationTable]]:
    """Open a store for reading together with the betas that were computed from it.

    Raises:
        ValueError: the betas were computed from other pairs or replies than the store holds.
        OSError: a file cannot be read.
    """
    store_file, betas_file = Path(store_file), Path(betas_file)
    betas = read_betas(betas_file)
    # A run that annotates meanwhile must not add replies between the check and later reads.
    with Store(store_file) as store, store.snapshot():
        annotations = store.annotations()
        check_origin(betas, annotations, path=betas_file, store=store_file)
        yield store, betas, annotations
