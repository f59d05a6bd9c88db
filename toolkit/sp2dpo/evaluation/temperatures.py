"""Evaluate a student at several decoding temperatures.

The second version of MADPO evaluates like this (arXiv 2510.05342v2): a reward model's score and the
pairwise win rate at each temperature. The temperatures are theirs; the intervals (a bootstrap over
prompts) are our choice.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sp2dpo.evaluation.models import Student
from sp2dpo.evaluation.outputs import GenerationSummary, generate_outputs
from sp2dpo.evaluation.prompts import Output, PromptSet, order_rows, read_outputs
from sp2dpo.evaluation.requests import Approve, Progress, Report, no_progress, silent
from sp2dpo.evaluation.text import columns, interval
from sp2dpo.evaluation.verdicts import judge_outputs
from sp2dpo.files import atomic_write
from sp2dpo.inference.endpoint import Endpoint

TEMPERATURES = (0.0, 0.25, 0.5, 0.75, 1.0)
SWEEP, REWARDS = "sweep.json", "rewards.json"


def temperature_folder(out: Path, temperature: float) -> Path:
    """Return the folder of the outputs at a temperature."""
    return out / f"temperature-{temperature:g}"


def with_temperature(
    temperature: float,
    outputs: Sequence[Output],
    *,
    rewards: Sequence[float] | None,
    preferences: Sequence[float | None] | None,
    draws: int,
    seed: int,
) -> dict[str, Any]:
    """Return the row of one temperature.

    Args:
        temperature: Decoding temperature of the outputs.
        outputs: One per prompt.
        rewards: Scores of a reward model, one per output; None without a reward model.
        preferences: A judge's preferences in [1, 2], 1 if the baseline is better; an element is
            None if it could not be parsed. None without a judge.
        draws: Number of bootstrap samples.
        seed: Seed of the bootstrap.

    Returns:
        temperature, length (mean characters), empty, reward, win_rate (in percent; each with value,
        low, high, or None), unscored.
    """
    won = None
    if preferences is not None:
        scored = [preference for preference in preferences if preference is not None]
        # alpaca_eval counts both 0 and 1.5 as a tie.
        won = [100 * ((1.5 if preference == 0 else preference) - 1) for preference in scored]
    return {
        "temperature": temperature,
        "length": float(np.mean([len(output.output) for output in outputs])),
        "empty": sum(not output.output.strip() for output in outputs),
        "reward": None if rewards is None else mean_rewards(rewards, draws=draws, seed=seed),
        "win_rate": None if won is None else mean_rewards(won, draws=draws, seed=seed),
        "unscored": None if preferences is None else len(preferences) - len(won or []),
    }


def mean_rewards(values: Sequence[float], *, draws: int, seed: int) -> dict[str, float | None]:
    """Return a mean with its 95 % bootstrap interval; all None without values."""
    if not len(values):
        return {"value": None, "low": None, "high": None}
    array = np.asarray(values, dtype=np.float64)
    places = np.random.default_rng(seed).integers(len(array), size=(draws, len(array)))
    low, high = np.quantile(array[places].mean(1), (0.025, 0.975))
    return {"value": float(array.mean()), "low": float(low), "high": float(high)}


def sweep_temperatures(
    prompts: PromptSet,
    student: Student,
    folder: Path,
    *,
    judge: Endpoint | None = None,
    reward: str | None = None,
    reward_revision: str | None = None,
    temperatures: Sequence[float] = TEMPERATURES,
    reference: Path | None = None,
    draws: int = 500,
    patience: float = 900,
    allow_refused: bool = False,
    approve: Approve = silent,
    progress: Progress = no_progress,
    report: Report = silent,
    note: Report = silent,
    on_outputs: Callable[[GenerationSummary], None] = silent,
) -> dict[str, Any]:
    """Generate, judge and score a student's outputs at each temperature, and write sweep.json.

    Safe to interrupt: the next call with the same arguments does only what is missing.

    Args:
        prompts: The prompts, see `read_prompts`.
        student: The student; the temperature of its sampling is replaced.
        folder: Output folder, with one folder per temperature.
        judge: The judge; None for no win rates.
        reward: A reward model, a folder or a name on the Hub; None for no scores.
        reward_revision: Revision of the reward model on the Hub.
        temperatures: Decoding temperatures, 0 is greedy.
        reference: Outputs to compare with, or the folder of another sweep, whose outputs at the
            same temperature are then taken; None for the outputs that come with the prompts.
        draws: Number of bootstrap samples.
        patience: Seconds without any answer after which this gives up.
        allow_refused: Write an empty output for a prompt that the server refuses.
        approve: Called before servers described by a YAML file are started.
        progress: Opens a progress bar.
        report: Called with the state of the servers, line by line.
        note: Called with what a reader of the result must know, such as missing verdicts.
        on_outputs: Called with the counts of each finished generation.

    Returns:
        The content of sweep.json: student, title, draws, reward, and temperatures, a list of the
        rows of `with_temperature`.

    Raises:
        ValueError: If there is neither a judge nor a reward model, and as `generate_outputs`,
            `judge_outputs` and `score_outputs` do, like the other errors.
    """
    if judge is None and reward is None:
        raise ValueError("a sweep needs a judge, a reward model, or both")
    rows = []
    titles = [f"{prompts.name}, reward model {Path(str(reward)).name}"] if judge is None else []
    for temperature in sorted(set(temperatures)):
        part = temperature_folder(folder, temperature)
        summary = generate_outputs(
            prompts, student.at(temperature=temperature, seed=None), part, patience=patience,
            allow_refused=allow_refused, approve=approve, progress=progress, report=report,
        )  # fmt: skip
        on_outputs(summary)
        outputs, _ = order_rows(prompts, read_outputs(part), str(part))
        preferences = None
        if judge is not None:
            base = reference
            if reference is not None and temperature_folder(reference, temperature).is_dir():
                base = temperature_folder(reference, temperature)
            result = judge_outputs(
                prompts, part, judge, part / "verdicts", reference=base, patience=patience,
                approve=approve, progress=progress, report=report, note=note,
            )  # fmt: skip
            titles.append(result.record["title"])
            preferences = [
                None if math.isnan(value) else float(value) for value in result.table["preference"]
            ]
        rewards = None
        if reward is not None:
            rewards = score_outputs(reward, reward_revision, outputs, part / REWARDS)
        rows.append(
            with_temperature(
                temperature, outputs, rewards=rewards, preferences=preferences, draws=draws, seed=0
            )
        )
    sweep = {
        "student": student.model.name, "title": titles[0], "draws": draws, "reward": reward,
        "temperatures": rows,
    }  # fmt: skip
    with atomic_write(folder / SWEEP) as path:
        path.write_text(json.dumps(sweep, indent=1) + "\n")
    return sweep


def score_outputs(
    model: str, revision: str | None, outputs: Sequence[Output], path: Path
) -> list[float]:
    """Return a reward model's score of each output, from the file if the same run wrote it.

    Args:
        model: A sequence-classification model with one output: a folder or a name on the Hub.
        revision: Its revision on the Hub.
        outputs: The outputs, with their prompts.
        path: The JSON file that keeps the scores.

    Raises:
        ValueError: If PyTorch is not installed or the model cannot be loaded.
    """
    header = {"reward": model, "revision": revision, "count": len(outputs)}
    if path.exists():
        content = json.loads(path.read_text())
        if content["head"] == header:
            return content["rewards"]
    try:
        from sp2dpo.training.reward_model import output_rewards  # noqa: PLC0415 - imports torch
    except ImportError as error:
        raise ValueError(f"scoring needs PyTorch ({error}): pip install 'sp2dpo[train]'") from error
    chats = [
        [
            {"role": "user", "content": output.instruction},
            {"role": "assistant", "content": output.output},
        ]
        for output in outputs
    ]
    rewards = output_rewards(model, revision, chats)
    with atomic_write(path) as unfinished:
        unfinished.write_text(json.dumps({"head": header, "rewards": rewards}))
    return rewards


def sweep_lines(sweep: Mapping[str, Any]) -> list[str]:
    """Return the table of a sweep as lines of text."""
    rows = [["temperature", "reward", "win rate", "characters", "empty", "unscored"]]
    for row in sweep["temperatures"]:
        rows.append(
            [
                f"{row['temperature']:g}",
                interval(row["reward"]),
                interval(row["win_rate"]),
                f"{row['length']:.0f}",
                str(row["empty"]),
                "-" if row["unscored"] is None else str(row["unscored"]),
            ]
        )
    return [
        f"{sweep['student']}: {sweep['title']}",
        *columns(rows),
        f"95 % intervals: {sweep['draws']} bootstrap samples of the prompts",
    ]
