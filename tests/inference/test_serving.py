"""Servers as processes: started, watched, started again, and gone with the one that needs them."""

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import aiohttp
import pytest

from sp2dpo.inference.serve import Serve
from sp2dpo.inference.servers import ServerDied, ServerTimeouts, start_servers
from support.harness import TESTS

QUICK = ServerTimeouts(
    poll=0.01, progress=0.2, probe=0.05, answer=0.2, failures=3, failing_for=0.2, grace=0.4,
    pause=0.01, port=1.0,
)  # fmt: skip

# What `kill -9` is done to: it serves until it is killed.
OWNER = """
import asyncio, sys
from pathlib import Path
from sp2dpo.inference.serve import Serve
from sp2dpo.inference.servers import start_servers

async def main(environment, behaviour):
    serve = Serve(environment=environment, env={"BEHAVIOUR": behaviour})
    log = environment / "log"
    async with start_servers("name", "Org/Model", None, serve, log=log, say=print):
        print("ready", flush=True)
        await asyncio.sleep(600)

asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
"""


class Room:
    """A folder that looks like vLLM's environment, and the messages and starts of its servers."""

    def __init__(self, folder):
        self.folder = folder
        self.log = folder / "server.log"
        self.messages = []
        program = folder / "bin" / "vllm"
        program.parent.mkdir()
        source = (TESTS / "servers" / "stand_in_vllm.py").read_text()
        program.write_text(f"#!{sys.executable} -IS\n{source}")
        program.chmod(0o755)

    @property
    def starts(self):
        path = self.folder / "starts"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def serve(self, behaviour="well", **fields):
        return Serve(environment=self.folder, env={"BEHAVIOUR": behaviour}, **fields)

    def serving(self, behaviour="well", *, pace=QUICK, **fields):
        serve = self.serve(behaviour, **fields)
        say = self.messages.append
        return start_servers(
            "judge", "Org/Model", None, serve, log=self.log, say=say, timeouts=pace
        )

    def processes(self):
        pids = [start[key] for start in self.starts for key in ("pid", "child")]
        return [pid for pid in pids if pid]


@pytest.fixture
def room(tmp_path):
    """What the test leaves running is killed after it."""
    room = Room(tmp_path)
    yield room
    for pid in filter(is_running, room.processes()):
        os.kill(pid, signal.SIGKILL)


def is_running(pid):
    try:
        stat = Path("/proc", str(pid), "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def wait_for(condition, *, seconds=10):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


async def until(condition, *, seconds=10):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        await asyncio.sleep(0.01)


async def health(url):
    address = url.removesuffix("/v1") + "/health"
    async with aiohttp.ClientSession() as client, client.get(address) as answer:
        return answer.status


@contextlib.asynccontextmanager
async def watched(servers):
    """The servers are watched while the block lasts."""
    task = asyncio.create_task(servers.watch())
    try:
        yield task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def serve_once(room, behaviour="well", **fields):
    """Enters and leaves; what it was given and whether the servers ran inside."""

    async def main():
        async with room.serving(behaviour, **fields) as servers:
            statuses = [await health(url) for url in servers.urls]
            return servers.urls, statuses, list(map(is_running, room.processes()))

    return asyncio.run(main())


def test_a_server_runs_as_long_as_the_block(room):
    (url,), statuses, running = serve_once(room)

    (start,) = room.starts
    assert url == f"http://127.0.0.1:{start['port']}/v1"
    assert statuses == [200]
    assert running == [True]
    assert not is_running(start["pid"])


def test_a_server_gets_the_command_and_the_variables_that_were_shown(room):
    serve_once(room, gpus=("3",), args=("--max-model-len", "8192"))

    (start,) = room.starts
    assert start["arguments"][:2] == ["serve", "Org/Model"]
    assert start["arguments"][-2:] == ["--max-model-len", "8192"]
    assert start["gpus"] == "3"
    assert start["path"].startswith(f"{room.folder}/bin:")
    assert "bin/vllm serve Org/Model --served-model-name=Org/Model" in room.messages[0]
    assert f"--port={start['port']}" in room.messages[0]
    assert re.match(r"judge is up after \d+ s: http://127\.0\.0\.1:", room.messages[-1])


def test_what_must_not_be_overlooked_is_said_first(room):
    serve_once(room, args=("--trust-remote-code",))

    assert room.messages[0].startswith("WARNING: judge: --trust-remote-code runs code")


def test_replicas_have_ports_gpus_and_logs_of_their_own(room):
    urls, statuses, _ = serve_once(room, replicas=2, gpus=("0", "1", "2", "3"))

    assert statuses == [200, 200]
    assert len(set(urls)) == 2
    by_port = sorted(room.starts, key=lambda start: urls.index(address(start)))
    assert [start["gpus"] for start in by_port] == ["0,1", "2,3"]
    for number, start in enumerate(by_port):
        log = room.folder / f"server-{number}.log"
        assert f"--port={start['port']}" in log.read_text().splitlines()[0]
    assert not any(map(is_running, room.processes()))


def address(start):
    return f"http://127.0.0.1:{start['port']}/v1"


def test_the_ports_follow_the_first_one(room):
    first = free_port()
    urls, _, _ = serve_once(room, replicas=2, port=first)

    assert urls == (f"http://127.0.0.1:{first}/v1", f"http://127.0.0.1:{first + 1}/v1")


def free_port():
    """One that has a free neighbour."""
    while True:
        with socket.socket() as first, socket.socket() as neighbour:
            first.bind(("127.0.0.1", 0))
            port = first.getsockname()[1]
            with contextlib.suppress(OSError, OverflowError):
                neighbour.bind(("127.0.0.1", port + 1))
                return port


def test_the_log_is_added_to_and_marks_every_start(room):
    serve_once(room)
    serve_once(room)

    marks = [line for line in room.log.read_bytes().split(b"\n") if line.startswith(b"=== 20")]
    assert len(marks) == 2
    assert b"bin/vllm serve Org/Model" in marks[0]


def test_whatever_came_of_the_server_is_gone_after_the_block(room):
    serve_once(room, "child")

    (start,) = room.starts
    assert start["child"]
    assert not any(map(is_running, [start["pid"], start["child"]]))


def test_a_server_that_does_not_stop_is_killed(room):
    began = time.monotonic()
    serve_once(room, "stubborn")

    assert not any(map(is_running, room.processes()))
    assert time.monotonic() - began >= QUICK.grace


def test_the_servers_end_with_an_error_in_the_block(room):
    async def main():
        async with room.serving():
            raise KeyError("of the block")

    with pytest.raises(KeyError, match="of the block"):
        asyncio.run(main())
    assert not any(map(is_running, room.processes()))


def test_a_server_that_dies_while_loading_is_reported_with_the_end_of_its_log(room):
    room.log.write_text("an older run\n")

    with pytest.raises(ServerDied) as caught:
        serve_once(room, "dies")

    message, *tail = str(caught.value).splitlines()
    assert message == (
        f"judge: the server ended with exit code 3 before it was healthy; the end of {room.log}:"
    )
    assert tail == ["loaded 50 %\\u0007", "no such model"]


def test_only_the_last_lines_of_the_log_are_quoted(room):
    (room.folder / "bin" / "vllm").write_text("#!/bin/sh\nseq 100000\nexit 1\n")

    with pytest.raises(ServerDied) as caught:
        serve_once(room)

    assert str(caught.value).splitlines()[1:] == [str(n) for n in range(99981, 100001)]


def test_a_program_that_cannot_be_run_is_reported(room):
    (room.folder / "bin" / "vllm").write_text("#!/no/such/python\n")

    with pytest.raises(ServerDied, match=r"exit code 127(.|\n)*bin/vllm: No such file"):
        serve_once(room)


def test_a_server_that_is_killed_while_loading_is_reported_with_the_signal(room):
    (room.folder / "bin" / "vllm").write_text("#!/bin/sh\nkill -SEGV $$\n")

    with pytest.raises(ServerDied, match="ended by signal SIGSEGV before"):
        serve_once(room)


def test_a_server_that_never_gets_healthy_is_given_up(room):
    with pytest.raises(ServerDied, match=r"not healthy within 1 s(.|\n)*`healthy_within`"):
        serve_once(room, "never", healthy_within=1)

    waiting = [line for line in room.messages if line.startswith("waiting for judge")]
    assert 2 <= len(waiting) <= 5  # one every 0.2 s
    assert waiting[-1] == "waiting for judge: 1 s of 1 s: loaded 50 %\\u0007"
    assert not any(map(is_running, room.processes()))


def test_a_health_check_does_not_follow_a_redirect(room):
    # Long enough for the server to start on a busy machine.
    with pytest.raises(ServerDied, match=r"not healthy within 3 s \(HTTP 307\)"):
        serve_once(room, "redirects", healthy_within=3)


def test_a_server_inherits_no_api_key(room, monkeypatch):
    hidden = ("OPENAI_API_KEY", "teacher_api_key", "AWS_BEARER_TOKEN_BEDROCK")
    kept = ("HF_TOKEN", "VLLM_API_KEY", "AWS_SECRET_ACCESS_KEY", "API_KEY_FILE")
    for name in (*hidden, *kept):
        monkeypatch.setenv(name, "secret")
    serve_once(room)

    (start,) = room.starts
    assert set(start["variables"]).isdisjoint(hidden)
    assert set(start["variables"]) > set(kept)


def test_when_one_replica_cannot_start_none_is_left(room):
    with pytest.raises(ServerDied, match=r"judge \(replica [01]\): the server ended"):
        serve_once(room, "dies", replicas=2)

    assert not any(map(is_running, room.processes()))


def test_nobody_to_tell_ends_the_server(room):
    class ClosedPipe(list):
        def append(self, line):
            if "is up" in line:
                raise BrokenPipeError

    room.messages = ClosedPipe()

    with pytest.raises(BrokenPipeError):
        serve_once(room)
    assert not any(map(is_running, room.processes()))


def test_leaving_while_it_loads_leaves_nothing_running(room):
    async def main():
        async with room.serving("stubborn-and-never"):
            pytest.fail("it is never healthy")

    async def cancelled():
        task = asyncio.create_task(main())
        await until(lambda: room.starts)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    (start,) = room.starts
    assert not is_running(start["pid"])


def test_without_vllm_it_is_said_what_to_do(tmp_path):
    async def main():
        async with start_servers(
            "judge", "Org/Model", None, Serve(environment=tmp_path / "nowhere"),
            log=tmp_path / "log", say=print,
        ):  # fmt: skip
            pytest.fail("the block must not run")

    with pytest.raises(
        FileNotFoundError, match=r"nowhere/bin/vllm: vLLM is not installed there: install it"
    ):
        asyncio.run(main())


def test_a_model_that_is_not_there_is_reported(room):
    with pytest.raises(FileNotFoundError, match=r"no-weights: no such model"):
        serve_once(room, model=f"{room.folder}/no-weights")


def test_a_folder_that_could_be_an_id_on_the_hub_is_refused(room, monkeypatch):
    monkeypatch.chdir(room.folder)
    (room.folder / "Org" / "Model").mkdir(parents=True)

    with pytest.raises(ValueError, match=f"set `model` of `serve` to {room.folder}/Org/Model"):
        serve_once(room)
    assert room.starts == []


def test_a_log_that_cannot_be_written_ends_it(room):
    room.log = room.folder / "no" / "such" / "folder" / "log"

    with pytest.raises(FileNotFoundError):
        serve_once(room)


def test_a_server_that_stands_on_the_port_is_not_taken_for_ours(room, scripted):
    port = int(scripted().url.removesuffix("/v1").rpartition(":")[2])

    with pytest.raises(ServerDied, match=f"port {port} is taken by another program"):
        serve_once(room, port=port)
    assert room.starts == []


def test_a_port_that_was_used_a_moment_ago_is_waited_for(room):
    port = free_port()
    lately_used(port)

    with pytest.raises(ServerDied, match=f"port {port} is taken by another program"):
        serve_once(room, port=port)  # the kernel keeps it for a minute; the test's patience is 1 s
    assert room.messages.count(f"waiting for port {port} to become free") >= 2


def lately_used(port):
    with socket.socket() as listening, socket.socket() as client:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("127.0.0.1", port))
        listening.listen()
        client.connect(("127.0.0.1", port))
        accepted, _ = listening.accept()
        accepted.close()
        client.recv(1)


def test_a_server_that_dies_is_started_again_on_its_port(room):
    async def main():
        async with room.serving() as servers, watched(servers):
            os.kill(room.starts[0]["pid"], signal.SIGKILL)
            await until(lambda: len(room.starts) == 2)
            await until(lambda: room.messages[-1].startswith("judge is up"))
            return servers.urls, await health(servers.urls[0])

    (url,), status = asyncio.run(main())

    assert status == 200
    assert [address(start) for start in room.starts] == [url, url]
    (news,) = [line for line in room.messages if "restarting it" in line]
    assert news.startswith(
        "judge: the server was ended by signal SIGKILL; restarting it (1 of 3); the end of"
    )
    assert not any(map(is_running, room.processes()))


def test_what_a_dead_server_leaves_is_ended_before_it_is_started_again(room):
    async def main():
        async with room.serving("child") as servers, watched(servers):
            os.kill(room.starts[0]["pid"], signal.SIGKILL)
            await until(lambda: len(room.starts) == 2)
            return is_running(room.starts[0]["child"])

    assert asyncio.run(main()) is False


@pytest.mark.parametrize(
    ("behaviour", "problem"),
    [("ill-once", "HTTP 500"), ("hangs-once", "no answer within 0.2 s")],
)
def test_a_server_that_no_longer_answers_is_started_again(room, behaviour, problem):
    async def main():
        async with room.serving(behaviour) as servers, watched(servers):
            await until(lambda: len(room.starts) == 2)
            await until(lambda: room.messages[-1].startswith("judge is up"))
            return await health(servers.urls[0])

    assert asyncio.run(main()) == 200
    (news,) = [line for line in room.messages if "restarting it" in line]
    checks = int(news.split(" health checks")[0].split()[-1])
    assert checks >= QUICK.failures
    assert f"health checks in a row failed ({problem})" in news
    assert not is_running(room.starts[0]["pid"])


def test_a_server_that_is_lost_too_often_ends_the_watch(room):
    async def main():
        async with room.serving("dies-once-up", restarts=2) as servers:
            await servers.watch()

    with pytest.raises(ServerDied, match="exit code 5; it was restarted 2 times"):
        asyncio.run(main())
    assert len(room.starts) == 3
    assert not any(map(is_running, room.processes()))


def test_restarts_can_be_forbidden(room):
    async def main():
        async with room.serving("dies-once-up", restarts=0) as servers:
            await servers.watch()

    with pytest.raises(ServerDied, match="restarted 0 times"):
        asyncio.run(main())
    assert len(room.starts) == 1


def test_a_start_that_fails_counts_as_one_of_the_restarts(room):
    async def main():
        async with room.serving("relapses", restarts=2) as servers:
            await servers.watch()

    with pytest.raises(ServerDied, match="exit code 5; it was restarted 2 times"):
        asyncio.run(main())
    again = [line.splitlines()[0] for line in room.messages if "restarting it" in line]
    assert "exit code 5; restarting it (1 of 2)" in again[0]
    assert "exit code 6 before it was healthy; restarting it (2 of 2)" in again[1]
    assert len(room.starts) == 3


def test_while_one_is_started_again_the_other_goes_on(room):
    async def main():
        async with room.serving(replicas=2) as servers, watched(servers):
            first, second = room.starts
            os.kill(first["pid"], signal.SIGKILL)
            await until(lambda: len(room.starts) == 3)
            return is_running(second["pid"]), room.starts[2]["port"] == first["port"]

    assert asyncio.run(main()) == (True, True)


def test_one_that_is_lost_for_good_ends_the_watch_of_all(room):
    async def main():
        async with room.serving(replicas=2, restarts=0) as servers:
            watch = asyncio.create_task(servers.watch())
            await asyncio.sleep(0.1)
            os.kill(room.starts[0]["pid"], signal.SIGKILL)
            await watch

    with pytest.raises(ServerDied, match=r"judge \(replica [01]\): the server was ended by"):
        asyncio.run(main())


def test_a_keeper_that_was_killed_leaves_no_server(room):
    async def main():
        async with room.serving("stubborn") as servers:
            os.kill(parent_of(room.starts[0]["pid"]), signal.SIGKILL)
            async with watched(servers):
                await until(lambda: len(room.starts) == 2)
                return is_running(room.starts[0]["pid"])

    assert asyncio.run(main()) is False
    assert not any(map(is_running, room.processes()))


def test_a_keeper_that_hangs_is_killed_with_its_server(room):
    async def main():
        async with room.serving("stubborn"):
            os.kill(parent_of(room.starts[0]["pid"]), signal.SIGSTOP)

    asyncio.run(main())
    assert not any(map(is_running, room.processes()))


def parent_of(pid):
    stat = Path("/proc", str(pid), "stat").read_text()
    return int(stat.rpartition(")")[2].split()[1])


@contextlib.contextmanager
def owner(room, behaviour):
    """A process of its own that serves."""
    command = [sys.executable, "-c", OWNER, str(room.folder), behaviour]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        try:
            yield running
        finally:
            running.kill()


def test_a_kill_9_of_its_owner_ends_a_server_and_its_children(room):
    with owner(room, "child") as running:
        while running.stdout.readline() != "ready\n":
            assert running.poll() is None
        assert list(map(is_running, room.processes())) == [True, True]
        running.kill()

        wait_for(lambda: not any(map(is_running, room.processes())))


def test_a_kill_9_of_its_owner_ends_a_server_that_is_loading(room):
    with owner(room, "never") as running:
        wait_for(lambda: room.starts)
        running.kill()

        wait_for(lambda: not any(map(is_running, room.processes())))


def test_ctrl_c_while_it_loads_ends_the_server(room):
    with owner(room, "never") as running:
        wait_for(lambda: room.starts)
        running.send_signal(signal.SIGINT)

        running.wait(10)
        assert not any(map(is_running, room.processes()))
