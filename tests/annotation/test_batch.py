"""Requests and replies as files: what is asked, what is taken back, and what is left out."""

import gzip
import json
import sqlite3
from contextlib import closing

import pytest

import sp2dpo
from sp2dpo.annotation.request_files import CustomIds
from sp2dpo.panel.panel import load_panel
from sp2dpo.panel.rubric import load_rubric
from sp2dpo.store.database import only_writer
from sp2dpo.store.store import Store
from support.harness import COMMAND, change_store, fail, run, succeed, write_pairs, write_panel

NOBODY = "http://127.0.0.1:9/v1"
ANNOTATION = {"rationale": "because", "category": "style", "magnitude": 4, "confidence": 7}


class Files:
    """A run whose requests and replies are files."""

    def __init__(self, folder, pairs=4, **panel):
        self.folder = folder
        self.pairs = write_pairs(folder / "pairs.jsonl", pairs)
        self.panel = write_panel(folder / "panel.yaml", NOBODY, **panel)
        self.store = folder / "run.sqlite"
        self.out = folder / "requests.jsonl"
        self.replies = folder / "replies.jsonl"
        self.options = ["--panel", self.panel, "--store", self.store]

    def export(self, *arguments):
        for old in self.folder.glob("requests*"):
            old.unlink()
        succeed(
            "export-requests", "--pairs", self.pairs, *self.options, "--out", self.out, *arguments
        )
        return requests_in(self.out) if self.out.exists() else []

    def write(self, *lines):
        texts = (line if isinstance(line, str) else json.dumps(line) for line in lines)
        self.replies.write_text("".join(text + "\n" for text in texts))
        return ["import-replies", *self.options, self.replies]

    def rows(self):
        with closing(sqlite3.connect(self.store)) as database:
            return database.execute(
                "SELECT variant, attempt, status, reason, raw FROM replies ORDER BY rowid"
            ).fetchall()


@pytest.fixture
def files(tmp_path):
    return Files(tmp_path)


def requests_in(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def reply(request, content=None, *, finish="stop", status=200, error=None, **body):
    """The reply to a request, as OpenAI's Batch API writes it."""
    text = content if isinstance(content, str) else json.dumps(content or ANNOTATION)
    message = {"role": "assistant", "content": text}
    completion = {"choices": [{"message": message, "finish_reason": finish}], **body}
    return {
        "id": "batch_req_1",
        "custom_id": request["custom_id"],
        "response": {"status_code": status, "request_id": "r", "body": error or completion},
        "error": None,
    }


def test_a_request_is_what_a_server_would_be_sent(files, scripted, tmp_path):
    requests = files.export()
    rubric = load_rubric("semantic-gap")
    with Store(files.store) as store:
        pairs = [row.pair for row, _ in store.corpus.rows()]

    assert len(requests) == 12
    expected = [
        rubric.messages(pair, variant)
        for pair in pairs
        for variant in ("direct", "critic", "reader")
    ]
    assert [request["body"]["messages"] for request in requests] == expected
    assert {(request["method"], request["url"]) for request in requests} == {
        ("POST", "/v1/chat/completions")
    }
    assert requests[0]["body"]["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "annotation", "strict": True, "schema": rubric.schema()},
    }
    settings = {
        k: v for k, v in requests[0]["body"].items() if k not in ("messages", "response_format")
    }
    assert settings == {"model": "scripted", "temperature": 0, "max_tokens": 300}


def test_custom_ids_are_short_unique_and_begin_with_the_pair(files):
    requests = files.export()
    names = [request["custom_id"] for request in requests]
    with Store(files.store) as store:
        pair_ids = [row.pair.id for row, _ in store.corpus.rows()]

    assert len(set(names)) == 12
    assert max(map(len, names)) == 57
    assert [name[:40] for name in names] == [pair_id[:40] for pair_id in pair_ids for _ in range(3)]


def test_both_orders_of_a_blind_rubric_are_asked_one_after_the_other(tmp_path):
    files = Files(tmp_path, pairs=3, rubric="semantic-gap-blind")
    requests = files.export()
    rubric = load_rubric("semantic-gap-blind")
    with Store(files.store) as store:
        pairs = [row.pair for row, _ in store.corpus.rows()]

    assert [request["body"]["messages"] for request in requests] == [
        rubric.messages(pair, variant, order)
        for pair in pairs
        for order in rubric.orders(pair.id)
        for variant in ("direct", "critic", "reader")
    ]


def test_two_exports_have_the_same_bytes(files):
    files.export()
    first = files.out.read_bytes()
    files.export()
    assert files.out.read_bytes() == first


def test_files_of_no_request_are_refused(files):
    for per_file in (0, -1):
        with pytest.raises(ValueError, match="per_file must be at least 1"):
            sp2dpo.export_requests(
                files.pairs, files.panel, files.store, files.out, per_file=per_file
            )
    assert not files.out.exists()


def test_each_teacher_gets_a_file_and_every_file_so_many_requests(tmp_path):
    files = Files(tmp_path, names=("scripted-a", "scripted/b"))
    files.export("--per-file", 5)
    lengths = {path.name: len(requests_in(path)) for path in tmp_path.glob("requests*")}
    assert lengths == {
        "requests-scripted-a-0001.jsonl": 5,
        "requests-scripted-a-0002.jsonl": 5,
        "requests-scripted-a-0003.jsonl": 2,
        "requests-scripted_b-0001.jsonl": 5,
        "requests-scripted_b-0002.jsonl": 5,
        "requests-scripted_b-0003.jsonl": 2,
    }


def test_one_teacher_can_be_exported_alone(tmp_path):
    files = Files(tmp_path, names=("scripted-a", "scripted-b"))
    requests = files.export("--teacher", "scripted-b")
    assert len(requests) == 12
    assert "no teacher is called 'c'" in fail(
        "export-requests", *files.options, "--out", files.out, "--teacher", "c"
    )


def test_a_shard_is_exported_alone(files):
    requests = files.export("--shard", "1/2")
    with Store(files.store) as store:
        ids = [row.pair.id for row, _ in store.corpus.rows()]
    mine = [pair_id for pair_id in ids if int(pair_id[:15], 16) % 2 == 1]
    assert [name["custom_id"][:40] for name in requests] == [i[:40] for i in mine for _ in range(3)]


def test_a_file_of_an_earlier_export_is_named(files):
    files.export()
    files.export("--per-file", 8)
    succeed("export-requests", *files.options, "--out", files.out, "--per-file", 8)
    output = succeed("export-requests", *files.options, "--out", files.out)
    assert f"NOT part of it: {files.folder / 'requests-0001.jsonl'}" in output
    assert f"NOT part of it: {files.folder / 'requests-0002.jsonl'}" in output


def test_an_export_never_takes_the_place_of_another_file(files):
    files.out.write_text("my notes")
    error = fail("export-requests", "--pairs", files.pairs, *files.options, "--out", files.out)
    assert "not a file of requests" in error
    assert files.out.read_text() == "my notes"


def test_an_adaptive_panel_cannot_be_asked_all_at_once(files):
    files.panel.write_text(files.panel.read_text() + "budget: adaptive\n")
    error = fail("export-requests", "--pairs", files.pairs, *files.options, "--out", files.out)
    assert "budget: adaptive" in error


def test_a_store_that_is_being_annotated_is_left_alone(files):
    requests = files.export()
    with only_writer(files.store):
        assert "another process" in fail("export-requests", *files.options, "--out", files.out)
        assert "another process" in fail(*files.write(reply(requests[0])))


def test_replies_are_filed_under_what_was_asked(files):
    requests = files.export()
    lines = [
        reply(request, ANNOTATION | {"magnitude": number % 10})
        for number, request in enumerate(requests)
    ]
    output = succeed(*files.write(*reversed(lines)))

    assert "12 lines = 12 new (12 kept, 0 refused) + 0 known + 0 failed + 0 left out" in output
    assert "12 asked for = 12 kept + 0 refused + 0 pending" in output
    with Store(files.store) as store:
        of = {(row.pair_id, row.variant): row.magnitude for row in store.replies()}
        pair_ids = [row.pair.id for row, _ in store.corpus.rows()]
    keys = [(pair_id, v) for pair_id in pair_ids for v in ("direct", "critic", "reader")]
    assert of == {key: number % 10 for number, key in enumerate(keys)}
    assert files.export() == []


def test_the_counts_of_a_reply_are_kept_and_no_time_is_made_up(files):
    (first, *_) = files.export()
    usage = {"prompt_tokens": 90, "completion_tokens": 9}
    succeed(*files.write(reply(first, usage=usage, model="served")))
    with Store(files.store) as store:
        (row,) = store.replies()
    assert (row.prompt_tokens, row.completion_tokens) == (90, 9)
    assert (row.served_model, row.finish_reason) == ("served", "stop")
    assert row.seconds is None


def test_the_same_replies_again_change_nothing(files):
    requests = files.export()
    command = files.write(*map(reply, requests), reply(requests[0]))
    assert "+ 1 known + " in succeed(*command)
    before = files.rows()
    assert "13 lines = 0 new (0 kept, 0 refused) + 13 known + 0 failed" in succeed(*command)
    assert files.rows() == before


def test_another_reply_to_the_same_request_is_a_conflict_and_left_out(files):
    (first, *_) = files.export()
    conflicting_reply = reply(first, ANNOTATION | {"magnitude": 9})
    result = run(*files.write(reply(first), conflicting_reply))
    assert result.returncode == 1
    assert "replies.jsonl: line 2: conflict: the store holds another reply" in result.stderr
    assert "2 lines = 1 new (1 kept, 0 refused) + 0 known + 0 failed + 1 left out" in result.stdout
    assert [json.loads(row[-1])["magnitude"] for row in files.rows()] == [4]
    assert "conflict" in fail(*files.write(conflicting_reply))


def test_faults_stay_pending_and_declined_requests_are_refused(files):
    requests = files.export()
    too_long = {"error": {"message": "too long", "code": 400}}
    expired = {
        "custom_id": requests[4]["custom_id"],
        "response": None,
        "error": {"code": "expired"},
    }
    of_vllm = reply(requests[5], status=400) | {"error": {"error": {"message": "8193 tokens"}}}
    of_vllm["response"]["body"] = None
    output = succeed(
        *files.write(
            reply(requests[0]),
            reply(requests[1], status=429, error={"error": "busy"}),
            reply(requests[2], status=500, error={"error": "fault"}),
            reply(requests[3], status=400, error=too_long),
            expired,
            of_vllm,
            reply(requests[6], status=404, error={"error": "no such model"}),
            reply(requests[7]) | {"error": "odd"},
            reply(requests[8]) | {"response": {"status_code": 200, "body": {"odd": 1}}},
        )
    )
    assert (
        "9 lines = 3 new (1 kept, 2 refused (http-400 2)) + 0 known + "
        "6 failed (http-404 1, http-429 1, http-500 1, no-answer 3) + 0 left out"
    ) in output
    assert "12 asked for = 1 kept + 2 refused (http-400 2) + 9 pending" in output
    asked_again = {request["custom_id"] for request in files.export()}
    done = {requests[place]["custom_id"] for place in (0, 3, 5)}
    assert asked_again == {request["custom_id"] for request in requests} - done
    with Store(files.store) as store:
        details = [row.detail for row in store.replies() if row.reason]
    assert sorted("too long" in detail for detail in details) == [False, True]
    assert any("8193 tokens" in detail for detail in details)


@pytest.mark.parametrize(
    ("message", "code", "counts"),
    [
        ("Your credit balance is too low to access the Anthropic API.", None, "1 failed (http-400"),
        ("The prompt was filtered.", "content_filter", "1 refused (content-filter 1)"),
    ],
)
def test_missing_credit_stays_pending_and_a_filter_is_a_reason(files, message, code, counts):
    error = {"error": {"type": "invalid_request_error", "message": message, "code": code}}
    requests = files.export()
    line = reply(requests[0], status=400, error=error)
    assert counts in succeed(*files.write(line, reply(requests[1])))


def test_unreadable_replies_are_asked_again_with_another_seed_until_retries(tmp_path):
    files = Files(tmp_path, pairs=1, retries=1, variants=["direct", "critic"])
    seeds = []
    for attempt in range(2):
        first, *others = files.export()
        seeds.append(first["body"].get("seed"))
        answers = [reply(first, "prose")] + [reply(request) for request in others]
        output = succeed(*files.write(*answers))
        assert len(others) == (1 if attempt == 0 else 0)
    assert seeds == [None, 1]
    assert "2 asked for = 1 kept + 1 refused (not-json 1) + 0 pending" in output
    assert [row[:4] for row in files.rows()] == [
        ("direct", 0, "refused", "not-json"),
        ("critic", 0, "kept", None),
        ("direct", 1, "refused", "not-json"),
    ]
    assert files.export() == []
    (again,) = files.export("--retry-refused")
    assert again["body"]["seed"] == 2
    assert "2 asked for = 2 kept" in succeed(*files.write(reply(again)))


def test_the_token_limit_is_a_refusal(files):
    (first, *others) = files.export()
    output = succeed(*files.write(reply(first, finish="length"), *map(reply, others)))
    assert "(11 kept, 1 refused (length 1))" in output


def test_lines_that_cannot_be_filed_are_named_and_the_rest_goes_on(files):
    requests = files.export()
    result = run(
        *files.write(
            "{not json",
            "[" * 100_000,
            "17",
            {"response": {}},
            reply(requests[0]) | {"custom_id": "request-1"},
            reply(requests[0]) | {"custom_id": "\ud800"},
            reply(requests[0]) | {"custom_id": f"{'0' * 40}.{'0' * 16}"},
            reply(requests[0]) | {"custom_id": f"{requests[0]['custom_id'][:40]}.{'0' * 16}"},
            {"custom_id": requests[0]["custom_id"]},
            reply(requests[0], status="fine"),
            "",
            reply(requests[0]),
        )
    )
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert (
        "11 lines = 1 new (1 kept, 0 refused) + 0 known + 0 failed + "
        "10 left out (malformed 6, unknown 4)"
    ) in result.stdout
    for number, expected in {
        1: "malformed: the line is not JSON",
        2: "malformed: the line is nested too deeply",
        3: "malformed: the line is not an object",
        4: "malformed: no custom_id",
        5: "unknown: custom_id 'request-1' was not exported by sp2dpo",
        7: "is about no pair of this store",
        8: "this panel does not ask it",
        9: "malformed: neither a response nor an error",
        10: 'malformed: status_code "fine" is not a number',
    }.items():
        (line,) = [text for text in result.stderr.splitlines() if f": line {number}: " in text]
        assert expected in line


def test_only_some_of_many_bad_lines_are_named(files):
    files.export()
    result = run(*files.write(*["nonsense"] * 50))
    assert result.stderr.count(": malformed: the line is not JSON") == 20
    assert "and 30 more lines that cannot be stored: malformed" in result.stderr
    assert "left out (malformed 50)" in result.stdout


def test_replies_to_another_question_are_not_filed(files):
    """The same pairs under another rubric, variant, or definition of the teacher."""
    requests = files.export()
    panel = load_panel(files.panel)
    answers = files.write(*map(reply, requests))
    write_panel(files.panel, NOBODY, sampling={"temperature": 1, "max_tokens": 300})
    assert load_panel(files.panel).teachers[0].sampling != panel.teachers[0].sampling
    assert "12 lines could not be stored" in fail(*answers)
    write_panel(files.panel, NOBODY, rubric="semantic-gap-blind")
    assert "12 lines could not be stored" in fail(*answers)
    write_panel(files.panel, NOBODY, variants=["direct"])
    assert "8 lines could not be stored" in fail(*answers)
    assert len(files.rows()) == 4


def test_a_reply_about_a_pair_of_another_shard_is_not_filed(files, tmp_path):
    requests = files.export()
    shard = ["--panel", files.panel, "--store", tmp_path / "shard.sqlite"]
    succeed(
        "export-requests", "--pairs", files.pairs, *shard, "--shard", "0/2",
        "--out", tmp_path / "shard.jsonl",
    )  # fmt: skip
    files.write(*map(reply, requests))
    mine = len(requests_in(tmp_path / "shard.jsonl"))
    result = run("import-replies", *shard, files.replies)
    assert f"12 lines = {mine} new" in result.stdout
    assert f"{12 - mine} left out (unknown {12 - mine})" in result.stdout


def test_a_teacher_of_whom_nothing_can_be_read_is_an_error(files):
    requests = files.export()
    error = fail(*files.write(*(reply(request, "prose") for request in requests)))
    assert "no reply of scripted is valid so far" in error


def test_logprobs_become_expectations(tmp_path):
    sampling = {"temperature": 0, "max_tokens": 300, "logprobs": True, "top_logprobs": 2}
    files = Files(tmp_path, pairs=1, variants=["direct"], sampling=sampling)
    (request,) = files.export()
    assert (request["body"]["logprobs"], request["body"]["top_logprobs"]) == (True, 2)
    text = json.dumps(ANNOTATION)
    before, after = text.split("4", 1)
    tokens = [
        {"token": piece, "logprob": 0.0, "top_logprobs": [{"token": piece, "logprob": 0.0}]}
        for piece in (before, "4", after[: after.index("7")], "7", "}")
    ]
    half = -0.6931471805599453
    tokens[1]["logprob"] = half
    tokens[1]["top_logprobs"] = [{"token": "4", "logprob": half}, {"token": "8", "logprob": half}]
    line = reply(request, text)
    line["response"]["body"]["choices"][0]["logprobs"] = {"content": tokens}
    succeed(*files.write(line))
    with closing(sqlite3.connect(files.store)) as database:
        cursor = database.execute("SELECT expected_magnitude, expected_confidence FROM replies")
        magnitude, confidence = cursor.fetchone()
    assert magnitude == pytest.approx(6)
    assert confidence == pytest.approx(7)


def test_a_killed_import_goes_on_where_it_was(tmp_path):
    """A second import after kill -9 files what is missing, and nothing twice."""
    import signal
    import subprocess
    import time

    files = Files(tmp_path, pairs=1500)
    requests = files.export()
    command = [*COMMAND, *map(str, files.write(*map(reply, requests)))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as victim:
        while victim.poll() is None and not files.rows():
            time.sleep(0.005)
        victim.send_signal(signal.SIGKILL)
        victim.wait()
    stored = len(files.rows())
    assert 0 < stored < 4500
    output = succeed(*command[len(COMMAND) :])
    assert (
        f"4500 lines = {4500 - stored} new ({4500 - stored} kept, 0 refused) + {stored} known"
        in output
    )
    assert len(files.rows()) == 4500


def test_custom_ids_depend_on_everything_that_defines_a_reply(tmp_path):
    names = set()
    for number, fields in enumerate(
        (
            {},
            {"model": "scripted-2"},
            {"revision": "abc"},
            {"sampling": {"temperature": 1, "max_tokens": 300}},
            {"rubric": "semantic-gap-blind"},
        )
    ):
        panel = load_panel(write_panel(tmp_path / f"{number}.yaml", NOBODY, **fields))
        names |= set(CustomIds(panel).by_hash(2))
    assert len(names) == 4 * 3 * 2 + 3 * 2 * 2


def test_one_line_is_called_a_line(files):
    requests = files.export()
    assert "1 line = 1 new" in succeed(*files.write(reply(requests[0])))
    assert "1 line could not be stored" in fail(*files.write("nonsense"))
    output = succeed("export-requests", *files.options, "--out", files.folder / "requests-2.jsonl")
    assert "scripted: 11 requests in " in output


def test_what_is_no_object_is_named_in_plain_words(files):
    files.export()
    for line, kind in (("[]", "a list"), ("null", "null"), ("7", "a number")):
        assert f"the line is not an object but {kind}\n" in fail(*files.write(line))


@pytest.mark.parametrize("way", ["mark", "windows", "gzip", "no last line end"])
def test_replies_are_read_however_their_file_was_saved(files, way):
    files.write(*map(reply, files.export()))
    content = files.replies.read_bytes()
    content = {
        "mark": b"\xef\xbb\xbf" + content,
        "windows": content.replace(b"\n", b"\r\n\r\n"),
        "gzip": gzip.compress(content),
        "no last line end": content.rstrip(b"\n"),
    }[way]
    files.replies.write_bytes(content)
    output = succeed("import-replies", *files.options, files.replies)
    assert "12 lines = 12 new (12 kept" in output


def test_a_key_that_stands_twice_in_a_line_is_malformed(files):
    (first, *_) = files.export()
    line = json.dumps(reply(first))[:-1] + ', "error": {"message": "x"}}'
    error = fail(*files.write(line))
    assert "line 1: malformed: the line has the key 'error' twice" in error


def test_a_file_without_any_line_is_an_error(files):
    requests = files.export()
    nothing = files.folder / "nothing.jsonl"
    nothing.write_text("\n\n")
    command = files.write(*map(reply, requests))
    error = fail(*command, nothing)
    assert error == f"sp2dpo: no line in {nothing}\n"
    assert len(files.rows()) == 12


def test_replies_of_nobody_that_the_store_knows_are_refused(files):
    requests = files.export()
    with Store(files.store) as store:
        before = store.panel()
    command = files.write(*map(reply, requests))
    write_panel(files.panel, NOBODY, names=("other",))
    error = fail(*command)
    assert f"{files.store} has none of the panel's teachers (it has scripted)" in error
    with Store(files.store) as store:
        assert store.panel() == before


def test_a_panel_of_which_nothing_is_filed_leaves_no_trace(files):
    requests = files.export()
    with Store(files.store) as store:
        before = store.panel()
    command = files.write(*map(reply, requests))
    write_panel(files.panel, NOBODY, names=("scripted", "other"), rubric="semantic-gap-blind")
    assert "12 lines could not be stored" in fail(*command)
    with Store(files.store) as store:
        assert store.panel() == before
        assert store.rubric().name == "semantic-gap"


def test_a_panel_of_which_something_is_filed_is_the_stores_from_then_on(files):
    requests = files.export()
    write_panel(files.panel, NOBODY, names=("scripted",), retries=2)
    succeed(*files.write(reply(requests[0])))
    with Store(files.store) as store:
        assert store.panel().teachers[0].retries == 2


def test_file_names_that_steer_a_terminal_are_shown_harmless(files):
    out = files.folder / "requests\x1b[2J.jsonl"
    output = succeed("export-requests", "--pairs", files.pairs, *files.options, "--out", out)
    assert "12 requests in " in output
    assert "requests\\u001b[2J.jsonl" in output
    assert "\x1b" not in output
    (files.folder / "other.jsonl").write_text("")
    error = fail("import-replies", *files.options, files.folder / "none\x1b[2J.jsonl")
    assert "none\\u001b[2J.jsonl: No such file" in error
    assert "\x1b" not in error


def test_a_full_disk_is_no_damage_and_what_came_before_is_safe(files):
    import resource

    def small_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))

    requests = files.export()
    error = fail(*files.write(*map(reply, requests)), preexec_fn=small_files)
    assert "the store cannot be used: " in error
    assert "; the replies stored so far are safe" in error
    assert "damaged" not in error
    assert "12 lines = 12 new" in succeed(*files.write(*map(reply, requests)))


COMPLETION = reply({"custom_id": ""})["response"]["body"]
FORMS = {
    "no body": {"response": COMPLETION, "error": None},
    "no response": COMPLETION,
    "a body alone": {"body": COMPLETION},
    "a response as text": {"response": json.dumps({"status_code": 200, "body": COMPLETION})},
    "a body as text": {"response": {"status_code": 200, "body": json.dumps(COMPLETION)}},
    "no status": {"response": {"body": COMPLETION}, "error": None},
    "a status as text": {"response": {"status_code": "200", "body": COMPLETION}},
    "a status with words": {"response": {"status_code": "200 OK", "body": COMPLETION}},
    "a status as a float": {"response": {"status_code": 200.0, "body": COMPLETION}},
    "another key": {"response": {"status": 200, "body": COMPLETION}},
    "a status in words": {"response": {"status": "completed", "body": COMPLETION}},
    **{
        f"error {error!r}": {"response": {"status_code": 200, "body": COMPLETION}, "error": error}
        for error in (None, "", {}, [], False, {"code": None, "message": ""})
    },
    "an empty error in the body": {
        "response": {"status_code": 200, "body": COMPLETION | {"error": {}}}
    },
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_reply_is_kept_in_every_form_that_services_write(files, form):
    request = files.export()[0]
    output = succeed(*files.write({"custom_id": request["custom_id"]} | form))
    assert "1 line = 1 new (1 kept, 0 refused) + 0 known + 0 failed + 0 left out" in output
    assert "1 line = 0 new (0 kept, 0 refused) + 1 known" in succeed(
        *files.write(reply(request)),
    )


ANTHROPIC = {"role": "assistant", "content": [], "stop_reason": "end_turn"}
OTHERS = {
    "expired": ({"response": None, "error": {"message": "late"}}, "no reply, no-answer"),
    "an error as text": ({"response": "", "error": "late"}, "no reply, no-answer"),
    "overloaded": (
        {"response": {"status_code": 200, "body": {"error": {"message": "overloaded"}}}},
        "overloaded",
    ),
    "an error alone": ({"response": {"error": {"message": "late"}}}, "no reply, no-answer"),
    "a status of text": (
        {"response": {"status_code": "503", "body": "down"}},
        "no reply, http-503",
    ),
    "anthropic": ({"result": {"type": "succeeded", "message": ANTHROPIC}}, "of Anthropic, not"),
    "anthropic, expired": ({"result": {"type": "expired"}}, "no reply, no-answer"),
    "anthropic, in a body": (
        {"response": {"status_code": 200, "body": ANTHROPIC}}, "of Anthropic, not",
    ),
    "gemini": ({"response": {"candidates": [], "usageMetadata": {}}}, "of Gemini, not"),
    "bedrock": ({"modelInput": {}, "modelOutput": {"x": 1}}, "of Amazon Bedrock, not"),
    "responses": (
        {"response": {"status_code": 200, "body": {"object": "response", "output": []}}},
        "Responses API, not",
    ),
    "text": ({"response": {"status_code": 200, "body": "fine"}}, 'body "fine" is not a JSON'),
    "nothing": ({"response": {}, "error": {}}, "neither a response nor an error"),
    "no status": ({"response": {"request_id": "r"}}, "without status_code"),
    "a list": ({"response": [1]}, "response [1] is not an object"),
}  # fmt: skip


@pytest.mark.parametrize(("form", "reason"), OTHERS.values(), ids=OTHERS)
def test_a_line_without_a_chat_completion_stays_pending_with_a_clear_reason(files, form, reason):
    requests = files.export()
    result = run(*files.write({"custom_id": requests[0]["custom_id"]} | form, reply(requests[1])))
    assert reason in result.stderr
    assert "line 1: " in result.stderr
    assert "2 lines = 1 new (1 kept, 0 refused)" in result.stdout
    assert [request["custom_id"] for request in files.export()] == [
        request["custom_id"] for request in requests if request != requests[1]
    ]


def test_reply_files_may_be_compressed_and_begin_with_a_byte_order_mark(files):
    requests = files.export()
    command = files.write(*map(reply, requests))
    text = "\ufeff" + files.replies.read_text()
    files.replies.write_text(text.replace("\n", "\r\n"))
    assert "12 lines = 12 new (12 kept" in succeed(*command)
    packed = files.folder / "replies.jsonl.gz"
    packed.write_bytes(gzip.compress(text.encode()))
    assert "12 lines = 0 new (0 kept, 0 refused) + 12 known" in succeed(*command[:-1], packed)
    packed.write_bytes(gzip.compress(text.encode())[:-9])
    assert f"{packed}: damaged" in fail(*command[:-1], packed)


def test_a_reply_that_an_earlier_release_refused_is_the_same_reply(files):
    request = files.export()[0]
    line = reply(request, f"<think>hm</think>{json.dumps(ANNOTATION)}")
    succeed(*files.write(line))
    change_store(files.store, "UPDATE replies SET status = 'refused', reason = 'not-json'")
    assert "0 new (0 kept, 0 refused) + 1 known" in run(*files.write(line)).stdout
