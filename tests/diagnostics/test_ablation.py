"""The ensembling ablation: every estimator over the same replies, beside what was planted."""

import json
from dataclasses import replace

import polars as pl
import pytest

from sp2dpo.betas.estimators import Magnitude
from sp2dpo.betas.schedule import load_schedule, schedule_betas
from sp2dpo.diagnostics.ablation import compare_estimators, variations
from sp2dpo.store.annotations import AnnotationTable
from sp2dpo.store.store import Store
from sp2dpo.text import json_values
from support.harness import DEMO, SCHEDULE, fail, succeed

PLANTED = DEMO / "planted.jsonl"
PAPER = load_schedule(SCHEDULE)


@pytest.fixture(scope="module")
def annotations(demo):
    with Store(demo / "run.sqlite") as store:
        return store.annotations()


def rows_of(annotations, schedule=PAPER):
    return json_values(compare_estimators(annotations, schedule, truths=None, draws=20))


def test_the_first_row_is_the_schedule_itself(annotations):
    first = rows_of(annotations)[0]
    table = schedule_betas(annotations, PAPER)
    assert (first["group"], first["pairs"], first["moved"]) == ("the schedule", 96, 0)
    assert first["rho"]["value"] == pytest.approx(1)
    assert first["mean"] == pytest.approx(table["beta"].mean())
    assert first["std"] == pytest.approx(table["beta"].std(ddof=0))
    assert first["floor"] == pytest.approx((table["beta"] <= 0.03 + 0.05 * 0.27 + 1e-9).mean())


def test_everything_that_can_be_varied_is_varied_once(annotations):
    rows = rows_of(annotations)
    names = [(row["group"], row["name"]) for row in rows]
    assert len(set(names)) == len(names) == 17
    assert {group for group, _ in names} == {
        "the schedule", "combined", "one teacher", "one variant", "gap", "map",
    }  # fmt: skip


def test_a_single_teacher_is_what_it_alone_would_give(annotations):
    (row,) = (row for row in rows_of(annotations) if row["name"] == "reader-b")
    alone = AnnotationTable(
        replies=annotations.replies.filter(pl.col("teacher") == "reader-b"),
        pair_ids=annotations.pair_ids,
        rubric=annotations.rubric,
    )
    assert row["mean"] == pytest.approx(schedule_betas(alone, PAPER)["beta"].mean())


def test_an_increasing_map_moves_betas_and_ranks_them_alike(annotations):
    rows = {row["name"]: row for row in rows_of(annotations)}
    for name in ("log-linear", "power(exponent=2.0)", "quantile"):
        assert rows[name]["rho"]["value"] == pytest.approx(1)
        assert rows[name]["moved"] > 0.01


def test_the_others_are_tried_in_the_place_of_an_only_one(annotations):
    alone = replace(PAPER, over_teachers="reader-a", gap=Magnitude())
    names = [(variation.group, variation.name) for variation in variations(annotations, alone)]
    assert ("one teacher", "reader-b") in names
    assert ("combined", "median over variants, mean over teachers") in names
    assert ("gap", "product") in names
    assert ("gap", "magnitude") not in names


def test_expectations_are_tried_where_replies_have_them(annotations):
    assert "estimate" not in {variation.group for variation in variations(annotations, PAPER)}
    expected_annotations = replace(
        annotations,
        replies=annotations.replies.with_columns(
            expected_magnitude=pl.col("magnitude").cast(pl.Float64),
            expected_confidence=pl.col("confidence").cast(pl.Float64),
        ),
    )
    (row,) = (row for row in rows_of(expected_annotations) if row["group"] == "estimate")
    assert (row["name"], row["moved"]) == ("expected", pytest.approx(0))


def test_expectations_of_a_teacher_that_the_schedule_does_not_use_are_not_tried(annotations):
    scores = {
        f"expected_{name}": pl.when(pl.col("teacher") == "reader-a").then(pl.col(name).cast(float))
        for name in ("magnitude", "confidence")
    }
    some = replace(annotations, replies=annotations.replies.with_columns(**scores))
    other = replace(PAPER, over_teachers="reader-b")
    assert "estimate" not in {row["group"] for row in rows_of(some, other)}
    assert "estimate" in {row["group"] for row in rows_of(some)}


def test_a_variant_with_too_few_teachers_to_trim_takes_the_papers_way(annotations):
    # Five teachers, of which one has no reply under `critic`.
    copies = [
        annotations.replies.with_columns(teacher=pl.col("teacher") + suffix)
        for suffix in ("", "-again")
    ]
    replies = pl.concat(copies).filter(pl.col("teacher") != "reader-c-again")
    few = (pl.col("teacher") == "reader-c") & (pl.col("variant") == "critic")
    # As a store gives them: sorted by key.
    kept = replies.filter(~few).sort("pair_id", "teacher", "variant")
    five = replace(annotations, replies=kept)
    trimmed = replace(PAPER, over_teachers="trimmed")
    names = {row["name"] for row in rows_of(five, trimmed) if row["group"] == "one variant"}
    assert names == {"critic, mean over teachers", "direct", "reader"}


def test_the_table_of_the_demo_knows_what_was_planted(demo):
    command = ["estimators", "--store", demo / "run.sqlite", "--schedule", SCHEDULE]
    result = json.loads(succeed(*command, "--gold", PLANTED, "--json", "--draws", 50))
    first = result["rows"][0]["gold"]
    planted = pl.read_ndjson(PLANTED).rename({"pair_id": "source_id", "magnitude": "known"})
    rows = pl.read_parquet(demo / "dataset" / "data" / "*.parquet").select("source_id", "beta")
    right = planted.join(rows, on="source_id").filter(~pl.col("label_flipped"))
    rho = right.select(pl.corr("known", pl.col("beta").round(9), method="spearman")).item()
    assert first["magnitude"]["value"] == pytest.approx(rho)
    assert first["magnitude"]["low"] < rho < first["magnitude"]["high"]
    weak = planted.join(rows, on="source_id").filter(
        (pl.col("beta") - 0.03).round(9) < round(0.05 * 0.27, 9)
    )
    assert first["labels"]["found"] == len(weak)
    assert first["labels"]["precision"]["count"] == weak["label_flipped"].sum()
    assert result["rows"][0]["rho"]["value"] == pytest.approx(1)


def test_without_truths_nothing_is_said_about_them(demo):
    output = succeed(
        "estimators", "--store", demo / "run.sqlite", "--schedule", SCHEDULE, "--draws", 20
    )
    assert "map             quantile" in output
    assert "AUC" not in output


def test_an_arm_is_no_schedule_to_vary(demo):
    arm = SCHEDULE.parent / "arms" / "rand.yaml"
    error = fail("estimators", "--store", demo / "run.sqlite", "--schedule", arm)
    assert "this is an arm of a comparison" in error
    assert error.count("\n") == 1
