"""A data set is read from a folder of any name, and never from a folder that a pattern matches."""

import shutil
import sys

import datasets
import polars as pl
import pytest

from sp2dpo import load_pairs
from sp2dpo.betas.file import read_betas
from sp2dpo.tables import read_parquet
from sp2dpo.training.provenance import read_split, trace_rows
from support.browser import INSPECTOR
from support.harness import DEMO, SCHEDULE, fail, succeed, write_panel

sys.path.insert(0, str(INSPECTOR))
import library
import loader

NAMES = [
    "[v1]", "50%", "a b", "über", "run #1", "a?b", "st*r", "it's", 'q"q', "-x", "a::b", "%20x",
    "{x}", "a[0-9]b", "~u", "$HOME", "file:x", "x+y&z=1;w", "back\\slash", ".hidden", " ends ",
    "two\u2028lines",
]  # fmt: skip


@pytest.fixture(scope="module")
def ids(demo):
    return load_pairs(str(demo / "dataset"))["pair_id"][:]


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_of_any_name_is_read(demo, ids, tmp_path, monkeypatch, name):
    folder = tmp_path / name / name
    shutil.copytree(demo / "dataset", folder)
    monkeypatch.chdir(tmp_path)
    for source in (str(folder), f"{name}/{name}"):
        assert load_pairs(source)["pair_id"][:] == ids
        rows = read_split(source, "train", None)
        assert rows["pair_id"][:] == ids
        origin = trace_rows(source, None, rows, ["beta"])
        assert (origin.dataset, bool(origin.schedule)) == (name, True)
    opened = loader.open_folder(folder, tmp_path, name=name, commit=None)
    assert sorted(opened.ids) == sorted(set(ids))
    monkeypatch.setenv("SP2DPO_DATA", str(folder))
    assert library.own_data_set() == str(folder)
    shutil.copy(demo / "betas.parquet", folder / "b.parquet")
    assert len(read_betas(f"{name}/{name}/b.parquet").table) == len(set(ids))


@pytest.mark.parametrize("name", ["a?b", "a*", "a[xy]b", "a{x}b"])
def test_a_name_never_stands_for_another_folder(tmp_path, name):
    for value, folder in enumerate(("axb", name)):
        (tmp_path / folder).mkdir()
        pl.DataFrame({"a": [value]}).write_parquet(tmp_path / folder / "rows.parquet")
    assert read_parquet([tmp_path / name / "rows.parquet"])["a"][:] == [1]


def test_a_rewritten_file_is_read_again_and_files_keep_their_order(tmp_path):
    paths = [tmp_path / f"{name}.parquet" for name in "ba"]
    for path in paths:
        pl.DataFrame({"a": [path.stem]}).write_parquet(path)
    assert read_parquet(paths)["a"][:] == ["b", "a"]
    pl.DataFrame({"a": ["new"]}).write_parquet(paths[1])
    rows = read_parquet(paths)
    assert rows["a"][:] == ["b", "new"]
    assert rows.cache_files, "the rows are mapped from a file, not held in memory"


def test_a_file_without_rows_is_an_empty_data_set_with_its_columns(tmp_path):
    path = tmp_path / "rows.parquet"
    pl.DataFrame({"a": []}, schema={"a": pl.Int64}).write_parquet(path)
    rows = read_parquet([path])
    assert (len(rows), rows.column_names) == (0, ["a"])


def test_files_that_do_not_fit_together_are_named(tmp_path):
    first, second, text = (tmp_path / f"{name}.parquet" for name in "abc")
    pl.DataFrame({"a": [1]}).write_parquet(first)
    pl.DataFrame({"b": ["x"]}).write_parquet(second)
    text.write_text("no Parquet")
    with pytest.raises(ValueError, match="column names don't match"):
        read_parquet([first, second])
    with pytest.raises(ValueError, match=r"c\.parquet: not a readable Parquet file"):
        read_parquet([first, text])


@pytest.mark.parametrize("name", ["[v1]", "a?b", "a::b"])
def test_a_folder_without_a_manifest_is_refused_if_its_name_is_a_pattern(tmp_path, name):
    (tmp_path / name).mkdir()
    pl.DataFrame({"a": [1]}).write_parquet(tmp_path / name / "train.parquet")
    with pytest.raises(ValueError, match=r"for a pattern .* rename or move the folder"):
        read_split(str(tmp_path / name), "train", None)


def test_another_split_of_our_data_sets_does_not_exist(demo):
    with pytest.raises(ValueError, match="its only split is train, not test"):
        read_split(str(demo / "dataset"), "test", None)


def test_only_the_files_of_the_manifest_are_read(demo, ids, tmp_path):
    folder = tmp_path / "dataset"
    shutil.copytree(demo / "dataset", folder)
    pl.DataFrame({"x": [1]}).write_parquet(folder / "data" / "train-00001-of-00002.parquet")
    assert read_split(str(folder), "train", None)["pair_id"][:] == ids


def test_every_file_of_a_run_may_have_an_odd_name(demo, replay_url, tmp_path):
    odd = tmp_path / "[v1] 50% ü#?*'\" $HOME a::b"
    odd.mkdir()
    pairs = shutil.copy(DEMO / "pairs.jsonl", odd / "p[a-z]irs #1.jsonl")
    panel = write_panel(odd / "panel [1].yaml", replay_url, names=("reader-a", "reader-b"))
    schedule = shutil.copy(SCHEDULE, odd / "sched?le.yaml")
    store, betas, out = odd / "run?[1].sqlite", odd / "b*.parquet", odd / "data%20[1]"
    succeed("annotate", "--pairs", pairs, "--panel", panel, "--store", store)
    succeed("status", "--store", store)
    succeed("schedule", "--store", store, "--schedule", schedule, "--out", betas)
    succeed("audit", "--store", store, "--betas", betas)
    succeed("report", "--store", store, "--betas", betas, "--out", odd / "r?.html")
    succeed("build", "--draws", 20, "--store", store, "--betas", betas, "--out", out)
    assert "consistent" in succeed("verify", out)
    succeed("build", "--draws", 20, "--store", store, "--betas", betas, "--out", out)
    assert isinstance(load_pairs(str(out)), datasets.Dataset)
    succeed("merge", "--out", odd / "whole[].sqlite", store)
    succeed("compare", betas, betas)
    requests = odd / "req[1].jsonl"
    fresh = odd / "new#.sqlite"
    succeed(
        "export-requests", "--pairs", pairs, "--panel", panel, "--store", fresh, "--out", requests
    )
    assert list(odd.glob("req*.jsonl"))
    assert "neither a folder" in fail("verify", odd / "nothing?")
