"""Compute win rates from verdicts with alpaca_eval, and their intervals with a bootstrap.

The length-controlled rate is that of AlpacaEval 2.0 (arXiv 2404.04475): a logistic regression on
the length difference, the difficulty of the prompt and the model, evaluated at a length difference
of 0. It is refitted to every bootstrap sample of the prompts, because the standard error that the
package reports does not include the sampling of prompts.
"""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sp2dpo.diagnostics.bootstrap import Estimate, percentile_estimate
from sp2dpo.evaluation.prompts import download
from sp2dpo.evaluation.verdicts import EvaluationResult, import_alpaca_eval, without_root_log

RATES = ("win_rate", "length_controlled")
GAMED = "df_gamed.csv"
# Two runs of one local judge gave 41.9 and 45.3.
JUDGE_NOISE = 4.0
"""Difference between two runs of the same judge, in points; smaller differences may be noise."""

Watch = Callable[[Iterable[int], str, int], Iterable[int]]
"""Shows the progress of an iteration: takes the items, their name and their number, and yields the
items."""


@dataclass(frozen=True, kw_only=True)
class Rate(Estimate):
    """A win rate in percent, the mean over the seeds of a student.

    Attributes:
        sd: Standard deviation between the seeds; None for one seed.
    """

    sd: float | None = None


@dataclass(frozen=True, kw_only=True)
class StudentRates:
    """The win rates of one student.

    Attributes:
        name: Name of the student.
        seeds: Number of results of the student, one per seed.
        prompts: Number of prompts.
        unscored: Prompts without a verdict, for each seed.
        length: Mean length of an output, in characters.
        baseline_length: Mean length of an output of the baseline, in characters.
        rates: Win rate and, if it was fitted, length-controlled win rate, by name (see RATES).
        difference: Difference of each rate from that of the student that all others are compared
            with, in points; None if there is no such comparison.
    """

    name: str
    seeds: int
    prompts: int
    unscored: Sequence[int]
    length: float
    baseline_length: float
    rates: Mapping[str, Rate]
    difference: Mapping[str, Estimate] | None

    def record(self) -> dict[str, Any]:
        """Return the values as JSON; each rate has its own key."""
        fields = asdict(self)
        difference = fields.pop("difference")
        return fields | fields.pop("rates") | {"difference": difference}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The win rates of several students.

    Attributes:
        title: Title of the table, see `models.title`.
        judge: Name of the judge.
        against: Name of the student that all others are compared with; None for no comparison.
        draws: Number of bootstrap samples.
        length_controlled: Whether the length-controlled rate was fitted.
        students: One entry for each student.
    """

    title: str
    judge: str
    against: str | None
    draws: int
    length_controlled: bool
    students: Sequence[StudentRates]

    def record(self) -> dict[str, Any]:
        """Return the values as JSON."""
        return {
            "title": self.title, "judge": self.judge, "against": self.against, "draws": self.draws,
            "length_controlled": self.length_controlled,
            "students": [student.record() for student in self.students],
        }  # fmt: skip


def download_gamed() -> None:
    """Download the data that is needed to fit the length-controlled rate.

    Raises:
        OSError: If the file cannot be downloaded and is not in the cache.
    """
    try:
        download(GAMED)
    except OSError as error:
        raise OSError(
            f"{error}; without it there is no length-controlled rate: give --no-length-control for "
            "the plain one"
        ) from error


def win_rates(table: Any, *, length_controlled: bool) -> dict[str, float]:
    """Return the win rates of annotations, in percent, as alpaca_eval computes them.

    Args:
        table: Annotations as a pandas data frame; its index is the position of the prompt.
        length_controlled: Whether to fit the length-controlled rate too.

    Returns:
        The keys win_rate and, if fitted, length_controlled; NaN if no row has a verdict.
    """
    metrics = import_alpaca_eval().metrics
    scored = table["preference"].notna()
    if not scored.any():
        return dict.fromkeys(RATES if length_controlled else RATES[:1], float("nan"))
    if not length_controlled:
        # A row without a verdict takes no part; as a loss it would favour the baseline.
        return {"win_rate": float(metrics.get_winrate(table[scored])["win_rate"])}
    # All rows, because the rate is predicted for every prompt; the fit leaves out those without a
    # verdict.
    with without_root_log(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn warns about its own future versions
        # By default the package writes the fitted weights into its own folder, and adds a column to
        # the table. `comparison_notes` reports extreme changes, not every bootstrap sample.
        result = metrics.get_length_controlled_winrate(
            table.copy(), save_weights_dir=None, is_warn_extreme_changes=False
        )
    return {
        "win_rate": float(result["win_rate"]),
        "length_controlled": float(result["length_controlled_winrate"]),
    }


def compare_students(
    results: Sequence[EvaluationResult],
    *,
    draws: int,
    seed: int,
    against: str | None,
    length_control: bool,
    watch: Watch = lambda items, name, total: items,
) -> Comparison:
    """Compare the win rates of students, with intervals and paired differences.

    Several results of the same student count as different seeds. A bootstrap sample draws the same
    prompts for all students; for a student with several seeds, it also draws seeds (our choice).

    Args:
        results: Results for the same prompts, baseline and judge.
        draws: Number of bootstrap samples.
        seed: Seed of the bootstrap.
        against: Name of the student that all others are compared with; None for no comparison.
        length_control: Whether to fit the length-controlled rate if the prompts allow it.
        watch: Shows the progress of the bootstrap.

    Raises:
        ValueError: If the results cannot be compared, or `against` is not among them.
        OSError: If the data of the length-controlled rate are not available.
    """
    first = results[0]
    for result in results[1:]:
        for name in ("title", "judge", "baseline", "prompts"):
            if getattr(result, name) != getattr(first, name):
                raise ValueError(
                    f"{result.folder} and {first.folder} cannot be compared: their {name} differ"
                )
    controlled = first.length_controlled and length_control
    # Before any fit, so that a missing file is reported at once and with the way out.
    if controlled:
        download_gamed()
    kinds = RATES if controlled else RATES[:1]
    # Not a set: the table keeps the order in which the results were given.
    names = list(dict.fromkeys(result.student for result in results))
    if against is not None and against not in names:
        raise ValueError(f"there is no result of {against!r} (there are: {', '.join(names)})")
    groups = {name: [result for result in results if result.student == name] for name in names}
    seed_rates = {
        name: [win_rates(result.table, length_controlled=controlled) for result in group]
        for name, group in groups.items()
    }
    samples = _bootstrap(groups, draws, seed, kinds, watch)
    means = {
        name: {kind: float(np.mean([rates[kind] for rates in seed_rates[name]])) for kind in kinds}
        for name in names
    }

    def rate(name: str, kind: str) -> Rate:
        values = [rates[kind] for rates in seed_rates[name]]
        # ddof=1, because the seeds are a sample of all seeds.
        sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
        return Rate(**asdict(_estimate(means[name][kind], samples[name][kind])), sd=sd)

    def difference(name: str) -> dict[str, Estimate] | None:
        if against is None or name == against:
            return None
        return {
            # Paired: in each sample, both students have the same prompts.
            kind: _estimate(
                means[name][kind] - means[against][kind],
                samples[name][kind] - samples[against][kind],
            )
            for kind in kinds
        }

    students = [
        StudentRates(
            name=name,
            seeds=len(group),
            prompts=len(group[0].table),
            unscored=[result.unscored for result in group],
            length=float(np.mean([result.table["output_2"].str.len().mean() for result in group])),
            baseline_length=float(group[0].table["output_1"].str.len().mean()),
            rates={kind: rate(name, kind) for kind in kinds},
            difference=difference(name),
        )
        for name, group in groups.items()
    ]
    return Comparison(
        title=first.title, judge=first.judge["student"], against=against, draws=draws,
        length_controlled=controlled, students=students,
    )  # fmt: skip


def _bootstrap(
    groups: Mapping[str, Sequence[EvaluationResult]],
    draws: int,
    seed: int,
    kinds: Sequence[str],
    watch: Watch,
) -> dict[str, dict[str, NDArray[np.float64]]]:
    """Return the bootstrap samples, (draws,), by name of the student and by rate."""
    generator = np.random.default_rng(seed)
    count = len(next(iter(groups.values()))[0].table)
    samples = {name: {kind: np.empty(draws) for kind in kinds} for name in groups}
    for draw in watch(range(draws), "bootstrap", draws):
        # Drawn once for all students, which makes their differences paired.
        rows = generator.integers(count, size=count)
        for name, group in groups.items():
            seeds = generator.integers(len(group), size=len(group))
            # `iloc` keeps the index of the rows, by which the package joins the difficulty of each
            # prompt.
            rates = [
                win_rates(group[number].table.iloc[rows], length_controlled=len(kinds) > 1)
                for number in seeds
            ]
            for kind in kinds:
                samples[name][kind][draw] = np.mean([rate[kind] for rate in rates])
    return samples


def _estimate(value: float, samples: Iterable[float]) -> Estimate:
    # NaN without any verdict.
    return percentile_estimate(value if np.isfinite(value) else None, samples)


def comparison_notes(comparison: Comparison) -> list[str]:
    """Return notes on the interpretation of a comparison, such as missing verdicts."""
    notes = []
    for student in comparison.students:
        unscored = sum(student.unscored)
        if unscored:
            notes.append(
                f"{student.name}: {unscored} of {student.prompts * student.seeds} outputs have no "
                "verdict that could be read; they are left out, not counted as lost"
            )
        # The outputs of a baseline may all be empty.
        longer = student.length / max(student.baseline_length, 1e-9)
        rate, controlled = (_value(student.rates, kind) for kind in RATES)
        if rate is not None and controlled is not None and rate - controlled >= JUDGE_NOISE:
            notes.append(
                f"{student.name}: {rate:.1f} becomes {controlled:.1f} under length control; its "
                f"outputs are {longer:.2f} times as long as the baseline's"
            )
        if student.difference:
            notes += _difference_notes(student, student.difference, comparison.against)
    return notes


def _difference_notes(
    student: StudentRates, difference: Mapping[str, Estimate], against: str | None
) -> list[str]:
    rate, controlled = (_value(difference, kind) for kind in RATES)
    notes = []
    if (rate or 0) > 0 > (controlled or 0):
        notes.append(
            f"{student.name} against {against}: WR up, LC down: it wins by length "
            "(a failure signature of the paper)"
        )
    shown = controlled if "length_controlled" in difference else rate
    if student.seeds == 1 and shown is not None and abs(shown) < JUDGE_NOISE:
        notes.append(
            f"{student.name} against {against}: below {JUDGE_NOISE:.0f} points from one run: "
            "no difference can be claimed"
        )
    return notes


def _value(rates: Mapping[str, Estimate], kind: str) -> float | None:
    return rates[kind].value if kind in rates else None
