"""The prompts that students are evaluated on, in their canonical order, and outputs beside them."""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sp2dpo.files import read_json_lines
from sp2dpo.hub import hub_errors

ALPACA_EVAL = "alpaca_eval"
"""The name of AlpacaEval's own prompts, read from the Hub."""
ALPACA_EVAL_REPO = "tatsu-lab/alpaca_eval"
ALPACA_EVAL_FILE = "alpaca_eval_gpt4_baseline.json"
"""AlpacaEval 2.0: its prompts with the outputs of its baseline, GPT-4 Turbo (1106)."""
ALPACA_EVAL_PROMPTS = 805


@dataclass(frozen=True, kw_only=True)
class Output:
    """What a model said to a prompt, as AlpacaEval's files have it.

    Attributes:
        instruction: the prompt.
        output: may be empty.
        generator: the name of the model.
    """

    instruction: str
    output: str
    generator: str


@dataclass(frozen=True, kw_only=True)
class PromptSet:
    """Prompts in an order that is never changed: AlpacaEval joins by it.

    Attributes:
        name: `alpaca_eval`, or the file's.
        instructions: the prompts.
        reference: outputs to compare with; None where the file has none.
    """

    name: str
    instructions: tuple[str, ...]
    reference: tuple[Output, ...] | None

    @property
    def is_alpaca_eval(self) -> bool:
        """Whether these are AlpacaEval's own: the length-controlled rate is defined on them."""
        return self.name == ALPACA_EVAL

    @property
    def hash(self) -> str:
        """64 hexadecimal digits over the prompts in their order."""
        return hashlib.sha256(json.dumps(self.instructions).encode()).hexdigest()


def read_prompts(text: str) -> PromptSet:
    """The prompts that a person names: `alpaca_eval`, or a .json or .jsonl file.

    A row of a file has `instruction` (or `prompt`, a text); where all have an `output`, these are
    the reference.

    Raises:
        ValueError: something else, or a row that is no prompt.
        OSError: it cannot be read, or the Hub has none.
    """
    if text == ALPACA_EVAL:
        return _alpaca_eval()
    path = Path(text)
    rows = read_rows(path)
    instructions = tuple(_instruction(row, f"{path}: row {n}") for n, row in enumerate(rows, 1))
    outputs = None
    if all("output" in row for row in rows):
        outputs = tuple(parse_output(row, f"{path}: row {n}") for n, row in enumerate(rows, 1))
    return PromptSet(name=path.name, instructions=instructions, reference=outputs)


def download(file: str) -> Path:
    """A file of AlpacaEval's data set, from the Hub or its cache.

    Raises:
        OSError: neither has it.
    """
    import huggingface_hub  # noqa: PLC0415 - slow to import

    with hub_errors(f"{ALPACA_EVAL_REPO}: {file}"):
        return Path(huggingface_hub.hf_hub_download(ALPACA_EVAL_REPO, file, repo_type="dataset"))


def _alpaca_eval() -> PromptSet:
    rows = read_rows(download(ALPACA_EVAL_FILE))
    if len(rows) != ALPACA_EVAL_PROMPTS:
        raise ValueError(
            f"{ALPACA_EVAL_REPO} holds {len(rows)} prompts in {ALPACA_EVAL_FILE}, AlpacaEval has "
            f"{ALPACA_EVAL_PROMPTS}"
        )
    found = tuple(
        parse_output(row, f"{ALPACA_EVAL_FILE}: row {n}") for n, row in enumerate(rows, 1)
    )
    return PromptSet(
        name=ALPACA_EVAL, instructions=tuple(one.instruction for one in found), reference=found
    )


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a .json (a list of objects) or .jsonl file; at least one.

    Raises:
        ValueError: it is something else.
        OSError: it cannot be read.
    """
    if path.suffix not in (".json", ".jsonl"):
        raise ValueError(f"{path}: prompts and outputs are .json or .jsonl files")
    try:
        if path.suffix == ".jsonl":
            rows = [row for _, row in read_json_lines(path)]
        else:
            rows = json.loads(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 at byte {error.start + 1}") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not JSON: {error}") from error
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path}: expected a list of objects, at least one")
    return rows


def _instruction(row: dict[str, Any], where: str) -> str:
    for key in ("instruction", "prompt"):
        if isinstance(row.get(key), str) and row[key].strip():
            return row[key]
    raise ValueError(f"{where}: no `instruction` (or `prompt`) that is a text with words in it")


def parse_output(row: dict[str, Any], where: str) -> Output:
    """The output in a row.

    Raises:
        ValueError: with `where`, and what the row lacks.
    """
    instruction = _instruction(row, where)
    if not isinstance(row.get("output"), str):
        raise ValueError(f"{where}: `output` must be a text (it may be empty)")
    generator = row.get("generator")
    if not isinstance(generator, str) or not generator.strip():
        raise ValueError(f"{where}: `generator`, the name of the model, is missing")
    return Output(instruction=instruction, output=row["output"], generator=generator)


def read_outputs(path: Path) -> list[Output]:
    """Outputs of one model: a file, or a folder that `evaluate generate` wrote.

    Raises:
        ValueError: it holds none, or those of several models.
        OSError: it cannot be read.
    """
    file = path / "outputs.json" if path.is_dir() else path
    if not file.exists():
        raise FileNotFoundError(f"{file}: no such file; is the generation finished?")
    found = [parse_output(row, f"{file}: row {n}") for n, row in enumerate(read_rows(file), 1)]
    names = sorted({one.generator for one in found})
    if len(names) > 1:
        raise ValueError(f"{file}: outputs of several models: {', '.join(names)}; split the file")
    return found


def order_rows(
    prompts: PromptSet, outputs: Iterable[Output], where: str
) -> tuple[list[Output], bool]:
    """Outputs in the order of the prompts, one for each.

    Args:
        prompts: whose order counts.
        outputs: in whatever order.
        where: they come from, for messages.

    Returns:
        The outputs, and whether their own order was another one.

    Raises:
        ValueError: prompts without an output, or outputs to other prompts.
    """
    given = list(outputs)
    waiting: dict[str, list[Output]] = defaultdict(list)
    for one in given:
        waiting[one.instruction].append(one)
    missing = Counter(prompts.instructions) - Counter(one.instruction for one in given)
    more = Counter(one.instruction for one in given) - Counter(prompts.instructions)
    problems = []
    for what, found in (("without an output", missing), ("not among the prompts", more)):
        if found:
            first = next(iter(found))
            problems.append(f"{found.total()} {what}, the first: {first[:60]!r}")
    if problems:
        raise ValueError(
            f"{where}: the outputs do not fit the {len(prompts.instructions)} prompts of "
            f"{prompts.name}: {'; '.join(problems)}"
        )
    ordered = [waiting[instruction].pop(0) for instruction in prompts.instructions]
    return ordered, ordered != given
