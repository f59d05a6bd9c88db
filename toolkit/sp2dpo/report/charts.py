"""Lay out the charts of the HTML page as SVG shapes, and choose the colours of categories.

All coordinates are pixels from the upper left corner.
"""

import colorsys
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sp2dpo.report.report import Histogram

_LIGHT = (
    "#c2453c", "#2f6fb5", "#c2850c", "#23876b", "#8556b5", "#5f8f26", "#c0508c", "#7b6856",
    "#2590a8", "#5d6d84",
)  # fmt: skip
_DARK = (
    "#f0796d", "#6ca8ee", "#ecb847", "#4fc3a1", "#b68eec", "#9acf60", "#ef8dbe", "#bba895",
    "#63cfe6", "#a0b1c9",
)  # fmt: skip
_TOP, _BOTTOM_MARGIN = 12, 46


def category_colours(number: int) -> tuple[str, str]:
    """Return a category's colour on a light and on a dark page, as hexadecimal RGB.

    Args:
        number: number of the category, from 0.
    """
    if number < len(_LIGHT):
        return _LIGHT[number], _DARK[number]
    # Steps of the golden angle around the colour wheel never repeat a hue.
    hue = number * (math.sqrt(5) - 1) / 2 % 1
    return _hexadecimal(hue, 0.42, 0.55), _hexadecimal(hue, 0.68, 0.6)


def _hexadecimal(hue: float, lightness: float, saturation: float) -> str:
    parts = colorsys.hls_to_rgb(hue, lightness, saturation)
    return "#" + "".join(f"{round(255 * part):02x}" for part in parts)


@dataclass(frozen=True, kw_only=True)
class Tick:
    """A mark on an axis.

    Attributes:
        at: position on the axis.
        value: value at this position.
    """

    at: float
    value: float


@dataclass(frozen=True, kw_only=True)
class Chart:
    """Size and axes of a chart.

    Attributes:
        width: width of the drawing.
        height: height of the drawing.
        left: left end of the horizontal axis.
        right: right end of the horizontal axis.
        top: upper end of the vertical axis.
        bottom: lower end of the vertical axis.
        across: ticks of the horizontal axis.
        up: ticks of the vertical axis.
    """

    width: int
    height: int
    left: int
    right: int
    top: int
    bottom: int
    across: list[Tick]
    up: list[Tick]


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A segment of a stacked bar.

    Attributes:
        x: left end.
        y: upper end.
        width: width of the bar.
        height: height of the segment.
        category: number of the category.
        name: name of the category.
        count: number of betas.
        low: lower border of the bin.
        high: upper border of the bin.
    """

    x: float
    y: float
    width: float
    height: float
    category: int
    name: str
    count: int
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class HistogramChart(Chart):
    """A stacked histogram of beta.

    Attributes:
        bars: segments of all bars.
    """

    bars: list[Bar]


@dataclass(frozen=True, kw_only=True)
class Dot:
    """A value with its interval.

    Attributes:
        x: horizontal position.
        y: vertical position of the value.
        low: vertical position of the interval's lower end.
        high: vertical position of the interval's upper end.
        label: the numbers as text.
    """

    x: float
    y: float
    low: float
    high: float
    label: str


@dataclass(frozen=True, kw_only=True)
class LengthChart(Chart):
    """Mean signed gaps by difference of length.

    Attributes:
        dots: values with their intervals.
        zero: horizontal position of 0; None if it is outside of the axis.
    """

    dots: list[Dot]
    zero: float | None


@dataclass(frozen=True, kw_only=True)
class Gauge:
    """The scale of a check, in percent of its length.

    Attributes:
        zones: verdict, start and width of each zone.
        at: position of the value; None without a value.
    """

    zones: list[tuple[str, float, float]]
    at: float | None


def histogram_chart(
    histogram: Histogram, *, width: int, height: int, intervals: int
) -> HistogramChart:
    """Lay out a histogram.

    Args:
        histogram: counts of each category in each bin.
        width: width of the drawing.
        height: height of the drawing.
        intervals: number of intervals between the ticks of the horizontal axis.
    """
    right, bottom = width - 14, height - _BOTTOM_MARGIN
    edges, categories = histogram.edges, histogram.categories
    bins = len(edges) - 1
    highest = max(sum(category.counts[number] for category in categories) for number in range(bins))
    marks = axis_steps(highest)
    left = max(44, 16 + 8 * len(f"{marks[-1]:,}"))  # leaves room for the longest tick label
    scale, step = (bottom - _TOP) / marks[-1], (right - left) / bins
    bars = []
    for number in range(bins):
        level = float(bottom)
        for place, category in enumerate(categories):
            count = category.counts[number]
            level -= count * scale
            if count:
                bars.append(
                    Bar(
                        x=round(left + number * step + 1, 2),
                        y=round(level, 2),
                        width=round(step - 2, 2),
                        height=round(count * scale, 2),
                        category=place,
                        name=category.name,
                        count=count,
                        low=edges[number],
                        high=edges[number + 1],
                    )
                )
    shares = [number / intervals for number in range(intervals + 1)]
    return HistogramChart(
        width=width,
        height=height,
        left=left,
        right=right,
        top=_TOP,
        bottom=bottom,
        bars=bars,
        across=[
            Tick(
                at=round(left + (right - left) * share, 2),
                value=edges[0] + (edges[-1] - edges[0]) * share,
            )
            for share in shares
        ],
        up=[Tick(at=round(bottom - mark * scale, 2), value=mark) for mark in marks],
    )


def length_chart(bins: Sequence[dict[str, Any]], *, width: int, height: int) -> LengthChart | None:
    """Lay out the mean signed gaps by difference of length; return None without any bin.

    Args:
        bins: mean gaps, from `bin_by_length`.
        width: width of the drawing.
        height: height of the drawing.
    """
    if not bins:
        return None
    left, right, bottom = 52, width - 20, height - _BOTTOM_MARGIN
    middles = [row["middle"] for row in bins]
    low, high = min(middles), max(middles)
    reach = (high - low) or 1.0
    floor = -1.0 if min(row["lower"] for row in bins) < 0 else 0.0

    def across(value: float) -> float:
        return round(left + (right - left) * (value - low) / reach, 2)

    def up(value: float) -> float:
        share = (min(max(value, floor), 1.0) - floor) / (1.0 - floor)
        return round(bottom - (bottom - _TOP) * share, 2)

    heights = [floor + step * (1 - floor) / 5 for step in range(6)]
    return LengthChart(
        width=width,
        height=height,
        left=left,
        right=right,
        top=_TOP,
        bottom=bottom,
        dots=[
            Dot(
                x=across(row["middle"]),
                y=up(row["mean"]),
                low=up(row["lower"]),
                high=up(row["upper"]),
                label=f"{row['low']:.0f} to {row['high']:.0f} characters longer: "
                f"{row['mean']:.2f} ({row['lower']:.2f} to {row['upper']:.2f})",
            )
            for row in bins
        ],
        zero=across(0.0) if low <= 0 <= high else None,
        across=[Tick(at=across(value), value=value) for value in _round_values(low, high)],
        up=[Tick(at=up(value), value=value) for value in heights],
    )


def _round_values(low: float, high: float) -> list[float]:
    step = axis_steps(math.ceil(high - low))[1]
    values = [step * number for number in range(math.ceil(low / step), math.floor(high / step) + 1)]
    return [float(value) for value in values] or [low]


def axis_steps(highest: int) -> list[int]:
    """Return at most six round numbers, from 0 to at least `highest`."""
    size = 1
    # Round step sizes are 1, 2, 5, 10, 20, 50, ...
    while size * 5 < highest:
        size = size * 5 // 2 if str(size)[0] == "2" else size * 2
    return [size * number for number in range(max(1, math.ceil(highest / size)) + 1)]


def build_gauge(value: float | None, *, top: float, look: float, bad: float) -> Gauge:
    """Return the scale of a check with its zones.

    Args:
        value: measured value; None if unknown.
        top: upper end of the scale, which starts at 0.
        look: threshold of the verdict `look`.
        bad: threshold of the verdict `bad`; above `look` if high values are bad.
    """
    low, high = sorted((100 * look / top, 100 * bad / top))
    names = ("ok", "look", "bad") if bad > look else ("bad", "look", "ok")
    ends = (0.0, low, high, 100.0)
    zones = [
        (name, start, end - start)
        for name, start, end in zip(names, ends[:-1], ends[1:], strict=True)
    ]
    at = None if value is None else min(max(100 * value / top, 0.0), 100.0)
    return Gauge(zones=zones, at=at)
