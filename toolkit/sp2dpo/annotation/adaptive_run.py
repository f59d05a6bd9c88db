"""Ask an adaptive panel about each pair until more replies are unlikely to change its gap.

Calibration pairs are asked in full first; the stopping rule (`adaptive_rule`) learns from them.
Every other pair is then asked one slot at a time until the rule settles it. Both are our choice.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Protocol

import numpy as np

from sp2dpo.annotation.adaptive_rule import Slot, StoppingRule, is_calibration, slots
from sp2dpo.annotation.teacher import Take, TeacherSession
from sp2dpo.betas.estimators import JMAMP
from sp2dpo.betas.gaps import compute_signed_gap
from sp2dpo.panel.annotation import Key
from sp2dpo.panel.panel import Panel
from sp2dpo.store.questions import Job, PairReplies, Question, SettledPair
from sp2dpo.store.records import UNREADABLE, ReplyRecord, StoredReply

Settle = Callable[[SettledPair, int], Awaitable[None]]
"""Called with every settled pair, and the number of replies that it does not need."""


class Reader(Protocol):
    """Reads pairs with their replies."""

    def __call__(self, *, settled: bool) -> AsyncIterator[PairReplies]:
        """Yield all pairs, with or without settled ones."""
        ...


class PairState:
    """The replies to one pair: a reading per slot, and which slots are complete."""

    def __init__(self, replies: PairReplies, panel: Panel, order: Sequence[Slot]) -> None:
        self.pair = replies.pair
        self.number = replies.number
        self._panel = panel
        self._slots = order
        self._retries = {teacher.name: teacher.retries for teacher in panel.teachers}
        self._last: dict[tuple[str, str, str], tuple[int, bool, float | None]] = {}
        for reply in replies.replies:
            self.add(reply)

    def add(self, reply: StoredReply) -> None:
        """Add a reply; of several to one question the last kept one counts, or else the last."""
        teacher, attempt = reply.teacher, reply.attempt
        # The store may hold replies of a teacher that this panel does not have.
        if teacher not in self._retries:
            return
        key = (teacher, reply.variant, reply.order)
        is_kept = reply.reason is None
        last, _, last_reading = self._last.get(key, (-1, False, None))
        if (is_kept, attempt) < (last_reading is not None, last):
            return
        final = is_kept or reply.reason not in UNREADABLE or attempt >= self._retries[teacher]
        reading = compute_signed_gap(reply, self._panel.rubric, JMAMP) if is_kept else None
        self._last[key] = (attempt, final, reading)

    @property
    def replies(self) -> int:
        """Number of replies that hold a reading."""
        return sum(reading is not None for _, _, reading in self._last.values())

    @property
    def spared(self) -> int:
        """Number of replies that the pair does not need."""
        keys = [key for slot in self._slots for key in self._keys(slot)]
        return sum(key not in self._last for key in keys)

    def readings(self) -> tuple[np.ndarray, np.ndarray]:
        """Return (1, S) readings, NaN where missing, and (1, S) whether each slot was asked."""
        values = np.full((1, len(self._slots)), np.nan)
        complete = np.zeros((1, len(self._slots)), dtype=bool)
        for column, slot in enumerate(self._slots):
            replies = [self._last.get(key) for key in self._keys(slot)]
            complete[0, column] = all(reply is not None and reply[1] for reply in replies)
            readings = [reply[2] for reply in replies if reply is not None and reply[2] is not None]
            # The mean over the orders. A slot with one order missing has no reading yet.
            if readings and complete[0, column]:
                values[0, column] = np.mean(readings)
        return values, complete

    def job(self, slot: Slot) -> Job:
        """Return the pending questions of a slot."""
        questions = []
        for teacher, variant, order in self._keys(slot):
            attempt, final, _ = self._last.get((teacher, variant, order), (-1, False, None))
            if not final:
                key = Key(
                    pair_id=self.pair.id,
                    teacher=teacher,
                    variant=variant,
                    order=order,
                    attempt=attempt + 1,
                )
                questions.append(Question(key=key, last=self._retries[teacher]))
        return Job(number=self.number, pair=self.pair, questions=tuple(questions))

    def _keys(self, slot: Slot) -> list[tuple[str, str, str]]:
        orders = self._panel.rubric.orders(self.pair.id)
        return [(slot.teacher, slot.variant, order) for order in orders]


class AdaptiveRun:
    """Decides which slots of an adaptive panel are asked next."""

    def __init__(
        self,
        panel: Panel,
        *,
        pairs: int,
        read_replies: Reader,
        stop: asyncio.Event,
    ) -> None:
        """Create a run; nothing is read yet.

        Args:
            panel: The panel, with the tolerance of a gap and what it covers.
            pairs: Number of distinct pairs that it is asked about.
            read_replies: Reads all pairs, with or without settled ones.
            stop: Set when no more requests should be sent.
        """
        self._panel = panel
        self._pairs = pairs
        self._read_replies = read_replies
        self._stop = stop
        self._slots = slots([teacher.name for teacher in panel.teachers], panel.variants)
        self._rule: StoppingRule | None = None

    def calibrates(self, pair_id: str) -> bool:
        """Whether a pair is asked in full."""
        return is_calibration(pair_id, pairs=self._pairs)

    async def learn(self) -> None:
        """Learn the stopping rule from the calibration pairs."""
        rows = [
            state.readings()[0][0]
            async for state in self._states(settled=True)
            # Settled pairs are read, too: an earlier run settled calibration pairs.
            if self.calibrates(state.pair.id)
        ]
        # The shape must be (0, S) if there is no row.
        readings = np.array(rows).reshape(len(rows), len(self._slots))
        record = self._panel.record()
        self._rule = StoppingRule.learn(
            readings, self._slots, tolerance=record.tolerance, covers=record.covers
        )

    async def count_waiting(self, *, calibrating: bool) -> Counter[str]:
        """Count the pairs that wait for each teacher, among calibration pairs or the others."""
        waiting: Counter[str] = Counter()
        async for state in self._states():
            if calibrating != self.calibrates(state.pair.id):
                continue
            # A calibration pair is asked in full, so it may wait for several teachers.
            if calibrating:
                missing = ~state.readings()[1][0]
                waiting.update(
                    {slot.teacher for slot, no in zip(self._slots, missing, strict=True) if no}
                )
            elif slot := self._next(state)[0]:
                waiting[slot.teacher] += 1
        return waiting

    async def ask(self, sessions: Mapping[str, TeacherSession], take: Take, settle: Settle) -> None:
        """Ask about every pair while its next slot belongs to one of these teachers.

        Args:
            sessions: Sessions of the reachable teachers, by name.
            take: Called with every reply.
            settle: Called with every settled pair.
        """
        # Without sessions it only settles pairs, one at a time.
        slots_free = asyncio.Semaphore(
            max(1, sum(session.max_requests for session in sessions.values()))
        )
        async with asyncio.TaskGroup() as group:
            async for state in self._states():
                await slots_free.acquire()
                if self._stop.is_set():
                    # The group still waits for the pairs whose requests are in flight.
                    return
                task = group.create_task(self._pair(state, sessions, take, settle))
                task.add_done_callback(lambda _: slots_free.release())

    async def _pair(
        self, state: PairState, sessions: Mapping[str, TeacherSession], take: Take, settle: Settle
    ) -> None:
        async def add_and_take(record: ReplyRecord, final: bool) -> None:
            # The next slot depends on this reply, which is not on disk yet.
            state.add(_stored_reply(record))
            await take(record, final)

        while not self._stop.is_set():
            slot, chance = self._next(state)
            if slot is None:
                settled = SettledPair(pair_id=state.pair.id, replies=state.replies, chance=chance)
                await settle(settled, state.spared)
                return
            # Another phase asks its teacher.
            if slot.teacher not in sessions:
                return
            await sessions[slot.teacher].ask(state.job(slot), add_and_take)

    def _next(self, state: PairState) -> tuple[Slot | None, float]:
        """Return the next slot of a pair, or None if it is settled, and the rule's probability."""
        readings, complete = state.readings()
        if self._rule is None or self.calibrates(state.pair.id):
            missing = np.flatnonzero(~complete[0])
            return (self._slots[missing[0]], 0.0) if len(missing) else (None, 1.0)
        columns, chances = self._rule.next(readings, complete)
        return (None if columns[0] < 0 else self._slots[columns[0]]), float(chances[0])

    async def _states(self, *, settled: bool = False) -> AsyncIterator[PairState]:
        async for replies in self._read_replies(settled=settled):
            yield PairState(replies, self._panel, self._slots)


def _stored_reply(record: ReplyRecord) -> StoredReply:
    """Return the fields of a reply that a reading depends on, as a store returns them."""
    annotation = record.annotation
    return StoredReply(
        **vars(record.key),
        status="refused" if annotation is None else "kept",
        reason=record.reason,
        category=annotation and annotation.category,
        magnitude=annotation and annotation.magnitude,
        confidence=annotation and annotation.confidence,
        better=annotation and annotation.better,
    )
