"""What the replies of a store took: tokens, time and money."""

import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sp2dpo.inference.endpoint import Price, cost

RECENT = 600
"""Seconds before a teacher's newest reply over which its rate is measured. Our choice."""
_SLICE = 10
"""Seconds over which replies are counted together."""
# Neither a time nor counts of tokens tell an answer from a request that was declined: what is
# imported may come without both. Without a finish_reason it is `unfinished`. The text would tell
# too, but takes twice the time: SQLite would sort it with the rest.
_ANSWERED = (
    "(status = 'kept' OR finish_reason IS NOT NULL OR model IS NOT NULL OR reason = 'unfinished')"
)


@dataclass(frozen=True, kw_only=True)
class Slice:
    """The replies of a few seconds that one teacher gave under one variant in one order.

    Attributes:
        teacher: that gave them.
        variant: of the rubric.
        order: in which the responses were shown.
        requests: replies, those included that could not be read or were asked for again.
        uncounted: Answers without token counts.
        timed: answers that somebody took the time of; those from files come without.
        untimed: the other answers. What a server declined is no answer.
        prompt: tokens of the requests, as far as told.
        completion: tokens of the replies, as far as told.
        cached: prompt tokens that came from a prefix cache; None where none of these replies tells.
        started: when the first of the timed requests was sent, in seconds since 1970; None where
            there is none.
        ended: when the last of the timed replies came.
    """

    teacher: str
    variant: str
    order: str
    requests: int
    uncounted: int
    timed: int
    untimed: int
    prompt: int
    completion: int
    cached: int | None
    started: float | None
    ended: float | None


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What many replies took.

    Attributes:
        requests: replies, those included that could not be read or were asked for again.
        uncounted: Answers without token counts.
        timed: answers that somebody took the time of.
        untimed: the other answers.
        prompt: tokens of the requests, as far as told.
        completion: tokens of the replies, as far as told.
        cached: prompt tokens that came from a prefix cache; None where no reply tells. Servers
            leave a zero out, so that silence beside a number is taken for 0.
        seconds: for which at least one of the timed requests was in flight, to a few seconds.
    """

    requests: int = 0
    uncounted: int = 0
    timed: int = 0
    untimed: int = 0
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
        """Timed answers per second while requests were in flight; None where there is none."""
        return self.timed / self.seconds if self.timed and self.seconds > 0 else None

    @property
    def busy(self) -> float | None:
        """The seconds; None where there are answers and nobody took the time of one."""
        return None if self.untimed and not self.timed else self.seconds

    def cost(self, price: Price | None) -> float | None:
        """What it cost, in the price's currency; None where that cannot be known.

        By the hour, GPUs count while requests were in flight, not while servers started; the price
        of an answer whose time nobody took is not known.
        """
        if price is None:
            return None
        untimed = self.untimed or (self.requests and not self.seconds)
        if self.uncounted if price.gpu_hour is None else untimed:
            return None
        return cost(
            price,
            prompt=self.prompt,
            cached=self.cached or 0,
            completion=self.completion,
            seconds=self.seconds,
        )


class UsageLog:
    """What the replies of an open store took."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._db = database

    def slices(self) -> list[Slice]:
        """All replies, counted together by teacher, variant, order and time."""
        # Grouped by the time first, the rows are nearly in order, which is faster.
        rows = self._db.execute(
            'SELECT teacher, variant, "order", count(*), '
            f"sum((prompt_tokens IS NULL OR completion_tokens IS NULL) AND {_ANSWERED}), "
            f"count(seconds), sum(seconds IS NULL AND {_ANSWERED}), "
            "coalesce(sum(prompt_tokens), 0), coalesce(sum(completion_tokens), 0), "
            "sum(cached_tokens), min(arrived - seconds), max(iif(seconds IS NULL, NULL, arrived)) "
            f"FROM replies GROUP BY CAST(arrived / {_SLICE} AS INTEGER), 1, 2, 3"
        )
        names = Slice.__dataclass_fields__
        return [Slice(**dict(zip(names, row, strict=True))) for row in rows]

    def count_settled(self) -> dict[tuple[str, str, str], int]:
        """Settled pairs with a reply, by teacher, variant and order; and all of them under blanks.

        See `SettledPair` in `store.questions`.
        """
        rows = self._db.execute(
            'SELECT teacher, variant, "order", count(DISTINCT pair_id) '
            "FROM replies JOIN settled USING (pair_id) GROUP BY 1, 2, 3"
        )
        counts = {(teacher, variant, order): count for teacher, variant, order, count in rows}
        settled = self._db.execute("SELECT count(*) FROM settled").fetchone()[0]
        return {("", "", ""): settled} | counts


def sum_usage(slices: Iterable[Slice]) -> Usage:
    """What the replies of rows slices took together."""
    rows = list(slices)
    cached = [row.cached for row in rows if row.cached is not None]
    return Usage(
        requests=sum(row.requests for row in rows),
        uncounted=sum(row.uncounted for row in rows),
        timed=sum(row.timed for row in rows),
        untimed=sum(row.untimed for row in rows),
        prompt=sum(row.prompt for row in rows),
        completion=sum(row.completion for row in rows),
        cached=sum(cached) if cached else None,
        seconds=_covered(_spans(rows)),
    )


def recent_usage(slices: Sequence[Slice]) -> Usage:
    """The timed answers of the last `RECENT` seconds before the newest of them, and their time."""
    newest = max((ended for _, ended in _spans(slices)), default=0.0)
    begin = (newest - RECENT) // _SLICE * _SLICE
    rows = [row for row in slices if row.ended is not None and row.ended >= begin]
    timed = sum(row.timed for row in rows)
    seconds = _covered([(max(started, begin), ended) for started, ended in _spans(rows)])
    return Usage(requests=timed, timed=timed, seconds=seconds)


def _spans(slices: Iterable[Slice]) -> list[tuple[float, float]]:
    """From when to when each of them was at work, of those that somebody took the time of."""
    return [
        (row.started, row.ended)
        for row in slices
        if row.started is not None and row.ended is not None
    ]


def _covered(spans: list[tuple[float, float]]) -> float:
    """The length of what some spans of time cover together."""
    total, until = 0.0, float("-inf")
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, until))
        until = max(until, end)
    return total
