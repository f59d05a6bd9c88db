"""Attention functions of transformers in plain torch: what the kernels of GPUs compute."""

import contextlib

import torch
from torch.nn.attention.flex_attention import create_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


def dense_flex(module, query, key, value, attention_mask, scaling=None, **options):
    """FlexAttention, which has no backward pass on a CPU: its blocks, made dense."""
    size = query.size(2)
    seen = create_mask(attention_mask.mask_mod, 1, 1, size, size, device=query.device)
    blocks = attention_mask.to_dense().bool()
    for axis in (2, 3):
        blocks = blocks.repeat_interleave(128, axis)
    whole = torch.zeros_like(attention_mask.to_dense())
    if attention_mask.full_kv_num_blocks is not None:
        for row, count in enumerate(attention_mask.full_kv_num_blocks[0, 0].tolist()):
            whole[0, 0, row, attention_mask.full_kv_indices[0, 0, row, :count].long()] = 1
    for axis in (2, 3):
        whole = whole.repeat_interleave(128, axis)
    # The kernel does not evaluate the mask in whole blocks, and skips those that are not listed.
    return attend(query, key, value, (seen | whole.bool()) & blocks, scaling), None


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
