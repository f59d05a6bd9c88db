"""Suggest a use of the annotations by what the replies show of the panel.

Each use is a recipe: a schedule, or an arm of one (`betas.arms`). What it assumes and what is
suggested follow the controlled study in `recipes/study`, on a synthetic task with small models. The
rules are our choice.
"""

from dataclasses import dataclass, replace

from sp2dpo.betas.arms import Arm, compute_arm
from sp2dpo.betas.label_fit import Interval
from sp2dpo.betas.label_slope import LabelSlope, fit_slope
from sp2dpo.betas.schedule import Schedule, schedule_gaps
from sp2dpo.betas.soft_labels import Latent
from sp2dpo.diagnostics.validity import USEFUL_SLOPE
from sp2dpo.store.annotations import AnnotationTable

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
        reason: why, in one sentence.
        uses: all uses that the replies allow; one is suggested.
        slope: slope of the labels on the signed gaps; None if the teachers saw the labels.
        independent: share of right labels if the teachers err independently of each other; None
            if the teachers saw the labels.
        dependent: the same if they may err together.
    """

    reason: str
    uses: tuple[Use, ...]
    slope: LabelSlope | None
    independent: Interval | None
    dependent: Interval | None


def suggest_use(annotations: AnnotationTable, schedule: Schedule) -> Suggestion:
    """Suggest a use of the annotations of a store.

    Args:
        annotations: the annotations.
        schedule: the schedule, which defines the gaps.

    Raises:
        ValueError: no reply counts under the schedule.
    """
    gaps = schedule_gaps(annotations, schedule)["signed_gap"].drop_nulls()
    if not annotations.rubric.blind or gaps.is_empty():
        return Suggestion(
            reason="the teachers saw the labels, so their replies do not show whether they are "
            "right: annotate a sample with a blind rubric, or check it with `--gold`",
            uses=(replace(_SP2DPO, suggested=True), _WEIGHT),
            slope=None,
            independent=None,
            dependent=None,
        )
    slope = fit_slope(gaps.to_numpy())
    labels = compute_arm(annotations, Arm(of=schedule, label_smoothing=Latent())).labels
    independent = labels.label_accuracy if labels else None
    dependent = labels.anchored_accuracy if labels else None
    suggested, reason = _choose(slope)
    uses = (
        _SP2DPO,
        _WEIGHT,
        Use(
            recipe=CALIBRATED,
            assumes="larger gaps mean that the label is more likely right",
            evidence=_describe_slope(slope),
        ),
        Use(
            recipe=LATENT,
            assumes="the same, and teachers who err independently of each other",
            evidence=f"share of right labels in this model: {independent}",
        ),
        Use(
            recipe=ANCHORED,
            assumes="labels that are mostly right; a useless panel does no harm",
            evidence=f"share of right labels in this model: {dependent}",
        ),
    )
    return Suggestion(
        reason=reason,
        uses=tuple(replace(use, suggested=use.recipe == suggested) for use in uses),
        slope=slope,
        independent=independent,
        dependent=dependent,
    )


_SP2DPO = Use(
    recipe=SP2DPO,
    assumes="larger gaps mean that the label is more likely right, or matters more",
    evidence="the method of the paper",
)
_WEIGHT = Use(
    recipe=WEIGHT,
    assumes="the same, and a beta that is tuned",
    evidence="",
)


def _choose(slope: LabelSlope) -> tuple[str, str]:
    """Return the suggested recipe of a blind panel, and why."""
    if slope.slope is None or slope.low is None or slope.low <= 0:
        return ANCHORED, (
            "the gaps may say nothing about the labels, and then this use trains on the labels "
            "alone, with the same label smoothing for all pairs"
        )
    if slope.slope < USEFUL_SLOPE:
        return ANCHORED, (
            "the gaps say little about the labels, so the labels themselves should keep a say"
        )
    return CALIBRATED, (
        "the gaps predict the labels, and nothing need be assumed of how the teachers err"
    )


def _describe_slope(slope: LabelSlope) -> str:
    if slope.slope is None:
        return "every gap is 0"
    return (
        f"slope of the labels on the gaps: {slope.slope:.3g} (95 % {slope.low:.3g} to "
        f"{slope.high:.3g}); 0 is chance, below {USEFUL_SLOPE:g} is weak"
    )
