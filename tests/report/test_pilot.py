"""A pilot: which pairs are tried, what is found, what it forecasts, and when it says no."""

import json
import random
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml

from sp2dpo.annotation.dry_run import plan_lines
from sp2dpo.betas.maps import Quantile
from sp2dpo.diagnostics.agreement import OrderConsistency, Proportion
from sp2dpo.diagnostics.checks import Check
from sp2dpo.diagnostics.gold import Truth, compare_with_gold, match_pairs, read_gold
from sp2dpo.inference.client import Reply
from sp2dpo.inference.endpoint import Endpoint, Price
from sp2dpo.inference.serve import Serve
from sp2dpo.inference.vllm import command_lines
from sp2dpo.pairs.pair import Pair
from sp2dpo.pairs.sample import SkippedPairs, draw_sample, read_sampled
from sp2dpo.pairs.sources import SetAside, Source, SourceRow
from sp2dpo.panel.annotation import Annotation, Key
from sp2dpo.panel.panel import Panel
from sp2dpo.panel.rubric import load_rubric
from sp2dpo.report.cost import CostProjection, compare_with_sweep, measure_usage, project_costs
from sp2dpo.report.pilot import DEFAULT_SCHEDULE, Trial, evaluate_pilot, run_pilot
from sp2dpo.report.text import pilot_lines, verdict_lines
from sp2dpo.report.verdict import decide
from sp2dpo.store.questions import Shard
from sp2dpo.store.records import ReplyRecord
from sp2dpo.store.store import Store
from sp2dpo.store.usage import Usage
from sp2dpo.text import json_values
from support.harness import DEMO, fail, pairs_of, run, succeed, write_pairs, write_panel

PAIRS, PLANTED = DEMO / "pairs.jsonl", DEMO / "planted.jsonl"
READERS = ("reader-a", "reader-b", "reader-c")
LABELLED, BLIND = load_rubric("semantic-gap"), load_rubric("semantic-gap-blind")


def row(number, prompt, chosen=10, rejected=10):
    """A row whose texts are so long."""
    return SourceRow(
        row=number,
        pair=Pair(
            prompt=({"role": "user", "content": f"{number:04} ".ljust(prompt, "p")},),
            chosen=({"role": "assistant", "content": "c" * chosen},),
            rejected=({"role": "assistant", "content": "r" * rejected},),
        ),
        source_id=f"q{number}",
    )


def a_teacher(name="a", **settings):
    settings = {"base_urls": ("http://127.0.0.1:9/v1",)} | settings
    sampling = {"temperature": 0, "max_tokens": 100}
    return Endpoint(name=name, model=name, revision=None, sampling=sampling, **settings)


def panel_of(*teachers, rubric=LABELLED, variants=("direct", "critic", "reader"), **settings):
    return Panel(rubric=rubric, variants=variants, teachers=teachers, **settings)


def rules_of(pilot):
    """The rules of a pilot, from its result or from its JSON, by name."""
    return {rule["name"]: rule for rule in json_values(pilot)["verdict"]["rules"]}


# The sample


def test_every_stratum_gives_its_share_of_the_sample():
    # Nine kinds of pairs, each with its own lengths: 30, 60 or 90 of each length of the prompt.
    rows = [
        row(number, prompt=100 * (1 + number % 3), chosen=50 + 20 * (number // 3 % 3))
        for number in range(180)
    ]
    sample = draw_sample(rows, 18)
    assert len(sample.pair_ids) == 18
    assert [(stratum.prompt, stratum.difference) for stratum in sample.strata] == [
        ((prompt, prompt), (difference, difference))
        for prompt in (100, 200, 300)
        for difference in (40, 60, 80)
    ]
    assert [(stratum.pairs, stratum.sampled) for stratum in sample.strata] == [(20, 2)] * 9


def test_the_same_pairs_are_drawn_whatever_the_order_of_the_rows():
    rows = [row(number, prompt=20 + number % 50, chosen=number % 30 + 1) for number in range(200)]
    turned = rows[::-1]
    random.Random(1).shuffle(turned)
    assert draw_sample(rows, 40).pair_ids == draw_sample(turned, 40).pair_ids


def test_a_larger_sample_is_never_short_and_a_small_corpus_is_taken_whole():
    rows = [row(number, prompt=20 + number % 7) for number in range(50)]
    for n in (1, 7, 23, 49):
        assert len(draw_sample(rows, n).pair_ids) == n
    assert draw_sample(rows, 300).pair_ids == {source_row.pair.id for source_row in rows}


@pytest.mark.parametrize("content", [None, "", []])
def test_a_turn_without_content_has_no_length(content):
    call = {"role": "assistant", "content": content, "tool_calls": [{"function": {"name": "f"}}]}
    silent = row(1, 20)
    silent = replace(silent, pair=replace(silent.pair, chosen=(call,)))
    (stratum,) = draw_sample([silent], 1).strata
    assert stratum.difference == (-10, -10)


def test_repeated_pairs_count_once_and_rows_without_a_pair_are_counted():
    rows = [row(1, 20), row(2, 20), SourceRow(row=3, pair=row(1, 20).pair, source_id="again")]
    sample = draw_sample([*rows, SetAside(row=4, reason="no prompt", raw="{}")], 10)
    assert (sample.rows, sample.pairs, sample.set_aside) == (4, 2, 1)
    assert [source_row.row for source_row in read_sampled(rows, sample)] == [1, 2, 3]


def test_rows_that_are_set_aside_are_named_by_reason():
    aside = [SetAside(row=n, reason="no prompt", raw="{}") for n in range(2, 9)]
    sample = draw_sample([row(1, 20), *aside, SetAside(row=9, reason="not JSON", raw="{")], 1)
    assert sample.set_aside == 8
    assert [(skipped.reason, skipped.count, skipped.rows) for skipped in sample.skipped] == [
        ("no prompt", 7, (2, 3, 4, 5, 6)),
        ("not JSON", 1, (9,)),
    ]


def test_pairs_whose_truth_is_known_are_added_to_the_same_draw():
    rows = [row(number, prompt=20 if number % 2 else 400) for number in range(100)]
    gold_names = [f"q{number}" for number in range(0, 40, 2)]  # all of them long
    sample, alone = draw_sample(rows, 40, add=gold_names), draw_sample(rows, 40)
    gold_ids = {source_row.pair.id for source_row in rows if source_row.source_id in gold_names}
    assert sample.named == 20
    assert sample.drawn_ids == alone.drawn_ids == alone.pair_ids
    assert sample.pair_ids == alone.pair_ids | gold_ids
    assert sample.strata == alone.strata
    assert [stratum.sampled for stratum in sample.strata] == [20, 20]


def test_the_number_of_added_pairs_can_be_stated():
    rows = [row(n, 50) for n in range(60)]
    names = [f"q{n}" for n in range(60)]
    few = draw_sample(rows, 10, add=names, add_most=3)
    assert (len(few.drawn_ids), len(few.pair_ids), few.left_out) == (10, 13, 47)
    many = draw_sample(rows, 10, add=names, add_most=40)
    assert (many.drawn_ids, len(many.pair_ids), many.left_out) == (few.drawn_ids, 50, 10)


def test_no_more_pairs_are_added_than_are_drawn():
    rows = [row(number, prompt=20 + number % 50) for number in range(200)]
    sample = draw_sample(rows, 10, add=[f"q{number}" for number in range(200)])
    assert (len(sample.drawn_ids), len(sample.pair_ids), sample.named) == (10, 20, 200)
    # Pairs that are drawn anyway are not left out: 10 drawn and 10 added of 200.
    assert sample.left_out == 180
    assert draw_sample(rows, 100, add=[f"q{number}" for number in range(200)]).left_out == 0


def test_labels_made_for_a_sample_do_not_change_the_sample():
    rows = [row(number, prompt=20 + number % 50) for number in range(200)]
    sample = draw_sample(rows, 40)
    labelled_ids = sorted(sample.pair_ids)[:25]
    assert draw_sample(rows, 40, add=labelled_ids).pair_ids == sample.pair_ids


# Gold


def gold_file(tmp_path, *lines):
    path = tmp_path / "gold.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_every_way_to_say_a_label_is_understood(tmp_path):
    labels = [
        {"label": "chosen"},
        {"label": "rejected"},
        {"label": "tie"},
        {"label_flipped": True},
        {"label_flipped": False},
        {"label_ok": True},
        {"label_ok": False},
        {"label_flipped": False, "magnitude": 0},
    ]
    path = gold_file(tmp_path, *({"pair_id": str(n)} | label for n, label in enumerate(labels)))
    assert [truth.label for truth in read_gold(path, LABELLED)] == [
        "chosen", "rejected", "tie", "rejected", "chosen", "chosen", "rejected", "tie",
    ]  # fmt: skip
    # A tie has the magnitude 0, whichever of the two is given.
    assert [truth.magnitude for truth in read_gold(path, LABELLED)] == [
        None, None, 0, None, None, None, None, 0,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"pair_id": "a"}, "give exactly one of label, label_flipped, label_ok, not 0"),
        ({"pair_id": "a", "label": "tie", "label_ok": True}, "label_ok, not 2"),
        ({"pair_id": "a", "label": "choosen"}, "'choosen' must be one of"),
        ({"pair_id": "a", "label_ok": 1}, "label_ok must be"),
        ({"pair_id": 7, "label": "tie"}, "pair_id must be"),
        ({"label": "tie"}, "missing key 'pair_id'"),
        ({"pair_id": "a", "lable": "tie"}, "did you mean 'label'"),
        ({"pair_id": "a", "label": "tie", "category": "styl"}, "did you mean 'style'"),
        ({"pair_id": "a", "label": "tie", "magnitude": 11}, "magnitude 11 must be 0 to 10"),
        ({"pair_id": "a", "label": "rejected", "magnitude": 0}, "contradicts a wrong label"),
        ({"pair_id": "a", "label": "tie", "magnitude": 5}, "contradicts magnitude 5"),
        (["a"], "line 1 is not an object but a list"),
    ],
)
def test_a_gold_file_is_read_strictly(tmp_path, line, message):
    with pytest.raises(ValueError, match=r"gold\.jsonl: line 1\b") as error:
        read_gold(gold_file(tmp_path, line), LABELLED)
    assert message in str(error.value)


def test_a_truth_must_not_be_said_twice(tmp_path):
    line = {"pair_id": "q1", "label": "tie"}
    with pytest.raises(ValueError, match="line 2: 'q1' is repeated"):
        read_gold(gold_file(tmp_path, line, line), LABELLED)
    rows = pairs_of(2)
    twice = [Truth(name="q1", label="tie"), Truth(name=rows[0].pair.id, label="tie")]
    with pytest.raises(ValueError, match="are the same pair; keep one line"):
        match_pairs(twice, [(row.pair.id, row.source_id) for row in rows])
    alike = [(row.pair.id, "q1") for row in rows]
    with pytest.raises(ValueError, match="'q1' names several pairs"):
        match_pairs(twice[:1], alike)


def table_of(*signed):
    """A table of betas with these signed gaps; None where a pair has none."""
    return pl.DataFrame(
        {
            "pair_id": [str(n) for n in range(len(signed))],
            "gap": [None if gap is None else max(0.0, gap) for gap in signed],
            "signed_gap": signed,
            "category": ["style"] * len(signed),
            "magnitude": [float(n) for n in range(len(signed))],
        }
    )


def truths_of(*labels, **settings):
    return {str(n): Truth(name=str(n), label=label, **settings) for n, label in enumerate(labels)}


def test_under_the_labelled_protocol_a_low_gap_says_that_the_label_is_not_right():
    table = table_of(0.5, 0.05, 0.04, 0.0, 0.3, None)
    truths = truths_of("chosen", "chosen", "chosen", "tie", "rejected", "chosen")
    comparison = compare_with_gold(table, truths, LABELLED, gold_count=7)
    assert (comparison.truths, comparison.sampled, comparison.judged) == (7, 6, 5)
    assert comparison.labels["chosen"].share == pytest.approx(2 / 3)
    assert comparison.labels["not chosen"].share == 1 / 2
    assert comparison.accuracy.share == 3 / 5
    assert comparison.counts == {"chosen": 3, "not chosen": 2}
    assert comparison.balanced == pytest.approx((2 / 3 + 1 / 2) / 2)
    # Wilson's ends: 2 of 3 is 0.2077 to 0.9385, 1 of 2 is 0.0945 to 0.9055.
    low = 7 / 12 - np.hypot(2 / 3 - 0.207660, 0.5 - 0.094531) / 2
    high = 7 / 12 + np.hypot(0.938511 - 2 / 3, 0.905469 - 0.5) / 2
    assert comparison.balanced_low == pytest.approx(low, abs=1e-5)
    assert comparison.balanced_high == pytest.approx(high, abs=1e-5)
    assert comparison.always_chosen == 3 / 5


def test_under_the_blind_protocol_the_direction_is_judged():
    table = table_of(0.5, -0.5, 0.04, -0.05, -0.04)
    truths = truths_of("chosen", "chosen", "tie", "rejected", "rejected")
    comparison = compare_with_gold(table, truths, BLIND, gold_count=5)
    shares = {label: proportion.share for label, proportion in comparison.labels.items()}
    assert shares == {"chosen": 1 / 2, "rejected": 1 / 2, "tie": 1.0}
    assert comparison.balanced == 1 / 2  # a tie is no direction
    assert comparison.accuracy.count == 3


def test_categories_and_magnitudes_are_compared_where_they_are_known():
    table = table_of(0.5, 0.5, 0.5, 0.5)
    truths = truths_of("chosen", "chosen", "chosen") | {
        "3": Truth(name="3", label="rejected", category="style", magnitude=1)
    }
    detailed_truths = {
        key: Truth(name=key, label=truth.label, category=category, magnitude=magnitude)
        for (key, truth), category, magnitude in zip(
            truths.items(), ("style", "safety", None, "style"), (1, 5, 9, 1), strict=True
        )
    }
    comparison = compare_with_gold(table, detailed_truths, LABELLED, gold_count=4)
    assert (comparison.category.count, comparison.category.share) == (2, 2 / 3)
    assert comparison.magnitude == 1.0  # of 1, 5, 9 with 0, 1, 2; the wrong label is left out
    assert compare_with_gold(table, truths_of("chosen"), LABELLED, gold_count=1).magnitude is None


# What it will take


def test_what_the_pilot_took_is_scaled_to_the_whole_corpus():
    panel = panel_of(
        a_teacher("tokens", price=Price(prompt=2.0, completion=10.0, cached=0.5)),
        a_teacher("hours", price=Price(gpu_hour=3.0, gpus=4)),
        a_teacher("unpriced", base_urls=(), serve=served(gpus=("0", "1"))),
    )
    took = {"requests": 30, "timed": 30, "prompt": 3000, "completion": 600, "cached": 1000}
    used = {
        "tokens": Usage(**took, seconds=36),
        "hours": Usage(**took, seconds=72),
        "unpriced": Usage(**took, seconds=18),
    }
    projection = project_costs(panel, used, sampled=10, pairs=1000)
    tokens, hours, unpriced = projection.teachers
    assert (tokens.requests, tokens.prompt_tokens) == (3000, 300_000)
    assert (tokens.hours, hours.hours, unpriced.hours) == (1, 2, 0.5)
    assert (tokens.gpu_hours, hours.gpu_hours, unpriced.gpu_hours) == (None, 8, 1)
    # 200,000 x 2 + 100,000 x 0.5 + 60,000 x 10 millionths; 8 GPU-hours at 3.
    assert tokens.money == pytest.approx(1.05)
    assert hours.money == 24
    assert projection.money == {"USD": pytest.approx(25.05)}
    assert projection.unpriced == ["unpriced"]
    assert projection.hours == 2 + 0.5  # the first two side by side, then the one that we serve
    assert projection.gpu_hours is None  # nobody knows those of the first


def served(**settings):
    return Serve(environment=DEMO, **settings)


def test_the_cost_is_that_of_the_drawn_pairs_and_not_of_those_with_a_known_label(tmp_path):
    rows = [row(number, 50) for number in range(40)]
    panel = panel_of(a_teacher("a"), variants=("direct",))
    drawn = {source_row.pair.id for source_row in rows[:30]}
    with Store(tmp_path / "pilot.sqlite", write=True) as store:
        store.corpus.add(Source(name="hand.jsonl"), rows)
        store.record_panel(panel)
        entries = [entry(source_row.pair.id, "a", "direct", at=100.0) for source_row in rows]
        # The pairs that were not drawn are ten times as long.
        store.add_replies(
            [
                record
                if record.key.pair_id in drawn
                else replace(record, reply=replace(record.reply, prompt_tokens=10_000))
                for record in entries
            ]
        )
        usage = measure_usage(store, panel, pair_ids=drawn)["a"]
        everything = measure_usage(store, panel)["a"]
    assert (usage.requests, usage.prompt, usage.completion) == (30, 30_000, 600)
    assert (everything.requests, everything.prompt) == (40, 130_000)
    # All were in flight at the same time: the drawn pairs get three quarters of it.
    assert usage.seconds == pytest.approx(0.75 * everything.seconds)


def test_a_sweep_is_set_beside_the_annotation():
    projection = CostProjection(
        pairs=1000, teachers=[], hours=None, gpu_hours=8.0, money={"USD": 24.0}, unpriced=[]
    )
    sweep = compare_with_sweep(projection, runs=4, run_hours=5.0)
    assert (sweep.gpu_hours, sweep.ratio) == (20.0, 0.4)
    sweep = compare_with_sweep(projection, runs=4, run_hours=None)
    assert (sweep.gpu_hours, sweep.ratio, sweep.even_run_hours) == (None, None, 2.0)
    assert sweep.even_money == {"USD": 6.0}


def test_a_plan_counts_what_is_missing_and_names_the_panel(new_store):
    store = new_store()
    rows = [row(1, 100), row(2, 300)]
    store.corpus.add(Source(name="hand.jsonl"), rows)
    panel = panel_of(
        a_teacher("a", base_urls=("http://me:secret@127.0.0.1:9/v1",)),
        a_teacher("b", base_urls=(), serve=served()),
    )
    store.record_panel(panel)
    store.add_replies([entry(rows[0].pair.id, "a", variant) for variant in panel.variants])
    store.add_replies([entry(rows[1].pair.id, "a", "critic")])
    lines = plan_lines(store, panel)
    texts = {
        (number, variant): sum(
            len(message["content"]) for message in LABELLED.messages(source_row.pair, variant)
        )
        for number, source_row in enumerate(rows)
        for variant in panel.variants
    }
    missing = texts[1, "direct"] + texts[1, "reader"]
    shared = texts[1, "direct"] - len(LABELLED.variants["direct"].strip())
    assert (
        f"a: 2 requests, about {missing / 4:,.0f} prompt tokens, of which a prefix cache can serve "
        f"about {shared / 4:,.0f}" in " ".join(line.strip() for line in lines)
    )
    assert any(
        line.startswith(f"b: 6 requests, about {sum(texts.values()) / 4:,.0f}") for line in lines
    )
    plan = "\n".join(lines)
    assert max(map(len, lines)) <= 100
    assert "secret" not in plan
    assert f"{DEMO}/bin/vllm serve b" in plan
    assert "together 8 requests" in plan
    assert "at most 800 tokens" in plan
    assert f"semantic-gap ({LABELLED.hash[:12]})" in plan


def test_a_plan_shows_the_command_as_a_shell_reads_it_and_what_is_dangerous_in_it(
    new_store, tmp_path, monkeypatch
):
    store = new_store()
    store.corpus.add(Source(name="hand.jsonl"), [row(1, 100)])
    monkeypatch.chdir(tmp_path)  # a word that is longer than a line cannot be wrapped
    program = Path("environment", "bin", "vllm")
    program.parent.mkdir(parents=True)
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$SOME_LIST" "$@"\n')
    program.chmod(0o755)
    serve = Serve(
        environment=Path("environment"),
        args=("--trust-remote-code", "--host=0.0.0.0", '--note=it\'s a "note"  with  blanks'),
        env={"SOME_LIST": "a b  c", "SOME_KEY": "hidden from everybody"},
    )
    teacher = a_teacher("b", base_urls=(), serve=serve)
    sampling = teacher.sampling | {"chat_template_kwargs": {f"option_{n}": n for n in range(20)}}
    lines = plan_lines(store, panel_of(replace(teacher, sampling=sampling)))
    assert max(map(len, lines)) <= 100
    begin = lines.index("  would be served by") + 1
    end = next(n for n, line in enumerate(lines) if line.startswith("    WARNING: "))
    folded = "\n".join(lines[begin:end])
    outputs = [
        subprocess.run(["sh", "-c", command], check=True, capture_output=True, text=True).stdout
        for command in (folded, *command_lines("b", None, serve))
    ]
    assert outputs[0] == outputs[1]
    assert outputs[0].startswith("a b  c\nserve\nb\n")
    assert f"{program} serve b" in folded
    warned = " ".join(line.strip() for line in lines[end : lines.index(lines[-1])])
    assert "WARNING: --trust-remote-code runs code" in warned
    assert "WARNING: --host '0.0.0.0' offers the server to other computers" in warned


def test_a_plan_counts_only_the_pairs_of_a_shard_and_keeps_nothing(new_store):
    store, shard = new_store(), Shard(index=1, total=3)
    rows = [row(n, 50) for n in range(30)]
    store.corpus.add(Source(name="hand.jsonl"), rows)
    panel = panel_of(a_teacher("a"), a_teacher("b"))
    pair_count = sum(shard.contains(source_row.pair.id) for source_row in rows)
    assert 0 < pair_count < 30
    plan = "\n".join(plan_lines(store, panel, shard=shard))
    assert f"a: {3 * pair_count} requests" in plan
    assert f"together {6 * pair_count} requests" in plan
    assert "shard 1/3 of the pairs" in plan
    assert store.questions.shard() is None
    assert "a: 90 requests" in "\n".join(plan_lines(store, panel))
    store.questions.restrict_to_shard(shard)
    assert f"a: {3 * pair_count} requests" in "\n".join(plan_lines(store, panel))
    with pytest.raises(ValueError, match="is for 1/3, not for the shard 0/3"):
        plan_lines(store, panel, shard=Shard(index=0, total=3))


def test_a_dry_run_shows_the_plan_and_asks_nothing(scripted, tmp_path):
    teacher = scripted()
    panel = write_panel(tmp_path / "panel.yaml", teacher.url)
    words = ("annotate", "--pairs", PAIRS, "--panel", panel, "--store", tmp_path / "run.sqlite")
    assert "scripted: 288 requests, about" in succeed(*words, "--dry-run")
    assert teacher.requests == []


# The verdict


def entry(pair_id, teacher, variant, magnitude=5, *, cached=None, reason=None, at=0.0):
    annotation = Annotation(
        category="style", magnitude=magnitude, confidence=10, rationale="because"
    )
    reply = Reply(
        text="{}", finish_reason="stop", model=teacher, prompt_tokens=1000, completion_tokens=20,
        cached_tokens=cached, seconds=1.0,
    )  # fmt: skip
    return ReplyRecord(
        key=Key(pair_id=pair_id, teacher=teacher, variant=variant),
        annotation=None if reason else annotation,
        reason=reason,
        detail="the prompt is rude" if reason else None,
        raw="{}",
        reply=reply,
        arrived=at,
    )


def trial(
    tmp_path, panel, magnitude, *, pairs=40, refuse=lambda n, variant: None, cached=None, **settings
):
    """What a pilot finds whose teachers give pair n the magnitude of (n, teacher, variant)."""
    rows = [row(n, 50) for n in range(pairs)]
    with Store(tmp_path / "pilot.sqlite", write=True) as store:
        store.corpus.add(Source(name="hand.jsonl"), rows)
        store.record_panel(panel)
        store.add_replies(
            [
                entry(
                    source_row.pair.id, teacher.name, variant, magnitude(n, teacher.name, variant),
                    cached=cached, reason=refuse(n, variant), at=float(n),
                )
                for n, source_row in enumerate(rows)
                for teacher in panel.teachers
                for variant in panel.variants
            ]
        )  # fmt: skip
    pilot = Trial(
        panel=panel, sample=draw_sample(rows, pairs), schedule=DEFAULT_SCHEDULE, **settings
    )
    with Store(tmp_path / "pilot.sqlite") as store:
        return evaluate_pilot(store, pilot)


TWO = panel_of(a_teacher("a"), a_teacher("b"))


def test_teachers_that_see_the_same_spread_are_a_go(tmp_path):
    pilot = trial(tmp_path, TWO, lambda n, *_: n % 11)
    assert pilot.verdict.go
    # Unknown: validity, because the teachers see the labels, and the prefix cache.
    assert [rule.passed for rule in pilot.verdict.rules] == [True] * 8 + [None] * 2
    assert pilot.verdict.decision == "go"
    # Magnitudes of 0 to 6 come four times, those of 7 to 10 three times, each at a full confidence.
    assert pilot.betas.histogram == [4, 0] * 7 + [3, 0, 3, 0, 3, 3]
    assert pilot.betas.quantiles["0.5"] == pytest.approx(0.03 + 0.27 * 0.45)
    assert pilot.teachers[0].replies_per_second == pytest.approx(120 / 40)


@pytest.mark.parametrize(
    ("magnitude", "fails"),
    [
        (lambda n, *_: 0 if n % 5 else 9, {"clumped-low"}),
        (lambda n, *_: 10 if n % 5 else 1, {"clumped-high"}),
        (lambda n, *_: 5, {"no-spread"}),
        (
            lambda n, teacher, _: n % 11 if teacher == "a" else 10 - n % 11,
            {"no-spread", "guessing"},
        ),
        (
            lambda n, _, variant: random.Random(f"{variant} {n}").randrange(11),
            {"wavering"},
        ),
    ],
)
def test_each_way_to_go_wrong_is_a_no_go(tmp_path, magnitude, fails):
    pilot = trial(tmp_path, TWO, magnitude)
    assert not pilot.verdict.go
    assert {name for name, rule in rules_of(pilot).items() if rule["passed"] is False} == fails


def test_refused_replies_above_a_twentieth_are_a_no_go(tmp_path):
    def refused(every):
        return lambda n, variant: "schema" if variant == "direct" and n % every == 0 else None

    (tmp_path / "few").mkdir()
    (tmp_path / "many").mkdir()
    few = trial(tmp_path / "few", TWO, lambda n, *_: n % 11, refuse=refused(7))
    many = trial(tmp_path / "many", TWO, lambda n, *_: n % 11, refuse=refused(6))
    assert rules_of(few)["refused"]["value"] == 6 / 120
    assert rules_of(few)["refused"]["passed"]
    assert rules_of(many)["refused"]["value"] == 7 / 120
    assert not rules_of(many)["refused"]["passed"]
    assert many.teachers[0].refused == {"schema": 7}


def test_pairs_without_a_beta_are_a_no_go(tmp_path):
    pilot = trial(
        tmp_path, TWO, lambda n, *_: n % 11, refuse=lambda n, _: None if n % 10 else "empty"
    )
    assert rules_of(pilot)["without-beta"]["value"] == pytest.approx(4 / 40)
    assert rules_of(pilot)["without-beta"]["passed"] is False


def test_too_few_pairs_are_a_no_go(tmp_path):
    pilot = trial(tmp_path, TWO, lambda n, *_: n % 11, pairs=19)
    assert [name for name, rule in rules_of(pilot).items() if rule["passed"] is False] == ["enough"]


def test_a_prefix_cache_that_serves_less_than_half_of_what_it_could_is_a_no_go(tmp_path):
    partly_cached = trial(tmp_path, TWO, lambda n, *_: n % 11, cached=100)
    assert partly_cached.teachers[0].cached_share == pytest.approx(0.1)
    cacheable = partly_cached.teachers[0].cacheable_share
    assert 0.5 < cacheable < 2 / 3  # two of three requests about a pair begin like the first
    assert rules_of(partly_cached)["cache"]["value"] == pytest.approx(0.1 / cacheable)
    assert rules_of(partly_cached)["cache"]["passed"] is False
    (tmp_path / "full").mkdir()
    fully_cached = trial(tmp_path / "full", TWO, lambda n, *_: n % 11, cached=600)
    assert rules_of(fully_cached)["cache"]["passed"]


def test_gold_that_a_coin_could_match_is_a_no_go():
    table = table_of(*[0.5] * 40)
    gold = compare_with_gold(
        table, truths_of(*["chosen"] * 20, *["tie"] * 20), LABELLED, gold_count=40
    )

    def is_gold_passed(**changed):
        gold_changed = replace(gold, **changed)
        verdict = decide([], [], pairs=40, with_beta=40, position=None, gold=gold_changed)
        return next(rule.passed for rule in verdict.rules if rule.name == "gold")

    assert gold.judged == 40
    assert (gold.balanced, is_gold_passed()) == (0.5, False)
    assert is_gold_passed(balanced_low=0.51) is True


def gold_rule(right, wrong, ties=0, left_out=0):
    """The verdict on a panel that is right about (hits, truths) right and wrong labels."""
    signed = [0.5] * right[0] + [-0.5] * (right[1] - right[0])
    signed += [-0.5] * wrong[0] + [0.5] * (wrong[1] - wrong[0]) + [0.0] * ties
    truths = truths_of(*["chosen"] * right[1], *["rejected"] * wrong[1], *["tie"] * ties)
    gold = compare_with_gold(table_of(*signed), truths, BLIND, gold_count=len(signed))
    verdict = decide([], [], pairs=40, with_beta=40, position=None, gold=gold, left_out=left_out)
    return verdict, next(rule for rule in verdict.rules if rule.name == "gold")


def conclusion(verdict):
    """The last line that a pilot with this verdict prints."""
    return " ".join(verdict_lines(verdict)[-1:])


def test_a_fact_about_the_pairs_is_no_rule():
    fact = Check(
        name="label-noise", title="disputed labels", measure="share of disputed labels",
        unit="share", value=0.4, top=1.0, look=0.1, bad=None, reason=None, advice="read them",
    )  # fmt: skip
    with pytest.raises(ValueError, match="label-noise has no threshold `bad`"):
        decide([], [fact], pairs=40, with_beta=40, position=None, gold=None)


def test_truths_that_do_not_decide_are_a_request_for_more():
    verdict, rule = gold_rule((29, 42), (5, 8))  # 0.69 and 0.625
    assert (verdict.decision, verdict.go) == ("ask", False)
    assert rule.passed is None
    assert rule.value < 0.5
    # As many as the power needs at these accuracies; the right labels are enough already.
    assert rule.more["chosen"] == 0
    assert 10 <= rule.more["rejected"] <= 30
    assert "with a probability of 80%" in rule.advice
    verdict, rule = gold_rule((29, 42), (5 * 6, 8 * 6))
    assert (verdict.decision, rule.passed, rule.more) == ("go", True, None)


def test_a_request_for_truths_can_be_followed():
    _, rule = gold_rule((29, 42), (5, 8))
    # The 50 truths so far and the further ones must all be annotated; a store holds one sample.
    size = 50 + rule.more["rejected"]
    assert f"--n-gold {size} or more, and a new --store" in rule.advice
    assert "true label chosen" not in rule.advice
    assert rule.note is None
    _, rule = gold_rule((29, 42), (5, 8), left_out=600)
    assert rule.note.startswith("600 pairs with a known label left out")
    assert "--n-gold 650 or more" in rule.advice
    assert "(those left out count)" in rule.advice
    verdict, rule = gold_rule((40, 42), (8, 8), left_out=1)
    assert (verdict.decision, rule.advice) == ("go", None)
    assert rule.note.startswith("1 pair with a known label left out")


def test_an_estimate_at_chance_is_a_no_go_however_many_truths_follow():
    verdict, rule = gold_rule((20, 40), (4, 10))
    assert (verdict.decision, rule.passed, rule.more) == ("no-go", False, None)
    assert "more truths would not help" in rule.note
    verdict, rule = gold_rule((41, 80), (41, 80))
    assert (verdict.decision, rule.passed) == ("no-go", False)
    assert "1000 truths of each label would not be enough" in rule.note


def test_a_true_label_without_a_truth_is_asked_for():
    verdict, rule = gold_rule((40, 40), (0, 0))
    assert (verdict.decision, rule.more) == ("ask", {"chosen": 0, "rejected": 10})
    assert rule.note == "no judged pair has the true label rejected"
    assert conclusion(verdict) == "ASK for the truth about 10 more pairs: 10 rejected"
    verdict, rule = gold_rule((0, 0), (0, 0), ties=25)
    assert (verdict.decision, rule.more) == ("ask", {"chosen": 10, "rejected": 10})
    assert rule.note == "all known labels are ties"
    assert conclusion(verdict) == "ASK for the truth about 20 more pairs: 10 chosen, 10 rejected"
    verdict, rule = gold_rule((10, 10), (9, 9))
    assert (verdict.decision, rule.more) == ("ask", {"chosen": 0, "rejected": 1})
    assert "19 pairs with a known label were judged; at least 20 are needed" in rule.note


def test_pairs_with_a_known_label_change_no_share_of_the_drawn_ones(tmp_path):
    rows = [row(n, 50) for n in range(60)]
    alone = draw_sample(rows, 30)
    others = [f"q{n}" for n, other in enumerate(rows) if other.pair.id not in alone.drawn_ids]
    sample = draw_sample(rows, 30, add=others[:20])
    assert len(sample.pair_ids) == 50
    with Store(tmp_path / "pilot.sqlite", write=True) as store:
        store.corpus.add(Source(name="hand.jsonl"), read_sampled(rows, sample))
        store.record_panel(TWO)
        store.add_replies(
            [
                # The pairs with a known label are the ones with the largest gap.
                entry(source_row.pair.id, teacher, variant, 10 if source_row.pair.id
                      not in alone.drawn_ids else source_row.row % 9)
                for source_row in read_sampled(rows, sample)
                for teacher in "ab"
                for variant in TWO.variants
            ]
        )  # fmt: skip
    truths = [Truth(name=name, label="chosen") for name in others[:20]]
    for map_ in (DEFAULT_SCHEDULE.map, Quantile()):
        schedule = replace(DEFAULT_SCHEDULE, map=map_)
        pilot = Trial(panel=TWO, sample=sample, schedule=schedule, truths=truths)
        with Store(tmp_path / "pilot.sqlite") as store:
            result = evaluate_pilot(store, pilot)
        assert (result.betas.pairs, result.betas.with_beta) == (30, 30)
        assert (result.sample.sampled, result.sample.drawn) == (50, 30)
        assert result.gold.judged == 20
        if not isinstance(map_, Quantile):
            levels = [r.row % 9 for r in rows if r.pair.id in alone.drawn_ids]
            mean = 0.03 + 0.27 * sum(levels) / len(levels) / 10
            assert result.betas.mean == pytest.approx(mean)
            assert result.betas.ceiling == 0
        else:
            # Ranks among the drawn pairs alone are symmetric around the middle.
            assert result.betas.mean == pytest.approx(0.165)


@pytest.mark.parametrize("trouble", [None, "the teacher has gone"])
def test_replies_about_pairs_with_a_known_label_fail_no_rule_about_the_drawn_ones(
    tmp_path, trouble
):
    rows = [row(n, 50) for n in range(60)]
    alone = draw_sample(rows, 30)
    others = [f"q{n}" for n, other in enumerate(rows) if other.pair.id not in alone.drawn_ids]
    sample = draw_sample(rows, 30, add=others, add_most=20)
    # All replies about the pairs with a known label are refused, and nothing of them was cached.
    with Store(tmp_path / "pilot.sqlite", write=True) as store:
        store.corpus.add(Source(name="hand.jsonl"), read_sampled(rows, sample))
        store.record_panel(TWO)
        for source_row in read_sampled(rows, sample):
            drawn = source_row.pair.id in alone.drawn_ids
            store.add_replies(
                [
                    entry(
                        source_row.pair.id, teacher, variant, source_row.row % 11,
                        cached=600 if drawn else 0, reason=None if drawn else "empty",
                    )
                    for teacher in "ab"
                    for variant in TWO.variants
                ]
            )  # fmt: skip
    pilot = Trial(panel=TWO, sample=sample, schedule=DEFAULT_SCHEDULE, trouble=trouble)
    with Store(tmp_path / "pilot.sqlite") as store:
        result = evaluate_pilot(store, pilot)
    teacher, rules = result.teachers[0], rules_of(result)
    if trouble is None:
        assert (teacher.answered, teacher.refused, teacher.requests) == (90, {}, 90)
        assert teacher.details == {}
        assert teacher.cached_share == pytest.approx(0.6)
        assert (rules["refused"]["value"], rules["cache"]["passed"]) == (0, True)
        assert "replies about the drawn pairs" in pilot_lines(result)
    else:
        # The reason why the annotation ended may be in any reply.
        assert (teacher.answered, teacher.refused) == (150, {"empty": 60})
        assert rules["refused"]["value"] == pytest.approx(60 / 150)
        assert teacher.cached_share == pytest.approx(0.36)


def test_a_rule_that_fails_is_a_no_go_and_not_a_request():
    signed = table_of(*[0.5] * 20)
    gold = compare_with_gold(signed, truths_of(*["chosen"] * 20), BLIND, gold_count=20)
    verdict = decide([], [], pairs=40, with_beta=19, position=None, gold=gold)
    assert verdict.decision == "no-go"


def test_a_teacher_whose_answers_are_refused_comes_with_what_to_do(tmp_path):
    reasons = {0: "length", 1: "length", 2: "not-json", 3: "too-long", 4: "http-400"}
    pilot = trial(tmp_path, TWO, lambda n, *_: n % 11, refuse=lambda n, _: reasons.get(n % 8))
    rule = rules_of(pilot)["refused"]
    assert rule["passed"] is False
    assert rule["advice"].startswith("length 30: raise max_tokens")
    assert "not-json 15: does its server support response_format json_schema?" in rule["advice"]
    assert "too-long 15: raise --max-model-len" in rule["advice"]
    assert "http-400 15: the server says: the prompt is rude" in rule["advice"]
    lines = pilot_lines(pilot)
    at = next(n for n, line in enumerate(lines) if line.startswith("  NO  refused"))
    assert lines[at + 1 : at + 3] == ["        the worst: a", lines[at + 2]]
    assert lines[at + 2].startswith("        length 30: raise max_tokens")
    assert "  a refused: http-400 15, length 30, not-json 15, too-long 15" in lines


def test_one_teacher_has_no_spread_between_teachers(tmp_path):
    pilot = trial(tmp_path, panel_of(a_teacher("a")), lambda n, *_: n % 11)
    assert pilot.agreement.spread is None
    assert any("between teachers -" in line for line in pilot_lines(pilot))


def test_what_a_sweep_takes_is_told_where_the_annotation_has_no_price(tmp_path):
    pilot = trial(tmp_path, TWO, lambda n, *_: n % 11, runs=4, run_hours=12.5)
    briefing = " ".join(line.strip() for line in pilot_lines(pilot))
    assert "a sweep of 4 runs of 12.5 GPU-hours each takes 50 GPU-hours" in briefing
    assert "is not known: add a price to the panel" in briefing
    assert "at the pilot's throughput, without starting the servers" in briefing


def test_every_line_of_a_briefing_fits_a_terminal(tmp_path):
    names = [f"organisation/a-teacher-with-a-very-long-name-{n}-instruct" for n in range(3)]
    teachers = [a_teacher(name, price=Price(gpu_hour=1e6, gpus=8)) for name in names]
    pilot = trial(
        tmp_path,
        panel_of(*teachers),
        lambda n, *_: 10 if n % 5 else 1,
        refuse=lambda n, _: None if n % 4 else "http-400",
        runs=4,
        run_hours=2.0,
        truths=[Truth(name=f"q{n}", label="chosen") for n in range(40)],
        trouble=None,
    )
    skipped = SkippedPairs(reason="no prompt " * 20, count=9, rows=(1, 2, 3, 4, 5))
    sample = replace(pilot.sample, skipped=[skipped])
    lines = pilot_lines(replace(pilot, sample=sample))
    assert max(map(len, lines)) <= 100
    assert "NO-GO: refused, without-beta, clumped-high" in " ".join(lines)


def test_a_teacher_that_names_a_place_more_often_than_a_response_is_a_no_go():
    def is_place_passed(consistent, first):
        counts = {"consistent": consistent, "first": first, "second": 0, "tie": 50}
        shares = {kind: Proportion(count=count) for kind, count in counts.items()}
        position = [OrderConsistency(teacher="a", both=sum(counts.values()), **shares)]
        verdict = decide([], [], pairs=40, with_beta=40, position=position, gold=None)
        return next(rule.passed for rule in verdict.rules if rule.name == "place")

    # Wilson's upper end of 13 of 40 is 0.480, of 14 of 40 is 0.505.
    assert is_place_passed(13, 27) is False
    assert is_place_passed(14, 26) is True
    assert is_place_passed(10, 9) is None


def test_the_teacher_that_fails_the_rule_on_places_is_the_one_that_is_named():
    def order(teacher, consistent, first):
        counts = {"consistent": consistent, "first": first, "second": 0, "tie": 0}
        shares = {kind: Proportion(count=count) for kind, count in counts.items()}
        return OrderConsistency(teacher=teacher, both=consistent + first, **shares)

    # 8 of 20 is the smaller share, but its interval contains 0.5; that of 450 of 1000 does not.
    position = [order("few", 8, 12), order("many", 450, 550)]
    verdict = decide([], [], pairs=40, with_beta=40, position=position, gold=None)
    rule = next(rule for rule in verdict.rules if rule.name == "place")
    assert (rule.passed, rule.value, rule.note) == (False, 0.45, "the worst: many")


def test_an_adaptive_panel_is_not_held_to_its_layout(tmp_path):
    panel = panel_of(a_teacher("a"), a_teacher("b"), budget="adaptive")
    pilot = trial(tmp_path, panel, lambda n, *_: n % 11, cached=0)
    assert rules_of(pilot)["cache"]["passed"] is None


def test_only_what_the_panel_asks_counts(tmp_path):
    trial(tmp_path, TWO, lambda n, teacher, _: n % 11 if teacher == "a" else 10)
    rows = [row(n, 50) for n in range(40)]
    alone = Trial(
        panel=panel_of(a_teacher("a")), sample=draw_sample(rows, 40), schedule=DEFAULT_SCHEDULE
    )
    with Store(tmp_path / "pilot.sqlite") as store:
        pilot = evaluate_pilot(store, alone)
    assert pilot.betas.mean == pytest.approx(0.03 + 0.027 * (4 * 21 + 3 * 34) / 40)
    assert rules_of(pilot)["guessing"]["passed"] is None  # it takes two


# The command


@pytest.fixture(scope="module")
def demo_pilot(tmp_path_factory, replay_url):
    """A pilot on 60 pairs of the demo with what was planted in them: its folder and its output."""
    folder = tmp_path_factory.mktemp("pilot")
    write_panel(
        folder / "panel.yaml", replay_url, names=READERS, price={"gpu_hour": 2.0, "gpus": 1}
    )
    return folder, succeed(*command(folder), "--sweep", 4)


def command(folder, *options):
    return (
        "pilot", "--pairs", PAIRS, "--panel", folder / "panel.yaml", "--store",
        folder / "pilot.sqlite", "--n", 60, "--gold", PLANTED, *options,
    )  # fmt: skip


def test_the_demo_is_a_go(demo_pilot):
    folder, briefing = demo_pilot
    assert briefing.endswith("\nGO\n")
    assert "864 asked for = 864 kept + 0 refused + 0 pending" in briefing
    assert "60 of 96 pairs" in briefing
    assert "36 more with a known label" in briefing
    assert "betas of 60 of 60 pairs" in briefing
    assert "as much as a sweep of 4 runs of" in briefing
    with Store(folder / "pilot.sqlite") as store:
        assert len(store.corpus.pair_ids()) == 96


def test_the_findings_agree_with_what_was_planted(demo_pilot):
    folder, _ = demo_pilot
    result = json.loads(succeed(*command(folder), "--json"))
    planted = {
        planted_pair["pair_id"]: planted_pair
        for planted_pair in map(json.loads, PLANTED.read_text().splitlines())
    }
    with Store(folder / "pilot.sqlite") as store:
        sampled = [planted[source_row.source_id] for source_row, _ in store.corpus.rows()]
    wrong = [
        planted_pair
        for planted_pair in sampled
        if planted_pair["label_flipped"] or planted_pair["magnitude"] == 0
    ]
    gold = result["gold"]
    assert (result["sample"]["sampled"], result["sample"]["drawn"]) == (96, 60)
    assert (gold["given"], gold["sampled"], gold["judged"]) == (96, 96, 96)
    assert gold["always_chosen"] == pytest.approx(1 - len(wrong) / 96)
    assert gold["labels"]["not chosen"] == pytest.approx(
        {"count": len(wrong), "share": 1.0, "low": gold["labels"]["not chosen"]["low"], "high": 1.0}
    )
    assert gold["accuracy"]["share"] > gold["always_chosen"]
    projection = result["projection"]
    assert [teacher["requests"] for teacher in projection["teachers"]] == [96 * 3] * 3
    first, measured = projection["teachers"][0], result["teachers"][0]
    assert measured["heard"] == 60 * 3
    # The time of the 60 drawn pairs, scaled to the 96 of the corpus.
    assert first["hours"] * 3600 == pytest.approx(measured["busy_seconds"] * 96 / 60)
    assert first["money"] == pytest.approx(2 * first["hours"])


def test_a_second_pilot_asks_nothing(demo_pilot):
    folder, briefing = demo_pilot
    with Store(folder / "pilot.sqlite") as store:
        before = list(store.replies())
    write_panel(folder / "gone.yaml", "http://127.0.0.1:9/v1", names=READERS)
    again = [
        word if word != folder / "panel.yaml" else folder / "gone.yaml" for word in command(folder)
    ]
    assert briefing[: briefing.index("tokens per request")] in succeed(*again)
    with Store(folder / "pilot.sqlite") as store:
        assert list(store.replies()) == before


def test_a_pilot_from_python_is_the_pilot_of_the_command(demo_pilot):
    folder, _ = demo_pilot
    pilot = run_pilot(PAIRS, folder / "panel.yaml", folder / "pilot.sqlite", n=60, gold=PLANTED)
    assert pilot.verdict.go
    printed = json.loads(succeed(*command(folder), "--json"))
    assert json.loads(json.dumps(json_values(pilot))) == printed


def test_another_sample_needs_another_store(demo_pilot):
    folder, _ = demo_pilot
    words = list(command(folder))
    words[words.index(60)] = 20  # and 20 of those with a known label
    assert "use a separate --store for every pilot" in fail(*words)


def test_random_replies_are_a_no_go(scripted, tmp_path):
    teacher = scripted()
    write_panel(tmp_path / "panel.yaml", teacher.url)
    done = run(*command(tmp_path), "--json")
    assert done.returncode == 3, done.stderr
    result = json.loads(done.stdout)
    failed = {name for name, rule in rules_of(result).items() if rule["passed"] is False}
    assert "wavering" in failed
    assert "gold" in failed
    assert len(teacher.requests) == 288
    assert "NO-GO: " in run(*command(tmp_path)).stdout
    assert len(teacher.requests) == 288


def test_a_teacher_that_talks_is_a_no_go_and_not_asked_on(scripted, tmp_path):
    teacher = scripted("prose")
    write_panel(tmp_path / "panel.yaml", teacher.url, max_in_flight=4, retries=0)
    done = run(*command(tmp_path))
    assert done.returncode == 3, done.stderr
    assert "the annotation ended early: teacher scripted: none of its first" in done.stdout
    assert "NO-GO: refused, enough, without-beta" in done.stdout
    assert len(teacher.requests) < 30


def test_a_short_pilot_of_a_teacher_that_talks_is_a_no_go_too(scripted, tmp_path):
    pairs = write_pairs(tmp_path / "pairs.jsonl", 2)
    panel = write_panel(tmp_path / "panel.yaml", scripted("prose").url, retries=0)
    words = ("pilot", "--pairs", pairs, "--panel", panel, "--store", tmp_path / "pilot.sqlite")
    done = run(*words)
    assert done.returncode == 3, done.stderr
    assert "no reply of scripted could be kept" in done.stdout


def test_a_teacher_that_is_not_there_is_no_finding(tmp_path):
    write_panel(tmp_path / "panel.yaml", "http://127.0.0.1:9/v1", names=READERS)
    assert "nothing answers at" in fail(*command(tmp_path))


def test_an_error_of_a_rerun_is_no_finding_about_the_teacher(scripted, tmp_path):
    teacher = scripted("prose")
    write_panel(tmp_path / "panel.yaml", teacher.url, max_in_flight=4, retries=0)
    assert run(*command(tmp_path)).returncode == 3
    # The store now holds unreadable replies of this teacher, and its server is gone.
    write_panel(tmp_path / "panel.yaml", "http://127.0.0.1:9/v1", retries=0)
    assert "nothing answers at" in fail(*command(tmp_path))


def test_the_command_of_a_panel_is_not_run_unasked(tmp_path):
    panel = yaml.safe_load(write_panel(tmp_path / "panel.yaml", "http://unused").read_text())
    del panel["teachers"][0]["base_url"]
    panel["teachers"][0]["serve"] = {"environment": str(tmp_path)}
    (tmp_path / "panel.yaml").write_text(yaml.safe_dump(panel))
    assert "a command in a file runs only after confirmation" in fail(*command(tmp_path))


def test_nothing_is_asked_where_the_gold_file_is_wrong(scripted, tmp_path):
    teacher = scripted()
    write_panel(tmp_path / "panel.yaml", teacher.url)
    gold = gold_file(tmp_path, {"pair_id": "demo-001"})
    words = [word if word != PLANTED else gold for word in command(tmp_path)]
    assert "gold.jsonl: line 1: give exactly one of label" in fail(*words)
    assert teacher.requests == []
    assert not (tmp_path / "pilot.sqlite").exists()


def test_nothing_is_asked_where_no_name_of_the_gold_file_is_a_pair(scripted, tmp_path):
    teacher = scripted()
    write_panel(tmp_path / "panel.yaml", teacher.url)
    gold = gold_file(
        tmp_path, *({"pair_id": f"nope-{n:03}", "label_ok": True} for n in range(1, 97))
    )
    words = [word if word != PLANTED else gold for word in command(tmp_path)]
    error = " ".join(fail(*words).split())
    assert f"none of the 96 names in {gold} is a pair of" in error
    assert "(first: 'nope-001')" in error
    assert teacher.requests == []
    assert not (tmp_path / "pilot.sqlite").exists()


def test_too_few_truths_are_no_reason_to_go(replay_url, tmp_path):
    write_panel(tmp_path / "panel.yaml", replay_url, names=READERS)
    lines = [json.loads(line) for line in PLANTED.read_text().splitlines()[:5]]
    words = [word if word != PLANTED else gold_file(tmp_path, *lines) for word in command(tmp_path)]
    done = run(*words)
    assert done.returncode == 4, done.stderr
    assert "\nASK for the truth about 15 more pairs: " in done.stdout
    assert "5 pairs with a known label were judged; at least 20 are needed" in done.stdout


def test_nothing_is_asked_where_the_schedule_wants_what_no_teacher_is_asked_for(scripted, tmp_path):
    teacher = scripted()
    write_panel(tmp_path / "panel.yaml", teacher.url)
    schedule = tmp_path / "schedule.yaml"
    mapping = yaml.safe_load((DEMO.parent / "schedules" / "sp2dpo.yaml").read_text())
    schedule.write_text(yaml.safe_dump(mapping | {"estimate": "expected"}))
    error = fail(*command(tmp_path), "--schedule", schedule)
    assert "teacher scripted: sampling has no `logprobs: true`" in error
    assert teacher.requests == []
    sampling = {"temperature": 0, "max_tokens": 300, "logprobs": True, "top_logprobs": 20}
    write_panel(tmp_path / "panel.yaml", teacher.url, sampling=sampling)
    done = run(*command(tmp_path), "--schedule", schedule, "--json")
    assert json.loads(done.stdout)["betas"]["with_beta"] == 60, done.stderr


@pytest.mark.parametrize("option", ["--patience", "--run-hours"])
def test_what_is_no_number_is_refused(tmp_path, option):
    write_panel(tmp_path / "panel.yaml", "http://127.0.0.1:9/v1", names=READERS)
    error = fail(*command(tmp_path), "--sweep", 4, option, "nan", code=2)
    assert f"{option} must be a number of" in error


def test_rows_that_are_set_aside_are_told(replay_url, tmp_path):
    write_panel(tmp_path / "panel.yaml", replay_url, names=READERS)
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(PAIRS.read_text() + '{"prompt": "Only a prompt"}\n')
    words = [word if word != PAIRS else pairs for word in command(tmp_path)]
    briefing = succeed(*words)
    assert "97 rows = 96 usable + 1 set aside; 96 distinct pairs" in briefing
    assert "(row 97)" in briefing


def test_what_one_run_takes_says_nothing_without_a_sweep(tmp_path):
    write_panel(tmp_path / "panel.yaml", "http://127.0.0.1:9/v1", names=READERS)
    assert "--run-hours requires --sweep" in fail(*command(tmp_path), "--run-hours", 3, code=2)


def test_a_schedule_of_ones_own_is_used(demo_pilot, tmp_path):
    folder, _ = demo_pilot
    schedule = tmp_path / "schedule.yaml"
    mapping = yaml.safe_load((DEMO.parent / "schedules" / "sp2dpo.yaml").read_text())
    schedule.write_text(yaml.safe_dump(mapping | {"beta_min": 1.0, "beta_max": 2.0}))
    result = json.loads(succeed(*command(folder), "--json", "--schedule", schedule))
    assert result["schedule"]["beta_max"] == 2.0
    assert 1 <= result["betas"]["mean"] <= 2
