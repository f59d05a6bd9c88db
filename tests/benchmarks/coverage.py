"""Prints how often the 95 % intervals of audit, agreement, pilot and compare cover the truth.

python tests/benchmarks/coverage.py [--trials 300] [--only WORD]

Every row draws data of a known truth many times and counts how often the interval that the commands
print contains it. With 300 trials, the Monte-Carlo error (one standard error) is 0.013. Intervals
that are withheld are counted apart: no interval is no error.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl

from sp2dpo.betas.label_slope import fit_slope
from sp2dpo.diagnostics.agreement import intraclass_correlation, wilson_interval
from sp2dpo.diagnostics.alpha import Ratings
from sp2dpo.diagnostics.biases import correlate_confidence
from sp2dpo.diagnostics.bootstrap import (
    FISHER,
    Ranked,
    bootstrap_estimates,
    correlation,
    estimate,
    rank_correlation,
    weighted_spearman,
)
from sp2dpo.diagnostics.checks import deviation_estimate, mean_correlation
from sp2dpo.diagnostics.intervals import auc_estimate, mean_share

DRAWS = 200
LARGE = 100_000
"""Number of units from which a truth without a formula is computed."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A kind of interval under one truth.

    Attributes:
        name: the interval, and where it is printed.
        setting: what the data are like.
        sizes: numbers of units.
        measure: from a generator and a number of units to an estimate with value, low and high.
        truth: the true value.
    """

    name: str
    setting: str
    sizes: tuple[int, ...]
    measure: Callable
    truth: float


def cover(case: Case, size: int, *, trials: int) -> tuple[float, float, float]:
    """The coverage, the mean width, and the share of withheld intervals."""
    rng = np.random.default_rng(size)
    covered, widths, withheld = 0, [], 0
    for _ in range(trials):
        result = case.measure(rng, size)
        if result.low is None:
            withheld += 1
            continue
        # A truth at the end of an interval may differ from it in the last digit.
        covered += result.low - 1e-9 <= case.truth <= result.high + 1e-9
        widths.append(result.high - result.low)
    printed = trials - withheld
    if not printed:
        return float("nan"), float("nan"), 1.0
    return covered / printed, float(np.mean(widths)), withheld / trials


def categories(rng, size, right):
    """Codes of three readers, each of whom finds the true one of four categories so often."""
    truth = rng.integers(4, size=size)[:, None]
    guessed = rng.integers(4, size=(size, 3))
    return np.where(rng.random((size, 3)) < right, truth, guessed).astype(np.int64)


def levels(rng, size, noise):
    """Levels from 0 to 10 of three readers with so much noise."""
    truth = rng.normal(5, 2, size)[:, None]
    readings = np.round(truth + noise * rng.normal(size=(size, 3)))
    return np.clip(readings, 0, 10).astype(np.int64)


def alpha(draw, level, values, parameter):
    """A measure of Krippendorff's alpha."""
    return lambda rng, size, draws=DRAWS: Ratings(draw(rng, size, parameter), values).alpha(
        level, draws=draws
    )


def gain(rng, size, draws=DRAWS):
    """The gain in alpha without the third reader, who is noisier than the others."""
    truth = rng.normal(5, 2, size)[:, None]
    noise = rng.normal(size=(size, 3)) * [1.0, 1.0, 2.5]
    ratings = Ratings(np.clip(np.round(truth + noise), 0, 10).astype(np.int64), 11)
    full, drawn = ratings.resample("ordinal", draws=draws)
    others, other_drawn = ratings.resample("ordinal", [0, 1], draws=draws)
    differences = (b - a for a, b in zip(drawn, other_drawn, strict=True))
    return estimate(others - full, differences, units=size)


def gap_pairs(rng, size, noise):
    """Gaps of two teachers of the same pairs: coarse, clipped at 0, many of them equal."""
    truth = rng.normal(0.3, 0.4, size)
    sides = truth[:, None] + noise * rng.normal(size=(size, 2))
    return np.round(np.clip(sides, 0, 1), 1).T


def replaced_pairs(rng, size, share):
    """Gaps of two teachers who differ about so many pairs only, and about these by chance."""
    truth, other = np.round(np.clip(rng.normal(0.3, 0.4, (2, size)), 0, 1), 1)
    return truth, np.where(rng.random(size) < share, other, truth)


def rare(share):
    """A measure of Spearman's rho of two teachers who rarely differ."""
    return lambda rng, size, draws=DRAWS: rank_correlation(
        *replaced_pairs(rng, size, share), draws=draws
    )


COMPARED = (("a", "b"), ("a", "c"), ("b", "c"))


def as_readings(gaps):
    """Gaps of three teachers, (N, 3), as `teacher_readings` gives them."""
    return pl.DataFrame(
        {
            "pair_id": np.repeat(np.arange(len(gaps)), 3),
            "reader": list("abc") * len(gaps),
            "gap": gaps.ravel(),
        }
    )


def rare_mean(share):
    """A measure of the mean rank correlation of three teachers, two of whom rarely differ."""

    def measure(rng, size, draws=DRAWS):
        first, second = replaced_pairs(rng, size, share)
        gaps = np.stack([first, second, first], axis=1)
        return mean_correlation(as_readings(gaps), COMPARED, draws=draws)

    return measure


def spearman(noise):
    """A measure of Spearman's rho of two teachers."""
    return lambda rng, size, draws=DRAWS: rank_correlation(
        *gap_pairs(rng, size, noise), draws=draws
    )


def pearson(rng, size, draws=DRAWS):
    """Pearson's correlation of two tables of betas."""
    x, y = 0.03 + 0.27 * gap_pairs(rng, size, 0.2)
    return bootstrap_estimates(lambda w: correlation(x, y, w), size, draws=draws, scale=FISHER)


def shift(rng, size, draws=DRAWS):
    """The mean of skewed differences, as of two tables of betas."""
    values = rng.exponential(1.0, size) * (rng.random(size) < 0.5)
    return bootstrap_estimates(lambda w: float(w @ values / w.sum()), size, draws=draws)


def readings_of(rng, size, noise):
    """Readings of three teachers with so much noise."""
    truth = rng.normal(0.3, 0.4, size)[:, None]
    return as_readings(np.round(np.clip(truth + noise * rng.normal(size=(size, 3)), 0, 1), 2))


def guessing(noise):
    """A measure of the mean rank correlation of three teachers."""
    return lambda rng, size, draws=DRAWS: mean_correlation(
        readings_of(rng, size, noise), COMPARED, draws=draws
    )


def icc(noise):
    """A measure of ICC(1) of a teacher under three variants."""

    def measure(rng, size):
        readings = readings_of(rng, size, noise).with_columns(teacher=pl.lit("x"))
        row = intraclass_correlation(readings.cast({"pair_id": pl.String})).row(0, named=True)
        return Interval(row["icc"], row["low"], row["high"])

    return measure


@dataclass
class Interval:
    """A value and its interval."""

    value: float | None
    low: float | None
    high: float | None


def within_categories(effect):
    """A measure of the rank correlation of gap and length within three categories."""

    def measure(rng, size, draws=DRAWS):
        category = rng.integers(3, size=size)
        # Categories differ in gap and in length, so that the correlation over all pairs is larger.
        longer = np.round(40 * (category + rng.normal(size=size)))
        gaps = np.clip(0.2 + 0.2 * category + 0.2 * rng.normal(size=size) + effect * longer, 0, 1)
        gaps, parts = pl.Series(np.round(gaps, 2)), pl.Series([f"c{c}" for c in category])
        return rank_correlation(gaps, pl.Series(longer), parts=parts, draws=draws)

    return measure


def confident(informative):
    """A measure of the check `confidence`: three teachers with confidences from 1 to 10.

    The noise of a teacher's magnitude falls with its confidence, or has nothing to do with it.
    """

    def measure(rng, size, draws=DRAWS):
        truth = rng.uniform(0, 1, (size, 1))
        confidence = rng.integers(1, 11, (size, 3))
        noise = 0.3 * (1.1 - confidence / 10) if informative else np.full((size, 3), 0.15)
        gaps = np.round(np.clip(truth + noise * rng.normal(size=(size, 3)), 0, 1), 1)
        readings = as_readings(gaps).cast({"pair_id": pl.String})
        readings = readings.with_columns(confidence=pl.Series((confidence / 10).ravel()))
        return correlate_confidence(readings, steps=10, draws=draws)[0]

    return measure


def confidence_gain(rng, size, draws=DRAWS):
    """The gain in rho with the known magnitude by the product with an informative confidence."""
    truth = np.round(rng.uniform(0, 10, size))
    confidence = rng.integers(1, 11, size) / 10
    magnitude = np.round(np.clip(truth + 4 * (1.1 - confidence) * rng.normal(size=size), 0, 10))
    known, product, alone = (Ranked(x) for x in (truth, magnitude * confidence, magnitude))

    def gained(weights):
        return weighted_spearman(product, known, weights) - weighted_spearman(alone, known, weights)

    return bootstrap_estimates(gained, size, draws=draws)


def deviation(rng, size):
    """The standard deviation of betas, a third of them at the floor."""
    return deviation_estimate(np.where(rng.random(size) < 0.3, 0.0, rng.beta(2, 3, size)))


def wrong_labels(rng, size, noise):
    """Negated gaps of wrong labels (12 %) and of right ones, from three noisy teachers."""
    wrong = rng.random(size) < 0.12
    truth = np.abs(rng.normal(1.2, 1, size)) * np.where(wrong, -1, 1)
    readings = truth[:, None] + noise * rng.normal(size=(size, 3))
    gaps = np.round(np.clip(readings / 4, -1, 1).mean(axis=1), 2)
    return -gaps[wrong], -gaps[~wrong]


def auc(noise):
    """A measure of the AUC of wrong labels."""
    return lambda rng, size: auc_estimate(*wrong_labels(rng, size, noise))


def share(p):
    """A measure of a share."""
    return lambda rng, size: wilson_interval(int(rng.binomial(size, p)), size)


def balanced(p, q):
    """A measure of the balanced accuracy, of which one truth in six is a wrong label."""

    def measure(rng, size):
        wrong = size // 6
        return mean_share(
            [
                wilson_interval(int(rng.binomial(size - wrong, p)), size - wrong),
                wilson_interval(int(rng.binomial(wrong, q)), wrong),
            ]
        )

    return measure


def slope(k):
    """A measure of the slope of the labels on blind gaps, many of them small."""

    def measure(rng, size):
        gaps = np.round(rng.uniform(0, 1, size) ** 2, 2)
        right = rng.random(size) < 1 / (1 + np.exp(-k * gaps))
        return fit_slope(np.where(right, gaps, -gaps))

    return measure


def cases() -> Iterator[Case]:
    """Every kind of interval under several truths."""
    large = np.random.default_rng(1)

    def value(measure, **settings):
        return measure(large, LARGE, **settings).value

    for right in (0.99, 0.9, 0.8, 0.3):
        measure = alpha(categories, "nominal", 4, right)
        yield Case(
            name="alpha, nominal (agreement)", setting=f"readers right {right:.0%}",
            sizes=(20, 50, 100), measure=measure, truth=value(measure, draws=2),
        )  # fmt: skip
    for noise in (0.3, 0.8, 2.0, 6.0):
        measure = alpha(levels, "ordinal", 11, noise)
        yield Case(
            name="alpha, ordinal (agreement)", setting=f"noise {noise:g}",
            sizes=(20, 50, 100), measure=measure, truth=value(measure, draws=2),
        )  # fmt: skip
    yield Case(
        name="gain in alpha (agreement)", setting="the third is noisier", sizes=(20, 50, 100),
        measure=gain, truth=value(gain, draws=2),
    )  # fmt: skip
    for noise in (0.1, 0.4, 2.0):
        measure = spearman(noise)
        yield Case(
            name="Spearman's rho (audit, compare)", setting=f"noise {noise:g}",
            sizes=(20, 50, 100), measure=measure, truth=value(measure, draws=2),
        )  # fmt: skip
    yield Case(
        name="Spearman's rho (audit, compare)", setting="1 % differ", sizes=(20, 50, 100),
        measure=rare(0.01), truth=value(rare(0.01), draws=2),
    )  # fmt: skip
    yield Case(
        name="Pearson's correlation (compare)", setting="noise 0.2", sizes=(20, 50, 100),
        measure=pearson, truth=value(pearson, draws=2),
    )  # fmt: skip
    yield Case(
        name="mean (shift, bias)", setting="skewed, half of it 0", sizes=(20, 50, 100),
        measure=shift, truth=0.5,
    )  # fmt: skip
    for noise in (0.1, 0.4, 2.0):
        measure = guessing(noise)
        yield Case(
            name="mean rho of teachers (audit)", setting=f"noise {noise:g}", sizes=(20, 50, 100),
            measure=measure, truth=value(measure, draws=2),
        )  # fmt: skip
    yield Case(
        name="mean rho of teachers (audit)", setting="1 % differ", sizes=(20, 50, 100),
        measure=rare_mean(0.01), truth=value(rare_mean(0.01), draws=2),
    )  # fmt: skip
    for noise in (0.1, 0.4, 2.0):
        measure = icc(noise)
        yield Case(
            name="ICC (audit)", setting=f"noise {noise:g}", sizes=(20, 50, 300),
            measure=measure, truth=value(measure),
        )  # fmt: skip
    yield Case(
        name="deviation of beta (audit)", setting="a third at the floor", sizes=(20, 50, 300),
        measure=deviation, truth=value(deviation),
    )  # fmt: skip
    # A generator of its own, so that the truths of the other rows do not depend on these.
    within = np.random.default_rng(1)
    for effect in (0.0, 0.002):
        measure = within_categories(effect)
        yield Case(
            name="rho within categories (audit)", setting=f"gap + {effect:g} x length",
            sizes=(20, 50, 100), measure=measure, truth=measure(within, LARGE, draws=2).value,
        )  # fmt: skip
    for informative in (False, True):
        measure = confident(informative)
        yield Case(
            name="confidence (audit)", setting="informative" if informative else "random",
            sizes=(20, 50, 100), measure=measure, truth=measure(within, LARGE, draws=2).value,
        )  # fmt: skip
    yield Case(
        name="gain by confidence (audit)", setting="informative", sizes=(20, 50, 100),
        measure=confidence_gain, truth=confidence_gain(within, LARGE, draws=2).value,
    )  # fmt: skip
    for noise in (0.3, 1.0, 4.0):
        measure = auc(noise)
        yield Case(
            name="AUC of wrong labels (audit)", setting=f"noise {noise:g}, 12 % wrong",
            sizes=(50, 100, 300), measure=measure, truth=value(measure),
        )  # fmt: skip
    for p in (0.02, 0.3):
        yield Case(
            name="share (audit, pilot)", setting=f"{p:.0%}", sizes=(20, 50, 300),
            measure=share(p), truth=p,
        )  # fmt: skip
    for p, q in ((0.5, 0.5), (0.7, 0.7), (0.95, 0.6)):
        yield Case(
            name="balanced accuracy (pilot)", setting=f"{p:.0%} and {q:.0%}",
            sizes=(24, 48, 96), measure=balanced(p, q), truth=(p + q) / 2,
        )  # fmt: skip
    for k in (0.0, 1.0, 3.0, 8.0):
        yield Case(
            name="slope k (audit, pilot)", setting=f"k = {k:g}", sizes=(20, 50, 300),
            measure=slope(k), truth=k,
        )  # fmt: skip


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=300)
    parser.add_argument("--only", default="", help="print the intervals with this word only")
    options = parser.parse_args()
    line = "{:<31} {:<24} {:>6} {:>5} {:>8} {:>6} {:>8}"
    print(line.format("interval", "data", "truth", "units", "coverage", "width", "withheld"))
    for case in cases():
        if options.only not in case.name:
            continue
        for size in case.sizes:
            coverage, width, withheld = cover(case, size, trials=options.trials)
            cells = (
                f"{case.truth:.3f}",
                size,
                f"{coverage:.3f}",
                f"{width:.2f}",
                f"{withheld:.0%}",
            )
            # Line by line, because the whole table takes minutes.
            print(line.format(case.name, case.setting, *cells), flush=True)


if __name__ == "__main__":
    main()
