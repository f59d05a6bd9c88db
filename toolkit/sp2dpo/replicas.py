"""Which replica of a teacher answers for a pair: the same one, as long as it stands.

A server's prefix cache serves the other variants of a pair only where all of them go to it.
"""

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence

from sp2dpo.limits import Limit

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
        self._all = tuple(Replica(url, Limit(ceiling, clock=clock)) for url in urls)
        self._places = tuple(place.to_bytes(4, "big") for place in range(len(urls)))

    def __iter__(self) -> Iterator[Replica]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)

    def of(self, pair_id: str) -> Replica:
        """The replica that a pair which has not begun anywhere begins at.

        The pair's own; where that has no slot free, the next of which at least half the slots are
        (our choice: a replica that idles is worse than one that reads a pair for itself alone);
        where all are down, the one that comes back first.
        """
        if len(self._all) == 1:
            return self._all[0]
        now = self._clock()
        standing = [replica for replica in self._ranked(pair_id) if replica.is_up(now)]
        if not standing:
            return min(self._all, key=lambda replica: replica.down_until)
        own = standing[0]
        if own.limit.free:
            return own
        idle = (one for one in standing[1:] if 2 * one.limit.free >= one.limit.current)
        return next(idle, own)

    def another(self, pair_id: str, than: Replica) -> Replica:
        """The next replica in the pair's order that is up, for a retry; `than` if there is none."""
        if len(self._all) == 1:
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
        return [self._all[place] for place in order]
