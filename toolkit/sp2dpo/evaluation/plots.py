"""Plot win rates, and results by temperature."""

from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sp2dpo.evaluation.temperatures import Sweep
from sp2dpo.evaluation.winrates import Comparison
from sp2dpo.report import plots
from sp2dpo.text import escape_controls

_COLOURS = {"win_rate": "#59636d", "length_controlled": "#2b5f94", "reward": "#2b5f94"}
_WORDS = {"win_rate": "win rate", "length_controlled": "length-controlled win rate"}


def save_rates(comparison: Comparison, path: Path) -> None:
    """Plot a comparison of win rates and write it to a file.

    Raises:
        ValueError: If `plots.check_picture_name` refuses the path.
        OSError: If the file cannot be written.
    """
    with mpl.rc_context(plots.STYLE):
        plots.save_figure(_draw_rates(comparison), path)


def save_sweep(sweep: Sweep, path: Path) -> None:
    """Plot a sweep over temperatures and write it to a file; raises like `save_rates`."""
    with mpl.rc_context(plots.STYLE):
        plots.save_figure(_draw_sweep(sweep), path)


def _draw_rates(comparison: Comparison) -> Figure:
    # The y-axis points upwards, and the first student belongs at the top.
    students = comparison.students[::-1]
    # Without pyplot, which would keep every figure until it is closed.
    figure = Figure(figsize=(8, 0.6 * len(students) + 1.4), layout="constrained")
    axes = figure.subplots()
    kinds = [kind for kind in _WORDS if kind in students[0].rates]
    for number, kind in enumerate(kinds):
        shift = (len(kinds) - 1) / 2 - number
        for row, student in enumerate(students):
            rate = student.rates[kind]
            if rate.value is None:
                continue
            height = row + 0.22 * shift
            label = _WORDS[kind] if row == 0 else None
            axes.plot(rate.value, height, "o", color=_COLOURS[kind], markersize=5, label=label)
            if rate.low is not None and rate.high is not None:
                ends = [rate.low, rate.high]
                axes.plot(ends, [height, height], color=_COLOURS[kind], linewidth=2)
    axes.axvline(50, color="#1c2227", linewidth=0.8)
    names = [escape_controls(student.name) for student in students]
    axes.set_yticks(range(len(students)), names)
    axes.set_ylim(-0.6, len(students) - 0.4)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("% against the baseline, 95 % intervals")
    axes.set_title(escape_controls(comparison.title), fontsize=10, loc="left")
    axes.grid(axis="x")
    axes.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def _draw_sweep(sweep: Sweep) -> Figure:
    panels = [
        (kind, words)
        for kind, words in (("reward", "reward model's score"), ("win_rate", "win rate, %"))
        if any(getattr(result, kind) for result in sweep.temperatures)
    ]
    figure = Figure(figsize=(max(6.5, 4.4 * len(panels)), 3.6), layout="constrained")
    # One empty panel if no temperature has a result, hence not strict.
    for axes, (kind, words) in zip(
        figure.subplots(1, max(1, len(panels)), squeeze=False)[0], panels, strict=False
    ):
        _draw_line(axes, sweep, kind)
        axes.set_ylabel(words)
    figure.suptitle(
        f"{escape_controls(sweep.student)}\n{escape_controls(sweep.title)}", fontsize=10
    )
    return figure


def _draw_line(axes: Axes, sweep: Sweep, kind: str) -> None:
    points = [(result.temperature, getattr(result, kind)) for result in sweep.temperatures]
    points = [(x, estimate) for x, estimate in points if estimate and estimate.value is not None]
    temperatures = [x for x, _ in points]
    values, low, high = (
        [getattr(estimate, name) for _, estimate in points] for name in ("value", "low", "high")
    )
    axes.fill_between(temperatures, low, high, color=_COLOURS[kind], alpha=0.18, linewidth=0)
    axes.plot(temperatures, values, "o-", color=_COLOURS[kind], markersize=4)
    axes.set_xlabel("decoding temperature")
    axes.grid()
