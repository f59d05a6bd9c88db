"""Variants that depend on the policy during training: beta-DPO, AlphaDPO, gamma-PO and RE-PO.

All use the margins of all processes, so that every process has the same state. It changes at each
micro-batch, not at each update, so gradient accumulation is not the same as a larger batch here.
The state is saved with checkpoints and restored when a run resumes.

beta-DPO and AlphaDPO keep running moments:

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

gamma-PO (arXiv 2506.03690, following `gm-dpo` of its released code), with r_i = beta_i D_i of the
current policy and B the number of pairs that are compared:

    p = argmin over the simplex of the mean of -log s(r_i - gamma_0 B p_i) + tau KL(p, uniform)
    loss_i = f(r_i - (gamma_i - gamma_0)),   gamma_i = gamma_0 B p_i, detached

The released code approximates p by 20 steps of mirror descent, over the batch and a random sample
of the last 2,048 margins, 256 pairs in all; so does this module. There every process has its own
queue, which starts with eight draws of a normal distribution; here the queue is common to all
processes and starts empty (our choice, for runs that can be repeated).

RE-PO (arXiv 2509.24159, eq. 4 to 7 and algorithm 1), with one annotator for all labels:

    z_i = beta_i D_i - gamma_i,   s the sigmoid
    w_i = eta s(z_i) / (eta s(z_i) + (1 - eta) s(-z_i)) = s(z_i + logit(eta)), detached
    loss_i = -w_i log s(z_i) - (1 - w_i) log s(-z_i)
    eta <- (1 - a) eta + a mean(w), after the loss of the batch

w_i is the probability that the label is right. The paper uses eta = 0.9 at the start and a = 0.1.
eta is kept in [1e-6, 1 - 1e-6] (our choice): at 0 or 1, no margin could change it any more.
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
GAMMA_PO_STEPS = 20
GAMMA_PO_QUEUE, GAMMA_PO_PAIRS = 2048, 256
"""Margins that gamma-PO remembers, and pairs over which it chooses its margins; as in its code."""
CERTAIN = 1e-6
"""Smallest distance of RE-PO's reliability from 0 and from 1."""


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


class GammaPoState(TrainerCallback, ExportableState):
    """The last margins that gamma-PO compares a batch with, saved with the checkpoints of a run.

    Attributes:
        rewards: The last margins beta_i D_i, at most `GAMMA_PO_QUEUE`, the oldest first.
        batches: Number of batches so far.
    """

    def __init__(self) -> None:
        self.rewards: list[float] = []
        self.batches = 0

    def state(self) -> dict[str, Any]:
        """Return the state that a checkpoint stores."""
        return {"args": {}, "attributes": {"rewards": self.rewards, "batches": self.batches}}


class RePoState(TrainerCallback, ExportableState):
    """RE-PO's estimate of the labels' reliability, saved with the checkpoints of a run.

    Attributes:
        reliability: eta, the estimated probability that a label is right, in (0, 1).
    """

    def __init__(self, reliability: float) -> None:
        self.reliability = reliability

    def state(self) -> dict[str, Any]:
        """Return the state that a checkpoint stores."""
        return {"args": {"reliability": self.reliability}, "attributes": {}}


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


def project_margins(rewards: torch.Tensor, *, gamma: float, tau: float) -> torch.Tensor:
    """Return gamma-PO's margins gamma_i - gamma_0 of B pairs, (B,); their mean is 0.

    Args:
        rewards: r_i of each pair, in nats, (B,).
        gamma: The mean margin gamma_0, in nats, above 0.
        tau: Weight of the divergence from equal margins, above 0.
    """
    rate = min(0.5 / tau, 1)
    log_count = math.log(len(rewards))
    # In logarithms, log(B p_i): a share that underflows to 0 would never grow again.
    log_share = torch.zeros_like(rewards)
    for _ in range(GAMMA_PO_STEPS):
        slope = gamma * torch.sigmoid(gamma * log_share.exp() - rewards) + tau * (1 + log_share)
        log_share = log_share - rate * slope
        log_share = log_share - (log_share.logsumexp(dim=0) - log_count)
    return gamma * (log_share.exp() - 1)


def gamma_po_margins(
    state: GammaPoState, gathered: torch.Tensor, *, gamma: float, tau: float, seed: int
) -> torch.Tensor:
    """Return gamma-PO's margins of a batch, (N,), and add its rewards to the queue.

    Args:
        state: The queue, which is updated.
        gathered: r_i of the pairs of all processes, in the order of the processes, (N,).
        gamma: The mean margin gamma_0, in nats.
        tau: Weight of the divergence from equal margins.
        seed: Seed of the draw from the queue, the same on every process.
    """
    rewards = gathered.double().cpu()
    state.batches += 1
    # Another draw for each batch, as in `beta_dpo`.
    generator = torch.Generator().manual_seed((seed * 1_000_003 + state.batches) % 2**63)
    count = max(min(len(state.rewards), GAMMA_PO_PAIRS - len(rewards)), 0)
    drawn = torch.randperm(len(state.rewards), generator=generator)[:count]
    earlier = torch.tensor(state.rewards, dtype=torch.float64)[drawn]
    margins = project_margins(torch.cat([earlier, rewards]), gamma=gamma, tau=tau)
    state.rewards = [*state.rewards, *rewards.tolist()][-GAMMA_PO_QUEUE:]
    return margins[count:]


def re_po_posterior(z: torch.Tensor, reliability: float) -> torch.Tensor:
    """Return RE-PO's w_i, the probability that each label is right, in the shape of z (eq. 4)."""
    return torch.sigmoid(z + math.log(reliability) - math.log1p(-reliability))


def apply_online_variants(
    batch: PairBatch,
    args: Any,
    accelerator: Any,
    *,
    state: Callable[[type[Any]], Any],
    metrics: Mapping[str, list[float]],
) -> PairBatch:
    """Return a training batch after the changes by the variants that are on.

    Args:
        batch: The batch of this process.
        args: The PairDPOConfig of the run.
        accelerator: The accelerator of the run, which gathers the margins of all processes, so
            that all have the same moments.
        state: Returns the state of a variant by its class.
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
    if args.gamma_po:
        rewards = _logits(batch, args)
        margins = gamma_po_margins(
            state(GammaPoState), accelerator.gather(rewards), gamma=args.gamma_po,
            tau=args.gamma_po_tau, seed=args.seed,
        )  # fmt: skip
        metrics["gamma_po/std"].append(margins.std(correction=0).item())
        first = accelerator.process_index * len(rewards)
        own = margins[first : first + len(rewards)].to(batch.margin)
        batch = replace(batch, margin=batch.margin + own)
    if args.re_po:
        estimate = state(RePoState)
        posterior = re_po_posterior(_logits(batch, args), estimate.reliability)
        metrics["re_po/reliability"].append(estimate.reliability)
        mean = accelerator.gather(posterior).double().mean().item()
        momentum = args.re_po_momentum
        updated = (1 - momentum) * estimate.reliability + momentum * mean
        estimate.reliability = min(max(updated, CERTAIN), 1 - CERTAIN)
        # RE-PO's loss is cDPO's with eps_i = 1 - w_i, which may be above 1/2 here.
        batch = replace(batch, label_smoothing=(1 - posterior).to(batch.label_smoothing))
    return batch


def _logits(batch: PairBatch, args: Any) -> torch.Tensor:
    """Return z_i = beta_i D_i - gamma_i, detached, (B,); D_i per token for `sigmoid_norm`."""
    ratios = batch.ratios
    margin = ratios.average if "sigmoid_norm" in args.loss_type else ratios.difference
    return (batch.beta * margin - batch.margin).detach()
