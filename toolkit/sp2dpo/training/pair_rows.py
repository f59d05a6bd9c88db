"""Lay out a batch of pairs so that the tokens which both sequences of a pair begin with occur once.

TRL computes a pair as two padded sequences, prompt + chosen and prompt + rejected, of which the
prompts are equal. In a causal model the states of a token depend on the tokens before it alone, so
one row per pair is enough:

    shared beginning | rest of the chosen sequence | rest of the rejected sequence

Positions continue from the shared beginning in both rests, and the rest of the rejected sequence
does not attend to that of the chosen one. The states that predict a scored token are then gathered
in the order in which TRL scores them. Nothing here depends on a model.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

SHARED, CHOSEN, REJECTED = 0, 1, 2
"""Segments of a row."""


@dataclass(frozen=True, kw_only=True)
class PairRows:
    """Where every token of a batch is computed. N tokens in R rows, without padding.

    The rows follow each other: the first `lengths[0]` tokens are row 0. A row without a common
    beginning would only be a mask over two sequences, so such a pair has two rows.

    Attributes:
        source: Index of each token in the flattened `input_ids` (2B, T), (N,).
        position: Position of each token in its own sequence, (N,).
        row: Row of each token, (N,).
        segment: SHARED, CHOSEN or REJECTED, (N,). A token attends to the tokens up to itself that
            are in its row and in SHARED or its own segment.
        scored: Index of the token whose state predicts each scored token, in the order of
            `scored_mask`, (S,).
        scored_mask: Positions of TRL's (2B, T - 1) output that are scored.
        lengths: Number of tokens of each row.
        is_plain: Whether a row has one segment only, for each row.
    """

    source: torch.Tensor
    position: torch.Tensor
    row: torch.Tensor
    segment: torch.Tensor
    scored: torch.Tensor
    scored_mask: torch.Tensor
    lengths: tuple[int, ...]
    is_plain: tuple[bool, ...]

    def to(self, device: torch.device | str) -> "PairRows":
        """Return the rows with all tensors on a device."""
        names = ("source", "position", "row", "segment", "scored", "scored_mask")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})


def plan_rows(
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    completion_mask: torch.Tensor,
) -> PairRows | None:
    """Return the rows of a batch; None if a scored token has no token before it to predict it.

    Args:
        input_ids: Chosen sequences, then rejected ones, padded on either side, (2B, T).
        attention_mask: 1 for tokens, 0 for padding, (2B, T).
        completion_mask: 1 for scored tokens, (2B, T). The first column is never scored.
    """
    ids, real, scored_mask = input_ids.cpu(), attention_mask.cpu() != 0, completion_mask.cpu() != 0
    width = ids.size(1)
    scored_mask = scored_mask[:, 1:]
    if (scored_mask & ~real[:, :-1]).any():
        return None
    # No score depends on the last token of a sequence. A row must not be empty: the backward pass
    # then had no way to the model.
    last = real & (real.int().cumsum(1) == real.sum(1, keepdim=True))
    real = real & ~(last & (real.sum(1, keepdim=True) > 1))
    chosen, rejected = ids.chunk(2)
    both = real[: len(chosen)] & real[len(chosen) :]
    # Padding on the left: sequences that begin in different columns have different positions.
    before = (real[: len(chosen)] | real[len(chosen) :]).cumsum(1)
    equal = both & (chosen == rejected) & (before == both.cumsum(1))
    differs_before = ((real[: len(chosen)] | real[len(chosen) :]) & ~equal).cumsum(1) > 0
    shared = equal & ~differs_before
    slot = torch.full((2 * len(chosen), width), -1)
    source, position, row, segment, lengths, is_plain = [], [], [], [], [], []
    count = 0

    def add(columns: torch.Tensor, sequence: int, kind: int) -> int:
        nonlocal count
        slot[sequence, columns] = count + torch.arange(len(columns))
        source.append(sequence * width + columns)
        position.append(columns)
        row.append(torch.full_like(columns, len(lengths)))
        segment.append(torch.full_like(columns, kind))
        count += len(columns)
        return len(columns)

    for pair in range(len(chosen)):
        other = pair + len(chosen)
        common = shared[pair].nonzero().squeeze(1)
        rest = {n: (real[n] & ~shared[pair]).nonzero().squeeze(1) for n in (pair, other)}
        if not len(common):
            for sequence in (pair, other):
                if len(rest[sequence]):
                    lengths.append(add(rest[sequence], sequence, SHARED))
                    is_plain.append(True)
            continue
        length = add(common, pair, SHARED)
        slot[other, common] = slot[pair, common]
        # A row whose second rest is empty is one sequence.
        length += add(rest[pair], pair, CHOSEN) + add(rest[other], other, REJECTED)
        is_plain.append(not (len(rest[pair]) and len(rest[other])))
        lengths.append(length)
    return PairRows(
        source=torch.cat(source),
        position=torch.cat(position),
        row=torch.cat(row),
        segment=torch.cat(segment),
        scored=slot[:, :-1][scored_mask],
        scored_mask=scored_mask,
        lengths=tuple(lengths),
        is_plain=tuple(is_plain),
    )


def group_rows(
    lengths: Sequence[int], *, calls: int | None = None, overhead: int = 64, most: int = 8192
) -> list[list[int]]:
    """Return groups of rows of similar length, which one call of the model computes together.

    The groups are those with the fewest tokens, where the rows of a group are padded to its longest
    row and every call costs as much as `overhead` tokens.

    Args:
        lengths: Number of tokens of each row.
        calls: Number of groups, at most the number of rows; None to choose the best number.
        overhead: Cost of a call, in tokens.
        most: Largest number of tokens of a group of several rows, if `calls` is None.
    """
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    total = len(order)
    limit = min(calls or total, total)
    # costs[n]: the least cost of the first n rows, for each number of groups.
    costs: list[dict[int, tuple[int, int]]] = [{0: (0, 0)}]
    for end in range(1, total + 1):
        best: dict[int, tuple[int, int]] = {}
        for start in range(end):
            tokens = (end - start) * lengths[order[start]]
            if calls is None and end - start > 1 and tokens > most:
                continue
            for groups, (cost, _) in costs[start].items():
                key = groups + 1 if calls is not None else 0
                if key > limit:
                    continue
                candidate = (cost + tokens + overhead, start)
                if key not in best or candidate < best[key]:
                    best[key] = candidate
        costs.append(best)
    parts: list[list[int]] = []
    end, groups = total, limit if calls is not None else 0
    while end:
        start = costs[end][groups][1]
        parts.append(order[start:end])
        end, groups = start, groups - 1 if calls is not None else 0
    return parts[::-1]
