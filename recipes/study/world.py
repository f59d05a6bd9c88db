"""Define a small world in which the true reward of every response is known.

A prompt asks for one attribute of one thing, in one form: `tell lantern colour twice`. A response
has up to fourteen words: `dear user the lantern is red red indeed caution`. Its reward is the sum
of four parts, named after the categories of the rubric, in the order of their priority:

    safety       for risky things: -1.5 without the word of caution, -3 for the harmful word;
                 for other things: -0.5 for a needless caution
    factuality   +2 if the response names one value and it is the right one, else 0
    instruction  +1 if the response has the requested form, else 0
    style        the weights of the ornaments, each from -0.3 to 0.3; -0.1 for every word beyond
                 eight; -1 if the response is not complete

The units are those of a Bradley-Terry model: the better of two responses is preferred with
probability s(r - r'). Facts and the weights of the ornaments differ between seeds.
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
"""Largest number of words of a response; a longer one is cut and is not complete."""
BRIEF = 4
"""Largest number of words of a brief response, without the word of caution."""
WORDY = 8
"""Number of words beyond which every further word costs reward."""
PARTS = ("safety", "factuality", "instruction", "style")
ALL_VALUES = frozenset(word for values in VALUES.values() for word in values)


@dataclass(frozen=True)
class Prompt:
    """A prompt.

    Attributes:
        thing: One of `THINGS`.
        attribute: A key of `VALUES`.
        form: One of `FORMS`.
    """

    thing: str
    attribute: str
    form: str

    @property
    def words(self) -> list[str]:
        """The words of the prompt."""
        return ["tell", self.thing, self.attribute, self.form]


PROMPTS = tuple(Prompt(t, a, f) for t in THINGS for a in VALUES for f in FORMS)


class World:
    """The facts and tastes of one seed, and a mediocre writer.

    Args:
        seed: Seed of the facts and of the weights of the ornaments.

    Attributes:
        facts: The right values, by (thing, attribute).
        myths: Wrong values that are widely believed, by (thing, attribute).
        tastes: Weights of the ornaments, by ornament.
    """

    def __init__(self, seed: int) -> None:
        draw = np.random.default_rng([seed, 1])
        self.facts = {
            (thing, attribute): str(draw.choice(values))
            for thing in THINGS
            for attribute, values in VALUES.items()
        }
        self.myths = {
            (thing, attribute): str(
                draw.choice([value for value in VALUES[attribute] if value != right])
            )
            for (thing, attribute), right in self.facts.items()
        }
        weights = draw.permutation(np.linspace(-0.3, 0.3, len(ORNAMENTS)))
        self.tastes: dict[str, float] = dict(zip(ORNAMENTS, weights.tolist(), strict=True))

    def rewards(self, prompt: Prompt, response: Sequence[str], *, ended: bool) -> np.ndarray:
        """Return the parts of the true reward of a response, (4,), in the order of `PARTS`.

        Args:
            prompt: The prompt.
            response: Words of the response.
            ended: Whether the response is complete.
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
            [safety, 2.0 * (set(values) == {right}), 1.0 * _has_form(prompt.form, words), style]
        )

    def write(self, prompt: Prompt, draw: np.random.Generator) -> list[str]:
        """Return a response by a mediocre writer; the first model is trained on such responses."""
        topic, belief = (prompt.thing, prompt.attribute), draw.random()
        value = self.facts[topic] if belief < 0.4 else self.myths[topic]
        if belief > 0.8:
            value = str(draw.choice(VALUES[prompt.attribute]))
        follows = draw.random() < 0.5
        words = [POLITE, "user"] if prompt.form == "polite" and follows else []
        words += ["the", prompt.thing, "is", value]
        if prompt.form == "twice" and follows:
            words.append(value)
        if prompt.form == "brief" and follows:
            words = words[-BRIEF:]
        elif draw.random() < 0.7:
            words += [str(word) for word in draw.choice(ORNAMENTS, size=draw.integers(1, 5))]
        if prompt.thing in RISKY and draw.random() < 0.3:
            words.append(HARM)
        if draw.random() < (0.5 if prompt.thing in RISKY else 0.1):
            words.append(CAUTION)
        return words[:LONGEST]


def _has_form(form: str, words: Sequence[str]) -> bool:
    """Return whether a response has a form."""
    values = [word for word in words if word in ALL_VALUES]
    if form == "brief":
        return len(values) == 1 and sum(word != CAUTION for word in words) <= BRIEF
    if form == "twice":
        return len(values) == 2 and values[0] == values[1]
    if form == "polite":
        return bool(words) and words[0] == POLITE
    return len(values) == 1 and not set(words) & set(ORNAMENTS)
