"""Annotating through real HTTP: what is asked, what is kept, and what survives."""

import hashlib
import random
import re
import signal
import sqlite3
import subprocess
import time
from contextlib import closing
from pathlib import Path

import pytest
import yaml

from sp2dpo.panel.rubric import load_rubric
from sp2dpo.store.store import Store
from support.harness import (
    COMMAND,
    DEMO,
    SCHEDULE,
    fail,
    run,
    succeed,
    write_pairs,
    write_panel,
)


def stored(path: Path) -> list[tuple]:
    """(pair_id, variant, status, reason, raw) of all replies."""
    with closing(sqlite3.connect(path)) as database:
        return database.execute(
            "SELECT pair_id, variant, status, reason, raw FROM replies ORDER BY 1, 2"
        ).fetchall()


def questions(path: Path) -> dict[tuple[str, str], str]:
    """(pair_id, variant) -> the hash under which a scripted teacher notes the request."""
    rubric = load_rubric("semantic-gap")
    with Store(path) as store:
        pairs = {row.pair.id: row.pair for row, _ in store.corpus.rows()}
    return {
        (pair.id, variant): hashlib.sha256(
            rubric.messages(pair, variant)[-1]["content"].encode()
        ).hexdigest()
        for pair in pairs.values()
        for variant in rubric.variants
    }


@pytest.fixture
def files(tmp_path):
    """Where a run of a scripted teacher keeps its files."""

    class Files:
        pairs = write_pairs(tmp_path / "pairs.jsonl", 20)
        panel = tmp_path / "panel.yaml"
        store = tmp_path / "run.sqlite"

        def annotate(self, url, **teacher_keys):
            write_panel(self.panel, url, **teacher_keys)
            return ["annotate", "--pairs", self.pairs, "--panel", self.panel, "--store", self.store]

    return Files()


def test_every_pair_is_asked_once_in_every_variant(scripted, files):
    teacher = scripted()
    output = succeed(*files.annotate(teacher.url))
    assert "60 asked for = 60 kept + 0 refused + 0 pending" in output
    assert len(stored(files.store)) == 60
    assert sorted(teacher.requests) == sorted(questions(files.store).values())


def test_a_second_run_asks_nothing_and_the_betas_keep_their_bytes(scripted, files, tmp_path):
    teacher = scripted()
    betas = [tmp_path / "one.parquet", tmp_path / "two.parquet"]
    for out in betas:
        succeed(*files.annotate(teacher.url))
        schedule = yaml.safe_load(SCHEDULE.read_text()) | {"quorum": 1}
        (tmp_path / "schedule.yaml").write_text(yaml.safe_dump(schedule))
        succeed(
            "schedule", "--store", files.store,
            "--schedule", tmp_path / "schedule.yaml", "--out", out,
        )  # fmt: skip
    assert len(teacher.requests) == 60
    assert betas[0].read_bytes() == betas[1].read_bytes()


def test_a_finished_store_needs_no_teacher(scripted, files):
    with_teacher = files.annotate(scripted().url)
    succeed(*with_teacher)
    write_panel(files.panel, "http://127.0.0.1:9/v1")  # nobody lives there
    assert "60 kept" in succeed("annotate", "--panel", files.panel, "--store", files.store)


def test_the_variants_of_a_pair_follow_each_other(scripted, files):
    teacher = scripted()
    succeed(*files.annotate(teacher.url, max_in_flight=1))
    of = {question: key for key, question in questions(files.store).items()}
    keys = [of[request] for request in teacher.requests]
    for first in range(0, 60, 3):
        assert len({pair_id for pair_id, _ in keys[first : first + 3]}) == 1
        assert [variant for _, variant in keys[first : first + 3]] == [
            "direct",
            "critic",
            "reader",
        ]


def test_a_killed_run_repeats_at_most_what_was_in_flight(scripted, files):
    """kill -9 at random moments; seeded, so that a failure can be seen again."""
    moments = random.Random(20260131)
    in_flight, kills = 4, 0
    teacher = scripted(delay=0.04)
    command = [*COMMAND, *map(str, files.annotate(teacher.url, max_in_flight=in_flight))]
    while True:
        asked_before = len(teacher.requests)
        safe = {row[:2] for row in stored(files.store)} if files.store.exists() else set()
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as victim:
            while victim.poll() is None and len(teacher.requests) == asked_before:
                time.sleep(0.005)
            time.sleep(moments.uniform(0.02, 0.25))
            kills += victim.poll() is None
            victim.send_signal(signal.SIGKILL)
            victim.wait()
        of = {question: key for key, question in questions(files.store).items()}
        assert safe.isdisjoint(of[request] for request in teacher.requests[asked_before:])
        if len(stored(files.store)) == 60:
            break
    assert kills >= 3
    assert len(teacher.requests) <= 60 + kills * in_flight
    assert "60 kept + 0 refused + 0 pending" in succeed(*files.annotate(teacher.url))


def test_what_came_before_a_hang_is_on_the_disk(scripted, files):
    teacher = scripted(hang_after=10)
    command = [*COMMAND, *map(str, files.annotate(teacher.url, max_in_flight=1))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as victim:
        while len(teacher.requests) < 11:
            time.sleep(0.01)
        time.sleep(0.5)
        victim.send_signal(signal.SIGKILL)
    assert len(stored(files.store)) == 10


def test_interrupting_keeps_all_that_came_and_says_so(scripted, files):
    teacher = scripted(delay=0.05)
    command = [*COMMAND, *map(str, files.annotate(teacher.url, max_in_flight=2))]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as stopped:
        while len(teacher.requests) < 10:
            time.sleep(0.01)
        stopped.send_signal(signal.SIGINT)
        output, error = stopped.communicate(timeout=20)
    assert stopped.returncode == 130
    assert "Traceback" not in error
    numbers = re.search(r"60 asked for = (\d+) kept \+ 0 refused \+ (\d+) pending", output)
    assert numbers
    assert int(numbers[1]) == len(stored(files.store)) >= 8
    assert int(numbers[1]) + int(numbers[2]) == 60


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ("prose", "not-json"),
        ("cut", "not-json"),
        ("out-of-scale", "schema"),
        ("empty", "empty"),
        ("surrogate", "schema"),
        ("length", "length"),
    ],
)
def test_replies_that_cannot_be_read_are_kept_raw_and_end_the_run(
    scripted, files, behaviour, reason
):
    teacher = scripted(behaviour)
    error = fail(*files.annotate(teacher.url, max_in_flight=5, retries=0))
    assert "none of its first" in error
    assert reason in error
    replies = stored(files.store)
    assert 20 <= len(replies) <= 25
    assert {(status, why) for _, _, status, why, _ in replies} == {("refused", reason)}
    assert all(raw for *_, raw in replies) or behaviour == "empty"


def test_a_few_unreadable_replies_of_a_short_run_end_it_with_an_error(scripted, files):
    write_pairs(files.pairs, 2)
    result = run(*files.annotate(scripted("prose").url))
    assert result.returncode == 1
    assert "6 asked for = 0 kept + 6 refused (not-json 6) + 0 pending" in result.stdout
    assert "no reply of scripted could be kept" in result.stderr


def test_a_refused_request_is_recorded_and_not_repeated(scripted, files):
    teacher = scripted(faults=3, status=400)
    output = succeed(*files.annotate(teacher.url))
    assert "57 kept + 3 refused (http-400 3) + 0 pending" in output
    assert len(teacher.requests) == 60


@pytest.mark.parametrize("status", [429, 500, 503])
def test_passing_faults_are_tried_again_and_leave_no_trace(scripted, files, status):
    teacher = scripted(faults=5, status=status)
    assert "60 kept + 0 refused + 0 pending" in succeed(*files.annotate(teacher.url))
    assert len(teacher.requests) == 65


def test_a_server_that_stays_away_ends_the_run_and_loses_nothing(scripted, files):
    teacher = scripted("status", status=503, faults=-1)
    error = fail(*files.annotate(teacher.url), "--patience", 1)
    assert "HTTP 503" in error
    assert stored(files.store) == []
    assert "60 kept" in succeed(*files.annotate(scripted().url))


def test_an_answer_that_is_no_completion_is_tried_again(scripted, files):
    error = fail(*files.annotate(scripted("page").url), "--patience", 1)
    assert "not a JSON object" in error
    assert stored(files.store) == []


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_server_that_refuses_us_ends_the_run_at_once(scripted, files, status):
    teacher = scripted("status", status=status, faults=-1)
    assert f"HTTP {status}" in fail(*files.annotate(teacher.url))
    assert stored(files.store) == []


def test_a_teacher_that_is_not_there_is_named(files):
    error = fail(*files.annotate("http://127.0.0.1:9/v1"))
    assert "teacher scripted: nothing answers at http://127.0.0.1:9/v1" in error


def test_a_model_that_the_server_does_not_serve_is_named(scripted, files):
    error = fail(*files.annotate(scripted().url, model="another"))
    assert "does not serve another; it serves scripted" in error


def test_a_missing_api_key_is_named_before_anything_is_asked(scripted, files):
    teacher = scripted()
    error = fail(*files.annotate(teacher.url, api_key_env="NO_SUCH_KEY"))
    assert "the environment variable NO_SUCH_KEY is not set" in error
    assert teacher.requests == []


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"sampling": {"temperature": 1, "max_tokens": 300}}, "sampling"),
        ({"revision": "abc"}, "revision"),
    ],
)
def test_a_changed_teacher_under_the_same_name_is_refused(scripted, files, change, named):
    teacher = scripted()
    succeed(*files.annotate(teacher.url))
    error = fail(*files.annotate(teacher.url, **change))
    assert f"has the teacher scripted with {named}" in error
    assert len(teacher.requests) == 60


def test_another_rubric_under_the_same_store_is_refused(scripted, files, tmp_path):
    teacher = scripted()
    succeed(*files.annotate(teacher.url))
    rubric = tmp_path / "other.yaml"
    packaged = DEMO.parent / "rubrics" / "semantic-gap.yaml"
    rubric.write_text(packaged.read_text().replace("a matter of taste", "taste"))
    error = fail(*files.annotate(teacher.url, rubric=rubric))
    assert "was annotated under the rubric" in error
    assert len(teacher.requests) == 60


def test_other_pairs_under_the_same_store_are_refused(scripted, files):
    teacher = scripted()
    succeed(*files.annotate(teacher.url))
    write_pairs(files.pairs, 21)
    assert "contains the pairs of pairs.jsonl" in fail(*files.annotate(teacher.url))
    assert len(teacher.requests) == 60


def test_duplicates_are_asked_once_and_map_back_to_all_rows(scripted, files):
    lines = files.pairs.read_text().splitlines()
    files.pairs.write_text("\n".join(lines + lines[:5]) + "\n")
    teacher = scripted()
    output = succeed(*files.annotate(teacher.url))
    assert "25 rows = 25 usable + 0 set aside; 20 distinct pairs" in output
    assert len(teacher.requests) == 60


def test_a_typo_in_the_model_can_be_corrected(scripted, files):
    teacher = scripted()
    fail(*files.annotate(teacher.url, model="scriptedd"))
    assert "60 kept" in succeed(*files.annotate(teacher.url))


def test_two_runs_on_one_store_do_not_get_in_each_others_way(scripted, files):
    teacher = scripted(delay=0.3)
    command = files.annotate(teacher.url, max_in_flight=2)
    first = subprocess.Popen(
        [*COMMAND, *map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with first:
        while not teacher.requests:
            time.sleep(0.01)
        assert f"another process ({first.pid}) is annotating into this store" in fail(*command)
        output, error = first.communicate(timeout=60)
    assert "60 kept + 0 refused + 0 pending" in output, error
    assert len(teacher.requests) == 60
    assert not files.store.with_name("run.sqlite.lock").exists()


def test_what_a_server_says_of_itself_cannot_harm_the_store(scripted, files):
    output = succeed(*files.annotate(scripted("odd-fields").url))
    assert "60 kept + 0 refused + 0 pending" in output
    with closing(sqlite3.connect(files.store)) as database:
        cursor = database.execute(
            "SELECT DISTINCT model, prompt_tokens, cached_tokens FROM replies"
        )
        assert cursor.fetchall() == [("\\ud800\x1b[31m", None, None)]


def test_an_ending_that_is_no_ending_is_a_refusal_in_our_words(scripted, files):
    error = fail(*files.annotate(scripted("odd-ending").url))
    assert "unfinished" in error
    assert "\x1b" not in error
    assert {(status, why) for _, _, status, why, _ in stored(files.store)} == {
        ("refused", "unfinished")
    }


def test_refused_replies_are_asked_again_when_told_to(scripted, files):
    write_pairs(files.pairs, 5)
    fail(*files.annotate(scripted("prose").url, retries=0))
    teacher = scripted()
    once_more = files.annotate(teacher.url, retries=0)
    assert "0 kept + 15 refused (not-json 15) + 0 pending" in run(*once_more).stdout
    assert teacher.requests == []
    output = succeed(*once_more, "--retry-refused")
    assert "15 asked for = 15 kept + 0 refused + 0 pending" in output
    assert len(teacher.requests) == 15
    assert len(stored(files.store)) == 30  # the refused ones are kept beside
    succeed(*once_more, "--retry-refused")
    assert len(teacher.requests) == 15


def test_a_commit_that_fails_at_the_very_end_is_an_error(scripted, files, monkeypatch):
    """The writer's last commit is awaited: a disk that fills up then loses nothing in silence."""
    import asyncio

    from sp2dpo.annotation.local import RunOptions, annotate_locally
    from sp2dpo.pairs.sources import open_source, read_rows
    from sp2dpo.panel.panel import load_panel

    write_pairs(files.pairs, 3)
    files.annotate(scripted().url, max_in_flight=1)
    commit = Store.add_replies

    def add(self, entries, settled):
        stored = sum(self.counts("scripted", ("direct", "critic", "reader")).values())
        if stored + len(entries) == 9:
            raise sqlite3.OperationalError("database or disk is full")
        commit(self, entries, settled)

    monkeypatch.setattr(Store, "add_replies", add)
    with Store(files.store, write=True) as store:
        store.corpus.add(open_source(str(files.pairs)), read_rows(open_source(str(files.pairs))))
        terms = RunOptions(
            patience=1,
            again=False,
            stop=asyncio.Event(),
            progress=lambda entry, final: None,
            spare=print,
            say=print,
        )
        run_of = annotate_locally(store, load_panel(files.panel), terms)
        with pytest.raises(sqlite3.OperationalError, match="disk is full"):
            asyncio.run(run_of)


def test_a_full_disk_ends_the_run_and_keeps_what_was_stored(scripted, files):
    """The largest file that the process may write stands in for the end of the disk."""
    import resource

    write_pairs(files.pairs, 400)
    teacher = scripted()
    command = files.annotate(teacher.url)

    def small_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))

    error = fail(*command, preexec_fn=small_files)
    assert "the store cannot be used" in error
    before = len(stored(files.store))
    assert 0 < before < 1200
    assert "1200 kept + 0 refused + 0 pending" in succeed(*command)
    assert len(teacher.requests) <= 2 * 1200 - before
