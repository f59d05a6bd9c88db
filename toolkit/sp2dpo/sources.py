"""Where pairs come from: JSON Lines, Parquet, the Hub.

Every row of a source becomes either a `SourceRow` with its pair or a `SetAside` with the reason, so
the two counts add up to all rows.
"""

import gzip
import json
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sp2dpo.formats import Unreadable, pair_of
from sp2dpo.pairs import Pair

FILE_ENDINGS = (".jsonl", ".jsonl.gz", ".parquet")
_HUB_ID = re.compile(
    r"(?P<name>\w[\w.-]*/\w[\w.-]*)(?::(?P<split>[\w.-]+))?(?:@(?P<revision>[\w./-]+))?"
)
_OWN_ID_COLUMNS = ("source_id", "pair_id", "id")
_PAIR_COLUMNS = ("prompt", "chosen", "rejected", "tools")


@dataclass(frozen=True, kw_only=True)
class SourceRow:
    """A row that holds a pair.

    Attributes:
        row: its number in the source, from 1.
        pair: what it says.
        source_id: the source's own name for it (its `source_id`, `pair_id` or `id`), if any.
        columns: all its other columns, as read (dates, bytes and NaN included).
    """

    row: int
    pair: Pair
    source_id: str | None
    columns: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class SetAside:
    """A row that holds no pair, with the reason and all that it says."""

    row: int
    reason: str
    raw: str


@dataclass(frozen=True, kw_only=True)
class Source:
    """A file or a Hub data set at one revision.

    Attributes:
        name: the file's name, or `org/name:split`.
        revision: the commit of a Hub data set; None for a file.
        path: the file; None for a Hub data set.
    """

    name: str
    revision: str | None = None
    path: Path | None = None

    def __str__(self) -> str:
        return f"{self.name}@{self.revision}" if self.revision else self.name


def find(text: str) -> Source:
    """The source that a person names: a path, `org/name` or `org/name:split@revision`.

    A Hub revision (a branch or a tag) is resolved to its commit, so that what is recorded can be
    read again. Without a split the data set must have one only, or one called `train`.

    Raises:
        ValueError: neither a file we read nor a Hub id, or the split is not there.
        OSError: the file or the data set cannot be reached.
    """
    path = Path(text)
    if path.is_file() or text.endswith(FILE_ENDINGS):
        if not text.endswith(FILE_ENDINGS):
            raise ValueError(f"{text}: pairs are read from {', '.join(FILE_ENDINGS)} or a Hub id")
        if not path.is_file():
            raise FileNotFoundError(f"{text}: no such file")
        return Source(name=path.name, path=path)
    named = _HUB_ID.fullmatch(text)
    if path.exists() or not named:
        raise ValueError(
            f"{text}: neither a file ({', '.join(FILE_ENDINGS)}) "
            "nor a Hub id (org/name, org/name:split@revision)"
        )
    return _find_on_hub(named["name"], named["split"], named["revision"])


def _find_on_hub(name: str, split: str | None, revision: str | None) -> Source:
    import datasets  # noqa: PLC0415 - slow to import, and only Hub sources need it
    import huggingface_hub  # noqa: PLC0415

    with _hub_errors(f"{name}@{revision}" if revision else name):
        sha = huggingface_hub.HfApi().dataset_info(name, revision=revision).sha
        splits = datasets.get_dataset_split_names(name, revision=sha)
    if split is None:
        split = splits[0] if len(splits) == 1 else "train"
    if split not in splits:
        raise ValueError(f"{name} has the splits {', '.join(splits)}: name one as {name}:SPLIT")
    return Source(name=f"{name}:{split}", revision=sha)


@contextmanager
def _hub_errors(what: str) -> Iterator[None]:
    """Makes one line for people of whatever the Hub's clients raise."""
    from datasets.exceptions import DatasetsError  # noqa: PLC0415
    from huggingface_hub import errors  # noqa: PLC0415

    try:
        yield
    except errors.GatedRepoError as error:
        raise OSError(f"{what}: the Hub gives it only to those who asked for access") from error
    except errors.RepositoryNotFoundError as error:
        raise OSError(f"{what}: the Hub has no such data set, or none that you may read") from error
    except errors.RevisionNotFoundError as error:
        raise OSError(f"{what}: the data set has no such revision") from error
    except ValueError as error:
        raise ValueError(f"{what}: {_one_line(error)}") from error
    # HTTPError also stands for a Hub that cannot be reached; it is no OSError.
    except (errors.HTTPError, DatasetsError, OSError) as error:
        said = ": ".join(_one_line(one) for one in (error, error.__cause__) if one)
        raise OSError(f"{what}: the Hub's client says: {said}") from error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def read(source: Source) -> Iterator[SourceRow | SetAside]:
    """All rows of a source in their order, each as a pair or set aside.

    Raises:
        ValueError: a row cannot be parsed (broken JSON, a key that stands twice) or the file is
            damaged; the message names the file and the row.
        OSError: the data set cannot be reached.
    """
    for number, columns in enumerate(_raw_rows(source), start=1):
        try:
            row = _source_row(number, pair_of(columns), columns)
        except Unreadable as error:
            raw = json.dumps(columns, default=str)
            yield SetAside(row=number, reason=str(error), raw=raw)
        else:
            yield row


def _source_row(number: int, pair: Pair, columns: dict[str, Any]) -> SourceRow:
    own = next((name for name in _OWN_ID_COLUMNS if columns.get(name) is not None), None)
    source_id = None if own is None else str(columns[own])
    try:
        (source_id or "").encode()
    except UnicodeEncodeError:
        raise Unreadable(f"{own} holds half of a surrogate pair, not a character") from None
    left = {k: v for k, v in columns.items() if k not in _PAIR_COLUMNS and k != own}
    return SourceRow(row=number, pair=pair, source_id=source_id, columns=left)


def _raw_rows(source: Source) -> Iterator[dict[str, Any]]:
    if source.path is None:
        return _hub_rows(source)
    if source.path.suffix == ".parquet":
        return _parquet_rows(source.path)
    return _json_rows(source.path)


def _json_rows(path: Path) -> Iterator[dict[str, Any]]:
    opened = gzip.open if path.suffix == ".gz" else open
    done = 0
    with opened(path, "rb") as lines:
        try:
            for line in lines:
                if line.isspace():
                    continue  # an empty line holds nothing that could get lost
                yield _json_row(line)
                done += 1
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise ValueError(f"{path}: damaged after row {done}: {error}") from error
        except ValueError as error:
            raise ValueError(f"{path}: row {done + 1} {error}") from error


def _json_row(line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line.decode(), object_pairs_hook=_object_without_repeats)
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON: {error.msg} at character {error.pos + 1}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8 at byte {error.start + 1}") from error
    except RecursionError as error:
        raise ValueError("is nested too deeply") from error
    if not isinstance(row, dict):
        raise ValueError(f"is not an object but a {type(row).__name__}")
    return row


def _object_without_repeats(items: list[tuple[str, Any]]) -> dict[str, Any]:
    said = dict(items)
    if len(said) < len(items):
        names = [name for name, _ in items]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"has the key {twice!r} twice")
    return said


def _parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow as pa  # noqa: PLC0415 - a JSON source does without it
    import pyarrow.parquet as pq  # noqa: PLC0415

    done = 0
    try:
        file = pq.ParquetFile(path)
        names = file.schema_arrow.names
        if len(set(names)) < len(names):
            raise ValueError(f"two columns have one name among {', '.join(names)}")
        for batch in file.iter_batches(batch_size=1000):
            for row in batch.to_pylist():
                yield row
                done += 1
    except (pa.ArrowException, OSError, ValueError) as error:  # OSError: a damaged page
        raise ValueError(
            f"{path}: not a Parquet file we can read, after row {done}: {_one_line(error)}"
        ) from error


def _hub_rows(source: Source) -> Iterator[dict[str, Any]]:
    import datasets  # noqa: PLC0415

    name, split = source.name.split(":", 1)
    with _hub_errors(str(source)):
        rows = datasets.load_dataset(name, split=split, revision=source.revision)
    yield from rows  # type: ignore[misc]
