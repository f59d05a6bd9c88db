"""Send chats to the server of a student or a judge, and wait for every result."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from sp2dpo.inference.chats import Chat, ChatResult, ask_chats
from sp2dpo.inference.endpoint import Endpoint
from sp2dpo.interrupts import run_interruptible

Progress = Callable[[int, str], AbstractContextManager[Callable[[], object]]]
"""Open a progress bar: (how many items, what they are) -> a function called once per item."""
Approve = Callable[[Endpoint], None]
"""Called before the servers of a model are started from its YAML; raise ValueError to refuse."""
Report = Callable[[str], None]
"""Called with lines for people."""


@contextmanager
def no_progress(total: int, unit: str) -> Iterator[Callable[[], object]]:
    """Show no progress."""
    yield lambda: None


def silent(_: object) -> None:
    """Ignore a line, or approve of a model."""


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
    """Send all chats and hand over each result as it arrives.

    SIGINT and SIGTERM let the requests in flight finish; the second signal cancels them.

    Args:
        model: The model to ask. If it has `serve`, its servers run until this returns.
        chats: The requests.
        take: Called with each result.
        unit: What the results are called beside the progress bar.
        patience: Seconds without any answer after which this gives up.
        log: File for the output of servers that are started here.
        approve: See Approve.
        progress: See Progress.
        report: See Report.

    Raises:
        EndpointError: If nothing was answered for too long, or the server rejects us.
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
