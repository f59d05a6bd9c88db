"""The adaptive panel: a pair is asked until more replies could hardly move its gap.

Ours, not the paper's, which asks every pair in full. Some pairs, drawn by the hash of their id, are
asked in full first. From them the rule learns how far a gap still moves from what the first replies
said: the chance that a pair stays within the tolerance is the share of the most similar calibration
pairs that did. From a level of that chance on a pair is settled, be it after a single reply.

So that few calibration pairs teach enough, each counts as often as its teachers and variants can be
turned round: as if another teacher, or another variant, had been asked first. That takes teachers
to be alike in how far their readings lie apart, and is no part of a gap.

A decision depends on the calibration readings and on the pair's own, on nothing else: the same
store gives the same decisions, page by page or all at once, today or after a restart.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

Readings = NDArray[np.float64]
Flags = NDArray[np.bool_]

LEVEL = 0.92
"""The chance from which a pair is settled, our choice. Most are settled at more: of 20,000 made-up
pairs 97, 95 and 94 % end within 0.02 of their full beta, at the demo's noise, twice and four times
it, for 17, 24 and 43 % of the requests (tests/benchmarks/adaptive.py)."""
_LEAST, _SHARE, _MOST = 16, 0.02, 100
"""Calibration pairs: a share of the corpus, yet at least and at most so many. Our choice."""
_TOO_FEW = 8
"""Fewer calibration pairs settle nothing. Our choice."""
_NEIGHBOURS = 30
"""A chance is counted among the nearest tenth of the calibration readings, yet at least so many."""
_SLACK = 1e-9
"""Differences below it come from the order of a sum, not from the replies."""


@dataclass(frozen=True, kw_only=True)
class Slot:
    """What a pair can be asked: one variant of one teacher, in all orders of the rubric."""

    teacher: str
    variant: str


def slots(teachers: Sequence[str], variants: Sequence[str]) -> tuple[Slot, ...]:
    """All slots of a panel, in the order in which a pair is asked.

    Every teacher once, because teachers differ by more than the variants of one do; then back
    through the teachers, each with the variants that are left. So a pair changes teacher four times
    among three, and most further variants find it in the teacher's prefix cache.
    """
    first = [Slot(teacher=teacher, variant=variants[0]) for teacher in teachers]
    rest = [
        Slot(teacher=teacher, variant=variant)
        for teacher in reversed(teachers)
        for variant in variants[1:]
    ]
    return (*first, *rest)


def is_calibration(pair_id: str, *, pairs: int) -> bool:
    """Whether a pair is asked in full first, for the rule to learn from.

    About 2 % of the pairs are, yet at least 16 and at most 100. The hash decides for each pair by
    itself, so their number varies around that by about its square root.

    Args:
        pair_id: of the pair.
        pairs: distinct pairs of the corpus, at least 1.
    """
    wanted = min(max(_LEAST, _SHARE * pairs), _MOST)
    digest = hashlib.sha256(f"calibration {pair_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < wanted / pairs * 2**64


def jmamp(readings: Readings, slots: Sequence[Slot]) -> Readings:
    """JMAMP of the readings that are there, as `gaps` computes it from the replies.

    Args:
        readings: (m, S) signed gaps in [-1, 1], NaN where there is none.
        slots: S of them.

    Returns:
        (m,) mean over the teachers of the median over the variants; NaN where all is missing.
    """
    teachers = list(dict.fromkeys(slot.teacher for slot in slots))
    of = np.array([teachers.index(slot.teacher) for slot in slots])
    medians = [_median(readings[:, of == number]) for number in range(len(teachers))]
    return _mean(np.stack(medians, axis=1))


def _median(values: Readings) -> Readings:
    """(m, V) -> (m,) over what is there, without NumPy's warning where nothing is."""
    ordered = np.sort(values, axis=1)  # NaN goes last
    last = np.maximum((~np.isnan(values)).sum(axis=1) - 1, 0)
    rows = np.arange(len(values))
    return (ordered[rows, last // 2] + ordered[rows, (last + 1) // 2]) / 2


def _mean(values: Readings) -> Readings:
    """(m, V) -> (m,) over what is there."""
    there = ~np.isnan(values)
    total = np.where(there, values, 0.0).sum(axis=1)
    count = there.sum(axis=1)
    return np.divide(total, count, out=np.full(len(values), np.nan), where=count > 0)


def _spread(values: Readings) -> Readings:
    """(m, V) -> (m,) the population standard deviation over what is there."""
    return np.sqrt(_mean((values - _mean(values)[:, None]) ** 2))


@dataclass(frozen=True, kw_only=True, eq=False)
class StoppingRule:
    """When a pair is settled, learnt from pairs that were asked in full; `learn` makes it.

    Attributes:
        slots: in the order in which a pair is asked.
        calibration: (n, S) readings of the calibration pairs, turned round in all ways; NaN where
            a reply was refused; each row has some.
        tolerance: how far the gap may still move, in [0, 1]; no gap is below 0.
        level: the chance of staying within the tolerance from which a pair is settled, above 0;
            above 1, every pair is asked in full.
    """

    slots: tuple[Slot, ...]
    calibration: Readings
    tolerance: float
    level: float

    @classmethod
    def learn(
        cls,
        calibration: Readings,
        slots: Sequence[Slot],
        *,
        tolerance: float,
        level: float = LEVEL,
    ) -> Self:
        """The rule that the calibration pairs teach.

        Fewer than eight calibration pairs teach nothing: every pair is asked in full.

        Args:
            calibration: (n, S) readings; a row without any teaches nothing.
            slots: every variant of every teacher, in the order in which a pair is asked.
            tolerance: in [0, 1].
            level: above 0.

        Raises:
            ValueError: the readings are not S to a row, or the level is not above 0.
        """
        if calibration.ndim != 2 or calibration.shape[1] != len(slots):
            raise ValueError(
                f"calibration readings of shape {calibration.shape} must have one column "
                f"for each of the {len(slots)} slots"
            )
        if not level > 0:
            raise ValueError(f"level {level} must be above 0: a pair without replies has chance 0")
        known = calibration[~np.isnan(calibration).all(axis=1)]
        turned = _turned(known if len(known) >= _TOO_FEW else known[:0], slots)
        return cls(slots=tuple(slots), calibration=turned, tolerance=tolerance, level=level)

    def next(self, readings: Readings, asked: Flags) -> tuple[NDArray[np.int64], Readings]:
        """The slot that each pair of a page is asked next, and the chance behind the answer.

        Args:
            readings: (m, S) signed gaps in [-1, 1] in the order of `slots`, NaN = no reading.
            asked: (m, S) whether the slot was asked; asked and no reading: it was refused for good.

        Returns:
            (m,) index into `slots`, or -1 for a settled pair; (m,) the chance in [0, 1] that its
            gap stays within the tolerance: 1 where nothing is left to ask, 0 without any reading.
        """
        chances = np.where(asked.all(axis=1), 1.0, self._chances(readings))
        settled = asked.all(axis=1) | (chances >= self.level)
        return np.where(settled, -1, (~asked).argmax(axis=1)), chances

    def _chances(self, readings: Readings) -> Readings:
        """(m,) the share of a pair's neighbours whose gap stayed near what they had said by then.

        The neighbours are compared by the readings of the same slots. One more of them counts as
        moved: a chance is never quite 1. All that are as near as the last one count too, so the
        order of the calibration pairs does not matter.
        """
        chances = np.zeros(len(readings))
        if not len(self.calibration):
            return chances
        final = np.maximum(jmamp(self.calibration, self.slots), 0)
        wanted = min(max(_NEIGHBOURS, len(final) // 10), len(final))
        for there, rows in _patterns(readings):
            same = np.where(there, self.calibration, np.nan)
            moved = np.abs(np.maximum(jmamp(same, self.slots), 0) - final)
            stayed = moved <= self.tolerance + _SLACK
            distances = self._distances(readings[rows], same)
            farthest = np.partition(distances, wanted - 1, axis=1)[:, [wanted - 1]]
            near = (distances <= farthest + _SLACK) & np.isfinite(distances)
            chances[rows] = (near & stayed).sum(axis=1) / (near.sum(axis=1) + 1)
        return chances

    def _distances(self, readings: Readings, others: Readings) -> Readings:
        """(m, n) squared distances of pairs, by their JMAMP and by the spread of their readings.

        A pair without any reading is infinitely far.
        """
        gaps = jmamp(readings, self.slots)[:, None] - jmamp(others, self.slots)
        spreads = _spread(readings)[:, None] - _spread(others)
        return np.nan_to_num(gaps**2 + spreads**2, nan=np.inf)


def _turned(readings: Readings, slots: Sequence[Slot]) -> Readings:
    """(n, S) -> (n * S, S): teachers and variants, each moved on in a circle, by every number."""
    teachers = list(dict.fromkeys(slot.teacher for slot in slots))
    variants = list(dict.fromkeys(slot.variant for slot in slots))
    column = {slot: number for number, slot in enumerate(slots)}

    def moved(slot: Slot, by_teacher: int, by_variant: int) -> int:
        teacher = teachers[(teachers.index(slot.teacher) + by_teacher) % len(teachers)]
        variant = variants[(variants.index(slot.variant) + by_variant) % len(variants)]
        return column[Slot(teacher=teacher, variant=variant)]

    turns = [(a, b) for a in range(len(teachers)) for b in range(len(variants))]
    return np.concatenate([readings[:, [moved(slot, *by) for slot in slots]] for by in turns])


def _patterns(readings: Readings) -> Iterator[tuple[Flags, NDArray[np.int64]]]:
    """Which slots have a reading, and the rows of which that is true; never none of the slots."""
    there = ~np.isnan(readings)
    for pattern in np.unique(there, axis=0):
        if pattern.any():
            yield pattern, np.flatnonzero((there == pattern).all(axis=1))
