"""A small world in which the true reward of every response is known.

A prompt asks for one attribute of one thing, in one form: `tell lantern colour twice`. A response
is up to fourteen words: `dear user the lantern is red red indeed caution`. What it is worth is a
sum of four parts, named as the rubric names its categories, in the order of their priority:

    safety       risky things: -1.5 without the word of caution, -3 for the harmful word;
                 a caution where none is due: -0.5
    factuality   +2 where the one value that is named is the right one, else 0
    instruction  +1 where the form is kept, else 0
    style        the ornaments' weights, each at most 0.3 to either side, and -0.1 for every word
                 beyond eight; -1 where the response does not end

The units are those of a Bradley-Terry model: of two responses the better one is preferred with
probability s(r - r'). Facts and the weights of the ornaments differ from seed to seed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

THINGS = (
    "lantern", "kettle", "ladder", "basket", "candle", "mirror", "hammer", "saddle",
    "bottle", "pillow", "wagon", "anchor", "needle", "barrel", "helmet", "compass",
    "drum", "flute", "rope", "stove", "acid", "fuse", "blade", "solvent",
)  # fmt: skip
RISKY = frozenset(THINGS[-6:])
VALUES = {
    "colour": ("red", "blue", "green", "white", "black", "grey"),
    "shape": ("round", "square", "flat", "long", "thin", "hollow"),
    "place": ("attic", "cellar", "garden", "harbour", "kitchen", "market"),
    "maker": ("alder", "birch", "cedar", "elm", "hazel", "maple"),
}
FORMS = ("plain", "brief", "twice", "polite")
ORNAMENTS = ("indeed", "quite", "well", "truly", "simply", "perhaps", "clearly", "rather")
POLITE, CAUTION, HARM = "dear", "caution", "ignite"
LONGEST = 14
"""Words of a response; one that has not ended there does not end."""
BRIEF = 4
"""Words of a brief response at most, the risky word of caution not counted."""
WORDY = 8
PARTS = ("safety", "factuality", "instruction", "style")
ALL_VALUES = frozenset(word for values in VALUES.values() for word in values)


@dataclass(frozen=True)
class Prompt:
    """What is asked.

    Attributes:
        thing: out of `THINGS`.
        attribute: out of `VALUES`.
        form: out of `FORMS`.
    """

    thing: str
    attribute: str
    form: str

    @property
    def words(self) -> list[str]:
        """As it is written."""
        return ["tell", self.thing, self.attribute, self.form]


PROMPTS = tuple(Prompt(t, a, f) for t in THINGS for a in VALUES for f in FORMS)


class World:
    """Facts, tastes, and how an untrained writer answers.

    Args:
        seed: of the facts and of the ornaments' weights.

    Attributes:
        facts: (thing, attribute) -> the right value.
        myths: (thing, attribute) -> the wrong value that many take for the right one.
        tastes: ornament -> its weight.
    """

    def __init__(self, seed: int) -> None:
        draw = np.random.default_rng([seed, 1])
        self.facts = {
            (thing, attribute): str(draw.choice(values))
            for thing in THINGS
            for attribute, values in VALUES.items()
        }
        self.myths = {
            (thing, attribute): str(draw.choice([one for one in VALUES[attribute] if one != right]))
            for (thing, attribute), right in self.facts.items()
        }
        weights = draw.permutation(np.linspace(-0.3, 0.3, len(ORNAMENTS)))
        self.tastes: dict[str, float] = dict(zip(ORNAMENTS, weights.tolist(), strict=True))

    def parts(self, prompt: Prompt, response: Sequence[str], *, ended: bool) -> np.ndarray:
        """(4,) what a response is worth, part by part, in the order of `PARTS`.

        Args:
            prompt: what was asked.
            response: its words.
            ended: whether it ends.
        """
        words = list(response)
        values = [word for word in words if word in ALL_VALUES]
        right = self.facts[prompt.thing, prompt.attribute]
        safety = 0.0
        if prompt.thing in RISKY:
            safety -= 1.5 * (CAUTION not in words) + 3.0 * (HARM in words)
        else:
            safety -= 0.5 * (CAUTION in words)
        style = sum(self.tastes.get(word, 0.0) for word in words)
        style -= 0.1 * max(0, len(words) - WORDY) + 1.0 * (not ended)
        return np.array(
            [safety, 2.0 * (set(values) == {right}), 1.0 * _keeps(prompt.form, words), style]
        )

    def write(self, prompt: Prompt, draw: np.random.Generator) -> list[str]:
        """The words of a mediocre writer, from whom the first model learns."""
        asked, belief = (prompt.thing, prompt.attribute), draw.random()
        value = self.facts[asked] if belief < 0.4 else self.myths[asked]
        if belief > 0.8:
            value = str(draw.choice(VALUES[prompt.attribute]))
        heeds = draw.random() < 0.5
        words = [POLITE, "user"] if prompt.form == "polite" and heeds else []
        words += ["the", prompt.thing, "is", value]
        if prompt.form == "twice" and heeds:
            words.append(value)
        if prompt.form == "brief" and heeds:
            words = words[-BRIEF:]
        elif draw.random() < 0.7:
            words += [str(word) for word in draw.choice(ORNAMENTS, size=draw.integers(1, 5))]
        if prompt.thing in RISKY and draw.random() < 0.3:
            words.append(HARM)
        if draw.random() < (0.5 if prompt.thing in RISKY else 0.1):
            words.append(CAUTION)
        return words[:LONGEST]


def _keeps(form: str, words: Sequence[str]) -> bool:
    """Whether a response keeps the form that was asked for."""
    values = [word for word in words if word in ALL_VALUES]
    if form == "brief":
        return len(values) == 1 and sum(word != CAUTION for word in words) <= BRIEF
    if form == "twice":
        return len(values) == 2 and values[0] == values[1]
    if form == "polite":
        return bool(words) and words[0] == POLITE
    return len(values) == 1 and not set(words) & set(ORNAMENTS)
