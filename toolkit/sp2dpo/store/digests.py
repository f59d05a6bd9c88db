"""Digests of what a store contains, by which damage is found that SQLite cannot know of.

SQLite checks the structure of its file, not the texts and numbers in it. Every reply has a CRC-32
in `reply_digests`, written in the transaction that adds the reply; every other table, and every
value of `meta`, has a SHA-256 in `digests`. They find damage, not forgery: whoever changes a reply
can change its digest too. Replies without a digest come from an earlier release; they get one when
the store is next opened for writing.
"""

import hashlib
import sqlite3
from collections.abc import Iterator

from sp2dpo.store.schema import DIGESTS

TABLES = ("pairs", "source_rows", "set_aside", "teachers")
"""Tables whose rows share one digest, as they are written together."""
_SHORT = (
    "pair_id", "teacher", "variant", '"order"', "attempt", "status", "reason", "category",
    "magnitude", "confidence", "better", "rubric", "prompt_tokens", "completion_tokens",
    "cached_tokens",
)  # fmt: skip
_NUMBERS = ("seconds", "arrived", "expected_magnitude", "expected_confidence")
_TEXTS = ("detail", "rationale", "raw", "finish_reason", "model", "logprobs")
_ANY = "iif({0} IS NULL, char(30), {0})"


def _reply_expression() -> str:
    """Return the SQL expression of the digest of a row of `replies`."""
    # One call of `printf` is ten times faster than joining all values, but ends a text at a zero
    # byte, which only the free texts may contain. A float is taken as a whole number of millionths,
    # which is the same in every version of SQLite; its decimal digits are not.
    values = [*_SHORT, *(f"CAST({name} * 1048576 AS INTEGER)" for name in _NUMBERS)]
    short = f"printf('{'%s,' * len(values)}', {', '.join(values)})"
    texts = " || char(31) || ".join(_ANY.format(name) for name in _TEXTS)
    return f"crc32(CAST({short} || {texts} AS BLOB))"


REPLY_DIGEST = _reply_expression()


def has_digests(database: sqlite3.Connection) -> bool:
    """Return whether a store has the tables of the digests; those of earlier releases lack them."""
    query = "SELECT count(*) FROM main.sqlite_master WHERE name = 'reply_digests'"
    return bool(database.execute(query).fetchone()[0])


def create_digest_tables(database: sqlite3.Connection) -> None:
    """Create the tables of the digests if a store lacks them; to be called in a transaction."""
    if not has_digests(database):
        for statement in DIGESTS.split(";"):
            database.execute(statement)


def add_reply_digests(database: sqlite3.Connection) -> None:
    """Add the digests of the replies after the last one that has a digest.

    To be called in the transaction that adds them.
    """
    database.execute(
        f"INSERT INTO main.reply_digests SELECT rowid, {REPLY_DIGEST} FROM main.replies "
        "WHERE rowid > (SELECT ifnull(max(number), 0) FROM main.reply_digests)"
    )


def complete_digests(database: sqlite3.Connection) -> None:
    """Add all digests that are missing, and remove those of replies that were deleted.

    To be called in a transaction, on a store that `integrity.check_store` finds sound.
    """
    create_digest_tables(database)
    database.execute(
        "DELETE FROM main.reply_digests WHERE number NOT IN (SELECT rowid FROM main.replies)"
    )
    database.execute(
        f"INSERT INTO main.reply_digests SELECT rowid, {REPLY_DIGEST} FROM main.replies "
        "WHERE rowid NOT IN (SELECT number FROM main.reply_digests)"
    )
    recorded = {row[0] for row in database.execute("SELECT name FROM main.digests")}
    for name, digest in table_digests(database):
        if name not in recorded:
            _record(database, name, digest)
    for key, value in database.execute("SELECT key, value FROM main.meta").fetchall():
        if meta_name(key) not in recorded:
            record_meta_digest(database, key, value)


def forget_reply_digests(
    database: sqlite3.Connection, where: str, values: tuple[object, ...]
) -> None:
    """Remove the digests of replies that are about to change; `complete_digests` adds new ones."""
    database.execute(
        "DELETE FROM main.reply_digests WHERE number IN "
        f"(SELECT rowid FROM main.replies WHERE {where})",
        values,
    )


def record_table_digests(database: sqlite3.Connection, *names: str) -> None:
    """Record the digests of tables that have just been written, in the same transaction."""
    for name, digest in table_digests(database, names or TABLES):
        _record(database, name, digest)


def table_digests(
    database: sqlite3.Connection, names: tuple[str, ...] = TABLES
) -> Iterator[tuple[str, str]]:
    """Yield the names of tables and the SHA-256 of their rows, in the order of their keys."""
    for name in names:
        # Names and order of the columns are those of our own schema, as `connect` has checked.
        columns = [row[1] for row in database.execute(f"PRAGMA main.table_info({name})")]
        line = " || char(31) || ".join(_ANY.format(f'"{column}"') for column in columns)
        digest = hashlib.sha256()
        query = f"SELECT CAST({line} || char(30) AS BLOB) FROM main.{name} ORDER BY 1"
        if name != "teachers":
            query = query.replace("ORDER BY 1", f"ORDER BY {columns[0]}")
        for row in database.execute(query):
            digest.update(row[0])
        yield name, digest.hexdigest()


def meta_name(key: object) -> str:
    """Return the name of the digest of a value of `meta`."""
    return f"meta {key}"


def meta_digest(value: object) -> str:
    """Return the digest of a value of `meta`, which is a text unless the file is damaged."""
    return hashlib.sha256(str(value).encode(errors="surrogatepass")).hexdigest()


def record_meta_digest(database: sqlite3.Connection, key: str, value: str) -> None:
    """Record the digest of a value of `meta`, in the transaction that writes it."""
    _record(database, meta_name(key), meta_digest(value))


def _record(database: sqlite3.Connection, name: str, digest: str) -> None:
    database.execute("INSERT OR REPLACE INTO main.digests VALUES (?, ?)", (name, digest))
