"""Merging the stores of shards: what may be put together, and what comes of it."""

import sqlite3
from contextlib import closing
from dataclasses import replace

import pytest

from sp2dpo.pairs.reading import Reading
from sp2dpo.pairs.sources import Source
from sp2dpo.replacement import _machine
from sp2dpo.store.database import only_writer
from sp2dpo.store.merge import merge_stores
from sp2dpo.store.questions import SettledPair, Shard
from sp2dpo.store.store import Store
from support.harness import (
    change_store,
    fail,
    filled,
    kept_reply,
    pairs_of,
    panel_of,
    refused_reply,
    run,
    succeed,
)

VARIANTS = ("direct", "critic", "reader")


class Shards:
    """Stores of the same pairs, one for each share of them."""

    def __init__(self, folder, new_store, *, of=3, pairs=12):
        self.folder = folder
        self.out = folder / "whole.sqlite"
        self.paths, self.ids = [], []
        for index in range(of):
            store = new_store(f"shard-{index}.sqlite")
            self.ids = filled(store, pairs, "anna", "ben")
            store.questions.restrict_to_shard(Shard(index=index, total=of))
            mine = [
                pair_id for pair_id in self.ids if Shard(index=index, total=of).contains(pair_id)
            ]
            store.add_replies(
                [
                    self.entry(pair_id, t, v)
                    for pair_id in mine
                    for t in ("anna", "ben")
                    for v in VARIANTS
                ]
            )
            self.paths.append(store.path)

    def entry(self, pair_id, teacher, variant):
        digit = int(pair_id[:6], 16) + len(teacher) + len(variant)
        return kept_reply(pair_id, teacher, variant, digit % 11, digit % 7)


@pytest.fixture
def shards(tmp_path, new_store):
    return Shards(tmp_path, new_store)


def contents(path):
    with closing(sqlite3.connect(path)) as database:
        replies = database.execute("SELECT * FROM replies").fetchall()
        others = [
            database.execute(f"SELECT * FROM {table}").fetchall()
            for table in ("pairs", "source_rows", "set_aside", "teachers", "meta", "settled")
        ]
    return sorted(map(str, replies)), others


def test_a_merged_store_holds_the_replies_of_all(shards):
    output = succeed("merge", "--out", shards.out, *shards.paths)
    assert f"{shards.out}: 72 new replies of 3 stores" in output
    assert "72 asked for = 72 kept + 0 refused + 0 pending" in output
    assert "missing: shard" not in output
    with Store(shards.out) as store:
        assert store.questions.shard() is None
        assert [(r.pair_id, r.teacher, r.variant) for r in store.replies()] == sorted(
            (pair_id, teacher, variant)
            for pair_id in shards.ids
            for teacher in ("anna", "ben")
            for variant in VARIANTS
        )
        assert [row.pair for row, _ in store.corpus.rows()] == [row.pair for row in pairs_of(12)]


def test_the_order_of_the_stores_does_not_matter(shards, tmp_path):
    merge_stores(shards.out, shards.paths)
    merge_stores(tmp_path / "other.sqlite", shards.paths[::-1])
    assert contents(shards.out) == contents(tmp_path / "other.sqlite")
    with Store(shards.out) as store, Store(tmp_path / "other.sqlite") as reverse_store:
        assert store.annotations().hash == reverse_store.annotations().hash


def test_the_same_merge_again_changes_no_byte(shards):
    merge_stores(shards.out, shards.paths)
    before = shards.out.read_bytes()
    assert merge_stores(shards.out, shards.paths).added == 0
    assert shards.out.read_bytes() == before


def test_a_merge_removes_the_lock_of_one_that_was_killed_once_its_store_had_its_name(shards):
    merge_stores(shards.out, shards.paths)
    lock = shards.out.with_name(f".{shards.out.name}.0123456789abcdef.unfinished.lock")
    lock.write_bytes(_machine())
    merge_stores(shards.out, shards.paths)
    assert not lock.exists()


def test_a_merged_store_knows_how_its_pairs_were_read(tmp_path, new_store):
    source = Source(name="hand.jsonl", reading=Reading(columns={"prompt": "q"}, pairs_from="all"))
    rows = [replace(row, shape="orca: question", implicit=True) for row in pairs_of(4)]
    for index in range(2):
        store = new_store(f"read-{index}.sqlite")
        store.corpus.add(source, rows)
        store.record_panel(panel_of("anna"))
        store.questions.restrict_to_shard(Shard(index=index, total=2))
    merge_stores(tmp_path / "out.sqlite", [tmp_path / f"read-{index}.sqlite" for index in range(2)])
    with Store(tmp_path / "out.sqlite") as merged:
        assert merged.corpus.reading() == source.reading
        summary = merged.corpus.reading_summary()
        assert (summary.shapes, summary.implicit) == ({"orca: question": 4}, 4)
        assert summary.options == "--columns prompt=q --pairs-from all"


def test_a_missing_shard_is_said_and_can_be_added_later(shards):
    output = succeed("merge", "--out", shards.out, shards.paths[0], shards.paths[2])
    with Store(shards.paths[1]) as store:
        left = store.questions.pair_count() * 6
    assert "missing: shard 1/3" in output
    assert f"72 asked for = {72 - left} kept + 0 refused + {left} pending" in output
    output = succeed("merge", "--out", shards.out, shards.paths[1])
    assert f"{left} new replies of 1 store\n" in output
    assert "missing: shard" not in output
    assert merge_stores(shards.out, shards.paths).added == 0


def test_a_merged_store_may_be_merged_again(shards, tmp_path):
    two = merge_stores(tmp_path / "two.sqlite", shards.paths[:2])
    assert two.missing == (Shard(index=2, total=3),)
    three = merge_stores(shards.out, [shards.paths[2], tmp_path / "two.sqlite"])
    assert (three.added, three.missing) == (72, ())


def test_a_conflict_with_the_merged_store_names_the_shard(shards):
    merge_stores(shards.out, shards.paths)
    change_store(shards.paths[1], "UPDATE replies SET magnitude = magnitude + 1")
    error = fail("merge", "--out", shards.out, shards.paths[1])
    assert f"{shards.paths[1]}: another store holds a different reply" in error
    assert ".gathered" not in error


def test_attempts_and_settled_pairs_are_merged_too(shards, new_store):
    store = new_store("shard-0.sqlite")
    pair_id = next(i for i in shards.ids if Shard(index=0, total=3).contains(i))
    store.add_replies(
        [refused_reply(pair_id, "anna", "direct", attempt=1)],
        [SettledPair(pair_id=pair_id, replies=6, chance=0.97)],
    )
    merge_stores(shards.out, shards.paths)
    store.add_replies([], [SettledPair(pair_id=pair_id, replies=7, chance=0.99)])
    merge_stores(shards.out, shards.paths)
    with closing(sqlite3.connect(shards.out)) as database:
        assert database.execute("SELECT * FROM settled").fetchall() == [(pair_id, 7, 0.99)]
        assert database.execute("SELECT count(*) FROM replies WHERE attempt = 1").fetchone() == (1,)


def test_the_same_reply_in_two_stores_counts_once(shards, new_store):
    store = new_store("shard-1.sqlite")
    pair_id = next(i for i in shards.ids if Shard(index=0, total=3).contains(i))
    store.add_replies([shards.entry(pair_id, "anna", "direct")])
    assert merge_stores(shards.out, shards.paths).added == 72


def test_two_different_replies_to_one_request_are_named_and_nothing_is_merged(shards, new_store):
    store = new_store("shard-1.sqlite")
    pair_id = next(i for i in shards.ids if Shard(index=0, total=3).contains(i))
    different_reply = kept_reply(pair_id, "anna", "direct", 3, 3, rationale="another")
    store.add_replies([different_reply])
    error = fail("merge", "--out", shards.out, *shards.paths)
    assert f"pair {pair_id}, anna, direct, chosen-first, 0" in error
    assert not list(shards.folder.glob("*whole*"))
    merge_stores(shards.out, [shards.paths[0], shards.paths[2]])
    before = contents(shards.out)
    assert "a different reply" in fail("merge", "--out", shards.out, shards.paths[1])
    assert contents(shards.out) == before
    assert {path.name for path in shards.folder.glob("*whole*")} <= {
        "whole.sqlite", "whole.sqlite-wal", "whole.sqlite-shm",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("source", "panel", "message"),
    [
        (pairs_of(5), panel_of("anna", "ben"), 'its source is ["hand.jsonl"'),
        (pairs_of(12), panel_of("anna", "ben", variants=("direct",)), "its panel's variants is"),
        (pairs_of(12), panel_of("anna"), "its panel's teachers is"),
    ],
)
def test_stores_that_do_not_belong_together_are_refused(shards, new_store, source, panel, message):
    other_store = new_store("other.sqlite")
    other_store.corpus.add(Source(name="hand.jsonl"), source)
    other_store.record_panel(panel)
    error = fail("merge", "--out", shards.out, shards.paths[0], other_store.path)
    assert f"{other_store.path} cannot be merged with {shards.paths[0]}: {message}" in error
    assert not shards.out.exists()


WITHOUT_COVERS = "UPDATE meta SET value = json_remove(value, '$.covers') WHERE key = 'panel'"


def test_shards_of_a_full_panel_from_before_and_after_an_upgrade_are_merged(shards):
    change_store(shards.paths[1], WITHOUT_COVERS)
    merge_stores(shards.out, shards.paths)
    with Store(shards.out) as store:
        assert len(list(store.replies())) == 72


def test_shards_that_adaptive_panels_settled_by_different_rules_are_refused(shards):
    adaptive = replace(panel_of("anna", "ben"), budget="adaptive")
    for path in shards.paths:
        with Store(path, write=True) as store:
            store.record_panel(adaptive)
    change_store(shards.paths[1], WITHOUT_COVERS)
    error = fail("merge", "--out", shards.out, *shards.paths)
    assert (
        f'{shards.paths[1]} cannot be merged with {shards.paths[0]}: its panel\'s covers is "beta"'
        in error
    )


def test_another_rubric_is_refused(shards, new_store):
    from sp2dpo.panel.rubric import load_rubric

    other_store = new_store("other.sqlite")
    filled(other_store, 12, "anna", "ben", rubric=load_rubric("semantic-gap-blind"))
    assert "its rubric is" in fail("merge", "--out", shards.out, shards.paths[0], other_store.path)


def test_another_definition_of_a_teacher_is_refused(shards, new_store):
    from dataclasses import replace

    panel = panel_of("anna", "ben")
    changed = replace(panel.teachers[0], revision="abc")
    other_store = new_store("other.sqlite")
    other_store.corpus.add(Source(name="hand.jsonl"), pairs_of(12))
    other_store.record_panel(replace(panel, teachers=(changed, panel.teachers[1])))
    error = fail("merge", "--out", shards.out, shards.paths[0], other_store.path)
    assert "its teacher anna (model, revision, sampling) is" in error
    assert '"abc"' in error


def test_a_shard_that_is_being_annotated_is_refused(shards):
    with only_writer(shards.paths[1]):
        assert "shard-1.sqlite: another process" in fail(
            "merge", "--out", shards.out, *shards.paths
        )
    with only_writer(shards.out):
        assert "whole.sqlite: another process" in fail("merge", "--out", shards.out, *shards.paths)


def test_a_store_of_its_own_is_never_written_to(shards, new_store, tmp_path):
    before = contents(shards.paths[0])
    assert "both merged and the --out" in fail("merge", "--out", *shards.paths[:1], *shards.paths)
    error = fail("merge", "--out", shards.paths[0], *shards.paths[1:])
    assert "not a merged store" in error
    assert contents(shards.paths[0]) == before
    (tmp_path / "notes.sqlite").write_text("my notes")
    assert "not a store" in fail("merge", "--out", tmp_path / "notes.sqlite", *shards.paths)
    assert (tmp_path / "notes.sqlite").read_text() == "my notes"


def test_what_is_no_store_or_was_never_annotated_is_refused(shards, new_store, tmp_path):
    assert "no such store" in fail("merge", "--out", shards.out, tmp_path / "none.sqlite")
    empty = new_store("empty.sqlite")
    assert "holds no pairs" in fail("merge", "--out", shards.out, empty.path)
    empty.corpus.add(Source(name="hand.jsonl"), pairs_of(12))
    assert "nothing was annotated" in fail("merge", "--out", shards.out, empty.path)
    assert "named twice" in fail("merge", "--out", shards.out, *shards.paths[:1] * 2)
    assert run("merge", "--out", shards.out).returncode == 2
    assert not shards.out.exists()


@pytest.mark.parametrize("adopted", [False, True])
def test_a_shard_that_no_pair_falls_into_is_merged_with_the_others(tmp_path, new_store, adopted):
    shards = Shards(tmp_path, new_store, of=4, pairs=2)
    empty = next(
        i for i in range(4) if not any(Shard(index=i, total=4).contains(p) for p in shards.ids)
    )
    path = tmp_path / f"empty-{empty}.sqlite"
    with Store(path, write=True) as store:
        if adopted:
            filled(store, 2, "anna", "ben")
        else:
            store.corpus.add(Source(name="hand.jsonl"), pairs_of(2))
        store.questions.restrict_to_shard(Shard(index=empty, total=4))
    paths = [
        path if number == empty else shard_path for number, shard_path in enumerate(shards.paths)
    ]
    for number, order in enumerate(([path, *paths[:empty], *paths[empty + 1 :]], paths[::-1])):
        out = tmp_path / f"whole-{number}.sqlite"
        output = succeed("merge", "--out", out, *order)
        assert "12 asked for = 12 kept + 0 refused + 0 pending" in output
        assert "missing: shard" not in output
    assert contents(tmp_path / "whole-0.sqlite") == contents(tmp_path / "whole-1.sqlite")
    before = contents(out)
    assert "0 new replies of 1 store\n" in succeed("merge", "--out", out, path)
    assert contents(out) == before


def test_an_empty_shard_of_another_source_is_refused(shards, new_store):
    other_store = new_store("other.sqlite")
    other_store.corpus.add(Source(name="hand.jsonl"), pairs_of(5))
    error = fail("merge", "--out", shards.out, *shards.paths, other_store.path)
    assert f"{other_store.path} cannot be merged with {shards.paths[0]}: its source is" in error
    assert not shards.out.exists()
