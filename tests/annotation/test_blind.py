"""The blind protocol: no request tells the label, and what the teachers see can dispute it."""

import json
import re

import polars as pl
import pytest

from servers.openai_server import serving
from sp2dpo.betas.estimators import JMAMP
from sp2dpo.betas.gaps import compute_gaps
from sp2dpo.betas.schedule import load_schedule, schedule_betas
from sp2dpo.diagnostics.agreement import Proportion, compare_orders, wilson_interval
from sp2dpo.pairs.pair import Pair
from sp2dpo.panel.annotation import Refusal, parse_annotation
from sp2dpo.panel.rubric import BETTER, CHOSEN_FIRST, REJECTED_FIRST, load_rubric, parse_rubric
from support.harness import BUILD, DEMO, SCHEDULE, filled, kept_reply, succeed, write_panel

BLIND = load_rubric("semantic-gap-blind")
LABELLED = load_rubric("semantic-gap")
ORDERS = (CHOSEN_FIRST, REJECTED_FIRST)
PAIR = Pair(
    prompt=({"role": "user", "content": "Which sea is saltier?"},),
    chosen=({"role": "assistant", "content": "The Dead Sea."},),
    rejected=({"role": "assistant", "content": "The Baltic."},),
)
GOOD = {"rationale": "x", "category": "style", "better": "A", "magnitude": 3, "confidence": 9}


def request_text(order, variant="direct", pair=PAIR):
    return BLIND.messages(pair, variant, order)[-1]["content"]


def test_no_word_of_a_request_tells_which_response_is_preferred():
    for order in ORDERS:
        for variant in BLIND.variants:
            text = json.dumps([BLIND.messages(PAIR, variant, order), BLIND.schema()]).lower()
            assert not re.search(r"chosen|rejected|prefer|label|winner|loser|dispute", text)


def test_the_two_orders_of_a_request_differ_in_the_place_of_the_responses_alone():
    chosen_first, rejected_first = (request_text(order) for order in ORDERS)
    assert chosen_first.index("The Dead Sea.") < chosen_first.index("The Baltic.")
    assert "response A (assistant)\nThe Dead Sea." in chosen_first
    assert "response A (assistant)\nThe Baltic." in rejected_first
    swapped = chosen_first.replace("The Dead Sea.", "@").replace("The Baltic.", "The Dead Sea.")
    assert swapped.replace("@", "The Baltic.") == rejected_first


def test_a_response_of_several_turns_stays_in_one_place():
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "look"}]}
    pair = Pair(prompt=PAIR.prompt, chosen=(call, PAIR.chosen[0]), rejected=PAIR.rejected)
    heads = re.findall(r"#[0-9a-f]{16}# (.+) \(", request_text(REJECTED_FIRST, pair=pair))
    assert heads == ["prompt", "response A", "response B", "response B"]


def test_which_order_is_asked_first_is_drawn_by_the_pairs_id():
    ids = [f"{number:064x}" for number in range(1000)]
    assert all(set(BLIND.orders(pair_id)) == set(ORDERS) for pair_id in ids)
    first = [BLIND.orders(pair_id)[0] for pair_id in ids]
    assert first == [BLIND.orders(pair_id)[0] for pair_id in ids]
    assert 450 < first.count(CHOSEN_FIRST) < 550
    assert LABELLED.orders(ids[0]) == (CHOSEN_FIRST,)


def test_the_labelled_protocol_never_shows_the_rejected_response_first():
    with pytest.raises(ValueError, match="the labelled protocol has no order 'rejected-first'"):
        LABELLED.messages(PAIR, "direct", REJECTED_FIRST)
    with pytest.raises(ValueError, match="the blind protocol has no order 'random'"):
        BLIND.messages(PAIR, "direct", "random")


def test_a_reply_says_which_is_better_before_it_says_by_how_much():
    fields = BLIND.schema()["properties"]
    assert list(fields) == ["rationale", "category", "better", "magnitude", "confidence"]
    assert fields["better"] == {"type": "string", "enum": ["A", "B", "tie"]}
    assert BLIND.schema()["required"] == list(fields)


def test_both_packaged_rubrics_sort_by_the_same_categories_on_the_same_scales():
    assert list(BLIND.categories.items()) == list(LABELLED.categories.items())
    assert list(BLIND.variants) == list(LABELLED.variants)
    for scale in ("magnitude", "confidence"):
        blind_scale, labelled_scale = getattr(BLIND, scale), getattr(LABELLED, scale)
        assert (blind_scale.min, blind_scale.max) == (labelled_scale.min, labelled_scale.max)


def test_a_rubric_says_its_protocol_and_a_labelled_one_need_not():
    mapping = LABELLED.as_mapping()
    assert "protocol" not in mapping
    written_out = parse_rubric(mapping | {"protocol": "labelled"}, where="x")
    assert (written_out, written_out.hash) == (LABELLED, LABELLED.hash)
    assert BLIND.as_mapping()["protocol"] == "blind"
    assert parse_rubric(json.loads(json.dumps(BLIND.as_mapping())), where="x").hash == BLIND.hash


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"protocol": "blnd"}, "protocol: 'blnd' is not known, did you mean 'blind'?"),
        ({"protocol": ["blind"]}, "protocol: ['blind'] is not known, did you mean 'blind'?"),
        ({"protocol": None}, "protocol: None is not known (known: labelled, blind)"),
        ({"protocol": "labelled"}, "parts: unknown key 'a'; unknown key 'b'; missing key 'chosen'"),
        ({"parts": LABELLED.parts}, "parts: unknown key 'chosen'"),
        ({"parts": {"prompt": "p", "a": "x", "b": "x"}}, "parts: a and b are both called 'x'"),
    ],
)
def test_a_blind_rubric_that_makes_no_sense_is_named(change, message):
    with pytest.raises(ValueError, match=r"^here: ") as error:
        parse_rubric(BLIND.as_mapping() | change, where="here")
    assert message in str(error.value)


@pytest.mark.parametrize("better", BETTER)
def test_a_blind_reply_is_read(better):
    assert parse_annotation(json.dumps(GOOD | {"better": better}), BLIND).better == better


@pytest.mark.parametrize("better", ["a", "C", "", "A ", "chosen", None, True, 1, ["A"], {}])
def test_what_is_better_is_said_to_the_letter(better):
    with pytest.raises(Refusal, match="is not one of A, B, tie"):
        parse_annotation(json.dumps(GOOD | {"better": better}), BLIND)


def test_neither_protocol_takes_the_others_replies():
    plain = {key: value for key, value in GOOD.items() if key != "better"}
    assert parse_annotation(json.dumps(plain), LABELLED).better is None
    with pytest.raises(Refusal, match=r"^schema: keys .* instead of rationale, category, better"):
        parse_annotation(json.dumps(plain), BLIND)
    with pytest.raises(
        Refusal, match=r"^schema: keys .* instead of rationale, category, magnitude"
    ):
        parse_annotation(json.dumps(GOOD), LABELLED)


def test_a_tie_of_whatever_magnitude_counts_as_nothing(new_store):
    store = new_store()
    (pair_id,) = filled(store, 1, "a", rubric=BLIND)
    assert parse_annotation(json.dumps(GOOD | {"better": "tie"}), BLIND).magnitude == 3
    store.add_replies(
        [kept_reply(pair_id, "a", "direct", 3, 10, order=o, better="tie") for o in ORDERS]
    )
    assert row_of(store)["signed_gap"] == 0


def row_of(store):
    (row,) = compute_gaps(store.annotations(), JMAMP).iter_rows(named=True)
    return row


def test_the_signed_gap_is_the_mean_over_orders_then_the_median_then_the_mean(new_store):
    store = new_store()
    (pair_id,) = filled(store, 1, "a", "b", rubric=BLIND)
    for teacher, variant, order, better, magnitude in [
        ("a", "direct", CHOSEN_FIRST, "A", 8),  # chosen: +.8
        ("a", "direct", REJECTED_FIRST, "B", 4),  # chosen: +.4; the mean is .6
        ("a", "critic", CHOSEN_FIRST, "A", 6),  # +.6
        ("a", "critic", REJECTED_FIRST, "A", 8),  # rejected: -.8; the mean is -.1
        ("a", "reader", CHOSEN_FIRST, "B", 9),  # -.9
        ("a", "reader", REJECTED_FIRST, "tie", 0),  # 0; the mean is -.45; the median of a is -.1
        ("b", "direct", CHOSEN_FIRST, "B", 5),  # -.5, alone
    ]:
        store.add_replies(
            [kept_reply(pair_id, teacher, variant, magnitude, 10, order=order, better=better)]
        )
    row = row_of(store)
    assert row["signed_gap"] == pytest.approx((-0.1 - 0.5) / 2)
    assert (row["gap"], row["label_disputed"]) == (0, True)
    assert row["spread"] == pytest.approx((0.5 - 0.1) / 2)
    assert row["magnitude"] == pytest.approx((6 + 5) / 2)  # means 6, 7, 4.5; without signs
    assert (row["votes"], row["teachers"]) == (7, 2)


def test_a_positive_signed_gap_is_the_gap(new_store):
    store = new_store()
    (pair_id,) = filled(store, 1, "a", rubric=BLIND)
    store.add_replies([kept_reply(pair_id, "a", "direct", 7, 5, order=REJECTED_FIRST, better="B")])
    row = row_of(store)
    assert row["gap"] == row["signed_gap"] == pytest.approx(0.35)
    assert row["label_disputed"] is False


def test_teachers_that_cancel_each_other_dispute_nothing(new_store):
    store = new_store()
    (pair_id,) = filled(store, 1, "a", "b", "c", rubric=BLIND)
    for teacher, better, magnitude in (("a", "A", 1), ("b", "A", 2), ("c", "B", 3)):
        store.add_replies([kept_reply(pair_id, teacher, "direct", magnitude, 10, better=better)])
    row = row_of(store)
    assert 0.1 + 0.2 - 0.3 != 0
    assert (row["signed_gap"], row["gap"], row["label_disputed"]) == (0, 0, False)


def test_a_disputed_pair_has_the_smallest_beta_and_no_verdict_below_the_quorum(new_store):
    store = new_store()
    disputed, unheard = filled(store, 2, "a", rubric=BLIND)
    store.add_replies(
        [kept_reply(disputed, "a", v, 9, 9, better="B") for v in ("direct", "critic", "reader")]
    )
    store.add_replies([kept_reply(unheard, "a", "direct", 9, 9, better="B")])
    table = schedule_betas(store.annotations(), load_schedule(SCHEDULE))
    rows = {row["pair_id"]: row for row in table.iter_rows(named=True)}
    assert rows[disputed]["beta"] == 0.03
    assert rows[disputed]["signed_gap"] == pytest.approx(-0.81)
    assert rows[disputed]["label_disputed"] is True
    shown = {key: rows[unheard][key] for key in ("beta", "gap", "signed_gap", "label_disputed")}
    assert shown == dict.fromkeys(shown)


def test_the_labelled_protocol_disputes_no_label(new_store):
    store = new_store()
    (pair_id,) = filled(store, 1, "a")
    store.add_replies([kept_reply(pair_id, "a", "direct", 4, 5)])
    row = row_of(store)
    assert row["gap"] == row["signed_gap"] == pytest.approx(0.2)
    assert row["label_disputed"] is None


def test_the_hash_of_annotations_covers_what_a_blind_reply_adds(new_store):
    def hash_of(name, **fields):
        store = new_store(name)
        (pair_id,) = filled(store, 1, "a", rubric=BLIND)
        store.add_replies([kept_reply(pair_id, "a", "direct", 5, 5, **fields)])
        return store.annotations().hash

    hashes = [
        hash_of("1", better="A"),
        hash_of("2", better="B"),
        hash_of("3", better="A", order=REJECTED_FIRST),
        hash_of("4", better="A", expected=(5.5, 5.0)),
        hash_of("5", better="A", expected=(5.0, 5.5)),
        hash_of("6", better="A", expected=(5.5, None)),
    ]
    assert len(set(hashes)) == 6
    assert hash_of("7", better="A") == hashes[0]


def position_of(*answers):
    """The table of one teacher that gave these two answers about a pair, one in each order."""
    rows = [
        (f"{number}", "x", "direct", order, better)
        for number, answer in enumerate(answers)
        for order, better in zip(ORDERS, answer, strict=False)
    ]
    schema = ["pair_id", "teacher", "variant", "order", "better"]
    return compare_orders(pl.DataFrame(rows, schema=schema, orient="row"), ["x", "silent"])


def test_a_response_a_place_or_a_tie_is_what_a_teacher_names_twice():
    position, silent = position_of(
        "AB", "AB", "BA",  # the chosen one twice, twice, and the rejected one
        "AA", "AA", "BB",  # the first place, the first place, the second
        ("tie", "A"), ("B", "tie"), ("tie", "tie"),
        "A",  # read in one order only
    )  # fmt: skip
    assert position.both == 9
    counts = [
        part.count for part in (position.consistent, position.first, position.second, position.tie)
    ]
    assert counts == [3, 2, 1, 3]
    assert position.first == wilson_interval(2, 9)
    assert silent.both == 0
    assert silent.tie == Proportion(count=0, share=None, low=None, high=None)


@pytest.mark.parametrize(
    # By hand, z = 1.96: (p + z2/2n -+ z sqrt(p (1 - p) / n + z2/4n2)) / (1 + z2/n).
    ("count", "total", "low", "high"),
    [
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (5, 10, 0.2366, 0.7634),
        (20, 100, 0.1334, 0.2888),
    ],
)
def test_wilsons_interval_stays_inside_its_scale(count, total, low, high):
    interval = wilson_interval(count, total)
    assert interval.share == count / total
    assert interval.low == pytest.approx(low, abs=1e-4)
    assert interval.high == pytest.approx(high, abs=1e-4)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The demo corpus, read blind by two teachers that lean on the first place."""
    folder = tmp_path_factory.mktemp("blind")
    store, table = folder / "run.sqlite", folder / "betas.parquet"
    options = ["--store", store, "--betas", table]
    with serving("position") as url:
        panel = write_panel(
            folder / "panel.yaml",
            url,
            names=("leans-20", "leans-50"),
            rubric="semantic-gap-blind",
        )
        pairs = DEMO / "pairs.jsonl"
        output = succeed("annotate", "--pairs", pairs, "--panel", panel, "--store", store)
    assert "1152 asked for = 1152 kept + 0 refused + 0 pending" in output
    succeed("schedule", "--store", store, "--schedule", SCHEDULE, "--out", table)
    succeed(*BUILD, *options, "--out", folder / "dataset")
    report = succeed("report", *options, "--out", folder / "report.html", "--json")
    (folder / "report.json").write_text(report)
    return folder


def test_planted_wrong_labels_are_disputed(finished):
    rows = pl.read_parquet(finished / "dataset" / "data" / "*.parquet")
    planted = pl.read_ndjson(DEMO / "planted.jsonl").select("label_flipped", source_id="pair_id")
    joined = rows.join(planted, on="source_id")
    right = joined.filter("label_disputed", "label_flipped").height
    recall = right / joined["label_flipped"].sum()
    precision = right / joined["label_disputed"].sum()
    assert len(joined) == 96
    # Where two responses do not differ, teachers that lean can still seem to prefer one.
    assert min(recall, precision) >= 0.8, f"recall {recall:.2f}, precision {precision:.2f}"


def test_the_lean_of_each_teacher_is_found_within_its_interval(finished):
    positions = json.loads((finished / "report.json").read_text())["position"]
    assert [position["teacher"] for position in positions] == ["leans-20", "leans-50"]
    for position, lean in zip(positions, (0.2, 0.5), strict=True):
        # 6 of the 96 pairs differ in nothing: there it takes two leaning replies, and one that
        # does not lean is a tie. Elsewhere a teacher leans where the better response stands second.
        expected = {
            "consistent": 90 * (1 - lean),
            "first": 90 * lean + 6 * lean**2,
            "second": 0,
            "tie": 6 * (1 - lean**2),
        }
        assert position["both"] == 288
        for kind, count in expected.items():
            share = position[kind]
            assert share["low"] <= count / 96 <= share["high"], (position["teacher"], kind, share)


def test_explain_arrives_at_the_same_signed_gap_and_beta(finished):
    options = ["--store", finished / "run.sqlite", "--betas", finished / "betas.parquet"]
    table = pl.read_parquet(finished / "betas.parquet").sort("signed_gap")
    lines = succeed("explain", table["pair_id"][0], *options).splitlines()
    assert any(line.endswith(", so the label is disputed") for line in lines)
    assert "beta  0.03 + (0.3 - 0.03) x 0 = 0.03" in lines
    assert "gap   max(0, " in succeed("explain", table["pair_id"][-1], *options)


def test_the_data_set_holds_both_orders_and_says_so(finished):
    replies = pl.read_parquet(finished / "dataset" / "annotations" / "*.parquet")
    assert len(replies) == 96 * 2 * 3 * 2
    assert set(replies["order"]) == set(ORDERS)
    assert set(replies["better"]) == {"A", "B", "tie"}
    assert replies["logprobs"].null_count() == len(replies)
    card = (finished / "dataset" / "README.md").read_text()
    manifest = json.loads((finished / "dataset" / "manifest.json").read_text())
    disputed = manifest["counts"]["labels_disputed"]
    assert f"{disputed} labels are disputed" in card
    assert manifest["rubric"]["protocol"] == "blind"
    assert "Protocol: blind" in card


def test_the_page_draws_the_places_and_the_disputes(finished):
    page = (finished / "report.html").read_text()
    for text in (
        "Consistency over both orders",
        "labels disputed (",
        "Most disputed labels",
    ):
        assert page.count(text) == 1


def test_a_second_schedule_changes_no_byte(finished, tmp_path):
    again = tmp_path / "betas.parquet"
    succeed(
        "schedule", "--store", finished / "run.sqlite", "--schedule", SCHEDULE, "--out", again
    )  # fmt: skip
    assert again.read_bytes() == (finished / "betas.parquet").read_bytes()
