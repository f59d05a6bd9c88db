"""The columns of the data set: their types, and the row that a source row and a beta make."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import datasets
import pyarrow as pa
from datasets import ClassLabel, Features, Json, List, Value

from sp2dpo.pairs import Message
from sp2dpo.rubric import Rubric
from sp2dpo.sources import SourceRow
from sp2dpo.store import Store

_BETA_COLUMNS = {
    "beta": Value("float64"),
    "has_beta": Value("bool"),
    "gap": Value("float64"),
    "category": None,  # a ClassLabel with the rubric's names
    "magnitude": Value("float64"),
    "confidence": Value("float64"),
    "spread": Value("float64"),
    "agreement": Value("float64"),
    "votes": Value("int32"),
    "teachers": Value("int32"),
}
_OURS = ("pair_id", "prompt", "chosen", "rejected", "tools", *_BETA_COLUMNS, "source_id")
_SOURCE_ROW = "source_row"


@dataclass(frozen=True, kw_only=True)
class RowColumns:
    """How the rows of one store become rows of the `default` config.

    Attributes:
        features: of all columns, ours first, then the source's own.
        renamed: the source's name -> the data set's; a name that we use gets `source_` before it.
    """

    features: Features
    renamed: Mapping[str, str]

    @classmethod
    def of(cls, store: Store, rubric: Rubric) -> Self:
        """The columns that a store's rows need: what they hold decides the types."""
        seen = _Seen()
        for row, _ in store.corpus.rows():
            seen.take(row)
        message = {"role": Value("string"), "content": Value("string")}
        message |= {key: Json() for key in sorted(seen.message_keys)}
        ours: dict[str, Any] = {
            "pair_id": Value("string"),
            "prompt": List(message),
            "chosen": List(message),
            "rejected": List(message),
            **({"tools": List(Json())} if seen.tools else {}),
            **_BETA_COLUMNS,
            "category": _label(rubric),
            "source_id": Value("string"),
            _SOURCE_ROW: Value("int64"),
        }
        renamed = {name: _free_name(name, {*ours, *_OURS}, seen.types) for name in seen.types}
        own = {renamed[name]: _feature(kind) for name, kind in seen.types.items()}
        return cls(features=Features(ours | own), renamed=renamed)

    def values(self, row: SourceRow, beta: Mapping[str, Any]) -> dict[str, Any]:
        """The row as the data set holds it.

        Args:
            row: from the store.
            beta: its pair's row in the table of betas.
        """
        said: dict[str, Any] = dict.fromkeys(self.features)
        said |= {name: beta[name] for name in ("pair_id", *_BETA_COLUMNS)}
        for part in ("prompt", "chosen", "rejected"):
            said[part] = [self._message(turn) for turn in getattr(row.pair, part)]
        if "tools" in self.features:
            said["tools"] = list(row.pair.tools)
        said |= {"source_id": row.source_id, _SOURCE_ROW: row.row}
        return said | {self.renamed[name]: value for name, value in row.columns.items()}

    def _message(self, turn: Message) -> dict[str, Any]:
        return {key: turn.get(key) for key in self.features["prompt"].feature}


class _Seen:
    """What the rows of a source hold, gathered one by one."""

    def __init__(self) -> None:
        self.types: dict[str, pa.DataType | None] = {}
        self.message_keys: set[str] = set()
        self.tools = False

    def take(self, row: SourceRow) -> None:
        pair = row.pair
        for turn in (*pair.prompt, *pair.chosen, *pair.rejected):
            self.message_keys |= turn.keys() - {"role", "content"}
        self.tools = self.tools or bool(pair.tools)
        for name, value in row.columns.items():
            self.types[name] = _common(self.types.get(name, pa.null()), value)


def _common(known: pa.DataType | None, value: Any) -> pa.DataType | None:
    """The type of a column so far and of one more value; None where no one type holds both."""
    if known is None:
        return None
    try:
        found = pa.array([value]).type
        if found in (known, pa.null()):
            return known
        fields = [pa.schema([("column", one)]) for one in (known, found)]
        return pa.unify_schemas(fields, promote_options="permissive").field("column").type
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return None


def _feature(kind: pa.DataType | None) -> Any:
    if kind is None or pa.types.is_null(kind):
        return Json() if kind is None else Value("string")
    return datasets.features.features.generate_from_arrow_type(kind)


def _free_name(name: str, taken: set[str], source: Mapping[str, Any]) -> str:
    while name in taken:
        name = f"source_{name}"
        if name in source:
            taken = taken | {name}
    return name


def _label(rubric: Rubric) -> ClassLabel:
    return ClassLabel(names=list(rubric.categories))


def annotation_features(rubric: Rubric) -> Features:
    """The columns of the `annotations` config; `Store.replies` has all of them."""
    text, count = Value("string"), Value("int32")
    return Features(
        {
            "pair_id": text,
            "teacher": text,
            "variant": text,
            "order": text,
            "attempt": count,
            "model": text,
            "revision": text,
            "status": text,
            "reason": text,
            "category": _label(rubric),
            "magnitude": count,
            "confidence": count,
            "rationale": text,
            "raw": text,
            "finish_reason": text,
            "prompt_tokens": count,
            "completion_tokens": count,
        }
    )
