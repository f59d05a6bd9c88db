"""The SQLite file behind a store: its format, how it is opened, and whole transactions."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_APPLICATION_ID = 0x53503244  # "SP2D"
_FORMAT = 1
_SCHEMA = """
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
    PRIMARY KEY (pair_id, teacher, variant, "order", attempt)
);
"""


def connect(path: Path, *, create: bool) -> sqlite3.Connection:
    """Opens a store's file, and makes it where `create` allows.

    Raises:
        ValueError: the file is no store, or of another format.
        OSError: it is not there.
    """
    if not create and not path.is_file():
        raise FileNotFoundError(f"{path}: no such store; `sp2dpo annotate` makes one")
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {path.parent}")
    database = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=30)
    try:
        _prepare(database, path, create=create)
    except sqlite3.DatabaseError as error:
        database.close()
        if "not a database" in str(error):
            raise ValueError(f"{path}: not a store of this toolkit") from error
        raise
    except ValueError:
        database.close()
        raise
    return database


def _prepare(database: sqlite3.Connection, path: Path, *, create: bool) -> None:
    known = database.execute("PRAGMA application_id").fetchone()[0]
    tables = database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if create and known == 0 and tables == 0:
        database.execute("PRAGMA journal_mode = WAL")
        database.executescript(
            f"BEGIN; PRAGMA application_id = {_APPLICATION_ID}; "
            f"PRAGMA user_version = {_FORMAT}; {_SCHEMA} COMMIT;"
        )
    elif known != _APPLICATION_ID:
        raise ValueError(f"{path}: a database, but not a store of this toolkit")
    version = database.execute("PRAGMA user_version").fetchone()[0]
    if version != _FORMAT:
        raise ValueError(f"{path}: store format {version}, this version of sp2dpo reads {_FORMAT}")
    # A reply survives the loss of power, not only of the process.
    database.execute("PRAGMA synchronous = FULL")


@contextmanager
def transaction(database: sqlite3.Connection) -> Iterator[None]:
    """Everything inside the block is stored, or nothing."""
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
        database.execute("COMMIT")
    except BaseException:
        if database.in_transaction:  # a full disk has ended it already
            database.execute("ROLLBACK")
        raise


def read_meta(database: sqlite3.Connection, key: str) -> str | None:
    """One of the few single values of a store."""
    row = database.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
    return row[0] if row else None


def write_meta(database: sqlite3.Connection, key: str, value: str) -> None:
    """Records a single value, once and for all."""
    database.execute("INSERT INTO meta VALUES (?, ?)", (key, value))
