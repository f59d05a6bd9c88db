"""Define the columns of the data set, and make a row from a source row and its beta."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import datasets
import pyarrow as pa
from datasets import ClassLabel, Features, Json, List, Value

from sp2dpo.betas.columns import BETA_COLUMNS, OPTIONAL
from sp2dpo.pairs.pair import Message, Pair
from sp2dpo.pairs.sources import SourceRow
from sp2dpo.panel.rubric import Rubric
from sp2dpo.store.store import Store

CONVERSATIONS = ("prompt", "chosen", "rejected")
_SOURCE_ROW = "source_row"
_MAX_DEPTH = 16
"""Maximum nesting of lists and objects in a column; deeper values are stored as JSON text."""
_MAX_EXACT_FLOAT = 2**53
"""Integers beyond this are not exact as float64."""


@dataclass(frozen=True, kw_only=True)
class RowColumns:
    """Columns of the `default` config for the rows of one store.

    Attributes:
        features: Types of all columns: the toolkit's first, then the source's own.
        renamed: Name in the source -> name in the data set. A source column whose name the toolkit
            uses gets the prefix `source_`.
        as_text: Source columns stored as JSON text because their values have no common type.
    """

    features: Features
    renamed: Mapping[str, str]
    as_text: frozenset[str]

    @classmethod
    def collect(cls, store: Store, rubric: Rubric, beta_columns: Sequence[str]) -> Self:
        """Determine the columns from the values of all rows of a store.

        Args:
            store: Store with the source rows.
            rubric: Rubric of the annotations.
            beta_columns: Names of the columns of the table of betas.
        """
        values = _SourceValues()
        for row, _ in store.corpus.rows():
            values.add(row)
        # Sorted, because the order of a set differs between processes, and builds must not.
        # As JSON, because the arguments of tool calls differ in their keys.
        message = {"role": Value("string"), "content": Value("string")}
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
        types = values.common_types()
        # Also the names that this data set does not use: the trainer could take a source's `weight`
        # or `margin` for the toolkit's.
        reserved = {*toolkit, "tools", *OPTIONAL}
        renamed = {name: _free_name(name, reserved, types) for name in types}
        source = {renamed[name]: _feature(kind) for name, kind in types.items()}
        as_text = frozenset(name for name, kind in types.items() if kind is None)
        return cls(features=Features(toolkit | source), renamed=renamed, as_text=as_text)

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
        for name, value in row.columns.items():
            # A null stays null; as JSON, it would be the text `null`.
            is_text = name in self.as_text and value is not None
            values[self.renamed[name]] = json.dumps(value, ensure_ascii=False) if is_text else value
        return values

    def _message(self, turn: Message) -> dict[str, Any]:
        return {key: turn.get(key) for key in self.features["prompt"].feature}


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
        self._types: dict[str, pa.DataType | None] = {}
        self._large_integers: set[str] = set()

    def add(self, row: SourceRow) -> None:
        pair = row.pair
        for turn in (*pair.prompt, *pair.chosen, *pair.rejected):
            self.message_keys |= turn.keys() - {"role", "content"}
        self.tools = self.tools or bool(pair.tools)
        for name, value in row.columns.items():
            # Null at first, because it fits any type.
            self._types[name] = _unify(self._types.get(name, pa.null()), value)
            if isinstance(value, int) and abs(value) > _MAX_EXACT_FLOAT:
                self._large_integers.add(name)

    def common_types(self) -> dict[str, pa.DataType | None]:
        """Return the type of each column; None if no type represents all its values exactly."""
        # Arrow's common type of integers and floats is float64, which rounds large integers.
        return {
            name: None
            if kind is not None and pa.types.is_floating(kind) and name in self._large_integers
            else kind
            for name, kind in self._types.items()
        }


def _unify(kind: pa.DataType | None, value: Any) -> pa.DataType | None:
    """Return a type for all values of a column so far and the next one; None if no type fits."""
    if kind is None:
        return None
    try:
        value_kind = pa.array([value]).type  # null for None, which fits any type
        if value_kind in (kind, pa.null()):
            return kind
        schemas = [pa.schema([("column", each)]) for each in (kind, value_kind)]
        unified = pa.unify_schemas(schemas, promote_options="permissive").field("column").type
    # OverflowError means an integer of more than 64 bits.
    except (pa.ArrowException, OverflowError):
        return None
    return unified if _is_plain(unified) else None


def _is_plain(kind: pa.DataType, depth: int = 0) -> bool:
    """Return whether Parquet readers and `datasets.Features` both support the type."""
    if depth > _MAX_DEPTH:
        return False
    if pa.types.is_struct(kind):
        fields = [kind.field(number) for number in range(kind.num_fields)]
        # `datasets` would read a struct with a key such as `_type` as the definition of a feature.
        named = bool(fields) and all(field.name and field.name[0] != "_" for field in fields)
        return named and all(_is_plain(field.type, depth + 1) for field in fields)
    return not pa.types.is_list(kind) or _is_plain(kind.value_type, depth + 1)


def _feature(kind: pa.DataType | None) -> Any:
    # None stands for JSON text; a null type means that no row has a value.
    if kind is None or pa.types.is_null(kind):
        return Value("string")
    return datasets.features.features.generate_from_arrow_type(kind)


def _free_name(name: str, reserved: set[str], source: Mapping[str, Any]) -> str:
    while name in reserved:
        name = f"source_{name}"
        # The source may have a column with the prefixed name as well.
        if name in source:
            reserved = reserved | {name}
    return name


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
