"""Which replica of a teacher answers for a pair: the same one, as long as it stands.

A server's prefix cache serves the other variants of a pair only where all of them go to it.
"""

import asyncio
import hashlib
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

START = 8
"""The first limit, and the lowest that a comparison of rates (not congestion) may lead to."""
_WORTH = 0.03
_WORTH_SHARE = 0.1
"""More in flight is worth having if the rate rises by this share of itself at least, and by this
share of what the requests in flight rose by."""
_IN_STEP = 0.5
"""Latency grew in step if it did so by this share of what the requests in flight grew by."""
_RISE = 1.25
"""Two rates are compared once the requests in flight have risen so many times."""
_MARGIN = 1.1
"""What is added to the requests in flight at which the best rate was seen."""
_OVERTAKE = 2.0
"""How many times what was in flight at the best rate the limit may be before another rate came."""
_STEP = 1.5
"""How far above a held limit the next probe looks, and how far apart lower ones are tried."""
_HOLD_SECONDS = 30.0
_HOLD_ROUNDS = 50
"""A limit is held at least so long, in seconds and in rounds, before more is probed again."""
_WINDOW_SECONDS = 0.2
"""A rate is counted over at least this long, so that a fast server's noise does not count."""
_TRIAL_ROUNDS = 3
_TRIAL_REPLIES = 96
"""A trial counts at least so many rounds, and so many replies, at each of its limits."""
_USED = 0.8
"""A rate counts only where this share of the limit was in flight: else it is our own pace."""


@dataclass(frozen=True, kw_only=True)
class _Rate:
    """What was seen at about one limit: `in_flight = per_second * latency` (Little's law)."""

    limit: int
    in_flight: float
    per_second: float
    latency: float
    is_used: bool

    def is_saturated(self, lower: "_Rate") -> bool:
        """Whether more in flight than `lower` bought nothing but latency."""
        in_step = 1 + _IN_STEP * (self.in_flight / lower.in_flight - 1)
        return not self.is_worth_it(lower) and self.latency >= in_step * lower.latency

    def has_no_gap(self) -> bool:
        """Whether requests were in flight all the time: else Little's law does not add up."""
        return self.per_second * self.latency >= _USED * self.in_flight

    def is_worth_it(self, lower: "_Rate") -> bool:
        return self.per_second >= self._worth(lower) * lower.per_second

    def is_surely_worth_it(self, lower: "_Rate") -> bool:
        """Whether the rates by Little's law say so, too: two witnesses against noise."""
        gain = (self.in_flight / self.latency) / (lower.in_flight / lower.latency)
        return self.is_worth_it(lower) and gain >= self._worth(lower)

    def _worth(self, lower: "_Rate") -> float:
        return 1 + max(_WORTH, _WORTH_SHARE * (self.in_flight / lower.in_flight - 1))


class _Window:
    """Counts replies from its opening on, the first `settling` of them left out."""

    __slots__ = ("_in_flight", "_latency", "_limits", "_opened", "_replies", "_settling", "_wanted")

    def __init__(self, now: float, *, replies: int, settling: int = 0) -> None:
        self._opened = now
        self._wanted = replies
        self._settling = settling
        self._replies = self._in_flight = self._limits = 0
        self._latency = 0.0

    def add(self, now: float, seconds: float, in_flight: int, limit: int) -> _Rate | None:
        """Counts a reply; gives the rate once there are enough."""
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
            in_flight=max(1.0, self._in_flight / self._replies),
            per_second=self._replies / (now - self._opened),
            latency=self._latency / self._replies,
            is_used=self._in_flight >= _USED * self._limits,
        )


class Limit:
    """The slots of one server, handed out first come, first served.

    Until the first congestion the limit doubles in a round (as many replies as it stood for at the
    round's beginning); above half of where congestion was met it grows by one a round. Where more
    in flight brings no more replies per second, the two limits are tried once more, one right after
    the other, then lower ones down to where the rate falls; the limit found so is held, and more is
    probed from time to time. It never grows while it is not used up. Nothing here waits or runs by
    itself but `acquire`.

    Args:
        ceiling: the most there may ever be in flight.
        clock: seconds, never going back.
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
        self._slow_below = ceiling  # below it one more per reply, above it one more per round
        self._replies = 0
        self._used_until = 0  # the count of replies a round after all slots were last taken
        self._grown_at = 0  # the count of replies when the limit last rose by one for a round
        self._halved_at: int | None = None  # the count of replies at the last halving
        self._forgiven = 0  # outcomes to come of requests that were in flight at the last halving
        self._window = _Window(clock(), replies=self._limit)
        self._best: _Rate | None = None  # while rising: the best so far
        self._lower: int | None = None  # while trying: the lower of the two limits
        self._upper: _Rate | None = None  # while trying: seen at the higher one
        self._descends = False  # while trying: whether to go on to still lower limits
        self._has_won = False  # while trying: whether a lower limit was found as good
        self._held_until: tuple[float, int] | None = None  # while held: time and count of replies

    @property
    def current(self) -> int:
        """The present limit."""
        return self._limit

    @property
    def in_flight(self) -> int:
        """Slots taken; above `current` for a while after it fell."""
        return self._in_flight

    @property
    def waiting(self) -> int:
        """Who waits in `acquire`."""
        return self._waiting

    @property
    def free(self) -> int:
        """Slots that `acquire` gives without waiting."""
        return max(0, self._limit - self._in_flight)

    async def acquire(self) -> None:
        """Takes a slot, after everybody who asked before."""
        if self._in_flight < self._limit:  # then nobody waits: `_hand_out` saw to it
            self._take()
            return
        turn = asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        self._waiting += 1
        self._used_until = self._replies + self._limit
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._waiting -= 1
            else:  # the slot was handed over just before
                self.release()
            raise

    def release(self) -> None:
        """Gives a slot back, however the request ended."""
        if not self._in_flight:
            raise ValueError("release() without acquire()")
        self._in_flight -= 1
        self._hand_out()

    def succeeded(self, seconds: float) -> None:
        """A reply came, `seconds` after it was asked for. Before or after `release`."""
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
        """The server had too much: 429, 503 or a time-out. Several of one round count once."""
        if self._forgiven:
            self._forgiven -= 1
            return
        half = max(1, self._limit // 2)
        if self._halved_at is None or self._replies - self._halved_at >= half:
            self._slow_below = half  # else the storm goes on: keep the half of where it began
        self._limit = half
        self._halved_at = self._grown_at = self._replies
        self._forgiven = self._in_flight
        self._rise()

    def _take(self) -> None:
        self._in_flight += 1
        if self._in_flight >= self._limit:
            self._used_until = self._replies + self._limit

    def _hand_out(self) -> None:
        while self._queue and self._in_flight < self._limit:
            turn = self._queue.popleft()
            if not turn.done():  # else it was cancelled
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
        """While rising: whether there is more to be had, or the rate stays where it is."""
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
        """Replies that a rate is counted over while rising: more of them where there is time."""
        return self._limit if self._limit < self._slow_below else max(self._limit, _TRIAL_REPLIES)

    def _hold(self, limit: int, now: float) -> None:
        self._rise()
        self._move(limit)
        self._held_until = now + _HOLD_SECONDS, self._replies + _HOLD_ROUNDS * self._limit

    def _probe(self, now: float, held_until: float, held_for: int) -> None:
        if now >= held_until and self._replies >= held_for and self._limit < self._ceiling:
            self._start_trial(self._limit, math.ceil(_STEP * self._limit), now, descends=False)

    def _start_trial(self, lower: int, upper: int, now: float, *, descends: bool) -> None:
        """Compares two limits afresh, the higher one first."""
        self._rise()
        self._lower, self._descends, self._has_won = lower, descends, False
        self._measure(upper, now)

    def _measure(self, limit: int, now: float) -> None:
        settling = self._in_flight
        self._move(limit)
        replies = max(_TRIAL_ROUNDS * self._limit, _TRIAL_REPLIES)
        self._window = _Window(now, replies=replies, settling=settling)

    def _evaluate_trial(self, rate: _Rate, lower: int, now: float) -> None:
        upper = self._upper
        if not (rate.is_used and rate.has_no_gap()):  # our own pace was seen, not the server's
            self._hold(upper.limit if upper else self._limit, now)
        elif upper is None or not upper.is_surely_worth_it(rate):
            self._has_won = upper is not None
            self._upper = rate
            self._lower = lower if upper is None else math.ceil(self._limit / _STEP)
            is_last = self._has_won and not self._descends
            if is_last or not min(START, self._ceiling) <= self._lower < self._limit:
                self._hold(self._limit, now)
            else:
                self._measure(self._lower, now)
        elif self._has_won or upper.limit >= self._ceiling:
            self._hold(upper.limit, now)
        else:
            self._start_trial(upper.limit, math.ceil(_STEP * upper.limit), now, descends=True)


_FAILURES = 3
"""So many failures in a row put a replica down."""
_DOWN_SECONDS = 5.0
_DOWN_SECONDS_AT_MOST = 60.0
"""How long it is left alone at first, and after every further failure twice as long, up to this."""


_MEMORY = 0.9
"""What the average time of a reply keeps of itself when another reply comes."""


class Replica:
    """One server of a teacher.

    Attributes:
        url: of its API, `http://127.0.0.1:8000/v1`.
        limit: of the requests in flight there.
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
        """The time at which it may be asked again; in the past where it is up."""
        return self._down_until

    def is_up(self, now: float) -> bool:
        """Whether it may be asked: after its time down by one request, which shows how it is."""
        return now >= self._down_until and (self._failures < _FAILURES or not self.limit.in_flight)

    def may_be_asked(self, now: float) -> bool:
        """As `is_up`, for a request that holds one of its slots already."""
        return now >= self._down_until and (self._failures < _FAILURES or self.limit.in_flight <= 1)

    def failed(self, now: float) -> None:
        """The connection was refused or lost, or no reply came in time. Leaves `limit` alone."""
        if now < self._down_until:  # sent before it went down: nothing new
            return
        self._failures += 1
        if self._failures >= _FAILURES:
            self._down_until = now + self._pause
            self._pause = min(2 * self._pause, _DOWN_SECONDS_AT_MOST)

    def answered(self) -> None:
        """It said something, if only that it will not do what was asked: it is there."""
        self._failures = 0
        self._pause = _DOWN_SECONDS
        self._down_until = float("-inf")

    def succeeded(self, seconds: float) -> None:
        """A reply came, `seconds` after it was asked for; tells `limit`, too."""
        self.answered()
        before = seconds if self._seconds is None else self._seconds
        self._seconds = _MEMORY * before + (1 - _MEMORY) * seconds
        self.limit.succeeded(seconds)

    def is_quick(self, timeout: float) -> bool:
        """Whether a time-out is the fault of the one request rather than of too many at once.

        So it is where the replies before it took less than a quarter of the time, and it did not
        time out twice in a row. Our choice.

        Args:
            timeout: seconds for one request.
        """
        return self._failures < 2 and self._seconds is not None and 4 * self._seconds < timeout


class Replicas:
    """The servers of one teacher, in the panel's order.

    A pair's replica is the one of the highest hash over its place in that order and the pair's id
    (rendezvous hashing, Thaler and Ravishankar 1998): the same in every process, whatever the
    addresses; where a replica is down, its pairs alone move.

    Args:
        urls: of the replicas; at least one.
        ceiling: the most requests in flight at each.
        clock: seconds, never going back.
    """

    def __init__(
        self, urls: Sequence[str], *, ceiling: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        if not urls:
            raise ValueError("a teacher must have at least one replica")
        self._clock = clock
        self._replicas = tuple(Replica(url, Limit(ceiling, clock=clock)) for url in urls)
        self._places = tuple(place.to_bytes(4, "big") for place in range(len(urls)))

    def __iter__(self) -> Iterator[Replica]:
        return iter(self._replicas)

    def __len__(self) -> int:
        return len(self._replicas)

    def pick(self, pair_id: str) -> Replica:
        """The replica that a pair which has not begun anywhere begins at.

        The pair's own; where that has no slot free, the next of which at least half the slots are
        (our choice: a replica that idles is worse than replica that reads a pair for itself alone);
        where all are down, the replica that comes back first.
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
        """The next replica in the pair's order that is up, for a retry; `than` if there is none."""
        if len(self._replicas) == 1:
            return than
        now = self._clock()
        ranked = self._ranked(pair_id)
        after = ranked.index(than) + 1
        following = ranked[after:] + ranked[: after - 1]
        return next((replica for replica in following if replica.is_up(now)), than)

    def _ranked(self, pair_id: str) -> list[Replica]:
        name = pair_id.encode()
        scores = [hashlib.blake2b(place + name, digest_size=8).digest() for place in self._places]
        order = sorted(range(len(scores)), key=scores.__getitem__, reverse=True)
        return [self._replicas[place] for place in order]
