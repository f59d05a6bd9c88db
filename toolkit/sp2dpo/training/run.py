"""One training run: read the data, train, evaluate, write the model, its card and results.json."""

import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
import trl
from datasets import Dataset, IterableDataset
from huggingface_hub.errors import HTTPError
from tqdm import tqdm
from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl import ModelConfig, get_peft_config, get_quantization_config

from sp2dpo.files import write_json
from sp2dpo.hub import hub_errors
from sp2dpo.text import one_line, redact
from sp2dpo.training.card import card_section, changed_settings
from sp2dpo.training.config import PairDPOConfig
from sp2dpo.training.console import quiet_libraries, use_console
from sp2dpo.training.data import DataConfig, RunData, load_data
from sp2dpo.training.provenance import display_name, hash_columns, hub_names, trace_rows
from sp2dpo.training.rows import SOURCE
from sp2dpo.training.stopping import (
    Stopped,
    is_complete,
    stopping_at_signals,
    whole_mean_loss,
)
from sp2dpo.training.trackers import describe_run, guard_trackers
from sp2dpo.training.trainer import PairDPOTrainer

RESULTS = "results.json"
"""Written last to the output folder of a run, so a run is complete if this file exists."""


def check_processes(args: Any) -> None:
    """Refuse several processes that do not know of each other.

    Raises:
        ValueError: If a launcher has started several processes of which each would train alone on
            all pairs.
    """
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    # Without a GPU, transformers only warns of it.
    if launched > 1 and args.world_size == 1:
        raise ValueError(
            f"{launched} processes were started, but without a GPU each would train alone on all"
            " pairs: set use_cpu: true, so that they train together"
        )


def find_checkpoint(args: Any) -> str | None:
    """Return the checkpoint folder to resume from; None if there is none.

    The setting `true` means the last complete checkpoint in the output folder.

    Raises:
        ValueError: If the setting names something that is not a folder.
    """
    setting = args.resume_from_checkpoint
    if setting is None or str(setting).lower() == "false":
        return None
    if str(setting).lower() == "true":
        return _last_checkpoint(Path(str(args.output_dir)))
    if not Path(setting).is_dir():
        raise ValueError(
            f"resume_from_checkpoint: {setting} is not a folder; `true` resumes from the last one"
        )
    return setting


def _last_checkpoint(out: Path) -> str | None:
    steps = {
        int(path.name.rpartition("-")[2]): path
        for path in out.glob(f"{PREFIX_CHECKPOINT_DIR}-*")
        if path.name.rpartition("-")[2].isdecimal()
    }
    for step in sorted(steps, reverse=True):
        if is_complete(steps[step]):
            return str(steps[step])
        if os.environ.get("RANK", "0") == "0":
            tqdm.write(
                f"{steps[step]} is passed over: it is incomplete, or has no optimizer to resume "
                "from", file=sys.stderr,
            )  # fmt: skip
    return None


class _EvaluationRecorder(TrainerCallback):
    """Keep the metrics of the last evaluation, and its step."""

    def __init__(self) -> None:
        self.step: int | None = None
        self.metrics: dict[str, float] = {}

    def on_evaluate(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        self.step, self.metrics = state.global_step, more["metrics"]


class _AllStepsDone(Exception):
    """The checkpoint from which a run resumes is that of its last step."""


class _NoExtraStep(TrainerCallback):
    """End a resumed run before its first step if all are done; the Trainer would train one more."""

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step >= state.max_steps:
            raise _AllStepsDone


def train_and_evaluate(
    trainer: Any, *, checkpoint: str | None, evaluate: bool
) -> tuple[float, dict[str, float] | None]:
    """Train, and return the mean loss and the metrics of the final model.

    Args:
        trainer: A Trainer.
        checkpoint: Checkpoint folder to resume from; None to start from the beginning.
        evaluate: Whether there are rows to evaluate on; without them the metrics are None.

    Raises:
        Stopped: If a signal has stopped the run, and its checkpoint is saved.
    """
    # Not from the trainer's log: after resuming, that includes evaluations of an earlier process,
    # which may have had other rows.
    recorder = _EvaluationRecorder()
    trainer.add_callback(recorder)
    try:
        with stopping_at_signals(trainer) as stop:
            loss = _train(trainer, checkpoint)
            # The best checkpoint, if it is loaded at the end, need not be the last one.
            is_old = recorder.step != trainer.state.global_step
            is_stopping = stop is not None and stop.stopping is not None
            if evaluate and not is_stopping and (is_old or trainer.args.load_best_model_at_end):
                trainer.evaluate()
    except Stopped:
        end_training(trainer)
        raise
    return loss, recorder.metrics if evaluate else None


def _train(trainer: Any, checkpoint: str | None) -> float:
    """Train, and return the mean loss of all steps, also of those before the checkpoint."""
    if checkpoint is None:
        loss = trainer.train().training_loss
        is_stream = isinstance(trainer.train_dataset, IterableDataset)
        # The workers of a loader do not know of one another's rows.
        if is_stream and not trainer.state.global_step:
            raise ValueError("the train data set has no rows to train on: check its filters")
        return loss
    trainer.add_callback(_NoExtraStep)
    try:
        loss = trainer.train(resume_from_checkpoint=checkpoint).training_loss
    except _AllStepsDone:
        loss, trainer.is_in_train = 0.0, False
        if trainer.args.load_best_model_at_end and trainer.state.best_model_checkpoint:
            trainer._load_best_model()
    trainer.remove_callback(_NoExtraStep)
    return whole_mean_loss(trainer, loss, checkpoint)


@dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """A run whose data and model are loaded; created by `prepare_run`.

    Attributes:
        data: Settings of the data.
        model: Settings of the model and its adapter.
        trainer: Trainer that holds the loaded data and model.
        rows: The rows to train and to evaluate on.
        origin: What the model is trained on, as `data` in results.json; empty in all processes but
            the main one.
        checkpoint: Checkpoint folder to resume from; None to start from the beginning.
    """

    data: DataConfig
    model: ModelConfig
    trainer: PairDPOTrainer
    rows: RunData
    origin: Mapping[str, Any]
    checkpoint: str | None

    def train(self) -> Path:
        """Train and evaluate, write the model and its card, and results.json last.

        Returns:
            The path of results.json.
        """
        trainer, args = self.trainer, self.trainer.args
        out = Path(str(args.output_dir))
        results = out / RESULTS
        results.unlink(missing_ok=True)  # an earlier run may have written it
        loss, metrics = train_and_evaluate(
            trainer, checkpoint=self.checkpoint, evaluate=self.rows.test is not None
        )
        # Internal, because a call by a user pushes to the Hub, before the card is complete.
        trainer.save_model(args.output_dir, _internal_call=True)
        if trainer.accelerator.is_main_process:
            trainer.create_model_card(model_name=out.name)
            write_json(results, self._results(loss, metrics) | {"data": self.origin}, indent=2)
        if args.push_to_hub:
            push(trainer, out)
        end_training(trainer)
        return results

    def _results(self, loss: float, metrics: dict[str, float] | None) -> dict[str, Any]:
        """Return the results of the run and the settings that define it, as in results.json."""
        trainer, data, model, args = self.trainer, self.data, self.model, self.trainer.args
        local = Path(str(data.dataset)).exists()
        return {
            "train_loss": loss,
            "eval": metrics and metrics | {"step": trainer.state.global_step},
            "beta": self._describe_betas(),
            "pair_columns": args.pair_columns,
            "missing_values": args.missing_values,
            "model": display_name(str(model.model_name_or_path)),
            "model_revision": model.model_revision,
            "dataset": [source.label for source in data.datasets]
            or display_name(str(data.dataset)),
            "dataset_revision": None if local else data.dataset_revision,
            "streaming": data.streaming,
            "eval_dataset": data.eval_dataset and display_name(data.eval_dataset),
            "eval_revision": data.eval_revision,
            "held_out": data.held_out,
            "seed": args.seed,
            "processes": trainer.accelerator.num_processes,
            "distributed_type": trainer.accelerator.distributed_type.value,
            "parameters": count_parameters(trainer.model),
            "versions": library_versions(),
            "rows": self.count_rows(),
            "lengths": {name: asdict(report) for name, report in trainer.length_reports.items()},
        }

    def _describe_betas(self) -> dict[str, float] | None:
        """Return the mean, the lowest and the highest beta; None for those of a stream."""
        args, dataset = self.trainer.args, self.trainer.train_dataset
        if "beta" not in args.pair_columns:
            betas = [args.beta]
        elif isinstance(dataset, Dataset):
            betas = dataset["beta"][:]
        else:
            return None
        return {"mean": sum(betas) / len(betas), "min": min(betas), "max": max(betas)}

    def count_rows(self) -> dict[str, dict[str, Any]]:
        """Return, for each data set, the number of its rows, and of those left out and used.

        TRL drops rows whose prompt is longer than `max_length`, so fewer rows may have been used
        than the other counts suggest. The rows of a stream are not counted.
        """
        rows = self.rows
        available = {"train": rows.available, "eval": None if rows.test is None else len(rows.test)}
        used = {"train": self.trainer.train_dataset, "eval": self.trainer.eval_dataset}
        counts: dict[str, dict[str, Any]] = {
            name: {
                "available": number,
                "without_beta": self.trainer.rows_without_beta.get(name, 0),
                "refused": self.trainer.rows_refused.get(name, 0),
                "used": len(used[name]),
            }
            for name, number in available.items()
            if number is not None
        }
        if "train" in counts and rows.marks is not None:
            counts["train"] |= asdict(rows.marks)
            if len(rows.sources) > 1:
                counts["train"]["used_by_source"] = dict(
                    Counter(self.trainer.train_dataset[SOURCE][:])
                )
        return counts


def prepare_run(data: DataConfig, args: PairDPOConfig, model: ModelConfig) -> TrainingRun:
    """Load the data and the model of a run.

    Raises:
        ValueError: If a data set or the model cannot be used. The data are checked before the model
            is loaded.
    """
    quiet_libraries(args)
    check_processes(args)
    if data.streaming and args.max_steps <= 0:
        raise ValueError("streaming: true needs max_steps, because a stream has no number of rows")
    for name in ("eval_strategy", "save_strategy", "logging_strategy") if data.streaming else ():
        if getattr(args, name) == "epoch":
            raise ValueError(f"a stream has no end of an epoch: set {name} to steps, not to epoch")
    args.model_init_kwargs = model_options(model, args)
    needed = args.pair_columns if args.missing_values == "error" else []
    rows = load_data(data, needed=needed, seed=args.seed)
    # Before the model is loaded, so that a wrong path fails at once.
    checkpoint = find_checkpoint(args)
    with model_errors(model, args):
        trainer = PairDPOTrainer(
            model.model_name_or_path,
            args=args,
            train_dataset=rows.train,
            eval_dataset=rows.test,
            peft_config=get_peft_config(model),
        )
    use_console(trainer)
    guard_trackers(trainer)
    origin: dict[str, Any] = {}
    if trainer.accelerator.is_main_process:
        origin = trace_run(rows, args.pair_columns)
        model_facts = {
            "model_name": display_name(str(model.model_name_or_path)),
            "model_revision": model.model_revision,
        }
        facts = {"data": origin | {"held_out": data.held_out, "streaming": data.streaming}}
        describe_run(args, facts | model_facts | {"versions": library_versions()})
        # Before the training, because each checkpoint may push the card.
        trainer.card_section = card_section(origin, changed_settings((data, args, model)))
        trainer.card_datasets = hub_names([source.path for source in data.sources])
    return TrainingRun(
        data=data, model=model, trainer=trainer, rows=rows, origin=origin, checkpoint=checkpoint
    )


def trace_run(rows: RunData, columns: Sequence[str]) -> dict[str, Any]:
    """Return what a run is trained on, as `data` in results.json.

    Args:
        rows: The rows of the run.
        columns: The per-pair columns that are used.
    """
    traces = []
    for part in rows.sources:
        source = part.source
        trained = rows.train if len(rows.sources) == 1 else part.read
        origin = trace_rows(source.path, source.revision, trained, columns, read=part.read)
        more = {
            "config": source.name, "split": source.split, "columns": source.columns,
            "constants": source.constants or None, "weight": source.weight,
            "rows": {"available": part.available, "train": part.train, "eval": part.test},
        }  # fmt: skip
        traces.append((asdict(origin), more))
    if len(traces) == 1:
        origin, more = traces[0]
        return origin | {key: more[key] for key in ("columns", "constants") if more[key]}
    shared = ("pair_columns", "columns_sha256")
    return {
        "pair_columns": list(columns),
        "columns_sha256": hash_columns(rows.train, columns),
        "sources": [
            {key: value for key, value in origin.items() if key not in shared} | more
            for origin, more in traces
        ],
    }


@contextmanager
def model_errors(model: ModelConfig, args: Any) -> Iterator[None]:
    """Replace errors while a Trainer is created by ValueError with the name of the model."""
    try:
        yield
    # HTTPError includes connection failures and is not always an OSError.
    except (OSError, HTTPError) as error:
        # A Trainer that will push creates the repo first.
        repo = ", or its repo on the Hub cannot be created" if args.push_to_hub else ""
        raise ValueError(
            f"the model {model.model_name_or_path} cannot be read{repo}: {redact(one_line(error))}"
        ) from error


def model_options(model: ModelConfig, args: Any) -> dict[str, Any]:
    """Return the options to load a model with, for the arguments of a Trainer.

    A Trainer loads the model by its name and does not get the ModelConfig.
    """
    options: dict[str, Any] = {
        "revision": model.model_revision,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype,
        **(args.model_init_kwargs or {}),
    }
    quantization = get_quantization_config(model)
    if quantization is not None:
        options["quantization_config"] = quantization
    return options


def push(trainer: Any, out: Path) -> None:
    """Push a finished run to the Hub.

    Raises:
        OSError: If the push fails; the message says how to repeat it without training again.
    """
    name = trainer.hub_model_id or trainer.args.hub_model_id or "org/name"
    try:
        with hub_errors(name, kind="model"):
            trainer.push_to_hub()
    except (OSError, ValueError) as error:
        raise OSError(
            f"the run in {out} is complete, but its push to the Hub failed"
            f" ({redact(one_line(error))}): run `hf upload {name} {out}`"
        ) from error


def end_training(trainer: Any) -> None:
    """Shut down the trackers and the process group."""
    trainer.accelerator.end_training()
    if trainer.accelerator.num_processes > 1 and trainer.args.device.type == "cpu":
        # A gloo thread needs the interpreter lock to free its last tensor. Destroying the process
        # group before that waits for the thread while holding the lock: a deadlock.
        time.sleep(1)


def library_versions() -> dict[str, str]:
    """Return the versions of torch, transformers and trl."""
    return {module.__name__: module.__version__ for module in (torch, transformers, trl)}


def count_parameters(model: Any) -> dict[str, int]:
    """Return the number of the model's parameters, and of those that this process stores."""
    total = stored = 0
    for parameter in model.parameters():
        total += getattr(parameter, "ds_numel", parameter.numel())  # ZeRO-3 empties the parameter
        # FSDP2 makes a parameter a DTensor, ZeRO-3 keeps the shard in `ds_tensor`.
        if hasattr(parameter, "to_local"):
            shard = parameter.to_local()
        else:
            shard = getattr(parameter, "ds_tensor", parameter)
        stored += shard.numel()
    return {"all": total, "on_a_process": stored}
