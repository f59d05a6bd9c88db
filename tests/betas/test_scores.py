"""A reward model's scores: read strictly, one line for whatever is wrong."""

import math

import polars as pl
import pytest

from sp2dpo.betas.scores import read_scores


@pytest.fixture
def write(tmp_path):
    def write(table, name="scores.parquet"):
        path = tmp_path / name
        pl.DataFrame(table).write_parquet(path)
        return path

    return write


def test_scores_are_sorted_and_other_columns_do_not_matter(write):
    scores = read_scores(
        write({"fold": [0, 1], "pair_id": ["b", "a"], "reward_margin": [2, -1], "x": [None, None]})
    )
    assert scores.table.to_dicts() == [
        {"pair_id": "a", "reward_margin": -1.0},
        {"pair_id": "b", "reward_margin": 2.0},
    ]
    assert scores.margins(pl.Series(["b", "a", "b"])).to_list() == [2, -1, 2]


def test_the_hash_is_of_pairs_and_values_in_any_order(write):
    expected_hash = read_scores(write({"pair_id": ["a", "b"], "reward_margin": [1.0, 2.0]})).hash
    assert (
        read_scores(write({"pair_id": ["b", "a"], "reward_margin": [2, 1]})).hash == expected_hash
    )
    assert (
        read_scores(write({"pair_id": ["a", "b"], "reward_margin": [1.0, 2.5]})).hash
        != expected_hash
    )
    assert (
        read_scores(write({"pair_id": ["a", "c"], "reward_margin": [1.0, 2.0]})).hash
        != expected_hash
    )


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"pair_id": ["a"]}, "no column reward_margin (it has: pair_id)"),
        ({"score": [1.0]}, "no column pair_id and no column reward_margin"),
        ({"pair_id": [1], "reward_margin": [1.0]}, "pair_id must be text"),
        ({"pair_id": ["a"], "reward_margin": ["1"]}, "and reward_margin a number"),
        (
            {"pair_id": ["a", "b"], "reward_margin": [1.0, math.nan]},
            "1 of 2 reward margins are not numbers from -1e4 to 1e4, the first is nan (pair b)",
        ),
        ({"pair_id": ["a"], "reward_margin": [math.inf]}, "the first is inf"),
        ({"pair_id": ["a"], "reward_margin": [-10_001.0]}, "the first is -10001.0"),
        ({"pair_id": ["a", "b"], "reward_margin": [1.0, None]}, "the first is None (pair b)"),
        ({"pair_id": ["a", "a"], "reward_margin": [1, 1]}, "pair a is scored more than once"),
        ({"pair_id": ["a", None], "reward_margin": [1, 1]}, "1 of 2 rows have no pair_id"),
        (
            {"pair_id": pl.Series(["a"])[:0], "reward_margin": pl.Series([1.0])[:0]},
            "it holds no score",
        ),
    ],
)
def test_scores_that_are_none_are_refused(write, table, message):
    with pytest.raises(ValueError, match=r"scores\.parquet: ") as error:
        read_scores(write(table))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_no_parquet_is_named(tmp_path):
    path = tmp_path / "scores.parquet"
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_scores(path)
    path.write_text("pair_id,reward_margin\n")
    with pytest.raises(ValueError, match="not a Parquet file"):
        read_scores(path)


def test_a_pair_without_a_score_is_named(write):
    scores = read_scores(write({"pair_id": ["a", "b"], "reward_margin": [1.0, 2.0]}))
    with pytest.raises(ValueError, match="1 of 2 pairs with a beta have no score, the first is c"):
        scores.margins(pl.Series(["a", "c"]))
    with pytest.raises(ValueError, match="has no score for any pair"):
        scores.margins(pl.Series(["x", "y"]))
