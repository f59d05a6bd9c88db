"""Train one model with one beta per pair; one YAML file is one run.

    accelerate launch --config_file recipes/accelerate/single.yaml recipes/train.py \
        --config recipes/dpo/tiny-demo.yaml

The keys are those of DataConfig below, of PairDPOConfig (TRL's DPOConfig plus `pair_columns`,
`missing_values`, ...) and of TRL's ModelConfig. Several `--config` options describe one run: a key
of a later file replaces the same key of an earlier one, and the merged settings are printed. A key
given on the command line overrides the files; `--pair_columns` without a value is the YAML's
`pair_columns: []`, stock DPO.

The script writes the model, its tokenizer and its card to `output_dir` and results.json last: the
run is complete if that file exists. Errors are printed as one line, before the model loads if
possible. Exit code 2 means wrong settings, 1 bad data or a bad model. (`accelerate launch` adds its
own traceback and always exits with 1.)
"""

import difflib
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import MISSING, asdict, dataclass, field, fields
from datetime import timedelta
from enum import Enum
from pathlib import Path
from typing import Any

import torch
import transformers
import trl
import yaml
from datasets import Dataset, load_dataset
from datasets.exceptions import DatasetsError
from tqdm import tqdm
from transformers import PrinterCallback, ProgressCallback, TrainerCallback
from transformers.trainer_utils import get_last_checkpoint
from trl import ModelConfig, TrlParser, get_peft_config, get_quantization_config

from sp2dpo.training.columns import MARK_COLUMNS, apply_marks
from sp2dpo.training.provenance import card_section, provenance
from sp2dpo.training.reward_model import locate_output
from sp2dpo.training.run_config import compose, single_config, take_configs
from sp2dpo.training.trainer import PairDPOConfig, PairDPOTrainer


@dataclass
class DataConfig:
    """The data to train and to evaluate on.

    Attributes:
        dataset: A folder built by `sp2dpo build`, or the name of a data set on the Hub.
        dataset_revision: Commit, tag or branch of `dataset` on the Hub.
        dataset_split: The split to read, of `eval_dataset` too.
        eval_dataset: A second folder or name to evaluate on, instead of held-out prompts.
        eval_revision: Commit, tag or branch of `eval_dataset` on the Hub.
        held_out: Share of the prompts, in [0, 0.9], to evaluate on and never train on.
        traceback: Show the traceback of an error instead of its message alone.
    """

    dataset: str | None = field(default=None, metadata={"help": "Folder, or Hub name."})
    dataset_revision: str | None = field(default=None, metadata={"help": "Its commit on the Hub."})
    dataset_split: str = field(default="train", metadata={"help": "The split to read."})
    eval_dataset: str | None = field(default=None, metadata={"help": "What to evaluate on."})
    eval_revision: str | None = field(default=None, metadata={"help": "Its commit on the Hub."})
    held_out: float = field(default=0.0, metadata={"help": "Share of the prompts to evaluate on."})
    traceback: bool = field(default=False, metadata={"help": "Show the traceback of an error."})

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
        rows_given = len(train)
        # Here and not in the trainer, because `provenance` hashes the rows that are trained on. The
        # marks are removed with it, so the trainer does not apply them again.
        train, marks = apply_marks(train, name="train")
        test = None if test is None else without_marks(test)
        checkpoint = find_checkpoint(args)
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
        origin = provenance(str(data.dataset), data.dataset_revision, train, args.pair_columns)
        section = card_section(origin, changed_settings((data, args, model)))
        card.write_text(card.read_text(encoding="utf-8") + section, encoding="utf-8")
        rows = count(trainer, {"train": rows_given, "eval": None if test is None else len(test)})
        if marks is not None:  # None only for a stream
            rows["train"] |= asdict(marks)
        write(results(trainer, data, model) | {"rows": rows, "data": origin}, outcome)
        print(f"{args.output_dir}: the model and results.json are written")
    if args.push_to_hub:
        trainer.push_to_hub()
    trainer.accelerator.end_training()
    if trainer.accelerator.num_processes > 1 and trainer.args.device.type == "cpu":
        # A gloo thread needs the interpreter lock to free its last tensor. Destroying the process
        # group before that waits for the thread while holding the lock: a deadlock.
        time.sleep(1)


@contextmanager
def one_line_errors(exit_code: int, arguments: list[str]) -> Iterator[None]:
    """Print an error about settings, files or data as one line and exit with the code."""
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
        ValueError: On an unknown key, on a bad value, and if the data set or the model is missing.
    """
    paths, arguments = take_configs(arguments)
    files = compose(paths)
    if len(paths) > 1 and os.environ.get("RANK", "0") == "0":
        print("\n".join(files.lines()))
    parser = TrlParser(CONFIGS, usage="train.py --config FILE.yaml [--key value ...]")
    for action in parser._actions:
        if action.dest == "pair_columns":
            action.nargs = "*"  # the list may be empty on the command line too
    with single_config(files, arguments) as merged:
        data, args, model, in_yaml, on_command_line = parser.parse_args_and_config(
            merged, return_remaining_strings=True, separate_remaining_strings=True
        )
    # The parser returns unknown YAML keys with their values, unknown arguments as they were given.
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
    """Raise ValueError, with the closest legal name, if any option was not recognized."""
    if not options:
        return
    legal = [field.name for config in CONFIGS for field in fields(config)]
    name = options[0].removeprefix("--").split("=")[0]
    close = difflib.get_close_matches(name, legal, n=1)
    guess = f", did you mean {close[0]}?" if close else ""
    raise ValueError(f"unknown setting {name}{guess}")


def load(data: DataConfig) -> tuple[Dataset, Dataset | None]:
    """Return the rows to train on and those to evaluate on, if any.

    Raises:
        ValueError: If a data set cannot be read, or if one side of the split has no pair.
    """
    train = read(str(data.dataset), data.dataset_split, data.dataset_revision)
    if data.eval_dataset:
        return train, read(data.eval_dataset, data.dataset_split, data.eval_revision)
    if not data.held_out:
        return train, None
    if "prompt" not in train.column_names:
        raise ValueError(f"held_out needs a column prompt, {data.dataset} has none")
    in_test = [locate_output(prompt) < data.held_out for prompt in train["prompt"]]
    if all(in_test) or not any(in_test):
        raise ValueError(
            f"held_out {data.held_out} puts all {len(in_test)} pairs on one side of the split:"
            " choose another share"
        )
    return (
        train.select([row for row, is_test in enumerate(in_test) if not is_test]),
        train.select([row for row, is_test in enumerate(in_test) if is_test]),
    )


def without_marks(rows: Dataset) -> Dataset:
    """Return the rows without the columns `keep` and `flip`, so that they act on none of them.

    All arms of a comparison are then evaluated on the same rows with the same labels.
    """
    return rows.remove_columns([name for name in MARK_COLUMNS if name in rows.column_names])


def read(source: str, split: str, revision: str | None) -> Dataset:
    """Return one split of a folder or of a data set on the Hub; ValueError if there is none."""
    local = Path(source).is_dir()
    try:
        return load_dataset(source, split=split, revision=None if local else revision)
    except (ValueError, OSError, DatasetsError) as error:
        where = "cannot be read" if local else "is neither a folder nor a data set on the Hub"
        raise ValueError(f"{source} {where}: {error}") from error


def find_checkpoint(args: PairDPOConfig) -> str | None:
    """Return the checkpoint folder to resume from, or None; `true` means the last one, if any.

    Raises:
        ValueError: If the setting names something that is not a folder.
    """
    setting = args.resume_from_checkpoint
    if setting is None or str(setting).lower() == "false":
        return None
    if str(setting).lower() == "true":
        out = str(args.output_dir)
        return get_last_checkpoint(out) if Path(out).is_dir() else None
    if not Path(setting).is_dir():
        raise ValueError(
            f"resume_from_checkpoint: {setting} is not a folder; `true` resumes from the last one"
        )
    return setting


def build_trainer(
    model: ModelConfig, args: PairDPOConfig, train: Dataset, test: Dataset | None
) -> PairDPOTrainer:
    """Return the trainer with its model loaded; ValueError if a data set or the model is bad."""
    try:
        trainer = PairDPOTrainer(
            model.model_name_or_path,
            args=args,
            train_dataset=train,
            eval_dataset=test,
            peft_config=get_peft_config(model),
        )
    except OSError as error:
        raise ValueError(f"the model {model.model_name_or_path} cannot be read: {error}") from error
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    if not args.disable_tqdm:
        trainer.add_callback(QuietBar)
    trainer.add_callback(ConsoleLine)
    return trainer


class QuietBar(ProgressCallback):
    """The Trainer's progress bar without the log entries that it prints."""

    def on_log(self, *_: Any, **__: Any) -> None:
        """Print nothing: see ConsoleLine."""


class ConsoleLine(TrainerCallback):
    """Print the few numbers of a log entry that a person watches, on the main process.

    The trackers, `trainer_state.json` and results.json get the whole entry.
    """

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._first_step = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the clock; a resumed run does not begin at step 0."""
        self._started, self._first_step = time.monotonic(), state.global_step

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        """Print one line."""
        if state.is_world_process_zero and logs:
            done = state.global_step - self._first_step
            seconds = time.monotonic() - self._started
            left = seconds / done * (state.max_steps - state.global_step) if done else None
            line = console_line(logs, state.global_step, state.max_steps, left)
            if line:
                tqdm.write(line)  # above the bar, if there is one


def console_line(logs: dict[str, Any], step: int, steps: int, seconds_left: float | None) -> str:
    """Return the console line of a log entry, empty if it has no loss.

    It holds the loss, the accuracy, the mean margin D in nats (not multiplied by beta), and for a
    training step the learning rate and the time left.

    Args:
        logs: The entry; the keys of an evaluation begin with `eval_`.
        step: The current step.
        steps: The number of steps of the run.
        seconds_left: Estimated time left; None if it is not known yet.
    """
    if "train_loss" in logs:
        return f"trained {step} steps, mean loss {logs['train_loss']:.4f}"
    key = next((key for key in logs if key == "loss" or key.endswith("_loss")), None)
    if key is None:
        return ""
    prefix = key.removesuffix("loss")
    words = [f"step {step}/{steps}", f"{prefix.replace('_', ' ')}loss {float(logs[key]):.4f}"]
    for name, word in (
        ("rewards/accuracies", "accuracy {:.2f}"),
        ("margins/unscaled", "margin {:+.3f} nats"),
        ("learning_rate", "learning rate {:.2e}"),
    ):
        if prefix + name in logs:
            words.append(word.format(float(logs[prefix + name])))
    if not prefix and seconds_left is not None:
        words.append(f"{timedelta(seconds=round(seconds_left))} left")
    return "  ".join(words)


def results(trainer: PairDPOTrainer, data: DataConfig, model: ModelConfig) -> dict[str, Any]:
    """Return the results of a run and the settings that define it."""
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
        "model": display_name(str(model.model_name_or_path)),
        "model_revision": model.model_revision,
        "dataset": display_name(str(data.dataset)),
        "dataset_revision": None if local else data.dataset_revision,
        "eval_dataset": data.eval_dataset and display_name(data.eval_dataset),
        "eval_revision": data.eval_revision,
        "held_out": data.held_out,
        "seed": args.seed,
        "processes": trainer.accelerator.num_processes,
        "distributed_type": trainer.accelerator.distributed_type.value,
        "parameters": count_parameters(trainer.model),
        "versions": {module.__name__: module.__version__ for module in (torch, transformers, trl)},
    }


def count_parameters(model: Any) -> dict[str, int]:
    """Return the number of the model's parameters, and of those that this process stores."""
    total = stored = 0
    for parameter in model.parameters():
        total += getattr(parameter, "ds_numel", parameter.numel())  # ZeRO-3 empties the parameter
        if hasattr(parameter, "to_local"):
            shard = parameter.to_local()
        else:
            shard = getattr(parameter, "ds_tensor", parameter)
        stored += shard.numel()
    return {"all": total, "on_a_process": stored}


def changed_settings(configs: tuple[Any, ...]) -> dict[str, Any]:
    """Return the settings that differ from their defaults, key -> value; folders by name alone.

    Output folders, trackers and secrets are left out.
    """
    left_out = {"output_dir", "hub_token", "report_to", "debug", "pair_columns", "traceback"}
    changed: dict[str, Any] = {}
    for config in configs:
        for setting in fields(config):
            value = getattr(config, setting.name)
            value = value.value if isinstance(value, Enum) else value
            factory = setting.default_factory
            default = setting.default if factory is MISSING else factory()
            plain = isinstance(value, (str, int, float, bool, list))
            if setting.init and plain and value != default and setting.name not in left_out:
                changed[setting.name] = display_name(value) if isinstance(value, str) else value
    return changed


def display_name(source: str) -> str:
    """Return the name of a data set or a model; the last part of the path if it is a folder."""
    return Path(source).resolve().name if Path(source).is_dir() else source


def count(trainer: PairDPOTrainer, given: dict[str, int | None]) -> dict[str, dict[str, int]]:
    """Return, for each data set, its rows, the rows without a beta and the rows that were used.

    The remaining difference is rows whose prompt is longer than `max_length`: TRL drops them.
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
    """Write a JSON file atomically."""
    unfinished = path.with_name(path.name + ".tmp")
    unfinished.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    unfinished.replace(path)


if __name__ == "__main__":
    main(sys.argv[1:])
