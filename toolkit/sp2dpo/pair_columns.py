"""Per-pair columns of a data set: which there are, what they may hold, how they reach a batch."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.logging import get_logger
from datasets import Dataset

PAIR_COLUMNS = ("beta",)
MISSING_BETA = ("error", "drop", "constant")

logger = get_logger(__name__)


@dataclass(frozen=True)
class PairCollator:
    """A collator that adds the per-pair columns to the batch of another one.

    Attributes:
        inner: Makes the batch from the examples; sees them unchanged.
        columns: Added as float32 tensors of shape (B,). The names decide, never the values, so
            that all processes of a run agree on the keys of a batch.
    """

    inner: Callable[[list[dict[str, Any]]], dict[str, Any]]
    columns: tuple[str, ...]

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the batch; ValueError if an example has no usable value (a stream may)."""
        batch = self.inner(examples)
        for column in self.columns:
            values = [example.get(column) for example in examples]
            refuse_bad_betas(values, f"a batch (it has the columns {', '.join(examples[0])})")
            batch[column] = torch.tensor(values, dtype=torch.float32)
        return batch


def with_all_betas(
    dataset: Dataset, *, name: str, missing: str, constant: float
) -> tuple[Dataset, int]:
    """Return the data set with a beta in every row, and how many rows had none.

    Args:
        dataset: Has a column `beta`.
        name: Names the data set in messages.
        missing: One of MISSING_BETA, what becomes of rows whose beta is null.
        constant: The beta above 0 that such a row gets if `missing` is "constant".

    Raises:
        ValueError: If a beta is not a finite number above 0, if one is null and `missing` is
            "error", or if no row is left.
    """
    table: Any = dataset.select_columns(["beta"]).with_format("arrow")[:]
    betas = table.column("beta").to_pylist()
    nulls = betas.count(None)
    where = f"the {name} data set"
    refuse_bad_betas(betas, where, null_is_bad=missing == "error")
    if nulls == 0:
        return dataset, 0
    if missing == "constant":
        logger.warning(f"{where}: {nulls} of {len(betas)} rows have no beta and get {constant}")
        filled = [constant if beta is None else float(beta) for beta in betas]
        return dataset.remove_columns("beta").add_column("beta", filled), nulls
    if nulls == len(betas):
        raise ValueError(f"{where} has a beta in none of its {nulls} rows: nothing is left of it")
    logger.warning(f"{where}: {nulls} of {len(betas)} rows have no beta and are dropped")
    return dataset.select([row for row, beta in enumerate(betas) if beta is not None]), nulls


def is_beta(value: Any) -> bool:
    """Whether a value is a number above 0 that float32 can hold (so no NaN, no infinity)."""
    limits = torch.finfo(torch.float32)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and limits.tiny <= value <= limits.max


def refuse_bad_betas(betas: list[Any], where: str, *, null_is_bad: bool = True) -> None:
    """Raise ValueError, with how many are bad and the first of them, if any beta is.

    Args:
        betas: One value per row.
        where: Names the rows in the message.
        null_is_bad: Whether a null counts as bad.
    """
    bad = [row for row, beta in enumerate(betas) if beta is not None and not is_beta(beta)]
    if bad:
        raise ValueError(
            f"{len(bad)} of {len(betas)} betas in {where} are not finite numbers above 0, the"
            f" first is {betas[bad[0]]!r} in row {bad[0]}: build the data set again"
        )
    if null_is_bad and None in betas:
        raise ValueError(
            f"{betas.count(None)} of {len(betas)} rows in {where} have no beta, the first is row"
            f" {betas.index(None)}: set missing_beta to drop or constant"
        )


def one_of(value: str, legal: tuple[str, ...], key: str) -> None:
    """Raise ValueError, with the legal values and a guess, if the value of a setting is none."""
    if value in legal:
        return
    close = difflib.get_close_matches(str(value), legal, n=1, cutoff=0.5)
    guess = f", did you mean {close[0]}?" if close else ""
    raise ValueError(f"{key}: {value!r} is not one of {', '.join(legal)}{guess}")
