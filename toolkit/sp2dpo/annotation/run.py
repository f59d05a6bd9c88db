"""Asking a panel about all pairs of a store, so that it can be stopped and gone on with.

Every reply is committed as soon as the disk takes it; a second run asks only what is missing.
"""

import asyncio
import gc
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Container, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from sp2dpo.annotation.adaptive_run import AdaptiveRun
from sp2dpo.annotation.teacher import TeacherSession
from sp2dpo.annotation.writer import StorePages, Writer
from sp2dpo.inference.client import Client, EndpointError, open_session
from sp2dpo.inference.endpoint import Endpoint
from sp2dpo.inference.servers import Servers, start_servers
from sp2dpo.interrupts import first_failure, wait_unless_stopped
from sp2dpo.panel.panel import Panel
from sp2dpo.store.counts import count_replies
from sp2dpo.store.questions import QuestionPlan, SettledPair
from sp2dpo.store.records import ReplyRecord
from sp2dpo.store.store import Store

Ask = Callable[[list[TeacherSession]], Awaitable[None]]


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How a run behaves; none of it changes what a reply means.

    Attributes:
        patience: seconds for which a teacher may answer nothing before the run ends.
        again: whether to ask once more where a reply was refused.
        stop: set when the run is to end with what is in flight.
        progress: called with every reply, and whether it is the last to its key.
        spare: called with numbers of replies that an adaptive panel does without.
        say: called with lines for people: about servers that are started.
    """

    patience: float
    again: bool
    stop: asyncio.Event
    progress: Callable[[ReplyRecord, bool], object]
    spare: Callable[[int], object]
    say: Callable[[str], None]


async def annotate(store: Store, panel: Panel, terms: RunOptions) -> None:
    """Asks every teacher of a panel what the store is missing.

    Teachers whose servers are there are asked side by side, then those that are served by us, one
    after the other.

    Args:
        store: holds the pairs, and takes the replies.
        panel: whom to ask what; the store adopts it once the first teachers have been found.
        terms: how the run behaves.

    Raises:
        EndpointError: a teacher cannot be asked, stayed away, or says nothing that can be read;
            what came until then is stored.
        ServerDied: a server of ours cannot be started, or died too often.
        ValueError: the panel contradicts the store, or the terms the panel.
        sqlite3.Error: the disk does not take a reply.
    """
    for teacher in panel.teachers:
        teacher.api_key()
    if terms.again and panel.budget == "adaptive":
        raise ValueError("what was refused is asked again under `budget: full` only")
    with (
        _settled_heap(),
        ThreadPoolExecutor(1) as writing,
        Store(store.path) as reader,  # outlives its thread, which may be in the middle of a page
        ThreadPoolExecutor(1) as reading,
    ):
        writer = Writer(store, writing)
        run = _Run(store, panel, terms, writer, StorePages(reader, reading))
        try:
            await run.ask_panel()
        except BaseExceptionGroup as failures:
            raise first_failure(failures) from None
        finally:
            writer.flush()


@contextmanager
def _settled_heap() -> Iterator[None]:
    """Keeps the garbage collector from walking all imported modules again and again.

    Thousands of short-lived objects a second would make it; it took a tenth of the time.
    """
    thresholds = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, *thresholds[1:])
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()


class _Run:
    """One run: what its tasks share."""

    def __init__(
        self, store: Store, panel: Panel, terms: RunOptions, writer: Writer, pages: StorePages
    ) -> None:
        self._store = store
        self._panel = panel
        self._terms = terms
        self._writer = writer
        self._pages = pages
        tallies = count_replies(store, panel)
        self._missing = {one.teacher for one in tallies if one.requests_needed(terms.again)}
        self._kept = Counter({one.teacher: one.kept for one in tallies})
        self._taken = 0
        self._askings: dict[tuple[str, tuple[str, ...]], TeacherSession] = {}
        self._failure: BaseException | None = None

    async def ask_panel(self) -> None:
        """Asks all teachers of which something is missing."""
        async with open_session() as session, asyncio.TaskGroup() as group:
            self._session = session
            group.create_task(self._writer.write())
            if self._panel.budget == "adaptive":
                await self._ask_sparingly()
            else:
                await self._each_phase(self._missing, self._ask_all)
            await self._writer.put(None)
        if self._failure is not None:
            raise self._failure

    async def _ask_sparingly(self) -> None:
        """Some pairs in full; then every other one, for as long as the rule wants more."""
        sparing = AdaptiveRun(
            self._panel,
            pairs=self._store.questions.pair_count(),
            heard=self._pages.heard,
            stop=self._terms.stop,
        )

        async def calibrate(askings: list[TeacherSession]) -> None:
            await self._ask_all(askings, only=sparing.calibrates)

        async def spare(askings: list[TeacherSession]) -> None:
            named = {one.teacher.name: one for one in askings}
            try:
                await sparing.ask(named, self._take, self._settle)
            except* EndpointError as failures:
                self._fail(first_failure(failures))

        for calibrating, ask in ((True, calibrate), (False, spare)):
            if not calibrating:
                await sparing.learn()
                await spare([])  # what needs no asking at all is settled
                await self._writer.sync()
            while wanted := await sparing.wanted(calibrating=calibrating):
                before = self._taken
                await self._each_phase(wanted, ask)
                await self._writer.sync()
                if self._terms.stop.is_set():
                    return
                if self._taken == before:
                    raise ValueError(f"{self._store.path}: nothing more can be asked; a defect")

    async def _each_phase(self, wanted: Container[str], ask: Ask) -> None:
        """Asks the wanted teachers, those whose servers we start one after the other."""
        for teachers in phases(self._panel.teachers):
            waiting = [teacher for teacher in teachers if teacher.name in wanted]
            if waiting and not self._terms.stop.is_set():
                await self._phase(waiting, ask)

    async def _phase(self, teachers: Sequence[Endpoint], ask: Ask) -> None:
        """Asks those teachers side by side, their servers started where that is ours to do."""
        async with AsyncExitStack() as stack:
            found = await wait_unless_stopped(self._terms.stop, self._find(stack, teachers))
            if found is None:
                return
            askings, servers = found
            await self._writer.sync()  # the store's connection is its own while nothing is written
            self._store.record_panel(self._panel)
            async with asyncio.TaskGroup() as group:
                watching = [group.create_task(one.watch()) for one in servers]
                await ask(askings)
                for watch in watching:
                    watch.cancel()

    async def _find(
        self, stack: AsyncExitStack, teachers: Sequence[Endpoint]
    ) -> tuple[list[TeacherSession], list[Servers]]:
        """Teachers that are there and serve their models; what was started ends with the stack."""
        askings, started = [], []
        for teacher in teachers:
            urls, excused = teacher.base_urls, _never
            if teacher.serve is not None:
                servers = await stack.enter_async_context(
                    start_servers(
                        teacher.name,
                        teacher.model,
                        teacher.revision,
                        teacher.serve,
                        log=server_log_path(self._store.path, teacher.name),
                        say=self._terms.say,
                        hidden_variables=[
                            one.api_key_env for one in self._panel.teachers if one.api_key_env
                        ],
                    )
                )
                started.append(servers)
                urls, excused = servers.urls, servers.are_starting
            asking = self._askings.get((teacher.name, urls))
            if asking is None:
                asking = TeacherSession(
                    Client(self._session, teacher, self._panel.rubric.schema()),
                    self._panel.rubric,
                    urls,
                    patience=self._terms.patience,
                    stop=self._terms.stop,
                    kept=self._kept[teacher.name],
                    excused=excused,
                )
                for line in await asking.check():
                    self._terms.say(line)
                self._askings[teacher.name, urls] = asking
            askings.append(asking)
        return askings, started

    async def _ask_all(
        self, askings: list[TeacherSession], *, only: Callable[[str], bool] = lambda _: True
    ) -> None:
        """Asks teachers everything that is missing about all pairs, or about some only."""
        async with asyncio.TaskGroup() as group:
            for asking in askings:
                group.create_task(self._ask_one(asking, only))

    async def _ask_one(self, asking: TeacherSession, only: Callable[[str], bool]) -> None:
        teacher = asking.teacher
        wanted = QuestionPlan.from_panel(self._panel, teacher, again=self._terms.again)
        begun = asyncio.Semaphore(asking.most)  # so many pairs at a time
        try:
            async with asyncio.TaskGroup() as group:
                async for job in self._pages.jobs(wanted):
                    if not only(job.pair.id):
                        continue
                    await begun.acquire()
                    if self._terms.stop.is_set():
                        break
                    task = group.create_task(asking.job(job, self._take))
                    task.add_done_callback(lambda _: begun.release())
        except* EndpointError as failures:
            self._fail(first_failure(failures))

    def _fail(self, failure: BaseException) -> None:
        """Ends the run; what the other teachers have been asked comes home before."""
        self._failure = self._failure or failure
        self._terms.stop.set()

    async def _take(self, entry: ReplyRecord, final: bool) -> None:
        self._taken += 1
        self._kept[entry.key.teacher] += entry.annotation is not None
        self._terms.progress(entry, final)
        await self._writer.put(entry)

    async def _settle(self, settled: SettledPair, spared: int) -> None:
        self._terms.spare(spared)
        await self._writer.put(settled)


def _never() -> bool:
    return False


def phases(teachers: Sequence[Endpoint]) -> list[list[Endpoint]]:
    """Who is asked side by side: all whose servers are there, then each that we serve, alone."""
    there = [teacher for teacher in teachers if teacher.serve is None]
    served = [[teacher] for teacher in teachers if teacher.serve is not None]
    return [there, *served] if there else served


def server_log_path(store: Path, teacher: str) -> Path:
    """Where the log of a server that we start for a teacher is kept: beside the store."""
    return store.with_name(f"{store.name}.{re.sub(r'[^A-Za-z0-9_.-]', '_', teacher)}.log")
