"""Teachers that read the true reward through noise and bias, and answer as the blind rubric asks.

What teacher a thinks of pair i, in the units of the reward, is

    o_ai = sum over parts k of w_ak d_ik + b_a l_i + noise_a n_ai,    n ~ N(0, 1)

with the parts d of the true difference (world.PARTS), the tokens l that the chosen response has
more, and what the teacher makes of both. One reading of it, under a variant p and an order o, is
z = o_ai + wavering_a n_aipo; with the probability `guessing_a` it is the z of another pair, with a
sign drawn by lot. A reply names the better response by the sign of z (a tie where |z| < 0.1) and
says, on the scales from 0 to 10,

    magnitude = 10 min(1, |z| / 4),    confidence = 10 (2 s(|z|) - 1)

rounded: a careful teacher's confidence is how far the chance that it names the right response lies
above a half. Teachers are asked blind, in both orders, so that one set of replies serves the arms
that dispute labels as well; where a teacher finds the label right, the gap of a reply is that of
the labelled protocol, and where it finds it wrong, both have the gap 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from labelled import LabelledPair
from sp2dpo.panel.rubric import CHOSEN_FIRST, REJECTED_FIRST, Rubric
from sp2dpo.store.annotations import AnnotationTable, build_annotation_table
from world import PARTS

LARGEST = 4.0
"""The difference of rewards at which a teacher calls the gap decisive."""
TIE = 0.1


@dataclass(frozen=True, kw_only=True)
class SimulatedTeacher:
    """How well a teacher reads.

    Attributes:
        name: of the teacher.
        noise: of its opinion of a pair, the same in every reading.
        wavering: of one reading.
        length_bias: for each token that a response is longer.
        guessing: the share of its readings that have nothing to do with the pair.
        parts: what it multiplies the parts of the reward by, where not by 1.
    """

    name: str
    noise: float = 0.0
    wavering: float = 0.0
    length_bias: float = 0.0
    guessing: float = 0.0
    parts: dict[str, float] = field(default_factory=dict)

    def opinions(
        self, pairs: Sequence[LabelledPair], draw: np.random.Generator
    ) -> NDArray[np.float64]:
        """(N,) o_ai, above 0 where it prefers the chosen response."""
        weights = np.array([self.parts.get(part, 1.0) for part in PARTS])
        seen = np.array([pair.parts for pair in pairs]) @ weights
        longer = np.array([pair.longer for pair in pairs])
        return seen + self.length_bias * longer + self.noise * draw.standard_normal(len(pairs))


def annotated(
    pairs: Sequence[LabelledPair],
    teachers: Sequence[SimulatedTeacher],
    rubric: Rubric,
    *,
    seed: int,
) -> AnnotationTable:
    """Every reply of every teacher, under each variant and in both orders.

    Args:
        pairs: as labelled.
        teachers: of the panel.
        rubric: a blind one, its scales from 0 to 10.
        seed: of opinions and readings.
    """
    draw = np.random.default_rng([seed, 5])
    categories = [_category(pair.parts) for pair in pairs]
    rows: list[tuple[object, ...]] = []
    for teacher in teachers:
        opinions = teacher.opinions(pairs, draw)
        for variant in rubric.variants:
            for order in (CHOSEN_FIRST, REJECTED_FIRST):
                z = opinions + teacher.wavering * draw.standard_normal(len(pairs))
                guessed = draw.random(len(pairs)) < teacher.guessing
                sign = draw.choice([-1.0, 1.0], size=len(pairs))
                z = np.where(guessed, sign * draw.permutation(z), z)
                first = order == CHOSEN_FIRST
                rows += [
                    (pair.pair_id, teacher.name, variant, order, 0, category, *_reply(read, first))
                    for pair, category, read in zip(pairs, categories, z.tolist(), strict=True)
                ]
    return build_annotation_table(rows, pair_ids=[pair.pair_id for pair in pairs], rubric=rubric)


def _reply(z: float, chosen_first: bool) -> tuple[int, int, str, None, None]:
    """Magnitude, confidence and better; expectations are not told."""
    confidence = round(10 * (2 / (1 + np.exp(-abs(z))) - 1))
    if abs(z) < TIE:
        return 0, confidence, "tie", None, None
    better = "A" if (z > 0) == chosen_first else "B"
    return round(10 * min(1.0, abs(z) / LARGEST)), confidence, better, None, None


def _category(parts: Sequence[float]) -> str:
    """The first part in which the responses differ."""
    return next(name for name, one in zip(PARTS, parts, strict=True) if abs(one) > 1e-9)
