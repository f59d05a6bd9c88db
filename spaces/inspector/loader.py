"""Open the folder of a data set as a `Dataset`.

The folder is not trusted: files other than those that the manifest lists, and content that is not
valid, are refused with a readable message.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from dataset import SEARCHED, Dataset
from documents import MAX_NAME, Fingerprint, Manifest, read_manifest, read_rubric
from errors import UnusableDataset
from query import Field
from tables import FLAG, MESSAGES, NUMBERS, STRINGS, WHOLE, Meter, map_batches, read_batches

pc: Any = pyarrow.compute  # type checkers do not see its functions, which exist at run time only

NUMBER_COLUMNS = (
    "beta", "gap", "signed_gap", "magnitude", "confidence", "spread", "agreement", "votes",
    "teachers", "weight", "margin", "label_smoothing", "reward_margin",
)  # fmt: skip
"""Columns that become number fields if the data set has them."""
FLAGS = {"disputed": "label_disputed", "kept": "keep"}
"""Columns of the data set that become yes/no fields, by name of the field."""
OPTIONAL_FLAGS = {"exchanged": "flip"}
"""Columns that become yes/no fields if the data set has them."""
_OURS = {
    "pair_id", "prompt", "chosen", "rejected", "tools", "has_beta", "category", "source_id",
    "source_row", SEARCHED, *FLAGS.values(), *OPTIONAL_FLAGS.values(), *NUMBER_COLUMNS,
}  # fmt: skip
# A set of teachers is the bits of a uint32, and the number of a slot is one byte.
MAX_LEVELS, MAX_FACETS, MAX_TEACHERS, MAX_SLOTS = 40, 4, 32, 255
MAX_SCHEDULES = 50
TEXTS, REPLIES = "texts.arrow", "replies.arrow"
LARGEST = 1e30
"""Largest absolute value of a number field, which the page receives in single precision."""
_LONGEST_MESSAGE = 450
_TEXT_COLUMNS = {
    "pair_id": STRINGS, "prompt": MESSAGES, "chosen": MESSAGES, "rejected": MESSAGES,
    "beta": NUMBERS, "gap": NUMBERS, "agreement": NUMBERS, "category": WHOLE,
}  # fmt: skip
_OTHER_TEXT_COLUMNS = {
    **dict.fromkeys(NUMBER_COLUMNS, NUMBERS), **dict.fromkeys(FLAGS.values(), FLAG),
    **dict.fromkeys(OPTIONAL_FLAGS.values(), FLAG),
    "source_id": STRINGS,
}  # fmt: skip
_REPLY_COLUMNS = {
    **dict.fromkeys(("pair_id", "teacher", "variant", "order", "status"), STRINGS),
    **dict.fromkeys(("category", "magnitude", "confidence"), WHOLE),
}
_OTHER_REPLY_COLUMNS = {
    **dict.fromkeys(("expected_magnitude", "expected_confidence"), NUMBERS),
    **dict.fromkeys(("attempt", "prompt_tokens", "completion_tokens"), WHOLE),
    **dict.fromkeys(
        ("model", "revision", "reason", "better", "rationale", "raw", "logprobs", "finish_reason"),
        STRINGS,
    ),
}


def open_folder(
    folder: Path, scratch: Path, *, name: str, commit: str | None, meter: Meter | None = None
) -> Dataset:
    """Return the data set in a folder.

    Args:
        folder: Folder that `sp2dpo build` created, or a copy of a published one.
        scratch: Folder for uncompressed copies, which the data set reads from.
        name: Name to show.
        commit: Commit of the repo, if the folder comes from one.
        meter: Counts and limits what is read; None for no limit.

    Raises:
        UnusableDataset: If the folder is not a data set of this format.
    """
    try:
        manifest = read_manifest(folder)
        check_files(folder, manifest.files)
        return _open_files(
            _Source(folder, manifest, meter or Meter()), scratch, name=name, commit=commit
        )
    except UnusableDataset as error:
        # A message may quote the file.
        text = "".join(c if c.isprintable() else "?" for c in f"{name}: {error}")
        raise UnusableDataset(text[:_LONGEST_MESSAGE]) from error
    except MemoryError as error:
        raise UnusableDataset(
            f"{name}: opening it takes more memory than this Space gives to a data set"
        ) from error
    except pa.ArrowException as error:  # a type that a function of Arrow does not take
        raise UnusableDataset(f"{name}: a column cannot be read: {str(error)[:100]!r}") from error
    except OSError as error:
        # Without the path, which is one of this machine.
        raise UnusableDataset(
            f"{name}: a file cannot be read or written: {error.strerror}"
        ) from error


def check_files(folder: Path, files: Mapping[str, Fingerprint]) -> None:
    """Compare files with the manifest.

    Raises:
        UnusableDataset: A file is missing, or has another size or SHA-256.
    """
    for name, fingerprint in files.items():
        path = folder / name
        if not path.is_file():
            raise UnusableDataset(f"{name} is missing, which the manifest lists")
        if path.stat().st_size != fingerprint.bytes:
            raise UnusableDataset(f"{name} has another size than the manifest says")
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != fingerprint.sha256:
            raise UnusableDataset(f"{name} has another SHA-256 than the manifest says")


@dataclass(frozen=True)
class _Source:
    """The checked files of a data set.

    Attributes:
        folder: Where they are.
        manifest: What lists them.
        meter: Counts what is read.
    """

    folder: Path
    manifest: Manifest
    meter: Meter

    def batches(
        self,
        config: str,
        needed: Mapping[str, str],
        other: Mapping[str, str] | None = None,
        default: str | None = None,
    ) -> Iterator[pa.RecordBatch]:
        """Yield the rows of a config; see `read_batches`."""
        paths = [self.folder / name for name in self.manifest.config_files(config)]
        return read_batches(paths, self.meter, needed=needed, other=other, default=default)


def _open_files(source: _Source, scratch: Path, *, name: str, commit: str | None) -> Dataset:
    rubric = read_rubric(source.folder)
    rubric["blind"] = source.manifest.facts["rubric"]["protocol"] == "blind"
    categories = list(rubric["categories"])
    texts = map_batches(_first_rows(source), scratch / TEXTS)
    replies = map_batches(
        source.batches("annotations", _REPLY_COLUMNS, _OTHER_REPLY_COLUMNS), scratch / REPLIES
    )
    _check_range(texts, "category", 0, len(categories) - 1)
    _check_replies(replies, rubric)
    ids = texts["pair_id"].to_pylist()
    id_array = pa.array(ids)
    pairs = _places(replies["pair_id"], id_array, "a reply is about an unknown pair")
    # Stable, so that the replies about a pair stay in the order of the data set.
    reply_rows = np.argsort(pairs, kind="stable")
    starts = np.searchsorted(pairs[reply_rows], np.arange(len(ids) + 1))
    fields = {"id": Field("id", ids), **_column_fields(texts, categories)}
    fields |= _teacher_fields(replies, pairs, np.asarray(fields["category"].values))
    # In a query, `sort` and `text` are not names of columns.
    own, labels = _source_fields(texts, set(fields) | {"sort", "text"})
    return Dataset(
        name=name,
        commit=commit,
        fingerprint=source.manifest.sha256,
        facts=source.manifest.facts,
        rubric=rubric,
        ids=ids,
        fields=fields | own,
        labels=labels,
        schedules=_load_schedules(source, id_array),
        texts=texts,
        replies=replies,
        reply_rows=reply_rows,
        starts=starts,
        scores=_collect_scores(replies, pairs, reply_rows, len(ids), rubric),
    )


def _first_rows(source: _Source) -> Iterator[pa.RecordBatch]:
    """Yield the first row of every pair, with the column `SEARCHED`."""
    seen: set[str] = set()
    for batch in source.batches("data", _TEXT_COLUMNS, _OTHER_TEXT_COLUMNS):
        if SEARCHED in batch.schema.names:
            raise UnusableDataset(f"it has a column {SEARCHED}, which the inspector uses itself")
        ids = batch["pair_id"]
        is_id = pc.match_substring_regex(ids, "^[0-9a-f]{64}$")
        if not pc.all(is_id, skip_nulls=False).as_py():
            raise UnusableDataset("a pair has an id that is not a SHA-256")
        # A source may repeat a pair: the config `default` has a row for each row of the source.
        is_first = []
        for pair_id in ids.to_pylist():
            is_first.append(pair_id not in seen)
            seen.add(pair_id)
        first_rows = batch.filter(pa.array(is_first, pa.bool_()))
        yield first_rows.append_column(SEARCHED, _join_texts(first_rows))


def _check_replies(replies: pa.Table, rubric: Mapping[str, Any]) -> None:
    """Refuse replies that the page cannot show: scores out of their scales, unknown words."""
    for name in ("pair_id", "teacher", "variant", "order", "status"):
        if replies[name].null_count:
            raise UnusableDataset(f"a reply has no {name}")
    words: dict[str, Sequence[str]] = {
        "status": ("kept", "refused"), "order": ("chosen-first", "rejected-first")
    }  # fmt: skip
    for name, choices in words.items():
        if not pc.all(pc.is_in(replies[name], pa.array(choices, replies[name].type))).as_py():
            raise UnusableDataset(f"a reply has another {name} than {' or '.join(choices)}")
    _check_range(replies, "category", 0, len(rubric["categories"]) - 1)
    for name in ("magnitude", "confidence"):
        scale = rubric[name]
        _check_range(replies, name, scale["min"], scale["max"])
        if f"expected_{name}" in replies.column_names:
            _check_range(replies, f"expected_{name}", scale["min"], scale["max"])
    kept = replies.filter(pc.equal(replies["status"], "kept"))
    for name in ("category", "magnitude", "confidence"):
        if kept[name].null_count:
            raise UnusableDataset(f"a kept reply has no {name}")


def _check_range(table: pa.Table, name: str, low: float, high: float) -> None:
    """Refuse a column with a value outside a range; null and NaN are no values."""
    column = table[name]
    if column.null_count == len(column):
        return
    bounds = pc.min_max(pc.if_else(pc.is_nan(column), None, column)
                        if pa.types.is_floating(column.type) else column).as_py()  # fmt: skip
    if bounds["min"] is not None and not low <= bounds["min"] <= bounds["max"] <= high:
        raise UnusableDataset(f"the column {name} has a value outside {low:g} to {high:g}")


def _places(ids: pa.ChunkedArray, known_ids: pa.Array, problem: str) -> Any:
    """Return the place of each id.

    Raises:
        UnusableDataset: There is an id of no pair.
    """
    places = _to_numpy(pc.index_in(ids, known_ids), np.int64, -1)
    if (places < 0).any():
        raise UnusableDataset(problem)
    return places


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


def _to_numpy(column: pa.ChunkedArray, kind: Any, missing: Any) -> Any:
    if column.null_count:
        # NumPy's integers have no null; float64 holds scores, counts and indices exactly.
        column = pc.fill_null(column.cast(pa.float64()), missing)
    return column.to_numpy().astype(kind)


def _column_fields(texts: pa.Table, categories: Sequence[str]) -> dict[str, Field]:
    """Return the fields that are columns of the data set."""
    names = texts.column_names
    for name in NUMBER_COLUMNS:
        if name in names:
            _check_range(texts, name, -LARGEST, LARGEST)
    fields = {
        # Single precision halves the download; `NEAR` in query.py allows for its error.
        name: Field("number", _to_numpy(texts[name], np.float32, np.nan))
        for name in NUMBER_COLUMNS
        if name in names
    }
    fields["category"] = Field("level", _to_numpy(texts["category"], np.int8, -1), categories)
    optional = {field: name for field, name in OPTIONAL_FLAGS.items() if name in names}
    for field, name in (FLAGS | optional).items():
        # An empty column may have no type.
        if name not in names or texts[name].null_count == len(texts):
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
    _check_names(teachers, "teacher")
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


def _check_names(names: Sequence[str], kind: str) -> None:
    if names and max(map(len, names)) > MAX_NAME:
        raise UnusableDataset(f"the name of a {kind} is longer than {MAX_NAME} characters")


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
        kind = texts.schema.field(column).type
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            continue
        encoded = encode(texts[column], MAX_LEVELS)
        # Every word is sent to the page.
        if encoded is None or not encoded[0] or max(map(len, encoded[0])) > MAX_NAME:
            continue
        words, codes = encoded
        fields[name] = Field("level", codes.astype(np.int8), words)
        labels[name] = column
    return fields, labels


def _load_schedules(source: _Source, ids: pa.Array) -> dict[str, Any]:
    """Return the betas of each schedule, by place."""
    schedules: dict[str, Any] = {}
    for batch in source.batches("schedules", {"pair_id": STRINGS}, default=NUMBERS):
        table = pa.Table.from_batches([batch])
        places = _places(table["pair_id"], ids, "a schedule has a beta for an unknown pair")
        for name in table.column_names:
            if name == "pair_id":
                continue
            if len(name) > MAX_NAME or len(schedules) > MAX_SCHEDULES:
                raise UnusableDataset(
                    f"it has more than {MAX_SCHEDULES} schedules, or one whose name is longer than "
                    f"{MAX_NAME} characters"
                )
            _check_range(table, name, -LARGEST, LARGEST)
            values = schedules.setdefault(name, np.full(len(ids), np.nan, np.float32))
            values[places] = _to_numpy(table[name], np.float32, np.nan)
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
    better = pc.index_in(_words_of(replies, "better").take(rows), pa.array(["tie", "A", "B"]))
    scores: dict[str, Any] = {
        "slots": slots,
        "counts": np.bincount(pairs[order], minlength=count).astype(np.uint16),
        "slot": slot_of_reply,
        "category": _to_numpy(replies["category"].take(rows), np.uint8, 255),
        "better": _to_numpy(better, np.uint8, 255),
    }
    for name in ("magnitude", "confidence"):
        low = rubric[name]["min"]
        scores[name] = (_to_numpy(replies[name].take(rows), np.int64, low) - low).astype(np.uint8)
        if f"expected_{name}" not in replies.column_names:
            continue
        expected = replies[f"expected_{name}"].take(rows)
        if expected.null_count < len(expected):
            scores[f"expected_{name}"] = _to_numpy(expected, np.float32, np.nan)
    return scores


def _words_of(table: pa.Table, name: str) -> pa.ChunkedArray:
    """Return a column of texts that may be missing or, without values, of no type."""
    if name not in table.column_names:
        return pa.chunked_array([pa.nulls(len(table), pa.string())])
    return table[name].cast(pa.string())


def _list_slots(replies: pa.Table, rows: pa.Array) -> tuple[list[list[str]], Any]:
    """Return all combinations of teacher, variant and order, and the one of each reply."""
    words, code = [], np.zeros(len(rows), np.int64)
    for name in ("teacher", "variant", "order"):
        encoded = encode(replies[name], MAX_SLOTS)
        if encoded is None:
            raise UnusableDataset(f"it has more than {MAX_SLOTS} {name}s")
        _check_names(encoded[0], name)
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
