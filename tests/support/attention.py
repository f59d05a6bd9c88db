"""Attention functions of transformers in plain torch: what the kernels of GPUs compute."""

import contextlib

import numpy as np
import torch
from torch.nn.attention.flex_attention import create_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


def dense_flex(module, query, key, value, attention_mask, scaling=None, **options):
    """FlexAttention, which has no backward pass on a CPU: its blocks, made dense."""
    batch, size = query.size(0), query.size(2)
    seen = create_mask(attention_mask.mask_mod, batch, 1, size, size, device=query.device)
    listed = attention_mask.to_dense().bool()
    whole = torch.zeros_like(listed)
    if attention_mask.full_kv_num_blocks is not None:
        for place in np.ndindex(*attention_mask.full_kv_num_blocks.shape):
            count = attention_mask.full_kv_num_blocks[place]
            whole[place][attention_mask.full_kv_indices[place][:count].long()] = True
    # The kernel does not evaluate the mask in whole blocks, and skips those that are not listed.
    seen = (seen | tokens(whole, size)) & tokens(listed, size)
    return attend(query, key, value, seen, scaling), None


def tokens(blocks, size):
    """A mask of blocks as one of tokens."""
    return blocks.repeat_interleave(128, 2).repeat_interleave(128, 3)[..., :size, :size]


def plain_varlen(
    module, query, key, value, attention_mask,
    cu_seq_lens_q=None, cu_seq_lens_k=None, scaling=None, **options,
):  # fmt: skip
    """Flash attention: each sequence of queries sees its keys, with an equal end; no mask."""
    if cu_seq_lens_q is None:
        cu_seq_lens_q, cu_seq_lens_k = ([0, states.size(2)] for states in (query, key))
    outputs = []
    for number in range(len(cu_seq_lens_q) - 1):
        queries = slice(cu_seq_lens_q[number], cu_seq_lens_q[number + 1])
        keys = slice(cu_seq_lens_k[number], cu_seq_lens_k[number + 1])
        part = query[:, :, queries]
        rows, columns = part.size(2), key[:, :, keys].size(2)
        seen = torch.ones(rows, columns, dtype=torch.bool, device=query.device)
        seen = seen.tril(columns - rows)
        outputs.append(attend(part, key[:, :, keys], value[:, :, keys], seen, scaling))
    return torch.cat(outputs, 1), None


def attend(query, key, value, seen, scaling):
    """Attention with a mask, (batch, tokens, heads, size) as transformers wants it."""
    output = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=seen, scale=scaling, enable_gqa=True
    )
    return output.transpose(1, 2).contiguous()


@contextlib.contextmanager
def attention(name, function):
    """Let an attention function of transformers be another one."""
    mapping = ALL_ATTENTION_FUNCTIONS._local_mapping
    before = dict(mapping)
    mapping[name] = function
    try:
        yield
    finally:
        mapping.clear()
        mapping.update(before)
