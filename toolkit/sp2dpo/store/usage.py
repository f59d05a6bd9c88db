"""Compute the tokens, time and money that the replies of a store took."""

import json
import sqlite3
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from sp2dpo.inference.endpoint import Price, cost
from sp2dpo.store.records import OF_REPLIES

RECENT = 600
"""Length in seconds of the window, ending at the newest reply, in which a rate is measured. Our
choice."""
_SLICE = 10
"""Length of the time slices in which replies are counted together, in seconds."""
# The time and token counts of an answer do not distinguish it from a declined request, because
# imported replies may lack both, and a finish_reason. Testing the text instead would take twice the
# time, because SQLite would sort it with the other columns.
_ANSWERED = (
    "(status = 'kept' OR finish_reason IS NOT NULL OR model IS NOT NULL OR reason IN "
    f"({', '.join(map(repr, OF_REPLIES))}))"
)


@dataclass(frozen=True, kw_only=True)
class Slice:
    """Usage of one teacher under one variant and order in a time slice of a few seconds.

    Attributes:
        teacher: Name of the teacher.
        variant: Variant of the rubric.
        order: Order in which the responses were shown.
        requests: Number of replies, including unreadable and repeated ones.
        uncounted: Number of answers without token counts.
        timed: Number of answers with a measured latency, which imported replies do not have.
        untimed: Number of answers without a measured latency. A declined request is not an answer.
        prompt: Sum of the reported prompt tokens.
        completion: Sum of the reported completion tokens.
        cached: Sum of the reported prompt tokens from a prefix cache; None if no reply reports
            them.
        started: Time at which the first timed request was sent, in seconds since 1970; None if
            there is none.
        ended: Time at which the last timed reply arrived.
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
    """Total usage of several slices.

    Attributes:
        requests, uncounted, timed, untimed, prompt, completion: Sums over the slices.
        cached: Sum of the reported prompt tokens from a prefix cache; None if no reply reports
            them. Servers omit a zero, so a missing value counts as 0 if other replies have one.
        seconds: Time in which at least one timed request was in flight, with an error of a few
            seconds.
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
        """Share of the prompt tokens that came from a prefix cache, in [0, 1]; None if unknown."""
        return None if self.cached is None or not self.prompt else self.cached / self.prompt

    @property
    def rate(self) -> float | None:
        """Timed answers per second while requests were in flight; None if there are none."""
        return self.timed / self.seconds if self.timed and self.seconds > 0 else None

    @property
    def busy(self) -> float | None:
        """Seconds with requests in flight; None if there are answers but none is timed."""
        return None if self.untimed and not self.timed else self.seconds

    def cost(self, price: Price | None) -> float | None:
        """Return the cost in the price's currency; None if it is unknown.

        With a price per GPU hour, only time with requests in flight is counted and not the start of
        the servers, and the cost of untimed answers is unknown.
        """
        if price is None:
            return None
        # A price per token needs the token counts of every answer, a price per hour their times.
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
    """Usage of the replies in an open store."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._db = database

    def slices(self, pair_ids: Collection[str] | None = None) -> list[Slice]:
        """Return the usage of replies by teacher, variant, order and time slice.

        Args:
            pair_ids: count only the replies about these pairs; None for all replies.
        """
        about, values = "", ()
        if pair_ids is not None:
            about = "WHERE pair_id IN (SELECT value FROM json_each(?))"
            values = (json.dumps(list(pair_ids)),)
        # Imported replies have no latency, and their arrival is the time of the import: it must not
        # extend the time in which requests were in flight.
        # Grouping by time first is faster, because rows are stored almost in the order of time.
        rows = self._db.execute(
            'SELECT teacher, variant, "order", count(*), '
            f"sum((prompt_tokens IS NULL OR completion_tokens IS NULL) AND {_ANSWERED}), "
            f"count(seconds), sum(seconds IS NULL AND {_ANSWERED}), "
            "coalesce(sum(prompt_tokens), 0), coalesce(sum(completion_tokens), 0), "
            "sum(cached_tokens), min(arrived - seconds), max(iif(seconds IS NULL, NULL, arrived)) "
            f"FROM replies {about} GROUP BY CAST(arrived / {_SLICE} AS INTEGER), 1, 2, 3",
            values,
        )
        # The query selects its columns in the order of these fields.
        names = Slice.__dataclass_fields__
        return [Slice(**dict(zip(names, row, strict=True))) for row in rows]

    def count_settled(self) -> dict[tuple[str, str, str], int]:
        """Count settled pairs (see `SettledPair`) with a reply, by teacher, variant and order.

        The key ("", "", "") has the total number of settled pairs.
        """
        rows = self._db.execute(
            'SELECT teacher, variant, "order", count(DISTINCT pair_id) '
            "FROM replies JOIN settled USING (pair_id) GROUP BY 1, 2, 3"
        )
        counts = {(teacher, variant, order): count for teacher, variant, order, count in rows}
        settled = self._db.execute("SELECT count(*) FROM settled").fetchone()[0]
        return {("", "", ""): settled} | counts


def sum_usage(slices: Iterable[Slice]) -> Usage:
    """Return the total usage of several slices."""
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
    """Return the usage of the timed answers in the `RECENT` seconds before the newest one."""
    newest = max((ended for _, ended in _spans(slices)), default=0.0)
    # Rounded down, because replies inside a slice cannot be told apart.
    begin = (newest - RECENT) // _SLICE * _SLICE
    rows = [row for row in slices if row.ended is not None and row.ended >= begin]
    timed = sum(row.timed for row in rows)
    seconds = _covered([(max(started, begin), ended) for started, ended in _spans(rows)])
    return Usage(requests=timed, timed=timed, seconds=seconds)


def _spans(slices: Iterable[Slice]) -> list[tuple[float, float]]:
    """Return start and end time of each slice with timed answers."""
    return [
        (row.started, row.ended)
        for row in slices
        if row.started is not None and row.ended is not None
    ]


def _covered(spans: list[tuple[float, float]]) -> float:
    """Return the length of the union of time spans."""
    total, until = 0.0, float("-inf")
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, until))
        until = max(until, end)
    return total
