"""Amounts as a person reads them; what is not known is a dash."""

from collections.abc import Mapping

UNKNOWN = "-"


def whole(number: float | None) -> str:
    """A count, with separators."""
    return UNKNOWN if number is None else f"{number:,.0f}"


def percent(share: float | None) -> str:
    """A share in [0, 1]."""
    return UNKNOWN if share is None else f"{share:.1%}"


def fixed(number: float | None, digits: int = 2) -> str:
    """A number with so many decimals."""
    return UNKNOWN if number is None else f"{number:.{digits}f}"


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
