"""A teacher's servers, for as long as a block: started, watched, started again, stopped."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Iterable
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from sp2dpo.serve_block import Serve, is_path
from sp2dpo.server import Pace, Server
from sp2dpo.terminal import harmless
from sp2dpo.vllm_command import command, environment_variables, shown, warnings

USUAL = Pace()


class ServerDied(OSError):
    """A server could not be started, or was lost more often than it is started again."""


class Servers:
    """The running servers of a teacher.

    Attributes:
        urls: the address of each one's API, `http://127.0.0.1:8000/v1`; a server that is started
            again keeps its own.
    """

    def __init__(
        self,
        servers: list[Server],
        serve: Serve,
        *,
        say: Callable[[str], None],
        pace: Pace,
    ) -> None:
        self.urls = tuple(server.url for server in servers)
        self._servers = servers
        self._serve = serve
        self._say = say
        self._pace = pace
        self._starting = 0

    def are_starting(self) -> bool:
        """Whether one of them is being started again at this moment."""
        return self._starting > 0

    async def watch(self) -> None:
        """Starts lost servers again, the others going on; runs until it is cancelled.

        A server is lost when its process has ended, or when `/health` has failed three times in a
        row over at least half a minute.

        Raises:
            ServerDied: one was lost more often than `restarts` allows.
        """
        await _together(self._keep_up(server) for server in self._servers)

    async def _keep_up(self, server: Server) -> None:
        while True:
            trouble = await server.trouble()
            while trouble:
                trouble = await self._restart(server, trouble)

    async def _restart(self, server: Server, trouble: str) -> str | None:
        """Starts a lost server again; what went wrong with that, if it did."""
        allowed = self._serve.restarts
        if server.restarts >= allowed:
            raise ServerDied(
                f"{server.label}: {trouble}; it has been started again {allowed} times, which is "
                f"all that `restarts` allows{server.tail()}"
            )
        server.restarts += 1
        self._say(
            f"{server.label}: {trouble}; starting it again ({server.restarts} of {allowed})"
            f"{server.tail()}"
        )
        await server.stop()
        await asyncio.sleep(self._pace.pause)
        return await server.start(self._say, within=self._serve.healthy_within)


@asynccontextmanager
async def serving(
    name: str,
    model: str,
    revision: str | None,
    serve: Serve,
    *,
    log: Path,
    say: Callable[[str], None],
    pace: Pace = USUAL,
    hidden: Collection[str] = (),
) -> AsyncIterator[Servers]:
    """Serves a teacher while the block lasts; its servers end with it, however this process ends.

    Args:
        name: of the teacher.
        model: of the teacher.
        revision: of the teacher.
        serve: how it is served.
        log: what the servers say is added to this file; with several to one for each,
            `NAME-0.log` and so on.
        say: hears the command, the warnings and how far the servers are, in lines for people.
        pace: how patiently.
        hidden: names of environment variables that the servers do not inherit, such as API keys.

    Raises:
        FileNotFoundError: there is no vLLM in the environment.
        ValueError: the model could be a folder or an id on the Hub.
        ServerDied: a server did not become healthy; the message holds the end of its log.
    """
    _check(model, serve)
    ports = _ports(serve)
    inherited = {name: text for name, text in os.environ.items() if name not in hidden}
    for line in warnings(serve):
        say(harmless(f"WARNING: {name}: {line}"))
    for line in shown(model, revision, serve, ports=ports):
        say(harmless(f"starting {name}: {line}"))
    connector = aiohttp.TCPConnector(force_close=True)  # a server that is gone leaves no connection
    async with aiohttp.ClientSession(connector=connector) as client:
        servers = [
            Server(
                name if serve.replicas == 1 else f"{name} (replica {replica})",
                command(model, revision, serve, port=port),
                environment_variables(inherited, serve, replica=replica),
                host=serve.host,
                port=port,
                log=log if serve.replicas == 1 else log.with_stem(f"{log.stem}-{replica}"),
                client=client,
                pace=pace,
            )
            for replica, port in enumerate(ports)
        ]
        try:
            await _together(_start(server, serve, say) for server in servers)
            yield Servers(servers, serve, say=say, pace=pace)
        finally:
            for server in servers:
                server.ask_to_stop()
            await asyncio.gather(*(server.stop() for server in servers))


async def _start(server: Server, serve: Serve, say: Callable[[str], None]) -> None:
    if trouble := await server.start(say, within=serve.healthy_within):
        raise ServerDied(f"{server.label}: {trouble}{server.tail()}")


def _check(model: str, serve: Serve) -> None:
    if not os.access(serve.program, os.X_OK) or not serve.program.is_file():
        raise FileNotFoundError(
            f"{serve.program}: no vLLM here: install it into an environment of its own "
            "(python -m venv ENV; ENV/bin/pip install vllm) and name that as `environment`"
        )
    loaded = serve.model or model
    if not is_path(loaded) and Path(loaded).exists():
        raise ValueError(
            f"model {loaded!r} could be an id on the Hub, and vLLM would take the file or folder "
            f"of that name here: say {Path(loaded).absolute()} as `model` of `serve`, or run this "
            "in another folder"
        )
    if is_path(loaded) and not Path(loaded).exists():
        raise FileNotFoundError(f"{loaded}: there is no such model")


def _ports(serve: Serve) -> tuple[int, ...]:
    if serve.port is not None:
        return tuple(range(serve.port, serve.port + serve.replicas))
    with ExitStack() as stack:  # all held at once, so that no two are the same
        probes = [stack.enter_context(socket.socket()) for _ in range(serve.replicas)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return tuple(probe.getsockname()[1] for probe in probes)


async def _together(work: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Waits for all; the first failure ends the others and is raised as it is."""
    tasks = [asyncio.create_task(one) for one in work]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
