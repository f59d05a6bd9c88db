"""Faults of servers, lines and people: nothing is lost, nothing stored twice, all of it counted.

The expectations come from the faulty teacher's own log and from its schedule.
"""

import json
import re
import signal
import sqlite3
import subprocess
import time
import urllib.request
from collections import Counter
from contextlib import ExitStack, closing
from itertools import pairwise

import pytest

from servers.openai_server import PASSING, UNREADABLE, digest, parse, plan, read_log
from sp2dpo.panel.rubric import load_rubric
from sp2dpo.store.store import Store
from support.harness import COMMAND, TESTS, fail, process, run, succeed, write_pairs, write_panel

pytestmark = pytest.mark.slow

STORM = {
    "seed": 20261, "faulty": 0.15, "slow": 0.005, "never": 0.01, "declined": 0.01,
    "storms": 0.05, "window": 200,
}  # fmt: skip
ANSWERED = ("valid", "slow")


class Stage:
    """A faulty teacher, and the files of the run that asks it."""

    def __init__(self, folder, stack):
        self.folder = folder
        self.stack = stack
        self.store = folder / "run.sqlite"
        self.log = folder / "requests.log"

    def start(self, *, pairs=20, **options):
        write_pairs(self.folder / "pairs.jsonl", pairs)
        self.log.touch()
        words = [
            word
            for name, value in options.items()
            for word in (f"--{name.replace('_', '-')}", str(value))
        ]
        self.schedule = parse("faulty", words)
        command = [TESTS / "servers" / "openai_server.py", "faulty", "--log", self.log, *words]
        self.url = self.stack.enter_context(process(*command))
        return self

    def annotate(self, **panel):
        write_panel(self.folder / "panel.yaml", self.url, **panel)
        return [
            "annotate", "--pairs", self.folder / "pairs.jsonl",
            "--panel", self.folder / "panel.yaml", "--store", self.store,
        ]  # fmt: skip

    def running(self, **panel):
        """The command as a process of its own, to be stopped from outside."""
        command = [*COMMAND, *map(str, self.annotate(**panel))]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def wait_for(self, requests):
        until = time.monotonic() + 30
        while len(self.log.read_bytes().splitlines()) < requests:
            assert time.monotonic() < until, "the teacher was not asked in time"
            time.sleep(0.01)

    @property
    def requests(self):
        return read_log(self.log)

    def by_question(self):
        requests_by_question = {}
        for request in self.requests:
            requests_by_question.setdefault(request.question, []).append(request)
        return requests_by_question

    def stats(self):
        with urllib.request.urlopen(self.url.removesuffix("/v1") + "/stats") as answer:
            return json.load(answer)

    def stored(self):
        """Every key's attempts as (attempt, status, reason, raw), in order."""
        attempts_by_key = {}
        with closing(sqlite3.connect(self.store)) as database:
            rows = database.execute(
                "SELECT pair_id, variant, attempt, status, reason, raw FROM replies "
                "ORDER BY pair_id, variant, attempt"
            )
            for pair_id, variant, *attempt in rows:
                attempts_by_key.setdefault((pair_id, variant), []).append(tuple(attempt))
        return attempts_by_key

    def questions(self):
        """The question that a teacher is asked for each key."""
        rubric = load_rubric("semantic-gap")
        with Store(self.store) as store:
            pairs = [row.pair for row, _ in store.corpus.rows()]
        return {
            (pair.id, variant): digest(rubric.messages(pair, variant)[-1]["content"])
            for pair in pairs
            for variant in rubric.variants
        }


@pytest.fixture
def stage(tmp_path):
    with ExitStack() as stack:
        yield Stage(tmp_path, stack)


def summary(output):
    """What the last line of a run counts: all, kept, refused, pending; and the reasons."""
    total = re.findall(
        r"^(\d+) asked for = (\d+) kept \+ (\d+) refused.* \+ (\d+) pending", output, re.M
    )
    assert total, output
    reasons = re.search(r"^scripted: .* refused \((.*)\) \+", output, re.M)
    pairs = reasons[1].split(", ") if reasons else []
    counted = {name: int(count) for name, count in (pair.rsplit(" ", 1) for pair in pairs)}
    return *map(int, total[-1]), counted


def outcome(done):
    """How a store files the last thing that a teacher did for a key."""
    if done in ANSWERED:
        return "kept"
    return UNREADABLE.get(done) or (f"http-{done}" if done.isdigit() else "no-answer")


def check_accounts(stage, output):
    """The summary, the store and the teacher's log and schedule tell one story."""
    keys, stored, requests = stage.questions(), stage.stored(), stage.by_question()
    plans = {key: plan(question, stage.schedule) for key, question in keys.items()}
    assert set(stored) == set(keys)
    assert set(requests) == set(keys.values())
    for key, question in keys.items():
        attempts, last = stored[key], outcome(plans[key][-1])
        assert [number for number, *_ in attempts] == list(range(len(attempts)))
        assert {status for _, status, _, _ in attempts[:-1]} <= {"refused"}
        readable = attempts[-1][1] == "kept"
        assert readable == (last == "kept"), (key, attempts)
        declined = last.startswith("http-")
        if declined:
            assert [attempt[1:3] for attempt in attempts] == [("refused", last)]
            continue
        sent = {request.text: request.done for request in requests[question] if request.text}
        raw = [digest(text) for *_, text in attempts]
        assert len(set(raw)) == len(raw) or {sent[text] for text in raw} & {"empty"}
        assert raw[-1] == [request.text for request in requests[question] if request.text][-1]
        for (_, _, reason, _), text in zip(attempts, raw, strict=True):
            assert (reason or "kept") == outcome(sent[text])
    counted = Counter(attempts[-1][2] or "kept" for attempts in stored.values())
    kept = counted.pop("kept")
    assert summary(output) == (len(keys), kept, counted.total(), 0, dict(counted))


def test_a_storm_of_faults_loses_nothing_and_stores_nothing_twice(stage):
    stage.start(pairs=6667, **STORM)
    output = succeed(*stage.annotate(max_in_flight=256, timeout=1.5))
    check_accounts(stage, output)
    requests, stored = stage.by_question(), stage.stored()
    done = Counter(request.done for request in stage.requests)
    assert stage.stats() == done
    assert {"429", "500", "503", "400", "reset", "closed", "half", "hang", "drip"} <= set(done)
    assert set(UNREADABLE) <= set(done)
    never = 0
    for key, question in stage.questions().items():
        last = plan(question, stage.schedule)[-1]
        got = Counter(request.done for request in requests[question])
        if last in ANSWERED:
            assert got["valid"] + got["slow"] == 1
        elif last == "400":
            assert got["400"] == 1
            assert set(got) <= {"400", "429"}
        elif last == "500":
            assert got.total() == 10
        else:
            never += 1
            assert len(stored[key]) == 3
        texts = sum(got[name] for name in (*ANSWERED, *UNREADABLE))
        assert texts == sum(
            not (reason or "").startswith("http-") for _, _, reason, _ in stored[key]
        )
    assert 150 < never < 250


# What stops a run, and what refuses one request


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refusal_of_us_stops_the_run_and_is_not_recorded(stage, status):
    stage.start(script=str(status))
    assert f"HTTP {status}" in fail(*stage.annotate())
    assert stage.stored() == {}


def test_a_model_that_is_not_listed_stops_the_run_before_anything_is_asked(stage):
    stage.start()
    assert "does not serve another" in fail(*stage.annotate(model="another"))
    assert stage.requests == []


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refusal_of_us_midway_stops_the_run_and_keeps_what_came(stage, status):
    stage.start(good=50, then=status, delay=0.02)
    result = run(*stage.annotate(max_in_flight=4))
    assert result.returncode == 1
    assert f"HTTP {status}" in result.stderr
    total, kept, refused, pending, _ = summary(result.stdout)
    assert (total, refused, pending) == (60, 0, 60 - kept)
    assert 47 <= kept == len(stage.stored()) <= 50  # the last may have been in flight
    assert {attempts[-1][1] for attempts in stage.stored().values()} == {"kept"}
    assert (
        Counter(request.done for request in stage.requests)[str(status)] <= 8
    )  # in flight, and as many more


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_declined_request_is_refused_without_being_repeated(stage, status):
    stage.start(declined=0.2, decline_with=status, delay=0.01)
    output = succeed(*stage.annotate())
    check_accounts(stage, output)
    declined = Counter(request.done for request in stage.requests)[str(status)]
    assert 3 <= declined <= 20
    assert summary(output) == (60, 60 - declined, declined, 0, {f"http-{status}": declined})
    assert len(stage.requests) == 60


# What passes


@pytest.mark.parametrize("fault", ["502", "504", *PASSING])
def test_a_passing_fault_is_tried_again_and_leaves_no_trace(stage, fault):
    stage.start(pairs=4, script=f"{fault},valid")
    output = succeed(*stage.annotate(timeout=0.5))
    assert summary(output) == (12, 12, 0, 0, {})
    check_accounts(stage, output)
    assert Counter(request.done for request in stage.requests) == {fault: 12, "valid": 12}


def test_the_waits_grow_and_differ(stage):
    stage.start(pairs=4, script="503,503,503,valid")
    succeed(*stage.annotate())
    times = [[request.at for request in requests] for requests in stage.by_question().values()]
    waits = [[late - early for early, late in pairwise(at)] for at in times]
    mean = [sum(column) / len(column) for column in zip(*waits, strict=True)]
    assert mean[0] < mean[2]
    assert min(map(min, waits)) > 0.05
    lasts = [wait[2] for wait in waits]
    assert max(lasts) - min(lasts) > 0.1  # they do not all come back at one moment


@pytest.mark.parametrize("outage", ["503", "refused", "hang"])
def test_an_outage_shorter_than_the_patience_is_survived(stage, outage):
    stage.start(good=30, then=outage, lasting=2, delay=0.01)
    output = succeed(*stage.annotate(max_in_flight=8, timeout=1), "--patience", 30)
    assert summary(output) == (60, 60, 0, 0, {})
    check_accounts(stage, output)


@pytest.mark.parametrize("outage", ["503", "refused", "hang"])
def test_an_outage_longer_than_the_patience_stops_the_run_and_says_how_to_go_on(stage, outage):
    stage.start(good=30, then=outage, delay=0.01)
    started = time.monotonic()
    result = run(*stage.annotate(max_in_flight=8, timeout=1), "--patience", 3)
    assert 3 < time.monotonic() - started < 12
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert "teacher scripted" in result.stderr
    assert "the same command" in result.stderr
    stored = stage.stored()
    assert 22 <= len(stored) <= 30  # lines cut in the middle of a reply lose it
    assert {attempts[-1][1] for attempts in stored.values()} == {"kept"}
    assert summary(result.stdout) == (60, len(stored), 0, 60 - len(stored), {})


def test_patience_counts_from_the_last_success_of_the_teacher(stage):
    """One request fails for longer than the patience, while the others are answered."""
    stage.start(pairs=75, poison_texts='{"Question 7?": "stubborn"}', lasting=2, delay=0.15)
    output = succeed(*stage.annotate(max_in_flight=8), "--patience", 1.5)
    assert summary(output) == (225, 225, 0, 0, {})
    all_requests = stage.by_question().values()
    failing = [requests for requests in all_requests if requests[0].done == "500"]
    assert len(failing) == 3
    assert min(requests[-1].at - requests[0].at for requests in failing) > 1.5


def test_a_poisoned_request_is_refused_after_ten_failures_and_holds_nothing_up(stage):
    stage.start(poison_texts='{"Question 7?": "500", "Question 8?": "hang"}')
    output = succeed(*stage.annotate(max_in_flight=8, timeout=0.5))
    assert summary(output) == (60, 54, 6, 0, {"http-500": 3, "no-answer": 3})
    assert {len(attempts) for attempts in stage.stored().values()} == {1}
    all_requests = stage.by_question().values()
    poisoned = [requests for requests in all_requests if requests[0].done in ("500", "hang")]
    # Ten, and one more where nothing else was answered between the last two.
    assert len(poisoned) == 6
    assert {len(requests) for requests in poisoned} <= {10, 11}
    last_good = max(requests[0].at for requests in all_requests if requests[0].done == "valid")
    assert last_good < min(requests[-1].at for requests in poisoned)


# What cannot be read


def seeds(stage):
    """The seeds of each question, in order; a request that says none has the base 0."""
    return {
        question: [request.seed or 0 for request in requests]
        for question, requests in stage.by_question().items()
    }


@pytest.mark.parametrize("kind", list(UNREADABLE))
def test_an_unreadable_reply_is_kept_raw_and_asked_again_with_another_seed(stage, kind):
    stage.start(pairs=2, script=f"{kind},{kind},valid")
    output = succeed(*stage.annotate())
    assert summary(output) == (6, 6, 0, 0, {})
    assert set(map(tuple, seeds(stage).values())) == {(0, 1, 2)}
    for attempts in stage.stored().values():
        assert [(status, reason) for _, status, reason, _ in attempts] == [
            ("refused", UNREADABLE[kind]),
            ("refused", UNREADABLE[kind]),
            ("kept", None),
        ]
    sent = Counter(request.text for request in stage.requests)
    stored = Counter(digest(raw) for attempts in stage.stored().values() for *_, raw in attempts)
    assert stored == sent


def test_the_seed_of_the_sampling_is_the_base(stage):
    stage.start(pairs=2, script="prose,length,valid")
    succeed(*stage.annotate(sampling={"temperature": 1, "max_tokens": 300, "seed": 7}))
    assert set(map(tuple, seeds(stage).values())) == {(7, 8, 9)}


@pytest.mark.parametrize("retries", [0, 1, 2, 4])
def test_what_stays_unreadable_is_refused_after_the_retries(stage, retries):
    stage.start(never=0.2)
    output = succeed(*stage.annotate(retries=retries))
    stored = stage.stored()
    refused = [attempts for attempts in stored.values() if attempts[-1][1] == "refused"]
    assert len(refused) >= 5
    assert {len(attempts) for attempts in refused} == {retries + 1}
    check_accounts(stage, output)
    assert len(stage.requests) == 60 + len(refused) * retries
    assert set(map(tuple, seeds(stage).values())) == {(0,), tuple(range(retries + 1))}


def test_a_second_run_does_not_repeat_what_was_refused(stage):
    stage.start(never=0.1, declined=0.1)
    first = succeed(*stage.annotate())
    request_count = len(stage.requests)
    assert summary(succeed(*stage.annotate())) == summary(first)
    assert len(stage.requests) == request_count


@pytest.mark.parametrize("script", ["prose", "length", "400"])
def test_a_teacher_of_whom_nothing_could_be_kept_ends_the_run_with_an_error(stage, script):
    stage.start(pairs=2, script=script)
    result = run(*stage.annotate())
    assert result.returncode == 1
    assert "scripted" in result.stderr
    assert summary(result.stdout)[1:4] == (0, 6, 0)


# People who stop it


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_signal_finishes_what_is_in_flight_and_takes_nothing_new(stage, sent, code):
    stage.start(delay=1)
    with stage.running(max_in_flight=6) as stopped:
        stage.wait_for(18)
        time.sleep(0.2)
        stopped.send_signal(sent)
        output, error = stopped.communicate(timeout=20)
    assert stopped.returncode == code, error
    assert "Traceback" not in error
    assert len(stage.requests) == 18
    assert len(stage.stored()) == 18
    assert summary(output) == (60, 18, 0, 42, {})


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_second_signal_stops_at_once_and_leaves_a_store_that_resumes(stage, sent, code):
    stage.start(good=20, then="hang", lasting=3)
    with stage.running(max_in_flight=6) as stopped:
        stage.wait_for(26)
        time.sleep(0.3)
        stopped.send_signal(sent)
        time.sleep(1)
        assert stopped.poll() is None  # it waits for what is in flight
        stopped.send_signal(sent)
        _, error = stopped.communicate(timeout=3)
    assert stopped.returncode == code, error
    assert "Traceback" not in error
    before = len(stage.stored())
    assert 20 <= before <= 26
    time.sleep(2)
    output = succeed(*stage.annotate())
    assert summary(output) == (60, 60, 0, 0, {})
    assert Counter(request.done for request in stage.requests)["valid"] == 60


def test_a_run_interrupted_in_a_storm_resumes_to_the_same_end(stage):
    stage.start(pairs=500, **STORM)
    with stage.running(max_in_flight=64, timeout=1.5) as stopped:
        stage.wait_for(600)
        stopped.send_signal(signal.SIGINT)
        output, error = stopped.communicate(timeout=60)
    assert stopped.returncode == 130, error
    total, kept, refused, pending, _ = summary(output)
    assert total == 1500 == kept + refused + pending
    assert pending > 0
    finished = [attempts for attempts in stage.stored().values() if attempts[-1][1] == "kept"]
    assert kept == len(finished)
    check_accounts(stage, succeed(*stage.annotate(max_in_flight=64, timeout=1.5)))


def test_a_run_killed_again_and_again_in_a_storm_ends_with_each_key_once(stage):
    stage.start(pairs=700, **STORM)
    kills, request_count = 0, 0
    while kills < 5:
        with stage.running(max_in_flight=64, timeout=1.5) as victim:
            stage.wait_for(request_count + 250)
            assert victim.poll() is None
            victim.kill()
        kills += 1
        request_count = len(stage.requests)
    check_accounts(stage, succeed(*stage.annotate(max_in_flight=64, timeout=1.5)))
