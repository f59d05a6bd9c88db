"""Compute the prompt of a pair once, behind TRL's own loss.

TRL's fused LM head replaces the forward of a model; this module replaces it once more, and that of
the model's backbone. A batch that carries the key PAIR_ROWS is computed as `pair_rows` lays it out,
and the outputs are put where TRL expects them, (2B, T - 1). Batches without the key, and calls
without the fused head, are computed as before. TRL passes unknown keys of a batch to the model,
policy and reference alike, so that wrappers (DDP, DeepSpeed, FSDP, PEFT, compiled models) do not
need to know of it.
"""

import functools
import inspect
import types
from collections.abc import Callable
from typing import Any

import torch
from transformers.modeling_outputs import BaseModelOutput

from sp2dpo.training.pair_rows import SHARED, PairRows, group_rows

PAIR_ROWS = "pair_rows"
"""Key of a batch that holds its PairRows."""
PER_TOKEN = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1", "label_mask")
"""Fields of TRL's output that have a value per token."""
Runner = Callable[..., torch.Tensor]
"""A function of `(forward, input_ids, rows, options)` that returns the states (N, hidden).

`forward` is the backbone's own, `input_ids` (N,) are the tokens of the rows, and `options` are the
other arguments of the backbone.
"""


def share_prompts(model: Any, run: Runner) -> None:
    """Make a model with TRL's fused LM head compute batches that carry PAIR_ROWS row by row.

    Args:
        model: The causal language model itself, without wrappers.
        run: Computes the states of the rows.
    """
    backbone = model.base_model
    model_forward, backbone_forward = model.forward, backbone.forward

    @functools.wraps(type(backbone).forward)
    def forward_rows(
        self: Any, *args: Any, pair_rows: PairRows | None = None, **options: Any
    ) -> Any:
        if pair_rows is None:
            return backbone_forward(*args, **options)
        options.pop("attention_mask", None)
        input_ids = options.pop("input_ids").flatten()[pair_rows.source]
        states = run(backbone_forward, input_ids, pair_rows, options)
        return BaseModelOutput(last_hidden_state=states[pair_rows.scored][None])  # pyright: ignore[reportArgumentType]

    # The signature of the model's class: TRL and `generate` read the names of its arguments.
    @functools.wraps(type(model).forward)
    def forward_pairs(
        self: Any, *args: Any, pair_rows: PairRows | None = None, **options: Any
    ) -> Any:
        if pair_rows is None or not options.get("fused_lm_head"):
            return model_forward(*args, **options)
        mask = pair_rows.scored_mask
        # The LM head is applied once, to the scored positions of all rows.
        options["shift_labels"] = options.pop("labels")[:, 1:][mask][None]
        output = model_forward(*args, pair_rows=pair_rows, **options)
        for name in PER_TOKEN:
            values = getattr(output, name, None)
            if values is not None:
                setattr(output, name, values.new_zeros(mask.shape).masked_scatter(mask, values))
        return output

    backbone.forward = types.MethodType(forward_rows, backbone)
    model.forward = types.MethodType(forward_pairs, model)


def run_groups(
    forward: Callable[..., Any], input_ids: torch.Tensor, rows: PairRows, options: dict[str, Any]
) -> torch.Tensor:
    """Compute the states of all rows in groups of similar length; see `Runner`."""
    starts = torch.tensor([0, *rows.lengths]).cumsum(0).tolist()
    order, states = [], []
    for group in group_rows(rows.lengths):
        longest = max(rows.lengths[row] for row in group)
        indices = [torch.arange(starts[row], starts[row + 1]) for row in group]
        tokens = torch.zeros(len(group), longest, dtype=torch.long)
        real = torch.zeros(len(group), longest, dtype=torch.bool)
        for number, index in enumerate(indices):
            tokens[number, : len(index)] = index
            real[number, : len(index)] = True
        tokens, real = tokens.to(input_ids.device), real.to(input_ids.device)
        mask = None
        if not all(rows.is_plain[row] for row in group) or not real.all():
            mask = visible(rows, tokens, real)
        output = forward(
            input_ids=input_ids[tokens], attention_mask=mask, position_ids=rows.position[tokens],
            **options,
        )  # fmt: skip
        states.append(output.last_hidden_state[real])
        order += indices
    inverse = torch.cat(order).argsort().to(input_ids.device)
    return torch.cat(states)[inverse]


def visible(rows: PairRows, tokens: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Return which tokens each token of some padded rows attends to, (R, 1, L, L), boolean."""
    segment = rows.segment[tokens]
    length = tokens.size(1)
    causal = torch.ones(length, length, dtype=torch.bool, device=tokens.device).tril()
    query, key = segment[:, :, None], segment[:, None, :]
    seen = causal & ((key == SHARED) | (key == query)) & real[:, None, :]
    # Padding attends to itself: a softmax over nothing would be NaN.
    seen |= torch.eye(length, dtype=torch.bool, device=tokens.device)
    return seen[:, None]


def takes_positions(backbone: Any) -> bool:
    """Return whether a backbone takes position ids."""
    return "position_ids" in inspect.signature(type(backbone).forward).parameters
