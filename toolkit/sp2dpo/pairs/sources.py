"""Read pairs from JSON Lines files, Parquet files and the Hub.

Every row of a source becomes either a `SourceRow` with its pair, or a `SetAside` with a reason; no
row is dropped silently.
"""

import base64
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date, time
from pathlib import Path
from typing import Any

from sp2dpo import hub
from sp2dpo.files import read_json_lines
from sp2dpo.pairs.formats import InvalidPair, parse_row
from sp2dpo.pairs.pair import Pair
from sp2dpo.text import one_line

FILE_ENDINGS = (".jsonl", ".jsonl.gz", ".parquet")
_HUB_ID = re.compile(
    r"(?P<name>\w[\w.-]*/\w[\w.-]*)(?::(?P<split>[\w.-]+))?(?:@(?P<revision>[\w./-]+))?"
)
_OWN_ID_COLUMNS = ("source_id", "pair_id", "id")
_PAIR_COLUMNS = ("prompt", "chosen", "rejected", "tools")


@dataclass(frozen=True, kw_only=True)
class SourceRow:
    """A row with a usable pair.

    Attributes:
        row: Number of the row in the source, from 1.
        pair: The pair.
        source_id: Id of the row in the source (column `source_id`, `pair_id` or `id`); None if
            there is none.
        columns: All other columns as JSON values, with dates in ISO 8601, decimals as text and
            bytes in base64; NaN stays NaN.
    """

    row: int
    pair: Pair
    source_id: str | None
    columns: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class SetAside:
    """A row without a usable pair, with the reason and its content as JSON."""

    row: int
    reason: str
    raw: str


@dataclass(frozen=True, kw_only=True)
class Source:
    """A file or a Hub data set at one revision.

    Attributes:
        name: File name, or `org/name:split`.
        revision: Commit of a Hub data set; None for a file.
        license: License in the card of a Hub data set at that commit; None if the card has none.
        path: Path of the file; None for a Hub data set.
    """

    name: str
    revision: str | None = None
    license: str | None = None
    path: Path | None = None

    def __str__(self) -> str:
        return f"{self.name}@{self.revision}" if self.revision else self.name


def open_source(text: str) -> Source:
    """Open the source with a name, which is a path, `org/name` or `org/name:split@revision`.

    A Hub revision (branch or tag) is resolved to its commit, so that the same rows can be read
    again. Without a split, the data set must have only one split, or one called `train`.

    Raises:
        ValueError: If the name is neither a supported file nor a Hub id, or the split does not
            exist.
        OSError: If the file or data set cannot be reached.
    """
    path = Path(text)
    # By its ending, a path to a missing file is not taken for the name of a data set on the Hub.
    if path.is_file() or text.endswith(FILE_ENDINGS):
        if not text.endswith(FILE_ENDINGS):
            raise ValueError(f"{text}: pairs are read from {', '.join(FILE_ENDINGS)} or a Hub id")
        if not path.is_file():
            raise FileNotFoundError(f"{text}: no such file")
        # File names need not be valid Unicode.
        name = path.name.encode("utf-8", "backslashreplace").decode()
        return Source(name=name, path=path)
    match = _HUB_ID.fullmatch(text)
    if path.exists() or not match:
        raise ValueError(
            f"{text}: neither a file ({', '.join(FILE_ENDINGS)}) "
            "nor a Hub id (org/name, org/name:split@revision)"
        )
    split, sha, license = hub.resolve(match["name"], match["split"], match["revision"])
    return Source(name=f"{match['name']}:{split}", revision=sha, license=license)


def read_rows(source: Source) -> Iterator[SourceRow | SetAside]:
    """Yield every row of a source in order, either with its pair or as set aside.

    Raises:
        ValueError: If a row cannot be parsed (broken JSON, a duplicate key) or the file is damaged;
            the message names the file and the row.
        OSError: If the data set cannot be reached.
    """
    for number, columns in enumerate(_raw_rows(source), start=1):
        try:
            row = _source_row(number, parse_row(columns), columns)
        except InvalidPair as error:
            # Parquet has values that JSON does not, such as dates; this text is only a record of
            # the row.
            raw = json.dumps(columns, default=str)
            reason = str(error).encode("utf-8", "backslashreplace").decode()
            yield SetAside(row=number, reason=reason, raw=raw)
        else:
            yield row


def _source_row(number: int, pair: Pair, columns: dict[str, Any]) -> SourceRow:
    own = next((name for name in _OWN_ID_COLUMNS if name in columns), None)
    source_id = None if own is None or columns[own] is None else str(columns[own])
    more = {name: columns[name] for name in columns if name not in (*_PAIR_COLUMNS, own)}
    try:
        values = _json_value(more)
        # The text is not used: encoding it tests whether the store can write both as UTF-8.
        json.dumps([source_id, values], ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise InvalidPair("a column holds half of a surrogate pair, not a character") from None
    except RecursionError:
        raise InvalidPair("nested too deeply") from None
    return SourceRow(row=number, pair=pair, source_id=source_id, columns=values)


def _json_value(value: Any) -> Any:
    """Return a column's value as JSON: dates in ISO 8601, decimals as text, bytes in base64."""
    if isinstance(value, dict):
        return {str(key): _json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json_value(item) for item in value]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, date | time):
        return value.isoformat()
    # As text and not as a number, because a float would round a decimal.
    return value if isinstance(value, str | int | float | None) else str(value)


def _raw_rows(source: Source) -> Iterator[dict[str, Any]]:
    if source.path is None:
        name, split = source.name.split(":", 1)
        return hub.read_hub_rows(name, split, source.revision)
    if source.path.suffix == ".parquet":
        return _parquet_rows(source.path)
    return (columns for _, columns in read_json_lines(source.path))


def _parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow as pa  # noqa: PLC0415 - a JSON source does not need it
    import pyarrow.parquet as pq  # noqa: PLC0415

    count = 0
    try:
        file = pq.ParquetFile(path.absolute())  # a relative `file:x` would be an address
        names = file.schema_arrow.names
        if len(set(names)) < len(names):  # `to_pylist` would keep one of them silently
            raise ValueError(f"two columns have one name among {', '.join(names)}")
        for batch in file.iter_batches(batch_size=1000):
            for row in batch.to_pylist():
                yield row
                count += 1
    # OSError means a damaged page, OverflowError a date that Python cannot represent.
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        raise ValueError(
            f"{path}: not a readable Parquet file after row {count}: {one_line(error)}"
        ) from error
