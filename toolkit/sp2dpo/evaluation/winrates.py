"""Win rates from verdicts, and how sure they are: alpaca_eval's own numbers, under a bootstrap.

The length-controlled rate is AlpacaEval 2.0's (arXiv 2404.04475): a logistic regression on the
length difference, the difficulty of the prompt and the model, predicted at no length difference. It
is refitted to every bootstrap sample of the prompts; what the package calls its standard error is
none of sampling. Rows keep their index under resampling: the package joins difficulties by it.
"""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sp2dpo.evaluation.prompts import download
from sp2dpo.evaluation.verdicts import (
    EvaluationResult,
    import_alpaca_eval,
    without_root_log,
)

RATES = ("win_rate", "length_controlled")
GAMED = "df_gamed.csv"
ONE_RUN = 4.0
"""Points below which one run of a judge tells nothing: two runs of one judge have differed so."""


Watch = Callable[[Iterable[int], str, int], Iterable[int]]
"""Shows the progress of an iteration: the items, what they are, and how many there will be."""


def _unwatched(items: Iterable[int], what: str, of: int) -> Iterable[int]:
    return items


def download_gamed() -> None:
    """Fetches what the length-controlled rate is fitted with, before it is needed.

    Raises:
        OSError: neither the Hub nor its cache has it; the message says what to do.
    """
    try:
        download(GAMED)
    except OSError as error:
        raise OSError(
            f"{error}; without it there is no length-controlled rate: give --no-length-control for "
            "the plain one"
        ) from error


def win_rates(table: Any, *, length_controlled: bool) -> dict[str, float]:
    """Win rates of annotations, in percent, as alpaca_eval computes them.

    Args:
        table: a pandas data frame of annotations; its index tells the prompts.
        length_controlled: whether to fit that rate too.

    Returns:
        win_rate and, where it is fitted, length_controlled; NaN where no row has a verdict.
    """
    metrics = import_alpaca_eval().metrics
    scored = table["preference"].notna()
    if not scored.any():
        return dict.fromkeys(RATES if length_controlled else RATES[:1], float("nan"))
    if not length_controlled:
        return {"win_rate": float(metrics.get_winrate(table[scored])["win_rate"])}
    with without_root_log(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn warns about its own next versions
        found = metrics.get_length_controlled_winrate(
            table.copy(), save_weights_dir=None, is_warn_extreme_changes=False
        )
    return {
        "win_rate": float(found["win_rate"]),
        "length_controlled": float(found["length_controlled_winrate"]),
    }


def compare_students(
    results: Sequence[EvaluationResult],
    *,
    draws: int,
    seed: int,
    against: str | None,
    length_control: bool,
    watch: Watch = _unwatched,
) -> dict[str, Any]:
    """Students beside each other: rates, intervals, and paired differences.

    Results of one student are seeds of it. A bootstrap sample draws prompts, the same ones for all
    students, and of every student with several seeds the seeds (our choice).

    Args:
        results: of the same prompts, baseline and judge.
        draws: bootstrap samples.
        seed: of the draws.
        against: a student that the others are compared with; None for none.
        length_control: whether to fit the length-controlled rate, where it is defined.
        watch: shows the progress of the bootstrap.

    Returns:
        title; students: one entry each: name, seeds, unscored, prompts, win_rate,
        length_controlled (value, low, high, and of several seeds their standard deviation),
        length, baseline_length (mean characters), difference (of both rates to `against`) or None.

    Raises:
        ValueError: the results are not of one kind, or `against` is not among them.
        OSError: what the length-controlled rate needs is not there.
    """
    first = results[0].record
    for one in results[1:]:
        for key in ("title", "judge", "baseline", "prompts"):
            if one.record[key] != first[key]:
                raise ValueError(
                    f"{one.folder} and {results[0].folder} cannot be compared: their {key} differ"
                )
    controlled = bool(first["length_controlled"]) and length_control
    if controlled:
        download_gamed()
    names = list(dict.fromkeys(one.student for one in results))
    if against is not None and against not in names:
        raise ValueError(f"no result is of {against!r} (there are: {', '.join(names)})")
    groups = {name: [one for one in results if one.student == name] for name in names}
    point = {
        name: [win_rates(one.table, length_controlled=controlled) for one in group]
        for name, group in groups.items()
    }
    drawn = _draws(groups, draws, seed, controlled, watch)
    kinds = RATES if controlled else RATES[:1]
    students = []
    for name, group in groups.items():
        entry: dict[str, Any] = {
            "name": name,
            "seeds": len(group),
            "prompts": len(group[0].table),
            "unscored": [one.unscored for one in group],
            "length": float(np.mean([one.table["output_2"].str.len().mean() for one in group])),
            "baseline_length": float(group[0].table["output_1"].str.len().mean()),
        }
        for kind in kinds:
            values = [one[kind] for one in point[name]]
            entry[kind] = _interval(float(np.mean(values)), drawn[name][kind])
            entry[kind]["sd"] = float(np.std(values, ddof=1)) if len(values) > 1 else None
        entry["difference"] = None
        if against is not None and name != against:
            entry["difference"] = {
                kind: _interval(
                    float(np.mean([one[kind] for one in point[name]]))
                    - float(np.mean([one[kind] for one in point[against]])),
                    drawn[name][kind] - drawn[against][kind],
                )
                for kind in kinds
            }
        students.append(entry)
    return {
        "title": first["title"], "judge": first["judge"]["student"], "against": against,
        "draws": draws, "length_controlled": controlled, "students": students,
    }  # fmt: skip


def _draws(
    groups: Mapping[str, Sequence[EvaluationResult]],
    draws: int,
    seed: int,
    controlled: bool,
    watch: Watch,
) -> dict[str, dict[str, NDArray[np.float64]]]:
    """Name -> rate -> (draws,) values over bootstrap samples."""
    generator = np.random.default_rng(seed)
    count = len(next(iter(groups.values()))[0].table)
    kinds = RATES if controlled else RATES[:1]
    found = {name: {kind: np.empty(draws) for kind in kinds} for name in groups}
    for draw in watch(range(draws), "bootstrap", draws):
        rows = generator.integers(count, size=count)
        for name, group in groups.items():
            seeds = generator.integers(len(group), size=len(group))
            some = [
                win_rates(group[place].table.iloc[rows], length_controlled=controlled)
                for place in seeds
            ]
            for kind in kinds:
                found[name][kind][draw] = np.mean([one[kind] for one in some])
    return found


def _interval(value: float, samples: NDArray[np.float64]) -> dict[str, float | None]:
    """A value with the 2.5 and 97.5 percentiles of its bootstrap samples."""
    held = samples[np.isfinite(samples)]
    if not len(held) or not np.isfinite(value):
        return {"value": value if np.isfinite(value) else None, "low": None, "high": None}
    low, high = np.quantile(held, (0.025, 0.975))
    return {"value": value, "low": float(low), "high": float(high)}


def comparison_notes(found: Mapping[str, Any]) -> list[str]:
    """What has to be said aloud of a comparison."""
    said = []
    for one in found["students"]:
        unscored = sum(one["unscored"])
        if unscored:
            said.append(
                f"{one['name']}: {unscored} of {one['prompts'] * one['seeds']} outputs have no "
                "verdict that could be read; they are left out, not counted as lost"
            )
        longer = one["length"] / max(one["baseline_length"], 1e-9)
        rate, controlled = one["win_rate"]["value"], one.get("length_controlled")
        if controlled and controlled["value"] is not None and rate - controlled["value"] >= ONE_RUN:
            said.append(
                f"{one['name']}: {rate:.1f} becomes {controlled['value']:.1f} under length "
                f"control; its outputs are {longer:.2f} times as long as the baseline's"
            )
        if one["difference"]:
            said += _difference_notes(one, found["against"])
    return said


def _difference_notes(one: Mapping[str, Any], against: str) -> list[str]:
    plain, controlled = (one["difference"].get(kind) for kind in RATES)
    said = []
    if controlled and (plain["value"] or 0) > 0 > (controlled["value"] or 0):
        said.append(
            f"{one['name']} against {against}: WR up, LC down: it wins by length "
            "(a failure signature of the paper)"
        )
    shown = controlled or plain
    if one["seeds"] == 1 and shown["value"] is not None and abs(shown["value"]) < ONE_RUN:
        said.append(
            f"{one['name']} against {against}: below {ONE_RUN:.0f} points from one run: "
            "no difference can be claimed"
        )
    return said
