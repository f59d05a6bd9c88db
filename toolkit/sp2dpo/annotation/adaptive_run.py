"""Asking an adaptive panel: pair by pair, until more replies could hardly move the gap.

Some pairs are asked in full first; the rule (`adaptive_rule`) learns from them. Every other pair is
then asked one slot after the other, for as long as the rule wants more. Both are our choice.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from sp2dpo.annotation.adaptive_rule import Slot, StoppingRule, is_calibration, slots
from sp2dpo.annotation.teacher import Take, TeacherSession
from sp2dpo.betas.estimators import JMAMP
from sp2dpo.betas.gaps import compute_signed_gap
from sp2dpo.panel.annotation import Key
from sp2dpo.panel.panel import Panel
from sp2dpo.store.questions import Job, PairReplies, Question, SettledPair
from sp2dpo.store.records import UNREADABLE, ReplyRecord

Settle = Callable[[SettledPair, int], Awaitable[None]]
"""Is handed every pair of which enough is known, and how many replies it does without."""


class Reader(Protocol):
    """Reads pairs with what was said of them."""

    def __call__(self, *, settled: bool) -> AsyncIterator[PairReplies]:
        """All from the beginning, with or without those that are settled."""
        ...


class PairState:
    """What is known of one pair: the readings of its slots, and which slots need no asking."""

    def __init__(self, heard: PairReplies, panel: Panel, order: Sequence[Slot]) -> None:
        self.pair = heard.pair
        self.number = heard.number
        self._panel = panel
        self._slots = order
        self._retries = {teacher.name: teacher.retries for teacher in panel.teachers}
        self._last: dict[tuple[str, str, str], tuple[int, bool, float | None]] = {}
        for reply in heard.replies:
            self.hear(reply)

    def hear(self, reply: dict[str, Any]) -> None:
        """Takes a reply in; of several to one key the last one counts."""
        teacher, attempt = reply["teacher"], reply["attempt"]
        if teacher not in self._retries:
            return
        key = (teacher, reply["variant"], reply["order"])
        if attempt < self._last.get(key, (-1,))[0]:
            return
        kept = reply["reason"] is None
        final = kept or reply["reason"] not in UNREADABLE or attempt >= self._retries[teacher]
        reading = compute_signed_gap(reply, self._panel.rubric, JMAMP) if kept else None
        self._last[key] = (attempt, final, reading)

    @property
    def replies(self) -> int:
        """Replies that hold a reading."""
        return sum(reading is not None for _, _, reading in self._last.values())

    @property
    def spared(self) -> int:
        """Replies that it does without."""
        keys = [key for slot in self._slots for key in self._keys(slot)]
        return sum(key not in self._last for key in keys)

    def readings(self) -> tuple[np.ndarray, np.ndarray]:
        """(1, S) readings, NaN where there is none, and (1, S) whether the slot was asked."""
        values = np.full((1, len(self._slots)), np.nan)
        asked = np.zeros((1, len(self._slots)), dtype=bool)
        for place, slot in enumerate(self._slots):
            heard = [self._last.get(key) for key in self._keys(slot)]
            asked[0, place] = all(one is not None and one[1] for one in heard)
            known = [one[2] for one in heard if one is not None and one[2] is not None]
            if known and asked[0, place]:
                values[0, place] = np.mean(known)
        return values, asked

    def job(self, slot: Slot) -> Job:
        """What is still to be asked for a slot."""
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
    """An adaptive panel at work."""

    def __init__(
        self,
        panel: Panel,
        *,
        pairs: int,
        heard: Reader,
        stop: asyncio.Event,
    ) -> None:
        """Nothing is read yet.

        Args:
            panel: whom to ask what, and how far a gap may still move.
            pairs: distinct pairs that it is asked about.
            heard: reads all pairs from the beginning, with or without those that are settled.
            stop: set when nothing more is to be sent.
        """
        self._panel = panel
        self._pairs = pairs
        self._heard = heard
        self._stop = stop
        self._slots = slots([teacher.name for teacher in panel.teachers], panel.variants)
        self._rule: StoppingRule | None = None

    def calibrates(self, pair_id: str) -> bool:
        """Whether a pair is one of those that are asked in full."""
        return is_calibration(pair_id, pairs=self._pairs)

    async def learn(self) -> None:
        """Learns the rule from the pairs that were asked in full."""
        rows = [
            state.readings()[0][0]
            async for state in self._states(settled=True)
            if self.calibrates(state.pair.id)
        ]
        readings = np.array(rows).reshape(len(rows), len(self._slots))
        self._rule = StoppingRule.learn(readings, self._slots, tolerance=self._panel.tolerance)

    async def wanted(self, *, calibrating: bool) -> Counter[str]:
        """How many pairs wait for which teacher, among those to calibrate with or the others."""
        waiting: Counter[str] = Counter()
        async for state in self._states():
            if calibrating != self.calibrates(state.pair.id):
                continue
            if calibrating:
                missing = ~state.readings()[1][0]
                waiting.update(
                    {slot.teacher for slot, no in zip(self._slots, missing, strict=True) if no}
                )
            elif slot := self._next(state)[0]:
                waiting[slot.teacher] += 1
        return waiting

    async def ask(self, askings: Mapping[str, TeacherSession], take: Take, settle: Settle) -> None:
        """Asks about every pair for as long as its next slot is of one of these teachers.

        Args:
            askings: the teachers that can be asked now, by name.
            take: is handed every reply.
            settle: is handed every pair of which enough is known.
        """
        begun = asyncio.Semaphore(max(1, sum(one.most for one in askings.values())))
        async with asyncio.TaskGroup() as group:
            async for state in self._states():
                await begun.acquire()
                if self._stop.is_set():
                    return
                task = group.create_task(self._pair(state, askings, take, settle))
                task.add_done_callback(lambda _: begun.release())

    async def _pair(
        self, state: PairState, askings: Mapping[str, TeacherSession], take: Take, settle: Settle
    ) -> None:
        async def hear(entry: ReplyRecord, final: bool) -> None:
            state.hear(_reply(entry))
            await take(entry, final)

        while not self._stop.is_set():
            slot, chance = self._next(state)
            if slot is None:
                settled = SettledPair(pair_id=state.pair.id, replies=state.replies, chance=chance)
                await settle(settled, state.spared)
                return
            if slot.teacher not in askings:
                return
            await askings[slot.teacher].job(state.job(slot), hear)

    def _next(self, state: PairState) -> tuple[Slot | None, float]:
        """The slot that a pair is asked next, None where it is settled, and the chance of that."""
        readings, asked = state.readings()
        if self._rule is None or self.calibrates(state.pair.id):
            missing = np.flatnonzero(~asked[0])
            return (self._slots[missing[0]], 0.0) if len(missing) else (None, 1.0)
        places, chances = self._rule.next(readings, asked)
        return (None if places[0] < 0 else self._slots[places[0]]), float(chances[0])

    async def _states(self, *, settled: bool = False) -> AsyncIterator[PairState]:
        async for heard in self._heard(settled=settled):
            yield PairState(heard, self._panel, self._slots)


def _reply(entry: ReplyRecord) -> dict[str, Any]:
    """An entry as a store gives it back, as far as a reading goes."""
    said = entry.annotation
    return {
        "teacher": entry.key.teacher,
        "variant": entry.key.variant,
        "order": entry.key.order,
        "attempt": entry.key.attempt,
        "reason": entry.reason,
        "better": said and said.better,
        "magnitude": said and said.magnitude,
        "confidence": said and said.confidence,
    }
