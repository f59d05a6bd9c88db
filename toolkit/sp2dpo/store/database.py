"""Open the SQLite file of a store: its schema, write lock and transactions."""

import errno
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sp2dpo.replacement import check_parent, lock_exclusively
from sp2dpo.store.connection import Connection
from sp2dpo.store.digests import record_meta_digest
from sp2dpo.store.schema import (
    APPLICATION_ID,
    DIGESTS,
    FORMAT,
    FROM_FORMAT_1,
    NARROW,
    SCHEMA,
    foreign_object,
)

_SUPER_JOURNAL = bytes.fromhex("d9d505f920a163d7")
_LOOKS = 10
"""Bound on reading a file's schema, see `Connection.bound_queries`: 200,000 operations of SQLite,
where a store takes some hundreds."""


def connect(path: Path, *, write: bool, attach: bool = False) -> Connection:
    """Open the file of a store for reading or writing; `write` creates it if it does not exist.

    Queries end at a signal. A file whose schema is not exactly that of a store is refused before
    anything else is read: a view or trigger of a stranger would be run by our own queries.

    Args:
        path: Path of the file.
        write: Whether the file is written to.
        attach: Whether another store will be attached.

    Raises:
        ValueError: If the file is not a store, has another format or schema, or is to be written
            and has several names, or if what is beside it is not SQLite's own.
        OSError: If the folder does not exist, the file is a link to nothing, or it does not exist
            and `write` is not set.
    """
    check_parent(path)
    if not write and not path.is_file():
        raise FileNotFoundError(f"{path}: no such store; `sp2dpo annotate` creates one")
    _check_companions(path)
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
        address,
        uri=True,
        isolation_level=None,
        check_same_thread=False,
        timeout=30,
        factory=Connection,
    )
    try:
        database.harden(attach=attach)
        database.bound_queries(_LOOKS)
        # SQLite reads the file at the first statement, so only this can find that it is not a
        # database.
        _prepare(database, path, write=write)
    except sqlite3.DatabaseError as error:
        database.close()
        if "not a database" in str(error):
            raise ValueError(f"{path}: not a store of this toolkit") from error
        if "interrupted" in str(error):
            raise ValueError(
                f"{path}: reading its schema takes more than {_LOOKS * 20_000:,} operations of "
                "SQLite: not a store of this toolkit, or damaged"
            ) from error
        raise
    except BaseException:
        database.close()
        raise
    return database


def _check_companions(path: Path) -> None:
    """Refuse files beside a store that SQLite would follow to other files, or wait for."""
    file = path.resolve()
    if file.exists() and not file.is_file():
        raise ValueError(f"{path}: not a file")
    for ending in ("-wal", "-shm", "-journal"):
        beside = file.with_name(file.name + ending)
        if beside.is_symlink() or (beside.exists() and not beside.is_file()):
            raise ValueError(
                f"{beside}: not a file of SQLite's own, but a link, a folder or a device: move it "
                "away"
            )
    # A rollback journal may name another file at its end, which SQLite would delete.
    journal = file.with_name(f"{file.name}-journal")
    if journal.exists() and journal.stat().st_size > len(_SUPER_JOURNAL):
        with journal.open("rb") as content:
            content.seek(-len(_SUPER_JOURNAL), os.SEEK_END)
            if content.read() == _SUPER_JOURNAL:
                raise ValueError(
                    f"{journal}: names another file, which SQLite would delete, and was not "
                    "written for this store alone: move it away"
                )


def _read_mode(path: Path) -> str:
    """Return the SQLite mode in which a file can be opened for reading."""
    # SQLite cannot create its lock files in a folder without write permission, except in immutable
    # mode, which is safe only if there is no write-ahead log.
    file = path.resolve()  # the log is beside the file itself, not beside a link to it
    log = file.with_name(f"{file.name}-wal")
    settled = not os.access(file.parent, os.W_OK) and not log.exists()
    return "ro&immutable=1" if settled else "ro"


def _prepare(database: Connection, path: Path, *, write: bool) -> None:
    application_id = database.execute("PRAGMA application_id").fetchone()[0]
    tables = database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    # An empty file, as `atomic_write` creates it, becomes a store; another database stays as it is.
    if write and application_id == 0 and tables == 0:
        # With a write-ahead log, `status` and others can read while a run writes.
        database.execute("PRAGMA journal_mode = WAL")
        # One transaction, so that a killed process leaves either no schema or all of it.
        database.executescript(
            f"BEGIN; PRAGMA application_id = {APPLICATION_ID}; "
            f"PRAGMA user_version = {FORMAT}; {SCHEMA} {NARROW} {DIGESTS} COMMIT;"
        )
    elif application_id != APPLICATION_ID:
        raise ValueError(f"{path}: an SQLite database, but not a store of this toolkit")
    version = database.execute("PRAGMA user_version").fetchone()[0]
    if version in (1, FORMAT) and (foreign := foreign_object(database, version)):
        raise ValueError(
            f"{path}: its schema is not that of a store (the {foreign} differs, or should not be "
            "there): another program has changed it; use a store as `sp2dpo annotate` wrote it, or "
            "remove what was added, for example with `sqlite3 FILE 'DROP VIEW NAME'`"
        )
    # What follows takes as long as the store is large, and can no longer run a stranger's code.
    database.bound_queries(None)
    if version == 1 and write:
        database.executescript(
            f"BEGIN; {FROM_FORMAT_1} {NARROW} {DIGESTS} PRAGMA user_version = {FORMAT}; COMMIT;"
        )
    elif version == 1:
        raise ValueError(
            f"{path}: store format 1; `sp2dpo annotate` upgrades it to format {FORMAT}"
        )
    elif version != FORMAT:
        raise ValueError(f"{path}: store format {version}, this version of sp2dpo reads {FORMAT}")
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
    # Not "w", which would erase the process id of the current holder. A link could lead to any file
    # of the user, whose content would be replaced by the process id.
    with open(mark, "a+", opener=_open_no_link) as lock:
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


def _open_no_link(path: str, flags: int) -> int:
    try:
        return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENXIO):
            raise
        raise ValueError(
            f"{path}: not a lock file of sp2dpo, but a link or a pipe: remove it"
        ) from error


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
    """Set a value of the table `meta`, with its digest; to be called in a transaction."""
    database.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))
    record_meta_digest(database, key, value)
