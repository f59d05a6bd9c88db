"""How a comparison of win rates reads."""

from collections.abc import Mapping
from typing import Any

from sp2dpo.evaluation.winrates import comparison_notes


def comparison_lines(found: Mapping[str, Any]) -> list[str]:
    """A table and what has to be said of it.

    Args:
        found: as `winrates.compared` gives it.
    """
    rows = [["student", "seeds", "win rate", "length-controlled", "characters", "unscored"]]
    if found["against"]:
        rows[0] += [f"win rate less {found['against']}", "length-controlled less"]
    for one in found["students"]:
        row = [
            one["name"],
            str(one["seeds"]),
            interval(one["win_rate"], one["win_rate"]["sd"]),
            interval(one.get("length_controlled"), (one.get("length_controlled") or {}).get("sd")),
            f"{one['length']:.0f} (baseline {one['baseline_length']:.0f})",
            f"{sum(one['unscored'])} of {one['prompts'] * one['seeds']}",
        ]
        if found["against"]:
            difference = one["difference"] or {}
            row += [signed(difference.get(kind)) for kind in ("win_rate", "length_controlled")]
        rows.append(row)
    said = [found["title"], *columns(rows)]
    said.append(
        f"95 % intervals: {found['draws']} bootstrap samples of the prompts"
        + (", the regression refitted to each" if found["length_controlled"] else "")
    )
    return said + [f"NOTE: {note}" for note in comparison_notes(found)]


def columns(rows: list[list[str]]) -> list[str]:
    """Rows of texts, set in columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def interval(one: Mapping[str, Any] | None, sd: float | None = None) -> str:
    """`41.90 (38.51 to 45.32)`."""
    if one is None or one["value"] is None:
        return "-"
    scatter = "" if sd is None else f", seeds sd {sd:.2f}"
    if one["low"] is None:
        return f"{one['value']:.2f}{scatter}"
    return f"{one['value']:.2f} ({one['low']:.2f} to {one['high']:.2f}{scatter})"


def signed(one: Mapping[str, Any] | None) -> str:
    """The same of a difference."""
    if one is None or one["value"] is None:
        return "-"
    if one["low"] is None:
        return f"{one['value']:+.2f}"
    return f"{one['value']:+.2f} ({one['low']:+.2f} to {one['high']:+.2f})"
