"""Train a reward model on all prompts but those of one fold, and evaluate it on that fold."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from trl import ModelConfig, RewardConfig, RewardTrainer, get_peft_config

from sp2dpo.files import write_json
from sp2dpo.training.card import (
    DataCardMixin,
    card_section,
    changed_settings,
    remove_secrets,
)
from sp2dpo.training.chat_templates import (
    REFUSALS,
    TEMPLATE_ERRORS,
    check_template,
    drop_refused,
    warn_of_tools,
)
from sp2dpo.training.columns import MarkCounts, apply_marks, choose_column
from sp2dpo.training.config import set_current_names
from sp2dpo.training.console import quiet_libraries, use_console
from sp2dpo.training.lengths import check_lengths
from sp2dpo.training.model_files import context_length, read_model_files
from sp2dpo.training.provenance import display_name, hub_names, read_split, trace_rows
from sp2dpo.training.reward_model import hash_fraction
from sp2dpo.training.rows import IDS, ROW, TEXTS, check_rows, number_rows
from sp2dpo.training.run import (
    RESULTS,
    check_processes,
    end_training,
    find_checkpoint,
    library_versions,
    model_errors,
    model_options,
    push,
    train_and_evaluate,
)
from sp2dpo.training.trackers import describe_run, guard_trackers


@dataclass
class FoldConfig:
    """The data to train a reward model on.

    Attributes:
        dataset: A folder built by `sp2dpo build`, a .jsonl, .jsonl.gz or .parquet file, or the name
            of a data set on the Hub.
        dataset_revision: Commit, tag or branch of a data set on the Hub.
        dataset_split: The split to read.
        folds: Number of folds of the prompts; 1 trains on all prompts but those held out.
        fold: The fold that is left out and evaluated on, from 0.
        held_out: With one fold, share of the prompts, in [0, 0.9], to evaluate on instead.
        traceback: Whether to show the traceback of an error, not only its message.
    """

    dataset: str | None = field(default=None, metadata={"help": "Folder, file, or Hub name."})
    dataset_revision: str | None = field(default=None, metadata={"help": "Its commit on the Hub."})
    dataset_split: str = field(default="train", metadata={"help": "The split to read."})
    folds: int = field(default=1, metadata={"help": "Number of folds; 1 trains on all prompts."})
    fold: int = field(default=0, metadata={"help": "The fold that is left out, from 0."})
    held_out: float = field(default=0.0, metadata={"help": "Share of the prompts to evaluate on."})
    traceback: bool = field(default=False, metadata={"help": "Show the traceback of an error."})

    def __post_init__(self) -> None:
        if self.folds < 1 or not 0 <= self.fold < self.folds:
            raise ValueError(f"fold {self.fold} of {self.folds}: folds count from 0")
        if not 0 <= self.held_out <= 0.9:
            raise ValueError(f"held_out must be in [0, 0.9], not {self.held_out}")
        if self.held_out and self.folds > 1:
            raise ValueError("held_out needs folds: 1, since a fold is held out already")
        if not self.dataset:
            raise ValueError("dataset is missing: set it in the YAML file or give --dataset")


@dataclass
class RewardModelConfig(RewardConfig):
    """TRL's RewardConfig, with the same defaults as PairDPOConfig to avoid library warnings.

    Attributes:
        template_errors: How to treat pairs that the chat template of the model refuses: `error` or
            `drop` (leave the pair out, with a warning).

    Raises:
        ValueError: On a bad value.
    """

    template_errors: str = field(
        default="error",
        metadata={"help": "Pairs that the chat template refuses: error, or drop."},
    )

    def __post_init__(self) -> None:
        choose_column(self.template_errors, REFUSALS, "template_errors")
        set_current_names(self)
        super().__post_init__()

    def to_dict(self) -> dict[str, Any]:
        """Return the settings by key, for trackers, and the facts that `describe_run` adds."""
        settings = super().to_dict()
        if isinstance(settings.get("model_init_kwargs"), dict):
            settings["model_init_kwargs"] = remove_secrets(settings["model_init_kwargs"])
        return settings | getattr(self, "run_facts", {})


class CheckedRewardTrainer(DataCardMixin, RewardTrainer):
    """RewardTrainer that names the row that cannot be tokenised or trained on.

    Args:
        model: Name of the model.
        context: Longest sequence of the model in tokens; None if there is no limit.
        options: Arguments of RewardTrainer.
    """

    def __init__(self, model: str, *, context: int | None, **options: Any) -> None:
        self._name_in_messages, self._context = model, context
        super().__init__(model, **options)

    def _prepare_dataset(
        self, dataset: Any, processing_class: Any, args: Any, dataset_name: str
    ) -> Any:
        if getattr(args, "template_errors", "error") == "drop":
            dataset = drop_refused(processing_class, dataset, dataset_name, self._name_in_messages)
        try:
            prepared = super()._prepare_dataset(dataset, processing_class, args, dataset_name)
        except TEMPLATE_ERRORS:
            name = self._name_in_messages
            check_template(processing_class, dataset, dataset_name, name, every_row=True)
            raise
        check_lengths(
            dataset, prepared, dataset_name, context=self._context, longest=args.max_length,
            limit=f"a conversation is longer than max_length {args.max_length}; raise max_length",
        )  # fmt: skip
        return prepared


@dataclass(frozen=True, kw_only=True)
class RewardRun:
    """A run whose data and model are loaded; created by `prepare_reward_run`.

    Attributes:
        data: Settings of the data, with the fold that is left out.
        model: Settings of the model and its adapter.
        trainer: Trainer that holds the loaded data and model.
        train_rows: Number of pairs to train on.
        eval_rows: Number of pairs of the fold that is left out, or that are held out.
        marks: Number of pairs that the columns `keep` and `flip` affected among those to train on.
        origin: What the model is trained on, as `data` in results.json; empty in all processes but
            the main one.
        checkpoint: Checkpoint folder to resume from; None to start from the beginning.
    """

    data: FoldConfig
    model: ModelConfig
    trainer: CheckedRewardTrainer
    train_rows: int
    eval_rows: int
    marks: MarkCounts | None
    origin: Mapping[str, Any]
    checkpoint: str | None

    def train(self) -> Path:
        """Train, evaluate on the fold that was left out, write the model, and results.json last.

        Returns:
            The path of results.json.
        """
        trainer, data = self.trainer, self.data
        args: Any = trainer.args
        results = Path(str(args.output_dir), RESULTS)
        results.unlink(missing_ok=True)  # an earlier run may have written it
        loss, metrics = train_and_evaluate(
            trainer, checkpoint=self.checkpoint, evaluate=self.eval_rows > 0
        )
        trainer.save_model(args.output_dir, _internal_call=True)  # see `run.TrainingRun.train`
        if trainer.accelerator.is_main_process:
            trainer.create_model_card(model_name=results.parent.name)
            rows = {"train": self.train_rows, "eval": self.eval_rows}
            content = {
                "train_loss": loss,
                "eval": metrics and metrics | {"step": trainer.state.global_step},
                "fold": data.fold,
                "folds": data.folds,
                "held_out": data.held_out,
                "rows": rows | (asdict(self.marks) if self.marks else {}),
                "model": display_name(str(self.model.model_name_or_path)),
                "model_revision": self.model.model_revision,
                "dataset": display_name(str(data.dataset)),
                "dataset_revision": data.dataset_revision,
                "seed": args.seed,
                "versions": library_versions(),
                "data": self.origin,
            }
            write_json(results, content, indent=2)
        if args.push_to_hub:
            push(trainer, results.parent)
        end_training(trainer)
        return results


def prepare_reward_run(data: FoldConfig, args: RewardConfig, model: ModelConfig) -> RewardRun:
    """Load the data and the model of a run.

    Raises:
        ValueError: If the data set or the model cannot be used, or if one side of the split has no
            pair.
    """
    quiet_libraries(args)
    check_processes(args)
    source = str(data.dataset)
    read = read_split(source, data.dataset_split, data.dataset_revision)
    rows = check_rows(number_rows(read), "train")
    if "prompt" not in rows.column_names:
        raise ValueError(f"a fold needs a column prompt, {data.dataset} has none")
    shares = [hash_fraction(prompt) for prompt in rows["prompt"]]
    if data.folds > 1:
        is_out = [int(share * data.folds) == data.fold for share in shares]
        what = f"fold {data.fold} of {data.folds}"
    else:
        is_out = [share < data.held_out for share in shares]
        what = f"held_out {data.held_out}"
    if all(is_out) or (not any(is_out) and (data.folds > 1 or data.held_out)):
        raise ValueError(f"{what}: one side of the {len(rows)} pairs is empty")
    train = rows.select([row for row, out in enumerate(is_out) if not out])
    test = rows.select([row for row, out in enumerate(is_out) if out])
    # Not to the pairs that are evaluated on, so that models of several arms can be compared.
    train, marks = apply_marks(train, name="train")
    # RewardTrainer subtracts a column `margin` in its own loss; ours belongs to DPO's.
    used = [name for name in (*TEXTS, "tools", *IDS, ROW) if name in rows.column_names]
    train, test = train.select_columns(used), test.select_columns(used)
    checkpoint = find_checkpoint(args)
    name = str(model.model_name_or_path)
    tokenizer, config = read_model_files(
        name,
        model.model_revision,
        trust_remote_code=bool(getattr(args, "trust_remote_code", False)),
    )
    for part, dataset in (("train", train), ("eval", test)):
        if len(dataset) and getattr(args, "template_errors", "error") == "error":
            warn_of_tools(check_template(tokenizer, dataset, part, name), part, name)
    args.model_init_kwargs = model_options(model, args)
    with model_errors(model, args):
        trainer = CheckedRewardTrainer(
            name,
            context=context_length(config),
            args=args,
            train_dataset=train,
            eval_dataset=test if len(test) else None,
            peft_config=get_peft_config(model),
        )
    use_console(trainer)
    guard_trackers(trainer)
    origin: dict[str, Any] = {}
    if trainer.accelerator.is_main_process:
        origin = asdict(trace_rows(source, data.dataset_revision, train, [], read=read))
        del origin["pair_columns"]  # RewardTrainer has none
        folds = {"fold": data.fold, "folds": data.folds, "held_out": data.held_out}
        facts = origin | folds | {"rows": len(train)}
        describe_run(args, {"data": facts, "model_name": display_name(name)})
        # Before the training, because each checkpoint may push the card.
        trainer.card_section = card_section(origin, changed_settings((data, args, model)))
        trainer.card_datasets = hub_names([source])
    return RewardRun(
        data=data, model=model, trainer=trainer, train_rows=len(train), eval_rows=len(test),
        marks=marks, origin=origin, checkpoint=checkpoint,
    )  # fmt: skip
