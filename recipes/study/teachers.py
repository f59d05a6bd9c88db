"""Simulate teachers, who read the true reward with noise and bias, under the blind rubric.

The opinion of teacher a on pair i, in units of the reward, is

    o_ai = sum over parts k of w_ak d_ik + b_a l_i + noise_a n_ai + shared_a m_i + lean_a

where d are the parts of the true difference (`world.PARTS`) with the teacher's weights w, l is
the number of tokens of chosen minus that of rejected, with the teacher's length bias b, and n and m
are standard normal; m_i is the same for all teachers of a panel, so it is an error that they share.
A teacher of the labelled protocol knows the label, and leans towards it by lean_a. One reading,
under variant p and order o, is z = o_ai + wavering_a n_aipo; with probability `guessing_a` it is
the z of another pair with a random sign. A reply names the better response by the sign of z (a tie
if |z| < 0.1) and gives, on scales from 0 to 10 and rounded,

    magnitude = 10 min(1, |z| / 4),    confidence = 10 (2 s(|z|) - 1)

so the confidence of a well-calibrated teacher is how far the probability that it names the right
response exceeds one half. Teachers reply blind and in both orders, so that one set of replies also
serves the arms that use disputed labels. Under the labelled protocol there is one order, and a
teacher that prefers the rejected response can only say that the magnitude is 0: each reply is
clipped before replies are combined. In a panel of the blind protocol the clip comes last.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pairs import LabelledPair
from sp2dpo import AnnotationTable, Rubric, build_annotation_table
from world import PARTS

ORDERS = ("chosen-first", "rejected-first")
LARGEST = 4.0
"""Smallest difference of rewards for which a teacher gives the largest magnitude."""
TIE = 0.1


@dataclass(frozen=True, kw_only=True)
class SimulatedTeacher:
    """A simulated teacher, described by how accurately it reads.

    Attributes:
        name: Name of the teacher.
        noise: Standard deviation of its opinion on a pair, the same in every reading.
        wavering: Standard deviation of one reading.
        length_bias: Reward for each additional token of a response.
        guessing: Share of its readings that do not depend on the pair, in [0, 1].
        parts: Weights of the parts of the reward, by name; 1 for a part that is not named.
        shared: Standard deviation of the error that it shares with the other teachers.
        lean: Reward that it adds to the chosen response; for a teacher that is told the label.
        labelled: Whether it is told the label; all teachers of a panel alike.
    """

    name: str
    noise: float = 0.0
    wavering: float = 0.0
    length_bias: float = 0.0
    guessing: float = 0.0
    parts: dict[str, float] = field(default_factory=dict)
    shared: float = 0.0
    lean: float = 0.0
    labelled: bool = False

    def opinions(
        self,
        pairs: Sequence[LabelledPair],
        draw: np.random.Generator,
        shared_errors: NDArray[np.float64],
    ) -> NDArray[np.float64]:
        """Return the opinions o_ai, (N,), above 0 if the teacher prefers the chosen response."""
        weights = np.array([self.parts.get(part, 1.0) for part in PARTS])
        rewards = np.array([pair.parts for pair in pairs]) @ weights
        lengths = np.array([pair.extra_length for pair in pairs])
        noise = self.noise * draw.standard_normal(len(pairs))
        return (
            rewards + self.length_bias * lengths + noise + self.shared * shared_errors + self.lean
        )


def annotate_pairs(
    pairs: Sequence[LabelledPair],
    teachers: Sequence[SimulatedTeacher],
    rubric: Rubric,
    *,
    seed: int,
) -> AnnotationTable:
    """Return every reply of every teacher, under each variant and, if blind, in both orders.

    Args:
        pairs: Pairs with their labels.
        teachers: Teachers of the panel.
        rubric: A rubric of the teachers' protocol with scales from 0 to 10.
        seed: Seed of the opinions and readings.
    """
    draw = np.random.default_rng([seed, 5])
    # A generator of its own, so that a panel without shared errors does not depend on them.
    shared_errors = np.random.default_rng([seed, 6]).standard_normal(len(pairs))
    categories = [_category(pair.parts) for pair in pairs]
    rows: list[tuple[object, ...]] = []
    for teacher in teachers:
        opinions = teacher.opinions(pairs, draw, shared_errors)
        for variant in rubric.variants:
            for order in ORDERS if rubric.blind else ORDERS[:1]:
                z = opinions + teacher.wavering * draw.standard_normal(len(pairs))
                guessed = draw.random(len(pairs)) < teacher.guessing
                sign = draw.choice([-1.0, 1.0], size=len(pairs))
                z = np.where(guessed, sign * draw.permutation(z), z)
                chosen_first = order == ORDERS[0] if rubric.blind else None
                rows += [
                    (
                        pair.pair_id, teacher.name, variant, order, 0, category,
                        *_reply(reading, chosen_first),
                    )
                    for pair, category, reading in zip(pairs, categories, z.tolist(), strict=True)
                ]  # fmt: skip
    return build_annotation_table(rows, pair_ids=[pair.pair_id for pair in pairs], rubric=rubric)


def _reply(z: float, chosen_first: bool | None) -> tuple[int, int, str | None, None, None]:
    """Return magnitude, confidence and better; a simulated reply has no log-probabilities.

    `chosen_first` is None under the labelled protocol, in which `better` is not asked.
    """
    confidence = round(10 * (2 / (1 + np.exp(-abs(z))) - 1))
    magnitude = round(10 * min(1.0, abs(z) / LARGEST))
    if chosen_first is None:
        return (magnitude if z >= TIE else 0), confidence, None, None, None
    if abs(z) < TIE:
        return 0, confidence, "tie", None, None
    better = "A" if (z > 0) == chosen_first else "B"
    return magnitude, confidence, better, None, None


def _category(parts: Sequence[float]) -> str:
    """Return the first part in which the responses differ."""
    return next(name for name, part in zip(PARTS, parts, strict=True) if abs(part) > 1e-9)
