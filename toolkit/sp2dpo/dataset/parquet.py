"""Write rows of a data set as Parquet files with bounded memory, and read them back in parts.

Page indexes and content-defined chunks keep the bytes of unchanged columns equal between two
releases, so that only changed columns are uploaded.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from sp2dpo.batches import read_batches
from sp2dpo.text import one_line

FILE_BYTES = 1 << 29
"""Bytes of rows in memory after which the next file begins; some 100 to 300 MB on disk."""
GROUP_BYTES = 1 << 25
"""Bytes of rows in memory per row group, the smallest unit that a reader loads."""
# Rows that are encoded or decoded at a time, which bounds the memory.
_BATCH = 1000

Progress = Callable[[Iterable[Any], str, int], Iterable[Any]]
"""Yields the items of its first argument and may display progress. The items are rows or lists of
rows; the other arguments are a description and the total number of rows."""


def no_progress(items: Iterable[Any], what: str, count: int) -> Iterable[Any]:
    """Return the items unchanged: a `Progress` that displays nothing."""
    return items


def write_rows(
    rows: Iterable[dict[str, Any]],
    features: datasets.Features,
    folder: Path,
    *,
    file_bytes: int = FILE_BYTES,
    group_bytes: int = GROUP_BYTES,
) -> tuple[int, list[str]]:
    """Write rows to `train-00000-of-0000N.parquet` in a new folder.

    Where a file ends depends only on the content of the rows, so two releases of the same rows are
    split at the same places.

    Args:
        rows: Rows in their order.
        features: Columns.
        folder: Folder to create.
        file_bytes: Bytes in memory after which the next file begins.
        group_bytes: Bytes in memory per row group.

    Returns:
        The number of rows, and the names of the files.
    """
    folder.mkdir(parents=True)
    schema = features.arrow_schema
    groups = _groups(_tables(rows, features), group_bytes)
    count, unfinished = 0, []
    table: pa.Table | None = next(groups, None)
    while table is not None or not unfinished:  # without rows, one file has the columns
        path = folder / f"{len(unfinished)}.unfinished"
        unfinished.append(path)
        # With these options, another beta column in a later release uploads about 1 % of the first
        # one.
        with pq.ParquetWriter(
            path, schema, write_page_index=True, use_content_defined_chunking=True
        ) as writer:
            written = 0
            while table is not None and written < file_bytes:
                # One row group per table; the default limit would split it at a number of rows.
                writer.write_table(table, row_group_size=max(1, len(table)))
                # Bytes in memory, because compressed sizes also change with the betas.
                written, count = written + table.nbytes, count + len(table)
                table = next(groups, None)
    # The names contain the number of files, which is only known now.
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
    """Yield the same rows in tables of at least `size` bytes, except for the last table."""
    gathered: list[pa.Table] = []
    for table in tables:
        gathered.append(table)
        if sum(part.nbytes for part in gathered) >= size:
            yield pa.concat_tables(gathered).combine_chunks()
            gathered = []
    if gathered:
        yield pa.concat_tables(gathered).combine_chunks()


def read_rows(paths: Sequence[Path], columns: Sequence[str]) -> Iterator[list[dict[str, Any]]]:
    """Yield some columns of all rows in their order, in lists of rows, with bounded memory.

    All columns are decoded, so that damage in any of them is found.

    Raises:
        ValueError: A file is damaged, lacks a column, or stands for too much data.
    """
    for path in paths:
        try:
            for batch in read_batches(path, rows=_BATCH):
                missing = [name for name in columns if name not in batch.schema.names]
                if missing:
                    raise ValueError(f"it has no column {missing[0]}")
                yield batch.select(list(columns)).to_pylist()
        # OSError means a damaged page, OverflowError a date that Python cannot represent.
        except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
            raise ValueError(f"{path}: not a readable Parquet file: {one_line(error)}") from error
