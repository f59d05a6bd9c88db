"""Train a reward model on the pairs of a data set, leaving out a fold of the prompts.

    accelerate launch --config_file recipes/accelerate/single.yaml recipes/reward.py \
        --config recipes/reward/tiny-demo.yaml --folds 3 --fold 0 --output_dir demo/rewards/fold-0

The keys are those below, those of TRL's RewardConfig and those of its ModelConfig. One run trains
one model; with K folds, K runs train K models, each without its fold, and `sp2dpo score --folds K
--model 'demo/rewards/fold-{fold}'` scores every pair by the model that has not seen its prompt. The
loss is -log s(h), h = r(chosen) - r(rejected). Rows that `keep: false` leaves out are left out here
too. It writes the model and, last of all, results.json to `output_dir`.
"""

import json
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
import trl
from trl import ModelConfig, RewardConfig, RewardTrainer, TrlParser, get_peft_config

from sp2dpo.training.columns import apply_marks
from sp2dpo.training.reward_model import prompt_fold
from train import display_name, one_line_errors, read, write


@dataclass
class FoldConfig:
    """What is trained on.

    Attributes:
        dataset: A folder built by `sp2dpo build`, or the name of a data set on the Hub.
        dataset_revision: The commit, tag or branch of a data set on the Hub.
        dataset_split: The split to read.
        folds: How many folds the prompts fall into; 1 trains on all.
        fold: The one that is left out and evaluated on, from 0.
        traceback: Show where an error arose, not its message alone.
    """

    dataset: str | None = field(default=None, metadata={"help": "A folder, or a name on the Hub."})
    dataset_revision: str | None = field(default=None, metadata={"help": "A commit on the Hub."})
    dataset_split: str = field(default="train", metadata={"help": "The split to read."})
    folds: int = field(default=1, metadata={"help": "How many folds; 1 trains on all."})
    fold: int = field(default=0, metadata={"help": "The fold that is left out, from 0."})
    traceback: bool = field(default=False, metadata={"help": "Show where an error arose."})

    def __post_init__(self) -> None:
        if self.folds < 1 or not 0 <= self.fold < self.folds:
            raise ValueError(f"fold {self.fold} of {self.folds}: folds count from 0")
        if not self.dataset:
            raise ValueError("dataset is missing: set it in the YAML file or give --dataset")


CONFIGS: Any = (FoldConfig, RewardConfig, ModelConfig)


def main(arguments: list[str]) -> None:
    """Parse, load, train, evaluate, save."""
    with one_line_errors(2, arguments):
        data, args, model = TrlParser(CONFIGS).parse_args_and_config(arguments)
    with one_line_errors(1, arguments):
        source = read(str(data.dataset), data.dataset_split, data.dataset_revision)
        rows, marks = apply_marks(source, name="train")
        rows = rows.select_columns(["prompt", "chosen", "rejected"])
        folds = [prompt_fold(prompt, data.folds) for prompt in rows["prompt"]]
        out = [row for row, fold in enumerate(folds) if fold == data.fold and data.folds > 1]
        left = [row for row, fold in enumerate(folds) if fold != data.fold or data.folds == 1]
        if not left or (data.folds > 1 and not out):
            raise ValueError(f"fold {data.fold} of {data.folds}: one side of {len(rows)} gets none")
        trainer = RewardTrainer(
            model.model_name_or_path,
            args=args,
            train_dataset=rows.select(left),
            eval_dataset=rows.select(out) if out else None,
            peft_config=get_peft_config(model),
        )
    outcome = Path(str(args.output_dir), "results.json")
    outcome.unlink(missing_ok=True)
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    evaluated = trainer.evaluate() if out else None
    trainer.save_model(args.output_dir)
    if trainer.accelerator.is_main_process:
        history: list[Any] = trainer.state.log_history
        found = {
            "train_loss": [entry["train_loss"] for entry in history if "train_loss" in entry][-1],
            "eval": evaluated,
            "fold": data.fold,
            "folds": data.folds,
            "rows": {"train": len(left), "eval": len(out), **(asdict(marks) if marks else {})},
            "model": model.model_name_or_path,
            "model_revision": model.model_revision,
            "dataset": display_name(str(data.dataset)),
            "dataset_revision": data.dataset_revision,
            "seed": args.seed,
            "versions": {one.__name__: one.__version__ for one in (torch, transformers, trl)},
        }
        write(json.loads(json.dumps(found)), outcome)
        print(f"{args.output_dir}: the reward model and results.json are written")
    trainer.accelerator.end_training()


if __name__ == "__main__":
    main(sys.argv[1:])
