"""A failure signature: a number, the thresholds that it is held to, and the verdict."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import polars as pl

from sp2dpo.betas.file import BetaTable
from sp2dpo.betas.schedule import Schedule, category_envelopes
from sp2dpo.diagnostics.agreement import intraclass

OK, LOOK, BAD, UNKNOWN = "ok", "look", "bad", "cannot be told"
FEWEST = 20
"""Pairs below which a number is shown but gets no verdict: chance alone could give it. Our choice.
(The standard error of a rank correlation of 0 over n pairs is 1 / sqrt(n - 1): 0.23 for 20.)"""
END = 0.05
"""The width of an end of the envelope, as a share of the whole. Our choice."""


@dataclass(frozen=True, kw_only=True)
class Check:
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


def check_betas(
    made: BetaTable, replies: pl.DataFrame, between_teachers: Sequence[dict[str, Any]]
) -> list[Check]:
    """All signatures of a table of betas.

    Args:
        made: the betas.
        replies: pair_id, teacher and gap, one row per variant; under the blind protocol a mean over
            the orders, so that what a teacher owes to a place is not taken for wavering.
        between_teachers: as `agreement.comparisons` makes them.
    """
    shares = envelope_shares(made.table, made.schedule).drop_nulls()
    return [
        _clumped_low(shares),
        _clumped_high(shares),
        _no_spread(shares),
        _guessing(between_teachers),
        _wavering(replies),
    ]


def envelope_shares(table: pl.DataFrame, schedule: Schedule) -> pl.Series:
    """Where each beta stands in its envelope: (beta - beta_min) / (beta_max - beta_min).

    In [0, 1], but for a baseline's beta, which may lie outside. Rounded to 9 decimals, so that a
    beta on a border is on it in spite of floating point.
    """
    low, high = category_envelopes(schedule)
    share = (pl.col("beta") - low) / (high - low)
    return table.select(share.round(9)).to_series()


def _clumped_low(shares: pl.Series) -> Check:
    """The share of the betas in the lowest 5% of the envelope, borders included. Our choice."""
    return Check(
        name="clumped-low",
        title="Clumped at beta_min",
        measure="share of the betas in the lowest 5% of the envelope",
        unit="share",
        value=_share_of(shares <= END),
        top=1.0,
        look=0.25,
        bad=0.5,
        reason=_too_few(len(shares)),
        advice="Read the least telling pairs: where they do differ, recalibrate the rubric's "
        "scales or the envelope; where they do not, these pairs hold little preference.",
    )


def _clumped_high(shares: pl.Series) -> Check:
    """The share of the betas in the highest 5% of the envelope, borders included. Our choice."""
    return Check(
        name="clumped-high",
        title="Clumped at beta_max",
        measure="share of the betas in the highest 5% of the envelope",
        unit="share",
        value=_share_of(shares >= 1 - END),
        top=1.0,
        look=0.25,
        bad=0.5,
        reason=_too_few(len(shares)),
        advice="Read the most telling pairs: where they are not all decisive, the teachers use the "
        "top of the scales too freely, and the rubric's scales or the envelope want recalibration.",
    )


def _no_spread(shares: pl.Series) -> Check:
    """The population standard deviation of beta over the envelope's width, in [0, 0.5].

    Betas spread evenly over the envelope give 0.29. Our choice.
    """
    return Check(
        name="no-spread",
        title="No spread",
        measure="standard deviation of beta, as a share of the envelope's width",
        unit="share",
        value=_deviation(shares),
        top=0.5,
        look=0.1,
        bad=0.05,
        reason=_too_few(len(shares)),
        advice="Betas this close to each other train much like one global beta: see whether the "
        "teachers use the whole of the scales, and sharpen the rubric if they do not.",
    )


def _guessing(between_teachers: Sequence[dict[str, Any]]) -> Check:
    """The mean of Spearman's rho over all two teachers' gaps, in [-1, 1].

    Teachers that guess, each on its own, rank the pairs in unrelated orders: 0. A teacher that is
    merely stricter than another loses nothing. Comparisons of fewer than 20 pairs are left out, and
    those with a teacher whose gaps are all equal. Our choice.
    """
    enough = [one for one in between_teachers if one["pairs"] >= FEWEST]
    known = [one["spearman"] for one in enough if one["spearman"] is not None]
    left_out = len(between_teachers) - len(known)
    reason = None
    if not between_teachers:
        reason = "it takes two teachers to compare"
    elif not enough:
        reason = f"no two teachers have read {FEWEST} pairs in common"
    elif not known:
        reason = "a teacher whose gaps are all equal puts the pairs in no order"
    return Check(
        name="guessing",
        title="Teachers guess",
        measure="rank correlation between two teachers' gaps, mean over all twos",
        unit="coefficient",
        value=fmean(known) if known else None,
        top=1.0,
        look=0.4,
        bad=0.2,
        reason=reason,
        note=f"{left_out} of {len(between_teachers)} comparisons left out" if left_out else None,
        advice="The teachers put the pairs in different orders, so their mean says little: read a "
        "few rationales, then make the rubric plainer or ask stronger teachers.",
    )


def _wavering(replies: pl.DataFrame) -> Check:
    """ICC(1) of a teacher's gaps over the variants, in [-1, 1]; that of the lowest teacher.

    The share of the variance of single gaps that lies between pairs: a teacher that rolls dice at
    every request has 0, one that the wording of a request does not move has 1. Teachers with fewer
    than 20 pairs that they read at least twice are left out. Our choice.
    """
    measured = intraclass(replies).filter(pl.col("pairs") >= FEWEST)
    known = dict(measured.drop_nulls("icc").select("teacher", "icc").iter_rows())
    left_out = sorted(set(replies["teacher"]) - set(known))
    lowest = min(known, key=lambda teacher: known[teacher], default=None)
    reason = None
    if measured.is_empty():
        reason = f"no teacher has read {FEWEST} pairs under two variants"
    elif lowest is None:
        reason = "every teacher's gaps are all equal"
    notes = [] if lowest is None else [f"lowest of {len(known)}: {lowest}"]
    notes += [f"left out: {', '.join(left_out)}"] if left_out else []
    return Check(
        name="wavering",
        title="A teacher wavers",
        measure="share of the variance of a teacher's gaps that lies between pairs, not variants",
        unit="coefficient",
        value=None if lowest is None else known[lowest],
        top=1.0,
        look=0.5,
        bad=0.2,
        reason=reason,
        note="; ".join(notes) or None,
        advice="What this teacher says hangs on how it is asked: read its rationales for one pair "
        "under all variants, and ask another teacher if they contradict each other.",
    )


def _too_few(pairs: int) -> str | None:
    if pairs == 0:
        return "no pair has a beta"
    return f"{pairs} with a beta; a verdict needs {FEWEST} pairs" if pairs < FEWEST else None


def _share_of(inside: pl.Series) -> float | None:
    """The share of True; None of nothing."""
    return int(inside.sum()) / len(inside) if len(inside) else None


def _deviation(shares: pl.Series) -> float | None:
    return shares.to_frame("share").select(pl.col("share").std(ddof=0)).item()
