"""One language for choosing pairs: in the page, in its address, in the API and for agents.

    beta:0.1..0.2 category:safety,factuality -disputed:yes "word for word" sort:-beta

A query is a row of terms that must all hold. A term is `field:values` or a text; `-` before it
turns it round. Values are joined by commas, and one of them must hold: a number `0.3`, a range
`0.1..0.2` (both ends belong to it, either may be left out), `>0.1`, `>=0.1`, `<0.1`, `<=0.1`, a
word or a "text in quotes", and `missing` where there is none. A text must be contained in the
prompt or in one of the responses, in upper or lower case. `sort:field` and `sort:-field` order
what is found; pairs without a value come last.

`assets/filters.js` is the same in JavaScript; both are tested against one table of cases,
tests/space/filter_cases.json.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

LONGEST = 1000
"""Characters of a query."""
MOST_TERMS = 50
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?"
_RANGE = re.compile(rf"({_NUMBER})?\.\.({_NUMBER})?")
_BOUND = re.compile(rf"(>=|<=|>|<)({_NUMBER})")
_WHOLE = re.compile(_NUMBER)
NEAR = 1e-6
"""So far apart two numbers count as the same: they travel in single precision."""


class Refused(ValueError):
    """A query that is not one; the message is for the person who wrote it."""


@dataclass(frozen=True)
class Value:
    """One of the values of a term.

    Attributes:
        kind: `range`, `word` or `missing`.
        low, high: the ends of a range, -inf and inf where one is missing.
        open_low, open_high: whether the end itself is left out.
        word: the word.
    """

    kind: str
    low: float = -np.inf
    high: float = np.inf
    open_low: bool = False
    open_high: bool = False
    word: str = ""


@dataclass(frozen=True)
class Term:
    """What must hold.

    Attributes:
        field: its name; `text` for a text.
        values: of which one must hold.
        negated: whether none may.
    """

    field: str
    values: tuple[Value, ...]
    negated: bool = False


@dataclass(frozen=True)
class Query:
    """A query, read.

    Attributes:
        terms: that must all hold.
        sort: the field to order by; None for the order of the data set.
        descending: whether the largest comes first.
    """

    terms: tuple[Term, ...] = ()
    sort: str | None = None
    descending: bool = False


@dataclass(frozen=True)
class Field:
    """A column that a query can name.

    Attributes:
        kind: `number` (nan: missing), `flag` (1, 0, -1: missing), `level` (a place in `levels`, -1:
            missing), `set` (bit n: the level n) or `id` (text).
        values: one for each pair.
        levels: the words of a level or a set.
    """

    kind: str
    values: Any
    levels: Sequence[str] = ()


def read_query(text: str) -> Query:
    """The query that a person writes.

    Raises:
        Refused: it cannot be read.
    """
    if len(text) > LONGEST:
        raise Refused(f"a query has at most {LONGEST} characters")
    terms: list[Term] = []
    sort, descending, place = None, False, 0
    while place < len(text):
        if text[place].isspace():
            place += 1
            continue
        negated = text[place] == "-" and place + 1 < len(text) and not text[place + 1].isspace()
        place += negated
        match = _NAME.match(text, place)
        if match and text[match.end() : match.end() + 1] == ":":
            name, place = match.group(), match.end() + 1
            raw, place = _values(text, place)
            if not raw:
                raise Refused(f"{name}: says nothing; write a value behind the colon")
            if name == "sort":
                if negated or len(raw) != 1:
                    raise Refused("sort: takes one field, as sort:beta or sort:-beta")
                descending = raw[0][0].startswith("-")
                sort = raw[0][0][descending:]
                continue
            terms.append(Term(name, tuple(_value(*one) for one in raw), negated))
        else:
            word, _, place = _word(text, place, stop="")
            terms.append(Term("text", (Value("word", word=word),), negated))
        if len(terms) > MOST_TERMS:
            raise Refused(f"a query has at most {MOST_TERMS} terms")
    return Query(tuple(terms), sort, descending)


def _values(text: str, place: int) -> tuple[list[tuple[str, bool]], int]:
    """The values behind a colon, each with whether it stood in quotes, and where they end."""
    found = []
    while place < len(text) and not text[place].isspace():
        word, quoted, place = _word(text, place, stop=",")
        if word or quoted:
            found.append((word, quoted))
        if place < len(text) and text[place] == ",":
            place += 1
    return found, place


def _word(text: str, place: int, *, stop: str) -> tuple[str, bool, int]:
    """A word, or a text in quotes, and where it ends."""
    if text[place] == '"':
        end, said = place + 1, []
        while end < len(text) and text[end] != '"':
            if text[end] == "\\" and end + 1 < len(text):
                end += 1
            said.append(text[end])
            end += 1
        if end >= len(text):
            raise Refused("a quotation mark is not closed")
        return "".join(said), True, end + 1
    end = place
    while end < len(text) and not text[end].isspace() and text[end] != (stop or " "):
        end += 1
    return text[place:end], False, end


def _value(word: str, quoted: bool) -> Value:
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
        if _WHOLE.fullmatch(word):
            return Value("range", low=float(word), high=float(word), word=word)
    return Value("word", word=word)


def chosen(
    query: Query, fields: Mapping[str, Field], count: int, search: Callable[[str], Any]
) -> Any:
    """The pairs that a query chooses.

    Args:
        query: as read.
        fields: that it may name.
        count: of pairs.
        search: the pairs, as flags, that contain a text.

    Returns:
        Their places, in the order that the query asks for; pairs without the value come last.

    Raises:
        Refused: it names a field, or a word, that is not there.
    """
    mask = np.ones(count, bool)
    for term in query.terms:
        held = np.zeros(count, bool)
        for value in term.values:
            if term.field == "text":
                held |= search(value.word)
            else:
                held |= _holds(term.field, _known(term.field, fields), value)
        mask &= ~held if term.negated else held
    places = np.flatnonzero(mask)
    if query.sort is None:
        return places
    field = _known(query.sort, fields)
    if field.kind in ("set", "id"):
        raise Refused(f"sort: cannot go by {query.sort}")
    values = np.asarray(field.values, np.float64)[places]
    missing = np.isnan(values) if field.kind == "number" else values < 0
    key = np.where(missing, np.inf, -values if query.descending else values)
    return places[np.argsort(key, kind="stable")]


def _known(name: str, fields: Mapping[str, Field]) -> Field:
    if name not in fields:
        raise Refused(f"there is no field {name} (there are {', '.join(fields)})")
    return fields[name]


def _holds(name: str, field: Field, value: Value) -> Any:
    """For each pair, whether its value is the one."""
    values = field.values
    if field.kind == "id":
        start = value.word.lower()
        return np.fromiter((one.startswith(start) for one in values), bool, len(values))
    if field.kind == "number":
        numbers = np.asarray(values, np.float64)
        if value.kind == "missing":
            return np.isnan(numbers)
        if value.kind != "range":
            raise Refused(f"{name}: takes numbers, as 0.3, 0.1..0.2, >=0.1 or missing")
        low = value.low + NEAR if value.open_low else value.low - NEAR
        high = value.high - NEAR if value.open_high else value.high + NEAR
        with np.errstate(invalid="ignore"):
            return (numbers >= low) & (numbers <= high)
    if value.kind == "missing":
        return np.asarray(values) == 0 if field.kind == "set" else np.asarray(values) < 0
    if field.kind == "flag":
        words = {"yes": 1, "true": 1, "no": 0, "false": 0}
        if value.word not in words:
            raise Refused(f"{name}: takes yes, no or missing")
        return np.asarray(values) == words[value.word]
    if value.word not in field.levels:
        raise Refused(f"{name}: has no {value.word} (it has {', '.join(field.levels)})")
    place = field.levels.index(value.word)
    if field.kind == "set":
        return (np.asarray(values) >> place) & 1 == 1
    return np.asarray(values) == place
