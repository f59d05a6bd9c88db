"""Open data sets: the one of this Space, and public ones within limits.

The owner of the Space names its own data set, which may be a folder or private, and is read with
the Space's token. A data set that a visitor names must be a public repo on the Hub, is read without
a token, and must be within `Limits`. A visitor's name is never used as a path.

No request waits until a data set is open: it is told to ask again.
"""

import os
import re
import tempfile
import threading
import time
from collections import OrderedDict
from pathlib import Path

from dataset import Dataset
from errors import NotYet, UnusableDataset
from opening import Job, Limits, open_dataset

# Owner and repo begin with a word character, so neither can be `..` or begin with a slash.
NAME = re.compile(r"[\w][\w.-]{0,95}/[\w][\w.-]{0,95}(@[\w][\w./-]{0,119})?")
_OWN = ""
"""Key of the Space's own data set."""
_MAX_FAILURES = 200
"""Number of failures that are remembered."""


class Library:
    """The data sets that are open or being opened, and the rules for opening more."""

    def __init__(self, own: str, demo: Path, limits: Limits | None = None) -> None:
        """Create a library without open data sets.

        Args:
            own: The Space's own data set, a folder or `org/name@revision`; empty for the demo.
            demo: Folder of the demo.
            limits: Limits for data sets that visitors name.
        """
        self._own, self._demo, self._limits = own, demo, limits or Limits()
        self._lock = threading.Lock()
        self._open_datasets: OrderedDict[str, Dataset] = OrderedDict()
        self._opening: set[str] = set()
        self._waiting: OrderedDict[str, None] = OrderedDict()
        self._failures: OrderedDict[str, tuple[float, UnusableDataset]] = OrderedDict()

    def get(self, name: str) -> Dataset:
        """Return the data set with a name, the Space's own for an empty name, without waiting.

        Raises:
            NotYet: It is being opened, or waits to be; the caller may ask again.
            UnusableDataset: If the data set cannot be opened; visitors see the message.
        """
        name = name.strip()
        if name and name != self._own and not NAME.fullmatch(name):
            raise UnusableDataset("name a data set on the Hub: org/name, or org/name@revision")
        # The Space's own data set has one key, and is exempt from the limits for visitors.
        key = _OWN if name == self._own else name
        with self._lock:
            if key in self._open_datasets:
                self._open_datasets.move_to_end(key)
                return self._open_datasets[key]
            self._check_failure(key)
            if key not in self._opening and key not in self._waiting:
                self._enqueue(key)
            raise NotYet(f"{name or 'the data set'} is being opened: ask again in a few seconds")

    def wait(self, name: str) -> Dataset:
        """Return the data set with a name as soon as it is open; for programs of one user.

        Raises:
            UnusableDataset: If the data set cannot be opened.
        """
        while True:
            try:
                return self.get(name)
            except NotYet:
                time.sleep(0.05)

    def _check_failure(self, key: str) -> None:
        """Raise the failure to open a data set again, unless it is old."""
        if key in self._failures:
            at, error = self._failures[key]
            if time.monotonic() < at + self._limits.retry_seconds:
                # Another object: a raised one grows by a traceback each time.
                raise UnusableDataset(str(error))
            del self._failures[key]

    def _enqueue(self, key: str) -> None:
        if key == _OWN:  # has a place of its own: no visitor can delay it
            self._start(key)
            return
        if len(self._opening - {_OWN}) < self._limits.at_once:
            self._start(key)
            return
        if len(self._waiting) >= self._limits.waiting:
            raise NotYet(
                f"{key}: {len(self._waiting)} data sets wait to be opened: ask again in a minute"
            )
        self._waiting[key] = None

    def _start(self, key: str) -> None:
        # A daemon thread, so that a download does not delay the end of the server.
        thread = threading.Thread(target=self._work, args=(key,), daemon=True)
        self._opening.add(key)
        try:
            thread.start()
        except RuntimeError as error:  # no more threads
            self._opening.discard(key)
            raise NotYet("this Space is too busy to open a data set: ask again later") from error

    def _work(self, key: str) -> None:
        """Open a data set, then those that wait."""
        result: Dataset | Exception = UnusableDataset("it cannot be opened: see the log")
        try:
            result = self._open(key)
        except (UnusableDataset, OSError) as error:  # OSError: no more memory, disk or processes
            result = error
        finally:
            # Whatever happened: its place would be occupied for ever.
            self._finish(key, result)

    def _finish(self, key: str, result: Dataset | Exception) -> None:
        with self._lock:
            self._opening.discard(key)
            if isinstance(result, Exception):
                reason = str(result)
                if not isinstance(result, UnusableDataset):
                    reason = "this Space is too busy to open a data set: try again later"
                self._failures[key] = (time.monotonic(), UnusableDataset(reason))
                while len(self._failures) > _MAX_FAILURES:
                    self._failures.popitem(last=False)
            else:
                self._open_datasets[key] = result
                visitors = [name for name in self._open_datasets if name != _OWN]
                for name in visitors[: max(0, len(visitors) - self._limits.open)]:
                    del self._open_datasets[name]
            if key != _OWN and self._waiting:
                self._start(self._waiting.popitem(last=False)[0])

    def _open(self, key: str) -> Dataset:
        # Memory-mapped files stay readable after their deletion; the disk space is freed as soon as
        # the mapping is closed.
        with tempfile.TemporaryDirectory(prefix="inspector-", ignore_cleanup_errors=True) as name:
            source, shown, is_folder = key or self._own, key.partition("@")[0], False
            if key == _OWN:
                folder = Path(self._own) if self._own else self._demo
                is_folder = folder.is_dir()
                if not is_folder and not NAME.fullmatch(self._own):
                    raise UnusableDataset(
                        f"{self._own}: neither a folder nor a data set on the Hub"
                    )
                if is_folder:
                    source = str(folder.resolve())
                    shown = folder.resolve().name if self._own else "the demo corpus"
                else:
                    shown = self._own.partition("@")[0]
            limits = None if key == _OWN else self._limits
            return open_dataset(
                Job(name=shown, source=source, is_folder=is_folder, scratch=name, limits=limits)
            )


def own_data_set() -> str:
    """Return the name of the Space's own data set, from the variable SP2DPO_DATA."""
    name = os.environ.get("SP2DPO_DATA", "")
    return name if Path(name).is_dir() else name.strip()
