"""Damage that SQLite does not know of is found, named, and can be repaired."""

import random
import sqlite3
from contextlib import closing

import pytest

from sp2dpo.betas.compute import schedule_store
from sp2dpo.report.status import collect_status
from sp2dpo.store.merge import merge_stores
from sp2dpo.store.schema import DIGESTS
from sp2dpo.store.store import Store
from support.harness import (
    SCHEDULE,
    change_store,
    fail,
    filled,
    kept_reply,
    panel_of,
    refused_reply,
)

VARIANTS = ("direct", "critic", "reader")


def make_store(path, count=6):
    with Store(path, write=True) as store:
        ids = filled(store, count, "a")
        store.add_replies([kept_reply(ids[0], "a", "direct", 3, 8)])
        store.add_replies(
            [kept_reply(pair_id, "a", variant, number % 11, 5, expected=(number / 7, 0.1))
             for number, pair_id in enumerate(ids) for variant in VARIANTS[number == 0:]]
        )  # fmt: skip
    return path


@pytest.fixture
def store_path(tmp_path):
    return make_store(tmp_path / "run.sqlite")


def execute(path, *statements):
    with closing(sqlite3.connect(path)) as database, database:
        for statement in statements:
            database.execute(statement)


def digest_count(path):
    with closing(sqlite3.connect(path)) as database:
        return database.execute("SELECT count(*) FROM reply_digests").fetchone()[0]


CHANGES = {
    "a text": "UPDATE replies SET raw = raw || ' ' WHERE rowid = 7",
    "a zero byte in a text": "UPDATE replies SET raw = raw || char(0) || 'x' WHERE rowid = 7",
    "a null in place of a text": "UPDATE replies SET rationale = NULL WHERE rowid = 7",
    "a score": "UPDATE replies SET magnitude = magnitude + 1 WHERE rowid = 7",
    "a category": "UPDATE replies SET category = 'helpfulness' WHERE rowid = 7",
    "an expectation": "UPDATE replies SET expected_magnitude = 0.5 WHERE rowid = 7",
    "a time": "UPDATE replies SET arrived = arrived + 1 WHERE rowid = 7",
    "a key": "UPDATE replies SET attempt = 3 WHERE rowid = 7",
    "a status": "UPDATE replies SET status = 'refused', reason = 'empty' WHERE rowid = 7",
    "a count of tokens": "UPDATE replies SET prompt_tokens = 1000000 WHERE rowid = 7",
}  # fmt: skip


@pytest.mark.parametrize("statement", CHANGES.values(), ids=CHANGES)
def test_a_reply_that_was_changed_is_named_with_what_to_do(store_path, statement):
    execute(store_path, statement)
    (problem,) = collect_status(store_path).integrity
    assert problem.startswith("the reply to pair ")
    assert problem.endswith("is not what was stored")
    for use in (
        lambda: schedule_store(store_path, SCHEDULE),
        lambda: Store(store_path, write=True),
        lambda: merge_stores(store_path.with_name("out.sqlite"), [store_path]),
    ):
        with pytest.raises(ValueError, match="DELETE FROM replies WHERE rowid = 7") as raised:
            use()
        assert problem in str(raised.value)
    assert "or delete the reply with" in fail("status", "--store", store_path)
    # What the message advises:
    execute(store_path, "DELETE FROM replies WHERE rowid = 7")
    status = collect_status(store_path)
    assert (status.integrity, status.total.kept, status.total.pending) == ([], 17, 1)
    with Store(store_path, write=True) as store:
        assert digest_count(store_path) == 17
        store.annotations()


OTHER = {
    "the text of a pair": (
        "UPDATE pairs SET chosen = replace(chosen, 'a', 'b')", "the table pairs is not"),
    "the source's own id": (
        "UPDATE source_rows SET source_id = 'q99' WHERE row = 2", "source_rows is not"),
    "a model": ("UPDATE teachers SET model = 'other'", "the table teachers is not"),
    "a row that was set aside": ("INSERT INTO set_aside VALUES (9, 'x', 'y')", "set_aside"),
    "the rubric": (
        "UPDATE meta SET value = replace(value, 'response', 'answer') WHERE key = 'rubric'",
        "the record 'rubric' is not"),
    "the panel": (
        "UPDATE meta SET value = replace(value, '\"retries\": 2', '\"retries\": 3') "
        "WHERE key = 'panel'", "the record of its panel is damaged"),
    "a replies' teacher": ("DELETE FROM teachers", "18 replies are of teachers that it lacks"),
    "another type": (
        "UPDATE pairs SET pair_id = CAST(pair_id AS BLOB)", "6 rows of the table pairs have a"),
}  # fmt: skip


@pytest.mark.parametrize(("statement", "problem"), OTHER.values(), ids=OTHER)
def test_other_contents_that_were_changed_are_named(store_path, statement, problem):
    execute(store_path, statement)
    assert problem in " ".join(collect_status(store_path).integrity)
    with pytest.raises(ValueError, match=r"run\.sqlite is damaged"):
        schedule_store(store_path, SCHEDULE)


def test_a_damaged_record_of_the_panel_is_written_again_by_annotating(store_path):
    execute(store_path, "UPDATE meta SET value = '{}' WHERE key = 'panel'")
    with Store(store_path, write=True) as store:
        store.record_panel(panel_of("a"))
    assert collect_status(store_path).integrity == []


def test_a_store_of_an_earlier_release_is_read_and_gets_digests_when_it_is_written(store_path):
    execute(store_path, "DROP TABLE reply_digests", "DROP TABLE digests")
    before = store_path.read_bytes()
    assert collect_status(store_path).integrity == []
    betas = schedule_store(store_path, SCHEDULE).betas
    assert store_path.read_bytes() == before  # reading changes nothing
    Store(store_path, write=True).__exit__()
    assert digest_count(store_path) == 18
    assert schedule_store(store_path, SCHEDULE).betas.table.equals(betas.table)
    execute(store_path, "UPDATE replies SET magnitude = 1 WHERE rowid = 3")
    assert len(collect_status(store_path).integrity) == 1


def test_replies_that_an_earlier_release_added_get_digests_too(store_path):
    execute(store_path, "DELETE FROM reply_digests WHERE number > 12")
    assert collect_status(store_path).integrity == []
    Store(store_path, write=True).__exit__()
    assert digest_count(store_path) == 18


def test_digests_follow_replies_that_are_read_again_or_merged(tmp_path):
    paths = [make_store(tmp_path / f"{name}.sqlite", 2) for name in "ab"]
    change_store(
        paths[1],
        "UPDATE replies SET status = 'refused', reason = 'schema', category = NULL, "
        "magnitude = NULL, confidence = NULL WHERE rowid = 2",
    )
    with Store(paths[1], write=True) as store:
        store.add_replies([refused_reply(next(iter(store.replies())).pair_id, "a", "x")])
    out = tmp_path / "out.sqlite"
    for order in (paths[1:], paths, paths[::-1]):
        merge_stores(out, order)
        assert collect_status(out).integrity == []
        assert digest_count(out) == 7


def test_a_store_that_an_earlier_release_merged_takes_another_one(tmp_path):
    paths = [make_store(tmp_path / f"{name}.sqlite", 2) for name in "ab"]
    for record in ("DELETE FROM meta WHERE key = 'merged_shards'",
                   "UPDATE meta SET value = '[]' WHERE key = 'merged_shards'"):  # fmt: skip
        out = tmp_path / "out.sqlite"
        out.unlink(missing_ok=True)
        merge_stores(out, paths[:1])
        execute(out, "DROP TABLE reply_digests", "DROP TABLE digests", record)
        merge_stores(out, paths[1:])
        assert collect_status(out).integrity == []
        assert digest_count(out) == 6


def test_no_flipped_bit_changes_a_result_without_a_word(tmp_path):
    path = make_store(tmp_path / "run.sqlite")
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    content = path.read_bytes()
    betas, status = schedule_store(path, SCHEDULE).betas.table, collect_status(path)
    copy, outcomes = tmp_path / "copy.sqlite", []
    for seed in range(60):
        chance, damaged = random.Random(seed), bytearray(content)
        for _ in range(chance.choice((1, 4))):
            # Most of a small file is empty space, in which a flipped bit has no effect.
            place = chance.randrange(100, len(content))
            while not content[place]:
                place = chance.randrange(100, len(content))
            damaged[place] ^= 1 << chance.randrange(8)
        copy.write_bytes(damaged)
        try:
            same = schedule_store(copy, SCHEDULE).betas.table.equals(betas)
            same &= collect_status(copy).total == status.total
        except (ValueError, sqlite3.DatabaseError):
            same = None
        outcomes.append(same)
        for ending in ("", "-wal", "-shm"):
            copy.with_name(copy.name + ending).unlink(missing_ok=True)
    assert False not in outcomes
    assert outcomes.count(None) > 30


def test_the_statements_of_the_digests_are_those_of_the_schema():
    assert DIGESTS.count(";") == 2  # `complete_digests` splits them there
