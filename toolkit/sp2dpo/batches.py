"""Read Parquet files in batches whose decoded size is known before they are decoded.

A file of a megabyte can stand for gigabytes: a dictionary holds a long text once and each row
refers to it, a run holds a number once for millions of rows, and a page may be compressed many
times over. Texts are therefore read as dictionaries, counted, and decoded in parts.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sp2dpo.files import check_regular

BATCH_BYTES = 1 << 26
"""Maximum number of decoded bytes in a batch, unless a single row has more."""
ROW_BYTES = 1 << 28
"""Maximum number of decoded bytes in a row."""
_REFERENCE, _OBJECT = 8, 64
"""Bytes that a value and an object take at least once they are Python's."""
_FREE_BYTES = 1 << 28
"""Decoded bytes that every file may have; more only up to `_MOST_PER_BYTE` of the file's size."""
_MOST_PER_BYTE = 200
_FREE_PAGES = 1 << 29
"""Bytes of the decompressed pages of a row group; more only up to `_MOST_COMPRESSION` times."""
_MOST_COMPRESSION = 100
_FREE_VALUES = 1 << 26
"""Values of a row group; more only up to 8 per byte of its pages, as many as there are bits."""


class TooLarge(ValueError):
    """A Parquet file stands for more data than is read of a file of its size."""


def open_parquet(path: Path | str) -> pq.ParquetFile:
    """Open a Parquet file, by its literal name; its texts are read as dictionaries.

    Raises:
        pyarrow.ArrowException, OSError: It cannot be read.
        ValueError: Two columns have one name, or it is no regular file.
        TooLarge: A row group stands for more data than is read of a file of its size.
    """
    # Absolute, because a relative `file:x` would be an address.
    path = Path(path).absolute()
    check_regular(path)
    metadata = pq.read_metadata(path)
    for number in range(metadata.num_row_groups):
        _check_group(metadata.row_group(number), number)
    # All texts, because no number in the metadata shows how long a text of a dictionary is.
    texts = [
        metadata.schema.column(number).path
        for number in range(metadata.num_columns)
        if metadata.schema.column(number).physical_type == "BYTE_ARRAY"
    ]
    file = pq.ParquetFile(path, metadata=metadata, read_dictionary=texts)
    names = file.schema_arrow.names
    if len(set(names)) < len(names):  # readers would silently take one of them
        raise ValueError(f"two columns have one name among {', '.join(names)}")
    return file


def _check_group(group: Any, number: int) -> None:
    columns = [group.column(index) for index in range(group.num_columns)]
    values = sum(column.num_values for column in columns)
    pages = sum(column.total_uncompressed_size for column in columns)
    stored = sum(column.total_compressed_size for column in columns)
    if pages > max(_FREE_PAGES, _MOST_COMPRESSION * stored):
        raise TooLarge(
            f"row group {number} has {stored:,} bytes that decompress to {pages:,}: more than "
            f"{_MOST_COMPRESSION} times as many"
        )
    if values > max(_FREE_VALUES, 8 * pages):
        raise TooLarge(
            f"row group {number} has {values:,} values in {pages:,} bytes: more than 8 per byte"
        )


def read_batches(path: Path | str, *, rows: int = 1000) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a Parquet file in their order.

    In memory are at most one batch (64 MiB, or one row of up to 256 MiB), and the pages that it is
    decoded from (up to 512 MiB, or 100 times their size in the file).

    Args:
        path: The file.
        rows: Maximum number of rows in a batch.

    Raises:
        pyarrow.ArrowException, OSError: The file is damaged.
        ValueError: Two columns have one name.
        TooLarge: The file stands for more data than is read of a file of its size.
    """
    done, path = 0, Path(path)
    try:
        for batch in _read_counted(path, rows):
            yield batch
            done += batch.num_rows
    # Arrow cannot join nested texts of two dictionaries, such as before and after a full one.
    except pa.ArrowNotImplementedError:
        yield from _read_plain(path, rows, done)


def _read_plain(path: Path, rows: int, done: int) -> Iterator[pa.RecordBatch]:
    """Yield the rows after the first `done`, in batches that are small if texts may be long."""
    most, total = max(_FREE_BYTES, _MOST_PER_BYTE * path.stat().st_size), 0
    with pq.ParquetFile(path.absolute()) as file:
        groups = [file.metadata.row_group(n) for n in range(file.metadata.num_row_groups)]
        rows = max(1, min([rows, *(_FREE_BYTES // _row_bound(group) for group in groups)]))
        for batch in file.iter_batches(batch_size=rows):
            total += batch.nbytes
            if total > most:
                raise TooLarge(f"its rows decode to more than {most:,} bytes")
            rest = batch.slice(min(done, batch.num_rows))
            done -= batch.num_rows - rest.num_rows
            if rest.num_rows:
                yield rest


def _row_bound(group: Any) -> int:
    """Return the number of bytes that a row of a row group may take on average."""
    bound = 1
    for column in (group.column(index) for index in range(group.num_columns)):
        longest = column.total_uncompressed_size
        if column.has_dictionary_page and column.compression == "SNAPPY":
            pages = column.data_page_offset - column.dictionary_page_offset
            longest = min(longest, max(0, pages) * 24)  # Snappy's largest ratio, rounded up
        bound += longest * column.num_values // max(1, group.num_rows)
    return bound


def _read_counted(path: Path, rows: int) -> Iterator[pa.RecordBatch]:
    with open_parquet(path) as file:
        stored = file.metadata.schema.to_arrow_schema()
        most = max(_FREE_BYTES, _MOST_PER_BYTE * path.stat().st_size)
        total = 0
        for batch in file.iter_batches(batch_size=rows):
            for part, size in _split(batch):
                total += size
                if total > most:
                    raise TooLarge(
                        f"its rows decode to more than {most:,} bytes, {_MOST_PER_BYTE} times the "
                        "size of the file"
                    )
                fields = [stored.field(name) for name in part.schema.names]
                schema = pa.schema([each.with_type(_without_views(each.type)) for each in fields])
                # Plain texts in place of dictionaries.
                yield part.cast(schema.with_metadata(part.schema.metadata))


def _split(batch: pa.RecordBatch) -> Iterator[tuple[pa.RecordBatch, int]]:
    """Yield parts of a batch with their decoded sizes."""
    size = sum(map(_decoded_size, batch.columns))
    if size <= BATCH_BYTES or batch.num_rows <= 1:
        if size > ROW_BYTES:
            raise TooLarge(f"a row decodes to {size:,} bytes: at most {ROW_BYTES:,} are read")
        yield batch, size
        return
    half = batch.num_rows // 2
    yield from _split(batch.slice(0, half))
    yield from _split(batch.slice(half))


def _decoded_size(array: Any) -> int:
    """Return the number of bytes of an array once its dictionaries are decoded."""
    kind = array.type
    if pa.types.is_dictionary(kind):
        lengths = pc.call_function("binary_length", [array.dictionary])
        return _REFERENCE * len(array) + (_sum(lengths.take(array.indices)) or 0)
    if pa.types.is_struct(kind):
        return _OBJECT * len(array) + sum(map(_decoded_size, array.flatten()))
    if pa.types.is_map(kind):
        start, end = array.offsets[0].as_py(), array.offsets[-1].as_py()
        entries = (array.keys.slice(start, end - start), array.items.slice(start, end - start))
        return _REFERENCE * len(array) + sum(map(_decoded_size, entries))
    if kind.num_fields:  # lists of all kinds; `flatten` respects the offset of a slice
        return _REFERENCE * len(array) + _decoded_size(array.flatten())
    return max(_REFERENCE * len(array), array.nbytes)


def _sum(numbers: pa.Array) -> int | None:
    return pc.call_function("sum", [numbers]).as_py()


def _without_views(kind: pa.DataType) -> pa.DataType:
    """Return a type with texts and bytes in place of views, to which dictionaries have no cast."""
    if pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_binary_view(kind):
        return pa.binary()
    if pa.types.is_list(kind):
        return pa.list_(kind.value_field.with_type(_without_views(kind.value_type)))
    if pa.types.is_large_list(kind):
        return pa.large_list(kind.value_field.with_type(_without_views(kind.value_type)))
    if pa.types.is_struct(kind):
        fields = [kind.field(number) for number in range(kind.num_fields)]
        return pa.struct([each.with_type(_without_views(each.type)) for each in fields])
    return kind
