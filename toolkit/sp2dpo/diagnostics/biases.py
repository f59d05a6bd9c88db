"""Check for biases: gaps that follow length, uninformative confidence, disputed labels.

Length bias explains the paper's third failure signature (the win rate rises while the
length-controlled win rate falls); these checks look for it before training. All measures and
thresholds are our choice.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import polars as pl

from sp2dpo.betas.baselines import Permuted, Uniform
from sp2dpo.betas.estimators import Magnitude
from sp2dpo.betas.file import BetaTable
from sp2dpo.betas.gaps import disputes_labels
from sp2dpo.diagnostics.agreement import panel_reply_gaps, teacher_readings, wilson_interval
from sp2dpo.diagnostics.bootstrap import (
    FISHER,
    Estimate,
    RankedWithin,
    bootstrap_estimates,
    rank_correlation,
    student_quantile,
    weighted_spearman,
)
from sp2dpo.diagnostics.checks import FEWEST, Check
from sp2dpo.diagnostics.gold import NEAR
from sp2dpo.store.annotations import AnnotationTable


@dataclass(frozen=True, kw_only=True)
class LengthBin:
    """The mean signed gap of the pairs with about the same difference of length.

    A difference is the chosen minus the rejected length, in characters.

    Attributes:
        low, high, middle: minimum, maximum and median difference.
        pairs: number of pairs.
        mean: mean signed gap, in [-1, 1].
        lower, upper: ends of the mean's 95 % interval (Student's t); the mean itself for one pair.
    """

    low: float
    high: float
    middle: float
    pairs: int
    mean: float
    lower: float
    upper: float


def check_biases(
    betas: BetaTable, annotations: AnnotationTable, lengths: pl.DataFrame, *, draws: int
) -> list[Check]:
    """Run the checks of this module; the arguments are those of `audit.audit_betas`."""
    # Sorted, because bootstrap samples are drawn by row and a join has no fixed order.
    pairs = betas.table.drop_nulls("gap").join(lengths, on="pair_id").sort("pair_id")
    return [
        *_length(pairs, draws=draws),
        _confidence(betas, annotations, draws=draws),
        _label_noise(pairs, betas, annotations),
    ]


def bin_by_length(table: pl.DataFrame, lengths: pl.DataFrame) -> list[LengthBin]:
    """Return the mean signed gap by length difference, in up to ten bins of equal size.

    Returns:
        The bins in ascending order, fewer if many differences are equal.
    """
    pairs_with_gap = table.drop_nulls("gap").join(lengths, on="pair_id")
    longer = pl.col("chosen") - pl.col("rejected")
    # Mean ranks, so that equal differences fall into the same bin.
    gap, share = pl.col("signed_gap"), (longer.rank("average") - 0.5) / pl.len()
    bins = (
        pairs_with_gap.with_columns(longer=longer, bin=(share * 10).floor().clip(0, 9))
        .group_by("bin")
        .agg(
            low=pl.col("longer").min(),
            high=pl.col("longer").max(),
            middle=pl.col("longer").median(),
            pairs=pl.len(),
            mean=gap.mean(),
            # A single pair has no standard deviation: its interval is a point.
            error=(gap.std() / pl.len().sqrt()).fill_null(0.0),
        )
        .sort("bin")
        .drop("bin")
    )
    rows = []
    for row in bins.to_dicts():
        half = row.pop("error") * (student_quantile(row["pairs"] - 1) if row["pairs"] > 1 else 0)
        rows.append(LengthBin(**row, lower=row["mean"] - half, upper=row["mean"] + half))
    return rows


def _length(pairs: pl.DataFrame, *, draws: int) -> list[Check]:
    """Correlate the signed gap with len(chosen) - len(rejected), overall and within categories.

    The second check ranks within each category and centres the ranks, so that a category whose
    pairs have both large gaps and long responses does not look like a bias.
    """
    advice = (
        "Read pairs where the longer response has the larger gap. If length is its only advantage, "
        "state in the rubric that length alone is not a merit, and expect length to inflate the "
        "win rate."
    )
    gap, longer = pairs["signed_gap"], pairs["chosen"] - pairs["rejected"]
    raw = rank_correlation(gap, longer, draws=draws)
    inside = rank_correlation(gap, longer, parts=pairs["category"], draws=draws)
    words = "absolute rank correlation of the signed gap and the length difference"
    within = "the same correlation, with ranks taken within each category"
    return [
        Check(
            name=name, title=title, measure=measure,
            unit="coefficient", top=1.0, look=0.2, bad=0.4,
            **_absolute(correlation),
            reason=_explain_missing(
                correlation, len(pairs), f"the gaps, or the lengths, are {equal}"
            ),
            note=_direction(correlation),
            advice=advice,
        )
        for name, title, measure, correlation, equal in (
            ("length-bias", "Gaps follow length", words, raw, "all equal"),
            ("length-bias-within", "Gaps follow length within categories", within, inside,
             "equal in a category"),
        )
    ]  # fmt: skip


def _absolute(estimate: Estimate) -> dict[str, Any]:
    """Return the arguments value, low and high of a check of the absolute value."""
    if estimate.value is None or estimate.value >= 0:
        return asdict(estimate)
    # The interval is negated, not folded at 0: it must still show that the sign is uncertain.
    low, high = (None if end is None else -end for end in (estimate.high, estimate.low))
    return {"value": -estimate.value, "low": low, "high": high}


def _direction(estimate: Estimate) -> str | None:
    if estimate.value is None:
        return None
    side = "longer" if estimate.value >= 0 else "shorter"
    return f"{side} chosen responses have the larger gaps"


def _confidence(betas: BetaTable, annotations: AnnotationTable, *, draws: int) -> Check:
    """Check that confidence adds information to magnitude, as the gap form `product` assumes.

    The value is the rank correlation between a teacher's confidence and the nearness of its
    magnitude (signed under the blind protocol) to the mean of the other teachers, within readings
    of one teacher at about the same magnitude. If a more confident teacher is not nearer to the
    others, multiplying by its confidence adds noise.
    """
    # By magnitude, because the schedule's own gap may already contain the confidence.
    estimator = replace(betas.schedule.estimator, gap=Magnitude())
    readings = teacher_readings(
        panel_reply_gaps(annotations, estimator), list(annotations.rubric.categories), estimator
    )
    scale = annotations.rubric.magnitude
    correlation, pairs = correlate_confidence(readings, steps=scale.max - scale.min, draws=draws)
    reason = None
    if readings["reader"].n_unique() < 2:
        reason = "a comparison needs two teachers"
    elif pairs < FEWEST:
        reason = f"{pairs} pairs were annotated by several teachers; a verdict needs {FEWEST}"
    elif correlation.value is None:
        reason = "the confidences, or the magnitudes, are all equal"
    return Check(
        name="confidence", title="Confidence is uninformative",
        measure="rank correlation of a teacher's confidence with its closeness to the other "
        "teachers, within replies of about the same magnitude",
        unit="coefficient", top=1.0, look=0.1, bad=0.0,
        **asdict(correlation),
        reason=reason,
        advice="More confident teachers are not closer to the others: run `sp2dpo estimators` to "
        "see what `gap: magnitude` changes, or use `estimate: expected`.",
    )  # fmt: skip


def correlate_confidence(readings: pl.DataFrame, *, steps: int, draws: int) -> tuple[Estimate, int]:
    """Return the correlation of the check `confidence`, and the number of pairs behind it.

    Args:
        readings: from `teacher_readings`: pair_id, reader, gap and confidence in [0, 1].
        steps: steps of the magnitude scale; magnitudes that round to the same step are compared.
        draws: number of bootstrap samples.
    """
    sums = readings.group_by("pair_id").agg(total=pl.col("gap").sum(), readers=pl.len())
    shared = (
        readings.join(sums, on="pair_id").filter(pl.col("readers") > 1).sort("reader", "pair_id")
    )
    if shared.is_empty():
        return Estimate(), 0
    # The mean of the others is the total less the own gap: no join of readers with readers.
    others = (pl.col("total") - pl.col("gap")) / (pl.col("readers") - 1)
    # A magnitude that is combined from several replies may lie between two steps of the scale.
    level = (pl.col("gap").abs() * steps).round(0)
    shared = shared.with_columns(
        near=-(pl.col("gap") - others).abs(),
        part=pl.struct("reader", level).rank("dense"),
    )
    # Pairs with identical readings are resampled as one weighted unit: the distribution is the
    # same, and there are fewer rows to rank.
    line = pl.concat_str("reader", "confidence", pl.col("near").round(9), "part", separator="|")
    patterns = (
        shared.group_by("pair_id")
        .agg(pattern=line.sort().str.join("|"))
        .group_by("pattern")
        # Groups come in no fixed order: the lowest id and a sort make the samples reproducible.
        .agg(pl.col("pair_id").min(), pairs=pl.len())
        .sort("pair_id")
    )
    representatives = shared.join(patterns, on="pair_id")
    confidence, near = (
        RankedWithin(representatives[name], representatives["part"])
        for name in ("confidence", "near")
    )
    # `patterns` is sorted by the same ids, so the dense rank of an id is its row there.
    place = representatives["pair_id"].rank("dense").to_numpy() - 1
    counts = patterns["pairs"].to_numpy().astype(np.int64)
    correlation = bootstrap_estimates(
        lambda w: weighted_spearman(confidence, near, w[place]),
        len(counts),
        draws=draws,
        counts=counts,
        scale=FISHER,
    )
    return correlation, int(counts.sum())


def _label_noise(pairs: pl.DataFrame, betas: BetaTable, annotations: AnnotationTable) -> Check:
    """Measure the share of labels that the panel contradicts: a signed gap of at most -NEAR."""
    # Round, so that floating-point error does not move a gap across the threshold.
    signed = pairs["signed_gap"].round(9)
    disputes = disputes_labels(annotations.rubric, betas.schedule.estimator)
    ties = int((signed.abs() < NEAR).sum())
    disputed = wilson_interval(int((signed <= -NEAR).sum()), len(pairs) if disputes else 0)
    return Check(
        name="label-noise", title="Labels disputed",
        measure=f"share of the pairs with a signed gap of -{NEAR} or less",
        # Wrong labels are no fault of the annotations: finding them is what these are for.
        unit="share", top=1.0, look=0.1, bad=None,
        value=disputed.share, low=disputed.low, high=disputed.high,
        reason=_explain_few(len(pairs))
        if disputes
        else "teachers who see the label cannot dispute it under this gap form; use `gap: signed` "
        "or the blind rubric",
        note=f"{ties} more are within {NEAR} of 0, which is close to a tie",
        advice="Read the most disputed pairs; if the teachers are right, drop such pairs or swap "
        "their responses (`disputed: drop` or `flip` in an arm).",
    )  # fmt: skip


def check_relation(
    betas: BetaTable, judged: BetaTable, *, draws: int, note: str | None = None
) -> Check:
    """Correlate beta with the gap over the kept pairs: 1 for a schedule with one envelope.

    Args:
        betas: the table of betas.
        judged: the betas to check in their place, from `checks.judged_betas`. Random betas stand
            for themselves: to recognize them is what the check is for.
        draws: number of bootstrap samples.
        note: note of the check where it uses `judged`.
    """
    if isinstance(betas.arm.beta, Uniform | Permuted):
        judged, note = betas, None
    # Sorted, because bootstrap samples are drawn by row.
    pairs = judged.table.drop_nulls("gap").filter("keep").sort("pair_id")
    correlation = rank_correlation(pairs["beta"], pairs["gap"], draws=draws)
    return Check(
        name="unrelated", title="Betas do not follow the gap",
        measure="rank correlation of beta and gap over the pairs that are used for training",
        unit="coefficient", top=1.0, look=0.8, bad=0.3,
        **asdict(correlation),
        reason=_explain_missing(correlation, len(pairs), "the betas, or the gaps, are all equal"),
        note=note,
        advice="These betas do not reflect the annotations: check whether they come from a "
        "baseline (Rand-beta, permuted) or from another tool.",
    )  # fmt: skip


def _explain_missing(estimate: Estimate, pairs: int, flat: str) -> str | None:
    return _explain_few(pairs) or (flat if estimate.value is None else None)


def _explain_few(pairs: int) -> str | None:
    if pairs == 0:
        return "no pair has a gap"
    return f"{pairs} pairs have a gap; a verdict needs {FEWEST}" if pairs < FEWEST else None
