"""Read a reward model's scores of pairs, from which ODPO's margin and MADPO's weight follow."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import polars as pl
import pyarrow as pa

from sp2dpo.batches import TooLarge, open_parquet, read_batches
from sp2dpo.betas.baselines import LARGEST

_COLUMNS = pl.Schema({"pair_id": pl.String, "reward_margin": pl.Float64})
_BATCH = 50_000
"""Rows that are read at a time."""


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The reward margins of pairs.

    Attributes:
        table: pair_id and reward_margin (h = r(chosen) - r(rejected), a finite float64), sorted by
            pair_id.
        name: name of the file, for messages.
    """

    table: pl.DataFrame
    name: str

    @cached_property
    def hash(self) -> str:
        """SHA-256 over the pairs and their margins, in hexadecimal."""
        digest = hashlib.sha256("\n".join(self.table["pair_id"]).encode())
        # Little-endian, so that every machine computes the same hash.
        digest.update(self.table["reward_margin"].to_numpy().astype("<f8").tobytes())
        return digest.hexdigest()

    def margins(self, pair_ids: pl.Series) -> pl.Series:
        """Return the margins of pairs, in the order of `pair_ids`.

        Raises:
            ValueError: a pair has no score.
        """
        pairs = pl.DataFrame({"pair_id": pair_ids})
        joined = pairs.join(self.table, on="pair_id", how="left", maintain_order="left")
        without = joined.filter(pl.col("reward_margin").is_null())
        if len(without) == len(joined):
            raise ValueError(f"{self.name} has no score for any pair of this store")
        if len(without):
            raise ValueError(
                f"{self.name}: {len(without)} of {len(joined)} pairs with a beta have no score, "
                f"the first is {without['pair_id'][0][:12]}: score them too"
            )
        return joined["reward_margin"]


class _WrongColumn(ValueError):
    """A table of scores lacks a column, or a column has another type."""


def read_scores(path: Path | str) -> Scores:
    """Read a Parquet file with `pair_id` and `reward_margin`; other columns are ignored.

    Raises:
        ValueError: the file is not a table of scores, or a score is invalid.
        OSError: the file cannot be read.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    path.open("rb").close()  # raises an OSError of its own; later ones mean damage
    try:
        # Not with polars, which ends the process at damage of several kinds.
        with open_parquet(path) as file:
            schema = file.metadata.schema.to_arrow_schema()
            names = schema.names
            missing = [name for name in _COLUMNS if name not in names]
            if missing:
                raise _WrongColumn(
                    f"{path}: no column {' and no column '.join(missing)} (it has: "
                    f"{', '.join(names)}); scores are `pair_id` and `reward_margin`"
                )
            _check_types(schema, path)
        parts = [
            pl.DataFrame(pl.from_arrow(batch.select(list(_COLUMNS)))).cast(_COLUMNS)
            for batch in read_batches(path, rows=_BATCH)
        ]
        table = pl.concat([pl.DataFrame(schema=_COLUMNS), *parts], rechunk=True)
    except (TooLarge, _WrongColumn):
        raise
    except (pa.ArrowException, pl.exceptions.PolarsError, OSError, ValueError) as error:
        raise ValueError(f"{path}: not a Parquet file, or damaged") from error
    _check(table, path)
    # Sorted, so that the hash does not depend on the order of the file.
    return Scores(table=table.sort("pair_id"), name=str(path))


def _check_types(schema: pa.Schema, path: Path) -> None:
    # Before the rows are read: texts in place of numbers may stand for gigabytes.
    ids, h = schema.field("pair_id").type, schema.field("reward_margin").type
    if pa.types.is_dictionary(ids):
        ids = ids.value_type
    is_text = pa.types.is_string(ids) or pa.types.is_large_string(ids)
    is_number = pa.types.is_integer(h) or pa.types.is_floating(h) or pa.types.is_decimal(h)
    if not is_text or not is_number:
        raise _WrongColumn(f"{path}: pair_id must be text, and reward_margin a number")


def _check(table: pl.DataFrame, path: Path) -> None:
    h = pl.col("reward_margin").cast(pl.Float64)
    # `is_finite` of a null is null, which a filter passes over, so nulls are named apart.
    bad = table.filter(h.is_null() | ~h.is_finite() | (h.abs() > LARGEST))
    if len(bad):
        pair_id, value = bad.row(0)
        raise ValueError(
            f"{path}: {len(bad)} of {len(table)} reward margins are not numbers from -1e4 to 1e4, "
            f"the first is {value} (pair {str(pair_id)[:12]})"
        )
    if nulls := table["pair_id"].null_count():
        raise ValueError(f"{path}: {nulls} of {len(table)} rows have no pair_id")
    twice = table.filter(pl.col("pair_id").is_duplicated())
    if len(twice):
        raise ValueError(f"{path}: pair {str(twice['pair_id'][0])[:12]} is scored more than once")
    if table.is_empty():
        raise ValueError(f"{path}: it holds no score")
