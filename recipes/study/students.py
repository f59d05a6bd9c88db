"""Training: a student by a method, with the toolkit's own trainer, and MADPO's reward models."""

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

from labelled import LabelledPair
from language_model import DEVICE, PAD, loaded, tokenizer
from measures import Sides
from methods import Method
from sp2dpo.betas.scores import Scores
from sp2dpo.training.reward_model import prompt_fold
from sp2dpo.training.trainer import PairDPOConfig, PairDPOTrainer

COLUMNS = ("beta", "weight", "margin")
PLAIN: dict[str, Any] = {
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
    """PairDPOTrainer on pairs that come as tokens, with their reference log-probs."""

    def _prepare_dataset(self, dataset: Any, *rest: Any, **more: Any) -> Any:
        return dataset


def quiet() -> None:
    """Nothing is printed but what a person should read."""
    disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    for name in ("transformers", "trl", "accelerate"):
        logging.getLogger(name).setLevel(logging.ERROR)


def rows_of(
    pairs: Sequence[LabelledPair], reference: Sides, table: pl.DataFrame
) -> tuple[Dataset, list[str]]:
    """What a method trains on, and the columns that act.

    Args:
        pairs: sorted by pair_id.
        reference: their log-probs under the model that all start from.
        table: of `Method.table`, sorted likewise.
    """
    acting = [column for column in COLUMNS if column in table.columns]
    rows = []
    known = (side.tolist() for side in reference)
    for pair, chosen, rejected, said in zip(pairs, *known, table.to_dicts(), strict=True):
        if not said["keep"]:
            continue
        row = pair.row() | {"ref_chosen_logps": chosen, "ref_rejected_logps": rejected}
        if said.get("flip"):
            for one, other in (
                ("chosen", "rejected"), ("chosen_ids", "rejected_ids"),
                ("ref_chosen_logps", "ref_rejected_logps"),
            ):  # fmt: skip
                row[one], row[other] = row[other], row[one]
        rows.append(row | {column: said[column] for column in acting})
    return Dataset.from_list(rows), acting


class AtEpochs(TrainerCallback):
    """Calls a function with the model before the first step and after every epoch."""

    def __init__(self, look: Callable[[Any], None]) -> None:
        self._look = look

    def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Before the first step."""
        self._look(more["model"])

    def on_epoch_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """After each epoch."""
        self._look(more["model"])


def train(
    start: Path,
    data: Dataset,
    acting: list[str],
    method: Method,
    *,
    settings: dict[str, Any],
    seed: int,
    look: Callable[[Any], None],
    scratch: Path,
) -> Any:
    """The student that a method makes.

    Args:
        start: the model that all start from.
        data: of `rows_of`.
        acting: likewise.
        method: whose further settings are taken.
        settings: of the trainer, the same for all methods.
        seed: of the order of the pairs.
        look: is called with the model at the start and after every epoch.
        scratch: a folder that the trainer may write to.
    """
    args = PairDPOConfig(
        output_dir=str(scratch), pair_columns=acting, precompute_ref_log_probs=True, seed=seed,
        **PLAIN, **settings, **method.train,
    )  # fmt: skip
    model = loaded(start)
    trainer = StudyTrainer(
        model, args=args, train_dataset=data, processing_class=tokenizer(),
        callbacks=[AtEpochs(look)],
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return model.eval()


def reward_margins(
    start: Path,
    pairs: Sequence[LabelledPair],
    *,
    folds: int,
    settings: dict[str, Any],
    seed: int,
    scratch: Path,
) -> Scores:
    """H of every pair, from the reward model that has not seen its prompt.

    Each model starts from the one that all students start from, with one output, and is trained on
    the labels as they are (`recipes/reward.py` does the same).

    Args:
        start: the model that all start from.
        pairs: as labelled.
        folds: how many models.
        settings: of the trainer.
        seed: of the order.
        scratch: a folder that the trainer may write to.
    """
    rows = [pair.row() for pair in pairs]
    places = [prompt_fold(row["prompt"], folds) for row in rows]
    found = {}
    for fold in range(folds):
        torch.manual_seed(seed)
        model = LlamaForSequenceClassification.from_pretrained(start, num_labels=1)
        model.config.pad_token_id = PAD
        data = [
            {side: row["prompt_ids"] + row[side] for side in ("chosen_ids", "rejected_ids")}
            for row, place in zip(rows, places, strict=True)
            if place != fold
        ]
        args = RewardConfig(output_dir=str(scratch), seed=seed, **PLAIN, **settings)
        trainer = RewardTrainer(
            model, args=args, train_dataset=Dataset.from_list(data), processing_class=tokenizer()
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        out = [number for number, place in enumerate(places) if place == fold]
        h = _rewards(model, rows, out, "chosen_ids") - _rewards(model, rows, out, "rejected_ids")
        found |= {
            rows[number]["pair_id"]: margin for number, margin in zip(out, h.tolist(), strict=True)
        }
    table = pl.DataFrame({"pair_id": list(found), "reward_margin": list(found.values())})
    return Scores(table=table.sort("pair_id"), name="the reward models")


@torch.no_grad()
def _rewards(model: Any, rows: list[dict[str, Any]], which: list[int], side: str) -> torch.Tensor:
    model.eval()
    texts = [rows[number]["prompt_ids"] + rows[number][side] for number in which]
    width = max(map(len, texts))
    ids = torch.tensor([text + [PAD] * (width - len(text)) for text in texts], device=DEVICE)
    lengths = torch.tensor([len(text) for text in texts], device=DEVICE)
    mask = (torch.arange(width, device=DEVICE) < lengths[:, None]).long()
    return model(input_ids=ids, attention_mask=mask).logits.squeeze(-1).double().cpu()
