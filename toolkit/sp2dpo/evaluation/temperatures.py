"""Evaluate a student at several decoding temperatures.

For each temperature, this module reports the mean score of a reward model and the pairwise win
rate, as the second version of MADPO does (arXiv 2510.05342v2). The default temperatures are those
of the paper; the intervals (a bootstrap over prompts) are our choice.
"""

import hashlib
import json
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from sp2dpo.diagnostics.bootstrap import Estimate, percentile_estimate, resampled_rows
from sp2dpo.evaluation.models import Student
from sp2dpo.evaluation.outputs import GenerationSummary, generate_outputs
from sp2dpo.evaluation.prompts import Output, PromptSet, order_rows, read_outputs
from sp2dpo.evaluation.requests import Approve, Progress, Report, no_progress, silent
from sp2dpo.evaluation.text import align_columns, format_estimate
from sp2dpo.evaluation.verdicts import judge_outputs
from sp2dpo.files import write_json
from sp2dpo.inference.endpoint import Endpoint
from sp2dpo.text import canonical_json

TEMPERATURES = (0.0, 0.25, 0.5, 0.75, 1.0)
SWEEP, REWARDS = "sweep.json", "rewards.json"


def temperature_folder(out: Path, temperature: float) -> Path:
    """Return the folder of the outputs at a temperature."""
    return out / f"temperature-{temperature:g}"


@dataclass(frozen=True, kw_only=True)
class TemperatureResult:
    """The results at one temperature.

    Attributes:
        temperature: Decoding temperature of the outputs.
        length: Mean length of an output, in characters.
        empty: Number of outputs without any text.
        reward: Mean score that the reward model gives; None without a reward model.
        win_rate: Win rate in percent; None without a judge.
        unscored: Number of prompts without a verdict; None without a judge.
    """

    temperature: float
    length: float
    empty: int
    reward: Estimate | None
    win_rate: Estimate | None
    unscored: int | None


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A student's results at several temperatures.

    Attributes:
        student: Name of the student.
        title: Title of the table, see `models.title`.
        draws: Number of bootstrap samples.
        reward: Name of the reward model; None without one.
        temperatures: Results of each temperature, in ascending order.
    """

    student: str
    title: str
    draws: int
    reward: str | None
    temperatures: Sequence[TemperatureResult]


def summarise_temperature(
    temperature: float,
    outputs: Sequence[Output],
    *,
    rewards: Sequence[float] | None,
    preferences: Sequence[float | None] | None,
    draws: int,
    seed: int,
) -> TemperatureResult:
    """Return the results at one temperature.

    Args:
        temperature: Decoding temperature of the outputs.
        outputs: One per prompt.
        rewards: Scores of a reward model, one per output; None without a reward model.
        preferences: A judge's preferences in [1, 2]; 1 if the baseline is better, 2 if the student
            is, and None for a verdict that could not be parsed. None without a judge.
        draws: Number of bootstrap samples.
        seed: Seed of the bootstrap.
    """
    wins = None
    if preferences is not None:
        scored = [preference for preference in preferences if preference is not None]
        # alpaca_eval counts both 0 and 1.5 as a tie.
        wins = [100 * ((1.5 if preference == 0 else preference) - 1) for preference in scored]
    return TemperatureResult(
        temperature=temperature,
        length=float(np.mean([len(output.output) for output in outputs])),
        empty=sum(not output.output.strip() for output in outputs),
        reward=None if rewards is None else bootstrap_mean(rewards, draws=draws, seed=seed),
        win_rate=None if wins is None else bootstrap_mean(wins, draws=draws, seed=seed),
        unscored=None if preferences is None else len(preferences) - len(wins or []),
    )


def bootstrap_mean(values: Sequence[float], *, draws: int, seed: int) -> Estimate:
    """Return a mean with its 95 % bootstrap interval; all are None if there are no values."""
    if not len(values):
        return Estimate()
    array = np.asarray(values, dtype=np.float64)
    rows = resampled_rows(len(array), draws=draws, seed=seed)
    return percentile_estimate(float(array.mean()), (array[sample].mean() for sample in rows))


def sweep_temperatures(
    prompts: PromptSet,
    student: Student,
    folder: Path | str,
    *,
    judge: Endpoint | None = None,
    reward: str | None = None,
    reward_revision: str | None = None,
    temperatures: Sequence[float] = TEMPERATURES,
    reference: Path | str | None = None,
    draws: int = 500,
    patience: float = 900,
    allow_refused: bool = False,
    send_keys: Collection[str] = (),
    approve: Approve = silent,
    progress: Progress = no_progress,
    report: Report = silent,
    note: Report = silent,
    on_outputs: Callable[[GenerationSummary], None] = silent,
) -> Sweep:
    """Generate, judge and score a student's outputs at each temperature, and write sweep.json.

    Safe to interrupt: the next call with the same arguments skips what is already done.

    Args:
        prompts: The prompts, see `read_prompts`.
        student: The student; its sampling temperature is replaced.
        folder: Output folder, with one folder per temperature.
        judge: The judge; without one, no win rates are computed.
        reward: A reward model, as a folder or a name on the Hub; without one, no scores are
            computed.
        reward_revision: Revision of the reward model on the Hub.
        temperatures: Decoding temperatures; 0 is greedy decoding.
        reference: File of outputs to compare with, or the folder of another sweep, of which the
            outputs at the same temperature are used; None for the outputs that come with the
            prompts.
        draws: Number of bootstrap samples.
        patience: Seconds without any answer after which the run ends.
        allow_refused: Whether to write an empty output for a prompt that the server refuses.
        send_keys: API keys that may be sent, see `annotate_pairs`.
        approve: Called before servers described by a YAML file are started.
        progress: Opens a progress bar.
        report: Called with the state of the servers, line by line.
        note: Called with notes on the interpretation of the result, such as missing verdicts.
        on_outputs: Called with the counts of each finished generation.

    Raises:
        ValueError: If there is neither a judge nor a reward model. All other errors come from
            `generate_outputs`, `judge_outputs` and `score_outputs`; see there.
    """
    folder = Path(folder)
    if judge is None and reward is None:
        raise ValueError("a sweep needs a judge, a reward model, or both")
    rows = []
    titles = [f"{prompts.name}, reward model {Path(str(reward)).name}"] if judge is None else []
    for temperature in sorted(set(temperatures)):
        part = temperature_folder(folder, temperature)
        summary = generate_outputs(
            prompts, student.at(temperature=temperature, seed=None), part, patience=patience,
            allow_refused=allow_refused, send_keys=send_keys, approve=approve,
            progress=progress, report=report,
        )  # fmt: skip
        on_outputs(summary)
        outputs, _ = order_rows(prompts, read_outputs(part), str(part))
        preferences = None
        if judge is not None:
            base = None if reference is None else Path(reference)
            if base is not None and temperature_folder(base, temperature).is_dir():
                base = temperature_folder(base, temperature)
            result = judge_outputs(
                prompts, part, judge, part / "verdicts", reference=base, patience=patience,
                send_keys=send_keys, approve=approve, progress=progress, report=report, note=note,
            )  # fmt: skip
            titles.append(result.title)
            # In the table, a missing verdict is NaN.
            preferences = [
                None if math.isnan(value) else float(value) for value in result.table["preference"]
            ]
        rewards = None
        if reward is not None:
            rewards = score_outputs(reward, reward_revision, outputs, part / REWARDS)
        # One seed for all: temperatures are compared on the same samples of prompts.
        rows.append(
            summarise_temperature(
                temperature, outputs, rewards=rewards, preferences=preferences, draws=draws, seed=0
            )
        )
    sweep = Sweep(
        student=student.model.name, title=titles[0], draws=draws, reward=reward, temperatures=rows
    )
    write_json(folder / SWEEP, asdict(sweep))
    return sweep


def score_outputs(
    model: str, revision: str | None, outputs: Sequence[Output], path: Path
) -> list[float]:
    """Return a reward model's score of each output; reuse the file if it has the same settings.

    Args:
        model: A sequence-classification model with one output: a folder or a name on the Hub.
        revision: Revision of the model on the Hub.
        outputs: The outputs, with their prompts.
        path: JSON file that stores the scores.

    Raises:
        ValueError: If PyTorch is not installed or the model cannot be loaded.
    """
    texts = canonical_json([[output.instruction, output.output] for output in outputs])
    digest = hashlib.sha256(texts.encode("utf-8", "surrogatepass")).hexdigest()
    header = {"reward": model, "revision": revision, "count": len(outputs), "outputs": digest}
    if path.exists():
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["head"] == header:
            # Null stands for NaN, which JSON lacks.
            return [math.nan if reward is None else reward for reward in content["rewards"]]
    try:
        from sp2dpo.training.reward_model import output_rewards  # noqa: PLC0415 - imports torch
    except ImportError as error:
        raise ValueError(f"scoring needs PyTorch ({error}): pip install 'sp2dpo[train]'") from error
    rewards = output_rewards(
        model,
        revision,
        [
            [
                {"role": "user", "content": output.instruction},
                {"role": "assistant", "content": output.output},
            ]
            for output in outputs
        ],
    )
    write_json(path, {"head": header, "rewards": rewards}, indent=None)
    return rewards


def sweep_lines(sweep: Sweep) -> list[str]:
    """Return the table of a sweep as lines of text."""
    head = ["temperature", "reward", "win rate", "characters", "empty", "unscored"]
    rows = [
        [
            f"{result.temperature:g}",
            format_estimate(result.reward),
            format_estimate(result.win_rate),
            f"{result.length:.0f}",
            str(result.empty),
            "-" if result.unscored is None else str(result.unscored),
        ]
        for result in sweep.temperatures
    ]
    return [
        f"{sweep.student}: {sweep.title}",
        *align_columns([head, *rows]),
        f"95 % intervals: {sweep.draws} bootstrap samples of the prompts",
    ]
