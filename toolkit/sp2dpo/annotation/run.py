"""Ask a panel about every pair in a store. Safe to interrupt: a rerun asks for what is missing.

Every reply is committed to the store as soon as the disk accepts it.
"""

import asyncio
import gc
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Container, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, AsyncExitStack, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from sp2dpo.annotation.adaptive_run import AdaptiveRun
from sp2dpo.annotation.teacher import TeacherSession
from sp2dpo.annotation.writer import StorePages, Writer
from sp2dpo.inference.client import Client, EndpointError, open_session
from sp2dpo.inference.endpoint import Endpoint
from sp2dpo.inference.servers import Servers, start_servers
from sp2dpo.interrupts import first_failure, run_interruptible, wait_unless_stopped
from sp2dpo.pairs.sources import Source, open_source, read_rows
from sp2dpo.panel.panel import Panel, load_panel
from sp2dpo.store.corpus import Corpus
from sp2dpo.store.counts import ReplyCounts, count_replies
from sp2dpo.store.questions import QuestionPlan, SettledPair, Shard
from sp2dpo.store.records import ReplyRecord
from sp2dpo.store.store import Store, open_store_for_writing

Ask = Callable[[list[TeacherSession]], Awaitable[None]]
Progress = Callable[[int], AbstractContextManager[Callable[[int, int], object]]]
"""Open a progress bar over a number of replies. The function that the block receives is called with
the numbers of replies that were just finished and, of those, refused."""


@dataclass(frozen=True, kw_only=True)
class AnnotationResult:
    """The state of a store after a run, and what the run did.

    Attributes:
        teachers: Counts per teacher: kept + refused + spared + pending == all.
        shard: The share of the pairs that the store holds replies for; None for all pairs.
        received: Replies received in this run, including those that could not be read.
        retried: Replies of this run that could not be read and were requested again.
        seconds: Duration of the run.
    """

    teachers: tuple[ReplyCounts, ...]
    shard: Shard | None
    received: int
    retried: int
    seconds: float

    @property
    def kept(self) -> int:
        """Replies in the store that hold an annotation."""
        return sum(counts.kept for counts in self.teachers)

    @property
    def refused(self) -> dict[str, int]:
        """Refused replies in the store, by reason."""
        total: Counter[str] = Counter()
        for counts in self.teachers:
            total.update(counts.refused)
        return dict(total)

    @property
    def missing(self) -> int:
        """Replies that are still to be requested."""
        return sum(counts.pending for counts in self.teachers)


@contextmanager
def no_progress(total: int) -> Iterator[Callable[[int, int], object]]:
    """Show no progress."""
    yield lambda finished, refused: None


def ignore(_: object) -> None:
    """Do nothing: the default of callbacks."""


def annotate_pairs(
    pairs: Source | str | Path | None,
    panel: Panel | str | Path,
    store: Store | str | Path,
    *,
    retry_refused: bool = False,
    shard: Shard | str | None = None,
    patience: float = 900,
    engine: Literal["local", "ray"] = "local",
    ray_address: str | None = None,
    approve: Callable[[Endpoint], object] = ignore,
    progress: Progress = no_progress,
    report: Callable[[str], None] = ignore,
    on_source: Callable[[Corpus], object] = ignore,
    on_result: Callable[[AnnotationResult], object] = ignore,
) -> AnnotationResult:
    """Ask every teacher of a panel about every pair, and store the replies.

    A rerun asks only for what is missing. Works in a notebook, too: where an event loop is already
    running, the requests are made from a thread. SIGINT or SIGTERM let in-flight requests finish; a
    second signal cancels them.

    Args:
        pairs: File or Hub id of the pairs, see `open_source`; None if the store holds them.
        panel: Which teachers are asked what: a loaded panel or its YAML file.
        store: The store to write to: its file, created if it does not exist, or an open store.
        retry_refused: Request refused replies once more. Not with an adaptive panel.
        shard: Ask about one share of the pairs only: a `Shard`, or "I/N" with I from 0 to N-1.
        patience: Seconds without any reply from a teacher after which the run ends.
        engine: "local" sends the requests from this process, "ray" from all nodes of a Ray cluster.
        ray_address: Address of the Ray cluster; None for $RAY_ADDRESS or, if that is not set, a new
            cluster on this machine.
        approve: Called with each teacher whose servers would be started (`serve:`); an exception
            refuses. The default approves: the panel's command runs on this machine.
        progress: Opens a progress bar.
        report: Called with lines for people, such as the state of servers.
        on_source: Called once the pairs are in the store, before anything is asked.
        on_result: Called with the result, also when the run fails or is interrupted.

    Raises:
        ValueError: If the panel or the pairs are invalid or contradict the store, if another
            process writes to the store, if a teacher has no reply that could be kept, or if replies
            are still missing.
        EndpointError: If a teacher cannot be reached, did not reply for too long, or gives only
            unreadable replies. What was received before is stored.
        OSError: If a file cannot be read or written, or a server cannot be started.
        Interrupted: If a signal stopped the run.
        ModuleNotFoundError: If Ray is not installed.
    """
    panel = panel if isinstance(panel, Panel) else load_panel(Path(panel))
    run_engine = _load_engine(engine, ray_address)
    with open_store_with_pairs(pairs, panel, store, on_source=on_source) as opened:
        opened.questions.restrict_to_shard(Shard.parse(shard) if isinstance(shard, str) else shard)
        opened.reopen_settled(panel)
        needed = {
            counts.teacher: counts.requests_needed(retry_refused)
            for counts in count_replies(opened, panel)
        }
        for teacher in panel.teachers:
            if teacher.serve is not None and needed[teacher.name]:
                approve(teacher)
        start, received = time.monotonic(), Counter[bool]()

        def run() -> None:
            with progress(sum(needed.values())) as advance:

                def count_reply(record: ReplyRecord, final: bool) -> None:
                    received[final] += 1
                    if final:
                        advance(1, record.annotation is None)

                async def work(stop: asyncio.Event) -> None:
                    options = RunOptions(
                        patience=patience,
                        again=retry_refused,
                        stop=stop,
                        progress=count_reply,
                        spare=lambda replies: advance(replies, 0),
                        say=report,
                    )
                    await run_engine(opened, panel, options)

                run_interruptible(work, say=report)

        try:
            if any(needed.values()):
                run()
            else:
                opened.record_panel(panel)  # its prices and licenses may be new
        finally:
            result = AnnotationResult(
                teachers=tuple(count_replies(opened, panel)),
                shard=opened.questions.shard(),
                received=received.total(),
                retried=received[False],
                seconds=time.monotonic() - start,
            )
            on_result(result)
    silent = [counts.teacher for counts in result.teachers if counts.all and not counts.kept]
    if silent:
        raise ValueError(f"no reply of {', '.join(silent)} could be kept")
    if result.missing:
        raise ValueError("some replies are still missing: run the same command again")
    return result


@contextmanager
def open_store_with_pairs(
    pairs: Source | str | Path | None,
    panel: Panel,
    store: Store | str | Path,
    *,
    keep: bool = True,
    on_source: Callable[[Corpus], object] = ignore,
) -> Iterator[Store]:
    """Open a store for writing, add the pairs, and check that the panel does not contradict it.

    Args:
        pairs: File or Hub id of the pairs; None if the store holds them.
        panel: The panel that will be asked.
        store: The file, created if it does not exist, or an open store, which stays open.
        keep: Whether a file that is created here stays.
        on_source: Called once the pairs are in the store.

    Raises:
        ValueError: If there is no pair, or the pairs or the panel contradict the store.
        OSError: If the pairs or the store cannot be read.
    """
    source = pairs if isinstance(pairs, Source | None) else open_source(str(pairs))
    with ExitStack() as stack:
        if not isinstance(store, Store):
            path = Path(store)
            if source is None and not path.exists():
                raise FileNotFoundError(f"{path} does not exist yet: say where the pairs are")
            store = stack.enter_context(open_store_for_writing(path, keep=keep))
        if source:
            store.corpus.add(source, read_rows(source))
        on_source(store.corpus)
        stored = store.corpus.source()
        if stored is None or not stored.pairs:
            raise ValueError(f"{source or store.path}: no row holds a preference pair")
        store.check_panel(panel)
        yield store


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
    """

    patience: float
    again: bool
    stop: asyncio.Event
    progress: Callable[[ReplyRecord, bool], object]
    spare: Callable[[int], object]
    say: Callable[[str], None]


Engine = Callable[[Store, Panel, RunOptions], Awaitable[None]]


def _load_engine(name: Literal["local", "ray"], ray_address: str | None) -> Engine:
    if name == "local":
        if ray_address is not None:
            raise ValueError('ray_address needs engine "ray"')
        return annotate_locally
    try:
        from sp2dpo.annotation.ray import annotate_on_ray  # noqa: PLC0415 - Ray is optional
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'the engine "ray" needs Ray: pip install "sp2dpo[ray]"'
        ) from error
    return partial(annotate_on_ray, address=ray_address)


async def annotate_locally(store: Store, panel: Panel, terms: RunOptions) -> None:
    """Ask every teacher of a panel for the replies that a store is missing.

    Teachers at running servers are asked concurrently; then those with `serve:`, one after the
    other.

    Args:
        store: Contains the pairs and receives the replies.
        panel: Recorded in the store once the first teachers are reachable.
        terms: How the run behaves.

    Raises:
        EndpointError: If a teacher cannot be reached, did not reply for too long, or gives only
            unreadable replies. What was received before is stored.
        ServerDied: If a server cannot be started here, or died too often.
        ValueError: If the panel contradicts the store, or the options contradict the panel.
        sqlite3.Error: If a reply cannot be written.
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
    """Exclude existing objects from garbage collection, and collect less often.

    Thousands of short-lived objects per second trigger collections that traverse all imported
    modules; they took a tenth of the time.
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
    """State shared by the tasks of a run."""

    def __init__(
        self, store: Store, panel: Panel, terms: RunOptions, writer: Writer, pages: StorePages
    ) -> None:
        self._store = store
        self._panel = panel
        self._terms = terms
        self._writer = writer
        self._pages = pages
        tallies = count_replies(store, panel)
        self._missing = {
            counts.teacher for counts in tallies if counts.requests_needed(terms.again)
        }
        self._kept = Counter({counts.teacher: counts.kept for counts in tallies})
        self._taken = 0
        self._sessions: dict[tuple[str, tuple[str, ...]], TeacherSession] = {}
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
        if self._failure is not None:
            raise self._failure

    async def _ask_adaptively(self) -> None:
        """Ask the calibration pairs in full, then every other pair until the rule settles it."""
        adaptive = AdaptiveRun(
            self._panel,
            pairs=self._store.questions.pair_count(),
            read_replies=self._pages.replies,
            stop=self._terms.stop,
        )

        async def calibrate(sessions: list[TeacherSession]) -> None:
            await self._ask_all(sessions, only=adaptive.calibrates)

        async def spare(sessions: list[TeacherSession]) -> None:
            named = {session.teacher.name: session for session in sessions}
            try:
                await adaptive.ask(named, self._take, self._settle)
            except* EndpointError as failures:
                self._fail(first_failure(failures))

        for calibrating, ask in ((True, calibrate), (False, spare)):
            if not calibrating:
                await adaptive.learn()
                await spare([])  # settle the pairs that need no more replies
                await self._writer.sync()
            while waiting := await adaptive.count_waiting(calibrating=calibrating):
                before = self._taken
                await self._each_phase(waiting, ask)
                await self._writer.sync()
                if self._terms.stop.is_set():
                    return
                if self._taken == before:
                    raise ValueError(f"{self._store.path}: nothing more can be asked; a defect")

    async def _each_phase(self, names: Container[str], ask: Ask) -> None:
        """Ask the named teachers phase by phase, see `phases`."""
        for teachers in phases(self._panel.teachers):
            waiting = [teacher for teacher in teachers if teacher.name in names]
            if waiting and not self._terms.stop.is_set():
                await self._phase(waiting, ask)

    async def _phase(self, teachers: Sequence[Endpoint], ask: Ask) -> None:
        """Ask these teachers concurrently, after starting the servers of those with `serve:`."""
        async with AsyncExitStack() as stack:
            result = await wait_unless_stopped(self._terms.stop, self._find(stack, teachers))
            if result is None:
                return
            sessions, servers = result
            await self._writer.sync()  # so that this thread can use the writer's connection
            self._store.record_panel(self._panel)
            async with asyncio.TaskGroup() as group:
                watching = [group.create_task(server.watch()) for server in servers]
                await ask(sessions)
                for watch in watching:
                    watch.cancel()

    async def _find(
        self, stack: AsyncExitStack, teachers: Sequence[Endpoint]
    ) -> tuple[list[TeacherSession], list[Servers]]:
        """Return checked sessions and started servers, which stop with the stack."""
        sessions, started = [], []
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
                            other.api_key_env for other in self._panel.teachers if other.api_key_env
                        ],
                    )
                )
                started.append(servers)
                urls, excused = servers.urls, servers.are_starting
            session = self._sessions.get((teacher.name, urls))
            if session is None:
                session = TeacherSession(
                    Client(self._http, teacher, self._panel.rubric.schema()),
                    self._panel.rubric,
                    urls,
                    patience=self._terms.patience,
                    stop=self._terms.stop,
                    kept=self._kept[teacher.name],
                    excused=excused,
                )
                for line in await session.check():
                    self._terms.say(line)
                self._sessions[teacher.name, urls] = session
            sessions.append(session)
        return sessions, started

    async def _ask_all(
        self, sessions: list[TeacherSession], *, only: Callable[[str], bool] = lambda _: True
    ) -> None:
        """Ask teachers for all missing replies, or only for those about some pairs."""
        async with asyncio.TaskGroup() as group:
            for session in sessions:
                group.create_task(self._ask_one(session, only))

    async def _ask_one(self, session: TeacherSession, only: Callable[[str], bool]) -> None:
        teacher = session.teacher
        plan = QuestionPlan.from_panel(self._panel, teacher, again=self._terms.again)
        begun = asyncio.Semaphore(session.most)  # bounds the number of tasks in memory
        try:
            async with asyncio.TaskGroup() as group:
                async for job in self._pages.jobs(plan):
                    if not only(job.pair.id):
                        continue
                    await begun.acquire()
                    if self._terms.stop.is_set():
                        break
                    task = group.create_task(session.job(job, self._take))
                    task.add_done_callback(lambda _: begun.release())
        except* EndpointError as failures:
            self._fail(first_failure(failures))

    def _fail(self, failure: BaseException) -> None:
        """End the run after the in-flight requests to other teachers."""
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
    """Return groups of teachers to ask concurrently: those at running servers, then each other."""
    there = [teacher for teacher in teachers if teacher.serve is None]
    served = [[teacher] for teacher in teachers if teacher.serve is not None]
    return [there, *served] if there else served


def server_log_path(store: Path, teacher: str) -> Path:
    """Return the log file, next to the store, of a server that is started for a teacher."""
    return store.with_name(f"{store.name}.{re.sub(r'[^A-Za-z0-9_.-]', '_', teacher)}.log")
