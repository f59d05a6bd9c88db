"""Open the folder of a data set as a `Dataset`.

The folder is not trusted: content that is not valid is refused with a readable message.
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

from dataset import BATCH, SEARCHED, Dataset, UnusableDataset
from query import Field

pc: Any = pyarrow.compute  # type checkers do not see its functions, which exist at run time only

MANIFEST, RUBRIC = "manifest.json", "rubric.yaml"
NUMBER_COLUMNS = (
    "beta", "gap", "signed_gap", "magnitude", "confidence", "spread", "agreement", "votes",
    "teachers", "weight", "margin", "reward_margin",
)  # fmt: skip
"""Columns that become number fields if the data set has them."""
FLAGS = {"disputed": "label_disputed", "kept": "keep"}
"""Columns of the data set that become yes/no fields, by name of the field."""
_OURS = {
    "pair_id", "prompt", "chosen", "rejected", "tools", "has_beta", "category", "source_id",
    "source_row", "flip", SEARCHED, *FLAGS.values(), *NUMBER_COLUMNS,
}  # fmt: skip
# A set of teachers is the bits of a uint32, and the number of a slot is one byte.
MAX_LEVELS, MAX_FACETS, MAX_TEACHERS, MAX_SLOTS = 40, 4, 32, 255


def open_folder(folder: Path, scratch: Path, *, name: str, commit: str | None) -> Dataset:
    """Return the data set in a folder.

    Args:
        folder: Folder that `sp2dpo build` created, or a copy of a published one.
        scratch: Folder for uncompressed copies, which the data set reads from.
        name: Name to show.
        commit: Commit of the repo, if the folder comes from one.

    Raises:
        UnusableDataset: If the folder is not a data set of this format.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        rubric = yaml.safe_load((folder / RUBRIC).read_text(encoding="utf-8"))
        rubric = _parse_rubric(rubric, manifest)
        texts = _load_texts(_list_files(folder, manifest, "data"), scratch / "texts.arrow")
        reply_files = _list_files(folder, manifest, "annotations")
        replies = _map_batches(_read_batches(reply_files), scratch / "replies.arrow")
        return _build_dataset(folder, manifest, rubric, texts, replies, name=name, commit=commit)
    except (OSError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UnusableDataset(f"{name}: not a data set of sp2dpo, or damaged") from error
    # An OverflowError is a number that does not fit the type of its column.
    except (ValueError, OverflowError, pa.ArrowException, yaml.YAMLError) as error:
        raise UnusableDataset(f"{name}: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _list_files(folder: Path, manifest: Mapping[str, Any], config: str) -> list[Path]:
    """Return the files of a config in order; the pattern excludes paths outside the folder."""
    pattern = re.compile(rf"{config}/[\w.-]+\.parquet")
    return [folder / name for name in sorted(manifest["files"]) if pattern.fullmatch(name)]


def _parse_rubric(values: Mapping[str, Any], manifest: Mapping[str, Any]) -> dict[str, Any]:
    scales = {
        key: {"min": int(values[key]["min"]), "max": int(values[key]["max"])}
        for key in ("magnitude", "confidence")
    }
    return {
        "name": str(values["name"]),
        "categories": {str(key): str(text) for key, text in values["categories"].items()},
        "blind": manifest["rubric"]["protocol"] == "blind",
        **scales,
    }


def _load_texts(paths: Sequence[Path], out: Path) -> pa.Table:
    """Return the first row of every pair, with the column `SEARCHED`."""
    seen: set[str] = set()

    def rows() -> Iterator[pa.RecordBatch]:
        for batch in _read_batches(paths):
            # A source may repeat a pair: the config `default` has a row for each row of the source.
            is_first = []
            for pair_id in batch["pair_id"].to_pylist():
                is_first.append(pair_id not in seen)
                seen.add(pair_id)
            first_rows = batch.filter(pa.array(is_first, pa.bool_()))
            yield first_rows.append_column(SEARCHED, _join_texts(first_rows))

    return _map_batches(rows(), out)


def _join_texts(batch: pa.RecordBatch) -> pa.Array:
    """Return the contents of prompt and responses as one text for each row."""
    parts = [_join_messages(batch[name]) for name in ("prompt", "chosen", "rejected")]
    newline = pa.scalar("\n", pa.large_string())
    return pc.binary_join_element_wise(*parts, newline, null_handling="replace")


def _join_messages(messages: pa.Array) -> pa.Array:
    """Return the contents of the messages of each row, joined by line breaks."""
    # A message without content would make `binary_join` return null for the whole row.
    contents = pc.list_flatten(messages).field("content").fill_null("")
    offsets = pc.fill_null(pc.list_value_length(messages), 0).to_numpy(zero_copy_only=False)
    starts = np.concatenate([[0], np.cumsum(offsets)]).astype(np.int32)
    lists = pa.ListArray.from_arrays(pa.array(starts), contents.cast(pa.string()))
    return pc.binary_join(lists, "\n").cast(pa.large_string())


def _read_batches(paths: Sequence[Path]) -> Iterator[pa.RecordBatch]:
    if not paths:
        raise UnusableDataset("the data set has no rows")
    for path in paths:
        with pq.ParquetFile(path.absolute()) as file:
            yield from file.iter_batches(batch_size=BATCH)


def _map_batches(batches: Iterator[pa.RecordBatch], out: Path) -> pa.Table:
    """Write batches to an uncompressed file, and return it memory-mapped."""
    first = next(batches, None)
    if first is None:
        raise UnusableDataset("the data set has no rows")
    # Arrow can map an uncompressed file only; it would decompress another one into memory.
    with pa.OSFile(str(out), "wb") as sink, pa.ipc.new_file(sink, first.schema) as writer:
        writer.write_batch(first)
        for batch in batches:
            writer.write_batch(batch)
    return pa.ipc.open_file(pa.memory_map(str(out))).read_all()


def _build_dataset(
    folder: Path,
    manifest: Mapping[str, Any],
    rubric: Mapping[str, Any],
    texts: pa.Table,
    replies: pa.Table,
    *,
    name: str,
    commit: str | None,
) -> Dataset:
    ids = texts["pair_id"].to_pylist()
    if not all(re.fullmatch("[0-9a-f]{64}", pair_id) for pair_id in ids):
        raise UnusableDataset("a pair has an id that is not a SHA-256")
    id_array = pa.array(ids)
    pairs = _to_numpy(pc.index_in(replies["pair_id"], id_array), np.int32, -1)
    if (pairs < 0).any():
        raise UnusableDataset("a reply is about an unknown pair")
    # Stable, so that the replies about a pair stay in the order of the data set.
    reply_rows = np.argsort(pairs, kind="stable")
    starts = np.searchsorted(pairs[reply_rows], np.arange(len(ids) + 1))
    categories = list(rubric["categories"])
    fields = {"id": Field("id", ids), **_column_fields(texts, categories)}
    fields |= _teacher_fields(replies, pairs, np.asarray(fields["category"].values))
    # In a query, `sort` and `text` are not names of columns.
    own, labels = _source_fields(texts, set(fields) | {"sort", "text"})
    return Dataset(
        name=name,
        commit=commit,
        facts={key: fact for key, fact in manifest.items() if key not in ("files", "formulas")},
        rubric=rubric,
        ids=ids,
        fields=fields | own,
        labels=labels,
        schedules=_load_schedules(_list_files(folder, manifest, "schedules"), id_array),
        texts=texts,
        replies=replies,
        reply_rows=reply_rows,
        starts=starts,
        scores=_collect_scores(replies, pairs, reply_rows, len(ids), rubric),
    )


def _to_numpy(column: pa.ChunkedArray, kind: Any, missing: Any) -> Any:
    if column.null_count:
        # NumPy's integers have no null; float64 holds scores, counts and indices exactly.
        column = pc.fill_null(column.cast(pa.float64()), missing)
    return column.to_numpy().astype(kind)


def _column_fields(texts: pa.Table, categories: Sequence[str]) -> dict[str, Field]:
    """Return the fields that are columns of the data set."""
    names = texts.column_names
    fields = {
        # Single precision halves the download; `NEAR` in query.py allows for its error.
        name: Field("number", _to_numpy(texts[name], np.float32, np.nan))
        for name in NUMBER_COLUMNS
        if name in names
    }
    fields["category"] = Field("level", _to_numpy(texts["category"], np.int8, -1), categories)
    for field, name in FLAGS.items():
        if texts[name].null_count == len(texts):  # an empty column may have no type
            values = np.full(len(texts), -1, np.int8)
        else:
            values = _to_numpy(texts[name].cast(pa.int8()), np.int8, -1)
        fields[field] = Field("flag", values)
    return fields


def _teacher_fields(replies: pa.Table, pairs: Any, category: Any) -> dict[str, Field]:
    """Return fields of the teachers with a kept reply, a refused reply, or another category."""
    encoded = encode(replies["teacher"], MAX_TEACHERS)
    if encoded is None:
        raise UnusableDataset(f"it has more teachers than can be shown ({MAX_TEACHERS})")
    teachers, codes = encoded
    bit = np.uint32(1) << codes.astype(np.uint32)
    is_kept = pc.equal(replies["status"], "kept").to_numpy(zero_copy_only=False).astype(bool)
    reply_category = _to_numpy(replies["category"], np.int8, -1)
    fields = {}
    flags = {
        "teacher": is_kept,
        "refused": ~is_kept,
        "dissent": is_kept & (reply_category != category[pairs]),
    }
    for name, rows in flags.items():
        bits = np.zeros(len(category), np.uint32)
        # `bits[pairs[rows]] |= ...` would keep one reply of each pair, because the index repeats.
        np.bitwise_or.at(bits, pairs[rows], bit[rows])
        fields[name] = Field("set", bits, teachers)
    return fields


def _source_fields(texts: pa.Table, taken: set[str]) -> tuple[dict[str, Field], dict[str, str]]:
    """Return fields made of the source's own text columns with few different values."""
    fields: dict[str, Field] = {}
    labels = {}
    for column in texts.column_names:
        name = re.sub(r"[^a-z0-9]+", "_", column.lower()).strip("_")
        is_used = column in _OURS or name in taken or name in fields
        # In the query language, a name begins with a letter.
        if is_used or not re.match("[a-z]", name) or len(fields) >= MAX_FACETS:
            continue
        if not (
            pa.types.is_string(texts[column].type) or pa.types.is_large_string(texts[column].type)
        ):
            continue
        encoded = encode(texts[column], MAX_LEVELS)
        if encoded is None or not encoded[0]:
            continue
        words, codes = encoded
        fields[name] = Field("level", codes.astype(np.int8), words)
        labels[name] = column
    return fields, labels


def _load_schedules(paths: Sequence[Path], ids: pa.Array) -> dict[str, Any]:
    """Return the betas of each schedule, by place."""
    schedules: dict[str, Any] = {}
    for batch in _read_batches(paths) if paths else ():
        places = _to_numpy(pa.chunked_array([pc.index_in(batch["pair_id"], ids)]), np.int64, -1)
        if (places < 0).any():
            raise UnusableDataset("a schedule has a beta for an unknown pair")
        for name in batch.schema.names:
            if name == "pair_id":
                continue
            values = schedules.setdefault(name, np.full(len(ids), np.nan, np.float32))
            values[places] = _to_numpy(pa.chunked_array([batch[name]]), np.float32, np.nan)
    return schedules


def _collect_scores(
    replies: pa.Table, pairs: Any, reply_rows: Any, count: int, rubric: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the scores of every kept reply, by place, in the smallest types that hold them."""
    is_kept = pc.equal(replies["status"], "kept").to_numpy(zero_copy_only=False).astype(bool)
    # Grouped by pair: `counts` then tells the page where the replies about each pair begin.
    order = reply_rows[is_kept[reply_rows]]
    rows = pa.array(order)
    slots, slot_of_reply = _list_slots(replies, rows)
    # schedule.js relies on these numbers: a tie is 0, A is 1 and B is 2.
    better = pc.index_in(
        replies["better"].cast(pa.string()).take(rows), pa.array(["tie", "A", "B"])
    )
    scores: dict[str, Any] = {
        "slots": slots,
        "counts": np.bincount(pairs[order], minlength=count).astype(np.uint16),
        "slot": slot_of_reply,
        "category": _to_numpy(replies["category"].take(rows), np.uint8, 255),
        "better": _to_numpy(better, np.uint8, 255),
    }
    for name in ("magnitude", "confidence"):
        low = rubric[name]["min"]
        if rubric[name]["max"] - low > 255:
            raise UnusableDataset(f"its {name} scale has more than 256 steps")
        scores[name] = (_to_numpy(replies[name].take(rows), np.int64, low) - low).astype(np.uint8)
        expected = replies[f"expected_{name}"].take(rows)
        if expected.null_count < len(expected):
            scores[f"expected_{name}"] = _to_numpy(expected, np.float32, np.nan)
    return scores


def _list_slots(replies: pa.Table, rows: pa.Array) -> tuple[list[list[str]], Any]:
    """Return all combinations of teacher, variant and order, and the one of each reply."""
    words, code = [], np.zeros(len(rows), np.int64)
    for name in ("teacher", "variant", "order"):
        encoded = encode(replies[name], MAX_SLOTS)
        if encoded is None:
            raise UnusableDataset(f"it has more than {MAX_SLOTS} {name}s")
        words.append(encoded[0])
        # A mixed-radix number of the three indices, which `divmod` takes apart below.
        code = code * len(encoded[0]) + encoded[1][rows.to_numpy()]
    used, slot_of_reply = np.unique(code, return_inverse=True)
    if len(used) > MAX_SLOTS:
        raise UnusableDataset(
            f"it has {len(used)} combinations of teacher, variant and order, and {MAX_SLOTS} can "
            "be shown"
        )
    slots = []
    for slot in used.tolist():
        teacher_variant, order = divmod(slot, len(words[2]))
        teacher, variant = divmod(teacher_variant, len(words[1]))
        slots.append([words[0][teacher], words[1][variant], words[2][order]])
    return slots, slot_of_reply.astype(np.uint8)


def encode(column: pa.ChunkedArray, largest: int) -> tuple[list[str], Any] | None:
    """Return the distinct words of a column, and for each row the index of its word (-1: null).

    Return None if there are more than `largest` distinct words.
    """
    # One batch usually shows that a column is free text, without reading all of it; 1 is for null.
    if column.num_chunks and len(column.chunk(0).unique()) > largest + 1:
        return None
    words = column.unique().drop_null()
    if len(words) > largest:
        return None
    return words.to_pylist(), _to_numpy(pc.index_in(column, words), np.int32, -1)
