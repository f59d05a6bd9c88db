"""A file of betas that was damaged, or that another program wrote, is refused with the reason."""

import random

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from sp2dpo.betas.compute import schedule_store
from sp2dpo.betas.file import open_store_and_betas, read_betas, write_betas
from sp2dpo.store.store import Store
from support.harness import SCHEDULE, filled, kept_reply

VARIANTS = ("direct", "critic", "reader")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A store, and the betas that were computed from it."""
    folder = tmp_path_factory.mktemp("betas")
    with Store(folder / "run.sqlite", write=True) as store:
        ids = filled(store, 12, "a")
        store.add_replies(
            [kept_reply(pair_id, "a", variant, number % 11, 10 - number % 7)
             for number, pair_id in enumerate(ids) for variant in VARIANTS]
        )  # fmt: skip
    write_betas(schedule_store(folder / "run.sqlite", SCHEDULE).betas, folder / "betas.parquet")
    return folder


def change(files, path, **columns):
    """Write the betas with other columns, and the metadata that they have."""
    metadata = pl.read_parquet_metadata(files / "betas.parquet")
    table = pl.read_parquet(files / "betas.parquet").with_columns(**columns)
    table.write_parquet(path, metadata={"sp2dpo": metadata["sp2dpo"]})
    return path


BETA = pl.col("beta")
FIRST = pl.int_range(pl.len()) == 0


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"beta": -BETA}, "a beta is below 0"),
        ({"beta": BETA * float("inf")}, "infinite or NaN"),
        ({"beta": pl.when(FIRST).then(float("nan")).otherwise(BETA)}, "infinite or NaN"),
        ({"beta": pl.lit(None, pl.Float64)}, "kept without a beta"),
        ({"pair_id": pl.lit("ab")}, "a pair occurs twice"),
        ({"pair_id": pl.when(~FIRST).then("pair_id")}, "a pair has no id"),
        ({"keep": pl.lit(None, pl.Boolean)}, "has_beta or keep is null"),
        ({"beta": BETA.cast(pl.Float32)}, "its columns are not"),
        ({"beta": BETA.cast(pl.String)}, "its columns are not"),
        ({"votes": pl.lit([1])}, "its columns are not"),
        ({"mine": pl.lit(1)}, r"its columns are not .*it has 'mine'"),
        ({"weight": pl.lit("x")}, "its columns are not"),
    ],
)  # fmt: skip
def test_a_table_that_schedule_does_not_write_is_refused(files, tmp_path, columns, message):
    with pytest.raises(ValueError, match=message):
        read_betas(change(files, tmp_path / "changed.parquet", **columns))


@pytest.mark.parametrize(
    "columns",
    [{"beta": BETA * 1.001}, {"gap": pl.col("gap") / 2}, {"keep": ~FIRST},
     {"votes": pl.lit(1, pl.Int32)}, {"category": pl.lit("other")}, {"weight": pl.lit(0.5)}],
    ids=["beta", "gap", "keep", "votes", "category", "weight"],
)  # fmt: skip
def test_betas_that_do_not_follow_from_the_replies_are_refused(files, tmp_path, columns):
    path = change(files, tmp_path / "changed.parquet", **columns)
    with (
        pytest.raises(ValueError, match="does not follow from the replies"),
        open_store_and_betas(files / "run.sqlite", path),
    ):
        pass


def test_a_small_file_that_states_very_many_rows_is_refused(files, tmp_path):
    path = tmp_path / "bomb.parquet"
    table = pl.read_parquet(files / "betas.parquet").head(1)
    metadata = pl.read_parquet_metadata(files / "betas.parquet")
    rows = table.select(pl.all().repeat_by(200_000).explode())
    rows.write_parquet(path, metadata={"sp2dpo": metadata["sp2dpo"]})
    assert path.stat().st_size < 100_000
    with pytest.raises(ValueError, match="states 200,000 rows, more than its"):
        read_betas(path)


def test_no_flipped_bit_gives_other_betas_without_a_word(files, tmp_path):
    content = (files / "betas.parquet").read_bytes()
    path, expected, refused = tmp_path / "flipped.parquet", read_betas(files / "betas.parquet"), 0
    for seed in range(80):
        chance, damaged = random.Random(seed), bytearray(content)
        damaged[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        try:
            with open_store_and_betas(files / "run.sqlite", path) as (_, betas, _):
                # The last bits of a number may differ, as between two releases.
                assert_frame_equal(betas.table, expected.table, rel_tol=1e-8)
                assert betas.annotations_hash == expected.annotations_hash
        except ValueError:
            refused += 1
    assert refused > 20
