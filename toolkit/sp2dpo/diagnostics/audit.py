"""The audit: all failure signatures of a table of betas, and what is known of its truth."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from sp2dpo.betas.estimators import Magnitude, Product
from sp2dpo.betas.file import BetaTable
from sp2dpo.betas.gaps import disputes_labels, over_orders
from sp2dpo.betas.schedule import schedule_betas
from sp2dpo.diagnostics.agreement import by_teacher, comparisons, steady
from sp2dpo.diagnostics.biases import check_biases
from sp2dpo.diagnostics.bootstrap import Ranked, bootstrap_estimates, spearman
from sp2dpo.diagnostics.checks import BAD, LOOK, OK, UNKNOWN, Check, check_betas
from sp2dpo.diagnostics.gold import RULES, Truth, compare_with_gold, label_detection, with_gold
from sp2dpo.store.annotations import AnnotationTable

VERDICTS = (BAD, LOOK, OK, UNKNOWN)


def audit_betas(
    made: BetaTable,
    annotations: AnnotationTable,
    lengths: pl.DataFrame,
    *,
    truths: Mapping[str, Truth] | None,
    given: int,
    draws: int,
) -> dict[str, Any]:
    """What `sp2dpo audit` says, as JSON values; what is not defined is None.

    Args:
        made: the betas.
        annotations: that they were made from.
        lengths: pair_id, chosen and rejected, in characters.
        truths: what is known of some pairs, by pair_id; None where nothing is.
        given: truths in the file.
        draws: bootstrap samples.

    Returns:
        verdict: the worst of all that could be told.
        counts: how many signatures have which verdict.
        signatures: see `signature.Signature`.
        gold: None without truths; else panel (see `gold.against_gold`), labels (by the rules of
            `detection` that these gaps allow) and confidence (see `_confidence`).
    """
    found = [asdict(one) for one in run_checks(made, annotations, lengths, draws=draws)]
    said = [one["verdict"] for one in found]
    gold = None
    if truths is not None:
        gold = _gold(made, annotations, truths, given=given, draws=draws)
    return {
        "verdict": next((one for one in VERDICTS if one in said), UNKNOWN),
        "counts": {one: said.count(one) for one in VERDICTS},
        "signatures": found,
        "gold": gold,
    }


def run_checks(
    made: BetaTable, annotations: AnnotationTable, lengths: pl.DataFrame, *, draws: int
) -> list[Check]:
    """All signatures.

    Args:
        made: the betas.
        annotations: that they were made from.
        lengths: pair_id, chosen and rejected, in characters.
        draws: bootstrap samples.
    """
    estimator = made.schedule.estimator
    replies = steady(annotations, estimator)
    said = by_teacher(replies, list(annotations.rubric.categories), estimator)
    between = comparisons(said, sorted(said["reader"].unique()))
    return [
        *check_betas(made, over_orders(replies), between),
        *check_biases(made, annotations, lengths, draws=draws),
    ]


def has_failed(found: Mapping[str, Any], fail_on: str) -> bool:
    """Whether an audit is as bad as a pipeline does not take.

    Args:
        found: as `audit` gives it.
        fail_on: `look` or `bad`.
    """
    refused: Sequence[str] = (BAD,) if fail_on == BAD else (BAD, LOOK)
    return found["verdict"] in refused


def _gold(
    made: BetaTable,
    annotations: AnnotationTable,
    truths: Mapping[str, Truth],
    *,
    given: int,
    draws: int,
) -> dict[str, Any]:
    rubric = annotations.rubric
    pairs = with_gold(made.table, truths)
    rules = RULES if disputes_labels(rubric, made.schedule.estimator) else ("weak",)
    return {
        "panel": compare_with_gold(made.table, truths, rubric, given=given),
        "labels": {rule: label_detection(pairs, rule, draws=draws) for rule in rules},
        "confidence": _confidence(made, annotations, truths, draws=draws),
    }


def _confidence(
    made: BetaTable, annotations: AnnotationTable, truths: Mapping[str, Truth], *, draws: int
) -> dict[str, Any]:
    """What confidence adds: rho with the known magnitude, of gaps with it and without it.

    Over the labels that are not wrong.

    Returns:
        with, without: rho of the gaps under `product` and under `magnitude`.
        gain: with less without, from the same draws of pairs.
    """
    sides = []
    for gap in (Product(), Magnitude()):
        table = schedule_betas(annotations, replace(made.schedule, gap=gap))
        right = with_gold(table, truths).filter(pl.col("label") != "rejected")
        sides.append(right.drop_nulls("known_magnitude"))
    truth = Ranked(sides[0]["known_magnitude"])
    product, magnitude = (Ranked(side["gap"]) for side in sides)

    def gain(weights: NDArray[np.float64]) -> float | None:
        one, other = spearman(product, truth, weights), spearman(magnitude, truth, weights)
        return None if one is None or other is None else one - other

    pairs = len(sides[0])
    return {
        "with": bootstrap_estimates(lambda w: spearman(product, truth, w), pairs, draws=draws),
        "without": bootstrap_estimates(lambda w: spearman(magnitude, truth, w), pairs, draws=draws),
        "gain": bootstrap_estimates(gain, pairs, draws=draws),
    }
