"""Score pairs with a reward model: the margin h = r(chosen) - r(rejected).

With K folds, each pair is scored by the model that was trained without the fold of its prompt.
This is our choice; the released code of MADPO trains and scores on the same pairs.
"""

import hashlib
import json
import math
from collections.abc import Container, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import polars as pl
import torch
from datasets import Dataset
from tqdm import tqdm
from transformers import AutoModelForSequenceClassification

from sp2dpo.files import Journal
from sp2dpo.replacement import atomic_write
from sp2dpo.text import one_line
from sp2dpo.training.chat_templates import TEMPLATE_ERRORS, check_template, describe_template_error
from sp2dpo.training.model_files import context_length, read_model_files
from sp2dpo.training.rows import check_rows, name_row


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """Settings that define the scores; a run resumes only from a file with the same settings.

    Attributes:
        data: Name of the data set, recorded with the scores.
        model: A folder or a name on the Hub; with folds, it contains `{fold}`.
        revision: Revision of the model on the Hub.
        folds: Number of models; 1 for a single model.
        max_length: Maximum number of tokens of a conversation; longer ones lose their beginning.
    """

    data: str
    model: str
    revision: str | None
    folds: int
    max_length: int


@dataclass(frozen=True, kw_only=True)
class ScoreSummary:
    """Counts and statistics of a scored data set.

    Attributes:
        pairs: Number of distinct pairs.
        resumed: Number of pairs that an interrupted run had already scored.
        mean: Mean reward margin.
        minimum: Smallest reward margin.
        maximum: Largest reward margin.
        agreeing: Number of pairs whose chosen response has the higher reward.
        truncated: Number of pairs with a truncated conversation.
    """

    pairs: int
    resumed: int
    mean: float
    minimum: float
    maximum: float
    agreeing: int
    truncated: int


class RewardModel:
    """A sequence-classification model with one output, and its tokenizer.

    Raises:
        ValueError: If the model cannot be read, does not have one output, or has no chat template.
    """

    def __init__(self, name: str, revision: str | None, device: str | None) -> None:
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.name = name
        self.tokenizer, config = read_model_files(name, revision, trust_remote_code=False)
        self.context = context_length(config)
        try:
            self.model: Any = AutoModelForSequenceClassification.from_pretrained(
                name, revision=revision
            )
        except (OSError, ValueError) as error:
            raise ValueError(
                f"the reward model {name} cannot be read: {one_line(error)}"
            ) from error
        if self.model.config.num_labels != 1:
            raise ValueError(
                f"the model {name} has {self.model.config.num_labels} outputs, a reward model has 1"
            )
        if not self.tokenizer.chat_template:
            raise ValueError(f"the tokenizer of {name} has no chat template")
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        # transformers reads the reward at the last token that is not padding, and refuses a batch
        # if the configuration does not name the padding token.
        self.model.config.pad_token_id = self.tokenizer.pad_token_id
        self.tokenizer.padding_side = "right"
        self.model.to(device).eval()
        self._device = device

    def render(self, chat: list[dict[str, Any]], tools: Any, what: str) -> str:
        """Return the text of a conversation.

        Args:
            chat: The conversation.
            tools: Its tools; None for none.
            what: Name of the conversation in a message.

        Raises:
            ValueError: If the chat template refuses the conversation.
        """
        try:
            return self.tokenizer.apply_chat_template(chat, tools=tools, tokenize=False)
        except TEMPLATE_ERRORS as error:
            raise ValueError(
                f"the chat template of {self.name} refuses {what}:"
                f" {describe_template_error(error)}; leave it out, or choose a reward model whose"
                " template accepts it"
            ) from error

    def rewards(self, texts: list[str], max_length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the rewards, (B,) in float32, and whether each text was truncated, (B,)."""
        # The template has written the special tokens, so the tokenizer must not add them again.
        tokens = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        # The end is kept: it has the response, by which the two conversations differ.
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
    """Return the reward of each conversation.

    Args:
        name: The reward model: a folder, or a name on the Hub.
        revision: Revision of the model on the Hub.
        chats: Conversations.
        batch_size: Conversations per batch.
        max_length: Maximum number of tokens of a conversation; longer ones, and those longer than
            the model's context, lose their beginning.
        device: `cpu`, `cuda`...; None for a GPU if there is one.

    Raises:
        ValueError: Under the conditions of `RewardModel`, and if its chat template refuses a
            conversation.
    """
    model, scores = RewardModel(name, revision, device), []
    longest = min(max_length, model.context or max_length)
    # All of them first: scoring takes much longer than rendering.
    texts = [model.render(chat, None, f"conversation {n}") for n, chat in enumerate(chats, 1)]
    for start in tqdm(range(0, len(texts), batch_size), desc="scoring", disable=None):
        rewards, _ = model.rewards(texts[start : start + batch_size], longest)
        scores += rewards.tolist()
    return scores


def score_dataset(
    rows: Dataset, scoring: Scoring, out: Path, *, batch_size: int, device: str | None = None
) -> ScoreSummary:
    """Score every pair once and write a Parquet file.

    Its columns are pair_id, reward_margin, fold, and cut (whether a conversation was truncated).
    Safe to interrupt: scores are kept in OUT.unfinished, and the next call resumes from it.

    Args:
        rows: Columns pair_id, prompt, chosen and rejected, as conversations.
        scoring: Settings that define the scores.
        out: The Parquet file.
        batch_size: Conversations per batch.
        device: `cpu`, `cuda`...; None for a GPU if there is one.

    Raises:
        ValueError: If a column is missing, a row cannot be scored, a model is not a reward model,
            or OUT.unfinished belongs to other settings.
        OSError: If a file cannot be written.
    """
    missing = [n for n in ("pair_id", "prompt", "chosen", "rejected") if n not in rows.column_names]
    if missing:
        raise ValueError(f"{scoring.data} has no column {', '.join(missing)}")
    rows = check_rows(rows, scoring.data)
    if isinstance(rows[0]["prompt"], str):
        raise ValueError(
            f"the data set {scoring.data} holds plain texts, and a reward model scores"
            " conversations: let `sp2dpo build` write the data set"
        )
    # Resolved, so that two runs that name the file through different links share one journal.
    unfinished = out.resolve().with_name(f"{out.name}.unfinished")
    with Journal(unfinished, asdict(scoring)) as journal:
        resumed = len(journal.lines)
        for pair_id, margin, fold, cut in _score(rows, journal.lines, scoring, batch_size, device):
            journal.add(pair_id, reward_margin=margin, fold=fold, cut=cut)
        lines = journal.lines
    values = {"reward_margin": pl.Float64, "fold": pl.Int32, "cut": pl.Boolean}
    columns = {name: [line[name] for line in lines.values()] for name in values}
    # Sorted, because the journal is in the order of computation, by fold.
    table = pl.DataFrame(
        {"pair_id": list(lines), **columns}, schema={"pair_id": pl.String, **values}
    ).sort("pair_id")
    with atomic_write(out) as path:
        try:
            table.write_parquet(path, metadata={"sp2dpo_scores": json.dumps(asdict(scoring))})
        except pl.exceptions.PolarsError as error:  # a full disk, among others
            raise OSError(f"{out}: cannot be written: {error}") from error
    # Only now, so that a killed process leaves the scores in one of the two files.
    unfinished.unlink(missing_ok=True)
    margins: list[float] = columns["reward_margin"]
    return ScoreSummary(
        pairs=len(margins),
        resumed=resumed,
        mean=sum(margins) / max(1, len(margins)),
        minimum=min(margins, default=math.nan),
        maximum=max(margins, default=math.nan),
        agreeing=sum(margin > 0 for margin in margins),
        truncated=sum(columns["cut"]),
    )


def _score(
    rows: Dataset, done: Container[str], scoring: Scoring, batch_size: int, device: str | None
) -> Iterator[tuple[str, float, int, bool]]:
    """Yield pair_id, margin, fold and cut of each pair that is not done, one model at a time."""
    pending: dict[int, dict[str, int]] = {fold: {} for fold in range(scoring.folds)}
    for number, (pair_id, prompt) in enumerate(zip(rows["pair_id"], rows["prompt"], strict=True)):
        if pair_id not in done:
            pending[prompt_fold(prompt, scoring.folds)].setdefault(pair_id, number)
    pairs_per_batch = max(1, batch_size // 2)  # a pair is two conversations
    with tqdm(
        total=sum(map(len, pending.values())), desc="scoring", unit="pair", disable=None
    ) as bar:
        for fold, numbers in pending.items():
            # Do not load a model that has nothing to score.
            if not numbers:
                continue
            name = scoring.model.replace("{fold}", str(fold))
            order = list(numbers.values())
            _check_model(name, rows.select(order), scoring)
            model = RewardModel(name, scoring.revision, device)
            for start in range(0, len(order), pairs_per_batch):
                numbered = order[start : start + pairs_per_batch]
                pairs: list[Any] = list(rows.select(numbered))
                # First all chosen, then all rejected: the differences below rely on it.
                texts = [
                    model.render(
                        # Arrow adds a null key to a message if other messages have that key.
                        [
                            {key: value for key, value in turn.items() if value is not None}
                            for turn in [*pair["prompt"], *pair[side]]
                        ],
                        json.loads(pair["tools"]) if pair.get("tools") else None,
                        f"{name_row(pair, number)} of {scoring.data}",
                    )
                    for side in ("chosen", "rejected")
                    for number, pair in zip(numbered, pairs, strict=True)
                ]
                rewards, was_cut = model.rewards(texts, scoring.max_length)
                margins = (rewards[: len(pairs)] - rewards[len(pairs) :]).tolist()
                cut = (was_cut[: len(pairs)] | was_cut[len(pairs) :]).tolist()
                for pair, margin, lost in zip(pairs, margins, cut, strict=True):
                    yield pair["pair_id"], margin, fold, lost
                bar.update(len(pairs))


def _check_model(name: str, rows: Dataset, scoring: Scoring) -> None:
    """Raise ValueError if a model cannot score the rows; its weights are not needed for that."""
    tokenizer, config = read_model_files(name, scoring.revision, trust_remote_code=False)
    context = context_length(config)
    if context is not None and scoring.max_length > context:
        raise ValueError(
            f"max_length {scoring.max_length} is longer than the context of {name}, which has"
            f" {context} tokens: score with --max-length {context}"
        )
    if tokenizer.chat_template:  # `RewardModel` refuses a model without one
        check_template(
            tokenizer, rows, scoring.data, name,
            way_out="leave these rows out, or choose a reward model whose template accepts them",
        )  # fmt: skip


def hash_fraction(prompt: Any) -> float:
    """Return a number in [0, 1) for a prompt: the first 48 bits of its SHA-256.

    Args:
        prompt: A text or messages, as JSON values.
    """
    text = json.dumps(prompt, sort_keys=True, ensure_ascii=False)
    # 48 bits fit into a double exactly; 64 could be rounded up to 1.0, a fold that does not exist.
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48


def prompt_fold(prompt: Any, folds: int) -> int:
    """Return the number of the fold that a prompt belongs to, from 0.

    Args:
        prompt: A text or messages, as JSON values.
        folds: Number of folds.
    """
    return int(hash_fraction(prompt) * folds)
