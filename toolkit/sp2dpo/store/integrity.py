"""Check a store: its structure, the types of its values, and the digests of what it contains."""

import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeVar

import polars as pl

from sp2dpo.store.connection import Connection
from sp2dpo.store.database import connect
from sp2dpo.store.digests import (
    REPLY_DIGEST,
    TABLES,
    has_digests,
    meta_digest,
    meta_name,
    table_digests,
)
from sp2dpo.store.schema import NARROW, SCHEMA
from sp2dpo.text import one_line

_MOST = 10
"""Problems after which a check ends."""
_CACHE = 65_536
"""Memory for the pages of a file that is checked, in KiB."""
_RECOVER = "keep it and its -wal file, and copy what can be read with `sqlite3 FILE .recover`"
_RESTORE = "restore a copy of the file"
_TYPES = {"TEXT": "text", "INTEGER": "integer", "REAL": "real"}
_WRONG_VALUES = (TypeError, LookupError, AttributeError, ArithmeticError)
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A problem of a store.

    Attributes:
        text: What is damaged.
        advice: What to do.
        is_panel: Whether only the record of the panel is damaged, which `annotate` writes again.
    """

    text: str
    advice: str
    is_panel: bool = False


class StoreCheck:
    """A check of a store in two threads, with connections of its own.

    Args:
        path: Path of the store.
        reader: Connection whose queries end once the check finds a problem: in a damaged file, they
            might never end.
    """

    def __init__(self, path: Path, reader: Connection | None = None) -> None:
        self._readers = [] if reader is None else [reader]
        self._threads = ThreadPoolExecutor(2)
        self._connections = [connect(path, write=False), connect(path, write=False)]
        # The structure is checked page by page, so in a limited time however damaged the file is;
        # what it finds ends the check of the contents.
        structure, contents = self._connections
        self._checks = [
            self._begin(_structure_problems, structure, [*self._readers, contents]),
            self._begin(_content_problems, contents, self._readers),
        ]

    def _begin(
        self,
        check: Callable[[Connection], Iterator[Problem]],
        database: Connection,
        readers: list[Connection],
    ) -> Future[list[Problem]]:
        def run() -> list[Problem]:
            problems: list[Problem] = []
            try:
                # One state of the file: a run may write to it meanwhile.
                database.execute("BEGIN")
                for problem in check(database):
                    problems.append(problem)
                    if len(problems) == _MOST:
                        break
            except sqlite3.DatabaseError as error:
                # The file is not damaged but, for example, busy; or the other check has ended this
                # one.
                if isinstance(error, sqlite3.OperationalError) and "decode" not in str(error):
                    if "interrupted" in str(error) and not database.may_query:
                        return problems
                    raise
                problems.append(Problem(text=str(error), advice=_RECOVER))
            finally:
                for reader in readers if problems else ():
                    reader.end_queries()
            return problems

        return self._threads.submit(run)

    def finish(self) -> list[Problem]:
        """Wait for the end of the check, and return what it found."""
        try:
            return [problem for check in self._checks for problem in check.result()][:_MOST]
        finally:
            self.stop()

    def stop(self) -> None:
        """End the check, also before it is finished."""
        for database in self._connections:
            database.end_queries()
        self._threads.shutdown()
        for database in self._connections:
            database.close()


def check_store(path: Path) -> list[Problem]:
    """Return the problems of a store; empty if there are none."""
    return StoreCheck(path).finish()


def read_while_checking(
    path: Path, reader: Connection, read: Callable[[], Result]
) -> tuple[list[Problem], Result | None]:
    """Read from a store while it is checked, which takes hardly longer than the check alone.

    Args:
        path: Path of the store.
        reader: The connection that `read` uses.
        read: What to read.

    Returns:
        The problems, and what `read` returned; None if there are any problems.
    """
    check, failure, result = StoreCheck(path, reader), None, None
    try:
        result = read()
    # What a damaged file leads to, and values of other types.
    except (sqlite3.Error, pl.exceptions.PolarsError, ValueError, *_WRONG_VALUES) as error:
        failure = error
    except BaseException:
        check.stop()
        raise
    problems = check.finish()
    if failure is not None and not problems:
        if isinstance(failure, (pl.exceptions.PolarsError, *_WRONG_VALUES)):
            raise ValueError(
                f"{path}: it contains values that no store has ({one_line(failure)}): another "
                f"program has changed it; {_RESTORE}"
            ) from failure
        raise failure
    return problems, None if problems else result


def damage_message(path: Path, problems: list[Problem]) -> str:
    """Return the message of an error about a damaged store."""
    more = f" and {len(problems) - 1} more problems" if len(problems) > 1 else ""
    return f"{path} is damaged ({problems[0].text}{more}): {problems[0].advice}"


def _structure_problems(database: Connection) -> Iterator[Problem]:
    """Yield what SQLite finds, which compares indices with tables, and values of other types."""
    # The rows of an index are looked up in no order of the file.
    database.execute(f"PRAGMA cache_size = -{_CACHE}")
    for (text,) in database.execute(f"PRAGMA integrity_check({_MOST})"):
        if text != "ok":
            yield Problem(text=text, advice=_RECOVER)
    # A join would leave them out without a word.
    query = "SELECT count(*) FROM replies WHERE teacher NOT IN (SELECT name FROM teachers)"
    if count := database.execute(query).fetchone()[0]:
        yield Problem(text=f"{count} replies are of teachers that it lacks", advice=_RESTORE)
    for table, condition in _type_conditions().items():
        if table == "replies":  # too many: what reads them refuses values of other types
            continue
        query = f"SELECT count(*) FROM {table} WHERE NOT ({condition})"
        if count := database.execute(query).fetchone()[0]:
            yield Problem(
                text=f"{count} rows of the table {table} have a value of another type",
                advice=_RESTORE,
            )


@cache
def _type_conditions() -> dict[str, str]:
    """Return, by table, an SQL condition that is true for rows whose values have their types.

    SQLite stores a value of any type in any column. Nulls are left to its own check.
    """
    with closing(sqlite3.connect(":memory:")) as database:
        database.executescript(SCHEMA + NARROW)
        tables = [row[0] for row in database.execute(
            "SELECT name FROM sqlite_master WHERE type = 'table'"
        )]  # fmt: skip
        return {
            table: " AND ".join(
                f"typeof(\"{row[1]}\") IN ('{_TYPES[row[2]]}', 'null')"
                for row in database.execute(f"PRAGMA table_info({table})")
            )
            for table in tables
        }


def _content_problems(database: Connection) -> Iterator[Problem]:
    """Yield what differs from its digest, and values that no reply can have."""
    if has_digests(database):
        yield from _meta_problems(database)
        recorded = dict(database.execute("SELECT name, digest FROM digests"))
        names = tuple(name for name in TABLES if name in recorded)
        for name, digest in table_digests(database, names):
            if digest != recorded[name]:
                yield Problem(text=f"the table {name} is not what was stored", advice=_RESTORE)
        yield from _reply_problems(database)


def _meta_problems(database: Connection) -> Iterator[Problem]:
    recorded = dict(database.execute("SELECT name, digest FROM digests"))
    for key, value in database.execute("SELECT key, value FROM meta"):
        if recorded.get(meta_name(key), digest := meta_digest(value)) != digest:
            if key == "panel":
                yield Problem(
                    text="the record of its panel is damaged",
                    advice="run `sp2dpo annotate` with the panel, which writes it again",
                    is_panel=True,
                )
            else:
                yield Problem(text=f"the record {key!r} is not what was stored", advice=_RESTORE)


def _reply_problems(database: Connection) -> Iterator[Problem]:
    query = (
        'SELECT replies.rowid, pair_id, teacher, variant, "order", attempt '
        "FROM replies JOIN reply_digests ON number = replies.rowid "
        f"WHERE digest != {REPLY_DIGEST} LIMIT {_MOST}"
    )
    for number, *key in database.execute(query):
        pair_id, *rest = (str(value) for value in key)
        yield Problem(
            text=f"the reply to pair {pair_id[:12]}, {', '.join(rest)} is not what was stored",
            advice=(
                f"{_RESTORE}, or delete the reply with `sqlite3 FILE 'DELETE FROM replies WHERE "
                f"rowid = {number}'` and run `sp2dpo annotate`, which asks for it again"
            ),
        )
