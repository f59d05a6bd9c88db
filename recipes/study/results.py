"""Compare the methods of a study by the results of the trials that validation chooses.

For each seed, a method's trial is chosen by its mean true reward on the validation prompts; the
reported numbers are measured on the test prompts. Seeds are paired: a difference is taken within
each seed, and its 95 % interval is Student's over the seeds.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t as student_t

from config import Run, StudyConfig

MATCHED = (
    "drop-lowest", "drop-disputed", "flip-disputed", "gap-as-weight", "beta-as-weight",
    "gap-as-margin",
)  # fmt: skip
"""Arms that use the same information as the schedule, but not as a temperature per pair."""


def load_runs(config: StudyConfig, folder: Path) -> list[dict[str, Any]]:
    """Return the results of every run.

    Raises:
        ValueError: If a run is missing.
    """
    runs = []
    for run in config.runs():
        path = folder / "runs" / f"{run.name}.json"
        if not path.exists():
            raise ValueError(f"{path}: this run is missing")
        runs.append(json.loads(path.read_text()))
    return runs


def method_key(run: Mapping[str, Any] | Run) -> str:
    """Return the name of a run's method in the tables: `NAME`, or `NAME@PANEL`."""
    values = run if isinstance(run, Mapping) else vars(run)
    is_plain = values["panel"] in ("panel", "oracle")
    return values["method"] if is_plain else f"{values['method']}@{values['panel']}"


def estimate(values: Sequence[float]) -> dict[str, float | None]:
    """Return the mean over seeds with Student's 95 % interval; one seed has no interval."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return {"mean": mean, "low": None, "high": None, "sd": None}
    # Use three decimals, as in printed tables of the distribution.
    t = round(float(student_t.ppf(0.975, len(values) - 1)), 3)
    sd = float(np.std(values, ddof=1))
    half = t * sd / np.sqrt(len(values))
    return {"mean": mean, "low": mean - half, "high": mean + half, "sd": sd}


def compare_methods(config: StudyConfig, runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the comparison of all methods, as `table.json` holds it.

    Args:
        config: Configuration of the study.
        runs: Results of all runs.

    Returns:
        seeds: The seeds.
        against: The method that all others are compared with.
        runs: Number of runs.
        methods: One entry for each method, the best first: name; matched (one of `MATCHED`); scales
            (the chosen ones, by seed); tuned and default (reward at temperature 1, rewards by
            temperature, kl, accuracy, length); difference (reward of `against` minus that of the
            method, both tuned, by temperature).
        damage: By method, the reward at temperature 1 and scale 1 with flipped labels restored
            minus that with the given labels.
        claim: Whether `against` beats every matched arm.
    """
    names = list(dict.fromkeys(method_key(run) for run in runs))
    tuned = {name: _tuned(config, runs, name) for name in names}
    base = tuned[config.against]
    methods = []
    for name in names:
        chosen = tuned[name]
        defaults = _at_scale_one(config, runs, name, corrected=False)
        methods.append(
            {
                "name": name,
                "matched": name in MATCHED,
                "scales": [run["scale"] for run in chosen] if chosen else None,
                "tuned": _summarise(chosen),
                "default": _summarise(defaults),
                "difference": None if not chosen else {
                    temperature: estimate([
                        ours["reward"][temperature] - theirs["reward"][temperature]
                        for ours, theirs in zip(base, chosen, strict=True)
                    ])
                    for temperature in base[0]["reward"]
                },
            }
        )  # fmt: skip
    methods.sort(key=lambda method: -(method["tuned"] or method["default"])["reward"]["mean"])
    damage = {}
    for name in config.corrected:
        corrected = _at_scale_one(config, runs, name, corrected=True)
        given = _at_scale_one(config, runs, name, corrected=False)
        damage[name] = estimate([
            without["reward"]["1"] - with_flips["reward"]["1"]
            for without, with_flips in zip(corrected, given, strict=True)
        ])  # fmt: skip
    return {
        "seeds": config.seeds, "against": config.against, "runs": len(runs), "methods": methods,
        "damage": damage, "claim": _claim(methods),
    }  # fmt: skip


def _claim(methods: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return which matched arms are beaten, that is, the interval of the difference is above 0."""
    matched = [method for method in methods if method["matched"]]
    beaten = [
        method["name"]
        for method in matched
        if method["difference"] and (method["difference"]["1"]["low"] or 0) > 0
    ]
    not_beaten = [method["name"] for method in matched if method["name"] not in beaten]
    holds = bool(matched) and not not_beaten
    return {"beaten": beaten, "not_beaten": not_beaten, "holds": holds}


def _tuned(config: StudyConfig, runs: Sequence[Mapping[str, Any]], name: str) -> list[Any]:
    """Return the chosen trial of each seed; empty for a method without trials."""
    chosen = []
    for seed in config.seeds:
        trials = [
            run
            for run in runs
            if run["seed"] == seed
            and run["chosen"]
            and not run["corrected"]
            and method_key(run) == name
        ]
        if trials:
            chosen.append(max(trials, key=lambda run: run["validation"]))
    return chosen


def _at_scale_one(
    config: StudyConfig, runs: Sequence[Mapping[str, Any]], name: str, *, corrected: bool
) -> list[Any]:
    """Return a method's runs at scale 1, by seed."""
    return [
        run
        for seed in config.seeds
        for run in runs
        if run["seed"] == seed
        and method_key(run) == name
        and run["scale"] == 1
        and run["corrected"] == corrected
    ]


def _summarise(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    if not runs:
        return None
    rewards = {
        temperature: estimate([run["reward"][temperature] for run in runs])
        for temperature in runs[0]["reward"]
    }
    return {
        "reward": rewards["1"],
        "by_temperature": rewards,
        **{name: estimate([run[name] for run in runs]) for name in ("kl", "accuracy", "length")},
    }


def format_comparison(comparison: Mapping[str, Any]) -> list[str]:
    """Return a comparison as lines of Markdown: the tables, and the claim that they support."""
    against, methods = comparison["against"], comparison["methods"]
    lines = [
        f"| method | reward, tuned | {against} less it | reward, default | reward, greedy | KL | "
        "accuracy | length | scale chosen |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [_method_row(method, against) for method in methods]
    lines += ["", _deviations_line(comparison)]
    if any(method["matched"] for method in methods):
        note = "\\* carries the same information in another way."
        lines += ["", f"{note} {_claim_sentence(comparison)}".rstrip()]
    lines += ["", *_temperature_table(methods)]
    if comparison["damage"]:
        lines += [
            "",
            "| method, scale 1 | what the flipped labels cost, true reward |",
            "|---|---|",
        ]
        lines += [
            f"| {name} | {format_interval(cost, '+')} |"
            for name, cost in comparison["damage"].items()
        ]
    return lines


def _method_row(method: Mapping[str, Any], against: str) -> str:
    tuned, default, difference = method["tuned"], method["default"], method["difference"]
    shown = tuned or default
    is_base = method["name"] == against
    name = f"**{method['name']}**" if is_base else method["name"]
    less = "" if is_base else format_interval(difference and difference["1"], "+")
    return (
        f"| {name}{' *' * method['matched']} | {format_interval(tuned and tuned['reward'])} "
        f"| {less} | {format_interval(default and default['reward'])} "
        f"| {shown['by_temperature']['0']['mean']:.2f} | {shown['kl']['mean']:.2f} "
        f"| {shown['accuracy']['mean']:.3f} | {shown['length']['mean']:.1f} "
        f"| {_count_scales(method['scales'])} |"
    )


def _temperature_table(methods: Sequence[Mapping[str, Any]]) -> list[str]:
    tuned = [method for method in methods if method["tuned"]]
    temperatures = list(tuned[0]["tuned"]["by_temperature"])
    lines = [
        "| method, tuned | " + " | ".join(f"reward at {heat}" for heat in temperatures) + " |",
        "|---" * (len(temperatures) + 1) + "|",
    ]
    for method in tuned:
        rewards = (method["tuned"]["by_temperature"][heat] for heat in temperatures)
        lines.append(f"| {method['name']} | " + " | ".join(map(format_interval, rewards)) + " |")
    return lines


def _deviations_line(comparison: Mapping[str, Any]) -> str:
    deviations = [
        (method["name"], method["difference"]["1"]["sd"])
        for method in comparison["methods"]
        if method["difference"] and method["name"] != comparison["against"]
    ]
    if not deviations or deviations[0][1] is None:
        return "One seed: no interval."
    seeds = len(comparison["seeds"])
    listed = ", ".join(f"{name} {deviation:.2f}" for name, deviation in deviations)
    return f"Standard deviation of the paired differences over {seeds} seeds: {listed}."


def _claim_sentence(comparison: Mapping[str, Any]) -> str:
    claim, against = comparison["claim"], comparison["against"]
    if against != "sp2dpo" or not (claim["beaten"] or claim["not_beaten"]):
        return ""  # the rules state no claim for such a study
    if claim["holds"]:
        return f"{against} beats every one of them: an effect of the per-pair temperature itself."
    not_beaten = ", ".join(claim["not_beaten"])
    return (
        f"{against} does not beat {not_beaten}: "
        "no effect of the per-pair temperature itself is claimed."
    )


def format_interval(values: Mapping[str, Any] | None, sign: str = "") -> str:
    """Return an estimate as `1.73 (1.54 to 1.93)`; `sign` "+" also marks positive numbers."""
    if values is None:
        return "-"
    if values["low"] is None:
        return f"{values['mean']:{sign}.2f}"
    return f"{values['mean']:{sign}.2f} ({values['low']:{sign}.2f} to {values['high']:{sign}.2f})"


def _count_scales(scales: Sequence[float] | None) -> str:
    if not scales:
        return "-"
    counts = {scale: scales.count(scale) for scale in sorted(set(scales))}
    return ", ".join(f"{scale:g}: {count}" for scale, count in counts.items())
