"""The functions that the page, HTTP clients and agents may call.

All of them are public. Each checks its arguments, and returns an object with `error` if it refuses
them. No answer is longer than `MAX_ANSWER` characters: of a longer one, a function of the page
returns a part of the JSON text, and `find_pairs` returns fewer pairs and says where to go on.
"""

import base64
import hashlib
import json
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from answers import Answers, fit, to_json
from dataset import Dataset
from errors import BadRequest, NotYet, UnusableDataset
from exports import Exports
from library import Library, own_data_set
from query import LONGEST, MAX_SEARCHES, parse_query

HERE = Path(__file__).parent
# All of these functions are public endpoints, so whatever they take and return has a bound.
MAX_ROWS, MAX_PAIRS = 100, 100
MAX_EXPORTED = 100_000
MAX_PAIR, MAX_REPLIES = 8_000_000, 5_000
"""Largest size in bytes, and largest number of replies, of a pair that is read as a whole."""
MAX_BETAS = 65_536
"""Largest number of betas in a request."""
TEXT_FROM = re.compile(r"(?<!\S)text_from:(\d{1,9})(?!\S)")
SNIPPET = 240
"""Number of characters of a text in a table."""

LIBRARY = Library(own_data_set(), HERE / "demo")
EXPORTS = Exports()
ANSWERS = Answers()


def check_text(request: dict[str, Any], key: str, longest: int = LONGEST) -> str:
    """Return a text of a request; empty if the key is missing.

    Raises:
        BadRequest: The value is not a text, or is too long.
    """
    value = request.get(key) or ""
    if not isinstance(value, str) or len(value) > longest:
        raise BadRequest(f"{key}: takes a text of at most {longest} characters")
    # JSON can spell half a character, which neither Arrow nor an answer can contain.
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise BadRequest(f"{key}: is not valid Unicode")
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
    """Make a function callable by the page: open the data set, and return errors as JSON.

    A request with the `fingerprint` of another state of the data set is refused, because places of
    pairs differ between states.

    Of an answer that is too long, the result is `piece`, a part of its JSON text that begins at
    `offset` of the request, its `size`, and `of`, which differs if the answer has changed.
    """

    @wraps(function)
    def respond(request: Any) -> Any:
        try:
            if not isinstance(request, dict):
                raise BadRequest("a request must be an object")
            dataset = LIBRARY.get(check_text(request, "data"))
            if check_text(request, "fingerprint") not in ("", dataset.fingerprint):
                raise BadRequest("the data set has changed meanwhile: reload the page")
            return ANSWERS.part(dataset.opening, function, dataset, request)
        except NotYet as error:
            return {"error": str(error), "again": True}  # the page asks again by itself
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
        | {name: _snippet(messages) for name, messages in _messages(dataset, place).items()}
        for place in checked
    ]


def _messages(dataset: Dataset, place: int) -> dict[str, list[dict[str, Any]]]:
    size = dataset.texts.slice(place, 1).nbytes
    if size <= MAX_PAIR:
        return dataset.messages(place)
    note = [{"content": f"({size / 1e6:,.0f} MB of texts, too long to be shown)"}]
    return dict.fromkeys(("prompt", "chosen", "rejected"), note)


def _snippet(messages: Iterable[dict[str, Any]]) -> str:
    # White space is collapsed in the beginning of a text only: responses can be very long.
    last = [message["content"] or "" for message in messages][-1:]
    return " ".join("".join(last)[: 4 * SNIPPET].split())[:SNIPPET]


@endpoint
def pair(dataset: Dataset, request: dict[str, Any]) -> Any:
    """Return one pair with all replies about it."""
    place = check_integer(request, "place", len(dataset.ids) - 1)
    if (problem := _check_size(dataset, place)) is not None:
        raise BadRequest(problem)
    return to_json({"row": dataset.row(place), "replies": dataset.pair_replies(place)})


def _check_size(dataset: Dataset, place: int) -> str | None:
    """Return why a pair is too large to be read, or None."""
    replies = dataset.reply_rows[dataset.starts[place] : dataset.starts[place + 1]]
    if len(replies) > MAX_REPLIES:
        return f"this pair has {len(replies):,} replies, and at most {MAX_REPLIES:,} can be shown"
    size = dataset.texts.slice(place, 1).nbytes
    size += sum(dataset.replies.slice(row, 1).nbytes for row in replies.tolist())
    if size <= MAX_PAIR:
        return None
    return (
        f"this pair has {size / 1e6:,.0f} MB of texts, and at most {MAX_PAIR / 1e6:.0f} MB can be "
        "shown: load the data set itself"
    )


@endpoint
def find(dataset: Dataset, request: dict[str, Any]) -> Any:
    """Return the position of the pair with an id."""
    return {"place": dataset.find_pair(check_text(request, "id", 64))}


@endpoint
def search(dataset: Dataset, request: dict[str, Any]) -> Any:
    """Return which pairs contain some texts, one bit for each pair."""
    wanted = request.get("wanted")
    if not isinstance(wanted, list) or len(wanted) > MAX_SEARCHES:
        raise BadRequest(f"wanted: takes a list of at most {MAX_SEARCHES}")
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
    """Write betas that the page has computed to a Parquet file, and return its path.

    `values` are at most `MAX_BETAS` doubles in base64. The betas of more pairs come in several
    requests: `first` is the place of the first value, and `file` the name that the answer to the
    request before it contains.
    """
    count = len(dataset.ids)
    # A double takes 8 bytes, which are 10.7 characters of base64.
    text = check_text(request, "values", 11 * min(count, MAX_BETAS) + 100)
    first = check_integer({"first": 0} | request, "first", count)
    try:
        content = base64.b64decode(text, validate=True)
    except ValueError as error:
        raise BadRequest("values: takes base64 of doubles") from error
    if len(content) % 8 or not content or first + len(content) // 8 > count:
        raise BadRequest(f"values: {len(content) // 8} from {first} on, for {count} pairs")
    name = EXPORTS.add_part(check_text(request, "file", 64), 8 * first, content)
    if first + len(content) // 8 < count:
        return {"file": name, "next": first + len(content) // 8}

    def parts(raw: bytes) -> Iterator[pa.Table]:
        values = np.frombuffer(raw, "<f8")
        # A pair without a beta is NaN in the page, and null in this package's files.
        column = pa.array(values, mask=np.isnan(values))
        yield pa.table({"pair_id": dataset.ids, "beta": column})

    path = EXPORTS.finish(name, parts)
    return {"path": str(path), "name": "betas.parquet"}


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
    # Not the name, which may later stand for other rows.
    key = json.dumps([dataset.fingerprint, dataset.opening, query])
    digest = hashlib.sha256(key.encode()).hexdigest()[:16]
    path = EXPORTS.write(f"pairs-{digest}", kind, lambda: dataset.parts(places))
    return {"path": str(path), "name": path.name, "count": len(places)}


PAGE_FUNCTIONS: list[Any] = [start, scores, rows, pair, find, search, betas, export]
"""What the page calls, by these names."""


# Gradio publishes this signature and docstring as the description of the API and the MCP tool.
def find_pairs(query: str = "", data: str = "", limit: int = 20, offset: int = 0) -> str:
    """Find preference pairs by beta, gap, category and other fields, with all teacher replies.

    Args:
        query: terms that must all hold, such as `beta:0.1..0.2 category:safety,factuality
            -disputed:yes "some words" sort:-gap`; empty for all pairs. Fields: id, beta, gap,
            signed_gap, magnitude, confidence, spread, agreement, votes, teachers, category,
            disputed, kept, exchanged, weight, margin, label_smoothing, teacher, refused, dissent,
            and columns of the source.
        data: data set to search, org/name or org/name@revision; empty for the Space's own.
        limit: number of pairs to return, at most 100.
        offset: number of pairs to skip first.

    Returns:
        JSON: `count` of all pairs found, and `pairs`, each with prompt, chosen, rejected, beta and
        replies; or `error`, the reason for a refusal. An answer has at most 100,000 characters. If
        fewer pairs than `limit` fit, `next_offset` is the offset of the next call. If the first
        pair alone is too long, its texts are cut, and `next_text` is the number of their first
        characters that a call with the same offset and `text_from:NUMBER` in the query skips.
    """
    try:
        request = {"query": query, "data": data, "limit": limit, "offset": offset}
        dataset = LIBRARY.get(check_text(request, "data"))
        # A term of the query, because clients of Gradio must send as many values as there are
        # parameters.
        words = check_text(request, "query")
        starts = TEXT_FROM.findall(words)
        places = dataset.select(parse_query(TEXT_FROM.sub(" ", words)))
        first, skip = check_integer(request, "offset", len(dataset.ids)), int([0, *starts][-1])
        wanted = places[first : first + check_integer(request, "limit", MAX_PAIRS)].tolist()
        facts = {"data": dataset.name, "commit": dataset.commit, "count": len(places)}
        # Returned as text, because Gradio would take an object with a `path` for one of its files.
        return fit(
            facts, (_whole_pair(dataset, place) for place in wanted), len(wanted), first, skip
        )
    except (BadRequest, UnusableDataset) as error:
        return json.dumps({"error": str(error)})


def _whole_pair(dataset: Dataset, place: int) -> dict[str, Any]:
    if (problem := _check_size(dataset, place)) is not None:
        return {"pair_id": dataset.ids[place], "error": problem}
    return dataset.row(place) | {"replies": dataset.pair_replies(place)}
