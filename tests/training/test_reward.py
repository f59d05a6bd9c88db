"""From a reward model to MADPO: trained without a fold, scored on it, weighed, trained with."""

import json
import os
import shutil
import subprocess
import sys
import warnings
from dataclasses import replace

import polars as pl
import pytest
import torch
from datasets import Dataset, load_dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from trl import ModelConfig

from sp2dpo.betas.baselines import Madpo
from sp2dpo.training import FoldConfig, RewardModelConfig, prepare_reward_run
from sp2dpo.training.reward_model import Scoring, prompt_fold, score_dataset
from support.harness import BUILD, ROOT, SCHEDULE, fail, recipe, run, succeed, train
from support.training import conversations

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


@pytest.fixture
def prepare(model_dir, tmp_path):
    """Prepares a run on eight pairs with these columns."""

    def prepare(columns, *, model=None, **settings):
        folder = tmp_path / "data"
        folder.mkdir(exist_ok=True)
        Dataset.from_dict(conversations(**columns)).to_parquet(folder / "train.parquet")
        split = {key: settings.pop(key) for key in ("folds", "fold", "held_out") if key in settings}
        args = RewardModelConfig(
            output_dir=str(tmp_path / "out"), use_cpu=True, bf16=False, report_to="none",
            gradient_checkpointing=False, disable_tqdm=True, max_steps=1, save_steps=1,
            eval_strategy="no", **settings,
        )  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return prepare_reward_run(
                FoldConfig(dataset=str(folder), **split), args,
                ModelConfig(**({"model_name_or_path": model_dir} | (model or {}))),
            )  # fmt: skip

    return prepare


def test_marks_act_on_the_pairs_to_train_on_and_not_on_the_others(prepare):
    marks = {"keep": [True, False] * 4, "flip": [True] * 8}
    rows = conversations()
    run = prepare(marks, folds=2, fold=1)
    is_out = [prompt_fold(prompt, 2) == 1 for prompt in rows["prompt"]]
    expected = [row for row in range(8) if not is_out[row] and row % 2 == 0]
    assert run.eval_rows == sum(is_out)
    assert run.train_rows == len(expected)
    assert run.marks.left_out == 8 - sum(is_out) - len(expected)
    assert run.marks.flipped == len(expected)
    assert run.trainer.train_dataset["chosen"][:] == [
        rows["prompt"][row] + rows["rejected"][row] for row in expected
    ]
    assert run.trainer.eval_dataset["chosen"][:] == [
        rows["prompt"][row] + rows["chosen"][row] for row in range(8) if is_out[row]
    ]


def test_the_card_and_the_results_of_a_reward_model_name_its_data(prepare, tmp_path):
    run = prepare({}, held_out=0.6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = json.loads(run.train().read_text())
    assert results["data"]["dataset"] == "data"
    assert results["eval"]["step"] == 1
    assert str(tmp_path) not in json.dumps(results)
    for folder in ("out", "out/checkpoint-1"):
        assert (tmp_path / folder).exists()
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.count("## Data and settings") == 1
    assert f"fingerprint: {results['data']['fingerprint']}" in card
    assert "held_out: 0.6" in card


def test_a_share_of_the_prompts_can_be_held_out_of_a_single_model(prepare):
    run = prepare({}, held_out=0.6)
    assert 0 < run.eval_rows < 8
    assert run.train_rows + run.eval_rows == 8
    with pytest.raises(ValueError, match="held_out needs folds: 1"):
        prepare({}, held_out=0.6, folds=2)
    with pytest.raises(ValueError, match="held_out 1e-09: one side of the 8 pairs is empty"):
        prepare({}, held_out=1e-9)


def test_a_reward_run_resumes_as_a_run_of_dpo(prepare, tmp_path):
    assert prepare({}, resume_from_checkpoint="true").checkpoint is None
    with pytest.raises(ValueError, match="resume_from_checkpoint: nowhere is not a folder"):
        prepare({}, resume_from_checkpoint="nowhere")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        prepare({}).train()
    assert prepare({}, resume_from_checkpoint="true").checkpoint == str(
        tmp_path / "out" / "checkpoint-1"
    )


def test_the_settings_of_a_model_reach_the_reward_model(prepare):
    run = prepare({}, model={"dtype": "bfloat16", "model_revision": "abc"})
    assert run.trainer.model.dtype == torch.bfloat16
    assert run.trainer.args.model_init_kwargs["revision"] == "abc"


@pytest.mark.parametrize(
    ("columns", "settings", "message"),
    [
        ({}, {"max_length": 8}, "no row of the train data set is left, the first of 8 is row 0"),
        ({}, {"max_length": 8, "held_out": 0.6}, "no row of the"),
        ({"prompt": [None] * 8}, {}, "prompt is empty"),
        ({"images": [["x.png"]] * 8}, {}, "8 of 8 rows of the train data set have images"),
    ],
)
def test_rows_that_no_reward_model_can_be_trained_on_are_refused(
    prepare, columns, settings, message
):
    with pytest.raises(ValueError, match=message):
        prepare(columns, **settings)


def test_a_reward_model_with_a_short_context_asks_for_a_shorter_limit(demo, tiny_student, tmp_path):
    error = fail(
        "score", "--data", demo / "dataset", "--model", tiny_student, "--max-length", 100_000,
        "--device", "cpu", "--out", tmp_path / "scores.parquet",
    )  # fmt: skip
    assert "max_length 100000 is longer than the context of" in error
    assert "which has 8192 tokens: score with --max-length 8192" in error


def test_pairs_that_the_template_refuses_are_dropped_where_a_setting_says_so(
    prepare, model_dir, tmp_path
):
    model = shutil.copytree(model_dir, tmp_path / "model")
    refusal = "{% if messages[0].content[-1] == '5' %}{{ raise_exception('no 5') }}{% endif %}"
    template = (model / "chat_template.jinja").read_text()
    (model / "chat_template.jinja").write_text(refusal + template)
    names = {"model": {"model_name_or_path": str(model)}}
    with pytest.raises(ValueError, match=r"refuses 1 of 8 rows .* row 5 \(pair_id pair-5\)"):
        prepare({}, **names)
    run = prepare({}, template_errors="drop", **names)
    assert len(run.trainer.train_dataset) == 7
