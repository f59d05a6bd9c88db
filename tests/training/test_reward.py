"""From a reward model to MADPO: trained without a fold, scored on it, weighed, trained with."""

import json
import os
import subprocess
import sys
import warnings
from dataclasses import replace

import polars as pl
import pytest
import torch
from datasets import load_dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from sp2dpo.betas.baselines import Madpo
from sp2dpo.training.reward_model import Scoring, prompt_fold, score_dataset
from support.harness import BUILD, ROOT, SCHEDULE, fail, recipe, run, succeed, train

FOLDS = 2


def reward(model, dataset, output, *arguments, launched=False):
    """Run the recipe, in this process or as a person launches it."""
    words = [
        "--config", ROOT / "recipes" / "reward" / "tiny-demo.yaml", "--model_name_or_path", model,
        "--dataset", dataset, "--output_dir", output, *arguments,
    ]  # fmt: skip
    if launched:
        launch = [
            sys.executable, "-m", "accelerate.commands.launch",
            "--config_file", ROOT / "recipes" / "accelerate" / "single.yaml",
            ROOT / "recipes" / "reward.py",
        ]  # fmt: skip
        result = subprocess.run(
            [str(word) for word in (*launch, *words)],
            env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
        assert result.returncode == 0, result.stderr[-3000:]
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        recipe("reward").main([str(word) for word in words])


@pytest.fixture(scope="module")
def rewards(demo, tiny_student, tmp_path_factory):
    """A reward model for each fold of the demo's prompts."""
    folder = tmp_path_factory.mktemp("rewards")
    for fold in range(FOLDS):
        reward(
            tiny_student, demo / "dataset", folder / f"fold-{fold}",
            "--folds", FOLDS, "--fold", fold, "--max_steps", 3, "--traceback", "true",
            launched=fold == 0,
        )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def scored(demo, rewards):
    out = rewards / "scores.parquet"
    output = succeed(*scoring(demo, rewards, out))
    assert "96 pairs: reward margin mean" in output
    return out


def scoring(demo, rewards, out, *arguments):
    model = rewards / "fold-{fold}"
    return [
        "score", "--data", demo / "dataset", "--model", model, "--folds", FOLDS,
        "--max-length", 1024, "--device", "cpu", "--out", out, *arguments,
    ]  # fmt: skip


def test_a_reward_model_is_trained_without_its_fold(demo, rewards):
    prompts = load_dataset(str(demo / "dataset"), split="train")["prompt"]
    sizes = [sum(prompt_fold(prompt, FOLDS) == fold for prompt in prompts) for fold in range(FOLDS)]
    for fold in range(FOLDS):
        results = json.loads((rewards / f"fold-{fold}" / "results.json").read_text())
        assert results["rows"]["eval"] == sizes[fold]
        assert results["rows"]["train"] == 96 - sizes[fold]
        assert 0 <= results["eval"]["eval_accuracy"] <= 1
    assert min(sizes) > 30


def test_every_pair_is_scored_by_the_model_of_its_fold(demo, rewards, scored):
    table = {row["pair_id"]: row for row in pl.read_parquet(scored).iter_rows(named=True)}
    rows = load_dataset(str(demo / "dataset"), split="train")
    assert len(table) == 96
    for fold in range(FOLDS):
        folder = rewards / f"fold-{fold}"
        model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        tokenizer = AutoTokenizer.from_pretrained(folder)

        def alone(pair, side, model=model, tokenizer=tokenizer):
            text = tokenizer.apply_chat_template([*pair["prompt"], *pair[side]], tokenize=False)
            ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
            with torch.no_grad():
                return model(input_ids=ids).logits[0, 0].item()

        mine = [pair for pair in rows if prompt_fold(pair["prompt"], FOLDS) == fold]
        for pair in mine[:6]:
            score = table[pair["pair_id"]]
            assert score["fold"] == fold
            by_hand = alone(pair, "chosen") - alone(pair, "rejected")
            assert score["reward_margin"] == pytest.approx(by_hand, abs=1e-4)


def test_a_run_that_was_stopped_goes_on(demo, rewards, scored, tmp_path):
    rows = load_dataset(str(demo / "dataset"), split="train")
    settings = Scoring(
        data="dataset", model=str(rewards / "fold-{fold}"), revision=None, folds=FOLDS,
        max_length=1024,
    )  # fmt: skip
    out = tmp_path / "scores.parquet"
    score_dataset(rows, settings, out, batch_size=16, device="cpu")
    expected = pl.read_parquet(out)
    assert expected.equals(pl.read_parquet(scored))
    unfinished = tmp_path / "scores.parquet.unfinished"
    assert not unfinished.exists()
    out.unlink()
    head = {"data": "dataset", "model": settings.model, "revision": None, "folds": FOLDS}
    lines = [json.dumps({"key": row.pop("pair_id"), **row}) for row in expected.head(40).to_dicts()]
    begun = "\n".join([json.dumps(head | {"max_length": 1024}), *lines, '{"key": "brok'])
    unfinished.write_text(begun)
    with pytest.raises(ValueError, match="was started with another max_length"):
        score_dataset(rows, replace(settings, max_length=512), out, batch_size=16, device="cpu")
    assert unfinished.read_text() == begun
    unfinished.write_text("notes of mine\nin two lines, and")
    with pytest.raises(ValueError, match="is not a journal of this toolkit; move it away"):
        score_dataset(rows, settings, out, batch_size=16, device="cpu")
    assert unfinished.read_text() == "notes of mine\nin two lines, and"
    unfinished.write_text('{"data": "data')  # killed at the very first line
    assert score_dataset(rows, settings, out, batch_size=16, device="cpu").resumed == 0
    unfinished.write_text(begun)
    assert score_dataset(rows, settings, out, batch_size=16, device="cpu").resumed == 40
    assert pl.read_parquet(out)["reward_margin"].to_list() == pytest.approx(
        expected["reward_margin"].to_list(), abs=1e-5
    )


def test_scores_become_weights_that_a_student_is_trained_with(demo, scored, tiny_student, tmp_path):
    betas, store = tmp_path / "betas.parquet", demo / "run.sqlite"
    arm = SCHEDULE.parent / "arms" / "madpo.yaml"
    succeed(*("schedule", "--store", store, "--schedule", arm, "--scores", scored, "--out", betas))
    table = pl.read_parquet(betas).join(pl.read_parquet(scored), on="pair_id", suffix="_scored")
    weights = Madpo(c_max=2, c_min=0.5, lam=1, tau=6.906755).values(table["reward_margin_scored"])
    assert table["weight"].to_list() == pytest.approx(weights.tolist())
    succeed(*BUILD, "--store", store, "--betas", betas, "--out", tmp_path / "dataset")
    results = train(
        tiny_student, tmp_path / "dataset", tmp_path / "student", "--max_steps", "2",
        "--eval_strategy", "no", "--held_out", "0", "--pair_columns", "beta", "weight",
    )  # fmt: skip
    assert results["pair_columns"] == ["beta", "weight"]
    assert results["rows"]["train"]["used"] == 96


def test_what_is_no_reward_model_is_refused(demo, tiny_student, tmp_path):
    out = tmp_path / "scores.parquet"
    common = ("--data", demo / "dataset", "--device", "cpu", "--out", out)
    assert "has 2 outputs" in fail("score", "--model", tiny_student, *common)
    assert "cannot be read" in fail("score", "--model", tmp_path / "nowhere", *common)
    result = run("score", "--model", tiny_student, "--folds", 3, *common)
    assert result.returncode == 2
    assert "{fold}" in result.stderr
    assert not out.exists()


def test_a_fold_that_is_none_is_said_in_one_line(demo, tiny_student, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        reward(tiny_student, demo / "dataset", tmp_path / "out", "--folds", 2, "--fold", 2)
    assert stopped.value.code == 2
    assert "fold 2 of 2: folds count from 0" in capsys.readouterr().err.splitlines()[-1]


def test_conversations_that_are_cut_are_counted(demo, rewards, tmp_path):
    out = tmp_path / "scores.parquet"
    command = [str(word) for word in scoring(demo, rewards, out)]
    command[command.index("--max-length") + 1] = "60"
    output = succeed(*command)
    cut = int(pl.read_parquet(out)["cut"].sum())
    assert cut > 0
    assert f"{cut} of them longer than 60 tokens: cut at the beginning" in output
