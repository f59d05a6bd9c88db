"""Compare the responses of a row that has scores or ranks for several."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from sp2dpo.pairs.formats import InvalidPair
from sp2dpo.pairs.reading import PairsFrom

_TEXTS = ("response", "answer", "completion", "generation", "output", "text")
"""Keys that hold a response in a list of objects."""
_SCORES = ("overall_score", "fine-grained_score", "score", "rating", "pm_score")
_RANKS = ("rank",)

TIE = "a tie: no response is preferred"
NO_SCORE = "a response without a score"


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """A response and how good it is.

    Attributes:
        response: Text or messages.
        score: The score, or the rank; None if unknown.
        is_rank: Whether lower is better.
        details: The other keys of the response's object, such as its model.
    """

    response: Any
    score: float | None
    is_rank: bool = False
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Two responses by their numbers from 0, the better one first, or one that has no partner.

    Attributes:
        better, worse: Numbers of the responses; of a tie, in the order of the row; equal for a
            response without a score.
        reason: Why this is no pair; None if it is one.
    """

    better: int
    worse: int
    reason: str | None = None


def rank_objects(items: Sequence[Any], name: str) -> list[Ranked] | None:
    """Return the responses in a list of objects; None if the objects hold no scores.

    Args:
        items: Objects that hold a response (`response`, `answer`, ...) and its `overall_score`,
            `score` or `rating`, or its `rank`.
        name: Column of the list, for the error.

    Raises:
        InvalidPair: If an object holds no response, or there is more than one kind of score.
    """
    if not items or not all(isinstance(item, Mapping) for item in items):
        return None
    text = _text_key(items)
    keys = [key for key in (*_SCORES, *_RANKS) if any(key in item for item in items)]
    if text is None or not keys:
        return None
    if len(keys) > 1 and keys[0] != "overall_score":
        raise InvalidPair(
            f"{name} holds more than one of {', '.join(keys)}: leave one of these keys in the file"
        )
    return [
        Ranked(
            response=item.get(text),
            score=_number(item.get(keys[0])),
            is_rank=keys[0] in _RANKS,
            details={key: item[key] for key in item if key not in (text, keys[0])},
        )
        for item in items
    ]


def rank_lists(responses: Sequence[Any], scores: Sequence[Any], *, ranks: bool) -> list[Ranked]:
    """Return the responses of two parallel lists.

    Args:
        responses: The responses.
        scores: The score of each, or its rank.
        ranks: Whether lower is better.

    Raises:
        InvalidPair: If the lists differ in length.
    """
    if len(responses) != len(scores):
        raise InvalidPair("there are not as many scores as responses")
    if responses and all(isinstance(item, Mapping) for item in responses):
        text = _text_key(responses)
        if text is not None:
            return [
                Ranked(
                    response=item.get(text),
                    score=_number(score),
                    is_rank=ranks,
                    details={key: item[key] for key in item if key != text},
                )
                for item, score in zip(responses, scores, strict=True)
            ]
    return [
        Ranked(response=response, score=_number(score), is_rank=ranks)
        for response, score in zip(responses, scores, strict=True)
    ]


def choose(ranked: Sequence[Ranked], pairs_from: PairsFrom) -> list[Choice]:
    """Return the comparisons of responses, ties and responses without a score among them.

    Args:
        ranked: The responses of a row.
        pairs_from: `best-rest` compares the best response (the first of several) with each other
            one, `all` every two.

    Raises:
        InvalidPair: If no response is better than another.
    """
    scores = {
        n: -item.score if item.is_rank else item.score
        for n, item in enumerate(ranked)
        if item.score is not None
    }
    if len(scores) < 2:
        raise InvalidPair("fewer than two responses have a score")
    if len(set(scores.values())) == 1:
        raise InvalidPair(TIE)
    pairs = combinations(scores, 2)
    if pairs_from == "best-rest":
        best = max(scores, key=lambda n: scores[n])  # the first of several
        pairs = ((best, n) for n in scores if n != best)
    choices = [
        Choice(better=left, worse=right, reason=TIE)
        if scores[left] == scores[right]
        else Choice(
            better=max(left, right, key=scores.__getitem__),
            worse=min(left, right, key=scores.__getitem__),
        )
        for left, right in pairs
    ]
    missing = [n for n in range(len(ranked)) if n not in scores]
    return [*choices, *(Choice(better=n, worse=n, reason=NO_SCORE) for n in missing)]


def _text_key(items: Sequence[Mapping[str, Any]]) -> str | None:
    return next((key for key in _TEXTS if any(item.get(key) is not None for item in items)), None)


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        # Some data sets hold their numbers as text.
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
