"""Asking one teacher about pairs: what is asked, and what its replies are counted as."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from sp2dpo.inference.caller import Caller, Messages, Route, StopRequested
from sp2dpo.inference.client import Client, Declined, EndpointError, Unavailable
from sp2dpo.panel.annotation import Key
from sp2dpo.panel.rubric import Rubric
from sp2dpo.store.questions import Job, Question
from sp2dpo.store.records import UNREADABLE, ReplyRecord, record_refusal, record_reply

_HOPELESS = 20
"""A teacher that has sent so many replies, and none that can be read, is not asked on."""
_TEMPLATE = 1000
"""Tokens that a chat template adds at most; what it wraps takes no more tokens than bytes."""

Take = Callable[[ReplyRecord, bool], Awaitable[None]]
"""Is handed every reply, and whether it is the last to its key."""


class TeacherSession:
    """One teacher being asked, on all its replicas."""

    def __init__(
        self,
        client: Client,
        rubric: Rubric,
        urls: tuple[str, ...],
        *,
        patience: float,
        stop: asyncio.Event,
        kept: int = 0,
        excused: Callable[[], bool] = lambda: False,
    ) -> None:
        """Nothing is sent yet.

        Args:
            client: the teacher.
            rubric: what it is told.
            urls: of its replicas.
            patience: seconds for which nothing may be answered before the run ends.
            stop: set when nothing more is to be sent.
            kept: replies of this teacher that could be read before.
            excused: whether silence is no outage now, as a server of ours is starting again.
        """
        self.teacher = client.endpoint
        self._calling = Caller(client, urls, patience=patience, stop=stop, is_starting=excused)
        self._client = client
        self._rubric = rubric
        self._outcomes = Counter(kept=kept)

    @property
    def most(self) -> int:
        """Requests that may ever be in flight, all replicas together."""
        return self._calling.max_requests

    async def check(self) -> list[str]:
        """Looks whether the replicas are there and serve the model; see `Calling.check`."""
        return await self._calling.check()

    async def job(self, job: Job, take: Take) -> None:
        """Asks all questions about a pair on one replica, and hands on what comes back.

        Raises:
            EndpointError: the teacher cannot be asked, has been silent for too long, or says
                nothing that can be read.
        """
        orders = {question.key.order for question in job.questions}
        shared = {order: self._rubric.shared(job.pair, order) for order in orders}
        place = self._calling.route(job.pair.id)
        if self.teacher.warm_prefix:  # what goes ahead is read before the others are sent
            ahead = {question.key.order: question for question in reversed(job.questions)}
            await self._all(job, list(ahead.values()), shared, place, take)
            others = [one for one in job.questions if one not in ahead.values()]
            await self._all(job, others, shared, place, take)
        else:
            await self._all(job, job.questions, shared, place, take)

    async def _all(
        self,
        job: Job,
        questions: Sequence[Question],
        shared: dict[str, str],
        place: Route,
        take: Take,
    ) -> None:
        async with asyncio.TaskGroup() as group:
            for question in questions:
                group.create_task(self._question(job, question, shared, place, take))

    async def _question(
        self, job: Job, question: Question, shared: dict[str, str], place: Route, take: Take
    ) -> None:
        key = question.key
        messages = self._rubric.messages(job.pair, key.variant, key.order, shared=shared[key.order])
        while True:
            try:
                entry = await self._entry(key, messages, place)
            except StopRequested:
                return
            final = entry.reason not in UNREADABLE or key.attempt >= question.last
            await take(entry, final)
            if final:
                self._count(entry)
                return
            key = replace(key, attempt=key.attempt + 1)

    async def _entry(self, key: Key, messages: Messages, place: Route) -> ReplyRecord:
        try:
            if excess := await self._excess(messages, place):
                return record_refusal(key, "too-long", excess)
            reply = await self._calling.ask(messages, key.attempt, place)
        except Declined as error:
            return record_refusal(key, f"http-{error.status}", str(error))
        except Unavailable as error:
            return record_refusal(key, error.reason, f"fails while others are answered: {error}")
        return record_reply(key, reply, self._rubric)

    async def _excess(self, messages: Messages, place: Route) -> str | None:
        """Why a request does not fit into the model's context; None where it does."""
        if self._calling.context is None:
            return None
        most = self.teacher.sampling["max_tokens"]
        room = self._calling.context - most
        if sum(len(one["content"].encode()) for one in messages) + _TEMPLATE <= room:
            return None
        tokens = await self._calling.retry(
            lambda url: self._client.count_tokens(url, messages), place
        )
        if tokens is None or tokens <= room:
            return None
        return f"{tokens} tokens and max_tokens {most} exceed the model's {self._calling.context}"

    def _count(self, entry: ReplyRecord) -> None:
        """Stops where none of many replies can be read: the server does not do what is asked."""
        if entry.reason == "too-long":  # nobody was asked
            return
        self._outcomes[entry.reason or "kept"] += 1
        if self._outcomes["kept"] or self._outcomes.total() < _HOPELESS:
            return
        reasons = ", ".join(f"{why} {n}" for why, n in self._outcomes.most_common() if n)
        raise EndpointError(
            f"teacher {self.teacher.name}: none of its first {self._outcomes.total()} replies can "
            f"be read ({reasons}); {_advice(entry)}"
        )


def _advice(entry: ReplyRecord) -> str:
    """What to do about a reply that cannot be read."""
    if entry.reason == "length":
        return "raise max_tokens in its sampling"
    if entry.reason and entry.reason.startswith("http-"):
        return f"the server says: {entry.detail}"
    return "does its server support response_format json_schema?"
