"""A schedule: how annotations become gaps, and gaps betas; and the table of betas it makes."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import polars as pl

from sp2dpo.annotation_table import AnnotationTable
from sp2dpo.files import refuse_foreign, whole
from sp2dpo.gaps import ESTIMATES, gaps
from sp2dpo.settings import check_keys, check_type, did_you_mean, read_yaml

_CHOICES = {
    "estimate": ESTIMATES,
    "gap": ("product",),
    "over_variants": ("median",),
    "over_teachers": ("mean",),
    "map": ("linear",),
}
_ESTIMATE = (
    "write `estimate: sampled` to take a reply's magnitude and confidence as it says them, "
    "`estimate: expected` to take their expectations, which needs replies with log-probabilities"
)
_METADATA = "sp2dpo"
_LARGEST = 1_000_000
"""A beta or a quorum above it is a slip of the pen."""
COLUMNS = (
    "pair_id", "beta", "has_beta", "gap", "signed_gap", "label_disputed", "category", "magnitude",
    "confidence", "spread", "agreement", "votes", "teachers",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """From annotations to betas. No key has a default: each defines the result.

    Attributes:
        beta_min: the beta of a gap of 0; above 0. SP2DPO: 0.03.
        beta_max: the beta of a gap of 1; above `beta_min`. SP2DPO: 0.3.
        quorum: votes below which a pair gets no beta; at least 1. A kept reply is a vote, each
            order of a blind protocol for itself. Our choice.
        estimate: of a reply's magnitude and confidence. `sampled`: as the reply says them.
            `expected`: their expectations over the tokens that it could have said; a reply without
            log-probabilities is no vote. Our choice.
        gap: of one reply. `product`: magnitude share times confidence share (our choice; the
            sources we hold do not print the paper's formula).
        over_variants: `median` over a teacher's variants (SP2DPO, section 4.3.3).
        over_teachers: `mean` over the teachers (SP2DPO, JMAMP).
        map: `linear` from the gap to beta (SP2DPO).
    """

    beta_min: float
    beta_max: float
    quorum: int
    estimate: str
    gap: str
    over_variants: str
    over_teachers: str
    map: str


def load_schedule(path: Path) -> Schedule:
    """The schedule in a YAML file.

    Raises:
        ValueError: naming the file, the key and the value.
        OSError: the file cannot be read.
    """
    return schedule_of(read_yaml(path), where=str(path))


def schedule_of(said: dict[str, Any], *, where: str) -> Schedule:
    """The schedule that a mapping says, checked.

    Raises:
        ValueError: with `where` and what is wrong.
    """
    try:
        check_keys(where, said, required=list(Schedule.__dataclass_fields__))
    except ValueError as error:
        if "estimate" in said:
            raise
        raise ValueError(f"{error}; {_ESTIMATE}") from None
    for key, known in _CHOICES.items():
        if said[key] not in known:
            hint = did_you_mean(said[key], known)
            raise ValueError(
                f"{where}: {key} {said[key]!r} is not known{hint} (known: {', '.join(known)})"
            )
    for key in ("beta_min", "beta_max"):
        check_type(where, key, said[key], (int, float))
        if not 0 < said[key] <= _LARGEST:
            raise ValueError(f"{where}: {key} {said[key]} must be above 0, and no more than 1e6")
    if said["beta_min"] >= said["beta_max"]:
        raise ValueError(
            f"{where}: beta_min {said['beta_min']} must be below beta_max {said['beta_max']}"
        )
    check_type(where, "quorum", said["quorum"], int)
    if not 1 <= said["quorum"] <= _LARGEST:
        raise ValueError(f"{where}: quorum {said['quorum']} must be at least 1, at most 1e6")
    return Schedule(**said)


def linear(gap: pl.Expr, *, beta_min: float, beta_max: float) -> pl.Expr:
    """SP2DPO's map: beta_i = beta_min + (beta_max - beta_min) g_i.

    Written as a mean of the two ends, so that a gap of 0 or 1 gives them to the last bit.

    Args:
        gap: in [0, 1].
        beta_min: the beta of a gap of 0.
        beta_max: the beta of a gap of 1.
    """
    return beta_min * (1 - gap) + beta_max * gap


def betas(annotations: AnnotationTable, schedule: Schedule) -> pl.DataFrame:
    """The table of betas, one row for every pair, sorted by pair_id.

    Args:
        annotations: of one store.
        schedule: how to combine them.

    Returns:
        pair_id: 64 hexadecimal digits.
        beta: in [beta_min, beta_max]; null below the quorum.
        has_beta: whether there is one.
        gap: effective semantic gap in [0, 1]: the signed gap, at least 0; null below the quorum.
        signed_gap: in [-1, 1], below 0 where the teachers prefer the rejected response, which the
            labelled protocol cannot tell; null below the quorum. Ours.
        label_disputed: whether the signed gap is below 0; null below the quorum and under the
            labelled protocol. Ours.
        category: of most replies, ties to the higher priority; null without replies.
        magnitude, confidence: JMAMP of each alone, without a sign, on the rubric's scale, for
            display.
        spread: population standard deviation of the teachers' signed gaps: in [0, 0.5], under the
            blind protocol in [0, 1].
        agreement: share of the replies that name that category, in (0, 1].
        votes: kept replies that count under the schedule's estimate.
        teachers: teachers with at least one of them.

    Raises:
        ValueError: no reply has the expectations that the schedule wants.
    """
    enough = pl.col("votes") >= schedule.quorum
    beta = linear(pl.col("gap"), beta_min=schedule.beta_min, beta_max=schedule.beta_max)
    return (
        gaps(annotations, schedule.estimate)
        .with_columns(
            pl.when(enough).then(name).alias(name)
            for name in ("gap", "signed_gap", "label_disputed")
        )
        .with_columns(beta=beta, has_beta=pl.col("gap").is_not_null())
        .select(COLUMNS)
        .sort("pair_id")
    )


@dataclass(frozen=True, kw_only=True)
class Betas:
    """A table of betas and where it comes from.

    Attributes:
        table: as `betas` makes it.
        schedule: that made it.
        annotations_hash: of the annotations that it was made from.
    """

    table: pl.DataFrame
    schedule: Schedule
    annotations_hash: str


def write_betas(made: Betas, path: Path) -> None:
    """Writes the table with its schedule and hash in the file's metadata; whole or not at all.

    The same betas give the same bytes.

    Raises:
        ValueError: a file that is no table of betas stands there.
        OSError: it cannot be written.
    """
    origin = {"schedule": asdict(made.schedule), "annotations": made.annotations_hash}
    refuse_foreign(path, _is_betas, "a table of betas")
    metadata = {_METADATA: json.dumps(origin, sort_keys=True)}
    with whole(path) as unfinished:
        try:
            made.table.write_parquet(unfinished, metadata=metadata)
        except pl.exceptions.PolarsError as error:  # a full disk, among others
            raise OSError(f"{path}: cannot be written: {error}") from error


def _is_betas(path: Path) -> bool:
    try:
        with path.open("rb") as source:  # polars takes a name for a pattern
            return _METADATA in pl.read_parquet_metadata(source)
    except pl.exceptions.PolarsError:
        return False


def read_betas(path: Path) -> Betas:
    """The betas in a Parquet file that `write_betas` made.

    Raises:
        ValueError: another file, or one that was changed.
        OSError: it cannot be read.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; `sp2dpo schedule` makes one")
    try:
        with path.open("rb") as source:
            origin = json.loads(pl.read_parquet_metadata(source)[_METADATA])
        said, made_from = origin["schedule"], origin["annotations"]
        table = pl.read_parquet(path, glob=False)
    except (pl.exceptions.PolarsError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: not a table of betas; `sp2dpo schedule` makes one") from error
    if tuple(table.columns) != COLUMNS:
        raise ValueError(
            f"{path}: its columns are not those that `sp2dpo schedule` writes; run it again"
        )
    schedule = schedule_of(said, where=f"{path}: schedule")
    return Betas(table=table, schedule=schedule, annotations_hash=made_from)


def check_origin(made: Betas, annotations: AnnotationTable, *, path: Path, store: Path) -> None:
    """Refuses betas that were made from other annotations than the store now holds.

    Raises:
        ValueError: they belong to another store, or the store has grown since.
    """
    if set(made.table["pair_id"]) != set(annotations.pair_ids):
        problem = f"the betas in {path} are of other pairs than {store} holds"
    elif made.annotations_hash != annotations.hash:
        problem = f"{store} holds other replies than the betas in {path} were made from"
    else:
        return
    raise ValueError(f"{problem}; run `sp2dpo schedule` again on this store")
