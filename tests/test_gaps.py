"""JMAMP by hand: medians over variants, means over teachers, and what happens where some miss."""

import random

import pytest

from harness import filled, kept
from sp2dpo.gaps import gaps


def gaps_of(store):
    return {row["pair_id"]: row for row in gaps(store.annotations()).iter_rows(named=True)}


def test_the_gap_is_the_mean_over_teachers_of_the_median_over_variants(new_store):
    store = new_store()
    (pair_id,) = filled(store, 1, "a", "b")
    scores = {
        ("a", "direct"): (10, 5),  # .50
        ("a", "critic"): (8, 10),  # .80: the median of a
        ("a", "reader"): (9, 10),  # .90
        ("b", "direct"): (2, 5),  # .10
        ("b", "critic"): (0, 10),  # .00
        ("b", "reader"): (4, 5),  # .20; the median of b is .10
    }
    store.add([kept(pair_id, *who, *said) for who, said in scores.items()])
    row = gaps_of(store)[pair_id]
    assert row["gap"] == pytest.approx((0.8 + 0.1) / 2, abs=1e-15)
    assert row["spread"] == pytest.approx((0.8 - 0.1) / 2, abs=1e-15)
    assert row["magnitude"] == pytest.approx((9 + 2) / 2)
    assert row["confidence"] == pytest.approx((10 + 5) / 2)
    assert (row["votes"], row["teachers"]) == (6, 2)


def test_two_replies_of_a_teacher_count_as_their_middle(new_store):
    store = new_store()
    (pair_id,) = filled(store, 1, "a")
    store.add([kept(pair_id, "a", "direct", 10, 10), kept(pair_id, "a", "critic", 5, 10)])
    assert gaps_of(store)[pair_id]["gap"] == pytest.approx(0.75)


def test_a_missing_teacher_leaves_the_mean_of_the_rest(new_store):
    store = new_store()
    (pair_id,) = filled(store, 1, "a", "b", "c")
    store.add([kept(pair_id, "a", "direct", 10, 10), kept(pair_id, "c", "direct", 5, 10)])
    row = gaps_of(store)[pair_id]
    assert row["gap"] == pytest.approx(0.75)
    assert row["teachers"] == 2


def test_a_pair_without_replies_has_no_gap_and_no_votes(new_store):
    store = new_store()
    first, second = filled(store, 2, "a")
    store.add([kept(first, "a", "direct", 10, 10)])
    row = gaps_of(store)[second]
    assert row["votes"] == row["teachers"] == 0
    assert row["gap"] is row["category"] is row["spread"] is row["agreement"] is None


def test_the_category_is_the_majoritys_and_ties_go_to_the_higher_priority(new_store):
    store = new_store()
    clear, tied = filled(store, 2, "a", "b")
    said = [("a", "direct"), ("a", "critic"), ("a", "reader"), ("b", "direct")]
    for who, category in zip(said, ("style", "safety", "style", "style"), strict=True):
        store.add([kept(clear, *who, 5, 5, category)])
    for who, category in zip(said, ("style", "factuality", "style", "factuality"), strict=True):
        store.add([kept(tied, *who, 5, 5, category)])
    rows = gaps_of(store)
    assert (rows[clear]["category"], rows[clear]["agreement"]) == ("style", 0.75)
    assert (rows[tied]["category"], rows[tied]["agreement"]) == ("factuality", 0.5)


def test_the_order_of_replies_changes_no_bit(new_store):
    draw = random.Random(7)
    one, two = new_store("1.sqlite"), new_store("2.sqlite")
    for store in (one, two):
        ids = filled(store, 40, "a", "b", "c")
    replies = [
        kept(pair_id, teacher, variant, draw.randint(0, 10), draw.randint(0, 10))
        for pair_id in ids
        for teacher in "abc"
        for variant in ("direct", "critic", "reader")
    ]
    one.add(replies)
    two.add(draw.sample(replies, len(replies)))
    assert gaps(one.annotations()).equals(gaps(two.annotations()))
