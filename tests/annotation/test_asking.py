"""One teacher, asked through real servers: which replica, in what order, and what does not fit."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from contextlib import ExitStack, closing

import pytest
import yaml

from servers.openai_server import serving
from support.harness import COMMAND, ROOT, TESTS, Scripted, fail, succeed, write_pairs, write_panel


@pytest.fixture
def folder(tmp_path):
    write_pairs(tmp_path / "pairs.jsonl", 40)
    return tmp_path


def annotate(folder, url, *arguments, expect=succeed, **teacher_keys):
    panel = write_panel(folder / "panel.yaml", url, **teacher_keys)
    store = folder / "run.sqlite"
    return expect(
        "annotate", "--pairs", folder / "pairs.jsonl", "--panel", panel, "--store", store,
        *arguments,
    )  # fmt: skip


def replies(folder, columns):
    with closing(sqlite3.connect(folder / "run.sqlite")) as database:
        return database.execute(f"SELECT {columns} FROM replies ORDER BY 1, 2").fetchall()


def test_a_pair_stays_on_one_replica_and_the_pairs_are_shared_out(scripted, folder):
    first, second = scripted(), scripted()
    annotate(folder, [first.url, second.url])
    remainders = Counter(len(teacher.requests) % 3 for teacher in (first, second))
    assert remainders == {0: 2}  # whole pairs only
    assert len(first.requests) + len(second.requests) == 120
    assert min(len(first.requests), len(second.requests)) >= 24
    assert set(first.requests).isdisjoint(second.requests)


def test_the_pairs_of_a_replica_that_dies_move_to_the_other(scripted, folder):
    log = folder / "dying.log"
    with ExitStack() as stack:
        dying = Scripted(
            stack.enter_context(serving("scripted", "--log", log, "--hang-after", 20)),
            log,
        )
        standing = scripted()
        output = annotate(folder, [dying.url, standing.url], timeout=0.5, max_in_flight=4)
    assert "120 asked for = 120 kept + 0 refused + 0 pending" in output
    assert len(standing.requests) >= 100


def test_a_replica_that_is_away_at_the_start_is_named_and_does_without(scripted, folder):
    from support.harness import run

    teacher = scripted()
    result = annotate(folder, ["http://127.0.0.1:9/v1", teacher.url], expect=run)
    assert "120 kept + 0 refused + 0 pending" in result.stdout
    assert "nothing answers at http://127.0.0.1:9/v1" in result.stderr
    assert "using the other replicas meanwhile" in result.stderr
    assert len(teacher.requests) == 120


def test_a_replica_with_another_model_ends_the_run(scripted, folder, replay_url):
    error = annotate(folder, [scripted().url, replay_url], expect=fail)
    assert "does not serve scripted; it serves reader-a" in error


@pytest.mark.parametrize("warm", [True, False])
def test_a_warm_prefix_awaits_the_first_variant(scripted, folder, warm):
    write_pairs(folder / "pairs.jsonl", 1)
    annotate(folder, scripted(delay=0.5).url, warm_prefix=warm)
    arrived = dict(replies(folder, "variant, arrived"))
    later = min(arrived["critic"], arrived["reader"]) - arrived["direct"]
    assert (later > 0.4) is warm


def test_what_does_not_fit_into_the_context_is_set_aside_unasked(scripted, folder):
    with (folder / "pairs.jsonl").open("a") as lines:
        long = {"prompt": "word " * 4000, "chosen": "yes", "rejected": "no"}
        lines.write(json.dumps(long) + "\n")
    teacher = scripted(context=3000)
    output = annotate(folder, teacher.url)
    assert "123 asked for = 120 kept + 3 refused (too-long 3) + 0 pending" in output
    assert len(teacher.requests) == 120
    detail = next(row[1] for row in replies(folder, "status, detail") if row[0] == "refused")
    assert "and max_tokens 300 exceed the model's 3000" in detail


def test_pairs_too_long_at_the_beginning_do_not_end_the_run(scripted, folder):
    rows = (folder / "pairs.jsonl").read_text()
    long = [{"prompt": f"{n} word " * 4000, "chosen": "y", "rejected": "n"} for n in range(8)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in long) + rows)
    output = annotate(folder, scripted(context=3000).url)
    assert "144 asked for = 120 kept + 24 refused (too-long 24) + 0 pending" in output


def test_replies_that_all_reach_the_token_limit_are_answered_with_advice(scripted, folder):
    error = annotate(folder, scripted("length").url, retries=0, expect=fail)
    assert "raise max_tokens in its sampling" in error


def test_the_servers_own_words_are_shown_where_it_declines_everything(scripted, folder):
    teacher = scripted("status", status=422, faults=-1)
    assert "scripted fault" in annotate(folder, teacher.url, expect=fail)


def test_a_replica_that_hangs_keeps_little_of_the_work(scripted, folder):
    write_pairs(folder / "pairs.jsonl", 300)
    hanging, standing = scripted(hang_after=30), scripted()
    output = annotate(folder, [hanging.url, standing.url], timeout=2, max_in_flight=16)
    assert "900 kept" in output
    # What was in flight when it fell ill, then single trials.
    assert len(hanging.requests) <= 30 + 16 + 6


def test_a_server_that_wants_to_be_left_alone_is(scripted, folder):
    write_pairs(folder / "pairs.jsonl", 1)
    teacher = scripted(faults=3, status=429, retry_after=2)
    started = time.time()
    assert "3 kept" in annotate(folder, teacher.url)
    assert replies(folder, "arrived, variant")[0][0] - started >= 2


def test_a_request_that_is_told_to_wait_for_ever_is_refused_in_the_end(scripted, folder):
    write_pairs(folder / "pairs.jsonl", 8)
    teacher = scripted("valid", limited="Question 3")
    output = annotate(folder, teacher.url, "--patience", 2)
    assert "24 asked for = 21 kept + 3 refused (http-429 3) + 0 pending" in output


def test_a_server_that_cannot_count_is_asked_all_the_same(scripted, folder):
    write_pairs(folder / "pairs.jsonl", 2)
    assert "6 kept" in annotate(folder, scripted(context=400, counts=0).url)


def test_logprobs_become_expectations_and_stay_traceable(scripted, folder):
    sampling = {"temperature": 0, "max_tokens": 300, "logprobs": True, "top_logprobs": 5}
    annotate(folder, scripted().url, sampling=sampling)
    rows = replies(
        folder, "magnitude, expected_magnitude, confidence, expected_confidence, logprobs"
    )
    assert len(rows) == 120
    for magnitude, expected_magnitude, confidence, expected_confidence, tokens in rows:
        assert expected_magnitude == magnitude
        assert expected_confidence == confidence
        assert {entry["field"] for entry in json.loads(tokens)} == {
            "category", "magnitude", "confidence",
        }  # fmt: skip


def test_no_logprobs_are_kept_where_the_panel_does_not_ask(scripted, folder):
    annotate(folder, scripted().url)
    assert set(replies(folder, "expected_magnitude, logprobs")) == {(None, None)}


def served(folder, environment):
    panel = write_panel(folder / "panel.yaml", "http://127.0.0.1:9/v1")
    config = yaml.safe_load(panel.read_text())
    (teacher,) = config["teachers"]
    del teacher["base_url"]
    teacher["serve"] = {"environment": str(environment), "args": ["--max-model-len", "4096"]}
    panel.write_text(yaml.safe_dump(config))
    return panel


def test_the_command_of_a_panel_is_shown_and_never_run_unasked(folder):
    ran = folder / "ran"
    program = folder / "environment" / "bin" / "vllm"
    program.parent.mkdir(parents=True)
    program.write_text(f"#!/bin/sh\ntouch {ran}\n")
    program.chmod(0o755)
    panel = served(folder, folder / "environment")
    command = ["annotate", "--pairs", folder / "pairs.jsonl", "--panel", panel]
    store = ["--store", folder / "run.sqlite"]
    error = fail(*command, *store)
    assert "runs only after confirmation; give --serve" in error
    assert not ran.exists()
    error = fail(*command, *store, "--serve")
    assert "--max-model-len 4096" in error
    assert ran.exists()


def test_serving_wants_a_teacher_that_says_how(folder, tmp_path):
    panel = write_panel(tmp_path / "panel.yaml", "http://127.0.0.1:9/v1")
    assert "not a `serve`" in fail("serve", panel, "--teacher", "scripted")
    assert "did you mean 'scripted'" in fail("serve", panel, "--teacher", "scriptd")


def test_serve_runs_a_teacher_until_it_is_interrupted(folder):
    program = folder / "environment" / "bin" / "vllm"
    program.parent.mkdir(parents=True)
    source = (TESTS / "servers" / "stand_in_vllm.py").read_text()
    program.write_text(f"#!{sys.executable} -IS\n{source}")
    program.chmod(0o755)
    panel = served(folder, folder / "environment")
    config = yaml.safe_load(panel.read_text())
    hosted = config["teachers"][0] | {"name": "hosted", "api_key_env": "SP2DPO_TEST_KEY"}
    del hosted["serve"]
    config["teachers"].append(hosted | {"base_url": "http://127.0.0.1:9/v1"})
    panel.write_text(yaml.safe_dump(config))
    command = [*COMMAND, "serve", panel, "--teacher", "scripted", "--log", folder / "alone.log"]
    with subprocess.Popen(
        list(map(str, command)),
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env=os.environ | {"SP2DPO_TEST_KEY": "very-secret"},
    ) as running:
        for line in running.stderr:
            if "scripted is served at http://127.0.0.1:" in line:
                break
        else:
            pytest.fail("the server did not start")
        running.send_signal(signal.SIGINT)
        _, messages = running.communicate(timeout=60)
    assert running.returncode == 130
    assert messages == "stopping scripted\n"
    assert f"logs: {folder}/alone*.log" in line
    (start,) = (folder / "environment" / "starts").read_text().splitlines()
    # The server runs code that is not ours: no teacher's API key is for it.
    assert "SP2DPO_TEST_KEY" not in json.loads(start)["variables"]


def test_a_shard_asks_about_its_own_pairs_and_goes_on_without_being_told(scripted, folder):
    teacher = scripted()
    output = annotate(folder, teacher.url, "--shard", "1/4")
    first = len(teacher.requests)
    assert f"{first} asked for = {first} kept" in output
    assert 0 < first < 60
    annotate(folder, teacher.url)
    assert len(teacher.requests) == first
    assert "is for the shard 1/4" in annotate(folder, teacher.url, "--shard", "0/4", expect=fail)


def test_a_shard_without_pairs_is_done_at_once(scripted, folder):
    write_pairs(folder / "pairs.jsonl", 2)
    outputs = [
        succeed(
            "annotate", "--pairs", folder / "pairs.jsonl", "--shard", f"{index}/8",
            "--panel", write_panel(folder / "panel.yaml", scripted().url),
            "--store", folder / f"{index}.sqlite",
        )
        for index in range(8)
    ]  # fmt: skip
    assert sum("no pair falls into the shard" in output for output in outputs) >= 6


def test_a_dry_run_leaves_a_store_as_it_was(scripted, folder):
    teacher = scripted()
    fail_at_once = ["--patience", 0]
    annotate(folder, "http://127.0.0.1:9/v1", *fail_at_once, expect=fail)
    annotate(folder, teacher.url, "--dry-run", "--shard", "0/4")
    assert teacher.requests == []
    assert "120 kept" in annotate(folder, teacher.url)


def test_a_damaged_store_is_not_written_to(scripted, folder):
    teacher = scripted()
    annotate(folder, teacher.url)
    store = folder / "run.sqlite"
    content = bytearray(store.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 8192] = b"\xff" * 8192
    store.write_bytes(content)
    error = annotate(folder, teacher.url, expect=fail)
    assert "run.sqlite is damaged" in error
    assert store.read_bytes() == content


def test_a_teacher_that_fails_lets_the_others_bring_home_what_is_in_flight(scripted, folder):
    slow, refusing = scripted(delay=1), scripted("status", status=401, faults=-1)
    panel = write_panel(folder / "panel.yaml", slow.url, names=("scripted-a", "scripted-b"))
    config = yaml.safe_load(panel.read_text())
    config["teachers"][1]["base_url"] = refusing.url
    panel.write_text(yaml.safe_dump(config))
    command = ["annotate", "--pairs", folder / "pairs.jsonl", "--panel", panel]
    assert "HTTP 401" in fail(*command, "--store", folder / "run.sqlite")
    assert len(slow.requests) >= 1
    assert len(replies(folder, "pair_id, variant")) == len(slow.requests)


def test_panels_in_recipes_can_be_read():
    from sp2dpo.panel.panel import load_panel

    for path in (ROOT / "recipes" / "panels").glob("*.yaml"):
        assert load_panel(path).teachers
