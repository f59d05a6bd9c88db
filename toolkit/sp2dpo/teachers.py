"""Asking a teacher: one POST to an OpenAI-compatible server, and what can come back.

The client is aiohttp itself; the OpenAI SDK costs about ten times the processor time per request.
"""

import asyncio
import json
import time
from dataclasses import dataclass
from typing import Any

import aiohttp

from sp2dpo.panel import Teacher


class TeacherError(OSError):
    """A teacher that cannot be asked: the run stops, and nothing is recorded for the request."""


class Unavailable(TeacherError):
    """A fault that may pass: overload, an error of the server, a lost connection, a time-out."""


class Declined(ValueError):
    """The server will not answer this request (HTTP 400, 413, 422); asking again is no use.

    Attributes:
        status: of the HTTP answer.
    """

    def __init__(self, status: int, body: str) -> None:
        super().__init__(f"HTTP {status}: {body}")
        self.status = status


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What a server answered.

    Attributes:
        text: of the message; empty where it gave none.
        finish_reason: `stop` where the model ended by itself, `length` at the token limit.
        model: as the server names it.
        prompt_tokens: of the request, as the server counted.
        completion_tokens: of the reply.
        cached_tokens: of the prompt, served from the prefix cache; None where it does not tell.
        seconds: from sending to the whole reply.
    """

    text: str
    finish_reason: str | None
    model: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    cached_tokens: int | None
    seconds: float


def open_session() -> aiohttp.ClientSession:
    """A session for all teachers; how much is in flight is decided above it."""
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), trust_env=False)


async def check_listed(session: aiohttp.ClientSession, teacher: Teacher) -> None:
    """Asks the server for its models.

    Raises:
        TeacherError: nothing answers there, it refuses us, or it does not list the model.
    """
    url = f"{teacher.base_url.rstrip('/')}/models"
    try:
        async with session.get(url, headers=_headers(teacher), timeout=_timeout(30)) as response:
            body = await response.read()
    except (aiohttp.ClientError, TimeoutError, UnicodeError) as error:
        raise TeacherError(
            f"teacher {teacher.name}: nothing answers at {teacher.base_url} "
            f"({_said(error)}); start its server or correct base_url"
        ) from error
    _check_status(teacher, response.status, body)
    if response.status != 200:
        raise TeacherError(f"teacher {teacher.name}: {url} answered HTTP {response.status}")
    listed = [model.get("id") for model in _parsed(teacher, body).get("data", [])]
    if teacher.model not in listed:
        raise TeacherError(
            f"teacher {teacher.name}: the server at {teacher.base_url} does not serve "
            f"{teacher.model}; it serves {', '.join(map(str, listed)) or 'nothing'}"
        )


async def ask(
    session: aiohttp.ClientSession,
    teacher: Teacher,
    messages: list[dict[str, str]],
    schema: dict[str, Any],
) -> Reply:
    """Sends one chat and waits for the whole reply.

    Raises:
        Declined: the server will not answer this request.
        Unavailable: it may answer later.
        TeacherError: it will not answer us at all (401, 403, 404).
    """
    body = {
        "model": teacher.model,
        "messages": messages,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "annotation", "strict": True, "schema": schema},
        },
        **teacher.sampling,
    }
    url = f"{teacher.base_url.rstrip('/')}/chat/completions"
    started = time.monotonic()
    try:
        async with session.post(
            url, json=body, headers=_headers(teacher), timeout=_timeout(teacher.timeout)
        ) as response:
            answer = await response.read()
    except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
        raise Unavailable(f"teacher {teacher.name}: {_said(error)}") from error
    _check_status(teacher, response.status, answer)
    if response.status != 200:
        raise Unavailable(f"teacher {teacher.name}: HTTP {response.status}: {_brief(answer)}")
    return _reply(teacher, _parsed(teacher, answer), time.monotonic() - started)


def _headers(teacher: Teacher) -> dict[str, str]:
    key = teacher.api_key()
    return {} if key is None else {"Authorization": f"Bearer {key}"}


def _timeout(seconds: float) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(total=seconds, sock_connect=min(seconds, 30))


def _check_status(teacher: Teacher, status: int, body: bytes) -> None:
    if status in (400, 413, 422):
        raise Declined(status, _brief(body))
    if status in (401, 403):
        hint = (
            "set api_key_env in the panel" if teacher.api_key_env is None else "check its API key"
        )
        raise TeacherError(
            f"teacher {teacher.name}: HTTP {status}, the server refuses us; {hint}: {_brief(body)}"
        )
    if status in (404, 405):
        raise TeacherError(
            f"teacher {teacher.name}: HTTP {status} at {teacher.base_url}: wrong base_url or model "
            f"({teacher.model}): {_brief(body)}"
        )


def _parsed(teacher: Teacher, body: bytes) -> dict[str, Any]:
    try:
        said = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Unavailable(f"teacher {teacher.name}: not an answer: {_brief(body)}") from error
    if not isinstance(said, dict):
        raise Unavailable(f"teacher {teacher.name}: not an answer: {_brief(body)}")
    return said


def _reply(teacher: Teacher, said: dict[str, Any], seconds: float) -> Reply:
    try:
        choice = said["choices"][0]
        text = choice["message"].get("content") or ""
        usage = said.get("usage") or {}
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
        return Reply(
            text=storable(str(text)),
            finish_reason=_text(choice.get("finish_reason")),
            model=_text(said.get("model")),
            prompt_tokens=_count(usage.get("prompt_tokens")),
            completion_tokens=_count(usage.get("completion_tokens")),
            cached_tokens=_count(cached),
            seconds=seconds,
        )
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        brief = _brief(json.dumps(said).encode())
        raise Unavailable(f"teacher {teacher.name}: not a chat completion: {brief}") from error


def storable(text: str) -> str:
    """The text with halves of surrogate pairs written as escapes: no file takes them as they are.

    A reply that holds one is refused all the same: the escape stands for the half in JSON too.
    """
    return text.encode("utf-8", "backslashreplace").decode()


def _text(value: Any) -> str | None:
    return storable(value) if isinstance(value, str) else None


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and 0 <= value < 2**31 else None


def _brief(body: bytes) -> str:
    text = " ".join(body.decode(errors="replace").split())
    return text if len(text) <= 300 else f"{text[:300]}..."


def _said(error: BaseException) -> str:
    if isinstance(error, asyncio.TimeoutError):
        return "no answer in time"
    return str(error) or type(error).__name__
