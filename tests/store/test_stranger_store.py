"""A store that a stranger wrote: its schema runs nothing, and a signal ends every query."""

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing

import pytest

from sp2dpo.store.connection import Connection
from sp2dpo.store.database import connect, only_writer
from sp2dpo.store.schema import FROM_FORMAT_1, NARROW, SCHEMA
from sp2dpo.store.store import Store
from support.harness import fail, filled, kept_reply

ENDLESS = (
    "WITH RECURSIVE endless(row, reason, raw) AS (SELECT 1, 'a', 'b' UNION ALL SELECT row + 1, 'a',"
    " 'b' FROM endless) SELECT * FROM endless"
)
FOREIGN = {
    "an endless view in place of a table": (
        f"DROP TABLE set_aside; CREATE VIEW set_aside AS {ENDLESS};"
    ),
    "a view beside the tables": "CREATE VIEW mine AS SELECT 1;",
    "a trigger": (
        "CREATE TRIGGER t AFTER INSERT ON meta BEGIN UPDATE replies SET magnitude = 0; END;"
    ),
    "a trigger on a view of the same name": (
        "ALTER TABLE settled RENAME TO other; CREATE VIEW settled AS SELECT * FROM other;"
        "CREATE TRIGGER t INSTEAD OF INSERT ON settled BEGIN DELETE FROM replies; END;"
    ),
    "a virtual table": "DROP TABLE settled; CREATE VIRTUAL TABLE settled USING fts5(pair_id);",
    "a generated column": (
        "DROP TABLE settled; CREATE TABLE settled (pair_id TEXT PRIMARY KEY, replies INTEGER NOT "
        "NULL, chance REAL AS (zeroblob(900000000))) WITHOUT ROWID;"
    ),
    "an index over an expression": "CREATE INDEX i ON settled (hex(zeroblob(100000000)));",
    "an index of its own": "CREATE INDEX i ON replies (raw);",
    "another collation": (
        "DROP TABLE set_aside; CREATE TABLE set_aside (row INTEGER PRIMARY KEY, reason TEXT NOT "
        "NULL COLLATE NOCASE, raw TEXT NOT NULL);"
    ),
    "another default": "ALTER TABLE teachers ADD COLUMN extra TEXT DEFAULT 'x';",
    "a missing index": "DROP INDEX replies_narrow;",
    "statistics that mislead the planner": "ANALYZE;",
}


@pytest.fixture
def store_path(tmp_path):
    """The path of a small store with replies, in one file."""
    path = tmp_path / "run.sqlite"
    with Store(path, write=True) as store:
        ids = filled(store, 4, "a")
        store.add_replies([kept_reply(pair_id, "a", "direct", 5, 5) for pair_id in ids])
    return path


@pytest.mark.parametrize("statements", FOREIGN.values(), ids=FOREIGN)
def test_a_store_with_another_schema_is_refused_before_it_is_read(store_path, statements):
    with closing(sqlite3.connect(store_path)) as database:
        database.executescript(statements)
    before = store_path.read_bytes()
    for write in (False, True):
        with pytest.raises(ValueError, match="its schema is not that of a store"):
            Store(store_path, write=write)
    for command in (
        ("status", "--store", store_path),
        ("annotate", "--reread", "--store", store_path),
        ("merge", store_path, "--out", store_path.with_name("merged.sqlite")),
    ):
        assert "its schema is not that of a store" in fail(*command)
    assert store_path.read_bytes() == before


FIRST = SCHEMA
"""The schema of format 1."""
for column in ("better TEXT", "logprobs TEXT", "expected_magnitude REAL",
               "expected_confidence REAL"):  # fmt: skip
    FIRST = FIRST.replace(f",\n    {column}", "")


def test_the_stores_of_earlier_releases_are_accepted(tmp_path):
    path = tmp_path / "old.sqlite"
    for version, schema in ((1, FIRST), (2, f"{SCHEMA} {NARROW}"),
                            (2, f"{FIRST} {FROM_FORMAT_1} {NARROW}")):  # fmt: skip
        path.unlink(missing_ok=True)
        with closing(sqlite3.connect(path)) as database:
            database.executescript(
                f"PRAGMA application_id = {0x53503244}; PRAGMA user_version = {version}; {schema}"
            )
        with Store(path, write=True) as store:
            assert store.integrity() == []
        Store(path).__exit__()


def test_a_large_store_of_the_first_release_is_upgraded(tmp_path):
    path = tmp_path / "old.sqlite"
    with closing(sqlite3.connect(path)) as database:
        database.executescript(
            f"PRAGMA application_id = {0x53503244}; PRAGMA user_version = 1; {FIRST}"
            "INSERT INTO teachers VALUES ('a', 'a', NULL, '{}');"
            "WITH RECURSIVE number(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM number LIMIT 20000) "
            "INSERT INTO replies SELECT hex(n), 'a', 'direct', 'given', 0, 'refused', 'empty', "
            "NULL, NULL, NULL, NULL, NULL, '', 'stop', NULL, 'x', 1, 1, 0, 0.5, n FROM number;"
        )
    with Store(path, write=True) as store:
        assert store.integrity() == []
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("SELECT count(*) FROM reply_digests").fetchone()[0] == 20000


def test_a_loop_over_large_rows_reads_few_of_them_ahead():
    produced = []

    def value(size):
        produced.append(size)
        return "x" * size

    for size, most in ((10, 101), (100_000, 12), (2_000_000, 2)):
        with closing(sqlite3.connect(":memory:", factory=Connection)) as database:
            database.create_function("value", 1, value)
            rows = database.execute(
                "WITH RECURSIVE number(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM number "
                f"LIMIT 300) SELECT value({size}) FROM number"
            )
            ahead = 0
            for read, _ in enumerate(rows, start=1):
                ahead = max(ahead, len(produced) - read)
            assert ahead <= most
            assert read == len(produced) == 300
            produced.clear()


def repeat_a_page(path, page, times=400, levels=5):
    """Put inner pages above a page, each of which contains the next one `times` times."""
    content = bytearray(path.read_bytes())
    size, start = 4096, 100 if page == 1 else 0
    last = len(content) // size
    tree = content[(page - 1) * size : page * size]
    # The pointers to the cells count from the beginning of the page, which has a header of the file
    # on page 1 only.
    cells = int.from_bytes(tree[start + 3 : start + 5], "big")
    head = tree[start : start + 8 + 2 * cells]
    leaf = bytearray(size)
    leaf[: len(head)], leaf[len(head) + 100 :] = head, tree[len(head) + 100 :]
    for level in range(levels):
        child = (last + level + 1).to_bytes(4, "big")
        inner = bytearray(size)
        places = [size - 5 * (number + 1) for number in range(times)]
        for number, place in enumerate(places):
            inner[place : place + 5] = child + bytes([number % 100 + 1])
            at = 12 + 2 * number + (start if not level else 0)
            inner[at : at + 2] = place.to_bytes(2, "big")
        header = b"\x05\0\0" + times.to_bytes(2, "big") + places[-1].to_bytes(2, "big") + b"\0"
        if level:
            inner[:12] = header + child
            content += inner
        else:
            inner[start : start + 12] = header + child
            inner[:start] = tree[:start]
            content[(page - 1) * size : page * size] = inner
    content += leaf
    content[28:32] = (len(content) // size).to_bytes(4, "big")  # pages of the file
    path.write_bytes(content)


def test_a_schema_that_takes_forever_to_read_is_refused(tmp_path):
    path = tmp_path / "run.sqlite"
    with closing(sqlite3.connect(path)) as database:
        database.execute(f"PRAGMA application_id = {0x53503244}")
        database.execute("CREATE TABLE t (x)")
    repeat_a_page(path, 1)
    for write in (False, True):
        with pytest.raises((ValueError, sqlite3.DatabaseError), match=r"malformed|operations"):
            Store(path, write=write)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_query_with_the_exception_of_its_handler(number):
    class Stopped(BaseException):
        pass

    def stop(*_):
        raise Stopped

    before = signal.signal(number, stop)
    try:
        with closing(sqlite3.connect(":memory:", factory=Connection)) as database:
            for query in (ENDLESS.replace("SELECT * FROM endless", "SELECT count(*) FROM endless"),
                          ENDLESS.replace("SELECT *", "SELECT max(row)")):  # fmt: skip
                timer = threading.Timer(0.1, os.kill, (os.getpid(), number))
                timer.start()
                with pytest.raises(Stopped):
                    database.execute(query)
                timer.join()
                # The connection remains usable.
                assert database.execute("SELECT 1").fetchall() == [(1,)]
    finally:
        signal.signal(number, before)


def test_values_beyond_the_limit_are_refused(store_path):
    with closing(connect(store_path, write=False)) as database:
        with pytest.raises(sqlite3.DataError, match="too big"):
            database.execute("SELECT length(hex(zeroblob(200000000)))").fetchone()
        with pytest.raises(sqlite3.OperationalError, match="too many attached"):
            database.execute("ATTACH ':memory:' AS other")


def test_what_lies_beside_a_store_leads_to_no_other_file(store_path, tmp_path):
    victim = tmp_path / "victim.txt"
    victim.write_text("precious")
    lock = store_path.with_name("run.sqlite.lock")
    lock.symlink_to(victim)
    with pytest.raises(ValueError, match="not a lock file of sp2dpo"):
        only_writer(store_path).__enter__()
    lock.unlink()
    for ending in ("-wal", "-shm", "-journal"):
        beside = store_path.with_name(store_path.name + ending)
        beside.symlink_to(victim)
        with pytest.raises(ValueError, match="not a file of SQLite's own"):
            Store(store_path)
        beside.unlink()
        os.mkfifo(beside)
        with pytest.raises(ValueError, match="not a file of SQLite's own"):
            Store(store_path, write=True)
        beside.unlink()
    # The end of a rollback journal that is one of several: SQLite would delete the file it names.
    journal = store_path.with_name("run.sqlite-journal")
    name = os.fsencode(victim)
    journal.write_bytes(
        bytes.fromhex("d9d505f920a163d7") + bytes(504) + bytes(4) + name
        + len(name).to_bytes(4, "big") + (sum(name)).to_bytes(4, "big")
        + bytes.fromhex("d9d505f920a163d7")
    )  # fmt: skip
    with pytest.raises(ValueError, match="which SQLite would delete"):
        Store(store_path, write=True)
    assert victim.read_text() == "precious"


def test_what_a_killed_transaction_left_is_rolled_back(store_path):
    # Of a store in SQLite's older mode, as other programs may set it.
    script = (
        "import sqlite3, sys, os\n"
        "database = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "database.execute('PRAGMA journal_mode = DELETE')\n"
        "database.executescript('PRAGMA cache_size = 1; BEGIN; UPDATE replies SET magnitude = 1;'\n"
        "    'CREATE TABLE t AS SELECT randomblob(9000) FROM replies')\n"
        "os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", script, store_path], check=False)
    assert store_path.with_name("run.sqlite-journal").stat().st_size
    with Store(store_path, write=True) as store:
        assert set(store.annotations().replies["magnitude"]) == {5}
