"""Run a command and make sure that all its processes end: a separate program, never imported.

    python keeper.py [--wait-for-all] PARENT GRACE COMMAND...

It runs in its own session. It ends when COMMAND ends, with its exit code (128 + n after signal n);
when it receives a signal that stops a run; and when the process PARENT dies for any reason, which
the kernel reports to it as SIGTERM. Before it exits, it sends the signal to all processes of the
session, and after GRACE seconds it kills all remaining descendants, even those that left the
session. Once COMMAND has ended, they are killed at once; with --wait-for-all, after a signal, they
have the GRACE seconds as well, as a training has that a launcher leaves behind, until another
signal comes.
"""

import ctypes
import os
import signal
import sys
import time
from pathlib import Path

# Options from linux/prctl.h: one asks for a signal when the parent dies, the other makes orphaned
# descendants children of this process.
_SET_PDEATHSIG, _SET_CHILD_SUBREAPER = 1, 36
_STOP = {
    signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU,
}  # fmt: skip
_HOUR = 3600.0
_ONE_STOP = 3.0
"""Seconds within which another signal counts as the same, as in `training/stopping.py`."""


def keep(parent: int, grace: float, command: list[str], *, wait_for_all: bool = False) -> int:
    """Run the command until it ends or must stop; return its exit code, or 143 if stopped."""
    # Blocked signals stay pending until sigtimedwait, so they cannot interrupt any other code.
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOP | {signal.SIGCHLD})
    _prctl(_SET_CHILD_SUBREAPER, 1)
    _prctl(_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # the parent died before prctl took effect
        return 128 + signal.SIGTERM
    child = _start(command)
    code, deadline, stopped = None, None, 0.0
    while code is None and (deadline is None or time.monotonic() < deadline):
        # Without a deadline any timeout will do, because the loop waits again.
        remaining = _HOUR if deadline is None else max(0.0, deadline - time.monotonic())
        received = signal.sigtimedwait(_STOP | {signal.SIGCHLD}, remaining)
        if received and received.si_signo in _STOP:
            if deadline is None:
                stopped = time.monotonic()
                deadline = stopped + grace
                # This reaches the keeper as well, but its own signal is blocked and then ignored.
                os.killpg(0, received.si_signo)
            elif wait_for_all and time.monotonic() - stopped > _ONE_STOP:
                deadline = 0.0
        code = _reap_children(child)
    while wait_for_all and deadline and _children() and (left := deadline - time.monotonic()) > 0:
        received = signal.sigtimedwait(_STOP | {signal.SIGCHLD}, left)
        if received and received.si_signo in _STOP and time.monotonic() - stopped > _ONE_STOP:
            break
        _reap_children(child)
    _kill_the_rest()
    return 128 + signal.SIGTERM if code is None else code


def _start(command: list[str]) -> int:
    child = os.fork()
    if child:
        return child
    # A fork clears the setting. It covers the case that the keeper itself is killed.
    _prctl(_SET_PDEATHSIG, signal.SIGTERM)
    # The command would inherit the blocked signals and could not be stopped.
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    try:
        os.execv(command[0], command)
    except OSError as error:
        os.write(2, f"{command[0]}: {error.strerror}\n".encode())
    # Exit as a shell does for a command that it cannot run, without the parent's clean-up code.
    os._exit(127)


def _reap_children(child: int) -> int | None:
    """Reap all ended children; return the exit code of `child` if it is among them."""
    code = None
    try:
        # A blocked signal is pending only once, so one SIGCHLD may stand for several children.
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            if ended[0] == child:
                code = os.waitstatus_to_exitcode(ended[1])
    except ChildProcessError:
        pass
    # A shell's exit code after a signal, in place of Python's negative number.
    return 128 - code if code is not None and code < 0 else code


def _kill_the_rest() -> None:
    """Kill children until there are none; the children of a killed child become ours first."""
    try:
        while True:
            for child in _children():
                os.kill(child, signal.SIGKILL)
            os.wait()
    except ChildProcessError:
        return


def _children() -> list[int]:
    children = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            # The name of the process, in parentheses, may itself contain spaces and parentheses.
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
        except OSError:  # the process has just ended
            continue
        if int(parent) == os.getpid():
            children.append(int(folder.name))
    return children


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0):
        number = ctypes.get_errno()
        raise OSError(number, f"prctl: {os.strerror(number)}")


if __name__ == "__main__":
    words = sys.argv[1:]
    to_wait = words[0] == "--wait-for-all"
    words = words[to_wait:]
    sys.exit(keep(int(words[0]), float(words[1]), words[2:], wait_for_all=to_wait))
