"""Shortages of this machine are nobody's fault: no pair is refused for them."""

import asyncio
import errno
import json
import os
import resource
import socket
import subprocess
import sys

import pytest

from servers.openai_server import serving
from sp2dpo.inference.caller import Caller
from sp2dpo.inference.client import Client, EndpointError, Unavailable, open_session
from sp2dpo.inference.connection import most_connections, shortage
from sp2dpo.inference.endpoint import Endpoint
from support.harness import write_pairs, write_panel

FILES = 80
"""Files that a run may have open: fewer than the requests that it would send at a time."""
LIMITED = f"""
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, ({FILES}, {FILES}))
from sp2dpo.cli.main import main
main()
"""


@pytest.mark.slow
def test_a_run_with_few_files_refuses_no_pair(tmp_path):
    with serving("scripted", "--log", tmp_path / "log", "--delay", 0.1) as url:
        panel = write_panel(tmp_path / "panel.yaml", url, max_in_flight=256)
        command = [
            sys.executable, "-c", LIMITED, "annotate", "--panel", panel,
            "--pairs", write_pairs(tmp_path / "pairs.jsonl", 60), "--store", tmp_path / "s.sqlite",
        ]  # fmt: skip
        result = subprocess.run(
            list(map(str, command)), capture_output=True, text=True, check=False, timeout=120
        )
    assert result.returncode == 0, result.stderr
    assert "180 asked for = 180 kept + 0 refused + 0 pending" in result.stdout


@pytest.fixture
def limits():
    """The limits of open files, restored at the end."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield before
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_run_raises_its_limit_of_open_files_as_far_as_it_may(limits):
    _, hard = limits
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    connections = most_connections()
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert 256 <= soft <= hard
    assert 4 <= connections < soft


SHORTAGES = {
    "files of the process": OSError(errno.EMFILE, "Too many open files"),
    "files of the machine": OSError(errno.ENFILE, "Too many open files in system"),
    "ports": OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address"),
    "buffers": OSError(errno.ENOBUFS, "No buffer space available"),
    "memory": OSError(errno.ENOMEM, "Cannot allocate memory"),
    "space": OSError(errno.ENOSPC, "No space left on device"),
    "resolver": socket.gaierror(socket.EAI_SYSTEM, "System error"),
}


class Short:
    """A session that lacks something for some requests, and then sends them."""

    def __init__(self, session, error, times):
        self.session, self.error, self.times = session, error, times

    def request(self, *arguments, **settings):
        if self.times:
            self.times -= 1
            raise self.error
        return self.session.request(*arguments, **settings)


def ask_with(error, url, *, times, patience):
    async def main():
        endpoint = Endpoint(
            name="t", model="scripted", revision=None, base_urls=(url,), structured="none",
            sampling={"temperature": 0, "max_tokens": 300},
        )  # fmt: skip
        async with open_session() as session:
            client = Client(Short(session, error, times), endpoint, None)
            caller = Caller(client, (url,), patience=patience, stop=asyncio.Event())
            # As after an answer, so that a failing request could be refused for good.
            caller.known_good = MESSAGES
            return await caller.ask(MESSAGES, 0, caller.route("pair"))

    return asyncio.run(main())


MESSAGES = [{"role": "user", "content": json.dumps("Hello?")}]


@pytest.mark.parametrize("error", SHORTAGES.values(), ids=SHORTAGES)
def test_a_shortage_ends_the_run_and_refuses_nothing(error):
    with pytest.raises(EndpointError) as caught:
        ask_with(error, "http://127.0.0.1:9/v1", times=10**6, patience=0.4)
    assert not isinstance(caught.value, Unavailable)
    assert "restart the server" not in str(caught.value)
    assert "run the same command again" in str(caught.value)
    assert shortage(error) in str(caught.value)


def test_a_shortage_that_passes_delays_a_request():
    """More failures than those after which a request is refused."""

    async def answer(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        body = b'{"choices": [{"message": {"content": "Hi."}, "finish_reason": "stop"}]}'
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        writer.close()

    async def main():
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        reply = await asyncio.to_thread(
            ask_with, SHORTAGES["files of the process"], url, times=2, patience=60
        )
        server.close()
        return reply

    assert asyncio.run(main()).text == "Hi."


def test_other_failures_of_a_connection_are_no_shortage():
    for error in (ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED)),
                  TimeoutError(), socket.gaierror(socket.EAI_NONAME, "no such name")):  # fmt: skip
        assert shortage(error) is None
