"""Read pairs from JSON Lines files, Parquet files and the Hub.

Every row of a source becomes either a `SourceRow` with its pair, or a `SetAside` with a reason; no
row is dropped silently. A row with several scored responses becomes one of these for each
comparison of two.
"""

import base64
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import date, time
from pathlib import Path
from typing import Any

from sp2dpo import hub
from sp2dpo.files import read_json_lines
from sp2dpo.pairs import media
from sp2dpo.pairs.formats import InvalidPair, parse_row
from sp2dpo.pairs.pair import Pair
from sp2dpo.pairs.reading import PairsFrom, Reading, check_present, view_row
from sp2dpo.pairs.shapes import Comparison, compare
from sp2dpo.text import one_line

FILE_ENDINGS = (".jsonl", ".jsonl.gz", ".parquet")
_OWN_ID_COLUMNS = ("source_id", "pair_id", "id")


@dataclass(frozen=True, kw_only=True)
class SourceRow:
    """A row with a usable pair.

    Attributes:
        row: Number of the row in the source, from 1; in a source whose rows have several
            responses, the number of the comparison.
        pair: The pair.
        source_id: Id of the row in the source (column `source_id`, `pair_id` or `id`); None if
            there is none. For one of several pairs, `:` and the numbers of its two responses
            follow, such as `id:0-2`.
        columns: All other columns as JSON values, with dates in ISO 8601, decimals as text and
            bytes in base64; NaN stays NaN. Of one of several pairs, `comparison` names the row and
            the two responses.
        shape: Name and columns of the shape that the row was recognised by; empty for TRL's own.
        implicit: Whether the prompt is the beginning that the responses share.
    """

    row: int
    pair: Pair
    source_id: str | None
    columns: dict[str, Any] = field(default_factory=dict)
    shape: str = ""
    implicit: bool = False


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
        name: File name, `org/name:split`, or `org/name/config:split` for a config other than the
            default or only one.
        revision: Commit of a Hub data set; None for a file.
        license: License in the card of a Hub data set at that commit; None if the card has none.
        path: Path of the file; None for a Hub data set.
        reading: How the rows are read.
    """

    name: str
    revision: str | None = None
    license: str | None = None
    path: Path | None = None
    reading: Reading = field(default_factory=Reading)

    def __str__(self) -> str:
        return f"{self.name}@{self.revision}" if self.revision else self.name


def open_source(
    text: str,
    *,
    columns: Mapping[str, str] | None = None,
    pairs_from: PairsFrom | None = None,
    images: bool = False,
) -> Source:
    """Open the source with a name, which is a path, `org/name` or `org/name/config:split@revision`.

    A Hub revision (branch or tag) is resolved to its commit, so that the same rows can be read
    again. Without a config, the data set must have only one, or a default one; without a split,
    only one split, or one called `train`.

    Args:
        text: The name.
        columns: Columns of the source by role, such as `{"prompt": "question"}`; see `Reading`.
        pairs_from: Pairs of a row with several scored responses: `best-rest` (the default) or
            `all`.
        images: Whether images are read; if not, rows with images are set aside.

    Raises:
        ValueError: If the name is neither a supported file nor a Hub id, the split does not exist,
            or a role in `columns` is not known.
        OSError: If the file or data set cannot be reached.
    """
    reading = Reading(columns=columns or {}, pairs_from=pairs_from, images=images)
    path = Path(text)
    # By its ending, a path to a missing file is not taken for the name of a data set on the Hub.
    if path.is_file() or text.endswith(FILE_ENDINGS):
        if not text.endswith(FILE_ENDINGS):
            raise ValueError(f"{text}: pairs are read from {', '.join(FILE_ENDINGS)} or a Hub id")
        if not path.is_file():
            raise FileNotFoundError(f"{text}: no such file")
        # File names need not be valid Unicode.
        name = path.name.encode("utf-8", "backslashreplace").decode()
        return Source(name=name, path=path, reading=reading)
    # The address of a data set, and how `datasets` URIs begin.
    text = text.removeprefix("https://huggingface.co/") if not path.exists() else text
    text = text.removeprefix("datasets/").rstrip("/") if text.count("/") > 1 else text
    hub_name = hub.HubName.parse(text)
    if path.exists() or not hub_name:
        raise ValueError(
            f"{text}: neither a file ({', '.join(FILE_ENDINGS)}) nor a Hub id ({hub.NAME_FORMS})"
        )
    hub_name, license = hub.resolve(hub_name)
    return Source(name=hub_name.rows, revision=hub_name.revision, license=license, reading=reading)


def choose_source(
    pairs: Source | str | Path,
    *,
    columns: Mapping[str, str] | None = None,
    pairs_from: PairsFrom | None = None,
    images: bool = False,
) -> Source:
    """Return an open source, or open one by its name.

    Args:
        pairs: A source, or its name, see `open_source`.
        columns: Columns by role; for an open source, in place of its own.
        pairs_from: Pairs of a row with several scored responses; for an open source, likewise.
        images: Whether images are read.

    Raises:
        ValueError: As `open_source` does.
        OSError: As `open_source` does.
    """
    if isinstance(pairs, Source):
        reading = Reading(
            columns=columns or pairs.reading.columns,
            pairs_from=pairs_from or pairs.reading.pairs_from,
            images=images or pairs.reading.images,
        )
        return replace(pairs, reading=reading)
    return open_source(str(pairs), columns=columns, pairs_from=pairs_from, images=images)


def read_rows(source: Source) -> Iterator[SourceRow | SetAside]:
    """Yield every row of a source in order, either with its pair or as set aside.

    Raises:
        ValueError: If a row cannot be parsed (broken JSON, a duplicate key), the file is damaged,
            or a column that was named does not exist; the message names the file and the row.
        OSError: If the data set cannot be reached.
    """
    number, seen = 0, dict[str, None]()
    for row_number, columns in enumerate(_raw_rows(source), start=1):
        if source.reading.columns:
            seen |= dict.fromkeys(columns)
        for row in _read_row(columns, source.reading, row_number):
            number += 1
            yield row(number)
    # After the rows, because in JSON Lines any row may be the first with a column.
    if seen:
        check_present(source.reading, list(seen), str(source))


def _read_row(
    columns: dict[str, Any], reading: Reading, row_number: int
) -> Iterator[Callable[[int], SourceRow | SetAside]]:
    """Yield the pairs and rejects of a row, each as a function of its number."""
    try:
        view, origins = view_row(columns, reading)
        for comparison in compare(view, reading):
            yield _comparison(columns, reading, row_number, comparison, origins)
    except InvalidPair as error:
        yield _set_aside(columns, str(error))


def _comparison(
    columns: dict[str, Any],
    reading: Reading,
    row_number: int,
    comparison: Comparison,
    origins: Mapping[str, list[str]],
) -> Callable[[int], SourceRow | SetAside]:
    facts = {"row": row_number, **comparison.facts}
    try:
        if comparison.reason is not None:
            raise InvalidPair(comparison.reason)
        content = comparison.values
        if reading.columns.get("images") == "":
            content = media.without_media(content)
        pair = parse_row(
            content,
            images=reading.images,
            implicit=reading.columns.get("prompt") == "",
        )
        used = {*comparison.used, *(media.IMAGES if reading.images else ())}
        gone = {name for role in used for name in origins.get(role, [role])}
        source_id, values = _carry(columns, gone, origins.get("source_id"))
        if comparison.places is not None:
            values[_free_name("comparison", values)] = _json_value(facts)
            if source_id is not None:
                source_id = f"{source_id}:{comparison.places[0]}-{comparison.places[1]}"
    except InvalidPair as error:
        if comparison.places is None:
            return _set_aside(columns, str(error))
        return _set_aside({"comparison": facts, **comparison.values}, str(error))
    return lambda number: SourceRow(
        row=number,
        pair=pair,
        source_id=source_id,
        columns=values,
        shape=comparison.shape,
        implicit=not comparison.values.get("prompt"),
    )


def _set_aside(columns: Mapping[str, Any], reason: str) -> Callable[[int], SetAside]:
    has_media = (
        "image" in reason
        or "are not sent" in reason
        or any(columns.get(name) for name in media.COLUMNS)
    )
    # Parquet has values that JSON does not, such as dates; this text is only a record of the row.
    # The bytes of an image would be most of the store.
    raw = json.dumps(columns, default=_describe if has_media else str)
    reason = reason.encode("utf-8", "backslashreplace").decode()
    return lambda number: SetAside(row=number, reason=reason, raw=raw)


def _describe(value: Any) -> str:
    if not isinstance(value, bytes):
        return str(value)
    return f"{len(value)} bytes, SHA-256 {hashlib.sha256(value).hexdigest()}"


def _carry(
    columns: dict[str, Any], gone: set[str], id_columns: list[str] | None
) -> tuple[str | None, dict[str, Any]]:
    """Return the row's own id and its columns that are not in the pair."""
    names = _OWN_ID_COLUMNS if id_columns is None else id_columns
    own = next((name for name in names if name in columns), None)
    source_id = None if own is None or columns[own] is None else str(columns[own])
    more = {name: columns[name] for name in columns if name not in (*gone, own)}
    try:
        values = _json_value(more)
        # The text is not used: encoding it tests whether the store can write both as UTF-8.
        json.dumps([source_id, values], ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise InvalidPair("a column holds half of a surrogate pair, not a character") from None
    except RecursionError:
        raise InvalidPair("nested too deeply") from None
    return source_id, values


def _free_name(name: str, taken: Mapping[str, Any]) -> str:
    while name in taken:
        name = f"{name}_"
    return name


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
        name = hub.HubName.parse(source.name)
        if name is None:
            raise ValueError(f"{source.name}: not a source of rows")
        return hub.read_hub_rows(replace(name, revision=source.revision))
    if source.path.suffix == ".parquet":
        return _parquet_rows(source.path)
    return (columns for _, columns in read_json_lines(source.path))


def _parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow as pa  # noqa: PLC0415 - a JSON source does not need it

    from sp2dpo.batches import read_batches  # noqa: PLC0415

    count = 0
    try:
        for batch in read_batches(path):
            for row in batch.to_pylist():
                yield row
                count += 1
    # OSError means a damaged page, OverflowError a date that Python cannot represent.
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        raise ValueError(
            f"{path}: not a readable Parquet file after row {count}: {one_line(error)}"
        ) from error
