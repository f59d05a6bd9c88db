"""Published methods that use annotations pair by pair: GDPO, CW-PO and gamma-PO.

The formulas are those of the papers. What they are computed from is our choice: in the papers, one
language model or a reward model gives the probabilities (GDPO, CW-PO), and the policy in training
gives the margins (gamma-PO); here the panel gives both. MADPO and ODPO are in `baselines`.

p_i is the probability that the label of a pair is right, as `soft_labels` estimates it, or from a
reward model's margin h_i by the Bradley-Terry model, p_i = s(h_i). A pair with p_i below 1/2 is
trained with its responses exchanged and 1 - p_i in place of p_i: both papers let their annotator
decide which response is the chosen one.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from sp2dpo.betas.choices import check_arguments
from sp2dpo.betas.gaps import NOISE
from sp2dpo.betas.label_models import sigmoid
from sp2dpo.betas.maps import BETA, LARGEST_BETA
from sp2dpo.betas.soft_labels import Anchored, Calibrated, Free, Latent, SoftLabel
from sp2dpo.settings import number, one_of

ESTIMATES: dict[str, SoftLabel] = {
    "free": Free(),
    "calibrated": Calibrated(),
    "latent": Latent(),
    "anchored": Anchored(),
}
"""Estimates of p_i from the replies, by name."""
SCORES = "scores"
"""Name of the estimate p_i = s(h_i) from a reward model."""
RIGHT = "right"
"""Column with p_i of the label as the pair is trained, at least 1/2; null without a beta."""
_SOURCE = one_of((*ESTIMATES, SCORES))
_STEPS = 20


@dataclass(frozen=True)
class Gdpo:
    """beta_i = beta (2 p_i - 1): geometric averaging of the likelihoods (arXiv 2409.06691).

    GDPO averages the likelihoods of both responses geometrically with the weights p_i and 1 - p_i,
    so that DPO's loss becomes -log s(beta (2 p_i - 1) D). At p_i = 1/2 its gradient is 0 at every
    D; beta_i must be above 0, so such a pair is left out instead. With the loss `ipo`, this is not
    the paper's GIPO, which also multiplies the loss by (2 p_i - 1)^2.

    Attributes:
        beta: beta of a label that is certainly right; above 0.
        p: source of p_i: free, calibrated, latent, anchored or scores.
    """

    beta: float
    p: str

    def __post_init__(self) -> None:
        check_arguments(self, beta=BETA, p=_SOURCE)
        object.__setattr__(self, "beta", float(self.beta))

    def keep(self, table: pl.DataFrame) -> pl.Series:
        """Return whether each pair is kept: those of `keep` with p_i above 1/2."""
        informed = (2 * pl.col(RIGHT) - 1 > NOISE).fill_null(False)
        return table.select(pl.col("keep") & informed).to_series()

    def betas(self, table: pl.DataFrame) -> pl.Series:
        """Return beta_i of the kept pairs; a pair that is not kept keeps the schedule's."""
        scaled = self.beta * (2 * pl.col(RIGHT) - 1)
        return table.select(pl.when("keep").then(scaled).otherwise("beta")).to_series()


@dataclass(frozen=True)
class CwPo:
    """w_i = 2 (p_i - 1/2): the annotator's confidence as a weight (arXiv 2603.04968).

    In the paper p_i = s(r(chosen) - r(rejected)) for the scores r of a small reward model, which is
    `p=scores` here; p from the panel is our choice. The weights are in [0, 1] and, as in the paper,
    not divided by their mean.

    Attributes:
        p: source of p_i: free, calibrated, latent, anchored or scores.
    """

    p: str

    def __post_init__(self) -> None:
        check_arguments(self, p=_SOURCE)

    def values(self, table: pl.DataFrame) -> pl.Series:
        """Return the weights of pairs with a beta."""
        return 2 * table[RIGHT] - 1


@dataclass(frozen=True)
class GammaPo:
    """gamma-PO's margins gamma_i - gamma_0 (arXiv 2506.03690, `gm-dpo` of its released code).

        p = argmin over the simplex of the mean of -log s(r_i - gamma_0 B p_i) + tau KL(p, uniform)
        gamma_i = gamma_0 B p_i,   loss_i = f(beta_i D_i - (gamma_i - gamma_0))

    approximated, as in the released code, by 20 steps of mirror descent from the uniform p. There,
    r_i is the policy's own margin beta D_i at the time, and B is 256 pairs (`gamma_po` of the
    trainer does that). Here r_i = scale s_i, with the signed gap s_i of the pair as it is trained,
    and B all kept pairs: our choice, which gives a larger margin where the teachers see a larger
    gap. The margins are 0 on average.

    Attributes:
        gamma: gamma_0, the mean margin, in nats; above 0. Released for SimPO: 0.375 to 5.
        tau: weight of the divergence from equal margins; above 0. Released: 3 to 20.
        scale: r_i of a gap of 1, in nats; above 0.
    """

    gamma: float
    tau: float
    scale: float

    def __post_init__(self) -> None:
        rule = number(above=0, most=LARGEST_BETA)
        check_arguments(self, gamma=rule, tau=rule, scale=rule)

    def values(self, table: pl.DataFrame) -> pl.Series:
        """Return the margins of the kept pairs, in nats; 0 for other pairs with a gap."""
        signed = pl.col("signed_gap")
        if "flip" in table.columns:
            signed = pl.when("flip").then(-signed).otherwise(signed)
        kept = table["keep"].to_numpy()
        rewards = self.scale * table.select(signed).to_series().filter(table["keep"]).to_numpy()
        margins = np.zeros(len(table))
        margins[kept] = project_margins(rewards, gamma=self.gamma, tau=self.tau)
        return pl.select(pl.when(table["has_beta"]).then(pl.Series(margins))).to_series()


def project_margins(
    rewards: NDArray[np.float64], *, gamma: float, tau: float
) -> NDArray[np.float64]:
    """Return gamma_i - gamma_0 of B pairs, (B,); their mean is 0. See `GammaPo`.

    Args:
        rewards: r_i of each pair, in nats, (B,), B at least 1.
        gamma: gamma_0, in nats.
        tau: weight of the divergence from equal margins.
    """
    rate = min(0.5 / tau, 1)
    # In logarithms, log(B p_i): a share that underflows to 0 would never grow again.
    log_share = np.zeros(len(rewards))
    for _ in range(_STEPS):
        slope = gamma * sigmoid(gamma * np.exp(log_share) - rewards) + tau * (1 + log_share)
        log_share = log_share - rate * slope
        log_share = log_share - (np.logaddexp.reduce(log_share) - np.log(len(rewards)))
    return gamma * np.expm1(log_share)
