"""Count betas by category, lay out the charts of the HTML page, and choose colours.

All coordinates are pixels from the upper left corner.
"""

import colorsys
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import polars as pl

from sp2dpo.betas.file import BetaTable
from sp2dpo.diagnostics.biases import LengthBin

BINS = 20
"""Number of bars in the histogram of beta."""
# Two palettes: the page follows the reader's colour scheme, and the plots are always light.
_LIGHT = (
    "#c2453c", "#2f6fb5", "#c2850c", "#23876b", "#8556b5", "#5f8f26", "#c0508c", "#7b6856",
    "#2590a8", "#5d6d84",
)  # fmt: skip
_DARK = (
    "#f0796d", "#6ca8ee", "#ecb847", "#4fc3a1", "#b68eec", "#9acf60", "#ef8dbe", "#bba895",
    "#63cfe6", "#a0b1c9",
)  # fmt: skip


def category_colours(number: int) -> tuple[str, str]:
    """Return the colours of a category (from 0) on a light and a dark page, as hexadecimal RGB."""
    if number < len(_LIGHT):
        return _LIGHT[number], _DARK[number]
    # Steps of the golden angle around the colour wheel never repeat a hue.
    hue = number * (math.sqrt(5) - 1) / 2 % 1
    return _hexadecimal(hue, 0.42, 0.55), _hexadecimal(hue, 0.68, 0.6)


def _hexadecimal(hue: float, lightness: float, saturation: float) -> str:
    parts = colorsys.hls_to_rgb(hue, lightness, saturation)
    return "#" + "".join(f"{round(255 * part):02x}" for part in parts)


@dataclass(frozen=True, kw_only=True)
class CategoryCounts:
    """Betas of one category in each bin of a histogram.

    Attributes:
        name: the category.
        counts: number of betas in each bin.
    """

    name: str
    counts: list[int]


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """Histogram of beta by category.

    Attributes:
        edges: borders of the bins, in ascending order; one more than there are bins.
        categories: counts of each category, in order of priority.
    """

    edges: list[float]
    categories: list[CategoryCounts]


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A segment of a stacked bar.

    Attributes:
        category, name: number and name of the category.
        count, below: number of betas in the segment, and in the segments below.
        low, high: borders of the bin.
    """

    category: int
    name: str
    count: int
    below: int
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Chart:
    """Size and axes of a chart, which place values in the drawing.

    Attributes:
        width, height: size of the drawing.
        left, right: ends of the horizontal axis.
        ends: values at these two ends.
        across: ticks of the horizontal axis.
        up: ticks of the vertical axis, which ends at the first and the last of them.
    """

    top: ClassVar[int] = 12
    width: int
    height: int
    left: int
    right: int
    ends: tuple[float, float]
    across: Sequence[float]
    up: Sequence[float]

    @property
    def bottom(self) -> int:
        """Lower end of the vertical axis; below it are the ticks and the title."""
        return self.height - 46

    def x(self, value: float) -> float:
        """Return the horizontal position of a value."""
        low, high = self.ends
        # A single value has no range to divide by: it is at the left end.
        return round(self.left + (self.right - self.left) * (value - low) / (high - low or 1.0), 2)

    def y(self, value: float) -> float:
        """Return the vertical position of a value; one outside of the axis is at its end."""
        low, high = self.up[0], self.up[-1]
        share = (min(max(value, low), high) - low) / (high - low)
        return round(self.bottom - (self.bottom - self.top) * share, 2)

    def box(self, bar: Bar) -> tuple[float, float, float, float]:
        """Return the left and upper end, the width and the height of a bar's segment."""
        left, right = self.x(bar.low), self.x(bar.high)
        top, bottom = self.y(bar.below + bar.count), self.y(bar.below)
        # One pixel on either side keeps neighbouring bars apart.
        return round(left + 1, 2), top, round(right - left - 2, 2), round(bottom - top, 2)


@dataclass(frozen=True, kw_only=True)
class Gauge:
    """The scale of a check, in percent of its length.

    Attributes:
        zones: verdict, start and width of each zone.
        at: position of the value; None without a value.
    """

    zones: list[tuple[str, float, float]]
    at: float | None


def build_histogram(betas: BetaTable, categories: Sequence[str]) -> Histogram:
    """Count the betas of each category in `BINS` equal bins.

    The bins cover the envelopes of all categories, and also betas of a baseline outside of them. A
    bin includes its lower border; the last bin also includes its upper border.

    Args:
        betas: betas of the run.
        categories: categories of the rubric.
    """
    beta, envelope = betas.table["beta"].drop_nulls(), betas.schedule.widest
    low, high = min([envelope.beta_min, *beta]), max([envelope.beta_max, *beta])
    # Round, so that floating-point error does not move a beta on a border into the next bin.
    share = ((pl.col("beta") - low) / (high - low)).round(9)
    bins = (
        betas.table.drop_nulls("beta")
        # The clip puts the highest beta, whose share is 1, into the last bin.
        .group_by("category", bin=(share * BINS).floor().clip(0, BINS - 1).cast(pl.Int32))
        .len()
    )
    counts = {category: [0] * BINS for category in categories}
    for category, number, count in bins.iter_rows():
        counts[category][number] = count
    return Histogram(
        # This form, unlike `low + width * share`, gives exactly `low` and `high` at the ends.
        edges=[low * (1 - end / BINS) + high * (end / BINS) for end in range(BINS + 1)],
        categories=[CategoryCounts(name=name, counts=bars) for name, bars in counts.items()],
    )


def stack_bars(histogram: Histogram) -> list[Bar]:
    """Return the segments of a histogram's bars, from the axis up; bins without betas have none."""
    bars = []
    for number, (low, high) in enumerate(pairwise(histogram.edges)):
        below = 0
        for place, category in enumerate(histogram.categories):
            count = category.counts[number]
            if count:
                bars.append(
                    Bar(
                        category=place,
                        name=category.name,
                        count=count,
                        below=below,
                        low=low,
                        high=high,
                    )
                )
            below += count
    return bars


def histogram_chart(histogram: Histogram, *, width: int, height: int, intervals: int) -> Chart:
    """Return the axes of a histogram, with ticks at the ends of `intervals` equal intervals."""
    low, high = histogram.edges[0], histogram.edges[-1]
    marks = axis_steps(
        max(map(sum, zip(*(row.counts for row in histogram.categories), strict=True)))
    )
    return Chart(
        width=width,
        height=height,
        # Leave room for the longest label of a tick.
        left=max(44, 16 + 8 * len(f"{marks[-1]:,}")),
        right=width - 14,
        ends=(low, high),
        across=[low + (high - low) * (tick / intervals) for tick in range(intervals + 1)],
        up=marks,
    )


def length_chart(bins: Sequence[LengthBin], *, width: int, height: int) -> Chart | None:
    """Return the axes of the mean signed gaps of `bin_by_length`; None without any bin."""
    if not bins:
        return None
    low, high = bins[0].middle, bins[-1].middle
    # Where no gap can be negative, the half below 0 would be empty.
    floor = -1.0 if min(row.lower for row in bins) < 0 else 0.0
    # Few labels fit below a narrow chart, so only multiples of a round step have one.
    step = axis_steps(math.ceil(high - low))[1]
    round_values = range(math.ceil(low / step) * step, math.floor(high / step) * step + 1, step)
    return Chart(
        width=width,
        height=height,
        left=52,
        right=width - 20,
        ends=(low, high),
        # Between two ends that are close or equal, there may be no round value.
        across=[float(value) for value in round_values] or [low],
        up=[floor + tick * (1 - floor) / 5 for tick in range(6)],
    )


def axis_steps(highest: int) -> list[int]:
    """Return at most six round numbers, from 0 to at least `highest`."""
    size = 1
    # Round step sizes are 1, 2, 5, 10, 20, 50, ...
    while size * 5 < highest:
        size = size * 5 // 2 if str(size)[0] == "2" else size * 2
    # An axis needs an upper end, even if there is nothing to count.
    return [size * number for number in range(max(1, math.ceil(highest / size)) + 1)]


def build_gauge(value: float | None, *, top: float, look: float, bad: float | None) -> Gauge:
    """Return the scale of a check with its zones.

    Args:
        value: measured value; None if unknown.
        top: upper end of the scale, which starts at 0.
        look: threshold of the verdict `look`.
        bad: threshold of the verdict `bad`; above `look` if high values are bad. None if there is
            no such verdict.
    """
    # The zone of `bad` is empty then.
    bad = top if bad is None else bad
    # For a check whose low values are bad, `bad` is the lower threshold and the zones are reversed.
    low, high = sorted((100 * look / top, 100 * bad / top))
    names = ("ok", "look", "bad") if bad > look else ("bad", "look", "ok")
    ends = (0.0, low, high, 100.0)
    zones = [
        (name, start, end - start)
        for name, start, end in zip(names, ends[:-1], ends[1:], strict=True)
    ]
    at = None if value is None else min(max(100 * value / top, 0.0), 100.0)
    return Gauge(zones=zones, at=at)
