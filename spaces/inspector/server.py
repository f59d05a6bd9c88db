"""Run the inspector's web server: its connections, its end, and its private folder.

Everything temporary (exports, downloads, Gradio's own files) is in one folder that only this
process uses and only its user can read. It is removed at the end; what a killed process left is
removed by the next one.
"""

import asyncio
import contextlib
import fcntl
import os
import select
import shutil
import signal
import socket
import stat
import sys
import tempfile
import threading
from collections.abc import Callable, Generator
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

FOLDER = "sp2dpo-inspector-"
"""Beginning of the name of a private folder, in the system's folder for temporary files."""
_UNFINISHED = "sp2dpo-starting-"
LOCK = "lock"
MAX_CONNECTIONS = 256
"""Largest number of open connections: below the 1,024 files that a process may usually open."""
HEAD_SECONDS = 10.0
"""Time that a client has to send the head of a request."""
STALLED_SECONDS = 60.0
"""Time after which a client that reads nothing of an answer is disconnected."""
CHECK_SECONDS = 2.5
GRACE_SECONDS = 1
"""Time that requests have to end after SIGTERM."""
FIRST_PORT, PORTS = 7860, 100


def make_folder() -> Path:
    """Create the private folder, make it the folder for temporary files, and remove leftovers."""
    parent = Path(tempfile.gettempdir())
    _remove_leftovers(parent)
    starting = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=parent))
    # Locked as long as the process lives, and never closed: a number would be used again by another
    # process, or stand for one in another container.
    lock = os.open(starting / LOCK, os.O_CREAT | os.O_RDWR, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    folder = starting.with_name(FOLDER + starting.name.removeprefix(_UNFINISHED))
    starting.rename(folder)
    tempfile.tempdir = os.environ["GRADIO_TEMP_DIR"] = str(folder)
    return folder


def _remove_leftovers(parent: Path) -> None:
    """Remove private folders of this user whose processes have ended."""
    with os.scandir(parent) as entries:
        named = [entry for entry in entries if entry.name.startswith(FOLDER)]
    for entry in named:
        # Other processes may remove the same folder at the same time.
        with contextlib.suppress(OSError):
            status = entry.stat(follow_symlinks=False)
            private = stat.S_ISDIR(status.st_mode) and stat.S_IMODE(status.st_mode) == 0o700
            if not private or status.st_uid != os.getuid():
                continue
            lock = os.open(Path(entry.path) / LOCK, os.O_RDWR | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(Path(entry.path))
            finally:
                os.close(lock)


class Connection(H11Protocol):
    """A connection that ends if its client is slow, or if it is the oldest of too many."""

    def connection_made(self, transport: Any) -> None:
        """Count the connection, and end the oldest if there are too many."""
        super().connection_made(transport)
        self.born = self._idle_since = self.loop.time()
        self._written, self._stalled_since = 0, self.born
        if len(self.connections) > MAX_CONNECTIONS:
            oldest: Any = min(self.connections, key=lambda other: getattr(other, "born", 0.0))
            self.connections.discard(oldest)  # it disappears by itself, but only after a while
            oldest.transport.abort()
        self.loop.call_later(CHECK_SECONDS, self._check)

    def on_response_complete(self) -> None:
        """Begin to wait for the next request."""
        self._idle_since = self.loop.time()
        super().on_response_complete()

    def _check(self) -> None:
        waiting, now = self.transport.get_write_buffer_size(), self.loop.time()
        if self.transport.is_closing() and not waiting:
            return
        if not waiting or waiting != self._written:
            self._written, self._stalled_since = waiting, now
        answering = self.cycle is not None and not self.cycle.response_complete
        slow = not answering and not waiting and now - self._idle_since > HEAD_SECONDS
        if slow or now - self._stalled_since > STALLED_SECONDS:
            self.transport.abort()
        else:
            self.loop.call_later(CHECK_SECONDS, self._check)


class _Server(uvicorn.Server):
    """Uvicorn's server, which leaves the signals to `serve`."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


def open_port(host: str, port: int | None) -> socket.socket:
    """Return a socket that listens on a port; without one, on the first free one from 7860.

    Raises:
        OSError: The port is in use, or this machine does not have the address.
    """
    ports = range(FIRST_PORT, FIRST_PORT + PORTS) if port is None else [port]
    for number in ports:
        try:
            family, *_, place = socket.getaddrinfo(host, number, type=socket.SOCK_STREAM)[0]
            # asyncio sends small packets at once only on sockets that name the protocol.
            listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(place[:2])
            listener.listen(MAX_CONNECTIONS)
            return listener
        except OSError as error:
            if number == ports[-1]:
                raise OSError(
                    f"cannot listen on {host}, port {number}: {error.strerror}"
                ) from error
    raise AssertionError  # there is at least one port


def serve(app: Any, listener: socket.socket, folder: Path) -> None:
    """Answer requests until SIGINT, SIGTERM or SIGHUP arrives; then remove the folder and exit."""
    config = uvicorn.Config(
        app, http=Connection, ws="none", log_level="warning", access_log=False,
        timeout_graceful_shutdown=GRACE_SECONDS, server_header=False,
    )  # fmt: skip
    server = _Server(config)

    def stop(number: int, frame: FrameType | None) -> None:
        if server.should_exit:
            end(folder)
        server.should_exit = True
        # Threads of requests cannot be cancelled, and must not keep the port.
        timer = threading.Timer(3 * GRACE_SECONDS, end, [folder])
        timer.daemon = True
        timer.start()

    handle_signals(stop)
    try:
        asyncio.run(server.serve(sockets=[listener]))
    finally:
        end(folder)


def handle_signals(stop: Callable[[int, FrameType | None], None]) -> None:
    """Call a function when the process is asked to end."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores SIGHUP
            signal.signal(number, stop)


def _remove(folder: Path) -> None:
    """Remove a private folder, its lock last: without one it would not be known as a leftover."""
    with contextlib.suppress(OSError):
        for path in list(folder.iterdir()):
            if path.name != LOCK:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        shutil.rmtree(folder)


def end(folder: Path, status: int = 0) -> None:
    """Remove the private folder, and exit without waiting for threads."""
    _remove(folder)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def end_with_parent(folder: Path, parent: int) -> None:
    """Exit as soon as the process that started this one is gone.

    Its end closes the pipe that is the standard input of this process. A fork of it may keep the
    pipe open, so the number of the parent is compared as well.
    """

    def watch() -> None:
        while os.getppid() == parent:
            ready, _, _ = select.select([sys.stdin.fileno()], [], [], 1.0)
            if ready and not os.read(sys.stdin.fileno(), 1024):
                break
        end(folder)

    threading.Thread(target=watch, daemon=True).start()
