"""A failure signature: a number, the thresholds that it is held to, and the verdict."""

from collections.abc import Mapping
from dataclasses import dataclass, field

OK, LOOK, BAD, UNKNOWN = "ok", "look", "bad", "cannot be told"
FEWEST = 20
"""Pairs below which a number is shown but gets no verdict: chance alone could give it. Our choice.
(The standard error of a rank correlation of 0 over n pairs is 1 / sqrt(n - 1): 0.23 for 20.)"""
END = 0.05
"""The width of an end of the envelope, as a share of the whole. Our choice."""


@dataclass(frozen=True, kw_only=True)
class Signature:
    """One way in which betas can go wrong, measured.

    Attributes:
        name: for programs; never changes.
        title: for people.
        measure: what the value is, in words.
        unit: `share` (a percentage, for people) or `coefficient`.
        value: on a scale from 0 to `top`; None where it cannot be computed.
        top: the far end of the scale.
        look: the threshold from which it is worth a look.
        bad: the threshold from which it is bad; above `look` where high values are bad, else below.
        low: the lower end of the value's 95 % interval; None where none is given.
        high: the upper end of it.
        reason: why there is no verdict; None where there is one.
        note: whom the value is of, and what was left out of it; None where that is plain.
        advice: what to do if it looks wrong, one sentence.
        verdict: `ok`, `look`, `bad` or `cannot be told`.
    """

    name: str
    title: str
    measure: str
    unit: str
    value: float | None
    top: float
    look: float
    bad: float
    reason: str | None
    low: float | None = None
    high: float | None = None
    note: str | None = None
    advice: str
    verdict: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "verdict", self._judged())

    def _judged(self) -> str:
        if self.value is None or self.reason is not None:
            return UNKNOWN
        high_is_bad = self.bad > self.look
        sign = 1 if high_is_bad else -1
        if sign * self.value >= sign * self.bad:
            return BAD
        return LOOK if sign * self.value >= sign * self.look else OK


def within(measured: Mapping[str, float | None]) -> dict[str, float | None]:
    """A value with its interval, as `intervals.estimate` gives it, for a signature.

    What counts is how far a value is from 0: one below it is given with its sign turned, and its
    interval too.
    """
    value, low, high = (measured[name] for name in ("value", "low", "high"))
    if value is None or value >= 0:
        return dict(measured)
    return {
        "value": -value,
        "low": None if high is None else -high,
        "high": None if low is None else -low,
    }
