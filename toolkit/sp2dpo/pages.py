"""What is to be asked, read from a store a page at a time, so that memory does not grow with it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from sp2dpo.backlog import Heard, Job, Wanted
from sp2dpo.store import Store

_PAGE = 200
"""Pairs at a time."""
Numbered = TypeVar("Numbered", Job, Heard)


class Pages:
    """What is still to be asked, read a page at a time on a connection of its own."""

    def __init__(self, reader: Store, thread: ThreadPoolExecutor) -> None:
        self._reader = reader
        self._thread = thread

    def jobs(self, wanted: Wanted) -> AsyncIterator[Job]:
        """What is missing of a teacher, pair by pair."""
        return self._all(lambda after: self._reader.backlog.page(wanted, after=after, limit=_PAGE))

    def heard(self, *, settled: bool) -> AsyncIterator[Heard]:
        """What was said of the pairs, with or without those that are settled."""
        backlog = self._reader.backlog
        return self._all(lambda after: backlog.heard(settled=settled, after=after, limit=_PAGE))

    async def _all(self, page_after: Callable[[int], list[Numbered]]) -> AsyncIterator[Numbered]:
        """The items of all pages; the next page is read ahead."""
        run = asyncio.get_running_loop().run_in_executor
        page = run(self._thread, page_after, 0)
        while items := await page:
            page = run(self._thread, page_after, items[-1].number)
            for item in items:
                yield item
