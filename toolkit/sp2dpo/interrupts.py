"""Handle SIGINT and SIGTERM: the first lets in-flight requests finish, the second cancels them."""

import signal
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import asyncio

Result = TypeVar("Result")
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_STOPPING = "stopping once the requests in flight are answered; interrupt again to stop now"


class Interrupted(Exception):
    """The process stopped because of a signal.

    Attributes:
        number: Number of the first signal received.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def run_interruptible(
    work: "Callable[[asyncio.Event], Coroutine[Any, Any, None]]", *, say: Callable[[str], None]
) -> None:
    """Run `work` in an event loop until it is done or interrupted; also callable from a notebook.

    SIGINT and SIGTERM set the event that `work` receives; the second signal cancels `work`. Where
    the calling thread already runs an event loop, as in Jupyter, `work` gets a thread of its own
    and Ctrl-C (or "interrupt the kernel") has the same two effects. Outside of the main thread
    there are no signals to handle.

    Args:
        work: Called with an event that is set when it should stop.
        say: Called with a line for people at the first signal.

    Raises:
        Interrupted: A signal stopped the work.
    """
    import asyncio  # noqa: PLC0415 - slow; the command line imports this module for --help
    import threading  # noqa: PLC0415

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        if threading.current_thread() is threading.main_thread():
            asyncio.run(interruptible(work, say=say))
        else:
            asyncio.run(work(asyncio.Event()))
    else:
        _run_in_thread(work, say)


def _run_in_thread(
    work: "Callable[[asyncio.Event], Coroutine[Any, Any, None]]", say: Callable[[str], None]
) -> None:
    import asyncio  # noqa: PLC0415
    from concurrent.futures import Future, ThreadPoolExecutor  # noqa: PLC0415

    ready: Future[tuple[asyncio.AbstractEventLoop, asyncio.Future[None], asyncio.Event]] = Future()

    async def body() -> None:
        stop = asyncio.Event()
        task = asyncio.ensure_future(work(stop))
        ready.set_result((asyncio.get_running_loop(), task, stop))
        await task

    interrupts = 0
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(asyncio.run, body())
        while True:
            try:
                running.result()
                break
            except asyncio.CancelledError:
                if interrupts < 2:
                    raise
                break
            except KeyboardInterrupt:  # only the main thread receives it
                interrupts += 1
                loop, task, stop = ready.result()
                if interrupts == 1:
                    say(_STOPPING)
                    loop.call_soon_threadsafe(stop.set)
                else:
                    loop.call_soon_threadsafe(task.cancel)
    if interrupts:
        raise Interrupted(signal.SIGINT)


async def interruptible(
    work: "Callable[[asyncio.Event], Awaitable[None]]", *, say: Callable[[str], None]
) -> None:
    """Run a coroutine until it is done or the process receives SIGINT or SIGTERM.

    Args:
        work: Takes an event that is set by the first signal; a second signal cancels the work.
        say: Called with a notice for the user at the first signal.

    Raises:
        Interrupted: If a signal was received.
    """
    import asyncio  # noqa: PLC0415 - slow; the command line imports this module for --help

    loop, stop, received = asyncio.get_running_loop(), asyncio.Event(), []
    task = asyncio.ensure_future(work(stop))

    def interrupt(number: int) -> None:
        received.append(number)
        if len(received) > 1:
            task.cancel()
        else:
            say(_STOPPING)
            stop.set()

    before = {number: signal.getsignal(number) for number in _SIGNALS}
    for number in _SIGNALS:
        loop.add_signal_handler(number, interrupt, number)
    try:
        await task
    except asyncio.CancelledError:
        if not received:
            raise
    finally:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)
            signal.signal(number, before[number])
    if received:
        raise Interrupted(received[0])


async def wait_unless_stopped(
    stop: "asyncio.Event", work: Coroutine[Any, Any, Result]
) -> Result | None:
    """Return the result of a coroutine; cancel it and return None if `stop` is set first."""
    import asyncio  # noqa: PLC0415 - slow; the command line imports this module for --help

    if stop.is_set():
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
        await asyncio.gather(working, stopping, return_exceptions=True)


def first_failure(failures: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the first exception in nested exception groups."""
    failure: BaseException = failures
    while isinstance(failure, BaseExceptionGroup):
        failure = failure.exceptions[0]
    return failure
