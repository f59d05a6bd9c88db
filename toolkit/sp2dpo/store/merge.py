"""Merge several stores, such as the shards of a run, into one."""

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sp2dpo.replacement import atomic_write, sweep_leftovers
from sp2dpo.store.counts import ReplyCounts, count_replies, load_recorded_panel
from sp2dpo.store.database import connect, only_writer, read_meta, transaction, write_meta
from sp2dpo.store.digests import (
    complete_digests,
    create_digest_tables,
    forget_reply_digests,
    record_table_digests,
)
from sp2dpo.store.integrity import check_store, damage_message
from sp2dpo.store.questions import Shard
from sp2dpo.store.records import COLUMNS
from sp2dpo.store.store import Store
from sp2dpo.text import shorten

_KEY = COLUMNS[:5]
_SHARDS = "merged_shards"
"""Key in `meta` of the shards whose replies a merged store has."""
# The same reply may have arrived at another time; rubrics are compared once for each store.
_CONTENT = [name for name in COLUMNS if name not in (*_KEY, "rubric", "seconds", "arrived")]
_SAME_KEY = " AND ".join(f'ours."{name}" = theirs."{name}"' for name in _KEY)
# IS NOT, because `!=` is never true for a null.
_DIFFERS = " OR ".join(f'ours."{name}" IS NOT theirs."{name}"' for name in _CONTENT)
# A reply that was read again in one store and is still refused in another is the same reply.
_REPLY = ("raw", "finish_reason", "model", "prompt_tokens", "completion_tokens", "cached_tokens")
_READ_AGAIN = "ours.status IS NOT theirs.status AND " + " AND ".join(
    f'ours."{name}" IS theirs."{name}"' for name in _REPLY
)
_READING = [name for name in _CONTENT if name not in _REPLY]
_COPIED = ("pairs", "source_rows", "set_aside")
# Without `shard`: a merged store is for all pairs.
_META = (
    "source_digest", "source_name", "source_revision", "source_license", "source_reading",
    "source_summary", "rubric_hash", "rubric", "panel", "marked_pairs",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class MergeCounts:
    """Result of a merge.

    Attributes:
        added: Number of replies that the merged store did not contain before.
        missing: If the merged stores are shards, all other shards of the same run, whose replies
            the merged store lacks.
        teachers: Counts of replies in the merged store, for each teacher of its panel.
    """

    added: int
    missing: tuple[Shard, ...]
    teachers: tuple[ReplyCounts, ...]


def merge_stores(out: str | Path, shards: Sequence[str | Path]) -> MergeCounts:
    """Merge the replies of several stores into one, atomically.

    The order of the stores does not affect betas. Merging the same stores again changes nothing,
    and more stores can be merged into `out` later.

    Args:
        out: Store to create, or the result of an earlier merge.
        shards: Stores with the same source and the same panel. A store without replies does not
            need a panel.

    Raises:
        ValueError: If the stores differ in source, rubric, teachers or panel, two of them have
            different replies to the same request, one is being annotated, or `out` is not the
            result of a merge.
        OSError: If a store does not exist, or `out` cannot be written.
    """
    out, shards = Path(out), [Path(shard) for shard in shards]
    with ExitStack() as locks:
        # First, because a store that is named twice would be reported as locked by another process.
        _check_names(out, shards)
        # A shard that is being annotated would give another result the next time.
        locks.enter_context(only_writer(out))
        for path in shards:
            locks.enter_context(only_writer(path))
        there = out.exists()
        _check_compatible([*([out] if there else []), *shards])
        if not there:
            with atomic_write(out) as unfinished:
                added = _gather(unfinished, shards)
        else:
            _check_merged(out)
            # Gathered in another file first, so that one transaction adds all or nothing to `out`.
            with _set_aside(out) as gathered:
                _gather(gathered, shards)
                added = _add(out, gathered, shards)
    with Store(out) as store:
        teachers = tuple(count_replies(store, load_recorded_panel(store)))
    return MergeCounts(added=added, missing=_missing_shards(out), teachers=teachers)


def _check_names(out: Path, shards: Sequence[Path]) -> None:
    seen: dict[Path, Path] = {out.resolve(): out}
    for path in shards:
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such store")
        if path.resolve() == out.resolve():
            raise ValueError(f"{path} is both merged and the --out: name another --out")
        if path.resolve() in seen:
            raise ValueError(f"{path} is named twice")
        seen[path.resolve()] = path


def _check_merged(out: Path) -> None:
    with closing(connect(out, write=False)) as database:
        if read_meta(database, "merged") is None:
            raise ValueError(f"{out} is not a merged store: name another --out")


def _check_compatible(paths: Sequence[Path]) -> None:
    """Refuse stores of different sources, rubrics, teachers or panels."""
    first, expected = None, {}
    for path in paths:
        if problems := check_store(path):
            raise ValueError(damage_message(path, problems))
        with Store(path) as store, closing(connect(path, write=False)) as database:
            properties = _shared_properties(store, database)
        if first is None:
            first, expected = path, properties
        for what, value in properties.items():
            # A store without replies has only a source, so a later one may be the first with a
            # property.
            first_value = expected.setdefault(what, value)
            if first_value != value:
                raise ValueError(
                    f"{path} cannot be merged with {first}: its {what} is "
                    f"{_format_value(value)}, the other's "
                    f"is {_format_value(first_value)}"
                )
    if "rubric" not in expected:
        raise ValueError(f"{first}: nothing was annotated yet; run `sp2dpo annotate` first")


def _shared_properties(store: Store, database: sqlite3.Connection) -> dict[str, Any]:
    """Return the properties that all merged stores must share, by their names in messages."""
    source = store.corpus.source()
    if source is None:
        raise ValueError(f"{store.path}: holds no pairs")
    digest = (read_meta(database, "source_digest") or "")[:12]
    properties: dict[str, Any] = {"source": [source.name, digest]}
    if read_meta(database, "panel") is None and not store.teachers():
        return properties  # an empty shard, or one not annotated yet
    panel = store.panel()
    properties["rubric"] = [store.rubric().name, store.rubric().hash[:12]]
    teachers = {teacher.name for teacher in (*panel.teachers, *store.teachers())}
    # `sampling` is compared as text, which `record_panel` writes with sorted keys.
    for name, *values in database.execute("SELECT * FROM teachers ORDER BY name"):
        if name in teachers:
            properties[f"teacher {name} (model, revision, sampling)"] = values
    for key, value in asdict(panel).items():
        # A full panel never uses them, and its file cannot set them; their defaults may differ
        # between versions.
        if panel.budget == "adaptive" or key not in ("tolerance", "covers"):
            properties[f"panel's {key}"] = value
    return properties


def _format_value(value: Any) -> str:
    return shorten(json.dumps(value, ensure_ascii=False))


@contextmanager
def _set_aside(out: Path) -> Iterator[Path]:
    """Yield the path of a temporary store, which is removed after the block."""
    path = out.with_name(f".{out.name}.gathered")
    # Left by processes that were killed: in this block, or after `atomic_write` has renamed `out`.
    _remove(path)
    sweep_leftovers(out.resolve().parent)
    try:
        yield path
    finally:
        _remove(path)


def _remove(path: Path) -> None:
    for ending in ("", "-wal", "-shm", "-journal"):
        path.with_name(path.name + ending).unlink(missing_ok=True)


def _gather(path: Path, shards: Sequence[Path]) -> int:
    """Create a store from several and return its number of replies."""
    with closing(connect(path, write=True, attach=True)) as database:
        # Safe writes are slow and not needed here: an incomplete file is never used.
        database.execute("PRAGMA journal_mode = OFF")
        database.execute("PRAGMA synchronous = OFF")
        for shard in shards:
            # Attached before the transaction begins, because SQLite cannot detach inside one.
            with _attach(database, shard), transaction(database):
                if read_meta(database, "merged") is None:  # the first; all have the same pairs
                    for table in _COPIED:
                        database.execute(f"INSERT INTO main.{table} SELECT * FROM theirs.{table}")
                    write_meta(database, "merged", "yes")
                _insert(database, str(shard))
        with transaction(database):
            complete_digests(database)
        # The file records the WAL mode, in which others can read while somebody writes.
        database.execute("PRAGMA synchronous = FULL")
        database.execute("PRAGMA journal_mode = WAL")
        return _replies(database)


def _add(out: Path, gathered: Path, shards: Sequence[Path]) -> int:
    """Add the replies of shards, gathered in one store, to another; return how many are new."""
    with (
        closing(connect(out, write=True, attach=True)) as database,
        _attach(database, gathered),
        transaction(database),
    ):
        before = _replies(database)
        create_digest_tables(database)  # `write_meta` needs them, and an earlier release had none
        if read_meta(database, _SHARDS) is None:  # merged by an earlier release: not recorded
            write_meta(database, _SHARDS, json.dumps([""]))
        _insert(database, ", ".join(map(str, shards)))
        complete_digests(database)
        record_table_digests(database, "teachers")
        return _replies(database) - before


def _replies(database: sqlite3.Connection) -> int:
    return database.execute("SELECT count(*) FROM main.replies").fetchone()[0]


@contextmanager
def _attach(database: sqlite3.Connection, path: Path) -> Iterator[None]:
    """Attach another store as `theirs`."""
    database.execute("ATTACH ? AS theirs", (f"{path.absolute().as_uri()}?mode=ro",))
    try:
        yield
    finally:
        database.execute("DETACH theirs")


def _insert(database: sqlite3.Connection, name: str) -> None:
    """Insert the replies of the attached store, and shared properties that are still missing."""
    conflict = database.execute(
        'SELECT ours.pair_id, ours.teacher, ours.variant, ours."order", ours.attempt '
        "FROM theirs.replies theirs JOIN main.replies ours "
        f"ON {_SAME_KEY} WHERE ({_DIFFERS}) AND NOT ({_READ_AGAIN}) LIMIT 1"
    ).fetchone()
    if conflict is not None:
        request = ", ".join(map(str, conflict[1:]))
        raise ValueError(
            f"{name}: another store holds a different reply to pair {conflict[0]}, {request}; one "
            "request has one reply: leave one of the two stores out, or run `sp2dpo annotate "
            "--reread` on both first if one has read its replies again"
        )
    # From the first store that has them: `_check_compatible` has compared the rubric, the panel and
    # the source.
    for key in _META:
        database.execute(
            "INSERT OR IGNORE INTO main.meta SELECT * FROM theirs.meta WHERE key = ?", (key,)
        )
    _record_shards(database)
    names = ", ".join(f'"{name}"' for name in COLUMNS)
    # A store may also define teachers that were on an earlier panel and never replied.
    database.execute(
        "INSERT OR IGNORE INTO main.teachers SELECT * FROM theirs.teachers WHERE name IN "
        "(SELECT json_extract(each.value, '$.name') FROM theirs.meta AS panel, "
        "json_each(panel.value, '$.teachers') AS each WHERE panel.key = 'panel') "
        "OR EXISTS (SELECT 1 FROM theirs.replies WHERE teacher = name)"
    )
    read = ", ".join(f'"{name}" = theirs."{name}"' for name in _READING)
    updated = database.execute(
        f"UPDATE main.replies AS ours SET {read} FROM theirs.replies AS theirs "
        f"WHERE {_SAME_KEY} AND ours.status = 'refused' AND theirs.status = 'kept'"
    )
    if updated.rowcount:  # all are written again, as the store was found sound
        forget_reply_digests(database, "true", ())
    # What is ignored is equal to the stored reply, as checked above.
    database.execute(
        f"INSERT OR IGNORE INTO main.replies ({names}) SELECT {names} FROM theirs.replies"
    )
    # The same row wins in whatever order stores are merged. Without `WHERE true`, SQLite would take
    # ON for a part of the FROM clause.
    database.execute(
        "INSERT INTO main.settled SELECT * FROM theirs.settled WHERE true ON CONFLICT DO UPDATE "
        "SET replies = excluded.replies, chance = excluded.chance "
        "WHERE (excluded.replies, excluded.chance) > (replies, chance)"
    )


def _record_shards(database: sqlite3.Connection) -> None:
    """Record the shard of the attached store, or the shards that were merged into it."""
    theirs = database.execute("SELECT value FROM theirs.meta WHERE key = ?", (_SHARDS,)).fetchone()
    shard = database.execute("SELECT value FROM theirs.meta WHERE key = 'shard'").fetchone()
    # An empty text stands for a store that is not a shard.
    merged = json.loads(theirs[0]) if theirs else [shard[0] if shard else ""]
    recorded = read_meta(database, _SHARDS)
    merged = json.dumps(sorted({*merged, *json.loads(recorded or "[]")}))
    if merged != recorded:
        write_meta(database, _SHARDS, merged)


def _missing_shards(out: Path) -> tuple[Shard, ...]:
    with closing(connect(out, write=False)) as database:
        merged = json.loads(read_meta(database, _SHARDS) or "[]")
    present = [Shard.parse(text) for text in merged if text]
    counts = {shard.total for shard in present}
    # If a store is not a shard, or the numbers of shards differ, it is unknown what is missing.
    if "" in merged or len(counts) != 1:
        return ()
    (total,) = counts
    seen = {shard.index for shard in present}
    return tuple(Shard(index=index, total=total) for index in range(total) if index not in seen)
