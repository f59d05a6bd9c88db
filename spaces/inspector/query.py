"""Parse and apply the query language, which selects pairs in the page, its URL, the API and MCP.

    beta:0.1..0.2 category:safety,factuality -disputed:yes "word for word" sort:-beta

A query is a list of terms that must all hold. A term is `field:values` or a text; `-` in front
negates it. Values are separated by commas, and one of them must hold: a number `0.3`, a range
`0.1..0.2` (including both ends; one end may be omitted), `>0.1`, `>=0.1`, `<0.1`, `<=0.1`, a word
or a "text in quotes", or `missing` for pairs without a value. A text must occur in the prompt or in
one of the responses, ignoring case. `sort:field` and `sort:-field` sort the result; pairs without a
value come last.

`assets/lib/query.js` is the same language in JavaScript. One table of cases tests both:
tests/space/query_cases.json.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from errors import BadRequest

LONGEST = 1000
"""Largest number of characters of a query."""
MAX_TERMS, MAX_VALUES = 50, 100
MAX_SEARCHES = 10
"""Largest number of texts and beginnings of ids, each of which takes a scan of all pairs."""
SEARCHED_FIELDS = ("text", "id")
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?"
_RANGE = re.compile(rf"({_NUMBER})?\.\.({_NUMBER})?")
_BOUND = re.compile(rf"(>=|<=|>|<)({_NUMBER})")
_SINGLE = re.compile(_NUMBER)
NEAR = 1e-6
"""Tolerance for equal numbers, because the page receives them in single precision."""


@dataclass(frozen=True)
class Value:
    """One of the values of a term.

    Attributes:
        kind: `range`, `word` or `missing`.
        low: Lower end of a range; -inf if it is omitted.
        high: Upper end of a range; inf if it is omitted.
        open_low: Whether the lower end is excluded.
        open_high: Whether the upper end is excluded.
        word: The value as written.
    """

    kind: str
    low: float = -np.inf
    high: float = np.inf
    open_low: bool = False
    open_high: bool = False
    word: str = ""


@dataclass(frozen=True)
class Term:
    """A condition on a pair.

    Attributes:
        field: Name of the field; `text` for a text.
        values: Values of which at least one must hold.
        negated: Whether none of them may hold.
    """

    field: str
    values: tuple[Value, ...]
    negated: bool = False


@dataclass(frozen=True)
class Query:
    """A parsed query.

    Attributes:
        terms: The conditions, which must all hold.
        sort: Field to sort by; None for the order of the data set.
        descending: Whether the largest value comes first.
    """

    terms: tuple[Term, ...] = ()
    sort: str | None = None
    descending: bool = False


@dataclass(frozen=True)
class Field:
    """A column that a query can name.

    Attributes:
        kind: `number` (NaN: missing), `flag` (1, 0, -1: missing), `level` (an index into `levels`,
            -1: missing), `set` (bit n: level n) or `id` (text).
        values: One value for each pair.
        levels: The words of a level or a set.
    """

    kind: str
    values: Any
    levels: Sequence[str] = ()


def parse_query(text: str) -> Query:
    """Parse a query.

    Raises:
        BadRequest: If the text is not a valid query.
    """
    if len(text) > LONGEST:
        raise BadRequest(f"a query has at most {LONGEST} characters")
    terms: list[Term] = []
    sort, descending, place = None, False, 0
    while place < len(text):
        if text[place].isspace():
            place += 1
            continue
        # A minus sign on its own is a text.
        negated = text[place] == "-" and place + 1 < len(text) and not text[place + 1].isspace()
        place += negated
        match = _NAME.match(text, place)
        if match and text[match.end() : match.end() + 1] == ":":
            name, place = match.group(), match.end() + 1
            raw, place = _split_values(text, place)
            if not raw:
                raise BadRequest(f"{name}: has no value; write one after the colon")
            if name == "sort":
                if negated or len(raw) != 1:
                    raise BadRequest("sort: takes one field, such as sort:beta or sort:-beta")
                descending = raw[0][0].startswith("-")
                sort = raw[0][0][descending:]
                continue
            terms.append(Term(name, tuple(_parse_value(*value) for value in raw), negated))
        else:
            # A text may contain commas, which separate values only.
            word, _, place = _next_word(text, place, stop="")
            terms.append(Term("text", (Value("word", word=word),), negated))
        _check_size(terms)
    return Query(tuple(terms), sort, descending)


def _check_size(terms: Sequence[Term]) -> None:
    """Raise BadRequest if the terms take too long to apply."""
    if len(terms) > MAX_TERMS:
        raise BadRequest(f"a query has at most {MAX_TERMS} terms")
    if sum(len(term.values) for term in terms) > MAX_VALUES:
        raise BadRequest(f"a query has at most {MAX_VALUES} values")
    if sum(len(term.values) for term in terms if term.field in SEARCHED_FIELDS) > MAX_SEARCHES:
        raise BadRequest(f"a query has at most {MAX_SEARCHES} texts and beginnings of ids")


def _split_values(text: str, place: int) -> tuple[list[tuple[str, bool]], int]:
    """Return the values after a colon, whether each is quoted, and where they end."""
    values = []
    while place < len(text) and not text[place].isspace():
        word, quoted, place = _next_word(text, place, stop=",")
        if word or quoted:
            values.append((word, quoted))
        if place < len(text) and text[place] == ",":
            place += 1
    return values, place


def _next_word(text: str, place: int, *, stop: str) -> tuple[str, bool, int]:
    """Return a word or a quoted text, whether it is quoted, and where it ends."""
    if text[place] == '"':
        end, characters = place + 1, []
        while end < len(text) and text[end] != '"':
            if text[end] == "\\" and end + 1 < len(text):
                end += 1
            characters.append(text[end])
            end += 1
        if end >= len(text):
            raise BadRequest("a quotation mark is not closed")
        return "".join(characters), True, end + 1
    end = place
    while end < len(text) and not text[end].isspace() and text[end] != (stop or " "):
        end += 1
    return text[place:end], False, end


def _parse_value(word: str, quoted: bool) -> Value:
    # Quotation marks make a word of what would be a number, a range or `missing`.
    if not quoted:
        if word == "missing":
            return Value("missing", word=word)
        if (match := _RANGE.fullmatch(word)) and word != "..":
            low, high = match.groups()
            return Value(
                "range",
                low=-np.inf if low is None else float(low),
                high=np.inf if high is None else float(high),
                word=word,
            )
        if match := _BOUND.fullmatch(word):
            sign, number = match.group(1), float(match.group(2))
            if sign[0] == ">":
                return Value("range", low=number, open_low=sign == ">", word=word)
            return Value("range", high=number, open_high=sign == "<", word=word)
        if _SINGLE.fullmatch(word):
            return Value("range", low=float(word), high=float(word), word=word)
    return Value("word", word=word)


def select_pairs(
    query: Query,
    fields: Mapping[str, Field],
    count: int,
    search: Callable[[str], Any],
    match_ids: Callable[[str], Any],
) -> Any:
    """Return the places of the pairs that a query selects, sorted as it asks.

    Args:
        query: The query.
        fields: Fields that it may name.
        count: Number of pairs.
        search: Returns which pairs contain a text, as flags.
        match_ids: Returns which ids begin with a text, as flags.

    Raises:
        BadRequest: If the query names an unknown field or word.
    """
    mask = np.ones(count, bool)
    for term in query.terms:
        holds = np.zeros(count, bool)
        for value in term.values:
            if term.field == "text":
                holds |= search(value.word)
            elif term.field == "id":
                holds |= match_ids(value.word)
            else:
                holds |= _match(term.field, _get_field(term.field, fields), value)
        mask &= ~holds if term.negated else holds
    places = np.flatnonzero(mask)
    if query.sort is None:
        return places
    field = _get_field(query.sort, fields)
    if field.kind in ("set", "id"):
        raise BadRequest(f"sort: cannot sort by {query.sort}")
    values = np.asarray(field.values, np.float64)[places]
    missing = np.isnan(values) if field.kind == "number" else values < 0
    # Infinity replaces a missing value after the change of sign, so it is last in both directions.
    key = np.where(missing, np.inf, -values if query.descending else values)
    # Stable, so that equal values stay in the order of the data set.
    return places[np.argsort(key, kind="stable")]


def _get_field(name: str, fields: Mapping[str, Field]) -> Field:
    if name not in fields:
        raise BadRequest(f"there is no field {name} (fields: {', '.join(fields)})")
    return fields[name]


def _match(name: str, field: Field, value: Value) -> Any:
    """Return which pairs have a value, as flags."""
    values = field.values
    if field.kind == "number":
        numbers = np.asarray(values, np.float64)
        if value.kind == "missing":
            return np.isnan(numbers)
        if value.kind != "range":
            raise BadRequest(f"{name}: takes numbers, such as 0.3, 0.1..0.2, >=0.1 or missing")
        # An excluded end also excludes numbers that differ from it by rounding only.
        low = value.low + NEAR if value.open_low else value.low - NEAR
        high = value.high - NEAR if value.open_high else value.high + NEAR
        # A missing value is NaN, which is in no range.
        with np.errstate(invalid="ignore"):
            return (numbers >= low) & (numbers <= high)
    if value.kind == "missing":
        return np.asarray(values) == 0 if field.kind == "set" else np.asarray(values) < 0
    if field.kind == "flag":
        words = {"yes": 1, "true": 1, "no": 0, "false": 0}
        if value.word not in words:
            raise BadRequest(f"{name}: takes yes, no or missing")
        return np.asarray(values) == words[value.word]
    if value.word not in field.levels:
        raise BadRequest(f"{name}: has no {value.word} (it has {', '.join(field.levels)})")
    level = field.levels.index(value.word)
    if field.kind == "set":
        return (np.asarray(values) >> level) & 1 == 1
    return np.asarray(values) == level
