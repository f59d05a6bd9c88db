"""Whether a model gives the same numbers if the prompt of a pair is computed once.

Two answers: `reason_against` reads the settings and the model's configuration before training, and
`SharedPrompt` compares the two ways on a pair, by `relative_difference`.
"""

import inspect
from typing import Any

import torch
from accelerate.utils import is_peft_model
from torch import nn
from trl.trainer.dpo_trainer import DataCollatorForPreference

from sp2dpo.training.columns import PairCollator

ATTENTION = ("sdpa", "eager", "flex_attention")
"""Attention implementations that take a mask for every pair of tokens; `packing` has flash's."""
# In these the frequencies of all positions depend on the longest sequence of a batch.
DYNAMIC_ROPE = ("dynamic", "longrope")


def reason_against(trainer: Any, model: Any, wrapped: Any) -> str | None:
    """Return why sharing prompts is not possible or not exact; None if nothing speaks against it.

    Args:
        trainer: A DPOTrainer with PairDPOConfig.
        model: A causal language model that the trainer uses, without wrappers.
        wrapped: The same with its adapters, if it has any.
    """
    parallelism = getattr(trainer.accelerator, "parallelism_config", None)
    attention = model.config._attn_implementation or ""
    backbone = getattr(model, "base_model", model)
    arguments = inspect.signature(type(backbone).forward).parameters
    if getattr(trainer, "_is_vision_dataset", False) or model.config.get_text_config() is not (
        model.config
    ):
        return "the model reads images"
    if parallelism is not None and (parallelism.cp_enabled or parallelism.sp_enabled):
        return "context and sequence parallelism split the sequences"
    if trainer.args.n_gpu > 1:
        return (
            "one process uses several GPUs, between which the sequences of a pair are divided: with"
            " accelerate launch, each GPU has a process of its own"
        )
    if len({*(getattr(model, "hf_device_map", None) or {}).values()}) > 1:
        return "the model is split across devices"
    if getattr(trainer.args, "neftune_noise_alpha", None):
        return "neftune_noise_alpha adds noise whose size depends on the length of a row"
    experts = getattr(model.config, "output_router_logits", False)
    if getattr(trainer, "aux_loss_enabled", False) or experts:
        return "the auxiliary loss of a mixture of experts counts every token of both sequences"
    if attention not in ATTENTION and "flash" not in attention:
        return f"attn_implementation {attention} cannot separate the responses of a row"
    if backbone is model or "position_ids" not in arguments:
        return f"{type(model).__name__} does not take position ids"
    passes_on = any(argument.kind is argument.VAR_KEYWORD for argument in arguments.values())
    if "flash" in attention and not passes_on:
        return f"{type(model).__name__} does not pass on the lengths that {attention} needs"
    return (
        _of_adapters(wrapped)
        or _of_attention(model, _length_limit(trainer))
        or _of_dropout(wrapped)
    )


def _of_adapters(wrapped: Any) -> str | None:
    for config in wrapped.peft_config.values() if is_peft_model(wrapped) else ():
        kind = getattr(config.peft_type, "value", config.peft_type)
        depends_on_place = getattr(config, "alora_invocation_tokens", None)
        if config.is_prompt_learning or kind == "ADAPTION_PROMPT" or depends_on_place:
            return f"the adapter ({kind}) adds tokens or depends on their place"
    return None


def _length_limit(trainer: Any) -> int | None:
    """Return the longest sequence of a batch in tokens; None if there is no limit."""
    collator = trainer.data_collator
    collator = collator.inner if isinstance(collator, PairCollator) else collator
    # TRL truncates in its collator; one that the user gives need not.
    return collator.max_length if isinstance(collator, DataCollatorForPreference) else None


def _of_attention(model: Any, max_length: int | None) -> str | None:
    config = model.config
    longest = float("inf") if max_length is None else max_length
    if config.is_encoder_decoder or not getattr(config, "is_causal", True):
        return "the model is not a causal decoder"
    if getattr(config, "alibi", False):
        return "the attention of the model depends on the distance in the row (ALiBi)"
    types = {
        *(getattr(config, "layer_types", None) or ()),
        *getattr(config, "attention_layers", ()),
    }
    recurrent = getattr(model, "_is_stateful", False) or any(
        isinstance(module, nn.Conv1d) for module in model.modules()
    )
    other = types - {"full_attention", "sliding_attention", "attention", "global"}
    if other or recurrent:
        names = ", ".join(sorted(other)) or "recurrent"
        return f"the model has layers without full attention ({names})"
    window = getattr(config, "sliding_window", None)
    if window is not None and window < longest and types != {"full_attention"}:
        most = "no max_length applies" if max_length is None else f"max_length is {max_length}"
        return f"the model attends to the last {window} tokens only, and {most}"
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    for settings in rope.values() if all(isinstance(v, dict) for v in rope.values()) else (rope,):
        known = settings.get("original_max_position_embeddings") or getattr(
            config, "original_max_position_embeddings", config.max_position_embeddings
        )
        if settings.get("rope_type") in DYNAMIC_ROPE and longest > known:
            return (
                f"positions beyond {known} depend on the longest sequence of a batch, and"
                f" max_length is {max_length}"
            )
    return None


def _of_dropout(wrapped: Any) -> str | None:
    for name, module in wrapped.named_modules():
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0:
            return f"dropout is on ({name}: {module.p:g})"
        for key, value in vars(module).items():
            # Functional dropout, which TRL's `disable_dropout` does not reach.
            drops = "drop" in key or "jitter" in key
            if drops and isinstance(value, float) and value > 0:
                return f"dropout is on ({name}.{key}: {value:g})"
    return None


def relative_difference(
    ours: torch.Tensor, theirs: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """Return the mean difference of log-probs over the largest that rounding explains, a scalar.

    Args:
        ours: Log-probs of scored tokens, 0 elsewhere.
        theirs: The same, computed in TRL's way.
        dtype: The precision of the model's products.
    """
    if not theirs.isfinite().all():  # the training refuses such a loss
        return torch.zeros((), device=theirs.device)
    scored = max(1, int((theirs != 0).sum()))
    size = max(1.0, theirs.abs().sum().item() / scored)
    rounding = max(8 * torch.finfo(dtype).eps, 2e-5) * size
    return (ours - theirs).abs().sum().nan_to_num(nan=torch.inf) / scored / rounding
