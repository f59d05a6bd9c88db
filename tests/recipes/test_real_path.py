"""The whole path through a real vLLM: annotate, schedule, build, load with stock tools, train.

`SP2DPO_REAL_PAIRS` names a folder with llmbar.jsonl and hh-harmless-test.jsonl.gz; without it the
demo corpus takes their place.
"""

import gzip
import os
from itertools import islice
from pathlib import Path

import polars as pl
import pytest
import yaml

from support.harness import DEMO, SCHEDULE, run, succeed, train, write_panel
from support.services_fixtures import TEACHER_NAME

pytestmark = pytest.mark.services

REAL = os.environ.get("SP2DPO_REAL_PAIRS")
PAIRS = 30
LONGEST = 2500
"""Characters of a row: the tiny tokenizer makes many tokens of them."""


def short_lines(path, count):
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as lines:
        return list(islice((line for line in lines if len(line) < LONGEST), count))


def sample(path):
    """Thirty real pairs in two formats, or thirty of the demo's."""
    if REAL:
        half = PAIRS // 2
        lines = short_lines(Path(REAL) / "llmbar.jsonl", half)
        lines += short_lines(Path(REAL) / "hh-harmless-test.jsonl.gz", half)
    else:
        lines = short_lines(DEMO / "pairs.jsonl", PAIRS)
    assert len(lines) == PAIRS
    path.write_text("".join(lines), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory, vllm_url):
    """A run whose teacher is a real server."""
    folder = tmp_path_factory.mktemp("real")
    panel = write_panel(
        folder / "panel.yaml",
        vllm_url,
        names=("tiny",),
        model=TEACHER_NAME,
        sampling={"temperature": 1.0, "max_tokens": 400, "seed": 0},
        max_in_flight=16,
    )
    schedule = folder / "schedule.yaml"
    schedule.write_text(yaml.safe_dump(yaml.safe_load(SCHEDULE.read_text()) | {"quorum": 2}))
    store, betas = folder / "run.sqlite", folder / "betas.parquet"
    pairs = sample(folder / "pairs.jsonl")
    succeed("annotate", "--pairs", pairs, "--panel", panel, "--store", store)
    succeed("schedule", "--store", store, "--schedule", schedule, "--out", betas)
    inputs = ["--store", store, "--betas", betas]
    succeed("build", *inputs, "--out", folder / "dataset")
    succeed("report", *inputs, "--out", folder / "report.html")
    return folder


def test_a_real_server_answers_for_every_pair_and_variant(finished):
    replies = pl.read_parquet(finished / "dataset" / "annotations" / "*.parquet")
    assert len(replies) == PAIRS * 3
    kept_replies = replies.filter(pl.col("status") == "kept")
    assert len(kept_replies) >= 0.9 * len(replies), replies["reason"].value_counts()
    assert kept_replies["prompt_tokens"].min() > 100
    betas = pl.read_parquet(finished / "betas.parquet")
    assert betas.filter("has_beta")["beta"].is_between(0.03, 0.3).all()


def test_nothing_is_asked_twice_once_the_server_is_gone(finished):
    panel = yaml.safe_load((finished / "panel.yaml").read_text())
    panel["teachers"][0]["base_url"] = "http://127.0.0.1:9/v1"
    (finished / "gone.yaml").write_text(yaml.safe_dump(panel))
    output = succeed(
        "annotate", "--panel", finished / "gone.yaml", "--store", finished / "run.sqlite"
    )
    assert "0 pending" in output


def test_the_data_set_trains_a_student_for_four_steps(finished, tiny_teacher):
    output = finished / "student"
    results = train(tiny_teacher, finished / "dataset", output, "--max_steps", 4)
    assert results["pair_columns"] == ["beta"]
    rows = results["rows"]
    assert rows["train"]["available"] + rows["eval"]["available"] == PAIRS
    assert rows["train"]["used"] >= PAIRS // 2
    betas = pl.read_parquet(finished / "betas.parquet")["beta"]
    assert betas.min() <= results["beta"]["min"] <= results["beta"]["max"] <= betas.max()
    assert (output / "model.safetensors").stat().st_size > 0


def test_explain_arrives_at_the_tables_beta_for_every_pair(finished):
    betas = pl.read_parquet(finished / "betas.parquet")
    inputs = ["--store", finished / "run.sqlite", "--betas", finished / "betas.parquet"]
    for pair_id in betas["pair_id"].head(5):
        assert run("explain", pair_id, *inputs).returncode == 0
