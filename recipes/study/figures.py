"""The figures of a study."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from comparison import key
from preset import Preset

INK, ACCENT, QUIET, WARM = "#1c2227", "#2b5f94", "#59636d", "#b4552d"
GROUPS = (
    ("dpo", "#1c2227"), ("sp2dpo", "#2b5f94"), ("gap-as-weight", "#b4552d"),
    ("flip-disputed", "#3c8d5a"), ("madpo", "#8a5aa8"), ("rand", "#a9a294"),
)  # fmt: skip
"""What the frontier shows, where it was run: all methods would be a tangle."""


def results(found: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> Figure:
    """Differences with their intervals, and the frontier of reward and KL."""
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.15, 1))
    _differences(left, found)
    _frontier(right, runs)
    return figure


def _differences(axes: Axes, found: Mapping[str, Any]) -> None:
    rows = [
        one for one in found["methods"] if one["difference"] and one["name"] != found["against"]
    ][::-1]
    for place, one in enumerate(rows):
        of = one["difference"]["1"]
        colour = ACCENT if one["matched"] else QUIET
        if of["low"] is not None:
            axes.plot([of["low"], of["high"]], [place, place], color=colour, linewidth=2)
        axes.plot(of["mean"], place, "o", color=colour, markersize=5)
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set_yticks(range(len(rows)), [one["name"] + " *" * one["matched"] for one in rows])
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(f"true reward: {found['against']} less the method, both tuned")
    axes.set_title(
        f"right of 0: {found['against']} is better (95 %, {len(found['seeds'])} seeds)",
        fontsize=9, loc="left",
    )  # fmt: skip
    axes.grid(axis="x")


def _frontier(axes: Axes, runs: Sequence[Mapping[str, Any]]) -> None:
    for name, colour in GROUPS:
        mine = [one for one in runs if key(one) == name and not one["corrected"]]
        if not mine:
            continue
        points = []
        for scale in sorted({one["scale"] for one in mine}):
            same = [one for one in mine if one["scale"] == scale]
            points.append(np.mean([[one["kl"], one["reward"]["1"]] for one in same], axis=0))
        kl, reward = np.array(points).T
        axes.plot(kl, reward, "o-", color=colour, markersize=4, linewidth=1.3, label=name)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator([0.03, 0.1, 0.3, 1, 3, 10, 30]))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("KL from the first model, nats per response")
    axes.set_ylabel("true reward at temperature 1")
    axes.set_title("every trial, mean over the seeds", fontsize=9, loc="left")
    axes.grid()
    axes.legend(frameon=False, fontsize=8)


def mechanism(preset: Preset, runs: Sequence[Mapping[str, Any]]) -> Figure:
    """D of right and of flipped labels, and the slope by decile of beta, over the epochs."""
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for name, colour in (("dpo", INK), (preset.against, ACCENT)):
        mine = _defaults(runs, name)
        if mine:
            _labels(left, mine, name, colour)
    left.set_xlabel("epoch")
    left.set_ylabel("D, nats")
    left.set_title("labels right (solid), flipped (dashed)", fontsize=9, loc="left")
    left.grid()
    left.legend(frameon=False, fontsize=8)
    further = min((one for one in preset.scales if one > 1), default=1.0)
    for axes, scale in ((middle, 1.0), (right, further)):
        mine = [
            one
            for one in runs
            if key(one) == preset.against and one["scale"] == scale and not one["corrected"]
        ]
        _slopes(axes, mine)
        axes.set_title(f"{preset.against}, betas x {scale:g}", fontsize=9, loc="left")
    middle.set_ylabel("mean slope |dl/dD| / mean at D = 0")
    return figure


def _defaults(runs: Sequence[Mapping[str, Any]], name: str) -> list[Mapping[str, Any]]:
    return [one for one in runs if key(one) == name and one["scale"] == 1 and not one["corrected"]]


def _labels(axes: Axes, runs: Sequence[Mapping[str, Any]], name: str, colour: str) -> None:
    for kind, style in (("right", "-"), ("flipped", "--")):
        if any(one["epochs"][0][kind] is None for one in runs):
            continue
        values = np.mean([[epoch[kind] for epoch in one["epochs"]] for one in runs], axis=0)
        axes.plot(values, style, color=colour, marker="o", markersize=3, label=f"{name}, {kind}")


def _slopes(axes: Axes, runs: Sequence[Mapping[str, Any]]) -> None:
    if not runs:
        return
    values = np.mean([[epoch["slope"] for epoch in one["epochs"]] for one in runs], axis=0)
    values = values / values[0].mean()
    for epoch, row in enumerate(values):
        share = epoch / max(1, len(values) - 1)
        colour = (0.75 - 0.58 * share, 0.78 - 0.41 * share, 0.82 - 0.24 * share)
        axes.plot(range(1, 11), row, "o-", color=colour, markersize=3, label=f"epoch {epoch}")
    axes.set_xlabel("decile of SP2DPO's beta")
    axes.set_ylim(bottom=0)
    axes.grid(axis="y")
    axes.legend(frameon=False, fontsize=8)
