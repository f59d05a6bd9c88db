"""A reward model's margin of every pair: h = r(chosen) - r(rejected).

With K folds each pair is scored by the model that was not trained on its prompt's fold (our choice:
the released code of MADPO trains and scores on the same pairs).
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import polars as pl
import torch
from datasets import Dataset
from tqdm import tqdm
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from sp2dpo.files import atomic_write


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """What defines the scores; a file that was begun under other settings is not gone on with.

    Attributes:
        data: what holds the pairs, for the record.
        model: a folder or a name on the Hub; with folds, `{fold}` in it.
        revision: of the model on the Hub.
        folds: how many models there are; 1 for a single one.
        max_length: tokens of a conversation; a longer one loses its beginning.
    """

    data: str
    model: str
    revision: str | None
    folds: int
    max_length: int


class RewardModel:
    """A sequence-classification model with one output, and its tokenizer.

    Raises:
        ValueError: it cannot be read, has another number of outputs, or no chat template.
    """

    def __init__(self, name: str, revision: str | None, device: str) -> None:
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
            self.model: Any = AutoModelForSequenceClassification.from_pretrained(
                name, revision=revision
            )
        except (OSError, ValueError) as error:
            raise ValueError(f"the reward model {name} cannot be read: {error}") from error
        if self.model.config.num_labels != 1:
            raise ValueError(
                f"the model {name} has {self.model.config.num_labels} outputs, a reward model has 1"
            )
        if not self.tokenizer.chat_template:
            raise ValueError(f"the tokenizer of {name} has no chat template")
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.model.config.pad_token_id = self.tokenizer.pad_token_id
        self.tokenizer.padding_side = "right"
        self.model.to(device).eval()
        self._device = device

    def rewards(
        self, conversations: list[list[dict[str, Any]]], max_length: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(B,) the reward of each conversation, in float32, and whether its beginning was cut."""
        texts = [self.tokenizer.apply_chat_template(said, tokenize=False) for said in conversations]
        tokens = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        batch = self.tokenizer.pad(
            {"input_ids": [ids[-max_length:] for ids in tokens]}, return_tensors="pt"
        ).to(self._device)
        with torch.inference_mode():
            rewards = self.model(**batch).logits[:, 0].float().cpu()
        return rewards, torch.tensor([len(ids) > max_length for ids in tokens])


def output_rewards(
    name: str,
    revision: str | None,
    chats: list[list[dict[str, Any]]],
    *,
    batch_size: int = 16,
    max_length: int = 2048,
    device: str | None = None,
) -> list[float]:
    """The reward of each conversation.

    Args:
        name: of the reward model: a folder, or a name on the Hub.
        revision: on the Hub.
        chats: conversations.
        batch_size: conversations at a time.
        max_length: tokens; a longer one loses its beginning.
        device: `cpu`, `cuda`...; a GPU if there is one where it is None.

    Raises:
        ValueError: as `RewardModel`.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    model, found = RewardModel(name, revision, device), []
    for start in tqdm(range(0, len(chats), batch_size), desc="scoring", disable=None):
        rewards, _ = model.rewards(chats[start : start + batch_size], max_length)
        found += rewards.tolist()
    return found


def score_dataset(
    rows: Dataset, scoring: Scoring, out: Path, *, batch_size: int, device: str | None = None
) -> int:
    """Scores every pair once, and writes scores.parquet.

    Its columns: pair_id, reward_margin, fold, and cut: whether a conversation lost its beginning.

    What was scored stands in OUT.unfinished until all of it is there, so that a run that was
    stopped goes on.

    Args:
        rows: with pair_id, prompt, chosen, rejected as conversations.
        scoring: what defines the scores.
        out: the Parquet file.
        batch_size: conversations at a time.
        device: `cpu`, `cuda`...; a GPU if there is one where it is None.

    Returns:
        How many pairs were scored before, in a run that was stopped.

    Raises:
        ValueError: a column is missing, a model is no reward model, or OUT.unfinished was begun
            with other settings.
        OSError: a file cannot be written.
    """
    missing = [n for n in ("pair_id", "prompt", "chosen", "rejected") if n not in rows.column_names]
    if missing:
        raise ValueError(f"{scoring.data} has no column {', '.join(missing)}")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    unfinished = out.with_name(f"{out.name}.unfinished")
    done = _begun(unfinished, scoring)
    before = len(done)
    for said in _scored(rows, done, scoring, batch_size, device):
        with unfinished.open("a", encoding="utf-8") as lines:
            if lines.tell() == 0:
                lines.write(json.dumps(asdict(scoring)) + "\n")
            lines.write("".join(json.dumps(one) + "\n" for one in said))
        done |= {one["pair_id"]: one for one in said}
    table = pl.DataFrame(
        list(done.values()),
        schema={
            "pair_id": pl.String,
            "reward_margin": pl.Float64,
            "fold": pl.Int32,
            "cut": pl.Boolean,
        },
    ).sort("pair_id")
    with atomic_write(out) as path:
        table.write_parquet(path, metadata={"sp2dpo_scores": json.dumps(asdict(scoring))})
    unfinished.unlink(missing_ok=True)
    return before


def _begun(path: Path, scoring: Scoring) -> dict[str, dict[str, Any]]:
    """The scores of a run that was stopped; a last line that broke off is cut off.

    Raises:
        ValueError: it was begun with other settings, or is something else.
    """
    if not path.exists():
        return {}
    content = path.read_bytes()
    try:
        head, *lines = [json.loads(line) for line in content.split(b"\n")[:-1]] or [None]
        done = {said["pair_id"]: said for said in lines}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} holds no scores; move it away") from error
    if head is not None and head != asdict(scoring):
        raise ValueError(f"{path} was begun with other settings: {head}; delete it, or go on there")
    with path.open("rb+") as file:
        file.truncate(content.rfind(b"\n") + 1)
    return done


def _scored(
    rows: Dataset, done: dict[str, Any], scoring: Scoring, batch_size: int, device: str
) -> Iterator[list[dict[str, Any]]]:
    """The scores of what is not done yet, in batches; one model at a time."""
    wanted: dict[int, dict[str, int]] = {fold: {} for fold in range(scoring.folds)}
    for number, (pair_id, prompt) in enumerate(zip(rows["pair_id"], rows["prompt"], strict=True)):
        if pair_id not in done:
            wanted[prompt_fold(prompt, scoring.folds)].setdefault(pair_id, number)
    left = sum(map(len, wanted.values()))
    with tqdm(total=left, desc="scoring", unit="pair", disable=None) as bar:
        for fold, pairs in wanted.items():
            if not pairs:
                continue
            name = scoring.model.replace("{fold}", str(fold))
            model = RewardModel(name, scoring.revision, device)
            numbers = list(pairs.values())
            for start in range(0, len(numbers), max(1, batch_size // 2)):
                some = rows.select(numbers[start : start + max(1, batch_size // 2)])
                yield _margins(some, fold, model.rewards, scoring.max_length)
                bar.update(len(some))


def _margins(
    some: Dataset,
    fold: int,
    rewards: Callable[..., tuple[torch.Tensor, torch.Tensor]],
    max_length: int,
) -> list[dict[str, Any]]:
    pairs: list[Any] = list(some)
    both = [
        [_plain(turn) for turn in [*pair["prompt"], *pair[side]]]
        for side in ("chosen", "rejected")
        for pair in pairs
    ]
    (chosen, rejected), cut = (one.view(2, -1) for one in rewards(both, max_length))
    margins, was_cut = (chosen - rejected).tolist(), cut.any(dim=0).tolist()
    return [
        {"pair_id": pair["pair_id"], "reward_margin": margin, "fold": fold, "cut": lost}
        for pair, margin, lost in zip(pairs, margins, was_cut, strict=True)
    ]


def _plain(turn: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in turn.items() if value is not None}


def locate_output(prompt: Any) -> float:
    """Return a prompt's place in [0, 1): the head of its SHA-256.

    Args:
        prompt: as JSON values: a text, or messages.
    """
    text = json.dumps(prompt, sort_keys=True, ensure_ascii=False)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48


def prompt_fold(prompt: Any, folds: int) -> int:
    """Return the fold of a prompt, from 0.

    Args:
        prompt: as in `place`.
        folds: how many there are.
    """
    return int(locate_output(prompt) * folds)
