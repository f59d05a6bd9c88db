"""The workers on all nodes of a Ray cluster, as the driver sees them."""

import asyncio
import ipaddress
import urllib.parse
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sp2dpo.annotate import Terms
from sp2dpo.backlog import Job
from sp2dpo.faults import TeacherError
from sp2dpo.panel import Panel, Teacher
from sp2dpo.ray_worker import Answers, Worker

_LOOK_SECONDS = 1.0
"""How often the driver looks which nodes there are."""
_MOST_AT_ONCE = 10_000
"""Pairs that a worker takes at a time; `max_in_flight` says how many it is given."""


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


class Crew:
    """One worker on every node that is there."""

    def __init__(self, panel: Panel, terms: Terms, kept: dict[str, int]) -> None:
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
        """Takes on a worker on every node that is there or joins, until it is cancelled.

        Raises:
            TeacherError: a teacher cannot be asked from one, or there has been none for too long.
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
                    raise TeacherError(
                        "no node of the Ray cluster is there any more. What came before is "
                        "stored: start nodes and give the same command"
                    )
                await asyncio.sleep(_LOOK_SECONDS)

    async def stop(self) -> None:
        """Waits until the run is to end, and tells all workers."""
        await self._terms.stop.wait()
        async with self._changed:
            for member in self._members.values():
                member.actor.stop.remote()
            self._changed.notify_all()

    async def is_there(self) -> bool:
        """Waits for the first worker; whether it came before the run was told to end."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._members or self._terms.stop.is_set())
        return not self._terms.stop.is_set()

    async def place(self, teacher: Teacher) -> Member | None:
        """The worker with most room for another pair, once one has any; None: the run ends."""
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

    async def ask(self, member: Member, teacher: Teacher, job: Job) -> Answers | None:
        """What a worker that was placed got; None where it was lost."""
        in_flight = max(1, self._share(teacher, member))
        try:
            return await member.actor.ask.remote(teacher.name, job, in_flight)
        except RayTaskError:
            raise  # a fault of ours, not of the node
        except RayError:
            await self._lose(member)
            return None
        finally:
            async with self._changed:
                member.begun[teacher.name] -= 1
                self._changed.notify_all()

    def _room(self, teacher: Teacher, member: Member) -> int:
        most = self._share(teacher, member) * len(teacher.base_urls)
        return most - member.begun[teacher.name]

    def _share(self, teacher: Teacher, member: Member) -> int:
        """Requests at a time at each replica from a worker's node."""
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
                    raise TeacherError(failure)
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
        """Says once what is wrong with a node; it is tried again."""
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
