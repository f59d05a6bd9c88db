"""The audit: checks with numbers, what is known of the truth, and an exit code."""

import json
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from sp2dpo.betas.arms import Arm, compute_betas, load_arm
from sp2dpo.betas.baselines import Permuted
from sp2dpo.betas.estimators import Signed
from sp2dpo.betas.file import BetaTable
from sp2dpo.betas.schedule import load_schedule
from sp2dpo.diagnostics.audit import Audit, audit_betas
from sp2dpo.diagnostics.biases import bin_by_length
from sp2dpo.diagnostics.checks import SCHEDULE_NOTE, Check
from sp2dpo.diagnostics.gold import Truth, label_detection, with_gold
from sp2dpo.diagnostics.text import audit_lines
from sp2dpo.panel.rubric import load_rubric
from sp2dpo.store.annotations import build_annotation_table
from sp2dpo.text import json_values
from support.harness import DEMO, ROOT, SCHEDULE, fail, run, succeed

RUBRIC = load_rubric("semantic-gap")
BLIND = load_rubric("semantic-gap-blind")
ARMS = ROOT / "recipes" / "schedules" / "arms"
PAPER = replace(load_schedule(SCHEDULE), quorum=1)
PLANTED = DEMO / "planted.jsonl"


def pair(number):
    return f"{number:064x}"


def annotations_of(*rows):
    """A table of replies: number of the pair, teacher, category, magnitude, confidence."""
    replies = [
        (pair(number), teacher, "direct", "chosen-first", 0, category, magnitude, confidence,
         None, None, None)
        for number, teacher, category, magnitude, confidence in rows
    ]  # fmt: skip
    pair_ids = sorted({row[0] for row in replies})
    return build_annotation_table(replies, pair_ids=pair_ids, rubric=RUBRIC)


def checked(annotations, lengths=None, *, arm=None, truths=None, draws=60):
    """The audit, its signatures by name."""
    arm = arm or Arm(of=PAPER)
    betas = BetaTable(
        table=compute_betas(annotations, arm), arm=arm, annotations_hash=annotations.hash
    )
    longer = lengths or [0.0] * len(annotations.pair_ids)
    table = pl.DataFrame(
        {"pair_id": annotations.pair_ids, "chosen": longer, "rejected": 0.0},
        schema_overrides={"chosen": pl.Float64},
    )
    audit = audit_betas(
        betas, annotations, table, truths=truths, gold_count=len(truths or ()), draws=draws
    )
    result = json_values(audit)
    return result | {"by_name": {check["name"]: check for check in result["signatures"]}}


def test_gaps_that_are_ranked_by_length_are_found():
    annotations = annotations_of(*((n, "a", "style", n % 11, 10) for n in range(44)))
    longer = checked(annotations, [float(n % 11) for n in range(44)])["by_name"]["length-bias"]
    assert longer["value"] == pytest.approx(1)
    assert longer["verdict"] == "bad"
    assert longer["note"] == "longer chosen responses have the larger gaps"
    shorter = checked(annotations, [-float(n % 11) for n in range(44)])["by_name"]["length-bias"]
    assert shorter["value"] == pytest.approx(1)
    assert shorter["note"] == "shorter chosen responses have the larger gaps"
    assert 0 < shorter["low"] <= shorter["value"] <= shorter["high"] + 1e-9


def test_a_category_that_is_long_and_telling_is_no_length_bias_within():
    dice = np.random.default_rng(1)
    rows, lengths = [], []
    for n in range(80):
        telling = n % 2 == 0
        magnitude = int(dice.integers(7, 11) if telling else dice.integers(0, 4))
        rows.append((n, "a", "safety" if telling else "style", magnitude, 10))
        lengths.append(float(dice.integers(0, 50) + (500 if telling else 0)))
    checks = checked(annotations_of(*rows), lengths)["by_name"]
    assert checks["length-bias"]["value"] > 0.7
    assert checks["length-bias"]["verdict"] == "bad"
    assert checks["length-bias-within"]["value"] < 0.2
    assert checks["length-bias-within"]["low"] < 0 < checks["length-bias-within"]["high"]


def test_the_mean_gap_by_length_has_ten_bins():
    table = pl.DataFrame({"pair_id": [pair(n) for n in range(40)], "gap": [0.5] * 40})
    table = table.with_columns(signed_gap=pl.Series([n / 40 for n in range(40)]))
    lengths = pl.DataFrame(
        {"pair_id": [pair(n) for n in range(40)], "chosen": range(40), "rejected": [0] * 40}
    ).cast({"chosen": pl.Float64, "rejected": pl.Float64})
    bins = bin_by_length(table, lengths)
    assert len(bins) == 10
    assert (bins[0].low, bins[0].high, bins[0].pairs) == (0, 3, 4)
    assert bins[0].mean == pytest.approx((0 + 1 + 2 + 3) / 4 / 40)
    half = 3.182446 * np.std([0, 1 / 40, 2 / 40, 3 / 40], ddof=1) / 2
    assert bins[0].upper - bins[0].mean == pytest.approx(half)


def readers(surer_is_nearer):
    """Two teachers that agree and a third that is off by chance, surer or less sure where it is."""
    dice = np.random.default_rng(2)
    for n in range(300):
        magnitude = int(dice.integers(3, 8))
        off = int(dice.integers(0, 4))
        yield (n, "a", "style", magnitude, 5)
        yield (n, "b", "style", magnitude, 5)
        sure = 10 - off if surer_is_nearer else 4 + off
        yield (n, "c", "style", magnitude + (off if magnitude < 6 else -off), sure)


def test_a_confidence_that_goes_with_nearness_tells_something():
    confidence = checked(annotations_of(*readers(True)))["by_name"]["confidence"]
    assert confidence["verdict"] == "ok"
    assert confidence["low"] > 0
    against = checked(annotations_of(*readers(False)))["by_name"]["confidence"]
    assert against["verdict"] == "bad"
    assert against["high"] < 0


def test_confidence_cannot_be_told_of_one_teacher_or_of_equal_confidences():
    lone_teacher = checked(annotations_of(*((n, "a", "style", n % 11, n % 3) for n in range(30))))
    assert lone_teacher["by_name"]["confidence"]["reason"] == "a comparison needs two teachers"
    equal = checked(
        annotations_of(*((n, who, "style", n % 11, 5) for n in range(30) for who in "ab"))
    )
    assert "all equal" in equal["by_name"]["confidence"]["reason"]


def test_disputed_labels_are_counted_apart_from_ties():
    rows = [(n, "a", "style", 8, 9) for n in range(20)]
    rows += [(20 + n, "a", "style", 8, 0) for n in range(5)]  # -0.8 under `signed`
    rows += [(25 + n, "a", "style", 0, 9) for n in range(5)]
    signed = Arm(of=replace(PAPER, gap=Signed()))
    noise = checked(annotations_of(*rows), arm=signed)["by_name"]["label-noise"]
    assert (noise["value"], noise["verdict"]) == (pytest.approx(5 / 30), "look")
    assert noise["note"] == "5 more are within 0.05 of 0, which is close to a tie"
    labelled = checked(annotations_of(*rows))["by_name"]["label-noise"]
    assert labelled["verdict"] == "cannot be told"
    assert "`gap: signed`" in labelled["reason"]


def test_betas_on_the_wrong_pairs_do_not_follow_the_gap():
    rows = annotations_of(*((n, "a", "style", n % 11, 10) for n in range(200)))
    assert checked(rows)["by_name"]["unrelated"]["value"] == pytest.approx(1)
    permuted = checked(rows, arm=Arm(of=PAPER, beta=Permuted(seed=0)))["by_name"]["unrelated"]
    assert permuted["verdict"] == "bad"
    equal = annotations_of(*((n, "a", "style", 5, 10) for n in range(200)))
    flat = checked(equal)["by_name"]["unrelated"]
    assert flat["verdict"] == "cannot be told"
    assert "all equal" in flat["reason"]


def blind_replies(pairs, seed):
    """Two blind teachers who prefer the chosen response of about five pairs in six."""
    dice = np.random.default_rng(seed)
    lean = np.clip(dice.normal(0.5, 0.5, pairs), -1, 1)
    replies = []
    for teacher in "ab":
        seen = np.clip(np.round(10 * (lean + dice.normal(0, 0.1, pairs))), -10, 10)
        for n, value in enumerate(seen.astype(int).tolist()):
            # A is the chosen response in this order.
            better = "tie" if not value else "A" if value > 0 else "B"
            replies += [
                (pair(n), teacher, variant, "chosen-first", 0, "style", abs(value), 10, better,
                 None, None)
                for variant in ("direct", "critic")
            ]  # fmt: skip
    pair_ids = [pair(n) for n in range(pairs)]
    return build_annotation_table(replies, pair_ids=pair_ids, rubric=BLIND)


@pytest.mark.parametrize(
    "name", ["soft-calibrated", "soft-latent", "gap-as-weight", "gdpo", "temperature", "constant"]
)
def test_an_arm_that_replaces_the_betas_is_judged_by_those_of_its_schedule(name):
    annotations = blind_replies(120, seed=3)
    arm = load_arm(ARMS / f"{name}.yaml")
    arm = replace(arm, of=replace(arm.of, quorum=1))
    lengths = [float(n % 7) for n in range(120)]
    changed, own = (
        checked(annotations, lengths, arm=arm),
        checked(annotations, lengths, arm=Arm(of=arm.of)),
    )
    assert changed["verdict"] == own["verdict"] != "bad"
    for check in ("clumped-low", "clumped-high", "no-spread", "unrelated"):
        ours, schedules = changed["by_name"][check], own["by_name"][check]
        assert (ours["value"], ours["verdict"]) == (schedules["value"], schedules["verdict"])
        assert (ours["note"], schedules["note"]) == (SCHEDULE_NOTE, None)
    assert changed["by_name"]["no-spread"]["value"] > 0.1


def test_the_text_of_an_audit_says_which_checks_are_of_the_schedules_own_betas():
    spread = Check(
        name="no-spread", title="No spread", measure="deviation", unit="share", value=0.3, top=0.5,
        look=0.1, bad=0.05, reason=None, note=SCHEDULE_NOTE, advice="none",
    )  # fmt: skip
    audit = Audit(verdict="ok", counts={"ok": 1}, checks=(spread,), gold=None)
    assert f"no-spread: {SCHEDULE_NOTE}" in list(audit_lines(audit))
    plain = replace(audit, checks=(replace(spread, note=None),))
    assert SCHEDULE_NOTE not in "\n".join(audit_lines(plain))


def test_an_arm_that_keeps_the_betas_is_judged_by_them():
    annotations = blind_replies(120, seed=3)
    arm = Arm(of=PAPER, disputed="flip")
    checks = checked(annotations, arm=arm)["by_name"]
    assert checks["no-spread"]["note"] is None
    beta = compute_betas(annotations, arm)["beta"]
    assert checks["no-spread"]["value"] == pytest.approx(beta.std(ddof=0) / (0.3 - 0.03))


def test_few_pairs_get_no_verdict():
    checks = checked(annotations_of(*((n, "a", "style", n % 11, 10) for n in range(19))))["by_name"]
    assert checks["length-bias"]["reason"] == "19 pairs have a gap; a verdict needs 20"
    assert checks["unrelated"]["verdict"] == "cannot be told"


def test_wrong_labels_found_are_counted_and_ranked_by_hand():
    truths = {
        pair(n): Truth(name=str(n), label=label)
        for n, label in enumerate(("chosen", "chosen", "rejected", "rejected", "tie"))
    }
    table = pl.DataFrame(
        {
            "pair_id": [pair(n) for n in range(6)],
            "gap": [0.5, 0.0, 0.0, 0.3, 0.02, 0.9],
            "signed_gap": [0.5, -0.1, -0.1, 0.3, 0.02, 0.9],
        }
    )
    pairs = with_gold(table, truths)
    assert len(pairs) == 5
    weak = label_detection(pairs, "weak")
    assert (weak.wrong, weak.flagged) == (2, 3)
    assert weak.recall.share == 0.5
    assert weak.precision.share == pytest.approx(1 / 3)
    # Right: 0.5, -0.1; wrong: -0.1, 0.3. Lower: -0.1 < 0.5, 0.3 < 0.5; equal: -0.1 and -0.1.
    assert weak.auc.value == pytest.approx((1 + 1 + 0.5) / 4)
    disputed = label_detection(pairs, "disputed")
    assert (disputed.flagged, disputed.precision.share) == (2, 0.5)


def test_the_verdict_is_the_worst_and_a_pipeline_says_what_it_does_not_take():
    def with_verdict(verdict):
        return Audit(verdict=verdict, counts={}, checks=(), gold=None)

    assert with_verdict("bad").has_failed("bad")
    assert with_verdict("bad").has_failed("look")
    assert not with_verdict("look").has_failed("bad")
    assert with_verdict("look").has_failed("look")
    assert not with_verdict("cannot be told").has_failed("look")


def demo_audit(demo, *options):
    store, betas = demo / "run.sqlite", demo / "betas.parquet"
    return ["audit", "--store", store, "--betas", betas, "--draws", 100, *options]


def test_an_audit_ends_with_3_where_it_is_told_to(demo):
    result = json.loads(succeed(*demo_audit(demo, "--json")))
    assert result["verdict"] == "bad"
    assert result["gold"] is None
    assert run(*demo_audit(demo)).returncode == 0
    failed = run(*demo_audit(demo, "--fail-on", "bad"))
    assert failed.returncode == 3
    assert failed.stdout.endswith("bad: 1 bad, 2 look, 6 ok, 2 cannot be told\n")


def test_an_audit_knows_what_was_planted(demo):
    gold = json.loads(succeed(*demo_audit(demo, "--json", "--gold", PLANTED)))["gold"]
    assert gold["labels"]["weak"]["recall"]["count"] == 12
    assert gold["panel"]["judged"] == 96
    gain = gold["confidence"]["gain"]
    assert gain["low"] < 0 < gain["high"]
    assert "12/12" in succeed(*demo_audit(demo, "--gold", PLANTED))


def test_a_gold_file_about_other_pairs_is_refused(demo, tmp_path):
    gold = tmp_path / "gold.jsonl"
    gold.write_text('{"pair_id": "elsewhere", "label": "chosen"}\n')
    assert "none of the 1 names" in fail(*demo_audit(demo, "--gold", gold))


def test_what_the_recipes_say_of_the_demo_is_what_the_commands_print(demo):
    text = (ROOT / "docs" / "results.md").read_text()
    store, betas = ("--store", demo / "run.sqlite"), ("--betas", demo / "betas.parquet")
    printed = "\n".join(
        [
            succeed("agreement", *store),
            succeed("estimators", *store, "--schedule", SCHEDULE, "--gold", PLANTED),
            succeed("audit", *store, *betas, "--gold", PLANTED),
        ]
    ).splitlines()
    shown = text.split("## What the annotations say")[1].split("\n## ")[0].split("```text\n")[1:]
    lines = [line for block in shown for line in block.split("```")[0].splitlines() if line]
    assert len(lines) > 35
    assert [line for line in lines if line not in printed] == []
