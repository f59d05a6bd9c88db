"""Define how the rows of a source are read: which columns are what, and which pairs they give."""

import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Self

from sp2dpo.pairs.formats import InvalidPair
from sp2dpo.settings import did_you_mean

PairsFrom = Literal["best-rest", "all"]
"""Pairs of several scored responses: the best against each worse one, or all that differ."""
ROLES = (
    "prompt", "system", "messages", "chosen", "rejected", "tools", "images", "videos", "source_id",
    "responses", "scores", "ranks", "response_a", "response_b", "response_0", "response_1",
    "response_2", "winner",
)  # fmt: skip
"""What a column can be named as."""
_JOINED = ("prompt", "system")
"""Roles whose content may be in several columns."""
# A comma ends an item only before the next ROLE=, because names of columns may contain commas.
_NEXT = re.compile(r",(?=\s*\w+\s*=)")


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How the rows of a source are read.

    Attributes:
        columns: Columns of the source by their role, one of `ROLES`; several, joined by `+`, hold
            text that is joined by blank lines. Empty text states that no column has the role: the
            prompt is then the beginning that chosen and rejected share. Roles that are not named
            are found by the names of well-known data sets, see `shapes`.
        pairs_from: Pairs of a row with several scored responses; None for the default, `best-rest`.
        images: Whether images are read; if not, rows with images are set aside.

    Raises:
        ValueError: If a role is not known, or a column is not text.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    pairs_from: PairsFrom | None = None
    images: bool = False

    def __post_init__(self) -> None:
        for role, name in self.columns.items():
            if not isinstance(name, str):
                raise ValueError(f"the column of {role} is {name!r}: write its name as text")
            if role not in ROLES:
                raise ValueError(
                    f"unknown role {role!r}{did_you_mean(role, ROLES)} (known: {', '.join(ROLES)})"
                )
        if self.pairs_from not in (None, "best-rest", "all"):
            raise ValueError(f"pairs_from is {self.pairs_from!r}: use 'best-rest' or 'all'")

    def column_names(self, role: str, present: Iterable[str]) -> list[str]:
        """Return the columns of the source that have a role.

        Args:
            role: A role in `columns`.
            present: Names of the row's columns.
        """
        named = self.columns[role]
        # A column whose name has a plus sign is one column.
        return [named] if named in present else [name for name in named.split("+") if name]

    def dump(self) -> str:
        """Return JSON from which `load` restores this."""
        return json.dumps(asdict(self))

    @classmethod
    def load(cls, text: str) -> Self:
        """Return the reading that `dump` wrote."""
        return cls(**json.loads(text))

    def options(self) -> str:
        """Return the command line options that read a source in this way."""
        options = []
        if self.columns:
            columns = ",".join(f"{role}={name}" for role, name in self.columns.items())
            options.append(f"--columns {shlex.quote(columns)}")
        if self.pairs_from:
            options.append(f"--pairs-from {self.pairs_from}")
        return " ".join(options)


def parse_columns(text: str) -> dict[str, str]:
    """Parse `ROLE=COLUMN,ROLE=COLUMN`.

    Raises:
        ValueError: If an item is not of this form, or names a role twice.
    """
    columns: dict[str, str] = {}
    for item in _NEXT.split(text):
        role, equals, name = item.partition("=")
        role = role.strip()
        if not equals or not role:
            raise ValueError(f"{item!r}: write ROLE=COLUMN, such as prompt=question")
        if role in columns:
            raise ValueError(f"the role {role} has two columns; join texts as {role}=FIRST+SECOND")
        columns[role] = name
    return columns


def check_present(reading: Reading, seen: Sequence[str], source: str) -> None:
    """Raise ValueError if a named column is in no row of a source.

    Args:
        reading: How the source was read.
        seen: Names of all columns of the source.
        source: Name of the source, for the message.
    """
    problems = [
        f"there is no column {name!r} for {role}{did_you_mean(name, seen)}"
        for role in reading.columns
        for name in reading.column_names(role, seen)
        if name not in seen
    ]
    if problems:
        raise ValueError(
            f"{source}: {'; '.join(problems)} (its columns: {', '.join(map(repr, seen[:40]))})"
        )


def view_row(
    row: Mapping[str, Any], reading: Reading
) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """Return a row with its columns under the names of their roles.

    Returns:
        The values by role or column, and the source's columns by role.

    Raises:
        InvalidPair: If a named column is missing, the prompt's is null, or one that is joined with
            another does not hold text.
    """
    if not reading.columns:
        return dict(row), {}
    sources = {role: reading.column_names(role, row) for role in reading.columns}
    moved = {name for names in sources.values() for name in names}
    view = {name: row[name] for name in row if name not in moved and name not in sources}
    for role, names in sources.items():
        missing = [name for name in names if name not in row]
        if missing:
            raise InvalidPair(f"missing column {missing[0]}")
        if len(names) > 1 and role not in _JOINED:
            raise InvalidPair(f"{role} takes one column: give --columns {role}={names[0]}")
        values = [row[name] for name in names]
        view[role] = values[0] if len(values) == 1 else _join(values)
        # Without this, null would mean that the prompt is the responses' common beginning.
        if role == "prompt" and names and view[role] is None:
            raise InvalidPair("empty prompt")
    return view, sources


def _join(values: Sequence[Any]) -> str | None:
    texts = []
    for value in values:
        # A list of texts, such as the options of a question, is joined by lines.
        items = value if isinstance(value, list | tuple) else [value]
        if not all(isinstance(item, str | None) for item in items):
            raise InvalidPair("columns joined by + do not all hold text")
        texts.append("\n".join(item for item in items if item))
    return "\n\n".join(text for text in texts if text.strip()) or None
