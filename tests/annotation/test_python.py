"""Annotating from Python: what a notebook calls."""

import asyncio
import os
import signal
import threading
import time

import pytest

import sp2dpo
from sp2dpo.inference.client import EndpointError
from sp2dpo.interrupts import Interrupted
from support.harness import write_pairs, write_panel


@pytest.fixture
def folder(tmp_path):
    write_pairs(tmp_path / "pairs.jsonl", 10)
    return tmp_path


def annotate(folder, url, *, panel_options=None, **options):
    panel = write_panel(folder / "panel.yaml", url, **(panel_options or {}))
    return sp2dpo.annotate_pairs(folder / "pairs.jsonl", panel, folder / "run.sqlite", **options)


def test_a_second_call_asks_nothing_and_returns_the_same_counts(scripted, folder):
    teacher = scripted()
    first = annotate(folder, teacher.url)
    assert (first.kept, first.refused, first.missing, first.received) == (30, {}, 0, 30)
    second = annotate(folder, teacher.url)
    assert (second.kept, second.received, second.retried) == (30, 0, 0)
    assert second.teachers == first.teachers
    assert len(teacher.requests) == 30


def test_loaded_objects_do_as_well_as_paths(scripted, folder):
    panel = sp2dpo.load_panel(write_panel(folder / "panel.yaml", scripted().url))
    source = sp2dpo.open_source(str(folder / "pairs.jsonl"))
    with sp2dpo.Store(folder / "run.sqlite", write=True) as store:
        assert sp2dpo.annotate_pairs(source, panel, store, shard="0/1").kept == 30
        assert sp2dpo.annotate_pairs(None, panel, store).received == 0
        assert store.corpus.source().pairs == 10  # it is still open


def test_unreadable_replies_are_counted_by_reason_and_the_callbacks_hear_of_all(scripted, folder):
    teacher, results, sources, progress = scripted(muddled="Question 3?"), [], [], []

    class Bar:
        def __init__(self, total):
            progress.append(total)

        def __enter__(self):
            return lambda finished, refused: progress.append((finished, refused))

        def __exit__(self, *error):
            pass

    result = annotate(
        folder, teacher.url, panel_options={"retries": 1}, progress=Bar,
        on_source=lambda corpus: sources.append(corpus.source().pairs), on_result=results.append,
    )  # fmt: skip
    assert results == [result]
    assert sources == [10]
    assert result.received == len(teacher.requests) == 30 + result.retried
    assert result.kept + sum(result.refused.values()) == 30
    assert (sum(result.refused.values()), result.retried) == (3, 3)
    total, *steps = progress
    assert total == len(steps) == 30
    assert sum(refused for _, refused in steps) == sum(result.refused.values())


def test_a_panel_with_a_mistake_is_refused_before_anything_is_written(folder):
    (folder / "panel.yaml").write_text("rubric: semantic-gap\nvariants: [direct]\nteacher: []\n")
    with pytest.raises(ValueError, match="teachers"):
        sp2dpo.annotate_pairs(folder / "pairs.jsonl", folder / "panel.yaml", folder / "run.sqlite")
    assert not (folder / "run.sqlite").exists()


def test_a_server_that_is_away_is_an_endpoint_error_and_the_counts_arrive(folder):
    results = []
    with pytest.raises(EndpointError):
        annotate(folder, "http://127.0.0.1:9/v1", patience=0, on_result=results.append)
    assert [result.missing for result in results] == [30]


def test_a_store_that_does_not_exist_needs_pairs(folder):
    panel = write_panel(folder / "panel.yaml", "http://127.0.0.1:9/v1")
    with pytest.raises(FileNotFoundError, match=r"run\.sqlite does not exist yet"):
        sp2dpo.annotate_pairs(None, panel, folder / "run.sqlite")


def interrupt_after(teacher, count, times=1):
    """Send SIGINT to this process once the teacher has received some requests."""

    def send():
        while len(teacher.requests) < count:
            time.sleep(0.01)
        for _ in range(times):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)

    thread = threading.Thread(target=send)
    thread.start()
    return thread


def directly(function):
    return function()


def in_a_notebook(function):
    """A synchronous call while an event loop runs, without the handlers of `asyncio.run`."""

    async def cell():
        return function()

    loop, handler = asyncio.new_event_loop(), signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return loop.run_until_complete(cell())
    finally:
        signal.signal(signal.SIGINT, handler)
        loop.close()


@pytest.mark.parametrize("call", [directly, in_a_notebook])
def test_an_interrupt_keeps_what_was_received_and_the_next_call_resumes(scripted, folder, call):
    teacher, results, lines = scripted(delay=0.1), [], []
    thread = interrupt_after(teacher, 4)

    def run():
        return annotate(
            folder, teacher.url, panel_options={"max_in_flight": 2},
            report=lines.append, on_result=results.append,
        )  # fmt: skip

    with pytest.raises(Interrupted):
        call(run)
    thread.join()
    assert 0 < results[0].kept < 30
    assert any("stopping" in line for line in lines)
    assert call(run).missing == 0
    assert len(teacher.requests) == 30  # the requests in flight were waited for


def test_a_second_interrupt_in_a_notebook_does_not_wait(scripted, folder):
    teacher = scripted(delay=20)
    thread = interrupt_after(teacher, 1, times=2)
    start = time.monotonic()
    with pytest.raises(Interrupted):
        in_a_notebook(lambda: annotate(folder, teacher.url))
    thread.join()
    assert time.monotonic() - start < 10


def test_a_thread_without_signals_can_annotate(scripted, folder):
    teacher, results = scripted(), []
    thread = threading.Thread(target=lambda: results.append(annotate(folder, teacher.url)))
    thread.start()
    thread.join()
    assert results[0].kept == 30


def test_requests_and_replies_travel_as_files(scripted, folder):
    panel = write_panel(folder / "panel.yaml", "http://127.0.0.1:9/v1")
    store = folder / "run.sqlite"
    exported = sp2dpo.export_requests(
        folder / "pairs.jsonl", panel, store, folder / "requests.jsonl"
    )
    assert [export.requests for export in exported.exports] == [30]
    assert exported.exports[0].files == (folder / "requests.jsonl",)
    (folder / "replies.jsonl").write_text('{"custom_id": "unknown"}\n')
    lines = []
    imported = sp2dpo.import_replies([folder / "replies.jsonl"], panel, store, report=lines.append)
    assert (imported.lines, imported.left_out) == (1, {"unknown": 1})
    assert len(lines) == 1
    assert imported.teachers == exported.teachers


def test_merged_stores_count_the_replies_of_all_shards(scripted, folder):
    panel = write_panel(folder / "panel.yaml", scripted().url)
    shards = [folder / f"{number}.sqlite" for number in range(2)]
    for number, store in enumerate(shards):
        sp2dpo.annotate_pairs(folder / "pairs.jsonl", panel, store, shard=f"{number}/2")
    merged = sp2dpo.merge_stores(folder / "all.sqlite", shards)
    assert (merged.added, merged.missing) == (30, ())
    assert [counts.kept for counts in merged.teachers] == [30]
