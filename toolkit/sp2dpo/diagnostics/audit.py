"""Audit a table of betas: run every check, and compare it with known labels."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from sp2dpo.betas.estimators import Magnitude, Product
from sp2dpo.betas.file import BetaTable, open_store_and_betas
from sp2dpo.betas.gaps import average_orders, disputes_labels
from sp2dpo.betas.schedule import schedule_betas
from sp2dpo.diagnostics.agreement import panel_reply_gaps, teacher_readings
from sp2dpo.diagnostics.biases import check_biases, check_relation
from sp2dpo.diagnostics.bootstrap import (
    DRAWS,
    FISHER,
    Estimate,
    Ranked,
    bootstrap_estimates,
    weighted_spearman,
)
from sp2dpo.diagnostics.checks import (
    BAD,
    LOOK,
    OK,
    UNKNOWN,
    Check,
    check_betas,
    judged_betas,
)
from sp2dpo.diagnostics.gold import (
    RULES,
    GoldComparison,
    LabelDetection,
    Truth,
    compare_with_gold,
    label_detection,
    load_gold,
    with_gold,
)
from sp2dpo.diagnostics.validity import check_validity
from sp2dpo.store.annotations import AnnotationTable

# From worst to best: the verdict of an audit is the first that occurs.
VERDICTS = (BAD, LOOK, OK, UNKNOWN)


@dataclass(frozen=True, kw_only=True)
class ConfidenceGain:
    """What confidence adds: Spearman's rho of gaps with the known magnitude, over right labels.

    Attributes:
        with_confidence, without_confidence: rho under the gap forms `product` and `magnitude`.
        gain: the first minus the second, over the same bootstrap samples.
    """

    with_confidence: Estimate = field(metadata={"json": "with"})
    without_confidence: Estimate = field(metadata={"json": "without"})
    gain: Estimate


@dataclass(frozen=True, kw_only=True)
class GoldAudit:
    """The comparison of a panel and its gaps with known labels.

    Attributes:
        panel: how often the panel is right.
        labels: how well each rule that these gaps allow detects wrong labels, by rule.
        confidence: what confidence adds.
    """

    panel: GoldComparison
    labels: Mapping[str, LabelDetection]
    confidence: ConfidenceGain


@dataclass(frozen=True, kw_only=True)
class Audit:
    """The result of an audit. Undefined values are None.

    Attributes:
        verdict: the worst verdict of all checks that have one; `cannot be told` if none has. At
            best `look` if validity cannot be told: the other checks do not show that the teachers
            are right.
        counts: number of checks by verdict.
        checks: the checks.
        gold: comparison with known labels; None without them.
    """

    verdict: str
    counts: Mapping[str, int]
    checks: tuple[Check, ...] = field(metadata={"json": "signatures"})
    gold: GoldAudit | None

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
    estimator = betas.schedule.estimator
    # The whole panel is checked, even where the schedule takes a single teacher or variant.
    replies = panel_reply_gaps(annotations, estimator)
    readings = teacher_readings(replies, list(annotations.rubric.categories), estimator)
    gold = None
    if truths is not None:
        gold = _gold(betas, annotations, truths, gold_count=gold_count, draws=draws)
    validity = check_validity(betas.table, annotations.rubric, gold and gold.labels["weak"])
    judged, note = judged_betas(betas, annotations)
    checks = [
        *check_betas(judged, average_orders(replies), readings, draws=draws, note=note),
        *check_biases(betas, annotations, lengths, draws=draws),
        check_relation(betas, judged, draws=draws, note=note),
        validity,
    ]
    verdicts = [check.verdict for check in checks]
    verdict = next((verdict for verdict in VERDICTS if verdict in verdicts), UNKNOWN)
    if verdict == OK and validity.verdict == UNKNOWN:
        verdict = LOOK
    return Audit(
        verdict=verdict,
        counts={verdict: verdicts.count(verdict) for verdict in VERDICTS},
        checks=tuple(checks),
        gold=gold,
    )


def _gold(
    betas: BetaTable,
    annotations: AnnotationTable,
    truths: Mapping[str, Truth],
    *,
    gold_count: int,
    draws: int,
) -> GoldAudit:
    rubric = annotations.rubric
    pairs = with_gold(betas.table, truths)
    # A gap that is never below 0 cannot flag a label as disputed.
    rules = RULES if disputes_labels(rubric, betas.schedule.estimator) else ("weak",)
    return GoldAudit(
        panel=compare_with_gold(betas.table, truths, rubric, gold_count=gold_count),
        labels={rule: label_detection(pairs, rule) for rule in rules},
        confidence=_confidence(betas, annotations, truths, draws=draws),
    )


def _confidence(
    betas: BetaTable, annotations: AnnotationTable, truths: Mapping[str, Truth], *, draws: int
) -> ConfidenceGain:
    sides = []
    for gap in (Product(), Magnitude()):
        table = schedule_betas(annotations, replace(betas.schedule, gap=gap))
        right = with_gold(table, truths).filter(pl.col("label") != "rejected")
        sides.append(right.drop_nulls("known_magnitude"))
    # Both sides hold the same pairs in the same order: the gap form changes no vote.
    truth = Ranked(sides[0]["known_magnitude"])
    product, magnitude = (Ranked(side["gap"]) for side in sides)

    def with_confidence(weights: NDArray[np.float64]) -> float | None:
        return weighted_spearman(product, truth, weights)

    def without_confidence(weights: NDArray[np.float64]) -> float | None:
        return weighted_spearman(magnitude, truth, weights)

    def gain(weights: NDArray[np.float64]) -> float | None:
        first, second = with_confidence(weights), without_confidence(weights)
        return None if first is None or second is None else first - second

    pairs = len(sides[0])
    return ConfidenceGain(
        with_confidence=bootstrap_estimates(with_confidence, pairs, draws=draws, scale=FISHER),
        without_confidence=bootstrap_estimates(
            without_confidence, pairs, draws=draws, scale=FISHER
        ),
        # Sample by sample, not from both intervals: the sides share the pairs of a sample.
        gain=bootstrap_estimates(gain, pairs, draws=draws),
    )
