"""Open the SQLite file of a store: its schema, write lock and transactions."""

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sp2dpo.replacement import check_parent, lock_exclusively

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
# Questions still to be asked, outcomes and annotations are read from this index alone, because the
# rows of `replies` are wide: they contain the text of the reply.
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
# Format 1 lacks these columns, the index and the table of settled pairs.
_FROM_FORMAT_1 = "".join(
    f"ALTER TABLE replies ADD COLUMN {column};"
    for column in (
        "better TEXT", "logprobs TEXT", "expected_magnitude REAL", "expected_confidence REAL",
    )
)  # fmt: skip


def connect(path: Path, *, write: bool) -> sqlite3.Connection:
    """Open the file of a store for reading or writing; `write` creates it if it does not exist.

    Raises:
        ValueError: If the file is not a store, has another format, or is to be written and has
            several names.
        OSError: If the folder does not exist, the file is a link to nothing, or it does not exist
            and `write` is not set.
    """
    check_parent(path)
    if not write and not path.is_file():
        raise FileNotFoundError(f"{path}: no such store; `sp2dpo annotate` creates one")
    # SQLite derives the name of the write-ahead log from the name under which a file is opened.
    # Links to the file do not matter, because it follows them first.
    if write and path.is_file() and path.stat().st_nlink > 1:
        raise ValueError(
            f"{path}: the file has {path.stat().st_nlink} names (hard links), and writing under "
            "two of them would damage it: copy it with `cp`, and use the copy"
        )
    # As a URI, which can state the mode; `as_uri` escapes characters such as `?` in the path.
    address = f"{path.absolute().as_uri()}?mode={'rwc' if write else _read_mode(path)}"
    # isolation_level: transactions are explicit; the module would begin some by itself.
    # check_same_thread: a run commits in a writer thread. timeout: seconds to wait for a commit.
    database = sqlite3.connect(
        address, uri=True, isolation_level=None, check_same_thread=False, timeout=30
    )
    try:
        # SQLite reads the file at the first statement, so only this can find that it is not a
        # database.
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
    """Return the SQLite mode in which a file can be opened for reading."""
    # SQLite cannot create its lock files in a folder without write permission, except in immutable
    # mode, which is safe only if there is no write-ahead log.
    file = path.resolve()  # the log is beside the file itself, not beside a link to it
    log = file.with_name(f"{file.name}-wal")
    settled = not os.access(file.parent, os.W_OK) and not log.exists()
    return "ro&immutable=1" if settled else "ro"


def _prepare(database: sqlite3.Connection, path: Path, *, write: bool) -> None:
    application_id = database.execute("PRAGMA application_id").fetchone()[0]
    tables = database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    # An empty file, as `atomic_write` creates it, becomes a store; another database stays as it is.
    if write and application_id == 0 and tables == 0:
        # With a write-ahead log, `status` and others can read while a run writes.
        database.execute("PRAGMA journal_mode = WAL")
        # One transaction, so that a killed process leaves either no schema or all of it.
        database.executescript(
            f"BEGIN; PRAGMA application_id = {_APPLICATION_ID}; "
            f"PRAGMA user_version = {_FORMAT}; {_SCHEMA} {_NARROW} COMMIT;"
        )
    elif application_id != _APPLICATION_ID:
        raise ValueError(f"{path}: an SQLite database, but not a store of this toolkit")
    version = database.execute("PRAGMA user_version").fetchone()[0]
    if version == 1 and write:
        database.executescript(
            f"BEGIN; {_FROM_FORMAT_1} {_NARROW} PRAGMA user_version = {_FORMAT}; COMMIT;"
        )
    elif version == 1:
        raise ValueError(
            f"{path}: store format 1; `sp2dpo annotate` upgrades it to format {_FORMAT}"
        )
    elif version != _FORMAT:
        raise ValueError(f"{path}: store format {version}, this version of sp2dpo reads {_FORMAT}")
    # With FULL, a committed reply survives a power failure, not only the end of the process.
    database.execute("PRAGMA synchronous = FULL")


def lock_path(path: Path) -> Path:
    """Return the path of a store's lock file, which is the same for all links to the store."""
    file = path.resolve()
    return file.with_name(f"{file.name}.lock")


@contextmanager
def only_writer(path: Path) -> Iterator[None]:
    """Hold the lock that allows only one process to write to a store.

    Raises:
        ValueError: If another process holds the lock; the message has its process id.
        OSError: If the folder does not exist or is not writable, or the store is a link to nothing.
    """
    check_parent(path)
    mark = lock_path(path)
    with mark.open("a+") as lock:  # "w" would erase the process id of the current holder
        try:
            # The system releases this lock when the process ends, even if it is killed and leaves
            # the file.
            lock_exclusively(lock)
        except BlockingIOError:
            lock.seek(0)
            raise ValueError(
                f"{path}: another process ({lock.read().strip() or 'unknown'}) is annotating into "
                "this store; wait for it or stop it"
            ) from None
        # The previous holder may have deleted the file between our open and our lock.
        if not mark.exists() or mark.stat().st_ino != os.fstat(lock.fileno()).st_ino:
            raise ValueError(f"{path}: another process has just ended here; try again")
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        try:
            yield
        finally:
            # While the lock is held: later, the file could be the lock of the next process.
            mark.unlink(missing_ok=True)


def _wait_for_turn(database: sqlite3.Connection) -> None:
    """Begin a transaction; if another process has one, wait for its end, but not longer than 30 s.

    While SQLite waits itself, Python handles no signals.
    """
    database.execute("PRAGMA busy_timeout = 200")
    end = time.monotonic() + 30
    try:
        while True:
            try:
                database.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > end:
                    raise
            else:
                return
    finally:
        database.execute("PRAGMA busy_timeout = 30000")


@contextmanager
def transaction(database: sqlite3.Connection) -> Iterator[None]:
    """Commit everything written inside the block, or nothing."""
    # A plain BEGIN locks at the first write, where SQLite refuses at once instead of waiting if the
    # transaction has read an older state.
    _wait_for_turn(database)
    try:
        yield
        database.execute("COMMIT")
    # Also for KeyboardInterrupt: an open transaction would block all other writers.
    except BaseException:
        if database.in_transaction:  # SQLite rolls back by itself if the disk is full
            database.execute("ROLLBACK")
        raise


def read_meta(database: sqlite3.Connection, key: str) -> str | None:
    """Return a value of the table `meta`; None if it is not set."""
    row = database.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
    return row[0] if row else None


def write_meta(database: sqlite3.Connection, key: str, value: str) -> None:
    """Set a value of the table `meta`."""
    database.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))
