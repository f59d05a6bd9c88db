"""A sweep over decoding temperatures: does a student hold up where it is sampled more freely?

MADPO's second version evaluates like this (arXiv 2510.05342v2): the reward model's score and the
pairwise win rate of the outputs at each temperature. The temperatures are theirs, the intervals
(a bootstrap over prompts) ours.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sp2dpo.evaluation.prompts import Output
from sp2dpo.evaluation.text import columns, interval
from sp2dpo.files import atomic_write

TEMPERATURES = (0.0, 0.25, 0.5, 0.75, 1.0)
SWEEP, REWARDS = "sweep.json", "rewards.json"


def temperature_folder(out: Path, temperature: float) -> Path:
    """Where the outputs at a temperature are."""
    return out / f"temperature-{temperature:g}"


def with_temperature(
    temperature: float,
    outputs: Sequence[Output],
    *,
    rewards: Sequence[float] | None,
    preferences: Sequence[float | None] | None,
    draws: int,
    seed: int,
) -> dict[str, Any]:
    """What is said of one temperature.

    Args:
        temperature: of the outputs.
        outputs: one for each prompt.
        rewards: of a reward model, one for each; None where none was asked.
        preferences: of a judge: from 1, the baseline is better, to 2; None where it was not asked,
            None for a verdict that could not be read.
        draws: bootstrap samples.
        seed: of the draws.

    Returns:
        temperature, length, empty, reward, win_rate (value, low, high, or None), unscored.
    """
    won = None
    if preferences is not None:
        scored = [one for one in preferences if one is not None]
        won = [100 * ((1.5 if one == 0 else one) - 1) for one in scored]
    return {
        "temperature": temperature,
        "length": float(np.mean([len(one.output) for one in outputs])),
        "empty": sum(not one.output.strip() for one in outputs),
        "reward": None if rewards is None else mean_rewards(rewards, draws=draws, seed=seed),
        "win_rate": None if won is None else mean_rewards(won, draws=draws, seed=seed),
        "unscored": None if preferences is None else len(preferences) - len(won or []),
    }


def mean_rewards(values: Sequence[float], *, draws: int, seed: int) -> dict[str, float | None]:
    """A mean with the bootstrap's 95 % interval."""
    if not len(values):
        return {"value": None, "low": None, "high": None}
    array = np.asarray(values, dtype=np.float64)
    places = np.random.default_rng(seed).integers(len(array), size=(draws, len(array)))
    low, high = np.quantile(array[places].mean(1), (0.025, 0.975))
    return {"value": float(array.mean()), "low": float(low), "high": float(high)}


def write_sweep(out: Path, found: Mapping[str, Any]) -> None:
    """Writes sweep.json."""
    with atomic_write(out / SWEEP) as path:
        path.write_text(json.dumps(found, indent=1) + "\n")


def sweep_lines(found: Mapping[str, Any]) -> list[str]:
    """The sweep as a table."""
    rows = [["temperature", "reward", "win rate", "characters", "empty", "unscored"]]
    for one in found["temperatures"]:
        rows.append(
            [
                f"{one['temperature']:g}",
                interval(one["reward"]),
                interval(one["win_rate"]),
                f"{one['length']:.0f}",
                str(one["empty"]),
                "-" if one["unscored"] is None else str(one["unscored"]),
            ]
        )
    return [
        f"{found['student']}: {found['title']}",
        *columns(rows),
        f"95 % intervals: {found['draws']} bootstrap samples of the prompts",
    ]
