"""The plots of a report and of a comparison as pictures, PNG and SVG.

The same numbers give the same pictures, to the byte, under one version of matplotlib.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sp2dpo.betas.file import BetaTable
from sp2dpo.files import atomic_write
from sp2dpo.report.page import colour
from sp2dpo.text import escape_controls

FORMATS = ("png", "svg")
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "sp2dpo",
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
    "text.parse_math": False,
}
"""Of every picture of the project."""
_INK, _ACCENT, _QUIET = "#1c2227", "#2b5f94", "#59636d"
_VERDICTS = {"ok": "#a5d3b6", "look": "#efc97f", "bad": "#e59b97"}
_MANY = 3000
"""Pairs from which on a scatter would be a blot: hexagons take its place."""


def save_all(found: Mapping[str, Any], folder: Path) -> list[Path]:
    """Writes every plot of a report as PNG and SVG.

    Args:
        found: as `build_report` gives it.
        folder: where they go; it is made where it is not.

    Returns:
        What was written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, draw in _plots(found):
        figure = draw_plots(draw, found)
        for kind in FORMATS:
            save(figure, folder / f"{name}.{kind}")
            written.append(folder / f"{name}.{kind}")
    return written


def draw_plots(draw: Callable[[Mapping[str, Any]], Figure], found: Mapping[str, Any]) -> Figure:
    """A plot in the style of all.

    Args:
        draw: one of the functions below.
        found: what it draws of a report.
    """
    with mpl.rc_context(STYLE):
        return draw(found)


def _plots(found: Mapping[str, Any]) -> Iterator[tuple[str, Callable[[Mapping[str, Any]], Figure]]]:
    """The plots that there is something to draw for."""
    if found["beta"]["with_beta"]:
        yield "betas", betas
    yield "signatures", signatures
    yield "agreement", agreement
    if len(found["teachers"]) > 1:
        yield "teachers", teachers
    if len(found["variants"]) > 1:
        yield "variants", variants
    if found["lengths"]:
        yield "lengths", lengths
    yield "estimators", estimators


def check_name(path: Path) -> None:
    """Refuses a picture's name that does not say its format.

    Raises:
        ValueError: it ends in something else than a format.
    """
    if path.suffix.removeprefix(".").lower() not in FORMATS:
        raise ValueError(f"{path}: a picture's name ends in .png or .svg")


def save(figure: Figure, path: Path) -> None:
    """Writes a picture, whole or not at all; the name's end says which format.

    Raises:
        ValueError: as `check_name`.
        OSError: it cannot be written.
    """
    check_name(path)
    kind = path.suffix.removeprefix(".").lower()
    metadata = {"Software": None} if kind == "png" else {"Date": None, "Creator": None}
    with mpl.rc_context(STYLE), atomic_write(path) as unfinished:
        FigureCanvasAgg(figure)
        figure.savefig(unfinished, format=kind, dpi=160, metadata=metadata)


def betas(found: Mapping[str, Any]) -> Figure:
    """The histogram of beta, stacked by category."""
    figure, axes = _figure(8, 4)
    edges = np.asarray(found["histogram"]["edges"])
    bottom = np.zeros(len(edges) - 1)
    for place, category in enumerate(found["histogram"]["categories"]):
        counts = np.asarray(category["counts"])
        if counts.any():
            axes.bar(
                edges[:-1], counts, np.diff(edges) * 0.92, bottom, align="edge",
                color=colour(place)[0], label=escape_controls(category["name"]),
            )  # fmt: skip
        bottom += counts
    axes.set_xlabel("beta")
    axes.set_ylabel("pairs")
    axes.grid(axis="y")
    axes.legend(frameon=False, fontsize=9, ncols=2)
    return figure


def signatures(found: Mapping[str, Any]) -> Figure:
    """Where each signature stands between its thresholds."""
    rows = found["signatures"]
    figure, axes = _figure(8, 0.5 * len(rows) + 0.8)
    for place, one in enumerate(reversed(rows)):
        look, bad = one["look"] / one["top"], one["bad"] / one["top"]
        high_is_bad = bad > look
        low, high = (look, bad) if high_is_bad else (bad, look)
        zones = ("ok", "look", "bad") if high_is_bad else ("bad", "look", "ok")
        for zone, start, end in zip(zones, (0, low, high), (low, high, 1), strict=True):
            axes.barh(place, end - start, 0.45, start, color=_VERDICTS[zone])
        if one["value"] is not None:
            value = min(max(one["value"] / one["top"], 0.0), 1.0)
            if one["low"] is not None:
                ends = [min(max(one[end] / one["top"], 0.0), 1.0) for end in ("low", "high")]
                axes.plot(ends, [place, place], color=_INK, linewidth=1)
            axes.plot([value], [place], "|", color=_INK, markersize=17, markeredgewidth=2.5)
    axes.set_yticks(range(len(rows)), [one["title"] for one in reversed(rows)])
    axes.set_xlim(0, 1)
    axes.set_xticks([])
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("value, on its own scale: green is well, red is bad")
    return figure


def agreement(found: Mapping[str, Any]) -> Figure:
    """Krippendorff's alphas with their intervals."""
    alpha = found["agreement"]["alpha"]
    groups = {
        "between teachers": alpha["teachers"],
        "between variants": alpha["variants"],
        **{f"{name}, between variants": one for name, one in alpha["by_teacher"].items()},
    }
    rows = [
        (f"{who}: {what}", measured)
        for who, measures in groups.items()
        for what, measured in measures.items()
    ]
    figure, axes = _figure(8, 0.28 * len(rows) + 0.8)
    _whiskers(axes, rows)
    axes.set_xlabel("Krippendorff's alpha, 95 % interval")
    axes.set_xlim(right=1.02)
    return figure


def teachers(found: Mapping[str, Any]) -> Figure:
    """How alike every two teachers rank the pairs."""
    names = [one["name"] for one in found["teachers"]]
    return _matrix(names, found["agreement"]["between_teachers"])


def variants(found: Mapping[str, Any]) -> Figure:
    """The same for variants."""
    return _matrix(found["variants"], found["agreement"]["between_variants"])


def lengths(found: Mapping[str, Any]) -> Figure:
    """The mean gap by how much longer the chosen response is."""
    bins = found["lengths"]
    figure, axes = _figure(8, 4)
    at = [one["middle"] for one in bins]
    mean = np.asarray([one["mean"] for one in bins])
    below = mean - [one["lower"] for one in bins]
    above = np.asarray([one["upper"] for one in bins]) - mean
    axes.errorbar(at, mean, [below, above], fmt="o-", color=_ACCENT, linewidth=1, capsize=3)
    axes.axvline(0, color=_QUIET, linewidth=0.8)
    axes.set_xlabel("chosen is longer by so many characters (medians of tenths of the pairs)")
    axes.set_ylabel("mean signed gap, 95 % interval")
    axes.grid(axis="y")
    return figure


def estimators(found: Mapping[str, Any]) -> Figure:
    """How alike other estimators rank the pairs, and how wide they spread the betas."""
    rows = found["estimators"]
    figure = Figure(figsize=(9, 0.32 * len(rows) + 1.0), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    named = [(f"{row['group']}: {row['name']}", row["rho"]) for row in rows]
    _whiskers(left, named)
    left.set_xlabel("rho with the schedule's betas")
    places = range(len(rows))
    right.barh(places, [row["std"] or 0.0 for row in reversed(rows)], 0.6, color=_ACCENT)
    right.set_xlabel("std of beta")
    right.grid(axis="x")
    return figure


def both_betas(one: BetaTable, other: BetaTable, *, names: Sequence[str]) -> Figure:
    """Every pair by its two betas, with the histogram of each beside.

    Args:
        one: across.
        other: upwards.
        names: of both, for the axes.
    """
    both = one.table.join(other.table, on="pair_id", suffix="_other").drop_nulls(
        ["beta", "beta_other"]
    )
    a, b = both["beta"].to_numpy(), both["beta_other"].to_numpy()
    low, high = min(a.min(), b.min()), max(a.max(), b.max())
    margin = 0.03 * (high - low) or 0.01
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 6.4), layout="constrained")
        panels: Any = figure.subplot_mosaic(
            [["above", "."], ["both", "beside"]], width_ratios=[4, 1], height_ratios=[1, 4]
        )
        axes = panels["both"]
        if len(a) < _MANY:
            axes.scatter(a, b, s=14, color=_ACCENT, alpha=0.6, linewidths=0)
        else:
            axes.hexbin(a, b, gridsize=60, bins="log", mincnt=1, cmap="Blues")
        axes.plot([low, high], [low, high], color=_QUIET, linewidth=0.8)
        limits = (low - margin, high + margin)
        axes.set(xlim=limits, ylim=limits)
        axes.set_xlabel(f"beta in {escape_controls(names[0])}")
        axes.set_ylabel(f"beta in {escape_controls(names[1])}")
        edges = np.linspace(low, high, 31) if high > low else 10
        panels["above"].hist(a, edges, color=_ACCENT)
        panels["beside"].hist(b, edges, color=_ACCENT, orientation="horizontal")
        panels["above"].set(xlim=limits, xticks=[], yticks=[])
        panels["beside"].set(ylim=limits, xticks=[], yticks=[])
    return figure


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _whiskers(axes: Axes, rows: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    """A value with its interval on each line, the first on top; what is not defined is left out."""
    for place, (_, measured) in enumerate(reversed(rows)):
        if measured["value"] is not None:
            axes.plot([measured["low"], measured["high"]], [place, place], color=_ACCENT)
            axes.plot([measured["value"]], [place], "o", color=_ACCENT, markersize=5)
    axes.set_yticks(range(len(rows)), [escape_controls(name) for name, _ in reversed(rows)])
    axes.set_ylim(-0.7, len(rows) - 0.3)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")


def _matrix(names: Sequence[str], twos: Sequence[Mapping[str, Any]]) -> Figure:
    """Rho of the gaps, and the share of pairs in the same category, for all twos."""
    size = max(2.6, 1.1 * len(names) + 1.2)
    figure, axes = _figure(size + 0.6, size)
    values = np.full((len(names), len(names)), np.nan)
    place = {name: number for number, name in enumerate(names)}
    for one in twos:
        row, column = place[one["one"]], place[one["other"]]
        rho = np.nan if one["spearman"] is None else one["spearman"]
        for here, there in ((row, column), (column, row)):
            values[here, there] = rho
            same = "" if one["same_category"] is None else f"\n{one['same_category']:.0%}"
            said = f"{'-' if np.isnan(rho) else f'{rho:.2f}'}{same}"
            dark = not np.isnan(rho) and rho > 0.6
            axes.text(there, here, said, ha="center", va="center", color="w" if dark else _INK)
    edges = np.arange(len(names) + 1) - 0.5
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
