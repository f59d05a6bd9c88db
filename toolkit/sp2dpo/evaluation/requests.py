"""Send chats to the server of a student or a judge, and wait for every result."""

import asyncio
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from sp2dpo.inference.chats import Chat, ChatResult, ask_chats
from sp2dpo.inference.client import Reply
from sp2dpo.inference.endpoint import Endpoint
from sp2dpo.inference.keys import allow_keys
from sp2dpo.inference.thinking import split_thinking
from sp2dpo.interrupts import run_interruptible

Progress = Callable[[int, str], AbstractContextManager[Callable[[], object]]]
"""Opens a progress bar: takes the number of items and their unit, and returns a context manager
whose value is a function to call once per item."""
Approve = Callable[[Endpoint], None]
"""Called before a model's servers are started as its YAML says; raises ValueError to refuse."""
Report = Callable[[str], None]
"""Called with lines of text for the user."""


_THINKING_ADVICE = (
    "raise max_tokens in its sampling, or turn thinking off (for many models with"
    " chat_template_kwargs: {enable_thinking: false})"
)
_ADVICE = {
    "length": f"max_tokens was reached before any text: {_THINKING_ADVICE}",
    "reasoning-only": "the model thought, but wrote no text, or a reasoning parser of the server"
    f" took the text for thinking: {_THINKING_ADVICE}",
    "thinking": "the first token of a judge must be its verdict: turn thinking off",
    "no-verdict": "the first token of a judge must be its verdict, and is a mark of a chat template"
    " or blank: use a chat template that ends where the answer begins, or another judge",
    "refusal": "the model refuses",
    "content-filter": "a filter of the provider stopped the reply; use another provider",
    "tool-call": "the model called a tool, although none was offered: turn tools off at the server",
    "no-content": "the message has no text; its content is in the journal",
    "unfinished": "the server stopped the reply, or states neither a finish_reason nor"
    " completion_tokens, without which a complete text looks like a part of one; the finish_reason"
    " is in the journal",
}
"""What to do about replies that cannot be used, by reason."""
_OTHER_ENDINGS = {
    "content_filter": "content-filter",
    "refusal": "refusal",
    "tool_calls": "tool-call",
}


def reply_problem(reply: Reply) -> str | None:
    """Return in one word why a reply is no complete answer; None if it is one.

    An empty text that ended in `stop` is complete: the model wrote nothing.
    """
    if reply.refusal is not None:
        return "refusal"
    if reply.has_tool_calls:
        return "tool-call"
    if reply.finish_reason not in ("stop", "length"):
        if reply.finish_reason is None and reply.reasoning is not None:
            return "reasoning-only"
        return _OTHER_ENDINGS.get(str(reply.finish_reason), "unfinished")
    # Models with hidden thinking may reach the limit without any text.
    if reply.finish_reason == "length" and not reply.text:
        return "length"
    if reply.reasoning is not None and not reply.text.strip():
        return "reasoning-only"
    if reply.message is not None and not reply.text:
        return "no-content"
    return thinking_problem(reply.text, reply.finish_reason)


def thinking_problem(text: str, finish_reason: str) -> str | None:
    """Return in one word why a text consists of thinking alone; None if it does not."""
    thinking, answer = split_thinking(text)
    if thinking is None or answer.strip():
        return None
    return "length" if finish_reason == "length" else "reasoning-only"


def advise(reasons: Iterable[str]) -> str:
    """Return what to do about replies that cannot be used, as a clause after each reason."""
    return "".join(f"; {reason}: {_ADVICE[reason]}" for reason in reasons if reason in _ADVICE)


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
    send_keys: Collection[str] = (),
) -> None:
    """Send all chats and pass each result to `take` as it arrives.

    After a signal (see `interrupts`), the requests in flight finish; a second signal cancels them.

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
        send_keys: API keys that may be sent, see `annotate_pairs`.

    Raises:
        ValueError: If the model's API key may not be sent to its host.
        EndpointError: If nothing was answered for too long, or the server refuses access.
        OSError: If a server cannot be started.
        Interrupted: If a signal stopped the run.
    """
    allowed = allow_keys([model], send_keys)
    approve(model)
    with progress(len(chats), unit) as advance:

        def take_and_count(result: ChatResult) -> None:
            take(result)
            advance()

        async def work(stop: asyncio.Event) -> None:
            await ask_chats(
                model, chats, take_and_count, stop=stop, patience=patience, say=report, log=log,
                send_keys=allowed,
            )  # fmt: skip

        run_interruptible(work, say=report)
