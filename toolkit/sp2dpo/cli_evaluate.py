"""The commands that evaluate students: outputs, verdicts, win rates, temperatures."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sp2dpo.cli_store import FILE, say

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable

    from sp2dpo.chats import Outcome
    from sp2dpo.panel import Teacher
    from sp2dpo.prompt_sets import Output, PromptSet
    from sp2dpo.student import Student

    Work = Callable[[asyncio.Event, Callable[[Outcome], None]], Awaitable[None]]

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
SAMPLES = click.option(
    "--draws",
    type=click.IntRange(min=1, max=100_000),
    default=500,
    show_default=True,
    help="Bootstrap samples behind the intervals.",
)
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
    from sp2dpo.prompt_sets import read_prompts
    from sp2dpo.student import load_student

    student = load_student(student_file).at(temperature=temperature, seed=seed)
    prompts = read_prompts(prompts_name)
    _generate(prompts, student, out, patience=patience, serve=serve, allow_refused=allow_refused)


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
    """Let a judge compare a student's outputs with a baseline's, as AlpacaEval 2.0 does.

    Stop it at any moment; the same command goes on, and asks again where no verdict came.
    """
    from sp2dpo.judge import load_judge
    from sp2dpo.prompt_sets import read_prompts

    model, prompts = load_judge(judge_file), read_prompts(prompts_name)
    control = length_control and prompts.is_alpaca_eval
    if control:
        from sp2dpo.winrates import needs_gamed

        needs_gamed()
    _judge(prompts, outputs, reference, model, out, patience=patience, serve=serve)
    _compare([out], draws=draws, against=None, length_control=length_control)


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
    """Put students beside each other: RESULTS are folders that `judge` wrote.

    Several results of one student are seeds of it. Differences are paired by prompt.
    """
    if picture is not None:
        from sp2dpo.plots import check_name

        check_name(picture)
    _compare(
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
    """Evaluate a student at several decoding temperatures: reward and win rate.

    Stop it at any moment; the same command goes on.
    """
    from sp2dpo import temperatures as heats
    from sp2dpo.judge import load_judge
    from sp2dpo.prompt_sets import in_order, read_outputs, read_prompts
    from sp2dpo.student import load_student

    if judge_file is None and reward is None:
        raise click.UsageError("give --judge, --reward or both: else there is nothing to tell")
    if picture is not None:
        from sp2dpo.plots import check_name

        check_name(picture)
    student, prompts = load_student(student_file), read_prompts(prompts_name)
    model = None if judge_file is None else load_judge(judge_file)
    found = []
    titles = []
    for heat in sorted(set(temperatures or heats.TEMPERATURES)):
        folder = heats.folder_of(out, heat)
        warm = student.at(temperature=heat, seed=None)
        _generate(
            prompts, warm, folder, patience=patience, serve=serve, allow_refused=allow_refused
        )
        outputs, _ = in_order(prompts, read_outputs(folder), str(folder))
        preferences = None
        if model is not None:
            said = _judge(
                prompts, folder, reference, model, folder / "verdicts", patience=patience,
                serve=serve,
            )  # fmt: skip
            titles.append(said["title"])
            rows = json.loads((folder / "verdicts" / "annotations.json").read_text())
            preferences = [row["preference"] for row in rows]
        rewards = None
        if reward is not None:
            rewards = _rewards(reward, reward_revision, outputs, folder)
        found.append(
            heats.at_temperature(
                heat, outputs, rewards=rewards, preferences=preferences, draws=draws, seed=0
            )
        )
    title = titles[0] if titles else f"{prompts.name}, reward model {Path(str(reward)).name}"
    told = {
        "student": student.model.name, "title": title, "draws": draws, "reward": reward,
        "temperatures": found,
    }  # fmt: skip
    heats.write_sweep(out, told)
    say([*heats.lines(told), f"wrote {out / heats.SWEEP}"])
    if picture is not None:
        from sp2dpo.evaluation_plots import save_sweep

        save_sweep(told, picture)
        say([f"wrote {picture}"])


def _generate(
    prompts: "PromptSet",
    student: "Student",
    out: Path,
    *,
    patience: float,
    serve: bool,
    allow_refused: bool,
) -> None:
    """Asks for what is missing, and writes the outputs."""
    from sp2dpo.generations import OUTPUTS, from_server, generation

    with generation(out, prompts, student) as running:
        if running.pending and student.local is not None:
            _generate_here(running, prompts, student)
        elif running.pending:
            _agree(student.model, serve)

            async def work(stop: "asyncio.Event", count: "Callable[[Outcome], None]") -> None:
                await from_server(
                    running, student, count, stop=stop, patience=patience, say=_echo,
                    log=out / "server.log",
                )  # fmt: skip

            _asked(work, len(running.pending), "outputs")
        record = running.finish(allow_refused=allow_refused)
    refused = f", {record['refused']} refused" * bool(record["refused"])
    empty = f", {record['empty']} empty" * bool(record["empty"])
    cut = record["ended"].get("length", 0)
    at_limit = f", {cut} cut at max_tokens" * bool(cut)
    say(
        [
            f"{student.model.name}: {record['outputs']} outputs, {record['characters']:.0f} "
            f"characters on average{empty}{at_limit}{refused}",
            f"wrote {out / OUTPUTS}",
        ]
    )


def _generate_here(running: Any, prompts: "PromptSet", student: "Student") -> None:
    from tqdm import tqdm

    try:
        from sp2dpo.local_generation import LocalModel
    except ImportError as error:
        raise ValueError(
            f"a local model needs PyTorch ({error}): pip install 'sp2dpo[train]'"
        ) from error
    said, local = student.model, student.local
    if local is None:
        return
    model = LocalModel(said.model, said.revision, local.device, local.dtype)
    with tqdm(total=len(running.pending), unit=" outputs", disable=None) as bar:

        def take(number: int, output: str, **more: Any) -> None:
            running.take(number, output, **more)
            bar.update()

        model.generate(
            [student.messages(one) for one in prompts.instructions], running.pending,
            said.sampling, take, batch_size=local.batch_size,
        )  # fmt: skip


def _judge(
    prompts: "PromptSet",
    outputs: Path,
    reference: Path | None,
    model: "Teacher",
    out: Path,
    *,
    patience: float,
    serve: bool,
) -> dict[str, Any]:
    """Asks for the verdicts that are missing, and writes the annotations; what the record says."""
    from sp2dpo.chats import ask_chats
    from sp2dpo.journal import Journal
    from sp2dpo.judge import title
    from sp2dpo.judging import TEMPLATE, Verdicts, package
    from sp2dpo.prompt_sets import in_order, read_outputs
    from sp2dpo.winrates import write_result

    package()
    said, moved = in_order(prompts, read_outputs(outputs), str(outputs))
    if moved:
        say([f"{outputs}: its rows stood in another order; they are in the prompts' order now"])
    base = _reference(prompts, reference)
    called = title(prompts, model, baseline=base[0].generator, own_reference=reference is None)
    head = {
        "student": model.name, "model": model.model, "revision": model.revision,
        "sampling": model.sampling, "template": TEMPLATE,
    }  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    with Journal(out / "verdicts.jsonl", head) as journal:
        verdicts = Verdicts(journal, base, said, model.name)
        if verdicts.marked:
            say(
                [
                    f"{verdicts.marked} texts hold marks of the judge's chat, which would end their"
                    " place in its prompt: the judge sees these marks taken apart"
                ]
            )
        chats = verdicts.chats()
        if chats:
            _agree(model, serve)

            async def work(stop: "asyncio.Event", count: "Callable[[Outcome], None]") -> None:
                def take(outcome: "Outcome") -> None:
                    verdicts.take(outcome)
                    count(outcome)

                await ask_chats(
                    model, chats, take, stop=stop, patience=patience, say=_echo,
                    log=out / "judge.log",
                )  # fmt: skip

            _asked(work, len(chats), "verdicts")
        missing = verdicts.missing()
        annotations = verdicts.annotations()
    if all(row["preference"] is None for row in annotations):
        raise ValueError(
            f"no verdict of {model.name} could be read: neither m nor M is among its "
            "top_logprobs; see verdicts.jsonl, or take another judge"
        )
    if missing:
        reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(missing.items()))
        say([f"no verdict came to {sum(missing.values())} prompts ({reasons}): the same command "
             "asks for them again; meanwhile they are unscored"])  # fmt: skip
    record = {
        "title": called,
        "student": said[0].generator,
        "baseline": base[0].generator,
        "judge": head,
        "prompts": {
            "name": prompts.name, "hash": prompts.hash, "count": len(prompts.instructions)
        },
        "length_controlled": prompts.is_alpaca_eval,
        "unscored": sum(row["preference"] is None for row in annotations),
        "empty": sum(not row["output_2"].strip() for row in annotations),
        "reordered": moved,
    }  # fmt: skip
    write_result(out, annotations, record)
    return record


def _reference(prompts: "PromptSet", reference: Path | None) -> "list[Output]":
    from sp2dpo.prompt_sets import in_order, read_outputs

    if reference is not None:
        return in_order(prompts, read_outputs(reference), str(reference))[0]
    if prompts.reference is None:
        raise ValueError(
            f"{prompts.name}: its rows have no `output` to compare with: give --reference"
        )
    return list(prompts.reference)


def _compare(
    folders: list[Path],
    *,
    draws: int,
    against: str | None,
    length_control: bool,
    seed: int = 0,
    as_json: bool = False,
    picture: Path | None = None,
) -> None:
    from sp2dpo.winrate_lines import lines
    from sp2dpo.winrates import compared, notes, read_result

    results = [read_result(folder) for folder in folders]
    found = compared(
        results, draws=draws, seed=seed, against=against, length_control=length_control
    )
    if as_json:
        click.echo(json.dumps(found | {"notes": notes(found)}, indent=1))
    else:
        say(lines(found))
    if picture is not None:
        from sp2dpo.evaluation_plots import save_rates

        save_rates(found, picture)
        say([f"wrote {picture}"], err=as_json)


def _rewards(name: str, revision: str | None, outputs: "list[Output]", folder: Path) -> list[float]:
    """The reward model's scores of outputs, read again where they are there."""
    from sp2dpo.files import whole
    from sp2dpo.temperatures import REWARDS

    path, head = folder / REWARDS, {"reward": name, "revision": revision, "count": len(outputs)}
    if path.exists():
        said = json.loads(path.read_text())
        if said["head"] == head:
            return said["rewards"]
    try:
        from sp2dpo.reward_scores import output_rewards
    except ImportError as error:
        raise ValueError(f"scoring needs PyTorch ({error}): pip install 'sp2dpo[train]'") from error
    chats = [
        [
            {"role": "user", "content": one.instruction},
            {"role": "assistant", "content": one.output},
        ]
        for one in outputs
    ]
    found = output_rewards(name, revision, chats)
    with whole(path) as unfinished:
        unfinished.write_text(json.dumps({"head": head, "rewards": found}))
    return found


def _agree(model: "Teacher", serve: bool) -> None:
    from sp2dpo.cli_teachers import consent

    if not serve:
        consent(model)


def _asked(work: "Work", total: int, unit: str) -> None:
    """Runs what asks, with a bar; Ctrl-C once lets what is in flight come home."""
    import asyncio

    from tqdm import tqdm

    from sp2dpo.interrupts import interruptible

    with tqdm(total=total, unit=f" {unit}", disable=None) as bar:

        def count(outcome: "Outcome") -> None:
            bar.update()

        async def counted(stop: asyncio.Event) -> None:
            await work(stop, count)

        asyncio.run(interruptible(counted, say=_echo))


def _echo(line: str) -> None:
    say([line], err=True)
