"""Changes of a store: its pages, its schema and its cells."""

import json
import sqlite3
from contextlib import closing

from attack.tree_changes import change_tree, encode_text, write_json

_HOSTILE_SQL = (
    "DROP TABLE {table}", "DELETE FROM {table}", "ALTER TABLE {table} RENAME TO other",
    "ALTER TABLE {table} ADD COLUMN extra TEXT", "CREATE INDEX more ON {table} ({column})",
    "ALTER TABLE {table} RENAME COLUMN {column} TO other",
    "CREATE TRIGGER t AFTER INSERT ON {table} BEGIN DELETE FROM replies; END",
    "CREATE TRIGGER t AFTER INSERT ON meta BEGIN UPDATE replies SET magnitude = 1; END",
    "CREATE TRIGGER t AFTER DELETE ON settled BEGIN UPDATE replies SET magnitude = 1; END",
    "ALTER TABLE {table} RENAME TO real; CREATE VIEW {table} AS SELECT * FROM real",
    "ALTER TABLE {table} RENAME TO real; CREATE VIEW {table} AS WITH RECURSIVE n(x) AS (SELECT 1 "
    "UNION ALL SELECT x + 1 FROM n) SELECT real.* FROM n, real",
    "ALTER TABLE {table} RENAME TO real; CREATE VIEW {table} AS SELECT real.* FROM real, (WITH "
    "RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT count(*) FROM n)",
    "ALTER TABLE {table} RENAME TO real; CREATE VIEW {table} AS SELECT *, zeroblob(900000000) AS z "
    "FROM real", "CREATE VIEW v AS SELECT * FROM v2", "DROP INDEX replies_narrow",
    "CREATE TABLE sqlite_stat9 (x)", "PRAGMA user_version = 1", "PRAGMA user_version = 99",
    "PRAGMA application_id = 0", "PRAGMA journal_mode = DELETE", "VACUUM", "REINDEX", "ANALYZE",
    "PRAGMA auto_vacuum = FULL; VACUUM", "PRAGMA page_size = 512; VACUUM",
    "UPDATE {table} SET {column} = NULL", "CREATE VIRTUAL TABLE f USING fts5(x)",
    "ALTER TABLE {table} DROP COLUMN {column}", "INSERT INTO {table} SELECT * FROM {table}",
    "CREATE TABLE copy AS SELECT * FROM {table}; DROP TABLE {table}; ALTER TABLE copy RENAME TO "
    "{table}",
    "CREATE TEMP TABLE x (y)", "DELETE FROM {table} WHERE rowid % 2",
    "PRAGMA writable_schema = ON; UPDATE sqlite_master SET sql = 'nonsense' WHERE name = '{table}'",
    "PRAGMA writable_schema = ON; UPDATE sqlite_master SET rootpage = 1 WHERE name = '{table}'",
    "PRAGMA writable_schema = ON; DELETE FROM sqlite_master WHERE name = '{table}'",
    "INSERT OR REPLACE INTO meta VALUES ('x', 'y')", "CREATE TABLE other (x)",
    "UPDATE replies SET magnitude = magnitude + 1 WHERE rowid = 5",
    "UPDATE replies SET status = 'refused' WHERE rowid = 9",
    "UPDATE replies SET teacher = 'reader-z' WHERE rowid = 3",
    "UPDATE replies SET pair_id = (SELECT pair_id FROM pairs WHERE number = 2) WHERE rowid = 80",
    "DELETE FROM replies WHERE rowid = 14", "DELETE FROM pairs WHERE number = 3",
    "UPDATE pairs SET chosen = rejected, rejected = chosen WHERE number = 4",
)  # fmt: skip


def _cells(database):
    tables = {}
    for (table,) in database.execute(
        "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite%'"
    ).fetchall():
        columns = [row[1] for row in database.execute(f"PRAGMA table_info({table})")]
        count = database.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
        tables[table] = (columns, count)
    return tables


def change_database(rng, path, other=b""):
    """Change a store: its pages, its schema or its cells."""
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        tables = _cells(database)
        action = rng.choice(("sql", "cell", "cell", "cell", "pages", "pages", "header", "log"))
        if action in ("sql", "cell"):
            filled = sorted(name for name, (_, count) in tables.items() if count)
            table = rng.choice(filled)
            column = rng.choice(tables[table][0])
            if action == "sql":
                statement = rng.choice(_HOSTILE_SQL).format(table=table, column=f'"{column}"')
                try:
                    database.executescript(statement)
                    database.commit()
                except sqlite3.Error as error:
                    return f"sql: {statement}: {error}"
                return f"sql: {statement}"
            what = _change_cell(rng, database, table, column, tables[table][1])
            database.commit()
            return f"sql: {what}"
    data = bytearray(path.read_bytes())
    pages = len(data) // 4096
    if action == "header":
        place = rng.randrange(100)
        data[place] = rng.randrange(256)
        path.write_bytes(data)
        return f"header: byte {place}"
    if action == "log":
        log = path.with_name(f"{path.name}-wal")
        log.write_bytes(
            rng.choice((b"", rng.randbytes(4000), bytes(data[:9000]), b"7\x7f\x06\x82" * 99))
        )
        return "log: junk"
    first, second = rng.randrange(pages) * 4096, rng.randrange(pages) * 4096
    kind = rng.choice(("swap", "zero", "copy", "noise", "byte", "byte", "text", "cut"))
    one, two = bytes(data[first : first + 4096]), bytes(data[second : second + 4096])
    if kind == "swap":
        data[first : first + 4096], data[second : second + 4096] = two, one
    elif kind == "zero":
        data[first : first + 4096] = bytes(4096)
    elif kind == "copy":
        data[first : first + 4096] = two
    elif kind == "noise":
        data[first : first + 4096] = rng.randbytes(4096)
    elif kind == "byte":
        for _ in range(rng.choice((1, 1, 5))):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == "text":  # letters and digits alone: a row that is still well-formed
        places = [place for place, byte in enumerate(data) if chr(byte).isalnum() and byte < 128]
        data[rng.choice(places)] = ord(rng.choice("0123456789abcxyz"))
    else:
        del data[rng.randrange(pages) * 4096 :]
    path.write_bytes(data)
    return f"pages: {kind} {first // 4096}"


def _change_cell(rng, database, table, column, count):
    at = rng.randrange(count)
    key = f'"{column}"'
    old = database.execute(f"SELECT {key} FROM {table} LIMIT 1 OFFSET {at}").fetchone()[0]
    action = rng.randrange(6)
    if action == 0 and isinstance(old, str) and old[:1] in ("{", "["):
        tree, what = change_tree(rng, json.loads(old))
        new = encode_text(write_json(tree))
    else:
        new = rng.choice(
            (None, 0, -1, 3, 2**63 - 1, 1.5, float("inf"), 1e308, b"\xff\xfe", b"", "", "x", "\0x",
             "9",
             "x" * 2_000_000, b"\xed\xa0\x80", str(old), "{}", "[]", "null", "kept", "refused")
        )  # fmt: skip
        what = repr(new)[:30]
    as_text = (isinstance(new, bytes) and rng.randrange(2) == 0) or action == 0
    value = "CAST(? AS TEXT)" if as_text and isinstance(new, bytes) else "?"
    keys = [row[1] for row in database.execute(f"PRAGMA table_info({table})") if row[5]]
    values = database.execute(
        f"SELECT {', '.join(_quote(name) for name in keys)} FROM {table} LIMIT 1 OFFSET {at}"
    ).fetchone()
    where = " AND ".join(f"{_quote(name)} IS ?" for name in keys)
    try:
        database.execute("PRAGMA ignore_check_constraints = ON")
        database.execute(f"UPDATE {table} SET {key} = {value} WHERE {where}", (new, *values))
    except (sqlite3.Error, OverflowError) as error:
        return f"{table}.{column} row {at}: {what}: {error}"
    return f"{table}.{column} row {at}: {what}"


def _quote(name):
    return f'"{name}"'
