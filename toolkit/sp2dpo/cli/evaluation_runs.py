"""What the evaluation's commands do: outputs, verdicts, a comparison, rewards, each resumable."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sp2dpo.cli.options import print_lines

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable

    from sp2dpo.evaluation.models import Student
    from sp2dpo.evaluation.prompts import Output, PromptSet
    from sp2dpo.inference.chats import ChatResult
    from sp2dpo.inference.endpoint import Endpoint

    Work = Callable[[asyncio.Event, Callable[[ChatResult], None]], Awaitable[None]]


def load_or_generate_outputs(
    prompts: "PromptSet",
    student: "Student",
    out: Path,
    *,
    patience: float,
    serve: bool,
    allow_refused: bool,
) -> None:
    """Asks for what is missing, and writes the outputs."""
    from sp2dpo.evaluation.outputs import OUTPUTS, generate_from_server, open_generation

    with open_generation(out, prompts, student) as running:
        if running.pending and student.local is not None:
            _generate_here(running, prompts, student)
        elif running.pending:
            _agree(student.model, serve)

            async def work(stop: "asyncio.Event", count: "Callable[[ChatResult], None]") -> None:
                await generate_from_server(
                    running, student, count, stop=stop, patience=patience, say=_echo,
                    log=out / "server.log",
                )  # fmt: skip

            _asked(work, len(running.pending), "outputs")
        record = running.finish(allow_refused=allow_refused)
    refused = f", {record['refused']} refused" * bool(record["refused"])
    empty = f", {record['empty']} empty" * bool(record["empty"])
    cut = record["ended"].get("length", 0)
    at_limit = f", {cut} cut at max_tokens" * bool(cut)
    print_lines(
        [
            f"{student.model.name}: {record['outputs']} outputs, {record['characters']:.0f} "
            f"characters on average{empty}{at_limit}{refused}",
            f"wrote {out / OUTPUTS}",
        ]
    )


def _generate_here(running: Any, prompts: "PromptSet", student: "Student") -> None:
    from tqdm import tqdm

    try:
        from sp2dpo.evaluation.local_model import LocalModel
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


def judge_outputs(
    prompts: "PromptSet",
    outputs: Path,
    reference: Path | None,
    model: "Endpoint",
    out: Path,
    *,
    patience: float,
    serve: bool,
) -> dict[str, Any]:
    """Asks for the verdicts that are missing, and writes the annotations; what the record says."""
    from sp2dpo.evaluation.models import title
    from sp2dpo.evaluation.prompts import order_rows, read_outputs
    from sp2dpo.evaluation.verdicts import TEMPLATE, Verdicts, import_alpaca_eval, write_result
    from sp2dpo.files import Journal
    from sp2dpo.inference.chats import ask_chats

    import_alpaca_eval()
    said, moved = order_rows(prompts, read_outputs(outputs), str(outputs))
    if moved:
        print_lines(
            [f"{outputs}: its rows stood in another order; they are in the prompts' order now"]
        )
    base = _reference(prompts, reference)
    called = title(prompts, model, baseline=base[0].generator, own_reference=reference is None)
    head = {
        "student": model.name, "model": model.model, "revision": model.revision,
        "sampling": model.sampling, "template": TEMPLATE,
    }  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    of = {"outputs_of": said[0].generator, "baseline": base[0].generator}
    with Journal(out / "verdicts.jsonl", head | of) as journal:
        verdicts = Verdicts(journal, base, said, model.name)
        if verdicts.marked:
            print_lines(
                [
                    f"{verdicts.marked} texts hold marks of the judge's chat, which would end their"
                    " place in its prompt: the judge sees these marks taken apart"
                ]
            )
        chats = verdicts.chats()
        if chats:
            _agree(model, serve)

            async def work(stop: "asyncio.Event", count: "Callable[[ChatResult], None]") -> None:
                def take(outcome: "ChatResult") -> None:
                    verdicts.take(outcome)
                    count(outcome)

                await ask_chats(
                    model, chats, take, stop=stop, patience=patience, say=_echo,
                    log=out / "judge.log",
                )  # fmt: skip

            _asked(work, len(chats), "verdicts")
        missing = verdicts.missing()
        annotations = verdicts.annotations()
    if missing:
        reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(missing.items()))
        print_lines([f"no verdict came to {sum(missing.values())} prompts ({reasons}): the "
                     f"same command "
             "asks for them again; meanwhile they are unscored"])  # fmt: skip
    if all(row["preference"] is None for row in annotations):
        raise ValueError(
            f"there is no verdict of {model.name} that can be read: in those that came, neither m "
            "nor M is among the top_logprobs; see verdicts.jsonl, or take another judge"
        )
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
    from sp2dpo.evaluation.prompts import order_rows, read_outputs

    if reference is not None:
        return order_rows(prompts, read_outputs(reference), str(reference))[0]
    if prompts.reference is None:
        raise ValueError(
            f"{prompts.name}: its rows have no `output` to compare with: give --reference"
        )
    return list(prompts.reference)


def compare_results(
    folders: list[Path],
    *,
    draws: int,
    against: str | None,
    length_control: bool,
    seed: int = 0,
    as_json: bool = False,
    picture: Path | None = None,
) -> None:
    """Reads results, compares them, prints the table and draws it."""
    from sp2dpo.cli.progress import progress_rows
    from sp2dpo.evaluation.text import comparison_lines
    from sp2dpo.evaluation.verdicts import read_result
    from sp2dpo.evaluation.winrates import compare_students, comparison_notes

    results = [read_result(folder) for folder in folders]
    found = compare_students(
        results,
        draws=draws,
        seed=seed,
        against=against,
        length_control=length_control,
        watch=progress_rows,
    )
    if as_json:
        click.echo(json.dumps(found | {"notes": comparison_notes(found)}, indent=1))
    else:
        print_lines(comparison_lines(found))
    if picture is not None:
        from sp2dpo.evaluation.plots import save_rates

        save_rates(found, picture)
        print_lines([f"wrote {picture}"], err=as_json)


def score_outputs(
    name: str, revision: str | None, outputs: "list[Output]", folder: Path
) -> list[float]:
    """The reward model's scores of outputs, read again where they are there."""
    from sp2dpo.evaluation.temperatures import REWARDS
    from sp2dpo.files import atomic_write

    path, head = folder / REWARDS, {"reward": name, "revision": revision, "count": len(outputs)}
    if path.exists():
        said = json.loads(path.read_text())
        if said["head"] == head:
            return said["rewards"]
    try:
        from sp2dpo.training.reward_model import output_rewards
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
    with atomic_write(path) as unfinished:
        unfinished.write_text(json.dumps({"head": head, "rewards": found}))
    return found


def _agree(model: "Endpoint", serve: bool) -> None:
    from sp2dpo.cli.annotation import consent

    if not serve:
        consent(model)


def _asked(work: "Work", total: int, unit: str) -> None:
    """Runs what asks, with a bar; Ctrl-C once lets what is in flight come home."""
    import asyncio

    from tqdm import tqdm

    from sp2dpo.interrupts import interruptible

    with tqdm(total=total, unit=f" {unit}", disable=None) as bar:

        def count(outcome: "ChatResult") -> None:
            bar.update()

        async def counted(stop: asyncio.Event) -> None:
            await work(stop, count)

        asyncio.run(interruptible(counted, say=_echo))


def _echo(line: str) -> None:
    print_lines([line], err=True)
