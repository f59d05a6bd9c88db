"""Compute magnitude and confidence as expectations over a teacher's alternative tokens.

One reply with log-probabilities tells more than its digits: the expectation over the labels, as
G-Eval reads a score (arXiv 2303.16634, Eq. 1), without sampling twenty times.
"""

import json
import math
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from sp2dpo.panel.rubric import Scale

FIELDS = ("category", "magnitude", "confidence", "better")
"""Keys of a reply for whose values the alternative tokens are stored."""
_NUMBERS = ("magnitude", "confidence")
_SURE = 0.9
"""Minimum total probability of the labels for an expectation to be computed. Our choice."""
_NO_MASS = -9999.0
"""What vLLM writes for a token that the grammar rules out."""
_MALFORMED = (
    AttributeError, KeyError, TypeError, ValueError, RecursionError, OverflowError
)  # fmt: skip
_DIGITS = frozenset("0123456789.")
_DECODER = json.JSONDecoder()
_BLANK = " \t\r\n"
_NUMBER = re.compile(r"(-?[0-9]*(?:\.[0-9]*)?)([\s,}].*)?", re.ASCII | re.DOTALL)
_LABEL = re.compile(r"(0|-?[1-9][0-9]{0,14})(\.0+)?", re.ASCII)


def tokens_of_values(content: Any, text: str) -> list[dict[str, Any]] | None:
    """The top-k of the tokens that spell the values of `FIELDS`, and of nothing else.

    The token behind a number belongs to it if one that goes on with the number stood beside it:
    the comma after a 1 that could have become a 10.

    Args:
        content: `choices[0].logprobs.content` of an OpenAI chat completion.
        text: of the reply, one JSON object.

    Returns:
        A list of `{"field", "at", "token", "logprob", "top": [[token, logprob], ...]}`, `at` being
        the token's place in `content`, `top` without the tokens of no probability. None where the
        text is no such object, holds none of the fields, or the tokens do not spell it from its
        first value to its end.
    """
    try:
        spans = _spans(text)
        if not spans:
            return None
        places = _places(content, text.encode(), min(start for start, _ in spans.values()))
        return [
            {"field": field, "at": at, **_kept(content[at])}
            for field, span in spans.items()
            for at in _within(places, content, span, is_number=field in _NUMBERS)
        ]
    except _MALFORMED:
        return None


def expected_scores(tokens: list[dict[str, Any]], field: str, scale: Scale) -> float | None:
    """E[label] over the integers of a scale, by what a teacher could have said.

    Where a label takes several tokens, what stood beside each of them counts with the probability
    of the tokens before it. Probability that lies on no label, or on the beginning of several and
    was not followed up (a 1 that could have become 10), is left out and the rest scaled to one.

    Args:
        tokens: of `tokens_of_values`.
        field: `magnitude` or `confidence`.
        scale: of that field.

    Returns:
        In [scale.min, scale.max]; None where the field has no tokens, or less than 0.9 of the
        probability (our choice) lies on labels.
    """
    masses: dict[int, float] = {}
    for label, mass in _masses([token for token in tokens if token["field"] == field], scale):
        masses[label] = masses.get(label, 0.0) + mass
    total = math.fsum(masses.values())
    if total < _SURE:
        return None
    return math.fsum(label * mass for label, mass in masses.items()) / total


def _masses(places: list[dict[str, Any]], scale: Scale) -> Iterator[tuple[int, float]]:
    """Yield labels with their probabilities; a label may occur several times."""
    said, reached = "", 1.0
    for number, place in enumerate(places, 1):
        sampled, others = _parted(place)
        for token, logprob in others:
            label = _label(said, token, scale)
            if label is not None:
                yield label, reached * _probability(logprob)
        reached *= _probability(place["logprob"])
        read = _read(said, sampled)
        if read is None:
            return
        said, is_closed = read
        if number == len(places) or is_closed:  # nothing that goes on stood beside what follows
            label = _label(said, ",", scale)
            if label is not None:
                yield label, reached


def _parted(place: dict[str, Any]) -> tuple[str, list[list[Any]]]:
    """Return the sampled token and its alternatives."""
    top = list(place["top"])
    texts = [token for token, _ in top]
    if place["token"] in texts:
        del top[texts.index(place["token"])]
    return place["token"], top


def _label(said: str, token: str, scale: Scale) -> int | None:
    """The label that a token completes, if no other label can come of it."""
    read = _read(said, token)
    if read is None:
        return None
    digits, is_closed = read
    found = _LABEL.fullmatch(digits)
    if not found or not scale.min <= int(found[1]) <= scale.max:
        return None
    if not is_closed and not found[2] and _goes_on(int(found[1]), scale):
        return None
    return int(found[1])


def _read(said: str, token: str) -> tuple[str, bool] | None:
    """The digits after a token, and whether it ends the number; None where it is of no number."""
    found = _NUMBER.fullmatch(token if said else token.lstrip(_BLANK + ':"'))
    return found and (said + found[1], found[2] is not None)


def _goes_on(label: int, scale: Scale) -> bool:
    """Whether another label of the scale begins with this one's digits."""
    first = last = abs(label)
    low, high = (scale.min, scale.max) if label > 0 else (-scale.max, -scale.min)
    while label and first <= high:
        first, last = 10 * first, 10 * last + 9
        if first <= high and last >= low:
            return True
    return False


def _probability(logprob: float) -> float:
    return math.exp(min(logprob, 0.0))


def _spans(text: str) -> dict[str, tuple[int, int]]:
    """Where the values of the fields stand in a JSON object, in bytes, without quotes.

    Raises:
        ValueError: it is no object, or a key stands twice.
    """
    spans: dict[str, tuple[int, int]] = {}
    keys = set()
    at = _expect(text, 0, "{")
    while True:
        key, at = _DECODER.raw_decode(text, _skip(text, at))
        start = _skip(text, _expect(text, at, ":"))
        value, at = _DECODER.raw_decode(text, start)
        if not isinstance(key, str) or key in keys:
            raise ValueError("no key, or one twice")
        keys.add(key)
        if key in FIELDS:
            quote = isinstance(value, str)
            spans[key] = (start + quote, at - quote)
        at = _skip(text, at)
        if text[at : at + 1] != ",":
            break
        at += 1
    if _skip(text, _expect(text, at, "}")) != len(text):
        raise ValueError("more than an object")
    return {
        key: (len(text[:start].encode()), len(text[:end].encode()))
        for key, (start, end) in spans.items()
    }


def _skip(text: str, at: int) -> int:
    while text[at : at + 1] and text[at] in _BLANK:
        at += 1
    return at


def _expect(text: str, at: int, mark: str) -> int:
    at = _skip(text, at)
    if text[at : at + 1] != mark:
        raise ValueError(f"{mark} expected")
    return at + 1


def _places(content: list[Any], text: bytes, first: int) -> dict[int, tuple[int, int]]:
    """Where the tokens stand in the text, in bytes, from its end back to `first`.

    Whatever stands before, such as a model's reasoning, need not add up. The token that ends a turn
    is not part of the text.

    Raises:
        ValueError: the tokens do not spell the text.
    """
    places, end = {}, len(text)
    for at in reversed(range(len(content))):
        spelt, _, _ = _said(content[at])
        start = end - len(spelt)
        if text[max(0, start) : end] == spelt[max(0, -start) :]:
            places[at] = (start, end)
            end = start
        elif at < len(content) - 1:
            break
        if end <= first:
            return places
    raise ValueError("the tokens do not spell the text")


def _within(
    places: dict[int, tuple[int, int]],
    content: list[Any],
    span: tuple[int, int],
    *,
    is_number: bool,
) -> list[int]:
    """The tokens that spell a value, and the one behind where a number could have gone on."""
    found = sorted(at for at, (start, end) in places.items() if start < span[1] and end > span[0])
    after = found[-1] + 1 if found else None
    if is_number and after in places and places[after][0] == span[1]:
        beside = [text for text, _ in _kept(content[after])["top"]]
        if any(text[:1] in _DIGITS for text in beside if text):
            found.append(after)
    return found


def _kept(said: Any) -> dict[str, Any]:
    """Return the fields of a token and its alternatives that are stored."""
    _, text, logprob = _said(said)
    top = [_said(one)[1:] for one in said.get("top_logprobs") or []]
    kept = [[one, other] for one, other in top if other > _NO_MASS]
    return {"token": text, "logprob": logprob, "top": kept}


def _said(one: Any) -> tuple[bytes, str, float]:
    """Bytes, text (by the bytes where they are text) and logprob of a token.

    Raises:
        AttributeError, KeyError, TypeError, ValueError, OverflowError: not as the API has it.
    """
    spelt, text, logprob = one.get("bytes"), one["token"], one["logprob"]
    if isinstance(logprob, bool) or not isinstance(logprob, int | float):
        raise TypeError("a logprob is a number")
    written = text.encode()
    spelt = written if spelt is None else bytes(list(spelt))
    with suppress(UnicodeDecodeError):
        text = spelt.decode()
    return spelt, text, float(logprob) if math.isfinite(logprob) else _NO_MASS
