"""Soft labels: the probability that a pair's label is right, as the target of its loss.

If the label of a pair is right with probability p, the loss with label smoothing eps = 1 - p,

    l = -p log s(beta D) - (1 - p) log s(-beta D),

is lowest at D* = logit(p) / beta, and its slope at D = 0 is -beta (p - 1/2). Where p is below 1/2,
the pair is trained with its responses exchanged and eps = p, which is the same loss. This is
conservative DPO (Mitchell 2023) with one eps per pair. The estimates of p are our choice.

s_i is the signed gap of a pair and s_ai that of one teacher: see `gaps`.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sp2dpo.betas.choices import check_arguments
from sp2dpo.betas.label_fit import LabelFit
from sp2dpo.betas.label_models import fit_anchored, fit_classes, sigmoid
from sp2dpo.betas.label_slope import fit_slope
from sp2dpo.settings import number

LARGEST_SMOOTHING = 0.4999
"""Largest label smoothing that is written. At 0.5 the label would count for nothing, and losses
such as robust DPO divide by 1 - 2 eps."""
_LARGEST_SLOPE = 1e4
DECIMALS = 9
"""Values are rounded to this, so that another library of linear algebra gives the same bytes."""


@dataclass(frozen=True, kw_only=True)
class Readings:
    """What the teachers say about the pairs of a table of betas, in its order.

    Attributes:
        signed_gap: (N,) s_i; NaN for a pair without a beta.
        by_teacher: (N, T) s_ai; NaN where a teacher has no reply that counts.
        teachers: The names of the T teachers.
        can_dispute: Whether a signed gap can be negative.
        blind: Whether the teachers did not know the labels.
        departures: Departures of an arm that use p, such as `beta: gdpo`; without any, p becomes
            `label_smoothing`. Messages name them, because their choices are written in other ways.
    """

    signed_gap: NDArray[np.float64]
    by_teacher: NDArray[np.float64]
    teachers: tuple[str, ...]
    can_dispute: bool
    blind: bool
    departures: tuple[str, ...] = ()

    def choice(self, name: str) -> str:
        """Return how an arm states an estimate, such as `label_smoothing: calibrated`."""
        if not self.departures:
            return f"label_smoothing: {name}"
        return f"{' and '.join(self.departures)} with p={name}"

    def alternative(self, name: str) -> str:
        """Return how an arm states another estimate in its place, such as `p=anchored`."""
        return f"label_smoothing: {name}" if not self.departures else f"p={name}"


@dataclass(frozen=True)
class Free:
    """p = (1 + s_i) / 2: the signed gap as it is, without a parameter."""

    def estimate(self, readings: Readings) -> tuple[NDArray[np.float64], LabelFit]:
        """Return p, (N,), NaN for a pair without a beta, and what was found."""
        return _found((1 + readings.signed_gap) / 2, readings)


@dataclass(frozen=True)
class Calibrated:
    """p = s(k s_i), with one slope k for all pairs.

    k is fitted by logistic regression of the labels on the signed gaps, without an intercept: blind
    teachers do not know the labels, so even labels with errors show how much a gap is worth. Errors
    of the labels make k smaller. If the gaps say nothing about the labels, k is about 0, and
    training has no direction.

    Attributes:
        slope: k; None to fit it to the labels, or to known truths (`sp2dpo schedule --gold`).
    """

    slope: float | None = None

    def __post_init__(self) -> None:
        if self.slope is not None:
            check_arguments(self, slope=number(above=0, most=_LARGEST_SLOPE))
            # `calibrated(3)` and `calibrated(3.0)` are the same choice, and are recorded alike.
            object.__setattr__(self, "slope", float(self.slope))

    def estimate(self, readings: Readings) -> tuple[NDArray[np.float64], LabelFit]:
        """Return p, (N,), NaN for a pair without a beta, and what was found.

        Raises:
            ValueError: the slope is to be fitted, and the replies cannot dispute labels, or the
                fitted slope is not above 0.
        """
        s = readings.signed_gap
        if self.slope is not None:
            return _found(sigmoid(self.slope * s), readings)
        # GDPO and CW-PO name an estimate without its arguments.
        is_free = not readings.departures
        given = "give a slope, as in calibrated(slope=3)" if is_free else ""
        _check_can_dispute(readings, "calibrated", given)
        fit = fit_slope(s[~np.isnan(s)])
        choice, anchored = readings.choice("calibrated"), readings.alternative("anchored")
        if fit.interval is None:
            raise ValueError(
                f"{choice}: every signed gap is 0, so no slope can be fitted: "
                f"{given or f'use `{anchored}`, which then relies on the labels'}"
            )
        if fit.interval.estimate <= 0:
            shown = (
                "contradict the labels: their slope is"
                if fit.interval.high <= 0
                else "do not show which labels are right: their slope may be 0, it is"
            )
            raise ValueError(
                f"{choice}: the signed gaps {shown} {fit.interval}. With a slope that is not above "
                "0, a larger gap would not make a label more likely right: check the replies with "
                f"`sp2dpo audit`, or use `{anchored}`, which then relies on the labels"
            )
        return _found(sigmoid(fit.interval.estimate * s), readings, slope=fit.interval)


@dataclass(frozen=True)
class Latent:
    """p = P(the label is right | the label, every teacher): the label is one more annotator.

    The model of Dawid and Skene with two classes, label right and label wrong. Given the class, the
    teachers are independent; each teacher's s_ai falls in one of seven bins (`label_models.
    BIN_EDGES` and their negatives). With blind teachers, the probabilities of the bins are mirrored
    in the other class; with teachers who know the label they are not. EM finds them and the share
    of right labels, with Dirichlet(2) and Beta(9, 3) priors. Teachers that err together violate the
    independence: the model then takes what they share for the truth.
    """

    def estimate(self, readings: Readings) -> tuple[NDArray[np.float64], LabelFit]:
        """Return p, (N,), NaN for a pair without a beta, and what was found."""
        known = ~np.isnan(readings.signed_gap)
        model = fit_classes(readings.by_teacher[known], mirrored=readings.blind)
        p = _spread(model.right, known)
        accuracies = dict(zip(readings.teachers, model.teacher_accuracy.tolist(), strict=True))
        # Without the assumption of independence, for comparison.
        anchored = None
        if readings.can_dispute:
            anchored = fit_anchored(readings.signed_gap[known]).label_accuracy
        return _found(
            p, readings, label_accuracy=model.label_accuracy, anchored_accuracy=anchored,
            teacher_accuracy=accuracies, iterations=model.iterations, converged=model.converged,
        )  # fmt: skip


@dataclass(frozen=True)
class Anchored:
    """p = s(logit a + c s_i): the panel as one annotator, measured against the labels alone.

    The panel's odds of being right are exp(c |s_i|), and a label is right with probability a,
    independently. So the label agrees with the panel with probability

        (1 - a) + (2a - 1) s(c |s_i|),

    to which a and c are fitted: logistic regression with label noise, with a Beta(9, 3) prior of a
    and a normal prior of c with the scale 10. The teachers are never compared with each other, so
    errors that they share, but not with the labels, do no harm: if the gaps say nothing about the
    labels, c is 0 and p is a for all pairs. On the other hand, where panel and label disagree, the
    data cannot show which is wrong, so a good panel is trusted less than by `Latent`.
    """

    def estimate(self, readings: Readings) -> tuple[NDArray[np.float64], LabelFit]:
        """Return p, (N,), NaN for a pair without a beta, and what was found.

        Raises:
            ValueError: the replies cannot dispute labels.
        """
        _check_can_dispute(readings, "anchored")
        known = ~np.isnan(readings.signed_gap)
        model = fit_anchored(readings.signed_gap[known])
        p = _spread(model.right, known)
        return _found(p, readings, label_accuracy=model.label_accuracy, slope=model.slope)


SoftLabel = Free | Calibrated | Latent | Anchored


def _check_can_dispute(readings: Readings, name: str, otherwise: str = "") -> None:
    if not readings.can_dispute:
        raise ValueError(
            f"{readings.choice(name)}: teachers who see the label cannot dispute it under this gap "
            "form, so their gaps say nothing about how often labels are right: use the blind "
            f"rubric, or `gap: signed` in the schedule{otherwise and f', or {otherwise}'}"
        )


def _found(
    p: NDArray[np.float64], readings: Readings, **values: Any
) -> tuple[NDArray[np.float64], LabelFit]:
    """Return p and what was found, with the counts that follow from p."""
    p = np.round(p, DECIMALS)
    known = p[~np.isnan(p)]
    fit = LabelFit(
        pairs=len(known),
        exchanged=int((known < 0.5).sum()),
        blind=readings.blind,
        right=float(known.mean()),
        **values,
    )
    return p, fit.rounded(DECIMALS)


def _spread(values: NDArray[np.float64], known: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the values at the known places, NaN elsewhere."""
    spread = np.full(len(known), np.nan)
    spread[known] = values
    return spread
