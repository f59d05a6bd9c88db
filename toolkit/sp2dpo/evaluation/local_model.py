"""Run a student in this process with transformers."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from sp2dpo.text import one_line
from sp2dpo.training.chat_templates import TEMPLATE_ERRORS, describe_template_error
from sp2dpo.training.model_files import context_length, read_model_files

Take = Callable[..., None]
"""Called with the index of a prompt, its output, and the keywords finish_reason and tokens."""


class LocalModel:
    """A causal language model with a chat template; its weights are loaded by `generate`.

    Args:
        name: A folder, or a name on the Hub.
        revision: Revision on the Hub.
        device: `cpu`, `cuda`...; None for a GPU if there is one.
        dtype: Data type, as transformers names it.

    Raises:
        ValueError: If the model cannot be read, or has no chat template.
    """

    def __init__(self, name: str, revision: str | None, device: str | None, dtype: str) -> None:
        self._name, self._revision, self._dtype = name, revision, dtype
        self._device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.tokenizer, config = read_model_files(name, revision, trust_remote_code=False)
        self._context = context_length(config)
        if not self.tokenizer.chat_template:
            raise ValueError(f"the tokenizer of {name} has no chat template")
        # Any token will do: padding is masked, and outputs are cut at their first end token.
        self._pad = next(
            (
                token
                for token in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id)
                if token is not None
            ),
            0,
        )

    def check(self, chats: list[list[dict[str, str]]], max_tokens: int) -> None:
        """Check that the model can answer the chats, without its weights.

        Args:
            chats: The chats.
            max_tokens: Tokens of the longest output.

        Raises:
            ValueError: If the chat template refuses a chat, or if a chat and its output are longer
                than the model's context; the message names the first prompt.
        """
        for number, chat in enumerate(chats, 1):
            try:
                length = len(self._tokens(chat))
            except TEMPLATE_ERRORS as error:
                roles = ", ".join(turn["role"] for turn in chat)
                raise ValueError(
                    f"the chat template of {self._name} refuses prompt {number} of {len(chats)},"
                    f" with the roles {roles}: {describe_template_error(error)}; leave `system` out"
                    " of the student's file if its role is the reason, or choose another model"
                ) from error
            if self._context is not None and length + max_tokens > self._context:
                raise ValueError(
                    f"prompt {number} of {len(chats)} has {length} tokens and max_tokens is"
                    f" {max_tokens}: together more than the context of {self._name}, which has"
                    f" {self._context} tokens; lower max_tokens or leave the prompt out"
                )

    def _tokens(self, chat: list[dict[str, str]]) -> list[int]:
        # The template has written the special tokens, so the tokenizer must not add them again.
        text = self.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _load(self) -> Any:
        try:
            model: Any = AutoModelForCausalLM.from_pretrained(
                self._name, revision=self._revision, dtype=self._dtype
            )
        except (OSError, ValueError) as error:
            raise ValueError(f"the model {self._name} cannot be read: {one_line(error)}") from error
        configured = model.generation_config.eos_token_id
        # A model may end its turn with a token that its tokenizer does not call the end.
        ends = {*(configured if isinstance(configured, list) else [configured])}
        self._ends = (ends | {self.tokenizer.eos_token_id}) - {None}
        # All other values of a model's own configuration, such as a repetition penalty, would
        # change how it samples without being recorded.
        model.generation_config = GenerationConfig(
            pad_token_id=self._pad, eos_token_id=sorted(self._ends) or None
        )
        return model.to(self._device).eval()

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

        Raises:
            ValueError: If the model cannot be read or cannot answer a chat; see `check`.
        """
        self.check(chats, sampling["max_tokens"])
        self.model = self._load()
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
        tokens = [self._tokens(chat) for chat in chats]
        width = max(map(len, tokens))
        # On the left, because new tokens follow the last column of a batch.
        inputs = torch.tensor([[self._pad] * (width - len(ids)) + ids for ids in tokens])
        mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in tokens])
        # transformers refuses a temperature of 0, which is greedy decoding at a server.
        options: dict[str, Any] = {"do_sample": False}
        if sampling["temperature"]:
            # All are given, because the defaults of transformers are not neutral.
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
            input_ids=inputs.to(self._device),
            attention_mask=mask.to(self._device),
            max_new_tokens=sampling["max_tokens"],
            **options,
        )
        outputs = []
        for row in out[:, width:].tolist():
            stops = [position for position, token in enumerate(row) if token in self._ends]
            # A row that ended before the others is filled up with padding.
            ids = row[: stops[0]] if stops else row
            text = self.tokenizer.decode(ids, skip_special_tokens=True)
            # The end token counts, as it does in the usage that a server reports.
            outputs.append((text, len(ids) + bool(stops), bool(stops)))
        return outputs
