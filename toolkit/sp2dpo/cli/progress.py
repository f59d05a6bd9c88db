"""Bars of progress: over a long annotation, and over rows."""

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from tqdm import tqdm

from sp2dpo.text import escape_controls

_PACE = 0.1
"""Seconds between two looks at the bar: it costs more than a reply does."""

_Row = TypeVar("_Row")


def progress_rows(rows: Iterable[_Row], what: str, of: int) -> Iterator[_Row]:
    """Rows, counted by a bar as they go by.

    Args:
        rows: of whatever kind.
        what: they are.
        of: how many there will be.
    """
    yield from tqdm(rows, total=of, unit=" rows", desc=what, leave=False, **_pace())


def progress_parts(parts: Iterable[list[_Row]], what: str, of: int) -> Iterator[list[_Row]]:
    """The same for rows that come in parts."""
    with tqdm(total=of, unit=" rows", desc=what, leave=False, **_pace()) as inner:
        for part in parts:
            yield part
            inner.update(len(part))


def _pace() -> dict[str, Any]:
    """How often a bar is drawn: in a log, a line a minute."""
    return {} if sys.stderr.isatty() else {"mininterval": 60, "delay": 60, "ascii": True}


class ReplyBar:
    """A bar of replies with their rate, the refused ones, and the time left."""

    def __init__(self, bar: "tqdm[None]") -> None:
        self._bar = bar
        self._done = 0
        self._refused = 0
        self._shown = 0.0

    def __call__(self, finished: int, refused: int) -> None:
        """Count finished replies and, of those, refused ones."""
        self._done += finished
        self._refused += refused
        if time.monotonic() - self._shown > _PACE:
            self.show()

    def show(self) -> None:
        """Draws what has been counted."""
        self._shown = time.monotonic()
        self._bar.set_postfix(refused=self._refused, refresh=False)
        self._bar.update(self._done - self._bar.n)


def print_above_bars(line: str) -> None:
    """Print a line to stderr without breaking the progress bars."""
    tqdm.write(escape_controls(line), file=sys.stderr)


@contextmanager
def reply_bar(total: int) -> Iterator[ReplyBar]:
    """A bar over `total` requests."""
    with tqdm(total=total, unit=" replies", smoothing=0.05, **_pace()) as inner:
        inner.set_postfix(refused=0, refresh=False)
        counting = ReplyBar(inner)
        try:
            yield counting
        finally:
            counting.show()
