"""Start vLLM servers, restart those that fail, and stop them at the end of a `with` block."""

import asyncio
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import (
    AsyncIterator,
    Callable,
    Collection,
    Coroutine,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from sp2dpo.inference.endpoint import Endpoint
from sp2dpo.inference.keys import is_api_key
from sp2dpo.inference.serve import Serve, is_path
from sp2dpo.inference.vllm import command_lines, environment_variables, serve_warnings, vllm_command
from sp2dpo.text import escape_controls

_KEEPER = Path(__file__).with_name("keeper.py")
# Terminal escape sequences: colors, cursor movements, window titles.
_ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\].*?(?:\x07|\x1b\\)|\x1b[@-Z\\-_]")
_TAIL = 64 * 1024  # bytes
_LINES = 20


@dataclass(frozen=True, kw_only=True)
class ServerTimeouts:
    """Timeouts and intervals of managed servers; all but `failures` in seconds.

    Attributes:
        poll: Interval of checks while a server loads.
        progress: Interval of progress messages while a server loads.
        probe: Interval of health checks of a running server.
        answer: Timeout of a health check.
        failures: Number of consecutive failed health checks after which a server counts as lost, if
            they also span `failing_for` seconds.
        failing_for: Shortest time between the first and the last of these failed checks.
        grace: Time between SIGTERM and SIGKILL.
        pause: Pause before a restart.
        port: Time to wait for a port to become free; the kernel reserves a port for a minute after
            its last use.
    """

    poll: float = 0.25
    progress: float = 10.0
    probe: float = 10.0
    answer: float = 10.0
    failures: int = 3
    failing_for: float = 30.0
    grace: float = 15.0
    pause: float = 5.0
    port: float = 70.0


class Server:
    """A managed server process.

    Attributes:
        label: Name in messages.
        url: Base URL of its API.
        restarts: Number of restarts so far.
    """

    def __init__(
        self,
        label: str,
        command: Sequence[str],
        variables: Mapping[str, str],
        *,
        host: str,
        port: int,
        log: Path,
        client: aiohttp.ClientSession,
        timeouts: ServerTimeouts,
    ) -> None:
        self.label = label
        self.restarts = 0
        self._command = list(command)
        self._variables = dict(variables)
        self._address = (host, port)
        self._root = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        self._log = log
        self._log_begins: int | None = None  # size of the log at the last start
        self._client = client
        self._timeouts = timeouts
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"{self._root}/v1"

    async def start(self, say: Callable[[str], None], *, within: float) -> str | None:
        """Start the server and wait until it is healthy.

        Args:
            say: Called with progress messages.
            within: Timeout in seconds.

        Returns:
            The problem if it did not become healthy; None if it is up.

        Raises:
            OSError: If the log cannot be written.
        """
        # If this start fails before the server runs, the log of the last start explains nothing.
        self._log_begins = None
        if problem := await self._until_port_is_free(say):
            return problem
        self._spawn()
        started = time.monotonic()
        next_notice = started + self._timeouts.progress
        # If our process has ended, another program at this port may be what answers.
        while (problem := await self._probe()) or self._has_ended():
            waited = time.monotonic() - started
            if self._has_ended():
                return f"{self._ending()} before it was healthy"
            if waited > within:
                return (
                    f"the server was not healthy within {within:g} s ({problem}): "
                    "raise `healthy_within`, or see its log"
                )
            if time.monotonic() >= next_notice:
                next_notice += self._timeouts.progress
                last_line = "".join(self._last_lines(1)) or "nothing in its log yet"
                say(f"waiting for {self.label}: {waited:.0f} s of {within:g} s: {last_line}")
            await asyncio.sleep(self._timeouts.poll)
        say(f"{self.label} is up after {time.monotonic() - started:.0f} s: {self.url}")
        return None

    async def _until_port_is_free(self, say: Callable[[str], None]) -> str | None:
        started = time.monotonic()
        port = self._address[1]
        # After a restart, closed connections of our own server may still hold the port.
        while not _is_free(*self._address, reuse=self.restarts > 0):
            # If not even `reuse` helps, a program listens there, and waiting is useless.
            in_use = not _is_free(*self._address, reuse=True)
            if in_use or time.monotonic() - started > self._timeouts.port:
                return f"port {port} is taken by another program: stop it, or choose another `port`"
            say(f"waiting for port {port} to become free")
            await asyncio.sleep(min(self._timeouts.progress, self._timeouts.port / 5))
        return None

    def _spawn(self) -> None:
        with self._log.open("ab") as sink:
            now = time.strftime("%Y-%m-%d %H:%M:%S %z")
            sink.write(f"=== {now} {shlex.join(self._command)}\n".encode())
            self._log_begins = sink.tell()
            # Otherwise the heading would be written only after the first output of the server.
            sink.flush()
            # Its environment is the server's. With -I and -S, no variable such as PYTHONPATH can
            # change the keeper, which needs only the standard library.
            keeper = [
                sys.executable,
                "-I",
                "-S",
                _KEEPER,
                str(os.getpid()),
                str(self._timeouts.grace),
            ]
            # The kernel signals the keeper when the thread that started it ends, so start it from
            # the event loop's thread.
            self._process = subprocess.Popen(
                [*keeper, *self._command],
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                env=self._variables,
                # Ctrl-C in the terminal must reach this process only, which then stops the servers.
                start_new_session=True,
            )

    async def wait_for_failure(self) -> str:
        """Wait until the server has ended or no longer answers, and return the problem."""
        failures, first_failure = 0, 0.0
        while not await self._ends_within(self._timeouts.probe):
            problem = await self._probe()
            if problem is None:
                failures = 0
                continue
            if not failures:
                first_failure = time.monotonic()
            failures += 1
            is_lasting = time.monotonic() - first_failure >= self._timeouts.failing_for
            # A server under full load may miss checks for a while, so count and time must both
            # be reached; and if the process has ended, its exit code tells more.
            if failures >= self._timeouts.failures and is_lasting and not self._has_ended():
                return f"{failures} health checks in a row failed ({problem})"
        return self._ending()

    async def _ends_within(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while not self._has_ended() and time.monotonic() < deadline:
            await asyncio.sleep(min(self._timeouts.poll, seconds))
        return self._has_ended()

    async def _probe(self) -> str | None:
        """Run a health check and return the problem; None if the server is healthy."""
        timeout = aiohttp.ClientTimeout(total=self._timeouts.answer)
        try:
            # Its body is not read, and no other server can answer in its place.
            address = f"{self._root}/health"
            async with self._client.get(address, timeout=timeout, allow_redirects=False) as answer:
                return None if answer.status == 200 else f"HTTP {answer.status}"
        except TimeoutError:
            return f"no answer within {self._timeouts.answer:g} s"
        except (aiohttp.ClientError, OSError) as error:
            return str(error) or type(error).__name__

    def _has_ended(self) -> bool:
        return self._process is None or self._process.poll() is not None

    def _ending(self) -> str:
        code = self._process.returncode if self._process else 0
        # The keeper exits with 128 + n if signal n ended the server; -n means the keeper itself.
        if code < 0 or code > 128:
            number = -code if code < 0 else code - 128
            name = signal.Signals(number).name if number in list(signal.Signals) else str(number)
            return f"the server was ended by signal {name}"
        return f"the server ended with exit code {code}"

    def ask_to_stop(self) -> None:
        """Ask the keeper to end the server, without waiting."""
        if self._process and self._process.poll() is None:
            self._process.terminate()

    async def stop(self) -> None:
        """Stop the server with all its child processes, and wait until they have ended."""
        self.ask_to_stop()
        deadline = time.monotonic() + 2 * self._timeouts.grace + 1  # the keeper waits for one grace
        while not self._has_ended() and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        # If the keeper hangs or was killed, its children may still run.
        if self._process and (self._process.poll() is None or self._process.returncode < 0):
            await self._kill_session(self._process)

    async def _kill_session(self, keeper: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + self._timeouts.grace
        with suppress(ProcessLookupError):  # no process is left
            while time.monotonic() < deadline:
                os.killpg(keeper.pid, signal.SIGKILL)  # the keeper leads its own session
                # Collect its exit code: a zombie would still count as a process of the group.
                keeper.poll()
                await asyncio.sleep(0.02)

    def tail(self) -> str:
        """Return the end of the log since the last start, with a heading; "" before the first."""
        if self._log_begins is None:
            return ""
        lines = self._last_lines(_LINES) or ["(nothing)"]
        return "\n".join([f"; the end of {self._log}:", *lines])

    def _last_lines(self, count: int) -> list[str]:
        with self._log.open("rb") as source:
            end = source.seek(0, os.SEEK_END)
            source.seek(max(self._log_begins or 0, end - _TAIL))
            text = source.read().decode(errors="replace")
        lines = _ESCAPES.sub("", text).replace("\r\n", "\n").split("\n")
        # Of a line that was overwritten, such as a progress bar, keep only the last state.
        states = [line.rstrip("\r").rpartition("\r")[2].rstrip() for line in lines]
        return [escape_controls(line) for line in states if line][-count:]


def _is_free(host: str, port: int, *, reuse: bool) -> bool:
    """Return whether a port is free; `reuse` ignores closed connections of an earlier run."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        if reuse:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen()
        except OSError:
            return False
    return True


DEFAULT_TIMEOUTS = ServerTimeouts()


class ServerDied(OSError):
    """A server could not be started, or failed more often than `restarts` allows."""


class Servers:
    """The running servers of a model.

    Attributes:
        urls: Base URL of each API, such as `http://127.0.0.1:8000/v1`; it stays the same after a
            restart.
    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        processes: Sequence[Server] = (),
        restarts: int = 0,
        healthy_within: float = 0.0,
        say: Callable[[str], None],
        timeouts: ServerTimeouts,
    ) -> None:
        """Create the servers' watcher; nothing is watched yet.

        Args:
            urls: Base URL of each API.
            processes: The servers that were started here; none if others run them.
            restarts: Largest number of restarts of each process.
            healthy_within: Timeout of a restart, in seconds.
            say: Called with notices about restarts.
            timeouts: Timeouts and intervals.
        """
        self.urls = tuple(urls)
        self._processes = processes
        self._restarts = restarts
        self._healthy_within = healthy_within
        self._say = say
        self._timeouts = timeouts
        self._starting = 0

    def are_starting(self) -> bool:
        """Return whether a server is being restarted now."""
        return self._starting > 0

    async def watch(self) -> None:
        """Restart lost servers, while all others continue; runs until it is cancelled.

        Returns at once if no server was started here.

        A server is lost if its process has ended, or `/health` has failed three times in a row over
        at least half a minute.

        Raises:
            ServerDied: If a server was lost more often than `restarts` allows.
        """
        await _gather_or_cancel(self._keep_running(server) for server in self._processes)

    async def _keep_running(self, server: Server) -> None:
        while True:
            problem = await server.wait_for_failure()
            while problem:
                # A restart that fails counts as one, so this ends.
                problem = await self._restart(server, problem)

    async def _restart(self, server: Server, problem: str) -> str | None:
        """Restart a lost server, and return the problem if that failed."""
        if server.restarts >= self._restarts:
            raise ServerDied(
                f"{server.label}: {problem}; it was restarted {self._restarts} times, which is the "
                f"limit set by `restarts`{server.tail()}"
            )
        server.restarts += 1
        self._say(
            f"{server.label}: {problem}; restarting it ({server.restarts} of {self._restarts})"
            f"{server.tail()}"
        )
        # Also if it has ended: processes that it left behind may hold its port or GPU memory.
        await server.stop()
        await asyncio.sleep(self._timeouts.pause)
        return await server.start(self._say, within=self._healthy_within)


@asynccontextmanager
async def start_servers(
    name: str,
    model: str,
    revision: str | None,
    serve: Serve,
    *,
    log: Path,
    say: Callable[[str], None],
    timeouts: ServerTimeouts = DEFAULT_TIMEOUTS,
    hidden_variables: Collection[str] = (),
) -> AsyncIterator[Servers]:
    """Serve a model inside the block; its servers end with it, even if this process is killed.

    Args:
        name: Name of the endpoint, for messages.
        model: Model to serve.
        revision: Commit of its weights.
        serve: Settings of the servers.
        log: File to append the servers' output to; several servers use `NAME-0.log`, `NAME-1.log`
            and so on.
        say: Called with the command, warnings and progress messages.
        timeouts: Timeouts and intervals.
        hidden_variables: Names of environment variables that the servers do not inherit, besides
            those that `is_api_key` names.

    Raises:
        FileNotFoundError: If the environment has no vLLM.
        ValueError: If the model could be a local folder or an id on the Hub.
        ServerDied: If a server did not become healthy; the message has the end of its log.
    """
    _check(model, serve)
    # Chosen before the commands are shown, so that each can be repeated as it is printed.
    ports = _ports(serve)
    inherited = {
        name: text
        for name, text in os.environ.items()
        if name not in hidden_variables and not is_api_key(name)
    }
    for line in serve_warnings(serve):
        say(escape_controls(f"WARNING: {name}: {line}"))
    for line in command_lines(model, revision, serve, ports=ports):
        say(escape_controls(f"starting {name}: {line}"))
    connector = aiohttp.TCPConnector(force_close=True)  # keep no connection to a lost server
    async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as client:
        servers = [
            Server(
                name if serve.replicas == 1 else f"{name} (replica {replica})",
                vllm_command(model, revision, serve, port=port),
                environment_variables(inherited, serve, replica=replica),
                host=serve.host,
                port=port,
                log=log if serve.replicas == 1 else log.with_stem(f"{log.stem}-{replica}"),
                client=client,
                timeouts=timeouts,
            )
            for replica, port in enumerate(ports)
        ]
        try:
            await _gather_or_cancel(_start(server, serve, say) for server in servers)
            yield Servers(
                [server.url for server in servers],
                processes=servers,
                restarts=serve.restarts,
                healthy_within=serve.healthy_within,
                say=say,
                timeouts=timeouts,
            )
        finally:
            for server in servers:
                # Ask all of them before waiting for any: loaded models take seconds to end.
                server.ask_to_stop()
            await asyncio.gather(*(server.stop() for server in servers))


@asynccontextmanager
async def open_servers(
    endpoint: Endpoint,
    *,
    log: Path,
    say: Callable[[str], None],
    hidden_variables: Collection[str] = (),
) -> AsyncIterator[Servers]:
    """Yield the servers of an endpoint: those at its `base_urls`, or new ones if it has `serve`.

    Arguments and errors are those of `start_servers`.
    """
    if endpoint.serve is None:
        yield Servers(endpoint.base_urls, say=say, timeouts=DEFAULT_TIMEOUTS)
        return
    async with start_servers(
        endpoint.name,
        endpoint.model,
        endpoint.revision,
        endpoint.serve,
        log=log,
        say=say,
        hidden_variables=hidden_variables,
    ) as servers:
        yield servers


async def _start(server: Server, serve: Serve, say: Callable[[str], None]) -> None:
    if problem := await server.start(say, within=serve.healthy_within):
        raise ServerDied(f"{server.label}: {problem}{server.tail()}")


def _check(model: str, serve: Serve) -> None:
    if not os.access(serve.program, os.X_OK) or not serve.program.is_file():
        raise FileNotFoundError(
            f"{serve.program}: vLLM is not installed there: install it into its own environment "
            "(python -m venv ENV; ENV/bin/pip install vllm) and set `environment` to it"
        )
    loaded = serve.model or model
    if not is_path(loaded) and Path(loaded).exists():
        raise ValueError(
            f"model {loaded!r} could be an id on the Hub, but vLLM would load the file or folder "
            f"of that name here: set `model` of `serve` to {Path(loaded).absolute()}, or run this "
            "in another folder"
        )
    if is_path(loaded) and not Path(loaded).exists():
        raise FileNotFoundError(f"{loaded}: no such model")


def _ports(serve: Serve) -> tuple[int, ...]:
    if serve.port is not None:
        return tuple(range(serve.port, serve.port + serve.replicas))
    with ExitStack() as stack:  # bind all at the same time, so that no two ports are equal
        probes = [stack.enter_context(socket.socket()) for _ in range(serve.replicas)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return tuple(probe.getsockname()[1] for probe in probes)


async def _gather_or_cancel(work: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Wait for all coroutines; on the first failure, cancel all others and raise it unchanged."""
    # Not a TaskGroup, which would raise the failure in an exception group.
    tasks = [asyncio.create_task(coroutine) for coroutine in work]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
