"""Ask a panel from this process, which starts the servers of teachers with `serve:`.

Every reply is committed to the store as soon as the disk accepts it.
"""

import asyncio
import gc
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Container, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from sp2dpo.annotation.adaptive_run import AdaptiveRun
from sp2dpo.annotation.teacher import TeacherSession
from sp2dpo.annotation.writer import StorePages, Writer, open_writer
from sp2dpo.inference.client import Client, EndpointError, open_session
from sp2dpo.inference.endpoint import Endpoint
from sp2dpo.inference.keys import KeyUse
from sp2dpo.inference.secrets import Secrets
from sp2dpo.inference.servers import Servers, open_servers
from sp2dpo.interrupts import first_failure, wait_unless_stopped
from sp2dpo.panel.panel import Panel
from sp2dpo.store.counts import count_replies
from sp2dpo.store.questions import QuestionPlan, SettledPair
from sp2dpo.store.records import ReplyRecord
from sp2dpo.store.store import Store

Ask = Callable[[list[TeacherSession]], Awaitable[None]]


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How an engine runs; nothing here changes what a reply means.

    Attributes:
        patience: Seconds without any reply from a teacher after which the run ends.
        again: Request refused replies once more.
        stop: Set when no more requests should be sent; in-flight requests finish.
        progress: Called with every reply, and whether it is the last one to its question.
        spare: Called with the number of replies that an adaptive panel decides to skip.
        say: Called with lines for people, such as the state of servers.
        send_keys: Allowed uses of API keys.
    """

    patience: float
    again: bool
    stop: asyncio.Event
    progress: Callable[[ReplyRecord, bool], object]
    spare: Callable[[int], object]
    say: Callable[[str], None]
    send_keys: frozenset[KeyUse] = frozenset()


async def annotate_locally(store: Store, panel: Panel, options: RunOptions) -> None:
    """Ask every teacher of a panel for the replies that a store is missing.

    Teachers at running servers are asked concurrently; then those with `serve:`, one after the
    other.

    Args:
        store: Contains the pairs and receives the replies.
        panel: Recorded in the store once the first teachers are reachable.
        options: How the run behaves.

    Raises:
        EndpointError: If a teacher cannot be reached, sends no reply for too long, or sends
            only unreadable replies. What was received before is stored.
        ServerDied: If a server cannot be started here, or died too often.
        ValueError: If the panel contradicts the store, or the options contradict the panel.
        sqlite3.Error: If a reply cannot be written.
    """
    # A missing key ends the run here, before anything is asked.
    for teacher in panel.teachers:
        teacher.api_key()
    if options.again and panel.budget == "adaptive":
        raise ValueError("refused replies are requested again under `budget: full` only")
    with _settled_heap(), open_writer(store) as (writer, pages):
        await _Run(store, panel, options, writer, pages).ask_panel()


@contextmanager
def _settled_heap() -> Iterator[None]:
    """Exclude existing objects from garbage collection, and collect less often.

    Thousands of short-lived objects per second trigger collections that traverse all imported
    modules; they took a tenth of the time.
    """
    thresholds = gc.get_threshold()
    # Otherwise garbage would be frozen as well.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, *thresholds[1:])
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()


class _Run:
    """State shared by the tasks of a run."""

    def __init__(
        self, store: Store, panel: Panel, options: RunOptions, writer: Writer, pages: StorePages
    ) -> None:
        self._store = store
        self._panel = panel
        self._options = options
        self._writer = writer
        self._pages = pages
        tallies = count_replies(store, panel)
        self._missing = {
            counts.teacher for counts in tallies if counts.requests_needed(options.again)
        }
        self._kept = Counter({counts.teacher: counts.kept for counts in tallies})
        self._received = 0
        # Kept over phases, with the limits that they learned. Servers at free ports get new ones.
        self._sessions: dict[tuple[str, tuple[str, ...]], TeacherSession] = {}
        # A session outlives the servers of a phase: those of the next one may have the same URLs.
        self._servers: dict[str, Servers] = {}
        self._failure: BaseException | None = None

    async def ask_panel(self) -> None:
        """Ask all teachers with missing replies."""
        async with open_session() as http, asyncio.TaskGroup() as group:
            self._http = http
            group.create_task(self._writer.write())
            if self._panel.budget == "adaptive":
                await self._ask_adaptively()
            else:
                await self._each_phase(self._missing, self._ask_all)
            await self._writer.put(None)
        # Raised last, so that the writer has committed the replies of the other teachers.
        if self._failure is not None:
            raise self._failure

    async def _ask_adaptively(self) -> None:
        """Ask the calibration pairs in full, then every other pair until the rule settles it."""
        adaptive = AdaptiveRun(
            self._panel,
            pairs=self._store.questions.pair_count(),
            read_replies=self._pages.replies,
            stop=self._options.stop,
        )

        async def calibrate(sessions: list[TeacherSession]) -> None:
            await self._ask_all(sessions, only=adaptive.calibrates)

        async def spare(sessions: list[TeacherSession]) -> None:
            by_name = {session.teacher.name: session for session in sessions}
            try:
                await adaptive.ask(by_name, self._take, self._settle)
            except* EndpointError as failures:
                self._fail(first_failure(failures))

        for calibrating, ask in ((True, calibrate), (False, spare)):
            if not calibrating:
                await adaptive.learn()
                await spare([])  # settle the pairs that need no more replies
                await self._writer.sync()
            # A reply may let a pair wait for a teacher whose phase is over, so begin again.
            while waiting := await adaptive.count_waiting(calibrating=calibrating):
                received_before = self._received
                await self._each_phase(waiting, ask)
                await self._writer.sync()
                if self._options.stop.is_set():
                    return
                # Otherwise this loop would never end.
                if self._received == received_before:
                    raise ValueError(
                        f"{self._store.path}: no question is left to ask; this is a bug"
                    )

    async def _each_phase(self, names: Container[str], ask: Ask) -> None:
        """Ask the named teachers phase by phase, see `phases`."""
        # Teachers with `serve:` follow each other: together, their models may not fit on the GPUs.
        for teachers in phases(self._panel.teachers):
            waiting = [teacher for teacher in teachers if teacher.name in names]
            if waiting and not self._options.stop.is_set():
                await self._phase(waiting, ask)

    async def _phase(self, teachers: Sequence[Endpoint], ask: Ask) -> None:
        """Ask these teachers concurrently, after starting the servers of those with `serve:`."""
        async with AsyncExitStack() as stack:
            # Starting a server may take half an hour; an interrupt must not wait for it.
            result = await wait_unless_stopped(
                self._options.stop, self._open_sessions(stack, teachers)
            )
            if result is None:
                return
            sessions, servers = result
            await self._writer.sync()  # so that this thread can use the writer's connection
            self._store.record_panel(self._panel)
            async with asyncio.TaskGroup() as group:
                watching = [group.create_task(server.watch()) for server in servers]
                await ask(sessions)
                # The group waits for all its tasks, and watch() never ends by itself.
                for watch in watching:
                    watch.cancel()

    async def _open_sessions(
        self, stack: AsyncExitStack, teachers: Sequence[Endpoint]
    ) -> tuple[list[TeacherSession], list[Servers]]:
        """Return checked sessions and their servers; started ones stop with the stack."""
        sessions, opened = [], []
        for teacher in teachers:
            servers = await stack.enter_async_context(
                open_servers(
                    teacher,
                    log=server_log_path(self._store.path, teacher.name),
                    say=self._options.say,
                    # A server runs code that is not ours: it must not see any teacher's API key.
                    hidden_variables=self._panel.api_key_variables,
                )
            )
            opened.append(servers)
            self._servers[teacher.name] = servers
            session = self._sessions.get((teacher.name, servers.urls))
            if session is None:
                session = TeacherSession(
                    Client(
                        self._http,
                        teacher,
                        self._panel.rubric.schema(),
                        send_keys=self._options.send_keys,
                        secrets=Secrets(self._panel.api_key_variables),
                        say=self._options.say,
                    ),
                    self._panel.rubric,
                    servers.urls,
                    patience=self._options.patience,
                    stop=self._options.stop,
                    kept_replies=self._kept[teacher.name],
                    is_starting=partial(self._are_starting, teacher.name),
                )
                for line in await session.check():
                    self._options.say(line)
                self._sessions[teacher.name, servers.urls] = session
            sessions.append(session)
        return sessions, opened

    def _are_starting(self, teacher: str) -> bool:
        return self._servers[teacher].are_starting()

    async def _ask_all(
        self, sessions: list[TeacherSession], *, only: Callable[[str], bool] = lambda _: True
    ) -> None:
        """Ask teachers for all missing replies, or only for those about some pairs."""
        async with asyncio.TaskGroup() as group:
            for session in sessions:
                group.create_task(self._ask_teacher(session, only))

    async def _ask_teacher(self, session: TeacherSession, only: Callable[[str], bool]) -> None:
        teacher = session.teacher
        plan = QuestionPlan.from_panel(self._panel, teacher, again=self._options.again)
        slots = asyncio.Semaphore(session.max_requests)  # bounds the number of tasks in memory
        try:
            async with asyncio.TaskGroup() as group:
                async for job in self._pages.jobs(plan):
                    if not only(job.pair.id):
                        continue
                    await slots.acquire()
                    if self._options.stop.is_set():
                        break
                    task = group.create_task(session.ask(job, self._take))
                    task.add_done_callback(lambda _: slots.release())
        except* EndpointError as failures:
            self._fail(first_failure(failures))

    def _fail(self, failure: BaseException) -> None:
        """End the run after the in-flight requests to other teachers."""
        self._failure = self._failure or failure
        self._options.stop.set()

    async def _take(self, record: ReplyRecord, final: bool) -> None:
        self._received += 1
        # A session of a later phase must not give up on a teacher whose replies could be read.
        self._kept[record.key.teacher] += record.annotation is not None
        self._options.progress(record, final)
        await self._writer.put(record)

    async def _settle(self, settled: SettledPair, spared: int) -> None:
        self._options.spare(spared)
        await self._writer.put(settled)


def phases(teachers: Sequence[Endpoint]) -> list[list[Endpoint]]:
    """Return the groups to ask concurrently: teachers at running servers, then each other alone."""
    running = [teacher for teacher in teachers if teacher.serve is None]
    served = [[teacher] for teacher in teachers if teacher.serve is not None]
    return [running, *served] if running else served


def server_log_path(store: Path, teacher: str) -> Path:
    """Return the log file, next to the store, of a server that is started for a teacher."""
    return store.with_name(f"{store.name}.{re.sub(r'[^A-Za-z0-9_.-]', '_', teacher)}.log")
