"""Panels simulated from the models of the labels, with the truth of each label."""

from dataclasses import dataclass

import numpy as np

BIN_VALUES = np.array([-0.7, -0.3, -0.08, 0.0, 0.08, 0.3, 0.7])
"""A signed gap in each of the seven bins of `label_models`."""


@dataclass(frozen=True)
class Simulated:
    """(N,) truths and signed gaps of the panel, and (N, T) those of its teachers."""

    right: np.ndarray
    signed_gap: np.ndarray
    by_teacher: np.ndarray


def emissions(strength):
    """Return the probabilities of the seven bins if the label is right; 0 is a guessing teacher."""
    return np.linspace(1 - strength, 1 + strength, 7) / 7


def simulate_classes(rng, *, pairs, accuracy, strength, teachers=3, missing=0.0):
    """Draw from the model of `fit_classes`; `strength` is that of all teachers, or of each."""
    strengths = np.broadcast_to(strength, teachers)
    right = rng.random(pairs) < accuracy
    bins = [rng.choice(7, size=pairs, p=emissions(each)) for each in strengths]
    gaps = BIN_VALUES[np.stack(bins, axis=1)]
    gaps = np.where(right[:, None], gaps, -gaps)
    gaps[rng.random(gaps.shape) < missing] = np.nan
    # A pair has a reply of one teacher at least.
    gaps[np.isnan(gaps).all(1), 0] = 0.0
    return Simulated(right, np.nanmean(gaps, axis=1), gaps)


def simulate_anchored(rng, *, pairs, accuracy, slope):
    """Draw from the model of `fit_anchored`: panel and label err independently."""
    size = rng.uniform(0, 1, pairs) ** 2
    right = rng.random(pairs) < accuracy
    panel_is_right = rng.random(pairs) < 1 / (1 + np.exp(-slope * size))
    s = np.where(panel_is_right == right, size, -size)
    return Simulated(right, s, s[:, None])
