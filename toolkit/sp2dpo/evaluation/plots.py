"""The pictures of an evaluation."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sp2dpo.report import plots
from sp2dpo.text import escape_controls

_COLOURS = {"win_rate": "#59636d", "length_controlled": "#2b5f94", "reward": "#2b5f94"}
_WORDS = {"win_rate": "win rate", "length_controlled": "length-controlled win rate"}


def save_rates(found: Mapping[str, Any], path: Path) -> None:
    """Draws a comparison of win rates (`winrates.compared`) and writes it.

    Raises:
        ValueError: as `plots.check_picture_name`.
        OSError: it cannot be written.
    """
    with mpl.rc_context(plots.STYLE):
        plots.save_figure(_rates(found), path)


def save_sweep(found: Mapping[str, Any], path: Path) -> None:
    """Draws a sweep over temperatures and writes it; raises as `save_rates`."""
    with mpl.rc_context(plots.STYLE):
        plots.save_figure(_sweep(found), path)


def _rates(found: Mapping[str, Any]) -> Figure:
    students = found["students"][::-1]
    figure = Figure(figsize=(8, 0.6 * len(students) + 1.4), layout="constrained")
    axes = figure.subplots()
    kinds = [kind for kind in _WORDS if kind in students[0]]
    for number, kind in enumerate(kinds):
        shift = (len(kinds) - 1) / 2 - number
        for place, one in enumerate(students):
            said = one[kind]
            if said["value"] is None:
                continue
            height = place + 0.22 * shift
            label = _WORDS[kind] if place == 0 else None
            axes.plot(said["value"], height, "o", color=_COLOURS[kind], markersize=5, label=label)
            if said["low"] is not None:
                ends = [said["low"], said["high"]]
                axes.plot(ends, [height, height], color=_COLOURS[kind], linewidth=2)
    axes.axvline(50, color="#1c2227", linewidth=0.8)
    names = [escape_controls(one["name"]) for one in students]
    axes.set_yticks(range(len(students)), names)
    axes.set_ylim(-0.6, len(students) - 0.4)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("% against the baseline, 95 % intervals")
    axes.set_title(escape_controls(found["title"]), fontsize=10, loc="left")
    axes.grid(axis="x")
    axes.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def _sweep(found: Mapping[str, Any]) -> Figure:
    shown = [
        (kind, words)
        for kind, words in (("reward", "reward model's score"), ("win_rate", "win rate, %"))
        if any(one[kind] for one in found["temperatures"])
    ]
    figure = Figure(figsize=(max(6.5, 4.4 * len(shown)), 3.6), layout="constrained")
    for axes, (kind, words) in zip(
        figure.subplots(1, max(1, len(shown)), squeeze=False)[0], shown, strict=False
    ):
        _line(axes, found, kind)
        axes.set_ylabel(words)
    figure.suptitle(
        f"{escape_controls(found['student'])}\n{escape_controls(found['title'])}", fontsize=10
    )
    return figure


def _line(axes: Axes, found: Mapping[str, Any], kind: str) -> None:
    rows = [one for one in found["temperatures"] if one[kind] and one[kind]["value"] is not None]
    heat = [one["temperature"] for one in rows]
    values, low, high = ([one[kind][what] for one in rows] for what in ("value", "low", "high"))
    axes.fill_between(heat, low, high, color=_COLOURS[kind], alpha=0.18, linewidth=0)
    axes.plot(heat, values, "o-", color=_COLOURS[kind], markersize=4)
    axes.set_xlabel("decoding temperature")
    axes.grid()
