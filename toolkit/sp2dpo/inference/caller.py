"""Calling one model at all its servers: which one, how many at once, what is tried again, how long.

A fault that may pass is tried again until nothing at all has been answered for the outage budget. A
request that fails again and again while others are answered in between fails for good.
"""

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import tenacity

from sp2dpo.inference.client import Client, Declined, EndpointError, Reply, Unavailable
from sp2dpo.inference.replicas import Replica, Replicas

_POISONED = 10
"""Failures after which a request fails for good, if others are answered meanwhile."""
_FIRST_PAUSE = 0.25
"""Seconds between the first failure and the second try; the pauses grow from there."""

Messages = list[dict[str, str]]
Answer = TypeVar("Answer")


class StopRequested(Exception):
    """The run is to end; what has not been sent stays pending."""


@dataclass(kw_only=True)
class Route:
    """Where requests that begin alike go: to one replica, until it fails.

    Attributes:
        key: what they have in common.
        replica: that they go to.
    """

    key: str
    replica: Replica


@dataclass(kw_only=True)
class _Failures:
    """A request that has failed.

    Attributes:
        failures: how often.
        last: when it did so last.
        alone: whether another request was sent after the failure before that, and was answered. A
            reply that was in flight all the time says nothing of a server that has gone since.
    """

    count: int
    last_time: float
    alone: bool = False


class Caller:
    """One model, to be called on all its replicas.

    Attributes:
        context: the longest context of the model in tokens, once `check` has asked; None where no
            server tells.
        known_good: the messages of a request that was answered; None before the first.
    """

    def __init__(
        self,
        client: Client,
        urls: tuple[str, ...],
        *,
        patience: float,
        stop: asyncio.Event,
        is_starting: Callable[[], bool] = lambda: False,
    ) -> None:
        """Nothing is sent yet.

        Args:
            client: the model.
            urls: of its replicas.
            patience: seconds for which nothing may be answered before the run ends.
            stop: set when nothing more is to be sent.
            is_starting: Tells whether one of our servers is restarting; silence is then not an
                outage.
        """
        self.context: int | None = None
        self.known_good: Messages | None = None
        self._client = client
        self._urls = urls
        self._replicas = Replicas(urls, ceiling=client.endpoint.max_in_flight)
        self._patience = patience
        self._stop = stop
        self._is_starting = is_starting
        self._answered = float("-inf")
        """When the latest request that was answered was sent."""
        self._silent_since: float | None = None

    @property
    def max_requests(self) -> int:
        """Requests that may ever be in flight, all replicas together."""
        return self._client.endpoint.max_in_flight * len(self._urls)

    async def check(self) -> list[str]:
        """Looks whether the replicas are there and serve the model; one at least must be.

        Returns:
            What is to be said of those that are not there; they are asked again later.

        Raises:
            EndpointError: none is there, or one refuses us or serves another model.
        """
        contexts, unavailable = [], []
        for url in self._urls:
            try:
                contexts.append(await self._client.check(url))
            except Unavailable as error:
                unavailable.append(error)
        if not contexts:
            raise unavailable[0]
        limits = [context for context in contexts if context is not None]
        self.context = min(limits) if limits else None
        return [f"{error}; the other replicas are asked meanwhile" for error in unavailable]

    def route(self, key: str) -> Route:
        """Where requests with this key begin."""
        return Route(key=key, replica=self._replicas.pick(key))

    async def ask(self, messages: Messages, attempt: int, route: Route) -> Reply:
        """Sends a chat until it is answered, with backoff and jitter.

        Raises:
            StopRequested: the run is to end.
            Declined: the server will not answer this request.
            Unavailable: this request fails for good, while others are answered.
            EndpointError: nothing was answered for too long, or we are refused.
        """
        reply = await self.retry(lambda url: self._client.ask(url, messages, attempt), route)
        self.known_good = messages
        return reply

    async def retry(self, send: Callable[[str], Awaitable[Answer]], route: Route) -> Answer:
        """Send a request until it is answered; raises like `ask`.

        Args:
            send: Sends the request to the replica whose address it is given.
            route: Replica to start with.
        """
        try:
            return await self._send(send, route)
        except Unavailable as error:
            if self._silence() > self._patience:
                raise self._outage(error) from error
            failures = _Failures(count=_is_request_failure(error), last_time=time.monotonic())
            wait = error.wait
        retry = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(Unavailable),
            wait=_backoff,
            stop=lambda _: self._silence() > self._patience or _always_fails(failures),
            sleep=self._pause,
            reraise=True,
        )
        await self._pause(max(wait, random.uniform(_FIRST_PAUSE, 2 * _FIRST_PAUSE)))
        try:
            return await retry(self._send_again, send, route, failures)
        except Unavailable as error:
            # One that is told to wait for ever, while another is answered, is refused as well.
            if _always_fails(failures) or (
                not _is_request_failure(error) and await self._probe(route)
            ):
                raise
            raise self._outage(error) from error

    def _outage(self, last: Unavailable) -> EndpointError:
        return EndpointError(
            f"{last}; nothing came for {self._silence():.0f} s. What came before is stored: start "
            "the server again and give the same command, or wait longer with --patience"
        )

    async def _send_again(
        self, send: Callable[[str], Awaitable[Answer]], route: Route, failures: _Failures
    ) -> Answer:
        try:
            return await self._send(send, route)
        except Unavailable as error:
            failures.count += _is_request_failure(error)
            failures.alone = self._answered > failures.last_time
            failures.last_time = time.monotonic()
            if failures.count >= _POISONED - 1 and not failures.alone:
                await self._probe(route)  # the next failure tells
            raise

    async def _probe(self, route: Route) -> bool:
        """Asks once more what was answered before: is it the request that fails, or the server?"""
        good = self.known_good
        if good is None:
            return False
        try:
            await self._send(lambda url: self._client.ask(url, good, 0), route)
        except (Unavailable, Declined):
            return False
        return True

    async def _send(self, send: Callable[[str], Awaitable[Answer]], route: Route) -> Answer:
        """Sends once, when the replica has room for it; elsewhere if it goes down meanwhile."""
        while True:
            replica = route.replica
            await replica.limit.acquire()
            if replica.may_be_asked(time.monotonic()):
                break
            route.replica = self._replicas.pick_other(route.key, than=replica)
            if route.replica is replica:
                break
            replica.limit.release()
        started = time.monotonic()
        try:
            if self._stop.is_set():
                raise StopRequested
            answer = await send(replica.url)
        except Unavailable as error:
            self._failed(replica, error)
            if error.reason != "http-429":
                route.replica = self._replicas.pick_other(route.key, than=replica)
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
        if error.overloaded and not (
            error.lost and replica.is_quick(self._client.endpoint.timeout)
        ):
            replica.limit.congested()

    def _silence(self) -> float:
        """Seconds since the first failure after the last answer."""
        if self._is_starting():
            self._silent_since = None
        return 0.0 if self._silent_since is None else time.monotonic() - self._silent_since

    async def _pause(self, seconds: float) -> None:
        """Waits, but not beyond the end of the run."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stop.wait()
        if self._stop.is_set():
            raise StopRequested


_exponential = tenacity.wait_exponential(multiplier=0.5, max=8) + tenacity.wait_random(0, 1)


def _always_fails(failures: _Failures) -> bool:
    return failures.count >= _POISONED and failures.alone


def _is_request_failure(failure: Unavailable) -> bool:
    """Whether a failure may be the request's own fault: being told to wait is not."""
    return failure.reason != "http-429"


def _backoff(state: tenacity.RetryCallState) -> float:
    """Seconds until the next try; not before the server's Retry-After."""
    failure = state.outcome.exception() if state.outcome else None
    wait = failure.wait if isinstance(failure, Unavailable) else 0.0
    return max(wait + random.uniform(0, 1), _exponential(state)) if wait else _exponential(state)
