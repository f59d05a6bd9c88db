"""The runs of a study as a comparison: the trial that validation chooses, and what it gave.

A method's trial is chosen for each seed by the mean true reward on the validation prompts; what is
reported of it is measured on the test prompts. Seeds are paired: a difference is taken within each
seed, and its interval is Student's over the seeds (95 %).
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from preset import Preset, Run

T_QUANTILES = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160,
    2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056,
    2.052, 2.048, 2.045,
)  # fmt: skip
"""The 0.975 quantiles of Student's t with 1, 2, ... degrees of freedom."""
NORMAL = 1.960
MATCHED = (
    "drop-lowest", "drop-disputed", "flip-disputed", "gap-as-weight", "beta-as-weight",
    "gap-as-margin",
)  # fmt: skip
"""The arms that carry the information of the schedule in another way."""


def outcomes(preset: Preset, folder: Path) -> list[dict[str, Any]]:
    """What came of every run.

    Raises:
        ValueError: a run is missing.
    """
    found = []
    for run in preset.runs():
        path = folder / "runs" / f"{run.name}.json"
        if not path.exists():
            raise ValueError(f"{path}: this run is missing")
        found.append(json.loads(path.read_text()))
    return found


def key(run: Mapping[str, Any] | Run) -> str:
    """The name under which a method is compared: with its panel, where it is not `panel`."""
    said = run if isinstance(run, Mapping) else vars(run)
    plain = said["panel"] in ("panel", "oracle")
    return said["method"] if plain else f"{said['method']}@{said['panel']}"


def estimate(values: Sequence[float]) -> dict[str, float | None]:
    """The mean over seeds and its interval, Student's, 95 %; none from one seed."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return {"mean": mean, "low": None, "high": None, "sd": None}
    t = T_QUANTILES[len(values) - 2] if len(values) <= len(T_QUANTILES) + 1 else NORMAL
    sd = float(np.std(values, ddof=1))
    half = t * sd / np.sqrt(len(values))
    return {"mean": mean, "low": mean - half, "high": mean + half, "sd": sd}


def compared(preset: Preset, runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The comparison.

    Args:
        preset: that was run.
        runs: all of its outcomes.

    Returns:
        seeds; against; methods: one entry for each, best first: name, matched, scales (chosen, by
        seed), tuned and default (rewards by temperature, kl, accuracy, length; the reward at
        temperature 1 as `reward`), difference (of `against` less it, tuned, at 1; by temperature);
        damage: reward at 1, scale 1, with the flips undone less that with them.
    """
    names = list(dict.fromkeys(key(run) for run in runs))
    tuned = {name: _tuned(preset, runs, name) for name in names}
    base = tuned[preset.against]
    found = []
    for name in names:
        mine = tuned[name]
        defaults = _of(preset, runs, name, scale=1.0, corrected=False)
        found.append(
            {
                "name": name,
                "matched": name in MATCHED,
                "scales": [one["scale"] for one in mine] if mine else None,
                "tuned": _numbers(mine),
                "default": _numbers(defaults),
                "difference": None if not mine else {
                    heat: estimate([
                        a["reward"][heat] - b["reward"][heat]
                        for a, b in zip(base, mine, strict=True)
                    ])
                    for heat in base[0]["reward"]
                },
            }
        )  # fmt: skip
    found.sort(key=lambda one: -(one["tuned"] or one["default"])["reward"]["mean"])
    damage = {}
    for name in preset.corrected:
        without = _of(preset, runs, name, scale=1.0, corrected=True)
        given = _of(preset, runs, name, scale=1.0, corrected=False)
        damage[name] = estimate(
            [a["reward"]["1"] - b["reward"]["1"] for a, b in zip(without, given, strict=True)]
        )
    return {
        "seeds": preset.seeds, "against": preset.against, "runs": len(runs), "methods": found,
        "damage": damage, "claim": _claim(found),
    }  # fmt: skip


def _claim(methods: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Whether the method compared against beats every information-matched arm: all intervals."""
    matched = [one for one in methods if one["matched"]]
    beaten = [
        one["name"]
        for one in matched
        if one["difference"] and (one["difference"]["1"]["low"] or 0) > 0
    ]
    rest = [one["name"] for one in matched if one["name"] not in beaten]
    return {"beaten": beaten, "not_beaten": rest, "holds": bool(matched) and not rest}


def _is(run: Mapping[str, Any], name: str) -> bool:
    return run["chosen"] and not run["corrected"] and key(run) == name


def _tuned(preset: Preset, runs: Sequence[Mapping[str, Any]], name: str) -> list[Any]:
    """The chosen trial of each seed; empty for what has no trials."""
    found = []
    for seed in preset.seeds:
        trials = [one for one in runs if _is(one, name) and one["seed"] == seed]
        if trials:
            found.append(max(trials, key=lambda one: one["validation"]))
    return found


def _of(
    preset: Preset, runs: Sequence[Mapping[str, Any]], name: str, *, scale: float, corrected: bool
) -> list[Any]:
    return [
        one
        for seed in preset.seeds
        for one in runs
        if one["seed"] == seed
        and key(one) == name
        and one["scale"] == scale
        and one["corrected"] == corrected
    ]


def _numbers(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    if not runs:
        return None
    heats = {heat: estimate([one["reward"][heat] for one in runs]) for heat in runs[0]["reward"]}
    return {
        "reward": heats["1"],
        "by_temperature": heats,
        **{name: estimate([one[name] for one in runs]) for name in ("kl", "accuracy", "length")},
    }


def lines(found: Mapping[str, Any]) -> list[str]:
    """The comparison as a table of Markdown, and what follows from it."""
    against = found["against"]
    said = [
        f"| method | reward, tuned | {against} less it | reward, default | reward, greedy | KL | "
        "accuracy | length | scale chosen |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for one in found["methods"]:
        tuned, default = one["tuned"], one["default"]
        shown = tuned or default
        difference = "" if one["name"] == against else _signed(one["difference"])
        name = f"**{one['name']}**" if one["name"] == against else one["name"]
        said.append(
            f"| {name}{' *' * one['matched']} | {interval(tuned and tuned['reward'])} "
            f"| {difference} | {interval(default and default['reward'])} "
            f"| {shown['by_temperature']['0']['mean']:.2f} | {shown['kl']['mean']:.2f} "
            f"| {shown['accuracy']['mean']:.3f} | {shown['length']['mean']:.1f} "
            f"| {_scales(one['scales'])} |"
        )
    said += ["", _scatter(found)]
    if any(one["matched"] for one in found["methods"]):
        star = "\\* carries the same information in another way."
        said += ["", f"{star} {_in_words(found)}".rstrip()]
    said += ["", *_by_temperature(found)]
    if found["damage"]:
        said += ["", "| method, scale 1 | what the flipped labels cost, true reward |", "|---|---|"]
        said += [f"| {name} | {interval(one, '+')} |" for name, one in found["damage"].items()]
    return said


def _by_temperature(found: Mapping[str, Any]) -> list[str]:
    shown = [one for one in found["methods"] if one["tuned"]]
    heats = list(shown[0]["tuned"]["by_temperature"])
    said = [
        "| method, tuned | " + " | ".join(f"reward at {heat}" for heat in heats) + " |",
        "|---" * (len(heats) + 1) + "|",
    ]
    for one in shown:
        values = (one["tuned"]["by_temperature"][heat] for heat in heats)
        said.append(f"| {one['name']} | " + " | ".join(map(interval, values)) + " |")
    return said


def _scatter(found: Mapping[str, Any]) -> str:
    scatter = [
        (one["difference"]["1"]["sd"], one["name"])
        for one in found["methods"]
        if one["difference"] and one["name"] != found["against"]
    ]
    if not scatter or scatter[0][0] is None:
        return "One seed: no interval."
    said = ", ".join(f"{name} {sd:.2f}" for sd, name in scatter)
    return f"Standard deviation of the paired differences over {len(found['seeds'])} seeds: {said}."


def _in_words(found: Mapping[str, Any]) -> str:
    claim, against = found["claim"], found["against"]
    if against != "sp2dpo" or not (claim["beaten"] or claim["not_beaten"]):
        return ""  # the rules claim nothing there
    if claim["holds"]:
        return f"{against} beats every one of them: an effect of the per-pair temperature itself."
    rest = ", ".join(claim["not_beaten"])
    return (
        f"{against} does not beat {rest}: no effect of the per-pair temperature itself is claimed."
    )


def interval(one: Mapping[str, Any] | None, sign: str = "") -> str:
    """`1.73 (1.54 to 1.93)`."""
    if one is None:
        return "-"
    if one["low"] is None:
        return f"{one['mean']:{sign}.2f}"
    return f"{one['mean']:{sign}.2f} ({one['low']:{sign}.2f} to {one['high']:{sign}.2f})"


def _signed(one: Mapping[str, Any] | None) -> str:
    return "-" if one is None else interval(one["1"], "+")


def _scales(scales: Sequence[float] | None) -> str:
    if not scales:
        return "-"
    counts = {scale: scales.count(scale) for scale in sorted(set(scales))}
    return ", ".join(f"{scale:g}: {count}" for scale, count in counts.items())
