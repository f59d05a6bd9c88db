"""Measure how good the panels of a study are, and what its replies show of that.

    python recipes/study/panels.py recipes/study/uses-panels.yaml --out study-uses-panels/

The folder must have the seeds that `run.py` creates. `panels.csv` in it gets one row for each panel
and seed; `format_panels` makes the table.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from config import StudyConfig, load_config
from methods import SCHEDULES
from pairs import LabelledPair
from seed_data import annotate, measure_panel, read_pairs
from sp2dpo import AnnotationTable, compute_betas, fit_slope, load_arm
from sp2dpo.files import write_text

COLUMNS = {
    "correlation": "correlation with the true difference",
    "recall": "of the wrong labels, disputed",
    "precision": "of the disputed labels, wrong",
    "k": "slope k",
    "right": "labels right",
    "latent": "the same by soft-latent",
    "anchored": "by soft-anchored",
}
"""Columns of the table, by the name of their measurement."""


def measure_panels(config: StudyConfig, out: Path) -> pl.DataFrame:
    """Return one row for each seed and panel: what is true of the panel, and what it shows.

    Columns besides `seed` and `panel`:
        correlation, recall, precision: See `seed_data.measure_panel`; the last two are null for
            teachers who are told the label.
        right: True share of right labels.
        k, k_low, k_high: Slope of the labels on the signed gap, with its 95 % interval.
        latent, anchored: Mean probability that a label is right, by `soft-latent` and
            `soft-anchored`.

    Raises:
        OSError: A seed's folder is missing.
    """
    rows = []
    for seed in config.seeds:
        pairs = read_pairs(out / f"seed-{seed}" / "pairs-given.json")
        for name in config.panels:
            annotations = annotate(config, name, pairs, seed)
            rows.append({"seed": seed, "panel": name} | _measure(annotations, pairs))
    return pl.DataFrame(rows, infer_schema_length=None)


def _measure(annotations: AnnotationTable, pairs: list[LabelledPair]) -> dict[str, Any]:
    measured = measure_panel(annotations, pairs)
    blind = annotations.rubric.blind
    gaps = compute_betas(annotations, load_arm(SCHEDULES / "sp2dpo.yaml"))["signed_gap"]
    slope = fit_slope(gaps.to_numpy()) if blind else None
    return {
        "correlation": measured["correlation"],
        "recall": measured["recall"] if blind else None,
        "precision": measured["precision"] if blind else None,
        "right": float(np.mean([pair.difference > 0 for pair in pairs])),
        "k": slope.slope if slope else None,
        "k_low": slope.low if slope else None,
        "k_high": slope.high if slope else None,
        "latent": _probability_right(annotations, "soft-latent") if blind else None,
        "anchored": _probability_right(annotations, "soft-anchored") if blind else None,
    }


def _probability_right(annotations: AnnotationTable, arm: str) -> float:
    """Return the mean probability that a label, as given, is right."""
    table = compute_betas(annotations, load_arm(SCHEDULES / "arms" / f"{arm}.yaml"))
    wrong = pl.col("label_smoothing")
    right = table.select(pl.when("flip").then(wrong).otherwise(1 - wrong).mean())
    return float(right.item())


def format_panels(table: pl.DataFrame) -> list[str]:
    """Return the means over the seeds, with the smallest and largest, as lines of a table."""
    lines = [
        "| panel | " + " | ".join(COLUMNS.values()) + " |",
        "|---" * (1 + len(COLUMNS)) + "|",
    ]
    for (name,), rows in table.group_by("panel", maintain_order=True):
        cells = [_span(rows[column].drop_nulls().to_list()) for column in COLUMNS]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def _span(values: Sequence[float]) -> str:
    if not values:
        return ""
    return f"{np.mean(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def main(arguments: list[str]) -> int:
    """Write `panels.csv`, print the table, and return the exit code."""
    parser = argparse.ArgumentParser(description="Measure the panels of a study.")
    parser.add_argument("config", type=Path, help="configuration: uses-panels.yaml, ...")
    parser.add_argument("--out", type=Path, required=True, help="output folder of run.py")
    options = parser.parse_args(arguments)
    try:
        table = measure_panels(load_config(options.config), options.out)
        write_text(options.out / "panels.csv", table.write_csv(float_precision=4))
    except (ValueError, OSError) as error:
        print(f"panels.py: {error}", file=sys.stderr)
        return 2
    print("\n".join(format_panels(table)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
