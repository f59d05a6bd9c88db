"""Suggest a use of the annotations by what the replies show of the panel.

Each use is a recipe: a schedule, or an arm of one (`betas.arms`). The rules are our choice; no
finished study confirms them. They take for granted that labels and teachers err independently of
each other. Replies and labels cannot show whether they do: if both prefer long responses, they
confirm each other.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from sp2dpo.betas.arms import Arm, compute_arm
from sp2dpo.betas.label_fit import Interval
from sp2dpo.betas.label_slope import LabelSlope, fit_slope
from sp2dpo.betas.schedule import Schedule, schedule_gaps
from sp2dpo.betas.soft_labels import Latent
from sp2dpo.diagnostics.checks import BAD, LOOK, Check
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
        reason: why, in one sentence without its full stop.
        cautions: reasons to doubt the suggestion, as such sentences; empty without any.
        uses: the uses that the replies allow; one is suggested.
        slope: slope of the labels on the signed gaps; None if the teachers saw the labels.
        independent: share of right labels if the teachers err independently of each other; None
            if the teachers saw the labels.
        dependent: the same if they may err together.
    """

    reason: str
    cautions: tuple[str, ...]
    uses: tuple[Use, ...]
    slope: LabelSlope | None
    independent: Interval | None
    dependent: Interval | None


def suggest_use(
    annotations: AnnotationTable, schedule: Schedule, checks: Sequence[Check] = ()
) -> Suggestion:
    """Suggest a use of the annotations of a store.

    Args:
        annotations: the annotations.
        schedule: the schedule, which defines the gaps.
        checks: the checks of the audit; some of them are reasons for caution.

    Raises:
        ValueError: no reply counts under the schedule.
    """
    gaps = schedule_gaps(annotations, schedule)["signed_gap"].drop_nulls()
    if not annotations.rubric.blind or gaps.is_empty():
        return _without_witness()
    slope = fit_slope(gaps.to_numpy())
    labels = compute_arm(annotations, Arm(of=schedule, label_smoothing=Latent())).labels
    independent = labels.label_accuracy if labels else None
    dependent = labels.anchored_accuracy if labels else None
    suggested, reason = _choose(slope)
    shown = _describe_slope(slope)
    uses = (
        Use(recipe=SP2DPO, assumes=_GAPS_MATTER, evidence=shown),
        Use(recipe=WEIGHT, assumes=f"{_GAPS_MATTER}; a beta that is tuned", evidence=shown),
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
        cautions=tuple(_doubts(suggested, checks)),
        uses=tuple(replace(use, suggested=use.recipe == suggested) for use in uses),
        slope=slope,
        independent=independent,
        dependent=dependent,
    )


_GAPS_MATTER = "larger gaps mean that the label is more likely right, or matters more"
_GAPS_PREDICT = "larger gaps mean that the label is more likely right"
_LENGTH = ("length-bias", "length-bias-within")


def _without_witness() -> Suggestion:
    """Return the suggestion for teachers who saw the labels, and for replies without any gap."""
    shown = "replies of teachers who saw the labels do not show it"
    return Suggestion(
        reason="it is the paper's, and the others rely on the teachers being right, which replies "
        "of teachers who saw the labels do not show: annotate a sample with a blind rubric, or "
        "check pairs with known labels (`--gold`)",
        cautions=(),
        uses=(
            Use(recipe=SP2DPO, assumes=_GAPS_MATTER, evidence=shown, suggested=True),
            Use(recipe=WEIGHT, assumes=f"{_GAPS_MATTER}; a beta that is tuned", evidence=shown),
        ),
        slope=None,
        independent=None,
        dependent=None,
    )


def _choose(slope: LabelSlope) -> tuple[str, str]:
    """Return the suggested recipe of a blind panel, and why."""
    if slope.slope is None or slope.low is None or slope.low <= 0:
        return ANCHORED, (
            "the gaps may say nothing about the labels, and then this use trains on the labels "
            "alone, with the same label smoothing for all pairs"
        )
    if slope.slope < USEFUL_SLOPE:
        return ANCHORED, "the gaps say little about the labels, which therefore keep a say"
    return CALIBRATED, "the gaps predict the labels, and the teachers need not err independently"


def _doubts(suggested: str, checks: Sequence[Check]) -> Iterator[str]:
    """Yield why the suggestion may be wrong."""
    if suggested == CALIBRATED:
        yield (
            "this takes for granted that the labels do not share the errors of the teachers: check "
            "some pairs with known labels (`--gold`)"
        )
    if any(check.name in _LENGTH and check.verdict in (LOOK, BAD) for check in checks):
        yield (
            "the gaps follow the length of the responses: if the labels do too, both confirm each "
            "other's error"
        )


def _describe_slope(slope: LabelSlope) -> str:
    if slope.slope is None:
        return "every gap is 0"
    return (
        f"slope of the labels on the gaps: {slope.slope:.3g} (95 % {slope.low:.3g} to "
        f"{slope.high:.3g}); 0 is chance, below {USEFUL_SLOPE:g} is weak"
    )
