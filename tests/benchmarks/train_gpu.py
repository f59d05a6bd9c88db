"""A training step of a 7B model on one GPU: time and peak memory, stock TRL and a shared prompt.

    python tests/benchmarks/train_gpu.py
    python tests/benchmarks/train_gpu.py --tiny        # the same on a CPU, to see that it runs

The model has the shape of Llama 2 7B and random weights in bf16; it is trained in full (AdamW, its
states in bf16 too) and with LoRA, both with gradient checkpointing. A step is a forward pass of
policy and reference, the backward pass and the optimizer's step; the first of each row is not
counted. Needs about 100 GB of GPU memory and, with the default options, less than 8 minutes: what
does not fit into `--minutes` is left out, with a line that says so.
"""

import argparse
import contextlib
import importlib.util
import platform
import random
import statistics
import tempfile
import time
import warnings
from dataclasses import dataclass

import torch
import transformers
import trl
from datasets import Dataset, disable_progress_bars
from pair_shapes import draw_batches, make_examples, make_llama, make_rows, make_tokenizer
from peft import LoraConfig
from trl import DPOConfig, DPOTrainer

from sp2dpo.training import PairDPOConfig, PairDPOTrainer

SIZE = {"vocabulary": 32000, "hidden": 4096, "layers": 32, "heads": 32, "intermediate": 11008}
TINY = {"vocabulary": 512, "hidden": 64, "layers": 2, "heads": 2}
SHAPES = ["UltraFeedback", "1024/1024/1024"]
TINY_SHAPES = ["UltraFeedback", "32/32/32"]
LORA_RANK = 16


@dataclass(frozen=True)
class Measurement:
    """What some steps took.

    Attributes:
        seconds: Of each step.
        peak: Largest number of allocated bytes; 0 on a CPU.
    """

    seconds: list[float]
    peak: int


def main(words=None):
    begun = time.perf_counter()
    options = arguments(words)
    warnings.simplefilter("ignore")
    disable_progress_bars()
    on_gpu = torch.cuda.is_available() and not options.tiny
    size, longest = (TINY, 64) if options.tiny else (SIZE, options.tokens)
    attentions = options.attention or kernels(on_gpu)
    shapes = options.shapes or (TINY_SHAPES if options.tiny else SHAPES)
    variants = [(stock, kernel) for stock in (True, False) for kernel in attentions]
    # Stock TRL has no use for block masks, so one of its kernels is enough beside flash attention.
    variants = [variant for variant in variants if variant != (True, "flex_attention")]
    print(
        f"{torch.cuda.get_device_name(0) if on_gpu else platform.machine()}, torch"
        f" {torch.__version__}, transformers {transformers.__version__}, trl {trl.__version__};"
        f" Llama of {size['layers']} layers of {size['hidden']}, batches of {options.pairs} pairs,"
        f" sequences of at most {longest} tokens, {options.rounds} steps\n\n"
        "| training | lengths | trainer | attention | seconds a step | time / stock | peak GB |"
        " memory / stock |\n|---|---|---|---|---|---|---|---|",
        flush=True,
    )
    left_out = []
    with torch.device("cuda" if on_gpu else "cpu"):
        policy = make_llama(**size, positions=longest).to(torch.bfloat16)
        reference = make_llama(**size, positions=longest).to(torch.bfloat16)
    for training in options.training:
        first = {}
        for stock, kernel in variants:
            name = "stock TRL" if stock else "shared prompt"
            if time.perf_counter() - begun > 60 * options.minutes:
                left_out.append(f"{training}, {name}, {kernel}")
                continue
            with ready(policy, reference, stock, kernel, training, options, longest) as trainer:
                for shape in shapes:
                    taken = measure(trainer, shape, options, longest, size["vocabulary"])
                    first.setdefault(shape, taken)
                    print(row(training, shape, name, kernel, taken, first[shape]), flush=True)
    if left_out:
        print(f"\nleft out after {options.minutes} minutes: {'; '.join(left_out)}")
    print(f"\n{time.perf_counter() - begun:.0f} s in all")


def arguments(words):
    parser = argparse.ArgumentParser()
    parser.add_argument("--training", nargs="+", default=["LoRA", "full"], choices=["LoRA", "full"])
    parser.add_argument("--shapes", nargs="+", help="lengths; see pair_shapes.py")
    parser.add_argument("--attention", nargs="+", help="all that are installed, if unset")
    parser.add_argument("--pairs", type=int, default=4, help="of a batch")
    parser.add_argument("--tokens", type=int, default=2048, help="of a sequence, at most")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--minutes", type=float, default=6.5, help="no row begins after them")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, on the CPU")
    options = parser.parse_args(words)
    if not options.tiny and not torch.cuda.is_available():
        parser.error("there is no GPU (torch.cuda.is_available() is false): run it with --tiny")
    return options


def kernels(on_gpu):
    """The attention implementations that can train here."""
    if not on_gpu:
        return ["sdpa"]  # FlexAttention has no backward pass on a CPU
    flash = importlib.util.find_spec("flash_attn") is not None
    return ["sdpa", "flex_attention", *(["flash_attention_2"] if flash else [])]


@contextlib.contextmanager
def ready(policy, reference, stock, kernel, training, options, longest):
    """A trainer on the models that all rows share; they are as before afterwards."""
    settings = {
        "output_dir": tempfile.mkdtemp(),
        "report_to": "none",
        "bf16": True,
        "use_cpu": options.tiny,
        "disable_tqdm": True,
        "max_length": longest,
        "gradient_checkpointing": True,
        "per_device_train_batch_size": 2,
    }
    for model in (policy, reference):
        model.set_attn_implementation(kernel)
    lengths = draw_batches(random.Random(0), "4/4/4", pairs=2, rounds=1, grouped=False)[0]
    rows = make_rows(random.Random(0), lengths, policy.config.vocab_size)
    lora = LoraConfig(r=LORA_RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = (DPOTrainer if stock else PairDPOTrainer)(
        policy,
        # With LoRA the reference is the policy without its adapters.
        ref_model=None if training == "LoRA" else reference,
        args=DPOConfig(**settings) if stock else PairDPOConfig(**settings),
        train_dataset=Dataset.from_dict(rows if stock else rows | {"beta": [0.1] * 2}),
        processing_class=make_tokenizer(policy.config.vocab_size),
        peft_config=lora if training == "LoRA" else None,
    )
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    try:
        yield trainer
    finally:
        if training == "LoRA":
            trainer.model.unload()
        policy.requires_grad_(True)
        for model in (policy, reference):
            model.zero_grad()
            for part in (model, model.base_model):
                part.__dict__.pop("forward", None)  # TRL's fused head, and what shares prompts


def measure(trainer, shape, options, longest, vocabulary):
    """The time and the memory of the steps of a shape, without the first."""
    batches = draw_batches(
        random.Random(1), shape, pairs=options.pairs, rounds=options.rounds, grouped=False,
        longest=longest,
    )  # fmt: skip
    on_gpu = not options.tiny
    optimizer = torch.optim.AdamW(
        [p for p in trainer.model.parameters() if p.requires_grad], lr=1e-6, fused=on_gpu
    )
    seconds = []
    # The largest batch first: it is the one whose kernels are compiled, and its memory is cached.
    longest_batch = max(batches, key=lambda batch: max(lengths.longest for lengths in batch))
    for number, batch in enumerate([longest_batch, *batches]):
        examples = make_examples(random.Random(number), batch, vocabulary, {"beta": 0.1})
        inputs = trainer.data_collator(examples)
        if number == 1 and on_gpu:
            torch.cuda.reset_peak_memory_stats()
        if on_gpu:
            torch.cuda.synchronize()
        begun = time.perf_counter()
        trainer.training_step(trainer.model, inputs)
        optimizer.step()
        optimizer.zero_grad()
        if on_gpu:
            torch.cuda.synchronize()
        if number:
            seconds.append(time.perf_counter() - begun)
    if isinstance(trainer, PairDPOTrainer) and trainer._shared_prompt.reason is not None:
        raise SystemExit(f"the prompt is not shared: {trainer._shared_prompt.reason}")
    return Measurement(seconds, torch.cuda.max_memory_allocated() if on_gpu else 0)


def row(training, shape, name, kernel, taken, stock):
    """A row of the table."""
    memory = f"{taken.peak / 1e9:.1f} | {taken.peak / stock.peak:.2f}" if stock.peak else " | "
    return (
        f"| {training} | {shape} | {name} | {kernel} | {statistics.mean(taken.seconds):.3f} |"
        f" {sum(taken.seconds) / sum(stock.seconds):.2f} | {memory} |"
    )


if __name__ == "__main__":
    main()
