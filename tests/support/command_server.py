"""Runs `sp2dpo` commands in forks of one process that has imported their libraries before.

    python tests/support/command_server.py SOCKET [MODULE...]

It imports MODULEs, too. With `script` or `module`, a command runs that in place of `sp2dpo`.

Each command has its own process, environment, working folder and exit code, as if a shell had
started it; only the imports, most of the time of a short command, are shared. A connection to the
socket carries one command, which is killed if the connection is closed before its end. The server
ends with its standard input.

A fork has only the thread that forked. A lock that another thread held then stays locked in it, so
the server forks beside no threads but those in `HARMLESS_THREADS`; see `check_threads`.
"""

import atexit
import contextlib
import faulthandler
import gc
import importlib.util
import json
import os
import runpy
import select
import selectors
import signal
import socket
import sys
import threading
import warnings
from pathlib import Path

LIBRARIES = (
    "sp2dpo.annotation.run",
    "sp2dpo.betas.schedule",
    "sp2dpo.dataset.build",
    "sp2dpo.dataset.publish",
    "sp2dpo.dataset.verify",
    "sp2dpo.evaluation.verdicts",
    "sp2dpo.report.plots",
    "sp2dpo.report.report",
)

HARMLESS_THREADS = ("jemalloc_bg_thd", "polars-ooc-clea")
"""Threads, as Linux names them, that libraries start when they are imported. jemalloc takes its
locks before a fork and releases them in the child. The cleaner of polars gets work from queries
that spill to disk, and no query runs here."""


def check_threads():
    """Raise RuntimeError if a fork could inherit a lock that nobody releases.

    Pools of threads (of polars, Arrow, asyncio) start with the first query, file or look-up: this
    process only imports. OpenBLAS ends its threads, which have the name of the process, before a
    fork.
    """
    if threading.active_count() > 1:
        raise RuntimeError(f"an import has started {threading.enumerate()}")
    tasks = Path("/proc/self/task")  # Linux alone
    names = set()
    for task in tasks.glob("*"):
        with contextlib.suppress(FileNotFoundError):  # it has ended
            names.add((task / "comm").read_text().strip())
    own = {(tasks.parent / "comm").read_text().strip()} if names else set()
    if unknown := names - own - {*HARMLESS_THREADS}:
        raise RuntimeError(f"an import has started threads: {', '.join(sorted(unknown))}")


def main():
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(sys.argv[1])
        listener.listen()
        for name in (*LIBRARIES, *sys.argv[2:]):
            importlib.import_module(name)
        if importlib.util.find_spec("alpaca_eval"):
            sys.modules["sp2dpo.evaluation.verdicts"].import_alpaca_eval()
        check_threads()
        gc.freeze()
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        # Python 3.12 warns of every fork beside threads; these have been checked.
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        ready = selectors.DefaultSelector()
        ready.register(listener, selectors.EVENT_READ)
        ready.register(sys.stdin.fileno(), selectors.EVENT_READ)
        while all(key.fileobj is listener for key, _ in ready.select()):
            connection, _ = listener.accept()
            if os.fork():
                connection.close()
                continue
            listener.close()
            command = wait_for_command(connection)
            break
        else:
            return
    run(command)


def wait_for_command(connection):
    """Return in a child, whose process id and exit code this process tells."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    with connection, connection.makefile("r") as lines:
        command = json.loads(lines.readline())
        child = os.fork()
        if not child:
            return command
        connection.sendall(f"{child}\n".encode())
        ended = os.pidfd_open(child)
        if ended not in select.select([ended, connection], [], [])[0]:
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        with contextlib.suppress(BrokenPipeError):
            connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
    os._exit(0)


def run(command):
    """Become `python -m sp2dpo`, and end like it."""
    for number, (path, flags) in enumerate(
        [(command.get("stdin", os.devnull), os.O_RDONLY)]
        + [(command[name], os.O_WRONLY | os.O_APPEND) for name in ("stdout", "stderr")]
    ):
        opened = os.open(path, flags)
        os.dup2(opened, number)
        os.close(opened)
    faulthandler.enable()  # a command that hangs is ended by SIGABRT
    os.environ.clear()
    os.environ.update(command["environment"])
    os.chdir(command["folder"])
    script = command.get("script")
    sys.argv = [script or sys.argv[0], *command["arguments"]]
    sys.path[0] = os.path.dirname(script) if script else command["folder"]  # noqa: PTH120
    code = 0
    try:
        if script:
            runpy.run_path(script, run_name="__main__")
        else:
            name = command.get("module") or "sp2dpo"
            if command.get("module"):
                sys.modules.pop(name, None)  # runpy warns of a module that is imported, too
            runpy.run_module(name, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code or 0
        if isinstance(code, str):  # a message, as the interpreter treats it
            print(code, file=sys.stderr)
            code = 1
    # Exit as the interpreter does, but leave the modules as they are: to free them takes longer
    # than most commands.
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
