"""Where the gradient of the runs goes, and what happens to pairs whose label is wrong."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from comparison import estimate, interval, key
from preset import Preset


def mechanism(preset: Preset, runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Of DPO and of the method that is compared with, at every scale, means over the seeds.

    Args:
        preset: that was run.
        runs: all of its outcomes.

    Returns:
        For each: name, scale; right, wrong, flipped (D at the end, in nats); lowest_before,
        highest_before, lowest_after, highest_after: the share of the gradient of the pairs in the
        lowest and the highest decile of SP2DPO's beta, before the first step and after the last;
        slope_ratio: the mean slope of the lowest decile over that of the highest, at the end;
        inverted: the share of the seeds in which it is above 1.
    """
    found = []
    for name in dict.fromkeys(["dpo", preset.against]):
        for scale in sorted({one["scale"] for one in runs if key(one) == name}):
            mine = [
                one
                for one in runs
                if key(one) == name and one["scale"] == scale and not one["corrected"]
            ]
            if mine:
                found.append({"name": name, "scale": scale, **_of(mine)})
    return found


def _of(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    first, last = ([one["epochs"][place] for one in runs] for place in (0, -1))
    ratios = [one["slope"][0] / max(one["slope"][9], 1e-12) for one in last]
    return {
        **{
            kind: estimate([one[kind] for one in last])
            for kind in ("right", "wrong", "flipped")
            if last[0][kind] is not None
        },
        "lowest_before": float(np.mean([one["share"][0] for one in first])),
        "highest_before": float(np.mean([one["share"][9] for one in first])),
        "lowest_after": float(np.mean([one["share"][0] for one in last])),
        "highest_after": float(np.mean([one["share"][9] for one in last])),
        "slope_ratio": estimate(ratios),
        "inverted": float(np.mean([ratio > 1 for ratio in ratios])),
    }


def lines(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """The same as a table of Markdown."""
    said = [
        "| method, scale | D, label right | D, label wrong | gradient of the lowest decile of beta"
        ", start to end | of the highest | slope, lowest over highest, at the end | seeds inverted"
        " |",
        "|---|---|---|---|---|---|---|",
    ]
    said += [
        f"| {one['name']} x {one['scale']:g} | {interval(one['right'], '+')} "
        f"| {interval(one['wrong'], '+')} | {one['lowest_before']:.1%} to {one['lowest_after']:.1%}"
        f" | {one['highest_before']:.1%} to {one['highest_after']:.1%} "
        f"| {interval(one['slope_ratio'])} | {one['inverted']:.0%} |"
        for one in found
    ]
    return said
