"""Variants that depend on the policy during training: beta-DPO and AlphaDPO.

Both use the margins of all processes, so that every process has the same state.
The state is saved with checkpoints and restored when a run resumes.

    A_i: the margin that is averaged, in nats (defined for each variant below)
    mean <- m mean + (1 - m) mean(A),   std <- m std + (1 - m) std(A),   both from 0

beta-DPO (arXiv 2407.08639, following its released code; m = 0.9, a = 0.6, mode weight 0.2):

    A_i = D_i, not multiplied by beta
    selected: floor(N (1 - mode weight)) of the N pairs, drawn without replacement with the weights
          exp(-((A_i - mean) / std)^2 / 2)
    beta_i <- max(beta_i (1 + a (mean of A over the selected - mean)), 1e-3)
    loss = mean of f over the selected

With a beta column, each beta_i is scaled by the same factor (our choice); with the global beta,
this is the method of the paper.

AlphaDPO (arXiv 2410.10148, following its released code), with the loss `sigmoid_norm`. Every
log-prob is an average over the tokens of its response:

    P_i = log pi(chosen) - log pi(rejected),   A_i = P_i - [log ref(chosen) - log ref(rejected)]
    z_i = beta_i (P_i - gamma - alpha zscore_i),   zscore_i = (A_i - mean) / std, detached

The reference acts through the margin alone: with alpha = 0 this is SimPO (arXiv 2405.14734). Since
beta multiplies nats per token, the released betas are 2.5 to 10. With a beta column, each pair has
its own beta_i (our choice; SP2DPO's open question 1), and a column `margin` is subtracted from z_i.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from sp2dpo.training.batch import PairBatch

SMALLEST_BETA = 1e-3
MOMENTUM = 0.9


class RunningMoments(TrainerCallback, ExportableState):
    """A running mean and standard deviation, saved with the checkpoints of a run.

    Attributes:
        mean: Running mean.
        std: Running standard deviation.
        batches: Number of batches so far.
    """

    def __init__(self) -> None:
        self.mean = 0.0
        self.std = 0.0
        self.batches = 0

    def state(self) -> dict[str, Any]:
        """Return the state that a checkpoint stores."""
        return {
            # To resume, Trainer creates a new object with `args` and sets the attributes on it.
            "args": {},
            "attributes": {"mean": self.mean, "std": self.std, "batches": self.batches},
        }

    def update(self, gathered: torch.Tensor) -> None:
        """Update the moments with the values of a batch, (N,) over all processes."""
        values = gathered.double()
        # torch's std of a single value is NaN, which would never leave the running mean.
        std = values.std().item() if len(values) > 1 else 0.0
        self.mean = MOMENTUM * self.mean + (1 - MOMENTUM) * values.mean().item()
        self.std = MOMENTUM * self.std + (1 - MOMENTUM) * std
        self.batches += 1

    def zscore(self, values: torch.Tensor) -> torch.Tensor:
        """Return (values - mean) / std, in the shape of the values; 0 if std is 0."""
        if self.std == 0:
            return torch.zeros_like(values)
        return (values - self.mean) / self.std


# One class for each variant, because a checkpoint names the state of a callback by its class.
class BetaDpoState(RunningMoments):
    """The running moments of beta-DPO, computed over D."""


class AlphaDpoState(RunningMoments):
    """The running moments of AlphaDPO, computed over the difference of log-ratios per token."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The pairs that beta-DPO selects from a batch, and the factor by which it scales the betas.

    Attributes:
        mask: Whether each pair is selected, (N,) over all processes.
        factor: The factor by which every beta is multiplied.
    """

    mask: torch.Tensor
    factor: float


def beta_dpo(
    state: RunningMoments, gathered: torch.Tensor, *, alpha: float, mode_weight: float, seed: int
) -> Selection:
    """Update the moments with a batch, select its pairs and compute the factor of its betas.

    Args:
        state: The moments, which are updated.
        gathered: D of the pairs of all processes, in the order of the processes, (N,).
        alpha: The factor a in the formulas of this module.
        mode_weight: Share of the pairs to leave out, in [0, 1).
        seed: Seed of the draw, the same on every process.
    """
    # Before the selection, as in the released code.
    state.update(gathered)
    # 5 * (1 - 0.8) is 0.9999999999999998 in floating point: without the allowance, floor gives 0.
    count = math.floor(len(gathered) * (1 - mode_weight) + 1e-9)
    mask = torch.ones(len(gathered), dtype=torch.bool)
    # A batch that is too small to leave any pair is kept whole.
    if 0 < count < len(gathered):
        z = state.zscore(gathered.double().cpu())
        # Far from the mean, exp underflows to 0, and multinomial refuses too few positive weights.
        weights = torch.exp(-0.5 * z**2).clamp_min(torch.finfo(torch.float64).tiny)
        # Another draw for each batch, the same on every process and after resuming.
        # The factor keeps the draws of different seeds apart for the first million batches.
        generator = torch.Generator().manual_seed((seed * 1_000_003 + state.batches) % 2**63)
        drawn = torch.multinomial(weights, count, replacement=False, generator=generator)
        mask = torch.zeros(len(gathered), dtype=torch.bool)
        mask[drawn] = True
    mean = gathered.double().cpu()[mask].mean().item()
    return Selection(mask=mask, factor=1 + alpha * (mean - state.mean))


def scale(beta: torch.Tensor, factor: float) -> torch.Tensor:
    """Return max(beta_i factor, 1e-3), (B,)."""
    return (beta * factor).clamp_min(SMALLEST_BETA)


def alpha_dpo_margin(
    zscore: torch.Tensor,
    ref_average: torch.Tensor,
    beta: torch.Tensor,
    *,
    alpha: float,
    gamma: float,
) -> torch.Tensor:
    """Return what AlphaDPO subtracts from beta_i A_i, the argument of `sigmoid_norm`, (B,).

    beta A - beta (gamma + alpha zscore - R) is the z of this module, as P = A + R.

    Args:
        zscore: zscore_i of each pair, (B,).
        ref_average: R_i, the reference's log-prob per token of chosen minus that of rejected, (B,).
        beta: Beta of each pair, (B,).
        alpha: The factor alpha, in nats per token.
        gamma: The target margin gamma / beta, in nats per token.
    """
    return beta * (gamma + alpha * zscore - ref_average)


def apply_online_variants(
    batch: PairBatch,
    args: Any,
    accelerator: Any,
    *,
    state: Callable[[type[RunningMoments]], RunningMoments],
    metrics: Mapping[str, list[float]],
) -> PairBatch:
    """Return a training batch after the changes by beta-DPO and AlphaDPO.

    Args:
        batch: The batch of this process.
        args: The PairDPOConfig of the run.
        accelerator: The accelerator of the run, which gathers the margins of all processes, so
            that all have the same moments.
        state: Returns the running moments of a variant by their class.
        metrics: Receives the metrics of the variants.

    Raises:
        ValueError: If the batch has no `ref_average` and AlphaDPO is on.
    """
    if args.alpha_dpo:
        if batch.ref_average is None:
            raise ValueError("AlphaDPO needs the field ref_average of the batch")
        average = batch.ratios.average.detach()
        moments = state(AlphaDpoState)
        moments.update(accelerator.gather(average).cpu())
        adaptive = alpha_dpo_margin(
            moments.zscore(average), batch.ref_average, batch.beta,
            alpha=args.alpha_dpo, gamma=args.alpha_dpo_gamma,
        )  # fmt: skip
        metrics["alpha_dpo/std"].append(moments.std)
        batch = replace(batch, margin=batch.margin + adaptive)
    if args.beta_dpo:
        own = batch.ratios.difference.detach()
        gathered = accelerator.gather(own)
        selection = beta_dpo(
            state(BetaDpoState), gathered.cpu(), alpha=args.beta_dpo,
            mode_weight=args.beta_dpo_mode_weight, seed=args.seed,
        )  # fmt: skip
        # `gather` joins the processes in their order; each has as many pairs as this one.
        first = accelerator.process_index * len(own)
        mask = selection.mask[first : first + len(own)].to(own.device)
        # With these weights, the mean over all pairs is the mean over the selected pairs.
        share = mask * (len(gathered) / selection.mask.sum().item())
        metrics["beta_dpo/factor"].append(selection.factor)
        batch = replace(
            batch, beta=scale(batch.beta, selection.factor), weight=batch.weight * share
        )
    return batch
