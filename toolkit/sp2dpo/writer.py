"""Replies on their way to the disk: committed as soon as it takes them, and none left behind."""

import asyncio
from concurrent.futures import Future, ThreadPoolExecutor

from sp2dpo.backlog import Settled
from sp2dpo.entries import Entry
from sp2dpo.store import Store


class Writer:
    """Commits replies in a thread of its own; the queue before it is bounded."""

    def __init__(self, store: Store, thread: ThreadPoolExecutor) -> None:
        self._store = store
        self._thread = thread
        self._arrived: asyncio.Queue[Entry | Settled | asyncio.Event | None] = asyncio.Queue(2000)
        self._commit: Future[None] | None = None

    async def put(self, item: Entry | Settled | None) -> None:
        """Takes a reply, or a pair that needs no more; None says that nothing more will come."""
        await self._arrived.put(item)

    async def sync(self) -> None:
        """Waits until everything that was put before is on the disk."""
        done = asyncio.Event()
        await self._arrived.put(done)
        await done.wait()

    async def write(self) -> None:
        """Commits what has arrived, again and again; while one commit runs the next gathers."""
        more = True
        while more:
            batch = [await self._arrived.get(), *self._drained()]
            more = None not in batch
            self._submit(batch)
            if self._commit:
                await asyncio.shield(asyncio.wrap_future(self._commit))
            for item in batch:
                if isinstance(item, asyncio.Event):
                    item.set()

    def flush(self) -> None:
        """Commits what is left, however the run ended; a commit that failed is an error here."""
        if self._commit:
            self._commit.result()
        self._submit(self._drained())
        if self._commit:
            self._commit.result()

    def _submit(self, batch: list[Entry | Settled | asyncio.Event | None]) -> None:
        entries = [item for item in batch if isinstance(item, Entry)]
        settled = [item for item in batch if isinstance(item, Settled)]
        if entries or settled:
            self._commit = self._thread.submit(self._store.add, entries, settled)

    def _drained(self) -> list[Entry | Settled | asyncio.Event | None]:
        return [self._arrived.get_nowait() for _ in range(self._arrived.qsize())]
