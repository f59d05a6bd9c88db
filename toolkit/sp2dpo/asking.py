"""Asking one teacher about pairs: which replica, how many at once, what is tried again, how long.

A fault that may pass is tried again until the teacher has answered nothing at all for the outage
budget. A request that fails again and again while others are answered in between is refused.
"""

import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import tenacity

from sp2dpo.annotations import Key
from sp2dpo.backlog import Job, Question
from sp2dpo.entries import UNREADABLE, Entry, judged, refused
from sp2dpo.faults import Declined, TeacherError, Unavailable
from sp2dpo.replicas import Replica, Replicas
from sp2dpo.replies import Reply
from sp2dpo.rubric import Rubric
from sp2dpo.teachers import Client

_POISONED = 10
"""Failures after which a request is refused, if the teacher answers others meanwhile."""
_HOPELESS = 20
"""A teacher that has sent so many replies, and none that can be read, is not asked on."""
_FIRST_PAUSE = 0.25
"""Seconds between the first failure and the second try; the pauses grow from there."""
_TEMPLATE = 1000
"""Tokens that a chat template adds at most; what it wraps takes no more tokens than bytes."""

Messages = list[dict[str, str]]
Take = Callable[[Entry, bool], Awaitable[None]]
"""Is handed every reply, and whether it is the last to its key."""
Answer = TypeVar("Answer")


class Stopped(Exception):
    """The run is to end; what has not been sent stays pending."""


@dataclass(kw_only=True)
class _Place:
    """The questions about a pair: all go to one replica, until it fails, and begin alike."""

    pair_id: str
    replica: Replica
    shared: dict[str, str]


@dataclass(kw_only=True)
class _Trouble:
    """A request that has failed.

    Attributes:
        failures: how often.
        last: when it did so last.
        alone: whether another request was sent after the failure before that, and was answered. A
            reply that was in flight all the time says nothing of a server that has gone since.
    """

    failures: int
    last: float
    alone: bool = False


class Asking:
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
        self.teacher = client.teacher
        self._replicas = Replicas(urls, ceiling=self.teacher.max_in_flight)
        self._urls = urls
        self._client = client
        self._rubric = rubric
        self._patience = patience
        self._stop = stop
        self._excused = excused
        self._context: int | None = None
        self._outcomes = Counter(kept=kept)
        self._answered = float("-inf")
        """When the latest request that was answered was sent."""
        self._silent_since: float | None = None
        self._known_good: Messages | None = None

    @property
    def most(self) -> int:
        """Requests that may ever be in flight, all replicas together."""
        return self.teacher.max_in_flight * len(self._urls)

    async def check(self) -> list[str]:
        """Looks whether the replicas are there and serve the model; one at least must be.

        Returns:
            What is to be said of those that are not there; they are asked again later.

        Raises:
            TeacherError: none is there, or one refuses us or serves another model.
        """
        contexts, away = [], []
        for url in self._urls:
            try:
                contexts.append(await self._client.check(url))
            except Unavailable as error:
                away.append(error)
        if not contexts:
            raise away[0]
        known = [context for context in contexts if context is not None]
        self._context = min(known) if known else None
        return [f"{error}; the other replicas are asked meanwhile" for error in away]

    async def job(self, job: Job, take: Take) -> None:
        """Asks all questions about a pair on one replica, and hands on what comes back.

        Raises:
            TeacherError: the teacher cannot be asked, has been silent for too long, or says
                nothing that can be read.
        """
        orders = {question.key.order for question in job.questions}
        place = _Place(
            pair_id=job.pair.id,
            replica=self._replicas.of(job.pair.id),
            shared={order: self._rubric.shared(job.pair, order) for order in orders},
        )
        if self.teacher.warm_prefix:  # what goes ahead is read before the others are sent
            ahead = {question.key.order: question for question in reversed(job.questions)}
            await self._all(job, list(ahead.values()), place, take)
            others = [one for one in job.questions if one not in ahead.values()]
            await self._all(job, others, place, take)
        else:
            await self._all(job, job.questions, place, take)

    async def _all(
        self, job: Job, questions: Sequence[Question], place: _Place, take: Take
    ) -> None:
        async with asyncio.TaskGroup() as group:
            for question in questions:
                group.create_task(self._question(job, question, place, take))

    async def _question(self, job: Job, question: Question, place: _Place, take: Take) -> None:
        key = question.key
        messages = self._rubric.messages(
            job.pair, key.variant, key.order, shared=place.shared[key.order]
        )
        while True:
            try:
                entry = await self._entry(key, messages, place)
            except Stopped:
                return
            final = entry.reason not in UNREADABLE or key.attempt >= question.last
            await take(entry, final)
            if final:
                self._count(entry)
                return
            key = replace(key, attempt=key.attempt + 1)

    async def _entry(self, key: Key, messages: Messages, place: _Place) -> Entry:
        try:
            if excess := await self._excess(messages, place):
                return refused(key, "too-long", excess)
            reply = await self._patiently(
                lambda url: self._client.ask(url, messages, key.attempt), place
            )
        except Declined as error:
            return refused(key, f"http-{error.status}", str(error))
        except Unavailable as error:
            return refused(key, error.reason, f"fails while others are answered: {error}")
        self._known_good = messages
        return judged(key, reply, self._rubric)

    async def _excess(self, messages: Messages, place: _Place) -> str | None:
        """Why a request does not fit into the model's context; None where it does."""
        if self._context is None:
            return None
        most = self.teacher.sampling["max_tokens"]
        room = self._context - most
        if sum(len(one["content"].encode()) for one in messages) + _TEMPLATE <= room:
            return None
        tokens = await self._patiently(lambda url: self._client.tokens(url, messages), place)
        if tokens is None or tokens <= room:
            return None
        return f"{tokens} tokens and max_tokens {most} exceed the model's {self._context}"

    async def _patiently(self, send: Callable[[str], Awaitable[Answer]], place: _Place) -> Answer:
        """Sends until there is an answer, with backoff and jitter.

        Raises:
            Unavailable: this request fails for good, while others are answered.
            TeacherError: the teacher has been silent for too long.
        """
        try:
            return await self._send(send, place)
        except Unavailable as error:
            if self._silence() > self._patience:
                raise self._outage(error) from error
            trouble = _Trouble(failures=_counts(error), last=time.monotonic())
            asked = error.wait
        retry = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(Unavailable),
            wait=_backoff,
            stop=lambda _: self._silence() > self._patience or _is_poisoned(trouble),
            sleep=self._pause,
            reraise=True,
        )
        await self._pause(max(asked, random.uniform(_FIRST_PAUSE, 2 * _FIRST_PAUSE)))
        try:
            return await retry(self._again, send, place, trouble)
        except Unavailable as error:
            # One that is told to wait for ever, while another is answered, is refused as well.
            if _is_poisoned(trouble) or (not _counts(error) and await self._probe(place)):
                raise
            raise self._outage(error) from error

    def _outage(self, last: Unavailable) -> TeacherError:
        return TeacherError(
            f"{last}; nothing came for {self._silence():.0f} s. What came before is stored: start "
            "the server again and give the same command, or wait longer with --patience"
        )

    async def _again(
        self, send: Callable[[str], Awaitable[Answer]], place: _Place, trouble: _Trouble
    ) -> Answer:
        try:
            return await self._send(send, place)
        except Unavailable as error:
            trouble.failures += _counts(error)
            trouble.alone = self._answered > trouble.last
            trouble.last = time.monotonic()
            if trouble.failures >= _POISONED - 1 and not trouble.alone:
                await self._probe(place)  # the next failure tells
            raise

    async def _probe(self, place: _Place) -> bool:
        """Asks once more what was answered before: is it the request that fails, or the server?"""
        good = self._known_good
        if good is None:
            return False
        try:
            await self._send(lambda url: self._client.ask(url, good, 0), place)
        except (Unavailable, Declined):
            return False
        return True

    async def _send(self, send: Callable[[str], Awaitable[Answer]], place: _Place) -> Answer:
        """Sends once, when the replica has room for it; elsewhere if it goes down meanwhile."""
        while True:
            replica = place.replica
            await replica.limit.acquire()
            if replica.may_be_asked(time.monotonic()):
                break
            place.replica = self._replicas.another(place.pair_id, than=replica)
            if place.replica is replica:
                break
            replica.limit.release()
        started = time.monotonic()
        try:
            if self._stop.is_set():
                raise Stopped
            answer = await send(replica.url)
        except Unavailable as error:
            self._failed(replica, error)
            if error.reason != "http-429":
                place.replica = self._replicas.another(place.pair_id, than=replica)
            raise
        except Declined:
            replica.answered()
            raise
        finally:
            replica.limit.release()
        if isinstance(answer, Reply):  # counting tokens says nothing of the server's pace
            replica.succeeded(time.monotonic() - started)
        else:
            replica.answered()
        self._answered = max(self._answered, started)
        self._silent_since = None
        return answer

    def _failed(self, replica: Replica, error: Unavailable) -> None:
        now = time.monotonic()
        if self._silent_since is None:
            self._silent_since = now
        if error.lost or error.reason.startswith("http-5"):
            replica.failed(now)
        if error.overloaded and not (error.lost and replica.is_quick(self.teacher.timeout)):
            replica.limit.congested()

    def _silence(self) -> float:
        """Seconds since the first failure after the last answer."""
        if self._excused():
            self._silent_since = None
        return 0.0 if self._silent_since is None else time.monotonic() - self._silent_since

    async def _pause(self, seconds: float) -> None:
        """Waits, but not beyond the end of the run."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stop.wait()
        if self._stop.is_set():
            raise Stopped

    def _count(self, entry: Entry) -> None:
        """Stops where none of many replies can be read: the server does not do what is asked."""
        if entry.reason == "too-long":  # nobody was asked
            return
        self._outcomes[entry.reason or "kept"] += 1
        if self._outcomes["kept"] or self._outcomes.total() < _HOPELESS:
            return
        reasons = ", ".join(f"{why} {n}" for why, n in self._outcomes.most_common() if n)
        raise TeacherError(
            f"teacher {self.teacher.name}: none of its first {self._outcomes.total()} replies can "
            f"be read ({reasons}); {_advice(entry)}"
        )


def _advice(entry: Entry) -> str:
    """What to do about a reply that cannot be read."""
    if entry.reason == "length":
        return "raise max_tokens in its sampling"
    if entry.reason and entry.reason.startswith("http-"):
        return f"the server says: {entry.detail}"
    return "does its server support response_format json_schema?"


_exponential = tenacity.wait_exponential(multiplier=0.5, max=8) + tenacity.wait_random(0, 1)


def _is_poisoned(trouble: _Trouble) -> bool:
    return trouble.failures >= _POISONED and trouble.alone


def _counts(failure: Unavailable) -> bool:
    """Whether a failure may be the request's own fault: being told to wait is not."""
    return failure.reason != "http-429"


def _backoff(state: tenacity.RetryCallState) -> float:
    """Seconds until the next try; not before the server's Retry-After."""
    failure = state.outcome.exception() if state.outcome else None
    asked = failure.wait if isinstance(failure, Unavailable) else 0.0
    return max(asked + random.uniform(0, 1), _exponential(state)) if asked else _exponential(state)
