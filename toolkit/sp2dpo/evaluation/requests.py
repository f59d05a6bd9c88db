"""Send chats to the server of a student or a judge, and wait for every result."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from sp2dpo.inference.chats import Chat, ChatResult, ask_chats
from sp2dpo.inference.endpoint import Endpoint
from sp2dpo.interrupts import run_interruptible

Progress = Callable[[int, str], AbstractContextManager[Callable[[], object]]]
"""Opens a progress bar: takes the number of items and their unit, and returns a context manager
whose value is a function to call once per item."""
Approve = Callable[[Endpoint], None]
"""Called before a model's servers are started as its YAML says; raises ValueError to refuse."""
Report = Callable[[str], None]
"""Called with lines of text for the user."""


@contextmanager
def no_progress(total: int, unit: str) -> Iterator[Callable[[], object]]:
    """Show no progress."""
    yield lambda: None


def silent(_: object) -> None:
    """Do nothing: as a Report, ignore the line; as an Approve, allow the servers to be started."""


def answer_chats(
    model: Endpoint,
    chats: Sequence[Chat],
    take: Callable[[ChatResult], None],
    *,
    unit: str,
    patience: float,
    log: Path,
    approve: Approve,
    progress: Progress,
    report: Report,
) -> None:
    """Send all chats and pass each result to `take` as it arrives.

    After SIGINT or SIGTERM, the requests in flight finish; a second signal cancels them.

    Args:
        model: The model to ask. If it has `serve`, its servers run until this returns.
        chats: The requests.
        take: Called with each result.
        unit: Name of the results next to the progress bar.
        patience: Seconds without any answer after which the run ends.
        log: File for the output of servers that are started here.
        approve: See Approve.
        progress: See Progress.
        report: See Report.

    Raises:
        EndpointError: If nothing was answered for too long, or the server refuses access.
        OSError: If a server cannot be started.
        Interrupted: If a signal stopped the run.
    """
    approve(model)
    with progress(len(chats), unit) as advance:

        def take_and_count(result: ChatResult) -> None:
            take(result)
            advance()

        async def work(stop: asyncio.Event) -> None:
            await ask_chats(
                model, chats, take_and_count, stop=stop, patience=patience, say=report, log=log
            )

        run_interruptible(work, say=report)
