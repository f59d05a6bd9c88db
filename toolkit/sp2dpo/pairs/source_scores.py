"""Read the scores that a data set itself has for the two responses of a pair.

Two forms are read, from the columns that stay with a pair (see `shapes`):

- a score of each response, such as `score_chosen` and `score_rejected` (UltraFeedback-binarized),
  or `comparison.chosen_score` and `comparison.rejected_score` of a row with several responses
- one strength of the preference, such as HelpSteer3's `overall_preference` from -3 to 3, and the
  strengths of single annotators, `individual_preference`. The label was made from the strength, so
  its sign says which response is chosen and only its size is information about the pair.

How they become a gap is our choice; see `annotation.score_replies`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any


class NoScore(ValueError):
    """A row has no score; the message says which column lacks one."""


@dataclass(frozen=True, kw_only=True)
class ScoreColumns:
    """The columns of a source that hold its own scores.

    A name with dots is looked up inside the values, such as `comparison.chosen_score`, unless there
    is a column of that whole name.

    Attributes:
        width: Largest possible difference of two scores, or largest strength; above 0.
        chosen: Column with the score of the chosen response.
        rejected: Column with the score of the rejected response.
        strength: Column with the strength of the preference, in place of two scores.
        votes: Column with a list of the annotators' strengths, as numbers or as objects with
            `score`; their signs are those of `strength`. None if there is none.

    Raises:
        ValueError: Neither both of `chosen` and `rejected` nor `strength` is given, or `votes`
            without `strength`; or the width is not a number above 0.
    """

    width: float
    chosen: str | None = None
    rejected: str | None = None
    strength: str | None = None
    votes: str | None = None

    def __post_init__(self) -> None:
        if (self.chosen is None) != (self.rejected is None) or (
            (self.chosen is None) == (self.strength is None)
        ):
            raise ValueError(
                "name either the columns `chosen` and `rejected` with two scores (--chosen and "
                "--rejected), or the column `strength` (--strength)"
            )
        if self.votes is not None and self.strength is None:
            raise ValueError(
                "`votes` (--votes) are compared with the sign of a strength: name its column, too, "
                "with `strength` (--strength)"
            )
        if not (math.isfinite(self.width) and self.width > 0):
            raise ValueError(f"`width` (--width) must be a number above 0, not {self.width!r}")

    def as_mapping(self) -> dict[str, Any]:
        """Return the names that are given, and the width."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class SourceScore:
    """What a source's scores say about a pair.

    Attributes:
        difference: How much better the chosen response is, as a share of the width: in [-1, 1].
        agreement: Mean of the signs of the votes, +1 for each that prefers the chosen response, but
            at least 0: in [0, 1]. None without votes.
        text: The numbers that this was computed from.
    """

    difference: float
    agreement: float | None
    text: str


def read_score(columns: Mapping[str, Any], names: ScoreColumns) -> SourceScore:
    """Return the score of a pair.

    Args:
        columns: The columns that stayed with the pair.
        names: Which of them hold the scores.

    Raises:
        NoScore: A column is missing, or holds no number.
        ValueError: A difference is larger than the width.
    """
    if names.strength is not None:
        strength = _number(columns, names.strength)
        votes = [] if names.votes is None else _numbers(columns, names.votes)
        _check_width(abs(strength), names.width, f"{names.strength} {strength:g}")
        sign = math.copysign(1, strength)
        signs = [(vote > 0) - (vote < 0) for vote in votes]
        text = f"{names.strength} {strength:g} of {names.width:g}"
        listed = ", ".join(f"{vote:g}" for vote in votes)
        return SourceScore(
            difference=abs(strength) / names.width,
            agreement=max(0.0, sign * sum(signs) / len(signs)) if signs else None,
            text=f"{text}; {names.votes} {listed}" if votes else text,
        )
    chosen, rejected = read_two_scores(columns, str(names.chosen), str(names.rejected))
    difference = chosen - rejected
    text = f"{names.chosen} {chosen:g}, {names.rejected} {rejected:g}"
    _check_width(abs(difference), names.width, text)
    share = max(-1.0, min(1.0, difference / names.width))
    return SourceScore(difference=share, agreement=None, text=f"{text} of {names.width:g}")


def read_two_scores(columns: Mapping[str, Any], chosen: str, rejected: str) -> tuple[float, float]:
    """Return the scores of the chosen and of the rejected response, from the columns so named.

    Raises:
        NoScore: A column is missing, or holds no number.
    """
    return _number(columns, chosen), _number(columns, rejected)


def _check_width(size: float, width: float, text: str) -> None:
    # 1e-9: 0.3 - 0.1 is 0.19999999999999998 in floating point, and may as well round upwards.
    if size > width * (1 + 1e-9):
        raise ValueError(
            f"{text}: a difference of {size:g} is more than the width {width:g}: give the largest "
            "difference that the scores can have"
        )


def _number(columns: Mapping[str, Any], name: str) -> float:
    return _as_number(_find(columns, name), name)


def _numbers(columns: Mapping[str, Any], name: str) -> list[float]:
    values = _find(columns, name)
    if not isinstance(values, Sequence) or isinstance(values, str) or not values:
        raise NoScore(f"no list of votes in {name}")
    return [
        _as_number(value.get("score") if isinstance(value, Mapping) else value, name)
        for value in values
    ]


def _find(columns: Mapping[str, Any], name: str) -> Any:
    if name in columns:
        return columns[name]
    value: Any = columns
    for part in name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            raise NoScore(f"no column {name}")
        value = value[part]
    return value


def _as_number(value: Any, name: str) -> float:
    # Ratings of UltraFeedback are text, "4" or "N/A". In Python a bool is an int.
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        try:
            number = float(value)
        except (ValueError, OverflowError):
            number = math.nan
        if math.isfinite(number):
            return number
    raise NoScore(f"no number in {name}")
