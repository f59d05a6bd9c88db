"""Compute all rows of a batch as one, for the attention kernels of GPUs.

A packed row has no padding, and one call of the model computes it. How its pairs are separated
depends on the model's `attn_implementation`:

- `flex_attention`: a BlockMask hides rows from each other, and the chosen from the rejected
  response. The kernel skips blocks of 128 x 128 tokens in which nothing is visible.
- flash attention: it has no masks, but variable lengths, with a causal mask that is aligned at the
  end of the keys. The queries of a pair are therefore two sequences, its beginning with the chosen
  response, and the rejected response alone; the keys of the second are the beginning and the
  rejected response. The keys and values of the beginning are gathered twice, nothing else is.

Both are exact: they are the attention of the two sequences, computed by the same kernel.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from sp2dpo.training.pair_rows import CHOSEN, REJECTED, SHARED, PairRows

BLOCK = 128
"""Tokens of a side of a block of FlexAttention, its default."""
PAIR_KEYS = "pair_keys"
"""Argument of the attention functions with the index of each key, in the order of the keys."""

# What is computed from the lengths of rows, other numbers in each batch, is not compiled with the
# model. Torch does not type the decorated function.
_uncompiled: Any = torch.compiler.disable


@dataclass(frozen=True, kw_only=True)
class VarlenSequences:
    """The sequences of a packed row of N tokens, for flash attention.

    Attributes:
        keys: Index of the token of each key; a token may occur twice, (M,).
        query_ends: 0 and the ends of the sequences of queries, (S + 1,), int32.
        key_ends: 0 and the ends of the sequences of keys, (S + 1,), int32.
        longest_query: Number of queries of the longest sequence.
        longest_key: Number of keys of the longest sequence.
    """

    keys: torch.Tensor
    query_ends: torch.Tensor
    key_ends: torch.Tensor
    longest_query: int
    longest_key: int


def choose_runner(model: Any) -> Callable[..., torch.Tensor] | None:
    """Return the function that computes a packed row of a model; None without such a kernel.

    The function is a `shared_prompt.Runner`. For models with flash attention, the attention
    function of transformers is replaced by one that also takes PAIR_KEYS. Before version 2.1, flash
    attention aligned its causal mask at the beginning of the keys: the numbers would be wrong,
    which the comparison of `shared_prompt` finds.

    Args:
        model: The causal language model itself, without wrappers.
    """
    name = model.config.get_text_config()._attn_implementation or ""
    if name == "flex_attention":
        return _flex_runner()
    if "flash" in name:
        _take_pair_keys(name)
        return run_varlen
    return None


@functools.cache
def _flex_runner() -> "FlexRunner":
    """Return the runner of all models, so that policy and reference share its mask."""
    return FlexRunner()


class FlexRunner:
    """Computes the states of all rows with FlexAttention; see `shared_prompt.Runner`.

    The mask of the last rows is reused, because policy and reference compute the same ones.
    """

    def __init__(self) -> None:
        self._rows: PairRows | None = None
        self._mask: BlockMask | None = None

    def __call__(
        self,
        forward: Callable[..., Any],
        input_ids: torch.Tensor,
        rows: PairRows,
        options: dict[str, Any],
    ) -> torch.Tensor:
        """Return the states (N, hidden) of all tokens."""
        mask, ids, positions = self._prepare(input_ids, rows)
        output = forward(input_ids=ids, attention_mask=mask, position_ids=positions, **options)
        return output.last_hidden_state[0, : len(input_ids)]

    @_uncompiled
    def _prepare(
        self, input_ids: torch.Tensor, rows: PairRows
    ) -> tuple[BlockMask | None, torch.Tensor, torch.Tensor]:
        if rows is not self._rows:
            self._rows, self._mask = rows, make_block_mask(rows)
        # A multiple of the block size, so that few lengths occur: the kernel is compiled for them.
        padding = (0, -len(input_ids) % BLOCK)
        ids = torch.nn.functional.pad(input_ids, padding)
        return self._mask, ids[None], torch.nn.functional.pad(rows.position, padding)[None]


def make_block_mask(rows: PairRows) -> BlockMask:
    """Return the mask of a packed row, padded to L, a multiple of BLOCK: (1, 1, L, L).

    The blocks follow from the rows and segments that occur in BLOCK tokens. `create_block_mask`
    would evaluate all L x L pairs of tokens, or compile a kernel that does.
    """
    padding = -len(rows.row) % BLOCK
    # Padding is a row of its own: a softmax over nothing would be NaN.
    row = torch.nn.functional.pad(rows.row, (0, padding), value=len(rows.lengths))
    segment = torch.nn.functional.pad(rows.segment, (0, padding), value=SHARED)

    def visible(
        batch: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor
    ) -> torch.Tensor:
        same_row = row[query] == row[key]
        return (
            (query >= key)
            & same_row
            & ((segment[key] == SHARED) | (segment[key] == segment[query]))
        )

    first, last = row.view(-1, BLOCK)[:, 0], row.view(-1, BLOCK)[:, -1]  # rows are in order
    has = {kind: (segment.view(-1, BLOCK) == kind).any(1) for kind in (SHARED, CHOSEN, REJECTED)}
    number = torch.arange(len(first), device=row.device)
    earlier = number[:, None] > number  # [query block, key block]
    in_one_row = (first == last) & (first[:, None] == last[:, None]) & (first == first[:, None])
    in_one_row &= (first == last)[:, None]
    common = has[SHARED].expand_as(earlier)
    whole = earlier & in_one_row
    for kind, other in ((CHOSEN, REJECTED), (REJECTED, CHOSEN)):
        common = common | (has[kind][:, None] & has[kind])
        # A key outside the shared beginning is visible to queries of its own segment alone.
        alone = has[kind] & ~has[SHARED] & ~has[other]
        whole = whole & (~has[kind] | alone[:, None])
    some = (earlier | (number[:, None] == number)) & (first[:, None] <= last)
    some = some & (common | ~in_one_row) & ~whole
    return BlockMask.from_kv_blocks(
        *_in_order(some), *_in_order(whole), BLOCK_SIZE=BLOCK, mask_mod=visible
    )


def _in_order(blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the number and the indices of the key blocks of each query block."""
    counts = blocks.sum(1, dtype=torch.int32)
    indices = blocks.int().argsort(dim=1, descending=True, stable=True).int()
    return counts[None, None], indices[None, None].contiguous()


def run_varlen(
    forward: Callable[..., Any], input_ids: torch.Tensor, rows: PairRows, options: dict[str, Any]
) -> torch.Tensor:
    """Return the states (N, hidden) of all tokens with flash attention of variable lengths."""
    sequences = make_varlen(rows)
    arguments = {
        PAIR_KEYS: sequences.keys,
        "cu_seq_lens_q": sequences.query_ends,
        "cu_seq_lens_k": sequences.key_ends,
        "max_length_q": sequences.longest_query,
        "max_length_k": sequences.longest_key,
    }
    output = forward(
        input_ids=input_ids[None],
        attention_mask=None,
        position_ids=rows.position[None],
        **(options | arguments),
    )
    return output.last_hidden_state[0]


@_uncompiled
def make_varlen(rows: PairRows) -> VarlenSequences:
    """Return the sequences of queries and keys whose attention is that of the pairs."""
    counts = torch.stack(
        [
            torch.bincount(rows.row[rows.segment == kind], minlength=len(rows.lengths))
            for kind in (SHARED, CHOSEN, REJECTED)
        ]
    )
    queries, keys, ends = [], [], []
    start = 0
    for shared, chosen, rejected in counts.T.tolist():  # one wait for the device
        middle, end = start + shared + chosen, start + shared + chosen + rejected
        queries.append(middle - start)
        keys.append([range(start, middle)])
        if rejected:
            queries.append(rejected)
            keys.append([range(start, start + shared), range(middle, end)])
        start = end
    lengths = [sum(map(len, spans)) for spans in keys]
    ends = [
        torch.tensor([0, *numbers], device=rows.row.device).cumsum(0, dtype=torch.int32)
        for numbers in (queries, lengths)
    ]
    index = torch.cat([torch.arange(s.start, s.stop) for spans in keys for s in spans])
    return VarlenSequences(
        keys=index.to(rows.row.device),
        query_ends=ends[0],
        key_ends=ends[1],
        longest_query=max(queries),
        longest_key=max(lengths),
    )


def _take_pair_keys(name: str) -> None:
    """Make the attention function of a name take PAIR_KEYS; other calls are as before."""
    attention = ALL_ATTENTION_FUNCTIONS[name]
    if getattr(attention, "takes_pair_keys", False):
        return

    def forward(
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        *,
        pair_keys: torch.Tensor | None = None,
        **options: Any,
    ) -> Any:
        if pair_keys is not None:  # (1, heads, N, size) to (1, heads, M, size)
            key, value = key[:, :, pair_keys], value[:, :, pair_keys]
        return attention(module, query, key, value, attention_mask, **options)

    forward.takes_pair_keys = True  # pyright: ignore[reportFunctionMemberAccess]
    ALL_ATTENTION_FUNCTIONS[name] = forward
