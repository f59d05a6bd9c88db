"""Ask a panel from all nodes of a Ray cluster; the store stays on the driver's node.

A worker on each node sends the requests; only the driver reads and writes the store. Nodes may join
and fail: the in-flight requests of a failed node are sent again from another, and the driver
accepts one answer per pair, so that nothing is lost or stored twice.

The same version of sp2dpo must be installed on every node. API keys are not sent over the network:
a node reads them from its own environment, so set the variables where `ray start` is run. Anyone
who can reach a Ray cluster can run code on it: do not expose its ports.
"""

import asyncio
import ipaddress
import logging
import os
import signal
import socket
import urllib.parse
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sp2dpo.annotation.run import RunOptions
from sp2dpo.annotation.teacher import TeacherSession
from sp2dpo.annotation.writer import StorePages, Writer
from sp2dpo.inference.client import Client, EndpointError, open_session
from sp2dpo.inference.endpoint import Endpoint
from sp2dpo.interrupts import first_failure
from sp2dpo.panel.panel import Panel
from sp2dpo.store.counts import count_replies
from sp2dpo.store.questions import Job, QuestionPlan
from sp2dpo.store.records import ReplyRecord
from sp2dpo.store.store import Store
from sp2dpo.text import shorten


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What a worker got for one pair.

    Attributes:
        entries: the replies, and whether each is the last to its key.
        failure: why the teacher cannot be asked on; None where it can.
    """

    entries: tuple[tuple[ReplyRecord, bool], ...]
    failure: str | None


class Worker:
    """Sends requests from one node, on behalf of the driver."""

    def __init__(self, panel: Panel, node: str, patience: float, kept: dict[str, int]) -> None:
        """Nothing is asked yet.

        Args:
            panel: whom to ask what.
            node: its name, for messages.
            patience: seconds for which a teacher may answer nothing.
            kept: replies that could be read before, by teacher.
        """
        self._panel = panel
        self._node = node
        self._patience = patience
        self._kept = kept
        self._stop = asyncio.Event()
        self._session: Any = None
        self._askings: dict[tuple[str, int], asyncio.Task[TeacherSession]] = {}

    async def stop(self) -> None:
        """Send no more requests; in-flight requests finish."""
        self._stop.set()

    async def check(self, teacher: str, in_flight: int) -> str | None:
        """Return why a teacher cannot be reached from this node; None if it can."""
        try:
            await self._asking(teacher, in_flight)
        except (EndpointError, ValueError) as error:
            return self._said(error)
        return None

    async def ask(self, teacher: str, job: Job, in_flight: int) -> Answers:
        """Asks all questions about a pair.

        Args:
            teacher: its name.
            job: the pair and the questions.
            in_flight: requests at a time at each of its replicas, from this node.
        """
        entries: list[tuple[ReplyRecord, bool]] = []

        async def take(entry: ReplyRecord, final: bool) -> None:
            entries.append((entry, final))

        failure = None
        try:
            await (await self._asking(teacher, in_flight)).job(job, take)
        except* (EndpointError, ValueError) as failures:
            failure = self._said(first_failure(failures))
        return Answers(entries=tuple(entries), failure=failure)

    async def _asking(self, teacher: str, in_flight: int) -> TeacherSession:
        """Return a session with this limit; sessions with other limits finish their jobs."""
        if (teacher, in_flight) not in self._askings:
            making = asyncio.ensure_future(self._made(teacher, in_flight))
            self._askings[teacher, in_flight] = making
        return await asyncio.shield(self._askings[teacher, in_flight])

    async def _made(self, name: str, in_flight: int) -> TeacherSession:
        if self._session is None:
            self._session = open_session()
        (teacher,) = (one for one in self._panel.teachers if one.name == name)
        asking = TeacherSession(
            Client(
                self._session,
                replace(teacher, max_in_flight=in_flight),
                self._panel.rubric.schema(),
            ),
            self._panel.rubric,
            teacher.base_urls,
            patience=self._patience,
            stop=self._stop,
            kept=self._kept[name],
        )
        await asking.check()
        return asking

    def _said(self, error: BaseException) -> str:
        return f"{error} (on node {self._node})"


_LOOK_SECONDS = 1.0
"""Seconds between two queries of the cluster's nodes."""
_MOST_AT_ONCE = 10_000
"""Concurrent calls that a worker accepts; `max_in_flight` limits them further."""


@dataclass(kw_only=True, eq=False)
class Member:
    """A worker, and what it is doing.

    Attributes:
        node: the id of its node.
        where: the node's name, for people.
        actor: its handle.
        begun: pairs that it was given and has not answered, by teacher.
    """

    node: str
    where: str
    actor: Any
    begun: Counter[str] = field(default_factory=Counter)


class RayWorkers:
    """The workers of all live nodes."""

    def __init__(self, panel: Panel, terms: RunOptions, kept: dict[str, int]) -> None:
        """Nobody is there yet.

        Args:
            panel: whom to ask what.
            terms: how the run behaves.
            kept: replies that could be read before, by teacher.
        """
        self._panel = panel
        self._terms = terms
        self._kept = kept
        self._members: dict[str, Member] = {}
        self._joining: set[str] = set()
        self._complained: set[str] = set()
        self._changed = asyncio.Condition()

    async def watch(self) -> None:
        """Start a worker on every node that is alive or joins, until cancelled.

        Raises:
            EndpointError: a teacher cannot be asked from one, or there has been none for too long.
        """
        now = asyncio.get_running_loop().time
        alone_since: float | None = None
        async with asyncio.TaskGroup() as group:
            while True:
                for node in await asyncio.to_thread(ray.nodes):
                    name = node["NodeID"]
                    if node["Alive"] and name not in self._joining | set(self._members):
                        self._joining.add(name)
                        group.create_task(self._take_on(node))
                alone_since = None if self._members else alone_since or now()
                if alone_since and now() - alone_since > self._terms.patience:
                    raise EndpointError(
                        "no node of the Ray cluster is there any more. What came before is "
                        "stored: start nodes and give the same command"
                    )
                await asyncio.sleep(_LOOK_SECONDS)

    async def stop(self) -> None:
        """Wait until the run should end, and tell all workers."""
        await self._terms.stop.wait()
        async with self._changed:
            for member in self._members.values():
                member.actor.stop.remote()
            self._changed.notify_all()

    async def is_there(self) -> bool:
        """Wait for the first worker. Return whether it is there before the run should end."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._members or self._terms.stop.is_set())
        return not self._terms.stop.is_set()

    async def place(self, teacher: Endpoint) -> Member | None:
        """Wait for a worker with free capacity and return it; None if the run should end."""
        async with self._changed:
            while not self._terms.stop.is_set():
                best = max(
                    self._members.values(), key=lambda one: self._room(teacher, one), default=None
                )
                if best is not None and self._room(teacher, best) > 0:
                    best.begun[teacher.name] += 1
                    return best
                await self._changed.wait()
        return None

    async def ask(self, member: Member, teacher: Endpoint, job: Job) -> Answers | None:
        """Return the worker's answers; None if the worker was lost."""
        in_flight = max(1, self._share(teacher, member))
        try:
            return await member.actor.ask.remote(teacher.name, job, in_flight)
        except RayTaskError:
            raise  # a defect in this package, not of the node
        except RayError:
            await self._lose(member)
            return None
        finally:
            async with self._changed:
                member.begun[teacher.name] -= 1
                self._changed.notify_all()

    def _room(self, teacher: Endpoint, member: Member) -> int:
        most = self._share(teacher, member) * len(teacher.base_urls)
        return most - member.begun[teacher.name]

    def _share(self, teacher: Endpoint, member: Member) -> int:
        """Return the limit of in-flight requests per replica from a worker's node."""
        if all(_is_loopback(url) for url in teacher.base_urls):
            return teacher.max_in_flight
        names = list(self._members)
        each, more = divmod(teacher.max_in_flight, max(1, len(names)))
        return each + (member.node in names[:more])

    async def _take_on(self, node: dict[str, Any]) -> None:
        name = node["NodeID"]
        where = f"{node['NodeManagerAddress']} ({name[:8]})"
        strategy = NodeAffinitySchedulingStrategy(node_id=name, soft=False)
        kind: Any = ray.remote(Worker)
        actor = kind.options(
            num_cpus=0, max_concurrency=_MOST_AT_ONCE, scheduling_strategy=strategy
        ).remote(self._panel, where, self._terms.patience, self._kept)
        try:
            for teacher in self._panel.teachers:
                failure = await actor.check.remote(teacher.name, 1)
                if failure is not None:
                    raise EndpointError(failure)
        except RayTaskError:
            raise
        except RayError as error:
            self._complain(name, f"node {where} cannot be used: {' '.join(str(error).split())}")
            return
        finally:
            self._joining.discard(name)
        async with self._changed:
            self._members[name] = Member(node=name, where=where, actor=actor)
            self._terms.say(f"asking from node {where}, {len(self._members)} in all")
            self._changed.notify_all()

    def _complain(self, node: str, line: str) -> None:
        """Report a node's problem once; the node is tried again."""
        if node not in self._complained:
            self._complained.add(node)
            self._terms.say(line)

    async def _lose(self, member: Member) -> None:
        if self._members.get(member.node) is member:
            del self._members[member.node]
            ray.kill(member.actor)
            self._terms.say(
                f"lost node {member.where}, {len(self._members)} left; what was in flight there "
                "is asked again"
            )


def _is_loopback(url: str) -> bool:
    host = urllib.parse.urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


_SETTINGS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}


async def annotate_on_ray(
    store: Store, panel: Panel, terms: RunOptions, *, address: str | None
) -> None:
    """Ask every teacher for the replies that a store is missing, from all nodes of a cluster.

    A server at a loopback address is taken for each node's own, and gets `max_in_flight` requests
    from its node; any other is shared by all nodes, and so is its limit. The nodes' shares change
    as nodes join and die, so for as long as a pair takes there may be more in flight.

    Args:
        store: holds the pairs, and takes the replies.
        panel: whom to ask what; the store adopts it once the teachers have been found.
        terms: how the run behaves.
        address: of the cluster, as `ray start` says it; None for $RAY_ADDRESS or, where that is
            not set, for a cluster of this computer alone that ends with the run.

    Raises:
        EndpointError: a teacher cannot be asked, stayed away, or says nothing that can be read, or
            no node is left; what came until then is stored.
        ValueError: the panel contradicts the store, or needs another engine.
        ConnectionError: there is no such cluster, or it has another version of Ray or Python.
        sqlite3.Error: the disk does not take a reply.
    """
    _refuse(panel)
    with (
        Store(store.path) as reader,
        ThreadPoolExecutor(1) as writing,
        ThreadPoolExecutor(1) as reading,
        _cluster(address, log=store.path.with_name(f"{store.path.name}.ray.log")),
    ):
        writer = Writer(store, writing)
        crew = RayWorkers(
            panel, terms, {one.teacher: one.kept for one in count_replies(store, panel)}
        )
        run = _Run(store, panel, terms, writer, crew, StorePages(reader, reading))
        try:
            await run.ask_panel()
        except BaseExceptionGroup as failures:
            raise first_failure(failures) from None
        finally:
            writer.flush()


def _refuse(panel: Panel) -> None:
    if panel.budget == "adaptive":
        raise ValueError("`budget: adaptive` needs the engine `local`: it decides pair by pair")
    for teacher in panel.teachers:
        if teacher.serve is not None:
            raise ValueError(
                f"teacher {teacher.name}: the engine `ray` starts no servers: start them on the "
                "nodes (`sp2dpo serve`), and say base_url in the panel; http://127.0.0.1:... is "
                "each node's own"
            )


@contextmanager
def _cluster(address: str | None, *, log: Path) -> Iterator[None]:
    """Connect to a cluster. Redirect Ray's output to the log, and restore signal handlers."""
    # Do not let Ray auto-discover a cluster; it might join someone else's.
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    _knock(address)
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    handler = signal.getsignal(signal.SIGTERM)
    with log.open("a", encoding="utf-8", errors="backslashreplace") as sink, redirect_stdout(sink):
        try:
            _connect(address)
            signal.signal(signal.SIGTERM, handler)
            yield
        finally:
            ray.shutdown()
            signal.signal(signal.SIGTERM, handler)
            if not sink.tell():
                log.unlink()


def _connect(address: str) -> None:
    try:
        ray.init(address=address, logging_level=logging.CRITICAL, log_to_driver=False)
    except ConnectionError as error:
        raise ConnectionError(
            f"{error}; where the cluster asks for a token (`ray start` says so), set "
            "RAY_AUTH_MODE=token, and give this computer the cluster's token"
        ) from error
    except RuntimeError as error:  # another version of Ray or Python, in several lines
        raise ConnectionError(
            f"the cluster at {address} cannot be used: {shorten(str(error))}"
        ) from error


def _knock(address: str) -> None:
    """Check that something listens at HOST:PORT; Ray itself takes minutes to give up."""
    host, _, port = address.rpartition(":")
    if not (host and port.isdecimal()) or "/" in address:
        return
    try:
        socket.create_connection((host, int(port)), timeout=30).close()
    except (OSError, OverflowError) as error:
        raise ConnectionError(
            f"no Ray cluster answers at {address} ({error}); `ray start --head` makes one"
        ) from error


class _Run:
    """State shared by the tasks of a run."""

    def __init__(
        self,
        store: Store,
        panel: Panel,
        terms: RunOptions,
        writer: Writer,
        crew: RayWorkers,
        pages: StorePages,
    ) -> None:
        self._store = store
        self._panel = panel
        self._terms = terms
        self._writer = writer
        self._crew = crew
        self._pages = pages

    async def ask_panel(self) -> None:
        """Ask all teachers concurrently."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._writer.write())
            around = [group.create_task(one) for one in (self._crew.watch(), self._crew.stop())]
            if await self._crew.is_there():
                await self._writer.sync()
                self._store.record_panel(self._panel)
                async with asyncio.TaskGroup() as asking:
                    for teacher in self._panel.teachers:
                        asking.create_task(self._ask_all(teacher))
            for task in around:
                task.cancel()
            await self._writer.put(None)

    async def _ask_all(self, teacher: Endpoint) -> None:
        wanted = QuestionPlan.from_panel(self._panel, teacher, again=self._terms.again)
        async with asyncio.TaskGroup() as group:
            async for job in self._pages.jobs(wanted):
                member = await self._crew.place(teacher)
                if member is None:
                    return
                group.create_task(self._job(member, teacher, job))

    async def _job(self, member: Member | None, teacher: Endpoint, job: Job) -> None:
        """Ask about a pair, on another node if one is lost."""
        answers = None
        while answers is None and member is not None:
            answers = await self._crew.ask(member, teacher, job)
            if answers is None:
                member = await self._crew.place(teacher)
        for entry, final in answers.entries if answers else ():
            self._terms.progress(entry, final)
            await self._writer.put(entry)
        if answers and answers.failure is not None:
            raise EndpointError(answers.failure)
