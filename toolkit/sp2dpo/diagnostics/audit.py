"""Audit a table of betas: run every check, and compare it with known labels."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from sp2dpo.betas.estimators import Magnitude, Product
from sp2dpo.betas.file import BetaTable
from sp2dpo.betas.gaps import average_orders, disputes_labels
from sp2dpo.betas.schedule import schedule_betas
from sp2dpo.diagnostics.agreement import compare_readers, panel_reply_gaps, teacher_readings
from sp2dpo.diagnostics.biases import check_biases
from sp2dpo.diagnostics.bootstrap import Ranked, bootstrap_estimates, weighted_spearman
from sp2dpo.diagnostics.checks import BAD, LOOK, OK, UNKNOWN, Check, check_betas
from sp2dpo.diagnostics.gold import RULES, Truth, compare_with_gold, label_detection, with_gold
from sp2dpo.store.annotations import AnnotationTable

VERDICTS = (BAD, LOOK, OK, UNKNOWN)


def audit_betas(
    betas: BetaTable,
    annotations: AnnotationTable,
    lengths: pl.DataFrame,
    *,
    truths: Mapping[str, Truth] | None,
    gold_count: int,
    draws: int,
) -> dict[str, Any]:
    """Return the output of `sp2dpo audit` as JSON values; undefined values are None.

    Args:
        betas: the table of betas to check.
        annotations: the annotations that the betas were computed from.
        lengths: table of pair_id and of the length of `chosen` and `rejected` in characters.
        truths: known labels by pair_id; None without a gold file.
        gold_count: number of truths in the gold file.
        draws: number of bootstrap samples.

    Returns:
        verdict: the worst verdict of all checks that have one.
        counts: number of checks by verdict.
        signatures: the checks; see `checks.Check`.
        gold: None without truths; else panel (see `gold.compare_with_gold`), labels (the result of
            `gold.label_detection` for each rule that these gaps allow) and confidence (see
            `_confidence`).
    """
    checks = [asdict(check) for check in run_checks(betas, annotations, lengths, draws=draws)]
    verdicts = [check["verdict"] for check in checks]
    gold = None
    if truths is not None:
        gold = _gold(betas, annotations, truths, gold_count=gold_count, draws=draws)
    return {
        "verdict": next((verdict for verdict in VERDICTS if verdict in verdicts), UNKNOWN),
        "counts": {verdict: verdicts.count(verdict) for verdict in VERDICTS},
        "signatures": checks,
        "gold": gold,
    }


def run_checks(
    betas: BetaTable, annotations: AnnotationTable, lengths: pl.DataFrame, *, draws: int
) -> list[Check]:
    """Return the results of all checks.

    Args:
        betas: the table of betas to check.
        annotations: the annotations that the betas were computed from.
        lengths: table of pair_id and of the length of `chosen` and `rejected` in characters.
        draws: number of bootstrap samples.
    """
    estimator = betas.schedule.estimator
    replies = panel_reply_gaps(annotations, estimator)
    readings = teacher_readings(replies, list(annotations.rubric.categories), estimator)
    between = compare_readers(readings, sorted(readings["reader"].unique()))
    return [
        *check_betas(betas, average_orders(replies), between),
        *check_biases(betas, annotations, lengths, draws=draws),
    ]


def has_failed(result: Mapping[str, Any], fail_on: str) -> bool:
    """Return whether the verdict of an audit is `fail_on` or worse.

    Args:
        result: from `audit_betas`.
        fail_on: `look` or `bad`.
    """
    refused: Sequence[str] = (BAD,) if fail_on == BAD else (BAD, LOOK)
    return result["verdict"] in refused


def _gold(
    betas: BetaTable,
    annotations: AnnotationTable,
    truths: Mapping[str, Truth],
    *,
    gold_count: int,
    draws: int,
) -> dict[str, Any]:
    rubric = annotations.rubric
    pairs = with_gold(betas.table, truths)
    rules = RULES if disputes_labels(rubric, betas.schedule.estimator) else ("weak",)
    return {
        "panel": compare_with_gold(betas.table, truths, rubric, gold_count=gold_count),
        "labels": {rule: label_detection(pairs, rule, draws=draws) for rule in rules},
        "confidence": _confidence(betas, annotations, truths, draws=draws),
    }


def _confidence(
    betas: BetaTable, annotations: AnnotationTable, truths: Mapping[str, Truth], *, draws: int
) -> dict[str, Any]:
    """Measure what confidence adds: correlation of gaps with the known magnitude.

    Pairs whose label is wrong are left out.

    Returns:
        with, without: Spearman's rho of the gaps under the gap forms `product` and `magnitude`.
        gain: the first minus the second, over the same bootstrap samples.
    """
    sides = []
    for gap in (Product(), Magnitude()):
        table = schedule_betas(annotations, replace(betas.schedule, gap=gap))
        right = with_gold(table, truths).filter(pl.col("label") != "rejected")
        sides.append(right.drop_nulls("known_magnitude"))
    truth = Ranked(sides[0]["known_magnitude"])
    product, magnitude = (Ranked(side["gap"]) for side in sides)

    def gain(weights: NDArray[np.float64]) -> float | None:
        with_confidence, without = (
            weighted_spearman(product, truth, weights),
            weighted_spearman(magnitude, truth, weights),
        )
        return None if with_confidence is None or without is None else with_confidence - without

    pairs = len(sides[0])
    return {
        "with": bootstrap_estimates(
            lambda w: weighted_spearman(product, truth, w), pairs, draws=draws
        ),
        "without": bootstrap_estimates(
            lambda w: weighted_spearman(magnitude, truth, w), pairs, draws=draws
        ),
        "gain": bootstrap_estimates(gain, pairs, draws=draws),
    }
