"""Five schedules with one reference against five stock runs: the same losses, in how much time.

    python tests/benchmarks/sweep.py --rounds 3

A stock run is TRL's DPOTrainer as it comes, which computes the reference in every step. Both sides
train on the same pairs in the same order; schedules are constant betas, so that stock can do them.
The sides take turns; the cache of every round is its own.
"""

import argparse
import statistics
import tempfile
import time
import warnings
from itertools import chain
from pathlib import Path

import torch
import transformers
import trl
from train_overhead import make

BETAS = [0.01, 0.03, 0.1, 0.2, 0.3]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=float, default=3.0, help="the default of TRL is 3")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    ratios, furthest = [], 0.0
    for number in range(options.rounds):
        took = {}
        losses = {}
        with tempfile.TemporaryDirectory() as cache:
            for kind in ("stock", "ours") if number % 2 else ("ours", "stock"):
                begun = time.perf_counter()
                losses[kind] = [
                    run(beta, Path(cache) if kind == "ours" else None, options.epochs)
                    for beta in BETAS
                ]
                took[kind] = time.perf_counter() - begun
        pairs = zip(*(chain(*losses[kind]) for kind in ("ours", "stock")), strict=True)
        furthest = max(furthest, *(abs(ours - theirs) for ours, theirs in pairs))
        ratios.append(took["ours"] / took["stock"])
        print(
            f"round {number + 1}: {took['ours']:.1f} s / {took['stock']:.1f} s = {ratios[-1]:.3f}"
        )
    print(
        f"five schedules, one reference: {statistics.median(ratios):.3f} of stock's time"
        f" ({min(ratios):.3f} to {max(ratios):.3f}); losses differ by {furthest:.1e} at most;"
        f" {torch.get_num_threads()} threads, torch {torch.__version__}, transformers"
        f" {transformers.__version__}, trl {trl.__version__}"
    )


def run(beta, cache, epochs):
    """The losses of one run."""
    columns = None if cache is None else ["beta"]
    cache_settings = {} if cache is None else {"reference_cache": str(cache)}
    trainer = make(
        columns,
        argparse.Namespace(pairs=4, tokens=128, hidden=128, layers=4),
        rows=64,
        values={"beta": beta},
        beta=beta,
        num_train_epochs=epochs,
        logging_steps=1,
        learning_rate=1e-4,
        save_strategy="no",
        **cache_settings,
    )
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


if __name__ == "__main__":
    main()
