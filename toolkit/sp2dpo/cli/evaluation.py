"""The commands that evaluate students: outputs, verdicts, win rates, temperatures."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sp2dpo.cli.options import (
    EVALUATION_FILE,
    FILE,
    FOLDER,
    JSON,
    PATIENCE,
    SEND_KEY,
    SERVE,
    confirm_keys,
    draws_option,
    print_lines,
)

if TYPE_CHECKING:
    from sp2dpo.evaluation.outputs import GenerationSummary
    from sp2dpo.evaluation.verdicts import EvaluationResult

ANY = click.Path(path_type=Path)
PROMPTS = click.option(
    "--prompts",
    "prompts_name",
    default="alpaca_eval",
    show_default=True,
    help="alpaca_eval, or a .json or .jsonl file with `instruction` and optionally `output`.",
)
STUDENT = click.option(
    "--student", "student_file", type=EVALUATION_FILE, required=True, help="Student YAML file."
)
# A dict instead of an option, because `judge` requires it and `sweep` does not.
JUDGE = {"type": EVALUATION_FILE, "help": "Judge YAML file."}
REFERENCE = click.option(
    "--reference",
    type=ANY,
    help="Outputs to compare with [default: the reference outputs of the prompts].",
)
# Every sample refits the length regression, which takes some 0.16 s: 500 take over a minute.
SAMPLES = draws_option(500)
CONTROL = click.option(
    "--length-control/--no-length-control",
    default=True,
    help="Compute the length-controlled win rate, if the prompts are alpaca_eval.",
)
REFUSED = click.option(
    "--allow-refused",
    is_flag=True,
    help="Write an empty output if the server refuses a prompt, instead of failing.",
)
PICTURE = click.option("--picture", type=FILE, help="Plot to write, .png or .svg.")


@click.group()
def evaluate() -> None:
    """Evaluate trained models with AlpacaEval's method.

    `generate` writes a model's (student's) outputs, `judge` lets a judge model compare them with
    reference outputs, and `compare` prints win rates with intervals.
    """


@evaluate.command()
@PROMPTS
@STUDENT
@click.option(
    "--temperature",
    type=click.FloatRange(min=0, max=10),
    help="Override the temperature of the student file.",
)
@click.option("--seed", type=click.IntRange(min=0), help="Override the seed of the student file.")
@click.option("--out", type=FOLDER, required=True, help="Output folder.")
@PATIENCE
@SERVE
@SEND_KEY
@REFUSED
def generate(
    prompts_name: str,
    student_file: Path,
    temperature: float | None,
    seed: int | None,
    out: Path,
    patience: float,
    serve: bool,
    send_keys: tuple[str, ...],
    allow_refused: bool,
) -> None:
    """Generate a student's outputs for a set of prompts.

    Safe to interrupt: run the same command again to resume. The student file has the keys of a
    teacher in a panel; with `local` instead of a server, transformers runs the model in this
    process.
    """
    from sp2dpo.evaluation.models import load_student
    from sp2dpo.evaluation.outputs import generate_outputs
    from sp2dpo.evaluation.prompts import read_prompts

    student = load_student(student_file).at(temperature=temperature, seed=seed)
    _print_outputs(
        generate_outputs(
            read_prompts(prompts_name), student, out, allow_refused=allow_refused,
            send_keys=confirm_keys([student.model], send_keys), **_callbacks(patience, serve),
        )
    )  # fmt: skip


@evaluate.command()
@click.option(
    "--outputs",
    type=ANY,
    required=True,
    help="A folder written by `generate`, or an AlpacaEval outputs file.",
)
@PROMPTS
@REFERENCE
@click.option("--judge", "judge_file", required=True, **JUDGE)
@click.option("--out", type=FOLDER, required=True, help="Output folder of the verdicts.")
@SAMPLES
@CONTROL
@PATIENCE
@SERVE
@SEND_KEY
def judge(
    outputs: Path,
    prompts_name: str,
    reference: Path | None,
    judge_file: Path,
    out: Path,
    draws: int,
    length_control: bool,
    patience: float,
    serve: bool,
    send_keys: tuple[str, ...],
) -> None:
    """Let a judge compare outputs with reference outputs.

    Uses the judge prompt, order of outputs, parser and length control of AlpacaEval 2.0. Safe to
    interrupt: run the same command again to resume and to retry missing verdicts.
    """
    from sp2dpo.evaluation.models import load_judge
    from sp2dpo.evaluation.prompts import read_prompts
    from sp2dpo.evaluation.verdicts import judge_outputs
    from sp2dpo.evaluation.winrates import download_gamed

    model, prompts = load_judge(judge_file), read_prompts(prompts_name)
    if length_control and prompts.is_alpaca_eval:
        download_gamed()  # before the judge costs anything
    result = judge_outputs(
        prompts, outputs, model, out, reference=reference,
        note=_print_note, send_keys=confirm_keys([model], send_keys),
        **_callbacks(patience, serve),
    )  # fmt: skip
    _compare([result], draws=draws, length_control=length_control)


@evaluate.command()
@click.argument("results", nargs=-1, required=True, type=FOLDER)
@click.option("--against", help="Name of the student to compare the others with.")
@SAMPLES
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Seed of the bootstrap.",
)
@CONTROL
@JSON
@PICTURE
def compare(
    results: tuple[Path, ...],
    against: str | None,
    draws: int,
    seed: int,
    length_control: bool,
    as_json: bool,
    picture: Path | None,
) -> None:
    """Compare the win rates of students, with intervals.

    RESULTS are folders written by `judge`. Results with the same student name count as seeds of one
    student. Differences are paired by prompt.
    """
    from sp2dpo.evaluation.verdicts import read_result

    _check_picture(picture)
    _compare(
        [read_result(folder) for folder in results], draws=draws, seed=seed, against=against,
        length_control=length_control, as_json=as_json, picture=picture,
    )  # fmt: skip


@evaluate.command()
@PROMPTS
@STUDENT
@click.option(
    "--temperature",
    "temperatures",
    type=click.FloatRange(min=0, max=10),
    multiple=True,
    help="Decoding temperature; can be repeated [default: 0, 0.25, 0.5, 0.75 and 1].",
)
@REFERENCE
@click.option("--judge", "judge_file", **JUDGE)
@click.option("--reward", help="Reward model, a folder or a name on the Hub.")
@click.option("--reward-revision", help="Revision of the reward model on the Hub.")
@click.option("--out", type=FOLDER, required=True, help="Output folder.")
@SAMPLES
@PATIENCE
@SERVE
@SEND_KEY
@REFUSED
@PICTURE
def sweep(
    prompts_name: str,
    student_file: Path,
    temperatures: tuple[float, ...],
    reference: Path | None,
    judge_file: Path | None,
    reward: str | None,
    reward_revision: str | None,
    out: Path,
    draws: int,
    patience: float,
    serve: bool,
    send_keys: tuple[str, ...],
    allow_refused: bool,
    picture: Path | None,
) -> None:
    """Evaluate a student at several temperatures.

    At each decoding temperature a reward model (--reward) scores the outputs, and a judge (--judge)
    compares them with the reference. If --reference is another student's sweep folder, outputs at
    the same temperature are compared. Safe to interrupt: run the same command again to resume.
    """
    from sp2dpo.evaluation.models import load_judge, load_student
    from sp2dpo.evaluation.prompts import read_prompts
    from sp2dpo.evaluation.temperatures import SWEEP, TEMPERATURES, sweep_lines, sweep_temperatures

    if judge_file is None and reward is None:
        raise click.UsageError("give --judge, --reward or both: there is nothing else to measure")
    _check_picture(picture)
    student = load_student(student_file)
    judge = None if judge_file is None else load_judge(judge_file)
    endpoints = [student.model, *([] if judge is None else [judge])]
    result = sweep_temperatures(
        read_prompts(prompts_name),
        student,
        out,
        judge=judge,
        send_keys=confirm_keys(endpoints, send_keys),
        reward=reward,
        reward_revision=reward_revision,
        temperatures=temperatures or TEMPERATURES,
        reference=reference,
        draws=draws,
        allow_refused=allow_refused,
        on_outputs=_print_outputs,
        note=_print_note,
        **_callbacks(patience, serve),
    )
    print_lines([*sweep_lines(result), f"wrote {out / SWEEP}"])
    if picture is not None:
        from sp2dpo.evaluation.plots import save_sweep

        save_sweep(result, picture)
        print_lines([f"wrote {picture}"])


def _compare(
    results: "Sequence[EvaluationResult]",
    *,
    draws: int,
    length_control: bool,
    seed: int = 0,
    against: str | None = None,
    as_json: bool = False,
    picture: Path | None = None,
) -> None:
    """Compare results, print the table and draw the picture."""
    from sp2dpo.cli.progress import progress_rows
    from sp2dpo.evaluation.text import comparison_lines
    from sp2dpo.evaluation.winrates import compare_students, comparison_notes
    from sp2dpo.text import format_json

    comparison = compare_students(
        results, draws=draws, seed=seed, against=against, length_control=length_control,
        watch=progress_rows,
    )  # fmt: skip
    if as_json:
        content = comparison.record() | {"notes": comparison_notes(comparison)}
        click.echo(format_json(content, indent=1))
    else:
        print_lines(comparison_lines(comparison))
    if picture is not None:
        from sp2dpo.evaluation.plots import save_rates

        save_rates(comparison, picture)
        # With --json, stdout is one JSON document.
        print_lines([f"wrote {picture}"], err=as_json)


def _check_picture(picture: Path | None) -> None:
    if picture is not None:
        from sp2dpo.report.plots import check_picture_name

        check_picture_name(picture)


def _print_outputs(summary: "GenerationSummary") -> None:
    counts = [
        f", {count} {words}"
        for count, words in (
            (summary.empty, "empty"),
            (summary.truncated, "cut at max_tokens"),
            (summary.refused, "refused"),
        )
        if count
    ]
    print_lines(
        [
            f"{summary.student}: {summary.outputs} outputs, {summary.characters:.0f} characters on"
            f" average{''.join(counts)}",
            f"wrote {summary.path}",
        ]
    )


def _print_note(line: str) -> None:
    print_lines([line])


def _callbacks(patience: float, serve: bool) -> dict[str, Any]:
    """Return the arguments with which a long function talks to the person at the terminal."""
    from contextlib import contextmanager

    from tqdm import tqdm

    from sp2dpo.cli.options import confirm_serve
    from sp2dpo.evaluation.requests import silent

    @contextmanager
    def progress(total: int, unit: str) -> Any:
        # With None, tqdm draws no bar if stderr is not a terminal.
        with tqdm(total=total, unit=f" {unit}", disable=None) as bar:
            yield bar.update

    return {
        "patience": patience,
        "approve": silent if serve else confirm_serve,
        "progress": progress,
        "report": lambda line: print_lines([line], err=True),
    }
