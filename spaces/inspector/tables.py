"""Read the Parquet files of a data set, which nobody has checked, within limits.

A small file can decode to any size: a dictionary, a run-length encoding or a page can stand for
gigabytes. The rows are therefore read in batches whose size follows from the rows before, they are
counted as they are decoded, and every batch is validated before it is used.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute
import pyarrow.ipc
import pyarrow.parquet as pq

from dataset import BATCH
from errors import UnusableDataset

pc: Any = pyarrow.compute  # type checkers do not see its functions, which exist at run time only

BATCH_BYTES = 32_000_000
"""Size of a batch of rows in memory, as far as the rows before it tell."""
PROBE = 64
"""Number of rows of a row group that are read first, to learn their size."""
MAX_FOOTER = 32_000_000
"""Largest size of a file's description of itself; a gigabyte with 1,000 columns has a third."""
MAX_GROUPS, MAX_COLUMNS, MAX_LEAVES, MAX_NESTING = 20_000, 1000, 5000, 24
_MAX_LIST = 200_000
"""Largest number of items in a list of that description."""
_MAX_COLUMN_NAME = 1000
STRINGS, WHOLE, NUMBERS = "text", "whole numbers", "numbers"
FLAG, MESSAGES = "yes or no", "messages with role and content"


@dataclass(kw_only=True)
class Meter:
    """Counts what is read of a data set.

    Attributes:
        most_rows: Largest number of rows; None for any number.
        most_bytes: Largest size in memory of all rows together; None for any size.
        rows_advice, bytes_advice: Ends of the messages that refuse more rows and more bytes.
        rows, bytes: The sums so far.
    """

    most_rows: int | None = None
    most_bytes: int | None = None
    rows_advice: str = ""
    bytes_advice: str = ""
    rows: int = field(default=0, init=False)
    bytes: int = field(default=0, init=False)

    def count(self, batch: pa.RecordBatch) -> None:
        """Count a batch.

        Raises:
            UnusableDataset: There are too many rows or bytes.
        """
        self.rows += len(batch)
        self.bytes += batch.nbytes
        self.check_rows(0)
        if self.most_bytes is not None and self.bytes > self.most_bytes:
            raise UnusableDataset(
                f"more than {self.most_bytes / 1e6:,.0f} MB unpacked, which is the limit"
                f"{self.bytes_advice}"
            )

    def check_rows(self, more: int) -> None:
        """Raise UnusableDataset if there are too many rows together with `more` rows."""
        if self.most_rows is not None and self.rows + more > self.most_rows:
            raise UnusableDataset(
                f"{self.rows + more:,} rows, and the limit is {self.most_rows:,}{self.rows_advice}"
            )


def read_batches(
    paths: Sequence[Path],
    meter: Meter,
    *,
    needed: Mapping[str, str],
    other: Mapping[str, str] | None = None,
    default: str | None = None,
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of some files in order, validated, in batches of up to `BATCH` rows.

    Args:
        paths: The files; all have the same columns.
        meter: Counts the rows.
        needed: Kind of each column that must be there.
        other: Kind of each column that may be missing.
        default: Kind of all other columns; None for any.

    Raises:
        UnusableDataset: A file is damaged or has other columns, or there are too many rows.
    """
    schema: pa.Schema | None = None
    for path in paths:
        name = f"{path.parent.name}/{path.name}"
        try:
            with _open_file(path) as file:
                if schema is None:
                    _check_schema(file.schema_arrow, needed, other or {}, default)
                    schema = file.schema_arrow.remove_metadata()
                elif not schema.equals(file.schema_arrow.remove_metadata()):
                    raise UnusableDataset("its columns differ from those of the file before it")
                # Refused before they are read, which could take minutes.
                meter.check_rows(file.metadata.num_rows)
                for batch in _merge(_read_groups(file, meter)):
                    _validate(batch)
                    yield batch.replace_schema_metadata(None)
        except UnusableDataset as error:
            raise UnusableDataset(f"{name}: {error}") from None
        except MemoryError:  # Arrow's is an ArrowException as well
            raise
        # What Arrow and its decoders raise about content that is not valid.
        except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UnusableDataset(f"{name} is damaged: {reason}") from error


def _open_file(path: Path) -> pq.ParquetFile:
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - 8))
        end = file.read(8)
    if end[4:] != b"PAR1":
        raise UnusableDataset("it is not a Parquet file")
    if int.from_bytes(end[:4], "little") > min(size, MAX_FOOTER):
        raise UnusableDataset(
            f"its footer is larger than {MAX_FOOTER / 1e6:,.0f} MB: write fewer row groups"
        )
    file = pq.ParquetFile(
        path.absolute(),
        memory_map=True,
        pre_buffer=False,
        thrift_string_size_limit=MAX_FOOTER,
        thrift_container_size_limit=_MAX_LIST,
    )
    if file.metadata.num_row_groups > MAX_GROUPS:
        raise UnusableDataset(
            f"it has {file.metadata.num_row_groups:,} row groups, and at most {MAX_GROUPS:,} are "
            "read: write larger ones"
        )
    return file


def _read_groups(file: pq.ParquetFile, meter: Meter) -> Iterator[pa.RecordBatch]:
    """Yield the rows in batches whose size depends on the size of the rows."""
    for group in range(file.metadata.num_row_groups):
        rows = BATCH
        if file.metadata.row_group(group).num_rows > PROBE:
            first = next(file.iter_batches(PROBE, row_groups=[group], use_threads=False), None)
            row_bytes = first.nbytes / max(1, len(first)) if first is not None else 0
            rows = min(BATCH, max(1, int(BATCH_BYTES / max(1, row_bytes))))
            del first
        for batch in file.iter_batches(rows, row_groups=[group]):
            meter.count(batch)
            yield batch


def _merge(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Join small batches, because each costs time whenever the rows are searched."""
    parts: list[pa.RecordBatch] = []
    rows = size = 0
    for batch in batches:
        parts.append(batch)
        rows += len(batch)
        size += batch.nbytes
        if rows >= BATCH or size >= BATCH_BYTES:
            yield from _join(parts)
            parts, rows, size = [], 0, 0
    yield from _join(parts)


def _join(parts: Sequence[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    if len(parts) == 1:
        yield parts[0]
    elif parts:
        yield from pa.Table.from_batches(parts).combine_chunks().to_batches()


def _validate(batch: pa.RecordBatch) -> None:
    """Refuse a batch with values that Python or the page cannot read."""
    # Offsets, lengths and UTF-8, which Arrow trusts when it reads a file.
    batch.validate(full=True)
    for field_, column in zip(batch.schema, batch.columns, strict=True):
        if _any_type(field_.type, pa.types.is_temporal):
            column.to_pylist()  # raises ValueError or OverflowError for a date out of range


def _check_schema(
    schema: pa.Schema, needed: Mapping[str, str], other: Mapping[str, str], default: str | None
) -> None:
    names = schema.names
    if len(names) > MAX_COLUMNS:
        raise UnusableDataset(
            f"it has {len(names):,} columns, and at most {MAX_COLUMNS:,} are read"
        )
    if len(set(names)) < len(names):
        raise UnusableDataset("it has two columns of one name")
    if missing := [name for name in needed if name not in names]:
        raise UnusableDataset(f"it has no column {missing[0]}")
    leaves = 0
    for field_ in schema:
        if not field_.name or len(field_.name) > _MAX_COLUMN_NAME:
            raise UnusableDataset(
                f"the name of a column is empty or longer than {_MAX_COLUMN_NAME} characters"
            )
        kind = needed.get(field_.name) or other.get(field_.name) or default
        # A column without any value may have no type.
        if kind is not None and not _KINDS[kind](field_.type):
            is_empty = pa.types.is_null(field_.type) and field_.name not in needed
            if not is_empty:
                raise UnusableDataset(
                    f"the column {field_.name} must be {kind}, not {str(field_.type)[:100]}"
                )
        leaves += _count_leaves(field_.name, field_.type, 0)
    if leaves > MAX_LEAVES:
        raise UnusableDataset(f"its columns have more than {MAX_LEAVES:,} fields")


def _count_leaves(name: str, kind: pa.DataType, depth: int) -> int:
    """Return the number of simple types within a type.

    Raises:
        UnusableDataset: It is nested too deeply, or of a kind that the toolkit does not write.
    """
    if depth > MAX_NESTING:
        raise UnusableDataset(f"the column {name[:100]} has more than {MAX_NESTING} levels")
    if isinstance(kind, pa.BaseExtensionType):
        return _count_leaves(name, kind.storage_type, depth + 1)
    if not _is_plain(kind):
        raise UnusableDataset(
            f"the column {name[:100]} has the type {str(kind)[:100]}, which `sp2dpo build` does "
            "not write"
        )
    if pa.types.is_nested(kind):
        children = [kind.field(number).type for number in range(kind.num_fields)]
        return sum(_count_leaves(name, child, depth + 1) for child in children)
    return 1


def _is_plain(kind: pa.DataType) -> bool:
    tests = (
        "is_null", "is_boolean", "is_integer", "is_floating", "is_decimal", "is_string",
        "is_large_string", "is_binary", "is_large_binary", "is_fixed_size_binary", "is_temporal",
        "is_list", "is_large_list", "is_fixed_size_list", "is_struct",
    )  # fmt: skip
    return any(getattr(pa.types, test)(kind) for test in tests)


def _any_type(kind: pa.DataType, test: Callable[[pa.DataType], bool]) -> bool:
    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    if pa.types.is_nested(kind):
        return any(_any_type(kind.field(n).type, test) for n in range(kind.num_fields))
    return test(kind)


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _is_number(kind: pa.DataType) -> bool:
    # Arrow has few functions for half precision.
    return pa.types.is_integer(kind) or pa.types.is_float32(kind) or pa.types.is_float64(kind)


def _is_messages(kind: pa.DataType) -> bool:
    if not pa.types.is_list(kind) or not pa.types.is_struct(kind.value_type):
        return False
    message = kind.value_type
    places = [message.get_field_index(name) for name in ("role", "content")]
    # `get_field_index` returns -1 also for a name that occurs twice.
    return all(place >= 0 and _is_text(message.field(place).type) for place in places)


_KINDS: dict[str, Callable[[pa.DataType], bool]] = {
    STRINGS: _is_text,
    WHOLE: pa.types.is_integer,
    NUMBERS: _is_number,
    FLAG: pa.types.is_boolean,
    MESSAGES: _is_messages,
}


def map_batches(batches: Iterator[pa.RecordBatch], out: Path) -> pa.Table:
    """Write batches to an uncompressed file, and return it memory-mapped."""
    first = next(batches, None)
    if first is None:
        raise UnusableDataset("the data set has no rows")
    # Arrow can map an uncompressed file only; it would decompress another one into memory.
    with pa.OSFile(str(out), "wb") as sink, pa.ipc.new_file(sink, first.schema) as writer:
        writer.write_batch(first)
        for batch in batches:
            writer.write_batch(batch)
    return open_mapped(out)


def open_mapped(path: Path) -> pa.Table:
    """Return a file of `map_batches`, memory-mapped."""
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
