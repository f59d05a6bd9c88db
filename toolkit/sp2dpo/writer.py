"""Replies on their way to the disk: committed as soon as it takes them, and none left behind."""

import asyncio
from concurrent.futures import Future, ThreadPoolExecutor

from sp2dpo.store import Entry, Store


class Writer:
    """Commits replies in a thread of its own; the queue before it is bounded."""

    def __init__(self, store: Store, thread: ThreadPoolExecutor) -> None:
        self._store = store
        self._thread = thread
        self._arrived: asyncio.Queue[Entry | None] = asyncio.Queue(maxsize=2000)
        self._commit: Future[None] | None = None

    async def put(self, entry: Entry | None) -> None:
        """Takes a reply; None says that no more will come."""
        await self._arrived.put(entry)

    async def write(self) -> None:
        """Commits what has arrived, again and again; while one commit runs the next gathers."""
        more = True
        while more:
            batch = [await self._arrived.get(), *self._drained()]
            more = None not in batch
            self._submit(batch)
            if self._commit:
                await asyncio.shield(asyncio.wrap_future(self._commit))

    def flush(self) -> None:
        """Commits what is left, however the run ended; a commit that failed is an error here."""
        if self._commit:
            self._commit.result()
        self._submit(self._drained())
        if self._commit:
            self._commit.result()

    def _submit(self, batch: list[Entry | None]) -> None:
        entries = [entry for entry in batch if entry is not None]
        if entries:
            self._commit = self._thread.submit(self._store.add, entries)

    def _drained(self) -> list[Entry | None]:
        return [self._arrived.get_nowait() for _ in range(self._arrived.qsize())]
