"""Draw the plots of a report and of a comparison of betas as PNG and SVG files.

The same numbers give the same bytes under one version of matplotlib.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sp2dpo.betas.file import BetaTable
from sp2dpo.diagnostics.ablation import VariationResult
from sp2dpo.diagnostics.agreement import ReaderComparison
from sp2dpo.diagnostics.biases import LengthBin
from sp2dpo.diagnostics.bootstrap import Estimate
from sp2dpo.diagnostics.checks import Check
from sp2dpo.replacement import atomic_write
from sp2dpo.report.charts import Histogram, build_gauge, category_colours
from sp2dpo.report.report import Alphas, Report
from sp2dpo.text import escape_controls

FORMATS = ("png", "svg")
STYLE: dict[Any, Any] = {
    # Without a salt, the ids in an SVG are random and the same plot has other bytes each time.
    "svg.hashsalt": "sp2dpo",
    # Paths look the same where the font is missing.
    "svg.fonttype": "path",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#59636d",
    "axes.labelcolor": "#59636d",
    "xtick.color": "#59636d",
    "ytick.color": "#59636d",
    "text.color": "#1c2227",
    "axes.axisbelow": True,
    "grid.color": "#ebe8e1",
    "figure.facecolor": "white",
    # A dollar sign in a name is not the start of a formula.
    "text.parse_math": False,
}
"""Settings of matplotlib for every plot of the project."""
_INK, _ACCENT, _QUIET = "#1c2227", "#2b5f94", "#59636d"
_VERDICTS = {"ok": "#a5d3b6", "look": "#efc97f", "bad": "#e59b97"}
_MAX_DOTS = 3000
"""Pairs above which a scatter plot becomes illegible and hexagons replace it."""


def save_plots(report: Report, folder: Path) -> list[Path]:
    """Write every plot of a report as PNG and SVG, and return the files.

    Args:
        report: numbers of the report.
        folder: folder to write to; created if it does not exist.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    with mpl.rc_context(STYLE):
        for name, figure in _figures(report).items():
            for kind in FORMATS:
                paths.append(folder / f"{name}.{kind}")
                save_figure(figure, paths[-1])
    return paths


def _figures(report: Report) -> dict[str, Figure]:
    agreement = report.agreement
    names = [teacher.name for teacher in report.teachers]
    figures = {}
    if report.beta.with_beta:
        figures["betas"] = draw_histogram(report.histogram)
    figures["signatures"] = _draw_checks(report.checks)
    figures["agreement"] = _draw_alphas(agreement.alpha)
    if len(names) > 1:
        figures["teachers"] = _draw_matrix(names, agreement.between_teachers)
    if len(report.variants) > 1:
        figures["variants"] = _draw_matrix(report.variants, agreement.between_variants)
    if report.lengths:
        figures["lengths"] = _draw_lengths(report.lengths)
    figures["estimators"] = _draw_estimators(report.estimators)
    return figures


def check_picture_name(path: Path) -> None:
    """Check that the name of a picture ends in .png or .svg.

    Raises:
        ValueError: the name ends differently.
    """
    if path.suffix.removeprefix(".").lower() not in FORMATS:
        raise ValueError(f"{path}: the name of a picture must end in .png or .svg")


def save_figure(figure: Figure, path: Path) -> None:
    """Write a picture atomically, in the format that its name ends in.

    Raises:
        ValueError: the name does not end in .png or .svg.
        OSError: the file cannot be written.
    """
    check_picture_name(path)
    kind = path.suffix.removeprefix(".").lower()
    # A date or a version would change the bytes from one run to the next.
    metadata = {"Software": None} if kind == "png" else {"Date": None, "Creator": None}
    # Matplotlib reads the salt and the font type of an SVG when it is saved, not when it is drawn.
    with mpl.rc_context(STYLE), atomic_write(path) as unfinished:
        FigureCanvasAgg(figure)  # the Agg canvas needs no display
        figure.savefig(unfinished, format=kind, dpi=160, metadata=metadata)


def draw_histogram(histogram: Histogram) -> Figure:
    """Draw the histogram of beta, stacked by category."""
    with mpl.rc_context(STYLE):
        figure, axes = _figure(8, 4)
        edges = np.asarray(histogram.edges)
        bottom = np.zeros(len(edges) - 1)
        for number, category in enumerate(histogram.categories):
            counts = np.asarray(category.counts)
            if counts.any():
                axes.bar(
                    edges[:-1], counts, np.diff(edges) * 0.92, bottom, align="edge",
                    color=category_colours(number)[0], label=escape_controls(category.name),
                )  # fmt: skip
            bottom += counts
        axes.set_xlabel("beta")
        axes.set_ylabel("pairs")
        axes.grid(axis="y")
        axes.legend(frameon=False, fontsize=9, ncols=2)
    return figure


def _draw_checks(checks: Sequence[Check]) -> Figure:
    """Draw the value and the thresholds of each check."""
    figure, axes = _figure(8, 0.5 * len(checks) + 0.8)
    rows = checks[::-1]  # the axis starts at the bottom, and the first check belongs on top
    for place, check in enumerate(rows):
        top = check.top
        gauge = build_gauge(check.value, top=top, look=check.look, bad=check.bad)
        for zone, start, width in gauge.zones:
            axes.barh(place, width / 100, 0.45, start / 100, color=_VERDICTS[zone])
        if gauge.at is not None:
            if check.low is not None and check.high is not None:
                ends = [min(max(end / top, 0.0), 1.0) for end in (check.low, check.high)]
                axes.plot(ends, [place, place], color=_INK, linewidth=1)
            axes.plot(
                [gauge.at / 100], [place], "|", color=_INK, markersize=17, markeredgewidth=2.5
            )
    axes.set_yticks(range(len(rows)), [check.title for check in rows])
    axes.set_xlim(0, 1)
    axes.set_xticks([])
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("value on its own scale: green is good, red is bad")
    return figure


def _draw_alphas(alpha: Alphas) -> Figure:
    """Draw each value of Krippendorff's alpha with its interval."""
    groups = {
        "between teachers": alpha.teachers,
        "between variants": alpha.variants,
        **{f"{name}, between variants": measures for name, measures in alpha.by_teacher.items()},
    }
    rows = [
        (f"{group}: {measure}", estimate)
        for group, measures in groups.items()
        for measure, estimate in measures.items()
    ]
    figure, axes = _figure(8, 0.28 * len(rows) + 0.8)
    _draw_intervals(axes, rows)
    axes.set_xlabel("Krippendorff's alpha, 95 % interval")
    # Alpha is at most 1; the margin keeps the dot of a perfect value whole.
    axes.set_xlim(right=1.02)
    return figure


def _draw_lengths(bins: Sequence[LengthBin]) -> Figure:
    """Draw the mean signed gap by length difference."""
    figure, axes = _figure(8, 4)
    mean = np.asarray([row.mean for row in bins])
    below = mean - [row.lower for row in bins]
    above = np.asarray([row.upper for row in bins]) - mean
    axes.errorbar(
        [row.middle for row in bins], mean, [below, above],
        fmt="o-", color=_ACCENT, linewidth=1, capsize=3,
    )  # fmt: skip
    axes.axvline(0, color=_QUIET, linewidth=0.8)
    axes.set_xlabel("characters by which chosen is longer (median of each tenth of the pairs)")
    axes.set_ylabel("mean signed gap, 95 % interval")
    axes.grid(axis="y")
    return figure


def _draw_estimators(rows: Sequence[VariationResult]) -> Figure:
    """Draw the rank correlation and the spread of the betas under other estimators."""
    figure = Figure(figsize=(9, 0.32 * len(rows) + 1.0), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    _draw_intervals(left, [(f"{row.group}: {row.name}", row.rho) for row in rows])
    left.set_xlabel("rho with the schedule's betas")
    right.barh(range(len(rows)), [row.std or 0.0 for row in reversed(rows)], 0.6, color=_ACCENT)
    right.set_xlabel("std of beta")
    right.grid(axis="x")
    return figure


def draw_beta_comparison(a: BetaTable, b: BetaTable, *, names: Sequence[str]) -> Figure:
    """Draw every pair at its betas in two tables, with the histogram of each table.

    Args:
        a: betas on the horizontal axis.
        b: betas on the vertical axis.
        names: the two names for the axis labels.
    """
    both = a.table.join(b.table, on="pair_id", suffix="_b").drop_nulls(["beta", "beta_b"])
    x, y = both["beta"].to_numpy(), both["beta_b"].to_numpy()
    low, high = min(x.min(), y.min()), max(x.max(), y.max())
    margin = 0.03 * (high - low) or 0.01  # axes need a width, even if all betas are equal
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 6.4), layout="constrained")
        panels: Any = figure.subplot_mosaic(
            [["above", "."], ["both", "beside"]], width_ratios=[4, 1], height_ratios=[1, 4]
        )
        axes = panels["both"]
        if len(x) < _MAX_DOTS:
            axes.scatter(x, y, s=14, color=_ACCENT, alpha=0.6, linewidths=0)
        else:
            axes.hexbin(x, y, gridsize=60, bins="log", mincnt=1, cmap="Blues")
        axes.plot([low, high], [low, high], color=_QUIET, linewidth=0.8)
        limits = (low - margin, high + margin)
        axes.set(xlim=limits, ylim=limits)
        axes.set_xlabel(f"beta in {escape_controls(names[0])}")
        axes.set_ylabel(f"beta in {escape_controls(names[1])}")
        # Equal betas have no range to divide; given a number of bins, numpy widens the range.
        edges = np.linspace(low, high, 31) if high > low else 10
        panels["above"].hist(x, edges, color=_ACCENT)
        panels["beside"].hist(y, edges, color=_ACCENT, orientation="horizontal")
        panels["above"].set(xlim=limits, xticks=[], yticks=[])
        panels["beside"].set(ylim=limits, xticks=[], yticks=[])
    return figure


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    # Not by pyplot, which would keep every figure in memory until it is closed.
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _draw_intervals(axes: Axes, rows: Sequence[tuple[str, Estimate]]) -> None:
    """Draw a value with its interval for each row, the first on top; skip unknown values."""
    for place, (_, estimate) in enumerate(reversed(rows)):
        if estimate.value is not None:
            if estimate.low is not None and estimate.high is not None:
                axes.plot([estimate.low, estimate.high], [place, place], color=_ACCENT)
            axes.plot([estimate.value], [place], "o", color=_ACCENT, markersize=5)
    axes.set_yticks(range(len(rows)), [escape_controls(name) for name, _ in reversed(rows)])
    axes.set_ylim(-0.7, len(rows) - 0.3)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")


def _draw_matrix(names: Sequence[str], comparisons: Sequence[ReaderComparison]) -> Figure:
    """Draw rho of the gaps and the share of equal categories for every two readers."""
    size = max(2.6, 1.1 * len(names) + 1.2)
    figure, axes = _figure(size + 0.6, size)
    values = np.full((len(names), len(names)), np.nan)
    place = {name: number for number, name in enumerate(names)}
    for comparison in comparisons:
        row, column = place[comparison.one], place[comparison.other]
        rho, same = comparison.spearman, comparison.same_category
        text = "-" if rho is None else f"{rho:.2f}"
        if same is not None:
            text += f"\n{same:.0%}"
        # Dark ink cannot be read on the dark end of the colour map.
        colour = "w" if rho is not None and rho > 0.6 else _INK
        for y, x in ((row, column), (column, row)):
            values[y, x] = np.nan if rho is None else rho
            axes.text(x, y, text, ha="center", va="center", color=colour)
    edges = np.arange(len(names) + 1) - 0.5
    # pcolormesh draws vectors; imshow would put a bitmap into the SVG.
    axes.pcolormesh(edges, edges, values, cmap="Blues", vmin=0, vmax=1)
    axes.invert_yaxis()
    axes.set_aspect("equal")
    labels = [escape_controls(name) for name in names]
    axes.set_xticks(range(len(names)), labels, rotation=20, ha="right")
    axes.set_yticks(range(len(names)), labels)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title("rho of the gaps, and pairs in the same category", fontsize=9, color=_QUIET)
    return figure
