"""Send single requests to an OpenAI-compatible server and parse its answers.

It uses aiohttp directly, because the OpenAI SDK needs about ten times as much CPU time per request.
"""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from sp2dpo.inference.bodies import (
    ACCEPTED,
    ERROR_LIMIT,
    MODELS_LIMIT,
    BodyTooLarge,
    UnknownEncoding,
    read_body,
    reply_limit,
)
from sp2dpo.inference.completion import Reply, parse_body, parse_count, parse_reply
from sp2dpo.inference.connection import (
    Proxy,
    find_proxy,
    most_connections,
    proxy_hint,
    redirect_target,
    requested_wait,
    shortage,
)
from sp2dpo.inference.endpoint import Endpoint
from sp2dpo.inference.errors import (
    Declined,
    EndpointError,
    Unavailable,
    shorten_body,
    status_error,
)
from sp2dpo.inference.keys import KeyUse, key_uses, refusal
from sp2dpo.inference.secrets import Secrets
from sp2dpo.settings import did_you_mean
from sp2dpo.text import HIDDEN, one_line, shorten


def open_session() -> aiohttp.ClientSession:
    """Open an HTTP session with as many connections as this process may have files open.

    `Replicas` limits the requests in flight.
    """
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=most_connections()),
        cookie_jar=aiohttp.DummyCookieJar(),
        # `read_body` decompresses up to a limit; aiohttp would decompress whatever comes.
        auto_decompress=False,
        headers={"Accept-Encoding": ACCEPTED},
        # With trust_env, aiohttp would also send the passwords of ~/.netrc, and would use a proxy
        # for loopback addresses. `find_proxy` reads the variables.
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
    if schema is not None and endpoint.structured != "none":
        body["response_format"] = _response_format(endpoint.structured, schema)
    # The seed comes last, so that it replaces that of the sampling parameters.
    body |= endpoint.sampling | endpoint.extra | seed
    # Models that know the one refuse the other.
    if "max_completion_tokens" in endpoint.extra:
        body.pop("max_tokens", None)
    return body


def _response_format(structured: str, schema: dict[str, Any]) -> dict[str, Any]:
    if structured == "json_object":
        return {"type": "json_object"}
    if structured == "json_schema_plain":
        schema = plain_schema(schema)
    return {
        "type": "json_schema",
        "json_schema": {"name": "annotation", "strict": True, "schema": schema},
    }


_BOUNDS = (
    "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minLength",
    "maxLength", "pattern", "format", "minItems", "maxItems", "uniqueItems",
)  # fmt: skip


def plain_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a JSON schema without bounds of its values, which some providers refuse."""
    return {
        key: {name: plain_schema(field) for name, field in value.items()}
        if key == "properties"
        else plain_schema(value)
        if isinstance(value, dict)
        else value
        for key, value in schema.items()
        if key not in _BOUNDS
    }


_JSON = {"Content-Type": "application/json"}
_PROBE = [{"role": "user", "content": "Answer with one word: ready."}]
_PROBE_TOKENS = 16
"""Token limit of the question that a server without a list of models gets; the least that some
providers allow."""
_PROBES = 3
_LONGEST_PAUSE = 20.0
"""Number of times that it is sent to a server that is up, and longest pause in between, in seconds.
A server that is overloaded or starting gets it again for as long as the run has patience."""
_MOST_NAMES, _LONGEST_NAME = 1000, 200
"""Number of listed models, and length of their names, among which similar ones are looked for."""
_READY = "wait until the server is ready, or set a longer --patience"
_ADDRESS = "is base_url the address of the API, such as http://HOST:PORT/v1?"


@dataclass(frozen=True, kw_only=True)
class ServerCheck:
    """A server that serves the model.

    Attributes:
        context: Context length of the model in tokens; None if the server does not report it.
        notice: Line for the user, if it was not the list of models that showed it.
    """

    context: int | None = None
    notice: str | None = None


class Client:
    """HTTP client of one model, for any of its base URLs."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        endpoint: Endpoint,
        schema: dict[str, Any] | None,
        *,
        send_keys: Collection[KeyUse] = (),
        secrets: Secrets | None = None,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Prepare to send requests.

        Args:
            session: HTTP session of the requests.
            endpoint: The model.
            schema: JSON Schema of the replies; None for free text.
            send_keys: Allowed uses of API keys.
            secrets: API keys to remove from answers; None for that of the model alone.
            say: Called with notices for the user.

        Raises:
            ValueError: If the API key may not be sent to a host of the model, or is not set.
        """
        for use in key_uses(endpoint):
            if use not in send_keys:
                raise ValueError(refusal(endpoint, use))
        self.endpoint = endpoint
        self._session = session
        self._schema = schema
        self._timeout = _timeout(endpoint.timeout)
        key = endpoint.api_key()
        self._headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        variables = [] if endpoint.api_key_env is None else [endpoint.api_key_env]
        self._secrets = Secrets(variables) if secrets is None else secrets
        self._say = say
        self._has_echoed = False
        alternatives = endpoint.sampling.get("top_logprobs")
        self._reply_limit = reply_limit(
            endpoint.token_limit, alternatives if isinstance(alternatives, int) else 0
        )
        self._proxies: dict[str, Proxy | None] = {}
        self._encoded_rest: dict[int, bytes] = {}
        """Encoded request body after the messages, by attempt; it is the same for all pairs."""

    async def check(
        self,
        url: str,
        *,
        patience: float = 60,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> ServerCheck:
        """Check that a server serves the model.

        A server that lists no models, lists a wildcard such as `openai/*`, or cannot list them now,
        is asked one question instead, with few tokens.

        Args:
            url: Base URL of the server.
            patience: Seconds for which the question is sent again to a server that is not ready.
            pause: Waits for a number of seconds.

        Raises:
            Unavailable: If the server does not answer or is not ready.
            EndpointError: If the server refuses access or does not serve the model.
        """
        try:
            return await self._check(url, patience, pause)
        except EndpointError as error:
            proxy = self._proxies.get(_origin(url))
            if proxy is not None and "NO_PROXY" not in str(error):
                error.args = (f"{error}; {proxy_hint(url, proxy)}",)
            raise

    async def _check(
        self, url: str, patience: float, pause: Callable[[float], Awaitable[None]]
    ) -> ServerCheck:
        endpoint, address = self.endpoint, f"{url.rstrip('/')}/models"
        probe = partial(self._probe, url, patience=patience, pause=pause)
        try:
            # 30 seconds, because `endpoint.timeout` is meant for the time that a reply takes.
            status, answer, _ = await self._request(
                "GET", address, timeout=_timeout(30), limit=MODELS_LIMIT
            )
        except BodyTooLarge as error:
            raise EndpointError(
                f"{endpoint.label}: {address} sends a list of models of {error}, which is the limit"
            ) from error
        except Unavailable as error:
            if error.is_ours:
                raise
            cause = self._hide(_describe_error(error.__cause__ or error))
            raise Unavailable(
                f"{endpoint.label}: nothing answers at {url} ({cause}); start its server or correct"
                " base_url",
                reason="no-answer",
                lost=True,
            ) from error
        # 403: some keys may ask models, but not list them.
        if status in (403, 404, 405, 501):
            return await probe("lists no models")
        if status != 200:
            error = status_error(endpoint, status, answer)
            if isinstance(error, Unavailable):
                return await probe(f"answers HTTP {status} in place of a list of its models")
            # Declined is an error of one chat; here such a status concerns the server.
            if isinstance(error, Declined):
                raise EndpointError(
                    f"{endpoint.label}: {address} answered HTTP {status}: {shorten_body(answer)}"
                )
            raise error
        try:
            models, is_partial = _listed_models(answer)
        except ValueError:
            return await probe("lists no models that can be read", advice=_ADDRESS)
        for model in models:
            aliases = model.get("aliases")
            if endpoint.model in (_name(model), *(aliases if isinstance(aliases, list) else ())):
                # An extension of vLLM; other servers do not report it.
                return ServerCheck(context=parse_count(model.get("max_model_len")))
        # Comparing a name with all others takes long, and no gateway has more models.
        named = (name for model in models if (name := _name(model)) and len(name) <= _LONGEST_NAME)
        names = list(islice(named, _MOST_NAMES))
        if not names:
            return await probe("lists no models")
        if alike := [name for name in names if _may_mean(name, endpoint.model)]:
            return await probe(f"lists {alike[0]}")
        if is_partial:
            return await probe("lists its models in pages, or by other names")
        # A gateway may list hundreds.
        hint = did_you_mean(endpoint.model, names)
        raise EndpointError(
            f"{endpoint.label}: the server at {url} does not serve {endpoint.model}{hint}; it "
            f"serves {shorten(', '.join(names))}"
        )

    async def _probe(
        self,
        url: str,
        why: str,
        *,
        patience: float,
        pause: Callable[[float], Awaitable[None]],
        advice: str = _READY,
    ) -> ServerCheck:
        """Ask a question to learn whether the server serves the model."""
        endpoint, seconds, count = self.endpoint, 1.0, 0
        deadline = time.monotonic() + patience
        while True:
            try:
                await self._ask_probe(url, few_tokens=True)
                break
            except Unavailable as error:
                count += 1
                is_busy = error.reason.startswith(("http-429", "http-5"))
                left = deadline - time.monotonic()
                if left <= 0 if is_busy else count >= _PROBES:
                    raise Unavailable(
                        f"{error}; the server at {url} {why}: {advice}",
                        reason=error.reason,
                        overloaded=error.overloaded,
                        lost=error.lost,
                    ) from error
                await pause(min(max(seconds, error.wait), _LONGEST_PAUSE, max(left, 0.1)))
                seconds *= 2
        return ServerCheck(
            notice=f"{endpoint.label}: the server at {url} {why}, so one question was sent to "
            f"{endpoint.model}, which was answered"
        )

    async def _ask_probe(self, url: str, *, few_tokens: bool) -> None:
        body = request_body(self.endpoint, _PROBE, None, 0)
        if few_tokens:
            limits = [name for name in ("max_tokens", "max_completion_tokens") if name in body]
            body |= dict.fromkeys(limits, _PROBE_TOKENS)
        try:
            await self._chat(url, json.dumps(body).encode())
        except Declined as error:
            # Settings of thinking may need more tokens than this question.
            if few_tokens and self.endpoint.token_limit > _PROBE_TOKENS:
                await self._ask_probe(url, few_tokens=False)
                return
            raise EndpointError(
                f"{self.endpoint.label}: {url} lists no {self.endpoint.model}, and refuses a "
                f"question to it: {error}",
                reason=error.reason,
            ) from error

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
        try:
            status, answer, _ = await self._request(
                "POST", f"{server}/tokenize", json.dumps(body).encode()
            )
        except BodyTooLarge:
            return None
        except Unavailable:
            raise
        except EndpointError:  # a redirect: a gateway that has nothing beside /v1
            return None
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
        return await self._chat(url, data)

    async def _chat(self, url: str, data: bytes) -> Reply:
        started = time.monotonic()
        address = f"{url.rstrip('/')}/chat/completions"
        try:
            status, answer, wait = await self._request("POST", address, data)
        except BodyTooLarge as error:
            text = f"{self.endpoint.label}: a reply of {error}, too much for its max_tokens"
            raise Declined(200, text, reason="too-large") from error
        if status != 200:
            raise status_error(self.endpoint, status, answer, wait=wait)
        seconds = time.monotonic() - started
        reply = parse_reply(self.endpoint, parse_body(self.endpoint, answer), seconds)
        reply = self._secrets.hide_in_reply(reply)
        self._report_echoes()
        return reply

    def _hide(self, text: str) -> str:
        """Return a short text of a server, or of an error, without API keys."""
        text = shorten(self._secrets.hide_in_text(text))
        self._report_echoes()
        return text

    def _report_echoes(self) -> None:
        if self._secrets.count and not self._has_echoed:
            self._has_echoed = True
            self._say(
                f"WARNING: {self.endpoint.label}: its server sent back an API key, which is"
                f" replaced by {HIDDEN} in all that is stored and shown; replace the key if you do"
                " not trust the server"
            )

    def _after_messages(self, attempt: int) -> bytes:
        if attempt not in self._encoded_rest:
            body = request_body(self.endpoint, [], self._schema, attempt)
            del body["messages"]
            self._encoded_rest[attempt] = b"," + json.dumps(body).encode()[1:]
        return self._encoded_rest[attempt]

    def proxy(self, url: str) -> Proxy | None:
        """Return the proxy for a base URL, see `find_proxy`.

        Raises:
            EndpointError: If the environment names a proxy that cannot be used.
        """
        if url not in self._proxies:
            try:
                self._proxies[url] = find_proxy(url)
            except ValueError as error:
                raise EndpointError(f"{self.endpoint.label}: {error}") from error
        return self._proxies[url]

    async def _request(
        self,
        method: str,
        address: str,
        data: bytes | None = None,
        *,
        timeout: aiohttp.ClientTimeout | None = None,
        limit: int | None = None,
    ) -> tuple[int, bytes, float]:
        """Send a request; return status, body, and the wait that the server asks for.

        Args:
            method: HTTP method.
            address: Address to send it to.
            data: Body of the request.
            timeout: Time-out; None for that of the model.
            limit: Largest body of an answer in bytes; None for that of a reply. Of an error, only
                the beginning is read.

        Raises:
            BodyTooLarge: If the body is larger.
        """
        headers = self._headers if data is None else self._headers | _JSON
        label, proxy = self.endpoint.label, self.proxy(_origin(address))
        # Through a proxy, a request to an http:// address is the proxy's own; one to an https://
        # address is encrypted, and the proxy reads only the headers of the tunnel.
        if proxy is not None and address.startswith("http://"):
            headers = headers | proxy.headers
        try:
            async with self._session.request(
                method, address, data=data, headers=headers, timeout=timeout or self._timeout,
                # A redirected POST loses its body, and another host would get the API key.
                allow_redirects=False,
                proxy=proxy and proxy.url, proxy_headers=proxy and proxy.headers,
            ) as response:  # fmt: skip
                if 300 <= response.status < 400:
                    advice = redirect_target(address, response.headers.get("Location"))
                    raise EndpointError(
                        f"{label}: {address} answered HTTP {response.status}: {self._hide(advice)}",
                        reason=f"http-{response.status}",
                    )
                # Some gateways answer a POST with 201.
                is_answer = 200 <= response.status < 300
                status = 200 if is_answer else response.status
                most = (limit or self._reply_limit) if is_answer else ERROR_LIMIT
                body = await read_body(response, most, cut=not is_answer)
                body = self._secrets.hide_in_body(body)
                self._report_echoes()
                return status, body, requested_wait(response.headers)
        except EndpointError:
            raise
        except UnknownEncoding as error:
            raise EndpointError(
                f"{label}: {address} sends Content-Encoding {shorten(str(error), 50)!r}, which the"
                " request does not allow: turn compression off at the server or gateway"
            ) from error
        except aiohttp.ClientHttpProxyError as error:
            where = "the proxy" if proxy is None else f"the proxy {proxy.url}"
            raise EndpointError(
                f"{label}: {where} answered HTTP {error.status} ({self._hide(error.message)}):"
                " correct HTTPS_PROXY, or exclude the host with NO_PROXY"
            ) from error
        # UnicodeError: the host name cannot be encoded (IDNA).
        except (aiohttp.ClientError, TimeoutError, OSError, UnicodeError) as error:
            if lack := shortage(error):
                raise Unavailable(
                    f"{label}: {lack}", reason="no-answer", overloaded=True, is_ours=True
                ) from error
            raise Unavailable(
                f"{label}: {self._hide(_describe_error(error))}",
                reason="no-answer",
                overloaded=isinstance(error, TimeoutError),
                lost=True,
            ) from error


def _origin(address: str) -> str:
    parts = urlsplit(address)
    return f"{parts.scheme}://{parts.netloc}"


def _listed_models(answer: bytes) -> tuple[list[dict[str, Any]], bool]:
    """Return the models that a server lists, as `data` or a bare list, and whether there are more.

    There may be more if some have no id, or only the name that people see.

    Raises:
        ValueError: If the answer is not JSON.
    """
    try:
        value = json.loads(answer)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    data = value.get("data", value.get("models")) if isinstance(value, dict) else value
    models = [model for model in data if isinstance(model, dict)] if isinstance(data, list) else []
    has_more = isinstance(value, dict) and value.get("has_more") is True
    return models, has_more or any(not isinstance(model.get("id"), str) for model in models)


def _name(model: dict[str, Any]) -> str | None:
    names = (model.get(key) for key in ("id", "name", "model"))
    return next((name for name in names if isinstance(name, str) and name), None)


def _may_mean(listed: str, model: str) -> bool:
    """Return whether a listed model may be the one that the panel names, by another name."""
    # LiteLLM lists `openai/*`, and serves models of it by their bare names, too; Ollama lists
    # `m:latest`, Gemini `models/m`; for OpenRouter's `m:nitro` and SGLang's `m:adapter` the list
    # has `m`.
    return (
        "*" in listed
        or listed in (f"{model}:latest", f"models/{model}")
        or (":" in model and listed == model.rpartition(":")[0])
    )


def _timeout(seconds: float) -> aiohttp.ClientTimeout:
    # A host that is down should be noticed before the timeout of a long reply.
    return aiohttp.ClientTimeout(total=seconds, sock_connect=min(seconds, 30))


def _describe_error(error: BaseException) -> str:
    if isinstance(error, asyncio.TimeoutError):
        return "no answer in time"
    return one_line(error) or type(error).__name__
