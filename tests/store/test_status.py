"""Where a run stands: its numbers worked out by hand, while it runs, and when it was killed."""

import json
import os
import signal
import sqlite3
import subprocess
import threading
import time
from contextlib import closing
from dataclasses import replace

import pytest

from sp2dpo.inference.client import Reply
from sp2dpo.inference.endpoint import Endpoint, Price
from sp2dpo.pairs.sources import Source
from sp2dpo.panel.annotation import Annotation, Key
from sp2dpo.panel.panel import Panel
from sp2dpo.panel.rubric import load_rubric
from sp2dpo.report.status import collect_status, find_annotating_process
from sp2dpo.report.text import status_lines
from sp2dpo.store.database import only_writer
from sp2dpo.store.questions import SettledPair
from sp2dpo.store.records import ReplyRecord
from sp2dpo.store.usage import Slice, recent_usage, sum_usage
from sp2dpo.text import json_values
from support.harness import COMMAND, fail, pairs_of, succeed, write_pairs, write_panel

VARIANTS = ("direct", "critic", "reader")


def a_teacher(name, **fields):
    return Endpoint(
        name=name,
        model=name,
        revision=None,
        base_urls=("http://127.0.0.1:9/v1",),
        sampling={"temperature": 0, "max_tokens": 100},
        **fields,
    )


def panel_of(*teachers, rubric="semantic-gap", variants=VARIANTS, **fields):
    return Panel(rubric=load_rubric(rubric), variants=variants, teachers=teachers, **fields)


def begun(store, count, panel):
    rows = pairs_of(count)
    store.corpus.add(Source(name="hand.jsonl"), rows)
    store.record_panel(panel)
    return [row.pair.id for row in rows]


def reply_record(
    pair_id,
    name,
    variant="direct",
    *,
    at=0.0,
    seconds=1.0,
    prompt=100,
    completion=20,
    cached=None,
    reason=None,
    order="chosen-first",
    better=None,
    attempt=0,
):
    """A reply that arrived at a moment and took so much; kept unless it has a reason."""
    return ReplyRecord(
        key=Key(pair_id=pair_id, teacher=name, variant=variant, order=order, attempt=attempt),
        annotation=None
        if reason
        else Annotation(
            category="style", magnitude=5, confidence=5, rationale="because", better=better
        ),
        reason=reason,
        detail=None,
        raw="{}",
        reply=Reply(
            text="{}",
            finish_reason="stop",
            model=name,
            prompt_tokens=prompt,
            completion_tokens=completion,
            cached_tokens=cached,
            seconds=seconds,
        ),
        arrived=at,
    )


def imported(pair_id, name, variant="direct", *, prompt=None, reason=None):
    """A reply out of a file: nobody took its time, and perhaps nobody counted its tokens."""
    timed = reply_record(pair_id, name, variant, at=7000.0, reason=reason)
    counts = {"prompt_tokens": prompt, "completion_tokens": prompt and 20}
    finish = None if reason else "stop"
    reply = replace(timed.reply, finish_reason=finish, model=None, seconds=None, **counts)
    return replace(timed, reply=reply)


def declined(pair_id, name, variant):
    """A request that the server would not answer: no reply, no tokens."""
    return ReplyRecord(
        key=Key(pair_id=pair_id, teacher=name, variant=variant),
        annotation=None,
        reason="http-400",
        detail="",
        raw="",
        reply=None,
        arrived=0.0,
    )


def counts(row):
    return {name: row[name] for name in ("asked", "kept", "refused", "spared", "pending")}


def test_every_row_adds_up_and_the_rows_add_up_to_the_total(new_store):
    store = new_store()
    first, second, _ = begun(store, 3, panel_of(a_teacher("a"), a_teacher("b", retries=0)))
    store.add_replies(
        [
            reply_record(first, "a"),
            reply_record(second, "a"),
            reply_record(first, "a", "critic", reason="not-json"),  # to be asked again
            declined(second, "a", "critic"),
            reply_record(first, "b", "reader", reason="not-json"),  # is not asked again
        ]
    )
    payload = json_values(collect_status(store.path))
    a, b = payload["teachers"]
    assert [counts(cell) for cell in a["cells"]] == [
        {"asked": 3, "kept": 2, "refused": {}, "spared": 0, "pending": 1},
        {"asked": 3, "kept": 0, "refused": {"http-400": 1}, "spared": 0, "pending": 2},
        {"asked": 3, "kept": 0, "refused": {}, "spared": 0, "pending": 3},
    ]
    assert counts(a) == {
        "asked": 9, "kept": 2, "refused": {"http-400": 1}, "spared": 0, "pending": 6,
    }  # fmt: skip
    assert counts(b) == {
        "asked": 9, "kept": 0, "refused": {"not-json": 1}, "spared": 0, "pending": 8,
    }  # fmt: skip
    assert counts(payload["total"]) == {
        "asked": 18, "kept": 2, "refused": {"http-400": 1, "not-json": 1}, "spared": 0,
        "pending": 14,
    }  # fmt: skip
    assert (a["requests"], payload["total"]["requests"]) == (4, 5)


def test_tokens_are_summed_and_a_server_that_leaves_zeros_out_is_understood(new_store):
    store = new_store()
    first, second = begun(store, 2, panel_of(a_teacher("a"), a_teacher("silent")))
    store.add_replies(
        [
            # nothing cached: vLLM does not say 0
            reply_record(first, "a", prompt=100, completion=10),
            reply_record(second, "a", prompt=300, completion=30, cached=160),
            reply_record(first, "silent"),
            reply_record(second, "silent", prompt=None),
            declined(second, "silent", "critic"),
        ]
    )
    a, silent = json_values(collect_status(store.path))["teachers"]
    assert (a["prompt_tokens"], a["completion_tokens"]) == (400, 40)
    assert (a["cached_tokens"], a["cached_share"]) == (160, 0.4)
    assert (silent["cached_tokens"], silent["cached_share"]) == (None, None)
    assert silent["untold"] == 1  # what was declined took no tokens


def test_the_rate_is_that_of_the_last_ten_minutes_before_the_newest_reply(new_store):
    store = new_store()
    ids = begun(store, 40, panel_of(a_teacher("a")))
    # An hour ago ten replies in a hundred seconds; now ten in ten, each in flight for one second.
    store.add_replies(
        [
            reply_record(pair_id, "a", at=1000.0 + 10 * n, seconds=10)
            for n, pair_id in enumerate(ids[:10])
        ]
    )
    store.add_replies(
        [reply_record(pair_id, "a", at=5000.0 + n) for n, pair_id in enumerate(ids[10:20])]
    )
    teacher = json_values(collect_status(store.path))["teachers"][0]
    assert teacher["replies_per_second"] == pytest.approx(10 / 10)
    assert teacher["busy_seconds"] == pytest.approx(100 + 10)
    assert teacher["pending"] == 120 - 20
    assert teacher["seconds_left"] == pytest.approx(100)


def test_a_pause_is_no_work_and_requests_side_by_side_count_once():
    def reply(started, ended):
        return Slice(
            teacher="a", variant="direct", order="chosen-first", requests=1, uncounted=0, timed=1,
            untimed=0, prompt=0, completion=0, cached=None, started=started, ended=ended,
        )  # fmt: skip

    assert sum_usage([reply(20, 30), reply(0, 4), reply(2, 6), reply(3, 5)]).seconds == 6 + 10
    assert recent_usage([]).rate is None


def test_what_is_left_takes_the_replies_that_are_asked_for_again_into_account(new_store):
    store = new_store()
    pair_id, _ = begun(store, 2, panel_of(a_teacher("a"), variants=("direct",)))
    store.add_replies(
        [
            reply_record(pair_id, "a", at=1.0, reason="not-json"),
            reply_record(pair_id, "a", at=2.0, attempt=1),
        ]
    )
    teacher = json_values(collect_status(store.path))["teachers"][0]
    assert (teacher["kept"], teacher["pending"], teacher["requests"]) == (1, 1, 2)
    assert teacher["seconds_left"] == pytest.approx(2)  # two replies at one a second


def test_money_by_the_token_and_by_the_hour(new_store):
    store = new_store()
    by_token = Price(prompt=2.0, completion=10.0, cached=0.5)
    by_hour = Price(gpu_hour=3.6, gpus=2, currency="EUR")
    panel = panel_of(
        a_teacher("tokens", price=by_token), a_teacher("hours", price=by_hour), variants=("direct",)
    )
    ids = begun(store, 4, panel)
    for n, pair_id in enumerate(ids[:2]):
        store.add_replies(
            [reply_record(pair_id, "tokens", prompt=1000, completion=100, cached=400)]
        )
        store.add_replies([reply_record(pair_id, "hours", at=float(n), seconds=1)])
    status = collect_status(store.path)
    payload = json_values(status)
    tokens, hours = payload["teachers"]
    # For each of two replies 600 x 2 + 400 x 0.5 + 100 x 10 millionths; as many are to come.
    assert tokens["money"] == pytest.approx(2 * 2400e-6)
    assert tokens["money_left"] == pytest.approx(2 * 2400e-6)
    # Two seconds on two GPUs at a thousandth a second; two more replies take two more seconds.
    assert hours["money"] == pytest.approx(2 * 2 * 0.001)
    assert hours["money_left"] == pytest.approx(2 * 2 * 0.001)
    assert payload["total"]["money"] == pytest.approx({"USD": 4800e-6, "EUR": 0.004})
    assert payload["total"]["unpriced"] == []
    assert "cost so far: 0.0048 USD + 0.004 EUR" in "\n".join(status_lines(status))


def test_money_that_cannot_be_known_is_not_told(new_store):
    store = new_store()
    price = Price(prompt=2.0, completion=10.0)
    panel = panel_of(
        a_teacher("free"), a_teacher("silent", price=price), a_teacher("told", price=price)
    )
    pair_id = begun(store, 1, panel)[0]
    store.add_replies(
        [
            reply_record(pair_id, "free"),
            reply_record(pair_id, "silent", prompt=None),
            reply_record(pair_id, "told"),
        ]
    )
    status = collect_status(store.path)
    payload = json_values(status)
    assert [teacher["money"] for teacher in payload["teachers"]] == [
        None,
        None,
        pytest.approx(400e-6),
    ]
    assert payload["total"]["unpriced"] == ["free", "silent"]
    assert "not included: free, silent" in "\n".join(status_lines(status))


def test_replies_out_of_a_file_have_no_rate_no_time_and_no_price_by_the_hour(new_store):
    store = new_store()
    price = Price(gpu_hour=3.6, gpus=2, currency="EUR")
    panel = panel_of(a_teacher("a", price=price), variants=("direct", "critic"))
    ids = begun(store, 3, panel)
    store.add_replies([imported(pair_id, "a") for pair_id in ids])
    store.add_replies([declined(ids[0], "a", "critic")])
    store.add_replies([imported(ids[1], "a", "critic", reason="unfinished")])
    status = collect_status(store.path)
    payload = json_values(status)
    a = payload["teachers"][0]
    assert (a["kept"], a["pending"], a["untold"], a["untimed"]) == (3, 2, 4, 4)
    assert a["busy_seconds"] is a["replies_per_second"] is a["seconds_left"] is None
    assert a["money"] is a["money_left"] is None
    lines = status_lines(status)
    assert "4 replies came without token counts" in lines
    assert any(line.split() == ["a", "-", "-", "-", "-", "-"] for line in lines)
    assert any(line.startswith("4 replies have no response time") for line in lines)


def test_replies_out_of_a_file_leave_the_rate_of_the_others_alone(new_store):
    store = new_store()
    panel = panel_of(a_teacher("a", price=Price(gpu_hour=3.6, gpus=1)), variants=("direct",))
    ids = begun(store, 10, panel)
    store.add_replies(
        [
            reply_record(pair_id, "a", at=100.0 + 2 * n, seconds=2)
            for n, pair_id in enumerate(ids[:3])
        ]
    )
    store.add_replies([imported(pair_id, "a", prompt=50) for pair_id in ids[3:8]])
    a = json_values(collect_status(store.path))["teachers"][0]
    assert (a["requests"], a["untold"], a["untimed"]) == (8, 0, 5)
    assert a["busy_seconds"] == pytest.approx(6)
    assert a["replies_per_second"] == pytest.approx(3 / 6)
    assert a["seconds_left"] == pytest.approx(2 / 0.5)
    assert a["money"] is None  # of five nobody knows it
    assert a["money_left"] == pytest.approx(4 * 0.001)


def test_what_a_server_declined_is_no_answer_and_has_no_time(new_store):
    store = new_store()
    ids = begun(store, 9, panel_of(a_teacher("a"), variants=("direct",)))
    store.add_replies([reply_record(ids[0], "a", at=5.0, seconds=1)])
    store.add_replies(
        [replace(declined(pair_id, "a", "direct"), arrived=5.0) for pair_id in ids[1:8]]
    )
    a = json_values(collect_status(store.path))["teachers"][0]
    assert (a["untold"], a["untimed"], a["replies_per_second"]) == (0, 0, pytest.approx(1))


def test_the_command_tells_what_was_imported_without_inventing_anything(tmp_path):
    pairs = write_pairs(tmp_path / "pairs.jsonl", 2)
    panel = write_panel(tmp_path / "panel.yaml", "http://127.0.0.1:9/v1")
    panel_and_store = ("--panel", panel, "--store", tmp_path / "run.sqlite")
    out, replies = tmp_path / "requests.jsonl", tmp_path / "replies.jsonl"
    succeed("export-requests", "--pairs", pairs, *panel_and_store, "--out", out)
    content = json.dumps(
        {"rationale": "because", "category": "style", "magnitude": 4, "confidence": 7}
    )
    answer = {"choices": [{"finish_reason": "stop", "message": {"content": content}}]}
    lines = [
        {
            "custom_id": json.loads(line)["custom_id"],
            "response": {"status_code": 200, "body": answer},
            "error": None,
        }
        for line in out.read_text().splitlines()
    ]
    replies.write_text("".join(json.dumps(line) + "\n" for line in lines))
    succeed("import-replies", *panel_and_store, replies)
    output = succeed("status", "--store", tmp_path / "run.sqlite")
    assert "6 replies came without token counts" in output
    assert any(line.split()[:3] == ["scripted", "-", "-"] for line in output.splitlines())


@pytest.mark.parametrize("name", ["a", "organisation/a-teacher-with-a-very-long-name-{}-instruct"])
def test_every_line_fits_a_terminal(new_store, name):
    store = new_store()
    prices = [Price(gpu_hour=1234.5, gpus=8), Price(prompt=2.0, completion=3.0)]
    teachers = [a_teacher(name.format(n) + str(n), price=price) for n, price in enumerate(prices)]
    panel = panel_of(*teachers, rubric="semantic-gap-blind", variants=VARIANTS, budget="adaptive")
    ids = begun(store, 3, panel)
    reasons = ("not-json", "schema", "length", "unfinished", "empty", "http-400", "too-long")
    store.add_replies(
        [
            reply_record(
                pair_id, teacher.name, variant, order=order, attempt=2, reason=reason, better="A"
            )
            for pair_id in ids
            for teacher in teachers
            for variant, order, reason in (
                ("direct", "chosen-first", reasons[0]),
                ("direct", "rejected-first", reasons[1]),
                ("critic", "chosen-first", reasons[2]),
                ("critic", "rejected-first", reasons[3]),
                ("reader", "chosen-first", reasons[5]),
            )
        ]
    )
    status = collect_status(store.path)
    large = {"asked": 10**8, "kept": 10**7, "prompt_tokens": 10**11}
    wide = replace(
        status,
        total=replace(status.total, **large),
        teachers=[
            replace(teacher, cells=[replace(cell, **large) for cell in teacher.cells])
            for teacher in status.teachers
        ],
    )
    lines = status_lines(wide)
    assert max(map(len, lines)) <= 100
    # Cut in the middle, so that they can still be told apart.
    rows = [line.split()[0] for line in lines if line.startswith((name[0], "all"))]
    assert {row[-1] for row in rows} == {"0", "1", "l"}


def test_two_teachers_may_work_side_by_side_or_one_after_the_other(new_store):
    store = new_store()
    ids = begun(store, 10, panel_of(a_teacher("a"), a_teacher("b"), variants=("direct",)))
    store.add_replies(
        [reply_record(pair_id, "a", at=float(n)) for n, pair_id in enumerate(ids[:5])]
    )
    store.add_replies(
        [reply_record(pair_id, "b", at=2.0 * n, seconds=2) for n, pair_id in enumerate(ids[:5])]
    )
    status = collect_status(store.path)
    payload = json_values(status)
    assert payload["total"]["seconds_left_side_by_side"] == pytest.approx(10)
    assert payload["total"]["seconds_left_in_turn"] == pytest.approx(15)
    assert "left: 10 s if the teachers work in parallel, 15 s one after the other" in status_lines(
        status
    )


def test_a_teacher_that_was_not_heard_yet_has_no_time_left_that_is_known(new_store):
    store = new_store()
    ids = begun(store, 2, panel_of(a_teacher("a"), a_teacher("b", price=Price(gpu_hour=1, gpus=1))))
    store.add_replies([reply_record(ids[0], "a")])
    payload = json_values(collect_status(store.path))
    b = payload["teachers"][1]
    assert (b["pending"], b["seconds_left"], b["money_left"]) == (6, None, None)
    assert payload["total"]["seconds_left_in_turn"] is None


def test_both_orders_of_a_blind_panel_have_a_row(new_store):
    store = new_store()
    panel = panel_of(a_teacher("a"), rubric="semantic-gap-blind", variants=("direct",))
    pair_id, _ = begun(store, 2, panel)
    store.add_replies([reply_record(pair_id, "a", order="rejected-first", better="A")])
    status = collect_status(store.path)
    payload = json_values(status)
    cells = payload["teachers"][0]["cells"]
    assert [(cell["order"], cell["asked"], cell["kept"]) for cell in cells] == [
        ("chosen-first", 2, 0),
        ("rejected-first", 2, 1),
    ]
    assert any("rejected-first" in line for line in status_lines(status))


def test_what_an_adaptive_panel_does_without_is_spared(new_store):
    store = new_store()
    panel = panel_of(a_teacher("a"), a_teacher("b"), budget="adaptive")
    first, second = begun(store, 2, panel)
    store.add_replies(
        [reply_record(first, "a"), reply_record(first, "b"), reply_record(second, "a")]
    )
    store.add_replies([], [SettledPair(pair_id=first, replies=2, chance=0.97)])
    status = collect_status(store.path)
    payload = json_values(status)
    spared = [[cell["spared"] for cell in each["cells"]] for each in payload["teachers"]]
    assert spared == [[0, 1, 1], [0, 1, 1]]
    assert counts(payload["total"]) == {
        "asked": 12, "kept": 3, "refused": {}, "spared": 4, "pending": 5,
    }  # fmt: skip
    assert any(line.startswith("left, at most") for line in status_lines(status))


def test_replies_that_the_last_panel_does_not_ask_are_told_apart(new_store):
    store = new_store()
    pair_id = begun(store, 1, panel_of(a_teacher("a"), a_teacher("b")))[0]
    store.add_replies(
        [
            reply_record(pair_id, "a"),
            reply_record(pair_id, "a", "critic"),
            reply_record(pair_id, "b"),
        ]
    )
    store.record_panel(panel_of(a_teacher("a"), variants=("direct",)))
    status = collect_status(store.path)
    payload = json_values(status)
    assert counts(payload["total"]) == {
        "asked": 1, "kept": 1, "refused": {}, "spared": 0, "pending": 0,
    }  # fmt: skip
    assert (payload["total"]["requests"], payload["outside"]["replies"]) == (1, 2)
    assert "2 replies of teachers or variants" in "\n".join(status_lines(status))


def test_before_anything_was_annotated_there_is_nothing_but_pairs(new_store):
    store = new_store()
    store.corpus.add(Source(name="hand.jsonl"), pairs_of(3))
    output = succeed("status", "--store", store.path)
    assert "3 pairs of hand.jsonl" in " ".join(output.split())  # wrapped where the path is long
    assert "no annotation yet" in output
    payload = json.loads(succeed("status", "--store", store.path, "--json"))
    assert (payload["teachers"], payload["total"]["asked"], payload["budget"]) == ([], 0, None)


def test_a_file_that_is_no_store_is_refused(tmp_path):
    assert "no such store" in fail("status", "--store", tmp_path / "none.sqlite")
    path = tmp_path / "other.sqlite"
    path.write_text("hello")
    assert "not a store" in fail("status", "--store", path)


def test_a_damaged_file_is_found_out(new_store):
    store = new_store()
    ids = begun(store, 300, panel_of(a_teacher("a")))
    store.add_replies(
        [reply_record(pair_id, "a", variant) for pair_id in ids for variant in VARIANTS]
    )
    with closing(sqlite3.connect(store.path)) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        pages = database.execute("PRAGMA page_count").fetchone()[0]
        size = database.execute("PRAGMA page_size").fetchone()[0]
    with store.path.open("r+b") as file:
        file.seek(pages // 2 * size)
        file.write(b"\xff" * 2 * size)
    error = fail("status", "--store", store.path)
    assert "is damaged" in error
    assert json_values(collect_status(store.path))["integrity"]


def test_a_file_that_the_check_itself_cannot_read_is_damaged(new_store):
    store = new_store()
    ids = begun(store, 300, panel_of(a_teacher("a")))
    store.add_replies(
        [reply_record(pair_id, "a", variant) for pair_id in ids for variant in VARIANTS]
    )
    with closing(sqlite3.connect(store.path)) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        size = database.execute("PRAGMA page_size").fetchone()[0]
    with store.path.open("r+b") as file:
        file.seek(2 * size)
        file.write(b"\xff" * (store.path.stat().st_size - 2 * size))
    assert "is damaged" in fail("status", "--store", store.path)


def test_looking_never_keeps_an_annotation_from_beginning(tmp_path):
    store, mark = tmp_path / "run.sqlite", tmp_path / "run.sqlite.lock"
    looked, over = [], threading.Event()

    def look():
        while not over.is_set():
            looked.append(find_annotating_process(store))

    looking = threading.Thread(target=look)
    looking.start()
    try:
        for _ in range(300):
            # Left behind by a process that was killed; its number is now that of another.
            mark.write_text(str(os.getpid()))
            time.sleep(0.0005)
            with only_writer(store):
                time.sleep(0.0005)
    finally:
        over.set()
        looking.join()
    assert set(looked) == {None, os.getpid()}


def test_it_is_said_who_annotates_until_nobody_does(scripted, tmp_path):
    store = tmp_path / "run.sqlite"
    teacher = scripted(delay=0.1)
    panel = write_panel(tmp_path / "panel.yaml", teacher.url, max_in_flight=2)
    pairs = write_pairs(tmp_path / "pairs.jsonl", 40)
    command = ["annotate", "--pairs", pairs, "--panel", panel, "--store", store]
    with subprocess.Popen(
        [*COMMAND, *map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as running:
        while len(teacher.requests) < 5:
            time.sleep(0.01)
        payload = json_values(collect_status(store))
        assert payload["annotating"] == running.pid
        total = payload["total"]
        assert 0 < total["kept"] < 120 == total["kept"] + total["pending"]
        assert f"process {running.pid} is annotating" in succeed("status", "--store", store)
        running.send_signal(signal.SIGKILL)
    mark = tmp_path / "run.sqlite.lock"
    assert mark.exists()
    assert json_values(collect_status(store))["annotating"] is None
    mark.write_text(str(os.getpid()))  # the number has gone to a process that annotates nothing
    assert json_values(collect_status(store))["annotating"] is None
    assert "no process is annotating into it now" in succeed("status", "--store", store)
