"""Format a comparison of win rates, and the cells of evaluation tables."""

from sp2dpo.diagnostics.bootstrap import Estimate
from sp2dpo.evaluation.winrates import RATES, Comparison, Rate, comparison_notes


def comparison_lines(comparison: Comparison) -> list[str]:
    """Return a comparison's table and its notes as lines of text."""
    rows = [["student", "seeds", "win rate", "length-controlled", "characters", "unscored"]]
    if comparison.against:
        rows[0] += [f"win rate minus {comparison.against}", "length-controlled minus"]
    for student in comparison.students:
        row = [
            student.name,
            str(student.seeds),
            *(format_estimate(student.rates.get(kind)) for kind in RATES),
            f"{student.length:.0f} (baseline {student.baseline_length:.0f})",
            f"{sum(student.unscored)} of {student.prompts * student.seeds}",
        ]
        if comparison.against:
            difference = student.difference or {}
            row += [format_estimate(difference.get(kind), signed=True) for kind in RATES]
        rows.append(row)
    samples = f"95 % intervals: {comparison.draws} bootstrap samples of the prompts"
    if comparison.length_controlled:
        samples += ", the regression refitted to each"
    notes = [f"NOTE: {note}" for note in comparison_notes(comparison)]
    return [comparison.title, *align_columns(rows), samples, *notes]


def align_columns(rows: list[list[str]]) -> list[str]:
    """Return rows of cells as lines of text, with cells padded to the width of their column."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def format_estimate(estimate: Estimate | None, *, signed: bool = False) -> str:
    """Format a value with its interval, `41.90 (38.51 to 45.32)`.

    If there are several seeds, the standard deviation between them follows.
    """
    if estimate is None or estimate.value is None:
        return "-"
    sign = "+" if signed else ""
    sd = estimate.sd if isinstance(estimate, Rate) else None
    scatter = "" if sd is None else f", seeds sd {sd:.2f}"
    if estimate.low is None:
        return f"{estimate.value:{sign}.2f}{scatter}"
    interval = f"{estimate.low:{sign}.2f} to {estimate.high:{sign}.2f}"
    return f"{estimate.value:{sign}.2f} ({interval}{scatter})"
