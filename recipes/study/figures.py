"""Draw the figures of a study."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from config import StudyConfig
from results import method_key

INK, ACCENT, QUIET = "#1c2227", "#2b5f94", "#59636d"
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "sp2dpo",  # fixed, so that equal figures give equal files
    "svg.fonttype": "path",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": QUIET,
    "axes.labelcolor": QUIET,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "text.color": INK,
    "axes.axisbelow": True,
    "grid.color": "#ebe8e1",
    "figure.facecolor": "white",
    "text.parse_math": False,
}
FRONTIER = (
    ("dpo", "#1c2227"), ("sp2dpo", "#2b5f94"), ("gap-as-weight", "#b4552d"),
    ("flip-disputed", "#3c8d5a"), ("madpo", "#8a5aa8"), ("rand", "#a9a294"),
)  # fmt: skip
"""Methods shown in the plot of the frontier, with their colours; all methods would be too many."""


def save_figures(
    config: StudyConfig,
    comparison: Mapping[str, Any],
    runs: Sequence[Mapping[str, Any]],
    folder: Path,
) -> None:
    """Write `results` and `mechanism` as PNG and SVG."""
    with mpl.rc_context(STYLE):
        for name, figure in (
            ("results", draw_results(comparison, runs)),
            ("mechanism", draw_mechanism(config, runs)),
        ):
            FigureCanvasAgg(figure)
            # Without the version and the date in the file, equal figures give equal files.
            figure.savefig(folder / f"{name}.png", dpi=160, metadata={"Software": None})
            figure.savefig(
                folder / f"{name}.svg", dpi=160, metadata={"Date": None, "Creator": None}
            )


def draw_results(comparison: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw the differences with their intervals, and the frontier of reward and KL."""
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.15, 1))
    _draw_differences(left, comparison)
    _draw_frontier(right, runs)
    return figure


def _draw_differences(axes: Axes, comparison: Mapping[str, Any]) -> None:
    against = comparison["against"]
    methods = [
        method
        for method in comparison["methods"]
        if method["difference"] and method["name"] != against
    ][::-1]
    for position, method in enumerate(methods):
        difference = method["difference"]["1"]
        low, high = difference["low"], difference["high"]
        colour = ACCENT if method["matched"] else QUIET
        if low is not None:
            axes.plot([low, high], [position, position], color=colour, linewidth=2)
        axes.plot(difference["mean"], position, "o", color=colour, markersize=5)
    axes.axvline(0, color=INK, linewidth=0.8)
    labels = [method["name"] + " *" * method["matched"] for method in methods]
    axes.set_yticks(range(len(methods)), labels)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(f"true reward: {against} less the method, both tuned")
    axes.set_title(
        f"right of 0: {against} is better (95 %, {len(comparison['seeds'])} seeds)",
        fontsize=9, loc="left",
    )  # fmt: skip
    axes.grid(axis="x")


def _draw_frontier(axes: Axes, runs: Sequence[Mapping[str, Any]]) -> None:
    for name, colour in FRONTIER:
        selected = [run for run in runs if method_key(run) == name and not run["corrected"]]
        if not selected:
            continue
        points = []
        for scale in sorted({run["scale"] for run in selected}):
            at_scale = [run for run in selected if run["scale"] == scale]
            values = [[run["kl"], run["reward"]["1"]] for run in at_scale]
            points.append(np.mean(values, axis=0))
        kl, reward = np.array(points).T
        axes.plot(kl, reward, "o-", color=colour, markersize=4, linewidth=1.3, label=name)
    set_kl_axis(axes)
    axes.set_title("every trial, mean over the seeds", fontsize=9, loc="left")
    axes.legend(frameon=False, fontsize=8)


def set_kl_axis(axes: Axes) -> None:
    """Label the axes of a plot of the true reward against KL."""
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator([0.03, 0.1, 0.3, 1, 3, 10, 30]))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("KL from the first model, nats per response")
    axes.set_ylabel("true reward at temperature 1")
    axes.grid()


def draw_mechanism(config: StudyConfig, runs: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw the margin D of right and flipped labels, and the slope by decile of beta, by epoch."""
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for name, colour in (("dpo", INK), (config.against, ACCENT)):
        selected = _select(runs, name, 1.0)
        if selected:
            _draw_labels(left, selected, name, colour)
    left.set_xlabel("epoch")
    left.set_ylabel("D, nats")
    left.set_title("labels right (solid), flipped (dashed)", fontsize=9, loc="left")
    left.grid()
    left.legend(frameon=False, fontsize=8)
    next_scale = min((scale for scale in config.scales if scale > 1), default=1.0)
    for axes, scale in ((middle, 1.0), (right, next_scale)):
        _draw_slopes(axes, _select(runs, config.against, scale))
        axes.set_title(f"{config.against}, betas x {scale:g}", fontsize=9, loc="left")
    middle.set_ylabel("mean slope |dl/dD| / mean at D = 0")
    return figure


def _select(runs: Sequence[Mapping[str, Any]], name: str, scale: float) -> list[Mapping[str, Any]]:
    """Return a method's runs at a scale, without those that restore flipped labels."""
    return [
        run
        for run in runs
        if method_key(run) == name and run["scale"] == scale and not run["corrected"]
    ]


def _draw_labels(axes: Axes, runs: Sequence[Mapping[str, Any]], name: str, colour: str) -> None:
    for label, style in (("right", "-"), ("flipped", "--")):
        if any(run["epochs"][0][label] is None for run in runs):
            continue
        values = np.mean([[epoch[label] for epoch in run["epochs"]] for run in runs], axis=0)
        axes.plot(values, style, color=colour, marker="o", markersize=3, label=f"{name}, {label}")


def _draw_slopes(axes: Axes, runs: Sequence[Mapping[str, Any]]) -> None:
    if not runs:
        return
    values = np.mean([[epoch["slope"] for epoch in run["epochs"]] for run in runs], axis=0)
    values = values / values[0].mean()
    for epoch, slopes in enumerate(values):
        share = epoch / max(1, len(values) - 1)
        colour = (0.75 - 0.58 * share, 0.78 - 0.41 * share, 0.82 - 0.24 * share)
        axes.plot(range(1, 11), slopes, "o-", color=colour, markersize=3, label=f"epoch {epoch}")
    axes.set_xlabel("decile of SP2DPO's beta")
    axes.set_ylim(bottom=0)
    axes.grid(axis="y")
    axes.legend(frameon=False, fontsize=8)
