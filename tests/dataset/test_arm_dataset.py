"""The data set of an arm: its columns, its card, and what a student is trained on."""

import json

import polars as pl
import pytest
from datasets import load_dataset

from sp2dpo.betas.file import read_betas
from support.harness import BUILD, SCHEDULE, succeed, train

ARMS = SCHEDULE.parent / "arms"


@pytest.fixture(scope="module")
def built(demo, tmp_path_factory):
    """Builds the data set of an arm."""

    def build(name):
        folder = tmp_path_factory.mktemp(name)
        store, betas, out = demo / "run.sqlite", folder / "betas.parquet", folder / "dataset"
        score_options = ()
        if name in ("madpo", "odpo"):
            pair_ids = read_betas(demo / "betas.parquet").table["pair_id"]
            scores = pl.DataFrame({"pair_id": pair_ids}).with_row_index("n")
            scores = scores.with_columns(reward_margin=pl.col("n").cast(pl.Float64) / 10 - 1)
            scores.write_parquet(folder / "scores.parquet")
            score_options = ("--scores", folder / "scores.parquet")
        arm = ARMS / f"{name}.yaml"
        succeed("schedule", "--store", store, "--schedule", arm, "--out", betas, *score_options)
        succeed(*BUILD, "--store", store, "--betas", betas, "--out", out)
        return out

    return build


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        ("gap-as-margin", {"margin"}),
        ("flip-disputed", {"flip"}),
        ("madpo", {"weight", "reward_margin"}),
        ("gdpo", {"flip"}),
        ("cw-po", {"flip", "weight"}),
        ("gamma-po", {"margin"}),
        ("drop-lowest", set()),
    ],
)
def test_an_arm_adds_its_columns_and_its_card_says_what_they_are(built, name, columns):
    folder = built(name)
    rows = load_dataset(str(folder), split="train")
    assert set(rows.column_names) & {"flip", "weight", "margin", "reward_margin"} == columns
    assert len(rows) == 96
    card, manifest = (
        (folder / "README.md").read_text(),
        json.loads((folder / "manifest.json").read_text()),
    )
    for column in columns:
        assert f"| `{column}` |" in card
    assert "These are the betas of an arm" in card
    kept_count = manifest["counts"]["pairs_kept"]
    assert sum(rows["keep"]) == kept_count
    assert manifest["arm"]
    assert (manifest["scores_sha256"] is not None) == (name == "madpo")


@pytest.mark.slow
def test_a_student_is_trained_on_what_the_arm_keeps(built, tiny_student, tmp_path):
    short = ("--max_steps", "1", "--held_out", "0", "--eval_strategy", "no")
    results = train(tiny_student, built("drop-lowest"), tmp_path / "run", *short)
    assert results["rows"]["train"]["left_out"] == 19
    assert results["rows"]["train"]["used"] == 77
    flipped = train(tiny_student, built("flip-disputed"), tmp_path / "flip", *short)
    assert flipped["rows"]["train"]["flipped"] == 3


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        ("madpo", ["beta", "weight"]),
        ("odpo", ["beta", "margin"]),
        ("cw-po", ["beta", "weight"]),
        ("gamma-po", ["beta", "margin"]),
        ("gdpo", ["beta"]),
    ],
)
def test_a_student_is_trained_with_the_columns_of_published_methods(
    built, tiny_student, tmp_path, name, columns
):
    results = train(
        tiny_student, built(name), tmp_path / "run", "--max_steps", "2", "--held_out", "0.2",
        "--eval_strategy", "no", "--pair_columns", *columns, "--missing_values", "drop",
        "--save_strategy", "steps", "--save_steps", "2", "--logging_steps", "1",
    )  # fmt: skip
    assert results["pair_columns"] == columns
    rows = results["rows"]["train"]
    if name == "odpo":
        assert rows["left_out"] > 0  # where the reward model orders the responses otherwise
    assert rows["used"] == rows["available"] - rows["left_out"] - rows["without_beta"]
    state = json.loads(next((tmp_path / "run").glob("**/trainer_state.json")).read_text())
    logged = {key for entry in state["log_history"] for key in entry}
    assert {"weight/mean", "pairs/saturated", "accuracy/safety"} <= logged
