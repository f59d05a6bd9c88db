"""The settings of a run with per-pair columns, and checks that they can be combined."""

from dataclasses import dataclass, field
from typing import Any

import torch
import trl
from packaging.version import Version
from transformers.utils import is_liger_kernel_available
from trl import DPOConfig, DPOTrainer

from sp2dpo.training.card import remove_secrets
from sp2dpo.training.chat_templates import REFUSALS
from sp2dpo.training.columns import (
    MISSING_VALUES,
    PAIR_COLUMNS,
    RULES,
    choose_column,
    is_beta,
)
from sp2dpo.training.losses import LOSSES, SFT, SORTING, accepted_columns

FIRST_WITH_LOG_PROBS = "1.16"
"""The first TRL version whose model output has the log-probs that per-pair losses need."""
CAPTURES = Version(trl.__version__) >= Version(FIRST_WITH_LOG_PROBS)
# Until TRL 1.13 `use_liger_kernel` computes the DPO loss in Liger's fused kernel, which takes one
# beta for the whole run. Later versions only replace layers of the model and keep TRL's loss.
FUSES_LIGER_LOSS = hasattr(DPOTrainer, "_compute_loss_liger")


def set_current_names(args: Any) -> None:
    """Set arguments whose TRL defaults use a deprecated name or assume an accelerator.

    Args:
        args: TrainingArguments, before their own `__post_init__`.
    """
    # TRL sets its default under the name that transformers 5.2x deprecates.
    if getattr(args, "activation_checkpointing", False) is None:
        args.activation_checkpointing = args.gradient_checkpointing
    if not torch.accelerator.is_available():
        args.dataloader_pin_memory = False  # torch would warn that there is nothing to pin for


@dataclass
class PairDPOConfig(DPOConfig):
    """TRL's DPOConfig with settings for per-pair columns.

    Attributes:
        pair_columns: The columns that change the loss, from `beta`, `weight` (w_i), `margin`
            (gamma_i) and `label_smoothing` (eps_i); `[]` is stock DPO with the global `beta`.
            A column that is not listed is ignored, even if the data set has it.
        missing_values: How to treat rows in which a listed column is null: `error`, `drop` (leave
            the row out) or `constant` (the global `beta`, weight 1, margin 0, smoothing 0).
        template_errors: How to treat rows that the chat template of the model refuses: `error` or
            `drop` (leave the row out, with a warning).
        beta_dpo: The factor a in beta-DPO's formula, 0.6 in its paper; 0 turns beta-DPO off. See
            `online`.
        beta_dpo_mode_weight: Share of a batch that beta-DPO leaves out, 0.2 in its paper.
        alpha_dpo: The factor alpha of AlphaDPO, 0.2 in its released configuration for Llama-3; it
            needs the loss `sigmoid_norm`. 0 turns AlphaDPO off. See `online`.
        alpha_dpo_gamma: The target margin of AlphaDPO and SimPO, gamma / beta, in nats per token;
            0.6 in the same configuration.
        gamma_po: gamma-PO's mean margin gamma_0, in nats; 0 turns gamma-PO off. Its released
            configurations are for SimPO, from 0.375 to 5. See `online`.
        gamma_po_tau: gamma-PO's tau, from 3 to 20 in its released configurations.
        re_po: The reliability eta of the labels with which RE-PO starts, 0.9 in its paper; 0 turns
            RE-PO off. See `online`.
        re_po_momentum: Share of a batch in the new reliability, 0.1 in RE-PO's paper.
        reference_cache: A folder that caches reference log-probs, keyed by everything that they
            depend on; it implies `precompute_ref_log_probs`. See `reference`.
        global_batch_size: Pairs per update over all processes. If it is set,
            `gradient_accumulation_steps` follows from the number of processes.
        shared_prompt: Whether to compute the prompt of a pair once instead of twice, where this
            gives the same numbers; see `shared_prompt`. False is TRL's own forward pass.

    `label_smoothing` above 0 turns the losses `sigmoid` and `sigmoid_norm` into cDPO, whereas TRL
    1.16 silently ignores it for them.

    Raises:
        ValueError: On an unknown column or mode, on a global beta that is not a finite number
            above 0, and on settings that cannot be combined.
    """

    pair_columns: list[str] = field(
        default_factory=lambda: ["beta"],
        metadata={
            "help": "Per-pair columns that act on the loss, out of "
            f"{', '.join(PAIR_COLUMNS)}; none for stock DPO."
        },
    )
    missing_values: str = field(
        default="error",
        metadata={"help": "Rows without a value: error, drop, or constant (the global beta)."},
    )
    template_errors: str = field(
        default="error",
        metadata={"help": "Rows that the chat template refuses: error, or drop."},
    )
    beta_dpo: float = field(default=0.0, metadata={"help": "beta-DPO's a; 0 turns it off."})
    beta_dpo_mode_weight: float = field(
        default=0.2, metadata={"help": "Share of a batch that beta-DPO leaves out."}
    )
    alpha_dpo: float = field(default=0.0, metadata={"help": "AlphaDPO's alpha; 0 turns it off."})
    alpha_dpo_gamma: float = field(
        default=0.0, metadata={"help": "AlphaDPO's gamma / beta, in nats per token."}
    )
    gamma_po: float = field(
        default=0.0, metadata={"help": "gamma-PO's mean margin, in nats; 0 turns it off."}
    )
    gamma_po_tau: float = field(default=10.0, metadata={"help": "gamma-PO's tau."})
    re_po: float = field(
        default=0.0,
        metadata={"help": "RE-PO's first reliability of the labels; 0 turns it off."},
    )
    re_po_momentum: float = field(
        default=0.1, metadata={"help": "Share of a batch in RE-PO's next reliability."}
    )
    reference_cache: str | None = field(
        default=None, metadata={"help": "A folder that keeps reference log-probs."}
    )
    global_batch_size: int | None = field(
        default=None, metadata={"help": "Pairs per update over all processes."}
    )
    shared_prompt: bool = field(
        default=True, metadata={"help": "Compute the prompt of a pair once, where that is exact."}
    )

    def __post_init__(self) -> None:
        # A value from YAML reaches this method as it is; the letters of a bare `beta` would each be
        # taken for a column.
        if not isinstance(self.pair_columns, list):
            raise ValueError(
                f"pair_columns must be a list, [beta] or [], not {self.pair_columns!r}"
            )
        for column in self.pair_columns:
            choose_column(column, PAIR_COLUMNS, "pair_columns")
        if len(set(self.pair_columns)) < len(self.pair_columns):
            raise ValueError(f"pair_columns names a column twice: {', '.join(self.pair_columns)}")
        choose_column(self.missing_values, MISSING_VALUES, "missing_values")
        choose_column(self.template_errors, REFUSALS, "template_errors")
        if not is_beta(self.beta):
            raise ValueError(f"beta must be a finite number above 0, not {self.beta!r}")
        # At 0.5 a label says nothing, and above it every label counts as wrong.
        if not RULES["label_smoothing"].is_legal(self.label_smoothing):
            raise ValueError(
                "label_smoothing must be a number of 0 or more, below 0.5, not"
                f" {self.label_smoothing!r}"
            )
        for name, most in (
            ("beta_dpo", 1e6), ("alpha_dpo", 1e6), ("alpha_dpo_gamma", 1e6),
            ("beta_dpo_mode_weight", 0.99), ("gamma_po", 1e6),
        ):  # fmt: skip
            if not 0 <= getattr(self, name) <= most:
                raise ValueError(f"{name} must be in [0, {most:g}], not {getattr(self, name)!r}")
        self._check_re_po()
        if self.reference_cache:
            if not CAPTURES:
                raise ValueError(
                    f"reference_cache needs TRL {FIRST_WITH_LOG_PROBS}, this is {trl.__version__}:"
                    " upgrade TRL, or unset it"
                )
            # Otherwise TRL does not call `_precompute_ref_logps`, where the cache is used.
            self.precompute_ref_log_probs = True
        set_current_names(self)
        super().__post_init__()
        if self.global_batch_size is not None:
            self._accumulate(self.global_batch_size)
        # Not before TRL's own `__post_init__`, which turns a single `loss_type` into a list.
        self._check_combinations()
        if self.is_online:  # else a resumed run starts from 0
            self.restore_callback_states_from_checkpoint = True

    def to_dict(self) -> dict[str, Any]:
        """Return the settings by key, for trackers, and the facts that `describe_run` adds."""
        settings = super().to_dict()
        if isinstance(settings.get("model_init_kwargs"), dict):
            settings["model_init_kwargs"] = remove_secrets(settings["model_init_kwargs"])
        return settings | getattr(self, "run_facts", {})

    @property
    def is_online(self) -> bool:
        """Whether a variant depends on the policy during training; see `online`."""
        return bool(self.beta_dpo or self.alpha_dpo or self.gamma_po or self.re_po)

    @property
    def smooths(self) -> bool:
        """Whether global label smoothing is set for a loss for which TRL ignores it."""
        plain = {"sigmoid", "sigmoid_norm"} & set(self.loss_type)
        return self.label_smoothing > 0 and bool(plain)

    @property
    def needs_pair_losses(self) -> bool:
        """Whether a setting needs per-pair losses: TRL's mean over the batch is not enough."""
        more = set(self.pair_columns) - {"beta"}
        # TRL multiplies the output of relu in place, which its own backward pass refuses.
        repairs = CAPTURES and self.use_weighting and "hinge" in self.loss_type
        return bool(more or self.is_online or self.smooths or repairs)

    @property
    def inverts(self) -> bool:
        """Whether the slope of the loss is beta s(-beta D), for which D* is defined."""
        logistic = list(self.loss_type) in (["sigmoid"], ["sigmoid_norm"])
        shifted = self.alpha_dpo or self.gamma_po or self.re_po
        shifted = shifted or self.label_smoothing or self.use_weighting
        acting = {"margin", "label_smoothing"} & set(self.pair_columns)
        return logistic and not (shifted or acting or self.f_divergence_type != "reverse_kl")

    def _accumulate(self, pairs: int) -> None:
        """Set `gradient_accumulation_steps` so that an update has `pairs` pairs."""
        per_step = self.train_batch_size * self.world_size
        if pairs < 1 or pairs % per_step:
            raise ValueError(
                f"global_batch_size {pairs} is not a multiple of {per_step}, the pairs of one step"
                f" ({self.train_batch_size} on each of {self.world_size} processes): change"
                " per_device_train_batch_size or the number of processes"
            )
        steps = pairs // per_step
        # 1 is the default, so it counts as not set.
        if self.gradient_accumulation_steps not in (1, steps):
            raise ValueError(
                f"global_batch_size {pairs} takes {steps} steps of {per_step} pairs, not"
                f" gradient_accumulation_steps {self.gradient_accumulation_steps}: set one of them"
            )
        self.gradient_accumulation_steps = steps

    def _check_combinations(self) -> None:
        """Raise ValueError if settings cannot be combined."""
        acting = [(column, "remove it from pair_columns") for column in self.pair_columns]
        # beta-DPO leaves pairs out by a weight of 0.
        if self.beta_dpo:
            acting.append(("weight", "set beta_dpo: 0"))
        for column, alternative in acting:
            # In a list, a margin or label smoothing acts on the losses that have it.
            unused = [name for name in self.loss_type if column not in accepted_columns(name)]
            listed = all(name in LOSSES or name == SFT for name in self.loss_type)
            partial = column in ("margin", "label_smoothing") and listed
            if unused and not (partial and len(unused) < len(self.loss_type)):
                raise ValueError(
                    f"loss_type {unused[0]} {_reason(unused[0], column)}, so a {column} per"
                    f" pair has no meaning there: choose another loss_type, or {alternative}"
                )
        if self.use_weighting and SFT in self.loss_type:
            raise ValueError(
                "use_weighting fails in TRL with the loss_type sft, which has no loss per pair:"
                " set use_weighting: false, or remove sft from loss_type"
            )
        if self.alpha_dpo or self.alpha_dpo_gamma:
            self._check_alpha_dpo()
        for name in ("gamma_po", "re_po"):
            if getattr(self, name):
                self._check_logistic(name)
        acts = bool(self.pair_columns) or self.needs_pair_losses
        if self.use_liger_kernel and FUSES_LIGER_LOSS and acts:
            raise ValueError(
                f"use_liger_kernel gives wrong losses with a beta per pair on TRL"
                f" {trl.__version__}: set it to false, set pair_columns: [], or install TRL"
                f" {FIRST_WITH_LOG_PROBS}"
            )
        if getattr(self, "activation_offloading", False) and not torch.accelerator.is_available():
            raise ValueError(
                "activation_offloading needs an accelerator, and torch finds none: set it to false"
            )
        # Trainer would say so at the first step, after the data set and the model were read.
        if self.use_liger_kernel and not is_liger_kernel_available():
            raise ValueError(
                "use_liger_kernel needs the package liger-kernel, which is not installed: install"
                " it (`pip install liger-kernel`), or set use_liger_kernel: false"
            )
        if not self.needs_pair_losses:
            return
        # Global label smoothing with a second loss such as `aot`: no column has refused that above.
        unknown = [name for name in self.loss_type if name not in LOSSES and name != SFT]
        if unknown:
            raise ValueError(
                f"loss_type {unknown[0]} {_reason(unknown[0], 'weight')}: it cannot be"
                " combined with label_smoothing above 0; set that to 0"
            )
        if not CAPTURES:
            raise ValueError(
                f"weight, margin, label_smoothing, beta_dpo, alpha_dpo, gamma_po and re_po need TRL"
                f" {FIRST_WITH_LOG_PROBS}, this is {trl.__version__}: install it, or set"
                " pair_columns: [beta]"
            )

    def _check_re_po(self) -> None:
        """Raise ValueError if a setting of gamma-PO or RE-PO is not in its range."""
        if not 0 < self.gamma_po_tau <= 1e6:
            raise ValueError(f"gamma_po_tau must be in (0, 1e+06], not {self.gamma_po_tau!r}")
        # At 1, no margin could lower the reliability; below 1/2, labels would count as wrong.
        if self.re_po and not 0.5 <= self.re_po < 1:
            raise ValueError(f"re_po must be in [0.5, 1), or 0 for off, not {self.re_po!r}")
        if not 0 < self.re_po_momentum <= 1:
            raise ValueError(f"re_po_momentum must be in (0, 1], not {self.re_po_momentum!r}")

    def _check_logistic(self, name: str) -> None:
        """Raise ValueError if the loss is not -log s(z), on which gamma-PO and RE-PO rely."""
        if set(self.loss_type) - {SFT} not in ({"sigmoid"}, {"sigmoid_norm"}):
            raise ValueError(
                f"{name} is defined for -log sigmoid(z), not for loss_type"
                f" {', '.join(self.loss_type)}: set loss_type: [sigmoid] or [sigmoid_norm], or set"
                f" {name}: 0"
            )
        if self.f_divergence_type != "reverse_kl":
            raise ValueError(
                f"{name} is not defined for f_divergence_type {self.f_divergence_type}: set it to"
                f" reverse_kl, or set {name}: 0"
            )
        smoothed = self.label_smoothing > 0 or "label_smoothing" in self.pair_columns
        if name == "re_po" and smoothed:
            raise ValueError(
                "re_po computes the label smoothing of each pair itself: set label_smoothing: 0"
                " and remove it from pair_columns, or set re_po: 0"
            )

    def _check_alpha_dpo(self) -> None:
        """Raise ValueError if AlphaDPO cannot be combined with the loss."""
        if not self.alpha_dpo:
            raise ValueError(
                f"alpha_dpo_gamma: {self.alpha_dpo_gamma} acts with alpha_dpo only: set alpha_dpo,"
                " or set alpha_dpo_gamma: 0"
            )
        # Its margin is in nats per token: in a sum over tokens it would be as good as 0.
        if set(self.loss_type) - {SFT} != {"sigmoid_norm"}:
            raise ValueError(
                f"alpha_dpo has a margin per token, and loss_type {', '.join(self.loss_type)} sums"
                " over tokens: set loss_type: [sigmoid_norm], or set alpha_dpo: 0"
            )
        if self.f_divergence_type != "reverse_kl":
            raise ValueError(
                f"alpha_dpo is not defined for f_divergence_type {self.f_divergence_type}: set it"
                " to reverse_kl, or set alpha_dpo: 0"
            )


def _reason(loss_type: str, column: str) -> str:
    """Return the reason why a loss cannot use a column, for a message."""
    if loss_type in SORTING:
        return "sorts the batch"
    if loss_type not in (*LOSSES, SFT):
        return "is not a sum over pairs"
    if column == "margin":
        return "is not a function of beta D alone"
    return "does not model wrong labels"
