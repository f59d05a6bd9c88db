"""Progress bars of an annotation and of loops over rows."""

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from tqdm import tqdm

from sp2dpo.text import escape_controls

_PACE = 0.1
"""Seconds between two updates of the bar. An update costs more time than counting a reply."""

_Row = TypeVar("_Row")


def progress_rows(rows: Iterable[_Row], description: str, total: int) -> Iterator[_Row]:
    """Yield rows and show a progress bar.

    Args:
        rows: rows to yield.
        description: description of the rows, shown before the bar.
        total: number of rows.
    """
    yield from tqdm(rows, total=total, unit=" rows", desc=description, leave=False, **_pace())


def progress_parts(
    parts: Iterable[list[_Row]], description: str, total: int
) -> Iterator[list[_Row]]:
    """Yield parts and show a progress bar over their rows; arguments as in `progress_rows`."""
    with tqdm(total=total, unit=" rows", desc=description, leave=False, **_pace()) as inner:
        for part in parts:
            yield part
            inner.update(len(part))


def _pace() -> dict[str, Any]:
    """Return options that limit a bar in a log file to a line per minute."""
    # With `delay`, a bar that ends within a minute leaves no line in the log at all.
    return {} if sys.stderr.isatty() else {"mininterval": 60, "delay": 60, "ascii": True}


class ReplyBar:
    """Progress bar of replies: rate, refused replies and time left."""

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
        """Draw the current counts."""
        self._shown = time.monotonic()
        # Without a refresh: `update` below draws the bar, and would draw it a second time.
        self._bar.set_postfix(refused=self._refused, refresh=False)
        self._bar.update(self._done - self._bar.n)


def print_above_bars(line: str) -> None:
    """Print a line to stderr without breaking the progress bars."""
    tqdm.write(escape_controls(line), file=sys.stderr)


@contextmanager
def reply_bar(total: int) -> Iterator[ReplyBar]:
    """Show a progress bar over `total` replies, and yield the function that counts them."""
    # At `_PACE`, this averages the rate over some 2 seconds; tqdm's default over about 0.3.
    with tqdm(total=total, unit=" replies", smoothing=0.05, **_pace()) as inner:
        inner.set_postfix(refused=0, refresh=False)
        counting = ReplyBar(inner)
        try:
            yield counting
        finally:
            # Replies of the last `_PACE` seconds are not drawn yet.
            counting.show()
