"""Check the betas of a table: measure values, and compare them with thresholds for a verdict.

A verdict is that of the 95 % interval, not of the value alone: see `Check`. Measures, thresholds
and this rule are our choice.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import fmean
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from sp2dpo.betas.arms import Arm
from sp2dpo.betas.file import BetaTable
from sp2dpo.betas.schedule import Schedule, category_envelopes, schedule_betas
from sp2dpo.diagnostics.agreement import (
    compare_readers,
    intraclass_correlation,
    wilson_interval,
)
from sp2dpo.diagnostics.bootstrap import (
    FISHER,
    Estimate,
    Ranked,
    bootstrap_estimates,
    student_quantile,
    weighted_spearman,
)
from sp2dpo.store.annotations import AnnotationTable

OK, LOOK, BAD, UNKNOWN = "ok", "look", "bad", "cannot be told"
FEWEST = 20
"""Minimum number of pairs for a verdict; below it, the value could be due to chance. Our choice.
(The standard error of a rank correlation of 0 over n pairs is 1 / sqrt(n - 1): 0.23 for 20.)"""
_SAMPLES = 200
"""Largest number of bootstrap samples of a mean over pairs of teachers."""
SCHEDULE_NOTE = "of the schedule's own betas, because the arm replaces them"
END = 0.05
"""Width of either end of the envelope, as a share of its full width. Our choice."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """The measurement of one way in which betas can go wrong.

    Attributes:
        name: stable identifier.
        title: short description of the failure, for display.
        measure: description of the measured value.
        unit: `share` (shown as a percentage) or `coefficient`.
        value: measured value, on a scale from 0 to `top`; None if it cannot be computed.
        top: upper end of the scale on which the value is shown.
        look: threshold of the verdict `look`.
        bad: threshold of the verdict `bad`; above `look` if high values are bad, else below. None
            for a fact about the pairs, high values of which are no fault of the annotations.
        low: lower end of the value's 95 % interval; None without an interval.
        high: upper end of the interval; None without an interval.
        reason: why there is no verdict; None if there is one.
        note: which teacher or pairs the value describes and what was left out; None if obvious.
        advice: one sentence on what to do if the check fails.
        needs_proof: whether the check fails unless the whole interval is on the good side of `bad`;
            otherwise it fails only if the whole interval is on the bad side.
        verdict: `bad` as `needs_proof` says; `look` if the value is on the bad side of `look` or
            the interval contains `bad`; `ok`; or `cannot be told`. Without an interval, the value
            takes its place.
    """

    name: str
    title: str
    measure: str
    unit: str
    value: float | None
    top: float
    look: float
    bad: float | None
    reason: str | None
    low: float | None = None
    high: float | None = None
    note: str | None = None
    advice: str
    needs_proof: bool = False
    verdict: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "verdict", self._compute_verdict())

    def _compute_verdict(self) -> str:
        if self.value is None or self.reason is not None:
            return UNKNOWN
        # Negated where low values are bad, so that the same comparisons serve both directions.
        sign = 1 if self.high_is_bad else -1
        ends = [self.value if end is None else end for end in (self.low, self.high)]
        best, worst = sorted(sign * end for end in ends)
        has_alarm = sign * self.value >= sign * self.look
        if self.bad is None:
            return LOOK if has_alarm else OK
        if (worst if self.needs_proof else best) >= sign * self.bad:
            return BAD
        return LOOK if has_alarm or worst >= sign * self.bad else OK

    @property
    def high_is_bad(self) -> bool:
        """Whether high values are on the bad side of the thresholds."""
        return self.bad is None or self.bad > self.look

    @property
    def thresholds(self) -> str:
        """The thresholds as text."""
        form = "{:.0%}" if self.unit == "share" else "{:.2f}"
        side = "or more" if self.high_is_bad else "or less"
        look = f"look {form.format(self.look)}"
        return (
            f"{look} {side}" if self.bad is None else f"{look}, bad {form.format(self.bad)} {side}"
        )


def check_betas(
    betas: BetaTable,
    replies: pl.DataFrame,
    readings: pl.DataFrame,
    *,
    draws: int,
    note: str | None = None,
) -> list[Check]:
    """Run the checks of the distribution of betas and of the teachers' consistency.

    Args:
        betas: the table of betas to check; see `judged_betas` for an arm's.
        replies: table of pair_id, teacher and gap, one row per variant; under the blind protocol
            averaged over the orders, so that position bias does not count as inconsistency.
        readings: readings of each teacher, from `agreement.teacher_readings`.
        draws: number of bootstrap samples.
        note: note of the checks of the distribution.
    """
    shares = envelope_shares(betas.table, betas.schedule).drop_nulls()
    # The paper names clumping as a warning sign; measures and thresholds are our choice.
    clumped_low = Check(
        name="clumped-low", title="Clumped at beta_min",
        measure="share of the betas in the lowest 5% of the envelope",
        unit="share", top=1.0, look=0.25, bad=0.5,
        **_share_of_betas(shares <= END),
        reason=_too_few(len(shares)),
        note=note,
        advice="Read the pairs with the smallest gaps: if their responses do differ, recalibrate "
        "the rubric's scales or the envelope; if not, these pairs express little preference.",
    )  # fmt: skip
    clumped_high = Check(
        name="clumped-high", title="Clumped at beta_max",
        measure="share of the betas in the highest 5% of the envelope",
        unit="share", top=1.0, look=0.25, bad=0.5,
        **_share_of_betas(shares >= 1 - END),
        reason=_too_few(len(shares)),
        note=note,
        advice="Read the pairs with the largest gaps: if the preference is not clear in all of "
        "them, the teachers give high scores too often; recalibrate the rubric's scales or the "
        "envelope.",
    )  # fmt: skip
    no_spread = Check(
        name="no-spread", title="No spread",
        measure="standard deviation of beta, as a share of the envelope's width",
        # Betas spread evenly over the envelope give 0.29, and 0.5 is the largest value possible.
        unit="share", top=0.5, look=0.1, bad=0.05,
        **asdict(deviation_estimate(shares.to_numpy())),
        reason=_too_few(len(shares)),
        note=note,
        advice="Betas this close to each other train much like one global beta: check whether the "
        "teachers use the full scales, and sharpen the rubric if they do not.",
    )  # fmt: skip
    guessing, wavering = _guessing(readings, draws=draws), _wavering(replies)
    return [clumped_low, clumped_high, no_spread, guessing, wavering]


def judged_betas(betas: BetaTable, annotations: AnnotationTable) -> tuple[BetaTable, str | None]:
    """Return the betas whose distribution is checked, and the note of these checks.

    An arm that replaces the schedule's betas, such as one beta for all pairs beside soft labels,
    does so on purpose: that its own betas have no spread says nothing about the annotations. The
    schedule's betas of the same annotations are checked in their place. Our choice.
    """
    arm = betas.arm
    if arm.beta is None and arm.temperature is None and arm.label_smoothing is None:
        return betas, None
    table = schedule_betas(annotations, arm.of)
    return replace(betas, table=table, arm=Arm(of=arm.of)), SCHEDULE_NOTE


def _share_of_betas(inside: pl.Series) -> dict[str, Any]:
    part = wilson_interval(int(inside.sum()), len(inside))
    return {"value": part.share, "low": part.low, "high": part.high}


def deviation_estimate(values: NDArray[np.float64]) -> Estimate:
    """Return the population standard deviation s with its interval on the scale log s.

        Var(s^2) = (m_4 - s^4 (n - 3) / (n - 1)) / n

    (Kenney and Keeping 1951, m_4 the fourth central moment); log s has the standard error
    sqrt(Var(s^2)) / (2 s^2) by the delta method. The interval's centre is the sample's deviation,
    with n - 1 in place of n: the population's is too small over few pairs.
    """
    n = len(values)
    if not n:
        return Estimate()
    square = float(values.var())
    if n < FEWEST or square < 1e-18:
        return Estimate(value=math.sqrt(square))
    fourth = float(((values - values.mean()) ** 4).mean())
    error = math.sqrt((fourth - square**2 * (n - 3) / (n - 1)) / n) / (2 * square)
    factor = math.exp(student_quantile(n - 1) * error)
    centre = math.sqrt(square * n / (n - 1))
    return Estimate(value=math.sqrt(square), low=centre / factor, high=centre * factor)


def envelope_shares(table: pl.DataFrame, schedule: Schedule) -> pl.Series:
    """Return each beta's position in its envelope, (beta - beta_min) / (beta_max - beta_min).

    Values are in [0, 1], except that the betas of a baseline may be outside. They are rounded to 9
    decimals, so that floating-point error does not move a beta off a border.
    """
    low, high = category_envelopes(schedule)
    share = (pl.col("beta") - low) / (high - low)
    return table.select(share.round(9)).to_series()


def _guessing(readings: pl.DataFrame, *, draws: int) -> Check:
    """Average Spearman's rho of the gaps over all pairs of teachers, in [-1, 1].

    Teachers that guess independently rank the pairs in unrelated orders, which gives 0. A teacher
    that is only stricter than another does not lower the value. Comparisons over fewer than 20
    pairs, or with a teacher whose gaps are all equal, are left out. Our choice.
    """
    between_teachers = compare_readers(readings, sorted(readings["reader"].unique()))
    enough = [row for row in between_teachers if row.pairs >= FEWEST]
    compared = [(row.one, row.other) for row in enough if row.spearman is not None]
    left_out = len(between_teachers) - len(compared)
    reason = None
    if not between_teachers:
        reason = "a comparison needs two teachers"
    elif not enough:
        reason = f"no two teachers have {FEWEST} pairs in common"
    elif not compared:
        reason = "a teacher whose gaps are all equal does not rank the pairs"
    return Check(
        name="guessing", title="Teachers guess",
        measure="rank correlation between two teachers' gaps, mean over all pairs of teachers",
        unit="coefficient", top=1.0, look=0.4, bad=0.2,
        **asdict(mean_correlation(readings, compared, draws=draws) if compared else Estimate()),
        reason=reason,
        note=f"{left_out} of {len(between_teachers)} comparisons left out" if left_out else None,
        advice="The teachers rank the pairs differently, so their mean carries little information: "
        "read a few rationales, then simplify the rubric or use stronger teachers.",
    )  # fmt: skip


def mean_correlation(
    readings: pl.DataFrame, compared: Sequence[tuple[str, str]], *, draws: int
) -> Estimate:
    """Return the mean of Spearman's rho over pairs of teachers; samples are common to all."""
    # By number: a teacher may have the name of any column.
    numbers = {name: f"reader {n}" for n, name in enumerate(readings["reader"].unique().sort())}
    numbered = readings.select("pair_id", "gap", reader=pl.col("reader").replace_strict(numbers))
    wide = numbered.pivot("reader", index="pair_id", values="gap").drop("pair_id")
    # Pairs with equal readings are resampled as one weighted unit, as in `rank_correlation`.
    patterns = wide.group_by(wide.columns).len("pairs").sort(wide.columns)
    counts = patterns["pairs"].to_numpy().astype(np.int64)
    sides = []
    for one, other in compared:
        columns = [patterns[numbers[name]] for name in (one, other)]
        rows = np.flatnonzero((columns[0].is_not_null() & columns[1].is_not_null()).to_numpy())
        sides.append((rows, *(Ranked(column.to_numpy()[rows]) for column in columns)))

    def mean_rho(weights: NDArray[np.float64]) -> float | None:
        values = [weighted_spearman(x, y, weights[rows]) for rows, x, y in sides]
        defined = [value for value in values if value is not None]
        return fmean(defined) if len(defined) == len(values) else None

    # A standard error needs fewer samples than percentiles would.
    samples = min(draws, _SAMPLES)
    return bootstrap_estimates(mean_rho, len(counts), draws=samples, counts=counts, scale=FISHER)


def _wavering(replies: pl.DataFrame) -> Check:
    """Measure the ICC(1) of the worst teacher's gaps over the variants, in [-1, 1].

    The worst is the one with the worst verdict, and of those the one with the lowest value.

    ICC(1) is the share of the variance of single gaps that lies between pairs: 0 for a teacher that
    answers at random, 1 for a teacher that the wording of a request does not affect. Teachers with
    fewer than 20 pairs annotated at least twice are left out. Our choice.
    """
    measured = intraclass_correlation(replies).filter(pl.col("pairs") >= FEWEST)
    # Null where all gaps of a teacher are equal: they do not vary between pairs either.
    by_teacher = {
        row["teacher"]: Estimate(value=row["icc"], low=row["low"], high=row["high"])
        for row in measured.drop_nulls("icc").iter_rows(named=True)
    }
    left_out = sorted(set(replies["teacher"]) - set(by_teacher))
    reason = None
    if measured.is_empty():
        reason = f"no teacher has annotated {FEWEST} pairs under two variants"
    elif not by_teacher:
        reason = "every teacher's gaps are all equal"
    note = f"left out: {', '.join(left_out)}" if left_out else None
    checks = {name: _wavering_of(icc, reason=None, note=note) for name, icc in by_teacher.items()}
    # By the verdict first: with few pairs, a lower value may be due to chance.
    order = (BAD, LOOK, OK)
    worst = min(
        checks,
        key=lambda name: (order.index(checks[name].verdict), by_teacher[name].value or 0.0),
        default=None,
    )
    if worst is None:
        return _wavering_of(Estimate(), reason=reason, note=note)
    notes = [f"the worst of {len(checks)}: {worst}", *([note] if note else [])]
    return replace(checks[worst], note="; ".join(notes))


def _wavering_of(icc: Estimate, *, reason: str | None, note: str | None) -> Check:
    return Check(
        name="wavering", title="A teacher wavers",
        measure="share of the variance of a teacher's gaps that lies between pairs, not variants",
        unit="coefficient", top=1.0, look=0.5, bad=0.2,
        **asdict(icc),
        reason=reason,
        note=note,
        advice="This teacher's answers depend on the wording of the request: read its rationales "
        "for one pair under all variants, and use another teacher if they contradict each other.",
    )  # fmt: skip


def _too_few(pairs: int) -> str | None:
    if pairs == 0:
        return "no pair has a beta"
    return f"{pairs} with a beta; a verdict needs {FEWEST} pairs" if pairs < FEWEST else None


def share_of(inside: pl.Series) -> float | None:
    """Return the share of True values; None if the series is empty."""
    return int(inside.sum()) / len(inside) if len(inside) else None
