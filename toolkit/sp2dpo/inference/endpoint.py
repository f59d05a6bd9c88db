"""A model behind an OpenAI-compatible server, how it samples, and what it costs."""

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import ConfigDict

from sp2dpo.inference.keys import key_problem
from sp2dpo.inference.serve import Serve, ServeConfig
from sp2dpo.settings import ABSENT, NAME, AsWritten, Rule, Settings, is_json, number, one_of, rule
from sp2dpo.yaml_files import Keys


@dataclass(frozen=True, kw_only=True)
class Price:
    """The price of a model. Either `gpu_hour` and `gpus` are set, or `prompt` and `completion`.

    Attributes:
        gpu_hour: Price of one GPU for one hour.
        gpus: Number of GPUs that are paid for at the same time.
        prompt: Price of a million prompt tokens.
        completion: Price of a million completion tokens.
        cached: Price of a million prompt tokens from a prefix cache; None means `prompt`.
        currency: Currency of the price.
    """

    gpu_hour: float | None = None
    gpus: int | None = None
    prompt: float | None = None
    completion: float | None = None
    cached: float | None = None
    currency: str = "USD"


def _is_amount(value: Any) -> bool:
    # Not isinstance, because a bool is an int, too.
    return type(value) in (int, float) and 0 <= value < math.inf


def _is_currency(value: Any) -> bool:
    return isinstance(value, str) and value.strip() != "" and value.isprintable()


_AMOUNT = rule(_is_amount, "a number of at least 0", type="number", minimum=0)
_CURRENCY = rule(_is_currency, "text such as USD", type="string", minLength=1)


class HourPriceConfig(Settings):
    """A price by the GPU and hour."""

    gpu_hour: Annotated[float, _AMOUNT]
    """Price of one GPU for one hour."""
    gpus: Annotated[int, number(least=1, integer=True)]
    """Number of GPUs that are paid for at the same time."""
    currency: Annotated[str, _CURRENCY] = Price.currency
    """Currency of the price."""


class TokenPriceConfig(Settings):
    """A price by the token."""

    prompt: Annotated[float, _AMOUNT]
    """Price of a million prompt tokens."""
    completion: Annotated[float, _AMOUNT]
    """Price of a million tokens of replies."""
    cached: Annotated[float | None, _AMOUNT] = None
    """Price of a million prompt tokens from a prefix cache; by default that of uncached ones."""
    currency: Annotated[str, _CURRENCY] = Price.currency
    """Currency of the price."""


def _check_price(config: Any) -> Price:
    if not isinstance(config, dict):
        raise ValueError(f"must be keys and values, not {config!r}")
    by_hour = "gpu_hour" in config or "gpus" in config
    if by_hour and not config.keys().isdisjoint(("prompt", "completion", "cached")):
        raise ValueError("state gpu_hour and gpus, or prompt and completion (and cached), not both")
    # pydantic merges the errors of this model into those of the model around it.
    model = HourPriceConfig if by_hour else TokenPriceConfig
    return Price(**model.model_validate(config).model_dump())


PRICE = Rule(
    _check_price,
    {"oneOf": [model.model_json_schema() for model in (HourPriceConfig, TokenPriceConfig)]},
)
"""Rule for a price, by the GPU hour or by the token."""


def cost(price: Price, *, prompt: int, cached: int, completion: int, seconds: float) -> float:
    """Return the cost of requests in the currency of the price. The formula is our choice.

    Args:
        price: Price of the model.
        prompt: Prompt tokens, including cached ones, as OpenAI-compatible servers count.
        cached: Prompt tokens from a prefix cache.
        completion: Completion tokens.
        seconds: Time in which the GPUs were used; only a price per GPU hour depends on it.
    """
    if price.gpu_hour is not None and price.gpus is not None:
        return price.gpu_hour * price.gpus * seconds / 3600
    if price.prompt is None or price.completion is None:
        raise ValueError("a price is by gpu_hour and gpus, or by prompt and completion")
    reused = price.prompt if price.cached is None else price.cached
    millions = (prompt - cached) * price.prompt + cached * reused + completion * price.completion
    return millions / 1e6


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """A model behind an OpenAI-compatible server: a teacher, student or judge.

    Attributes:
        name: Name that replies are stored under; model, revision and sampling must not change for
            the same name.
        model: Model name, as the server lists it.
        revision: Commit of the weights; None for a hosted model without one.
        base_urls: Base URL of the API on each replica, such as `http://127.0.0.1:8000/v1`; empty if
            `serve` is set.
        sampling: Sampling parameters sent with every request; has at least `temperature`, and
            `max_tokens` or `max_completion_tokens`. With `logprobs: true` and `top_logprobs`,
            expected magnitudes and confidences are stored too.
        extra: Further keys of every request's body, sent as they are.
        structured: How the server is asked to follow the schema of a reply, see `STRUCTURED`. Every
            reply is validated against the complete schema anyway.
        serve: How to start its servers; None if they are already running.
        max_in_flight: Largest number of requests in flight to each replica; fewer are sent if more
            do not increase its throughput.
        timeout: Timeout of a request, in seconds.
        api_key_env: Name of the environment variable with the API key; see `inference/keys.py` for
            where it may be sent.
        warm_prefix: Whether to wait for the reply to a pair's first question before sending the
            others, for models whose servers cache a prefix only after processing it (hybrid ones).
        sees_images: Whether a teacher is sent the images of a pair, as OpenAI's `image_url` parts.
        retries: Number of retries after an unreadable reply, each with another seed.
        price: Price of the model; None if unknown.
        license: License of the model as the Hub names it (`apache-2.0`), for the data set card;
            None if unknown.
        role: `teacher`, `student` or `judge`, for messages.
    """

    name: str
    model: str
    revision: str | None
    base_urls: tuple[str, ...]
    sampling: dict[str, Any]
    extra: dict[str, Any] = field(default_factory=dict)
    structured: str = "json_schema"
    serve: Serve | None = None
    max_in_flight: int = 64
    timeout: float = 300.0
    api_key_env: str | None = None
    warm_prefix: bool = False
    sees_images: bool = False
    retries: int = 2
    price: Price | None = None
    license: str | None = None
    role: str = "teacher"

    @property
    def label(self) -> str:
        """Name for messages, such as `teacher NAME`."""
        return f"{self.role} {self.name}"

    @property
    def token_limit(self) -> int:
        """Largest number of tokens of a reply."""
        limits = (self.extra, self.sampling)
        for values, name in product(limits, ("max_completion_tokens", "max_tokens")):
            if name in values:
                return values[name]
        raise ValueError(f"{self.label}: neither max_tokens nor max_completion_tokens is set")

    @property
    def recorded_sampling(self) -> dict[str, Any]:
        """All settings that determine replies, as files and stores record them.

        `extra` and `structured` are among them only if they are set, so that earlier records are
        equal.
        """
        recorded = dict(self.sampling)
        if self.extra:
            recorded["extra"] = self.extra
        if self.structured != Endpoint.structured:
            recorded["structured"] = self.structured
        return recorded

    def api_key(self) -> str | None:
        """Return the API key from the environment; None if no variable is named.

        Raises:
            ValueError: If the variable is not set, or contains unprintable characters.
        """
        if self.api_key_env is None:
            return None
        key = os.environ.get(self.api_key_env)
        if not key:
            raise ValueError(
                f"{self.label}: the environment variable {self.api_key_env} is not set"
            )
        if not key.isprintable():
            raise ValueError(
                f"{self.label}: {self.api_key_env} contains an unprintable character, such as a "
                "line end, which no API key has"
            )
        return key


STRUCTURED = ("json_schema", "json_schema_plain", "json_object", "none")
"""How a server is asked to follow the schema of a reply: with the schema; with the schema without
bounds such as `maximum` and `maxLength`, which some providers refuse; with JSON of any kind; not at
all."""
_MOST_RETRIES = 100


def _check_base_url(value: Any) -> tuple[str, ...]:
    addresses = value if isinstance(value, list) else [value]
    if not addresses:
        raise ValueError("is empty")
    for address in addresses:
        NAME.check(address)
        if not address.startswith(("http://", "https://")):
            raise ValueError(f"{address!r} must start with http(s)://")
        _check_address(address)
        # Two replicas at one address would double its limit; a final slash changes nothing.
        if [other.rstrip("/") for other in addresses].count(address.rstrip("/")) > 1:
            raise ValueError(f"names {address} twice")
    return tuple(addresses)


def _check_address(address: str) -> None:
    try:
        parts = urlsplit(address)
        # The port is parsed only when it is read, and raises ValueError if it is not one.
        has_host = bool(parts.hostname) and parts.port != 0
    except ValueError as error:
        raise ValueError(f"{address!r} is not an address: {error}") from error
    if not has_host:
        raise ValueError(f"{address!r} names no host")
    if parts.username is not None or parts.password is not None:
        raise ValueError("holds a name or a password, which logs would show: use api_key_env")


def _is_address(value: Any) -> bool:
    try:
        _check_base_url(value)
    except ValueError:
        return False
    return True


_ADDRESS = {"type": "string", "pattern": "^https?://"}
_BASE_URL = Rule(
    _check_base_url, {"anyOf": [_ADDRESS, {"type": "array", "items": _ADDRESS, "minItems": 1}]}
)
_JSON_OBJECT = rule(
    lambda value: isinstance(value, dict) and is_json(value),
    "keys and values that JSON can hold",
    type="object",
)


class LocalSamplingConfig(Settings):
    """How a model samples."""

    temperature: Annotated[float, number()]
    """Temperature; 0 for the most likely token."""
    max_tokens: Annotated[int, number(least=1, integer=True)]
    """Tokens of a reply, at most."""
    top_p: Annotated[float, number()] = ABSENT
    """Probability mass of the most likely tokens that are sampled from."""
    top_k: int = ABSENT
    """Number of the most likely tokens that are sampled from."""
    seed: int = ABSENT
    """Random seed."""
    repetition_penalty: Annotated[float, number()] = ABSENT
    """Factor on the logits of tokens that have occurred; 1 for none."""


class SamplingConfig(LocalSamplingConfig):
    """How a model samples: sent with every request as it is written."""

    max_tokens: Annotated[int, number(least=1, integer=True)] = ABSENT
    """Tokens of a reply, at most."""
    max_completion_tokens: Annotated[int, number(least=1, integer=True)] = ABSENT
    """Tokens of a reply, thinking included, for models that refuse max_tokens."""
    min_p: Annotated[float, number()] = ABSENT
    """Smallest probability of a token, as a share of that of the most likely one."""
    presence_penalty: Annotated[float, number()] = ABSENT
    """Penalty on tokens that have occurred."""
    frequency_penalty: Annotated[float, number()] = ABSENT
    """Penalty on tokens for each time that they have occurred."""
    reasoning_effort: str = ABSENT
    """Reasoning effort of a hosted model, such as low."""
    chat_template_kwargs: Annotated[dict[str, Any], _JSON_OBJECT] = ABSENT
    """Arguments of the chat template, such as enable_thinking: false."""
    logprobs: bool = ABSENT
    """Whether to ask for log-probabilities; needs top_logprobs."""
    top_logprobs: int = ABSENT
    """Number of tokens with log-probabilities at each position; most servers allow 20."""

    @classmethod
    def conflicts(cls, values: Mapping[str, Any]) -> Iterator[tuple[Keys, str]]:
        """Yield a problem if only one of two keys is set that belong together."""
        if bool(values.get("logprobs")) != bool(values.get("top_logprobs")):
            yield (
                (),
                "write logprobs: true and top_logprobs (20 is what most servers allow) together, "
                "or neither",
            )


_LIMITS = ("max_tokens", "max_completion_tokens")


def _extra_problem(key: str, value: Any) -> str | None:
    """Return why a key may not be sent as it is; None if it may."""
    if key in ("messages", "model"):
        return "is written by the package, and would be another request"
    if key == "response_format":
        return "is written by the package: set `structured` to change it"
    if key == "stream" and value is not False:
        return "may only be false: replies are read as a whole"
    if key == "n" and value != 1:
        return "may only be 1: one reply is read and paid for"
    if key == "max_completion_tokens":
        is_valid = type(value) is int and value >= 1
        return None if is_valid else f"must be a whole number of at least 1, not {value!r}"
    if key in SamplingConfig.model_fields:
        return "belongs into `sampling`, which checks it"
    return None


class EndpointConfig(Settings):
    """A model behind an OpenAI-compatible server."""

    # For editors, the rule of `conflicts`: a token limit in sampling, or in extra.
    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [
                {"properties": {"sampling": {"anyOf": [{"required": [key]} for key in _LIMITS]}}},
                {"properties": {"extra": {"required": [_LIMITS[-1]]}}, "required": ["extra"]},
            ]
        }
    )

    name: Annotated[str, NAME]
    """Name that replies are stored under. Its model, revision and sampling must never change."""
    model: Annotated[str, NAME]
    """Model, as the server lists it."""
    revision: str | None
    """Commit of the weights; null for a hosted model without one."""
    base_url: Annotated[tuple[str, ...], _BASE_URL] = ABSENT
    """Address of the API, such as http://127.0.0.1:8000/v1, or a list of one for each replica."""
    serve: ServeConfig = ABSENT
    """How to start the model's servers, in place of base_url."""
    sampling: Annotated[dict[str, Any], AsWritten(SamplingConfig)]
    """How the model samples."""
    max_in_flight: Annotated[int, number(least=1, integer=True)] = Endpoint.max_in_flight
    """In-flight requests to each replica, at most."""
    extra: Annotated[dict[str, Any], _JSON_OBJECT] = ABSENT
    """Further keys of every request's body, sent as they are, such as provider: {...}."""
    structured: Annotated[str, one_of(STRUCTURED)] = Endpoint.structured
    """How the server is asked to follow the schema of a reply."""
    timeout: Annotated[float, number(above=0)] = Endpoint.timeout
    """Timeout of a request in seconds."""
    api_key_env: str | None = None
    """Name of the environment variable with the API key."""
    warm_prefix: bool = Endpoint.warm_prefix
    """Whether to await the first question about a pair before the others are sent, for servers that
    cache a prefix only after processing it."""
    sees_images: bool = Endpoint.sees_images
    """Whether a teacher sees images; pairs with images are used if all teachers of the panel do."""
    retries: Annotated[int, number(least=0, most=_MOST_RETRIES, integer=True)] = Endpoint.retries
    """Retries of a reply that could not be parsed, each with another seed."""
    price: Annotated[Price | None, PRICE] = None
    """Price of the model's answers: gpu_hour and gpus, or prompt and completion."""
    license: Annotated[str | None, NAME] = None
    """License of the model, as the Hub names it (apache-2.0), for the data set card."""

    @classmethod
    def conflicts(cls, values: Mapping[str, Any]) -> Iterator[tuple[Keys, str]]:
        """Yield the problems of keys that exclude or need each other."""
        if ("base_url" in values) == ("serve" in values):
            yield (), "write either base_url, the address of its server, or serve, how to start one"
        if isinstance(variable := values.get("api_key_env"), str):
            urls = values.get("base_url", [])
            urls = [url for url in (urls if isinstance(urls, list) else [urls]) if _is_address(url)]
            if problem := key_problem(variable, urls):
                yield ("api_key_env",), problem
        sampling, extra = values.get("sampling"), values.get("extra", {})
        if not isinstance(extra, dict):
            return
        for key in extra:
            if problem := _extra_problem(key, extra[key]):
                yield ("extra",), f"{key!r} {problem}"
        if isinstance(sampling, dict):
            limits = [key for key in _LIMITS if key in sampling]
            if not limits and "max_completion_tokens" not in extra:
                yield ("sampling",), "missing key 'max_tokens'"
            if len(limits) == 2:
                yield (
                    ("sampling",),
                    "write either max_tokens or, for models that refuse it, max_completion_tokens",
                )
            if "max_completion_tokens" in sampling and "max_completion_tokens" in extra:
                yield ("extra",), "'max_completion_tokens' is in sampling, too: write it once"

    def build(self, *, role: str) -> Endpoint:
        """Return the endpoint with these settings, as a `teacher`, `student` or `judge`."""
        return Endpoint(
            name=self.name,
            model=self.model,
            revision=self.revision,
            base_urls=self.base_url or (),
            sampling=self.sampling,
            extra=self.extra or {},
            structured=self.structured,
            serve=None if self.serve is None else self.serve.build(),
            max_in_flight=self.max_in_flight,
            timeout=self.timeout,
            api_key_env=self.api_key_env,
            warm_prefix=self.warm_prefix,
            sees_images=self.sees_images,
            retries=self.retries,
            price=self.price,
            license=self.license,
            role=role,
        )
