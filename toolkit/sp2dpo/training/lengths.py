"""Count what `max_length` cuts from the pairs of a data set, and which limit would cut nothing."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from sp2dpo.training.rows import RESPONSES, token_counts


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
