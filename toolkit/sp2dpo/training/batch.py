"""Compute a batch's losses pair by pair, and compare their mean with the loss that TRL returns."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import trl

from sp2dpo.training.columns import to_double
from sp2dpo.training.losses import LOSSES, SFT, LogRatios, Pairwise, divergence_score

TOLERANCE = 1e-5
"""Largest relative difference between our mean loss and TRL's."""


class OutputRecorder:
    """A wrapper that records a model's first output, because TRL does not return the log-probs.

    Attributes:
        output: Output of the first call, which is the policy's; None before that call.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self.output: Any = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model, record its output if it is the first, and return it."""
        output = self._model(*args, **kwargs)
        # With `return_outputs`, TRL calls the model again for the logits, without a graph.
        if self.output is None:
            self.output = output
        return output

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """A weighted sum of loss types, as TRL's `loss_type` and `loss_weights` define it.

    Attributes:
        names: Names of the losses; each is a key of `losses.LOSSES`, or `sft`.
        shares: Weight of each loss in the sum.
        tau: Temperature of the loss `discopop`; other losses ignore it.
        divergence: TRL's `f_divergence_type`; see `losses.divergence_score`.
        divergence_coefficient: TRL's `f_alpha_divergence_coef`.
    """

    names: Sequence[str]
    shares: Sequence[float]
    tau: float
    divergence: str = "reverse_kl"
    divergence_coefficient: float = 0.5

    @property
    def preferences(self) -> "Mixture":
        """The mixture without `sft`."""
        chosen = [pair for pair in zip(self.names, self.shares, strict=True) if pair[0] != SFT]
        return replace(self, names=[n for n, _ in chosen], shares=[s for _, s in chosen])


@dataclass(frozen=True, kw_only=True)
class PairBatch:
    """The inputs of a batch's losses, all of shape (B,); the columns are in double precision.

    Attributes:
        ratios: Log-ratios of the pairs.
        beta: Beta of each pair, beta_i.
        weight: Weight of each pair, w_i.
        margin: Margin of each pair, gamma_i.
        label_smoothing: Label smoothing of each pair, eps_i.
        wpo: WPO's factor of each pair, c_i; None for 1.
        sft: Part of each pair in the loss `sft`, times B; their mean is TRL's mean over the tokens
            of all chosen responses. None if the mixture has no `sft`.
        ref_average: Reference log-prob per token of chosen minus that of rejected, in nats; only
            AlphaDPO uses it.
    """

    ratios: LogRatios
    beta: torch.Tensor
    weight: torch.Tensor
    margin: torch.Tensor
    label_smoothing: torch.Tensor
    wpo: torch.Tensor | None = None
    sft: torch.Tensor | None = None
    ref_average: torch.Tensor | None = None

    @property
    def factor(self) -> torch.Tensor:
        """Return w_i c_i, which multiplies the loss of each pair, (B,) in float32."""
        weight = self.weight.to(torch.float32)
        return weight if self.wpo is None else weight * self.wpo

    def losses(self, mixture: Mixture) -> torch.Tensor:
        """Return the weighted loss of each pair, (B,).

        Raises:
            ValueError: If the mixture has the loss `sft` and the field `sft` is None.
        """
        # In float32, the precision in which TRL multiplies the log-ratios by its beta.
        pairwise = Pairwise(
            beta=self.beta.to(torch.float32),
            margin=self.margin.to(torch.float32),
            label_smoothing=self.label_smoothing.to(torch.float32),
            tau=mixture.tau,
        )
        divergence = mixture.divergence, mixture.divergence_coefficient
        scores = replace(
            self.ratios,
            chosen=divergence_score(self.ratios.chosen, *divergence),
            rejected=divergence_score(self.ratios.rejected, *divergence),
        )
        total = torch.zeros_like(self.ratios.chosen)
        for name, share in zip(mixture.names, mixture.shares, strict=True):
            term = self._sft if name == SFT else LOSSES[name](scores, pairwise)
            total = total + share * term
        return self.factor * total

    @property
    def _sft(self) -> torch.Tensor:
        if self.sft is None:
            raise ValueError("the mixture has the loss sft: PairBatch needs the field sft")
        return self.sft

    def slopes(self, mixture: Mixture) -> torch.Tensor:
        """Return the slope |dl_i/du_i| of each pair's preference loss, (B,); see `gradients`.

        Raises:
            ValueError: If the mixture has no preference loss.
        """
        mixture = mixture.preferences
        if not mixture.names:
            raise ValueError("loss_type sft alone has no slope: it is no preference loss")
        with torch.enable_grad():  # evaluation runs without gradients
            # Detached: the graph of the model is needed for the update and is not used here.
            chosen = self.ratios.chosen.detach().requires_grad_()
            ratios = replace(self.ratios, chosen=chosen, rejected=self.ratios.rejected.detach())
            # A pair's loss depends on its own ratios alone, so this is dl/du of every pair at once.
            total = replace(self, ratios=ratios).losses(mixture).sum()
            (slope,) = torch.autograd.grad(total, chosen)
        return slope.abs()


def make_batch(
    output: Any,
    inputs: Mapping[str, torch.Tensor],
    columns: Mapping[str, torch.Tensor],
    *,
    beta: float,
    label_smoothing: float,
    ld_alpha: float | None = None,
    use_weighting: bool = False,
) -> PairBatch:
    """Return the inputs of the losses, computed from one output of the model.

    Args:
        output: Output of the policy, with log_probs (2B, T - 1): chosen first, then rejected; with
            `use_weighting` also log_sum_sq_probs of the same shape.
        inputs: completion_mask (2B, T), ref_chosen_logps and ref_rejected_logps (B,).
        columns: The columns named in `pair_columns`, (B,) each.
        beta: Beta of all pairs if there is no column `beta`.
        label_smoothing: Label smoothing of all pairs if there is no column `label_smoothing`.
        ld_alpha: TRL's `ld_alpha`: the weight of the tokens beyond the shorter response of a pair
            (LD-DPO, arXiv 2409.06411). The reference log-probs must have it applied already.
        use_weighting: Whether to compute WPO's factors (arXiv 2406.11827, eq. 2).

    Raises:
        RuntimeError: If the log-probs are not float32.
    """
    mask = inputs["completion_mask"]
    # Prompt tuning puts virtual tokens in front of the real ones, so count from the end.
    log_probs = output.log_probs[:, -(mask.size(1) - 1) :]
    if log_probs.dtype != torch.float32:
        raise RuntimeError(
            f"the model returns log-probabilities in {log_probs.dtype}, which rounds the loss:"
            " under FSDP2 with mixed precision set output_dtype to float32"
        )
    scored = mask[:, 1:]  # the first token of a sequence has no log-prob
    sums = log_probs.sum(dim=1) if ld_alpha is None else _ld_sums(log_probs, scored, ld_alpha)
    chosen, rejected = sums.chunk(2)
    # As in TRL: a response that truncation has left without a token must not divide by 0.
    lengths = mask.sum(dim=1).clamp(min=1.0).chunk(2)
    references = inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]
    scored_chosen, nll = scored.chunk(2)[0], -log_probs.chunk(2)[0]
    defaults = {"beta": beta, "weight": 1.0, "margin": 0.0, "label_smoothing": label_smoothing}
    values = {
        name: columns[name]
        if name in columns
        else to_double(torch.full(chosen.shape, default, dtype=torch.float64), chosen.device)
        for name, default in defaults.items()
    }
    return PairBatch(
        ratios=LogRatios(
            chosen=chosen - references[0],
            rejected=rejected - references[1],
            chosen_length=lengths[0],
            rejected_length=lengths[1],
        ),
        wpo=_wpo_factors(output, log_probs, scored) if use_weighting else None,
        sft=(nll * scored_chosen).sum(dim=1) * len(chosen) / scored_chosen.sum(),
        ref_average=references[0] / lengths[0] - references[1] / lengths[1],
        **values,
    )


def _ld_sums(log_probs: torch.Tensor, scored: torch.Tensor, ld_alpha: float) -> torch.Tensor:
    """Return the log-probs of sequences, (2B,), with those beyond the shorter response weighted.

    The shared part and the tail are summed separately, as in TRL: sums of some thousand nats that
    are rounded in another way would differ from TRL's reference by 1e-4, where D is 0.
    """
    position = scored.cumsum(dim=1)
    shorter = torch.minimum(*scored.sum(dim=1).chunk(2)).repeat(2).unsqueeze(1)
    shared = (log_probs * ((position > 0) & (position <= shorter))).sum(dim=1)
    return shared + ld_alpha * (log_probs * (position > shorter)).sum(dim=1)


def _wpo_factors(output: Any, log_probs: torch.Tensor, scored: torch.Tensor) -> torch.Tensor:
    """Return WPO's factor of each pair, (B,): a constant for the gradient."""
    with torch.no_grad():
        aligned = (log_probs - output.log_sum_sq_probs[:, -scored.size(1) :]) * scored
        chosen, rejected = (aligned.sum(dim=1) / scored.sum(dim=1).clamp_min(1)).chunk(2)
        return torch.exp(chosen) * torch.exp(rejected)


def check_against_trl(
    theirs: float, batch: PairBatch, mixture: Mixture, *, label_smoothing: float
) -> None:
    """Compare our losses with TRL's, at weight 1, margin 0 and the smoothing that TRL applies.

    Args:
        theirs: The loss that TRL computed for the batch.
        batch: The batch, before online variants change it.
        mixture: The loss types of the run.
        label_smoothing: Global label smoothing, which TRL's `sigmoid` and `sigmoid_norm` ignore.

    Raises:
        RuntimeError: If the two losses differ by more than `TOLERANCE`.
    """
    ours = 0.0
    for name, share in zip(mixture.names, mixture.shares, strict=True):
        # One loss at a time, because the smoothing that TRL applies depends on the loss.
        smoothing = 0.0 if name in ("sigmoid", "sigmoid_norm") else label_smoothing
        plain = replace(
            batch,
            weight=torch.ones_like(batch.weight),
            margin=torch.zeros_like(batch.margin),
            label_smoothing=torch.full_like(batch.label_smoothing, smoothing),
        )
        with torch.no_grad():
            alone = replace(mixture, names=[name], shares=[share])
            ours += plain.losses(alone).mean().item()
    # `not <=` instead of `>`, so that a NaN on either side is refused too.
    # Absolute below 1, because the losses of pairs that are learnt approach 0.
    if not abs(ours - theirs) <= TOLERANCE * max(1.0, abs(theirs)):
        raise RuntimeError(
            f"TRL {trl.__version__} gives the loss {theirs:.7g} where {ours:.7g} was expected: TRL,"
            " or your own trainer, computes another loss; use a tested version of TRL, or set"
            " pair_columns: [beta]"
        )


def check_finite(loss: float, when: str, *, margin: float, loss_types: Sequence[str]) -> None:
    """Refuse a loss that is NaN or infinite, which Trainer would train on and leave out of its log.

    Args:
        loss: The mean loss of a batch.
        when: When it was computed, for the message.
        margin: The mean margin D of the batch, in nats.
        loss_types: Names of the losses.

    Raises:
        FloatingPointError: If the loss is NaN or infinite.
    """
    if math.isfinite(loss):
        return
    if math.isfinite(margin):
        reason = (
            f"loss_type {', '.join(loss_types)} is out of the range of float32 for a pair; choose"
            " betas, weights and margins closer to 1, or another loss"
        )
    else:
        reason = (
            "the model's log-probabilities are not finite; lower learning_rate, or train in"
            " bfloat16 or float32 if this is float16"
        )
    raise FloatingPointError(f"the loss {when} is {loss}: {reason}")
