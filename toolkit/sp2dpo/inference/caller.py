"""Send requests to all replicas of one model, with routing, concurrency limits and retries.

A request with a transient error is retried until the model has not answered any request for
`patience` seconds. A request that keeps failing while others are answered fails permanently.
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
from sp2dpo.inference.connection import proxy_notice
from sp2dpo.inference.replicas import Replica, Replicas

_MAX_FAILURES = 10
"""Number of failures after which a request fails permanently, if others are answered meanwhile."""
_FIRST_PAUSE = 0.25
"""Seconds between the first failure and the first retry; later pauses are longer."""

Messages = list[dict[str, str]]
Answer = TypeVar("Answer")


class StopRequested(Exception):
    """The run was asked to stop; requests that were not sent remain pending."""


@dataclass(kw_only=True)
class Route:
    """The replica that gets all requests with a common prefix, so that its prefix cache is used.

    Attributes:
        key: Key that these requests have in common.
        replica: Replica to send them to; replaced by another one if it fails.
    """

    key: str
    replica: Replica


@dataclass(kw_only=True)
class _Failures:
    """The failures of one request so far.

    Attributes:
        count: Number of failures.
        last_time: Time of the last failure.
        others_answered: Whether another request that was sent between the last two failures has
            been answered. A request that was sent earlier does not count, because its answer does
            not show that the server was still running.
    """

    count: int
    last_time: float
    others_answered: bool = False


class Caller:
    """Send requests to the replicas of one model.

    Attributes:
        context: Context length of the model in tokens, set by `check`; None if no server reports
            it.
        known_good: Messages of a request that was answered; None before the first answer.
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
        """Prepare to send requests.

        Args:
            client: Client of the model.
            urls: Base URLs of its replicas.
            patience: Seconds without any answer after which the run ends.
            stop: Event that stops the run; once it is set, no more requests are sent.
            is_starting: Returns whether a server of this run is restarting; the time until it is
                ready does not count as an outage.
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
        """Time at which the most recent request with an answer was sent."""
        self._silent_since: float | None = None

    @property
    def max_requests(self) -> int:
        """Largest number of requests in flight at all replicas together."""
        return self._client.endpoint.max_in_flight * len(self._urls)

    async def check(self) -> list[str]:
        """Check that at least one replica is reachable and that all reachable ones serve the model.

        Returns:
            A notice for each unreachable replica, which is tried again later, for each proxy, and
            for each replica that was asked a question because it does not list the model.

        Raises:
            EndpointError: If none is reachable, or one refuses access or serves another model.
        """
        checks, unavailable = [], []
        for url in self._urls:
            try:
                checks.append(
                    await self._client.check(url, patience=self._patience, pause=self._pause)
                )
            except StopRequested:  # no request is sent after it
                return []
            except Unavailable as error:
                unavailable.append(error)
        if not checks:
            raise unavailable[0]
        limits = [check.context for check in checks if check.context is not None]
        # A request may go to any of the replicas, so the smallest limit counts.
        self.context = min(limits) if limits else None
        notices = [check.notice for check in checks if check.notice is not None]
        return [
            *self._proxy_notices(),
            *notices,
            *(f"{error}; using the other replicas meanwhile" for error in unavailable),
        ]

    def _proxy_notices(self) -> list[str]:
        label = self._client.endpoint.label
        proxies = {url: self._client.proxy(url) for url in self._urls}
        lines = [proxy_notice(label, url, proxy) for url, proxy in proxies.items() if proxy]
        # Replicas at one host differ in their ports alone.
        return list(dict.fromkeys(lines))

    def route(self, key: str) -> Route:
        """Return the route for all requests that share a key."""
        return Route(key=key, replica=self._replicas.pick(key))

    async def ask(self, messages: Messages, attempt: int, route: Route) -> Reply:
        """Send a chat, with retries, exponential backoff and jitter, and return the reply.

        Raises:
            StopRequested: If the run was asked to stop.
            Declined: If the server refuses this request.
            Unavailable: If this request fails permanently while others are answered.
            EndpointError: If nothing was answered for too long, or the server refuses access.
        """
        reply = await self.retry(lambda url: self._client.ask(url, messages, attempt), route)
        self.known_good = messages
        return reply

    async def retry(self, send: Callable[[str], Awaitable[Answer]], route: Route) -> Answer:
        """Send a request until it is answered; raises like `ask`.

        Args:
            send: Sends the request to the replica at a base URL.
            route: Route of the request.
        """
        try:
            return await self._send(send, route)
        except Unavailable as error:
            # Other requests have already waited that long in vain; this one does not start anew.
            if self._silence() > self._patience:
                raise self._outage(error) from error
            failures = _Failures(count=_is_request_failure(error), last_time=time.monotonic())
            wait = error.wait
        retry = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(Unavailable),
            wait=lambda state: min(_backoff(state), self._patience_left()),
            stop=lambda _: self._silence() > self._patience or _always_fails(failures),
            sleep=self._pause,
            reraise=True,
        )
        # Jitter, so that requests that failed together do not return together.
        pause = max(wait, random.uniform(_FIRST_PAUSE, 2 * _FIRST_PAUSE))
        await self._pause(min(pause, self._patience_left()))
        try:
            return await retry(self._send_again, send, route, failures)
        except Unavailable as error:
            # A request that always gets status 429 fails permanently, too, if the probe succeeds.
            is_limited = error.reason == "http-429" and await self._probe(route)
            if not error.is_ours and (_always_fails(failures) or is_limited):
                raise
            raise self._outage(error) from error

    def _outage(self, last: Unavailable) -> EndpointError:
        if last.is_ours:
            return EndpointError(
                f"{last}; no request could be sent for {self._silence():.0f} s. Replies received so"
                " far are stored: run the same command again, which continues"
            )
        return EndpointError(
            f"{last}; no answer for {self._silence():.0f} s. Replies received so far are stored: "
            "restart the server and run the same command again, or set a longer --patience"
        )

    async def _send_again(
        self, send: Callable[[str], Awaitable[Answer]], route: Route, failures: _Failures
    ) -> Answer:
        try:
            return await self._send(send, route)
        except Unavailable as error:
            failures.count += _is_request_failure(error)
            failures.others_answered = self._answered > failures.last_time
            failures.last_time = time.monotonic()
            # The next failure may be the last. If the probe is answered, it sets `others_answered`.
            if failures.count >= _MAX_FAILURES - 1 and not failures.others_answered:
                await self._probe(route)
            raise

    async def _probe(self, route: Route) -> bool:
        """Return whether a request that was answered before is answered again."""
        # This distinguishes a request that the server cannot answer from a server that is down.
        messages = self.known_good
        if messages is None:
            return False
        try:
            await self._send(lambda url: self._client.ask(url, messages, 0), route)
        except (Unavailable, Declined):
            return False
        return True

    async def _send(self, send: Callable[[str], Awaitable[Answer]], route: Route) -> Answer:
        """Send once the replica has a free slot; switch to another one if it goes down first."""
        while True:
            replica = route.replica
            await replica.limit.acquire()
            if replica.is_up(time.monotonic(), has_slot=True):
                break
            route.replica = self._replicas.pick_other(route.key, than=replica)
            # No other one is up, so this attempt shows whether this one is up again.
            if route.replica is replica:
                break
            replica.limit.release()
        # Taken after the wait for a slot: the latency is the server's alone, and `_answered` is a
        # time of sending.
        started = time.monotonic()
        try:
            # Checked after the wait for a slot, because that may have been long.
            if self._stop.is_set():
                raise StopRequested
            answer = await send(replica.url)
        except Unavailable as error:
            self._failed(replica, error)
            # Overload passes, and no other replica has the pair's prefix in its cache.
            if error.reason != "http-429" and not error.is_ours:
                route.replica = self._replicas.pick_other(route.key, than=replica)
            raise
        except Declined:
            replica.answered()
            raise
        finally:
            replica.limit.release()
        if isinstance(answer, Reply):  # the latency of counting tokens is not comparable
            replica.succeeded(time.monotonic() - started)
        else:
            replica.answered()
        # Answers arrive in another order than their requests were sent.
        self._answered = max(self._answered, started)
        self._silent_since = None
        return answer

    def _failed(self, replica: Replica, error: Unavailable) -> None:
        now = time.monotonic()
        if self._silent_since is None:
            self._silent_since = now
        # A refusal such as 429 shows that the replica runs; these errors may mean that it does not.
        if error.lost or error.reason.startswith("http-5"):
            replica.failed(now)
        # A lone timeout among quick replies is the fault of that request, not a sign of overload.
        if error.overloaded and not (
            error.lost and replica.is_quick(self._client.endpoint.timeout)
        ):
            replica.limit.congested()

    def _silence(self) -> float:
        """Return the seconds since the first failure after the last answer."""
        if self._is_starting():
            self._silent_since = None
        return 0.0 if self._silent_since is None else time.monotonic() - self._silent_since

    def _patience_left(self) -> float:
        """Return the seconds after which the run ends; no wait is longer, whoever asks for it."""
        # A little more, so that the failure after the wait is the last one.
        return max(0.0, self._patience - self._silence()) + _FIRST_PAUSE

    async def _pause(self, seconds: float) -> None:
        """Sleep; raise StopRequested as soon as the run is asked to stop."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stop.wait()
        if self._stop.is_set():
            raise StopRequested


_exponential = tenacity.wait_exponential(multiplier=0.5, max=8) + tenacity.wait_random(0, 1)


def _always_fails(failures: _Failures) -> bool:
    return failures.count >= _MAX_FAILURES and failures.others_answered


def _is_request_failure(failure: Unavailable) -> bool:
    """Return whether the request itself may have caused a failure; 429 is only overload."""
    return failure.reason != "http-429" and not failure.is_ours


def _backoff(state: tenacity.RetryCallState) -> float:
    """Return the seconds until the next retry, at least the server's Retry-After."""
    failure = state.outcome.exception() if state.outcome else None
    wait = failure.wait if isinstance(failure, Unavailable) else 0.0
    return max(wait + random.uniform(0, 1), _exponential(state)) if wait else _exponential(state)
