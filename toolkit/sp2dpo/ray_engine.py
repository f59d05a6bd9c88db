"""Asking a panel from all nodes of a Ray cluster, with the store on the one that drives.

A worker on every node asks; the driver alone reads the store and writes to it. Nodes may join and
die: what was in flight on a dead one is asked again from another, and the driver takes one answer
for each pair, so that nothing is lost and nothing stored twice.

sp2dpo must be installed on every node, in one version. API keys never travel: a node takes them
from its own environment, so their variables must be set where `ray start` is run. Whoever can reach
a Ray cluster can run code on it: keep its ports to yourself.
"""

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import ray

from sp2dpo.annotate import Terms
from sp2dpo.backlog import Job, Wanted
from sp2dpo.faults import TeacherError
from sp2dpo.interrupts import first_failure
from sp2dpo.pages import Pages
from sp2dpo.panel import Panel, Teacher
from sp2dpo.ray_crew import Crew, Member
from sp2dpo.store import Store
from sp2dpo.tally import tally
from sp2dpo.terminal import brief
from sp2dpo.writer import Writer

_SETTINGS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}


async def annotate_on_ray(store: Store, panel: Panel, terms: Terms, *, address: str | None) -> None:
    """Asks every teacher of a panel what the store is missing, from all nodes of a cluster.

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
        TeacherError: a teacher cannot be asked, stayed away, or says nothing that can be read, or
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
        crew = Crew(panel, terms, {one.teacher: one.kept for one in tally(store, panel)})
        run = _Run(store, panel, terms, writer, crew, Pages(reader, reading))
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
    """The connection to a cluster; what Ray prints goes to the log, signals stay ours."""
    # Never Ray's own search for a cluster: whose it finds is chance.
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
            f"the cluster at {address} cannot be used: {brief(str(error))}"
        ) from error


def _knock(address: str) -> None:
    """Looks whether anything listens at HOST:PORT; Ray itself takes minutes to give up."""
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
    """One run: what its tasks share."""

    def __init__(
        self,
        store: Store,
        panel: Panel,
        terms: Terms,
        writer: Writer,
        crew: Crew,
        pages: Pages,
    ) -> None:
        self._store = store
        self._panel = panel
        self._terms = terms
        self._writer = writer
        self._crew = crew
        self._pages = pages

    async def ask_panel(self) -> None:
        """Asks all teachers side by side."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._writer.write())
            around = [group.create_task(one) for one in (self._crew.watch(), self._crew.stop())]
            if await self._crew.is_there():
                await self._writer.sync()
                self._store.adopt(self._panel)
                async with asyncio.TaskGroup() as asking:
                    for teacher in self._panel.teachers:
                        asking.create_task(self._ask_all(teacher))
            for task in around:
                task.cancel()
            await self._writer.put(None)

    async def _ask_all(self, teacher: Teacher) -> None:
        wanted = Wanted.of(self._panel, teacher, again=self._terms.again)
        async with asyncio.TaskGroup() as group:
            async for job in self._pages.jobs(wanted):
                member = await self._crew.place(teacher)
                if member is None:
                    return
                group.create_task(self._job(member, teacher, job))

    async def _job(self, member: Member | None, teacher: Teacher, job: Job) -> None:
        """Has a pair asked about, on another node if one is lost."""
        answers = None
        while answers is None and member is not None:
            answers = await self._crew.ask(member, teacher, job)
            if answers is None:
                member = await self._crew.place(teacher)
        for entry, final in answers.entries if answers else ():
            self._terms.progress(entry, final)
            await self._writer.put(entry)
        if answers and answers.failure is not None:
            raise TeacherError(answers.failure)
