"""The functions that the page, HTTP clients and agents may call.

All of them are public. Each checks its arguments, and returns an object with `error` if it refuses
them.
"""

import base64
import hashlib
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import wraps
from itertools import chain
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from gradio.utils import get_upload_folder

from dataset import Dataset, UnusableDataset
from library import Library, own_data_set
from query import LONGEST, BadRequest, parse_query

HERE = Path(__file__).parent
# All of these functions are public endpoints, so whatever they take and return has a bound.
MAX_ROWS, MAX_TEXTS, MAX_PAIRS = 100, 10, 100
MAX_EXPORTED, MAX_FILES = 100_000, 8
SNIPPET = 240
"""Number of characters of a text in a table."""

LIBRARY = Library(own_data_set(), HERE / "demo")
EXPORT_LOCK = Lock()


def check_text(request: dict[str, Any], key: str, longest: int = LONGEST) -> str:
    """Return a text of a request; empty if the key is missing.

    Raises:
        BadRequest: The value is not a text, or is too long.
    """
    value = request.get(key) or ""
    if not isinstance(value, str) or len(value) > longest:
        raise BadRequest(f"{key}: takes a text of at most {longest} characters")
    return value


def check_integer(request: dict[str, Any], key: str, largest: int) -> int:
    """Return an integer of a request, from 0 to `largest`.

    Raises:
        BadRequest: The value is not such a number.
    """
    value = request.get(key)
    # True and False are integers in Python.
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= largest:
        raise BadRequest(f"{key}: takes a whole number from 0 to {largest}")
    return value


def endpoint(function: Callable[[Dataset, dict[str, Any]], Any]) -> Callable[[Any], Any]:
    """Make a function callable by the page: open the data set, and return errors as JSON."""

    @wraps(function)
    def respond(request: Any) -> Any:
        try:
            if not isinstance(request, dict):
                raise BadRequest("a request must be an object")
            return function(LIBRARY.get(check_text(request, "data")), request)
        except (BadRequest, UnusableDataset) as error:
            return {"error": str(error)}

    del respond.__wrapped__  # Gradio would read the signature of the function inside
    return respond


@endpoint
def start(dataset: Dataset, request: dict[str, Any]) -> Any:
    """Return all fields of all pairs."""
    # The page may be inside a frame of the Hub; its links then need the name of the Space.
    return dataset.packed | {"space": os.environ.get("SPACE_ID", "")}


@endpoint
def scores(dataset: Dataset, request: dict[str, Any]) -> Any:
    """Return the scores of every kept reply, without texts."""
    return dataset.packed_scores


@endpoint
def rows(dataset: Dataset, request: dict[str, Any]) -> Any:
    """Return the beginnings of the texts of some pairs."""
    places = request.get("places")
    if not isinstance(places, list) or len(places) > MAX_ROWS:
        raise BadRequest(f"places: takes a list of at most {MAX_ROWS}")
    last = len(dataset.ids) - 1
    checked = [check_integer({"place": place}, "place", last) for place in places]
    return [
        {"id": dataset.ids[place]}
        | {name: _snippet(messages) for name, messages in dataset.messages(place).items()}
        for place in checked
    ]


def _snippet(messages: Iterable[dict[str, Any]]) -> str:
    # White space is collapsed in the beginning of a text only: responses can be very long.
    last = [message["content"] or "" for message in messages][-1:]
    return " ".join("".join(last)[: 4 * SNIPPET].split())[:SNIPPET]


@endpoint
def pair(dataset: Dataset, request: dict[str, Any]) -> Any:
    """Return one pair with all replies about it."""
    place = check_integer(request, "place", len(dataset.ids) - 1)
    return _to_json({"row": dataset.row(place), "replies": dataset.pair_replies(place)})


def _to_json(value: Any) -> Any:
    """Return a value with JSON types only: NaN and infinity become null, other types text."""
    if isinstance(value, dict):
        return {key: _to_json(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_to_json(item) for item in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value if value is None or isinstance(value, (str, int, float)) else str(value)


def _format_json(value: Any) -> str:
    return json.dumps(_to_json(value), ensure_ascii=False, allow_nan=False)


@endpoint
def find(dataset: Dataset, request: dict[str, Any]) -> Any:
    """Return the position of the pair with an id."""
    return {"place": dataset.find_pair(check_text(request, "id", 64))}


@endpoint
def search(dataset: Dataset, request: dict[str, Any]) -> Any:
    """Return which pairs contain some texts, one bit for each pair."""
    wanted = request.get("wanted")
    if not isinstance(wanted, list) or len(wanted) > MAX_TEXTS:
        raise BadRequest(f"a query takes at most {MAX_TEXTS} texts to search for")
    results = []
    for item in wanted:
        if not isinstance(item, list) or len(item) != 2 or item[0] not in ("text", "id"):
            raise BadRequest("wanted: takes pairs of `text` or `id` and a text")
        text = check_text({"text": item[1]}, "text")
        flags = dataset.search(text) if item[0] == "text" else dataset.match_ids(text)
        results.append(base64.b64encode(zlib.compress(np.packbits(flags).tobytes())).decode())
    return results


@endpoint
def betas(dataset: Dataset, request: dict[str, Any]) -> Any:
    """Return betas that the page has computed, as a Parquet file."""
    count = len(dataset.ids)
    # A double takes 8 bytes, which are 10.7 characters of base64.
    text = check_text(request, "values", 11 * count + 100)
    try:
        values = np.frombuffer(base64.b64decode(text, validate=True), "<f8")
    except ValueError as error:
        raise BadRequest("values: takes base64 of doubles") from error
    if len(values) != count:
        raise BadRequest(f"values: {len(values)} for {count} pairs")
    # A pair without a beta is NaN in the page, and null in this package's files.
    table = pa.table({"pair_id": dataset.ids, "beta": pa.array(values, mask=np.isnan(values))})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return {"file": base64.b64encode(sink.getvalue()).decode()}


@endpoint
def export(dataset: Dataset, request: dict[str, Any]) -> Any:
    """Write the pairs that a query selects to a file, and return its path."""
    kind = request.get("kind")
    if kind not in ("parquet", "jsonl"):
        raise BadRequest("kind: takes parquet or jsonl")
    query = check_text(request, "query")
    places = dataset.select(parse_query(query))
    if len(places) > MAX_EXPORTED:
        raise BadRequest(
            f"{len(places):,} pairs are selected, and at most {MAX_EXPORTED:,} can be exported: "
            "select fewer, or load the data set itself"
        )
    # With the manifest, because the same name may stand for a newer revision later, or for another
    # folder; its hash of the card covers all data files.
    key = json.dumps([dataset.name, dataset.commit, dataset.facts, query, kind], default=str)
    # Gradio serves files of its own cache folder only.
    folder = Path(get_upload_folder()) / "inspector-exports"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"pairs-{hashlib.sha256(key.encode()).hexdigest()[:16]}.{kind}"
    with EXPORT_LOCK:  # two visitors may ask for the same file
        if not path.exists():
            # One of the MAX_FILES places is for the new file.
            by_age = sorted(folder.iterdir(), key=lambda file: file.stat().st_mtime)
            for old in by_age[: -MAX_FILES + 1]:
                old.unlink()
            unfinished = path.with_suffix(".unfinished")
            write = _write_parquet if kind == "parquet" else _write_json_lines
            write(dataset.parts(places), unfinished)
            # A file with its final name is complete, and is given to visitors without a check.
            unfinished.rename(path)
    return {"path": str(path), "name": path.name, "count": len(places)}


def _write_parquet(parts: Iterator[pa.Table], path: Path) -> None:
    # There always is a first part: an empty selection becomes a file with columns and no rows.
    first = next(parts)
    with pq.ParquetWriter(path, first.schema) as writer:
        for part in chain([first], parts):
            writer.write_table(part)


def _write_json_lines(parts: Iterator[pa.Table], path: Path) -> None:
    with path.open("w", encoding="utf-8") as file:
        for part in parts:
            for row in part.to_pylist():
                file.write(_format_json(row) + "\n")


PAGE_FUNCTIONS: list[Any] = [start, scores, rows, pair, find, search, betas, export]
"""What the page calls, by these names."""


# Gradio publishes this signature and docstring as the description of the API and the MCP tool.
def find_pairs(query: str = "", data: str = "", limit: int = 20, offset: int = 0) -> str:
    """Find preference pairs by beta, gap, category and other fields, with all teacher replies.

    Args:
        query: terms that must all hold, such as `beta:0.1..0.2 category:safety,factuality
            -disputed:yes "some words" sort:-gap`; empty for all pairs. Fields: id, beta, gap,
            signed_gap, magnitude, confidence, spread, agreement, votes, teachers, category,
            disputed, kept, teacher, refused, dissent, and columns of the source.
        data: data set to search, org/name or org/name@revision; empty for the Space's own.
        limit: number of pairs to return, at most 100.
        offset: number of pairs to skip first.

    Returns:
        JSON: `count` of all pairs found, and `pairs`, each with prompt, chosen, rejected, beta and
        replies; or `error`, the reason for a refusal.
    """
    try:
        request = {"query": query, "data": data, "limit": limit, "offset": offset}
        dataset = LIBRARY.get(check_text(request, "data"))
        places = dataset.select(parse_query(check_text(request, "query")))
        first = check_integer(request, "offset", len(dataset.ids))
        wanted = places[first : first + check_integer(request, "limit", MAX_PAIRS)].tolist()
        pairs = [dataset.row(place) | {"replies": dataset.pair_replies(place)} for place in wanted]
        result = {"data": dataset.name, "commit": dataset.commit, "count": len(places)}
        # Returned as text, because Gradio would take an object with a `path` for one of its files.
        return _format_json(result | {"pairs": pairs})
    except (BadRequest, UnusableDataset) as error:
        return json.dumps({"error": str(error)})
