"""Train a reward model on all prompts but those of one fold, and evaluate it on that fold."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from trl import ModelConfig, RewardConfig, RewardTrainer, get_peft_config

from sp2dpo.files import write_json
from sp2dpo.training.columns import MarkCounts, apply_marks
from sp2dpo.training.config import set_current_names
from sp2dpo.training.console import quiet_libraries, use_console
from sp2dpo.training.provenance import display_name, read_split
from sp2dpo.training.reward_model import prompt_fold
from sp2dpo.training.run import RESULTS, end_training, library_versions, train_and_evaluate


@dataclass
class FoldConfig:
    """The data to train a reward model on.

    Attributes:
        dataset: A folder built by `sp2dpo build`, or the name of a data set on the Hub.
        dataset_revision: Commit, tag or branch of a data set on the Hub.
        dataset_split: The split to read.
        folds: Number of folds of the prompts; 1 trains on all prompts.
        fold: The fold that is left out and evaluated on, from 0.
        traceback: Whether to show the traceback of an error, not only its message.
    """

    dataset: str | None = field(default=None, metadata={"help": "Folder, or Hub name."})
    dataset_revision: str | None = field(default=None, metadata={"help": "Its commit on the Hub."})
    dataset_split: str = field(default="train", metadata={"help": "The split to read."})
    folds: int = field(default=1, metadata={"help": "Number of folds; 1 trains on all prompts."})
    fold: int = field(default=0, metadata={"help": "The fold that is left out, from 0."})
    traceback: bool = field(default=False, metadata={"help": "Show the traceback of an error."})

    def __post_init__(self) -> None:
        if self.folds < 1 or not 0 <= self.fold < self.folds:
            raise ValueError(f"fold {self.fold} of {self.folds}: folds count from 0")
        if not self.dataset:
            raise ValueError("dataset is missing: set it in the YAML file or give --dataset")


@dataclass
class RewardModelConfig(RewardConfig):
    """TRL's RewardConfig, with the same defaults as PairDPOConfig to avoid library warnings."""

    def __post_init__(self) -> None:
        set_current_names(self)
        super().__post_init__()


@dataclass(frozen=True, kw_only=True)
class RewardRun:
    """A run whose data and model are loaded; created by `prepare_reward_run`.

    Attributes:
        data: Settings of the data, with the fold that is left out.
        model: Settings of the model and its adapter.
        trainer: Trainer that holds the loaded data and model.
        train_rows: Number of pairs to train on.
        eval_rows: Number of pairs of the fold that is left out.
        marks: Number of pairs that the columns `keep` and `flip` affected.
    """

    data: FoldConfig
    model: ModelConfig
    trainer: RewardTrainer
    train_rows: int
    eval_rows: int
    marks: MarkCounts | None

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
            trainer, checkpoint=args.resume_from_checkpoint, evaluate=self.eval_rows > 0
        )
        trainer.save_model(args.output_dir)
        if trainer.accelerator.is_main_process:
            rows = {"train": self.train_rows, "eval": self.eval_rows}
            content = {
                "train_loss": loss,
                "eval": metrics,
                "fold": data.fold,
                "folds": data.folds,
                "rows": rows | (asdict(self.marks) if self.marks else {}),
                "model": self.model.model_name_or_path,
                "model_revision": self.model.model_revision,
                "dataset": display_name(str(data.dataset)),
                "dataset_revision": data.dataset_revision,
                "seed": args.seed,
                "versions": library_versions(),
            }
            write_json(results, content, indent=2)
        end_training(trainer)
        return results


def prepare_reward_run(data: FoldConfig, args: RewardConfig, model: ModelConfig) -> RewardRun:
    """Load the data and the model of a run.

    Raises:
        ValueError: If the data set or the model cannot be used, or if one side of the split has no
            pair.
    """
    quiet_libraries(args)
    rows = read_split(str(data.dataset), data.dataset_split, data.dataset_revision)
    rows, marks = apply_marks(rows, name="train")
    # RewardTrainer subtracts a column `margin` in its own loss; ours belongs to DPO's.
    rows = rows.select_columns(["prompt", "chosen", "rejected"])
    folds = [prompt_fold(prompt, data.folds) for prompt in rows["prompt"]]
    is_out = [data.folds > 1 and fold == data.fold for fold in folds]
    if all(is_out) or (data.folds > 1 and not any(is_out)):
        raise ValueError(
            f"fold {data.fold} of {data.folds}: one side of the {len(rows)} pairs is empty"
        )
    train = rows.select([row for row, out in enumerate(is_out) if not out])
    test = rows.select([row for row, out in enumerate(is_out) if out])
    trainer = RewardTrainer(
        str(model.model_name_or_path),
        args=args,
        train_dataset=train,
        eval_dataset=test if len(test) else None,
        peft_config=get_peft_config(model),
    )
    use_console(trainer)
    return RewardRun(
        data=data, model=model, trainer=trainer, train_rows=len(train), eval_rows=len(test),
        marks=marks,
    )  # fmt: skip
