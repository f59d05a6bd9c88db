"""Asking a panel about all pairs of a store, so that it can be stopped and gone on with.

Every reply is committed as soon as the disk takes it; a second run asks only what is missing.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
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
from sp2dpo.writer import Writer

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

    def wanted(self, again: bool) -> int:
        """Requests to be made; those refused before count if they are asked again."""
        return self.all - self.kept if again else self.pending


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
    store: Store,
    panel: Panel,
    *,
    patience: float,
    again: bool,
    progress: Callable[[Entry], object],
) -> None:
    """Asks every teacher of a panel what the store is missing, all teachers at once.

    Args:
        store: holds the pairs, and takes the replies.
        panel: whom to ask what; the store adopts it once every teacher has been found.
        patience: seconds for which a request is tried again while its server is away.
        again: whether to ask once more where a reply was refused.
        progress: called with every reply.

    Raises:
        TeacherError: a teacher cannot be asked, stayed away, or says nothing that can be read;
            what came until then is stored.
        ValueError: the panel contradicts the store.
        sqlite3.Error: the disk does not take a reply.
    """
    for teacher in panel.teachers:
        teacher.api_key()
    with (
        ThreadPoolExecutor(1) as writing,
        ThreadPoolExecutor(1) as reading,
        Store(store.path) as reader,
    ):
        run = _Run(panel, Writer(store, writing), progress, patience=patience, again=again)
        pages = _Pages(reader, reading, panel.variants, again=again)
        try:
            await run.ask_panel(store, pages)
        except BaseExceptionGroup as failures:
            raise _first(failures) from None
        finally:
            run.writer.flush()


class _Pages:
    """What is still to be asked, read a page at a time on a connection of its own."""

    def __init__(
        self, reader: Store, thread: ThreadPoolExecutor, variants: Sequence[str], *, again: bool
    ) -> None:
        self._reader = reader
        self._thread = thread
        self._variants = variants
        self._again = again

    async def missing(self, teacher: str) -> AsyncIterator[tuple[Pair, Key]]:
        """The variants of a pair follow each other, so that the server's cache serves them."""
        loop, after = asyncio.get_running_loop(), 0
        while page := await loop.run_in_executor(self._thread, self._page, teacher, after):
            after = page[-1][0]
            for _, pair, variants in page:
                for variant, attempt in variants.items():
                    yield (
                        pair,
                        Key(pair_id=pair.id, teacher=teacher, variant=variant, attempt=attempt),
                    )

    def _page(self, teacher: str, after: int) -> list[tuple[int, Pair, dict[str, int]]]:
        return self._reader.pending(
            teacher, self._variants, again=self._again, after=after, limit=_PAGE
        )


class _Run:
    """One run: what its tasks share."""

    def __init__(
        self,
        panel: Panel,
        writer: Writer,
        progress: Callable[[Entry], object],
        *,
        patience: float,
        again: bool,
    ) -> None:
        self.writer = writer
        self._panel = panel
        self._again = again
        self._progress = progress
        self._retry = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(Unavailable),
            wait=tenacity.wait_exponential(multiplier=0.5, max=30) + tenacity.wait_random(0, 1),
            stop=tenacity.stop_after_delay(patience),
            reraise=True,
        )

    async def ask_panel(self, store: Store, pages: _Pages) -> None:
        """Asks all teachers of which something is missing."""
        waiting = {one.teacher: one for one in tally(store, self._panel) if one.wanted(self._again)}
        teachers = [teacher for teacher in self._panel.teachers if teacher.name in waiting]
        async with open_session() as session, asyncio.TaskGroup() as group:
            for teacher in teachers:
                await check_listed(session, teacher)
            store.adopt(self._panel)
            group.create_task(self.writer.write())
            async with asyncio.TaskGroup() as asking:
                for teacher in teachers:
                    kept = waiting[teacher.name].kept
                    asking.create_task(self._ask_all(session, teacher, pages, kept))
            await self.writer.put(None)

    async def _ask_all(
        self, session: aiohttp.ClientSession, teacher: Teacher, pages: _Pages, kept: int
    ) -> None:
        """Asks one teacher everything that is missing, `max_in_flight` requests at a time."""
        slots = asyncio.Semaphore(teacher.max_in_flight)
        outcomes = Counter({"kept": kept})
        async with asyncio.TaskGroup() as group:
            async for pair, key in pages.missing(teacher.name):
                await slots.acquire()
                _stop_if_hopeless(teacher, outcomes)
                task = group.create_task(self._one(session, teacher, pair, key, outcomes))
                task.add_done_callback(lambda _: slots.release())

    async def _one(
        self,
        session: aiohttp.ClientSession,
        teacher: Teacher,
        pair: Pair,
        key: Key,
        outcomes: Counter[str],
    ) -> None:
        rubric = self._panel.rubric
        messages = rubric.messages(pair, key.variant)
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
        await self.writer.put(entry)


def _judged(key: Key, reply: Reply, rubric: Rubric) -> Entry:
    annotation, reason, detail = None, None, None
    try:
        if reply.finish_reason == "length":
            raise Refusal("length", "the reply reached the token limit")
        if reply.finish_reason != "stop":
            raise Refusal("unfinished", f"the server says {reply.finish_reason!r}")
        annotation = parse(reply.text, rubric)
    except Refusal as refusal:
        reason, detail = refusal.reason, refusal.detail
    return Entry(
        key=key,
        annotation=annotation,
        reason=reason,
        detail=detail,
        raw=reply.text,
        reply=reply,
        arrived=time.time(),
    )


def _declined(key: Key, error: Declined) -> Entry:
    return Entry(
        key=key,
        annotation=None,
        reason=f"http-{error.status}",
        detail=str(error),
        raw="",
        reply=None,
        arrived=time.time(),
    )


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
