"""Handle SIGINT and SIGTERM: the first lets in-flight requests finish, the second cancels them."""

import signal
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import asyncio

Result = TypeVar("Result")
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(Exception):
    """The process stopped because of a signal.

    Attributes:
        number: Number of the first signal received.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


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
            say("stopping once the requests in flight are answered; interrupt again to stop now")
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
