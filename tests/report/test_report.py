"""The numbers of a report, each worked out by hand."""

import json
import math
import random
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from sp2dpo.betas.arms import Arm
from sp2dpo.betas.estimators import JMAMP
from sp2dpo.betas.file import BetaTable
from sp2dpo.betas.gaps import compute_reply_gaps
from sp2dpo.betas.schedule import load_schedule
from sp2dpo.diagnostics import agreement
from sp2dpo.diagnostics import checks as signatures
from sp2dpo.pairs.pair import Pair
from sp2dpo.pairs.sources import SetAside, Source
from sp2dpo.panel.rubric import REJECTED_FIRST, load_rubric, parse_rubric
from sp2dpo.store.annotations import build_annotation_table
from sp2dpo.store.questions import SettledPair
from sp2dpo.text import json_values
from support.harness import SCHEDULE, panel_of
from support.reports import VARIANTS, fill, make_report, pair, refused_reply, says, source_rows

BLIND = load_rubric("semantic-gap-blind")


def report_on(store, **changed):
    """The report as JSON."""
    report = json_values(make_report(store, **changed))
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    return report


def verdicts(report):
    return {check["name"]: check["verdict"] for check in report["signatures"][:5]}


def values(report):
    return {check["name"]: check["value"] for check in report["signatures"]}


@pytest.fixture
def three(new_store):
    """Three pairs, two teachers, two variants, two refusals, a row set aside.

    Medians of x: .3 .5 .8; of y: .6 .5 .9; means: .45 .5 .85.
    """
    a, b, c = (pair(number) for number in range(3))
    store = new_store()
    rows = [*source_rows(a, b, c, a), SetAside(row=5, reason="no pair", raw="{}")]
    fill(
        store,
        rows,
        [
            *(says(a, "x", "direct", 2), says(a, "x", "critic", 4)),
            *(says(b, "x", "direct", 5), says(b, "x", "critic", 5)),
            *(says(c, "x", v, 8, category="safety") for v in ("direct", "critic")),
            *(says(a, "y", v, 6) for v in ("direct", "critic")),
            *(says(b, "y", v, 5, category="clarity") for v in ("direct", "critic")),
            *(says(c, "y", v, 9, category="safety") for v in ("direct", "critic")),
            refused_reply(a, "x", "reader", "not-json"),
            refused_reply(b, "x", "reader", "empty"),
            refused_reply(c, "x", "reader", "empty"),
        ],
    )
    return store, (a, b, c)


def test_the_head_counts_everything(three):
    report = report_on(three[0])
    assert report["source"] == {
        "name": "hand.jsonl",
        "revision": None,
        "license": None,
        "rows": 5,
        "usable": 4,
        "pairs": 3,
        "set_aside": {"no pair": 1},
    }
    assert report["replies"] == {
        "asked": 18, "kept": 12, "refused": 3, "spared": 0, "pending": 3,
    }  # fmt: skip
    refusals = {teacher["name"]: teacher["refused"] for teacher in report["teachers"]}
    assert refusals == {"x": {"empty": 2, "not-json": 1}, "y": {}}
    assert report["rubric"]["sha256"] == load_rubric("semantic-gap").hash
    assert report["schedule"]["beta_max"] == 0.3


def test_a_variant_that_was_always_refused_is_still_a_variant(three):
    assert report_on(three[0])["variants"] == ["direct", "critic", "reader"]


def test_betas_are_summed_up(three):
    beta = report_on(three[0])["beta"]
    # 0.03 + 0.27 x (.45, .5, .85)
    assert beta["min"] == pytest.approx(0.1515)
    assert beta["median"] == pytest.approx(0.165)
    assert beta["max"] == pytest.approx(0.2595)
    assert beta["mean"] == pytest.approx(0.192)
    assert (beta["pairs"], beta["with_beta"], beta["without_beta"]) == (3, 3, 0)


def test_teachers_are_compared_by_category_rank_and_distance(three):
    (comparison,) = report_on(three[0])["agreement"]["between_teachers"]
    assert (comparison["one"], comparison["other"], comparison["pairs"]) == ("x", "y", 3)
    assert comparison["same_category"] == pytest.approx(2 / 3)
    assert comparison["spearman"] == pytest.approx(0.5)  # 1 - 6 (1 + 1 + 0) / (3 x 8)
    assert comparison["difference"] == pytest.approx((0.3 + 0 + 0.1) / 3)


def test_variants_are_compared_over_the_mean_of_the_teachers(three):
    comparisons = report_on(three[0])["agreement"]["between_variants"]
    direct_critic, direct_reader, _ = comparisons
    # direct .4 .5 .85 against critic .5 .5 .85: ranks 1 2 3 against 1.5 1.5 3
    assert direct_critic["spearman"] == pytest.approx(1.5 / 3**0.5)
    assert direct_critic["difference"] == pytest.approx(0.1 / 3)
    assert direct_critic["same_category"] == 1
    assert direct_reader["pairs"] == 0
    assert direct_reader["spearman"] is direct_reader["same_category"] is None


def test_agreement_and_spread_are_means_over_the_pairs(three):
    panel_agreement = report_on(three[0])["agreement"]
    assert panel_agreement["agreement"] == pytest.approx((1 + 0.5 + 1) / 3)
    assert panel_agreement["spread"] == pytest.approx((0.15 + 0 + 0.05) / 3)


def test_categories_stand_in_the_rubrics_order_with_their_means(three):
    category_rows = report_on(three[0])["categories"]
    assert [row["name"] for row in category_rows] == list(load_rubric("semantic-gap").categories)
    rows = {row["name"]: row for row in category_rows}
    assert rows["safety"]["pairs"] == 1
    assert rows["safety"]["gap"] == pytest.approx(0.85)
    assert rows["clarity"]["agreement"] == 0.5  # a tie with style, which comes later
    assert rows["style"]["beta"] == pytest.approx(0.1515)
    assert rows["factuality"] == {
        "name": "factuality",
        "pairs": 0,
        "without_beta": 0,
        **dict.fromkeys(("beta", "gap", "agreement", "spread")),
    }


def test_telling_pairs_stand_in_order_with_the_sources_names(three):
    store, (a, b, c) = three
    report = report_on(store)
    assert [shown["pair_id"] for shown in report["most_telling"]] == [c.id, b.id, a.id]
    assert [shown["pair_id"] for shown in report["least_telling"]] == [a.id, b.id, c.id]
    first = report["most_telling"][0]
    assert first["source_id"] == "row-3"
    assert report["least_telling"][0]["source_id"] == "row-1"  # of the first of its two rows
    assert (first["prompt"], first["chosen"], first["rejected"]) == (
        "Question 2?",
        "Good 2.",
        "Bad 2.",
    )


def test_equal_betas_stand_in_the_order_of_their_ids_ten_at_each_end(new_store):
    pairs = [pair(number) for number in range(24)]
    store = new_store()
    # 0.3 x 0.6 and 0.2 x 0.9 are one gap, but in this envelope two floating-point betas
    scores = [(3, 6) if number % 2 else (2, 9) for number in range(24)]
    entries = [says(pair, "x", "direct", *score) for pair, score in zip(pairs, scores, strict=True)]
    fill(store, source_rows(*pairs), entries, teachers=("x",))
    report = report_on(store, beta_min=0.01, beta_max=0.5)
    assert report["beta"]["min"] < report["beta"]["max"]
    expected = sorted(pair.id for pair in pairs)[:10]
    assert [shown["pair_id"] for shown in report["most_telling"]] == expected
    assert [shown["pair_id"] for shown in report["least_telling"]] == expected


def test_the_rationale_shown_names_the_category_and_is_nearest_to_the_gap(new_store):
    only_pair = pair(0)
    store = new_store()
    fill(
        store,
        source_rows(only_pair),
        [
            says(only_pair, "x", "critic", 2, rationale="far"),
            says(only_pair, "x", "direct", 5, category="safety", rationale="another category"),
            says(only_pair, "x", "reader", 6, rationale="near"),
        ],
        teachers=("x",),
    )
    (shown,) = report_on(store)["most_telling"]
    assert shown["rationale"] == {
        "teacher": "x", "variant": "reader", "rationale": "near", "a": None,
    }  # fmt: skip


def test_long_texts_are_cut_and_tool_calls_shown_as_json(new_store):
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "look"}]}
    only_pair = Pair(
        prompt=({"role": "user", "content": "first"}, {"role": "user", "content": "last"}),
        chosen=({"role": "assistant", "content": "w" * 5000},),
        rejected=(call, {"role": "assistant", "content": "done"}),
    )
    store = new_store()
    fill(store, source_rows(only_pair), [says(only_pair, "x", "direct", 5)], teachers=("x",))
    (shown,) = report_on(store)["most_telling"]
    assert shown["prompt"] == "last"
    assert shown["chosen"] == "w" * 599 + "…"
    assert shown["rejected"] == '{"tool_calls":[{"name":"look"}]}\n\ndone'


def test_the_histogram_puts_every_beta_in_its_bin(new_store):
    gaps = [0, 1, 3, 10]  # magnitudes; with full confidence gaps of 0, .1, .3, 1
    pairs = [pair(number) for number in range(5)]
    store = new_store()
    entries = [
        says(pair, "x", "direct", gap, category="safety" if gap == 10 else "style")
        for pair, gap in zip(pairs, gaps, strict=False)
    ]
    fill(store, source_rows(*pairs), entries, teachers=("x",))
    report = report_on(store)
    histogram = report["histogram"]
    counts = {category["name"]: category["counts"] for category in histogram["categories"]}
    filled = {name: {n: c for n, c in enumerate(bars) if c} for name, bars in counts.items()}
    # a bin holds its lower border, the last one its upper border too
    assert filled["style"] == {0: 1, 2: 1, 6: 1}
    assert filled["safety"] == {19: 1}
    assert (histogram["edges"][0], histogram["edges"][-1]) == (0.03, 0.3)
    assert report["beta"]["without_beta"] == report["beta"]["without_reply"] == 1


def test_a_beta_on_a_border_belongs_to_the_bin_above():
    gaps = [twentieth / 20 for twentieth in range(21)]
    table = pl.DataFrame({"beta": [0.03 * (1 - gap) + 0.3 * gap for gap in gaps]})
    shares = signatures.envelope_shares(table, load_schedule(SCHEDULE))
    assert (shares * 20).floor().to_list() == list(range(21))


def test_equal_gaps_are_tied_in_spite_of_floating_point():
    rubric = load_rubric("semantic-gap")
    rows = [
        ("p", "x", "direct", "chosen-first", 0, "style", 3, 6, None, None, None),
        ("q", "x", "direct", "chosen-first", 0, "style", 2, 9, None, None, None),
    ]
    annotations = build_annotation_table(rows, pair_ids=["p", "q"], rubric=rubric)
    assert compute_reply_gaps(annotations, JMAMP)["gap"].n_unique() == 2
    assert agreement.panel_reply_gaps(annotations, JMAMP)["gap"].n_unique() == 1


def test_spearman_is_not_defined_for_a_constant():
    assert agreement.spearman(pl.Series([1.0, 1.0]), pl.Series([1.0, 2.0])) is None
    assert agreement.spearman(pl.Series([], dtype=pl.Float64), pl.Series([0.1])) is None
    assert agreement.spearman(pl.Series([1.0, 2.0]), pl.Series([5.0, 3.0])) == pytest.approx(-1)


def test_spearman_gives_ties_their_mean_rank():
    # ranks 1.5 1.5 3 4 against 1 2 3 4: 4.5 / sqrt(4.5 x 5)
    tied = pl.Series([0.1, 0.1, 0.2, 0.3])
    assert agreement.spearman(tied, pl.Series([1, 2, 3, 4])) == pytest.approx(0.9**0.5)


@pytest.mark.parametrize(
    ("gaps", "expected"),
    [
        # MSB .16, MSW .02, k0 2
        ({"a": [0.2, 0.4], "b": [0.6, 0.8]}, (0.16 - 0.02) / (0.16 + 0.02)),
        # MSB .192, MSW .08 / 3, k0 (5 - 13 / 5) / 1 = 2.4; the single reply of c is left out
        (
            {"a": [0.2, 0.4], "b": [0.6, 0.6, 0.9], "c": [0.1]},
            (0.192 - 0.08 / 3) / (0.192 + 1.4 * 0.08 / 3),
        ),
        # MSB 0, MSW .02, k0 2: below 0 where replies to one pair differ more than pairs do
        ({"a": [0.2, 0.4], "b": [0.2, 0.4]}, -1.0),
        ({"a": [0.2, 0.2], "b": [0.2, 0.2]}, None),
        ({"a": [0.2, 0.4]}, None),
    ],
)
def test_intraclass_correlation(gaps, expected):
    rows = [(name, "x", gap) for name, pair_gaps in gaps.items() for gap in pair_gaps]
    replies = pl.DataFrame(rows, schema=["pair_id", "teacher", "gap"], orient="row")
    ((teacher, pairs, icc, *_),) = agreement.intraclass_correlation(replies).rows()
    assert teacher == "x"
    assert pairs == sum(len(pair_gaps) > 1 for pair_gaps in gaps.values())
    assert icc == (None if expected is None else pytest.approx(expected))


def signatures_of(shares, replies=None):
    """The signatures of betas that stand so in the envelope, without any reply if None is given."""
    schedule = load_schedule(SCHEDULE)
    table = pl.DataFrame({"beta": [0.03 * (1 - share) + 0.3 * share for share in shares]})
    betas = BetaTable(table=table, arm=Arm(of=schedule), annotations_hash="")
    none = pl.DataFrame(schema={"pair_id": pl.String, "teacher": pl.String, "gap": pl.Float64})
    readings = none.rename({"teacher": "reader"})
    return {
        check.name: check
        for check in signatures.check_betas(
            betas, none if replies is None else replies, readings, draws=20
        )
    }


# Wilson's lower end of 26 of 40 is 0.495, of 27 of 40 is 0.520.
@pytest.mark.parametrize(
    ("inside", "verdict"), [(9, "ok"), (10, "look"), (26, "look"), (27, "bad")]
)
@pytest.mark.parametrize(
    ("name", "border", "unclumped"), [("clumped-low", 0.05, 0.06), ("clumped-high", 0.95, 0.94)]
)
def test_clumps_are_counted_with_the_border_of_their_end(name, border, unclumped, inside, verdict):
    check = signatures_of([border] * inside + [unclumped] * (40 - inside))[name]
    assert check.value == inside / 40
    assert check.verdict == verdict
    assert check.low < check.value < check.high


@pytest.mark.parametrize(("half", "verdict"), [(0.2, "ok"), (0.08, "look"), (0.03, "bad")])
def test_spread_is_the_deviation_over_the_width_of_the_envelope(half, verdict):
    check = signatures_of([0.5 - half, 0.5 + half] * 10)["no-spread"]
    assert check.value == pytest.approx(half)
    assert check.verdict == verdict


def test_the_interval_of_a_deviation_follows_from_the_fourth_moment():
    # Two values at a distance of 0.2 from their mean: m4 = s^4, so Var(s^2) = s^4 (2 / 19) / 20.
    check = signatures_of([0.3, 0.7] * 10)["no-spread"]
    error = math.sqrt(2 / 19 / 20) / 2
    centre = 0.2 * math.sqrt(20 / 19)
    assert check.high / centre == pytest.approx(math.exp(2.093024 * error), rel=1e-6)
    assert centre / check.low == pytest.approx(math.exp(2.093024 * error), rel=1e-6)


def check_of(value, low, high, *, look, bad, needs_proof=False):
    return signatures.Check(
        name="", title="", measure="", unit="share", top=1.0, look=look, bad=bad, reason=None,
        value=value, low=low, high=high, advice="", needs_proof=needs_proof,
    ).verdict  # fmt: skip


def test_a_verdict_is_that_of_the_interval():
    assert check_of(0.6, 0.51, 0.7, look=0.3, bad=0.5) == "bad"
    assert check_of(0.6, 0.49, 0.7, look=0.3, bad=0.5) == "look"
    assert check_of(0.2, 0.1, 0.51, look=0.3, bad=0.5) == "look"  # may be bad
    assert check_of(0.2, 0.1, 0.49, look=0.3, bad=0.5) == "ok"
    assert check_of(0.0, -0.1, 0.1, look=0.1, bad=0.0) == "look"
    assert check_of(-0.1, -0.2, 0.0, look=0.1, bad=0.0) == "bad"
    assert check_of(0.6, None, None, look=0.3, bad=0.5) == "bad"
    # Where validity must be shown, an interval that contains the threshold is bad.
    assert check_of(0.8, -0.1, 0.9, look=1.0, bad=0.0, needs_proof=True) == "bad"
    assert check_of(0.8, 0.1, 1.5, look=1.0, bad=0.0, needs_proof=True) == "look"
    assert check_of(1.8, 0.1, 3.5, look=1.0, bad=0.0, needs_proof=True) == "ok"
    # Without a threshold, a fact.
    assert check_of(1.0, 0.9, 1.0, look=0.3, bad=None) == "look"
    assert check_of(0.1, 0.0, 0.9, look=0.3, bad=None) == "ok"


def test_a_few_pairs_get_numbers_but_no_verdicts():
    checks = signatures_of([0.0] * 19)
    assert checks["clumped-low"].value == 1
    assert checks["clumped-low"].verdict == "cannot be told"
    assert "19" in checks["clumped-low"].reason


def annotated(new_store, reading, *, count=40, teachers=("x", "y", "z"), variants=VARIANTS):
    """A store in which `reading(number, teacher, variant)` gives the magnitudes."""
    pairs = [pair(number) for number in range(count)]
    store = new_store()
    entries = [
        says(pair, teacher, variant, reading(number, teacher, variant))
        for number, pair in enumerate(pairs)
        for teacher in teachers
        for variant in variants
    ]
    fill(store, source_rows(*pairs), entries, teachers=teachers)
    return report_on(store)


def test_teachers_that_see_the_same_look_right(new_store):
    strict = {"x": 0, "y": 1, "z": 2}
    report = annotated(new_store, lambda number, teacher, _: number % 8 + strict[teacher])
    assert values(report)["guessing"] == pytest.approx(1)
    assert values(report)["wavering"] == pytest.approx(1)
    assert set(verdicts(report).values()) == {"ok"}


def test_teachers_that_roll_dice_are_found_out(new_store):
    dice = random.Random(0)
    report = annotated(new_store, lambda *_: dice.randint(0, 10))
    assert verdicts(report)["guessing"] == "bad"
    assert verdicts(report)["wavering"] == "bad"


def test_teachers_that_are_sure_of_a_guess_do_not_waver_but_guess(new_store):
    dice = random.Random(0)
    rolled = {(n, t): dice.randint(0, 10) for n in range(40) for t in "xyz"}
    report = annotated(new_store, lambda number, teacher, _: rolled[number, teacher])
    assert verdicts(report)["guessing"] == "bad"
    assert verdicts(report)["wavering"] == "ok"


def test_a_teacher_may_have_the_name_of_a_column(new_store):
    teachers = ("pair_id", "pairs", "reader")
    report = annotated(new_store, lambda n, *_: n % 11, teachers=teachers)
    assert values(report)["guessing"] == pytest.approx(1)


def test_the_one_teacher_that_wavers_is_named(new_store):
    dice = random.Random(0)
    report = annotated(
        new_store, lambda number, teacher, _: dice.randint(0, 10) if teacher == "y" else number % 11
    )
    wavering = report["signatures"][4]
    assert wavering["verdict"] == "bad"
    assert wavering["note"] == "the worst of 3: y"


def test_the_named_teacher_is_the_one_whose_interval_decides():
    draw = np.random.default_rng(0)
    # Guesses about many pairs, and about 20 pairs that happen to be still less consistent.
    guesses = draw.random((2000, 2))
    first = np.linspace(0, 1, 20)
    rows = [("many", n, gap) for n, gaps in enumerate(guesses) for gap in gaps]
    few = zip(first, np.roll(first, 5), strict=True)
    rows += [("few", n, gap) for n, gaps in enumerate(few) for gap in gaps]
    replies = pl.DataFrame(
        {
            "pair_id": [str(number) for _, number, _ in rows],
            "teacher": [teacher for teacher, _, _ in rows],
            "gap": [gap for _, _, gap in rows],
        }
    )
    by_teacher = {
        row["teacher"]: row for row in agreement.intraclass_correlation(replies).to_dicts()
    }
    assert by_teacher["few"]["icc"] < by_teacher["many"]["icc"]
    assert by_teacher["many"]["high"] < 0.2 < by_teacher["few"]["high"]
    wavering = signatures_of([0.5] * 20, replies)["wavering"]
    assert wavering.verdict == "bad"
    assert wavering.note == "the worst of 2: many"


def test_one_teacher_and_one_variant_leave_two_verdicts_open(new_store):
    report = annotated(new_store, lambda n, *_: n % 11, teachers=("x",), variants=("direct",))
    verdict_by_name = verdicts(report)
    assert verdict_by_name.pop("guessing") == verdict_by_name.pop("wavering") == "cannot be told"
    assert set(verdict_by_name.values()) == {"ok"}
    assert report["agreement"]["between_teachers"] == []
    assert report["agreement"]["between_variants"] == []


def test_equal_gaps_have_no_spread_and_no_order(new_store):
    report = annotated(new_store, lambda *_: 5)
    assert values(report)["no-spread"] == pytest.approx(0)
    verdict_by_name = verdicts(report)
    assert verdict_by_name["no-spread"] == "bad"
    assert verdict_by_name["guessing"] == verdict_by_name["wavering"] == "cannot be told"


def test_a_teacher_that_always_says_the_same_is_left_out_by_name(new_store):
    report = annotated(new_store, lambda number, teacher, _: 5 if teacher == "z" else number % 11)
    guessing, wavering = report["signatures"][3:5]
    assert guessing["value"] == pytest.approx(1)
    assert guessing["note"] == "2 of 3 comparisons left out"
    assert wavering["note"] == "the worst of 2: x; left out: z"


def test_one_pair_gives_numbers_and_no_verdict(new_store):
    report = annotated(new_store, lambda *_: 5, count=1)
    assert set(verdicts(report).values()) == {"cannot be told"}
    assert all(check["reason"] for check in report["signatures"])
    assert report["beta"]["mean"] == pytest.approx(0.165)


def test_without_any_beta_nothing_is_told(three):
    report = report_on(three[0], quorum=10)
    clumps_and_spread = list(verdicts(report).values())[:3]
    assert clumps_and_spread == ["cannot be told"] * 3
    assert report["beta"]["mean"] is report["beta"]["max"] is None
    assert report["beta"]["without_beta"] == 3
    assert report["beta"]["without_reply"] == 0
    assert report["most_telling"] == report["least_telling"] == []
    assert sum(row["without_beta"] for row in report["categories"]) == 3


def test_any_rubric_in_any_language_will_do(new_store):
    mapping = load_rubric("semantic-gap").as_mapping()
    names = {"安全": "危険", "文体": "好み", "なし": "差がない"}
    scale = {"min": 1, "max": 5, "text": "1-5"}
    rubric = parse_rubric(mapping | {"categories": names, "magnitude": scale}, where="test")
    pairs = [pair(number) for number in range(2)]
    store = new_store()
    entries = [
        says(pairs[0], "x", "direct", 5, category="安全"),
        says(pairs[1], "x", "direct", 1, category="なし"),
    ]
    fill(store, source_rows(*pairs), entries, teachers=("x",), rubric=rubric)
    report = report_on(store)
    assert [row["name"] for row in report["categories"]] == list(names)
    assert [row["gap"] for row in report["categories"]] == [1, None, 0]
    assert [category["name"] for category in report["histogram"]["categories"]] == list(names)


def test_a_store_without_pairs_has_nothing_to_report(new_store):
    store = new_store()
    store.record_panel(panel_of("x"))
    store.add_replies([says(pair(0), "x", "direct", 5)])
    with pytest.raises(ValueError, match="nothing to report"):
        report_on(store)


@pytest.fixture
def blind(new_store):
    """Three pairs under the blind rubric: one upheld, one disputed, one that teachers cancel."""
    upheld, disputed, open_ = (pair(number) for number in range(3))
    store = new_store()
    entries = [
        says(upheld, "x", "direct", 8, better="A", rationale="A it is"),
        says(upheld, "x", "direct", 8, better="A", order=REJECTED_FIRST, rationale="A again"),
        says(upheld, "y", "direct", 6, better="B", order=REJECTED_FIRST, rationale="B it is"),
        says(disputed, "x", "direct", 9, better="A", order=REJECTED_FIRST, rationale="A is true"),
        says(disputed, "y", "direct", 3, better="tie"),
        says(open_, "x", "direct", 3, better="A"),
        says(open_, "y", "direct", 3, better="B"),
        refused_reply(open_, "y", "critic", "empty"),
    ]
    fill(store, source_rows(upheld, disputed, open_), entries, rubric=BLIND)
    return store, (upheld, disputed, open_)


def test_a_blind_run_counts_both_orders_and_the_disputed_labels(blind):
    report = report_on(blind[0])
    # three pairs, two teachers, the two variants that were heard, two orders
    assert report["replies"] == {
        "asked": 24, "kept": 7, "refused": 1, "spared": 0, "pending": 16,
    }  # fmt: skip
    assert report["disputed"] == {
        "pairs": 1, "of": 3, "share": pytest.approx(1 / 3), "signed_gap": pytest.approx(-0.45),
    }  # fmt: skip
    places = {teacher["teacher"]: teacher for teacher in report["position"]}
    assert (places["x"]["both"], places["y"]["both"]) == (1, 0)
    assert places["x"]["first"]["share"] == 1
    assert places["y"]["first"]["share"] is None
    assert report["rubric"]["protocol"] == "blind"


def test_a_labelled_run_has_no_disputes_and_no_places(three):
    report = report_on(three[0])
    assert report["disputed"] is report["position"] is report["most_disputed"] is None
    assert report["rubric"]["protocol"] == "labelled"


def test_the_most_disputed_label_is_shown_with_what_its_reader_called_a(blind):
    store, (upheld, disputed, _) = blind
    report = report_on(store)
    (shown,) = report["most_disputed"]
    assert shown["pair_id"] == disputed.id
    assert (shown["gap"], shown["signed_gap"]) == (0, pytest.approx(-0.45))
    # -.9 and 0 are equally far from -.45: the first by teacher
    assert shown["rationale"]["rationale"] == "A is true"
    assert shown["rationale"]["a"] == "rejected"
    first = report["most_telling"][0]
    assert first["pair_id"] == upheld.id
    assert first["rationale"]["rationale"] == "B it is"  # .6 to .3; the others are .8 and -.8


def test_teachers_are_compared_by_their_signed_gaps(blind):
    (comparison,) = report_on(blind[0])["agreement"]["between_teachers"]
    # x: 0 (.8 and -.8), -.9, .3; y: .6, 0, -.3
    assert comparison["difference"] == pytest.approx((0.6 + 0.9 + 0.6) / 3)
    assert comparison["spearman"] == pytest.approx(-0.5)  # ranks 2 1 3 against 3 2 1


def test_replies_that_an_adaptive_panel_spares_are_not_pending(new_store):
    settled_pair, open_pair = pair(0), pair(1)
    store = new_store()
    store.corpus.add(Source(name="hand.jsonl"), source_rows(settled_pair, open_pair))
    store.record_panel(replace(panel_of("x", "y"), budget="adaptive"))
    store.add_replies(
        [
            says(settled_pair, "x", "direct", 5),
            says(settled_pair, "y", "direct", 5),
            says(settled_pair, "x", "critic", 5),
        ],
        [SettledPair(pair_id=settled_pair.id, replies=3, chance=0.99)],
    )
    # the variants that were heard: direct and critic
    assert report_on(store)["replies"] == {
        "asked": 8, "kept": 3, "refused": 0, "spared": 1, "pending": 4,
    }  # fmt: skip


def test_a_report_on_expectations_reads_expectations(new_store):
    first_pair, second_pair = pair(0), pair(1)
    store = new_store()
    entries = [
        says(first_pair, "x", "direct", 9, expected=(2.5, 10.0), rationale="near"),
        says(first_pair, "x", "critic", 9, rationale="no expectations"),
        says(second_pair, "x", "direct", 9, expected=(7.5, 10.0)),
    ]
    fill(store, source_rows(first_pair, second_pair), entries, teachers=("x",))
    report = report_on(store, estimate="expected")
    assert report["beta"]["min"] == pytest.approx(0.03 + 0.27 * 0.25)
    assert report["least_telling"][0]["rationale"]["rationale"] == "near"
    assert report["least_telling"][0]["votes"] == 1
    assert report["replies"]["kept"] == 3
