"""Asking from the nodes of a Ray cluster: what survives a node, a teacher, and being stopped."""

import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing

import pytest
import yaml

from sp2dpo.store.store import Store
from support.harness import TESTS, fail, process, run, succeed, write_pairs, write_panel
from support.ray_processes import clustered, started, until

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster():
    with clustered() as cluster:
        yield cluster


@pytest.fixture
def files(tmp_path):
    class Files:
        pairs = write_pairs(tmp_path / "pairs.jsonl", 60)
        panel = tmp_path / "panel.yaml"
        store = tmp_path / "run.sqlite"
        messages = tmp_path / "messages.txt"

        def annotate(self, url, address, **teacher_keys):
            write_panel(self.panel, url, **teacher_keys)
            return [
                "annotate", "--pairs", self.pairs, "--panel", self.panel, "--store", self.store,
                "--engine", "ray", "--ray-address", address,
            ]  # fmt: skip

        def keys(self):
            if not self.store.exists():
                return []
            with closing(sqlite3.connect(self.store)) as database:
                return database.execute(
                    'SELECT pair_id, variant, "order", attempt FROM replies ORDER BY 1, 2'
                ).fetchall()

        def all_keys(self):
            with Store(self.store) as store:
                ids = [row.pair.id for row, _ in store.corpus.rows()]
            return sorted(
                (i, v, "chosen-first", 0) for i in ids for v in ("direct", "critic", "reader")
            )

    return Files()


def test_a_killed_node_loses_nothing_and_nothing_is_stored_twice(cluster, scripted, files):
    """About 30 s; a node joins again afterwards."""
    cluster.tell("add")
    # Slow enough for the second node, which may take seconds to start, to join before the end.
    teacher = scripted(delay=0.5)
    command = files.annotate(teacher.url, cluster.address, max_in_flight=4)
    with files.messages.open("w") as messages, started(command, stderr=messages) as running:
        until(lambda: "2 in all" in files.messages.read_text(), running)
        joined = len(teacher.requests)
        until(lambda: len(teacher.requests) > joined + 8, running)
        cluster.tell("kill")
        until(lambda: "lost node" in files.messages.read_text(), running)
        cluster.tell("add")
        output, _ = running.communicate(timeout=120)
    cluster.tell("kill")
    error = files.messages.read_text()
    assert running.returncode == 0, error
    assert "180 asked for = 180 kept + 0 refused + 0 pending" in output
    assert files.keys() == files.all_keys()
    assert error.count("asking from node") >= 2
    assert error.count("lost node") == 1
    assert 180 <= len(teacher.requests) <= 180 + 4 * 3  # what was in flight is asked again
    assert "raylet" not in output + error


def test_interrupting_brings_home_what_is_in_flight_and_a_second_run_asks_the_rest(
    cluster, scripted, files
):
    teacher = scripted(delay=0.1)
    command = files.annotate(teacher.url, cluster.address, max_in_flight=4)
    with started(command) as running:
        until(lambda: len(teacher.requests) > 20, running)
        running.send_signal(signal.SIGINT)
        output, error = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "Traceback" not in error
    stored = len(files.keys())
    assert f"180 asked for = {stored} kept + 0 refused + {180 - stored} pending" in output
    assert stored == len(teacher.requests)
    assert "180 kept" in succeed(*command)
    assert files.keys() == files.all_keys()
    assert len(teacher.requests) == 180


IN_A_THREAD = """
import sys
from concurrent.futures import ThreadPoolExecutor
import sp2dpo
pairs, panel, store, address = sys.argv[1:]
with ThreadPoolExecutor(1) as pool:
    future = pool.submit(
        sp2dpo.annotate_pairs, pairs, panel, store, engine="ray", ray_address=address
    )
    print(future.result().kept)
"""


def test_a_thread_other_than_the_main_one_can_annotate(cluster, scripted, files):
    """Jupyter runs an event loop in the main thread, so the run has its own thread there."""
    teacher = scripted()
    files.annotate(teacher.url, cluster.address)
    command = [
        sys.executable, "-c", IN_A_THREAD, files.pairs, files.panel, files.store, cluster.address,
    ]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "180\n"
    assert files.keys() == files.all_keys()


def test_a_driver_that_was_killed_is_followed_by_another(cluster, scripted, files):
    teacher = scripted(delay=0.1)
    command = files.annotate(teacher.url, cluster.address, max_in_flight=4)
    with started(command) as running:
        until(lambda: len(teacher.requests) > 40, running)
        running.send_signal(signal.SIGKILL)
    assert "180 kept" in succeed(*command)
    assert files.keys() == files.all_keys()


def test_nodes_share_the_limit_of_a_server_that_is_not_their_own(cluster, scripted, files):
    """180 answers of 0.1 s, 4 at a time, take 4.5 s; 4 on each node would take half of that."""
    cluster.tell("add")
    teacher = scripted()
    host = cluster.address.rpartition(":")[0]
    with (
        process(
            TESTS / "servers" / "openai_server.py",
            "slow",
            teacher.url,
            "--host",
            host,
            "--delay",
            0.1,
        ) as url,
        started(files.annotate(url, cluster.address, max_in_flight=4)) as running,
    ):
        until(lambda: teacher.requests, running)
        begun = time.monotonic()
        until(lambda: len(teacher.requests) == 180, running)
        seconds = time.monotonic() - begun
        _, error = running.communicate(timeout=60)
    cluster.tell("kill")
    assert running.returncode == 0, error
    assert "2 in all" in error
    assert seconds > 4


def test_a_teacher_that_cannot_be_asked_ends_the_run(cluster, scripted, files):
    error = fail(*files.annotate("http://127.0.0.1:9/v1", cluster.address))
    assert "teacher scripted: nothing answers at http://127.0.0.1:9/v1" in error
    assert "(on node " in error
    assert files.keys() == []


def test_replies_that_cannot_be_read_end_the_run_and_are_stored(cluster, scripted, files):
    teacher = scripted("prose")
    error = fail(*files.annotate(teacher.url, cluster.address, max_in_flight=5))
    assert "none of its first" in error
    assert len(files.keys()) >= 20


def test_an_api_key_must_be_set_on_the_nodes(cluster, scripted, files):
    command = files.annotate(scripted().url, cluster.address, api_key_env="SP2DPO_TEST_KEY")
    error = fail(*command, env={"SP2DPO_TEST_KEY": "very-secret"})
    assert "SP2DPO_TEST_KEY is not set (on node " in error
    assert "very-secret" not in error


def test_what_needs_the_local_engine_says_so(files, tmp_path):
    """No cluster is looked for."""
    nowhere = "127.0.0.1:9"
    command = files.annotate("http://127.0.0.1:9/v1", nowhere)
    assert f"no Ray cluster answers at {nowhere}" in fail(*command)
    config = yaml.safe_load(files.panel.read_text())
    files.panel.write_text(yaml.safe_dump(config | {"budget": "adaptive"}))
    assert "`budget: adaptive` needs the engine `local`" in fail(*command)
    served = config["teachers"][0] | {"serve": {"environment": str(tmp_path)}}
    del served["base_url"]
    files.panel.write_text(yaml.safe_dump(config | {"teachers": [served]}))
    result = run(*command, "--serve")
    assert "the engine `ray` starts no servers" in result.stderr
    assert not list(tmp_path.glob("*.ray.log"))


def test_without_an_address_the_cluster_is_this_computer(scripted, files):
    command = files.annotate(scripted().url, "")[:-2]
    assert "180 kept + 0 refused + 0 pending" in succeed(*command)
    assert files.keys() == files.all_keys()
