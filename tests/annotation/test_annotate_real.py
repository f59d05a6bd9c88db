"""A panel that finishes, whatever happens: a real vLLM of ours, killed again and again, and we too.

`SP2DPO_REAL_PAIRS` names a folder with llmbar.jsonl; without it the demo corpus takes its place.
"""

import os
import random
import signal
import sqlite3
import subprocess
import time
from contextlib import closing
from pathlib import Path

import psutil
import pytest
import yaml

from support.harness import COMMAND, DEMO, ROOT, succeed, write_panel
from support.services_fixtures import TEACHER_NAME, serve_without_gpu

pytestmark = pytest.mark.services

REAL = os.environ.get("SP2DPO_REAL_PAIRS")
PAIRS = Path(REAL) / "llmbar.jsonl" if REAL else DEMO / "pairs.jsonl"
KILLS = ["engine", "ourselves", "engine", "ourselves"]
OVERHEAD = 128
"""Tokens of a block: vLLM on a CPU keeps whole ones."""


@pytest.fixture(scope="module")
def panel(tmp_path_factory, vllm_environment, tiny_teacher):
    path = tmp_path_factory.mktemp("served") / "panel.yaml"
    write_panel(
        path,
        "http://127.0.0.1:9/v1",
        names=("tiny",),
        model=TEACHER_NAME,
        sampling={"temperature": 1.0, "max_tokens": 400},
        max_in_flight=16,
        timeout=120,
    )
    config = yaml.safe_load(path.read_text())
    del config["teachers"][0]["base_url"]
    config["teachers"][0]["serve"] = serve_without_gpu(vllm_environment, tiny_teacher) | {
        "restarts": 20
    }
    path.write_text(yaml.safe_dump(config))
    return path


def stored(path):
    if not path.exists():
        return 0
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
        try:
            return database.execute("SELECT count(*) FROM replies").fetchone()[0]
        except sqlite3.OperationalError:  # not made yet
            return 0


def wait_for(path, count, running):
    """Waits until so many more replies are stored; whether the run still goes on."""
    target = stored(path) + count
    while running.poll() is None and stored(path) < target:
        time.sleep(0.1)
    return running.poll() is None


def engines(of):
    """The processes of vLLM below one of ours."""
    return [
        process for process in psutil.Process(of.pid).children(recursive=True)
        if "EngineCore" in " ".join([process.name(), *process.cmdline()])
    ]  # fmt: skip


@pytest.fixture(scope="module")
def finished(panel):
    """A run that was killed at random moments; seeded, so that a failure can be seen again."""
    moments = random.Random(20261121)
    store = panel.with_name("run.sqlite")
    command = [
        *COMMAND, "annotate", "--pairs", PAIRS, "--panel", panel, "--store", store, "--serve",
    ]  # fmt: skip
    left, killed, outputs = list(KILLS), [], []
    while True:
        with subprocess.Popen(
            list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as running:
            while left and wait_for(store, moments.randint(10, 40), running):
                victim = left.pop(0)
                killed.append(victim)
                if victim == "ourselves":
                    running.kill()
                    break
                for engine in engines(running):
                    engine.send_signal(signal.SIGKILL)
            output, _ = running.communicate(timeout=900)
        outputs.append(output)
        if running.returncode == 0:
            return {"store": store, "killed": killed, "said": outputs, "command": command}
        assert running.returncode == -signal.SIGKILL, output[-3000:]


def test_every_key_is_there_exactly_once_after_all_that_killing(finished):
    assert finished["killed"] == KILLS
    with closing(sqlite3.connect(finished["store"])) as database:
        pairs = database.execute("SELECT count(*) FROM pairs").fetchone()[0]
        keys = database.execute(
            'SELECT count(DISTINCT pair_id || teacher || variant || "order") FROM replies'
        ).fetchone()[0]
        repeated = database.execute(
            "SELECT count(*) FROM replies WHERE status = 'kept' GROUP BY pair_id, teacher, variant "
            "HAVING count(*) > 1"
        ).fetchall()
    assert pairs == (419 if REAL else 96)
    assert keys == 3 * pairs
    assert repeated == []
    summary = f"{3 * pairs} asked for = "
    assert summary in finished["said"][-1]
    assert "+ 0 pending" in finished["said"][-1]


def test_a_server_that_died_was_started_again_and_its_log_kept(finished):
    output = "".join(finished["said"])
    assert output.count("restarting it") >= KILLS.count("engine")
    log = finished["store"].with_name("run.sqlite.tiny.log")
    assert log.stat().st_size > 1000


def test_nothing_of_ours_is_left_running(finished):
    folder = str(finished["store"].parent)
    left = [
        process
        for process in psutil.process_iter(["cmdline"])
        if folder in " ".join(process.info["cmdline"] or [])
    ]
    assert left == []


def test_going_on_with_a_finished_store_starts_no_server(finished):
    arguments = [word for word in finished["command"][len(COMMAND) :] if word != "--serve"]
    assert "+ 0 pending" in succeed(*arguments)


def test_most_of_a_pair_is_read_once(finished):
    """Of the prompt tokens beyond what all requests share, 45 % and more come from the cache."""
    with closing(sqlite3.connect(finished["store"])) as database:
        rows = database.execute(
            "SELECT prompt_tokens, cached_tokens FROM replies WHERE prompt_tokens IS NOT NULL"
        ).fetchall()
    shared = min(cached for _, cached in rows if cached)  # whole blocks of the rubric's own text
    beyond = sum(tokens - shared for tokens, _ in rows)
    cached = sum(max(0, cached - shared) for _, cached in rows)
    assert cached >= 0.45 * beyond, f"{cached / beyond:.1%} of {beyond} tokens"


def test_the_servers_command_alone_runs_a_server(panel):
    command = [*COMMAND, "serve", panel, "--teacher", "tiny", "--log", panel.with_name("alone.log")]
    with subprocess.Popen(
        list(map(str, command)), stderr=subprocess.PIPE, text=True, cwd=ROOT
    ) as running:
        for line in running.stderr:
            if "is served at http://127.0.0.1:" in line:
                break
        else:
            pytest.fail("the server did not start")
        running.send_signal(signal.SIGINT)
        running.communicate(timeout=60)
    assert running.returncode == 130
