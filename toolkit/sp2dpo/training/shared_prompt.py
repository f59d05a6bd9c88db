"""Compute the prompt of a pair once, behind TRL's own loss.

TRL's fused LM head replaces the forward of a model; this module replaces it once more, and that of
the model's backbone. A batch that carries the key PAIR_ROWS is computed as `pair_rows` lays it out,
and the outputs are put where TRL expects them, (2B, T - 1). Batches without the key, and calls
without the fused head, are computed as before. TRL passes unknown keys of a batch to the model,
policy and reference alike, so that wrappers (DDP, DeepSpeed, FSDP, PEFT, compiled models) do not
need to know of it.
"""

import functools
import types
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from accelerate.logging import get_logger
from accelerate.utils import is_peft_model
from transformers.modeling_outputs import BaseModelOutput
from trl.models.utils import disable_gradient_checkpointing

from sp2dpo.training.columns import CATEGORY, PAIR_COLUMNS
from sp2dpo.training.exactness import reason_against, relative_difference
from sp2dpo.training.packing import choose_runner
from sp2dpo.training.pair_rows import SHARED, PairRows, group_rows, plan_rows
from sp2dpo.training.reference import REFERENCE

PAIR_ROWS = "pair_rows"
"""Key of a batch that holds its PairRows."""
SHARES = "shares_prompts"
"""Attribute of a forward that computes batches with PAIR_ROWS."""
FORWARD = "_forward_of_shared_prompts"
"""Attribute of a model with its forward for batches with PAIR_ROWS, a function of `self`."""
PER_TOKEN = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1", "label_mask")
"""Fields of TRL's output that have a value per token."""
LOWEST = torch.finfo(torch.float16).min
"""Added to the score of a token that is not attended to; finite in every precision."""
MODEL_INPUTS = ("input_ids", "attention_mask", "completion_mask")
"""Tensors of a batch that the rows are computed from, (2B, T)."""

logger = get_logger(__name__)

Runner = Callable[..., torch.Tensor]
"""A function of `(forward, input_ids, rows, options)` that returns the states (N, hidden).

`forward` is the backbone's own, `input_ids` (N,) are the tokens of the rows, and `options` are the
other arguments of the backbone.
"""


def share_prompts(model: Any, run: Runner) -> None:
    """Make a model with TRL's fused LM head compute batches that carry PAIR_ROWS row by row.

    A model that did so before `Accelerator.unwrap_model(model, keep_fp32_wrapper=False)`, which
    removes TRL's LM head with the wrappers of accelerate, gets its forward back.

    Args:
        model: The causal language model itself, without wrappers.
        run: Computes the states of the rows.
    """
    removed = vars(model).get(FORWARD)
    if removed is not None and _unbound(model) in _wrapped(removed):
        model.forward = types.MethodType(removed, model)
        return
    backbone = model.base_model
    model_forward, backbone_forward = _unbound(model), _unbound(backbone)

    # The rows have other lengths in each batch, on which a compiled frame would depend.
    @functools.partial(torch.compiler.disable, recursive=False)
    @functools.wraps(type(backbone).forward)
    def forward_rows(
        self: Any, *args: Any, pair_rows: PairRows | None = None, **options: Any
    ) -> Any:
        if pair_rows is None:
            return backbone_forward(self, *args, **options)
        options.pop("attention_mask", None)
        input_ids = options.pop("input_ids").flatten()[pair_rows.source]
        states = run(functools.partial(backbone_forward, self), input_ids, pair_rows, options)
        return BaseModelOutput(last_hidden_state=states[pair_rows.scored][None])  # pyright: ignore[reportArgumentType]

    # It wraps the forward that it replaces, because accelerate removes its own wrappers in that
    # order. The signature stays that of the model's class, which TRL and `generate` read.
    @functools.wraps(model_forward)
    def forward_pairs(
        self: Any, *args: Any, pair_rows: PairRows | None = None, **options: Any
    ) -> Any:
        if pair_rows is None or not options.get("fused_lm_head"):
            return model_forward(self, *args, **options)
        mask = pair_rows.scored_mask
        # The LM head is applied once, to the scored positions of all rows.
        options["shift_labels"] = options.pop("labels")[:, 1:][mask][None]
        output = model_forward(self, *args, pair_rows=pair_rows, **options)
        for name in PER_TOKEN:
            values = getattr(output, name, None)
            if values is not None:
                setattr(output, name, values.new_zeros(mask.shape).masked_scatter(mask, values))
        return output

    if not shares_prompts(backbone):
        setattr(forward_rows, SHARES, True)
        backbone.forward = types.MethodType(forward_rows, backbone)
    setattr(forward_pairs, SHARES, True)
    setattr(model, FORWARD, forward_pairs)
    model.forward = types.MethodType(forward_pairs, model)


def shares_prompts(module: Any) -> bool:
    """Return whether the forward of a model or backbone is that of `share_prompts`, wrapped or not.

    Accelerate wraps the forward of a model that it prepares after the reference log-probs have been
    computed with it.
    """
    return any(getattr(forward, SHARES, False) for forward in _wrapped(module.forward))


def _wrapped(forward: Any) -> list[Any]:
    """Return a function and all functions that it wraps, the outermost first."""
    forwards = []
    while forward is not None:
        forwards.append(forward)
        forward = getattr(forward, "__wrapped__", None)
    return forwards


def _unbound(module: Any) -> Callable[..., Any]:
    """Return the forward of a module as a function of `self`: a copy of it uses its own weights."""
    forward = module.forward
    if getattr(forward, "__self__", None) is module:
        return forward.__func__

    @functools.wraps(type(module).forward)
    def call(self: Any, *args: Any, **options: Any) -> Any:
        return forward(*args, **options)

    return call


def run_groups(
    forward: Callable[..., Any],
    input_ids: torch.Tensor,
    rows: PairRows,
    options: dict[str, Any],
    *,
    calls: Callable[[int], int] | None = None,
    additive: bool = False,
) -> torch.Tensor:
    """Compute the states of all rows in groups of similar length; see `Runner`.

    Args:
        forward: The forward of the backbone.
        input_ids: The tokens of the rows, (N,).
        rows: The rows.
        options: Other arguments of the backbone.
        calls: Returns the number of calls for a number of pairs; None to choose it by the lengths.
        additive: Whether the mask is added to the attention's scores, as `eager` attention does.
    """
    count = None if calls is None else calls(len(rows.scored_mask) // 2)
    starts = torch.tensor([0, *rows.lengths]).cumsum(0).tolist()
    order, states = [], []
    for group in group_rows(rows.lengths, calls=count):
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
            if additive:
                mask = torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, LOWEST)
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


class SharedPrompt:
    """Decide whether a trainer shares the prompts of its pairs, and add the rows to its batches.

    Args:
        trainer: A DPOTrainer with PairDPOConfig.

    Attributes:
        reason: Why prompts are not shared; None while they are.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        # Weak, because TRL frees a reference model after the precomputation under FSDP.
        self._prepared: weakref.WeakSet[Any] = weakref.WeakSet()
        self._checked: weakref.WeakSet[Any] = weakref.WeakSet()
        self.reason = None if trainer.args.shared_prompt else "shared_prompt is false"

    def add_rows(self, inputs: dict[str, Any], *models: Any) -> dict[str, Any]:
        """Return a batch with its rows, unless prompts are not shared.

        The first batch of every model is checked: one pair is computed in both ways, and with wrong
        positions and a wrong mask. A difference from TRL's numbers, or none from the wrong ones,
        turns sharing off.

        Args:
            inputs: The batch, on the device.
            models: The models that will compute it, with their wrappers.
        """
        if self.reason is not None or PAIR_ROWS in inputs:
            return inputs
        other = inputs.keys() - {*MODEL_INPUTS, *REFERENCE, *PAIR_COLUMNS, CATEGORY}
        if other:
            self._turn_off(f"the batch has {', '.join(sorted(other))}, which has no place in a row")
        for model in models:
            if self.reason is None:
                self._prepare(model, inputs)
        rows = None if self.reason is not None else self._plan(inputs)
        return inputs if rows is None else inputs | {PAIR_ROWS: rows}

    def _turn_off(self, reason: str) -> None:
        self.reason = reason
        logger.warning(f"the prompt of a pair is computed twice, as in TRL: {reason}")

    def _plan(self, inputs: dict[str, Any]) -> PairRows | None:
        rows = plan_rows(*(inputs[name] for name in MODEL_INPUTS))
        if rows is None and self._calls() is not None:
            # TRL's way on one process only would make another number of calls than the others.
            raise ValueError(
                "the first token of a response has no token before it that predicts it: give the"
                " pair a prompt, pad on the right, or set shared_prompt: false"
            )
        return None if rows is None else rows.to(inputs["input_ids"].device)

    def _prepare(self, wrapped: Any, inputs: dict[str, Any]) -> None:
        """Replace the forward of a model that has not been seen, and check it on a pair."""
        with_adapters = self._trainer.accelerator.unwrap_model(wrapped, keep_torch_compile=False)
        model = with_adapters
        if is_peft_model(with_adapters):
            model = with_adapters.get_base_model()
        reason = None
        if model not in self._prepared:
            reason = reason_against(self._trainer, model, with_adapters)
            self._prepared.add(model)
        if reason is None and not shares_prompts(model):
            additive = model.config._attn_implementation == "eager"
            groups = functools.partial(run_groups, calls=self._calls(), additive=additive)
            share_prompts(model, choose_runner(model) or groups)
        if reason is None and model not in self._checked:
            reason = self._compare(wrapped, model, inputs)
        if reason is not None:
            self._turn_off(reason)

    def _calls(self) -> Callable[[int], int] | None:
        """Return the number of calls for a number of pairs, None where it may be any."""
        trainer = self._trainer
        args, accelerator = trainer.args, trainer.accelerator
        plugin = getattr(accelerator.state, "deepspeed_plugin", None)
        checkpointing = args.gradient_checkpointing_kwargs or {}
        if (
            args.gradient_checkpointing
            and checkpointing.get("use_reentrant")
            and (accelerator.num_processes > 1 or plugin is not None)
        ):
            # Each reentrant checkpoint runs a backward pass of its own, after which DDP and
            # DeepSpeed consider a parameter's gradient complete.
            return lambda pairs: 1
        if trainer.is_fsdp_enabled or (plugin is not None and plugin.zero_stage == 3):
            # Every call gathers the parameters, which all processes must do equally often.
            return lambda pairs: (pairs + 3) // 4
        return None

    def _compare(self, wrapped: Any, model: Any, inputs: dict[str, Any]) -> str | None:
        """Return how sharing goes wrong on a pair of the batch; None if it does not."""
        half, gather = len(inputs["input_ids"]) // 2, self._trainer.accelerator.gather
        number = longest_shared(self._plan(inputs))
        exists = torch.tensor([number is not None], device=inputs["input_ids"].device)
        # All processes make the same calls, because some engines communicate in each.
        if not gather(exists.int()).any():
            return None  # no row has a mask so far: the next batch may have one
        self._checked.add(model)
        pair = {name: inputs[name][[number or 0, (number or 0) + half]] for name in MODEL_INPUTS}
        rows = self._plan(pair)
        theirs = self._log_probs(wrapped, pair, None)
        # With wrong positions or masks, a model that follows them computes other numbers.
        blind = {
            "position ids": {"position": torch.zeros_like(rows.position)} if rows else {},
            "mask": {"segment": torch.full_like(rows.segment, SHARED)} if rows else {},
        }
        try:
            ours = self._log_probs(wrapped, pair, rows)
            others = [
                self._log_probs(wrapped, pair, rows and replace(rows, **changes))
                for changes in blind.values()
            ]
        except torch.OutOfMemoryError:
            raise  # on this process alone: the others would wait for it
        except (RuntimeError, ValueError, IndexError, TypeError, AttributeError) as error:
            # The architecture decides, so this happens on all processes.
            first_line = next(iter(str(error).splitlines()), type(error).__name__)
            return f"{type(model).__name__} does not take a mask for every pair: {first_line}"
        coarsest = max(self._dtypes(model), key=lambda dtype: torch.finfo(dtype).eps)
        difference = relative_difference(ours, theirs, coarsest)
        numbers = torch.stack([difference, ours.sum(), theirs.sum()])
        ignored = [number is not None and torch.equal(other, ours) for other in others]
        flags = torch.tensor(ignored, dtype=numbers.dtype, device=numbers.device)
        gathered: Any = gather(torch.cat([numbers, flags])[None])
        worst, our_sum, their_sum, *_ = gathered[gathered[:, 0].argmax()].tolist()
        if worst > 1:
            return (
                f"the log-probs of a pair's responses sum to {our_sum:.7g} nats if its prompt is"
                f" shared and to {their_sum:.7g} if it is not"
            )
        for name, flag in zip(blind, gathered[:, 3:].amax(0).tolist(), strict=True):
            if flag:
                return f"{type(model).__name__} ignores the {name} of a row"
        return None

    def _log_probs(
        self, wrapped: Any, inputs: dict[str, Any], rows: PairRows | None
    ) -> torch.Tensor:
        """Return the log-probs of a batch, computed by rows or, without any, in TRL's way."""
        trainer = self._trainer
        options = {name: value for name, value in inputs.items() if name != "completion_mask"}
        options["labels"] = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
        if rows is not None:
            options[PAIR_ROWS] = rows
        with (
            torch.no_grad(),
            disable_gradient_checkpointing(
                trainer.model, trainer.args.gradient_checkpointing_kwargs
            ),
            trainer.accelerator.autocast(),
        ):
            return wrapped(**options, use_cache=False, fused_lm_head=True).log_probs

    def _dtypes(self, model: Any) -> set[torch.dtype]:
        """Return the precisions in which a model computes."""
        dtypes = {p.dtype for p in model.parameters() if p.is_floating_point()}
        mixed = {"bf16": torch.bfloat16, "fp16": torch.float16}
        dtypes.add(mixed.get(self._trainer.accelerator.mixed_precision, torch.float32))
        if torch.cuda.is_available() and torch.backends.cuda.matmul.allow_tf32:
            dtypes.add(torch.float16)  # as many digits as TF32
        return dtypes


def longest_shared(rows: PairRows | None) -> int | None:
    """Return the number of the pair with the longest row of two responses; None without one."""
    if rows is None or all(rows.is_plain):
        return None
    row = max(
        (row for row, plain in enumerate(rows.is_plain) if not plain), key=rows.lengths.__getitem__
    )
    # The first token of a row is one of the pair's chosen sequence.
    return int(rows.source[sum(rows.lengths[:row])]) // (rows.scored_mask.size(1) + 1)
