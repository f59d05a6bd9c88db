"""What is still to be asked: it shrinks by what is stored, and the numbers add up."""

from dataclasses import replace

import pytest

from sp2dpo.annotation.run import annotate_pairs
from sp2dpo.panel.rubric import load_rubric
from sp2dpo.store.counts import count_replies
from sp2dpo.store.questions import QuestionPlan, SettledPair, Shard
from sp2dpo.store.store import Store
from support.harness import change_store, filled, kept_reply, panel_of, refused_reply

VARIANTS = ("direct", "critic", "reader")


def pending(store, teacher, *, after=0, limit=10, retries=0, again=False):
    plan = QuestionPlan(
        teacher=teacher,
        variants=VARIANTS,
        rubric=store.rubric(),
        retries=retries,
        again=again,
    )
    return [
        (
            job.pair.id,
            {
                question.key.variant: (question.key.attempt, question.last)
                for question in job.questions
            },
        )
        for job in store.questions.next_jobs(plan, after=after, limit=limit)
    ]


def test_what_is_pending_shrinks_by_what_is_stored(new_store):
    store = new_store()
    first, second = filled(store, 2, "a", "b")
    store.add_replies(
        [kept_reply(first, "a", "critic", 5, 5), kept_reply(second, "b", "direct", 5, 5)]
    )
    new = dict.fromkeys(VARIANTS, (0, 0))
    left = {"direct": (0, 0), "reader": (0, 0)}
    assert pending(store, "a") == [(first, left), (second, new)]
    assert pending(store, "b") == [(first, new), (second, {"critic": (0, 0), "reader": (0, 0)})]
    assert pending(store, "a", limit=1) == [(first, left)]
    assert pending(store, "a", after=1) == [(second, new)]
    store.add_replies([kept_reply(first, "a", "direct", 5, 5), refused_reply(first, "a", "reader")])
    assert pending(store, "a") == [(second, new)]
    assert pending(store, "a", again=True) == [(first, {"reader": (1, 1)}), (second, new)]


def test_an_unreadable_reply_is_pending_until_its_retries_are_used_up(new_store):
    store = new_store()
    (pair_id,) = filled(store, 1, "a")
    store.add_replies([kept_reply(pair_id, "a", variant, 5, 5) for variant in ("direct", "critic")])
    store.add_replies([refused_reply(pair_id, "a", "reader", reason="length")])
    assert pending(store, "a", retries=2) == [(pair_id, {"reader": (1, 2)})]
    store.add_replies([refused_reply(pair_id, "a", "reader", attempt=1)])
    assert pending(store, "a", retries=2) == [(pair_id, {"reader": (2, 2)})]
    assert pending(store, "a", retries=1) == []
    store.add_replies([refused_reply(pair_id, "a", "reader", attempt=2)])
    assert pending(store, "a", retries=2) == []
    assert pending(store, "a", retries=2, again=True) == [(pair_id, {"reader": (3, 5)})]


def test_the_last_reply_to_a_key_says_whether_it_is_asked_again(new_store):
    """What an interrupted --retry-refused leaves: final before, unreadable now."""
    store = new_store()
    (pair_id,) = filled(store, 1, "a")
    store.add_replies([kept_reply(pair_id, "a", variant, 5, 5) for variant in ("direct", "critic")])
    store.add_replies([refused_reply(pair_id, "a", "reader", reason="http-400")])
    store.add_replies([refused_reply(pair_id, "a", "reader", attempt=1, reason="not-json")])
    assert pending(store, "a", retries=2) == [(pair_id, {"reader": (2, 2)})]
    assert count_replies(store, panel_of("a"))[0].pending == 1
    store.add_replies([refused_reply(pair_id, "a", "reader", attempt=2, reason="http-400")])
    assert pending(store, "a", retries=5) == []


@pytest.mark.parametrize("reason", ["http-400", "http-500", "no-answer", "too-long"])
def test_what_a_server_will_never_answer_is_final_at_once(new_store, reason):
    store = new_store()
    (pair_id,) = filled(store, 1, "a")
    store.add_replies([refused_reply(pair_id, "a", variant, reason=reason) for variant in VARIANTS])
    assert pending(store, "a", retries=5) == []
    (counts,) = count_replies(store, panel_of("a"))
    assert (counts.all, counts.refused, counts.pending) == (3, {reason: 3}, 0)


def test_the_numbers_of_a_tally_add_up(new_store):
    store = new_store()
    first, second = filled(store, 2, "a")
    store.add_replies([kept_reply(first, "a", "direct", 5, 5), refused_reply(first, "a", "critic")])
    store.add_replies([refused_reply(second, "a", "direct", reason="http-400")])
    (counts,) = count_replies(store, panel_of("a"))  # two retries
    assert (counts.all, counts.kept, counts.refused, counts.pending) == (6, 1, {"http-400": 1}, 4)
    assert counts.requests_needed(again=False) == 4
    assert counts.requests_needed(again=True) == 5


def test_what_an_adaptive_panel_does_without_is_spared(new_store):
    store = new_store()
    first, second = filled(store, 2, "a", "b")
    store.add_replies(
        [kept_reply(first, "a", "direct", 5, 5)],
        [SettledPair(pair_id=first, replies=1, chance=0.97)],
    )
    adaptive = replace(panel_of("a", "b"), budget="adaptive")
    a, b = count_replies(store, adaptive)
    assert (a.all, a.kept, a.spared, a.pending) == (6, 1, 2, 3)
    assert (b.all, b.kept, b.spared, b.pending) == (6, 0, 3, 3)
    left = store.questions.replied_pairs(settled=False, after=0, limit=5)
    assert [replied_pair.pair.id for replied_pair in left] == [second]
    every = store.questions.replied_pairs(settled=True, after=0, limit=5)
    assert [replied_pair.pair.id for replied_pair in every] == [first, second]
    full, _ = count_replies(store, panel_of("a", "b"))
    assert (full.spared, full.pending) == (0, 5)


@pytest.mark.parametrize(
    "change",
    [
        {"tolerance": 0.01},
        {"covers": "beta"},
        {"variants": ("direct",)},
        {"teachers": panel_of("a", "b", "c").teachers},
    ],
)
def test_what_another_panel_settled_is_open_again(new_store, change):
    store = new_store()
    first, _ = filled(store, 2, "a", "b")
    adaptive = replace(panel_of("a", "b"), budget="adaptive")
    store.record_panel(adaptive)
    store.add_replies(
        [kept_reply(first, "a", "direct", 5, 5)],
        [SettledPair(pair_id=first, replies=1, chance=0.97)],
    )
    store.record_panel(adaptive)
    assert len(store.questions.replied_pairs(settled=False, after=0, limit=5)) == 1
    store.record_panel(replace(adaptive, **change))
    assert len(store.questions.replied_pairs(settled=False, after=0, limit=5)) == 2


def open_pairs(store):
    return len(store.questions.replied_pairs(settled=False, after=0, limit=5))


def test_what_a_panel_of_an_earlier_version_settled_stays_so_until_the_file_says_otherwise(
    new_store,
):
    store = new_store()
    first, _ = filled(store, 2, "a", "b")
    adaptive = replace(panel_of("a", "b"), budget="adaptive")
    store.record_panel(adaptive)
    store.add_replies(
        [kept_reply(first, "a", "direct", 5, 5)],
        [SettledPair(pair_id=first, replies=1, chance=0.97)],
    )
    change_store(
        store.path, "UPDATE meta SET value = json_remove(value, '$.covers') WHERE key = 'panel'"
    )
    store.reopen_settled(adaptive)
    store.record_panel(adaptive)
    assert open_pairs(store) == 1
    assert store.panel().covers == "beta"
    store.record_panel(replace(adaptive, covers="signed_gap"))
    assert open_pairs(store) == 2
    assert store.panel().covers == "signed_gap"


@pytest.mark.parametrize(
    ("rubric", "covers", "announced"),
    [
        ("semantic-gap-blind", None, True),
        ("semantic-gap-blind", "beta", False),
        ("semantic-gap", None, False),
    ],
)
def test_a_finished_run_says_that_it_keeps_what_the_store_covers(
    new_store, rubric, covers, announced
):
    store = new_store()
    panel = panel_of("a", rubric=load_rubric(rubric), variants=("direct",))
    (first,) = filled(store, 1, "a")
    store.record_panel(replace(panel, budget="adaptive", covers="beta"))
    better = "A" if panel.rubric.blind else None
    store.add_replies(
        [
            kept_reply(first, "a", "direct", 5, 5, order=order, better=better)
            for order in panel.rubric.orders(first)
        ],
        [SettledPair(pair_id=first, replies=1, chance=0.97)],
    )
    lines = []
    again = replace(panel, budget="adaptive", covers=covers)
    annotate_pairs(None, again, store, report=lines.append)
    assert ["`covers: beta` of the store is kept" in line for line in lines] == [True] * announced


def test_shards_share_all_pairs_out_and_none_twice(new_store, tmp_path):
    ids_of_shards = []
    for index in range(3):
        store = new_store(f"{index}.sqlite")
        ids = filled(store, 40, "a")
        store.questions.restrict_to_shard(Shard(index=index, total=3))
        mine = [pair_id for pair_id, _ in pending(store, "a", limit=100)]
        assert store.questions.pair_count() == len(mine)
        (counts,) = count_replies(store, panel_of("a"))
        assert counts.all == 3 * len(mine)
        ids_of_shards += mine
    assert sorted(ids_of_shards) == sorted(ids)


def test_a_store_stays_with_its_shard(new_store, tmp_path):
    store = new_store("run.sqlite")
    (pair_id,) = filled(store, 1, "a")
    store.questions.restrict_to_shard(Shard(index=0, total=2))
    with Store(tmp_path / "run.sqlite") as again:
        assert again.questions.shard() == Shard(index=0, total=2)
    store.questions.restrict_to_shard(None)  # going on
    with pytest.raises(ValueError, match="is for the shard 0/2, not 1/2"):
        store.questions.restrict_to_shard(Shard(index=1, total=2))
    unsharded = new_store("whole.sqlite")
    filled(unsharded, 1, "a")
    unsharded.add_replies([kept_reply(pair_id, "a", "direct", 5, 5)])
    with pytest.raises(ValueError, match="was annotated without --shard"):
        unsharded.questions.restrict_to_shard(Shard(index=0, total=2))


@pytest.mark.parametrize("text", ["4/4", "-1/4", "1", "1/0", "a/b", "0/", "/3", "1/2/3"])
def test_what_names_no_shard_is_refused(text):
    with pytest.raises(ValueError, match="write I/N with I from 0 to N-1"):
        Shard.parse(text)


def test_a_shard_is_written_as_it_is_read():
    assert str(Shard.parse("2/5")) == "2/5"
