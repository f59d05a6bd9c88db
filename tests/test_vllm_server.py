"""The real vLLM server, and the context manager that starts and stops it."""

import http.client
import json
import sys
import time
import urllib.parse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from services_fixtures import TEACHER_NAME
from vllm_server import serve

CATEGORIES = ["factuality", "instruction", "safety", "style", "none"]
SCHEMA = {
    "type": "object",
    "properties": {
        "rationale": {"type": "string", "maxLength": 200},
        "category": {"type": "string", "enum": CATEGORIES},
        "magnitude": {"type": "integer", "minimum": 0, "maximum": 10},
        "confidence": {"type": "integer", "minimum": 0, "maximum": 10},
    },
    "required": ["rationale", "category", "magnitude", "confidence"],
    "additionalProperties": False,
}
# Longer than the 2,048 tokens that vLLM would otherwise read of a batch of prompts in one step.
LONG_TEXT = "Which of the two answers is better, and why? " * 200

# Stands for `vllm serve`: answers /health, and has a child that ignores the request to stop.
FAKE_SERVER = """
import http.server, os, signal, sys, time

class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()

port = next(a.removeprefix("--port=") for a in sys.argv if a.startswith("--port="))
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = os.fork()
if child == 0:
    time.sleep(600)
signal.signal(signal.SIGTERM, signal.SIG_DFL)
print(os.getpid(), child, flush=True)
http.server.HTTPServer(("127.0.0.1", int(port)), Health).serve_forever()
"""


def call(url, path, body=None):
    address = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=120)
    try:
        if body is None:
            connection.request("GET", address.path + path)
        else:
            headers = {"Content-Type": "application/json"}
            connection.request("POST", address.path + path, json.dumps(body), headers)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def question(text, *, seed=0):
    return {
        "model": TEACHER_NAME,
        "messages": [
            {"role": "system", "content": "You compare two answers."},
            {"role": "user", "content": text},
        ],
        "temperature": 1.0,
        "seed": seed,
        "max_tokens": 400,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "annotation", "strict": True, "schema": SCHEMA},
        },
    }


@pytest.mark.services
def test_the_server_lists_the_teacher(vllm_url):
    status, models = call(vllm_url, "/models")

    assert status == 200
    assert [model["id"] for model in models["data"]] == [TEACHER_NAME]


@pytest.mark.services
def test_every_reply_keeps_to_the_schema(vllm_url):
    with ThreadPoolExecutor(4) as pool:
        answers = list(
            pool.map(
                lambda seed: call(
                    vllm_url, "/chat/completions", question(f"Pair {seed}. {LONG_TEXT}", seed=seed)
                ),
                range(12),
            )
        )

    for status, answer in answers:
        assert status == 200, answer
        assert answer["choices"][0]["finish_reason"] == "stop"
        reply = json.loads(answer["choices"][0]["message"]["content"])
        assert list(reply) == SCHEMA["required"]
        assert len(reply["rationale"]) <= 200
        assert reply["category"] in CATEGORIES
        for number in (reply["magnitude"], reply["confidence"]):
            assert type(number) is int
            assert 0 <= number <= 10
    assert len({answer["choices"][0]["message"]["content"] for _, answer in answers}) == 12


@pytest.mark.services
def test_a_shared_prefix_is_reported_as_cached_tokens(vllm_url):
    _, first = call(vllm_url, "/chat/completions", question(LONG_TEXT + "First variant."))
    _, second = call(vllm_url, "/chat/completions", question(LONG_TEXT + "Second variant."))

    assert first["usage"]["prompt_tokens"] > 2048
    assert second["usage"]["prompt_tokens"] > 2048
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] >= 2048


@pytest.mark.services
def test_a_prompt_of_six_thousand_tokens_is_answered(vllm_url):
    status, answer = call(vllm_url, "/chat/completions", question(LONG_TEXT * 2))

    assert status == 200, answer
    assert answer["usage"]["prompt_tokens"] >= 6000


@pytest.mark.services
def test_an_over_long_prompt_is_a_bad_request(vllm_url):
    status, answer = call(vllm_url, "/chat/completions", question(LONG_TEXT * 20))

    assert status == 400
    assert "maximum context length is 8192" in answer["error"]["message"]


def fake_environment(folder, code):
    program = folder / "bin" / "vllm"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\n{code}")
    program.chmod(0o755)
    (folder / "config.json").write_text('{"max_position_embeddings": 8192}')
    return {"model": folder, "environment": folder, "served_name": "fake", "log": folder / "log"}


def is_running(process):
    try:
        stat = Path("/proc", process, "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def wait_until_stopped(processes, seconds):
    deadline = time.monotonic() + seconds
    while any(map(is_running, processes)) and time.monotonic() < deadline:
        time.sleep(0.01)


def test_the_whole_process_group_is_gone_after_the_block(tmp_path):
    with serve(**fake_environment(tmp_path, FAKE_SERVER)) as url:
        processes = (tmp_path / "log").read_text().splitlines()[0].split()
        assert list(map(is_running, processes)) == [True, True]

    wait_until_stopped(processes, seconds=5)  # the kernel takes a moment to carry out the kill
    assert list(map(is_running, processes)) == [False, False]
    assert url.startswith("http://127.0.0.1:")
    assert url.endswith("/v1")


def test_a_server_that_dies_is_reported_with_the_end_of_its_log(tmp_path):
    fake = fake_environment(tmp_path, "print('no such model')\nraise SystemExit(3)")

    message = r"exited with 3; the end of .*/log:\nno such model$"
    with pytest.raises(RuntimeError, match=message), serve(**fake):
        pytest.fail("the block must not run")


def test_a_server_that_never_gets_healthy_is_given_up(tmp_path):
    fake = fake_environment(tmp_path, "import time\ntime.sleep(600)")

    message = r"not healthy within 0\.2 s"
    with pytest.raises(TimeoutError, match=message), serve(**fake, healthy_within=0.2):
        pytest.fail("the block must not run")
