"""Suggest a use of the annotations by what the replies show of the panel.

The uses are arms of a schedule (`betas.arms`). What each of them assumes, and the suggestion, follow
the project's controlled study (`recipes/study`): a synthetic task with small models. Both are our
choice.
"""

from dataclasses import dataclass, replace

from sp2dpo.betas.arms import Arm, compute_arm
from sp2dpo.betas.gaps import disputes_labels
from sp2dpo.betas.label_fit import Interval
from sp2dpo.betas.label_slope import LabelSlope, fit_slope
from sp2dpo.betas.schedule import Schedule
from sp2dpo.betas.soft_labels import Anchored, Latent
from sp2dpo.diagnostics.validity import USEFUL_SLOPE
from sp2dpo.store.annotations import AnnotationTable

CALIBRATED = "schedules/arms/soft-calibrated"
LATENT = "schedules/arms/soft-latent"
ANCHORED = "schedules/arms/soft-anchored"
WEIGHT = "schedules/arms/gap-as-weight"
SP2DPO = "schedules/sp2dpo"


@dataclass(frozen=True, kw_only=True)
class Use:
    """A use of the annotations.

    Attributes:
        recipe: name of its recipe, as `sp2dpo schedule --schedule` takes it.
        assumes: what must hold for it to help.
        evidence: what the replies show of that, in words.
        suggested: whether it is the suggested one.
    """

    recipe: str
    assumes: str
    evidence: str
    suggested: bool


@dataclass(frozen=True, kw_only=True)
class Suggestion:
    """The uses of a panel's annotations, and why one of them is suggested.

    Attributes:
        uses: the uses, the suggested one first.
        reason: why, in one sentence.
        slope: slope of the labels on the signed gaps; None if the teachers saw the labels.
        latent_accuracy: share of right labels if the teachers err independently; None if the
            teachers saw the labels or no pair has a gap.
        anchored_accuracy: the same if they may err together.
    """

    uses: tuple[Use, ...]
    reason: str
    slope: LabelSlope | None
    latent_accuracy: Interval | None
    anchored_accuracy: Interval | None


def suggest_use(annotations: AnnotationTable, schedule: Schedule) -> Suggestion:
    """Suggest a use of the annotations.

    Args:
        annotations: annotations of one store.
        schedule: defines the gaps.

    Raises:
        ValueError: no reply counts under the schedule.
    """
