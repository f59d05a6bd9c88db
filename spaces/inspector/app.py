"""The inspector: pairs, their betas, and the evidence behind each, in a browser.

    SP2DPO_DATA=org/name@tag python app.py

The page is one component (assets/): it gets a few numbers for every pair once, filters and draws by
itself, and asks the server for texts alone. Every function below that the page calls is open to
anybody: each checks what it is given and answers with `error` where it is refused.
"""

import base64
import hashlib
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import wraps
from itertools import chain
from pathlib import Path
from threading import Lock, Thread
from typing import Any

import gradio as gr
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from corpus import Corpus, Unusable
from filters import LONGEST, Refused, read_query
from opening import Library, own_data_set

HERE = Path(__file__).parent
SCRIPTS = ("filters", "schedule", "diff", "text", "page", "charts", "pairs", "pair", "compare",
           "editor", "teachers", "inspector")  # fmt: skip
MOST_ROWS, MOST_TEXTS, MOST_FOUND = 100, 10, 100
MOST_EXPORTED, MOST_FILES = 100_000, 8
SNIPPET = 240

LIBRARY = Library(own_data_set(), HERE / "demo")
EXPORTING = Lock()


def _text(said: dict[str, Any], key: str, longest: int = LONGEST) -> str:
    value = said.get(key) or ""
    if not isinstance(value, str) or len(value) > longest:
        raise Refused(f"{key}: takes a text of at most {longest} characters")
    return value


def _whole(said: dict[str, Any], key: str, most: int) -> int:
    value = said.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise Refused(f"{key}: takes a whole number from 0 to {most}")
    return value


def answered(function: Callable[[Corpus, dict[str, Any]], Any]) -> Callable[[Any], Any]:
    """A function that the page may call: with the data set, and what it asks."""

    @wraps(function)
    def answer(asked: Any) -> Any:
        try:
            if not isinstance(asked, dict):
                raise Refused("an object is asked for")
            return function(LIBRARY.get(_text(asked, "data")), asked)
        except (Refused, Unusable) as error:
            return {"error": str(error)}

    del answer.__wrapped__  # Gradio looks at what a function takes
    return answer


@answered
def start(corpus: Corpus, asked: dict[str, Any]) -> Any:
    """All fields of all pairs."""
    return corpus.packed | {"space": os.environ.get("SPACE_ID", "")}


@answered
def scores(corpus: Corpus, asked: dict[str, Any]) -> Any:
    """What every kept reply says, without its words."""
    return corpus.packed_scores


@answered
def rows(corpus: Corpus, asked: dict[str, Any]) -> Any:
    """The beginnings of some pairs' texts."""
    places = asked.get("places")
    if not isinstance(places, list) or len(places) > MOST_ROWS:
        raise Refused(f"places: takes a list of at most {MOST_ROWS}")
    most = len(corpus.ids) - 1
    found = [_whole({"place": one}, "place", most) for one in places]
    return [
        {"id": corpus.ids[place]}
        | {name: _beginning(said) for name, said in corpus.messages(place).items()}
        for place in found
    ]


def _beginning(messages: Iterable[dict[str, Any]]) -> str:
    last = [one["content"] or "" for one in messages][-1:]
    return " ".join("".join(last)[: 4 * SNIPPET].split())[:SNIPPET]


@answered
def pair(corpus: Corpus, asked: dict[str, Any]) -> Any:
    """One pair, and every reply about it."""
    place = _whole(asked, "place", len(corpus.ids) - 1)
    return _plain({"row": corpus.row(place), "replies": corpus.heard(place)})


def _plain(said: Any) -> Any:
    """The same with nothing but what JSON knows."""
    if isinstance(said, dict):
        return {key: _plain(one) for key, one in said.items()}
    if isinstance(said, list):
        return [_plain(one) for one in said]
    if isinstance(said, float) and not np.isfinite(said):
        return None
    return said if said is None or isinstance(said, (str, int, float)) else str(said)


@answered
def find(corpus: Corpus, asked: dict[str, Any]) -> Any:
    """Where the pair with an id stands."""
    return {"place": corpus.place(_text(asked, "id", 64))}


@answered
def search(corpus: Corpus, asked: dict[str, Any]) -> Any:
    """Which pairs contain some texts, a bit for each."""
    wanted = asked.get("wanted")
    if not isinstance(wanted, list) or len(wanted) > MOST_TEXTS:
        raise Refused(f"a query looks for at most {MOST_TEXTS} texts")
    found = []
    for one in wanted:
        if not isinstance(one, list) or len(one) != 2 or one[0] not in ("text", "id"):
            raise Refused("wanted: takes pairs of `text` or `id` and a text")
        text = _text({"text": one[1]}, "text")
        flags = corpus.search(text) if one[0] == "text" else corpus.starting(text)
        found.append(base64.b64encode(zlib.compress(np.packbits(flags).tobytes())).decode())
    return found


@answered
def betas(corpus: Corpus, asked: dict[str, Any]) -> Any:
    """Betas that the page has computed, as a Parquet file."""
    count = len(corpus.ids)
    text = _text(asked, "values", 11 * count + 100)
    try:
        values = np.frombuffer(base64.b64decode(text, validate=True), "<f8")
    except ValueError as error:
        raise Refused("values: takes base64 of doubles") from error
    if len(values) != count:
        raise Refused(f"values: {len(values)} for {count} pairs")
    table = pa.table({"pair_id": corpus.ids, "beta": pa.array(values, mask=np.isnan(values))})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return {"file": base64.b64encode(sink.getvalue()).decode()}


@answered
def export(corpus: Corpus, asked: dict[str, Any]) -> Any:
    """What a query chooses, as a file; its address."""
    kind = asked.get("kind")
    if kind not in ("parquet", "jsonl"):
        raise Refused("kind: takes parquet or jsonl")
    query = _text(asked, "query")
    places = corpus.chosen(read_query(query))
    if len(places) > MOST_EXPORTED:
        raise Refused(
            f"{len(places):,} pairs are chosen, and {MOST_EXPORTED:,} can be exported: choose "
            "fewer, or load the data set itself"
        )
    said = json.dumps([corpus.name, corpus.commit, query, kind])
    folder = Path(DEMO.GRADIO_CACHE) / "inspector-exports"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"pairs-{hashlib.sha256(said.encode()).hexdigest()[:16]}.{kind}"
    with EXPORTING:  # two may ask for the same file
        if not path.exists():
            others = sorted(folder.iterdir(), key=lambda one: one.stat().st_mtime)
            for old in others[: -MOST_FILES + 1]:
                old.unlink()
            unfinished = path.with_suffix(".unfinished")
            write = _write_parquet if kind == "parquet" else _write_lines
            write(corpus.parts(places), unfinished)
            unfinished.rename(path)
    return {"path": str(path), "name": path.name, "count": len(places)}


def _write_parquet(parts: Iterator[pa.Table], path: Path) -> None:
    first = next(parts)
    with pq.ParquetWriter(path, first.schema) as writer:
        for part in chain([first], parts):
            writer.write_table(part)


def _write_lines(parts: Iterator[pa.Table], path: Path) -> None:
    with path.open("w", encoding="utf-8") as lines:
        for part in parts:
            for one in part.to_pylist():
                lines.write(json.dumps(one, ensure_ascii=False, default=str) + "\n")


def find_pairs(query: str = "", data: str = "", limit: int = 20, offset: int = 0) -> str:
    """Find preference pairs by what teacher models say of them, with their beta and all replies.

    Args:
        query: terms that must all hold, as `beta:0.1..0.2 category:safety,factuality -disputed:yes
            "some words" sort:-gap`; empty for all pairs. Fields: id, beta, gap, signed_gap,
            magnitude, confidence, spread, agreement, votes, teachers, category, disputed, kept,
            teacher, refused, dissent, and columns of the source.
        data: another data set than the Space's own: org/name or org/name@revision.
        limit: how many pairs to return, at most 100.
        offset: how many to leave out first.

    Returns:
        JSON: `count` of all that are found, and the `pairs` asked for with prompt, chosen,
        rejected, beta and replies; or `error`, what was wrong.
    """
    try:
        said = {"query": query, "data": data, "limit": limit, "offset": offset}
        corpus = LIBRARY.get(_text(said, "data"))
        places = corpus.chosen(read_query(_text(said, "query")))
        first = _whole(said, "offset", len(corpus.ids))
        wanted = places[first : first + _whole(said, "limit", MOST_FOUND)]
        pairs = [corpus.row(int(one)) | {"replies": corpus.heard(int(one))} for one in wanted]
        found = {"data": corpus.name, "commit": corpus.commit, "count": len(places)}
        # A text: what looks like one of Gradio's files in it is none.
        return json.dumps(found | {"pairs": _plain(pairs)}, ensure_ascii=False)
    except (Refused, Unusable) as error:
        return json.dumps({"error": str(error)})


def page() -> gr.Blocks:
    """The page."""
    script = "\n".join((HERE / "assets" / f"{one}.js").read_text("utf-8") for one in SCRIPTS)
    with gr.Blocks(title="SP2DPO inspector", analytics_enabled=False, fill_width=True) as blocks:
        gr.HTML(
            html_template='<div class="inspector" data-state="loading"></div>',
            js_on_load=f"{script}\ninspector.begin(element, server);",
            server_functions=[start, scores, rows, pair, find, search, betas, export],
            apply_default_css=False,
            elem_id="inspector",
        )
        gr.api(find_pairs, api_name="find_pairs")
    return blocks


DEMO = page()


def warm() -> None:
    """Opens the Space's own data set before anybody asks for it."""
    with suppress(Unusable):  # whoever asks is told
        LIBRARY.get("")


if __name__ == "__main__":
    Thread(target=warm, daemon=True).start()
    DEMO.launch(
        head=f"<style>{(HERE / 'assets' / 'inspector.css').read_text('utf-8')}</style>",
        theme=gr.themes.Base(font="system-ui", font_mono="ui-monospace"),
        mcp_server=True,
        footer_links=["api"],
        ssr_mode=False,
        max_file_size="1kb",  # nothing is to be sent here
    )
