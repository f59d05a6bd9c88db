"""Scan the texts of a data set: one scan at a time, with the results of recent ones remembered.

A scan reads all texts, so a few visitors could otherwise keep the server from everything else.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np

from errors import NotYet

MAX_WAIT = 5.0
"""Seconds that a request may wait for other scans, as far as the last one tells; it occupies one of
the server's threads."""
MAX_REMEMBERED_BYTES, MAX_REMEMBERED = 8_000_000, 200


class Searches:
    """The scans of one data set."""

    def __init__(self, count: int, *, first_seconds: float) -> None:
        """Create it without results.

        Args:
            count: Number of pairs.
            first_seconds: Estimated duration of the first scan.
        """
        self._count, self._seconds, self._waiting = count, first_seconds, 0
        self._state, self._scanning = threading.Lock(), threading.Lock()
        # One bit for each pair.
        self._results: OrderedDict[tuple[str, str], Any] = OrderedDict()
        self._most = max(1, min(MAX_REMEMBERED, MAX_REMEMBERED_BYTES // (count // 8 + 1)))

    def run(self, key: tuple[str, str], scan: Callable[[], Any]) -> Any:
        """Return the result of a scan as flags, one for each pair.

        Args:
            key: What is searched for.
            scan: Returns an Arrow column of yes and no.

        Raises:
            NotYet: Too many other scans wait.
        """
        with self._state:
            if key in self._results:
                return self._recall(key)
            if self._waiting * self._seconds > MAX_WAIT:
                raise NotYet("other visitors are searching: ask again in a few seconds")
            self._waiting += 1
        try:
            with self._scanning:
                # Another request may have searched for the same meanwhile.
                with self._state:
                    if key in self._results:
                        return self._recall(key)
                started = time.monotonic()
                flags = scan().to_numpy(zero_copy_only=False).astype(bool)
                with self._state:
                    self._seconds = time.monotonic() - started
                    self._results[key] = np.packbits(flags)
                    while len(self._results) > self._most:
                        self._results.popitem(last=False)
                return flags
        finally:
            with self._state:
                self._waiting -= 1

    def _recall(self, key: tuple[str, str]) -> Any:
        self._results.move_to_end(key)
        return np.unpackbits(self._results[key], count=self._count).astype(bool)
