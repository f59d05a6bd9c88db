"""Five schedules with one reference against five stock runs: the same losses, in how much time.

    python tests/benchmarks/sweep.py --rounds 3

A stock run is TRL's DPOTrainer as it comes, which computes the reference in every step; ours shares
the prompt and reads the reference's log-probs from a cache, which is its own in every round. Both
sides train on the same pairs in the same order; schedules are constant betas, so that stock can do
them. The sides take turns.
"""

import argparse
import random
import statistics
import tempfile
import time
import warnings
from itertools import chain

import torch
import transformers
import trl
from datasets import disable_progress_bars
from pair_shapes import draw_batches, make_rows
from train_overhead import SHARED_PROMPT, STOCK, make
from transformers import PrinterCallback

BETAS = [0.01, 0.03, 0.1, 0.2, 0.3]


def main():
    options = arguments()
    warnings.simplefilter("ignore")
    disable_progress_bars()
    batches = draw_batches(
        random.Random(1), options.shape, pairs=options.pairs, rounds=options.batches, grouped=False
    )
    rows = make_rows(random.Random(2), list(chain(*batches)), options.vocabulary)
    ratios, furthest = [], 0.0
    for number in range(options.rounds):
        seconds = {}
        losses = {}
        with tempfile.TemporaryDirectory() as cache:
            for kind in ("stock", "ours") if number % 2 else ("ours", "stock"):
                begun = time.perf_counter()
                losses[kind] = [
                    run(rows, beta, cache if kind == "ours" else None, options) for beta in BETAS
                ]
                seconds[kind] = time.perf_counter() - begun
        pairs = zip(*(chain(*losses[kind]) for kind in ("ours", "stock")), strict=True)
        furthest = max(furthest, *(abs(ours / theirs - 1) for ours, theirs in pairs))
        ratios.append(seconds["ours"] / seconds["stock"])
        print(
            f"round {number + 1}: {seconds['ours']:.1f} s / {seconds['stock']:.1f} s ="
            f" {ratios[-1]:.3f}",
            flush=True,
        )
    print(
        f"five schedules, one reference, {options.shape}: {statistics.median(ratios):.3f} of"
        f" stock's time ({min(ratios):.3f} to {max(ratios):.3f}); losses differ by {furthest:.1e}"
        f" of their value at most; {torch.get_num_threads()} threads, torch {torch.__version__},"
        f" transformers {transformers.__version__}, trl {trl.__version__}"
    )


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=float, default=3.0, help="the default of TRL is 3")
    parser.add_argument("--shape", default="UltraFeedback", help="see pair_shapes.py")
    parser.add_argument("--pairs", type=int, default=8, help="of a batch")
    parser.add_argument("--batches", type=int, default=4, help="of an epoch")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument(
        "--without-checkpointing", dest="checkpointing", action="store_false",
        help="turn off gradient checkpointing, which is on in TRL's defaults",
    )  # fmt: skip
    return parser.parse_args()


def run(rows, beta, cache, options):
    """The losses of one run."""
    variant = SHARED_PROMPT[STOCK if cache is None else "shared prompt"]
    trainer = make(
        variant,
        options,
        rows=rows if cache is None else rows | {"beta": [beta] * len(rows["prompt"])},
        beta=beta,
        per_device_train_batch_size=options.pairs,
        num_train_epochs=options.epochs,
        logging_steps=1,
        learning_rate=1e-4,
        save_strategy="no",
        **({} if cache is None else {"reference_cache": cache}),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


if __name__ == "__main__":
    main()
