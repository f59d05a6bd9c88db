"""The store: what goes in comes out, and nothing else goes in."""

import sqlite3
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from sp2dpo.pairs.pair import Pair
from sp2dpo.pairs.sources import SetAside, Source, SourceRow
from sp2dpo.store.store import Store
from support.harness import filled, kept_reply, pairs_of, panel_of, refused_reply

HAND = Source(name="hand.jsonl")


def test_a_pair_comes_back_as_it_went_in(new_store):
    pair = Pair(
        prompt=({"role": "system", "content": "Be brief. "}, {"role": "user", "content": "é\0\n"}),
        chosen=(
            {"role": "assistant", "content": None, "tool_calls": [{"name": "f", "arguments": {}}]},
        ),
        rejected=({"role": "assistant", "content": "No. 日本 \U0001f600"},),
        tools=({"name": "f"},),
    )
    row = SourceRow(row=1, pair=pair, source_id="mine", columns={"score": 0.5, "tags": ["a"]})
    store = new_store()
    store.corpus.add(HAND, [row])
    assert store.corpus.pair(pair.id) == pair
    assert list(store.corpus.rows()) == [(row, pair.id)]


def test_a_pair_is_found_by_its_first_digits_and_by_its_source_id(new_store):
    store = new_store()
    first, second = filled(store, 2, "a")
    assert store.corpus.pair(first[:10]).id == first
    assert store.corpus.pair("q2").id == second
    for unknown in ("q3", "", first[:7], "f" * 64):
        with pytest.raises(ValueError, match=f"no pair is called '{unknown}'"):
            store.corpus.pair(unknown)


def test_a_name_that_two_pairs_answer_to_is_refused(new_store):
    store = new_store()
    first, second = pairs_of(2)
    meant = SourceRow(row=1, pair=first.pair, source_id=second.pair.id[:8])
    store.corpus.add(HAND, [meant, SourceRow(row=2, pair=second.pair, source_id="7")])
    assert store.corpus.pair("7").id == second.pair.id
    with pytest.raises(ValueError, match="several pairs are called"):
        store.corpus.pair(second.pair.id[:8])


def test_the_rows_of_a_source_add_up(new_store):
    store = new_store()
    good = pairs_of(2)
    double = SourceRow(row=3, pair=good[0].pair, source_id=None)
    bad = SetAside(row=4, reason="empty chosen", raw="{}")
    store.corpus.add(HAND, [*good, double, bad])
    source = store.corpus.source()
    assert (source.rows, source.usable, source.pairs) == (4, 3, 2)
    assert source.set_aside == {"empty chosen": 1}
    assert list(store.corpus.set_aside()) == [bad]


def test_the_same_source_again_changes_nothing(new_store):
    store = new_store()
    store.corpus.add(HAND, pairs_of(3))
    store.corpus.add(HAND, pairs_of(3))
    assert store.corpus.source().rows == 3


def test_another_source_is_refused_and_leaves_the_store_as_it_was(new_store):
    store = new_store()
    store.corpus.add(HAND, pairs_of(3))
    with pytest.raises(ValueError, match=r"contains the pairs of hand\.jsonl"):
        store.corpus.add(Source(name="other.jsonl"), pairs_of(4))
    assert store.corpus.source().rows == 3


def test_a_source_that_breaks_off_leaves_no_pair(new_store):
    def breaks():
        yield from pairs_of(2)
        raise ValueError("row 3 is not JSON")

    store = new_store()
    with pytest.raises(ValueError, match="row 3"):
        store.corpus.add(HAND, breaks())
    assert store.corpus.source() is None
    assert store.corpus.pair_ids() == []


def test_a_key_is_stored_once(new_store):
    store = new_store()
    (pair_id,) = filled(store, 1, "a")
    store.add_replies([kept_reply(pair_id, "a", "direct", 5, 5)])
    with pytest.raises(sqlite3.IntegrityError):
        store.add_replies(
            [kept_reply(pair_id, "a", "reader", 5, 5), kept_reply(pair_id, "a", "direct", 9, 9)]
        )
    assert store.counts("a", ("direct", "reader")) == {"kept": 1}  # the whole batch fell back


def test_refusals_are_counted_by_reason(new_store):
    store = new_store()
    first, second = filled(store, 2, "a")
    store.add_replies([refused_reply(pair_id, "a", "direct") for pair_id in (first, second)])
    store.add_replies([kept_reply(first, "a", "critic", 5, 5)])
    assert store.counts("a", ("direct", "critic")) == {"empty": 2, "kept": 1}
    assert store.counts("a", ("critic",)) == {"kept": 1}


def test_the_last_attempt_counts_unless_one_was_kept(new_store):
    store = new_store()
    first, second, third = filled(store, 3, "a")
    store.add_replies([refused_reply(pair_id, "a", "direct") for pair_id in (first, second, third)])
    again = [refused_reply(first, "a", "direct", attempt=1, reason="length")]
    again += [
        replace(kept_reply(second, "a", "direct", 5, 5), key=replace(again[0].key, pair_id=second))
    ]
    store.add_replies(again)
    assert store.counts("a", ("direct",)) == {"empty": 1, "kept": 1, "length": 1}


def test_the_hash_of_annotations_depends_on_what_they_say_and_nothing_else(new_store):
    first, second, changed = new_store("1.sqlite"), new_store("2.sqlite"), new_store("3.sqlite")
    for store in (first, second, changed):
        ids = filled(store, 2, "a")
    replies = [kept_reply(ids[0], "a", "direct", 5, 5), kept_reply(ids[1], "a", "critic", 6, 7)]
    first.add_replies(replies)
    second.add_replies(replies[::-1])
    changed.add_replies([replies[0], kept_reply(ids[1], "a", "critic", 6, 8)])
    assert first.annotations().hash == second.annotations().hash
    assert first.annotations().hash != changed.annotations().hash


def test_a_second_teacher_may_join_later(new_store):
    store = new_store()
    (pair_id,) = filled(store, 1, "a")
    store.record_panel(panel_of("b"))
    assert store.teachers() == []  # nobody has replied yet
    store.add_replies(
        [kept_reply(pair_id, "b", "direct", 5, 5), kept_reply(pair_id, "a", "direct", 5, 5)]
    )
    assert [teacher.name for teacher in store.teachers()] == ["a", "b"]


def test_a_teacher_may_change_until_its_first_reply(new_store):
    store = new_store()
    (pair_id,) = filled(store, 1, "a")
    (teacher,) = panel_of("a").teachers
    changed = replace(panel_of("a"), teachers=(replace(teacher, model="another"),))
    store.record_panel(changed)
    store.add_replies([kept_reply(pair_id, "a", "direct", 5, 5)])
    assert store.teachers()[0].model == "another"
    with pytest.raises(ValueError, match="has the teacher a with model another"):
        store.record_panel(panel_of("a"))


def test_what_is_read_in_a_snapshot_is_of_one_moment(new_store, tmp_path):
    store = new_store("run.sqlite")
    first, second = filled(store, 2, "a")
    store.add_replies([kept_reply(first, "a", "direct", 5, 5)])
    with Store(tmp_path / "run.sqlite") as reader, reader.snapshot():
        assert len(list(reader.replies())) == 1
        store.add_replies([kept_reply(second, "a", "direct", 5, 5)])
        assert len(list(reader.replies())) == 1
    assert len(list(store.replies())) == 2


def test_a_store_is_read_where_nobody_can_write():
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "run.sqlite"
        with Store(path, write=True) as store:
            (pair_id,) = filled(store, 1, "a")
            store.add_replies([kept_reply(pair_id, "a", "direct", 5, 5)])
        script = (
            "import os, sys; from pathlib import Path; from sp2dpo.store.store import Store\n"
            "os.setuid(65534) if os.getuid() == 0 else None\n"
            "with Store(Path(sys.argv[1])) as store: print(len(list(store.replies())))"
        )
        path.chmod(0o444)
        path.parent.chmod(0o555)
        command = [sys.executable, "-c", script, path]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        path.parent.chmod(0o755)
    assert result.stdout.strip() == "1", result.stderr


def test_files_that_are_no_store_are_refused_and_left_alone(tmp_path):
    text = tmp_path / "text.sqlite"
    text.write_text("Dear diary, this is no database at all. " * 20)
    foreign = tmp_path / "foreign.sqlite"
    database = sqlite3.connect(foreign)
    database.execute("CREATE TABLE mine (x)")
    database.close()
    empty = tmp_path / "empty.sqlite"
    empty.touch()
    for path in (text, foreign, empty):
        before = path.read_bytes()
        with pytest.raises(ValueError, match="not a store of this toolkit"):
            Store(path)
        assert path.read_bytes() == before
    with pytest.raises(FileNotFoundError, match="no such store"):
        Store(tmp_path / "nowhere.sqlite")
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        Store(tmp_path / "no" / "folder.sqlite", write=True)


def test_a_store_of_another_format_is_refused(new_store, tmp_path):
    new_store("run.sqlite")
    database = sqlite3.connect(tmp_path / "run.sqlite")
    database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(ValueError, match="store format 99"):
        Store(tmp_path / "run.sqlite")
