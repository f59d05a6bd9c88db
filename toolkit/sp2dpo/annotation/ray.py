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
import threading
import urllib.parse
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sp2dpo.annotation.local import RunOptions
from sp2dpo.annotation.teacher import TeacherSession
from sp2dpo.annotation.writer import StorePages, Writer, open_writer
from sp2dpo.inference.caller import StopRequested
from sp2dpo.inference.client import Client, EndpointError, Unavailable, open_session
from sp2dpo.inference.endpoint import Endpoint
from sp2dpo.inference.keys import KeyUse
from sp2dpo.inference.secrets import Secrets
from sp2dpo.interrupts import first_failure
from sp2dpo.panel.panel import Panel
from sp2dpo.store.counts import count_replies
from sp2dpo.store.questions import Job, QuestionPlan
from sp2dpo.store.records import ReplyRecord
from sp2dpo.store.store import Store
from sp2dpo.text import one_line, shorten


@dataclass(frozen=True, kw_only=True)
class Answers:
    """Replies to the questions about one pair.

    Attributes:
        records: The replies, each with whether it is the last one to its question.
        failure: Why no further requests can be sent to the teacher; None if they can.
        notices: Lines for people.
    """

    records: tuple[tuple[ReplyRecord, bool], ...]
    failure: str | None
    notices: tuple[str, ...] = ()


class Worker:
    """Sends requests from one node, on behalf of the driver."""

    def __init__(
        self,
        panel: Panel,
        node: str,
        patience: float,
        kept_replies: dict[str, int],
        send_keys: frozenset[KeyUse] = frozenset(),
    ) -> None:
        """Create a worker; nothing is sent yet.

        Args:
            panel: Panel of the run.
            node: Name of this node, for messages.
            patience: Seconds without any reply from a teacher after which the run ends.
            kept_replies: Number of replies in the store that could be parsed, by teacher.
            send_keys: Allowed uses of API keys.
        """
        self._panel = panel
        self._node = node
        self._send_keys = send_keys
        self._patience = patience
        self._kept_replies = kept_replies
        self._stop = asyncio.Event()
        self._notices: list[str] = []
        self._http: Any = None
        self._sessions: dict[tuple[str, int], asyncio.Task[TeacherSession]] = {}

    async def stop(self) -> None:
        """Send no more requests; in-flight requests finish."""
        self._stop.set()

    async def check(self, teacher: str, in_flight: int, *, patient: bool) -> str | None:
        """Return why a teacher cannot be reached from this node; None if it can.

        Args:
            teacher: Name of the teacher.
            in_flight: Maximum number of in-flight requests from this node to each replica.
            patient: Whether to try again, as for a request, while its server is not available.
        """
        try:
            await self._open_session(teacher, in_flight, patient=patient)
        except (EndpointError, ValueError) as error:
            return self._message(error)
        except StopRequested:
            return None
        return None

    async def ask(self, teacher: str, job: Job, in_flight: int) -> Answers:
        """Ask all questions about a pair.

        Args:
            teacher: Name of the teacher.
            job: The pair and the questions.
            in_flight: Maximum number of in-flight requests from this node to each replica.
        """
        records: list[tuple[ReplyRecord, bool]] = []

        async def take(record: ReplyRecord, final: bool) -> None:
            records.append((record, final))

        failure = None
        try:
            session = await self._open_session(teacher, in_flight, patient=True)
            await session.ask(job, take)
        except* StopRequested:
            pass
        except* (EndpointError, ValueError) as failures:
            failure = self._message(first_failure(failures))
        notices = tuple(map(self._message, self._notices))
        self._notices.clear()
        return Answers(records=tuple(records), failure=failure, notices=notices)

    async def _open_session(self, teacher: str, in_flight: int, *, patient: bool) -> TeacherSession:
        """Return a session with this limit; sessions with other limits finish their jobs."""
        # A session has one limit, but the share of this node changes as nodes join and fail.
        if (teacher, in_flight) not in self._sessions:
            opening = asyncio.ensure_future(self._create_session(teacher, in_flight, patient))
            self._sessions[teacher, in_flight] = opening
        opening = self._sessions[teacher, in_flight]
        try:
            # Shielded, because concurrent jobs wait for the same session.
            return await asyncio.shield(opening)
        except (EndpointError, ValueError, StopRequested):
            # The next job tries again: a failure of the past says nothing about the server now.
            if self._sessions.get((teacher, in_flight)) is opening:
                del self._sessions[teacher, in_flight]
            raise

    async def _create_session(self, name: str, in_flight: int, patient: bool) -> TeacherSession:
        if self._http is None:
            self._http = open_session()
        (teacher,) = (teacher for teacher in self._panel.teachers if teacher.name == name)
        session = TeacherSession(
            Client(
                self._http,
                replace(teacher, max_in_flight=in_flight),
                self._panel.rubric.schema(),
                send_keys=self._send_keys,
                secrets=Secrets(self._panel.api_key_variables),
                say=self._notices.append,
            ),
            self._panel.rubric,
            teacher.base_urls,
            patience=self._patience,
            stop=self._stop,
            kept_replies=self._kept_replies[name],
        )
        await self._check(session, patient=patient)
        return session

    async def _check(self, session: TeacherSession, *, patient: bool) -> None:
        """Check a session, again and again for `patience` seconds if `patient` is set."""
        now = asyncio.get_running_loop().time
        deadline, wait = now() + self._patience, _FIRST_WAIT
        while True:
            try:
                await session.check()
            except Unavailable:
                if not patient or now() + wait > deadline:
                    raise
            else:
                return
            # True if the run should end before the time is over.
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), wait)
                raise StopRequested
            wait = min(2 * wait, _LONGEST_WAIT)

    def _message(self, error: BaseException | str) -> str:
        return f"{error} (on node {self._node})"


_FIRST_WAIT, _LONGEST_WAIT = 0.5, 15.0
"""Seconds between two checks of a server that is not available: at first, and at most."""
_LOOK_SECONDS = 1.0
"""Seconds between two queries of the cluster's nodes."""
_MOST_AT_ONCE = 10_000
"""Concurrent calls that a worker accepts; `max_in_flight` limits them further."""


@dataclass(kw_only=True, eq=False)
class Member:
    """A worker and its load.

    Attributes:
        node: Id of its node.
        where: Name of the node, for people.
        actor: Ray's handle of the worker.
        pairs_in_flight: Number of pairs that it is being asked about, by teacher.
    """

    node: str
    where: str
    actor: Any
    pairs_in_flight: Counter[str] = field(default_factory=Counter)


class RayWorkers:
    """The workers of all live nodes."""

    def __init__(self, panel: Panel, options: RunOptions, kept_replies: dict[str, int]) -> None:
        """Create the pool; no worker is started yet.

        Args:
            panel: Panel of the run.
            options: Options of the run.
            kept_replies: Number of replies in the store that could be parsed, by teacher.
        """
        self._panel = panel
        self._options = options
        self._kept_replies = kept_replies
        self._members: dict[str, Member] = {}
        self._joining: set[str] = set()
        self._complained: set[str] = set()
        self._changed = asyncio.Condition()

    async def watch(self) -> None:
        """Start a worker on every node that is alive or joins, until cancelled.

        Raises:
            EndpointError: If a teacher cannot be reached from a node, or no node has been alive for
                too long.
        """
        now = asyncio.get_running_loop().time
        alone_since: float | None = None
        async with asyncio.TaskGroup() as group:
            while True:
                # ray.nodes blocks until the cluster answers.
                for node in await asyncio.to_thread(ray.nodes):
                    name = node["NodeID"]
                    if node["Alive"] and name not in self._joining | set(self._members):
                        self._joining.add(name)
                        # Not awaited: a node that starts slowly must not delay the others.
                        group.create_task(self._take_on(node))
                alone_since = None if self._members else alone_since or now()
                if alone_since and now() - alone_since > self._options.patience:
                    raise EndpointError(
                        "no node of the Ray cluster is left. Replies received so far are "
                        "stored: start nodes and run the same command again"
                    )
                await asyncio.sleep(_LOOK_SECONDS)

    async def stop(self) -> None:
        """Wait until the run should end, and tell all workers."""
        await self._options.stop.wait()
        async with self._changed:
            for member in self._members.values():
                member.actor.stop.remote()
            self._changed.notify_all()

    async def wait_for_worker(self) -> bool:
        """Wait for the first worker; return False if the run should end before there is one."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._members or self._options.stop.is_set())
        return not self._options.stop.is_set()

    async def choose_worker(self, teacher: Endpoint) -> Member | None:
        """Wait for a worker with free capacity and return it; None if the run should end."""
        async with self._changed:
            while not self._options.stop.is_set():
                best = max(
                    self._members.values(),
                    key=lambda worker: self._room(teacher, worker),
                    default=None,
                )
                if best is not None and self._room(teacher, best) > 0:
                    best.pairs_in_flight[teacher.name] += 1
                    return best
                await self._changed.wait()
        return None

    async def ask(self, member: Member, teacher: Endpoint, job: Job) -> Answers | None:
        """Return the worker's answers; None if the worker was lost."""
        # The share may have become 0 since the worker was chosen, because other nodes joined.
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
                member.pairs_in_flight[teacher.name] -= 1
                self._changed.notify_all()

    def _room(self, teacher: Endpoint, member: Member) -> int:
        max_pairs = self._share(teacher, member) * len(teacher.base_urls)
        return max_pairs - member.pairs_in_flight[teacher.name]

    def _share(self, teacher: Endpoint, member: Member) -> int:
        """Return the limit of in-flight requests per replica from a worker's node."""
        if all(_is_loopback(url) for url in teacher.base_urls):
            return teacher.max_in_flight
        names = list(self._members)
        each, more = divmod(teacher.max_in_flight, max(1, len(names)))
        # The remainder goes to the nodes that joined first.
        return each + (member.node in names[:more])

    async def _take_on(self, node: dict[str, Any]) -> None:
        name = node["NodeID"]
        where = f"{node['NodeManagerAddress']} ({name[:8]})"
        # Never on another node: 127.0.0.1 is a different server on each node.
        strategy = NodeAffinitySchedulingStrategy(node_id=name, soft=False)
        kind: Any = ray.remote(Worker)
        actor = kind.options(
            # A worker waits for the network; it must not wait for a free CPU of the cluster first.
            num_cpus=0,
            max_concurrency=_MOST_AT_ONCE,
            scheduling_strategy=strategy,
        ).remote(
            self._panel,
            where,
            self._options.patience,
            self._kept_replies,
            self._options.send_keys,
        )
        try:
            for teacher in self._panel.teachers:
                # The node's share is not known yet; this limit only serves the check.
                failure = await actor.check.remote(teacher.name, 1, patient=bool(self._members))
                if failure is not None:
                    raise EndpointError(failure)
            async with self._changed:
                self._members[name] = Member(node=name, where=where, actor=actor)
                self._options.say(f"asking from node {where}, {len(self._members)} in all")
                self._changed.notify_all()
        # A RayError, too, but a defect in this package, not of the node.
        except RayTaskError:
            raise
        except RayError as error:
            self._complain(name, f"node {where} cannot be used: {one_line(error)}")
        finally:
            # Last: `watch` would start a second worker on a node that is in neither set.
            self._joining.discard(name)

    def _complain(self, node: str, line: str) -> None:
        """Report a node's problem once; the node is tried again."""
        if node not in self._complained:
            self._complained.add(node)
            self._options.say(line)

    async def _lose(self, member: Member) -> None:
        if self._members.get(member.node) is member:
            del self._members[member.node]
            # If only the connection was lost, the worker may still be sending requests.
            ray.kill(member.actor)
            self._options.say(
                f"lost node {member.where}, {len(self._members)} left; its in-flight "
                "requests are sent again"
            )


def _is_loopback(url: str) -> bool:
    host = urllib.parse.urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


# No usage statistics are sent; the second variable silences a hint about GPUs.
_SETTINGS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}


async def annotate_on_ray(
    store: Store, panel: Panel, options: RunOptions, *, address: str | None
) -> None:
    """Ask every teacher for the replies that a store is missing, from all nodes of a cluster.

    A server at a loopback address is assumed to run on every node and gets up to `max_in_flight`
    requests from its own node. The nodes share any other server, and its limit. Their shares change
    as nodes join and fail, so the limit may be exceeded until the current pairs are done.

    Args:
        store: Contains the pairs and receives the replies.
        panel: Recorded in the store once the first worker has reached the teachers.
        options: How the run behaves.
        address: Address of the cluster, as `ray start` prints it; None for $RAY_ADDRESS or, if that
            is not set, for a cluster on this machine that ends with the run.

    Raises:
        EndpointError: If a teacher cannot be reached, sends no reply for too long, or sends
            only unreadable replies, or if no node is left. What was received before is stored.
        ValueError: If the panel contradicts the store, or needs another engine.
        ConnectionError: If there is no such cluster, or it has another version of Ray or Python.
        sqlite3.Error: If a reply cannot be written.
    """
    _check_panel(panel)
    with (
        _cluster(address, log=store.path.with_name(f"{store.path.name}.ray.log")),
        open_writer(store) as (writer, pages),
    ):
        workers = RayWorkers(
            panel, options, {counts.teacher: counts.kept for counts in count_replies(store, panel)}
        )
        await _Run(store, panel, options, writer, workers, pages).ask_panel()


def _check_panel(panel: Panel) -> None:
    if panel.budget == "adaptive":
        raise ValueError("`budget: adaptive` needs the engine `local`: it decides pair by pair")
    for teacher in panel.teachers:
        if teacher.serve is not None:
            raise ValueError(
                f"teacher {teacher.name}: the engine `ray` starts no servers: start them on the "
                "nodes (`sp2dpo serve`), and set base_url in the panel; http://127.0.0.1:... is "
                "each node itself"
            )


@contextmanager
def _cluster(address: str | None, *, log: Path) -> Iterator[None]:
    """Connect to a cluster. Redirect Ray's output to the log, and restore signal handlers."""
    # Do not let Ray auto-discover a cluster; it might join someone else's.
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    _check_address(address)
    for name, value in _SETTINGS.items():
        # The user's own settings have precedence.
        os.environ.setdefault(name, value)
    # Outside the main thread, as in a notebook, Ray leaves signal handlers alone, and so must we.
    is_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM) if is_main else None
    with log.open("a", encoding="utf-8", errors="backslashreplace") as sink, redirect_stdout(sink):
        try:
            # ray.init replaces the handler of SIGTERM, with which a run is stopped.
            _connect(address)
            if handler is not None:
                signal.signal(signal.SIGTERM, handler)
            yield
        finally:
            ray.shutdown()
            if handler is not None:
                signal.signal(signal.SIGTERM, handler)
            # Ray wrote nothing: leave no empty file.
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


def _check_address(address: str) -> None:
    """Check that something listens at HOST:PORT; Ray itself takes minutes to give up."""
    host, _, port = address.rpartition(":")
    # `local`, and addresses such as ray://HOST:PORT, are left to Ray.
    if not (host and port.isdecimal()) or "/" in address:
        return
    try:
        socket.create_connection((host, int(port)), timeout=30).close()
    except (OSError, OverflowError) as error:
        raise ConnectionError(
            f"no Ray cluster answers at {address} ({error}); `ray start --head` starts one"
        ) from error


class _Run:
    """State shared by the tasks of a run."""

    def __init__(
        self,
        store: Store,
        panel: Panel,
        options: RunOptions,
        writer: Writer,
        workers: RayWorkers,
        pages: StorePages,
    ) -> None:
        self._store = store
        self._panel = panel
        self._options = options
        self._writer = writer
        self._workers = workers
        self._pages = pages

    async def ask_panel(self) -> None:
        """Ask all teachers concurrently."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._writer.write())
            background = [
                group.create_task(self._workers.watch()),
                group.create_task(self._workers.stop()),
            ]
            if await self._workers.wait_for_worker():
                await self._writer.sync()
                self._store.record_panel(self._panel)
                async with asyncio.TaskGroup() as asking:
                    for teacher in self._panel.teachers:
                        asking.create_task(self._ask_all(teacher))
            # The group waits for all its tasks: watch() never ends, stop() only on an interrupt.
            for task in background:
                task.cancel()
            await self._writer.put(None)

    async def _ask_all(self, teacher: Endpoint) -> None:
        plan = QuestionPlan.from_panel(self._panel, teacher, again=self._options.again)
        async with asyncio.TaskGroup() as group:
            async for job in self._pages.jobs(plan):
                member = await self._workers.choose_worker(teacher)
                if member is None:
                    return
                group.create_task(self._job(member, teacher, job))

    async def _job(self, member: Member | None, teacher: Endpoint, job: Job) -> None:
        """Ask about a pair, on another node if one is lost."""
        answers = None
        while answers is None and member is not None:
            answers = await self._workers.ask(member, teacher, job)
            if answers is None:
                member = await self._workers.choose_worker(teacher)
        for line in answers.notices if answers else ():
            self._options.say(line)
        # First store what was received, also if the teacher failed after that.
        for record, final in answers.records if answers else ():
            self._options.progress(record, final)
            await self._writer.put(record)
        if answers and answers.failure is not None:
            raise EndpointError(answers.failure)
