"""The columns of the data set: their types, and the row that a source row and a beta make."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import datasets
import pyarrow as pa
from datasets import ClassLabel, Features, Json, List, Value

from sp2dpo.pairs.pair import Message
from sp2dpo.pairs.sources import SourceRow
from sp2dpo.panel.rubric import Rubric
from sp2dpo.store.store import Store

_BETA_COLUMNS = {
    "beta": Value("float64"),
    "has_beta": Value("bool"),
    "keep": Value("bool"),
    "gap": Value("float64"),
    "signed_gap": Value("float64"),
    "label_disputed": Value("bool"),
    "category": None,  # a ClassLabel with the rubric's names
    "magnitude": Value("float64"),
    "confidence": Value("float64"),
    "spread": Value("float64"),
    "agreement": Value("float64"),
    "votes": Value("int32"),
    "teachers": Value("int32"),
}
_ARM_COLUMNS = {
    "flip": Value("bool"),
    "weight": Value("float64"),
    "margin": Value("float64"),
    "reward_margin": Value("float64"),
}
"""Only where the arm of the betas makes them."""
_OURS = (
    "pair_id", "prompt", "chosen", "rejected", "tools", *_BETA_COLUMNS, *_ARM_COLUMNS, "source_id",
)  # fmt: skip
_SOURCE_ROW = "source_row"
_DEEPEST = 16
"""Levels of lists and objects in a column; deeper ones are kept as JSON text."""


@dataclass(frozen=True, kw_only=True)
class RowColumns:
    """How the rows of one store become rows of the `default` config.

    Attributes:
        features: of all columns, ours first, then the source's own.
        renamed: the source's name -> the data set's; a name that we use gets `source_` before it.
        as_text: the source's columns whose values have no common type: they are kept as JSON text.
    """

    features: Features
    renamed: Mapping[str, str]
    as_text: frozenset[str]

    @classmethod
    def collect(cls, store: Store, rubric: Rubric, made: Sequence[str]) -> Self:
        """The columns that a store's rows need: what they hold decides the types.

        Args:
            store: with the rows.
            rubric: that was asked under.
            made: columns of the table of betas.
        """
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
            **{name: kind for name, kind in _ARM_COLUMNS.items() if name in made},
            "source_id": Value("string"),
            _SOURCE_ROW: Value("int64"),
        }
        types = seen.settled()
        renamed = {name: _free_name(name, {*ours, *_OURS}, types) for name in types}
        own = {renamed[name]: _feature(kind) for name, kind in types.items()}
        as_text = frozenset(name for name, kind in types.items() if kind is None)
        return cls(features=Features(ours | own), renamed=renamed, as_text=as_text)

    def values(self, row: SourceRow, beta: Mapping[str, Any]) -> dict[str, Any]:
        """The row as the data set holds it.

        Args:
            row: from the store.
            beta: its pair's row in the table of betas.
        """
        said: dict[str, Any] = dict.fromkeys(self.features)
        ours = ("pair_id", *_BETA_COLUMNS, *_ARM_COLUMNS)
        said |= {name: beta[name] for name in ours if name in self.features}
        for part in ("prompt", "chosen", "rejected"):
            said[part] = [self._message(turn) for turn in getattr(row.pair, part)]
        if "tools" in self.features:
            said["tools"] = list(row.pair.tools)
        said |= {"source_id": row.source_id, _SOURCE_ROW: row.row}
        for name, value in row.columns.items():
            text = name in self.as_text and value is not None
            said[self.renamed[name]] = json.dumps(value, ensure_ascii=False) if text else value
        return said

    def _message(self, turn: Message) -> dict[str, Any]:
        return {key: turn.get(key) for key in self.features["prompt"].feature}


class _Seen:
    """What the rows of a source hold, gathered one by one."""

    def __init__(self) -> None:
        self.types: dict[str, pa.DataType | None] = {}
        self.message_keys: set[str] = set()
        self.tools = False
        self._beyond_doubles: set[str] = set()

    def take(self, row: SourceRow) -> None:
        pair = row.pair
        for turn in (*pair.prompt, *pair.chosen, *pair.rejected):
            self.message_keys |= turn.keys() - {"role", "content"}
        self.tools = self.tools or bool(pair.tools)
        for name, value in row.columns.items():
            self.types[name] = _common(self.types.get(name, pa.null()), value)
            if isinstance(value, int) and abs(value) > 2**53:
                self._beyond_doubles.add(name)

    def settled(self) -> dict[str, pa.DataType | None]:
        """The type of each column; None where no one type holds all its values as they are."""
        return {
            name: None
            if kind is not None and pa.types.is_floating(kind) and name in self._beyond_doubles
            else kind
            for name, kind in self.types.items()
        }


def _common(known: pa.DataType | None, value: Any) -> pa.DataType | None:
    """The type of a column so far and of one more value; None where no one type holds both."""
    if known is None:
        return None
    try:
        found = pa.array([value]).type
        if found in (known, pa.null()):
            return known
        fields = [pa.schema([("column", one)]) for one in (known, found)]
        both = pa.unify_schemas(fields, promote_options="permissive").field("column").type
    except (pa.ArrowException, OverflowError):
        return None
    return both if _is_plain(both) else None


def _is_plain(kind: pa.DataType, depth: int = 0) -> bool:
    """Whether every reader of Parquet and of the data set's features takes the type."""
    if depth > _DEEPEST:
        return False
    if pa.types.is_struct(kind):
        parts = [kind.field(number) for number in range(kind.num_fields)]
        named = bool(parts) and all(part.name and part.name[0] != "_" for part in parts)
        return named and all(_is_plain(part.type, depth + 1) for part in parts)
    return not pa.types.is_list(kind) or _is_plain(kind.value_type, depth + 1)


def _feature(kind: pa.DataType | None) -> Any:
    if kind is None or pa.types.is_null(kind):
        return Value("string")
    return datasets.features.features.generate_from_arrow_type(kind)


def _free_name(name: str, taken: set[str], source: Mapping[str, Any]) -> str:
    while name in taken:
        name = f"source_{name}"
        if name in source:
            taken = taken | {name}
    return name


def schedule_features(names: Iterable[str]) -> Features:
    """The columns of the `schedules` config: the pair, its beta in `default`, and the others."""
    betas = dict.fromkeys(("default", *names), Value("float64"))
    return Features({"pair_id": Value("string"), **betas})


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
            "better": text,
            "magnitude": count,
            "confidence": count,
            "expected_magnitude": Value("float64"),
            "expected_confidence": Value("float64"),
            "rationale": text,
            "raw": text,
            "logprobs": text,
            "finish_reason": text,
            "prompt_tokens": count,
            "completion_tokens": count,
        }
    )
