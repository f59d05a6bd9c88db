"""What an estimate of the labels found: its values, in words, and when to doubt them."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

from pydantic import AllowInfNan, TypeAdapter, ValidationError

Finite = Annotated[float, AllowInfNan(False)]

_FEW_RIGHT = 0.65
"""Share of right labels below which `LabelFit.cautions` asks whether the teachers err together."""
_FAR = 0.05
"""Smallest difference between two estimates of the share of right labels that it mentions."""
_WIDE = 0.3
"""Width of the interval of the share of right labels above which it is called unknown."""
_COUNTS = ("pairs", "exchanged", "right", "blind")
"""What follows from the probabilities alone."""
_ROUNDING = 1e-6
"""Largest difference between what two machines find."""
_ANNOTATORS = 3
"""Annotators that a latent class model needs to tell their accuracies apart without a prior."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate with its 95 % interval."""

    estimate: Finite
    low: Finite
    high: Finite

    def __str__(self) -> str:
        return f"{self.estimate:.3g} (95 % {self.low:.3g} to {self.high:.3g})"


@dataclass(frozen=True, kw_only=True)
class LabelFit:
    """What an estimate of the probabilities found.

    Attributes:
        pairs: Number of pairs that have a probability.
        exchanged: Number of pairs whose label is more likely wrong than right.
        blind: Whether the teachers did not know the labels.
        right: Mean probability that a label is right; None without any pair.
        slope: k of `soft_labels.Calibrated` or c of `Anchored`, if it was fitted.
        truths: Number of known truths that k was fitted to; None if it was not.
        label_accuracy: Share of right labels according to `Latent` or `Anchored`.
        anchored_accuracy: For `Latent`, the same share according to `Anchored`, which does not
            assume that the teachers err independently; None if labels cannot be disputed.
        teacher_accuracy: By teacher, how often its preference is right, according to `Latent`.
        iterations: Number of EM steps, for `Latent`.
        converged: Whether EM converged, for `Latent`.
    """

    pairs: int
    exchanged: int
    blind: bool
    right: Finite | None = None
    slope: Interval | None = None
    truths: int | None = None
    label_accuracy: Interval | None = None
    anchored_accuracy: Interval | None = None
    teacher_accuracy: Mapping[str, Finite] = field(default_factory=dict)
    iterations: int | None = None
    converged: bool | None = None

    def as_mapping(self) -> dict[str, Any]:
        """Return the values that are known; `parse_label_fit` reads them back."""
        return {key: value for key, value in asdict(self).items() if value not in (None, {})}

    def rounded(self, decimals: int) -> "LabelFit":
        """Return a copy in which every number is rounded."""
        return _FIT.validate_python(_rounded(asdict(self), decimals))

    def matches(self, other: "LabelFit") -> bool:
        """Whether another fit found the same, up to rounding errors.

        A slope that was fitted to known truths is not compared: they are not among the replies.
        """
        ours, theirs = _flat(self.as_mapping()), _flat(other.as_mapping())
        if self.truths is not None:
            ours = {key: value for key, value in ours.items() if key in _COUNTS}
            theirs = {key: value for key, value in theirs.items() if key in _COUNTS}
        return ours.keys() == theirs.keys() and all(
            math.isclose(value, theirs[key], rel_tol=_ROUNDING, abs_tol=_ROUNDING)
            for key, value in ours.items()
        )

    def lines(self) -> list[str]:
        """Return the values in words, a line for each."""
        lines = []
        if self.right is not None:
            lines.append(
                f"labels: right with probability {self.right:.3f} on average, more likely wrong "
                f"than right in {self.exchanged} of {self.pairs} pairs"
            )
        if self.slope is not None:
            whom = "the labels" if self.truths is None else f"{self.truths} known truths"
            lines.append(f"slope of {whom} on the signed gap: {self.slope}")
        if self.label_accuracy is not None:
            lines.append(f"accuracy of the labels: {self.label_accuracy}")
        if self.teacher_accuracy:
            each = (f"{name} {value:.3g}" for name, value in self.teacher_accuracy.items())
            lines.append(f"accuracy of the teachers: {', '.join(each)}")
        if self.converged:
            lines.append(f"EM converged after {self.iterations} steps")
        return lines

    def cautions(self) -> list[str]:
        """Return the reasons to doubt the values, a sentence for each; empty without any."""
        return [*self._doubts_of_slope(), *self._doubts_of_classes()]

    def _doubts_of_slope(self) -> Iterator[str]:
        if self.slope is None or self.truths is not None:
            return
        if self.slope.low <= 0:
            yield (
                f"the slope may be 0 (95 % {self.slope.low:.3g} to {self.slope.high:.3g}): the "
                "signed gaps hardly tell right labels from wrong ones"
            )
        if not self.blind:
            yield (
                "the teachers saw the labels, so the slope also measures how far they follow them: "
                "the blind rubric avoids it"
            )

    def _doubts_of_classes(self) -> Iterator[str]:
        if self.converged is False:
            yield (
                f"EM did not converge in {self.iterations} steps, so the probabilities are not "
                "final: request more replies, or use the estimate `anchored`"
            )
        if self.label_accuracy is None:
            return
        if self.label_accuracy.high - self.label_accuracy.low > _WIDE:
            yield (
                f"the accuracy of the labels is hardly known: {self.label_accuracy}, which rests "
                "on the prior (3 of 4 labels are right): the replies say little about the labels"
            )
        if not self.teacher_accuracy:
            return
        # Blind teachers do not know the label, so it is one more annotator.
        if len(self.teacher_accuracy) + self.blind < _ANNOTATORS:
            also = " and the labels" if self.blind else ""
            yield (
                f"{len(self.teacher_accuracy)} teacher(s){also} are too few annotators to estimate "
                "accuracies, which rest on the prior then (3 of 4 labels are right)"
            )
        elif self._is_doubtful(self.label_accuracy):
            other = ""
            if self.anchored_accuracy is not None:
                other = f", and {self.anchored_accuracy} if teachers may err together"
            yield (
                f"the estimated accuracy of the labels is {self.label_accuracy}{other}: either "
                "many labels are wrong, or the teachers err together or guess; the estimate "
                "`anchored` does not rely on their independence"
            )

    def _is_doubtful(self, accuracy: Interval) -> bool:
        """Whether the share of right labels is low, or the other model finds another one."""
        other = self.anchored_accuracy
        return accuracy.estimate < _FEW_RIGHT or (
            other is not None
            and max(accuracy.low, other.low) > min(accuracy.high, other.high)
            and abs(accuracy.estimate - other.estimate) > _FAR
        )


def parse_label_fit(values: Any, *, where: str) -> LabelFit:
    """Parse the mapping that `LabelFit.as_mapping` returns.

    Raises:
        ValueError: it is another mapping.
    """
    try:
        # As JSON, in which pydantic's strict mode accepts a mapping for a dataclass.
        return _FIT.validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(map(str, problem["loc"]))
        raise ValueError(f"{where}: {key or 'labels'}: {problem['msg']}") from None


_FIT = TypeAdapter(LabelFit)


def _rounded(value: Any, decimals: int) -> Any:
    if isinstance(value, Mapping):
        return {key: _rounded(inner, decimals) for key, inner in value.items()}
    return round(value, decimals) if isinstance(value, float) else value


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Return all numbers of nested mappings by their joined keys."""
    flat = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
