"""Run the servers of one teacher of a panel on their own, for other machines or several runs."""

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

from sp2dpo.annotation.local import server_log_path
from sp2dpo.annotation.run import do_nothing
from sp2dpo.inference.servers import open_servers
from sp2dpo.interrupts import run_interruptible, wait_unless_stopped
from sp2dpo.panel.panel import Panel, load_panel
from sp2dpo.settings import did_you_mean


def serve_teacher(
    panel: Panel | str | Path,
    name: str,
    *,
    log: str | Path | None = None,
    report: Callable[[str], None] = do_nothing,
) -> None:
    """Run the servers of a teacher (`serve:`) until interrupted; restart those that fail.

    Args:
        panel: The panel: loaded, or its YAML file.
        name: Name of the teacher.
        log: Log file of the servers; None for `serve.TEACHER.log` in the current folder.
        report: Called with lines for people, such as the addresses of the servers.

    Raises:
        Interrupted: When a signal has stopped the servers.
        ValueError: If the panel is invalid, has no such teacher, or the teacher has a `base_url`.
        FileNotFoundError: If vLLM or the model is not there.
        ServerDied: If a server cannot be started, or failed more often than `restarts` allows.
    """
    where = "the panel" if isinstance(panel, Panel) else str(panel)
    panel = panel if isinstance(panel, Panel) else load_panel(panel)
    teachers = {teacher.name: teacher for teacher in panel.teachers}
    if name not in teachers:
        raise ValueError(f"{where}: no teacher is called {name!r}{did_you_mean(name, teachers)}")
    teacher = teachers[name]
    if teacher.serve is None:
        raise ValueError(f"{where}: {name} has a base_url, not a `serve` that can be run")
    path = server_log_path(Path("serve"), name) if log is None else Path(log)

    async def work(stop: asyncio.Event) -> None:
        async with AsyncExitStack() as stack:
            opening = stack.enter_async_context(
                open_servers(
                    teacher,
                    log=path,
                    say=report,
                    # A server runs code that is not ours: it must not see any teacher's API key.
                    hidden_variables=panel.api_key_variables,
                )
            )
            # Starting a server may take half an hour; an interrupt must not wait for it.
            servers = await wait_unless_stopped(stop, opening)
            if servers is None:
                return
            logs = path.with_name(f"{path.stem}*{path.suffix}")
            for url in servers.urls:
                report(f"{name} is served at {url}; logs: {logs}")
            await wait_unless_stopped(stop, servers.watch())

    run_interruptible(work, say=lambda _: report(f"stopping {name}"))
