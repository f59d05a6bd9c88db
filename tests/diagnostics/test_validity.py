"""Validity: a panel that agrees is not yet right, and the audit knows the difference."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from sp2dpo.betas.arms import Arm, compute_betas
from sp2dpo.betas.file import BetaTable
from sp2dpo.betas.label_slope import fit_slope
from sp2dpo.betas.schedule import load_schedule
from sp2dpo.diagnostics.audit import audit_betas
from sp2dpo.diagnostics.gold import Truth, label_detection, with_gold
from sp2dpo.diagnostics.validity import check_validity
from sp2dpo.panel.rubric import load_rubric
from sp2dpo.store.annotations import build_annotation_table
from support.harness import SCHEDULE

LABELLED, BLIND = load_rubric("semantic-gap"), load_rubric("semantic-gap-blind")
PAPER = replace(load_schedule(SCHEDULE), quorum=1)


def gaps_of(*signed):
    return pl.DataFrame({"signed_gap": signed}, schema={"signed_gap": pl.Float64})


def test_blind_gaps_that_go_with_the_labels_are_valid():
    gaps = [0.8] * 40 + [-0.8] * 10 + [0.0] * 10 + [None] * 3
    check = check_validity(gaps_of(*gaps), BLIND, None)
    fit = fit_slope([gap for gap in gaps if gap is not None])
    assert (check.value, check.low, check.high) == (fit.slope, fit.low, fit.high)
    assert fit.pairs == 50
    assert check.verdict == "ok"


def test_blind_gaps_that_have_nothing_to_do_with_the_labels_are_bad():
    check = check_validity(gaps_of(*[0.8, -0.8] * 100), BLIND, None)
    assert check.low < 0 < check.high < 1
    assert check.verdict == "bad"
    against = check_validity(gaps_of(*[-0.8] * 30, *[0.8] * 5), BLIND, None)
    assert against.high < 0
    assert against.verdict == "bad"


def test_a_weak_slope_is_to_be_looked_at():
    check = check_validity(gaps_of(*[0.8] * 330, *[-0.8] * 220), BLIND, None)
    assert 0 < check.low < check.value < 1
    assert check.verdict == "look"


def test_few_pairs_do_not_tell_whether_gaps_are_valid():
    check = check_validity(gaps_of(0.5, 0.5, -0.5), BLIND, None)
    assert check.verdict == "cannot be told"
    assert check.reason.startswith("3 pairs with a gap other than 0 are too few")
    assert check_validity(gaps_of(0.0, 0.0), BLIND, None).reason == "the gaps are all 0"
    assert check_validity(gaps_of(None), BLIND, None).reason == "no pair has a gap"


def test_a_handful_of_pairs_gives_no_verdict_however_they_agree():
    few = check_validity(gaps_of(*[1.0] * 19, *[0.0] * 30), BLIND, None)
    # The interval is above 0, but of 19 pairs alone.
    assert few.low > 0
    assert few.verdict == "cannot be told"
    assert few.reason.startswith("19 pairs with a gap other than 0 are too few: at least 20")
    assert check_validity(gaps_of(*[1.0] * 20), BLIND, None).verdict == "ok"


def shared_opinions(reads_truth, *, pairs=300, seed=0):
    """A labelled panel of three that share an opinion, and the truths about the labels.

    The opinion follows the truth, or something that has nothing to do with it.
    """
    rng = np.random.default_rng(seed)
    truth = rng.normal(0.8, 1.5, pairs)
    opinion = truth if reads_truth else rng.permutation(truth)
    replies = []
    for teacher in "abc":
        # A teacher who sees the label gives a low magnitude where it does not prefer the label.
        seen = np.clip(np.round(4 * (opinion + 0.4 * rng.normal(size=pairs))), 0, 10)
        replies += [
            (f"{n:064x}", teacher, "direct", "chosen-first", 0, "style", int(magnitude), 9,
             None, None, None)
            for n, magnitude in enumerate(seen)
        ]  # fmt: skip
    pair_ids = [f"{n:064x}" for n in range(pairs)]
    annotations = build_annotation_table(replies, pair_ids=pair_ids, rubric=LABELLED)
    truths = {
        pair_id: Truth(name=pair_id, label="chosen" if better > 0 else "rejected")
        for pair_id, better in zip(pair_ids, truth, strict=True)
    }
    return annotations, truths


def audited(annotations, truths):
    arm = Arm(of=PAPER)
    betas = BetaTable(
        table=compute_betas(annotations, arm), arm=arm, annotations_hash=annotations.hash
    )
    lengths = pl.DataFrame({"pair_id": annotations.pair_ids}).with_columns(
        chosen=pl.int_range(pl.len()).cast(pl.Float64) % 7, rejected=pl.lit(3.0)
    )
    audit = audit_betas(
        betas, annotations, lengths, truths=truths, gold_count=len(truths or ()), draws=60
    )
    return audit, {check.name: check for check in audit.checks}


def test_a_useless_panel_that_agrees_looks_no_better_than_a_good_one():
    useless, useless_truths = shared_opinions(reads_truth=False)
    good, good_truths = shared_opinions(reads_truth=True)
    # Without known labels neither is more than `look`: agreement does not show that it is right.
    for annotations in (useless, good):
        audit, checks = audited(annotations, None)
        assert checks["guessing"].value > 0.8
        assert checks["validity"].verdict == "cannot be told"
        assert "give pairs with known labels" in checks["validity"].reason
        assert audit.verdict == "look"
    audit, checks = audited(useless, useless_truths)
    assert checks["validity"].verdict == audit.verdict == "bad"
    audit, checks = audited(good, good_truths)
    assert checks["validity"].verdict == "ok"
    assert not audit.has_failed("bad")


def test_an_audit_that_cannot_tell_validity_is_at_best_to_be_looked_at():
    rng = np.random.default_rng(1)
    pair_ids = [f"{n:064x}" for n in range(200)]
    replies = [
        (pair_id, teacher, variant, "chosen-first", 0, "style", level, 9, None, None, None)
        for pair_id, level in zip(pair_ids, rng.integers(1, 11, 200).tolist(), strict=True)
        for teacher in "ab"
        for variant in ("direct", "critic")
    ]  # fmt: skip
    audit, checks = audited(
        build_annotation_table(replies, pair_ids=pair_ids, rubric=LABELLED), None
    )
    others = {check.verdict for name, check in checks.items() if name != "validity"}
    assert others <= {"ok", "cannot be told"}
    assert (checks["validity"].verdict, audit.verdict) == ("cannot be told", "look")
    assert audit.has_failed("look")


@pytest.mark.parametrize(
    ("signed", "labels", "reason"),
    [
        ([0.5, 0.1], ["chosen", "chosen"], "must include right and wrong ones"),
        (
            [0.5] * 18 + [0.1],
            ["chosen"] * 18 + ["rejected"],
            "1 known wrong labels and 18 right ones are too few: together at least 20 are needed",
        ),
        # The interval of an AUC with so few wrong labels contains 0.5 and 0.6.
        (
            [0.5, 0.1] * 10 + [0.3],
            ["chosen"] * 20 + ["rejected"],
            "1 known wrong labels are too few: an AUC of 0.5 (chance)",
        ),
    ],
)
def test_known_labels_of_one_kind_or_too_few_do_not_tell(signed, labels, reason):
    names = [f"pair {number}" for number in range(len(signed))]
    table = pl.DataFrame({"pair_id": names, "gap": signed, "signed_gap": signed})
    truths = {
        pair_id: Truth(name=pair_id, label=label)
        for pair_id, label in zip(names, labels, strict=True)
    }
    detection = label_detection(with_gold(table, truths), "weak")
    check = check_validity(table, LABELLED, detection)
    assert check.verdict == "cannot be told"
    assert reason in check.reason
