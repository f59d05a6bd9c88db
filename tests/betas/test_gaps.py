"""JMAMP by hand: medians over variants, means over teachers, and what happens where some miss."""

import random
from dataclasses import replace

import pytest

from sp2dpo.betas.estimators import ESTIMATES, JMAMP
from sp2dpo.betas.gaps import compute_gaps, compute_reply_gaps, compute_signed_gap
from sp2dpo.panel.rubric import BETTER, CHOSEN_FIRST, REJECTED_FIRST, load_rubric
from support.harness import filled, kept_reply

ORDERS = (CHOSEN_FIRST, REJECTED_FIRST)


def gaps_of(store, estimate="sampled"):
    table = compute_gaps(store.annotations(), replace(JMAMP, estimate=estimate))
    return {row["pair_id"]: row for row in table.iter_rows(named=True)}


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
    store.add_replies(
        [kept_reply(pair_id, *who, *reply_scores) for who, reply_scores in scores.items()]
    )
    row = gaps_of(store)[pair_id]
    assert row["gap"] == pytest.approx((0.8 + 0.1) / 2, abs=1e-15)
    assert row["spread"] == pytest.approx((0.8 - 0.1) / 2, abs=1e-15)
    assert row["magnitude"] == pytest.approx((9 + 2) / 2)
    assert row["confidence"] == pytest.approx((10 + 5) / 2)
    assert (row["votes"], row["teachers"]) == (6, 2)


def test_two_replies_of_a_teacher_count_as_their_middle(new_store):
    store = new_store()
    (pair_id,) = filled(store, 1, "a")
    store.add_replies(
        [kept_reply(pair_id, "a", "direct", 10, 10), kept_reply(pair_id, "a", "critic", 5, 10)]
    )
    assert gaps_of(store)[pair_id]["gap"] == pytest.approx(0.75)


def test_a_missing_teacher_leaves_the_mean_of_the_rest(new_store):
    store = new_store()
    (pair_id,) = filled(store, 1, "a", "b", "c")
    store.add_replies(
        [kept_reply(pair_id, "a", "direct", 10, 10), kept_reply(pair_id, "c", "direct", 5, 10)]
    )
    row = gaps_of(store)[pair_id]
    assert row["gap"] == pytest.approx(0.75)
    assert row["teachers"] == 2


def test_a_pair_without_replies_has_no_gap_and_no_votes(new_store):
    store = new_store()
    first, second = filled(store, 2, "a")
    store.add_replies([kept_reply(first, "a", "direct", 10, 10)])
    row = gaps_of(store)[second]
    assert row["votes"] == row["teachers"] == 0
    assert row["gap"] is row["category"] is row["spread"] is row["agreement"] is None


def test_the_category_is_the_majoritys_and_ties_go_to_the_higher_priority(new_store):
    store = new_store()
    clear, tied = filled(store, 2, "a", "b")
    readers = [("a", "direct"), ("a", "critic"), ("a", "reader"), ("b", "direct")]
    for who, category in zip(readers, ("style", "safety", "style", "style"), strict=True):
        store.add_replies([kept_reply(clear, *who, 5, 5, category)])
    for who, category in zip(readers, ("style", "factuality", "style", "factuality"), strict=True):
        store.add_replies([kept_reply(tied, *who, 5, 5, category)])
    rows = gaps_of(store)
    assert (rows[clear]["category"], rows[clear]["agreement"]) == ("style", 0.75)
    assert (rows[tied]["category"], rows[tied]["agreement"]) == ("factuality", 0.5)


def test_the_order_of_replies_changes_no_bit(new_store):
    draw = random.Random(7)
    first_store, second_store = new_store("1.sqlite"), new_store("2.sqlite")
    for store in (first_store, second_store):
        ids = filled(store, 40, "a", "b", "c")
    replies = [
        kept_reply(pair_id, teacher, variant, draw.randint(0, 10), draw.randint(0, 10))
        for pair_id in ids
        for teacher in "abc"
        for variant in ("direct", "critic", "reader")
    ]
    first_store.add_replies(replies)
    second_store.add_replies(draw.sample(replies, len(replies)))
    assert compute_gaps(first_store.annotations(), JMAMP).equals(
        compute_gaps(second_store.annotations(), JMAMP)
    )


def test_expectations_take_the_place_of_what_was_said(new_store):
    store = new_store()
    (pair_id,) = filled(store, 1, "a", "b")
    for who, expected in {
        ("a", "direct"): (7.5, 8.0),  # .60
        ("a", "critic"): (5.0, 5.0),  # .25: the median of a
        ("a", "reader"): (0.5, 2.0),  # .01
        ("b", "direct"): (9.5, 10.0),  # .95
    }.items():
        store.add_replies([kept_reply(pair_id, *who, 10, 10, expected=expected)])
    row = gaps_of(store, "expected")[pair_id]
    assert row["gap"] == pytest.approx((0.25 + 0.95) / 2)
    assert row["magnitude"] == pytest.approx((5 + 9.5) / 2)
    assert row["confidence"] == pytest.approx((5 + 10) / 2)
    assert gaps_of(store)[pair_id]["gap"] == 1


@pytest.mark.parametrize("half", [(None, None), (5.0, None), (None, 5.0)])
def test_a_reply_without_expectations_is_no_vote(new_store, half):
    store = new_store()
    rated_id, unrated_id = filled(store, 2, "a")
    store.add_replies([kept_reply(rated_id, "a", "direct", 9, 9, "style", expected=(4.0, 5.0))])
    store.add_replies(
        [kept_reply(rated_id, "a", v, 9, 9, "safety", expected=half) for v in ("critic", "reader")]
    )
    store.add_replies([kept_reply(unrated_id, "a", "direct", 9, 9, expected=half)])
    rows = gaps_of(store, "expected")
    assert rows[rated_id]["gap"] == pytest.approx(0.2)
    assert (rows[rated_id]["votes"], rows[rated_id]["category"], rows[rated_id]["agreement"]) == (
        1,
        "style",
        1,
    )
    assert (rows[unrated_id]["votes"], rows[unrated_id]["gap"]) == (0, None)


def test_expectations_that_no_reply_has_are_missed_by_name(new_store):
    store = new_store()
    (pair_id,) = filled(store, 1, "a")
    store.add_replies([kept_reply(pair_id, "a", "direct", 9, 9)])
    with pytest.raises(ValueError, match="`logprobs: true` and `top_logprobs`"):
        compute_gaps(store.annotations(), replace(JMAMP, estimate="expected"))


@pytest.mark.parametrize("estimate", ESTIMATES)
@pytest.mark.parametrize("name", ["semantic-gap", "semantic-gap-blind"])
def test_one_reply_alone_has_the_gap_that_it_has_in_the_table(new_store, name, estimate):
    draw, rubric, store = random.Random(3), load_rubric(name), new_store()
    for pair_id in filled(store, 50, "a", rubric=rubric):
        expected = (draw.uniform(0, 10), draw.uniform(0, 10))
        scores = (draw.randint(0, 10), draw.randint(0, 10))
        fields = (
            {"order": draw.choice(ORDERS), "better": draw.choice(BETTER)} if rubric.blind else {}
        )
        store.add_replies(
            [kept_reply(pair_id, "a", "direct", *scores, expected=expected, **fields)]
        )
    estimator = replace(JMAMP, estimate=estimate)
    alone = [compute_signed_gap(reply, rubric, estimator) for reply in store.replies()]
    assert compute_reply_gaps(store.annotations(), estimator)["gap"].to_list() == pytest.approx(
        alone
    )
