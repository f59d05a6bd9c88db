"""Choose the replica for a pair, and adapt the number of requests in flight to each replica.

All requests about a pair go to the same replica while it is up, because only the prefix cache of
that server has the pair.
"""

import asyncio
import hashlib
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

START = 8
"""Initial limit. A comparison of rates never sets a lower limit, but congestion may."""
_WORTH = 0.03
_WORTH_SHARE = 0.1
"""A higher limit is worth it if it raises the rate by at least `_WORTH`, and by at least
`_WORTH_SHARE` of the relative increase of requests in flight."""
_IN_STEP = 0.5
"""Latency counts as growing in step with the requests in flight if its relative increase is at
least this share of theirs."""
_RISE = 1.25
"""Factor by which the requests in flight must differ before two rates are compared."""
_MARGIN = 1.1
"""Factor on the requests in flight at the best rate, which gives the lower limit of a trial."""
_OVERTAKE = 2.0
"""Largest ratio of the limit to the requests in flight at the best rate, until a new rate is
measured."""
_STEP = 1.5
"""Factor from a held limit to the next probe, and between the limits of a descending trial."""
_HOLD_SECONDS = 30.0
_HOLD_ROUNDS = 50
"""Shortest time to hold a limit before probing a higher one, in seconds and in rounds."""
_WINDOW_SECONDS = 0.2
"""Shortest time over which a rate is measured, to average out the noise of a fast server."""
_TRIAL_ROUNDS = 3
_TRIAL_REPLIES = 96
"""Least number of rounds, and of replies, that a trial measures at each limit."""
_USED = 0.8
"""Share of the limit that must be in flight; below it, a rate measures our own speed and not the
server's."""


@dataclass(frozen=True, kw_only=True)
class _Rate:
    """A measurement at roughly one limit; by Little's law, `in_flight = per_second * latency`."""

    limit: int
    in_flight: float
    per_second: float
    latency: float
    is_used: bool

    def is_saturated(self, lower: "_Rate") -> bool:
        """Return whether having more requests in flight than `lower` only increased latency."""
        in_step = 1 + _IN_STEP * (self.in_flight / lower.in_flight - 1)
        return not self.is_worth_it(lower) and self.latency >= in_step * lower.latency

    def has_no_gap(self) -> bool:
        """Return whether requests were always in flight, as Little's law requires."""
        return self.per_second * self.latency >= _USED * self.in_flight

    def is_worth_it(self, lower: "_Rate") -> bool:
        return self.per_second >= self._worth(lower) * lower.per_second

    def is_surely_worth_it(self, lower: "_Rate") -> bool:
        """Return whether it is worth it by Little's law, too, as a check against noise."""
        gain = (self.in_flight / self.latency) / (lower.in_flight / lower.latency)
        return self.is_worth_it(lower) and gain >= self._worth(lower)

    def _worth(self, lower: "_Rate") -> float:
        return 1 + max(_WORTH, _WORTH_SHARE * (self.in_flight / lower.in_flight - 1))


class _Window:
    """Measure a rate over a number of replies, after ignoring the first `settling` ones."""

    __slots__ = ("_in_flight", "_latency", "_limits", "_opened", "_replies", "_settling", "_wanted")

    def __init__(self, now: float, *, replies: int, settling: int = 0) -> None:
        self._opened = now
        self._wanted = replies
        self._settling = settling
        self._replies = self._in_flight = self._limits = 0
        self._latency = 0.0

    def add(self, now: float, seconds: float, in_flight: int, limit: int) -> _Rate | None:
        """Count a reply; return the rate once there are enough replies, else None."""
        if self._settling:
            self._settling -= 1
            self._opened = now
            return None
        self._replies += 1
        self._latency += seconds
        self._in_flight += in_flight
        self._limits += limit
        if self._replies < self._wanted or now - self._opened < _WINDOW_SECONDS:
            return None
        return _Rate(
            limit=limit,
            # A slot may be returned before its reply is counted; `_worth` divides by this.
            in_flight=max(1.0, self._in_flight / self._replies),
            per_second=self._replies / (now - self._opened),
            latency=self._latency / self._replies,
            is_used=self._in_flight >= _USED * self._limits,
        )


class Limit:
    """Adaptive limit on the requests in flight to one server; slots are granted in order.

    Until the first congestion, the limit doubles each round (a round is as many replies as the
    limit at its start); above half of the limit at the last congestion, it grows by one per round.
    If a higher limit brings no more replies per second, a trial measures both limits again, one
    directly after the other, and then lower ones until the rate falls. The best limit is then held,
    and a higher one is probed from time to time. The limit grows only while it is reached. Only
    `acquire` waits; there is no background task. This algorithm is our choice.

    Args:
        ceiling: Largest number of requests in flight.
        clock: Monotonic clock in seconds.
    """

    def __init__(self, ceiling: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        if ceiling < 1:
            raise ValueError(f"a limit of {ceiling} lets nothing through; it must be at least 1")
        self._ceiling = ceiling
        self._clock = clock
        self._limit = min(START, ceiling)
        self._in_flight = 0
        self._queue: deque[asyncio.Future[None]] = deque()
        self._waiting = 0
        self._slow_below = ceiling  # below: +1 per reply; above: +1 per round
        self._replies = 0
        self._used_until = 0  # reply count one round after all slots were last taken
        self._grown_at = 0  # reply count at the last +1 for a round
        self._halved_at: int | None = None  # reply count at the last halving
        self._forgiven = 0  # pending results of requests in flight at the last halving
        self._window = _Window(clock(), replies=self._limit)
        self._best: _Rate | None = None  # while rising: best rate so far
        self._lower: int | None = None  # in a trial: lower limit
        self._upper: _Rate | None = None  # in a trial: rate at the higher limit
        self._descends = False  # in a trial: whether to continue with lower limits
        self._has_won = False  # in a trial: whether a lower limit was as good
        self._held_until: tuple[float, int] | None = None  # while held: time and reply count

    @property
    def current(self) -> int:
        """Current limit."""
        return self._limit

    @property
    def in_flight(self) -> int:
        """Number of slots in use; can exceed `current` for a while after the limit fell."""
        return self._in_flight

    @property
    def waiting(self) -> int:
        """Number of callers waiting in `acquire`."""
        return self._waiting

    @property
    def free(self) -> int:
        """Number of slots that `acquire` can grant at once."""
        return max(0, self._limit - self._in_flight)

    async def acquire(self) -> None:
        """Take a slot, after all earlier callers."""
        if self._in_flight < self._limit:  # `_hand_out` ensures that nobody is waiting
            self._take()
            return
        turn = asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        self._waiting += 1
        # Somebody waits, so the limit is reached and may grow for another round.
        self._used_until = self._replies + self._limit
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._waiting -= 1
            else:  # the slot was granted just before the cancellation
                self.release()
            raise

    def release(self) -> None:
        """Return a slot, whether or not the request succeeded."""
        if not self._in_flight:
            raise ValueError("release() without acquire()")
        self._in_flight -= 1
        self._hand_out()

    def succeeded(self, seconds: float) -> None:
        """Record a reply with a latency of `seconds`; call it before or after `release`."""
        self._replies += 1
        self._forgiven = max(0, self._forgiven - 1)
        now = self._clock()
        if self._held_until:
            self._probe(now, *self._held_until)
            return
        rate = self._window.add(now, seconds, self._in_flight, self._limit)
        if self._lower is None:
            self._grow()
            if rate:
                self._compare_rates(rate, now)
        elif rate:
            self._evaluate_trial(rate, self._lower, now)

    def congested(self) -> None:
        """Record overload (429, 503, timeout); several overloads in one round count once.

        Call it before `release`.
        """
        if self._forgiven:
            self._forgiven -= 1
            return
        half = max(1, self._limit // 2)
        if self._halved_at is None or self._replies - self._halved_at >= half:
            self._slow_below = half  # a burst may halve it again: keep the first half
        self._limit = half
        self._halved_at = self._grown_at = self._replies
        # The others were sent under the higher limit, so their overload says nothing about the
        # new one.
        self._forgiven = max(0, self._in_flight - 1)
        self._rise()

    def _take(self) -> None:
        self._in_flight += 1
        if self._in_flight >= self._limit:
            self._used_until = self._replies + self._limit

    def _hand_out(self) -> None:
        while self._queue and self._in_flight < self._limit:
            turn = self._queue.popleft()
            if not turn.done():  # a cancelled caller is done
                self._waiting -= 1
                self._take()
                turn.set_result(None)

    def _move(self, limit: int) -> None:
        self._limit = min(limit, self._ceiling)
        self._hand_out()

    def _grow(self) -> None:
        if self._replies > self._used_until or self._limit >= self._ceiling:
            return
        if self._best and self._limit >= _OVERTAKE * self._best.in_flight:
            return
        if self._limit < self._slow_below or self._replies - self._grown_at >= self._limit:
            self._grown_at = self._replies
            self._move(self._limit + 1)

    def _compare_rates(self, rate: _Rate, now: float) -> None:
        """While rising, start a trial if the rate no longer improves."""
        best = self._best
        self._window = _Window(now, replies=self._round())
        if not rate.is_used:
            return
        if best is None or rate.in_flight * _RISE < best.in_flight:
            self._best = rate
        elif rate.in_flight >= _RISE * best.in_flight:
            if rate.is_worth_it(best):
                self._best = rate
            elif self._limit > START and rate.is_saturated(best):
                lower = max(START, math.ceil(_MARGIN * best.in_flight))
                self._start_trial(lower, self._limit, now, descends=True)

    def _rise(self) -> None:
        self._best = self._lower = self._upper = self._held_until = None
        self._window = _Window(self._clock(), replies=self._round())

    def _round(self) -> int:
        """Return the replies per rate measurement while rising; more if it rises slowly."""
        return self._limit if self._limit < self._slow_below else max(self._limit, _TRIAL_REPLIES)

    def _hold(self, limit: int, now: float) -> None:
        self._rise()
        self._move(limit)
        self._held_until = now + _HOLD_SECONDS, self._replies + _HOLD_ROUNDS * self._limit

    def _probe(self, now: float, held_until: float, held_for: int) -> None:
        if now >= held_until and self._replies >= held_for and self._limit < self._ceiling:
            self._start_trial(self._limit, math.ceil(_STEP * self._limit), now, descends=False)

    def _start_trial(self, lower: int, upper: int, now: float, *, descends: bool) -> None:
        """Measure two limits again, the higher one first."""
        self._rise()
        self._lower, self._descends, self._has_won = lower, descends, False
        self._measure(upper, now)

    def _measure(self, limit: int, now: float) -> None:
        # The replies to requests that are in flight now belong to the earlier limit.
        settling = self._in_flight
        self._move(limit)
        replies = max(_TRIAL_ROUNDS * self._limit, _TRIAL_REPLIES)
        self._window = _Window(now, replies=replies, settling=settling)

    def _evaluate_trial(self, rate: _Rate, lower: int, now: float) -> None:
        upper = self._upper
        if not (rate.is_used and rate.has_no_gap()):  # it measured our own speed, not the server's
            self._hold(upper.limit if upper else self._limit, now)
        # The first rate of a trial, or a lower limit that is as good: try the next lower one.
        elif upper is None or not upper.is_surely_worth_it(rate):
            self._has_won = upper is not None
            self._upper = rate
            self._lower = lower if upper is None else math.ceil(self._limit / _STEP)
            is_last = self._has_won and not self._descends
            if is_last or not min(START, self._ceiling) <= self._lower < self._limit:
                self._hold(self._limit, now)
            else:
                self._measure(self._lower, now)
        # The lower limit is too low. If no lower one was as good, the best may be higher still.
        elif self._has_won or upper.limit >= self._ceiling:
            self._hold(upper.limit, now)
        else:
            self._start_trial(upper.limit, math.ceil(_STEP * upper.limit), now, descends=True)


_FAILURES = 3
"""Consecutive failures after which a replica is considered down."""
_DOWN_SECONDS = 5.0
_DOWN_SECONDS_AT_MOST = 60.0
"""First and longest pause of a replica that is down, in seconds; a further failure doubles it."""


_MEMORY = 0.9
"""Weight of the previous average in the moving average of latencies."""


class Replica:
    """One server of a model.

    Attributes:
        url: Base URL of the API, such as `http://127.0.0.1:8000/v1`.
        limit: Limit on the requests in flight to this server.
    """

    def __init__(self, url: str, limit: Limit) -> None:
        self.url = url
        self.limit = limit
        self._failures = 0
        self._pause = _DOWN_SECONDS
        self._down_until = float("-inf")
        self._seconds: float | None = None

    @property
    def down_until(self) -> float:
        """Time at which it may be used again; in the past if it is up."""
        return self._down_until

    def is_up(self, now: float, *, has_slot: bool = False) -> bool:
        """Return whether it may get a request; after a pause, one request at a time as a probe.

        Args:
            now: Current time.
            has_slot: Whether the request already has one of the slots.
        """
        in_flight = self.limit.in_flight - has_slot
        return now >= self._down_until and (self._failures < _FAILURES or not in_flight)

    def failed(self, now: float) -> None:
        """Record a refused or lost connection, or a timeout; `limit` does not change."""
        if now < self._down_until:  # the request was sent before the replica went down
            return
        self._failures += 1
        if self._failures >= _FAILURES:
            self._down_until = now + self._pause
            self._pause = min(2 * self._pause, _DOWN_SECONDS_AT_MOST)

    def answered(self) -> None:
        """Record any answer: even a refusal shows that the replica is up."""
        self._failures = 0
        self._pause = _DOWN_SECONDS
        self._down_until = float("-inf")

    def succeeded(self, seconds: float) -> None:
        """Record a reply with a latency of `seconds`, here and in `limit`."""
        self.answered()
        average = seconds if self._seconds is None else self._seconds
        self._seconds = _MEMORY * average + (1 - _MEMORY) * seconds
        self.limit.succeeded(seconds)

    def is_quick(self, timeout: float) -> bool:
        """Return whether a timeout is probably caused by the request itself, not by overload.

        That is the case if earlier replies took less than a quarter of the timeout on average, and
        fewer than two requests have failed in a row. This rule is our choice.

        Args:
            timeout: Timeout of a request, in seconds.
        """
        return self._failures < 2 and self._seconds is not None and 4 * self._seconds < timeout


class Replicas:
    """The replicas of one model, in the order of the panel.

    A pair's replica is chosen by rendezvous hashing (Thaler and Ravishankar 1998) of its position
    in that order and the pair's id. The choice is the same in every process and does not depend on
    the addresses; if a replica is down, only its own pairs move.

    Args:
        urls: Base URLs of the replicas; at least one.
        ceiling: Largest number of requests in flight to each.
        clock: Monotonic clock in seconds.
    """

    def __init__(
        self, urls: Sequence[str], *, ceiling: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        if not urls:
            raise ValueError("a teacher must have at least one replica")
        self._clock = clock
        self._replicas = tuple(Replica(url, Limit(ceiling, clock=clock)) for url in urls)
        # Of fixed width, so that the end of a place cannot be read as the beginning of an id.
        self._places = tuple(place.to_bytes(4, "big") for place in range(len(urls)))

    def __iter__(self) -> Iterator[Replica]:
        return iter(self._replicas)

    def __len__(self) -> int:
        return len(self._replicas)

    def pick(self, pair_id: str) -> Replica:
        """Return the replica for the first request about a pair.

        This is the first replica in the pair's order. If it has no free slot, this is the next one
        with at least half of its slots free (our choice, because an idle replica costs more than a
        missed prefix cache). If all are down, this is the one that is available again first.
        """
        if len(self._replicas) == 1:
            return self._replicas[0]
        now = self._clock()
        available = [replica for replica in self._ranked(pair_id) if replica.is_up(now)]
        if not available:
            return min(self._replicas, key=lambda replica: replica.down_until)
        own = available[0]
        if own.limit.free:
            return own
        idle = (
            replica for replica in available[1:] if 2 * replica.limit.free >= replica.limit.current
        )
        return next(idle, own)

    def pick_other(self, pair_id: str, than: Replica) -> Replica:
        """Return the next replica in the pair's order that is up, for a retry; else `than`."""
        if len(self._replicas) == 1:
            return than
        now = self._clock()
        ranked = self._ranked(pair_id)
        after = ranked.index(than) + 1
        # All others from this one on, so that repeated failures reach each of them in turn.
        following = ranked[after:] + ranked[: after - 1]
        return next((replica for replica in following if replica.is_up(now)), than)

    def _ranked(self, pair_id: str) -> list[Replica]:
        name = pair_id.encode()
        # Not hash(), whose results differ between processes.
        scores = [hashlib.blake2b(place + name, digest_size=8).digest() for place in self._places]
        order = sorted(range(len(scores)), key=scores.__getitem__, reverse=True)
        return [self._replicas[place] for place in order]
