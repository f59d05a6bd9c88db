"""What depends on the policy while it trains: beta-DPO and AlphaDPO's margin.

Both look at the margins of the batch that all processes hold together, so that their state agrees
between processes; it is saved with a checkpoint, and a run that resumes goes on where it was.

    A_i: the margin that is watched, in nats
    mean <- m mean + (1 - m) mean(A),   std <- m std + (1 - m) std(A),   both from 0

beta-DPO (arXiv 2407.08639, its released code; m = 0.9, a = 0.6, mode weight 0.2):

    A_i = D_i, not multiplied by beta
    kept: floor(N (1 - mode weight)) of the N pairs, drawn without replacement with the weights
          exp(-((A_i - mean) / std)^2 / 2)
    beta_i <- max(beta_i (1 + a (mean of A over the kept - mean)), 1e-3)
    loss = mean of f over the kept

With a beta column each beta_i is scaled alike (ours); with the global beta it is the paper's.

AlphaDPO (arXiv 2410.10148) on top of SP2DPO (ours: the paper's open question 1):

    z_i = beta_i D_i - gamma_i - alpha beta_i zscore_i,   zscore_i = (A_i - mean) / std, detached
    A_i = log-ratio per token of chosen less that of rejected
"""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

SMALLEST_BETA = 1e-3
MOMENTUM = 0.9


class Running(TrainerCallback, ExportableState):
    """A running mean and standard deviation, kept with the checkpoints of a run.

    Attributes:
        mean: of what was watched.
        std: likewise.
        batches: watched so far.
    """

    def __init__(self) -> None:
        self.mean = 0.0
        self.std = 0.0
        self.batches = 0

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {
            "args": {},
            "attributes": {"mean": self.mean, "std": self.std, "batches": self.batches},
        }

    def watch(self, everyone: torch.Tensor) -> None:
        """Takes the values of a batch in, (N,) over all processes."""
        values = everyone.double()
        std = values.std().item() if len(values) > 1 else 0.0
        self.mean = MOMENTUM * self.mean + (1 - MOMENTUM) * values.mean().item()
        self.std = MOMENTUM * self.std + (1 - MOMENTUM) * std
        self.batches += 1

    def zscore(self, values: torch.Tensor) -> torch.Tensor:
        """(values - mean) / std, of the values' shape; 0 where std is 0."""
        if self.std == 0:
            return torch.zeros_like(values)
        return (values - self.mean) / self.std


class BetaDpoState(Running):
    """The running statistics of beta-DPO: of D."""


class AlphaDpoState(Running):
    """Those of AlphaDPO: of the log-ratios per token."""


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """What beta-DPO makes of a batch.

    Attributes:
        kept: (N,) whether each pair of all processes takes part.
        factor: what every beta is multiplied by.
    """

    kept: torch.Tensor
    factor: float


def beta_dpo(
    state: Running, everyone: torch.Tensor, *, alpha: float, mode_weight: float, seed: int
) -> Chosen:
    """Watches a batch, then filters it and finds the factor of its betas.

    Args:
        state: is brought up to date.
        everyone: (N,) D of the pairs of all processes, in the order of the processes.
        alpha: a above.
        mode_weight: the share that is left out, in [0, 1).
        seed: of the draw; the same one on every process.
    """
    state.watch(everyone)
    count = int(len(everyone) * (1 - mode_weight))
    kept = torch.ones(len(everyone), dtype=torch.bool)
    if 0 < count < len(everyone):
        z = state.zscore(everyone.double().cpu())
        weights = torch.exp(-0.5 * z**2).clamp_min(torch.finfo(torch.float64).tiny)
        generator = torch.Generator().manual_seed((seed * 1_000_003 + state.batches) % 2**63)
        drawn = torch.multinomial(weights, count, replacement=False, generator=generator)
        kept = torch.zeros(len(everyone), dtype=torch.bool)
        kept[drawn] = True
    mean = everyone.double().cpu()[kept].mean().item()
    return Chosen(kept=kept, factor=1 + alpha * (mean - state.mean))


def scale(beta: torch.Tensor, factor: float) -> torch.Tensor:
    """max(beta_i factor, 1e-3), (B,)."""
    return (beta * factor).clamp_min(SMALLEST_BETA)
