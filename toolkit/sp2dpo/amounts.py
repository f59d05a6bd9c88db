"""Amounts as a person reads them, what is not known as a dash, on lines as long as a terminal's."""

import re
import textwrap
from collections.abc import Mapping, Sequence

from sp2dpo.terminal import harmless, table

UNKNOWN = "-"
WIDTH = 100
"""Characters of a line."""
_SHORTEST = 9
"""Characters to which a cell is cut at most."""
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")
_SHELL_WORD = re.compile(r"""(?:[^\s'"\\]|\\.|'[^']*'|"(?:[^"\\]|\\.)*")+""", re.DOTALL)


def whole(number: float | None) -> str:
    """A count, with separators."""
    return UNKNOWN if number is None else f"{number:,.0f}"


def percent(share: float | None) -> str:
    """A share in [0, 1]."""
    return UNKNOWN if share is None else f"{share:.1%}"


def fixed(number: float | None, digits: int = 2, *, signed: bool = False) -> str:
    """A number with so many decimals, where asked with its sign."""
    if number is None:
        return UNKNOWN
    return f"{number:{'+' if signed else ''}.{digits}f}"


def interval(measured: Mapping[str, float | None], digits: int = 2, *, signed: bool = False) -> str:
    """A value with the ends of its interval: `0.85 (0.80 to 0.90)`."""
    if measured["value"] is None:
        return UNKNOWN
    value, low, high = (
        fixed(measured[name], digits, signed=signed) for name in ("value", "low", "high")
    )
    return f"{value} ({low} to {high})"


def intervals_hold(draws: int) -> str:
    """What the intervals beside are, in a sentence."""
    return f"Intervals hold 95 %: {whole(draws)} bootstrap samples of the pairs."


def significant(number: float | None) -> str:
    """A number with three digits that count, none of them left out before the point."""
    if number is None:
        return UNKNOWN
    return f"{number:,.0f}" if abs(number) >= 100 else f"{number:.3g}"


def duration(seconds: float | None) -> str:
    """A time in the unit that fits: seconds, minutes, hours or days."""
    if seconds is None:
        return UNKNOWN
    for unit, size in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def money(amounts: Mapping[str, float]) -> str:
    """Amounts by currency; a small one with three digits that count."""
    return " + ".join(
        f"{f'{amount:.3g}' if 0 < amount < 1 else f'{amount:,.2f}'} {currency}"
        for currency, amount in amounts.items()
    )


def wrapped(line: str) -> list[str]:
    """A line of words as lines of `WIDTH`, harmless; those that go on are set in by two more."""
    line = harmless(line)
    if len(line) <= WIDTH:
        return [line]
    indent = " " * (len(line) - len(line.lstrip()))
    return textwrap.wrap(
        line.strip(),
        WIDTH,
        initial_indent=indent,
        subsequent_indent=f"{indent}  ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def shell_lines(command: str, *, indent: str = "") -> list[str]:
    """A shell command over as many lines as it takes, which a shell reads as the same command.

    Args:
        command: on one line.
        indent: before each line; those that go on are set in by two more.
    """
    words = _SHELL_WORD.findall(harmless(command))
    first = next((n for n, word in enumerate(words) if not _ASSIGNMENT.match(word)), len(words))
    # The program, what it is to do and the model are easier to find on one line.
    words[first : first + 3] = [" ".join(words[first : first + 3])]
    lines = [indent + words[0]]
    for word in words[1:]:
        if len(lines[-1]) + len(word) + len("  \\") <= WIDTH:
            lines[-1] += f" {word}"
        else:
            lines[-1] += " \\"
            lines.append(f"{indent}  {word}")
    return lines


def narrow_table(
    head: Sequence[str], rows: Sequence[Sequence[str]], *, names: int, indent: str = ""
) -> list[str]:
    """A table, harmless, whose first columns are cut so far that it has `WIDTH`, if it can.

    Args:
        head: of the columns.
        rows: their cells.
        names: columns that may be cut, from the left: the whole names stand in the JSON.
        indent: before each line.
    """
    rows = [[harmless(cell) for cell in row] for row in rows]
    for _ in range(names):
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        excess = len(indent) + sum(widths) + 2 * (len(widths) - 1) - WIDTH
        if excess <= 0:
            break
        widest = max(range(names), key=lambda at: widths[at])
        room = max(_SHORTEST, len(head[widest]), widths[widest] - excess)
        rows = [
            [_cut(cell, room) if at == widest else cell for at, cell in enumerate(row)]
            for row in rows
        ]
    return table(head, rows, indent=indent)


def _cut(text: str, length: int) -> str:
    """A name without its middle: what tells names apart stands at their ends."""
    if len(text) <= length:
        return text
    end = (length - 3) // 2
    return f"{text[: length - 3 - end]}...{text[len(text) - end :]}"
