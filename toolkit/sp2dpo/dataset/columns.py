"""Define the columns of the data set, and make a row from a source row and its beta."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Self

import datasets
import pyarrow as pa
from datasets import ClassLabel, Features, Json, List, Value

from sp2dpo.betas.columns import BETA_COLUMNS, OPTIONAL
from sp2dpo.pairs.pair import Message, Pair
from sp2dpo.pairs.sources import SourceRow
from sp2dpo.panel.rubric import Rubric
from sp2dpo.store.store import Store
from sp2dpo.text import shorten

CONVERSATIONS = ("prompt", "chosen", "rejected")
_SOURCE_ROW = "source_row"
_MAX_DEPTH = 16
"""Maximum nesting of lists and objects in a column; deeper values are stored as JSON text."""
_MAX_EXACT_FLOAT = 2**53
"""Integers beyond this are not exact as float64."""
MAX_FIELDS = 128
"""Maximum number of distinct fields in the objects of a column; a column with more, such as one
whose objects have other keys in every row, is stored as JSON text."""
MAX_COLUMNS = 256
"""Number of source columns beyond which those that not every row has are stored together."""
_TOGETHER = "source_columns"
_NO_TYPE = "its values have no common type"
_MANY_FIELDS = f"its objects have more than {MAX_FIELDS} distinct fields"
_SPARSE = f"an object of the columns that not every row has: the source has more than {MAX_COLUMNS}"


@dataclass(frozen=True, kw_only=True)
class RowColumns:
    """Columns of the `default` config for the rows of one store.

    Attributes:
        features: Types of all columns: the toolkit's first, then the source's own.
        renamed: Name in the source -> name in the data set. A source column whose name the toolkit
            uses gets the prefix `source_`.
        as_text: Source columns stored as JSON text -> the reason.
        together: Source columns stored in one column, as the JSON text of an object.
        together_name: Name of that column.
    """

    features: Features
    renamed: Mapping[str, str]
    as_text: Mapping[str, str]
    together: frozenset[str]
    together_name: str

    @property
    def json_columns(self) -> dict[str, str]:
        """Name in the data set of each column of JSON text -> the reason."""
        return {self.renamed[name]: reason for name, reason in self.as_text.items()}

    @classmethod
    def collect(cls, store: Store, rubric: Rubric, beta_columns: Sequence[str]) -> Self:
        """Determine the columns from the values of all rows of a store.

        Args:
            store: Store with the source rows.
            rubric: Rubric of the annotations.
            beta_columns: Names of the columns of the table of betas.

        Raises:
            ValueError: If the messages have too many different keys.
        """
        values = _SourceValues()
        for row, _ in store.corpus.rows():
            values.add(row)
        # Sorted, because the order of a set differs between processes, and builds must not.
        # As JSON, because the arguments of tool calls differ in their keys.
        message = {"role": Value("string"), "content": Value("string")}
        if len(values.message_keys) > MAX_FIELDS:
            raise ValueError(
                f"{store.path}: the messages of the pairs have {len(values.message_keys)} keys "
                f"besides role and content, and a data set holds at most {MAX_FIELDS}: remove "
                "those that are no part of the conversation from the source"
            )
        message |= {key: Json() for key in sorted(values.message_keys)}
        # Top-level columns, because the Hub's viewer shows statistics of no others.
        betas = {
            column.name: _label(rubric) if column.type == "category" else Value(column.type)
            for column in BETA_COLUMNS
            if column.name in beta_columns
        }
        toolkit: dict[str, Any] = {
            "pair_id": betas.pop("pair_id"),
            **{part: List(message) for part in CONVERSATIONS},
            **({"tools": List(Json())} if values.tools else {}),
            **betas,
            "source_id": Value("string"),
            _SOURCE_ROW: Value("int64"),
        }
        together = values.sparse_columns()
        types = values.common_types(together)
        together_name = _free_name(_TOGETHER, set(types), types)
        if together:
            types[together_name] = _SPARSE
        # Also the names that this data set does not use: the trainer could take a source's `weight`
        # or `margin` for the toolkit's.
        # `datasets` reads columns with a `_type` as the definition of a feature.
        reserved = {*toolkit, "tools", *OPTIONAL, "_type"}
        renamed = {name: _free_name(name, reserved, types) for name in types}
        source = {
            renamed[name]: _feature(None if isinstance(kind, str) else kind)
            for name, kind in types.items()
        }
        return cls(
            features=Features(toolkit | source),
            renamed=renamed,
            as_text={name: kind for name, kind in types.items() if isinstance(kind, str)},
            together=together,
            together_name=together_name,
        )

    def values(self, row: SourceRow, beta: Mapping[str, Any]) -> dict[str, Any]:
        """Return a row of the data set.

        Args:
            row: Row of the source.
            beta: Row of the table of betas for the same pair.
        """
        # Null in the columns that only other rows have.
        values: dict[str, Any] = dict.fromkeys(self.features)
        values |= {
            column.name: beta[column.name]
            for column in BETA_COLUMNS
            if column.name in self.features
        }
        for part in CONVERSATIONS:
            values[part] = [self._message(turn) for turn in getattr(row.pair, part)]
        if "tools" in self.features:
            values["tools"] = list(row.pair.tools)
        values |= {"source_id": row.source_id, _SOURCE_ROW: row.row}
        together = {}
        for name, value in row.columns.items():
            if name in self.together:
                together[name] = value
            else:
                # A null stays null; as JSON, it would be the text `null`.
                is_text = name in self.as_text and value is not None
                values[self.renamed[name]] = _json_text(value) if is_text else value
        if together:
            values[self.renamed[self.together_name]] = _json_text(together)
        return values

    def _message(self, turn: Message) -> dict[str, Any]:
        return {key: turn.get(key) for key in self.features["prompt"].feature}


def check_columns(features: Features, rubric: Rubric | None) -> None:
    """Check that the toolkit's columns of the config `default` are there, with their types.

    Args:
        features: The columns.
        rubric: Rubric with the categories; None if it cannot be read.

    Raises:
        ValueError: Names the first column that is missing or has another type.
    """
    for column in BETA_COLUMNS:
        if column.name in features or column.name not in OPTIONAL:
            if column.type == "category":
                stored = getattr(features.get(column.name), "names", None) or ["none"]
                kind: Any = _label(rubric) if rubric else ClassLabel(names=stored)
            else:
                kind = Value(column.type)
            _check_type(features, column.name, kind)
    _check_type(features, "source_id", Value("string"))
    _check_type(features, _SOURCE_ROW, Value("int64"))
    keys = getattr(getattr(features.get("prompt"), "feature", None), "keys", tuple)()
    message = {"role": Value("string"), "content": Value("string")}
    message |= {key: Json() for key in keys if key not in message}
    for part in CONVERSATIONS:
        _check_type(features, part, List(message))
    if "tools" in features:
        _check_type(features, "tools", List(Json()))


def check_equal(features: Features, expected: Features) -> None:
    """Check that the columns of another config are exactly these.

    Raises:
        ValueError: Names the first column that is missing, has another type or should not be there.
    """
    for name, kind in expected.items():
        _check_type(features, name, kind)
    more = [name for name in features if name not in expected]
    if more:
        raise ValueError(f"the column {shorten(repr(more[0]), 80)} is not one that `build` writes")


def _check_type(features: Features, name: str, kind: Any) -> None:
    if name not in features:
        raise ValueError(f"there is no column {name}")
    if features[name] != kind:
        actual = shorten(str(features[name]), 120)
        raise ValueError(f"the column {name} has the type {actual}, not {shorten(str(kind), 120)}")


def pair_columns(features: Features) -> list[str]:
    """Return the names of the columns that hold the content of a pair."""
    return [*CONVERSATIONS, *(["tools"] if "tools" in features else [])]


def decode_pairs(rows: Sequence[Mapping[str, Any]], features: Features) -> list[Pair]:
    """Return the pairs of rows of the config `default`.

    Args:
        rows: Rows with at least the columns `pair_columns`, as stored in Parquet.
        features: Columns of the config.
    """
    names = pair_columns(features)
    columns = {name: [row[name] for row in rows] for name in names}
    # Decoding is slow and only needed for JSON: the tools, and keys other than role and content.
    if "tools" in names or len(features["prompt"].feature) > 2:
        columns = features.decode_batch(columns)
    return [
        Pair(**{name: tuple(columns[name][number] or ()) for name in names})
        for number in range(len(rows))
    ]


class _SourceValues:
    """Keys and types of the values in the rows of a source, collected row by row."""

    def __init__(self) -> None:
        self.message_keys: set[str] = set()
        self.tools = False
        self._rows = 0
        self._counts: Counter[str] = Counter()
        # A text instead of a type is the reason why the column is stored as JSON text.
        self._types: dict[str, pa.DataType | str] = {}
        self._large_integers: dict[str, set[_Place]] = {}

    def add(self, row: SourceRow) -> None:
        pair = row.pair
        for turn in (*pair.prompt, *pair.chosen, *pair.rejected):
            self.message_keys |= turn.keys() - {"role", "content"}
        self.tools = self.tools or bool(pair.tools)
        self._rows += 1
        self._counts.update(row.columns.keys())
        for name, value in row.columns.items():
            # Null at first, because it fits any type.
            kind = self._types.get(name, pa.null())
            if not isinstance(kind, str):
                self._types[name] = self._unify(name, kind, value)

    def _unify(self, name: str, kind: pa.DataType, value: Any) -> pa.DataType | str:
        """Return a type for all values so far and the next one, or why there is none."""
        try:
            value_kind = pa.array([value]).type  # null for None, which fits any type
            if _has_integers(value_kind):
                self._large_integers.setdefault(name, set()).update(_find_large(value))
            if _covers(kind, value_kind):
                return kind
            schemas = [pa.schema([("column", each)]) for each in (kind, value_kind)]
            unified = pa.unify_schemas(schemas, promote_options="permissive").field("column").type
        # OverflowError means an integer of more than 64 bits.
        except (pa.ArrowException, OverflowError):
            return _NO_TYPE
        if _count_fields(unified) > MAX_FIELDS:
            return _MANY_FIELDS
        return unified if _is_plain(unified) else _NO_TYPE

    def sparse_columns(self) -> frozenset[str]:
        """Return the columns to store together: none, unless there are too many columns."""
        if len(self._counts) <= MAX_COLUMNS:
            return frozenset()
        return frozenset(name for name, count in self._counts.items() if count < self._rows)

    def common_types(self, without: frozenset[str]) -> dict[str, pa.DataType | str]:
        """Return the type of each column except some, or why it is stored as JSON text."""
        types = {name: kind for name, kind in self._types.items() if name not in without}
        for name, places in self._large_integers.items():
            # Arrow's common type of integers and floats is float64, which rounds large integers.
            kind = types.get(name, "")
            if not isinstance(kind, str) and any(_is_floating_at(kind, place) for place in places):
                types[name] = _NO_TYPE
        return types


_Place = tuple[str | None, ...]
"""A place in nested values: the keys of objects, and None for the items of a list."""


def _find_large(value: Any, place: _Place = ()) -> Iterator[_Place]:
    """Yield the places of integers that are not exact as float64."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _find_large(item, (*place, key))
    elif isinstance(value, list):
        for item in value:
            yield from _find_large(item, (*place, None))
    elif isinstance(value, int) and abs(value) > _MAX_EXACT_FLOAT:
        yield place


def _is_floating_at(kind: pa.DataType, place: _Place) -> bool:
    for key in place:
        kind = kind.value_type if key is None else kind.field(key).type
    return pa.types.is_floating(kind)


@lru_cache(4096)
def _has_integers(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or any(map(_has_integers, _children(kind)))


def _covers(kind: pa.DataType, part: pa.DataType) -> bool:
    """Return whether a type fits all values of another; False if that is not clear at once."""
    if part == kind or pa.types.is_null(part):
        return True
    if pa.types.is_list(kind) and pa.types.is_list(part):
        return _covers(kind.value_type, part.value_type)
    if pa.types.is_struct(kind) and pa.types.is_struct(part):
        # Unifying the types of two large objects takes a thousand times as long.
        indices = [kind.get_field_index(part.field(n).name) for n in range(part.num_fields)]
        return all(
            index >= 0 and _covers(kind.field(index).type, part.field(number).type)
            for number, index in enumerate(indices)
        )
    return False


def _count_fields(kind: pa.DataType) -> int:
    """Return the number of fields of all objects in a type."""
    own = kind.num_fields if pa.types.is_struct(kind) else 0
    return own + sum(map(_count_fields, _children(kind)))


def _children(kind: pa.DataType) -> list[pa.DataType]:
    # Lists and structs are the only nested types that JSON values become.
    return [kind.field(number).type for number in range(kind.num_fields)]


def _json_text(value: Any) -> str:
    # NaN and infinities stay, in the spelling that Python's `json` writes and reads.
    return json.dumps(value, ensure_ascii=False)


def _is_plain(kind: pa.DataType, depth: int = 0) -> bool:
    """Return whether Parquet readers and `datasets.Features` both support the type."""
    if depth > _MAX_DEPTH:
        return False
    if pa.types.is_struct(kind):
        fields = [kind.field(number) for number in range(kind.num_fields)]
        # `datasets` would read a struct with a key such as `_type` as the definition of a feature.
        # Parquet ends a name at a NUL character.
        named = bool(fields) and all(
            field.name and field.name[0] != "_" and "\0" not in field.name for field in fields
        )
        return named and all(_is_plain(field.type, depth + 1) for field in fields)
    return not pa.types.is_list(kind) or _is_plain(kind.value_type, depth + 1)


def _feature(kind: pa.DataType | None) -> Any:
    # None stands for JSON text; a null type means that no row has a value.
    if kind is None or pa.types.is_null(kind):
        return Value("string")
    return datasets.features.features.generate_from_arrow_type(kind)


def _free_name(name: str, reserved: set[str], source: Mapping[str, Any]) -> str:
    # Parquet ends a name at a NUL character.
    free = name.replace("\0", "\\0")
    # The source may have a column with the new name as well.
    while free in reserved or (free != name and free in source):
        free = f"source_{free}"
    return free


def _label(rubric: Rubric) -> ClassLabel:
    return ClassLabel(names=list(rubric.categories))


def schedule_features(names: Iterable[str]) -> Features:
    """Return the columns of the `schedules` config: pair_id, `default`, and one per schedule."""
    betas = dict.fromkeys(("default", *names), Value("float64"))
    return Features({"pair_id": Value("string"), **betas})


_ANNOTATION_COLUMNS = (
    "pair_id", "teacher", "variant", "order", "attempt", "model", "revision", "status", "reason",
    "category", "better", "magnitude", "confidence", "expected_magnitude", "expected_confidence",
    "rationale", "raw", "logprobs", "finish_reason", "prompt_tokens", "completion_tokens",
)  # fmt: skip
_ANNOTATION_TYPES: dict[str, str] = {
    "attempt": "int32", "magnitude": "int32", "confidence": "int32", "prompt_tokens": "int32",
    "completion_tokens": "int32", "expected_magnitude": "float64", "expected_confidence": "float64",
}  # fmt: skip
"""Types of the columns that are not text or a category."""


def annotation_features(rubric: Rubric) -> Features:
    """Return the columns of the `annotations` config, which are fields of `StoredReply`."""
    return Features(
        {
            name: _label(rubric)
            if name == "category"
            else Value(_ANNOTATION_TYPES.get(name, "string"))
            for name in _ANNOTATION_COLUMNS
        }
    )
