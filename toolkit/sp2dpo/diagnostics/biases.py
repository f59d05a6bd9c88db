"""More signatures: gaps that follow length, confidence that says nothing, labels that are wrong.

Length bias stands behind the paper's third signature (a win rate that rises while the
length-controlled one falls); here it is looked for before training. All measures and thresholds are
our choice.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl

from sp2dpo.betas.estimators import Magnitude
from sp2dpo.betas.file import BetaTable
from sp2dpo.betas.gaps import disputes_labels
from sp2dpo.diagnostics.agreement import by_teacher, steady
from sp2dpo.diagnostics.bootstrap import (
    RankedWithin,
    bootstrap_estimates,
    estimate,
    rank_correlation,
    spearman,
)
from sp2dpo.diagnostics.checks import FEWEST, Check, within
from sp2dpo.diagnostics.gold import NEAR
from sp2dpo.store.annotations import AnnotationTable


def check_biases(
    made: BetaTable, annotations: AnnotationTable, lengths: pl.DataFrame, *, draws: int
) -> list[Check]:
    """The signatures of this module.

    Args:
        made: the betas.
        annotations: that they were made from.
        lengths: pair_id, chosen and rejected, in characters.
        draws: bootstrap samples.
    """
    told = made.table.drop_nulls("gap").join(lengths, on="pair_id").sort("pair_id")
    return [
        *_length(told, draws=draws),
        _confidence(made, annotations, draws=draws),
        _label_noise(told, made, annotations),
        _follows(told.filter("keep"), draws=draws),
    ]


def by_length(table: pl.DataFrame, lengths: pl.DataFrame) -> list[dict[str, Any]]:
    """The mean signed gap by how much longer the chosen response is, in ten bins of equal size.

    Args:
        table: of betas.
        lengths: pair_id, chosen and rejected, in characters.

    Returns:
        Bins in order, fewer where many differences are equal: low, high and middle (the least, the
        most and the median of the characters that chosen is longer by), pairs, mean, and its 95 %
        interval by the normal distribution: lower, upper.
    """
    told = table.drop_nulls("gap").join(lengths, on="pair_id")
    longer = pl.col("chosen") - pl.col("rejected")
    gap, share = pl.col("signed_gap"), (longer.rank("average") - 0.5) / pl.len()
    half = (1.96 * gap.std() / pl.len().sqrt()).fill_null(0.0)
    return (
        told.with_columns(longer=longer, bin=(share * 10).floor().clip(0, 9))
        .group_by("bin")
        .agg(
            low=pl.col("longer").min(),
            high=pl.col("longer").max(),
            middle=pl.col("longer").median(),
            pairs=pl.len(),
            mean=gap.mean(),
            lower=gap.mean() - half,
            upper=gap.mean() + half,
        )
        .sort("bin")
        .drop("bin")
        .to_dicts()
    )


def _length(told: pl.DataFrame, *, draws: int) -> list[Check]:
    """Spearman's rho of the signed gap and len(chosen) - len(rejected), and the same in categories.

    Within categories the ranks are taken in each category and centred, so that a category whose
    pairs are both telling and long does not pass for a bias.
    """
    advice = (
        "Read pairs where the longer response has the larger gap: where length is all that it has, "
        "say in the rubric that length is no merit; and expect the win rate to rise by length."
    )
    gap, longer = told["signed_gap"], told["chosen"] - told["rejected"]
    raw = rank_correlation(gap, longer, draws=draws)
    inside = rank_correlation(gap, longer, parts=told["category"], draws=draws)
    common: dict[str, Any] = {
        "unit": "coefficient", "top": 1.0, "look": 0.2, "bad": 0.4, "advice": advice,
    }  # fmt: skip
    return [
        Check(
            name="length-bias",
            title="Gaps follow length",
            measure="rank correlation of the signed gap with how much longer chosen is, either way",
            reason=_untold(raw, len(told), "the gaps, or the lengths, are all equal"),
            note=_direction(raw),
            **within(raw),
            **common,
        ),
        Check(
            name="length-bias-within",
            title="Gaps follow length within categories",
            measure="the same correlation, of ranks within each category",
            reason=_untold(inside, len(told), "the gaps, or the lengths, are equal in a category"),
            note=_direction(inside),
            **within(inside),
            **common,
        ),
    ]


def _direction(measured: Mapping[str, float | None]) -> str | None:
    value = measured["value"]
    if value is None:
        return None
    return f"{'longer' if value >= 0 else 'shorter'} chosen responses have the larger gaps"


def _confidence(made: BetaTable, annotations: AnnotationTable, *, draws: int) -> Check:
    """Whether confidence tells more than magnitude does, which is what a product takes for granted.

    The rank correlation of a teacher's confidence with how near its magnitude (signed, where a
    reply names a side) is to the mean of the other teachers', within readings of one teacher and
    about one magnitude. Where a surer teacher is no nearer to the others, to multiply by its
    confidence adds noise.
    """
    estimator = replace(made.schedule.estimator, gap=Magnitude())
    said = by_teacher(
        steady(annotations, estimator), list(annotations.rubric.categories), estimator
    )
    scale = annotations.rubric.magnitude
    measured, told = _surer_is_nearer(said, steps=scale.max - scale.min, draws=draws)
    reason = None
    if said["reader"].n_unique() < 2:
        reason = "it takes two teachers to compare"
    elif told < FEWEST:
        reason = f"{told} pairs were read by several teachers; a verdict needs {FEWEST}"
    elif measured["value"] is None:
        reason = "the confidences, or the magnitudes, are all equal"
    return Check(
        name="confidence",
        title="Confidence says little",
        measure="rank correlation of a teacher's confidence with its nearness to the others, "
        "within readings of about the same magnitude",
        unit="coefficient",
        **measured,
        top=1.0,
        look=0.1,
        bad=0.0,
        reason=reason,
        advice="A surer teacher is no nearer to the others: see in `sp2dpo estimators` what "
        "`gap: magnitude` changes, or ask for `estimate: expected`.",
    )


def _surer_is_nearer(said: pl.DataFrame, *, steps: int, draws: int) -> tuple[dict[str, Any], int]:
    """The correlation with its interval, and how many pairs it is of."""
    sums = said.group_by("pair_id").agg(total=pl.col("gap").sum(), readers=pl.len())
    told = said.join(sums, on="pair_id").filter(pl.col("readers") > 1).sort("reader", "pair_id")
    if told.is_empty():
        return estimate(None, []), 0
    others = (pl.col("total") - pl.col("gap")) / (pl.col("readers") - 1)
    level = (pl.col("gap").abs() * steps).round(0)
    told = told.with_columns(
        near=-(pl.col("gap") - others).abs(),
        part=pl.struct("reader", level).rank("dense"),
    )
    # Pairs of which the same was said are drawn together: the same, and quicker.
    line = pl.concat_str("reader", "confidence", pl.col("near").round(9), "part", separator="|")
    patterns = (
        told.group_by("pair_id")
        .agg(said=line.sort().str.join("|"))
        .group_by("said")
        .agg(pl.col("pair_id").min(), pairs=pl.len())
        .sort("pair_id")
    )
    some = told.join(patterns, on="pair_id")
    confidence, near = (RankedWithin(some[name], some["part"]) for name in ("confidence", "near"))
    place = some["pair_id"].rank("dense").to_numpy() - 1
    counts = patterns["pairs"].to_numpy().astype(np.int64)
    measured = bootstrap_estimates(
        lambda w: spearman(confidence, near, w[place]), len(counts), draws=draws, counts=counts
    )
    return measured, int(counts.sum())


def _label_noise(told: pl.DataFrame, made: BetaTable, annotations: AnnotationTable) -> Check:
    """The share of labels that the panel contradicts, ties apart: a signed gap of -NEAR or less."""
    signed = told["signed_gap"].round(9)
    tells = disputes_labels(annotations.rubric, made.schedule.estimator)
    ties = int((signed.abs() < NEAR).sum())
    return Check(
        name="label-noise",
        title="Labels disputed",
        measure=f"share of the pairs with a signed gap of -{NEAR} or less",
        unit="share",
        value=int((signed <= -NEAR).sum()) / len(told) if tells and len(told) else None,
        top=1.0,
        look=0.1,
        bad=0.25,
        reason=_few(len(told))
        if tells
        else "teachers who are told the label dispute none under this gap; `gap: signed` or the "
        "blind rubric would tell",
        note=f"{ties} more within {NEAR} of 0, as good as a tie",
        advice="Read the most disputed pairs; where the teachers are right, leave such pairs out "
        "or exchange their responses (`disputed: drop` or `flip` in an arm).",
    )


def _follows(kept: pl.DataFrame, *, draws: int) -> Check:
    """Spearman's rho of beta and gap over the kept pairs: 1 for a schedule with one envelope."""
    measured: dict[str, Any] = rank_correlation(kept["beta"], kept["gap"], draws=draws)
    return Check(
        name="unrelated",
        title="Betas do not follow the gap",
        measure="rank correlation of beta and gap over the pairs that are trained on",
        unit="coefficient",
        **measured,
        top=1.0,
        look=0.8,
        bad=0.3,
        reason=_untold(measured, len(kept), "the betas, or the gaps, are all equal"),
        advice="These betas say something else than the annotations: see whether they are a "
        "baseline's (Rand-beta, permuted), or made by other means.",
    )


def _untold(measured: Mapping[str, float | None], pairs: int, flat: str) -> str | None:
    return _few(pairs) or (flat if measured["value"] is None else None)


def _few(pairs: int) -> str | None:
    if pairs == 0:
        return "no pair has a gap"
    return f"{pairs} with a gap; a verdict needs {FEWEST} pairs" if pairs < FEWEST else None
