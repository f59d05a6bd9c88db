"""What the replies of a store took: tokens, time and money."""

import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sp2dpo.price import Price, cost

RECENT = 600
"""Seconds before a teacher's newest reply over which its rate is measured. Our choice."""
_SLICE = 10
"""Seconds over which replies are counted together."""


@dataclass(frozen=True, kw_only=True)
class Slice:
    """The replies of a few seconds that one teacher gave under one variant in one order.

    Attributes:
        teacher: that gave them.
        variant: of the rubric.
        order: in which the responses were shown.
        requests: replies, those included that could not be read or were asked for again.
        untold: replies whose server did not count their tokens.
        prompt: tokens of the requests, as far as told.
        completion: tokens of the replies, as far as told.
        cached: prompt tokens that came from a prefix cache; None where none of these replies tells.
        started: when the first of these requests was sent, in seconds since 1970.
        ended: when the last of these replies came.
    """

    teacher: str
    variant: str
    order: str
    requests: int
    untold: int
    prompt: int
    completion: int
    cached: int | None
    started: float
    ended: float


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What many replies took.

    Attributes:
        requests: replies, those included that could not be read or were asked for again.
        untold: replies whose server did not count their tokens.
        prompt: tokens of the requests, as far as told.
        completion: tokens of the replies, as far as told.
        cached: prompt tokens that came from a prefix cache; None where no reply tells. Servers
            leave a zero out, so that silence beside a number is taken for 0.
        seconds: for which at least one of the requests was in flight, to a few seconds.
    """

    requests: int = 0
    untold: int = 0
    prompt: int = 0
    completion: int = 0
    cached: int | None = None
    seconds: float = 0.0

    @property
    def cached_share(self) -> float | None:
        """Of the prompt tokens, in [0, 1]; None where nobody tells."""
        return None if self.cached is None or not self.prompt else self.cached / self.prompt

    @property
    def rate(self) -> float | None:
        """Replies per second while requests were in flight; None of nothing."""
        return self.requests / self.seconds if self.requests and self.seconds > 0 else None

    def cost(self, price: Price | None) -> float | None:
        """What it cost, in the price's currency; None where that cannot be known.

        By the hour, GPUs count while requests were in flight, not while servers started.
        """
        if price is None:
            return None
        if self.untold if price.gpu_hour is None else self.requests and not self.seconds:
            return None
        return cost(
            price,
            prompt=self.prompt,
            cached=self.cached or 0,
            completion=self.completion,
            seconds=self.seconds,
        )


class Ledger:
    """What the replies of an open store took."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._db = database

    def slices(self) -> list[Slice]:
        """All replies, counted together by teacher, variant, order and time."""
        # Where there is no `seconds` there was no answer, and so no tokens to tell. Grouped by the
        # time first, the rows are nearly in order, which is faster.
        rows = self._db.execute(
            'SELECT teacher, variant, "order", count(*), '
            "sum(seconds IS NOT NULL AND (prompt_tokens IS NULL OR completion_tokens IS NULL)), "
            "coalesce(sum(prompt_tokens), 0), coalesce(sum(completion_tokens), 0), "
            "sum(cached_tokens), min(arrived - coalesce(seconds, 0)), max(arrived) "
            f"FROM replies GROUP BY CAST(arrived / {_SLICE} AS INTEGER), 1, 2, 3"
        )
        names = Slice.__dataclass_fields__
        return [Slice(**dict(zip(names, row, strict=True))) for row in rows]

    def heard_of_settled(self) -> dict[tuple[str, str, str], int]:
        """Settled pairs with a reply, by teacher, variant and order; and all of them under blanks.

        See `backlog.Settled`.
        """
        rows = self._db.execute(
            'SELECT teacher, variant, "order", count(DISTINCT pair_id) '
            "FROM replies JOIN settled USING (pair_id) GROUP BY 1, 2, 3"
        )
        heard = {(teacher, variant, order): count for teacher, variant, order, count in rows}
        settled = self._db.execute("SELECT count(*) FROM settled").fetchone()[0]
        return {("", "", ""): settled} | heard


def usage(slices: Iterable[Slice]) -> Usage:
    """What the replies of some slices took together."""
    some = list(slices)
    told = [one.cached for one in some if one.cached is not None]
    return Usage(
        requests=sum(one.requests for one in some),
        untold=sum(one.untold for one in some),
        prompt=sum(one.prompt for one in some),
        completion=sum(one.completion for one in some),
        cached=sum(told) if told else None,
        seconds=_covered([(one.started, one.ended) for one in some]),
    )


def recent(slices: Sequence[Slice]) -> Usage:
    """What the replies took that came in the last `RECENT` seconds before the newest of them."""
    if not slices:
        return Usage()
    begin = (max(one.ended for one in slices) - RECENT) // _SLICE * _SLICE
    some = [one for one in slices if one.ended >= begin]
    seconds = _covered([(max(one.started, begin), one.ended) for one in some])
    return Usage(requests=sum(one.requests for one in some), seconds=seconds)


def _covered(spans: list[tuple[float, float]]) -> float:
    """The length of what some spans of time cover together."""
    total, until = 0.0, float("-inf")
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, until))
        until = max(until, end)
    return total
