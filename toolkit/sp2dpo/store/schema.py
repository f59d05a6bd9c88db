"""The schema of a store's file, of every format; a file with any other object is refused."""

import re
import sqlite3
from contextlib import closing
from functools import cache

APPLICATION_ID = 0x53503244  # "SP2D"
FORMAT = 2
SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE pairs (
    number INTEGER PRIMARY KEY,
    pair_id TEXT NOT NULL UNIQUE,
    prompt TEXT NOT NULL,
    chosen TEXT NOT NULL,
    rejected TEXT NOT NULL,
    tools TEXT NOT NULL
);
CREATE TABLE source_rows (
    row INTEGER PRIMARY KEY,
    pair_id TEXT NOT NULL,
    source_id TEXT,
    columns TEXT NOT NULL
);
CREATE TABLE set_aside (row INTEGER PRIMARY KEY, reason TEXT NOT NULL, raw TEXT NOT NULL);
CREATE TABLE teachers (
    name TEXT PRIMARY KEY,
    model TEXT NOT NULL,
    revision TEXT,
    sampling TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE replies (
    pair_id TEXT NOT NULL,
    teacher TEXT NOT NULL,
    variant TEXT NOT NULL,
    "order" TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('kept', 'refused')),
    reason TEXT,
    detail TEXT,
    category TEXT,
    magnitude INTEGER,
    confidence INTEGER,
    rationale TEXT,
    raw TEXT NOT NULL,
    finish_reason TEXT,
    model TEXT,
    rubric TEXT NOT NULL,
    prompt_tokens INTEGER,
    completion_tokens INTEGER,
    cached_tokens INTEGER,
    seconds REAL,
    arrived REAL NOT NULL,
    better TEXT,
    logprobs TEXT,
    expected_magnitude REAL,
    expected_confidence REAL,
    PRIMARY KEY (pair_id, teacher, variant, "order", attempt)
);
"""
# Questions still to be asked, outcomes and annotations are read from this index alone, because the
# rows of `replies` are wide: they contain the text of the reply.
NARROW = """
CREATE INDEX replies_narrow ON replies (
    pair_id, teacher, variant, "order", attempt, status, reason, category, magnitude, confidence,
    better, expected_magnitude, expected_confidence
);
CREATE TABLE settled (
    pair_id TEXT PRIMARY KEY,
    replies INTEGER NOT NULL,
    chance REAL NOT NULL
) WITHOUT ROWID;
"""
# Written since replies and records have digests; a store without them gets both tables when it is
# opened for writing. `number` is the rowid of the reply.
DIGESTS = """
CREATE TABLE reply_digests (number INTEGER PRIMARY KEY, digest INTEGER NOT NULL);
CREATE TABLE digests (name TEXT PRIMARY KEY, digest TEXT NOT NULL) WITHOUT ROWID;
"""
_ADDED = (
    "better TEXT", "logprobs TEXT", "expected_magnitude REAL", "expected_confidence REAL",
)  # fmt: skip
# Format 1 lacks these columns, the index and the table of settled pairs.
FROM_FORMAT_1 = "".join(f"ALTER TABLE replies ADD COLUMN {column};" for column in _ADDED)

Objects = frozenset[tuple[str, ...]]
"""Kind, name and statement of every object of a schema."""
_SPACE = re.compile(r"\s+")


def foreign_object(database: sqlite3.Connection, version: int) -> str | None:
    """Return kind and name of an object that no store of a format has, or that is missing.

    None if the schema is that of a store. Every statement is compared as a text: a view in place of
    a table, a trigger, or a column with another default would run or change what is stored.
    """
    objects = _objects(database)
    for accepted in _accepted(version):
        if objects == accepted:
            return None
    # Of the schemas of this format, the one with the most objects explains the difference best.
    expected = max(_accepted(version), key=len)
    for kind, name, _ in sorted(objects - expected) or sorted(expected - objects):
        return f"{kind} {name}"
    return None


def _objects(database: sqlite3.Connection) -> Objects:
    rows = database.execute("SELECT type, name, ifnull(sql, '') FROM sqlite_master")
    return frozenset(tuple(_SPACE.sub(" ", str(value)) for value in row) for row in rows)


@cache
def _accepted(version: int) -> tuple[Objects, ...]:
    """Return the schemas that this release and earlier ones have written in a format."""
    first = SCHEMA
    for column in _ADDED:
        first = first.replace(f",\n    {column}", "")
    if version == 1:
        return (_build(first),)
    stores = (f"{SCHEMA} {NARROW}", f"{first} {FROM_FORMAT_1} {NARROW}")
    return tuple(_build(f"{store} {digests}") for store in stores for digests in ("", DIGESTS))


def _build(schema: str) -> Objects:
    with closing(sqlite3.connect(":memory:")) as database:
        database.executescript(schema)
        return _objects(database)
