"""Send single requests to an OpenAI-compatible server and parse its answers.

It uses aiohttp directly, because the OpenAI SDK needs about ten times as much CPU time per request.
"""

import asyncio
import json
import time
from typing import Any

import aiohttp

from sp2dpo.inference.completion import Reply, parse_body, parse_count, parse_reply
from sp2dpo.inference.endpoint import Endpoint
from sp2dpo.inference.errors import (
    Declined,
    EndpointError,
    Unavailable,
    shorten_body,
    status_error,
)

_LONGEST_WAIT = 300.0
"""Upper limit of a server's Retry-After, in seconds."""


def open_session() -> aiohttp.ClientSession:
    """Open an HTTP session without a connection limit: `Replicas` limits requests in flight."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,
    )


def request_body(
    endpoint: Endpoint, messages: list[dict[str, str]], schema: dict[str, Any] | None, attempt: int
) -> dict[str, Any]:
    """Return the body of a chat completion request.

    Args:
        endpoint: Model and sampling parameters.
        messages: The chat.
        schema: JSON Schema of the reply; None for free text.
        attempt: Number of the attempt, from 0. It is added to the seed of the sampling parameters
            (0 if there is none), so that a retry can get another reply.
    """
    # The first attempt is exactly what the panel says: without a seed if it names none.
    seed = {"seed": endpoint.sampling.get("seed", 0) + attempt} if attempt else {}
    # `messages` must come first, because `Client.ask` encodes the rest of the body only once.
    body = {"messages": messages, "model": endpoint.model}
    if schema is not None:
        body["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": "annotation", "strict": True, "schema": schema},
        }
    # The seed comes last, so that it replaces that of the sampling parameters.
    return {**body, **endpoint.sampling, **seed}


class Client:
    """HTTP client of one model, for any of its base URLs."""

    def __init__(
        self, session: aiohttp.ClientSession, endpoint: Endpoint, schema: dict[str, Any] | None
    ) -> None:
        self.endpoint = endpoint
        self._session = session
        self._schema = schema
        self._timeout = _timeout(endpoint.timeout)
        key = endpoint.api_key()
        self._headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        self._encoded_rest: dict[int, bytes] = {}
        """Encoded request body after the messages, by attempt; it is the same for all pairs."""

    async def check(self, url: str) -> int | None:
        """Check that a server lists the model.

        Returns:
            The context length of the model in tokens; None if the server does not report it.

        Raises:
            Unavailable: If the server does not answer or is not ready.
            EndpointError: If the server refuses access or does not list the model.
        """
        endpoint, address = self.endpoint, f"{url.rstrip('/')}/models"
        try:
            # 30 seconds, because `endpoint.timeout` is meant for the time that a reply takes.
            async with self._session.get(
                address, headers=self._headers, timeout=_timeout(30)
            ) as response:
                answer = await response.read()
        # UnicodeError: the host name cannot be encoded (IDNA).
        except (aiohttp.ClientError, TimeoutError, UnicodeError) as error:
            raise Unavailable(
                f"{endpoint.label}: nothing answers at {url} "
                f"({_describe_error(error)}); start its server or correct base_url",
                reason="no-answer",
                lost=True,
            ) from error
        status, summary = response.status, f"{address} answered HTTP {response.status}"
        if status != 200:
            error = status_error(endpoint, status, answer)
            # Declined is an error of one chat; here such a status concerns the server.
            if isinstance(error, Declined):
                raise EndpointError(f"{endpoint.label}: {summary}: {shorten_body(answer)}")
            raise error
        data = parse_body(endpoint, answer).get("data")
        models = (
            [model for model in data if isinstance(model, dict)] if isinstance(data, list) else []
        )
        for model in models:
            if model.get("id") == endpoint.model:
                # An extension of vLLM; other servers do not report it.
                return parse_count(model.get("max_model_len"))
        names = ", ".join(str(model.get("id")) for model in models)
        raise EndpointError(
            f"{endpoint.label}: the server at {url} does not serve "
            f"{endpoint.model}; it serves {names or 'nothing'}"
        )

    async def count_tokens(self, url: str, messages: list[dict[str, str]]) -> int | None:
        """Count the tokens of a chat with vLLM's `/tokenize`; None if the server lacks it.

        Raises:
            Unavailable: On a transient error.
        """
        # vLLM serves /tokenize beside /v1, not below it.
        server = url.rstrip("/").removesuffix("/v1")
        body = {"model": self.endpoint.model, "messages": messages, "add_generation_prompt": True}
        # They change the text that the chat template adds, and so the count.
        if "chat_template_kwargs" in self.endpoint.sampling:
            body["chat_template_kwargs"] = self.endpoint.sampling["chat_template_kwargs"]
        status, answer, _ = await self._post(f"{server}/tokenize", json.dumps(body).encode())
        # Without a count the request is sent, and the server declines it if it is too long.
        if status != 200:
            return None
        try:
            return parse_count(json.loads(answer)["count"])
        except (ValueError, KeyError, TypeError, RecursionError):
            return None

    async def ask(self, url: str, messages: list[dict[str, str]], attempt: int) -> Reply:
        """Send a chat once and wait for the complete reply.

        Raises:
            Declined: If the server refuses this request.
            Unavailable: On a transient error.
            EndpointError: If the server refuses access or does not know the model (401, 403, 404).
        """
        # Encode only the messages: everything after them is the same for all pairs.
        data = b'{"messages":' + json.dumps(messages).encode() + self._after_messages(attempt)
        started = time.monotonic()
        status, answer, wait = await self._post(f"{url.rstrip('/')}/chat/completions", data)
        if status != 200:
            raise status_error(self.endpoint, status, answer, wait=wait)
        return parse_reply(
            self.endpoint, parse_body(self.endpoint, answer), time.monotonic() - started
        )

    def _after_messages(self, attempt: int) -> bytes:
        if attempt not in self._encoded_rest:
            body = request_body(self.endpoint, [], self._schema, attempt)
            del body["messages"]
            self._encoded_rest[attempt] = b"," + json.dumps(body).encode()[1:]
        return self._encoded_rest[attempt]

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
    # A host that is down should be noticed before the timeout of a long reply.
    return aiohttp.ClientTimeout(total=seconds, sock_connect=min(seconds, 30))


def _retry_after(header: str) -> float:
    """Parse a Retry-After in seconds; return 0 for an HTTP date, so that our backoff applies."""
    try:
        return min(max(0.0, float(header)), _LONGEST_WAIT)
    except ValueError:
        return 0.0


def _describe_error(error: BaseException) -> str:
    if isinstance(error, asyncio.TimeoutError):
        return "no answer in time"
    return str(error) or type(error).__name__
