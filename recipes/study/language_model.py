"""The models of the study: tiny Llamas over the words of the world, trained from scratch."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from world import (
    CAUTION,
    FORMS,
    HARM,
    LONGEST,
    ORNAMENTS,
    POLITE,
    PROMPTS,
    THINGS,
    VALUES,
    Prompt,
    World,
)

SPECIAL = ("<begin>", "<end>", "<pad>", "<answer>")
WORDS = (
    *SPECIAL, "tell", "user", "the", "is", POLITE, CAUTION, HARM, *THINGS, *VALUES, *FORMS,
    *ORNAMENTS, *(value for values in VALUES.values() for value in values),
)  # fmt: skip
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BEGIN, END, PAD, ANSWER = range(4)
IDS = {word: number for number, word in enumerate(WORDS)}


def tokenizer() -> PreTrainedTokenizerFast:
    """One token for a word."""
    made = Tokenizer(models.WordLevel(IDS, unk_token=SPECIAL[PAD]))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token=SPECIAL[BEGIN],
        eos_token=SPECIAL[END],
        pad_token=SPECIAL[PAD],
    )


def new_model(*, hidden: int, layers: int, seed: int) -> LlamaForCausalLM:
    """An untrained model.

    Args:
        hidden: its width, a multiple of 32.
        layers: decoder layers.
        seed: of its weights.
    """
    torch.manual_seed(seed)
    model: Any = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(WORDS),
            hidden_size=hidden,
            intermediate_size=2 * hidden,
            num_hidden_layers=layers,
            num_attention_heads=hidden // 32,
            num_key_value_heads=hidden // 32,
            max_position_embeddings=32,
            bos_token_id=BEGIN,
            eos_token_id=END,
            pad_token_id=PAD,
            tie_word_embeddings=False,
        )
    )
    return model.to(DEVICE)


def prompt_ids(prompt: Prompt) -> list[int]:
    """Tokens of a prompt; all prompts have the same number."""
    return [BEGIN, *(IDS[word] for word in prompt.words), ANSWER]


def response_ids(words: Sequence[str]) -> list[int]:
    """Tokens of a response that ends."""
    return [*(IDS[word] for word in words), END]


def fine_tune(
    model: LlamaForCausalLM, world: World, *, steps: int, batch: int, lr: float, seed: int
) -> LlamaForCausalLM:
    """Teaches a model to answer as the writer does (SFT, AdamW, a cosine to 0)."""
    draw = np.random.default_rng([seed, 2])
    optimiser = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: 0.5 * (1 + math.cos(math.pi * step / steps))
    )
    model.train()
    for _ in range(steps):
        prompts = [PROMPTS[number] for number in draw.integers(len(PROMPTS), size=batch)]
        answers = [response_ids(world.write(prompt, draw)) for prompt in prompts]
        ids, mask = padded([prompt_ids(one) for one in prompts], answers)
        logits = model(input_ids=ids).logits[:, :-1]
        labels = torch.where(mask, ids, -100)[:, 1:]
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return model.eval()


def padded(
    prompts: Sequence[list[int]], responses: Sequence[list[int]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, T) tokens, padded behind, and (B, T) which of them are a response's."""
    rows = [[*prompt, *response] for prompt, response in zip(prompts, responses, strict=True)]
    width = max(map(len, rows))
    ids = torch.tensor([row + [PAD] * (width - len(row)) for row in rows], device=DEVICE)
    places = torch.arange(width, device=DEVICE)
    first = torch.tensor([len(prompt) for prompt in prompts], device=DEVICE)[:, None]
    last = torch.tensor([len(row) for row in rows], device=DEVICE)[:, None]
    return ids, (places >= first) & (places < last)


@torch.no_grad()
def log_probs(
    model: Any, prompts: Sequence[list[int]], responses: Sequence[list[int]], *, batch: int = 512
) -> torch.Tensor:
    """(N,) log-probability of each response, in nats, summed over its tokens; in double."""
    found = []
    for start in range(0, len(prompts), batch):
        ids, mask = padded(prompts[start : start + batch], responses[start : start + batch])
        logits = model(input_ids=ids).logits[:, :-1]
        own = logits.log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
        found.append((own * mask[:, 1:]).double().sum(1).cpu())
    return torch.cat(found)


@torch.no_grad()
def sample(
    model: Any, prompts: Sequence[Prompt], *, temperature: float, seed: int
) -> list[list[int]]:
    """One response for each prompt: its tokens, END last where it ends.

    Args:
        model: in evaluation mode.
        prompts: any number.
        temperature: 0 takes the most probable token.
        seed: of the draws.
    """
    torch.manual_seed(seed)
    ids = torch.tensor([prompt_ids(prompt) for prompt in prompts], device=DEVICE)
    way: dict[str, Any] = (
        {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
        if temperature
        else {"do_sample": False}
    )
    out = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=LONGEST + 1, **way
    )
    return [_until_end(row) for row in out[:, ids.shape[1] :].tolist()]


def _until_end(row: list[int]) -> list[int]:
    return row[: row.index(END) + 1] if END in row else row


def words_of(response: Sequence[int]) -> tuple[list[str], bool]:
    """The words of a response, and whether it ends."""
    ended = bool(response) and response[-1] == END
    return [WORDS[number] for number in (response[:-1] if ended else response)], ended


def loaded(folder: Path) -> LlamaForCausalLM:
    """Reads a model, to be evaluated."""
    model: Any = LlamaForCausalLM.from_pretrained(folder)
    return model.to(DEVICE).eval()
