"""Read outputs, and the prompts that students are evaluated on, in their fixed order."""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sp2dpo.files import file_sha256, read_json_lines, read_json_rows
from sp2dpo.hub import hub_errors

ALPACA_EVAL = "alpaca_eval"
"""Name that selects the prompts of AlpacaEval, which are read from the Hub."""
ALPACA_EVAL_REPO = "tatsu-lab/alpaca_eval"
ALPACA_EVAL_FILE = "alpaca_eval_gpt4_baseline.json"
"""File with the prompts of AlpacaEval 2.0 and the outputs of its baseline, GPT-4 Turbo (1106)."""
ALPACA_EVAL_PROMPTS = 805


@dataclass(frozen=True, kw_only=True)
class Output:
    """A model's output for a prompt, with the fields of AlpacaEval's files.

    Attributes:
        instruction: The prompt.
        output: The output; it may be empty.
        generator: Name of the model.
    """

    instruction: str
    output: str
    generator: str


@dataclass(frozen=True, kw_only=True)
class PromptSet:
    """Prompts in a fixed order; AlpacaEval joins its tables by the position of a prompt.

    Attributes:
        name: `alpaca_eval`, or the name of the file.
        instructions: The prompts.
        reference: Outputs to compare with, one per prompt; None if the file has none.
    """

    name: str
    instructions: tuple[str, ...]
    reference: tuple[Output, ...] | None

    @property
    def is_alpaca_eval(self) -> bool:
        """Whether these are AlpacaEval's prompts, which the length-controlled rate requires."""
        return self.name == ALPACA_EVAL

    @property
    def hash(self) -> str:
        """Return a SHA-256 of the prompts in their order, as 64 hexadecimal digits."""
        return hashlib.sha256(json.dumps(self.instructions).encode()).hexdigest()


def read_prompts(text: str) -> PromptSet:
    """Read the prompts of AlpacaEval (`alpaca_eval`), or those of a .json or .jsonl file.

    A row of a file has `instruction` (or `prompt`), a text; if all rows have an `output`, the
    outputs are the reference.

    Raises:
        ValueError: If the file has another format, or a row has no prompt.
        OSError: If the file cannot be read, or AlpacaEval's file cannot be downloaded and is not
            in the cache.
    """
    is_alpaca_eval = text == ALPACA_EVAL
    path = download(ALPACA_EVAL_FILE) if is_alpaca_eval else Path(text)
    rows = read_rows(path)
    # The difficulty of a prompt is joined by its position: one row more or less would shift all
    # that follow.
    if is_alpaca_eval and len(rows) != ALPACA_EVAL_PROMPTS:
        raise ValueError(
            f"{ALPACA_EVAL_REPO} holds {len(rows)} prompts in {ALPACA_EVAL_FILE}, AlpacaEval has "
            f"{ALPACA_EVAL_PROMPTS}"
        )
    instructions = tuple(_instruction(row, where) for where, row in rows.items())
    outputs = None
    if is_alpaca_eval or all("output" in row for row in rows.values()):
        outputs = tuple(parse_output(row, where) for where, row in rows.items())
    name = ALPACA_EVAL if is_alpaca_eval else path.name
    return PromptSet(name=name, instructions=instructions, reference=outputs)


def download(file: str) -> Path:
    """Return the local path of a file in AlpacaEval's data set; download it if necessary.

    Raises:
        OSError: If the file cannot be downloaded and is not in the cache.
    """
    import huggingface_hub  # noqa: PLC0415 - slow to import

    with hub_errors(f"{ALPACA_EVAL_REPO}: {file}"):
        return Path(huggingface_hub.hf_hub_download(ALPACA_EVAL_REPO, file, repo_type="dataset"))


def read_rows(path: Path) -> dict[str, dict[str, Any]]:
    """Return the rows, at least one, of a .json file (a list of objects) or a .jsonl file.

    The keys tell where the rows are, for messages. Either file may be compressed (.gz).

    Raises:
        ValueError: If the file has another format.
        OSError: If the file cannot be read.
    """
    ending = Path(path.stem if path.suffix == ".gz" else path.name).suffix
    if ending not in (".json", ".jsonl"):
        raise ValueError(f"{path}: prompts and outputs are .json or .jsonl files")
    rows = read_json_lines(path) if ending == ".jsonl" else read_json_rows(path)
    # A file on one line has many rows, and a row of several lines begins on the first.
    placed = {
        f"{path}: line {line}, row {number}": row for number, (line, row) in enumerate(rows, 1)
    }
    if not placed:
        raise ValueError(f"{path}: expected a list of objects, at least one")
    return placed


def _instruction(row: dict[str, Any], where: str) -> str:
    for key in ("instruction", "prompt"):
        if isinstance(row.get(key), str) and row[key].strip():
            _check_characters(row[key], f"{where}: `{key}`")
            return row[key]
    raise ValueError(f"{where}: no `instruction` (or `prompt`) that is a non-empty text")


def _check_characters(text: str, where: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{where} holds half of a surrogate pair, not a character") from None


def parse_output(row: dict[str, Any], where: str) -> Output:
    """Return the output in a row.

    Raises:
        ValueError: If a field is missing, or is no text; the message begins with `where`.
    """
    instruction = _instruction(row, where)
    if not isinstance(row.get("output"), str):
        raise ValueError(f"{where}: `output` must be a text (it may be empty)")
    _check_characters(row["output"], f"{where}: `output`")
    generator = row.get("generator")
    if not isinstance(generator, str) or not generator.strip():
        raise ValueError(f"{where}: `generator`, the name of the model, is missing")
    return Output(instruction=instruction, output=row["output"], generator=generator)


def read_outputs(path: Path) -> list[Output]:
    """Return the outputs of one model from a file, or a folder that `evaluate generate` wrote.

    Raises:
        ValueError: If there are no outputs, or if they are from several models.
        OSError: If the file cannot be read.
    """
    file = path / "outputs.json" if path.is_dir() else path
    if not file.exists():
        raise FileNotFoundError(f"{file}: no such file; is the generation finished?")
    if path.is_dir():
        _check_outputs(file, path / "generation.json")
    outputs = [parse_output(row, where) for where, row in read_rows(file).items()]
    names = sorted({output.generator for output in outputs})
    if len(names) > 1:
        raise ValueError(f"{file}: outputs of several models: {', '.join(names)}; split the file")
    return outputs


def _check_outputs(file: Path, record: Path) -> None:
    """Refuse outputs that differ from those that `generate` wrote; earlier releases have no hash.

    Raises:
        ValueError: If they differ, or the record of the run cannot be read.
    """
    if not record.exists():
        return
    try:
        expected = json.loads(record.read_bytes()).get("outputs_sha256")
    except (ValueError, RecursionError, AttributeError) as error:
        raise ValueError(
            f"{record}: damaged; run `sp2dpo evaluate generate` again, which writes it"
        ) from error
    if expected is not None and expected != file_sha256(file):
        raise ValueError(
            f"{file}: not the outputs that were generated: run `sp2dpo evaluate generate` again, "
            "which writes them again, or name a file of other outputs instead of the folder"
        )


def order_rows(
    prompts: PromptSet, outputs: Iterable[Output], where: str
) -> tuple[list[Output], bool]:
    """Return one output per prompt, in the order of the prompts.

    Args:
        prompts: The prompts.
        outputs: Outputs for the prompts, in any order.
        where: Where the outputs are from, for messages.

    Returns:
        The sorted outputs, and whether their order has changed.

    Raises:
        ValueError: If a prompt has no output, or an output does not belong to any prompt.
    """
    outputs = list(outputs)
    by_prompt: dict[str, list[Output]] = defaultdict(list)
    for output in outputs:
        by_prompt[output.instruction].append(output)
    # Counters and not sets, because a prompt may occur more than once.
    expected = Counter(prompts.instructions)
    counts = Counter(output.instruction for output in outputs)
    problems = []
    for what, surplus in (
        ("without an output", expected - counts),
        ("not among the prompts", counts - expected),
    ):
        if surplus:
            first = next(iter(surplus))
            problems.append(f"{surplus.total()} {what}, the first: {first[:60]!r}")
    if problems:
        raise ValueError(
            f"{where}: the outputs do not fit the {len(prompts.instructions)} prompts of "
            f"{prompts.name}: {'; '.join(problems)}"
        )
    # Equal prompts take their outputs in the order of the file.
    ordered = [by_prompt[instruction].pop(0) for instruction in prompts.instructions]
    return ordered, ordered != outputs
