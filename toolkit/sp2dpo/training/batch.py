"""Compute a batch's losses pair by pair, and compare their mean with the loss that TRL returns."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import trl

from sp2dpo.training.columns import to_double
from sp2dpo.training.losses import LOSSES, LogRatios, Pairwise

TOLERANCE = 1e-5
"""Largest relative difference between our mean loss and TRL's."""


class BetaProxy:
    """The betas of a batch, used in place of the single beta that TRL reads.

    TRL multiplies by its beta in the precision of the other operand, and divides by it in double
    precision. This class does the same, so that equal betas give TRL's results bit for bit.

    Attributes:
        exact: The betas, (B,), in double precision.
    """

    def __init__(self, exact: torch.Tensor) -> None:
        self.exact = exact

    def __mul__(self, other: Any) -> Any:
        if isinstance(other, torch.Tensor):
            return self.exact.to(torch.float32) * other
        # Such as 2 * beta in `ipo`: TRL computes it in double before it divides.
        return BetaProxy(self.exact * other)

    # Also for `tensor * beta` (`discopop`): torch returns NotImplemented for an operand that it
    # does not know, and Python then asks this one.
    __rmul__ = __mul__

    def __neg__(self) -> "BetaProxy":
        return BetaProxy(-self.exact)

    def __rtruediv__(self, other: float) -> torch.Tensor:
        return (other / self.exact).to(torch.float32)


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
        names: Names of the losses; each is a key of `losses.LOSSES`.
        shares: Weight of each loss in the sum.
        tau: Temperature of the loss `discopop`; other losses ignore it.
    """

    names: Sequence[str]
    shares: Sequence[float]
    tau: float


@dataclass(frozen=True, kw_only=True)
class PairBatch:
    """The inputs of a batch's losses, all of shape (B,); the columns are in double precision.

    Attributes:
        ratios: Log-ratios of the pairs.
        beta: Beta of each pair, beta_i.
        weight: Weight of each pair, w_i.
        margin: Margin of each pair, gamma_i.
        label_smoothing: Label smoothing of each pair, eps_i.
    """

    ratios: LogRatios
    beta: torch.Tensor
    weight: torch.Tensor
    margin: torch.Tensor
    label_smoothing: torch.Tensor

    def losses(self, mixture: Mixture) -> torch.Tensor:
        """Return the weighted loss of each pair, (B,)."""
        # In float32, the precision in which TRL multiplies the log-ratios by its beta.
        pairwise = Pairwise(
            beta=self.beta.to(torch.float32),
            margin=self.margin.to(torch.float32),
            label_smoothing=self.label_smoothing.to(torch.float32),
            tau=mixture.tau,
        )
        total = torch.zeros_like(self.ratios.chosen)
        for name, share in zip(mixture.names, mixture.shares, strict=True):
            total = total + share * LOSSES[name](self.ratios, pairwise)
        return self.weight.to(torch.float32) * total

    def slopes(self, mixture: Mixture) -> torch.Tensor:
        """Return the slope |dl_i/du_i| of each pair's loss, (B,); see `gradients`."""
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
) -> PairBatch:
    """Return the inputs of the losses, computed from one output of the model.

    Args:
        output: Output of the policy, with log_probs (2B, T - 1): chosen first, then rejected.
        inputs: completion_mask (2B, T), ref_chosen_logps and ref_rejected_logps (B,).
        columns: The columns named in `pair_columns`, (B,) each.
        beta: Beta of all pairs if there is no column `beta`.
        label_smoothing: Label smoothing of all pairs if there is no column `label_smoothing`.

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
    chosen, rejected = log_probs.sum(dim=1).chunk(2)
    # As in TRL: a response that truncation has left without a token must not divide by 0.
    lengths = mask.sum(dim=1).clamp(min=1.0).chunk(2)
    defaults = {"beta": beta, "weight": 1.0, "margin": 0.0, "label_smoothing": label_smoothing}
    values = {
        name: columns[name]
        if name in columns
        else to_double(torch.full(chosen.shape, default, dtype=torch.float64), chosen.device)
        for name, default in defaults.items()
    }
    return PairBatch(
        ratios=LogRatios(
            chosen=chosen - inputs["ref_chosen_logps"],
            rejected=rejected - inputs["ref_rejected_logps"],
            chosen_length=lengths[0],
            rejected_length=lengths[1],
        ),
        **values,
    )


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
            alone = Mixture(names=[name], shares=[share], tau=mixture.tau)
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
