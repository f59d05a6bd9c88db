"""The report as one HTML page: no script, no file beside it, nothing fetched.

Everything that a page shows comes from a data set or a model and is hostile until proven otherwise:
the templates escape all of it, and control and direction marks are written as their codes.
"""

import colorsys
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import markupsafe

from sp2dpo.diagnostics.gold import RULES
from sp2dpo.diagnostics.panel_agreement import MEASURES
from sp2dpo.report.charts import chart, gauge, points
from sp2dpo.text import escape_controls

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


def render_page(found: dict[str, Any]) -> str:
    """The page of a report.

    Args:
        found: as `build_report` gives it.
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
        measures=tuple(MEASURES),
        alphas=_alphas(agreement["alpha"]),
        lengths=[
            points(found["lengths"], width=880, height=280),
            points(found["lengths"], width=350, height=260),
        ],
        rules=RULES,
        gauges={one["name"]: gauge(one) for one in found["signatures"]},
        shares=("consistent", "first", "second", "tie"),
        reasons=sorted({reason for teacher in found["teachers"] for reason in teacher["refused"]}),
    )


def _alphas(alpha: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The rows of the table of alphas."""
    own = alpha["by_teacher"] if len(alpha["by_teacher"]) > 1 else {}
    return [
        ("teachers", alpha["teachers"]),
        ("variants", alpha["variants"]),
        *((f"variants, {name} alone", one) for name, one in own.items()),
    ]


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


def matrix(
    names: Sequence[str], comparisons: Sequence[dict[str, Any]]
) -> list[list[dict[str, Any] | None]]:
    """Comparisons as rows and columns in the order of the names; None on the diagonal."""
    found = {(one["one"], one["other"]): one for one in comparisons}
    found |= {(one["other"], one["one"]): one for one in comparisons}
    return [[found.get((row, column)) for column in names] for row in names]


def _templates(beta_decimals: int) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("sp2dpo.report"),
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
        "code": _code,
    }
    return environment


def _visible(value: Any) -> Any:
    """What a template puts out: text of data with its hidden characters shown."""
    if isinstance(value, str) and not isinstance(value, markupsafe.Markup):
        return escape_controls(value.replace("\r\n", "\n"))
    return value


def _code(text: str) -> markupsafe.Markup:
    """Escape a text for HTML and mark up the parts between backticks as code."""
    # A plain str: re.sub on Markup would escape the tags that it inserts.
    escaped = str(markupsafe.escape(escape_controls(text)))
    return markupsafe.Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", escaped))


def _fixed(value: float | None, digits: int = 2) -> str:
    return _UNKNOWN if value is None else f"{value:.{digits}f}".replace("-", "\N{MINUS SIGN}")
