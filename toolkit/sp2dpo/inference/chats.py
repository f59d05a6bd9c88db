"""Send many chats to one model, on servers that already run or are started for these chats."""

import asyncio
from collections.abc import Callable, Collection, Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from sp2dpo.inference.caller import Caller, Messages, StopRequested
from sp2dpo.inference.client import Client, Declined, Reply, Unavailable, open_session
from sp2dpo.inference.endpoint import Endpoint
from sp2dpo.inference.keys import KeyUse
from sp2dpo.inference.servers import open_servers
from sp2dpo.interrupts import first_failure, wait_unless_stopped


@dataclass(frozen=True, kw_only=True)
class Chat:
    """A chat to send.

    Attributes:
        key: Identifies the chat and its result.
        messages: Messages to send.
    """

    key: str
    messages: Messages


@dataclass(frozen=True, kw_only=True)
class ChatResult:
    """Result of a chat.

    Attributes:
        key: Key of the chat.
        reply: The reply; None if there is none.
        reason: Why there is no reply, such as `http-400` or `no-answer`.
        detail: Message of the server, or of the error.
    """

    key: str
    reply: Reply | None
    reason: str | None = None
    detail: str | None = None


OnResult = Callable[[ChatResult], None]
"""Called with every result as it arrives."""


async def ask_chats(
    model: Endpoint,
    chats: Iterable[Chat],
    on_result: OnResult,
    *,
    stop: asyncio.Event,
    patience: float,
    say: Callable[[str], None],
    log: Path,
    send_keys: Collection[KeyUse] = (),
) -> None:
    """Send all chats concurrently, as many at a time as the servers can handle.

    Args:
        model: Model to ask; with `serve`, its servers are started first and stopped at the end.
        chats: Chats to send.
        on_result: Called with every result.
        stop: Event after which no more requests are sent.
        patience: Seconds without any answer after which the run ends.
        say: Called with notices for the user.
        log: Log file of the servers that are started.
        send_keys: Allowed uses of API keys.

    Raises:
        EndpointError: If nothing was answered for too long, or the server refuses access.
        OSError: If a server could not be started.
        ValueError: If `on_result` raises it.
    """
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(open_session())
        # A server runs code that is not ours: it must not see the API key.
        api_keys = [model.api_key_env] if model.api_key_env else []
        opening = open_servers(model, log=log, say=say, hidden_variables=api_keys)
        servers = await wait_unless_stopped(stop, stack.enter_async_context(opening))
        if servers is None:
            return
        caller = Caller(
            Client(session, model, None, send_keys=send_keys, say=say),
            servers.urls,
            patience=patience,
            stop=stop,
            is_starting=servers.are_starting,
        )
        for line in await caller.check():
            say(line)
        try:
            async with asyncio.TaskGroup() as group:
                watching = group.create_task(servers.watch())
                await _ask_all(caller, chats, on_result, stop)
                # The group waits for all its tasks, and watch() never ends by itself.
                watching.cancel()
        # Callers handle single exceptions, as documented, not the group's.
        except* (OSError, ValueError) as failures:
            raise first_failure(failures) from None


async def _ask_all(
    caller: Caller, chats: Iterable[Chat], on_result: OnResult, stop: asyncio.Event
) -> None:
    # Bounds the number of tasks in memory; the requests in flight are limited by each replica.
    slots = asyncio.Semaphore(caller.max_requests)
    async with asyncio.TaskGroup() as group:
        for chat in chats:
            await slots.acquire()
            if stop.is_set():
                break
            task = group.create_task(_ask_one(caller, chat, on_result))
            task.add_done_callback(lambda _: slots.release())


async def _ask_one(caller: Caller, chat: Chat, on_result: OnResult) -> None:
    try:
        # Replies are not parsed here, so none is requested again with another seed: attempt 0.
        reply = await caller.ask(chat.messages, 0, caller.route(chat.key))
    except StopRequested:
        return
    except Declined as error:
        on_result(ChatResult(key=chat.key, reply=None, reason=error.reason, detail=str(error)))
    except Unavailable as error:
        on_result(ChatResult(key=chat.key, reply=None, reason=error.reason, detail=str(error)))
    else:
        on_result(ChatResult(key=chat.key, reply=reply))
