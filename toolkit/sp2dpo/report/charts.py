"""The drawings of a page, laid out: what stands where, in pixels from the upper left corner."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A piece of a stacked bar: `count` betas of a category from `low` to `high`; in pixels."""

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
class Tick:
    """A value on an axis, and where it stands, in pixels."""

    at: float
    value: float


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A stacked histogram, laid out; all lengths in pixels, from the upper left corner."""

    width: int
    height: int
    left: int
    right: int
    top: int
    bottom: int
    bars: list[Bar]
    across: list[Tick]
    up: list[Tick]


def chart(histogram: dict[str, Any], *, width: int, height: int, ticks: int) -> Chart:
    """Lays out the histogram.

    Args:
        histogram: as `build_report` gives it.
        width: in pixels.
        height: in pixels.
        ticks: steps between the ends of the axis of beta.
    """
    right, top, bottom = width - 14, 12, height - 46
    edges, categories = histogram["edges"], histogram["categories"]
    bins = len(edges) - 1
    sums = [sum(category["counts"][number] for category in categories) for number in range(bins)]
    marks = steps(max(sums))
    left = max(44, 16 + 8 * len(f"{marks[-1]:,}"))  # the longest number has to fit
    scale = (bottom - top) / marks[-1]
    step = (right - left) / bins
    bars = []
    for number in range(bins):
        level = float(bottom)
        for place, category in enumerate(categories):
            count = category["counts"][number]
            level -= count * scale
            if count:
                bars.append(
                    Bar(
                        x=round(left + number * step + 1, 2),
                        y=round(level, 2),
                        width=round(step - 2, 2),
                        height=round(count * scale, 2),
                        category=place,
                        name=category["name"],
                        count=count,
                        low=edges[number],
                        high=edges[number + 1],
                    )
                )
    across = [
        (end / ticks, edges[0] + (edges[-1] - edges[0]) * end / ticks) for end in range(ticks + 1)
    ]
    return Chart(
        width=width,
        height=height,
        left=left,
        right=right,
        top=top,
        bottom=bottom,
        bars=bars,
        across=[Tick(at=round(left + (right - left) * at, 2), value=beta) for at, beta in across],
        up=[Tick(at=round(bottom - mark * scale, 2), value=mark) for mark in marks],
    )


@dataclass(frozen=True, kw_only=True)
class Dot:
    """A value with its interval: `low` and `high` are heights; in pixels."""

    x: float
    y: float
    low: float
    high: float
    said: str


@dataclass(frozen=True, kw_only=True)
class Points:
    """Values with intervals over an axis, laid out; all lengths in pixels.

    `zero` is where 0 stands across, None where that is outside.
    """

    width: int
    height: int
    left: int
    right: int
    top: int
    bottom: int
    dots: list[Dot]
    zero: float | None
    across: list[Tick]
    up: list[Tick]


def points(bins: Sequence[dict[str, Any]], *, width: int, height: int) -> Points | None:
    """Lays out the mean gaps by length; None of nothing.

    Args:
        bins: as `biases.bin_by_length` gives them.
        width: in pixels.
        height: in pixels.
    """
    if not bins:
        return None
    left, right, top, bottom = 52, width - 20, 12, height - 46
    at = [one["middle"] for one in bins]
    low, high = min(at), max(at)
    reach = (high - low) or 1.0
    floor = -1.0 if min(one["lower"] for one in bins) < 0 else 0.0

    def across(value: float) -> float:
        return round(left + (right - left) * (value - low) / reach, 2)

    def up(value: float) -> float:
        share = (min(max(value, floor), 1.0) - floor) / (1.0 - floor)
        return round(bottom - (bottom - top) * share, 2)

    return Points(
        width=width,
        height=height,
        left=left,
        right=right,
        top=top,
        bottom=bottom,
        dots=[
            Dot(
                x=across(one["middle"]),
                y=up(one["mean"]),
                low=up(one["lower"]),
                high=up(one["upper"]),
                said=f"{one['low']:.0f} to {one['high']:.0f} characters longer: "
                f"{one['mean']:.2f} ({one['lower']:.2f} to {one['upper']:.2f})",
            )
            for one in bins
        ],
        zero=across(0.0) if low <= 0 <= high else None,
        across=[Tick(at=across(value), value=value) for value in (low, low + reach / 2, high)],
        up=[
            Tick(at=up(floor + step * (1 - floor) / 5), value=floor + step * (1 - floor) / 5)
            for step in range(6)
        ],
    )


def steps(highest: int) -> list[int]:
    """Round numbers from 0 to at least `highest`, at most six of them."""
    size = 1
    while size * 5 < highest:
        size = size * 5 // 2 if str(size)[0] == "2" else size * 2
    return [size * number for number in range(max(1, math.ceil(highest / size)) + 1)]


def gauge(signature: dict[str, Any]) -> dict[str, Any]:
    """Where the thresholds and the value of a signature stand, in percent of its scale."""
    top = signature["top"]
    look, bad = 100 * signature["look"] / top, 100 * signature["bad"] / top
    if bad > look:
        zones = [("ok", 0, look), ("look", look, bad - look), ("bad", bad, 100 - bad)]
    else:
        zones = [("bad", 0, bad), ("look", bad, look - bad), ("ok", look, 100 - look)]
    value = signature["value"]
    at = None if value is None else min(max(100 * value / top, 0.0), 100.0)
    return {"zones": zones, "at": at}
