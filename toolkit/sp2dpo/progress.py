"""A bar of progress over a long annotation."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

from sp2dpo.store import Entry


class Bar:
    """A bar of replies with their rate, the refused ones, and the time left."""

    def __init__(self, bar: "tqdm[None]") -> None:
        self._bar = bar
        self._refused = 0

    def __call__(self, entry: Entry) -> None:
        """Counts a reply."""
        self._refused += entry.annotation is None
        self._bar.set_postfix(refused=self._refused, refresh=False)
        self._bar.update()


@contextmanager
def bar(total: int) -> Iterator[Bar]:
    """A bar over `total` requests; in a log, a line a minute."""
    pace = {} if sys.stderr.isatty() else {"mininterval": 60, "delay": 60, "ascii": True}
    with tqdm(total=total, unit=" replies", smoothing=0.05, **pace) as inner:
        inner.set_postfix(refused=0, refresh=False)
        yield Bar(inner)
