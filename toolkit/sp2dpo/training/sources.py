"""The data sets of a run: how their columns are renamed and completed, and how they are mixed."""

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from datasets import (
    ClassLabel,
    Dataset,
    Features,
    IterableDataset,
    List,
    Value,
    concatenate_datasets,
    interleave_datasets,
)

from sp2dpo.pairs.reading import parse_columns
from sp2dpo.settings import did_you_mean
from sp2dpo.training.columns import CATEGORY, MARK_COLUMNS, PAIR_COLUMNS, RULES
from sp2dpo.training.provenance import display_name, read_split
from sp2dpo.training.reference import REFERENCE
from sp2dpo.training.rows import IDS, MEDIA, ROW, SOURCE, TEXTS, column_names

USED_COLUMNS = (
    *TEXTS, "tools", "chat_template_kwargs", *PAIR_COLUMNS, *MARK_COLUMNS, CATEGORY, *REFERENCE,
    *IDS, *MEDIA,
)  # fmt: skip
"""Columns that a run reads; a mixture has no others."""
_SAMPLED = 100
"""Rows of a stream from which its columns are inferred if it does not declare them."""
_NUMBER = re.compile(r"u?int|float|decimal")
"""Types of columns of numbers."""


@dataclass(kw_only=False)
class SourceConfig:
    """One data set of a mixture, an entry of `datasets`; the keys of TRL's DatasetConfig and more.

    Attributes:
        path: A folder, a file, or the name of a data set on the Hub, as `dataset`.
        name: Name of its config.
        split: The split to read.
        revision: Commit, tag or branch on the Hub.
        data_dir: Folder of a data set that is not from sp2dpo, as for `datasets.load_dataset`.
        data_files: Files of such a data set, as for `datasets.load_dataset`.
        columns: Names of its columns by the names that a run uses, such as `{prompt: question}`; a
            list selects columns, as in TRL.
        constants: Values of per-pair columns that it does not have, such as `{beta: 0.1}`.
        weight: Its share of the mixture relative to the other weights; set it for all data sets or
            for none.
        fraction: TRL's name for `weight`.

    Raises:
        ValueError: On a bad value.
    """

    path: str
    name: str | None = None
    split: str = "train"
    revision: str | None = None
    data_dir: str | None = None
    data_files: Any = None
    columns: Any = None
    constants: Any = field(default_factory=dict)
    weight: float | None = None
    fraction: float | None = None

    def __post_init__(self) -> None:
        where = f"datasets: {self.path}"
        if self.columns is not None:
            self.columns = check_columns(self.columns, where)
        if not isinstance(self.constants, Mapping):
            raise ValueError(f"{where}: constants must be a mapping, such as {{beta: 0.1}}")
        for column, value in self.constants.items():
            if column not in RULES:
                raise ValueError(
                    f"{where}: constants takes {', '.join(RULES)}, not {column}"
                    f"{did_you_mean(column, RULES)}"
                )
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number or not RULES[column].is_legal(value):
                words = RULES[column].words
                raise ValueError(f"{where}: the constant {column} is {value!r}, not of the {words}")
        if self.fraction is not None:
            if self.weight is not None:
                raise ValueError(f"{where}: weight and fraction are the same setting: set one")
            self.weight, self.fraction = self.fraction, None
        weight = self.weight
        number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
        if weight is not None and not (number and 0 < weight < float("inf")):
            raise ValueError(f"{where}: weight must be a number above 0, not {weight!r}")

    @classmethod
    def parse(cls, value: Any) -> "SourceConfig":
        """Return an entry of `datasets`, which may be the path alone.

        Raises:
            ValueError: If a key is unknown or the path is missing.
        """
        if isinstance(value, SourceConfig):
            return value
        if isinstance(value, str):
            return cls(value)
        if not isinstance(value, Mapping):
            raise ValueError(f"datasets: an entry is a path or a mapping, not {value!r}")
        legal = [setting.name for setting in fields(cls)]
        for key in value:
            if key not in legal:
                raise ValueError(
                    f"datasets: unknown key {key} of {value.get('path')}{did_you_mean(key, legal)}"
                )
        if not value.get("path"):
            raise ValueError("datasets: an entry has no path")
        return cls(**value)

    @property
    def label(self) -> str:
        """The name of the data set in messages and in results.json."""
        return f"{display_name(self.path)}/{self.name}" if self.name else display_name(self.path)


def check_columns(columns: Any, where: str) -> dict[str, str] | list[str]:
    """Return a mapping of columns, checked; it may be text of the form `prompt=question`.

    Raises:
        ValueError: If it is neither a mapping nor a list, if a name is not one that a run uses, or
            if a column is named twice.
    """
    if isinstance(columns, str):
        columns = parse_columns(columns)
    if isinstance(columns, list):
        return list(map(str, columns))
    if not isinstance(columns, Mapping):
        raise ValueError(
            f"{where}: columns must be a mapping, such as {{prompt: question}}, not {columns!r}"
        )
    for ours, theirs in columns.items():
        if ours not in USED_COLUMNS:
            guess = did_you_mean(ours, USED_COLUMNS)
            if not guess and theirs in USED_COLUMNS:
                guess = f", did you mean {theirs}: {ours}?"
            raise ValueError(
                f"{where}: columns maps names that a run uses to those of the data set, and a run"
                f" uses no {ours}{guess}"
            )
        if not isinstance(theirs, str):
            raise ValueError(f"{where}: the column {ours} must be a name, not {theirs!r}")
    names = list(columns.values())
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"{where}: columns names {twice} twice")
    return dict(columns)


def read_source(source: SourceConfig, *, streaming: bool) -> Any:
    """Return the rows of a data set, with its columns renamed and its constants added.

    Args:
        source: The data set.
        streaming: Whether to return an IterableDataset.

    Raises:
        ValueError: If it cannot be read, or a column does not exist or is in the way.
    """
    rows = read_split(
        source.path, source.split, source.revision, config=source.name, streaming=streaming,
        data_dir=source.data_dir, data_files=source.data_files,
    )  # fmt: skip
    rows = map_columns(rows, source.columns, source.label)
    present = column_names(rows)
    for column, value in source.constants.items():
        if column in present:
            raise ValueError(
                f"{source.label} has a column {column}, so a constant would replace its values:"
                f" remove {column} from constants, or leave the column out of columns"
            )
        if isinstance(rows, Dataset):
            rows = rows.add_column(column, [float(value)] * len(rows))
        else:
            types = stream_features(rows) | {column: Value("float64")}
            rows = rows.map(_Constant(column, float(value)), features=Features(types))
    return rows


@dataclass(frozen=True)
class _Constant:
    """A function for `map` that adds a constant column; workers can unpickle it."""

    column: str
    value: float

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return {self.column: self.value}


def map_columns(rows: Any, columns: Mapping[str, str] | Sequence[str] | None, label: str) -> Any:
    """Return the rows with columns renamed to the names that a run uses.

    Args:
        rows: A Dataset or an IterableDataset.
        columns: Names of the columns by the new names; a column that has a new name already is
            replaced. A list selects columns.
        label: Name of the data set in messages.

    Raises:
        ValueError: If a column does not exist.
    """
    if not columns:
        return rows
    present = column_names(rows)
    wanted = list(columns.values()) if isinstance(columns, Mapping) else list(columns)
    for name in wanted:
        if name not in present:
            raise ValueError(
                f"{label} has no column {name} (it has {', '.join(present)})"
                f"{did_you_mean(name, present)}"
            )
    if not isinstance(columns, Mapping):
        return rows.select_columns(wanted)
    changed = {theirs: ours for ours, theirs in columns.items() if ours != theirs}
    replaced = [ours for ours in columns if ours in present and ours not in columns.values()]
    if replaced:
        rows = rows.remove_columns(replaced)
    # By way of other names, because two columns may exchange theirs.
    away = {theirs: f"_mapped_{ours}" for theirs, ours in changed.items()}
    rows = rows.rename_columns(away)
    return rows.rename_columns({away[theirs]: ours for theirs, ours in changed.items()})


def stream_features(rows: Any) -> Features:
    """Return the types of a stream's columns, inferred from its first rows if it declares none.

    Raises:
        ValueError: If the stream has no rows.
    """
    if rows.features is not None:
        return Features(rows.features)
    first = list(rows.take(_SAMPLED))
    if not first:
        raise ValueError("a stream has no rows: choose another data set or split")
    names = dict.fromkeys(name for row in first for name in row)
    return Dataset.from_dict({name: [row.get(name) for row in first] for name in names}).features


@dataclass(frozen=True, kw_only=True)
class Part:
    """The rows of one data set of a mixture.

    Attributes:
        label: Name of the data set.
        rows: Its rows, with the columns of a run.
        weight: Its weight; None if no data set has one.
    """

    label: str
    rows: Any
    weight: float | None


def mixture_sizes(rows: Sequence[int], weights: Sequence[float]) -> list[int]:
    """Return the number of rows of each data set in a mixture, in which no row is repeated.

    With shares s_k = w_k / sum(w), the mixture has N = min(n_k / s_k) rows, of which round(s_k N)
    are from data set k, as with `fraction` in TRL.

    Args:
        rows: Number of rows of each data set, n_k.
        weights: Weight of each data set, w_k.
    """
    shares = [weight / sum(weights) for weight in weights]
    total = min(count / share for count, share in zip(rows, shares, strict=True))
    # At least one, or a weight that is set would have no effect.
    return [
        min(count, max(1, round(share * total))) for count, share in zip(rows, shares, strict=True)
    ]


def sample_rows(rows: Dataset, count: int, *, seed: int, number: int) -> Dataset:
    """Return a random sample of the rows, in their order.

    Args:
        rows: The rows.
        count: Number of rows to take.
        seed: Seed of the mixture.
        number: Number of the data set in the mixture: each has its own random numbers.
    """
    if count == len(rows):
        return rows
    # Python's generator, whose sequence is the same in all versions and processes.
    chosen = random.Random(f"{seed}/{number}").sample(range(len(rows)), count)
    return rows.select(sorted(chosen))


def concatenate(parts: Sequence[Part]) -> Dataset:
    """Return the rows of several data sets, one after the other, with a column SOURCE.

    Raises:
        ValueError: If a column has types that do not fit together.
    """
    selected = [_select_used(part.rows) for part in parts]
    features = common_features({p.label: r.features for p, r in zip(parts, selected, strict=True)})
    aligned = []
    for part, rows in zip(parts, selected, strict=True):
        rows = _with_names(rows, features)
        for name, feature in features.items():
            if name not in rows.column_names:
                rows = rows.add_column(name, [None] * len(rows), feature=feature)
        wanted = Features({name: features[name] for name in rows.column_names})
        rows = rows if rows.features == wanted else rows.cast(wanted)
        aligned.append(rows.add_column(SOURCE, [part.label] * len(rows)))
    return concatenate_datasets(aligned)


def interleave(parts: Sequence[Part], *, seed: int) -> IterableDataset:
    """Return a stream in which each row is from a random data set, with its weight as probability.

    The stream ends when the first data set does.

    Raises:
        ValueError: If a column has types that do not fit together.
    """
    streams = [_select_used(part.rows) for part in parts]
    types = {part.label: stream_features(rows) for part, rows in zip(parts, streams, strict=True)}
    features = common_features(types)
    all_types = Features(features | {SOURCE: Value("string")})
    aligned = []
    for part, rows in zip(parts, streams, strict=True):
        classes = _renumbering(types[part.label].get(CATEGORY), features.get(CATEGORY))
        align = _Aligned(columns=tuple(features), label=part.label, classes=classes)
        aligned.append(rows.map(align, features=all_types))
    weights = [part.weight or 0.0 for part in parts]
    shares = [weight / sum(weights) for weight in weights]
    return interleave_datasets(aligned, shares, seed, stopping_strategy="first_exhausted")


@dataclass(frozen=True, kw_only=True)
class _Aligned:
    """A function for `map` that gives a row of a stream all columns of the mixture.

    Attributes:
        columns: The columns.
        label: Name of the data set, for the column SOURCE.
        classes: What replaces each class number of `category`; None to leave them.
    """

    columns: tuple[str, ...]
    label: str
    classes: tuple[int | str, ...] | None

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        aligned = {name: row.get(name) for name in self.columns} | {SOURCE: self.label}
        number: Any = aligned.get(CATEGORY)
        if self.classes is not None and number is not None:
            aligned[CATEGORY] = self.classes[number]
        return aligned


def _renumbering(own: Any, wanted: Any) -> tuple[int | str, ...] | None:
    """Return what replaces the class numbers of a type so that they have another type."""
    if not isinstance(own, ClassLabel) or own == wanted:
        return None
    if isinstance(wanted, ClassLabel):
        return tuple(wanted.names.index(name) for name in own.names)
    return tuple(own.names)


def _select_used(rows: Any) -> Any:
    names = [name for name in column_names(rows) if name in (*USED_COLUMNS, ROW)]
    return rows.select_columns(names)


def common_features(types: Mapping[str, Features]) -> Features:
    """Return types of columns to which those of several data sets can be cast.

    Numbers become float64; messages get the keys of all messages; categories get the names of all
    data sets, or become text if one has them as text.

    Args:
        types: The columns of each data set, by its name.

    Raises:
        ValueError: If a column has types that do not fit together.
    """
    features: dict[str, Any] = {}
    owner: dict[str, str] = {}
    for label, columns in types.items():
        for name, feature in columns.items():
            if name in PAIR_COLUMNS or name in REFERENCE:
                # A cast would turn `true` and text into numbers; one data set alone refuses them.
                if not (_is_null(feature) or _NUMBER.match(getattr(feature, "dtype", ""))):
                    raise ValueError(
                        f"the column {name} of {label} has the type {_describe(feature)}, which is"
                        " not a number: convert it, or leave it out by columns"
                    )
                features[name] = Value("float64")
                continue
            merged = _merge(features[name], feature) if name in features else feature
            if merged is None:
                raise ValueError(
                    f"the column {name} of {owner[name]} and of {label} have different types"
                    f" ({_describe(features[name])} and {_describe(feature)}): leave it out by"
                    " columns, or map another column to it"
                )
            features[name] = merged
            owner.setdefault(name, label)
    return Features(features)


def _merge(left: Any, right: Any) -> Any:
    """Return a type for the values of both types; None if there is none."""
    if left == right or _is_null(right):
        return left
    if _is_null(left):
        return right
    if isinstance(left, ClassLabel) and isinstance(right, ClassLabel):
        return ClassLabel(names=list(dict.fromkeys([*left.names, *right.names])))
    if isinstance(left, ClassLabel | Value) and isinstance(right, ClassLabel | Value):
        return _merge_values(left, right)
    if isinstance(left, List) and isinstance(right, List):
        inner = _merge(left.feature, right.feature)
        return None if inner is None else List(inner)
    if isinstance(left, dict) and isinstance(right, dict):
        merged = {
            key: _merge(left.get(key, v), right.get(key, v)) for key, v in (left | right).items()
        }
        return None if None in merged.values() else merged
    return None


def _merge_values(left: ClassLabel | Value, right: ClassLabel | Value) -> Value | None:
    kinds = ["string" if isinstance(kind, ClassLabel) else kind.dtype for kind in (left, right)]
    if all("string" in kind for kind in kinds):
        return Value("string")
    numbers = ("int", "uint", "float", "decimal")
    return Value("float64") if all(kind.startswith(numbers) for kind in kinds) else None


def _is_null(feature: Any) -> bool:
    return isinstance(feature, Value) and feature.dtype == "null"


def _describe(feature: Any) -> str:
    if isinstance(feature, Value):
        return "text" if "string" in feature.dtype else feature.dtype
    return "a list" if isinstance(feature, List) else type(feature).__name__


def _with_names(rows: Dataset, features: Features) -> Dataset:
    """Return the rows with categories as text if their class numbers have other names."""
    own, wanted = rows.features.get(CATEGORY), features.get(CATEGORY)
    if not isinstance(own, ClassLabel) or own == wanted:
        return rows
    texts = [None if number is None else own.names[number] for number in rows[CATEGORY]]
    return rows.remove_columns(CATEGORY).add_column(CATEGORY, texts, feature=Value("string"))
