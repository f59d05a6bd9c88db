"""A batch pair by pair: what its columns say, its single losses, and whether TRL agrees."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import trl

from sp2dpo.training.columns import widest
from sp2dpo.training.losses import LOSSES, LogRatios, Pairwise

TOLERANCE = 1e-5
"""Relative to a loss: what our sum and TRL's may differ by."""


class BetaProxy:
    """The betas of a batch in the place of the one number that TRL reads.

    TRL multiplies by it, in the precision of its operands, and divides by it, in double: both are
    done here as they are for a number, so that equal betas give TRL's own bits.

    Attributes:
        exact: (B,), double.
    """

    def __init__(self, exact: torch.Tensor) -> None:
        self.exact = exact

    def __mul__(self, other: Any) -> Any:
        if isinstance(other, torch.Tensor):
            return self.exact.to(torch.float32) * other
        return BetaProxy(self.exact * other)

    __rmul__ = __mul__

    def __neg__(self) -> "BetaProxy":
        return BetaProxy(-self.exact)

    def __rtruediv__(self, other: float) -> torch.Tensor:
        return (other / self.exact).to(torch.float32)


class KeepsOutput:
    """A model whose first output is kept, for what TRL does not tell of it."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.output: Any = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model's own output."""
        output = self._model(*args, **kwargs)
        if self.output is None:
            self.output = output
        return output

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """The loss types of a run.

    Attributes:
        names: out of `pair_losses.LOSSES`.
        shares: of each in the loss.
        tau: of `discopop`.
    """

    names: Sequence[str]
    shares: Sequence[float]
    tau: float


@dataclass(frozen=True, kw_only=True)
class PairBatch:
    """A batch as the losses see it; all (B,), the columns in double.

    Attributes:
        ratios: of its pairs.
        beta: beta_i.
        weight: w_i.
        margin: gamma_i.
        label_smoothing: eps_i.
    """

    ratios: LogRatios
    beta: torch.Tensor
    weight: torch.Tensor
    margin: torch.Tensor
    label_smoothing: torch.Tensor

    def losses(self, mixture: Mixture) -> torch.Tensor:
        """(B,) each pair's loss, with its weight."""
        pairwise = Pairwise(
            beta=self.beta.to(torch.float32),
            margin=self.margin.to(torch.float32),
            label_smoothing=self.label_smoothing.to(torch.float32),
            tau=mixture.tau,
        )
        found = torch.zeros_like(self.ratios.chosen)
        for name, share in zip(mixture.names, mixture.shares, strict=True):
            found = found + share * LOSSES[name](self.ratios, pairwise)
        return self.weight.to(torch.float32) * found

    def slopes(self, mixture: Mixture) -> torch.Tensor:
        """(B,) |dl_i/du_i|: see `slopes`."""
        with torch.enable_grad():
            chosen = self.ratios.chosen.detach().requires_grad_()
            ratios = replace(self.ratios, chosen=chosen, rejected=self.ratios.rejected.detach())
            total = replace(self, ratios=ratios).losses(mixture).sum()
            (slope,) = torch.autograd.grad(total, chosen)
        return slope.abs()


def make_batch(
    output: Any,
    inputs: Mapping[str, torch.Tensor],
    said: Mapping[str, torch.Tensor],
    *,
    beta: float,
    label_smoothing: float,
) -> PairBatch:
    """The batch, from the one output of the model.

    Args:
        output: of the policy, with log_probs (2B, T - 1): chosen first, then rejected.
        inputs: completion_mask (2B, T), ref_chosen_logps and ref_rejected_logps (B,).
        said: the acting columns, (B,) each.
        beta: of all pairs, where no column says it.
        label_smoothing: likewise.

    Raises:
        RuntimeError: The log-probs are rounded.
    """
    mask = inputs["completion_mask"]
    log_probs = output.log_probs[:, -(mask.size(1) - 1) :]
    if log_probs.dtype != torch.float32:
        raise RuntimeError(
            f"the model gives log-probabilities in {log_probs.dtype}, which rounds the loss: under"
            " FSDP2 with mixed precision set output_dtype to float32"
        )
    chosen, rejected = log_probs.sum(dim=1).chunk(2)
    lengths = mask.sum(dim=1).clamp(min=1.0).chunk(2)
    otherwise = {"beta": beta, "weight": 1.0, "margin": 0.0, "label_smoothing": label_smoothing}
    columns = {
        name: said[name]
        if name in said
        else widest(torch.full(chosen.shape, value, dtype=torch.float64), chosen.device)
        for name, value in otherwise.items()
    }
    return PairBatch(
        ratios=LogRatios(
            chosen=chosen - inputs["ref_chosen_logps"],
            rejected=rejected - inputs["ref_rejected_logps"],
            chosen_length=lengths[0],
            rejected_length=lengths[1],
        ),
        **columns,
    )


def check_against_trl(
    theirs: float, batch: PairBatch, mixture: Mixture, *, label_smoothing: float
) -> None:
    """Holds our losses to TRL's, at weight 1, margin 0 and the smoothing that TRL knows.

    Args:
        theirs: TRL's loss of the batch.
        batch: as it came.
        mixture: of the run.
        label_smoothing: the global one, which TRL's `sigmoid` and `sigmoid_norm` leave out.

    Raises:
        RuntimeError: They differ by more than `TOLERANCE`.
    """
    ours = 0.0
    for name, share in zip(mixture.names, mixture.shares, strict=True):
        known = 0.0 if name in ("sigmoid", "sigmoid_norm") else label_smoothing
        plain = replace(
            batch,
            weight=torch.ones_like(batch.weight),
            margin=torch.zeros_like(batch.margin),
            label_smoothing=torch.full_like(batch.label_smoothing, known),
        )
        with torch.no_grad():
            alone = Mixture(names=[name], shares=[share], tau=mixture.tau)
            ours += plain.losses(alone).mean().item()
    if not abs(ours - theirs) <= TOLERANCE * max(1.0, abs(theirs)):
        raise RuntimeError(
            f"TRL {trl.__version__} gives the loss {theirs:.7g} where {ours:.7g} was expected: it,"
            " or your own trainer, computes another loss; use a TRL that is tested, or set"
            " pair_columns: [beta]"
        )
