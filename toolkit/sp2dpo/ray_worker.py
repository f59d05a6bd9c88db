"""A worker of a Ray cluster: asks teachers from its node, for the driver on another one."""

import asyncio
from dataclasses import dataclass, replace
from typing import Any

from sp2dpo.asking import Asking
from sp2dpo.backlog import Job
from sp2dpo.entries import Entry
from sp2dpo.faults import TeacherError
from sp2dpo.interrupts import first_failure
from sp2dpo.panel import Panel
from sp2dpo.teachers import Client, open_session


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What a worker got for one pair.

    Attributes:
        entries: the replies, and whether each is the last to its key.
        failure: why the teacher cannot be asked on; None where it can.
    """

    entries: tuple[tuple[Entry, bool], ...]
    failure: str | None


class Worker:
    """Asks for the driver, on one node."""

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
        self._askings: dict[tuple[str, int], asyncio.Task[Asking]] = {}

    async def stop(self) -> None:
        """Sends nothing more; what is in flight comes home."""
        self._stop.set()

    async def check(self, teacher: str, in_flight: int) -> str | None:
        """Why a teacher cannot be asked from here; None where it can."""
        try:
            await self._asking(teacher, in_flight)
        except (TeacherError, ValueError) as error:
            return self._said(error)
        return None

    async def ask(self, teacher: str, job: Job, in_flight: int) -> Answers:
        """Asks all questions about a pair.

        Args:
            teacher: its name.
            job: the pair and the questions.
            in_flight: requests at a time at each of its replicas, from this node.
        """
        entries: list[tuple[Entry, bool]] = []

        async def take(entry: Entry, final: bool) -> None:
            entries.append((entry, final))

        failure = None
        try:
            await (await self._asking(teacher, in_flight)).job(job, take)
        except* (TeacherError, ValueError) as failures:
            failure = self._said(first_failure(failures))
        return Answers(entries=tuple(entries), failure=failure)

    async def _asking(self, teacher: str, in_flight: int) -> Asking:
        """The teacher with that limit; one that was made for another limit ends what it began."""
        if (teacher, in_flight) not in self._askings:
            making = asyncio.ensure_future(self._made(teacher, in_flight))
            self._askings[teacher, in_flight] = making
        return await asyncio.shield(self._askings[teacher, in_flight])

    async def _made(self, name: str, in_flight: int) -> Asking:
        if self._session is None:
            self._session = open_session()
        (teacher,) = (one for one in self._panel.teachers if one.name == name)
        asking = Asking(
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
