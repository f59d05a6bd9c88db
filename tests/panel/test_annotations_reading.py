"""Replies read as whole columns: the same as row by row, whatever is in them."""

import random
from dataclasses import replace

from sp2dpo.pairs.sources import Source
from sp2dpo.panel.rubric import CHOSEN_FIRST, REJECTED_FIRST, load_rubric
from sp2dpo.store.annotations import COLUMNS, build_annotation_table
from sp2dpo.store.questions import KeyCount
from support.harness import filled, kept_reply, pairs_of, panel_of, refused_reply

BLIND = load_rubric("semantic-gap-blind")
VARIANTS = ("direct", "critic", "reader")


def row_by_row(store):
    """The same table from the replies one by one."""
    rows = [
        tuple(getattr(reply, name) for name in COLUMNS)
        for reply in store.replies()
        if reply.status == "kept"
    ]
    return build_annotation_table(rows, pair_ids=store.corpus.pair_ids(), rubric=store.rubric())


def same(store):
    annotations, expected = store.annotations(), row_by_row(store)
    assert annotations.replies.equals(expected.replies)
    assert annotations.replies.schema == expected.replies.schema
    assert annotations.pair_ids == expected.pair_ids
    assert annotations.hash == expected.hash
    return annotations


def test_labelled_replies(new_store):
    store = new_store()
    first_id, second_id, unheard = filled(store, 3, "a", "b")
    store.add_replies(
        [
            kept_reply(first_id, "a", "direct", 3, 4, "safety"),
            kept_reply(first_id, "b", "critic", 10, 0),
            refused_reply(first_id, "b", "reader"),
            kept_reply(second_id, "a", "reader", 0, 10),
        ]
    )
    table = same(store)
    assert len(table.replies) == 3
    assert unheard in table.pair_ids
    assert table.replies["better"].null_count() == 3


def test_names_of_any_letters(new_store):
    names = ("kühn, l'été", "名前 | x", 'a"b;c')
    store = new_store()
    (pair_id,) = filled(store, 1, *names)
    store.add_replies([kept_reply(pair_id, name, "direct", 5, 5) for name in names])
    assert set(same(store).replies["teacher"]) == set(names)


def test_blind_replies_with_and_without_expectations(new_store):
    store = new_store()
    first_id, second_id = filled(store, 2, "a", rubric=BLIND)
    expectations = [(None, None), (3.25, 4.1), (0.1 + 0.2, None), (None, 1 / 3)]
    orders = [(v, order) for v in VARIANTS for order in (CHOSEN_FIRST, REJECTED_FIRST)]
    for (variant, order), better, expected in zip(
        orders, "ABABAB", [*expectations, *expectations[:2]], strict=True
    ):
        store.add_replies(
            [
                kept_reply(
                    first_id, "a", variant, 5, 6, order=order, better=better, expected=expected
                )
            ]
        )
    store.add_replies([kept_reply(second_id, "a", "direct", 5, 6, better="tie")])
    table = same(store).replies
    assert set(table["expected_confidence"].drop_nulls()) == {4.1, 1 / 3}
    assert 0.1 + 0.2 in table["expected_magnitude"].to_list()
    assert set(table["better"]) == {"A", "B", "tie"}


def test_more_pairs_than_are_read_at_a_time(new_store):
    store = new_store()
    rows = pairs_of(9000)
    store.corpus.add(Source(name="hand.jsonl"), rows)
    store.record_panel(panel_of("a"))
    store.add_replies(
        [kept_reply(row.pair.id, "a", "direct", row.row % 11, row.row % 7) for row in rows]
    )
    assert len(same(store).replies) == 9000


def test_the_hash_of_annotations_never_changes_by_itself(new_store):
    """It stands in files of betas and manifests: those of earlier versions must still fit."""
    labelled, blind = new_store("labelled.sqlite"), new_store("blind.sqlite")
    first_id, second_id = filled(labelled, 2, "a")
    labelled.add_replies(
        [
            kept_reply(first_id, "a", "direct", 3, 4, "safety"),
            kept_reply(second_id, "a", "critic", 10, 0),
        ]
    )
    assert labelled.annotations().hash == LABELLED_HASH
    first_id, second_id = filled(blind, 2, "a", rubric=BLIND)
    blind.add_replies(
        [kept_reply(first_id, "a", "direct", 3, 4, better="A", expected=(3.25, 4.125))]
    )
    blind.add_replies(
        [kept_reply(second_id, "a", "direct", 3, 4, better="tie", order=REJECTED_FIRST)]
    )
    assert blind.annotations().hash == BLIND_HASH


LABELLED_HASH = "0cea20cbde2d8fd5d4b1a426425ba6087c6ddad356dc4b4ff42dd9647f672e2d"
BLIND_HASH = "47b1834c9782bd1892fa09e837c8c1a14637f9c0a77e2ecf35d07fd9a96eb802"


def brute_force(store):
    """What became of each key, from all its replies."""
    by_key = {}
    for reply in store.replies():
        key = (reply.teacher, reply.variant, reply.order, reply.pair_id)
        by_key.setdefault(key, []).append(reply)
    counts = {}
    for (teacher, variant, order, _), replies in by_key.items():
        last = max(replies, key=lambda reply: reply.attempt)
        is_kept = any(reply.status == "kept" for reply in replies)
        outcome = (None, 0) if is_kept else (last.reason, last.attempt)
        key = (teacher, variant, order, *outcome)
        counts[key] = counts.get(key, 0) + 1
    return counts


def counted(outcomes: list[KeyCount]):
    counts = {}
    for outcome in outcomes:
        key = (outcome.teacher, outcome.variant, outcome.order, outcome.reason, outcome.attempt)
        counts[key] = counts.get(key, 0) + outcome.count
    return counts


def test_what_became_of_every_question_is_counted_once(new_store):
    dice = random.Random(0)
    store = new_store()
    for pair_id in filled(store, 60, "a", "b"):
        for teacher in "ab":
            for variant in VARIANTS:
                attempts = dice.choice([0, 1, 1, 1, 2, 3])
                for attempt in range(attempts):
                    if dice.random() < 0.6:
                        entry = kept_reply(pair_id, teacher, variant, 5, 5)
                        entry = replace(entry, key=replace(entry.key, attempt=attempt))
                    else:
                        reason = dice.choice(["empty", "schema", "too-long"])
                        entry = refused_reply(
                            pair_id, teacher, variant, attempt=attempt, reason=reason
                        )
                    store.add_replies([entry])
    assert counted(store.questions.outcomes()) == brute_force(store)
    same(store)
