"""What a training step of ours costs beside stock TRL's, in one process, step by step in turn.

    python tests/benchmarks/train_overhead.py --rounds 60

Every round takes one step (forward, reference, backward) of each trainer on the same batch, in an
order that changes; a ratio is the median over rounds of one trainer's time over stock's in the same
round, with a bootstrap interval. `stock again` is stock beside itself: the noise of the machine. On
a GPU steps are taken in bf16 and the ratio of peak memory is printed too.
"""

import argparse
import contextlib
import io
import platform
import random
import statistics
import tempfile
import time
import warnings

import torch
import transformers
import trl
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer

from sp2dpo.training.trainer import PairDPOConfig, PairDPOTrainer

TRAINERS = {
    "stock": None,
    "stock again": None,
    "beta": ["beta"],
    "beta, weight, margin, label_smoothing": ["beta", "weight", "margin", "label_smoothing"],
}


def main():
    options = arguments()
    warnings.simplefilter("ignore")
    trainers = {name: make(columns, options) for name, columns in TRAINERS.items()}
    batches = {
        name: trainer.data_collator([trainer.train_dataset[row] for row in range(options.pairs)])
        for name, trainer in trainers.items()
    }
    order = list(trainers)
    generator = random.Random(0)
    times = {name: [] for name in order}
    memory = dict.fromkeys(order, 0)
    for number in range(-options.warmup, options.rounds):
        generator.shuffle(order)
        for name in order:
            seconds, peak = step(trainers[name], batches[name])
            if number >= 0:
                times[name].append(seconds)
                memory[name] = max(memory[name], peak)
    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else platform.machine()
    print(
        f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}, transformers"
        f" {transformers.__version__}, trl {trl.__version__}; {options.rounds} rounds, batches of"
        f" {options.pairs} pairs of {options.tokens} tokens, {options.layers} layers of"
        f" {options.hidden}; stock {statistics.median(times['stock']) * 1e3:.0f} ms a step"
    )
    for name in TRAINERS:
        if name == "stock":
            continue
        ratios = [ours / stock for ours, stock in zip(times[name], times["stock"], strict=True)]
        low, high = bootstrap(ratios)
        memory_note = (
            f", peak memory {memory[name] / memory['stock']:.4f}" if memory["stock"] else ""
        )
        print(f"{name}: {statistics.median(ratios):.4f} ({low:.4f} to {high:.4f}){memory_note}")


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=128, help="of one sequence")
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    return parser.parse_args()


def make(columns, options, *, rows=None, values=None, **overrides):
    """A trainer on the model and data that all of them have, with columns or stock TRL.

    Without `rows` there is one batch, and the trainer is ready to take steps by hand.
    """
    by_hand, count = rows is None, rows or options.pairs
    words = [f"w{number}" for number in range(510)]
    vocabulary = {word: number for number, word in enumerate(["<pad>", "<eos>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(vocabulary),
            hidden_size=options.hidden,
            intermediate_size=4 * options.hidden,
            num_hidden_layers=options.layers,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=options.tokens + 8,
            pad_token_id=0,
            eos_token_id=1,
        )
    )
    generator = random.Random(1)

    def text(length):
        return " ".join(generator.choices(words, k=length))

    half = options.tokens // 2
    rows = {
        side: [text(half - 1) for _ in range(count)] for side in ("prompt", "chosen", "rejected")
    }
    constants = {"beta": 0.1, "weight": 1.5, "margin": 0.2, "label_smoothing": 0.1} | (values or {})
    rows |= {name: [constants[name]] * count for name in columns or []}
    folder = tempfile.mkdtemp()
    settings = {
        "output_dir": folder,
        "report_to": "none",
        "bf16": torch.cuda.is_available(),
        "use_cpu": not torch.cuda.is_available(),
        "disable_tqdm": True,
        "per_device_train_batch_size": options.pairs,
    } | overrides
    with contextlib.redirect_stderr(io.StringIO()):
        reference = LlamaForCausalLM(model.config)
        reference.load_state_dict(model.state_dict())
        trainer = (DPOTrainer if columns is None else PairDPOTrainer)(
            model,
            ref_model=reference,
            args=DPOConfig(**settings)
            if columns is None
            else PairDPOConfig(**settings, pair_columns=columns),
            train_dataset=Dataset.from_dict(rows),
            processing_class=fast,
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


def bootstrap(ratios):
    """The ends of a 95 % interval of the median."""
    generator = random.Random(0)
    medians = sorted(
        statistics.median(generator.choices(ratios, k=len(ratios))) for _ in range(1000)
    )
    return medians[25], medians[974]


if __name__ == "__main__":
    main()
