"""The report as one HTML page: no script, no file beside it, nothing fetched.

Everything that a page shows comes from a data set or a model and is hostile until proven otherwise:
the templates escape all of it, and control and direction marks are written as their codes.
"""

import colorsys
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import markupsafe

from sp2dpo.terminal import harmless

_LIGHT = (
    "#c2453c", "#2f6fb5", "#c2850c", "#23876b", "#8556b5", "#5f8f26", "#c0508c", "#7b6856",
    "#2590a8", "#5d6d84",
)  # fmt: skip
_DARK = (
    "#f0796d", "#6ca8ee", "#ecb847", "#4fc3a1", "#b68eec", "#9acf60", "#ef8dbe", "#bba895",
    "#63cfe6", "#a0b1c9",
)  # fmt: skip
_UNKNOWN = "\N{EN DASH}"
_GENERATOR = '<meta name="generator" content="sp2dpo report">'


def draw(found: dict[str, Any]) -> str:
    """The page of a report.

    Args:
        found: as `report.report` gives it.
    """
    edges = found["histogram"]["edges"]
    template = _templates(decimals(edges[-1] - edges[0])).get_template("report.html.jinja")
    names = [category["name"] for category in found["categories"]]
    teachers = [teacher["name"] for teacher in found["teachers"]]
    agreement = found["agreement"]
    return template.render(
        found=found,
        generator=markupsafe.Markup(_GENERATOR),
        colours=[colour(number) for number in range(len(names))],
        place={name: number for number, name in enumerate(names)},
        charts=[
            chart(found["histogram"], width=880, height=300, ticks=4),
            chart(found["histogram"], width=350, height=260, ticks=2),
        ],
        matrices=[
            ("teachers", teachers, matrix(teachers, agreement["between_teachers"])),
            (
                "variants",
                found["variants"],
                matrix(found["variants"], agreement["between_variants"]),
            ),
        ],
        gauges={one["name"]: gauge(one) for one in found["signatures"]},
        shares=("consistent", "first", "second", "tie"),
        reasons=sorted({reason for teacher in found["teachers"] for reason in teacher["refused"]}),
    )


def is_report(path: Path) -> bool:
    """Whether a file is a page that `draw` made."""
    with path.open("rb") as file:
        return _GENERATOR.encode() in file.read(1000)


def decimals(width: float) -> int:
    """Decimals that tell betas apart in an envelope of that width: a hundredth of it shows."""
    return max(2, 2 - math.floor(math.log10(width)))


def colour(number: int) -> tuple[str, str]:
    """A category's colour on a light and on a dark page, as hexadecimal RGB.

    Any count of categories will do: after those chosen by hand come turns of the colour wheel by
    the golden angle, which never meets a hue again.
    """
    if number < len(_LIGHT):
        return _LIGHT[number], _DARK[number]
    hue = number * (math.sqrt(5) - 1) / 2 % 1
    return _hexadecimal(hue, 0.42, 0.55), _hexadecimal(hue, 0.68, 0.6)


def _hexadecimal(hue: float, lightness: float, saturation: float) -> str:
    parts = colorsys.hls_to_rgb(hue, lightness, saturation)
    return "#" + "".join(f"{round(255 * part):02x}" for part in parts)


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
        histogram: as `report.report` gives it.
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


def matrix(
    names: Sequence[str], comparisons: Sequence[dict[str, Any]]
) -> list[list[dict[str, Any] | None]]:
    """Comparisons as rows and columns in the order of the names; None on the diagonal."""
    found = {(one["one"], one["other"]): one for one in comparisons}
    found |= {(one["other"], one["one"]): one for one in comparisons}
    return [[found.get((row, column)) for column in names] for row in names]


def _templates(beta_decimals: int) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("sp2dpo"),
        autoescape=True,
        finalize=_visible,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "beta": lambda value: _fixed(value, beta_decimals),
        "fixed": _fixed,
        "percent": lambda value: _UNKNOWN if value is None else f"{value:.0%}",
        "whole": lambda value: f"{value:,}",
        "flat": lambda text: " ".join(text.split()),
    }
    return environment


def _visible(value: Any) -> Any:
    """What a template puts out: text of data with its hidden characters shown."""
    if isinstance(value, str) and not isinstance(value, markupsafe.Markup):
        return harmless(value.replace("\r\n", "\n"))
    return value


def _fixed(value: float | None, digits: int = 2) -> str:
    return _UNKNOWN if value is None else f"{value:.{digits}f}".replace("-", "\N{MINUS SIGN}")
