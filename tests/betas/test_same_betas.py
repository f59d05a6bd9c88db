"""However a panel was asked, the betas are the same bytes.

The recorded teachers of the demo are asked by one process, by four shards, by a Ray cluster that
loses a node, and through files of requests and replies.
"""

import sqlite3
import subprocess
import sys
from contextlib import closing

import pytest

from servers.openai_server import serving
from support.harness import DEMO, SCHEDULE, TESTS, succeed, write_panel
from support.ray_processes import clustered, started, until

PAIRS = DEMO / "pairs.jsonl"
READERS = ("reader-a", "reader-b", "reader-c")


@pytest.fixture
def panel(tmp_path, replay_url):
    return write_panel(tmp_path / "panel.yaml", replay_url, names=READERS)


def betas_of(store, folder):
    out = folder / "betas.parquet"
    succeed("schedule", "--store", store, "--schedule", SCHEDULE, "--out", out)
    return out.read_bytes()


@pytest.fixture
def expected(demo):
    """What one process makes of it."""
    return (demo / "betas.parquet").read_bytes()


def test_four_shards_merged_give_the_betas_of_one_process(expected, panel, tmp_path):
    shards = [tmp_path / f"shard-{index}.sqlite" for index in range(4)]
    for index, store in enumerate(shards):
        succeed(
            "annotate", "--pairs", PAIRS, "--panel", panel, "--store", store,
            "--shard", f"{index}/4",
        )  # fmt: skip
    merged_store = tmp_path / "whole.sqlite"
    output = succeed("merge", "--out", merged_store, *reversed(shards))
    assert "864 asked for = 864 kept + 0 refused + 0 pending" in output
    assert betas_of(merged_store, tmp_path) == expected


@pytest.mark.slow
def test_a_cluster_that_loses_a_node_gives_the_betas_of_one_process(expected, replay_url, tmp_path):
    """About 20 s."""
    store, panel = tmp_path / "run.sqlite", tmp_path / "panel.yaml"
    command = ["annotate", "--pairs", PAIRS, "--panel", panel, "--store", store, "--engine", "ray"]
    with (
        serving("slow", replay_url, "--delay", 0.1) as url,
        clustered() as ray,
    ):
        write_panel(panel, url, names=READERS, max_in_flight=3)
        ray.tell("add")
        with started([*command, "--ray-address", ray.address]) as running:
            until(lambda: replies_in(store) > 300, running)
            ray.tell("kill")
            output, error = running.communicate(timeout=90)
    assert running.returncode == 0, error
    assert "2 in all" in error
    assert "lost node" in error
    assert "864 asked for = 864 kept + 0 refused + 0 pending" in output
    assert betas_of(store, tmp_path) == expected


def replies_in(store):
    if not store.exists():
        return 0
    with closing(sqlite3.connect(store)) as database:
        (tables,) = database.execute("SELECT count(*) FROM sqlite_master").fetchone()
        return database.execute("SELECT count(*) FROM replies").fetchone()[0] if tables else 0


def test_files_of_requests_and_replies_give_the_betas_of_one_process(
    expected, panel, replay_url, tmp_path
):
    store, out = tmp_path / "run.sqlite", tmp_path / "requests.jsonl"
    options = ["--panel", panel, "--store", store]
    succeed("export-requests", "--pairs", PAIRS, *options, "--out", out, "--per-file", 200)
    files = sorted(tmp_path.glob("requests-*.jsonl"))
    assert len(files) == 6  # 288 requests of each teacher
    replies = []
    for requests in files:
        replies.append(requests.with_name(requests.name.replace("requests", "replies")))
        command = [
            sys.executable,
            TESTS / "support" / "run_batch.py",
            requests,
            replies[-1],
            replay_url,
        ]
        subprocess.run([*map(str, command)], check=True)
    output = succeed("import-replies", *options, *reversed(replies))
    assert "864 lines = 864 new (864 kept, 0 refused)" in output
    assert betas_of(store, tmp_path) == expected
