"""Where the gradient of a run goes: its share by beta and by category, and what is spent.

The slope of a pair is |dl_i/du_i|, the gradient of its loss in the log-ratio of its chosen
response; for a loss of z that is |dl_i/dD_i| = w_i beta_i s(-z_i). Shares are of the slopes of all
pairs since the last log, over all processes.

    inverted   share of the pairs with D > D*, where beta_min s(-beta_min D*) = beta_max
               s(-beta_max D*): beyond it a pair at the floor has more gradient than one at the
               ceiling (10.4 nats for SP2DPO's ends)
    saturated  share of the pairs whose slope is below 1 % of w_i beta_i / 2, what that of
               -log s(z) is at z = 0 (our choice)
"""

import math
from collections.abc import Sequence

import torch

DECILES = 10
SATURATED = 0.01


def inversion(low: float, high: float) -> float:
    """D*, in nats; infinite where both betas are equal.

    Args:
        low: the lowest beta.
        high: the highest.
    """
    if not low < high:
        return math.inf

    def log_slope(beta: float, d: float) -> float:
        return math.log(beta) - math.log1p(math.exp(beta * d))

    floor, ceiling = 0.0, 700 / high
    while ceiling - floor > 1e-9 * ceiling:
        middle = (floor + ceiling) / 2
        if log_slope(low, middle) < log_slope(high, middle):
            floor = middle
        else:
            ceiling = middle
    return ceiling


def decile_edges(betas: Sequence[float]) -> torch.Tensor:
    """(9,) what separates the deciles of the betas of a data set."""
    at = torch.arange(1, DECILES, dtype=torch.float64) / DECILES
    return torch.quantile(
        torch.tensor(betas, dtype=torch.float64)[:: max(1, len(betas) // 10**6)], at
    )


class GradientMetrics:
    """Sums since the last log.

    Args:
        betas: of the data set; none where they are not known.
        categories: names; none where the data set has none.

    Attributes:
        edges: (9,) of the deciles; None where betas are all alike, or not known.
        inverts_at: D*, infinite then.
        categories: names.
    """

    def __init__(self, betas: Sequence[float], categories: Sequence[str]) -> None:
        varied = bool(betas) and min(betas) < max(betas)
        self.edges = decile_edges(betas) if varied else None
        self.inverts_at = inversion(min(betas), max(betas)) if varied else math.inf
        self.categories = list(categories)
        self.clear()

    def clear(self) -> None:
        """Begins anew."""
        self._pairs = self._saturated = self._inverted = 0
        self._by_decile = torch.zeros(DECILES, dtype=torch.float64)
        self._by_category = torch.zeros(len(self.categories), dtype=torch.float64)
        self._right = torch.zeros(len(self.categories), dtype=torch.float64)
        self._seen = torch.zeros(len(self.categories), dtype=torch.float64)
        self._weight = 0.0

    def add(
        self,
        *,
        beta: torch.Tensor,
        margin: torch.Tensor,
        weight: torch.Tensor,
        slope: torch.Tensor,
        category: torch.Tensor,
    ) -> None:
        """Takes in a batch; all (N,), over all processes, on the CPU, in double.

        Args:
            beta: as used.
            margin: D, in nats.
            weight: of the loss.
            slope: |dl/du|.
            category: numbers, -1 for none.
        """
        self._pairs += len(beta)
        self._weight += weight.sum().item()
        self._inverted += int((margin > self.inverts_at).sum())
        self._saturated += int((slope < SATURATED * weight * beta / 2).sum())
        if self.edges is not None:
            decile = torch.bucketize(beta.contiguous(), self.edges, right=True)
            self._by_decile.index_add_(0, decile, slope)
        if self.categories:
            told = category >= 0
            place = category[told].long()
            self._by_category.index_add_(0, place, slope[told])
            self._right.index_add_(0, place, (margin[told] > 0).double())
            self._seen.index_add_(0, place, torch.ones(len(place), dtype=torch.float64))

    def metrics(self) -> dict[str, float]:
        """What is logged of what was taken in, by name; nothing of nothing."""
        if not self._pairs:
            return {}
        found = {
            "weight/mean": self._weight / self._pairs,
            "pairs/saturated": self._saturated / self._pairs,
            "pairs/inverted": self._inverted / self._pairs,
        }
        for name, sums, labels in (
            ("beta_decile", self._by_decile, [str(n + 1) for n in range(DECILES)]),
            ("category", self._by_category, self.categories),
        ):
            total = sums.sum().item()
            if total > 0:
                found |= {
                    f"gradient_share/{name}_{label}": share.item() / total
                    for label, share in zip(labels, sums, strict=True)
                }
        for label, right, seen in zip(self.categories, self._right, self._seen, strict=True):
            if seen:
                found[f"accuracy/{label}"] = (right / seen).item()
        return found
