"""Sample preference pairs of the world: two responses of one model, and a label that may be wrong.

The label of a pair is drawn from the Bradley-Terry model of the true reward, P(x preferred to y) =
s(r_x - r_y), and then flipped with probability `flips`, independently of the pair. These flips
model a careless annotator. A label is wrong if the chosen response has the lower reward.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from language_model import END, WORDS, prompt_ids, response_words, sample
from world import PROMPTS, World

Response = list[int]


@dataclass(frozen=True, kw_only=True)
class PromptSplit:
    """Which prompts are used for what, as indices into `PROMPTS`.

    Attributes:
        train: Prompts of the training pairs.
        validation: Prompts on which trials are chosen.
        test: All other prompts; reported numbers are measured on them.
    """

    train: list[int]
    validation: list[int]
    test: list[int]


def split_prompts(seed: int, *, train: int, validation: int) -> PromptSplit:
    """Divide the prompts at random into training, validation and test prompts.

    Args:
        seed: Seed of the order.
        train: Number of training prompts.
        validation: Number of validation prompts.
    """
    order = np.random.default_rng([seed, 3]).permutation(len(PROMPTS)).tolist()
    end = train + validation
    return PromptSplit(train=order[:train], validation=order[train:end], test=order[end:])


@dataclass(frozen=True, kw_only=True)
class LabelledPair:
    """A pair with its label and its true rewards.

    Attributes:
        pair_id: Name of the pair; sorting by name keeps the order of the pairs.
        prompt: Index into `PROMPTS`.
        chosen: Tokens of the chosen response.
        rejected: Tokens of the rejected response.
        parts: True reward of chosen minus that of rejected, for each of `world.PARTS`, (4,).
        flipped: Whether a careless annotator flipped the label.
    """

    pair_id: str
    prompt: int
    chosen: Response
    rejected: Response
    parts: list[float]
    flipped: bool

    @property
    def difference(self) -> float:
        """True reward of chosen minus that of rejected; the label is wrong if it is below 0."""
        return float(sum(self.parts))

    @property
    def extra_length(self) -> int:
        """Number of tokens of chosen minus that of rejected."""
        return len(self.chosen) - len(self.rejected)

    def training_row(self) -> dict[str, Any]:
        """Return the pair as a row of a training set."""
        return {
            "pair_id": self.pair_id,
            "prompt": " ".join(PROMPTS[self.prompt].words),
            "chosen": " ".join(WORDS[token] for token in self.chosen[:-1]),
            "rejected": " ".join(WORDS[token] for token in self.rejected[:-1]),
            "prompt_ids": prompt_ids(PROMPTS[self.prompt]),
            "chosen_ids": self.chosen,
            "rejected_ids": self.rejected,
        }


def sample_pairs(
    model: Any, world: World, prompts: list[int], *, each: int, seed: int
) -> list[LabelledPair]:
    """Return pairs of complete responses with different rewards, the better one as chosen.

    Args:
        model: The model that responds, at temperature 1.
        world: The world that defines the rewards.
        prompts: Indices into `PROMPTS`.
        each: Number of pairs to try for each prompt.
        seed: Seed of the responses.
    """
    indices = [prompt for prompt in prompts for _ in range(each)]
    texts = [PROMPTS[index] for index in indices]
    first, second = (sample(model, texts, temperature=1.0, seed=2 * seed + side) for side in (0, 1))
    pairs = []
    for index, x, y in zip(indices, first, second, strict=True):
        if x[-1] != END or y[-1] != END:
            continue
        rewards = [
            world.rewards(PROMPTS[index], response_words(response)[0], ended=True)
            for response in (x, y)
        ]
        parts = rewards[0] - rewards[1]
        if abs(parts.sum()) < 1e-9:
            continue
        if parts.sum() < 0:
            x, y, parts = y, x, -parts
        pairs.append(
            LabelledPair(
                pair_id=f"pair-{len(pairs):05}", prompt=index, chosen=x, rejected=y,
                parts=parts.tolist(), flipped=False,
            )
        )  # fmt: skip
    return pairs


def label_pairs(
    pairs: list[LabelledPair], *, sharpness: float, flips: float, seed: int
) -> list[LabelledPair]:
    """Return the pairs with the labels of noisy annotators.

    Args:
        pairs: Pairs with the better response as chosen.
        sharpness: Factor of the difference of the rewards inside s().
        flips: Probability in [0, 1] that a label is flipped afterwards.
        seed: Seed of the labels.
    """
    draw = np.random.default_rng([seed, 4])
    labelled = []
    for pair in pairs:
        is_right = draw.random() < 1 / (1 + np.exp(-sharpness * pair.difference))
        flipped = draw.random() < flips
        labelled.append(_relabel(pair, exchange=is_right == flipped, flipped=bool(flipped)))
    return labelled


def restore_flips(pairs: list[LabelledPair]) -> list[LabelledPair]:
    """Return the pairs with flipped labels restored; the Bradley-Terry noise remains."""
    return [_relabel(pair, exchange=pair.flipped, flipped=False) for pair in pairs]


def _relabel(pair: LabelledPair, *, exchange: bool, flipped: bool) -> LabelledPair:
    sides = (pair.rejected, pair.chosen) if exchange else (pair.chosen, pair.rejected)
    parts = [-part for part in pair.parts] if exchange else pair.parts
    return LabelledPair(
        pair_id=pair.pair_id, prompt=pair.prompt, chosen=sides[0], rejected=sides[1], parts=parts,
        flipped=flipped,
    )  # fmt: skip
