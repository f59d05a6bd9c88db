r"""TRL's losses pair by pair, with a beta, a weight, a margin and label smoothing for each pair.

    loss_i = w_i c_i f(beta_i D_i - gamma_i; eps_i)

TRL returns only the mean loss of a batch, whose pairs can no longer be weighted. With weights,
margins or label smoothing, training therefore uses the losses of this module, which are computed
elementwise from the log-ratios

    u_i = log pi(chosen) - log ref(chosen),  v_i the same for rejected,  D_i = u_i - v_i   (nats)

Their mean is compared with TRL's loss during training (see `batch`). Each docstring names the paper
of its loss. The margin enters as in ODPO and label smoothing as in cDPO; for other losses this is
our choice. Neither is defined for a loss that is not a function of z = beta D.

Settings of TRL that change what enters the losses:

- `f_divergence_type`: u and v are replaced by the scores of `divergence_score`, so that the margin
  is subtracted from beta times the difference of the scores.
- `ld_alpha`: the log-probabilities of tokens beyond the shorter response count ld_alpha times.
- `use_weighting`: c_i is WPO's factor of the pair; otherwise it is 1.
- a loss list with `sft`: the term is a mean over the tokens of the batch's chosen responses, and
  the weight of a pair multiplies its tokens. A pair of weight 0 has no gradient at all.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F

Tensor = torch.Tensor


@dataclass(frozen=True, kw_only=True)
class LogRatios:
    """Log-ratios of policy to reference for the pairs of a batch; all of shape (B,).

    Attributes:
        chosen: u_i, in nats, summed over completion tokens.
        rejected: v_i, in nats, summed over completion tokens.
        chosen_length: Completion tokens of the chosen response, at least 1.
        rejected_length: Completion tokens of the rejected response, at least 1.
    """

    chosen: Tensor
    rejected: Tensor
    chosen_length: Tensor
    rejected_length: Tensor

    @property
    def difference(self) -> Tensor:
        """Return D_i = u_i - v_i, (B,)."""
        return self.chosen - self.rejected

    @property
    def average(self) -> Tensor:
        """Return u_i / tokens - v_i / tokens, (B,)."""
        return self.chosen / self.chosen_length - self.rejected / self.rejected_length


@dataclass(frozen=True, kw_only=True)
class Pairwise:
    """Per-pair values of a batch; all of shape (B,) except tau.

    Attributes:
        beta: beta_i, above 0.
        margin: gamma_i, in the units of beta D.
        label_smoothing: eps_i in [0, 0.5), the probability that the label is wrong.
        tau: Temperature of the loss `discopop`, one number for all pairs.
    """

    beta: Tensor
    margin: Tensor
    label_smoothing: Tensor
    tau: float


Loss = Callable[[LogRatios, Pairwise], Tensor]


def sigmoid(r: LogRatios, p: Pairwise) -> Tensor:
    """-(1 - eps) log s(z) - eps log s(-z), z = beta D - gamma: DPO, cDPO (eps), ODPO (gamma)."""
    return _smoothed(p.beta * r.difference - p.margin, p.label_smoothing)


def sigmoid_norm(r: LogRatios, p: Pairwise) -> Tensor:
    """`sigmoid` with log-ratios averaged over tokens."""
    return _smoothed(p.beta * r.average - p.margin, p.label_smoothing)


def robust(r: LogRatios, p: Pairwise) -> Tensor:
    """[-(1 - eps) log s(z) + eps log s(-z)] / (1 - 2 eps) (robust DPO, arXiv 2403.00409)."""
    z, eps = p.beta * r.difference - p.margin, p.label_smoothing
    # `columns` keeps eps below 0.5, so the denominator is positive.
    return (-(1 - eps) * F.logsigmoid(z) + eps * F.logsigmoid(-z)) / (1 - 2 * eps)


def hinge(r: LogRatios, p: Pairwise) -> Tensor:
    """max(0, 1 - z) (SLiC, arXiv 2305.10425)."""
    return torch.relu(1 - (p.beta * r.difference - p.margin))


def exo_pair(r: LogRatios, p: Pairwise) -> Tensor:
    """KL of (s(z), s(-z)) from (1 - eps, eps) (EXO, arXiv 2402.00856, eq. 16)."""
    z, eps = p.beta * r.difference - p.margin, p.label_smoothing
    # log(eps) needs eps > 0, which `columns` checks.
    forward = torch.sigmoid(z) * (F.logsigmoid(z) - torch.log1p(-eps))
    return forward + torch.sigmoid(-z) * (F.logsigmoid(-z) - torch.log(eps))


def discopop(r: LogRatios, p: Pairwise) -> Tensor:
    """A blend of -log s(z) and exp(-z) by s(z / tau) (DiscoPOP, arXiv 2406.08414, eq. 5)."""
    z = p.beta * r.difference - p.margin
    logistic = -F.logsigmoid(z) * torch.sigmoid(-z / p.tau)
    # One exponent, because exp(-z) is infinite below z = -89, where the blend underflows to 0: the
    # product of the two would be NaN.
    return logistic + torch.exp(F.logsigmoid(z / p.tau) - z)


def ipo(r: LogRatios, p: Pairwise) -> Tensor:
    """(average D - 1 / (2 beta))^2 (IPO, arXiv 2310.12036, eq. 17)."""
    return (r.average - _over(0.5, p.beta)) ** 2


def sppo_hard(r: LogRatios, p: Pairwise) -> Tensor:
    """(u - 1 / (2 beta))^2 + (v + 1 / (2 beta))^2 (SPPO, arXiv 2405.00675, eq. 4.7)."""
    target = _over(0.5, p.beta)
    return (r.chosen - target) ** 2 + (r.rejected + target) ** 2


def nca_pair(r: LogRatios, p: Pairwise) -> Tensor:
    """-log s(beta u) - (log s(-beta u) + log s(-beta v)) / 2 (NCA, arXiv 2402.05369)."""
    chosen, rejected = p.beta * r.chosen, p.beta * r.rejected
    return -F.logsigmoid(chosen) - 0.5 * F.logsigmoid(-chosen) - 0.5 * F.logsigmoid(-rejected)


def bco_pair(r: LogRatios, p: Pairwise) -> Tensor:
    """-log s(beta u) - log s(-beta v) (BCO, arXiv 2404.04656)."""
    return -F.logsigmoid(p.beta * r.chosen) - F.logsigmoid(-p.beta * r.rejected)


def apo_zero(r: LogRatios, p: Pairwise) -> Tensor:
    """1 - s(beta u) + s(beta v) (APO, arXiv 2408.06266, eq. 7)."""
    return 1 - torch.sigmoid(p.beta * r.chosen) + torch.sigmoid(p.beta * r.rejected)


def apo_down(r: LogRatios, p: Pairwise) -> Tensor:
    """The sum of s(beta u) and 1 - s(beta D) (APO, eq. 8)."""
    return torch.sigmoid(p.beta * r.chosen) + 1 - torch.sigmoid(p.beta * r.difference)


def divergence_score(log_ratio: Tensor, name: str, coefficient: float) -> Tensor:
    """Return f'(t) of an f-divergence at the ratio t = pi / ref (f-DPO, arXiv 2309.16240).

    Args:
        log_ratio: log t, in nats, of any shape.
        name: `reverse_kl`, `forward_kl`, `js_divergence` or `alpha_divergence`, as in TRL.
        coefficient: The alpha of `alpha_divergence`.
    """
    if name == "forward_kl":
        return 1 - torch.exp(-log_ratio)
    if name == "js_divergence":
        return math.log(2) + F.logsigmoid(log_ratio)
    # At alpha = 1 the formula is 0 / 0, and its limit is the log-ratio.
    if name == "alpha_divergence" and abs(coefficient - 1) >= 1e-6:
        # The exponent is limited as in TRL, because exp(89) is infinite in float32.
        power = torch.exp(torch.clamp((coefficient - 1) * log_ratio, max=80.0))
        return (power - 1) * (1 / (coefficient - 1))
    return log_ratio


LOSSES: Mapping[str, Loss] = {
    "sigmoid": sigmoid,
    "hinge": hinge,
    "ipo": ipo,
    "exo_pair": exo_pair,
    "nca_pair": nca_pair,
    "robust": robust,
    "bco_pair": bco_pair,
    "sppo_hard": sppo_hard,
    "apo_zero": apo_zero,
    "apo_down": apo_down,
    "discopop": discopop,
    "sigmoid_norm": sigmoid_norm,
}
"""The preference losses of TRL that are sums over pairs, by the name that TRL gives them."""
SFT = "sft"
"""The mean over tokens that RPO and MPO add to a preference loss; see `PairBatch.sft`."""
OF_Z = ("sigmoid", "hinge", "exo_pair", "robust", "discopop", "sigmoid_norm")
"""Losses that are functions of z, for which a margin is defined."""
SMOOTHED = ("sigmoid", "exo_pair", "robust", "sigmoid_norm")
"""Losses that model wrong labels, for which label smoothing is defined."""
SORTING = ("aot", "aot_unpaired", "aot_pair")
"""Losses that sort the batch, so that row i of the loss does not belong to pair i."""


def accepted_columns(loss_type: str) -> tuple[str, ...]:
    """Return the per-pair columns that a loss can use.

    `sft` has neither a beta nor a z: it accepts a beta, which does not change it, and a weight.
    """
    if loss_type == SFT:
        return ("beta", "weight")
    if loss_type not in LOSSES:
        # TRL's own formula reads the betas of any other loss; a weight or a margin needs ours.
        return () if loss_type in SORTING else ("beta",)
    conditional = (("margin", OF_Z), ("label_smoothing", SMOOTHED))
    return ("beta", "weight", *(name for name, losses in conditional if loss_type in losses))


def _smoothed(z: Tensor, eps: Tensor) -> Tensor:
    return -(1 - eps) * F.logsigmoid(z) - eps * F.logsigmoid(-z)


def _over(number: float, beta: Tensor) -> Tensor:
    """Return number / beta, divided in double precision, as TRL divides by the global beta."""
    # Apple's GPUs have no double precision.
    exact = beta if beta.device.type == "mps" else beta.double()
    return (number / exact).to(torch.float32)
