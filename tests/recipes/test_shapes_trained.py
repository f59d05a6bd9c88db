"""Well-known shapes of preference data sets, from the file to a student that is trained on it.

The rows are written for these tests in the columns of the data sets; see `support.shapes`.
"""

import json
import re

import polars as pl
import pytest
from datasets import load_dataset

from servers.openai_server import serving
from support.harness import BUILD, DEMO, ROOT, SCHEDULE, recipe, succeed, train, write_panel
from support.shapes import PAIRS_PER_ROW, SHAPES, answers, prompt_text

pytestmark = [
    pytest.mark.slow,
    # TRL still uses the names that transformers 5.2x deprecates.
    pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing:FutureWarning"),
]
ROWS = 4
TABLE = (ROOT / "docs" / "pairs.md").read_text().partition("## What must be named")[0]


def stack_exchange(n):
    good, bad = answers(n)
    return {"qid": n, "question": prompt_text(n), "response_j": good, "response_k": bad}


def helpsteer2(n):
    good, bad = answers(n)
    return {
        "prompt": prompt_text(n),
        "response_1": good if n % 2 else bad,
        "response_2": bad if n % 2 else good,
        "preference_strength": -2 if n % 2 else 1,
    }


def shp(n):
    good, bad = answers(n)
    return {
        "history": prompt_text(n),
        "human_ref_A": good if n % 2 else bad,
        "human_ref_B": bad if n % 2 else good,
        "labels": n % 2,
    }


def two_responses(n):
    good, bad = answers(n)
    return {
        "prompt": prompt_text(n),
        "response_a": good if n % 2 else bad,
        "response_b": bad if n % 2 else good,
        "winner": "a" if n % 2 else "b",
    }


MORE = {
    "stack_exchange": stack_exchange,
    "helpsteer2": helpsteer2,
    "shp": shp,
    "two_responses": two_responses,
}


def others(n):
    """Columns that no shape has."""
    good, bad = answers(n)
    return {"ask": prompt_text(n), "good": good, "bad": bad}


@pytest.fixture(scope="module")
def panel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes")
    with serving("scripted", "--log", folder / "requests.log") as url:
        yield write_panel(folder / "panel.yaml", url, names=("scripted-a", "scripted-b"))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny model whose chat template has tool calls and tools."""
    out = tmp_path_factory.mktemp("shapes") / "model"
    words = ["--text", DEMO / "pairs.jsonl", "--out", out, "--vocab", 400]
    assert recipe("demo/tiny_model").main([str(word) for word in words]) == 0
    template = out / "chat_template.jinja"
    text = template.read_text().replace(
        "message['content']", "(message.content or '') + (message.tool_calls or '') | string"
    )
    template.write_text("{% if tools %}{{ tools | tojson }}{% endif %}" + text)
    return out


def annotate(panel, folder, row, *options):
    """Annotate rows that this function makes; the output."""
    pairs = folder / "pairs.jsonl"
    pairs.write_text("".join(json.dumps(row(n)) + "\n" for n in range(ROWS)))
    store = folder / "run.sqlite"
    return succeed("annotate", "--pairs", pairs, "--panel", panel, "--store", store, *options)


def check_student(model, tmp_path, per_row=1):
    """Schedule, build and train, and compare what is trained on with the texts of the rows."""
    store, betas, dataset = (tmp_path / name for name in ("run.sqlite", "betas.parquet", "data"))
    succeed("schedule", "--store", store, "--schedule", SCHEDULE, "--out", betas)
    succeed(*BUILD, "--store", store, "--betas", betas, "--out", dataset)
    rows = load_dataset(str(dataset), split="train")
    assert len(rows) == ROWS * per_row
    # The best answer is chosen, whatever the columns are called, and nothing is invented.
    for row in rows:
        number = (row["source_row"] - 1) // per_row
        good, bad = answers(number)
        assert row["prompt"][-1] | {"content": prompt_text(number)} == row["prompt"][-1]
        assert row["chosen"][0]["content"] == good
        assert row["rejected"][0]["content"].startswith(bad)
    results = train(
        model, dataset, tmp_path / "student", "--max_steps", 1, "--held_out", "0",
        "--eval_strategy", "no", "--use_cpu", "true", "--missing_values", "error",
    )  # fmt: skip
    assert results["rows"]["train"]["used"] == ROWS * per_row
    assert results["data"]["schedule"]["map"]
    assert pl.read_parquet(betas)["beta"].mean() == pytest.approx(results["beta"]["mean"])


@pytest.mark.parametrize("shape", [*SHAPES, *MORE])
def test_a_shape_becomes_a_student(shape, panel, model, tmp_path):
    output = annotate(panel, tmp_path, (SHAPES | MORE)[shape])
    # The names that the output gives are those of the table; not every shape has one.
    for name in re.findall(r"read as ([^:\n]+):", output):
        assert name in TABLE
    check_student(model, tmp_path, PAIRS_PER_ROW.get(shape, 1))


def test_columns_of_no_shape_become_a_student_once_they_are_named(panel, model, tmp_path):
    with pytest.raises(AssertionError, match="missing column chosen"):
        annotate(panel, tmp_path, others)
    for left in tmp_path.iterdir():
        left.unlink()
    annotate(panel, tmp_path, others, "--columns", "prompt=ask,chosen=good,rejected=bad")
    check_student(model, tmp_path)
