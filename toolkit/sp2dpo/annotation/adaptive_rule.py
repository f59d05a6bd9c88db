"""Decide when an adaptive panel has enough replies about a pair.

This is our method; the paper asks about every pair in full. The calibration pairs, chosen by the
hash of their id, are asked in full first. From them the rule learns how much a gap changes after
the first replies: the probability that a pair's gap stays within the tolerance is estimated as the
share of the most similar calibration pairs whose gap did. A pair is settled once that probability
reaches a level, possibly after a single reply.

Few calibration pairs suffice because each is used several times: with its teachers and variants
rotated, as if another teacher or another variant had been asked first. This assumes that the
teachers disagree with each other to a similar degree; gaps themselves do not depend on it.

What must stay within the tolerance is the signed gap of JMAMP (of the form `product`), on which
most soft labels and arms that flip or drop disputed pairs rely under the blind protocol, or only
what changes a beta: below 0 all gaps have the same beta, so a pair whose label is disputed is
settled sooner. The two differ under the blind protocol alone. Neither covers other gap forms or
estimators, nor the readings of single teachers, which the soft labels `latent` use, nor the sign of
a gap near 0: see `betas.compute.explain_uncovered`.

A decision depends only on the readings of the calibration pairs and of the pair itself. The same
store therefore gives the same decisions, in pages of any size and after a restart.
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
"""Probability from which a pair is settled. Our choice. Most pairs are settled at a higher one: of
20,000 simulated pairs, 97, 95 and 94 % end within 0.02 of the beta that all replies give, at one,
two and four times the demo's noise, with 17, 24 and 43 % of the requests
(tests/benchmarks/adaptive.py)."""
_LEAST, _SHARE, _MOST = 16, 0.02, 100
"""Calibration pairs: their minimum, their share of the corpus, their maximum. Our choice."""
_TOO_FEW = 8
"""With fewer calibration pairs than this, every pair is asked in full. Our choice."""
_NEIGHBOURS = 30
"""Minimum number of neighbours; otherwise a tenth of the calibration readings are neighbours."""
_SLACK = 1e-9
"""Tolerance for rounding: sums in another order differ by less than this."""


@dataclass(frozen=True, kw_only=True)
class Slot:
    """A unit of what a pair is asked: one variant of one teacher, in all orders of the rubric.

    Attributes:
        teacher: Name of the teacher.
        variant: Variant of the rubric.
    """

    teacher: str
    variant: str


def slots(teachers: Sequence[str], variants: Sequence[str]) -> tuple[Slot, ...]:
    """Return all slots of a panel, in the order in which a pair is asked.

    Each teacher is asked its first variant, because teachers differ more than the variants of one
    teacher do. Then the remaining variants follow, teacher by teacher in reverse order, so that
    most of them find the pair in the teacher's prefix cache.
    """
    first = [Slot(teacher=teacher, variant=variants[0]) for teacher in teachers]
    later = [
        Slot(teacher=teacher, variant=variant)
        for teacher in reversed(teachers)
        for variant in variants[1:]
    ]
    return (*first, *later)


def is_calibration(pair_id: str, *, pairs: int) -> bool:
    """Return whether a pair is a calibration pair, which is asked in full.

    The expected number of calibration pairs is 2 % of the corpus, but at least 16 and at most 100.
    Each pair's hash decides independently, so the actual number varies by about the square root.

    Args:
        pair_id: Id of the pair.
        pairs: Number of distinct pairs in the corpus, at least 1.
    """
    expected = min(max(_LEAST, _SHARE * pairs), _MOST)
    # The prefix makes the draw independent of the shard, which is computed from the id itself.
    digest = hashlib.sha256(f"calibration {pair_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < expected / pairs * 2**64


def jmamp(readings: Readings, slots: Sequence[Slot]) -> Readings:
    """Compute JMAMP from the readings that exist, as `betas.gaps` does from the replies.

    Args:
        readings: Signed gaps in [-1, 1], shape (m, S); NaN for a missing reading.
        slots: The S slots of the columns.

    Returns:
        Mean over teachers of the median over variants, shape (m,); NaN if a row has no reading.
    """
    teachers = list(dict.fromkeys(slot.teacher for slot in slots))
    column_teachers = np.array([teachers.index(slot.teacher) for slot in slots])
    # JMAMP (arXiv 2601.22385, section 4.3.3): over the variants first, then over the teachers.
    medians = [_median(readings[:, column_teachers == number]) for number in range(len(teachers))]
    return _mean(np.stack(medians, axis=1))


def _median(values: Readings) -> Readings:
    """Return the medians of rows, ignoring NaN, (m, V) -> (m,)."""
    # np.nanmedian warns of rows without a value.
    ordered = np.sort(values, axis=1)  # NaN goes last
    last = np.maximum((~np.isnan(values)).sum(axis=1) - 1, 0)
    rows = np.arange(len(values))
    # The two middle values, equal if their number is odd; both are NaN in a row without values.
    return (ordered[rows, last // 2] + ordered[rows, (last + 1) // 2]) / 2


def _mean(values: Readings) -> Readings:
    """Return the means of rows, ignoring NaN, (m, V) -> (m,)."""
    present = ~np.isnan(values)
    total = np.where(present, values, 0.0).sum(axis=1)
    count = present.sum(axis=1)
    return np.divide(total, count, out=np.full(len(values), np.nan), where=count > 0)


def _spread(values: Readings) -> Readings:
    """Return the population standard deviations of rows, ignoring NaN, (m, V) -> (m,)."""
    return np.sqrt(_mean((values - _mean(values)[:, None]) ** 2))


@dataclass(frozen=True, kw_only=True, eq=False)
class StoppingRule:
    """A rule that settles pairs, learned from calibration pairs. Create it with `learn`.

    Attributes:
        slots: All slots, in the order in which a pair is asked.
        calibration: Readings of the calibration pairs in all rotations, shape (n, S); NaN for a
            refused reply; every row has at least one reading.
        tolerance: Largest change of a gap that is still accepted, in [0, 1].
        covers: The gap that must not change: `signed_gap`, or `beta`, for which gaps below 0 count
            as 0.
        level: Probability of a change within the tolerance from which a pair is settled, above 0;
            above 1, every pair is asked in full.
    """

    slots: tuple[Slot, ...]
    calibration: Readings
    tolerance: float
    covers: str
    level: float

    @classmethod
    def learn(
        cls,
        calibration: Readings,
        slots: Sequence[Slot],
        *,
        tolerance: float,
        covers: str,
        level: float = LEVEL,
    ) -> Self:
        """Learn the rule from the readings of calibration pairs.

        With fewer than eight calibration pairs, the rule asks about every pair in full.

        Args:
            calibration: Signed gaps in [-1, 1], shape (n, S); rows without a reading are ignored.
            slots: All slots, in the order in which a pair is asked.
            tolerance: Largest change of a gap that is still accepted, in [0, 1].
            covers: The gap that must not change, `signed_gap` or `beta`.
            level: Probability from which a pair is settled, above 0.

        Raises:
            ValueError: If the readings do not have S columns, or the level is not above 0.
        """
        if calibration.ndim != 2 or calibration.shape[1] != len(slots):
            raise ValueError(
                f"calibration readings of shape {calibration.shape} must have one column "
                f"for each of the {len(slots)} slots"
            )
        if not level > 0:
            raise ValueError(
                f"level {level} must be above 0, the probability of a pair without replies"
            )
        usable = calibration[~np.isnan(calibration).all(axis=1)]
        # Without calibration pairs no chance is above 0, so that every pair is asked in full.
        rotations = _rotate(usable if len(usable) >= _TOO_FEW else usable[:0], slots)
        return cls(
            slots=tuple(slots),
            calibration=rotations,
            tolerance=tolerance,
            covers=covers,
            level=level,
        )

    def next(self, readings: Readings, asked: Flags) -> tuple[NDArray[np.int64], Readings]:
        """Choose the slot that each of m pairs is asked next.

        Args:
            readings: Signed gaps in [-1, 1] by slot, shape (m, S); NaN for no reading.
            asked: Whether each slot was asked, shape (m, S). A slot that was asked and has no
                reading was refused permanently.

        Returns:
            Index of the next slot, or -1 for a settled pair, shape (m,); and the probability in
            [0, 1] that the pair's gap stays within the tolerance, shape (m,): 1 if no slot is left,
            0 without any reading.
        """
        complete = asked.all(axis=1)
        chances = np.where(complete, 1.0, self._chances(readings))
        settled = complete | (chances >= self.level)
        return np.where(settled, -1, (~asked).argmax(axis=1)), chances

    def _chances(self, readings: Readings) -> Readings:
        """Return the share of each pair's neighbours whose gap stayed within the tolerance, (m,).

        Neighbours are the calibration rows that are most similar in the slots that the pair has
        readings of. Ties with the farthest neighbour are included, so that the order of the
        calibration pairs does not matter.
        """
        chances = np.zeros(len(readings))
        if not len(self.calibration):
            return chances
        final = self._covered(self.calibration)
        neighbours = min(max(_NEIGHBOURS, len(final) // 10), len(final))
        for present, rows in _patterns(readings):
            # The calibration pairs after the same slots, and how far their gaps moved from there.
            same = np.where(present, self.calibration, np.nan)
            moved = np.abs(self._covered(same) - final)
            stayed = moved <= self.tolerance + _SLACK
            distances = self._distances(readings[rows], same)
            farthest = np.partition(distances, neighbours - 1, axis=1)[:, [neighbours - 1]]
            near = (distances <= farthest + _SLACK) & np.isfinite(distances)
            # One more neighbour counts as outside the tolerance: no estimate is exactly 1.
            chances[rows] = (near & stayed).sum(axis=1) / (near.sum(axis=1) + 1)
        return chances

    def _covered(self, readings: Readings) -> Readings:
        """Return the gaps whose change counts, (m, S) -> (m,)."""
        gaps = jmamp(readings, self.slots)
        # Below 0 a gap gives the same beta as at 0, so a change there is none.
        return np.maximum(gaps, 0) if self.covers == "beta" else gaps

    def _distances(self, readings: Readings, others: Readings) -> Readings:
        """Return squared distances in JMAMP and in the spread of the readings, shape (m, n).

        The distance of a pair without any reading is infinite.
        """
        gaps = jmamp(readings, self.slots)[:, None] - jmamp(others, self.slots)
        spreads = _spread(readings)[:, None] - _spread(others)
        # Squared, because only the order of the distances matters.
        return np.nan_to_num(gaps**2 + spreads**2, nan=np.inf)


def _rotate(readings: Readings, slots: Sequence[Slot]) -> Readings:
    """Return the readings in all rotations of teachers and variants, (n, S) -> (n * S, S)."""
    teachers = list(dict.fromkeys(slot.teacher for slot in slots))
    variants = list(dict.fromkeys(slot.variant for slot in slots))
    column = {slot: number for number, slot in enumerate(slots)}

    def source(slot: Slot, by_teacher: int, by_variant: int) -> int:
        teacher = teachers[(teachers.index(slot.teacher) + by_teacher) % len(teachers)]
        variant = variants[(variants.index(slot.variant) + by_variant) % len(variants)]
        return column[Slot(teacher=teacher, variant=variant)]

    shifts = [(a, b) for a in range(len(teachers)) for b in range(len(variants))]
    return np.concatenate([readings[:, [source(slot, *by) for slot in slots]] for by in shifts])


def _patterns(readings: Readings) -> Iterator[tuple[Flags, NDArray[np.int64]]]:
    """Yield each combination of slots that have a reading, and its rows; skip empty rows."""
    present = ~np.isnan(readings)
    for pattern in np.unique(present, axis=0):
        if pattern.any():
            yield pattern, np.flatnonzero((present == pattern).all(axis=1))
