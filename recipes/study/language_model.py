"""Build, train and sample the models of the study: tiny Llamas over the words of the world."""

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
IDS = {word: token for token, word in enumerate(WORDS)}


def tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token for each word."""
    words = Tokenizer(models.WordLevel(IDS, unk_token=SPECIAL[PAD]))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        bos_token=SPECIAL[BEGIN],
        eos_token=SPECIAL[END],
        pad_token=SPECIAL[PAD],
    )


def new_model(*, hidden: int, layers: int, seed: int) -> LlamaForCausalLM:
    """Return an untrained model.

    Args:
        hidden: Width of the model, a multiple of 32.
        layers: Number of decoder layers.
        seed: Seed of the weights.
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
    """Return the tokens of a prompt; all prompts have the same number."""
    return [BEGIN, *(IDS[word] for word in prompt.words), ANSWER]


def response_ids(words: Sequence[str]) -> list[int]:
    """Return the tokens of a complete response."""
    return [*(IDS[word] for word in words), END]


def fine_tune(
    model: LlamaForCausalLM, world: World, *, steps: int, batch: int, lr: float, seed: int
) -> LlamaForCausalLM:
    """Train a model on texts of `World.write` (SFT with AdamW and a cosine schedule to 0)."""
    draw = np.random.default_rng([seed, 2])
    optimiser = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: 0.5 * (1 + math.cos(math.pi * step / steps))
    )
    model.train()
    for _ in range(steps):
        prompts = [PROMPTS[index] for index in draw.integers(len(PROMPTS), size=batch)]
        responses = [response_ids(world.write(prompt, draw)) for prompt in prompts]
        ids, mask = pad([prompt_ids(prompt) for prompt in prompts], responses)
        logits = model(input_ids=ids).logits[:, :-1]
        labels = torch.where(mask, ids, -100)[:, 1:]
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return model.eval()


def pad(
    prompts: Sequence[list[int]], responses: Sequence[list[int]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the tokens, padded at the end, and the mask of the response tokens; both (B, T)."""
    rows = [[*prompt, *response] for prompt, response in zip(prompts, responses, strict=True)]
    width = max(map(len, rows))
    ids = torch.tensor([row + [PAD] * (width - len(row)) for row in rows], device=DEVICE)
    positions = torch.arange(width, device=DEVICE)
    first = torch.tensor([len(prompt) for prompt in prompts], device=DEVICE)[:, None]
    last = torch.tensor([len(row) for row in rows], device=DEVICE)[:, None]
    return ids, (positions >= first) & (positions < last)


@torch.no_grad()
def log_probs(
    model: Any, prompts: Sequence[list[int]], responses: Sequence[list[int]], *, batch: int = 512
) -> torch.Tensor:
    """Return the log-probability of each response, (N,), in nats and double, summed over tokens."""
    sums = []
    for start in range(0, len(prompts), batch):
        ids, mask = pad(prompts[start : start + batch], responses[start : start + batch])
        logits = model(input_ids=ids).logits[:, :-1]
        own = logits.log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
        sums.append((own * mask[:, 1:]).double().sum(1).cpu())
    return torch.cat(sums)


@torch.no_grad()
def sample(
    model: Any, prompts: Sequence[Prompt], *, temperature: float, seed: int
) -> list[list[int]]:
    """Return one response for each prompt: its tokens, with END last if it is complete.

    Args:
        model: A model in evaluation mode.
        prompts: The prompts, at least one.
        temperature: Sampling temperature; 0 takes the most probable token.
        seed: Seed of the samples.
    """
    torch.manual_seed(seed)
    ids = torch.tensor([prompt_ids(prompt) for prompt in prompts], device=DEVICE)
    options: dict[str, Any] = (
        {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
        if temperature
        else {"do_sample": False}
    )
    out = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=LONGEST + 1, **options
    )
    return [_cut_at_end(row) for row in out[:, ids.shape[1] :].tolist()]


def _cut_at_end(row: list[int]) -> list[int]:
    return row[: row.index(END) + 1] if END in row else row


def response_words(response: Sequence[int]) -> tuple[list[str], bool]:
    """Return the words of a response, and whether it is complete."""
    ended = bool(response) and response[-1] == END
    return [WORDS[token] for token in (response[:-1] if ended else response)], ended


def load_model(folder: Path) -> LlamaForCausalLM:
    """Return the model in a folder, in evaluation mode."""
    model: Any = LlamaForCausalLM.from_pretrained(folder)
    return model.to(DEVICE).eval()
