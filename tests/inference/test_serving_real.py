"""A real vLLM as the package starts it: what it answers, and that it comes back and goes away."""

import asyncio
import http.client
import json
import os
import signal
import subprocess
import sys
import time
import urllib.parse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import aiohttp
import pytest

from sp2dpo.inference.serve import parse_serve
from sp2dpo.inference.servers import start_servers
from support.services_fixtures import ROOT, TEACHER_NAME, serve_without_gpu

pytestmark = pytest.mark.services

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

# What `kill -9` is done to: it serves until it is killed.
OWNER = """
import asyncio, json, sys
from pathlib import Path
from sp2dpo.inference.serve import parse_serve
from sp2dpo.inference.servers import start_servers

async def main(said, log):
    serve = parse_serve(said, where="the tiny teacher", beside=Path())
    async with start_servers("tiny", "tiny", None, serve, log=log, say=lambda line: None):
        print("ready", flush=True)
        await asyncio.sleep(600)

asyncio.run(main(json.loads(sys.argv[1]), Path(sys.argv[2])))
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


def test_the_server_lists_the_teacher(vllm_url):
    status, models = call(vllm_url, "/models")

    assert status == 200
    assert [model["id"] for model in models["data"]] == [TEACHER_NAME]


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


def test_a_shared_prefix_is_reported_as_cached_tokens(vllm_url):
    _, first = call(vllm_url, "/chat/completions", question(LONG_TEXT + "First variant."))
    _, second = call(vllm_url, "/chat/completions", question(LONG_TEXT + "Second variant."))

    assert first["usage"]["prompt_tokens"] > 2048
    assert second["usage"]["prompt_tokens"] > 2048
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] >= 2048


def test_a_prompt_of_six_thousand_tokens_is_answered(vllm_url):
    status, answer = call(vllm_url, "/chat/completions", question(LONG_TEXT * 2))

    assert status == 200, answer
    assert answer["usage"]["prompt_tokens"] >= 6000


def test_an_over_long_prompt_is_a_bad_request(vllm_url):
    status, answer = call(vllm_url, "/chat/completions", question(LONG_TEXT * 20))

    assert status == 400
    assert "maximum context length is 8192" in answer["error"]["message"]


def stat_of(pid):
    """State and parent of a process; None where there is none."""
    try:
        state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    except (FileNotFoundError, ProcessLookupError):
        return None
    return state, int(parent)


def is_running(pid):
    stat = stat_of(pid)
    return stat is not None and stat[0] != "Z"


def processes_below(root):
    """The ids of all processes that came of one, and their names."""
    parents = {int(path.name): stat_of(path.name) for path in Path("/proc").glob("[0-9]*")}
    names_by_pid, level = {}, {root}
    while level:
        level = {pid for pid, stat in parents.items() if stat and stat[1] in level}
        names_by_pid |= {pid: Path(f"/proc/{pid}/cmdline").read_text() for pid in level}
    return names_by_pid


async def answer_of(url):
    async with (
        aiohttp.ClientSession() as client,
        client.post(f"{url}/chat/completions", json=question("Which is better?")) as answer,
    ):
        body = await answer.json()
        assert answer.status == 200, body
        return json.loads(body["choices"][0]["message"]["content"])


def test_a_lost_engine_comes_back_and_answers(vllm_environment, tiny_teacher, tmp_path):
    """Two starts: one to two minutes."""
    settings = serve_without_gpu(vllm_environment, tiny_teacher)
    serve = parse_serve(settings, where="the tiny teacher", beside=ROOT)
    lines = []
    others = processes_below(os.getpid())  # such as the server of the other tests

    def processes():
        names_by_pid = processes_below(os.getpid())
        return {pid: name for pid, name in names_by_pid.items() if pid not in others}

    async def main():
        async with start_servers(
            "tiny", TEACHER_NAME, None, serve, log=tmp_path / "log", say=lines.append
        ) as servers:
            assert list(await answer_of(servers.urls[0])) == SCHEMA["required"]
            first = processes()
            (engine,) = [pid for pid, name in first.items() if "EngineCore" in name]
            watch = asyncio.create_task(servers.watch())
            os.kill(engine, signal.SIGKILL)
            while sum(" is up after " in line for line in lines) < 2:
                assert not watch.done(), watch.exception()
                await asyncio.sleep(0.2)
            assert not any(map(is_running, first))
            assert list(await answer_of(servers.urls[0])) == SCHEMA["required"]
            watch.cancel()
            return processes()

    second = asyncio.run(main())

    assert any("EngineCore" in name for name in second.values())
    assert not any(map(is_running, second))
    assert sum("restarting it (1 of 3)" in line for line in lines) == 1


def test_a_kill_9_of_its_owner_leaves_nothing_of_a_server(vllm_environment, tiny_teacher, tmp_path):
    """One start: half a minute to one."""
    settings = json.dumps(serve_without_gpu(vllm_environment, tiny_teacher))
    command = [sys.executable, "-c", OWNER, settings, str(tmp_path / "log")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout.readline() == "ready\n"
        below = processes_below(owner.pid)
        assert any("EngineCore" in name for name in below.values())
        owner.kill()

    deadline = time.monotonic() + 30
    while any(map(is_running, below)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert [name for pid, name in below.items() if is_running(pid)] == []
