"""Read which of two responses is preferred, as data sets write it."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sp2dpo.pairs.formats import InvalidPair
from sp2dpo.pairs.reading import Reading


@dataclass(frozen=True, kw_only=True)
class TwoResponses:
    """A shape with two responses and a column that says which one is preferred.

    Attributes:
        title: Name of the shape.
        responses: Columns of the two responses.
        deciders: Columns that say which is preferred.
        decide: Returns 0 or 1 for the preferred response, None for a tie.
        prompt: Column of the prompt; None to find it by name.
    """

    title: str
    responses: tuple[str, str]
    deciders: tuple[str, ...]
    decide: Callable[[Any, str], int | None]
    prompt: str | None = None

    def deciders_in(self, row: Mapping[str, Any], reading: Reading) -> list[str]:
        """Return the columns that decide in a row; none if the row has not this shape."""
        if not all(name in row for name in self.responses):
            return []
        deciders = [name for name in self.deciders if name in row]
        return [name for name in deciders if name == "winner" or "winner" not in reading.columns]


_TIES = ("tie", "both", "equal", "neither", "none", "same", "draw")


_STEM = re.compile(
    r"(?:model|response|conversation|answer|completion|output|option|assistant)[_ ]?"
)
"""What stands before a letter or a number of a response."""


def _by_letter(value: Any, name: str) -> int | None:
    text = value.strip().casefold().replace(" ", "_") if isinstance(value, str) else ""
    letter = _STEM.sub("", text)
    if letter in ("a", "b"):
        return "ab".index(letter)
    if text.startswith(_TIES):
        return None
    if isinstance(value, int | float) or text in ("0", "1", "2"):
        raise InvalidPair(
            f"{name} is a number, not a, b or a tie: give --columns response_0=COLUMN,"
            "response_1=COLUMN for 0 and 1, or response_1=COLUMN,response_2=COLUMN for 1 and 2"
        )
    raise InvalidPair(f"{name} is not a, b or a tie")


def _by_number(first: int) -> Callable[[Any, str], int | None]:
    """Return what reads the number of the preferred response, counted from `first`."""

    def decide(value: Any, name: str) -> int | None:
        text = str(value).strip().casefold()
        if isinstance(value, str) and text.startswith(_TIES):
            return None
        digits = _STEM.sub("", text).removesuffix(".0")
        if isinstance(value, bool) or digits not in (str(first), str(first + 1)):
            raise InvalidPair(f"{name} is neither {first} nor {first + 1}")
        return int(digits) - first

    return decide


def _by_sign(value: Any, name: str) -> int | None:
    """Return the preferred response; negative numbers prefer the first one, as in HelpSteer."""
    if isinstance(value, str) and re.fullmatch(r"\s*[-+]?[0-3](?:\.0)?\s*", value):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not -3 <= value <= 3:
        raise InvalidPair(f"{name} is not a number from -3 to 3")
    return None if value == 0 else int(value > 0)


def _by_label(value: Any, name: str) -> int | None:
    """Return the preferred response of SHP, whose label is 1 if it is the first one."""
    value = {"0": 0, "1": 1}.get(value.strip(), value) if isinstance(value, str) else value
    if value not in (0, 1):  # also False and True
        raise InvalidPair(f"{name} is neither 0 nor 1")
    return 0 if value == 1 else 1


_WINNERS = ("winner", "preference", "label")
TWO_RESPONSES = (
    TwoResponses(
        title="PKU-SafeRLHF",
        responses=("response_0", "response_1"),
        deciders=("better_response_id", "winner"),
        decide=_by_number(0),
    ),
    TwoResponses(
        title="HelpSteer3",
        responses=("response1", "response2"),
        deciders=("overall_preference",),
        decide=_by_sign,
    ),
    TwoResponses(
        title="HelpSteer2",
        responses=("response_1", "response_2"),
        deciders=("preference_strength",),
        decide=_by_sign,
    ),
    TwoResponses(
        title="SHP",
        responses=("human_ref_A", "human_ref_B"),
        deciders=("labels",),
        decide=_by_label,
        prompt="history",
    ),
    TwoResponses(
        title="LMArena",
        responses=("conversation_a", "conversation_b"),
        deciders=("winner",),
        decide=_by_letter,
    ),
    *(
        TwoResponses(
            title="", responses=(stem + left, stem + right), deciders=_WINNERS, decide=decide
        )
        for stem in ("response", "answer", "completion", "output")
        for left, right, decide in (
            ("_a", "_b", _by_letter),
            ("_A", "_B", _by_letter),
            ("_0", "_1", _by_number(0)),
            ("_1", "_2", _by_number(1)),
            ("1", "2", _by_number(1)),
        )
    ),
)
"""The shapes with two responses and a preference."""


_ONE_HOT = ("winner_model_a", "winner_model_b")


def with_winner(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a row with a column `winner` of a, b or tie, if it says who wins in another way.

    A column for each model says whether it wins, or `winner` is the name of one of both models.
    """
    if "winner" not in row and all(name in row for name in _ONE_HOT):
        wins = [row[name] for name in _ONE_HOT]
        if all(win in (0, 1) for win in wins) and sum(map(int, wins)) < 2:
            return {**row, "winner": "a" if wins[0] else "b" if wins[1] else "tie"}
    models = [row.get("model_a"), row.get("model_b")]
    winner = row.get("winner")
    if isinstance(winner, str) and models.count(winner) == 1:
        return {**row, "winner": "ab"[models.index(winner)]}
    return row


def find_two_responses(row: Mapping[str, Any], reading: Reading) -> tuple[TwoResponses, str] | None:
    """Return the shape of a row, and the column that decides; None without such a shape.

    Raises:
        InvalidPair: If more than one column may decide, or more than two responses are compared.
    """
    shapes: dict[tuple[tuple[str, str], str], TwoResponses] = {}
    for shape in TWO_RESPONSES:
        for decider in shape.deciders_in(row, reading):
            shapes.setdefault((shape.responses, decider), shape)
    named = reading.columns.keys() & {name for responses, _ in shapes for name in responses}
    shapes = {key: shape for key, shape in shapes.items() if named <= {*shape.responses}}
    # All columns of a data set that is known by name decide before two that fit any.
    shapes = {key: shape for key, shape in shapes.items() if shape.title} or shapes
    if not shapes:
        return None
    (responses, decider), shape = next(iter(shapes.items()))
    if len(shapes) > 1:
        deciders = " and ".join(dict.fromkeys(name for _, name in shapes))
        columns = f"response_a={responses[0]},response_b={responses[1]},winner={decider}"
        same = all(other == responses for other, _ in shapes)
        raise InvalidPair(
            f"{deciders} may say which response is preferred: give --columns "
            f"{f'winner={decider}' if same else columns}"
        )
    return shape, decider
