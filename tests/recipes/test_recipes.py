"""The training script and every YAML it is launched with."""

import itertools
import json
import math
import os
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml
from datasets import Dataset, load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from sp2dpo.training import DataConfig, PairDPOConfig, apply_marks
from sp2dpo.training.data import load_data, remove_marks
from sp2dpo.training.reward_model import hash_fraction
from sp2dpo.training.run import find_checkpoint
from support.training import BETAS, conversations, parse, settings

pytestmark = [
    # TRL still uses the names that transformers 5.2x deprecates.
    pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing:FutureWarning"),
]

RECIPES = Path(__file__).parents[2] / "recipes"
SINGLE = RECIPES / "accelerate" / "single.yaml"


def write_run(tmp_path, *, columns=None, **changes):
    """A data set folder and a YAML that trains on it; returns the arguments for both."""
    folder = tmp_path / "dataset"
    folder.mkdir()
    rows = conversations(**({"beta": BETAS} if columns is None else columns))
    Dataset.from_dict(rows).to_parquet(folder / "train.parquet")
    config = settings(tmp_path) | {"model_name_or_path": "no-such-model", "dataset": str(folder)}
    path = tmp_path / "run.yaml"
    content = {key: value for key, value in (config | changes).items() if value is not ...}
    path.write_text(yaml.safe_dump(content))
    return ["--config", str(path)]


@pytest.mark.parametrize("path", sorted(RECIPES.glob("dpo/*.yaml")), ids=lambda path: path.name)
def test_every_recipe_is_understood_by_the_real_parser(path):
    recipe = yaml.safe_load(path.read_text())
    arguments = ["--config", str(path), "--use_cpu", "true"]
    for key in ("model_name_or_path", "dataset"):
        if key not in recipe:  # then the launch sentence in the file's head gives it
            assert f"--{key} " in path.read_text()
            arguments += [f"--{key}", "given"]
    data, args, model = parse(arguments)
    for key, value in recipe.items():
        holder = next(config for config in (data, args, model) if hasattr(config, key))
        taken = getattr(holder, key)
        assert taken == ([] if value == "none" else value), key  # report_to: none


@pytest.mark.parametrize("path", sorted(RECIPES.glob("dpo/*.yaml")), ids=lambda path: path.name)
def test_every_key_of_a_recipe_is_explained_on_the_line_above(path):
    lines = path.read_text().splitlines()
    for above, line in itertools.pairwise(lines):
        if line and not line.startswith("#"):
            assert above.startswith("# "), line


def test_the_command_line_wins_over_the_yaml():
    recipe = ["--config", str(RECIPES / "dpo" / "tiny-demo.yaml")]
    assert parse(recipe)[1].pair_columns == ["beta"]
    assert parse([*recipe, "--pair_columns", "beta"])[1].pair_columns == ["beta"]
    data, args, _ = parse([*recipe, "--pair_columns", "--held_out", "0.5", "--beta", "0.3"])
    assert (args.pair_columns, data.held_out, args.beta) == ([], 0.5, 0.3)


def test_a_yaml_can_ask_for_stock_dpo(tmp_path):
    assert parse(write_run(tmp_path, pair_columns=[]))[1].pair_columns == []


@pytest.mark.parametrize(
    ("changes", "arguments", "code", "message"),
    [
        ({"learning_rat": 1}, [], 2, "unknown setting learning_rat, did you mean 'learning_rate'?"),
        # No abbreviations on the command line, as in YAML.
        ({}, ["--learning_rat", "1"], 2, "learning_rat, did you mean 'learning_rate'?"),
        ({}, ["--pair_colums"], 2, "unknown setting pair_colums, did you mean 'pair_columns'?"),
        ({"dataset": ...}, [], 2, "dataset is missing"),
        ({"model_name_or_path": ...}, [], 2, "model_name_or_path is missing"),
        ({"pair_columns": ["bets"]}, [], 2, "'bets' is not one of beta, weight, margin"),
        ({"held_out": 0.95}, [], 2, "held_out must be in [0, 0.9], not 0.95"),
        ({"held_out": 0.5, "eval_dataset": "x"}, [], 2, "exclude each other"),
        (
            {"dataset": "no/folder"},
            [],
            1,
            "no/folder is neither a file, a folder nor a data set on the Hub",
        ),
        ({"columns": {}}, [], 1, "the train data set has no column beta"),
        ({"columns": {"beta": [math.nan] * 8}}, [], 1, "8 of 8 betas in the train data set"),
        (
            {"columns": {"beta": [None] * 8}},
            [],
            1,
            "8 of 8 rows in the train data set have no beta",
        ),
        ({"held_out": 0.0001}, [], 1, "held_out 0.0001 puts all 8 pairs on one side"),
        ({}, [], 1, "the model no-such-model cannot be read"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_is_wrong_is_said_in_one_line(
    script, tmp_path, capsys, changes, arguments, code, message
):
    with pytest.raises(SystemExit) as stopped:
        script.main([*write_run(tmp_path, **changes), *arguments])
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert stopped.value.code == code
    assert error.startswith("train.py: ")
    assert message in error


def test_a_traceback_is_shown_to_who_asks_for_it(script, tmp_path):
    with pytest.raises(ValueError, match="no column beta"):
        script.main([*write_run(tmp_path, columns={}), "--traceback"])


def test_a_recipe_that_is_not_there_is_one_line_too(script, capsys):
    with pytest.raises(SystemExit) as stopped:
        script.main(["--config", "nowhere.yaml"])
    assert stopped.value.code == 2
    assert "nowhere.yaml" in capsys.readouterr().err


def test_the_place_of_a_prompt_is_the_head_of_its_sha256():
    # printf '"a"' | sha256sum: ac8d8342bbb2...
    assert hash_fraction("a") == 0xAC8D8342BBB2 / 2**48


def test_held_out_prompts_are_never_trained_on_and_always_the_same(tmp_path):
    texts = [f"question {n}" for n in range(100) for _ in range(2)]  # two pairs a prompt
    rows = dict.fromkeys(("prompt", "chosen", "rejected"), texts)
    folder = tmp_path / "dataset"
    folder.mkdir()

    def split(number):
        first = {name: column[:number] for name, column in rows.items()}
        Dataset.from_dict(first).to_parquet(folder / "train.parquet")
        loaded = load_data(DataConfig(dataset=str(folder), held_out=0.3))
        train, test = loaded.train, loaded.test
        assert len(train) + len(test) == number
        return train["prompt"][:], test["prompt"][:]

    train, test = split(200)
    assert not set(train) & set(test)
    assert 40 <= len(test) <= 80
    assert split(200) == (train, test)
    fewer_train, fewer_test = split(100)
    assert set(fewer_train) <= set(train)
    assert set(fewer_test) <= set(test)


def test_a_second_data_set_can_be_evaluated_on(tmp_path):
    write_run(tmp_path)
    folder = str(tmp_path / "dataset")
    rows = load_data(DataConfig(dataset=folder, eval_dataset=folder))
    assert (len(rows.train), len(rows.test)) == (8, 8)


def test_rows_are_left_out_and_flipped_as_an_arm_marks_them():
    rows = Dataset.from_dict(
        {
            "chosen": ["a", "b", "c", "d"],
            "rejected": ["A", "B", "C", "D"],
            "beta": [0.1, None, 0.2, 0.3],
            "keep": [True, False, False, True],
            "flip": [False, False, True, True],
        }
    )
    PairDPOConfig(output_dir="unused", bf16=False)  # the logger needs accelerate's state
    marked, counts = apply_marks(rows, name="train")
    assert asdict(counts) == {"left_out": 1, "flipped": 1}
    assert marked["chosen"][:] == ["a", "b", "D"]
    assert marked["rejected"][:] == ["A", "B", "d"]
    assert marked["beta"][:] == [
        0.1,
        None,
        0.3,
    ]  # what becomes of a null is `missing_values`'s to say
    logps = {"ref_chosen_logps": [-1.0, -2.0], "ref_rejected_logps": [-3.0, -4.0]}
    two_rows = rows.select([0, 3])
    for name, values in logps.items():
        two_rows = two_rows.add_column(name, values)
    two_rows, _ = apply_marks(two_rows, name="train")
    assert two_rows["ref_chosen_logps"][:] == [-1.0, -4.0]
    assert two_rows["ref_rejected_logps"][:] == [-3.0, -2.0]
    unmarked = rows.select_columns(["chosen", "rejected"])
    plain, counts = apply_marks(unmarked, name="train")
    assert plain is unmarked
    assert (len(plain), asdict(counts)) == (4, {"left_out": 0, "flipped": 0})
    with pytest.raises(ValueError, match="leaves none of the 1 rows"):
        apply_marks(rows.select([2]), name="train")
    assert remove_marks(rows).column_names == ["chosen", "rejected", "beta"]


def test_rows_to_evaluate_on_are_not_smoothed_for_the_exchanged_label():
    rows = Dataset.from_dict(
        {
            "chosen": ["a", "b", "c"],
            "rejected": ["d", "e", "f"],
            "label_smoothing": [0.2, 0.3, None],
            "flip": [False, True, True],
        }
    )
    plain = remove_marks(rows)
    # The second label is wrong with the probability 0.7; the largest legal smoothing is 0.4999.
    assert plain["label_smoothing"][:] == [0.2, 0.4999, None]
    assert plain["chosen"][:] == ["a", "b", "c"]
    assert "flip" not in plain.column_names
    exchanged, counts = apply_marks(rows, name="train")
    assert exchanged["label_smoothing"][:] == [0.2, 0.3, None]
    assert (exchanged["chosen"][:], counts.flipped) == (["a", "e", "f"], 2)


def test_a_run_leaves_a_model_and_its_results(tmp_path, model_dir):
    arguments = write_run(
        tmp_path,
        columns={"beta": [None, *BETAS[1:]], "has_beta": [False] + [True] * 7},
        model_name_or_path=model_dir,
        held_out=0.6,
        missing_values="drop",
        max_steps=1,
        seed=3,
    )
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(SINGLE)]
    result = subprocess.run(
        [*launch, str(RECIPES / "train.py"), *arguments],
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert "rows have no beta and are dropped" in result.stderr
    output = tmp_path / "run"
    results = json.loads((output / "results.json").read_text())
    # By their SHA-256 prompts 3, 5 and 6 are below 0.6; pair 0 has no beta.
    assert results["rows"] == {
        "train": {
            "available": 5,
            "without_beta": 1,
            "refused": 0,
            "used": 4,
            "left_out": 0,
            "flipped": 0,
        },
        "eval": {"available": 3, "without_beta": 0, "refused": 0, "used": 3},
    }
    assert results["beta"] == {"mean": pytest.approx(0.2125), "min": 0.1, "max": 0.3}
    assert results["train_loss"] == pytest.approx(math.log(2), abs=1e-6)  # D = 0 in step 1
    assert 0 <= results["eval"]["eval_rewards/accuracies"] <= 1
    assert "eval_margins/unscaled" in results["eval"]
    assert (results["dataset"], results["seed"], results["held_out"]) == ("dataset", 3, 0.6)
    assert set(results["versions"]) == {"torch", "transformers", "trl"}
    assert AutoTokenizer.from_pretrained(output).chat_template
    assert AutoModelForCausalLM.from_pretrained(output).config.hidden_size == 16
    assert "2601.22385" in (output / "README.md").read_text()
    assert not list(output.glob("*.tmp"))
    # A step's line holds what a person watches, results.json and the trainer's state the rest.
    lines = [line for line in result.stdout.splitlines() if "loss" in line]
    assert re.fullmatch(
        r"step 1/1  epoch 1\.00  loss 0\.6931  accuracy 0\.00  margin [-+]0\.000 nats"
        r"  beta 0\.1 to 0\.3  learning rate \d\.\d\de[-+]\d\d  [\d,]+ tokens/s  0:00:00 left",
        lines[0],
    )
    assert "grad_norm" not in result.stdout
    # Nothing that a user cannot act on, and no progress bars: this is no terminal.
    output_text = result.stdout + result.stderr
    assert not re.search(r"warning|deprecat|it/s|%\|", output_text, re.IGNORECASE), output_text


def test_a_run_goes_on_from_the_last_checkpoint_that_there_is(tmp_path):
    def checkpoint(setting):
        return find_checkpoint(
            PairDPOConfig(output_dir=str(tmp_path), resume_from_checkpoint=setting, bf16=False)
        )

    assert (checkpoint(None), checkpoint("false"), checkpoint("true")) == (None, None, None)
    for step in (2, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text("{}")
        (tmp_path / f"checkpoint-{step}" / "optimizer.pt").touch()
    assert checkpoint("true") == str(tmp_path / "checkpoint-10")
    assert checkpoint(str(tmp_path / "checkpoint-2")) == str(tmp_path / "checkpoint-2")
    with pytest.raises(ValueError, match="checkpoint-3 is not a folder; `true` resumes"):
        checkpoint(str(tmp_path / "checkpoint-3"))


def test_the_demo_data_set_folder_is_read_the_way_the_hub_reads_it(tmp_path):
    write_run(tmp_path)
    rows = load_dataset(str(tmp_path / "dataset"), split="train")
    assert rows["prompt"][0] == [{"role": "user", "content": "say the number 0"}]
