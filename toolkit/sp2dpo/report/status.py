"""Collect the progress, token usage, cost and time left of the run in a store."""

import fcntl
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TextIO

from sp2dpo.inference.endpoint import Price
from sp2dpo.panel.panel import TeacherRecord
from sp2dpo.store.database import lock_path
from sp2dpo.store.questions import count_outcomes
from sp2dpo.store.store import Store
from sp2dpo.store.usage import Slice, Usage, recent_usage, sum_usage

# Linux only; without it, the lock itself is tried.
_LOCKS = Path("/proc/locks")


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Questions by outcome (asked = kept + refused + spared + pending) and the tokens they took.

    Attributes:
        asked: number of questions of the panel.
        kept: number of questions with a valid reply.
        refused: number of questions whose last reply was refused and that are not retried, by
            reason.
        spared: number of questions that an adaptive panel skips.
        pending: number of questions without a final reply.
        requests: number of replies received, including retries.
        uncounted: number of replies without token counts.
        prompt_tokens: prompt tokens of all replies that report them.
        cached_tokens: prompt tokens served from a prefix cache; None if no reply reports them.
        cached_share: `cached_tokens` as a share of the prompt tokens, in [0, 1]; None if unknown.
        completion_tokens: completion tokens of all replies that report them.
    """

    asked: int
    kept: int
    refused: dict[str, int]
    spared: int
    pending: int
    requests: int
    uncounted: int = field(metadata={"json": "untold"})
    prompt_tokens: int
    cached_tokens: int | None
    cached_share: float | None
    completion_tokens: int


@dataclass(frozen=True, kw_only=True)
class CellStatus(Progress):
    """Progress of one teacher under one variant and order of the responses."""

    variant: str
    order: str


@dataclass(frozen=True, kw_only=True)
class TeacherStatus(Progress):
    """Progress, throughput and cost of one teacher.

    Attributes:
        name: name of the teacher in the panel.
        untimed: number of replies without a response time, such as imported ones.
        busy_seconds: seconds with at least one timed request in flight; None if no reply is timed.
        replies_per_second: timed replies per busy second in the last ten minutes before the newest
            reply.
        seconds_left: estimated seconds until no question is pending; None if unknown.
        money: cost so far; None without a price, or if tokens or times are missing.
        money_left: estimated cost of the pending questions; None if unknown.
        currency: currency of both amounts; None without a price.
        cells: the progress for each variant and order.
    """

    name: str
    untimed: int
    busy_seconds: float | None
    replies_per_second: float | None
    seconds_left: float | None
    money: float | None
    money_left: float | None
    currency: str | None
    cells: list[CellStatus]


@dataclass(frozen=True, kw_only=True)
class TotalStatus(Progress):
    """Sums over all teachers.

    Attributes:
        untimed: number of replies without a response time.
        money: cost so far by currency, of the teachers whose cost is known.
        money_left: estimated cost of the pending questions by currency.
        unpriced: names of the teachers whose cost is not known.
        seconds_left_side_by_side: time left if all teachers reply in parallel, the maximum of their
            times; None if any is unknown.
        seconds_left_in_turn: time left if the teachers reply one after the other, the sum of their
            times; None if any is unknown.
    """

    untimed: int
    money: dict[str, float]
    money_left: dict[str, float]
    unpriced: list[str]
    seconds_left_side_by_side: float | None
    seconds_left_in_turn: float | None


@dataclass(frozen=True, kw_only=True)
class OutsideReplies:
    """Replies of teachers or variants that the last panel does not include.

    Attributes:
        replies: number of these replies.
    """

    replies: int = 0


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """State of the run in a store; `json_values` gives the JSON of `sp2dpo status --json`.

    Attributes:
        store: path of the store.
        source: name of the source of the pairs; None before pairs were read.
        pairs: number of distinct pairs in the store's shard.
        marked_pairs: number of the source's pairs that contain control tokens of chat templates;
            None if they were not counted.
        shard: the shard, `I/N`; None if the store covers all pairs.
        annotating: process id of the `annotate` that is writing now; None if there is none.
        integrity: problems of the file, of its structure and of what differs from its digests; if
            there are any, nothing else is read.
        advice: what to do about the first of these problems; None if there are none.
        budget: `full` or `adaptive`; None before the first annotation.
        teachers: status of each teacher of the last panel.
        outside: replies that the last panel does not cover.
        total: sums over the teachers.
    """

    store: str
    source: str | None
    pairs: int
    marked_pairs: int | None
    shard: str | None
    annotating: int | None
    integrity: list[str]
    advice: str | None
    budget: str | None
    teachers: list[TeacherStatus]
    outside: OutsideReplies
    total: TotalStatus


def collect_status(path: Path | str) -> RunStatus:
    """Return the state of a run; another process may be annotating into the store meanwhile.

    Args:
        path: path of the store.

    Raises:
        ValueError: the file is not a store.
        OSError: the file does not exist.
    """
    path = Path(path)
    # One snapshot, so that the counts add up although another process writes.
    with Store(path) as store, store.snapshot():
        # The file is checked meanwhile: of a damaged one, nothing else is told.
        problems, status = store.read_while_checking(lambda: _read_status(store))
    if status is None:
        status = RunStatus(
            store=str(path), source=None, pairs=0, marked_pairs=None, shard=None,
            annotating=find_annotating_process(path),
            integrity=[problem.text for problem in problems], advice=problems[0].advice,
            budget=None, teachers=[], outside=OutsideReplies(), total=_total([]),
        )  # fmt: skip
    return status


def _read_status(store: Store) -> RunStatus:
    source, shard, pairs = (
        store.corpus.source(),
        store.questions.shard(),
        store.questions.pair_count(),
    )
    budget, teachers, outside = None, [], OutsideReplies()
    if store.teachers():
        budget = store.panel().budget
        teachers, outside = _teachers(store, pairs)
    return RunStatus(
        store=str(store.path),
        source=None if source is None else source.name,
        pairs=pairs,
        marked_pairs=store.corpus.marked_pairs(),
        shard=None if shard is None else str(shard),
        annotating=find_annotating_process(store.path),
        integrity=[],
        advice=None,
        budget=budget,
        teachers=teachers,
        outside=outside,
        total=_total(teachers),
    )


def find_annotating_process(path: Path) -> int | None:
    """Return the id of the local process that annotates into a store, or None.

    Args:
        path: path of the store.
    """
    try:
        with lock_path(path).open() as lock:
            pid = int(lock.read())
            return pid if _is_running(pid) and _holds_lock(pid, lock) else None
    except (FileNotFoundError, PermissionError, ValueError):
        return None


def _is_running(pid: int) -> bool:
    try:
        # Signal 0 is not sent; the call only checks the process.
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):  # OverflowError: the file does not hold an id
        return False
    except PermissionError:  # the process belongs to another user
        return True
    return pid > 0  # 0 and negative numbers signal a group of processes


def _holds_lock(pid: int, lock: TextIO) -> bool:
    """Return whether a process holds the lock; the id may have been reused by another program."""
    # Read the kernel's list of locks rather than try the lock: an `annotate` that starts while the
    # lock is being tried would be refused.
    try:
        locks = [line.split() for line in _LOCKS.read_text().splitlines()]
    except OSError:
        return _is_locked(lock)
    # Fields of a line: number, kind, mode, access, process, device and inode, start, end.
    inodes = [
        fields[5].rpartition(":")[2]
        for fields in locks
        if fields[1] == "FLOCK" and fields[4] == str(pid)
    ]
    # Some file systems report two inodes for one file: if the process locks only other inodes, it
    # may still hold this lock.
    return str(os.fstat(lock.fileno()).st_ino) in inodes or (bool(inodes) and _is_locked(lock))


def _is_locked(lock: TextIO) -> bool:
    try:
        # Only an `annotate` keeps a shared lock from being taken; another `status` does not.
        # Closing the file releases it.
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def _teachers(store: Store, pairs: int) -> tuple[list[TeacherStatus], OutsideReplies]:
    panel = store.panel()
    # Every pair has the same orders; its id only decides which is asked first.
    orders = sorted(store.rubric().orders("0"))
    cells = [(variant, order) for variant in panel.variants for order in orders]
    settled = store.usage.count_settled() if panel.budget == "adaptive" else {}
    # The key of three empty strings counts all settled pairs.
    settled_pairs = settled.get(("", "", ""), 0)
    outcomes, slices = store.questions.outcomes(), store.usage.slices()
    teachers, covered = [], 0
    for teacher in panel.teachers:
        name = teacher.name
        teacher_slices = [
            part for part in slices if part.teacher == name and (part.variant, part.order) in cells
        ]
        # A refusal that will be retried leaves its question pending.
        teacher_outcomes = [
            key for key in outcomes if key.teacher == name and key.is_final(teacher.retries)
        ]
        rows = []
        for variant, order in cells:
            refused = count_outcomes(
                [key for key in teacher_outcomes if (key.variant, key.order) == (variant, order)]
            )
            progress = _progress(
                asked=pairs,
                kept=refused.pop("kept", 0),
                refused=refused,
                # Of a settled pair, the questions that have a reply were not spared.
                spared=settled_pairs - settled.get((name, variant, order), 0),
                usage=sum_usage(
                    part
                    for part in teacher_slices
                    if (part.variant, part.order) == (variant, order)
                ),
            )
            rows.append(CellStatus(**vars(progress), variant=variant, order=order))
        covered += sum(part.requests for part in teacher_slices)
        teachers.append(_teacher(teacher, rows, teacher_slices))
    replies = sum(part.requests for part in slices)
    return teachers, OutsideReplies(replies=replies - covered)


def _progress(
    *, asked: int, kept: int, refused: dict[str, int], spared: int, usage: Usage
) -> Progress:
    return Progress(
        asked=asked,
        kept=kept,
        refused=refused,
        spared=spared,
        pending=asked - kept - sum(refused.values()) - spared,
        requests=usage.requests,
        uncounted=usage.uncounted,
        prompt_tokens=usage.prompt,
        cached_tokens=usage.cached,
        cached_share=usage.cached_share,
        completion_tokens=usage.completion,
    )


def _sum_progress(rows: Sequence[Progress], usage: Usage) -> Progress:
    """Return the sums of the questions, with the tokens of all their replies."""
    reasons = sorted({reason for row in rows for reason in row.refused})
    return _progress(
        asked=sum(row.asked for row in rows),
        kept=sum(row.kept for row in rows),
        refused={reason: sum(row.refused.get(reason, 0) for row in rows) for reason in reasons},
        spared=sum(row.spared for row in rows),
        usage=usage,
    )


def _teacher(
    teacher: TeacherRecord, cells: list[CellStatus], slices: Sequence[Slice]
) -> TeacherStatus:
    usage, rate = sum_usage(slices), recent_usage(slices).rate
    progress = _sum_progress(cells, usage)
    price = teacher.price
    done = progress.asked - progress.spared - progress.pending
    # Retries make more than one request for a question.
    requests_left = progress.pending * (usage.requests / done if done else 1.0)
    seconds_left = 0.0 if not progress.pending else requests_left / rate if rate else None
    return TeacherStatus(
        **vars(progress),
        name=teacher.name,
        untimed=usage.untimed,
        busy_seconds=usage.busy,
        replies_per_second=rate,
        seconds_left=seconds_left,
        money=usage.cost(price),
        money_left=_money_left(price, usage, requests_left, seconds_left),
        currency=None if price is None else price.currency,
        cells=cells,
    )


def _money_left(
    price: Price | None, usage: Usage, requests: float, seconds: float | None
) -> float | None:
    """Extrapolate the cost: from the time left if priced by the hour, else from the requests."""
    # An hour costs the same however many requests are in flight.
    if price is not None and price.gpu_hour is not None:
        return None if seconds is None else Usage(seconds=seconds).cost(price)
    so_far = usage.cost(price)
    # Before the first request, what one costs is unknown.
    if so_far is None or (requests and not usage.requests):
        return None
    return so_far * requests / usage.requests if requests else 0.0


def _total(teachers: Sequence[TeacherStatus]) -> TotalStatus:
    cached = [row.cached_tokens for row in teachers if row.cached_tokens is not None]
    # The share leaves out the teachers whose servers do not report what came from a cache.
    prompt = sum(row.prompt_tokens for row in teachers if row.cached_tokens is not None)
    seconds = [row.seconds_left for row in teachers if row.seconds_left is not None]
    complete = len(seconds) == len(teachers)
    usage = Usage(
        requests=sum(row.requests for row in teachers),
        uncounted=sum(row.uncounted for row in teachers),
        prompt=sum(row.prompt_tokens for row in teachers),
        completion=sum(row.completion_tokens for row in teachers),
        cached=sum(cached) if cached else None,
    )
    progress = replace(
        _sum_progress(teachers, usage), cached_share=sum(cached) / prompt if prompt else None
    )
    return TotalStatus(
        **vars(progress),
        untimed=sum(row.untimed for row in teachers),
        money=sum_by_currency((row.money, row.currency) for row in teachers),
        money_left=sum_by_currency((row.money_left, row.currency) for row in teachers),
        unpriced=[row.name for row in teachers if row.money is None],
        # With an unknown time among them, the others would only be a lower bound.
        seconds_left_side_by_side=max(seconds, default=0.0) if complete else None,
        seconds_left_in_turn=math.fsum(seconds) if complete else None,
    )


def sum_by_currency(amounts: Iterable[tuple[float | None, str | None]]) -> dict[str, float]:
    """Return the sums of amounts by currency, leaving out unknown amounts.

    Args:
        amounts: amounts and their currencies; None where they are unknown.
    """
    sums: dict[str, float] = {}
    for amount, currency in amounts:
        if amount is not None and currency is not None:
            sums[currency] = sums.get(currency, 0.0) + amount
    return sums
