"""Ask one teacher about pairs, and record its replies."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from sp2dpo.inference.caller import Caller, Messages, Route, StopRequested
from sp2dpo.inference.client import Client, Declined, EndpointError, Unavailable
from sp2dpo.panel.advice import advise
from sp2dpo.panel.annotation import Key
from sp2dpo.panel.rubric import Rubric
from sp2dpo.store.questions import Job, Question
from sp2dpo.store.records import UNREADABLE, ReplyRecord, record_refusal, record_reply

NOTHING_READABLE = "nothing-readable"
"""Reason of the EndpointError if a teacher replies, but no reply can be parsed."""
_HOPELESS = 20
"""Give up on a teacher after this many replies if none of them could be parsed."""
_TEMPLATE = 1000
"""Maximum number of tokens that a chat template adds; text has at most one token per byte."""

Take = Callable[[ReplyRecord, bool], Awaitable[None]]
"""Called with every reply, and whether it is the last one to its question."""


class TeacherSession:
    """Sends questions to all replicas of one teacher."""

    def __init__(
        self,
        client: Client,
        rubric: Rubric,
        urls: tuple[str, ...],
        *,
        patience: float,
        stop: asyncio.Event,
        kept_replies: int = 0,
        is_starting: Callable[[], bool] = lambda: False,
    ) -> None:
        """Create a session; nothing is sent yet.

        Args:
            client: Client of the teacher.
            rubric: Rubric of the questions.
            urls: Base URLs of the replicas.
            patience: Seconds without any reply after which the run ends.
            stop: Set when no more requests should be sent.
            kept_replies: Number of replies in the store that could be parsed.
            is_starting: Returns whether missing replies are expected because a server restarts.
        """
        self.teacher = client.endpoint
        self._caller = Caller(client, urls, patience=patience, stop=stop, is_starting=is_starting)
        self._client = client
        self._rubric = rubric
        self._outcomes = Counter(kept=kept_replies)
        self._details: dict[str, str] = {}
        self._failure: EndpointError | None = None

    @property
    def max_requests(self) -> int:
        """Maximum number of in-flight requests, all replicas together."""
        return self._caller.max_requests

    async def check(self) -> list[str]:
        """Check that the replicas respond and serve the model; see `Caller.check`."""
        return await self._caller.check()

    async def ask(self, job: Job, take: Take) -> None:
        """Ask all questions about a pair at one replica, and pass each reply to `take`.

        Raises:
            EndpointError: If the teacher cannot be reached, sends no reply for too long, or sends
                only unreadable replies.
        """
        orders = {question.key.order for question in job.questions}
        # Rendered once per order, because the requests of all variants begin with it.
        shared = {order: self._rubric.shared(job.pair, order) for order in orders}
        route = self._caller.route(job.pair.id)
        if self.teacher.warm_prefix:  # one request fills the prefix cache for the others
            # Reversed, so that of each order the first question remains in the mapping.
            ahead = {question.key.order: question for question in reversed(job.questions)}
            await self._ask_questions(job, list(ahead.values()), shared, route, take)
            remaining = [question for question in job.questions if question not in ahead.values()]
            await self._ask_questions(job, remaining, shared, route, take)
        else:
            await self._ask_questions(job, job.questions, shared, route, take)

    async def _ask_questions(
        self,
        job: Job,
        questions: Sequence[Question],
        shared: dict[str, str],
        route: Route,
        take: Take,
    ) -> None:
        async with asyncio.TaskGroup() as group:
            for question in questions:
                group.create_task(self._ask_question(job, question, shared, route, take))

    async def _ask_question(
        self, job: Job, question: Question, shared: dict[str, str], route: Route, take: Take
    ) -> None:
        key = question.key
        messages = self._rubric.messages(job.pair, key.variant, key.order, shared=shared[key.order])
        while True:
            try:
                record = await self._ask_once(key, messages, route)
            # Nothing is recorded, so the question stays pending.
            except StopRequested:
                return
            final = record.reason not in UNREADABLE or key.attempt >= question.last
            await take(record, final)
            if final:
                self._count(record)
                return
            key = replace(key, attempt=key.attempt + 1)

    async def _ask_once(self, key: Key, messages: Messages, route: Route) -> ReplyRecord:
        try:
            if excess := await self._excess(messages, route):
                return record_refusal(key, "too-long", excess)
            reply = await self._caller.ask(messages, key.attempt, route)
        except Declined as error:
            return record_refusal(key, error.reason, str(error))
        except Unavailable as error:
            return record_refusal(key, error.reason, f"fails while others are answered: {error}")
        return record_reply(key, reply, self._rubric)

    async def _excess(self, messages: Messages, route: Route) -> str | None:
        """Return why a request exceeds the model's context; None if it fits."""
        if self._caller.context is None:
            return None
        max_tokens = self.teacher.token_limit
        room = self._caller.context - max_tokens
        # How many tokens an image takes, only the server knows: it declines what is too long.
        if any(not isinstance(message["content"], str) for message in messages):
            return None
        # This upper bound spares most requests the server's count.
        if sum(len(message["content"].encode()) for message in messages) + _TEMPLATE <= room:
            return None
        tokens = await self._caller.retry(
            lambda url: self._client.count_tokens(url, messages), route
        )
        if tokens is None or tokens <= room:
            return None
        limit = self._caller.context
        return f"{tokens} tokens and max_tokens {max_tokens} exceed the model's {limit}"

    def _count(self, record: ReplyRecord) -> None:
        """Count a reply. Raise EndpointError if none of many replies could be parsed."""
        if record.reason == "too-long":  # no request was sent
            return
        self._outcomes[record.reason or "kept"] += 1
        if record.reason:
            self._details.setdefault(record.reason, record.detail or "")
        if self._outcomes["kept"] or self._outcomes.total() < _HOPELESS:
            return
        if self._failure is None:  # replies in flight would count further before the run ends
            reasons = ", ".join(f"{why} {n}" for why, n in self._outcomes.most_common() if n)
            self._failure = EndpointError(
                f"teacher {self.teacher.name}: none of its first {self._outcomes.total()} replies "
                f"can be read ({reasons}); {self._advice()}",
                reason=NOTHING_READABLE,
            )
        raise self._failure

    def _advice(self) -> str:
        """Return what to do about the most frequent reason of the refusals."""
        reason = max(self._details, key=lambda reason: self._outcomes[reason])
        return advise(reason, self._details[reason], structured=self.teacher.structured)
