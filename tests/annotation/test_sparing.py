"""An adaptive panel through real HTTP: it asks less, decides the same every time, and can go on."""

import re
import signal
import sqlite3
import subprocess
import time
from contextlib import closing

import polars as pl
import pytest
import yaml

from support.harness import COMMAND, DEMO, ROOT, SCHEDULE, fail, succeed, write_pairs, write_panel

ADAPTIVE = ROOT / "recipes" / "schedules" / "adaptive.yaml"
READERS = ("reader-a", "reader-b", "reader-c")


def panel(folder, url, *, budget="adaptive", **teacher_keys):
    path = write_panel(folder / f"{budget}.yaml", url, names=READERS, **teacher_keys)
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"budget": budget}))
    return path


def annotate(folder, url, store, *arguments, **teacher_keys):
    return [
        "annotate", "--pairs", DEMO / "pairs.jsonl", "--panel", panel(folder, url, **teacher_keys),
        "--store", store, *arguments,
    ]  # fmt: skip


def query(store, sql):
    with closing(sqlite3.connect(store)) as database:
        return database.execute(sql).fetchall()


def answers(store):
    return query(
        store,
        'SELECT pair_id, teacher, variant, "order", attempt, raw FROM replies ORDER BY 1, 2, 3, 4',
    )


@pytest.fixture(scope="module")
def sparing(tmp_path_factory, replay_url):
    """The demo corpus under an adaptive panel."""
    folder = tmp_path_factory.mktemp("sparing")
    output = succeed(*annotate(folder, replay_url, folder / "run.sqlite"))
    return folder, output


def test_it_asks_for_less_and_the_numbers_add_up(sparing):
    folder, output = sparing
    total = re.search(
        r"^864 asked for = (\d+) kept \+ 0 refused \+ (\d+) spared \+ 0 pending", output, re.M
    )
    assert total
    kept, spared = map(int, total.groups())
    assert kept + spared == 864
    assert kept < 600
    assert len(answers(folder / "run.sqlite")) == kept
    settled = query(folder / "run.sqlite", "SELECT count(*), sum(replies) FROM settled")
    assert settled == [(96, kept)]


def test_the_betas_are_close_to_the_full_panels(sparing, demo):
    folder, _ = sparing
    betas = folder / "betas.parquet"
    succeed("schedule", "--store", folder / "run.sqlite", "--schedule", ADAPTIVE, "--out", betas)
    joined = pl.read_parquet(betas).join(
        pl.read_parquet(demo / "betas.parquet"), on="pair_id", suffix="_full"
    )
    near = ((joined["beta"] - joined["beta_full"]).abs() <= 0.02).mean()
    assert near >= 0.85, near


def test_explain_traces_a_beta_to_the_few_replies_that_it_has(sparing):
    folder, _ = sparing
    betas = folder / "few.parquet"
    succeed("schedule", "--store", folder / "run.sqlite", "--schedule", ADAPTIVE, "--out", betas)
    ((pair_id,),) = query(
        folder / "run.sqlite", "SELECT pair_id FROM settled ORDER BY replies, pair_id LIMIT 1"
    )
    output = succeed("explain", pair_id, "--store", folder / "run.sqlite", "--betas", betas)
    assert "beta  0.03 + (0.3 - 0.03)" in output


def test_the_papers_quorum_is_named_where_few_replies_decide(sparing):
    folder, _ = sparing
    output = succeed(
        "schedule", "--store", folder / "run.sqlite", "--schedule", SCHEDULE,
        "--out", folder / "quorum.parquet",
    )  # fmt: skip
    below = int(re.search(r"(\d+) below the quorum of 3", output)[1])
    assert (
        below
        == query(folder / "run.sqlite", "SELECT count(*) FROM settled WHERE replies < 3")[0][0]
    )


def test_a_killed_run_goes_on_to_the_very_same_answers(sparing, tmp_path, replay_url):
    folder, _ = sparing
    store = tmp_path / "run.sqlite"
    command = [*COMMAND, *map(str, annotate(tmp_path, replay_url, store, max_in_flight=1))]
    kills = 0
    for pause in (0.5, 0.7, 0.9):
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as victim:
            time.sleep(pause)
            kills += victim.poll() is None
            victim.send_signal(signal.SIGKILL)
    assert kills
    succeed(*annotate(tmp_path, replay_url, store))
    assert answers(store) == answers(folder / "run.sqlite")
    decided = "SELECT * FROM settled ORDER BY pair_id"
    assert query(store, decided) == query(folder / "run.sqlite", decided)


def test_a_finished_run_asks_nothing_more(sparing, replay_url):
    folder, _ = sparing
    before = answers(folder / "run.sqlite")
    succeed(*annotate(folder, "http://127.0.0.1:9/v1", folder / "run.sqlite"))
    assert answers(folder / "run.sqlite") == before


def test_a_full_panel_afterwards_asks_what_was_spared(sparing, tmp_path, replay_url, demo):
    folder, _ = sparing
    store = tmp_path / "run.sqlite"
    store.write_bytes((folder / "run.sqlite").read_bytes())
    output = succeed(*annotate(tmp_path, replay_url, store, budget="full"))
    assert "864 asked for = 864 kept + 0 refused + 0 pending" in output
    betas = tmp_path / "betas.parquet"
    succeed("schedule", "--store", store, "--schedule", SCHEDULE, "--out", betas)
    assert betas.read_bytes() == (demo / "betas.parquet").read_bytes()


def test_what_was_refused_is_asked_again_under_a_full_budget_only(sparing, tmp_path, replay_url):
    store = tmp_path / "run.sqlite"
    error = fail(*annotate(tmp_path, replay_url, store, "--retry-refused"))
    assert "under `budget: full` only" in error


def test_teachers_that_cannot_be_read_leave_no_pair_open(scripted, tmp_path):
    write_pairs(tmp_path / "pairs.jsonl", 30)
    good, bad = scripted(), scripted("prose")
    path = write_panel(tmp_path / "panel.yaml", good.url, names=("scripted-a", "scripted-b"))
    config = yaml.safe_load(path.read_text()) | {"budget": "adaptive"}
    config["teachers"][1] |= {"base_url": bad.url, "retries": 0}
    path.write_text(yaml.safe_dump(config))
    command = ["annotate", "--pairs", tmp_path / "pairs.jsonl", "--panel", path]
    error = fail(*command, "--store", tmp_path / "run.sqlite")
    assert "none of its first 20 replies can be read" in error


def test_a_small_corpus_is_asked_in_full(scripted, tmp_path):
    write_pairs(tmp_path / "pairs.jsonl", 6)
    path = write_panel(tmp_path / "panel.yaml", scripted().url)
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"budget": "adaptive"}))
    command = ["annotate", "--pairs", tmp_path / "pairs.jsonl", "--panel", path]
    assert "18 kept" in succeed(*command, "--store", tmp_path / "run.sqlite")
