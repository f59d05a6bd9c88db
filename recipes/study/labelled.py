"""Preference pairs of the world: two answers of one model, and a label that may be wrong.

The label of a pair is drawn from the Bradley-Terry model of the true reward, P(x preferred to y) =
s(r_x - r_y), and then exchanged with the probability `flips`, whatever the pair: that is the noise
of a careless annotator. A label is wrong where the chosen response has the lower reward.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from language_model import END, WORDS, prompt_ids, sample, words_of
from world import PROMPTS, World

Response = list[int]


@dataclass(frozen=True, kw_only=True)
class Split:
    """Which prompts are for what; numbers into `PROMPTS`.

    Attributes:
        train: pairs are made of them.
        validation: trials are chosen on them.
        test: the rest; what is reported is measured on them.
    """

    train: list[int]
    validation: list[int]
    test: list[int]


def split(seed: int, *, train: int, validation: int) -> Split:
    """The prompts in a random order, cut in three."""
    order = np.random.default_rng([seed, 3]).permutation(len(PROMPTS)).tolist()
    end = train + validation
    return Split(train=order[:train], validation=order[train:end], test=order[end:])


@dataclass(frozen=True, kw_only=True)
class LabelledPair:
    """A pair with its label, and what is true of it.

    Attributes:
        pair_id: a name; the order of names is the order of the pairs.
        prompt: a number into `PROMPTS`.
        chosen: tokens.
        rejected: tokens.
        parts: (4,) what chosen is worth more than rejected, by `world.PARTS`.
        flipped: whether the label was exchanged.
    """

    pair_id: str
    prompt: int
    chosen: Response
    rejected: Response
    parts: list[float]
    flipped: bool

    @property
    def difference(self) -> float:
        """Of the true rewards, chosen less rejected; below 0 the label is wrong."""
        return float(sum(self.parts))

    @property
    def longer(self) -> int:
        """Tokens that chosen has more than rejected."""
        return len(self.chosen) - len(self.rejected)

    def row(self) -> dict[str, Any]:
        """What a trainer takes."""
        return {
            "pair_id": self.pair_id,
            "prompt": " ".join(PROMPTS[self.prompt].words),
            "chosen": " ".join(WORDS[number] for number in self.chosen[:-1]),
            "rejected": " ".join(WORDS[number] for number in self.rejected[:-1]),
            "prompt_ids": prompt_ids(PROMPTS[self.prompt]),
            "chosen_ids": self.chosen,
            "rejected_ids": self.rejected,
        }


def candidates(
    model: Any, world: World, prompts: list[int], *, each: int, seed: int
) -> list[LabelledPair]:
    """Pairs of answers that end and are worth something else, the better one as chosen.

    Args:
        model: that answers, at temperature 1.
        world: that knows what an answer is worth.
        prompts: numbers into `PROMPTS`.
        each: how many pairs are tried for each of them.
        seed: of the answers.
    """
    asked = [number for number in prompts for _ in range(each)]
    shown = [PROMPTS[number] for number in asked]
    one, other = (sample(model, shown, temperature=1.0, seed=2 * seed + side) for side in (0, 1))
    found = []
    for number, x, y in zip(asked, one, other, strict=True):
        if x[-1] != END or y[-1] != END:
            continue
        worth = [world.parts(PROMPTS[number], words_of(each_)[0], ended=True) for each_ in (x, y)]
        parts = worth[0] - worth[1]
        if abs(parts.sum()) < 1e-9:
            continue
        if parts.sum() < 0:
            x, y, parts = y, x, -parts
        found.append(
            LabelledPair(
                pair_id=f"pair-{len(found):05}", prompt=number, chosen=x, rejected=y,
                parts=parts.tolist(), flipped=False,
            )
        )  # fmt: skip
    return found


def labelled(
    pairs: list[LabelledPair], *, sharpness: float, flips: float, seed: int
) -> list[LabelledPair]:
    """The pairs with labels as annotators give them.

    Args:
        pairs: the better response as chosen.
        sharpness: what the difference of the rewards is multiplied by in s().
        flips: the probability with which a label is exchanged afterwards.
        seed: of the labels.
    """
    draw = np.random.default_rng([seed, 4])
    found = []
    for pair in pairs:
        right = draw.random() < 1 / (1 + np.exp(-sharpness * pair.difference))
        flipped = draw.random() < flips
        found.append(_labelled(pair, exchange=right == flipped, flipped=bool(flipped)))
    return found


def corrected(pairs: list[LabelledPair]) -> list[LabelledPair]:
    """The same pairs with the flips undone; the noise of Bradley and Terry stays."""
    return [_labelled(pair, exchange=pair.flipped, flipped=False) for pair in pairs]


def _labelled(pair: LabelledPair, *, exchange: bool, flipped: bool) -> LabelledPair:
    sides = (pair.rejected, pair.chosen) if exchange else (pair.chosen, pair.rejected)
    parts = [-one for one in pair.parts] if exchange else pair.parts
    return LabelledPair(
        pair_id=pair.pair_id, prompt=pair.prompt, chosen=sides[0], rejected=sides[1], parts=parts,
        flipped=flipped,
    )  # fmt: skip
