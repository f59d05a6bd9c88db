"""Metrics of how the gradient is distributed over the pairs, by beta and by category.

The slope of a pair is |dl_i/du_i|, the derivative of its loss with respect to the log-ratio of its
chosen response. If the loss depends on z only, this is |dl_i/dD_i|; for the sigmoid loss it is
w_i beta_i s(-z_i). With an f-divergence the derivative goes through its score, with WPO it has the
pair's factor c_i, and a term `sft` is left out, since it does not compare the responses. Shares
refer to the sum of the slopes of all pairs since the last log, over all processes.

    inverted   share of the pairs with D > D*, where beta_min s(-beta_min D*) = beta_max
               s(-beta_max D*): beyond D* a pair with the lowest beta has a larger slope than one
               with the highest (10.4 nats for SP2DPO's 0.03 and 0.3). For `sigmoid_norm`, D is the
               difference per token. Other losses, label smoothing, margins, WPO and f-divergences
               have other slopes: no share
    saturated  share of the pairs whose slope is below 1 % of w_i c_i beta_i / 2, the slope of
               -log s(z) at z = 0 (our choice)
"""

import math
from collections.abc import Sequence

import torch

DECILES = 10
SATURATED = 0.01


def inversion(low: float, high: float) -> float:
    """Return the margin D* defined above, in nats; infinite if both betas are equal.

    Args:
        low: The lowest beta.
        high: The highest beta.
    """
    # A number of torch or numpy may be float32, in which the bisection below would never end.
    low, high = float(low), float(high)
    if not low < high:
        return math.inf

    def log_slope(beta: float, d: float) -> float:
        return math.log(beta) - math.log1p(math.exp(beta * d))

    # At D = 0 the higher beta has the larger slope. The ratio of the slopes falls as D grows, so
    # they cross once and a bisection finds D*.
    floor, ceiling = 0.0, 700 / high  # math.exp overflows above 709
    while ceiling - floor > 1e-9 * ceiling:
        middle = (floor + ceiling) / 2
        if log_slope(low, middle) < log_slope(high, middle):
            floor = middle
        else:
            ceiling = middle
    return ceiling


class GradientMetrics:
    """Accumulate the slopes of all pairs since the last log.

    Args:
        betas: Betas of the data set; empty if they are not known in advance.
        categories: Names of the categories; empty if the data set has none.
        inverts: Whether the slope of the loss is beta s(-beta D), for which D* is defined.

    Attributes:
        edges: Values between the deciles, (9,); None if the betas are all equal or not known.
        inverts_at: The margin D* in nats; infinite if `edges` is None, and None if the loss has
            other slopes.
        categories: Names of the categories.
    """

    def __init__(
        self, betas: Sequence[float], categories: Sequence[str], *, inverts: bool = True
    ) -> None:
        self.edges: torch.Tensor | None = None
        self.inverts_at = math.inf if inverts else None
        if betas and min(betas) < max(betas):
            shares = torch.arange(1, DECILES, dtype=torch.float64) / DECILES
            step = max(1, len(betas) // 10**6)  # torch.quantile takes at most 16 million values
            self.edges = torch.quantile(torch.tensor(betas, dtype=torch.float64)[::step], shares)
            if inverts:
                self.inverts_at = inversion(min(betas), max(betas))
        self.categories = list(categories)
        self.clear()

    def clear(self) -> None:
        """Remove all batches added so far."""
        self._pairs = self._saturated = self._inverted = 0
        self._by_decile = torch.zeros(DECILES, dtype=torch.float64)
        self._by_category = torch.zeros(len(self.categories), dtype=torch.float64)
        self._correct = torch.zeros(len(self.categories), dtype=torch.float64)
        self._count = torch.zeros(len(self.categories), dtype=torch.float64)
        self._weight = 0.0

    def add(
        self,
        *,
        beta: torch.Tensor,
        margin: torch.Tensor,
        weight: torch.Tensor,
        factor: torch.Tensor,
        slope: torch.Tensor,
        category: torch.Tensor,
    ) -> None:
        """Add a batch. Arguments are (N,), over all processes, on the CPU, in double precision.

        Args:
            beta: Beta of each pair, as the loss used it.
            margin: Margin D of each pair, in nats; for `sigmoid_norm`, the difference per token.
            weight: Weight of each pair, w_i.
            factor: What multiplies the loss of each pair: w_i, times c_i with WPO.
            slope: Slope |dl/du| of each pair.
            category: Category number of each pair, -1 for none.
        """
        self._pairs += len(beta)
        self._weight += weight.sum().item()
        if self.inverts_at is not None:
            self._inverted += int((margin > self.inverts_at).sum())
        self._saturated += int((slope < SATURATED * factor * beta / 2).sum())
        if self.edges is not None:
            # A column of a table is not contiguous; bucketize would copy it with a warning.
            # right=True puts a beta that equals an edge into the upper decile. If many pairs share
            # beta_min, the lowest deciles are empty.
            decile = torch.bucketize(beta.contiguous(), self.edges, right=True)
            self._by_decile.index_add_(0, decile, slope)
        if self.categories:
            labelled = category >= 0
            index = category[labelled].long()
            self._by_category.index_add_(0, index, slope[labelled])
            self._correct.index_add_(0, index, (margin[labelled] > 0).double())
            self._count.index_add_(0, index, torch.ones(len(index), dtype=torch.float64))

    def metrics(self) -> dict[str, float]:
        """Return a mapping of metric name to value; empty if no batch was added."""
        if not self._pairs:
            return {}
        metrics = {
            "weight/mean": self._weight / self._pairs,
            "pairs/saturated": self._saturated / self._pairs,
        }
        if self.inverts_at is not None:
            metrics["pairs/inverted"] = self._inverted / self._pairs
        for name, sums, labels in (
            # Two digits, because trackers sort the names of metrics as text.
            ("beta_decile", self._by_decile, [f"{n + 1:02}" for n in range(DECILES)]),
            ("category", self._by_category, self.categories),
        ):
            total = sums.sum().item()
            # Without any slope a share would be 0 / 0.
            if total > 0:
                metrics |= {
                    f"gradient_share/{name}_{label}": share.item() / total
                    for label, share in zip(labels, sums, strict=True)
                }
        for label, correct, count in zip(self.categories, self._correct, self._count, strict=True):
            # No pair of this category since the last log: no accuracy, instead of 0 / 0.
            if count:
                metrics[f"accuracy/{label}"] = (correct / count).item()
        return metrics
