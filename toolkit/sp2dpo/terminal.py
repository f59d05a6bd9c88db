"""What a person sees in a terminal: text made harmless and short, numbers of things, tables."""

import re
from collections.abc import Sequence

# C0 and C1 controls but newline and tab, halves of surrogate pairs, what reorders or hides text:
# bidi marks, zero widths, soft hyphens, blank letters, variation selectors, tags. Left alone are
# the joiners U+200C and U+200D and the selector U+FE0F, which scripts and emoji need.
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f"
    "\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\u3164\ud800-\udfff\ufe00-\ufe0e\ufeff"
    "\uffa0\ufff0-\ufffb\U000e0000-\U000e0fff]"
)


def harmless(text: str) -> str:
    """The text with every control and every invisible character written as its code."""
    return _UNSAFE.sub(lambda found: _code(ord(found[0])), text)


def _code(number: int) -> str:
    return f"\\u{number:04x}" if number <= 0xFFFF else f"\\U{number:08x}"


def brief(text: str, length: int = 300) -> str:
    """The text as one line, with "..." behind what is cut.

    Args:
        text: of any length.
        length: characters of it at most.
    """
    line = " ".join(text.split())
    return line if len(line) <= length else f"{line[:length]}..."


def number_of(number: int, one: str, several: str | None = None) -> str:
    """A number of things: `1 line`, `2 lines`; the plural is said where it takes more than an s."""
    return f"{number} {one if number == 1 else several or f'{one}s'}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, indent: str = "") -> list[str]:
    """Lines of a table; a column whose cells are all numbers is set to the right."""
    columns = list(zip(head, *rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    right = [all(_is_number(cell) for cell in column[1:]) for column in columns]
    lines = []
    for row in (head, *rows):
        cells = (
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(row, widths, right, strict=True)
        )
        lines.append((indent + "  ".join(cells)).rstrip())
    return lines


def _is_number(cell: str) -> bool:
    return bool(re.fullmatch(r"[-+\d.,%]*", cell))
