"""Seeded changes of one file, in the ways that fit its kind.

Every change takes a `random.Random`, the file and the bytes of another file; it returns what it
did, in a few words.
"""

from attack.byte_changes import change_bytes, change_file
from attack.database_changes import change_database
from attack.table_changes import change_table
from attack.tree_changes import change_card, change_json, change_json_lines, change_yaml

KINDS = {
    ".json": change_json,
    ".jsonl": change_json_lines,
    ".yaml": change_yaml,
    ".md": change_card,
    ".parquet": change_table,
    ".sqlite": change_database,
    ".gz": change_bytes,
}


def change(rng, path, other):
    """Change a file in one of the ways that fit its kind; return what was done."""
    draw = rng.randrange(20)
    junk = other.read_bytes() if other.is_file() else b""
    if draw == 0:
        return change_file(rng, path, junk)
    if draw < 8 and path.suffix != ".sqlite":
        return change_bytes(rng, path, junk)
    return KINDS[path.suffix](rng, path, junk)
