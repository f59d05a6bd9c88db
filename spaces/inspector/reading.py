"""From the folder of a data set to a `Corpus`: what it holds, in numbers and words.

Nothing in the folder is believed: what does not fit is refused, in words for people.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.ipc
import pyarrow.parquet as pq
import yaml

from corpus import BATCH, SEARCHED, Corpus, Unusable
from filters import Field

pc: Any = pyarrow.compute  # its functions are made when it is imported

MANIFEST, RUBRIC = "manifest.json", "rubric.yaml"
NUMBERS = (
    "beta", "gap", "signed_gap", "magnitude", "confidence", "spread", "agreement", "votes",
    "teachers", "weight", "margin", "reward_margin",
)  # fmt: skip
FLAGS = {"disputed": "label_disputed", "kept": "keep"}
_OURS = {
    "pair_id", "prompt", "chosen", "rejected", "tools", "has_beta", "category", "source_id",
    "source_row", "flip", SEARCHED, *FLAGS.values(), *NUMBERS,
}  # fmt: skip
MOST_LEVELS, MOST_FACETS, MOST_TEACHERS, MOST_SLOTS = 40, 4, 32, 255


def open_folder(folder: Path, scratch: Path, *, name: str, commit: str | None) -> Corpus:
    """The data set in a folder.

    Args:
        folder: that `sp2dpo build` made, or a copy of what was published.
        scratch: a folder to write into; the data set reads from it as long as it lives.
        name: to show.
        commit: of the repo, if it is one.

    Raises:
        Unusable: it is no such folder.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        rubric = yaml.safe_load((folder / RUBRIC).read_text(encoding="utf-8"))
        rubric = _rubric(rubric, manifest)
        texts = _texts(_files(folder, manifest, "data"), scratch / "texts.arrow")
        replies = _written(_files(folder, manifest, "annotations"), scratch / "replies.arrow")
        return _corpus(folder, manifest, rubric, texts, replies, name=name, commit=commit)
    except (OSError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise Unusable(f"{name}: no data set of sp2dpo, or one that is damaged") from error
    except (ValueError, yaml.YAMLError) as error:  # pyarrow's are of this kind
        raise Unusable(f"{name}: {_line(error)}") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _files(folder: Path, manifest: Mapping[str, Any], config: str) -> list[Path]:
    """The files of a config, in order; none leads out of the folder."""
    pattern = re.compile(rf"{config}/[\w.-]+\.parquet")
    return [folder / name for name in sorted(manifest["files"]) if pattern.fullmatch(name)]


def _rubric(said: Mapping[str, Any], manifest: Mapping[str, Any]) -> dict[str, Any]:
    scales = {
        key: {"min": int(said[key]["min"]), "max": int(said[key]["max"])}
        for key in ("magnitude", "confidence")
    }
    return {
        "name": str(said["name"]),
        "categories": {str(key): str(text) for key, text in said["categories"].items()},
        "blind": manifest["rubric"]["protocol"] == "blind",
        **scales,
    }


def _texts(paths: Sequence[Path], out: Path) -> pa.Table:
    """The first row of every pair, with all that can be searched in one column more."""
    seen: set[str] = set()

    def rows() -> Iterator[pa.RecordBatch]:
        for batch in _batches(paths):
            fresh = []
            for pair_id in batch["pair_id"].to_pylist():
                fresh.append(pair_id not in seen)
                seen.add(pair_id)
            kept = batch.filter(pa.array(fresh, pa.bool_()))
            yield kept.append_column(SEARCHED, _searched(kept))

    return _mapped(rows(), out)


def _searched(batch: pa.RecordBatch) -> pa.Array:
    """The contents of prompt and responses, a text for each row."""
    parts = [_contents(batch[name]) for name in ("prompt", "chosen", "rejected")]
    newline = pa.scalar("\n", pa.large_string())
    return pc.binary_join_element_wise(*parts, newline, null_handling="replace")


def _contents(messages: pa.Array) -> pa.Array:
    """The contents of a conversation, joined."""
    contents = pc.list_flatten(messages).field("content").fill_null("")
    offsets = pc.fill_null(pc.list_value_length(messages), 0).to_numpy(zero_copy_only=False)
    starts = np.concatenate([[0], np.cumsum(offsets)]).astype(np.int32)
    lists = pa.ListArray.from_arrays(pa.array(starts), contents.cast(pa.string()))
    return pc.binary_join(lists, "\n").cast(pa.large_string())


def _written(paths: Sequence[Path], out: Path) -> pa.Table:
    return _mapped(_batches(paths), out)


def _batches(paths: Sequence[Path]) -> Iterator[pa.RecordBatch]:
    if not paths:
        raise Unusable("the data set has no rows")
    for path in paths:
        with pq.ParquetFile(path) as file:
            yield from file.iter_batches(batch_size=BATCH)


def _mapped(batches: Iterator[pa.RecordBatch], out: Path) -> pa.Table:
    """Writes batches to a file without compression, and reads it where it lies."""
    first = next(batches, None)
    if first is None:
        raise Unusable("the data set has no rows")
    with pa.OSFile(str(out), "wb") as sink, pa.ipc.new_file(sink, first.schema) as writer:
        writer.write_batch(first)
        for batch in batches:
            writer.write_batch(batch)
    return pa.ipc.open_file(pa.memory_map(str(out))).read_all()


def _corpus(
    folder: Path,
    manifest: Mapping[str, Any],
    rubric: Mapping[str, Any],
    texts: pa.Table,
    replies: pa.Table,
    *,
    name: str,
    commit: str | None,
) -> Corpus:
    ids = texts["pair_id"].to_pylist()
    if not all(re.fullmatch("[0-9a-f]{64}", one) for one in ids):
        raise Unusable("an id of a pair is no SHA-256")
    known = pa.array(ids)
    pairs = _numbers(pc.index_in(replies["pair_id"], known), np.int32, -1)
    if (pairs < 0).any():
        raise Unusable("a reply is about a pair that is not there")
    places = np.argsort(pairs, kind="stable")
    starts = np.searchsorted(pairs[places], np.arange(len(ids) + 1))
    categories = list(rubric["categories"])
    fields = {"id": Field("id", ids), **_measured(texts, categories)}
    fields |= _by_teacher(replies, pairs, np.asarray(fields["category"].values))
    own, labels = _own(texts, set(fields) | {"sort", "text"})
    return Corpus(
        name=name,
        commit=commit,
        facts={key: one for key, one in manifest.items() if key not in ("files", "formulas")},
        rubric=rubric,
        ids=ids,
        fields=fields | own,
        labels=labels,
        schedules=_schedules(_files(folder, manifest, "schedules"), known),
        texts=texts,
        replies=replies,
        places=places,
        starts=starts,
        scores=_scores(replies, pairs, places, len(ids), rubric),
    )


def _numbers(column: pa.ChunkedArray, kind: Any, missing: Any) -> Any:
    if column.null_count:
        column = pc.fill_null(column.cast(pa.float64()), missing)
    return column.to_numpy().astype(kind)


def _measured(texts: pa.Table, categories: Sequence[str]) -> dict[str, Field]:
    names = texts.column_names
    found = {
        name: Field("number", _numbers(texts[name], np.float32, np.nan))
        for name in NUMBERS
        if name in names
    }
    found["category"] = Field("level", _numbers(texts["category"], np.int8, -1), categories)
    for field, name in FLAGS.items():
        held = texts[name].cast(pa.int8()) if texts[name].null_count < len(texts) else None
        values = np.full(len(texts), -1, np.int8) if held is None else _numbers(held, np.int8, -1)
        found[field] = Field("flag", values)
    return found


def _by_teacher(replies: pa.Table, pairs: Any, category: Any) -> dict[str, Field]:
    """Whose replies a pair has, whose were refused, and who names another category than it has."""
    said = coded(replies["teacher"], MOST_TEACHERS)
    if said is None:
        raise Unusable(f"it has more teachers than can be shown ({MOST_TEACHERS})")
    teachers, which = said
    bit = np.uint32(1) << which.astype(np.uint32)
    kept = pc.equal(replies["status"], "kept").to_numpy(zero_copy_only=False).astype(bool)
    named = _numbers(replies["category"], np.int8, -1)
    found = {}
    flags = {
        "teacher": kept,
        "refused": ~kept,
        "dissent": kept & (named != category[pairs]),
    }
    for name, rows in flags.items():
        held = np.zeros(len(category), np.uint32)
        np.bitwise_or.at(held, pairs[rows], bit[rows])
        found[name] = Field("set", held, teachers)
    return found


def _own(texts: pa.Table, taken: set[str]) -> tuple[dict[str, Field], dict[str, str]]:
    """The source's own columns of few words."""
    fields: dict[str, Field] = {}
    labels = {}
    for column in texts.column_names:
        name = re.sub(r"[^a-z0-9]+", "_", column.lower()).strip("_")
        known = column in _OURS or name in taken or name in fields
        if known or not re.match("[a-z]", name) or len(fields) >= MOST_FACETS:
            continue
        if not (
            pa.types.is_string(texts[column].type) or pa.types.is_large_string(texts[column].type)
        ):
            continue
        said = coded(texts[column], MOST_LEVELS)
        if said is None or not said[0]:
            continue
        fields[name] = Field("level", said[1].astype(np.int8), said[0])
        labels[name] = column
    return fields, labels


def _schedules(paths: Sequence[Path], ids: pa.Array) -> dict[str, Any]:
    """The betas of each schedule, by pair."""
    found: dict[str, Any] = {}
    for batch in _batches(paths) if paths else ():
        places = _numbers(pa.chunked_array([pc.index_in(batch["pair_id"], ids)]), np.int64, -1)
        if (places < 0).any():
            raise Unusable("a schedule names a pair that is not there")
        for name in batch.schema.names:
            if name == "pair_id":
                continue
            values = found.setdefault(name, np.full(len(ids), np.nan, np.float32))
            values[places] = _numbers(pa.chunked_array([batch[name]]), np.float32, np.nan)
    return found


def _scores(
    replies: pa.Table, pairs: Any, places: Any, count: int, rubric: Mapping[str, Any]
) -> dict[str, Any]:
    """What every kept reply says, in the order of the pairs; packed as small as it goes."""
    kept = pc.equal(replies["status"], "kept").to_numpy(zero_copy_only=False).astype(bool)
    order = places[kept[places]]
    rows = pa.array(order)
    slots, which = _slots(replies, rows)
    better = pc.index_in(
        replies["better"].cast(pa.string()).take(rows), pa.array(["tie", "A", "B"])
    )
    found: dict[str, Any] = {
        "slots": slots,
        "counts": np.bincount(pairs[order], minlength=count).astype(np.uint16),
        "slot": which,
        "category": _numbers(replies["category"].take(rows), np.uint8, 255),
        "better": _numbers(better, np.uint8, 255),
    }
    for name in ("magnitude", "confidence"):
        low = rubric[name]["min"]
        if rubric[name]["max"] - low > 255:
            raise Unusable(f"its scale of {name} has more than 256 steps")
        found[name] = (_numbers(replies[name].take(rows), np.int64, low) - low).astype(np.uint8)
        expected = replies[f"expected_{name}"].take(rows)
        if expected.null_count < len(expected):
            found[f"expected_{name}"] = _numbers(expected, np.float32, np.nan)
    return found


def _slots(replies: pa.Table, rows: pa.Array) -> tuple[list[list[str]], Any]:
    """The ways that a teacher was asked in, and which of them each reply answers."""
    words, code = [], np.zeros(len(rows), np.int64)
    for name in ("teacher", "variant", "order"):
        said = coded(replies[name], MOST_SLOTS)
        if said is None:
            raise Unusable(f"it has more than {MOST_SLOTS} of {name}")
        words.append(said[0])
        code = code * len(said[0]) + said[1][rows.to_numpy()]
    used, which = np.unique(code, return_inverse=True)
    if len(used) > MOST_SLOTS:
        raise Unusable(f"it has {len(used)} ways to ask, and {MOST_SLOTS} can be shown")
    found = []
    for one in used.tolist():
        rest, order = divmod(one, len(words[2]))
        teacher, variant = divmod(rest, len(words[1]))
        found.append([words[0][teacher], words[1][variant], words[2][order]])
    return found, which.astype(np.uint8)


def coded(column: pa.ChunkedArray, most: int) -> tuple[list[str], Any] | None:
    """The words of a column, and which each row has (-1: none); None where they are more."""
    if column.num_chunks and len(column.chunk(0).unique()) > most + 1:
        return None
    words = column.unique().drop_null()
    if len(words) > most:
        return None
    return words.to_pylist(), _numbers(pc.index_in(column, words), np.int32, -1)
