"""What the inspector's guard lets through to Gradio, and how its server treats slow clients."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from support.browser import INSPECTOR, free_port

sys.path.insert(0, str(INSPECTOR))
import guard
import server

FILES = "/tmp/sp2dpo-inspector-x/files-y"
LOCAL = guard.find_names("127.0.0.1", {})
ON_HUB = guard.find_names("0.0.0.0", {"SPACE_ID": "me/page", "SPACE_HOST": "me-page.hf.space"})
PAGE = ("GET", "/")
CALL = ("POST", "/gradio_api/component_server")


def ask(names, method, path, *parts, chunks=(b"",), pause=0.0, **headers):
    """Status and headers of the answer to one request; 200 if it reached the application."""
    fields = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    fields += parts
    sent, waiting, reached = [], list(chunks), []

    async def receive():
        await asyncio.sleep(pause)
        more = len(waiting) > 1
        return {
            "type": "http.request",
            "body": waiting.pop(0) if waiting else b"",
            "more_body": more,
        }

    async def send(message):
        sent.append(message)

    async def application(scope, receive, send):
        message = await receive()
        reached.append((scope, message.get("body")))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    scope = {"type": "http", "method": method, "path": path, "headers": fields}
    asyncio.run(guard.Guard(application, names, FILES)(scope, receive, send))
    return sent[0]["status"], dict(sent[0]["headers"]), reached


def status(*arguments, **options):
    return ask(*arguments, **options)[0]


@pytest.mark.parametrize(
    "host", ["localhost", "127.0.0.1:7860", "LOCALHOST:80", "[::1]:7860", "127.1.2.3", "localhost."]
)
def test_a_local_server_answers_to_its_own_names(host):
    assert status(LOCAL, *PAGE, host=host) == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example", "localhost.evil.example", "127.0.0.1.nip.example:7860", "evil@127.0.0.1",
        "127.0.0.1:7860@evil.example", "10.0.0.5", "me-page.hf.space", "", "2130706433", "[::1",
        "127.0.0.1/x", "a" * 5000, "localhost evil.example", "0.0.0.0",
    ],
)  # fmt: skip
def test_a_local_server_answers_to_no_other_name(host):
    assert status(LOCAL, *PAGE, host=host) == 403


def test_a_request_needs_a_host_and_only_one():
    assert status(LOCAL, *PAGE) == 403
    assert status(LOCAL, *PAGE, (b"Host", b"evil.example"), host="localhost") == 400


@pytest.mark.parametrize(
    ("bound", "env", "host", "expected"),
    [
        ("0.0.0.0", {}, "192.168.1.5:7860", 200),
        ("0.0.0.0", {}, socket.gethostname(), 200),
        ("0.0.0.0", {}, "evil.example", 403),
        ("::", {}, "[2001:db8::1]:7860", 200),
        ("192.168.1.5", {}, "192.168.1.5", 200),
        ("192.168.1.5", {}, "192.168.1.6", 403),
        ("127.0.0.1", {"SP2DPO_HOSTS": "a.example, b.example"}, "b.example:443", 200),
        ("127.0.0.1", {"SP2DPO_HOSTS": "a.example"}, "c.a.example", 403),
        ("0.0.0.0", {"SPACE_HOST": "me-page.hf.space"}, "me-page.hf.space", 200),
        ("0.0.0.0", {"SPACE_HOST": "me-page.hf.space"}, "10.20.1.7:7860", 200),
        ("0.0.0.0", {"SPACE_HOST": "me-page.hf.space"}, "you-page.hf.space", 403),
    ],
)
def test_the_names_follow_the_address_and_the_environment(bound, env, host, expected):
    assert status(guard.find_names(bound, env), *PAGE, host=host) == expected


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, 200),
        ({"origin": "http://localhost:7860"}, 200),
        ({"origin": "http://localhost:3000"}, 403),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://localhost:7860.evil.example"}, 403),
        ({"origin": "http://localhost:99999999"}, 403),
        ({"origin": "https://huggingface.co"}, 403),
        ({"sec_fetch_site": "same-origin", "sec_fetch_mode": "cors"}, 200),
        ({"sec_fetch_site": "cross-site", "sec_fetch_mode": "no-cors"}, 403),
        ({"sec_fetch_site": "same-site", "sec_fetch_mode": "no-cors"}, 403),
        ({"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate"}, 403),
    ],
)
def test_another_site_may_not_call_a_local_server(headers, expected):
    assert status(LOCAL, *CALL, host="localhost:7860", **headers) == expected


def test_a_link_from_another_site_may_be_followed():
    followed = {"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate"}
    assert status(LOCAL, *PAGE, host="localhost:7860", **followed) == 200


def test_only_the_hub_may_call_and_frame_a_space():
    host = "me-page.hf.space"
    for origin, expected in {
        f"https://{host}": 200, "https://huggingface.co": 200, "https://you-page.hf.space": 403,
        "https://huggingface.co.evil.example": 403,
    }.items():  # fmt: skip
        assert status(ON_HUB, *CALL, host=host, origin=origin) == expected, origin
    policy = ask(ON_HUB, *PAGE, host=host)[1][b"content-security-policy"].decode()
    assert policy == "frame-ancestors 'self' https://huggingface.co https://*.hf.space"
    headers = ask(LOCAL, *PAGE, host="localhost")[1]
    assert headers[b"content-security-policy"] == b"frame-ancestors 'self'"
    assert headers[b"x-content-type-options"] == b"nosniff"


def test_a_forged_forwarded_host_is_dropped():
    for forwarded, kept in (("evil.example", False), ("localhost:7860, evil.example", True)):
        _, _, [(scope, _)] = ask(LOCAL, *PAGE, host="localhost", x_forwarded_host=forwarded)
        assert (b"x-forwarded-host" in dict(scope["headers"])) is kept


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/gradio_api/upload"), ("POST", "/gradio_api/process_recording"),
        ("POST", "/gradio_api/stream/x"), ("GET", "/gradio_api/deep_link"),
        ("GET", "/gradio_api/proxy=https://x.hf.space/"), ("POST", "/gradio_api/vibe-edit"),
        ("GET", "/gradio_api/file=/etc/passwd"), ("GET", f"/gradio_api/file={FILES}/../lock"),
        ("GET", "/gradio_api/file=https://evil.example/x"), ("GET", "/gradio_api/heartbeat/x"),
        ("GET", f"/gradio_api/file={FILES}x/a"), ("GET", "/monitoring"), ("POST", "/login"),
        ("PUT", "/gradio_api/component_server"), ("GET", "/docs"), ("TRACE", "/"),
        ("POST", "/gradio_api/run/other"), ("GET", "/gradio_api/runs"), ("POST", "/"),
        ("GET", "//gradio_api/upload"), ("POST", "/gradio_api/upload/"),
        ("POST", "/gradio_api/mcp/upload"),
    ],
)  # fmt: skip
def test_routes_that_the_page_does_not_need_do_not_exist(method, path):
    assert status(LOCAL, method, path, host="localhost") == 404


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/config"), ("GET", "/assets/index.js"), ("GET", "/gradio_api/info"),
        ("GET", f"/gradio_api/file={FILES}/pairs.jsonl"), ("POST", "/gradio_api/run/find_pairs"),
        ("POST", "/gradio_api/call/v2/find_pairs"), ("GET", "/gradio_api/call/find_pairs/0a"),
        ("GET", "/gradio_api/queue/data"), ("POST", "/gradio_api/mcp"), ("GET", "/gradio_api/mcp/"),
        ("DELETE", "/gradio_api/mcp/"), ("GET", "/gradio_api/mcp/schema"),
        ("GET", "/gradio_api/mcp/sse"), ("POST", "/gradio_api/mcp/messages/"),
    ],
)  # fmt: skip
def test_routes_of_the_page_the_api_and_the_tool_stay(method, path):
    assert status(LOCAL, method, path, host="localhost") == 200


def test_files_are_taken_nowhere():
    form = "multipart/form-data; boundary=x"
    assert status(LOCAL, *CALL, host="localhost", content_type=form) == 415


@pytest.mark.parametrize("path", [CALL[1], "/gradio_api/mcp/", "/gradio_api/call/find_pairs"])
def test_a_body_has_a_largest_size_even_in_chunks(path):
    most = b"x" * guard.MAX_BODY
    code, _, reached = ask(
        LOCAL, "POST", path, chunks=(most[:9], most[9:]), host="localhost",
        transfer_encoding="chunked",
    )  # fmt: skip
    assert code == 200
    assert reached[0][1] == most
    for headers in ({"transfer_encoding": "chunked"}, {"content_length": "5"}):
        chunks = (most, b"y", b"")
        assert status(LOCAL, "POST", path, chunks=chunks, host="localhost", **headers) == 413
    for size in (str(guard.MAX_BODY + 1), "9" * 4000, "-1", "1e3", ""):
        assert status(LOCAL, "POST", path, host="localhost", content_length=size) == 413


def test_a_body_that_does_not_come_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(guard, "BODY_SECONDS", 0.05)
    chunks = [b"x"] * 100
    assert (
        status(LOCAL, *CALL, host="localhost", content_length="100", chunks=chunks, pause=0.02)
        == 408
    )


def test_a_websocket_is_closed():
    sent = []

    async def send(message):
        sent.append(message["type"])

    asyncio.run(guard.Guard(None, LOCAL, FILES)({"type": "websocket"}, None, send))
    assert sent == ["websocket.close"]


SCRIPT = f"""
import asyncio, os, sys
sys.path.insert(0, {str(INSPECTOR)!r})
import server
server.HEAD_SECONDS, server.CHECK_SECONDS = 1.0, 0.2
async def application(scope, receive, send):
    await send({{"type": "http.response.start", "status": 200, "headers": []}})
    if scope.get("path") == "/stream":
        await send({{"type": "http.response.body", "body": b"begun", "more_body": True}})
        await asyncio.sleep(3600)
    await send({{"type": "http.response.body", "body": b"ok"}})
folder = server.make_folder()
if len(sys.argv) > 2:
    server.end_with_parent(folder, int(sys.argv[2]))
(folder / "private").write_text("rows")
print(folder, flush=True)
async def guarded(scope, receive, send):
    if scope["type"] == "http":
        await application(scope, receive, send)
server.serve(guarded, server.open_port("127.0.0.1", int(sys.argv[1])), folder)
"""


@contextmanager
def serving(folder):
    """A server of the inspector's with a small application; gives process, port and folder."""
    port = free_port()
    running = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(port)], stdout=subprocess.PIPE, text=True,
        env=os.environ | {"TMPDIR": str(folder)},
        # An ignored one, as under nohup, would be handed down.
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    )  # fmt: skip
    try:
        private = Path(running.stdout.readline().strip())
        connect(port).close()
        yield running, port, private
    finally:
        running.kill()
        running.wait()
        running.stdout.close()


def connect(port, path=None):
    end = time.monotonic() + 30
    while True:
        try:
            connection = socket.create_connection(("127.0.0.1", port), timeout=20)
            break
        except ConnectionRefusedError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)
    if path:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    return connection


def test_many_slow_clients_block_nobody_and_are_dropped(tmp_path):
    with serving(tmp_path) as (_, port, _), ExitStack() as stack:
        slow = [stack.enter_context(connect(port)) for _ in range(server.MAX_CONNECTIONS + 50)]
        for connection in slow[-20:]:
            connection.sendall(b"GET / HTTP/1.1\r\nX-Slow: ")
        page = stack.enter_context(connect(port, "/"))
        assert page.recv(12) == b"HTTP/1.1 200"
        streams = [stack.enter_context(connect(port, "/stream")) for _ in range(5)]
        for connection in slow:
            with suppress(ConnectionResetError):
                assert connection.recv(1000) == b""
        assert b"200" in streams[-1].recv(1000)  # those that are being answered stay


def test_a_long_header_is_refused(tmp_path):
    with serving(tmp_path) as (_, port, _), connect(port) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 100_000)
        assert connection.recv(12) == b"HTTP/1.1 400"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_the_server_and_removes_its_folder(tmp_path, number):
    with serving(tmp_path) as (running, port, private), connect(port, "/stream") as stream:
        assert b"200" in stream.recv(100)
        assert private.stat().st_mode & 0o777 == 0o700
        running.send_signal(number)
        assert running.wait(timeout=20) == 0
        assert not private.exists()
        socket.create_server(("127.0.0.1", port)).close()


def test_what_a_killed_server_left_is_removed_by_the_next_one(tmp_path):
    foreign = tmp_path / f"{server.FOLDER}foreign"
    foreign.mkdir(mode=0o755)
    (foreign / "lock").touch()
    (tmp_path / f"{server.FOLDER}link").symlink_to(foreign)
    with serving(tmp_path) as (first, _, left):
        first.kill()
        first.wait()
        assert left.exists()
        with serving(tmp_path) as (second, _, private):
            assert not left.exists()
            with serving(tmp_path):
                assert (private / "private").exists()  # the second is still running
            second.terminate()
            second.wait(timeout=20)
    assert {path.name for path in tmp_path.iterdir()} >= {foreign.name, f"{server.FOLDER}link"}
    assert (foreign / "lock").exists()


@pytest.mark.parametrize("inherited", [False, True])
def test_a_server_ends_with_the_process_that_started_it(tmp_path, inherited):
    """Even if a fork of that process keeps the pipe open."""
    starter = (
        "import os, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', sys.argv[1], sys.argv[2],"
        " str(os.getpid())], stdin=subprocess.PIPE)\n"
        "pid = os.fork() if sys.argv[3] == 'True' else 1\n"
        "print(child.pid, pid, flush=True) if pid else None\n"
        "time.sleep(3600)\n"
    )
    port = free_port()
    parent = subprocess.Popen(
        [sys.executable, "-c", starter, SCRIPT, str(port), str(inherited)], text=True,
        stdout=subprocess.PIPE, env=os.environ | {"TMPDIR": str(tmp_path)},
    )  # fmt: skip
    # The address of the folder and the numbers may come in any order.
    numbers = next(line for line in parent.stdout if not line.startswith("/"))
    child, fork = map(int, numbers.split())
    try:
        connect(port).close()
        parent.kill()
        parent.wait()
        psutil.wait_procs([psutil.Process(child)], timeout=20)
        assert not psutil.pid_exists(child) or psutil.Process(child).status() == "zombie"
        assert [path.name for path in tmp_path.iterdir()] == []
    finally:
        parent.stdout.close()
        if fork > 1:
            os.kill(fork, signal.SIGKILL)
