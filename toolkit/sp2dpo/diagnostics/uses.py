"""Suggest a use of the annotations by what the replies show of the panel.

Each use is a recipe: a schedule, or an arm of one (`betas.arms`). The rules are our choice; the
second part of the study in `recipes/study` supports those for blind teachers, on one synthetic
task. They take for granted that labels and teachers err independently of each other. Replies and
labels cannot show whether they do: if both prefer long responses, they confirm each other. Known
labels can: under the blind protocol by the slope of the truth on the signed gaps
(`betas.label_slope`), under the labelled one by the check `validity`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from sp2dpo.betas.arms import Arm, compute_arm, load_arm
from sp2dpo.betas.label_fit import Interval
from sp2dpo.betas.label_slope import LabelSlope, fit_slope
from sp2dpo.betas.schedule import Schedule, schedule_gaps
from sp2dpo.betas.soft_labels import Latent
from sp2dpo.diagnostics.checks import BAD, FEWEST, LOOK, OK, Check
from sp2dpo.diagnostics.gold import Truth, label_detection, with_gold
from sp2dpo.diagnostics.validity import USEFUL_SLOPE, check_validity
from sp2dpo.recipes import find_recipes
from sp2dpo.store.annotations import AnnotationTable
from sp2dpo.text import count_noun

SP2DPO = "schedules/sp2dpo"
WEIGHT = "schedules/arms/gap-as-weight"
CALIBRATED = "schedules/arms/soft-calibrated"
LATENT = "schedules/arms/soft-latent"
ANCHORED = "schedules/arms/soft-anchored"


@dataclass(frozen=True, kw_only=True)
class Use:
    """A use of the annotations.

    Attributes:
        recipe: its recipe, as `sp2dpo schedule --schedule` takes it.
        assumes: what must hold for it to help.
        evidence: what the replies show of that.
        suggested: whether it is the suggested use.
    """

    recipe: str
    assumes: str
    evidence: str
    suggested: bool = False


@dataclass(frozen=True, kw_only=True)
class Suggestion:
    """Which use of a panel's annotations is suggested, and why.

    Attributes:
        reason: why, in one sentence without its full stop.
        cautions: reasons to doubt the suggestion, as such sentences; empty without any.
        uses: the uses that the replies allow; one is suggested.
        slope: slope of the labels on the signed gaps; None if the teachers saw the labels.
        truth_slope: the same slope of known truths; None without them, or if the teachers saw the
            labels.
        independent: share of right labels if the teachers err independently of each other; None
            if the teachers saw the labels.
        dependent: the same if they may err together.
    """

    reason: str
    cautions: tuple[str, ...]
    uses: tuple[Use, ...]
    slope: LabelSlope | None
    truth_slope: LabelSlope | None
    independent: Interval | None
    dependent: Interval | None


def suggest_use(
    annotations: AnnotationTable,
    schedule: Schedule,
    checks: Sequence[Check] = (),
    *,
    truths: Mapping[str, Truth] | None = None,
) -> Suggestion:
    """Suggest a use of the annotations of a store.

    Args:
        annotations: the annotations.
        schedule: the schedule, which defines the gaps.
        checks: the checks of the audit; some of them are reasons for caution.
        truths: known labels by pair_id; None without them.

    Raises:
        ValueError: no reply counts under the schedule.
    """
    table = schedule_gaps(annotations, schedule)
    gaps = table["signed_gap"].drop_nulls()
    if gaps.is_empty():
        suggestion = _without_gaps(schedule)
    elif not annotations.rubric.blind:
        suggestion = _without_witness(table, annotations, truths)
    else:
        slope = fit_slope(gaps.to_numpy())
        known = None if truths is None else _fit_truths(table, truths)
        suggestion = _by_slope(annotations, schedule, slope, known, checks)
    suggested = next(use.recipe for use in suggestion.uses if use.suggested)
    lost = tuple(_explain_lost(suggested, annotations, schedule, table))
    return replace(suggestion, cautions=(*suggestion.cautions, *lost))


_GAPS_MATTER = "larger gaps mean that the label is more likely right, or matters more"
_GAPS_PREDICT = "larger gaps mean that the label is more likely right"
_TUNED = f"{_GAPS_MATTER}; a beta that is tuned"
_LENGTH = ("length-bias", "length-bias-within")


def _by_slope(
    annotations: AnnotationTable,
    schedule: Schedule,
    slope: LabelSlope,
    known: LabelSlope | None,
    checks: Sequence[Check],
) -> Suggestion:
    """Return the suggestion for blind teachers, by the slopes of the labels and of the truths."""
    labels = compute_arm(annotations, Arm(of=schedule, label_smoothing=Latent())).labels
    independent = labels.label_accuracy if labels else None
    dependent = labels.anchored_accuracy if labels else None
    suggested, reason = _choose(slope, known)
    shown = _describe_slope(slope)
    if known is not None:
        shown += f". On {known.pairs} known labels: {_value(known)}"
    uses = (
        Use(recipe=SP2DPO, assumes=_GAPS_MATTER, evidence=shown),
        Use(recipe=WEIGHT, assumes=_TUNED, evidence=shown),
        Use(recipe=CALIBRATED, assumes=_GAPS_PREDICT, evidence=shown),
        Use(
            recipe=LATENT,
            assumes=f"{_GAPS_PREDICT}; teachers who err independently of each other",
            evidence=f"share of right labels in this model: {independent}",
        ),
        Use(
            recipe=ANCHORED,
            assumes="labels that are mostly right",
            evidence=f"share of right labels in this model: {dependent}",
        ),
    )
    return Suggestion(
        reason=reason,
        cautions=tuple(_doubts(suggested, slope, known, checks)),
        uses=tuple(replace(use, suggested=use.recipe == suggested) for use in uses),
        slope=slope,
        truth_slope=known,
        independent=independent,
        dependent=dependent,
    )


def _without_gaps(schedule: Schedule) -> Suggestion:
    shown = f"no pair has the quorum of {schedule.quorum} replies, so there is no gap"
    return _papers(f"it is the paper's; {shown} to choose another one by", shown, ())


def _without_witness(
    table: pl.DataFrame, annotations: AnnotationTable, truths: Mapping[str, Truth] | None
) -> Suggestion:
    """Return the suggestion for teachers who saw the labels, by what known labels say of them."""
    if truths is None:
        return _papers(
            "it is the paper's, and the others rely on the teachers being right, which replies "
            "of teachers who saw the labels do not show: annotate a sample with a blind rubric, or "
            "check pairs with known labels (`--gold`)",
            "replies of teachers who saw the labels do not show it",
            (),
        )
    check = check_validity(
        table, annotations.rubric, label_detection(with_gold(table, truths), "weak")
    )
    shown = "the known labels do not show it"
    if check.value is not None:
        shown = f"AUC of known wrong labels: {check.value:.3g}"
        if check.low is not None and check.high is not None:
            shown += f" (95 % {check.low:.3g} to {check.high:.3g}); 0.5 is chance"
    if check.verdict == OK:
        return _papers(
            "it is the paper's, and the known labels show that a wrong label has a lower gap than "
            "a right one",
            shown,
            (),
        )
    if check.verdict == LOOK:
        return _papers(
            "it is the paper's, and the known labels show that the gaps tell wrong labels from "
            "right ones, though not well",
            shown,
            (),
        )
    if check.verdict == BAD:
        doubt = (
            "the known labels do not show that the gaps tell wrong labels from right ones, "
            "although there are enough to tell: use other teachers or another rubric"
        )
    else:
        doubt = f"the known labels do not show whether the teachers are right: {check.reason}"
    return _papers("it is the paper's, and the others rely on the teachers more", shown, (doubt,))


def _papers(reason: str, shown: str, cautions: tuple[str, ...]) -> Suggestion:
    """Return the suggestion of the paper's use, where there is no slope to choose by."""
    return Suggestion(
        reason=reason,
        cautions=cautions,
        uses=(
            Use(recipe=SP2DPO, assumes=_GAPS_MATTER, evidence=shown, suggested=True),
            Use(recipe=WEIGHT, assumes=_TUNED, evidence=shown),
        ),
        slope=None,
        truth_slope=None,
        independent=None,
        dependent=None,
    )


def _fit_truths(table: pl.DataFrame, truths: Mapping[str, Truth]) -> LabelSlope:
    """Return the slope of the known truths on the signed gaps; a true tie has no direction."""
    known = with_gold(table, truths).filter(pl.col("label") != "tie")
    right = np.asarray(known["label"] == "chosen", dtype=bool)
    return fit_slope(known["signed_gap"].to_numpy(), right)


def _choose(slope: LabelSlope, known: LabelSlope | None) -> tuple[str, str]:
    """Return the suggested recipe of a blind panel, and why."""
    if known is not None and _contradicts(known):
        return ANCHORED, (
            "the known labels contradict the gaps, and this use relies on the labels most"
        )
    if slope.slope is None or slope.low is None or slope.low <= 0 or slope.pairs < FEWEST:
        return ANCHORED, (
            "the gaps may say nothing about the labels, and then this use trains on the labels "
            "alone, with the same label smoothing for all pairs"
        )
    if slope.slope < USEFUL_SLOPE:
        return ANCHORED, "the gaps say little about the labels, which therefore keep a say"
    return CALIBRATED, "the gaps predict the labels, and the teachers need not err independently"


def _contradicts(known: LabelSlope) -> bool:
    return known.pairs >= FEWEST and known.high is not None and known.high <= 0


def _confirms(known: LabelSlope) -> bool:
    return known.pairs >= FEWEST and known.low is not None and known.low > 0


def _doubts(
    suggested: str, slope: LabelSlope, known: LabelSlope | None, checks: Sequence[Check]
) -> Iterator[str]:
    """Yield why the suggestion for a blind panel may be wrong."""
    if known is not None and _contradicts(known):
        yield (
            f"the slope of the truth on the gaps, {_value(known)}, is below 0 on {known.pairs} "
            "known labels: use other teachers or another rubric"
        )
        return
    if known is not None and _confirms(known):
        # Random errors of the labels lower their slope; only errors that the gaps share raise it.
        if known.high is not None and slope.low is not None and known.high < slope.low:
            yield (
                f"the gaps predict the labels (slope {_value(slope)}) better than the truth "
                f"({_value(known)}), so labels and teachers share errors: fit the slope of "
                f"{CALIBRATED} to the known labels (`sp2dpo schedule --gold`)"
            )
        return
    if suggested == CALIBRATED:
        wanted = (
            "check some pairs with known labels (`--gold`)"
            if known is None
            else f"{known.pairs} known labels about pairs with a gap are too few to show it (slope "
            f"{_value(known)}), so find out more"
        )
        yield (
            "this takes for granted that the labels do not share the errors of the teachers: "
            f"{wanted}"
        )
    if any(check.name in _LENGTH and check.verdict in (LOOK, BAD) for check in checks):
        yield (
            "the gaps follow the length of the responses: if the labels do too, both confirm each "
            "other's error"
        )


def _explain_lost(
    recipe: str, annotations: AnnotationTable, schedule: Schedule, table: pl.DataFrame
) -> Iterator[str]:
    """Yield what to do if the quorum of the recipe leaves pairs without a beta that have a gap."""
    quorum = load_arm(find_recipes(recipe)[0].path).of.quorum
    lost = table.filter(pl.col("gap").is_not_null() & (pl.col("votes") < quorum)).height
    if not lost:
        return
    way = (
        "use schedules/adaptive, which is the same with a quorum of 1"
        if recipe == SP2DPO
        else "copy the recipe with its schedule (`sp2dpo recipes copy schedules`), and set "
        f"`quorum: {schedule.quorum}` in the schedule that its key `of` names"
    )
    yield (
        f"its schedule has a quorum of {quorum} replies, which leaves "
        f"{count_noun(lost, 'pair')} of {len(annotations.pair_ids)} without a beta that "
        f"{'has' if lost == 1 else 'have'} one with the quorum of this report, {schedule.quorum}: "
        f"{way}"
    )


def _describe_slope(slope: LabelSlope) -> str:
    if slope.slope is None:
        return "every gap is 0"
    few = f", of {count_noun(slope.pairs, 'pair')} alone" if slope.pairs < FEWEST else ""
    return (
        f"slope of the labels on the gaps: {_value(slope)}{few}; 0 is chance, below "
        f"{USEFUL_SLOPE:g} is weak"
    )


def _value(slope: LabelSlope) -> str:
    return "unknown" if slope.interval is None else str(slope.interval)
