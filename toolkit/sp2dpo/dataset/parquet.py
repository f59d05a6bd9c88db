"""Rows of a data set as Parquet files, in their order: written in flat memory, read back in parts.

Pages are indexed and chunks are cut by content, so that a changed column leaves the bytes of the
others alike between two releases.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

SHARD = 1 << 29
"""Bytes of rows in memory after which the next file begins; some 100 to 300 MB on the disk."""
GROUP = 1 << 25
"""Bytes of rows in memory that make a row group: what a reader takes at once."""
_BATCH = 1000


def write_rows(
    rows: Iterable[dict[str, Any]],
    features: datasets.Features,
    folder: Path,
    *,
    shard: int = SHARD,
    group: int = GROUP,
) -> tuple[int, list[str]]:
    """Writes rows to `train-00000-of-0000N.parquet` in a folder.

    Where a file ends follows from what the rows hold, so that two releases of the same rows are cut
    at the same places.

    Args:
        rows: in their order.
        features: the columns.
        folder: where; it is made.
        shard: bytes in memory after which the next file begins.
        group: bytes in memory that make a row group.

    Returns:
        How many rows there were, and the names of the files.
    """
    folder.mkdir(parents=True)
    schema = features.arrow_schema
    tables = _groups(_tables(rows, features), group)
    count, unfinished = 0, []
    table: pa.Table | None = next(tables, None)
    while table is not None or not unfinished:  # one file at least, though without a row
        path = folder / f"{len(unfinished)}.unfinished"
        unfinished.append(path)
        with pq.ParquetWriter(
            path, schema, write_page_index=True, use_content_defined_chunking=True
        ) as writer:
            held = 0
            while table is not None and held < shard:
                writer.write_table(table, row_group_size=max(1, len(table)))
                held, count = held + table.nbytes, count + len(table)
                table = next(tables, None)
    names = [f"train-{n:05d}-of-{len(unfinished):05d}.parquet" for n in range(len(unfinished))]
    for path, name in zip(unfinished, names, strict=True):
        path.rename(folder / name)
    return count, names


def _tables(rows: Iterable[dict[str, Any]], features: datasets.Features) -> Iterator[pa.Table]:
    rows, schema = iter(rows), features.arrow_schema
    while batch := list(islice(rows, _BATCH)):
        encoded: Any = datasets.Dataset.from_list(batch, features=features)
        yield encoded.with_format("arrow")[:].cast(schema)


def _groups(tables: Iterable[pa.Table], size: int) -> Iterator[pa.Table]:
    """The same rows in tables of about so many bytes."""
    held: list[pa.Table] = []
    for table in tables:
        held.append(table)
        if sum(one.nbytes for one in held) >= size:
            yield pa.concat_tables(held).combine_chunks()
            held = []
    if held:
        yield pa.concat_tables(held).combine_chunks()


def read_features(path: Path) -> datasets.Features:
    """The columns that a file says it has.

    Raises:
        ValueError: it is no Parquet file.
    """
    try:
        return datasets.Features.from_arrow_schema(pq.read_schema(path))
    except pa.ArrowException as error:
        raise ValueError(f"{path}: not a Parquet file we can read: {_line(error)}") from error


def read_rows(paths: Sequence[Path], columns: Sequence[str]) -> Iterator[list[dict[str, Any]]]:
    """Some columns of all rows in their order, in parts.

    Raises:
        ValueError: a file is damaged, or lacks a column.
    """
    for path in paths:
        try:
            file = pq.ParquetFile(path)
            missing = [name for name in columns if name not in file.schema_arrow.names]
            if missing:
                raise ValueError(f"it has no column {missing[0]}")
            for batch in file.iter_batches(batch_size=_BATCH, columns=list(columns)):
                yield batch.to_pylist()
        except (pa.ArrowException, OSError, ValueError) as error:
            raise ValueError(f"{path}: not a file we can read: {_line(error)}") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
