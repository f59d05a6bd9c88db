"""A Ray node's worker outlasts a server that is away for a moment, in a process of its own here."""

import asyncio
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import pytest

from sp2dpo.panel.annotation import Key
from sp2dpo.panel.panel import load_panel
from sp2dpo.store.questions import Job, Question
from support.harness import pairs_of, write_panel

pytest.importorskip("ray", reason="Ray is not installed")
from sp2dpo.annotation.ray import Worker

pytestmark = pytest.mark.slow  # importing Ray takes seconds

ANNOTATION = {"rationale": "r", "category": "style", "magnitude": 3, "confidence": 9}


@contextmanager
def teacher_away_for(requests, port=0):
    """A teacher that answers so many requests with 503; yields its address and its requests."""
    checks = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def is_away(self):
            checks.append(self.path)
            return len(checks) <= requests

        def do_GET(self):
            self.answer(503 if self.is_away() else 200, {"data": [{"id": "scripted"}]})

        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            if self.is_away():
                return self.answer(503, {})
            message = {"role": "assistant", "content": json.dumps(ANNOTATION)}
            self.answer(200, {"choices": [{"message": message, "finish_reason": "stop"}]})

        def answer(self, status, body):
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", checks
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def panel(tmp_path):
    return lambda url: load_panel(write_panel(tmp_path / "panel.yaml", url, variants=["direct"]))


def job():
    pair = pairs_of(1)[0].pair
    key = Key(pair_id=pair.id, teacher="scripted", variant="direct")
    return Job(number=1, pair=pair, questions=(Question(key=key, last=0),))


def trial(panel, url, steps, patience=30.0):
    """The results of these steps of one worker."""

    async def work():
        worker = Worker(panel(url), "here", patience, {"scripted": 0})
        results = [await step(worker) for step in steps]
        await worker._http.close()
        return results

    return asyncio.run(work())


def test_a_node_that_joins_waits_for_a_server_that_is_away_for_a_moment(panel):
    with teacher_away_for(2) as (url, checks):
        (failure,) = trial(panel, url, [lambda w: w.check("scripted", 1, patient=True)])
        assert (failure, len(checks)) == (None, 3)


def test_the_first_check_says_at_once_that_a_server_is_away_and_is_not_the_last_word(panel):
    with teacher_away_for(0) as (url, _):
        pass  # its port is free now

    async def check(worker):
        return await worker.check("scripted", 1, patient=False)

    async def check_when_it_is_back(worker):
        with teacher_away_for(0, port=urlsplit(url).port):
            return await check(worker)

    first, second = trial(panel, url, [check, check_when_it_is_back])
    assert "nothing answers at" in first
    assert first.endswith("(on node here)")
    assert second is None


def test_a_job_under_a_new_limit_waits_for_the_server_too(panel):
    with teacher_away_for(1) as (url, _):
        (answers,) = trial(panel, url, [lambda w: w.ask("scripted", job(), 3)])
        assert answers.failure is None
        assert [record.annotation.magnitude for record, _ in answers.records] == [3]


def test_a_server_that_stays_away_ends_the_patience(panel):
    with teacher_away_for(99) as (url, _):
        (answers,) = trial(panel, url, [lambda w: w.ask("scripted", job(), 3)], patience=0.6)
        assert "HTTP 503" in answers.failure
        assert answers.records == ()


def test_a_worker_that_is_stopped_stops_waiting(panel):
    async def stop(worker):
        asking = asyncio.ensure_future(worker.ask("scripted", job(), 3))
        await asyncio.sleep(0.2)
        await worker.stop()
        return await asyncio.wait_for(asking, 5)

    with teacher_away_for(99) as (url, _):
        (answers,) = trial(panel, url, [stop])
        assert (answers.records, answers.failure) == ((), None)
