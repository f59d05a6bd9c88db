"""Read the runs of the study's second part, choose trials, and compare methods seed by seed.

A method is tuned for every seed and order of training by the validation score; its reward is the
mean over the orders. At a matched KL, the reward is interpolated between runs of neighbouring
scales, linearly in the logarithm of KL. Seeds are paired; intervals and p-values are Student's over
the seeds.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.stats import t as student_t

Neighbours = Literal["scale", "kl"]
"""Which runs are neighbours on a method's curve: those of neighbouring scales, or KLs."""
POOLED = {"gap-as-margin, best scale": ("gap-as-margin-0.3", "gap-as-margin", "gap-as-margin-3")}
"""Methods whose trials compete as those of one method, by its name."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A paired difference over the seeds.

    Attributes:
        values: (S,) difference of each seed.
    """

    values: NDArray[np.float64]

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return float(self.values.mean())

    @property
    def median(self) -> float:
        """Median over the seeds."""
        return float(np.median(self.values))

    @property
    def error(self) -> float:
        """Standard error of the mean."""
        return float(self.values.std(ddof=1) / np.sqrt(len(self.values)))

    @property
    def interval(self) -> tuple[float, float]:
        """Student's 95 % interval of the mean."""
        half = float(student_t.ppf(0.975, len(self.values) - 1)) * self.error
        return self.mean - half, self.mean + half

    def p_value(self, above: float | None = None) -> float:
        """Return the p-value of Student's test.

        Args:
            above: None for the two-sided test that the mean is 0; a number for the one-sided test
                that it is not above this number.
        """
        degrees = len(self.values) - 1
        if above is None:
            return float(2 * student_t.sf(abs(self.mean) / self.error, degrees))
        return float(student_t.sf((self.mean - above) / self.error, degrees))

    def words(self) -> str:
        """Return the mean with its interval as text, such as `+0.10 (+0.03 to +0.16)`."""
        low, high = self.interval
        return f"{self.mean:+.2f} ({low:+.2f} to {high:+.2f})"


class Runs:
    """The runs of all configurations of the second part.

    Attributes:
        table: One row for each run, as `run.py` writes it, with the column `name` (`METHOD` or
            `METHOD@PANEL`).
        seeds: The seeds, sorted.
    """

    def __init__(self, table: pl.DataFrame) -> None:
        name = (
            pl.when(pl.col("panel") == "panel")
            .then("method")
            .otherwise(pl.concat_str("method", "panel", separator="@"))
        )
        table = table.with_columns(name=name)
        pooled = [
            table.filter(pl.col("name").is_in(names)).with_columns(name=pl.lit(together))
            for together, names in POOLED.items()
            if {*names} <= {*table["name"]}
        ]
        self.table = pl.concat([table, *pooled])
        self.seeds = sorted(table["seed"].unique())

    @classmethod
    def read(cls, folder: Path) -> "Runs":
        """Read the runs in every `runs*.csv` of a folder.

        Raises:
            ValueError: There is none, or a run occurs twice.
            OSError: A file cannot be read.
        """
        files = sorted(folder.glob("runs*.csv"))
        if not files:
            raise ValueError(f"{folder}: no file runs*.csv")
        table = pl.concat([pl.read_csv(file) for file in files], how="diagonal")
        if "order" not in table.columns:  # the first part has one order
            table = table.with_columns(order=pl.lit(0))
        # Those with corrected labels train on other pairs.
        table = table.filter(~pl.col("corrected"))
        twice = table.select("method", "panel", "scale", "seed", "order").is_duplicated()
        if twice.any():
            row = table.filter(twice).row(0, named=True)
            raise ValueError(f"{folder}: {row['method']}, seed {row['seed']}, occurs twice")
        return cls(table)

    def names(self) -> list[str]:
        """Return the methods that have trials, in the order of the files."""
        return list(dict.fromkeys(self.table.filter("chosen")["name"]))

    def trials(self) -> "Runs":
        """Return the runs without those of further scales, which are reported only."""
        table = self.table.filter("chosen", ~pl.col("name").is_in([*POOLED]))
        return Runs(table.drop("name"))

    def tuned(self, name: str, column: str = "reward_1") -> NDArray[np.float64]:
        """Return a measurement of the chosen trials, (S,), averaged over the orders."""
        return self._by_seed(name, self._chosen(name), column)

    def at_scale(self, name: str, scale: float, column: str = "reward_1") -> NDArray[np.float64]:
        """Return a measurement of the trials at one scale, (S,), averaged over the orders."""
        if name in POOLED:  # several trials have this scale
            return np.full(len(self.seeds), np.nan)
        return self._by_seed(name, self._runs(name).filter(pl.col("scale") == scale), column)

    def at_kl(
        self,
        name: str,
        kl: float,
        column: str = "reward_1",
        neighbours: Neighbours = "scale",
    ) -> NDArray[np.float64]:
        """Return a measurement at a KL, (S,), interpolated for each seed and order; NaN outside.

        Beyond the trials of any order, a seed has no value.

        Args:
            name: The method.
            kl: The KL, in nats per response.
            column: The measurement.
            neighbours: `scale` interpolates between runs of neighbouring scales, the largest scales
                first; `kl` between runs of neighbouring KLs, even if other scales lie between.
        """
        if name in POOLED:  # their trials are on several curves
            return np.full(len(self.seeds), np.nan)
        values = []
        for seed in self.seeds:
            orders = self._runs(name).filter(pl.col("seed") == seed).partition_by("order")
            values.append(
                np.mean([_interpolate(trials, kl, column, neighbours) for trials in orders])
            )
        return np.array(values)

    def scales(self, name: str) -> dict[float, int]:
        """Return how often each scale was chosen, over seeds and orders."""
        counts = self._chosen(name)["scale"].value_counts().sort("scale")
        return dict(counts.iter_rows())

    def _runs(self, name: str) -> pl.DataFrame:
        return self.table.filter(pl.col("name") == name)

    def _chosen(self, name: str) -> pl.DataFrame:
        """Return the trial with the highest validation score of each seed and order."""
        # Further scales, which are reported only, are no trials.
        trials = self._runs(name).filter("chosen")
        best = trials.sort("validation", descending=True, maintain_order=True)
        return best.unique(["seed", "order"], keep="first", maintain_order=True)

    def _by_seed(self, name: str, trials: pl.DataFrame, column: str) -> NDArray[np.float64]:
        means = trials.group_by("seed").agg(pl.col(column).mean()).sort("seed")
        if means["seed"].to_list() != self.seeds:
            missing = sorted({*self.seeds} - {*means["seed"]})
            raise ValueError(f"{name}: no run of the seeds {missing}")
        return means[column].to_numpy()


def _interpolate(runs: pl.DataFrame, kl: float, column: str, neighbours: Neighbours) -> float:
    """Return a measurement at a KL, between neighbouring runs; NaN if none enclose it."""
    runs = runs.sort(neighbours, descending=True)
    kls, values = np.log(runs["kl"].to_numpy()), runs[column].to_numpy()
    at = np.log(kl)
    for left in range(len(kls) - 1):
        low, high = sorted(kls[left : left + 2])
        if low <= at <= high:
            share = (at - kls[left]) / (kls[left + 1] - kls[left]) if high > low else 0.5
            return float(values[left] + share * (values[left + 1] - values[left]))
    return float("nan")
