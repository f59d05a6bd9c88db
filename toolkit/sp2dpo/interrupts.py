"""Handle signals that stop a run: the first lets in-flight requests finish, the second does not.

They are SIGINT (Ctrl-C), SIGTERM (Slurm, Kubernetes, Docker, systemd), SIGHUP (a terminal that was
closed), SIGUSR1 and SIGUSR2 (warnings of Slurm, LSF and Grid Engine before a time limit) and
SIGXCPU (a limit on processor time). By default, all but the first end Python at once.
"""

import signal
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import asyncio

Result = TypeVar("Result")
_ALWAYS = (signal.SIGINT, signal.SIGTERM)
_BY_DEFAULT = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)
"""Signals that a process may ignore, as under `nohup`, or use for something else."""
_STOPPING = "stopping once the requests in flight are answered; interrupt again to stop now"


class Interrupted(Exception):
    """The process stopped because of a signal.

    Attributes:
        number: Number of the first signal received.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class Terminated(BaseException):
    """A signal other than SIGINT was received; only `main` catches this, as it does Ctrl-C.

    Attributes:
        number: Number of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


_received: list[int] = []


def raise_on_signals() -> list[int]:
    """Let the signals that stop a run raise: KeyboardInterrupt for SIGINT, else Terminated.

    A signal that the process ignores stays ignored, except SIGTERM.

    Returns:
        The list to which each signal is added that has raised. It is needed because a library may
        replace the exception by its own, as SQLite and some imports do.
    """
    _received.clear()
    for number in (signal.SIGTERM, *_BY_DEFAULT):
        if number == signal.SIGTERM or signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _raise)
    # Ignored in a background job of a script; then Ctrl-C is meant for the other processes.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _raise)
    return _received


def _raise(number: int, frame: FrameType | None) -> None:
    # `run_interruptible` replaces this handler while requests are in flight.
    _received.append(number)
    raise KeyboardInterrupt if number == signal.SIGINT else Terminated(number)


def end_at_next_signal() -> None:
    """Let every signal that stops a run end the process at once, without a message."""
    for number in (*_ALWAYS, *_BY_DEFAULT):
        if signal.getsignal(number) in (_raise, signal.default_int_handler):
            signal.signal(number, signal.SIG_DFL)


def stopping_signals() -> list[signal.Signals]:
    """Return the signals that stop a run in this process: not those that it ignores or uses."""
    free = [n for n in _BY_DEFAULT if signal.getsignal(n) in (signal.SIG_DFL, _raise)]
    return [*_ALWAYS, *free]


@contextmanager
def forward_signals(send: Callable[[Sequence[int]], object]) -> Iterator[Sequence[int]]:
    """Pass the signals that stop a run (see `stopping_signals`) on to a child process.

    A child in a session of its own gets no signal of the terminal. Outside the main thread no
    signals are handled, because Python allows that only there.

    Args:
        send: Called at each signal with the numbers of all received so far, the new one last.

    Yields:
        The numbers of the signals received so far.
    """
    import threading  # noqa: PLC0415 - slow; the command line imports this module for --help

    received: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        received.append(number)
        send(received)

    in_main_thread = threading.current_thread() is threading.main_thread()
    previous = {n: signal.getsignal(n) for n in stopping_signals()} if in_main_thread else {}
    try:
        for number in previous:
            signal.signal(number, handle)
        yield received
    finally:
        _restore(previous)


def run_interruptible(
    work: "Callable[[asyncio.Event], Coroutine[Any, Any, None]]", *, say: Callable[[str], None]
) -> None:
    """Run `work` in an event loop until it is done or interrupted; also callable from a notebook.

    A signal (see `stopping_signals`) sets the event that `work` receives; the second signal cancels
    `work`. If the calling thread already runs an event loop, as in Jupyter, `work` runs in its own
    thread, and SIGINT (Ctrl-C, "interrupt the kernel") has the same two effects. If this is not
    called from the main thread, no signals are handled, because Python allows that only in the main
    thread.

    Args:
        work: Called with an event that is set when it should stop.
        say: Called with a notice for the user at the first signal.

    Raises:
        Interrupted: If a signal was received.
    """
    import asyncio  # noqa: PLC0415 - slow; the command line imports this module for --help
    import threading  # noqa: PLC0415

    in_main_thread = threading.current_thread() is threading.main_thread()
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        # No event loop runs in this thread; where one does, asyncio.run would refuse.
        if in_main_thread:
            _run_in_main_thread(work, say)
        else:
            asyncio.run(work(asyncio.Event()))
    else:
        _run_in_thread(work, say, handle_interrupts=in_main_thread)


def _run_in_main_thread(
    work: "Callable[[asyncio.Event], Coroutine[Any, Any, None]]", say: Callable[[str], None]
) -> None:
    import asyncio  # noqa: PLC0415 - slow; the command line imports this module for --help

    early: list[int] = []
    previous = {number: signal.getsignal(number) for number in stopping_signals()}
    try:
        for number in previous:
            # Until the loop handles it: an exception while the loop is created would leave half of
            # one behind, which prints a traceback.
            signal.signal(number, lambda number, _: early.append(number))
        asyncio.run(_interruptible(work, say, previous, early))
    finally:
        _restore(previous)


def _restore(handlers: Mapping[signal.Signals, Any]) -> None:
    for number, handler in handlers.items():
        # None if it was not installed from Python; such a one cannot be restored.
        if handler is not None:
            signal.signal(number, handler)


def _run_in_thread(
    work: "Callable[[asyncio.Event], Coroutine[Any, Any, None]]",
    say: Callable[[str], None],
    *,
    handle_interrupts: bool,
) -> None:
    import asyncio  # noqa: PLC0415
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415

    # Filled by the handler in the main thread, emptied in the other one: a deque is thread-safe.
    received: deque[int] = deque()
    running: list[tuple[asyncio.AbstractEventLoop, Callable[[], None]]] = []

    async def run() -> None:
        task = _Work(work, say)

        def react() -> None:
            while received:
                task.interrupt(received.popleft())

        # Announce the loop before looking for signals, so that none is lost in between.
        running.append((asyncio.get_running_loop(), react))
        react()  # to a signal that arrived before the task existed
        await task.finish()

    def interrupt(number: int, _: object) -> None:
        received.append(number)
        for loop, react in running:
            with suppress(RuntimeError):  # the loop is closed: the work has just ended
                loop.call_soon_threadsafe(react)

    # Without this handler, Python would raise KeyboardInterrupt anywhere, even while an earlier one
    # is being handled, and nothing would tell the thread to stop.
    previous = {signal.SIGINT: signal.getsignal(signal.SIGINT)} if handle_interrupts else {}
    for number in previous:
        signal.signal(number, interrupt)
    try:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(asyncio.run, run()).result()
    finally:
        _restore(previous)


async def _interruptible(
    work: "Callable[[asyncio.Event], Awaitable[None]]",
    say: Callable[[str], None],
    previous: Mapping[signal.Signals, Any],
    early: Sequence[int],
) -> None:
    """Run `work` until it is done or the process receives one of the signals in `previous`.

    Args:
        work: Takes an event that is set by the first signal; a second signal cancels the work.
        say: Called with a notice for the user at the first signal.
        previous: Handlers that are restored at the end.
        early: Signals that have been received before.

    Raises:
        Interrupted: If a signal was received.
    """
    import asyncio  # noqa: PLC0415 - slow; the command line imports this module for --help

    loop, task = asyncio.get_running_loop(), _Work(work, say)
    for number in previous:
        # Unlike a handler of signal.signal, this runs between the steps of tasks, never inside one.
        loop.add_signal_handler(number, task.interrupt, number)
    for number in early:
        task.interrupt(number)
    try:
        await task.finish()
    finally:
        for number in previous:
            loop.remove_signal_handler(number)
        # remove_signal_handler restores Python's default, not the handler that was set before.
        _restore(previous)


class _Work:
    """A task of the running event loop; the first interrupt stops it, the second cancels it."""

    def __init__(
        self, work: "Callable[[asyncio.Event], Awaitable[None]]", say: Callable[[str], None]
    ) -> None:
        import asyncio  # noqa: PLC0415 - slow; the command line imports this module for --help

        self._say = say
        self._received: list[int] = []
        self._stop = asyncio.Event()
        self._task = asyncio.ensure_future(work(self._stop))

    def interrupt(self, number: int) -> None:
        """React to a signal; call it in the thread of the event loop."""
        self._received.append(number)
        if len(self._received) > 1:
            self._task.cancel()
        else:
            self._say(_STOPPING)
            self._stop.set()

    async def finish(self) -> None:
        """Wait for the end of the task; raise Interrupted if a signal was received."""
        import asyncio  # noqa: PLC0415 - slow; the command line imports this module for --help

        try:
            await self._task
        except asyncio.CancelledError:
            # Without a signal it was the caller that cancelled, who must learn of it.
            if not self._received:
                raise
        if self._received:
            raise Interrupted(self._received[0])


async def wait_unless_stopped(
    stop: "asyncio.Event", work: Coroutine[Any, Any, Result]
) -> Result | None:
    """Return the result of a coroutine; cancel it and return None if `stop` is set first."""
    import asyncio  # noqa: PLC0415 - slow; the command line imports this module for --help

    if stop.is_set():
        # A coroutine that is never awaited would print a warning.
        work.close()
        return None
    working, stopping = asyncio.create_task(work), asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            return None
        return working.result()
    finally:
        for task in (working, stopping):
            task.cancel()
        # A cancelled coroutine may still have to clean up, for example stop servers that it
        # started.
        await asyncio.gather(working, stopping, return_exceptions=True)


def first_failure(failures: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the first exception in nested exception groups."""
    failure: BaseException = failures
    while isinstance(failure, BaseExceptionGroup):
        failure = failure.exceptions[0]
    return failure
