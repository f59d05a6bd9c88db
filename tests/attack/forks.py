"""Run functions in forks, within limits, and measure what they take."""

import faulthandler
import os
import resource
import select
import signal
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

SECONDS = 5
"""CPU seconds for the commands of a case; not seconds of a clock, because the machine may be busy.
"""
WAIT = 300
"""Seconds after which a case that uses no CPU counts as hanging; all but idle machines are slow."""
PREPARATION = 900
"""Seconds after which a fork without other limits counts as hanging."""
MEGABYTES = 1500
"""Memory for the commands of a case, in addition to the imported modules: a data set may decode to
1 GiB."""
ADDRESSES, FILE = 3 * 2**30, 2**30
"""Address space and size of a file that the system allows, so that no case harms the machine."""


@dataclass(frozen=True)
class Ended:
    """A fork that has ended.

    Attributes:
        status: Exit code; negative for a signal.
        cpu: Seconds of CPU time.
        peak: Largest memory, in KiB, with the modules that the parent had imported.
        hung: Whether a limit of time ended it.
        text: What it printed.
    """

    status: int
    cpu: float
    peak: int
    hung: bool
    text: str


def run_fork(function, log, *, limited=True):
    """Run a function in a fork, and wait for its end."""
    child = os.fork()
    if not child:
        _become(function, log, limited)
    handle = os.pidfd_open(child)
    started = time.monotonic()
    limit = WAIT if limited else PREPARATION
    for number, seconds in ((signal.SIGABRT, limit), (signal.SIGKILL, 5)):
        if select.select([handle], [], [], seconds)[0]:
            break
        os.kill(child, number)
    os.close(handle)
    waited = time.monotonic() - started
    _, status, usage = os.wait4(child, 0)
    code = os.waitstatus_to_exitcode(status)
    return Ended(
        status=code,
        cpu=usage.ru_utime + usage.ru_stime,
        peak=usage.ru_maxrss,
        hung=waited >= limit or code == -signal.SIGXCPU,
        text=log.read_text(errors="replace") if log.is_file() else "",
    )


def _become(function, log, limited):
    code = 1
    try:
        # With forks of forks, only this one may write to its descriptors.
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for number, opened in ((0, os.open(os.devnull, os.O_RDONLY)), (1, output), (2, output)):
            os.dup2(opened, number)
        faulthandler.enable()
        if limited:
            _limit()
        function()
        code = 0
    except BaseException:  # noqa: BLE001 - a fork must not go on as its parent
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _limit():
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    for limit, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_AS, used + ADDRESSES),
        (resource.RLIMIT_FSIZE, FILE),
        (resource.RLIMIT_CPU, SECONDS + 1),
    ):
        resource.setrlimit(limit, (value, value + (limit == resource.RLIMIT_CPU)))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that a write fails with an error
    faulthandler.register(signal.SIGXCPU, chain=True)


def innermost(text):
    """Return the innermost frames of a stack that faulthandler printed; else the end of a text."""
    _, printed, stack = text.partition("most recent call first")
    lines = [line.split("/")[-1].strip() for line in stack.splitlines() if "File" in line]
    return "; ".join(lines[:8]) if printed else text[-1500:]
