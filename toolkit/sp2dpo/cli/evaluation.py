"""The commands that evaluate students: outputs, verdicts, win rates, temperatures."""

import json
from pathlib import Path

import click

from sp2dpo.cli.evaluation_runs import (
    compare_results,
    judge_outputs,
    load_or_generate_outputs,
    score_outputs,
)
from sp2dpo.cli.options import FILE, draws_option, print_lines

FOLDER = click.Path(path_type=Path, file_okay=False)
ANY = click.Path(path_type=Path)
PROMPTS = click.option(
    "--prompts",
    "prompts_name",
    default="alpaca_eval",
    show_default=True,
    help="alpaca_eval, or a .json or .jsonl file with `instruction` and maybe `output`.",
)
STUDENT = click.option("--student", "student_file", type=FILE, required=True, help="A YAML file.")
JUDGE = {"type": FILE, "help": "A YAML file: which model compares."}
REFERENCE = click.option(
    "--reference", type=ANY, help="Outputs to compare with; those of the prompts unless given."
)
PATIENCE = click.option(
    "--patience",
    type=click.FloatRange(min=0, max=1e6),
    default=900,
    show_default=True,
    help="Seconds for which a server may answer nothing at all before the run ends.",
)
SERVE = click.option("--serve", is_flag=True, help="Start the servers that the YAML describes.")
SAMPLES = draws_option(500)
CONTROL = click.option(
    "--length-control/--no-length-control",
    default=True,
    help="Whether to fit the length-controlled rate, where it is defined.",
)
REFUSED = click.option(
    "--allow-refused", is_flag=True, help="Prompts that the server refuses get an empty output."
)
PICTURE = click.option("--picture", type=FILE, help="Write a picture, .png or .svg.")


@click.group()
def evaluate() -> None:
    """Evaluate students: outputs, a judge's verdicts, win rates with intervals."""


@evaluate.command()
@PROMPTS
@STUDENT
@click.option("--temperature", type=click.FloatRange(min=0, max=10), help="In place of the file's.")
@click.option("--seed", type=click.IntRange(min=0), help="In place of the file's.")
@click.option("--out", type=FOLDER, required=True, help="The folder of the outputs.")
@PATIENCE
@SERVE
@REFUSED
def generate(
    prompts_name: str,
    student_file: Path,
    temperature: float | None,
    seed: int | None,
    out: Path,
    patience: float,
    serve: bool,
    allow_refused: bool,
) -> None:
    """Let a student answer a set of prompts.

    Stop it at any moment; the same command goes on. The student is the entry of a teacher in a
    panel, or has `local` in place of a server: then transformers runs it here.
    """
    from sp2dpo.evaluation.models import load_student
    from sp2dpo.evaluation.prompts import read_prompts

    student = load_student(student_file).at(temperature=temperature, seed=seed)
    prompts = read_prompts(prompts_name)
    load_or_generate_outputs(
        prompts, student, out, patience=patience, serve=serve, allow_refused=allow_refused
    )


@evaluate.command()
@click.option("--outputs", type=ANY, required=True, help="A folder of `generate`, or a file.")
@PROMPTS
@REFERENCE
@click.option("--judge", "judge_file", required=True, **JUDGE)
@click.option("--out", type=FOLDER, required=True, help="The folder of the verdicts.")
@SAMPLES
@CONTROL
@PATIENCE
@SERVE
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
) -> None:
    """Let a judge compare outputs with a baseline's.

    As AlpacaEval 2.0 does it: its prompt, its order, its reading, its length control. Stop it at
    any moment; the same command goes on, and asks again where no verdict came.
    """
    from sp2dpo.evaluation.models import load_judge
    from sp2dpo.evaluation.prompts import read_prompts

    model, prompts = load_judge(judge_file), read_prompts(prompts_name)
    control = length_control and prompts.is_alpaca_eval
    if control:
        from sp2dpo.evaluation.winrates import download_gamed

        download_gamed()
    judge_outputs(prompts, outputs, reference, model, out, patience=patience, serve=serve)
    compare_results([out], draws=draws, against=None, length_control=length_control)


@evaluate.command()
@click.argument("results", nargs=-1, required=True, type=FOLDER)
@click.option("--against", help="A student that the others are compared with.")
@SAMPLES
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of these.")
@CONTROL
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
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
    """Put students beside each other, with intervals.

    RESULTS are folders that `judge` wrote. Several results of one student are seeds of it.
    Differences are paired by prompt.
    """
    if picture is not None:
        from sp2dpo.report.plots import check_name

        check_name(picture)
    compare_results(
        list(results), draws=draws, against=against, length_control=length_control, seed=seed,
        as_json=as_json, picture=picture,
    )  # fmt: skip


@evaluate.command()
@PROMPTS
@STUDENT
@click.option(
    "--temperature",
    "temperatures",
    type=click.FloatRange(min=0, max=10),
    multiple=True,
    help="May stand several times; 0, 0.25, 0.5, 0.75 and 1 unless given.",
)
@REFERENCE
@click.option("--judge", "judge_file", **JUDGE)
@click.option("--reward", help="A reward model: a folder or a name on the Hub.")
@click.option("--reward-revision", help="Of a reward model on the Hub.")
@click.option("--out", type=FOLDER, required=True, help="The folder of all of it.")
@SAMPLES
@PATIENCE
@SERVE
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
    allow_refused: bool,
    picture: Path | None,
) -> None:
    """Evaluate a student at several temperatures.

    A reward model scores its outputs, a judge compares them, at each decoding temperature. Where
    --reference is another student's sweep, each temperature is compared with the same one
    there. Stop it at any moment; the same command goes on.
    """
    from sp2dpo.evaluation import temperatures as heats
    from sp2dpo.evaluation.models import load_judge, load_student
    from sp2dpo.evaluation.prompts import order_rows, read_outputs, read_prompts

    if judge_file is None and reward is None:
        raise click.UsageError("give --judge, --reward or both: else there is nothing to tell")
    if picture is not None:
        from sp2dpo.report.plots import check_name

        check_name(picture)
    student, prompts = load_student(student_file), read_prompts(prompts_name)
    model = None if judge_file is None else load_judge(judge_file)
    found = []
    titles = []
    for heat in sorted(set(temperatures or heats.TEMPERATURES)):
        folder = heats.temperature_folder(out, heat)
        warm = student.at(temperature=heat, seed=None)
        load_or_generate_outputs(
            prompts, warm, folder, patience=patience, serve=serve, allow_refused=allow_refused
        )
        outputs, _ = order_rows(prompts, read_outputs(folder), str(folder))
        preferences = None
        if model is not None:
            beside = None if reference is None else heats.temperature_folder(reference, heat)
            base = beside if beside is not None and beside.is_dir() else reference
            said = judge_outputs(
                prompts, folder, base, model, folder / "verdicts", patience=patience, serve=serve
            )
            titles.append(said["title"])
            rows = json.loads((folder / "verdicts" / "annotations.json").read_text())
            preferences = [row["preference"] for row in rows]
        rewards = None
        if reward is not None:
            rewards = score_outputs(reward, reward_revision, outputs, folder)
        found.append(
            heats.with_temperature(
                heat, outputs, rewards=rewards, preferences=preferences, draws=draws, seed=0
            )
        )
    title = titles[0] if titles else f"{prompts.name}, reward model {Path(str(reward)).name}"
    told = {
        "student": student.model.name, "title": title, "draws": draws, "reward": reward,
        "temperatures": found,
    }  # fmt: skip
    heats.write_sweep(out, told)
    print_lines([*heats.sweep_lines(told), f"wrote {out / heats.SWEEP}"])
    if picture is not None:
        from sp2dpo.evaluation.plots import save_sweep

        save_sweep(told, picture)
        print_lines([f"wrote {picture}"])
