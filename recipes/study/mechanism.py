"""Summarise which pairs the gradient goes to, and what happens to pairs with a wrong label."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from config import StudyConfig
from results import estimate, format_interval, method_key


def summarise_mechanism(
    config: StudyConfig, runs: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Return means over the seeds for DPO and the method compared against, at every scale.

    Args:
        config: Configuration of the study.
        runs: Results of all runs.

    Returns:
        One mapping for each method and scale, with the keys
        name, scale: The method and the factor of its betas.
        right, wrong, flipped: D at the end, in nats, by label.
        lowest_before, highest_before, lowest_after, highest_after: Share of the gradient of the
            lowest and the highest decile of SP2DPO's beta, before the first step and at the end.
        slope_ratio: Mean slope of the lowest decile divided by that of the highest, at the end.
        inverted: Share of the seeds in which that ratio is above 1.
    """
    rows = []
    for name in dict.fromkeys(["dpo", config.against]):
        for scale in sorted({run["scale"] for run in runs if method_key(run) == name}):
            selected = [
                run
                for run in runs
                if method_key(run) == name and run["scale"] == scale and not run["corrected"]
            ]
            if selected:
                rows.append({"name": name, "scale": scale, **_summarise(selected)})
    return rows


def _summarise(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    first, last = ([run["epochs"][position] for run in runs] for position in (0, -1))
    ratios = [epoch["slope"][0] / max(epoch["slope"][9], 1e-12) for epoch in last]
    return {
        **{
            label: estimate([epoch[label] for epoch in last])
            for label in ("right", "wrong", "flipped")
            if last[0][label] is not None
        },
        "lowest_before": float(np.mean([epoch["share"][0] for epoch in first])),
        "highest_before": float(np.mean([epoch["share"][9] for epoch in first])),
        "lowest_after": float(np.mean([epoch["share"][0] for epoch in last])),
        "highest_after": float(np.mean([epoch["share"][9] for epoch in last])),
        "slope_ratio": estimate(ratios),
        "inverted": float(np.mean([ratio > 1 for ratio in ratios])),
    }


def format_mechanism(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the rows of `summarise_mechanism` as the lines of a Markdown table."""
    lines = [
        "| method, scale | D, label right | D, label wrong | gradient of the lowest decile of beta"
        ", start to end | of the highest | slope, lowest over highest, at the end | seeds inverted"
        " |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['name']} x {row['scale']:g} | {format_interval(row['right'], '+')} "
        f"| {format_interval(row['wrong'], '+')} "
        f"| {row['lowest_before']:.1%} to {row['lowest_after']:.1%}"
        f" | {row['highest_before']:.1%} to {row['highest_after']:.1%} "
        f"| {format_interval(row['slope_ratio'])} | {row['inverted']:.0%} |"
        for row in rows
    ]
    return lines
