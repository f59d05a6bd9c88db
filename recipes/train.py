"""Train one model with a beta for every pair: one YAML is one run.

    accelerate launch --config_file recipes/accelerate/single.yaml recipes/train.py \
        --config recipes/dpo/tiny-demo.yaml

The keys are those below, those of PairDPOConfig (TRL's DPOConfig and `pair_columns`,
`missing_values`, ...) and those of TRL's ModelConfig. Several `--config`s are one run: a key of a
later file replaces that of an earlier one, whole, and the result is printed. Each key can be given
on the command line too and wins there; `--pair_columns` with nothing behind it is the YAML's
`pair_columns: []`, stock DPO.

It writes the model with its tokenizer and card and, last of all, results.json to `output_dir`:
where that file is, the run is complete. What is wrong is said in one line, before the model loads
if possible; exit code 2: the settings are wrong, 1: the data or the model are. (`accelerate launch`
adds a traceback of its own and always exits with 1.)
"""

import difflib
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, field, fields
from enum import Enum
from pathlib import Path
from typing import Any

import torch
import transformers
import trl
import yaml
from datasets import Dataset, load_dataset
from datasets.exceptions import DatasetsError
from transformers.trainer_utils import get_last_checkpoint
from trl import ModelConfig, TrlParser, get_peft_config, get_quantization_config

from sp2dpo.training.provenance import card_section, provenance
from sp2dpo.training.reward_model import locate_output
from sp2dpo.training.run_config import compose, single_config, take_configs
from sp2dpo.training.trainer import PairDPOConfig, PairDPOTrainer


@dataclass
class DataConfig:
    """What is trained on, and what it is evaluated on.

    Attributes:
        dataset: A folder built by `sp2dpo build`, or the name of a data set on the Hub.
        dataset_revision: The commit, tag or branch of a data set on the Hub.
        dataset_split: The split to read, of `eval_dataset` too.
        eval_dataset: A second folder or name, to evaluate on in place of held-out prompts.
        eval_revision: Its commit, tag or branch on the Hub.
        held_out: The share of the prompts, in [0, 0.9], to evaluate on and never train on.
        traceback: Show where an error arose, not its message alone.
    """

    dataset: str | None = field(default=None, metadata={"help": "A folder, or a name on the Hub."})
    dataset_revision: str | None = field(default=None, metadata={"help": "A commit on the Hub."})
    dataset_split: str = field(default="train", metadata={"help": "The split to read."})
    eval_dataset: str | None = field(default=None, metadata={"help": "What to evaluate on."})
    eval_revision: str | None = field(default=None, metadata={"help": "Its commit on the Hub."})
    held_out: float = field(default=0.0, metadata={"help": "Share of the prompts to evaluate on."})
    traceback: bool = field(default=False, metadata={"help": "Show where an error arose."})

    def __post_init__(self) -> None:
        if not 0 <= self.held_out <= 0.9:
            raise ValueError(f"held_out must be in [0, 0.9], not {self.held_out}")
        if self.held_out and self.eval_dataset:
            raise ValueError("held_out and eval_dataset exclude each other: set one of them")


CONFIGS: Any = (DataConfig, PairDPOConfig, ModelConfig)


def main(arguments: list[str]) -> None:
    """Parse, load, train, evaluate, save."""
    with one_line_errors(2, arguments):
        data, args, model = parse(arguments)
    with one_line_errors(1, arguments):
        train, test = load(data)
        given = len(train)
        train, marked = as_marked(train)
        checkpoint = to_resume_from(args)
        trainer = build_trainer(model, args, train, test)
    outcome = Path(str(args.output_dir), "results.json")
    outcome.unlink(missing_ok=True)  # that of an earlier run
    trainer.train(resume_from_checkpoint=checkpoint)
    if test is not None:
        trainer.evaluate()
    trainer.save_model(args.output_dir)
    trainer.create_model_card(model_name=Path(str(args.output_dir)).name)
    if trainer.accelerator.is_main_process:
        card = Path(str(args.output_dir), "README.md")
        said = provenance(str(data.dataset), data.dataset_revision, train, args.pair_columns)
        section = card_section(said, changed_settings((data, args, model)))
        card.write_text(card.read_text(encoding="utf-8") + section, encoding="utf-8")
        rows = count(trainer, {"train": given, "eval": None if test is None else len(test)})
        rows["train"] |= marked
        write(results(trainer, data, model) | {"rows": rows, "data": said}, outcome)
        print(f"{args.output_dir}: the model and results.json are written")
    if args.push_to_hub:
        trainer.push_to_hub()
    trainer.accelerator.end_training()
    if trainer.accelerator.num_processes > 1 and trainer.args.device.type == "cpu":
        # A thread of gloo's needs the interpreter to give back its last tensor, and a process group
        # that is taken down meanwhile waits for that thread, holding the interpreter, for ever.
        time.sleep(1)


@contextmanager
def one_line_errors(exit_code: int, arguments: list[str]) -> Iterator[None]:
    """Turn what a wrong setting, file or data set raises into one line and an exit code."""
    try:
        yield
    except (ValueError, TypeError, OSError, DatasetsError, yaml.YAMLError) as error:
        if "--traceback" in arguments:
            raise
        print("train.py:", " ".join(str(error).split()), file=sys.stderr)
        raise SystemExit(exit_code) from None


def parse(arguments: list[str]) -> tuple[DataConfig, PairDPOConfig, ModelConfig]:
    """Return the settings of the YAML files, overridden by those of the command line.

    Raises:
        ValueError: On a key that no config has, on a bad value, and where there is no data set
            or no model.
    """
    paths, arguments = take_configs(arguments)
    files = compose(paths)
    if len(paths) > 1 and os.environ.get("RANK", "0") == "0":
        print("\n".join(files.lines()))
    parser = TrlParser(CONFIGS, usage="train.py --config FILE.yaml [--key value ...]")
    for action in parser._actions:
        if action.dest == "pair_columns":
            action.nargs = "*"  # the list may be empty on the command line too
    with single_config(files, arguments) as said:
        data, args, model, in_yaml, on_command_line = parser.parse_args_and_config(
            said, return_remaining_strings=True, separate_remaining_strings=True
        )
    # The unknown keys of the YAML come with their values, those of the command line as they stand.
    refuse_unknown([*in_yaml[::2], *on_command_line])
    for key, value in (("dataset", data.dataset), ("model_name_or_path", model.model_name_or_path)):
        if not value:
            raise ValueError(f"{key} is missing: set it in the YAML file or give --{key}")
    args.model_init_kwargs = {
        "revision": model.model_revision,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype,
        **(args.model_init_kwargs or {}),
    }
    quantization = get_quantization_config(model)
    if quantization is not None:
        args.model_init_kwargs["quantization_config"] = quantization
    return data, args, model


def refuse_unknown(options: list[str]) -> None:
    """Raise ValueError, with a guess at what was meant, if any option is left over."""
    if not options:
        return
    known = [field.name for config in CONFIGS for field in fields(config)]
    name = options[0].removeprefix("--").split("=")[0]
    close = difflib.get_close_matches(name, known, n=1)
    guess = f", did you mean {close[0]}?" if close else ""
    raise ValueError(f"unknown setting {name}{guess}")


def load(data: DataConfig) -> tuple[Dataset, Dataset | None]:
    """Return the rows to train on and those to evaluate on, if any.

    Raises:
        ValueError: If a data set cannot be read, or if a side of the split has no pair.
    """
    train = read(str(data.dataset), data.dataset_split, data.dataset_revision)
    if data.eval_dataset:
        return train, read(data.eval_dataset, data.dataset_split, data.eval_revision)
    if not data.held_out:
        return train, None
    if "prompt" not in train.column_names:
        raise ValueError(f"held_out needs a column prompt, {data.dataset} has none")
    held = [locate_output(prompt) < data.held_out for prompt in train["prompt"]]
    if all(held) or not any(held):
        raise ValueError(f"held_out {data.held_out}: of {len(held)} pairs one side gets none")
    kept, out = (
        train.select([row for row, is_held in enumerate(held) if is_held == side])
        for side in (False, True)
    )
    return kept, out


def as_marked(rows: Dataset) -> tuple[Dataset, dict[str, int]]:
    """Return the rows as the arm of a comparison marks them, and how many it left out and flipped.

    A row with `keep: false` is left out, one with `flip: true` gets its responses exchanged. What
    becomes of rows without a beta is for `missing_values` to say. Rows to evaluate on stay as they
    are, so that arms are compared on the same ones.

    Raises:
        ValueError: If the arm leaves no row.
    """
    marks = {name: rows[name][:] for name in ("keep", "beta", "flip") if name in rows.column_names}
    keep = marks.get("keep", [True] * len(rows))
    beta = marks.get("beta", [None] * len(rows))
    left = [row for row in range(len(rows)) if keep[row] is not False or beta[row] is None]
    if not left:
        raise ValueError(f"the column keep leaves none of the {len(rows)} rows to train on")
    counts = {"left_out": len(rows) - len(left), "flipped": 0}
    if counts["left_out"]:
        rows = rows.select(left)
    if "flip" in marks:
        counts["flipped"] = sum(bool(marks["flip"][row]) for row in left)
        rows = rows.map(exchanged)
    return rows, counts


def exchanged(row: dict[str, Any]) -> dict[str, Any]:
    """Return what belongs to the two responses of a row, exchanged where it says `flip`.

    Reference log-probs go with their responses.
    """
    sides = {"chosen": "rejected", "ref_chosen_logps": "ref_rejected_logps"}
    there = {one: other for one, other in sides.items() if one in row and other in row}
    both = there | {other: one for one, other in there.items()}
    return {name: row[other if row["flip"] else name] for name, other in both.items()}


def read(source: str, split: str, revision: str | None) -> Dataset:
    """Return one split of a folder or of a data set on the Hub; ValueError if there is none."""
    local = Path(source).is_dir()
    try:
        return load_dataset(source, split=split, revision=None if local else revision)
    except (ValueError, OSError, DatasetsError) as error:
        where = "cannot be read" if local else "is no folder here, and no data set on the Hub"
        raise ValueError(f"{source} {where}: {error}") from error


def to_resume_from(args: PairDPOConfig) -> str | None:
    """Return the checkpoint to go on from: for `true` the last one, if there is one.

    Raises:
        ValueError: If what is named is no folder.
    """
    said = args.resume_from_checkpoint
    if said is None or str(said).lower() == "false":
        return None
    if str(said).lower() == "true":
        out = str(args.output_dir)
        return get_last_checkpoint(out) if Path(out).is_dir() else None
    if not Path(said).is_dir():
        raise ValueError(f"resume_from_checkpoint: {said} is no folder; `true` is the last one")
    return said


def build_trainer(
    model: ModelConfig, args: PairDPOConfig, train: Dataset, test: Dataset | None
) -> PairDPOTrainer:
    """Return the trainer, its model loaded; ValueError if the data set or the model is no good."""
    try:
        return PairDPOTrainer(
            model.model_name_or_path,
            args=args,
            train_dataset=train,
            eval_dataset=test,
            peft_config=get_peft_config(model),
        )
    except OSError as error:
        raise ValueError(f"the model {model.model_name_or_path} cannot be read: {error}") from error


def results(trainer: PairDPOTrainer, data: DataConfig, model: ModelConfig) -> dict[str, Any]:
    """Return what came out of a run and what went into it."""
    args, history = trainer.args, trainer.state.log_history
    losses = [entry["train_loss"] for entry in history if "train_loss" in entry]
    evaluations = [entry for entry in history if "eval_loss" in entry]
    betas = trainer.train_dataset["beta"][:] if "beta" in args.pair_columns else [args.beta]
    local = Path(str(data.dataset)).is_dir()
    return {
        "train_loss": losses[-1],
        "eval": evaluations[-1] if evaluations else None,
        "beta": {"mean": sum(betas) / len(betas), "min": min(betas), "max": max(betas)},
        "pair_columns": args.pair_columns,
        "missing_values": args.missing_values,
        "model": called(str(model.model_name_or_path)),
        "model_revision": model.model_revision,
        "dataset": called(str(data.dataset)),
        "dataset_revision": None if local else data.dataset_revision,
        "eval_dataset": data.eval_dataset and called(data.eval_dataset),
        "eval_revision": data.eval_revision,
        "held_out": data.held_out,
        "seed": args.seed,
        "processes": trainer.accelerator.num_processes,
        "distributed_type": trainer.accelerator.distributed_type.value,
        "parameters": parameters(trainer.model),
        "versions": {module.__name__: module.__version__ for module in (torch, transformers, trl)},
    }


def parameters(model: Any) -> dict[str, int]:
    """Return how many parameters a model has, and how many of them this process holds."""
    whole = held = 0
    for one in model.parameters():
        whole += getattr(one, "ds_numel", one.numel())  # ZeRO-3 leaves an empty one behind
        local = one.to_local() if hasattr(one, "to_local") else getattr(one, "ds_tensor", one)
        held += local.numel()
    return {"all": whole, "on_a_process": held}


def changed_settings(configs: tuple[Any, ...]) -> dict[str, Any]:
    """Return the settings that differ from their defaults, key -> value; of folders their names.

    Where a run writes and reports to, and secrets, are no part of them.
    """
    left_out = {"output_dir", "hub_token", "report_to", "debug", "pair_columns", "traceback"}
    found: dict[str, Any] = {}
    for config in configs:
        for one in fields(config):
            value = getattr(config, one.name)
            value = value.value if isinstance(value, Enum) else value
            default = one.default if one.default_factory is MISSING else one.default_factory()
            plain = isinstance(value, (str, int, float, bool, list))
            if one.init and plain and value != default and one.name not in left_out:
                found[one.name] = called(value) if isinstance(value, str) else value
    return found


def called(source: str) -> str:
    """Return what to call a data set or a model: a folder by its own name alone."""
    return Path(source).resolve().name if Path(source).is_dir() else source


def count(trainer: PairDPOTrainer, given: dict[str, int | None]) -> dict[str, dict[str, int]]:
    """Return, for each data set, its rows, those without beta and those the trainer used.

    The rows that were neither left out, nor dropped for want of a beta, nor used are prompts longer
    than `max_length`, which TRL leaves out.
    """
    used = {"train": trainer.train_dataset, "eval": trainer.eval_dataset}
    return {
        name: {
            "given": rows,
            "without_beta": trainer.rows_without_beta.get(name, 0),
            "used": len(used[name]),
        }
        for name, rows in given.items()
        if rows is not None
    }


def write(content: dict[str, Any], path: Path) -> None:
    """Write a JSON file, complete or not at all."""
    unfinished = path.with_name(path.name + ".tmp")
    unfinished.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    unfinished.replace(path)


if __name__ == "__main__":
    main(sys.argv[1:])
