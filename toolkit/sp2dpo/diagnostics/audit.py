"""Audit a table of betas: run every check, and compare it with known labels."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from sp2dpo.betas.estimators import Magnitude, Product
from sp2dpo.betas.file import BetaTable, open_store_and_betas
from sp2dpo.betas.gaps import average_orders, disputes_labels
from sp2dpo.betas.schedule import schedule_betas
from sp2dpo.diagnostics.agreement import compare_readers, panel_reply_gaps, teacher_readings
from sp2dpo.diagnostics.biases import check_biases
from sp2dpo.diagnostics.bootstrap import DRAWS, Ranked, bootstrap_estimates, weighted_spearman
from sp2dpo.diagnostics.checks import BAD, LOOK, OK, UNKNOWN, Check, check_betas
from sp2dpo.diagnostics.gold import (
    RULES,
    Truth,
    compare_with_gold,
    label_detection,
    load_gold,
    with_gold,
)
from sp2dpo.store.annotations import AnnotationTable

VERDICTS = (BAD, LOOK, OK, UNKNOWN)


@dataclass(frozen=True, kw_only=True)
class Audit:
    """The result of an audit. Undefined values are None.

    Attributes:
        verdict: the worst verdict of all checks that have one; `cannot be told` if none has.
        counts: number of checks by verdict.
        checks: the checks.
        gold: a mapping with three keys; None without known labels. panel: see
            `gold.compare_with_gold`. labels: result of `gold.label_detection` for each rule that
            these gaps allow. confidence: Spearman's rho of the known magnitude with the gaps under
            the forms `product` (`with`) and `magnitude` (`without`), and their difference (`gain`).
    """

    verdict: str
    counts: Mapping[str, int]
    checks: tuple[Check, ...]
    gold: Mapping[str, Any] | None

    def as_mapping(self) -> dict[str, Any]:
        """Return the output of `sp2dpo audit --json`."""
        checks = [asdict(check) for check in self.checks]
        return {
            "verdict": self.verdict,
            "counts": dict(self.counts),
            "signatures": checks,
            "gold": self.gold,
        }

    def has_failed(self, fail_on: str) -> bool:
        """Return whether the verdict is `fail_on` (`look` or `bad`) or worse."""
        return self.verdict in ((BAD,) if fail_on == BAD else (BAD, LOOK))


def audit_store(
    store_file: Path | str,
    betas_file: Path | str,
    *,
    gold_file: Path | str | None = None,
    draws: int = DRAWS,
) -> Audit:
    """Audit the betas of a store.

    Args:
        store_file: annotation store.
        betas_file: betas computed from this store.
        gold_file: JSON Lines file of pairs with known labels; see `diagnostics.gold`.
        draws: number of bootstrap samples.

    Raises:
        ValueError: a file is invalid, or the betas were computed from other replies.
        OSError: a file cannot be read.
    """
    store_file = Path(store_file)
    betas_file = Path(betas_file)
    gold_file = None if gold_file is None else Path(gold_file)
    with open_store_and_betas(store_file, betas_file) as (store, betas, annotations):
        truths, gold_count = load_gold(gold_file, store) if gold_file else (None, 0)
        return audit_betas(
            betas,
            annotations,
            store.corpus.lengths(),
            truths=truths,
            gold_count=gold_count,
            draws=draws,
        )


def audit_betas(
    betas: BetaTable,
    annotations: AnnotationTable,
    lengths: pl.DataFrame,
    *,
    truths: Mapping[str, Truth] | None,
    gold_count: int,
    draws: int,
) -> Audit:
    """Run every check of a table of betas, and compare it with known labels.

    Args:
        betas: the table of betas to check.
        annotations: the annotations that the betas were computed from.
        lengths: table of pair_id and of the length of `chosen` and `rejected` in characters.
        truths: known labels by pair_id; None without a gold file.
        gold_count: number of truths in the gold file.
        draws: number of bootstrap samples.
    """
    checks = run_checks(betas, annotations, lengths, draws=draws)
    verdicts = [check.verdict for check in checks]
    gold = None
    if truths is not None:
        gold = _gold(betas, annotations, truths, gold_count=gold_count, draws=draws)
    return Audit(
        verdict=next((verdict for verdict in VERDICTS if verdict in verdicts), UNKNOWN),
        counts={verdict: verdicts.count(verdict) for verdict in VERDICTS},
        checks=tuple(checks),
        gold=gold,
    )


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
