"""Compute magnitude and confidence as expectations over a teacher's alternative tokens.

The expectation over the labels of a scale uses more of a reply than its sampled label, as in G-Eval
(arXiv 2303.16634, Eq. 1), but without sampling twenty times.
"""

import json
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from sp2dpo.panel.rubric import Scale

FIELDS = ("category", "magnitude", "confidence", "better")
"""Keys of a reply for whose values the alternative tokens are stored."""
_NUMBERS = ("magnitude", "confidence")
_SURE = 0.9
"""Minimum total probability of the labels for an expectation to be computed. Our choice."""
_NO_MASS = -9999.0
"""Log-probability that vLLM reports for a token that the grammar excludes."""
# OverflowError: JSON may hold an integer too large for a float.
_MALFORMED = (
    AttributeError, KeyError, TypeError, ValueError, RecursionError, OverflowError
)  # fmt: skip
# With the point, because 7.0 is the label 7, too.
_DIGITS = frozenset("0123456789.")
_DECODER = json.JSONDecoder()
_BLANK = " \t\r\n"
# ASCII, because otherwise `\s` would match spaces that JSON does not know.
_NUMBER = re.compile(r"(-?[0-9]*(?:\.[0-9]*)?)([\s,}].*)?", re.ASCII | re.DOTALL)
# No leading zeros, as in JSON; 15 digits, because `int` refuses texts of thousands of digits.
_LABEL = re.compile(r"(0|-?[1-9][0-9]{0,14})(\.0+)?", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class ValueToken:
    """A token that spells a value of a reply; its JSON object is stored.

    Attributes:
        field: Key of the value, one of `FIELDS`.
        at: Index of the token among all tokens of the reply.
        token: Text of the token.
        logprob: Its log-probability.
        top: Text and log-probability of the alternatives, without those of probability 0.
    """

    field: str
    at: int
    token: str
    logprob: float
    top: list[list[Any]]


def format_tokens(tokens: Sequence[ValueToken]) -> str:
    """Return the JSON in which tokens are stored."""
    return json.dumps([vars(token) for token in tokens], ensure_ascii=False)


def parse_tokens(text: str) -> list[ValueToken]:
    """Parse the JSON of `format_tokens`.

    Raises:
        ValueError: The text is not JSON of this form.
    """
    try:
        return [ValueToken(**values) for values in json.loads(text)]
    except TypeError as error:
        raise ValueError("not the log-probabilities of values") from error


def tokens_of_values(
    content: Any, text: str, span: tuple[int, int] | None = None
) -> list[ValueToken] | None:
    """Return the tokens that spell the values of `FIELDS`, with their alternatives.

    The token after a number is included if one of its alternatives would have continued the number,
    such as the comma after a 1 that could have become 10.

    Args:
        content: `choices[0].logprobs.content` of an OpenAI chat completion.
        text: Text of the reply.
        span: Where in the text its JSON object is, from `annotation.object_span`; None if it is the
            whole text.

    Returns:
        None if the span is not a JSON object, contains none of the fields, or is not what the
        tokens spell from the first value to the end.
    """
    try:
        start, end = span or (0, len(text))
        before = len(text[:start].encode())
        spans = {
            field: (first + before, last + before)
            for field, (first, last) in _spans(text[start:end]).items()
        }
        if not spans:
            return None
        places = _places(content, text.encode(), min(start for start, _ in spans.values()))
        return [
            _value_token(field, at, content)
            for field, span in spans.items()
            for at in _within(places, content, span, is_number=field in _NUMBERS)
        ]
    # The reply is valid without log-probabilities: their form must not refuse it.
    except _MALFORMED:
        return None


def expected_scores(tokens: Sequence[ValueToken], field: str, scale: Scale) -> float | None:
    """Compute the expectation over the labels of a scale, from a reply's alternative tokens.

    If a label has several tokens, the alternatives of each token are weighted by the probability of
    the tokens before it. Probability of tokens that are not a label, or that only begin several
    labels (a 1 that could have become 10), is omitted, and the remainder is normalized.

    Args:
        tokens: Tokens that `tokens_of_values` returned.
        field: `magnitude` or `confidence`.
        scale: Scale of that field.

    Returns:
        A value in [scale.min, scale.max]; None if the field has no tokens, or if the labels have a
        total probability below 0.9 (our choice).
    """
    masses: dict[int, float] = {}
    for label, mass in _masses([token for token in tokens if token.field == field], scale):
        masses[label] = masses.get(label, 0.0) + mass
    total = math.fsum(masses.values())
    if total < _SURE:
        return None
    return math.fsum(label * mass for label, mass in masses.items()) / total


def _masses(tokens: Sequence[ValueToken], scale: Scale) -> Iterator[tuple[int, float]]:
    """Yield labels with their probabilities; a label may occur several times."""
    digits, probability = "", 1.0  # of the sampled tokens so far
    for number, token in enumerate(tokens, 1):
        alternatives = list(token.top)
        texts = [text for text, _ in alternatives]
        # Servers list the sampled token among the alternatives or leave it out.
        # It is not one here: its label depends on the tokens after it.
        if token.token in texts:
            del alternatives[texts.index(token.token)]
        for text, logprob in alternatives:
            label = _label(digits, text, scale)
            if label is not None:
                yield label, probability * _probability(logprob)
        probability *= _probability(token.logprob)
        extended = _extend(digits, token.token)
        if extended is None:
            return
        digits, is_closed = extended
        # After the last stored token, no alternative would have continued the number.
        if number == len(tokens) or is_closed:
            # The comma closes the number, so that the label counts although others begin with it.
            label = _label(digits, ",", scale)
            if label is not None:
                yield label, probability


def _label(digits: str, token: str, scale: Scale) -> int | None:
    """Return the label that a token completes; None if there is none or it could be another one."""
    extended = _extend(digits, token)
    if extended is None:
        return None
    digits, is_closed = extended
    match = _LABEL.fullmatch(digits)
    if not match or not scale.min <= int(match[1]) <= scale.max:
        return None
    # A 1 may still become a 10; a number that is closed, or has a decimal point, may not.
    if not is_closed and not match[2] and _is_prefix(int(match[1]), scale):
        return None
    return int(match[1])


def _extend(digits: str, token: str) -> tuple[str, bool] | None:
    """Return the digits with a token's, and whether it ends the number; None if it has none."""
    # The token of the first digit may begin with the colon, a blank or a quote before it.
    match = _NUMBER.fullmatch(token if digits else token.lstrip(_BLANK + ':"'))
    return match and (digits + match[1], match[2] is not None)


def _is_prefix(label: int, scale: Scale) -> bool:
    """Return whether another label of the scale begins with the digits of this one."""
    first = last = abs(label)
    # Mirrored below 0, so that more digits always give a larger number.
    low, high = (scale.min, scale.max) if label > 0 else (-scale.max, -scale.min)
    # No label continues a 0, because JSON numbers have no leading zeros.
    # From first to last: the numbers with one digit more per round that begin with this label.
    while label and first <= high:
        first, last = 10 * first, 10 * last + 9
        if first <= high and last >= low:
            return True
    return False


def _probability(logprob: float) -> float:
    # A value above 0 is no log-probability, and a large one would overflow `exp`.
    return math.exp(min(logprob, 0.0))


def _spans(text: str) -> dict[str, tuple[int, int]]:
    """Return the byte spans of the fields' values in a JSON object, without quotes.

    Raises:
        ValueError: If the text is not a JSON object, or a key occurs twice.
    """
    spans: dict[str, tuple[int, int]] = {}
    keys = set()
    at = _expect(text, 0, "{")
    while True:  # key by key, because `json.loads` does not report positions
        # `raw_decode` does not skip white space itself.
        key, at = _DECODER.raw_decode(text, _skip(text, at))
        start = _skip(text, _expect(text, at, ":"))
        value, at = _DECODER.raw_decode(text, start)
        if not isinstance(key, str) or key in keys:
            raise ValueError("not a key, or a repeated one")
        keys.add(key)
        if key in FIELDS:
            # As a number: 1 for text, whose span leaves out the quotes.
            quote = isinstance(value, str)
            spans[key] = (start + quote, at - quote)
        at = _skip(text, at)
        if text[at : at + 1] != ",":
            break
        at += 1
    if _skip(text, _expect(text, at, "}")) != len(text):
        raise ValueError("text after the object")
    return {
        # In bytes, because a token may begin or end inside a character.
        key: (len(text[:start].encode()), len(text[:end].encode()))
        for key, (start, end) in spans.items()
    }


def _skip(text: str, at: int) -> int:
    # By a slice, because an index past the end would raise an error that no caller expects.
    while text[at : at + 1] and text[at] in _BLANK:
        at += 1
    return at


def _expect(text: str, at: int, mark: str) -> int:
    at = _skip(text, at)
    if text[at : at + 1] != mark:
        raise ValueError(f"{mark} expected")
    return at + 1


def _places(content: list[Any], text: bytes, first: int) -> dict[int, tuple[int, int]]:
    """Return the byte spans of the tokens in the text, from its end back to `first`.

    Tokens before that, such as a model's reasoning, may differ from the text. The token that ends a
    turn is not part of the text.

    Raises:
        ValueError: If the tokens do not spell the text.
    """
    places, end = {}, len(text)
    for at in reversed(range(len(content))):
        token, _, _ = _parse_token(content[at])
        start = end - len(token)
        # The first token may begin before the text, so only the part inside is compared.
        if text[max(0, start) : end] == token[max(0, -start) :]:
            places[at] = (start, end)
            end = start
        # Only the last token, which ends the turn, may be missing from the text.
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
    """Return the tokens of a value, and the next one if a number could have continued with it."""
    tokens = sorted(at for at, (start, end) in places.items() if start < span[1] and end > span[0])
    after = tokens[-1] + 1 if tokens else None
    if is_number and after in places and places[after][0] == span[1]:
        alternatives = [text for text, _ in _alternatives(content[after])]
        if any(text[:1] in _DIGITS for text in alternatives if text):
            tokens.append(after)
    return tokens


def _value_token(field: str, at: int, content: list[Any]) -> ValueToken:
    _, text, logprob = _parse_token(content[at])
    top = _alternatives(content[at])
    return ValueToken(field=field, at=at, token=text, logprob=logprob, top=top)


def _alternatives(token: Any) -> list[list[Any]]:
    """Return text and log-probability of the alternatives of a token that are possible."""
    top = [_parse_token(alternative)[1:] for alternative in token.get("top_logprobs") or []]
    return [[text, logprob] for text, logprob in top if logprob > _NO_MASS]


def _parse_token(token: Any) -> tuple[bytes, str, float]:
    """Return bytes, text and log-probability of a token; text from the bytes if they are UTF-8.

    Raises:
        AttributeError, KeyError, TypeError, ValueError, OverflowError: If it is not in OpenAI's
            format.
    """
    encoded, text, logprob = token.get("bytes"), token["token"], token["logprob"]
    # In Python, True is an integer.
    if isinstance(logprob, bool) or not isinstance(logprob, int | float):
        raise TypeError("a logprob must be a number")
    # Also where bytes are given: half a surrogate pair, which cannot be stored, fails here.
    from_text = text.encode()
    # As a list, because `bytes` of a number n would allocate n zeros.
    encoded = from_text if encoded is None else bytes(list(encoded))
    with suppress(UnicodeDecodeError):  # the token may be a part of a character
        text = encoded.decode()
    # JSON has no infinity, and a NaN would make every expectation a NaN.
    return encoded, text, float(logprob) if math.isfinite(logprob) else _NO_MASS
