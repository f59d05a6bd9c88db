"""Render the report on a run as one HTML page without scripts or external resources."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import markupsafe

from sp2dpo.betas.file import open_store_and_betas
from sp2dpo.diagnostics.agreement import ReaderComparison
from sp2dpo.diagnostics.alpha import Alpha
from sp2dpo.diagnostics.bootstrap import DRAWS
from sp2dpo.diagnostics.gold import RULES, load_gold
from sp2dpo.diagnostics.panel_agreement import MEASURES
from sp2dpo.files import check_overwrite
from sp2dpo.replacement import atomic_write
from sp2dpo.report.charts import (
    build_gauge,
    category_colours,
    histogram_chart,
    length_chart,
    stack_bars,
)
from sp2dpo.report.plots import save_plots
from sp2dpo.report.report import Alphas, Report, build_report
from sp2dpo.text import escape_controls

_UNKNOWN = "\N{EN DASH}"
_GENERATOR = '<meta name="generator" content="sp2dpo report">'


@dataclass(frozen=True, kw_only=True)
class WrittenReport:
    """A report and the files that it was written to.

    Attributes:
        report: numbers of the report.
        files: the plots and the page, in the order in which they were written.
    """

    report: Report
    files: list[Path]


def write_report(
    store: Path | str,
    betas: Path | str,
    out: Path | str | None = None,
    *,
    plots: Path | str | None = None,
    gold: Path | str | None = None,
    draws: int = DRAWS,
) -> WrittenReport:
    """Write the report on a run as an HTML page, as PNG and SVG plots, or both.

    Args:
        store: store of the run.
        betas: betas that were computed from this store.
        out: page to write; None for no page. A file that is not a report is not overwritten.
        plots: folder for the plots; None for no plots.
        gold: JSON Lines file of pairs whose label is known; None if there is none.
        draws: number of bootstrap samples behind each interval.

    Raises:
        ValueError: a file is invalid, or the betas were computed from other replies.
        OSError: a file cannot be read or written.
    """
    store, betas = Path(store), Path(betas)
    out, plots, gold = (None if path is None else Path(path) for path in (out, plots, gold))
    if out is not None:
        # Refuse a file that is not ours before the bootstrap, not after it.
        check_overwrite(out, is_report, "a report")
    # All that is read comes from one snapshot: a run may add replies meanwhile.
    with open_store_and_betas(store, betas) as (opened, table, annotations):
        truths, gold_count = load_gold(gold, opened) if gold else (None, 0)
        report = build_report(
            opened, table, annotations, truths=truths, gold_count=gold_count, draws=draws
        )
    files = [] if plots is None else save_plots(report, plots)
    if out is not None:
        with atomic_write(out) as unfinished:
            unfinished.write_text(render_page(report), encoding="utf-8")
        files.append(out)
    return WrittenReport(report=report, files=files)


def render_page(report: Report) -> str:
    """Return the report as HTML.

    Texts of data sets and models are escaped, and their control characters made visible.

    Args:
        report: numbers of the report.
    """
    edges, agreement = report.histogram.edges, report.agreement
    template = _templates(beta_decimals(edges[-1] - edges[0])).get_template("report.html.jinja")
    teachers = [teacher.name for teacher in report.teachers]
    return template.render(
        report=report,
        generator=markupsafe.Markup(_GENERATOR),
        colours=[category_colours(number) for number in range(len(report.categories))],
        numbers={category.name: number for number, category in enumerate(report.categories)},
        bars=stack_bars(report.histogram),
        # The labels of a drawing that is scaled down cannot be read: CSS shows one of two sizes.
        histograms={
            "wide": histogram_chart(report.histogram, width=880, height=300, intervals=4),
            "narrow": histogram_chart(report.histogram, width=350, height=260, intervals=2),
        },
        lengths={
            "wide": length_chart(report.lengths, width=880, height=280),
            "narrow": length_chart(report.lengths, width=350, height=260),
        },
        matrices=[
            (readers, names, comparison_matrix(names, comparisons))
            for readers, names, comparisons in (
                ("teachers", teachers, agreement.between_teachers),
                ("variants", report.variants, agreement.between_variants),
            )
        ],
        measures=tuple(MEASURES),
        alphas=_alpha_rows(agreement.alpha),
        rules=RULES,
        gauges={
            check.name: build_gauge(check.value, top=check.top, look=check.look, bad=check.bad)
            for check in report.checks
        },
        answers=("consistent", "first", "second", "tie"),
        reasons=sorted({reason for teacher in report.teachers for reason in teacher.refused}),
    )


def is_report(path: Path) -> bool:
    """Return whether a file is a page that `render_page` made."""
    # The mark is at the top of a page; a large file of another kind need not be read.
    with path.open("rb") as file:
        return _GENERATOR.encode() in file.read(1000)


def beta_decimals(width: float) -> int:
    """Return the decimals that show a hundredth of an envelope of this width."""
    return max(2, 2 - math.floor(math.log10(width)))


def comparison_matrix(
    names: Sequence[str], comparisons: Sequence[ReaderComparison]
) -> list[list[ReaderComparison | None]]:
    """Return comparisons of every two readers as a symmetric matrix, None on the diagonal.

    Args:
        names: readers, in the order of the rows and columns.
        comparisons: comparisons, from `compare_readers`.
    """
    cells = {(pair.one, pair.other): pair for pair in comparisons}
    cells |= {(pair.other, pair.one): pair for pair in comparisons}
    return [[cells.get((row, column)) for column in names] for row in names]


def _alpha_rows(alpha: Alphas) -> list[tuple[str, Mapping[str, Alpha]]]:
    # A single teacher's row would repeat the row of the variants.
    by_teacher = alpha.by_teacher if len(alpha.by_teacher) > 1 else {}
    return [
        ("teachers", alpha.teachers),
        ("variants", alpha.variants),
        *((f"variants, {name} alone", measures) for name, measures in by_teacher.items()),
    ]


def _templates(decimals: int) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("sp2dpo.report"),
        autoescape=True,
        finalize=_show_controls,
        trim_blocks=True,
        lstrip_blocks=True,
        # By default, a name that does not exist would be printed as nothing.
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "beta": lambda value: _fixed(value, decimals),
        "fixed": _fixed,
        "percent": lambda value: _UNKNOWN if value is None else f"{value:.0%}",
        "whole": lambda value: f"{value:,}",
        "flat": lambda text: " ".join(text.split()),
        "code": _code,
    }
    return environment


def _show_controls(value: Any) -> Any:
    # Markup is made by the templates; the texts in it went through here before.
    if isinstance(value, str) and not isinstance(value, markupsafe.Markup):
        # A Windows line break is ordinary text, so its \r is not shown as an escape.
        return escape_controls(value.replace("\r\n", "\n"))
    return value


def _code(text: str) -> markupsafe.Markup:
    """Escape a text for HTML and mark up the parts between backticks as code."""
    # A plain str: re.sub on Markup would escape the tags that it inserts.
    escaped = str(markupsafe.escape(escape_controls(text)))
    return markupsafe.Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", escaped))


def _fixed(value: float | None, digits: int = 2) -> str:
    # The format "z" writes a negative number that rounds to zero without its sign.
    return _UNKNOWN if value is None else f"{value:z.{digits}f}".replace("-", "\N{MINUS SIGN}")
