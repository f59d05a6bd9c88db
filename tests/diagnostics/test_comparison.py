"""Two tables of betas side by side: by hand, and as a person sees them."""

import json
from dataclasses import replace

import polars as pl
import pytest

from sp2dpo.betas.arms import Arm
from sp2dpo.betas.baselines import DropLowest
from sp2dpo.betas.estimators import Magnitude
from sp2dpo.betas.file import BetaTable
from sp2dpo.betas.schedule import load_schedule
from sp2dpo.diagnostics.comparison import compare_betas
from sp2dpo.text import json_values
from support.harness import SCHEDULE, fail, succeed

ARMS = SCHEDULE.parent / "arms"
PAPER = load_schedule(SCHEDULE)


def table(betas, *, arm=None, annotations="a", keep=None, categories=None):
    """Betas of pairs by name; None for one without."""
    has = [beta is not None for beta in betas.values()]
    rows = pl.DataFrame(
        {
            "pair_id": list(betas),
            "beta": list(betas.values()),
            "has_beta": has,
            "keep": has if keep is None else keep,
            "category": categories or ["style"] * len(betas),
        },
        schema_overrides={"beta": pl.Float64},
    )
    return BetaTable(table=rows, arm=arm or Arm(of=PAPER), annotations_hash=annotations)


def compared(first_table, second_table, **settings):
    return json_values(
        compare_betas(first_table, second_table, **({"movers": 3, "draws": 50} | settings))
    )


def test_a_table_is_like_itself():
    betas = table({"a": 0.1, "b": 0.2, "c": 0.3})
    comparison = compared(betas, betas)
    assert comparison["pearson"]["value"] == comparison["spearman"]["value"] == pytest.approx(1)
    # Three pairs are too few for an interval.
    assert comparison["shift"] == {"value": 0, "low": None, "high": None}
    assert comparison["movers"] == []
    assert comparison["differs"] == {}
    assert comparison["same_annotations"]


def test_shift_movers_and_categories_by_hand():
    first_table = table({"a": 0.1, "b": 0.2, "c": 0.3}, categories=["style", "safety", "style"])
    second_table = table({"a": 0.1, "b": 0.1, "c": 0.25}, annotations="b")
    comparison = compared(first_table, second_table, movers=1)
    assert comparison["shift"]["value"] == pytest.approx(-0.05)
    assert (comparison["distance"], comparison["largest"]) == (
        pytest.approx(0.05),
        pytest.approx(0.1),
    )
    assert comparison["movers"] == [
        {"pair_id": "b", "category": "safety", "one": 0.2, "other": 0.1, "shift": -0.1}
    ]
    assert [(row["category"], row["pairs"]) for row in comparison["categories"]] == [
        ("style", 2), ("safety", 1),
    ]  # fmt: skip
    assert comparison["categories"][0]["shift"] == pytest.approx(-0.025)
    assert comparison["categories"][1]["spearman"] is None
    assert not comparison["same_annotations"]


def test_pairs_of_one_table_alone_are_counted():
    first_table = table({"a": 0.1, "b": None, "c": 0.3, "d": 0.1}, keep=[True, False, True, False])
    second_table = table({"a": 0.1, "b": 0.2, "c": 0.1, "e": 0.1}, keep=[True, True, False, True])
    comparison = compared(first_table, second_table)
    assert comparison["pairs"] == {
        "both": 3, "compared": 2, "only_one": 1, "only_other": 1, "beta_only_one": 0,
        "beta_only_other": 1,
    }  # fmt: skip
    assert comparison["kept"] == {"both": 1, "only_one": 1, "only_other": 1}


def test_what_the_schedules_say_differently_is_listed():
    first_table = table({"a": 0.1})
    second_table = table(
        {"a": 0.1}, arm=Arm(of=replace(PAPER, gap=Magnitude()), keep=DropLowest(20))
    )
    assert compared(first_table, second_table)["differs"] == {
        "gap": ["product", "magnitude"],
        "arm: keep": [None, "drop-lowest(percent=20)"],
    }


def test_tables_without_a_common_pair_cannot_be_compared():
    with pytest.raises(ValueError, match="they are from different pairs"):
        compared(table({"a": 0.1}), table({"b": 0.1}))


@pytest.fixture
def permuted(demo, tmp_path):
    out = tmp_path / "permuted.parquet"
    store = demo / "run.sqlite"
    succeed("schedule", "--store", store, "--schedule", ARMS / "permuted.yaml", "--out", out)
    return out


def test_a_person_sees_what_moved(demo, permuted):
    output = succeed(
        *("compare", demo / "betas.parquet", permuted, "--store", demo / "run.sqlite"),
        *("--draws", 50, "--movers", 2),
    )
    assert "arm: beta: A none, B permuted(seed=0)" in output
    assert output.count("demo-") == 2
    comparison = json.loads(
        succeed("compare", demo / "betas.parquet", permuted, "--json", "--draws", 50)
    )
    assert abs(comparison["spearman"]["value"]) < 0.4
    assert comparison["shift"]["value"] == pytest.approx(0, abs=1e-12)  # the same betas


def test_the_picture_is_what_its_name_says(demo, permuted, tmp_path):
    png, svg = tmp_path / "both.png", tmp_path / "both.svg"
    for picture in (png, svg):
        succeed(*("compare", demo / "betas.parquet", permuted, "--draws", 20, "--picture", picture))
    assert png.read_bytes().startswith(b"\x89PNG")
    assert "<svg" in svg.read_text()
    error = fail("compare", permuted, permuted, "--picture", tmp_path / "both.gif")
    assert "must end in .png or .svg" in error
    assert not (tmp_path / "both.gif").exists()


def test_files_that_are_no_betas_are_named(demo, tmp_path):
    assert "no such file" in fail("compare", tmp_path / "a.parquet", demo / "betas.parquet")
    foreign_path = tmp_path / "other.parquet"
    pl.DataFrame({"a": [1]}).write_parquet(foreign_path)
    assert "not a table of betas" in fail("compare", demo / "betas.parquet", foreign_path)
