"""Asking a teacher: one POST to an OpenAI-compatible server, and what can come back.

The client is aiohttp itself; the OpenAI SDK costs about ten times the processor time per request.
"""

import asyncio
import json
import time
from dataclasses import dataclass
from typing import Any

import aiohttp

from sp2dpo.inference.endpoint import Endpoint
from sp2dpo.text import shorten


class EndpointError(OSError):
    """A teacher that cannot be asked: the run stops, and nothing is recorded for the request."""


class Unavailable(EndpointError):
    """A fault that may pass: overload, an error of the server, a lost connection, a time-out.

    Attributes:
        reason: what a request is refused with that fails so for good: `http-500`, `no-answer`.
        overloaded: whether the server, or the time that it takes, asks for fewer requests at once.
        lost: whether there was no answer at all.
        wait: seconds that the server wants to be left alone.
    """

    def __init__(
        self,
        text: str,
        *,
        reason: str,
        overloaded: bool = False,
        lost: bool = False,
        wait: float = 0.0,
    ) -> None:
        super().__init__(text)
        self.reason = reason
        self.overloaded = overloaded
        self.lost = lost
        self.wait = wait


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
        seconds: from sending to the whole reply; None where nobody took the time.
        logprobs: of its tokens, as the server gives them; None where it gives none.
    """

    text: str
    finish_reason: str | None
    model: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    cached_tokens: int | None
    seconds: float | None
    logprobs: list[Any] | None = None


def parse_body(endpoint: Endpoint, body: bytes) -> dict[str, Any]:
    """The JSON object of an answer.

    Raises:
        Unavailable: it is none: a proxy's page, or cut off.
    """
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise _unreadable(endpoint, body) from error
    if not isinstance(answer, dict):
        raise _unreadable(endpoint, body)
    return answer


def _unreadable(endpoint: Endpoint, body: bytes) -> Unavailable:
    text = f"{endpoint.label}: not an answer: {shorten_body(body)}"
    return Unavailable(text, reason="no-answer")


def parse_reply(endpoint: Endpoint, answer: dict[str, Any], seconds: float | None) -> Reply:
    """Parse a chat completion.

    Args:
        endpoint: The model that answered, for messages.
        answer: The completion's JSON object.
        seconds: Latency of the whole reply; None if it was not measured.

    Raises:
        Unavailable: If the object is not a chat completion.
    """
    try:
        choice = answer["choices"][0]
        text = choice["message"].get("content") or ""
        usage = answer.get("usage") or {}
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
        return Reply(
            text=escape_surrogates(str(text)),
            finish_reason=_text(choice.get("finish_reason")),
            model=_text(answer.get("model")),
            prompt_tokens=parse_count(usage.get("prompt_tokens")),
            completion_tokens=parse_count(usage.get("completion_tokens")),
            cached_tokens=parse_count(cached),
            seconds=seconds,
            logprobs=_logprobs(choice),
        )
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        brief = shorten_body(json.dumps(answer).encode())
        text = f"{endpoint.label}: not a chat completion: {brief}"
        raise Unavailable(text, reason="no-answer") from error


def _logprobs(choice: dict[str, Any]) -> list[Any] | None:
    """Of the reply's tokens; a reply is whole without them."""
    logprobs = choice.get("logprobs")
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    return content if isinstance(content, list) else None


def escape_surrogates(text: str) -> str:
    """The text with halves of surrogate pairs written as escapes: no file takes them as they are.

    A reply that holds one is refused all the same: the escape stands for the half in JSON too.
    """
    return text.encode("utf-8", "backslashreplace").decode()


def _text(value: Any) -> str | None:
    return escape_surrogates(value) if isinstance(value, str) else None


def parse_count(value: Any) -> int | None:
    """A number of tokens; None for what cannot be one."""
    return value if isinstance(value, int) and 0 <= value < 2**31 else None


def shorten_body(body: bytes) -> str:
    """The beginning of an answer, for a message."""
    return shorten(body.decode(errors="replace"))


_LONGEST_WAIT = 300.0
"""Seconds at most that a server's Retry-After is heeded."""


def open_session() -> aiohttp.ClientSession:
    """A session for all teachers; how much is in flight is decided above it."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,
    )


def request_body(
    endpoint: Endpoint, messages: list[dict[str, str]], schema: dict[str, Any] | None, attempt: int
) -> dict[str, Any]:
    """What is sent for one reply.

    Args:
        endpoint: Gives the model and the sampling.
        messages: the chat.
        schema: of the reply; None where it may say anything.
        attempt: 0 at first; a later one is sent with its own seed, the sampling's (or 0) plus it.
    """
    seed = {"seed": endpoint.sampling.get("seed", 0) + attempt} if attempt else {}
    body = {"messages": messages, "model": endpoint.model}
    if schema is not None:
        body["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": "annotation", "strict": True, "schema": schema},
        }
    return {**body, **endpoint.sampling, **seed}


class Client:
    """One teacher, to be asked over HTTP at any of its addresses."""

    def __init__(
        self, session: aiohttp.ClientSession, endpoint: Endpoint, schema: dict[str, Any] | None
    ) -> None:
        self.endpoint = endpoint
        self._session = session
        self._schema = schema
        self._timeout = _timeout(endpoint.timeout)
        key = endpoint.api_key()
        self._headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        self._rest: dict[int, bytes] = {}
        """What follows the messages in a request, by attempt: the same for all pairs."""

    async def check(self, url: str) -> int | None:
        """Asks a server for its models.

        Returns:
            The longest context of the model in tokens, where the server tells.

        Raises:
            Unavailable: nothing answers there, or it is not ready.
            EndpointError: it refuses us, or does not list the model.
        """
        endpoint, address = self.endpoint, f"{url.rstrip('/')}/models"
        try:
            async with self._session.get(
                address, headers=self._headers, timeout=_timeout(30)
            ) as response:
                answer = await response.read()
        except (aiohttp.ClientError, TimeoutError, UnicodeError) as error:
            raise Unavailable(
                f"{endpoint.label}: nothing answers at {url} "
                f"({_describe_error(error)}); start its server or correct base_url",
                reason="no-answer",
                lost=True,
            ) from error
        status, summary = response.status, f"{address} answered HTTP {response.status}"
        if status == 429 or status >= 500:
            raise Unavailable(f"{endpoint.label}: {summary}", reason=f"http-{status}")
        if status not in (400, 413, 422):
            _check_status(endpoint, status, answer)
        if status != 200:
            raise EndpointError(f"{endpoint.label}: {summary}: {shorten_body(answer)}")
        data = parse_body(endpoint, answer).get("data")
        models = (
            [model for model in data if isinstance(model, dict)] if isinstance(data, list) else []
        )
        for model in models:
            if model.get("id") == endpoint.model:
                return parse_count(model.get("max_model_len"))
        names = ", ".join(str(model.get("id")) for model in models)
        raise EndpointError(
            f"{endpoint.label}: the server at {url} does not serve "
            f"{endpoint.model}; it serves {names or 'nothing'}"
        )

    async def count_tokens(self, url: str, messages: list[dict[str, str]]) -> int | None:
        """How many tokens a chat takes, as vLLM's tokenizer counts; None where a server cannot.

        Raises:
            Unavailable: it may answer later.
        """
        server = url.rstrip("/").removesuffix("/v1")
        body = {"model": self.endpoint.model, "messages": messages, "add_generation_prompt": True}
        if "chat_template_kwargs" in self.endpoint.sampling:
            body["chat_template_kwargs"] = self.endpoint.sampling["chat_template_kwargs"]
        status, answer, _ = await self._post(f"{server}/tokenize", json.dumps(body).encode())
        if status != 200:
            return None
        try:
            return parse_count(json.loads(answer)["count"])
        except (ValueError, KeyError, TypeError, RecursionError):
            return None

    async def ask(self, url: str, messages: list[dict[str, str]], attempt: int) -> Reply:
        """Sends one chat and waits for the whole reply.

        Raises:
            Declined: the server will not answer this request.
            Unavailable: it may answer later.
            EndpointError: it will not answer us at all (401, 403, 404).
        """
        data = b'{"messages":' + json.dumps(messages).encode() + self._after_messages(attempt)
        started = time.monotonic()
        status, answer, wait = await self._post(f"{url.rstrip('/')}/chat/completions", data)
        _check_status(self.endpoint, status, answer)
        if status != 200:
            raise Unavailable(
                f"{self.endpoint.label}: HTTP {status}: {shorten_body(answer)}",
                reason=f"http-{status}",
                overloaded=status in (429, 503),
                wait=wait,
            )
        return parse_reply(
            self.endpoint, parse_body(self.endpoint, answer), time.monotonic() - started
        )

    def _after_messages(self, attempt: int) -> bytes:
        if attempt not in self._rest:
            body = request_body(self.endpoint, [], self._schema, attempt)
            del body["messages"]
            self._rest[attempt] = b"," + json.dumps(body).encode()[1:]
        return self._rest[attempt]

    async def _post(self, address: str, data: bytes) -> tuple[int, bytes, float]:
        headers = {**self._headers, "Content-Type": "application/json"}
        try:
            async with self._session.post(
                address, data=data, headers=headers, timeout=self._timeout
            ) as response:
                wait = _retry_after(response.headers.get("Retry-After", "0"))
                return response.status, await response.read(), wait
        except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
            raise Unavailable(
                f"{self.endpoint.label}: {_describe_error(error)}",
                reason="no-answer",
                overloaded=isinstance(error, TimeoutError),
                lost=True,
            ) from error


def _timeout(seconds: float) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(total=seconds, sock_connect=min(seconds, 30))


def _retry_after(header: str) -> float:
    """A Retry-After in seconds; one that names a date is left to our own backoff."""
    try:
        return min(max(0.0, float(header)), _LONGEST_WAIT)
    except ValueError:
        return 0.0


def _check_status(endpoint: Endpoint, status: int, body: bytes) -> None:
    if status in (400, 413, 422):
        raise Declined(status, shorten_body(body))
    if status in (401, 403):
        hint = (
            "set api_key_env in the panel" if endpoint.api_key_env is None else "check its API key"
        )
        raise EndpointError(
            f"{endpoint.label}: HTTP {status}, the server refuses us; {hint}: {shorten_body(body)}"
        )
    if status in (404, 405):
        raise EndpointError(
            f"{endpoint.label}: HTTP {status}: wrong base_url or model "
            f"({endpoint.model}): {shorten_body(body)}"
        )


def _describe_error(error: BaseException) -> str:
    if isinstance(error, asyncio.TimeoutError):
        return "no answer in time"
    return str(error) or type(error).__name__
