"""Being told to stop: once lets what is in flight come home, twice ends at once."""

import asyncio
import signal
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(Exception):
    """The process was told to stop, and did.

    Attributes:
        number: of the signal that told it so first.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


async def interruptible(
    work: Callable[[asyncio.Event], Awaitable[None]], *, say: Callable[[str], None]
) -> None:
    """Works until the work is done or somebody says stop (SIGINT, SIGTERM).

    Args:
        work: is given an event that is set at the first signal; the second one cancels it.
        say: called with what a person should know.

    Raises:
        Interrupted: there was such a signal.
    """
    loop, stop, received = asyncio.get_running_loop(), asyncio.Event(), []
    task = asyncio.ensure_future(work(stop))

    def interrupt(number: int) -> None:
        received.append(number)
        if len(received) > 1:
            task.cancel()
        else:
            say("stopping when what is in flight has come; once more stops at once")
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
    stop: asyncio.Event, work: Coroutine[Any, Any, Result]
) -> Result | None:
    """What the work gives; None where it was told to stop before, and the work was given up."""
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
    """The first failure itself, out of however many groups."""
    failure: BaseException = failures
    while isinstance(failure, BaseExceptionGroup):
        failure = failure.exceptions[0]
    return failure
