"""How far numbers in bf16 are from those in float32: stock TRL, and with a shared prompt."""

import random
import string

import torch
from datasets import Dataset
from trl import DPOTrainer

from support.training import make, shake, train

BATCHES, PAIRS_PER_BATCH = 16, 4
METRICS = ("loss", "grad_norm", "rewards/margins", "logps/chosen", "logps/rejected", "entropy")
ARMS = ("stock", "reordered", "shared")


def random_pairs(number, seed=0):
    """Pairs of random letters; prompts of 5 to 60, responses of 1 to 40."""
    draw = random.Random(seed)

    def text(shortest, longest):
        return "".join(draw.choices(string.ascii_lowercase, k=draw.randint(shortest, longest)))

    lengths = {"prompt": (5, 60), "chosen": (1, 40), "rejected": (1, 40)}
    return Dataset.from_dict(
        {name: [text(*ends) for _ in range(number)] for name, ends in lengths.items()}
        | {"beta": [0.1] * number}
    )


def deviations(model_dir, folder):
    """Return the root mean square over batches of the deviation from stock TRL in float32.

    By number (the loss, the norm of the gradient, TRL's metrics) and by arm, all in bf16: stock
    TRL; stock TRL on the same pairs in another order and with more padding, which is its own noise;
    the shared prompt. The policy is not the reference model, and does not change.
    """
    data = random_pairs(BATCHES * PAIRS_PER_BATCH)
    settings = {
        "beta": 0.1, "max_length": None, "max_steps": BATCHES, "learning_rate": 0.0,
        "per_device_train_batch_size": PAIRS_PER_BATCH,
    }  # fmt: skip
    stock = {"trainer": DPOTrainer, **settings}
    trainers = {
        "truth": make(model_dir, folder, data, **stock),
        "stock": make(model_dir, folder, data, bf16=True, **stock),
        "reordered": make(model_dir, folder, data, bf16=True, pad_to_multiple_of=64, **stock),
        "shared": make(model_dir, folder, data, bf16=True, **settings),
    }
    collate = trainers["reordered"].data_collator
    trainers["reordered"].data_collator = lambda rows: collate(rows[::-1])
    logged = {}
    for arm, trainer in trainers.items():
        shake(trainer)
        entries = train(trainer)[1][:BATCHES]
        logged[arm] = torch.tensor([[entry[name] for name in METRICS] for entry in entries])
    assert trainers["shared"]._shared_prompt.reason is None
    squares = {arm: (logged[arm] - logged["truth"]).double() ** 2 for arm in ARMS}
    return {
        name: {arm: squares[arm][:, column].mean().sqrt().item() for arm in ARMS}
        for column, name in enumerate(METRICS)
    }
