"""Read a reward model's scores of pairs, from which ODPO's margin and MADPO's weight follow."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import polars as pl
import pyarrow as pa

from sp2dpo.batches import TooLarge, open_parquet
from sp2dpo.betas.baselines import LARGEST


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


class _NoColumn(ValueError):
    """A table of scores lacks a column."""


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
            names = file.schema_arrow.names
            missing = [name for name in ("pair_id", "reward_margin") if name not in names]
            if missing:
                raise _NoColumn(
                    f"{path}: no column {' and no column '.join(missing)} (it has: "
                    f"{', '.join(names)}); scores are `pair_id` and `reward_margin`"
                )
            arrow = file.read(columns=["pair_id", "reward_margin"])
            table = pl.DataFrame(pl.from_arrow(arrow)).with_columns(
                pl.col(pl.Categorical).cast(pl.String)
            )
    except (TooLarge, _NoColumn):
        raise
    except (pa.ArrowException, pl.exceptions.PolarsError, OSError, ValueError) as error:
        raise ValueError(f"{path}: not a Parquet file, or damaged") from error
    if table["pair_id"].dtype != pl.String or not table["reward_margin"].dtype.is_numeric():
        raise ValueError(f"{path}: pair_id must be text, and reward_margin a number")
    _check(table, path)
    # Sorted, so that the hash does not depend on the order of the file.
    table = table.with_columns(pl.col("reward_margin").cast(pl.Float64)).sort("pair_id")
    return Scores(table=table, name=str(path))


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
