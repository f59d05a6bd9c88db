"""Check the lengths of tokenized pairs, and count what `max_length` cuts from them."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from accelerate.logging import get_logger

from sp2dpo.training.rows import RESPONSES, name_row

logger = get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class LengthReport:
    """What a length limit does to the pairs of a data set.

    Attributes:
        pairs: Number of pairs.
        max_length: The limit in tokens, of the prompt and a response together.
        truncation_mode: `keep_start` or `keep_end`.
        cut: Number of pairs with a sequence longer than the limit.
        emptied: Number of these whose response is lost (`keep_start`; the pair is dropped), or
            whose prompt is lost before at least one response (`keep_end`).
        tokens_lost: Share of the tokens of all sequences that is lost, in [0, 1].
        keeps_99_percent: The smallest limit with which at least 99 % of the pairs are whole.
        keeps_all: The smallest limit with which all pairs are whole.
    """

    pairs: int
    max_length: int
    truncation_mode: str
    cut: int
    emptied: int
    tokens_lost: float
    keeps_99_percent: int
    keeps_all: int

    def sentence(self, context: int | None) -> str:
        """Return the report as a sentence; empty if nothing is cut.

        Args:
            context: Longest sequence of the model in tokens; None if there is no limit.
        """
        if not self.cut:
            return ""
        at_end = self.truncation_mode == "keep_start"
        if at_end:
            emptied = f"{self.emptied:,} are dropped, whose prompt alone fills it"
        else:
            emptied = f"{self.emptied:,} lose the whole prompt of a response"
        most = f"{self.keeps_99_percent:,} would keep 99 % of the pairs whole, "
        most = most if self.keeps_99_percent > self.max_length else ""
        is_beyond = context is not None and self.keeps_all > context
        limit = f" (the model's context has {context:,})" if is_beyond else ""
        return (
            f"max_length {self.max_length:,} cuts {self.cut:,} of {self.pairs:,} pairs at their"
            f" {'end' if at_end else 'beginning'} ({100 * self.cut / self.pairs:.3g} %), of which"
            f" {emptied}, and loses {100 * self.tokens_lost:.3g} % of the tokens; max_length"
            f" {most}{self.keeps_all:,} all of them{limit}"
        )


def measure_lengths(prepared: Any, max_length: int, truncation_mode: str) -> LengthReport:
    """Return what a length limit does to the pairs of a data set.

    Args:
        prepared: A Dataset with the columns prompt_ids, chosen_ids and rejected_ids, from which
            nothing is cut yet.
        max_length: The limit in tokens.
        truncation_mode: `keep_start` or `keep_end`.
    """
    prompt = token_counts(prepared, "prompt_ids")
    responses = [token_counts(prepared, f"{side}_ids") for side in RESPONSES]
    lengths = np.stack([prompt + response for response in responses]).astype(np.int64)  # (2, N)
    longest = lengths.max(axis=0)
    lost = np.clip(lengths - max_length, 0, None)
    if truncation_mode == "keep_start":
        emptied = prompt >= max_length
        lost[:, emptied] = lengths[:, emptied]
    else:
        emptied = np.maximum(*responses) >= max_length
    in_order = np.sort(longest)
    return LengthReport(
        pairs=len(longest),
        max_length=max_length,
        truncation_mode=truncation_mode,
        cut=int(((longest > max_length) | emptied).sum()),
        emptied=int(emptied.sum()),
        tokens_lost=float(lost.sum() / max(1, lengths.sum())),
        keeps_99_percent=int(in_order[-(-99 * len(in_order) // 100) - 1]),
        keeps_all=int(in_order[-1]),
    )


def drop_truncated(prepared: Any, longest: int) -> Any:
    """Return the rows whose prompt leaves a token of the responses, as TRL 1.16 does; 1.0 does not.

    Args:
        prepared: A Dataset with the column prompt_ids.
        longest: Length to which sequences are truncated, at their end.
    """
    short = token_counts(prepared, "prompt_ids") < longest
    return prepared if short.all() else prepared.select(short.nonzero()[0])


def check_lengths(
    before: Any,
    prepared: Any,
    name: str,
    *,
    limit: str,
    context: int | None,
    longest: int | None,
    report: str | None = None,
) -> None:
    """Check the rows that tokenization and TRL's limit of the length have left.

    Args:
        before: The Dataset before.
        prepared: The Dataset after, with the columns chosen_ids and rejected_ids, and prompt_ids if
            the prompt is not part of these.
        name: Name of the data set in messages.
        limit: The rule by which TRL drops rows and the way out, for messages.
        context: Longest sequence of the model in tokens; None if there is no limit.
        longest: Length to which sequences are truncated; None if they are not.
        report: What is logged about cut and dropped rows, if it is not empty; None for the number
            of dropped rows with `limit`.

    Raises:
        ValueError: If no row is left, if a response has no tokens, or if a sequence is longer than
            the model's context.
    """
    where = f"the {name} data set"
    if not len(prepared):
        raise ValueError(
            f"no row of {where} is left, the first of {len(before)} is {name_row(before[0], 0)}:"
            f" {limit}"
        )
    dropped = len(before) - len(prepared)
    if report is None and dropped:
        report = f"{dropped} of {len(before)} rows are dropped: {limit}"
    if report:
        logger.warning(f"{where}: {report}")
    for side in RESPONSES:
        lengths = token_counts(prepared, f"{side}_ids")
        if not lengths.all():
            empty = int(lengths.argmin())
            raise ValueError(
                f"{side} of {name_row(prepared[empty], empty)} of {where} has no tokens: its text"
                " is empty, or the chat template leaves it out; leave the row out"
            )
        if "prompt_ids" in prepared.column_names:
            lengths = lengths + token_counts(prepared, "prompt_ids")
        row = int(lengths.argmax())
        most = int(lengths[row])
        if context is not None and min(most, longest or most) > context:
            raise ValueError(
                f"{name_row(prepared[row], row)} of {where} has {most} tokens, and the model's"
                f" context has {context}: set max_length to {context} or less"
            )


def token_counts(dataset: Any, column: str) -> Any:
    """Return the lengths of the lists in a column, (N,), without converting the lists to Python."""
    values = dataset.select_columns([column]).with_format("arrow")[:].column(0)
    return pl.Series(values).list.len().to_numpy()
