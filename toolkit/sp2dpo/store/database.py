"""The SQLite file behind a store: its format, how it is opened, who may write, transactions."""

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_APPLICATION_ID = 0x53503244  # "SP2D"
_FORMAT = 2
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
    better TEXT,
    logprobs TEXT,
    expected_magnitude REAL,
    expected_confidence REAL,
    PRIMARY KEY (pair_id, teacher, variant, "order", attempt)
);
"""
# What is still to be asked, what became of the rest and what a beta depends on are read from the
# index alone: rows are wide, with the text of the reply in them.
_NARROW = """
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
_FROM_FORMAT_1 = "".join(
    f"ALTER TABLE replies ADD COLUMN {column};"
    for column in (
        "better TEXT", "logprobs TEXT", "expected_magnitude REAL", "expected_confidence REAL",
    )
)  # fmt: skip


def connect(path: Path, *, write: bool) -> sqlite3.Connection:
    """Opens a store's file: to read it, or to write to it, and then it is made where it is not.

    Raises:
        ValueError: the file is no store, or of another format.
        OSError: it is not there.
    """
    if not write and not path.is_file():
        raise FileNotFoundError(f"{path}: no such store; `sp2dpo annotate` makes one")
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {path.parent}")
    address = f"{path.absolute().as_uri()}?mode={'rwc' if write else _read_mode(path)}"
    database = sqlite3.connect(
        address, uri=True, isolation_level=None, check_same_thread=False, timeout=30
    )
    try:
        _prepare(database, path, write=write)
    except sqlite3.DatabaseError as error:
        database.close()
        if "not a database" in str(error):
            raise ValueError(f"{path}: not a store of this toolkit") from error
        raise
    except ValueError:
        database.close()
        raise
    return database


def _read_mode(path: Path) -> str:
    """How to read the file: where nobody can write beside it, as one that never changes."""
    log = path.with_name(f"{path.name}-wal")
    settled = not os.access(path.absolute().parent, os.W_OK) and not log.exists()
    return "ro&immutable=1" if settled else "ro"


def _prepare(database: sqlite3.Connection, path: Path, *, write: bool) -> None:
    application_id = database.execute("PRAGMA application_id").fetchone()[0]
    tables = database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if write and application_id == 0 and tables == 0:
        database.execute("PRAGMA journal_mode = WAL")
        database.executescript(
            f"BEGIN; PRAGMA application_id = {_APPLICATION_ID}; "
            f"PRAGMA user_version = {_FORMAT}; {_SCHEMA} {_NARROW} COMMIT;"
        )
    elif application_id != _APPLICATION_ID:
        raise ValueError(f"{path}: not a store of this toolkit, though a database")
    version = database.execute("PRAGMA user_version").fetchone()[0]
    if version == 1 and write:
        database.executescript(
            f"BEGIN; {_FROM_FORMAT_1} {_NARROW} PRAGMA user_version = {_FORMAT}; COMMIT;"
        )
    elif version == 1:
        raise ValueError(f"{path}: store format 1; `sp2dpo annotate` on it makes it {_FORMAT}")
    elif version != _FORMAT:
        raise ValueError(f"{path}: store format {version}, this version of sp2dpo reads {_FORMAT}")
    # A reply survives the loss of power, not only of the process.
    database.execute("PRAGMA synchronous = FULL")


def integrity(database: sqlite3.Connection) -> list[str]:
    """What SQLite finds wrong with the file; empty where it is sound."""
    try:
        problems = [row[0] for row in database.execute("PRAGMA quick_check(10)")]
    except sqlite3.OperationalError:  # busy, say: nothing is wrong with the file
        raise
    except sqlite3.DatabaseError as error:  # too much for the check itself
        problems = [str(error)]
    return [] if problems == ["ok"] else problems


@contextmanager
def only_writer(path: Path) -> Iterator[None]:
    """Keeps every other process from annotating into the same store.

    Raises:
        ValueError: another process does, named by its number.
        OSError: there is no such folder, or it cannot be written to.
    """
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {path.parent}")
    mark = path.with_name(f"{path.name}.lock")
    with mark.open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise ValueError(
                f"{path}: another process ({lock.read().strip() or 'unknown'}) is annotating into "
                "this store; wait for it or stop it"
            ) from None
        if not mark.exists() or mark.stat().st_ino != os.fstat(lock.fileno()).st_ino:
            raise ValueError(f"{path}: another process has just ended here; try again")
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        try:
            yield
        finally:
            mark.unlink(missing_ok=True)


@contextmanager
def snapshot(database: sqlite3.Connection) -> Iterator[None]:
    """Whatever is read inside the block is of one moment."""
    database.execute("BEGIN")
    try:
        yield
    finally:
        database.execute("ROLLBACK")


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
    """Records a single value."""
    database.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))
