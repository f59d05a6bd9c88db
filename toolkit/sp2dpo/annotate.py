"""Asking a panel about all pairs of a store, so that it can be stopped and gone on with.

Every reply is committed as soon as the disk takes it; a second run asks only what is missing.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import aiohttp
import tenacity

from sp2dpo.annotations import Key, Refusal, parse
from sp2dpo.pairs import Pair
from sp2dpo.panel import Panel, Teacher
from sp2dpo.rubric import Rubric
from sp2dpo.store import Entry, Store
from sp2dpo.teachers import (
    Declined,
    Reply,
    TeacherError,
    Unavailable,
    ask,
    check_listed,
    open_session,
)

_PAGE = 200
"""Pairs read from the store at a time."""
_HOPELESS = 20
"""A teacher that has sent so many replies, and none that can be read, is not asked on."""


@dataclass(frozen=True, kw_only=True)
class Tally:
    """Where a teacher stands: `kept + refused + pending == all`."""

    teacher: str
    all: int
    kept: int
    refused: dict[str, int]

    @property
    def pending(self) -> int:
        """Requests that have no reply yet."""
        return self.all - self.kept - sum(self.refused.values())


def tally(store: Store, panel: Panel) -> list[Tally]:
    """What the store holds of what the panel asks, by teacher."""
    source = store.corpus.source()
    wanted = (source.pairs if source else 0) * len(panel.variants)
    tallies = []
    for teacher in panel.teachers:
        outcomes = store.counts(teacher.name, panel.variants)
        kept = outcomes.pop("kept", 0)
        tallies.append(Tally(teacher=teacher.name, all=wanted, kept=kept, refused=outcomes))
    return tallies


async def annotate(
    store: Store, panel: Panel, *, patience: float, progress: Callable[[Entry], object]
) -> None:
    """Asks every teacher of a panel what the store is missing, all teachers at once.

    Args:
        store: holds the pairs, and takes the replies.
        panel: whom to ask what; the store adopts it.
        patience: seconds for which a request is tried again while its server is away.
        progress: called with every reply.

    Raises:
        TeacherError: a teacher cannot be asked, stayed away, or says nothing that can be read;
            what came until then is stored.
        ValueError: the panel contradicts the store.
        sqlite3.Error: the disk does not take a reply.
    """
    store.adopt(panel)
    waiting = {tally.teacher: tally for tally in tally(store, panel) if tally.pending}
    teachers = [teacher for teacher in panel.teachers if teacher.name in waiting]
    for teacher in teachers:
        teacher.api_key()
    with ThreadPoolExecutor(1, "store") as thread:
        run = _Run(store, panel, thread, patience, progress)
        try:
            async with open_session() as session, asyncio.TaskGroup() as group:
                for teacher in teachers:
                    await check_listed(session, teacher)
                writer = group.create_task(run.write())
                async with asyncio.TaskGroup() as asking:
                    for teacher in teachers:
                        asking.create_task(run.ask_all(session, teacher, waiting[teacher.name]))
                writer.cancel()
        except BaseExceptionGroup as failures:
            raise _first(failures) from None
        finally:
            run.flush()


class _Run:
    """One run: what its tasks share. The store is touched by one thread alone."""

    def __init__(
        self,
        store: Store,
        panel: Panel,
        thread: ThreadPoolExecutor,
        patience: float,
        progress: Callable[[Entry], object],
    ) -> None:
        self._store = store
        self._panel = panel
        self._thread = thread
        self._progress = progress
        self._arrived: asyncio.Queue[Entry] = asyncio.Queue(maxsize=2000)
        self._retry = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(Unavailable),
            wait=tenacity.wait_exponential_jitter(initial=0.5, max=30, jitter=1),
            stop=tenacity.stop_after_delay(patience),
            reraise=True,
        )

    async def write(self) -> None:
        """Commits what has arrived, again and again; while one commit runs the next gathers."""
        loop = asyncio.get_running_loop()
        while True:
            batch = [await self._arrived.get(), *self._drained()]
            await asyncio.shield(loop.run_in_executor(self._thread, self._store.add, batch))

    def flush(self) -> None:
        """Commits what is left, however the run ended."""
        batch = self._drained()
        if batch:
            self._thread.submit(self._store.add, batch).result()

    def _drained(self) -> list[Entry]:
        return [self._arrived.get_nowait() for _ in range(self._arrived.qsize())]

    async def ask_all(self, session: aiohttp.ClientSession, teacher: Teacher, start: Tally) -> None:
        """Asks one teacher everything that is missing, `max_in_flight` requests at a time."""
        slots = asyncio.Semaphore(teacher.max_in_flight)
        outcomes = Counter({"kept": start.kept})
        async with asyncio.TaskGroup() as group:
            async for pair, variant in self._missing(teacher):
                await slots.acquire()
                _stop_if_hopeless(teacher, outcomes)
                task = group.create_task(self._one(session, teacher, pair, variant, outcomes))
                task.add_done_callback(lambda _: slots.release())

    async def _missing(self, teacher: Teacher) -> AsyncIterator[tuple[Pair, str]]:
        """The variants of a pair follow each other, so that the server's cache serves them."""
        loop, after = asyncio.get_running_loop(), 0
        while True:
            page = await loop.run_in_executor(
                self._thread,
                lambda seen: self._store.pending(
                    teacher.name, self._panel.variants, after=seen, limit=_PAGE
                ),
                after,
            )
            if not page:
                return
            after = page[-1][0]
            for _, pair, variants in page:
                for variant in variants:
                    yield pair, variant

    async def _one(
        self,
        session: aiohttp.ClientSession,
        teacher: Teacher,
        pair: Pair,
        variant: str,
        outcomes: Counter[str],
    ) -> None:
        rubric = self._panel.rubric
        key = Key(pair_id=pair.id, teacher=teacher.name, variant=variant)
        messages = rubric.messages(pair, variant)
        try:
            # A copy, because what a retrying object counts is its own: requests run side by side.
            retry = self._retry.copy()
            reply = await retry(ask, session, teacher, messages, rubric.schema())
        except Declined as error:
            entry = _declined(key, error)
        else:
            entry = _judged(key, reply, rubric)
        outcomes[entry.reason or "kept"] += 1
        self._progress(entry)
        await self._arrived.put(entry)


def _judged(key: Key, reply: Reply, rubric: Rubric) -> Entry:
    annotation, reason, detail = None, None, None
    try:
        if reply.finish_reason != "stop":
            raise Refusal(reply.finish_reason or "unfinished", "the model did not end by itself")
        annotation = parse(reply.text, rubric)
    except Refusal as refusal:
        reason, detail = refusal.reason, refusal.detail
    return Entry(
        key=key,
        annotation=annotation,
        reason=reason,
        detail=_storable(detail),
        raw=_storable(reply.text) or "",
        reply=reply,
        arrived=time.time(),
    )


def _declined(key: Key, error: Declined) -> Entry:
    return Entry(
        key=key,
        annotation=None,
        reason=f"http-{error.status}",
        detail=_storable(str(error)),
        raw="",
        reply=None,
        arrived=time.time(),
    )


def _storable(text: str | None) -> str | None:
    """The text with lone surrogates written as escapes: no file takes them as they are."""
    return text and text.encode("utf-8", "backslashreplace").decode()


def _stop_if_hopeless(teacher: Teacher, outcomes: Counter[str]) -> None:
    refused = Counter({reason: n for reason, n in outcomes.items() if reason != "kept"})
    if not outcomes["kept"] and refused.total() >= _HOPELESS:
        reasons = ", ".join(f"{reason} {count}" for reason, count in refused.most_common())
        raise TeacherError(
            f"teacher {teacher.name}: none of its first {refused.total()} replies can be read "
            f"({reasons}); does its server support response_format json_schema?"
        )


def _first(failures: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first failure itself, out of however many groups."""
    failure: BaseException = failures
    while isinstance(failure, BaseExceptionGroup):
        failure = failure.exceptions[0]
    return failure
