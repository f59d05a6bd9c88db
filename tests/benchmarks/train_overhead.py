"""What a training step of ours costs beside stock TRL's, in one process, step by step in turn.

    python tests/benchmarks/train_overhead.py                # the shared prompt
    python tests/benchmarks/train_overhead.py --columns --shapes 64/64/64 --pairs 4 --rounds 60

Every round takes one step (forward pass of policy and reference, backward pass) of each trainer, in
an order that changes; the batch is the same for all of them, or one of the same rank by size where
rows are grouped by length. A ratio is the sum of a trainer's times over the sum of stock's, with a
95 % bootstrap interval over rounds. `stock again` is stock beside itself: the noise of the machine.

The ratio of peak memory: on a GPU, of the bytes that torch has allocated; on a CPU, of the growth
of the process during its largest batch, each trainer in a process of its own. On a GPU steps are
taken in bf16.
"""

import argparse
import contextlib
import importlib
import io
import json
import math
import multiprocessing
import platform
import random
import re
import statistics
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
import trl
from datasets import Dataset, disable_progress_bars
from pair_shapes import draw_batches, make_examples, make_llama, make_rows, make_tokenizer
from transformers import LlamaForCausalLM
from trl import DPOConfig, DPOTrainer

from sp2dpo.training.trainer import PairDPOConfig, PairDPOTrainer

STOCK = "stock"
VALUES = {"beta": 0.1, "weight": 1.5, "margin": 0.2, "label_smoothing": 0.1}


@dataclass(frozen=True)
class Variant:
    """A trainer and its batches."""

    columns: list | None = None
    """The per-pair columns; None is stock TRL."""
    shared: bool = False
    grouped: bool = False
    """Whether the rows of a batch have about the same length."""
    precomputed: bool = False
    """Whether the batch has the reference's log-probs, which are computed once for all epochs."""


SHARED_PROMPT = {
    STOCK: Variant(),
    "stock again": Variant(),
    "stock, grouped by length": Variant(grouped=True),
    "stock, reference precomputed": Variant(precomputed=True),
    "stock, both": Variant(grouped=True, precomputed=True),
    "shared_prompt: false": Variant(["beta"]),
    "shared prompt": Variant(["beta"], shared=True),
    "shared prompt, grouped by length": Variant(["beta"], shared=True, grouped=True),
    "shared prompt, reference precomputed": Variant(["beta"], shared=True, precomputed=True),
    "shared prompt, both": Variant(["beta"], shared=True, grouped=True, precomputed=True),
}
COLUMNS = {
    STOCK: Variant(),
    "stock again": Variant(),
    "beta": Variant(["beta"]),
    "beta, weight, margin, label_smoothing": Variant(list(VALUES)),
}


def main():
    options = arguments()
    warnings.simplefilter("ignore")
    disable_progress_bars()
    variants = COLUMNS if options.columns else SHARED_PROMPT
    if options.variants:
        variants = {name: variants[name] for name in {STOCK: 0} | dict.fromkeys(options.variants)}
    with contextlib.suppress(ImportError):
        importlib.import_module("deepspeed")  # else every process below imports it, for 5 s
    memory = {}
    if not torch.cuda.is_available() and not options.without_memory:
        memory = {
            (name, shape, pairs): memory_in_own_process(variant, shape, pairs, options)
            for shape in options.shapes
            for pairs in options.pairs
            for name, variant in variants.items()
        }
    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else platform.machine()
    print(
        f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}, transformers"
        f" {transformers.__version__}, trl {trl.__version__}; Llama of {options.layers} layers of"
        f" {options.hidden}, vocabulary {options.vocabulary},"
        f" {options.rounds} rounds\n\n"
        "| lengths | pairs | trainer | seconds | time / stock | peak memory / stock |\n"
        "|---|---|---|---|---|---|"
    )
    trainers = {}  # one for all variants that differ in their batches only
    for variant in variants.values():
        trainers.setdefault(key(variant), make(variant, options))
    for shape in options.shapes:
        for pairs in options.pairs:
            peaks = {name: memory.get((name, shape, pairs), 0) for name in variants}
            measure(variants, trainers, shape, pairs, peaks, options)


def measure(variants, trainers, shape, pairs, peaks, options):
    """Print the rows of a batch shape; on a GPU, `peaks` are taken from its steps."""
    batches = {
        grouped: make_batches(shape, pairs, grouped, options)
        for grouped in {variant.grouped for variant in variants.values()}
    }
    warmups = {grouped: largest(examples)[-1] for grouped, examples in batches.items()}
    times = {name: [] for name in variants}
    order = list(variants)
    generator = random.Random(0)
    for number in range(-options.warmup, options.rounds):
        generator.shuffle(order)
        for name in order:
            variant = variants[name]
            trainer = trainers[key(variant)]
            # A process that grows takes much longer, so the warm-up takes the largest batch.
            examples = batches[variant.grouped][number] if number >= 0 else warmups[variant.grouped]
            seconds, peak = step(trainer, trainer.data_collator(examples))
            if number >= 0:
                times[name].append(seconds)
                peaks[name] = max(peaks[name], peak)
    for name in variants:
        low, high = bootstrap(times[name], times[STOCK])
        ratio = sum(times[name]) / sum(times[STOCK])
        share = f"{peaks[name] / peaks[STOCK]:.2f}" if peaks[STOCK] else ""
        digits = 3 if options.columns else 2
        print(
            f"| {shape} | {pairs} | {name} | {statistics.mean(times[name]):.3f} |"
            f" {ratio:.{digits}f} ({low:.{digits}f}-{high:.{digits}f}) | {share} |",
            flush=True,
        )


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--columns", action="store_true", help="measure the per-pair columns")
    parser.add_argument(
        "--shapes", nargs="+", default=["UltraFeedback", "hh", "512/256/256"],
        help="lengths of prompt, chosen and rejected; see pair_shapes.py",
    )  # fmt: skip
    parser.add_argument("--pairs", type=int, nargs="+", default=[8], help="of a batch")
    parser.add_argument("--variants", nargs="+", help="trainers beside stock; all of them if unset")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--hidden", type=int, default=384)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--checkpointing", action="store_true", help="gradient checkpointing")
    parser.add_argument("--without-memory", action="store_true")
    return parser.parse_args()


def key(variant):
    """What decides about the trainer."""
    return json.dumps([variant.columns, variant.shared, variant.precomputed])


def make_batches(shape, pairs, grouped, options):
    """The examples of every round; a rank by size is in the same round, grouped or not."""
    batches = draw_batches(
        random.Random(1), shape, pairs=pairs, rounds=options.rounds, grouped=grouped
    )
    return [examples_of(batch, options) for batch in batches]


def examples_of(batch, options):
    """The examples of a batch of lengths, with a reference's log-probs near the policy's.

    Where they are far from it, the loss is saturated, and on a CPU gradients so small that they
    are denormal numbers take ten times as long.
    """
    examples = make_examples(random.Random(2), batch, options.vocabulary, VALUES)
    for row in examples:
        for side in ("chosen", "rejected"):
            row[f"ref_{side}_logps"] = -len(row[f"{side}_ids"]) * math.log(options.vocabulary)
    return examples


def make(variant, options, *, rows=None, **overrides):
    """A trainer on the model that all of them have.

    Without `rows`, a dict of columns, the trainer is ready to take steps by hand.
    """
    by_hand = rows is None
    vocabulary = options.vocabulary
    if by_hand:
        lengths = draw_batches(random.Random(0), "4/4/4", pairs=2, rounds=1, grouped=False)[0]
        rows = make_rows(random.Random(0), lengths, vocabulary)
        rows |= {name: [VALUES[name]] * 2 for name in variant.columns or []}
    model = make_llama(
        vocabulary=vocabulary, hidden=options.hidden, layers=options.layers, heads=options.heads
    )
    settings = {
        "output_dir": tempfile.mkdtemp(),
        "report_to": "none",
        "bf16": torch.cuda.is_available(),
        "use_cpu": not torch.cuda.is_available(),
        "disable_tqdm": True,
        "gradient_checkpointing": options.checkpointing,
        "precompute_ref_log_probs": variant.precomputed,
        "per_device_train_batch_size": 2,
    } | overrides
    stock = variant.columns is None
    with contextlib.redirect_stderr(io.StringIO()):
        reference = LlamaForCausalLM(model.config)
        reference.load_state_dict(model.state_dict())
        trainer = (DPOTrainer if stock else PairDPOTrainer)(
            model,
            ref_model=reference,
            args=DPOConfig(**settings)
            if stock
            else PairDPOConfig(
                **settings, pair_columns=variant.columns, shared_prompt=variant.shared
            ),
            train_dataset=Dataset.from_dict(rows),
            processing_class=make_tokenizer(vocabulary),
        )
    if by_hand:
        trainer.current_gradient_accumulation_steps = 1
        trainer.model.train()
    return trainer


def step(trainer, batch):
    """Seconds and peak bytes of one step; the bytes are 0 on a CPU."""
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    begun = time.perf_counter()
    trainer.training_step(trainer.model, dict(batch))
    if on_gpu:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - begun
    trainer.model.zero_grad()
    return seconds, torch.cuda.max_memory_allocated() if on_gpu else 0


def memory_in_own_process(variant, shape, pairs, options):
    """The growth in bytes of a process that takes the largest steps of one variant.

    The process is forked before torch computes anything here: its threads do not survive a fork.
    """
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=send_growth, args=(sender, variant, shape, pairs, options))
    process.start()
    sender.close()
    growth = receiver.recv()  # EOFError if the process fails
    process.join()
    return growth


def send_growth(sender, variant, shape, pairs, options):
    """Send the peak memory in bytes above that after a step of two short pairs."""
    trainer = make(variant, options)
    short = draw_batches(random.Random(0), "4/4/4", pairs=2, rounds=1, grouped=False)[0]
    step(trainer, trainer.data_collator(examples_of(short, options)))
    before = status_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    for examples in largest(make_batches(shape, pairs, variant.grouped, options)):
        step(trainer, trainer.data_collator(examples))
    sender.send(status_bytes("VmHWM") - before)


def largest(batches):
    """The batch with the most tokens when padded, and the one with the most tokens."""

    def total(row):
        return sum(len(row[part]) for part in ("prompt_ids", "chosen_ids", "rejected_ids"))

    def longest(row):
        return len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"]))

    padded = max(batches, key=lambda rows: max(map(longest, rows)))
    filled = max(batches, key=lambda rows: sum(map(total, rows)))
    return [padded] if padded is filled else [padded, filled]


def status_bytes(field):
    """A field of the process's status, in bytes."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{field}:\s+(\d+) kB", status)[1]) * 1024


def bootstrap(times, stock):
    """The ends of a 95 % interval of the ratio of sums, resampling rounds."""
    generator = random.Random(0)
    pairs = list(zip(times, stock, strict=True))
    ratios = []
    for _ in range(1000):
        sample = generator.choices(pairs, k=len(pairs))
        ratios.append(sum(ours for ours, _ in sample) / sum(theirs for _, theirs in sample))
    ratios.sort()
    return ratios[25], ratios[974]


if __name__ == "__main__":
    main()
