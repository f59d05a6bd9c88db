"""What holds for every schedule and all annotations, whatever they are (property tests)."""

import statistics
from collections import Counter
from dataclasses import replace
from itertools import pairwise, permutations, product

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sp2dpo.betas.estimators import JMAMP, Magnitude, Product, Shrink, Signed
from sp2dpo.betas.gaps import compute_gaps
from sp2dpo.betas.maps import Envelope, Linear, LogLinear, Power, Quantile
from sp2dpo.betas.schedule import Schedule, schedule_betas
from sp2dpo.panel.rubric import CHOSEN_FIRST, REJECTED_FIRST, load_rubric
from sp2dpo.store.annotations import build_annotation_table

RUBRIC, BLIND = load_rubric("semantic-gap"), load_rubric("semantic-gap-blind")
CATEGORIES = list(RUBRIC.categories)
PAPER = Schedule(
    beta_min=0.03, beta_max=0.3, quorum=1, estimate="sampled", gap=Product(),
    over_variants="median", over_teachers="mean", map=Linear(),
)  # fmt: skip
MAPS = (Linear(), LogLinear(), Power(0.3), Power(3.0), Quantile())
FORMS = (Product(), Magnitude(), Shrink(0.25), Signed())
WAYS = ("median", "mean")
quick = settings(
    derandomize=True, deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow]
)
scores = st.integers(0, 10)


@st.composite
def replies(draw, *, teachers="abc", variants=("direct", "critic", "reader"), pairs=6):
    """Replies of a panel: pair number, teacher, variant -> category, magnitude, confidence."""
    keys = [
        key
        for key in product(range(pairs), teachers, variants)
        if draw(st.integers(0, 9))  # one in ten is missing
    ]
    answers = st.tuples(st.sampled_from(CATEGORIES), scores, scores)
    return {key: draw(answers) for key in keys} or {(0, "a", "direct"): draw(answers)}


def pair(number):
    return f"{number:064x}"


def table_of(panel_replies, *, pairs=6):
    rows = [
        (pair(number), teacher, variant, CHOSEN_FIRST, 0, *scored, None, None, None)
        for (number, teacher, variant), scored in panel_replies.items()
    ]
    return build_annotation_table(rows, pair_ids=[pair(n) for n in range(pairs)], rubric=RUBRIC)


def betas_of(panel_replies, schedule=PAPER):
    table = schedule_betas(table_of(panel_replies), schedule)
    return dict(table.select("pair_id", "beta").iter_rows())


@quick
@given(replies(), st.sampled_from(MAPS), st.sampled_from(FORMS), st.sampled_from(WAYS))
def test_a_beta_lies_in_the_envelope_of_its_category(panel_replies, map_, form, way):
    narrow = Envelope(beta_min=0.1, beta_max=0.11)
    schedule = replace(
        PAPER, map=map_, gap=form, over_variants=way, envelopes={CATEGORIES[0]: narrow}
    )
    for row in (
        schedule_betas(table_of(panel_replies), schedule).drop_nulls("beta").iter_rows(named=True)
    ):
        ends = schedule.envelope(row["category"])
        assert ends.beta_min <= row["beta"] <= ends.beta_max


@quick
@given(st.lists(st.floats(0, 1), min_size=2, max_size=30), st.sampled_from(MAPS[:4]))
def test_a_larger_gap_never_has_a_smaller_beta(gaps_, map_):
    ordered = pl.DataFrame({"gap": sorted(gaps_)})
    betas = ordered.select(map_.beta(pl.col("gap"), 0.03, 0.3)).to_series().to_list()
    assert all(lower <= upper + 1e-15 for lower, upper in pairwise(betas))
    assert map_.beta(0.0, 0.03, 0.3) == pytest.approx(0.03, abs=1e-15)
    assert map_.beta(1.0, 0.03, 0.3) == pytest.approx(0.3, abs=1e-15)


@quick
@given(replies(), st.sampled_from(MAPS))
def test_betas_are_ordered_like_the_gaps(panel_replies, map_):
    table = (
        schedule_betas(table_of(panel_replies), replace(PAPER, map=map_))
        .drop_nulls("beta")
        .sort("gap")
    )
    betas = table["beta"].to_list()
    assert all(lower <= upper + 1e-12 for lower, upper in pairwise(betas))


@quick
@given(replies())
def test_jmamp_of_the_gaps_then_the_map_is_the_map_then_jmamp(panel_replies):
    by_reply = {
        key: 0.03 + 0.27 * magnitude / 10 * confidence / 10
        for key, (_, magnitude, confidence) in panel_replies.items()
    }
    for pair_id, beta in betas_of(panel_replies).items():
        number = int(pair_id, 16)
        by_teacher = {}
        for (n, teacher, _), reply_beta in by_reply.items():
            if n == number:
                by_teacher.setdefault(teacher, []).append(reply_beta)
        medians = [statistics.median(ones) for ones in by_teacher.values()]
        expected = statistics.fmean(medians) if medians else None
        assert beta == (None if expected is None else pytest.approx(expected, abs=1e-12))


@quick
@given(replies(), st.randoms(use_true_random=False))
def test_the_order_of_replies_and_pairs_does_not_matter(panel_replies, random):
    keys = list(panel_replies)
    random.shuffle(keys)
    shuffled = table_of({key: panel_replies[key] for key in keys})
    assert schedule_betas(shuffled, PAPER).equals(schedule_betas(table_of(panel_replies), PAPER))
    assert shuffled.hash == table_of(panel_replies).hash


@quick
@given(replies(), st.sampled_from(list(permutations("abc"))), st.sampled_from(WAYS))
def test_the_names_and_the_order_of_teachers_do_not_matter(panel_replies, names, way):
    renamed = {
        (number, f"t{names.index(teacher)}", variant): reply
        for (number, teacher, variant), reply in panel_replies.items()
    }
    schedule = replace(PAPER, over_teachers=way)
    betas, renamed_betas = betas_of(panel_replies, schedule), betas_of(renamed, schedule)
    assert all(
        betas[key] is renamed_betas[key] is None
        or betas[key] == pytest.approx(renamed_betas[key], abs=1e-12)
        for key in betas
    )


@quick
@given(
    st.lists(st.tuples(scores, scores), min_size=9, max_size=9),
    st.tuples(scores, scores),
    st.integers(0, 8),
)
def test_one_wild_reply_of_nine_moves_beta_by_a_third_of_its_neighbours_distance(nine, wild, which):
    keys = list(product((0,), "abc", ("direct", "critic", "reader")))
    panel_replies = {key: ("style", *reply) for key, reply in zip(keys, nine, strict=True)}
    turned = panel_replies | {keys[which]: ("style", *wild)}
    moved = abs(betas_of(turned)[pair(0)] - betas_of(panel_replies)[pair(0)])
    others = [
        m / 10 * c / 10
        for key, (m, c) in zip(keys, nine, strict=True)
        if key[1] == keys[which][1] and key != keys[which]
    ]
    bound = 0.27 / 3 * abs(others[0] - others[1])
    assert moved <= bound + 1e-12
    assert bound <= 0.09 + 1e-12


@quick
@given(
    st.dictionaries(
        st.tuples(
            st.integers(0, 3), st.sampled_from("ab"), st.sampled_from(("direct", "critic")),
            st.sampled_from((CHOSEN_FIRST, REJECTED_FIRST)),
        ),
        st.tuples(
            st.sampled_from(CATEGORIES), scores, scores, st.sampled_from(("A", "B", "tie"))
        ),
        min_size=1,
        max_size=24,
    )
)  # fmt: skip
def test_a_blind_panel_is_read_as_by_hand(panel_replies):
    rows = [
        (pair(number), teacher, variant, order, 0, *scored, None, None)
        for (number, teacher, variant, order), scored in panel_replies.items()
    ]
    annotations = build_annotation_table(rows, pair_ids=[pair(n) for n in range(4)], rubric=BLIND)
    for row in compute_gaps(annotations, JMAMP).iter_rows(named=True):
        own = {
            key[1:]: reply for key, reply in panel_replies.items() if pair(key[0]) == row["pair_id"]
        }
        by_hand(row, own)


def by_hand(row, own):
    assert row["votes"] == len(own)
    if not own:
        assert row["gap"] is None
        return
    readings = {}
    for (teacher, variant, order), (_, magnitude, confidence, better) in own.items():
        side = {"A": 1, "B": -1, "tie": 0}[better] * (1 if order == CHOSEN_FIRST else -1)
        readings.setdefault((teacher, variant), []).append(side * magnitude / 10 * confidence / 10)
    by_teacher = {}
    for (teacher, _), orders in readings.items():
        by_teacher.setdefault(teacher, []).append(statistics.fmean(orders))
    medians = [statistics.median(ones) for ones in by_teacher.values()]
    signed = statistics.fmean(medians)
    assert row["signed_gap"] == pytest.approx(signed, abs=1e-9)
    assert row["gap"] == pytest.approx(max(0, signed), abs=1e-9)
    assert row["label_disputed"] == (signed < -1e-9)
    assert row["spread"] == pytest.approx(statistics.pstdev(medians), abs=1e-9)
    assert row["teachers"] == len(by_teacher)
    counts = Counter(category for category, *_ in own.values())
    most = max(counts.values())
    assert row["category"] == next(name for name in CATEGORIES if counts[name] == most)
    assert row["agreement"] == pytest.approx(most / len(own))
