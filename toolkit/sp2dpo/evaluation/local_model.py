"""A student that transformers runs in this process."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

Take = Callable[..., None]
"""Is handed the number of a prompt, its output, and by name finish_reason and tokens."""


class LocalModel:
    """A causal language model with a chat template.

    Args:
        name: a folder, or a name on the Hub.
        revision: on the Hub.
        device: `cpu`, `cuda`...; None: a GPU if there is one.
        dtype: as transformers names it.

    Raises:
        ValueError: it cannot be read, or has no chat template.
    """

    def __init__(self, name: str, revision: str | None, device: str | None, dtype: str) -> None:
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(name, revision=revision)
            self.model: Any = AutoModelForCausalLM.from_pretrained(
                name, revision=revision, dtype=dtype
            )
        except (OSError, ValueError) as error:
            raise ValueError(f"the model {name} cannot be read: {error}") from error
        if not self.tokenizer.chat_template:
            raise ValueError(f"the tokenizer of {name} has no chat template")
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.tokenizer.padding_side = "left"
        self.model.to(device).eval()
        self._device = device

    def generate(
        self,
        chats: list[list[dict[str, str]]],
        pending: Iterable[int],
        sampling: dict[str, Any],
        take: Take,
        *,
        batch_size: int,
    ) -> None:
        """Answers the chats that are pending, batch by batch.

        Batches are always cut at the same places and seeded by their number, so that a run that was
        stopped gives what an unbroken one gives.

        Args:
            chats: all of them.
            pending: numbers of those that are to be answered.
            sampling: temperature (0 is greedy), max_tokens, and top_p, top_k, seed,
                repetition_penalty where they are said.
            take: is handed each output.
            batch_size: chats at a time.
        """
        wanted = set(pending)
        for first in range(0, len(chats), batch_size):
            numbers = range(first, min(first + batch_size, len(chats)))
            if wanted.isdisjoint(numbers):
                continue
            torch.manual_seed(sampling.get("seed", 0) * 1_000_003 + first)
            some = self._answers([chats[number] for number in numbers], sampling)
            for number, (text, tokens, ended) in zip(numbers, some, strict=True):
                if number in wanted:
                    take(number, text, finish_reason="stop" if ended else "length", tokens=tokens)

    @torch.inference_mode()
    def _answers(
        self, chats: list[list[dict[str, str]]], sampling: dict[str, Any]
    ) -> list[tuple[str, int, bool]]:
        batch = self.tokenizer.apply_chat_template(
            chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
        ).to(self._device)
        way: dict[str, Any] = {"do_sample": False}
        if sampling["temperature"]:
            way = {
                "do_sample": True,
                "temperature": float(sampling["temperature"]),
                "top_p": float(sampling.get("top_p", 1.0)),
                "top_k": max(0, sampling.get("top_k", 0)),
            }
        if "repetition_penalty" in sampling:
            way["repetition_penalty"] = float(sampling["repetition_penalty"])
        out = self.model.generate(
            **batch,
            max_new_tokens=sampling["max_tokens"],
            pad_token_id=self.tokenizer.pad_token_id,
            **way,
        )
        found = []
        ends = self._ends()
        for row in out[:, batch["input_ids"].shape[1] :].tolist():
            stops = [place for place, token in enumerate(row) if token in ends]
            said = row[: stops[0]] if stops else row
            text = self.tokenizer.decode(said, skip_special_tokens=True)
            found.append((text, len(said) + bool(stops), bool(stops)))
        return found

    def _ends(self) -> set[int]:
        said = self.model.generation_config.eos_token_id
        ends = {self.tokenizer.eos_token_id}
        return ends | (set(said) if isinstance(said, list) else {said})
