"""Train students with the trainer of the toolkit, and the reward models for MADPO."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import torch
import transformers
from datasets import Dataset
from datasets.utils.logging import disable_progress_bar
from transformers import LlamaForSequenceClassification, PrinterCallback, TrainerCallback
from trl import RewardConfig, RewardTrainer

from language_model import DEVICE, PAD, load_model, tokenizer
from methods import Method
from metrics import PairLogProbs
from pairs import LabelledPair
from sp2dpo import Scores
from sp2dpo.training import PairDPOConfig, PairDPOTrainer, prompt_fold

COLUMNS = ("beta", "weight", "margin", "label_smoothing")
TRAINER_SETTINGS: dict[str, Any] = {
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.1,
    "save_strategy": "no",
    "logging_strategy": "no",
    "report_to": "none",
    "bf16": False,
    "gradient_checkpointing": False,
    "disable_tqdm": True,
    "max_length": None,
    "use_cpu": DEVICE == "cpu",
}


class StudyTrainer(PairDPOTrainer):
    """PairDPOTrainer for pairs that are already tokenized and have their reference log-probs."""

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset


def silence_libraries() -> None:
    """Turn off the progress bars and warnings of the training libraries."""
    disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    for name in ("transformers", "trl", "accelerate"):
        logging.getLogger(name).setLevel(logging.ERROR)


def build_training_set(
    pairs: Sequence[LabelledPair], reference: PairLogProbs, table: pl.DataFrame
) -> tuple[Dataset, list[str]]:
    """Return the rows that a method trains on, and the per-pair columns of its loss.

    Args:
        pairs: Pairs sorted by pair_id.
        reference: Their log-probs under the first model.
        table: The method's betas, weights and margins, sorted by pair_id.
    """
    columns = [column for column in COLUMNS if column in table.columns]
    rows = []
    log_probs = (side.tolist() for side in reference)
    for pair, chosen, rejected, values in zip(pairs, *log_probs, table.to_dicts(), strict=True):
        if not values["keep"]:
            continue
        row = pair.training_row() | {"ref_chosen_logps": chosen, "ref_rejected_logps": rejected}
        if values.get("flip"):
            for left, right in (
                ("chosen", "rejected"), ("chosen_ids", "rejected_ids"),
                ("ref_chosen_logps", "ref_rejected_logps"),
            ):  # fmt: skip
                row[left], row[right] = row[right], row[left]
        rows.append(row | {column: values[column] for column in columns})
    return Dataset.from_list(rows), columns


class EpochCallback(TrainerCallback):
    """Call a function with the model before the first step and after every epoch."""

    def __init__(self, on_epoch: Callable[[Any], None]) -> None:
        self._on_epoch = on_epoch

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Call the function before the first step."""
        self._on_epoch(kwargs["model"])

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Call the function after an epoch."""
        self._on_epoch(kwargs["model"])


def train_student(
    start: Path,
    data: Dataset,
    columns: list[str],
    method: Method,
    *,
    settings: dict[str, Any],
    seed: int,
    on_epoch: Callable[[Any], None],
    scratch: Path,
) -> Any:
    """Train a student with a method, and return it.

    Args:
        start: Folder of the first model.
        data: Rows that `build_training_set` returns.
        columns: Per-pair columns of the loss, which `build_training_set` returns, too.
        method: The method; its `train` settings are added to `settings`.
        settings: Trainer settings, the same for all methods.
        seed: Seed of the order of the pairs.
        on_epoch: Called with the model before the first step and after every epoch.
        scratch: Folder that the trainer may write to.
    """
    args = PairDPOConfig(
        output_dir=str(scratch), pair_columns=columns, precompute_ref_log_probs=True, seed=seed,
        **TRAINER_SETTINGS, **settings, **method.train,
    )  # fmt: skip
    model = load_model(start)
    trainer = StudyTrainer(
        model, args=args, train_dataset=data, processing_class=tokenizer(),
        callbacks=[EpochCallback(on_epoch)],
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return model.eval()


def score_out_of_fold(
    start: Path,
    pairs: Sequence[LabelledPair],
    *,
    folds: int,
    settings: dict[str, Any],
    seed: int,
    scratch: Path,
) -> Scores:
    """Return the reward margin h of every pair, by the model that was not trained on its prompt.

    Each reward model starts from the first model, with a head of one output, and is trained on the
    labels without corrections, as in `recipes/reward.py`.

    Args:
        start: Folder of the first model.
        pairs: Pairs with their labels.
        folds: Number of reward models.
        settings: Trainer settings.
        seed: Seed of the order of the pairs.
        scratch: Folder that the trainer may write to.
    """
    rows = [pair.training_row() for pair in pairs]
    row_folds = [prompt_fold(row["prompt"], folds) for row in rows]
    margins = {}
    for fold in range(folds):
        torch.manual_seed(seed)
        model = LlamaForSequenceClassification.from_pretrained(start, num_labels=1)
        model.config.pad_token_id = PAD
        data = [
            {side: row["prompt_ids"] + row[side] for side in ("chosen_ids", "rejected_ids")}
            for row, row_fold in zip(rows, row_folds, strict=True)
            if row_fold != fold
        ]
        args = RewardConfig(output_dir=str(scratch), seed=seed, **TRAINER_SETTINGS, **settings)
        trainer = RewardTrainer(
            model, args=args, train_dataset=Dataset.from_list(data), processing_class=tokenizer()
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        held_out = [row for row, row_fold in zip(rows, row_folds, strict=True) if row_fold == fold]
        h = _rewards(model, held_out, "chosen_ids") - _rewards(model, held_out, "rejected_ids")
        for row, margin in zip(held_out, h.tolist(), strict=True):
            margins[row["pair_id"]] = margin
    table = pl.DataFrame({"pair_id": list(margins), "reward_margin": list(margins.values())})
    return Scores(table=table.sort("pair_id"), name="the reward models")


@torch.no_grad()
def _rewards(model: Any, rows: list[dict[str, Any]], side: str) -> torch.Tensor:
    model.eval()
    texts = [row["prompt_ids"] + row[side] for row in rows]
    width = max(map(len, texts))
    ids = torch.tensor([text + [PAD] * (width - len(text)) for text in texts], device=DEVICE)
    lengths = torch.tensor([len(text) for text in texts], device=DEVICE)
    mask = (torch.arange(width, device=DEVICE) < lengths[:, None]).long()
    return model(input_ids=ids, attention_mask=mask).logits.squeeze(-1).double().cpu()
