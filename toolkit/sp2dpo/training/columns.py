"""Check and fill the per-pair columns of a data set, apply its marks, and collate its batches."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import torch
from accelerate.logging import get_logger
from datasets import ClassLabel, Dataset, Features, IterableDataset, Value

from sp2dpo.settings import did_you_mean
from sp2dpo.training.rows import column_names

MISSING_VALUES = ("error", "drop", "constant")
CATEGORY = "category"
"""Name of the ClassLabel column that is added to the batch for metrics per category."""
MARK_COLUMNS = ("keep", "flip")
"""Boolean columns: whether to train on a row, and whether to exchange its two responses."""

logger = get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class ColumnRule:
    """The legal values of a column.

    Attributes:
        is_legal: Whether a number is legal.
        words: Description of the legal values, for messages.
        neutral: Value that replaces a null under `missing_values: constant`; None means the
            global beta.
    """

    is_legal: Callable[[float], bool]
    words: str
    neutral: float | None


# The loss is float32: a smaller number would lose digits or become 0, a larger one infinite.
SMALLEST, LARGEST = torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max


def is_beta(value: Any) -> bool:
    """Return whether a value is a positive number that float32 can represent."""
    return _is_number(value) and SMALLEST <= value <= LARGEST


def _is_number(value: Any) -> bool:
    # In Python a bool is an int: `true` in a column of numbers is a mistake, not a 1.
    return isinstance(value, (int, float)) and not isinstance(value, bool)


RULES: Mapping[str, ColumnRule] = {
    "beta": ColumnRule(is_legal=is_beta, words="finite float32 numbers above 0", neutral=None),
    "weight": ColumnRule(
        is_legal=lambda value: value == 0 or is_beta(value),
        words="finite float32 numbers, 0 or more",
        neutral=1.0,
    ),
    "margin": ColumnRule(
        # Below the smallest number, a margin is as good as 0.
        is_legal=lambda value: abs(value) <= LARGEST,
        words="finite float32 numbers",
        neutral=0.0,
    ),
    "label_smoothing": ColumnRule(
        # At 0.5 a label says nothing, and robust DPO divides by 1 - 2 eps.
        is_legal=lambda value: 0 <= value < 0.5,
        words="numbers of 0 or more, below 0.5",
        neutral=0.0,
    ),
}
PAIR_COLUMNS = tuple(RULES)
LARGEST_SMOOTHING = 0.4999
"""Stands for a label that is more likely wrong than right where it is not exchanged."""


@dataclass(frozen=True)
class PairCollator:
    """A collator that adds the per-pair columns to the batch of another collator.

    Attributes:
        inner: The other collator; it receives the examples unchanged.
        columns: Names of the columns, added as float64 tensors of shape (B,). A column is added
            whatever its values, so that all processes of a run agree on the keys of a batch.
        category: Whether to add the column `category` too, as class numbers; null becomes -1.
        exo: Whether the loss `exo_pair` uses the column `label_smoothing`, which must be above 0.
    """

    inner: Callable[[list[dict[str, Any]]], dict[str, Any]]
    columns: tuple[str, ...]
    category: bool = False
    exo: bool = False

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the batch; raise ValueError if an example of a stream has an illegal value."""
        batch = self.inner(examples)
        where = f"a batch (it has the columns {', '.join(examples[0])})"
        for column in self.columns:
            values = [example.get(column) for example in examples]
            check_values(column, values, where)
            if self.exo and column == "label_smoothing":
                check_exo(values, where)
            batch[column] = torch.tensor(values, dtype=torch.float64)
        if self.category:
            # A tensor has no null; the metrics leave out negative numbers.
            numbers = [example.get(CATEGORY) for example in examples]
            batch[CATEGORY] = torch.tensor([-1 if n is None else n for n in numbers])
        return batch


def without_format(dataset: Any) -> Any:
    """Return a data set whose rows hold Python values, whatever `with_format` was called with.

    TRL joins the tokens of prompt and response with `+`, which adds the numbers of two tensors, and
    a format such as torch rounds the columns to float32. A transform of the user is left in place.
    """
    if isinstance(dataset, IterableDataset):
        return dataset.with_format(None)
    if isinstance(dataset, Dataset) and dataset.format["type"] != "custom":
        return dataset.with_format(None)
    return dataset


def column_values(dataset: Dataset, column: str) -> list[Any]:
    """Return the values of a column as Python values, with null as None, in any format."""
    table: Any = dataset.select_columns([column]).with_format("arrow")[:]
    return table.column(column).to_pylist()


@dataclass(frozen=True, kw_only=True)
class MarkCounts:
    """Number of rows that the columns `keep` and `flip` of one data set affected.

    Attributes:
        left_out: Rows removed because `keep` is false.
        flipped: Remaining rows whose chosen and rejected responses were exchanged.
    """

    left_out: int
    flipped: int


def apply_marks(dataset: Any, *, name: str) -> tuple[Any, MarkCounts | None]:
    """Apply the columns `keep` and `flip` to a data set, and remove these two columns.

    A row with `keep: false` is removed. A row with `flip: true` has its responses exchanged, with
    every other column that belongs to a response: the columns `X` and `Y` are exchanged if
    replacing "chosen" in the name `X` by "rejected" gives `Y` (chosen_ids, ref_chosen_logps,
    score_chosen, ...). A null changes nothing. A row without a beta is not removed even if `keep`
    is false, because `missing_values` decides about it. If any row changes, the main process logs
    one line.
    The columns are removed so that the marks cannot be applied twice.

    Args:
        dataset: A Dataset, or an IterableDataset, on which the marks are applied lazily.
        name: Name of the data set in messages.

    Returns:
        The data set (the same object if it has neither column, else without its format, such as
        torch) and the counts, which are None for a stream because its rows are not known in
        advance.

    Raises:
        ValueError: If a mark is not a boolean, or if no row is left. Marks of a stream are checked
            while it is read.
    """
    # A stream may not know its columns before its first row is read.
    names = column_names(dataset)
    marks = [column for column in MARK_COLUMNS if column in names]
    where = f"the {name} data set"
    if not marks:
        in_memory = not isinstance(dataset, IterableDataset)
        return dataset, MarkCounts(left_out=0, flipped=0) if in_memory else None
    if isinstance(dataset, IterableDataset):
        logger.warning(f"{where}: rows with keep false are left out, those with flip true flipped")
        return _mark_stream(dataset, marks, where), None
    dataset = without_format(dataset)
    total = len(dataset)
    values = {c: column_values(dataset, c) for c in (*marks, "beta") if c in names}
    for column in marks:
        for row, value in enumerate(values[column]):
            _check_mark(column, value, f"row {row} of {where}")
    keep = values.get("keep", [True] * total)
    beta = values.get("beta", [None] * total)
    rows = [row for row in range(total) if keep[row] is not False or beta[row] is None]
    if total and not rows:
        raise ValueError(
            f"{where}: the column keep leaves none of the {total} rows to train on: build an arm"
            " that keeps some"
        )
    flipped = sum(bool(values["flip"][row]) for row in rows) if "flip" in marks else 0
    counts = MarkCounts(left_out=total - len(rows), flipped=flipped)
    if counts.left_out:
        dataset = dataset.select(rows)
    if counts.flipped:
        # Without the features, map would infer them anew and could change a column's type.
        dataset = dataset.map(exchange_responses, features=dataset.features)
    if counts.left_out or counts.flipped:
        logger.warning(
            f"{where}: {counts.left_out} of {total} rows are left out (keep is false) and"
            f" {counts.flipped} have their responses exchanged (flip is true)"
        )
    return dataset.remove_columns(marks), counts


def _mark_stream(dataset: IterableDataset, marks: list[str], where: str) -> IterableDataset:
    def is_kept(row: dict[str, Any]) -> bool:
        for column in marks:
            _check_mark(column, row.get(column), f"a row of {where}")
        return row.get("keep") is not False or row.get("beta") is None

    features = dataset.features  # None if the source does not declare them
    marked = dataset.filter(is_kept)
    if "flip" in marks:
        marked = marked.map(exchange_responses, features=features)
    return marked.remove_columns(marks)


def _check_mark(column: str, value: Any, where: str) -> None:
    # The number 0 is not the object False: without this check it would keep its row.
    if value is not None and not isinstance(value, bool):
        raise ValueError(
            f"the column {column} must be boolean, not {value!r} as in {where}: it selects the"
            " rows to train on; convert, rename or remove it"
        )


def exchange_responses(row: dict[str, Any]) -> dict[str, Any]:
    """Return the columns of a row's two responses; exchange them if the row's `flip` is true."""
    pairs = {column: column.replace("chosen", "rejected") for column in row if "chosen" in column}
    both = {column: other for column, other in pairs.items() if other in row}
    both |= {other: column for column, other in both.items()}
    return {column: row[other if row.get("flip") else column] for column, other in both.items()}


def fill_missing_values(
    dataset: Dataset, columns: tuple[str, ...], *, name: str, missing: str, constant: float
) -> tuple[Dataset, int]:
    """Fill or drop missing values; return the data set and the number of rows that lacked one.

    Args:
        dataset: A data set that has the columns.
        columns: Names of the columns, from PAIR_COLUMNS.
        name: Name of the data set in messages.
        missing: How to treat rows in which a value is null; one of MISSING_VALUES.
        constant: The positive beta that replaces a null beta if `missing` is "constant"; a null
            weight becomes 1, a null margin or label smoothing 0.

    Raises:
        ValueError: If a value is not legal in its column, if a value is null and `missing` is
            "error", or if no row is left.
    """
    # Arrow keeps nulls, whatever format (torch, numpy) the data set was given.
    table: Any = dataset.select_columns(list(columns)).with_format("arrow")[:]
    decimals = [column for column in columns if pa.types.is_decimal(table.column(column).type)]
    if decimals:  # exact decimals of a database, which torch does not take
        for column in decimals:
            dataset = dataset.cast_column(column, Value("float64"))
        table = dataset.select_columns(list(columns)).with_format("arrow")[:]
    values = {column: table.column(column).to_pylist() for column in columns}
    where = f"the {name} data set"
    for column in columns:
        check_values(column, values[column], where, null_is_bad=missing == "error")
    incomplete = [
        row for row in range(len(dataset)) if any(values[c][row] is None for c in columns)
    ]
    if not incomplete:
        return dataset, 0
    only_beta = columns == ("beta",)
    what = "beta" if only_beta else f"value of {', '.join(columns)}"
    if missing == "constant":
        neutral = {c: constant if RULES[c].neutral is None else RULES[c].neutral for c in columns}
        listed = ", ".join(f"{column} {value}" for column, value in neutral.items())
        logger.warning(
            f"{where}: {len(incomplete)} of {len(dataset)} rows have no {what} and get"
            f" {constant if only_beta else listed}"
        )
        for column in columns:
            filled = [
                neutral[column] if value is None else float(value) for value in values[column]
            ]
            dataset = dataset.remove_columns(column).add_column(column, filled)
        return dataset, len(incomplete)
    if len(incomplete) == len(dataset):
        raise ValueError(
            f"{where} has no {what} in any of its {len(incomplete)} rows, so that missing_values:"
            " drop leaves none: build it from a schedule, or set missing_values: constant"
        )
    logger.warning(
        f"{where}: {len(incomplete)} of {len(dataset)} rows have no {what} and are dropped"
    )
    dropped = set(incomplete)
    complete = dataset.select([row for row in range(len(dataset)) if row not in dropped])
    return complete, len(incomplete)


def fill_missing_values_of_stream(
    dataset: IterableDataset, columns: tuple[str, ...], *, name: str, missing: str, constant: float
) -> IterableDataset:
    """Fill or drop missing values of a stream while it is read; the arguments are as above.

    The rows are not counted. Legal values are the collator's to check, batch by batch.

    Raises:
        ValueError: If `missing` is "drop" and no row of the stream is complete.
    """
    if missing == "error":
        return dataset
    listed = ", ".join(columns)
    if missing == "drop":
        logger.warning(f"the {name} data set: rows without a value of {listed} are dropped")
        kept = dataset.filter(lambda row: all(row.get(column) is not None for column in columns))
        if next(iter(kept), None) is None:
            raise ValueError(
                f"the {name} data set has no row with a value of {listed}, so that missing_values:"
                " drop leaves none: build it from a schedule, or set missing_values: constant"
            )
        return kept
    neutral = {c: constant if RULES[c].neutral is None else RULES[c].neutral for c in columns}
    words = ", ".join(f"{column} {value}" for column, value in neutral.items())
    logger.warning(f"the {name} data set: rows without a value of {listed} get {words}")

    def fill(row: dict[str, Any]) -> dict[str, Any]:
        return {c: neutral[c] if row.get(c) is None else row[c] for c in columns}

    features = dataset.features  # None if the source does not declare them
    if features is not None:
        # A constant of 0.1 would become 0 in a column of integers.
        features = Features(features | {column: Value("float64") for column in columns})
    return dataset.map(fill, features=features)


def check_values(column: str, values: list[Any], where: str, *, null_is_bad: bool = True) -> None:
    """Raise ValueError if any value is bad, with the number of bad values and the first one.

    Args:
        column: Name of the column.
        values: One per row.
        where: Name of the rows in the message.
        null_is_bad: Whether a null counts as bad.
    """
    rule = RULES[column]
    plural = "betas" if column == "beta" else f"values of {column}"
    problem = _describe_bad(
        values,
        lambda value: value is None or (_is_number(value) and rule.is_legal(value)),
        f"{plural} in {where} are not {rule.words}",
    )
    if problem:
        raise ValueError(f"{problem}: correct the column, or build the data set again")
    if null_is_bad and None in values:
        raise ValueError(
            f"{values.count(None)} of {len(values)} rows in {where} have no {column}, the first is"
            f" row {values.index(None)}: set missing_values to drop or constant"
        )


def check_exo(values: list[Any], where: str) -> None:
    """Raise ValueError if a label smoothing is 0 in float32, because EXO takes its logarithm.

    The arguments are those of `check_values`.
    """
    problem = _describe_bad(
        values, lambda value: value >= SMALLEST, f"values of label_smoothing in {where} are 0"
    )
    if problem:
        raise ValueError(f"{problem}: loss_type exo_pair needs a label_smoothing above 0")


def check_log_probs(column: str, values: list[Any], where: str) -> None:
    """Raise ValueError if a value is not a log-probability, a finite number of 0 or below.

    The arguments are those of `check_values`.
    """
    problem = _describe_bad(
        values,
        # A log-prob of -inf would make D infinite or NaN.
        lambda value: _is_number(value) and -math.inf < value <= 0,
        f"values of {column} in {where} are not log-probabilities",
    )
    if problem:
        raise ValueError(problem)


def _describe_bad(values: list[Any], is_legal: Callable[[Any], bool], words: str) -> str:
    """Return how many values are not legal and the first of them; empty if all are legal."""
    bad = [row for row, value in enumerate(values) if not is_legal(value)]
    if not bad:
        return ""
    first = f"the first is {values[bad[0]]!r} in row {bad[0]}"
    return f"{len(bad)} of {len(values)} {words}, {first}"


def to_double(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Move values to a device, in double precision; in float32 on Apple's GPUs, which lack it."""
    return (values.float() if device.type == "mps" else values).to(device)


def category_names(dataset: Any) -> list[str] | None:
    """Return the names of the ClassLabel column `category`; None if there is no such column."""
    features = getattr(dataset, "features", None) or {}
    kind = features.get(CATEGORY)
    # A column of text has no numbers that a batch could carry.
    return list(kind.names) if isinstance(kind, ClassLabel) else None


def choose_column(value: str, legal: tuple[str, ...], key: str) -> None:
    """Raise ValueError if a value is not legal; name the legal values and the closest."""
    if value not in legal:
        guess = did_you_mean(value, legal)
        raise ValueError(f"{key}: {value!r} is not one of {', '.join(legal)}{guess}")
