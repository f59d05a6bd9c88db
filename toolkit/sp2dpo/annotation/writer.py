"""Read pending questions from a store, and commit replies to it, in threads of their own."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from sp2dpo.interrupts import first_failure
from sp2dpo.store.questions import Job, PairReplies, QuestionPlan, SettledPair
from sp2dpo.store.records import ReplyRecord
from sp2dpo.store.store import Store

_PAGE = 200
"""Pairs read at a time."""
Numbered = TypeVar("Numbered", Job, PairReplies)


def pending_jobs(store: Store, plan: QuestionPlan) -> Iterator[Job]:
    """Yield the pending questions to a teacher, one job per pair, reading a page at a time."""
    after = 0
    while jobs := store.questions.next_jobs(plan, after=after, limit=_PAGE):
        yield from jobs
        after = jobs[-1].number


class StorePages:
    """Reads pending questions page by page, on a second connection to the store."""

    def __init__(self, reader: Store, thread: ThreadPoolExecutor) -> None:
        self._reader = reader
        self._thread = thread

    def jobs(self, plan: QuestionPlan) -> AsyncIterator[Job]:
        """Yield the pending questions to a teacher, one job per pair."""
        return self._all(
            lambda after: self._reader.questions.next_jobs(plan, after=after, limit=_PAGE)
        )

    def replies(self, *, settled: bool) -> AsyncIterator[PairReplies]:
        """Yield the pairs with their replies, with or without settled pairs."""
        backlog = self._reader.questions
        return self._all(
            lambda after: backlog.replied_pairs(settled=settled, after=after, limit=_PAGE)
        )

    async def _all(self, page_after: Callable[[int], list[Numbered]]) -> AsyncIterator[Numbered]:
        """Yield the items of all pages, reading one page ahead."""
        run = asyncio.get_running_loop().run_in_executor
        page = run(self._thread, page_after, 0)
        while items := await page:
            page = run(self._thread, page_after, items[-1].number)
            for item in items:
                yield item


class Writer:
    """Commits replies from a bounded queue, in a thread."""

    def __init__(self, store: Store, thread: ThreadPoolExecutor) -> None:
        self._store = store
        self._thread = thread
        self._arrived: asyncio.Queue[ReplyRecord | SettledPair | asyncio.Event | None] = (
            # A full queue makes the senders wait, so memory stays bounded if the disk is slow.
            asyncio.Queue(2000)
        )
        self._commit: Future[None] | None = None

    async def put(self, item: ReplyRecord | SettledPair | None) -> None:
        """Queue a reply or a settled pair; None ends `write`."""
        await self._arrived.put(item)

    async def sync(self) -> None:
        """Wait until everything queued so far is on disk."""
        done = asyncio.Event()
        await self._arrived.put(done)
        await done.wait()

    async def write(self) -> None:
        """Commit queued items until None arrives; items queue up while a commit runs."""
        more = True
        while more:
            # All that has arrived shares one commit, because each waits for a sync of the disk.
            batch = [await self._arrived.get(), *self._take_queued()]
            more = None not in batch
            self._submit(batch)
            if self._commit:
                # A cancelled run must not cancel a commit that waits for its thread.
                await asyncio.shield(asyncio.wrap_future(self._commit))
            for item in batch:
                if isinstance(item, asyncio.Event):
                    item.set()

    def flush(self) -> None:
        """Commit what is left in the queue. Raises the error of a commit that failed."""
        # A cancelled `write` leaves its commit running, and its error must not be lost.
        if self._commit:
            self._commit.result()
        self._submit(self._take_queued())
        if self._commit:
            self._commit.result()

    def _submit(self, batch: list[ReplyRecord | SettledPair | asyncio.Event | None]) -> None:
        records = [item for item in batch if isinstance(item, ReplyRecord)]
        settled = [item for item in batch if isinstance(item, SettledPair)]
        if records or settled:
            self._commit = self._thread.submit(self._store.add_replies, records, settled)

    def _take_queued(self) -> list[ReplyRecord | SettledPair | asyncio.Event | None]:
        return [self._arrived.get_nowait() for _ in range(self._arrived.qsize())]


@contextmanager
def open_writer(store: Store) -> Iterator[tuple[Writer, StorePages]]:
    """Open the writer and the reader of a run; what is still queued is committed at the end.

    A group of exceptions from the block is replaced by its first exception.
    """
    with (
        # One thread each, so that commits keep their order and no connection is used twice at once.
        ThreadPoolExecutor(1) as writing,
        Store(store.path) as reader,  # outlives its thread, which may be in the middle of a page
        ThreadPoolExecutor(1) as reading,
    ):
        writer = Writer(store, writing)
        try:
            yield writer, StorePages(reader, reading)
        except BaseExceptionGroup as failures:
            raise first_failure(failures) from None
        finally:
            writer.flush()
