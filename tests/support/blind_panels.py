"""Simulated panels under the blind protocol, where signed gaps may be negative.

The latent signed gap of a pair is -Beta(2, 3) (a wrong label, 20 %), 0 (20 %), Beta(1.5, 4) (30 %)
or Beta(5, 1.5) (30 %). A reading is the latent gap plus noise of the pair and teacher and of the
variant (0.8 of it), clipped to [-1, 1] and rounded to 0.01.
"""

import numpy as np

from sp2dpo.annotation.adaptive_rule import StoppingRule, is_calibration, jmamp, slots

TEACHERS, VARIANTS = ("a", "b", "c"), ("direct", "critic", "reader")
ORDER = slots(TEACHERS, VARIANTS)
WORLDS = {
    "noise 0.03": {"noise": 0.03},
    "noise 0.06": {},
    "noise 0.12": {"noise": 0.12},
    "some pairs harder": {"hard": 0.7},
    "strict and lenient teachers": {"scales": (0.6, 1.0, 1.3)},
    "the noisiest teacher first": {"levels": (2.0, 1.0, 0.5)},
    "teachers that lean": {"leans": (0.1, 0.0, -0.1)},
    "a dissenter on 15 % of the pairs": {"dissent": 0.15},
    "many ties": {"tie": 0.15},
    "10 % of the replies refused": {"refused": 0.1},
}
"""Settings of `simulate`, by the name of the world."""


def simulate(
    pairs, seed, *, noise=0.06, hard=0.0, scales=(1, 1, 1), levels=(1, 1, 1), leans=(0, 0, 0),
    dissent=0.0, tie=0.0, refused=0.0,
):  # fmt: skip
    """(pairs, 9) signed gaps in the order of the slots; NaN for a refused reply."""
    draw = np.random.default_rng(seed)
    kinds = [-draw.beta(2, 3, pairs), np.zeros(pairs), draw.beta(1.5, 4, pairs)]
    kinds.append(draw.beta(5, 1.5, pairs))
    latent = np.choose(draw.choice(4, pairs, p=[0.2, 0.2, 0.3, 0.3]), kinds)[:, None, None]
    sigma = noise * np.exp(draw.normal(-(hard**2) / 2, hard, (pairs, 1, 1)))
    scale, level, lean = (np.array(values)[:, None] for values in (scales, levels, leans))
    by_teacher, by_variant = draw.normal(size=(pairs, 3, 1)), draw.normal(size=(pairs, 3, 3))
    gaps = latent * scale + lean + sigma * (level * by_teacher + 0.8 * by_variant)
    dissents = draw.random(pairs) < dissent
    gaps[dissents, 2] *= -1
    gaps = np.where(np.abs(gaps) < tie, 0, gaps).clip(-1, 1).round(2)
    gaps[draw.random(gaps.shape) < refused] = np.nan
    at = [(TEACHERS.index(slot.teacher), VARIANTS.index(slot.variant)) for slot in ORDER]
    return np.stack([gaps[:, teacher, variant] for teacher, variant in at], axis=1)


def ask(rule, readings):
    """Whether each slot of each pair is asked until the rule settles all pairs, (m, 9)."""
    asked = np.zeros(readings.shape, dtype=bool)
    while True:
        slot, _ = rule.next(np.where(asked, readings, np.nan), asked)
        rows = np.flatnonzero(slot >= 0)
        if not len(rows):
            return asked
        asked[rows, slot[rows]] = True


def measure(pairs, seed, covers, tolerance=0.074, **world):
    """Return what the rule asks and keeps of one simulated panel, over pairs not for calibration.

    Returns:
        The share of the requests; of the pairs that were settled early, the shares whose beta (its
        gap) and whose signed gap ended within the tolerance; and the share of all pairs whose label
        is disputed by one of the two panels alone.
    """
    readings = simulate(pairs, seed, **world)
    first = np.array([is_calibration(f"{seed} {n}", pairs=pairs) for n in range(pairs)])
    rule = StoppingRule.learn(readings[first], ORDER, tolerance=tolerance, covers=covers)
    rest = readings[~first]
    rest = rest[~np.isnan(rest).all(axis=1)]
    asked = ask(rule, rest)
    reached, full = jmamp(np.where(asked, rest, np.nan), ORDER), jmamp(rest, ORDER)
    early = ~asked.all(axis=1)
    beta_moved = np.abs(np.maximum(reached, 0) - np.maximum(full, 0))[early]
    moved = np.abs(reached - full)[early]
    return (
        asked.mean(),
        (beta_moved <= tolerance + 1e-9).mean(),
        (moved <= tolerance + 1e-9).mean(),
        ((reached < 0) != (full < 0)).mean(),
    )
