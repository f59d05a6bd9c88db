"""Run a student in this process with transformers."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

Take = Callable[..., None]
"""Called with the index of a prompt, its output, and the keywords finish_reason and tokens."""


class LocalModel:
    """A causal language model with a chat template.

    Args:
        name: A folder, or a name on the Hub.
        revision: Revision on the Hub.
        device: `cpu`, `cuda`...; None for a GPU if there is one.
        dtype: Data type, as transformers names it.

    Raises:
        ValueError: If the model cannot be read, or has no chat template.
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
        # Any token will do: padding is masked, and outputs are cut at their first end token.
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.tokenizer.padding_side = "left"  # new tokens follow the last column of a batch
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
        """Generate outputs for the pending chats, batch by batch.

        Args:
            chats: All chats.
            pending: Indices into `chats` of the chats that have no output yet.
            sampling: temperature (0 is greedy), max_tokens, and optionally top_p, top_k, seed and
                repetition_penalty.
            take: Called with each output.
            batch_size: Chats per batch.
        """
        numbers_left = set(pending)
        for first in range(0, len(chats), batch_size):
            numbers = range(first, min(first + batch_size, len(chats)))
            if numbers_left.isdisjoint(numbers):
                continue
            # Batches and their seeds do not depend on what is pending, so that an interrupted run
            # gives the same outputs as an uninterrupted one.
            # The factor keeps different seeds apart, since `first` is the index of a prompt.
            torch.manual_seed(sampling.get("seed", 0) * 1_000_003 + first)
            outputs = self._generate_batch([chats[number] for number in numbers], sampling)
            for number, (text, tokens, ended) in zip(numbers, outputs, strict=True):
                if number in numbers_left:
                    take(number, text, finish_reason="stop" if ended else "length", tokens=tokens)

    @torch.inference_mode()
    def _generate_batch(
        self, chats: list[list[dict[str, str]]], sampling: dict[str, Any]
    ) -> list[tuple[str, int, bool]]:
        """Return for each chat the text, its number of tokens, and whether the model ended it."""
        batch = self.tokenizer.apply_chat_template(
            chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
        ).to(self._device)
        # transformers refuses a temperature of 0, which is greedy decoding at a server.
        options: dict[str, Any] = {"do_sample": False}
        if sampling["temperature"]:
            # All are given: generate takes a missing one from the generation_config of the model,
            # where top_k and top_p need not be neutral.
            options = {
                "do_sample": True,
                "temperature": float(sampling["temperature"]),
                "top_p": float(sampling.get("top_p", 1.0)),
                # -1 means no limit at a vLLM server, as 0 does here.
                "top_k": max(0, sampling.get("top_k", 0)),
            }
        if "repetition_penalty" in sampling:
            options["repetition_penalty"] = float(sampling["repetition_penalty"])
        out = self.model.generate(
            **batch,
            max_new_tokens=sampling["max_tokens"],
            pad_token_id=self.tokenizer.pad_token_id,
            **options,
        )
        outputs = []
        ends = self._end_tokens()
        for row in out[:, batch["input_ids"].shape[1] :].tolist():
            stops = [position for position, token in enumerate(row) if token in ends]
            # A row that ended before the others is filled up with padding.
            tokens = row[: stops[0]] if stops else row
            text = self.tokenizer.decode(tokens, skip_special_tokens=True)
            # The end token counts, as it does in the usage that a server reports.
            outputs.append((text, len(tokens) + bool(stops), bool(stops)))
        return outputs

    def _end_tokens(self) -> set[int]:
        # A model may end its turn with a token that its tokenizer does not call the end.
        configured = self.model.generation_config.eos_token_id
        ends = {self.tokenizer.eos_token_id}
        return ends | (set(configured) if isinstance(configured, list) else {configured})
