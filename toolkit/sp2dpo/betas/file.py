"""Read and write the Parquet file of betas: the table, its arm, and the hashes of its inputs."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from sp2dpo.betas.arms import Arm, parse_arm
from sp2dpo.betas.columns import OPTIONAL, REQUIRED
from sp2dpo.betas.schedule import Schedule, parse_schedule
from sp2dpo.files import check_overwrite
from sp2dpo.replacement import atomic_write
from sp2dpo.store.annotations import AnnotationTable
from sp2dpo.store.store import Store

_METADATA = "sp2dpo"


@dataclass(frozen=True, kw_only=True)
class BetaTable:
    """A table of betas, with its arm and the hashes of its inputs.

    Attributes:
        table: the table of betas, as `arms.compute_betas` returns it.
        arm: the arm that the table was computed with.
        annotations_hash: hash of the annotations that the table was computed from.
        scores_hash: hash of the reward scores that it was computed from; None without scores.
    """

    table: pl.DataFrame
    arm: Arm
    annotations_hash: str
    scores_hash: str | None = None

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
        with path.open("rb") as source:  # polars would expand a path as a glob pattern
            return _METADATA in pl.read_parquet_metadata(source)
    except pl.exceptions.PolarsError:
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
    try:
        with path.open("rb") as source:
            origin = json.loads(pl.read_parquet_metadata(source)[_METADATA])
        # Files from before there were arms hold neither `arm` nor `scores`.
        config, departures, annotations_hash = (
            origin["schedule"],
            origin.get("arm"),
            origin["annotations"],
        )
        table = pl.read_parquet(path.absolute(), glob=False)
    except (pl.exceptions.PolarsError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path}: not a table of betas; `sp2dpo schedule` writes one") from error
    added = [name for name in OPTIONAL if name in table.columns]
    if tuple(table.columns[: len(REQUIRED)]) != REQUIRED or len(table.columns) > len(
        REQUIRED + OPTIONAL
    ):
        raise ValueError(
            f"{path}: its columns are not those that `sp2dpo schedule` writes; run it again"
        )
    schedule = parse_schedule(config, where=f"{path}: schedule")
    arm = parse_arm(departures, schedule, where=f"{path}: arm") if departures else Arm(of=schedule)
    return BetaTable(
        table=table.select(*REQUIRED, *added),
        arm=arm,
        annotations_hash=annotations_hash,
        scores_hash=origin.get("scores"),
    )


def check_origin(
    betas: BetaTable, annotations: AnnotationTable, *, path: Path, store: Path
) -> None:
    """Check that betas were computed from the annotations that the store holds now.

    Raises:
        ValueError: the betas belong to other pairs, or the replies in the store have changed since.
    """
    # The hash covers replies alone; pairs without any are compared by their ids.
    if set(betas.table["pair_id"]) != set(annotations.pair_ids):
        problem = f"the betas in {path} belong to other pairs than those in {store}"
    elif betas.annotations_hash != annotations.hash:
        problem = f"the betas in {path} were computed from other replies than those in {store}"
    else:
        return
    raise ValueError(f"{problem}; run `sp2dpo schedule` again on this store")


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
