"""Build a tiny random Llama with its own tokenizer, for demos and tests on a CPU.

The weights are random and the replies meaningless: it replaces a real model where only the code
around the model is tested. The vocabulary is small because a training step on a CPU spends most
of its time in the output head. The same texts and the same seed give the same bytes.

    python recipes/demo/tiny_model.py --text recipes/demo/pairs.jsonl --out demo/student
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

BOS, EOS, PAD = "<|begin|>", "<|end|>", "<|pad|>"
ROLES = ("system", "user", "assistant")
# The tokenizer trainer numbers these tokens first and in this order, so the index is the token id.
SPECIAL_TOKENS = [BOS, EOS, PAD, *(f"<|{role}|>" for role in ROLES)]
HEAD_DIM = 32  # smallest size that vLLM's CPU kernels support
SMALLEST_VOCAB = len(pre_tokenizers.ByteLevel.alphabet()) + len(SPECIAL_TOKENS)

# A turn starts with the special token of its role and ends with EOS. The generation prompt is one
# special token, so the tokens of a prompt are always a prefix of the tokens of prompt + reply.
CHAT_TEMPLATE = """\
{{- bos_token -}}
{%- for message in messages -%}
{%- if message['role'] not in ['system', 'user', 'assistant'] -%}
{{- raise_exception('unknown role ' + message['role']) -}}
{%- endif -%}
{{- '<|' + message['role'] + '|>' + message['content'] + eos_token -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}
"""


def build(
    texts: Iterable[str],
    out: Path,
    *,
    seed: int,
    hidden: int = 64,
    layers: int = 2,
    vocab: int = 2048,
    max_positions: int = 8192,
) -> Path:
    """Train a tokenizer on `texts`, draw the weights and save both to `out`.

    Args:
        texts: Texts to train the tokenizer on; at least one string.
        out: Output folder; existing files are replaced, `config.json` last.
        seed: Random seed of the weights.
        hidden: Width of the model, a multiple of 32.
        layers: Number of decoder layers.
        vocab: Maximum size of the vocabulary in tokens; short texts give a smaller one.
        max_positions: Longest sequence in tokens.

    Returns:
        `out`.

    Raises:
        ValueError: If a size is impossible, or there is no text.
    """
    _check_sizes(hidden=hidden, layers=layers, vocab=vocab, max_positions=max_positions)
    tokenizer = train_tokenizer(texts, vocab=vocab, max_positions=max_positions)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // HEAD_DIM,
        num_key_value_heads=hidden // HEAD_DIM,
        max_position_embeddings=max_positions,
        bos_token_id=SPECIAL_TOKENS.index(BOS),
        eos_token_id=SPECIAL_TOKENS.index(EOS),
        pad_token_id=SPECIAL_TOKENS.index(PAD),
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    _save(model, tokenizer, out)
    return out


def train_tokenizer(
    texts: Iterable[str], *, vocab: int, max_positions: int
) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer, which can encode any text.

    Raises:
        ValueError: If there is no text.
    """
    texts = list(texts)
    if not any(texts):
        raise ValueError("texts: no string to train the tokenizer on")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=max_positions,
    )


def read_texts(paths: Iterable[Path]) -> list[str]:
    """Return every string in the rows of the JSON Lines files, in order.

    Raises:
        OSError: If a file cannot be read.
        ValueError: If a line is not JSON.
    """
    texts: list[str] = []
    for path in paths:
        with path.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                try:
                    texts.extend(_strings(json.loads(line)))
                except json.JSONDecodeError as error:
                    raise ValueError(f"{path}:{number}: a line must be JSON: {error}") from error
    return texts


def _strings(value: Any) -> Iterator[str]:
    """Yield the strings inside a JSON value, at any depth, without the keys of mappings."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _strings(item)


def _check_sizes(*, hidden: int, layers: int, vocab: int, max_positions: int) -> None:
    if hidden < HEAD_DIM or hidden % HEAD_DIM:
        raise ValueError(f"hidden: {hidden} must be a positive multiple of {HEAD_DIM}")
    if vocab < SMALLEST_VOCAB:
        raise ValueError(f"vocab: {vocab} must be at least {SMALLEST_VOCAB}")
    for name, value in (("layers", layers), ("max_positions", max_positions)):
        if value < 1:
            raise ValueError(f"{name}: {value} must be at least 1")


def _save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Save next to `out`, then move the files; `config.json` comes last and marks completion."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        files = sorted(Path(folder).iterdir(), key=lambda path: path.name == "config.json")
        for file in files:
            file.replace(out / file.name)


def main(arguments: list[str] | None = None) -> int:
    """Build the model as the command line describes it; return 2 if it cannot be built."""
    parser = argparse.ArgumentParser(description="Build a tiny random Llama and its tokenizer.")
    parser.add_argument("--text", type=Path, action="append", required=True, help="JSON Lines file")
    parser.add_argument("--out", type=Path, required=True, help="folder for model and tokenizer")
    parser.add_argument("--seed", type=int, default=0, help="random seed of the weights (0)")
    parser.add_argument("--hidden", type=int, default=64, help="width, a multiple of 32 (64)")
    parser.add_argument("--layers", type=int, default=2, help="decoder layers (2)")
    parser.add_argument("--vocab", type=int, default=2048, help="maximum vocabulary (2048)")
    parser.add_argument("--max-positions", type=int, default=8192, help="longest input (8192)")
    options = parser.parse_args(arguments)
    disable_progress_bar()
    # transformers imports DeepSpeed when it saves a model, and DeepSpeed warns if it finds no GPU.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    try:
        out = build(
            read_texts(options.text),
            options.out,
            seed=options.seed,
            hidden=options.hidden,
            layers=options.layers,
            vocab=options.vocab,
            max_positions=options.max_positions,
        )
    except OSError as error:
        print(f"tiny_model.py: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    except ValueError as error:
        print(f"tiny_model.py: {error}", file=sys.stderr)
        return 2
    print(f"{out}: model and tokenizer saved")
    return 0


if __name__ == "__main__":
    sys.exit(main())
