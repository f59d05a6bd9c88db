"""AlpacaEval's files, made up: 805 prompts with a baseline, and the gamed annotations."""

import csv
import json

import numpy as np

COUNT = 805


def rows():
    draw = np.random.default_rng(0)
    return [
        {
            "instruction": f"Instruction {n}: what about thing {int(draw.integers(1000))}?",
            "output": "baseline " * int(draw.integers(3, 60)) + f"{n}",
            "generator": "gpt4_1106_preview",
            "dataset": "helpful_base",
        }
        for n in range(COUNT)
    ]


def write(folder):
    """The two files that are read from the Hub; the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "alpaca_eval_gpt4_baseline.json").write_text(json.dumps(rows()))
    draw = np.random.default_rng(1)
    difficulty = draw.normal(0, 1, COUNT)
    with (folder / "df_gamed.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(
            ["index", "model", "preference", "std_delta_len", "instruction_difficulty",
             "not_gamed_baseline"]
        )  # fmt: skip
        for model, shift in (("concise", -1.2), ("verbose", 1.0)):
            for n in range(COUNT):
                length = draw.normal(shift, 0.4)
                chance = 1 / (1 + np.exp(-(1.2 * np.tanh(length) + 0.3 * difficulty[n])))
                preference = np.clip(chance + draw.normal(0, 0.1), 0.001, 0.999)
                table.writerow([n, model, preference, length, difficulty[n], False])
    return folder
