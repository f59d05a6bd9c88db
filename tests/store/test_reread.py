"""A reply that was paid for and can be read now is kept without a second request."""

import json
import sqlite3
from contextlib import closing
from dataclasses import replace

import pytest

from sp2dpo.annotation.adaptive_rule import slots
from sp2dpo.annotation.adaptive_run import PairState
from sp2dpo.inference.client import Reply
from sp2dpo.store.database import only_writer
from sp2dpo.store.merge import merge_stores
from sp2dpo.store.questions import SettledPair
from sp2dpo.store.reread import RereadResult, count_readable, reread_lines, reread_replies
from sp2dpo.store.store import Store
from support.harness import (
    SCHEDULE,
    change_store,
    fail,
    filled,
    kept_reply,
    pairs_of,
    panel_of,
    refused_reply,
    run,
    succeed,
    write_pairs,
    write_panel,
)

GOOD = json.dumps({"rationale": "r", "category": "style", "magnitude": 3, "confidence": 9})


def answered(record, *, finish="stop", tokens=20):
    """The record with what the server stated beside the text."""
    reply = Reply(
        text=record.raw, finish_reason=finish, served_finish_reason=finish, model="served",
        prompt_tokens=100, completion_tokens=tokens, cached_tokens=None, seconds=1.0,
    )  # fmt: skip
    return replace(record, reply=reply)


def refused(pair_id, reason, raw, variant="direct", *, attempt=0, finish="stop", tokens=20):
    record = refused_reply(pair_id, "t", variant, attempt=attempt, reason=reason, raw=raw)
    return answered(record, finish=finish, tokens=tokens)


def rows(path):
    with closing(sqlite3.connect(path)) as database:
        return database.execute("SELECT * FROM replies ORDER BY 1, 2, 3, 4, 5").fetchall()


def make_store(path, records, count=4):
    """A store whose first pairs have refused replies; `records` takes the ids of the pairs."""
    with Store(path, write=True) as store:
        ids = filled(store, count, "t")
        store.add_replies(records(ids))
    return ids


def outcomes(path):
    with Store(path) as store:
        return {
            (reply.pair_id, reply.variant, reply.attempt): reply.reason or reply.magnitude
            for reply in store.replies()
        }


def message(content, **others):
    return json.dumps({"role": "assistant", "content": content, **others})


READABLE = {
    "thinking": ("not-json", f"<think>hm</think>\n{GOOD}", "stop"),
    "no first mark": ("not-json", f"hm\n</think>\n{GOOD}", "stop"),
    "a code block": ("not-json", f"```json\n{GOOD}\n```", "stop"),
    "STOP": ("unfinished", GOOD, "STOP"),
    "eos_token": ("unfinished", GOOD, "eos_token"),
    "end_turn": ("unfinished", GOOD, "end_turn"),
    "no finish reason": ("unfinished", GOOD, None),
    "parts of an earlier release": ("not-json", str([{"type": "text", "text": GOOD}]), "stop"),
    "a message": ("empty", message([{"type": "text", "text": GOOD}]), "stop"),
    "a message with a call": ("tool-call", message(GOOD, tool_calls=[{"id": "1"}]), "tool_calls"),
}
UNREADABLE = {
    "prose": ("not-json", f"Here: {GOOD}", "stop"),
    "length": ("length", GOOD, "length"),
    "MAX_TOKENS": ("unfinished", GOOD, "MAX_TOKENS"),
    "filter": ("unfinished", GOOD, "content_filter"),
    "error": ("unfinished", GOOD, "error"),
    "another word": ("unfinished", GOOD, "paused"),
    "schema": ("schema", GOOD.replace("style", "taste"), "stop"),
    "a message as text": ("schema", message(GOOD), "stop"),
    "reasoning": ("reasoning-only", message(None, reasoning_content=GOOD), "stop"),
    "refusal": ("refusal", message(GOOD, refusal="no"), "stop"),
    "empty": ("empty", "", "stop"),
    "declined": ("http-400", GOOD, None),
    "python": ("not-json", "[{'a': print()}]", "stop"),
    "half a list": ("not-json", "[{'a'", "stop"),
}


@pytest.mark.parametrize(("reason", "raw", "finish"), READABLE.values(), ids=READABLE)
def test_what_can_be_read_now_is_kept_and_a_second_time_changes_nothing(
    tmp_path, reason, raw, finish
):
    path = tmp_path / "run.sqlite"
    ids = make_store(path, lambda ids: [refused(ids[0], reason, raw, finish=finish)])
    with Store(path, write=True) as store:
        assert count_readable(store) == 1
        assert reread_replies(store) == RereadResult(kept={reason: 1}, refused=0)
        (reply,) = store.replies()
        assert (reply.pair_id, reply.status, reply.reason) == (ids[0], "kept", None)
        assert (reply.category, reply.magnitude, reply.confidence) == ("style", 3, 9)
        assert (reply.finish_reason, reply.served_model, reply.prompt_tokens) == (
            finish, "served", 100,
        )  # fmt: skip
        assert reply.raw == (GOOD if raw.startswith(("[{'", '{"role"')) else raw)
    before = rows(path)
    with Store(path, write=True) as store:
        assert reread_replies(store) == RereadResult(kept={}, refused=0)
        assert reread_lines(reread_replies(store)) == []
    assert rows(path) == before


@pytest.mark.parametrize(("reason", "raw", "finish"), UNREADABLE.values(), ids=UNREADABLE)
def test_what_cannot_be_read_stays_as_it_is(tmp_path, reason, raw, finish):
    path = tmp_path / "run.sqlite"
    make_store(path, lambda ids: [refused(ids[0], reason, raw, finish=finish)])
    before = rows(path)
    with Store(path, write=True) as store:
        assert reread_replies(store).kept == {}
    assert rows(path) == before


def test_a_reply_without_a_finish_reason_at_the_token_limit_stays_refused(tmp_path):
    path = tmp_path / "run.sqlite"
    make_store(path, lambda ids: [refused(ids[0], "unfinished", GOOD, finish=None, tokens=100)])
    with Store(path, write=True) as store:
        assert reread_replies(store) == RereadResult(kept={}, refused=1)


def test_of_several_attempts_the_first_readable_one_is_kept_and_kept_replies_never_change(tmp_path):
    path, block = tmp_path / "run.sqlite", f"```\n{GOOD}\n```"
    later = kept_reply(pairs_of(2)[1].pair.id, "t", "direct", 7, 9)
    later = replace(later, key=replace(later.key, attempt=1))
    ids = make_store(
        path,
        lambda ids: [
            refused(ids[0], "not-json", "prose"),
            refused(ids[0], "not-json", block, attempt=1),
            refused(ids[0], "not-json", block.replace("3", "5"), attempt=2),
            refused(ids[1], "not-json", block),
            later,
        ],
    )
    with Store(path, write=True) as store:
        assert reread_replies(store) == RereadResult(kept={"not-json": 1}, refused=1)
        assert count_readable(store) == 0
    assert outcomes(path) == {
        (ids[0], "direct", 0): "not-json",
        (ids[0], "direct", 1): 3,
        (ids[0], "direct", 2): "not-json",
        (ids[1], "direct", 0): "not-json",
        (ids[1], "direct", 1): 7,
    }


def test_an_adaptive_panel_takes_the_kept_reply_and_decides_again_about_its_pair_alone(tmp_path):
    path = tmp_path / "run.sqlite"
    ids = make_store(
        path,
        lambda ids: [
            refused(ids[0], "not-json", f"```\n{GOOD}\n```"),
            refused(ids[0], "not-json", "prose", attempt=1),
            refused(ids[0], "not-json", "prose", attempt=2),
        ],
    )
    with Store(path, write=True) as store:
        settled = [SettledPair(pair_id=pair_id, replies=1, chance=1.0) for pair_id in ids[:2]]
        store.add_replies([], settled)
        reread_replies(store)
        pairs = store.questions.replied_pairs(settled=False, after=0, limit=10)
        assert [pair.pair.id for pair in pairs] == [ids[0], *ids[2:]]
        panel = panel_of("t")
        state = PairState(pairs[0], panel, slots(["t"], panel.variants))
        assert state.replies == 1
        readings, asked = state.readings()
        assert (readings[0][0], asked[0][0]) == (pytest.approx(3 * 9 / 100), True)


def test_stores_merge_whether_or_not_their_replies_were_read_again(tmp_path):
    paths = [tmp_path / "0.sqlite", tmp_path / "1.sqlite"]
    for path in paths:
        ids = make_store(path, lambda ids: [refused(ids[0], "not-json", f"```\n{GOOD}\n```")])
    with Store(paths[1], write=True) as store:
        reread_replies(store)
    for number, order in enumerate((paths, paths[::-1])):
        out = tmp_path / f"out{number}.sqlite"
        merge_stores(out, order)
        assert outcomes(out) == {(ids[0], "direct", 0): 3}
    old = tmp_path / "old.sqlite"
    merge_stores(old, paths[:1])
    merge_stores(old, paths)
    assert outcomes(old) == {(ids[0], "direct", 0): 3}
    change_store(paths[0], "UPDATE replies SET raw = 'another'")
    with pytest.raises(ValueError, match="a different reply"):
        merge_stores(tmp_path / "no.sqlite", paths)


def test_the_command_needs_only_the_store_and_says_what_it_kept(tmp_path):
    path = tmp_path / "run.sqlite"
    ids = make_store(
        path,
        lambda ids: [
            *(
                refused(ids[0], "not-json", f"<think>hm</think>{GOOD}", variant)
                for variant in ("direct", "critic", "reader")
            ),
            refused(ids[1], "unfinished", GOOD, finish="STOP"),
            refused(ids[2], "not-json", "It is style."),
        ],
    )
    output = succeed("annotate", "--store", path, "--reread")
    assert "4 of 5 refused replies read again and kept (not-json 3, unfinished 1)" in output
    assert "t: 12 asked for = 4 kept + 0 refused + 8 pending" in output
    assert "0 of 1 refused reply read again" in succeed("annotate", "--store", path, "--reread")
    # The reply counts from here on: in explain, and in the betas.
    betas = tmp_path / "betas.parquet"
    succeed("schedule", "--store", path, "--schedule", SCHEDULE, "--out", betas)
    explained = succeed("explain", ids[0], "--store", path, "--betas", betas)
    assert "style" in explained


def test_the_command_refuses_what_it_cannot_do(tmp_path):
    path = tmp_path / "run.sqlite"
    assert "no such store" in fail("annotate", "--store", path, "--reread")
    make_store(path, lambda ids: [refused(ids[0], "unfinished", GOOD, finish="STOP")])
    for option in ("--dry-run", "--retry-refused"):
        assert "omit" in fail("annotate", "--store", path, "--reread", option, code=2)
    assert "Missing option '--panel'" in fail("annotate", "--store", path, code=2)
    with only_writer(path):
        assert "another process" in fail("annotate", "--store", path, "--reread")
    other = write_panel(tmp_path / "panel.yaml", "http://127.0.0.1:9/v1", names=["t"])
    assert "has the teacher t with model" in fail(
        "annotate", "--store", path, "--reread", "--panel", other
    )


def test_a_run_reads_again_before_it_asks(scripted, tmp_path):
    teacher, path = scripted(), tmp_path / "run.sqlite"
    panel = write_panel(tmp_path / "panel.yaml", teacher.url, variants=["direct"])
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(
        "".join(
            json.dumps({"prompt": f"Q{n}?", "chosen": "A.", "rejected": "B."}) + "\n"
            for n in range(3)
        )
    )
    command = ["annotate", "--pairs", pairs, "--panel", panel, "--store", path]
    succeed(*command)
    change_store(
        path,
        "UPDATE replies SET status = 'refused', reason = 'not-json', category = NULL, "
        "raw = '<think>hm</think>' || raw WHERE rowid < 3",
    )
    plan = " ".join(succeed(*command, "--dry-run").split())
    assert "2 refused replies can be read again and would be kept first" in plan
    assert "2 of 2 refused replies read again and kept (not-json 2)" in run(*command).stderr
    assert len(teacher.requests) == 3


def test_an_adaptive_run_goes_on_after_replies_were_read_again(scripted, tmp_path):
    teacher, path = scripted(models="scripted,b"), tmp_path / "run.sqlite"
    panel = write_panel(tmp_path / "panel.yaml", teacher.url, names=["scripted", "b"])
    panel.write_text(panel.read_text() + "budget: adaptive\n")
    pairs = write_pairs(tmp_path / "pairs.jsonl", 40)
    command = ["annotate", "--pairs", pairs, "--panel", panel, "--store", path]
    first = succeed(*command)
    with closing(sqlite3.connect(path)) as database, database:
        count = database.execute("SELECT count(*) FROM replies").fetchone()[0]
    change_store(
        path,
        "UPDATE replies SET status = 'refused', reason = 'schema', category = NULL, "
        "raw = '<think>hm</think>' || raw, attempt = 2 WHERE rowid % 5 = 0",
    )
    assert f"{count // 5} of {count // 5} refused replies read again" in succeed(
        "annotate", "--store", path, "--reread"
    )
    assert first.splitlines()[-1] == succeed(*command).splitlines()[-1]
    assert len(teacher.requests) == count
