"""Print the coverage of the labels' intervals, the calibration of p, and the time of a fit.

Panels are drawn from the model that is fitted, and from panels that violate its assumptions:
teachers that share their errors, and teachers that guess. A nominal 95 % interval of the labels'
accuracy or of the slope should cover the truth in 95 % of the panels.
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

from sp2dpo.betas.label_models import fit_anchored, fit_classes
from sp2dpo.betas.label_slope import fit_slope
from sp2dpo.text import format_table
from support.panels import Simulated, simulate_anchored, simulate_classes

ACCURACIES = (0.65, 0.75, 0.9)
SIZES = (100, 300, 1_000)


def coverage(draw, truth, fit, runs):
    """Return the share of intervals that cover the truth, the mean estimate, the mean width."""
    intervals = [fit(draw()) for _ in range(runs)]
    covers = np.mean([each.low <= truth <= each.high for each in intervals])
    estimates, widths = zip(
        *((each.estimate, each.high - each.low) for each in intervals), strict=True
    )
    return f"{covers:.1%}", f"{np.mean(estimates):.3f}", f"{np.mean(widths):.3f}"


def accuracy_of_classes(panel):
    return fit_classes(panel.by_teacher, mirrored=True).label_accuracy


def accuracy_of_anchored(panel):
    return fit_anchored(panel.signed_gap).label_accuracy


def slope_of_anchored(panel):
    return fit_anchored(panel.signed_gap).slope


def slope_of_labels(panel):
    return fit_slope(panel.signed_gap).interval


def labels_of_slope(rng, *, pairs, slope):
    """Draw signed gaps of which the labels agree with sigmoid(slope x gap)."""
    size = rng.uniform(0, 1, pairs) ** 2
    agrees = rng.random(pairs) < 1 / (1 + np.exp(-slope * size))
    s = np.where(agrees, size, -size)
    return Simulated(agrees, s, s[:, None])


def shared_errors(rng, *, pairs, accuracy, share):
    """Draw teachers of which a share of the pairs sees one common opinion, right 7 times of 10."""
    panel = simulate_classes(rng, pairs=pairs, accuracy=accuracy, strength=0.6)
    opinion = np.where((rng.random(pairs) < 0.7) == panel.right, 0.3, -0.3)
    shared = rng.random(pairs) < share
    gaps = np.where(shared[:, None], opinion[:, None], panel.by_teacher)
    return Simulated(panel.right, gaps.mean(1), gaps)


def print_coverage(runs):
    rng = np.random.default_rng(0)
    rows = []

    def add(what, pairs, truth, draw, fit):
        rows.append((what, str(pairs), f"{truth:g}", *coverage(draw, truth, fit, runs)))

    for pairs in SIZES:
        for slope in (0.0, 1.0, 3.0):
            add(
                "slope of the labels (calibrated)", pairs, slope,
                lambda n=pairs, k=slope: labels_of_slope(rng, pairs=n, slope=k), slope_of_labels,
            )  # fmt: skip
        for a in ACCURACIES:
            add(
                "labels' accuracy (latent)", pairs, a,
                lambda n=pairs, a=a: simulate_classes(rng, pairs=n, accuracy=a, strength=0.8),
                accuracy_of_classes,
            )  # fmt: skip
            add(
                "labels' accuracy (anchored)", pairs, a,
                lambda n=pairs, a=a: simulate_anchored(rng, pairs=n, accuracy=a, slope=10.0),
                accuracy_of_anchored,
            )  # fmt: skip
        add(
            "slope of the panel (anchored)", pairs, 10.0,
            lambda n=pairs: simulate_anchored(rng, pairs=n, accuracy=0.75, slope=10.0),
            slope_of_anchored,
        )  # fmt: skip
    for share in (0.2, 0.5, 1.0):
        for name, fit in (("latent", accuracy_of_classes), ("anchored", accuracy_of_anchored)):
            add(
                f"labels' accuracy ({name}), {share:.0%} of the pairs with one common opinion",
                1_000, 0.75,
                lambda s=share: shared_errors(rng, pairs=1_000, accuracy=0.75, share=s), fit,
            )  # fmt: skip
    for teachers in (3, 9):
        for name, fit in (("latent", accuracy_of_classes), ("anchored", accuracy_of_anchored)):
            add(
                f"labels' accuracy ({name}), {teachers} guessing teachers", 1_000, 0.75,
                lambda t=teachers: simulate_classes(
                    rng, pairs=1_000, accuracy=0.75, strength=0.0, teachers=t
                ),
                fit,
            )  # fmt: skip
    head = ("interval", "pairs", "truth", "covers", "mean estimate", "mean width")
    print("\n".join(format_table(head, rows)))


def print_time(pairs, teachers):
    rng = np.random.default_rng(0)
    panel = simulate_classes(rng, pairs=pairs, accuracy=0.72, strength=0.5, teachers=teachers)
    gaps = panel.by_teacher + rng.normal(0, 0.05, panel.by_teacher.shape)
    signed = gaps.mean(1)
    fits = {
        "latent, blind": lambda: fit_classes(gaps, mirrored=True),
        "latent, labelled": lambda: fit_classes(gaps, mirrored=False),
        "anchored": lambda: fit_anchored(signed),
        "calibrated": lambda: fit_slope(signed),
    }
    for name, fit in fits.items():
        start = time.process_time()
        fit()
        print(f"{name}: {time.process_time() - start:.2f} CPU seconds, {pairs} pairs, {teachers} "
              "teachers")  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=400, help="panels for each row")
    parser.add_argument("--pairs", type=int, default=60_000)
    parser.add_argument("--teachers", type=int, default=9)
    arguments = parser.parse_args()
    print_coverage(arguments.runs)
    print_time(arguments.pairs, arguments.teachers)
