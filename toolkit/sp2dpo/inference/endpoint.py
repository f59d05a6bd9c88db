"""What asking a teacher costs: by the GPU and hour, or by the token."""

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sp2dpo.inference.serve import Serve, parse_serve
from sp2dpo.settings import check_keys, check_name, check_type
from sp2dpo.text import canonical_json

_AMOUNTS = ("gpu_hour", "prompt", "completion", "cached")


@dataclass(frozen=True, kw_only=True)
class Price:
    """The price of a teacher; either `gpu_hour` and `gpus`, or `prompt` and `completion`, are set.

    Attributes:
        gpu_hour: money for one GPU for one hour.
        gpus: how many GPUs are paid for at the same time.
        prompt: money for a million prompt tokens.
        completion: money for a million tokens of replies.
        cached: money for a million prompt tokens that came from a prefix cache; None: as `prompt`.
        currency: what the money is called.
    """

    gpu_hour: float | None = None
    gpus: int | None = None
    prompt: float | None = None
    completion: float | None = None
    cached: float | None = None
    currency: str = "USD"


def parse_price(said: Any, *, where: str) -> Price:
    """The price that a panel states for a teacher.

    Args:
        said: `{gpu_hour, gpus}` or `{prompt, completion, cached?}`, either with a `currency`.
        where: the file and the teacher, for the message.

    Raises:
        ValueError: naming every wrong key with its rule and its value.
    """
    where = f"{where}: price"
    check_type(where, "the entry", said, dict)
    by_hour = "gpu_hour" in said or "gpus" in said
    if by_hour and not said.keys().isdisjoint(("prompt", "completion", "cached")):
        raise ValueError(
            f"{where}: state gpu_hour and gpus, or prompt and completion (and cached), not both"
        )
    check_keys(
        where,
        said,
        required=("gpu_hour", "gpus") if by_hour else ("prompt", "completion"),
        optional=("currency",) if by_hour else ("cached", "currency"),
    )
    problems = [
        f"{key} must be a number of at least 0, not {said[key]!r}"
        for key in _AMOUNTS
        if key in said and not _is_amount(said[key])
    ]
    if by_hour and (type(said["gpus"]) is not int or said["gpus"] < 1):
        problems.append(f"gpus must be a whole number of at least 1, not {said['gpus']!r}")
    currency = said.get("currency", Price.currency)
    if not isinstance(currency, str) or not currency.strip() or not currency.isprintable():
        problems.append(f"currency must be text such as USD, not {currency!r}")
    if problems:
        raise ValueError(f"{where}: {'; '.join(problems)}")
    return Price(**said)


def _is_amount(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < math.inf


def cost(price: Price, *, prompt: int, cached: int, completion: int, seconds: float) -> float:
    """What so much asking cost, in the price's currency; our choice.

    Args:
        price: of the teacher.
        prompt: prompt tokens, the cached ones among them (as OpenAI-compatible servers count).
        cached: those of them that came from a prefix cache.
        completion: tokens of the replies.
        seconds: for which the GPUs were held; counts only by the hour.
    """
    if price.gpu_hour is not None and price.gpus is not None:
        return price.gpu_hour * price.gpus * seconds / 3600
    if price.prompt is None or price.completion is None:
        raise ValueError("a price is by gpu_hour and gpus, or by prompt and completion")
    reused = price.prompt if price.cached is None else price.cached
    millions = (prompt - cached) * price.prompt + cached * reused + completion * price.completion
    return millions / 1e6


_PLUMBING: dict[str, type | tuple[type, ...]] = {
    "max_in_flight": int,
    "timeout": (int, float),
    "api_key_env": (str, type(None)),
    "warm_prefix": bool,
    "retries": int,
}
_MOST_RETRIES = 100
_SAMPLING = {
    "temperature": (int, float),
    "top_p": (int, float),
    "top_k": int,
    "min_p": (int, float),
    "max_tokens": int,
    "seed": int,
    "presence_penalty": (int, float),
    "frequency_penalty": (int, float),
    "repetition_penalty": (int, float),
    "reasoning_effort": str,
    "chat_template_kwargs": dict,
    "logprobs": bool,
    "top_logprobs": int,
}


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """A model that annotates, behind an OpenAI-compatible server.

    Attributes:
        name: what replies are filed under; its model, revision and sampling never change.
        model: as the server lists it.
        revision: the commit of its weights; None where it has none (a hosted model).
        base_urls: of the API on each replica, `http://127.0.0.1:8000/v1`; empty where `serve`
            says how to start one.
        sampling: sent with every request; has `temperature` and `max_tokens` at least. With
            `logprobs: true` and `top_logprobs`, magnitude and confidence are also kept as
            expectations.
        serve: how to start its server; None where one is there.
        max_in_flight: requests at a time, at each replica, at most; fewer where it answers no
            faster for more.
        timeout: seconds for one request.
        api_key_env: name of the environment variable that holds the API key.
        warm_prefix: await the first question about a pair before the others are sent, for models
            whose servers share a prefix only once it has been read (hybrid ones).
        retries: how often a reply that cannot be read is asked for again, each with another seed.
        price: what it costs to ask; None where nobody says.
        license: of the model, as the Hub names it (`apache-2.0`), for the card of the data set;
            None where nobody says.
        role: what it is asked as, for messages: a student and a judge are asked like a teacher.
    """

    name: str
    model: str
    revision: str | None
    base_urls: tuple[str, ...]
    sampling: dict[str, Any]
    serve: Serve | None = None
    max_in_flight: int = 64
    timeout: float = 300.0
    api_key_env: str | None = None
    warm_prefix: bool = False
    retries: int = 2
    price: Price | None = None
    license: str | None = None
    role: str = "teacher"

    @property
    def label(self) -> str:
        """What messages call it: `teacher NAME`."""
        return f"{self.role} {self.name}"

    def api_key(self) -> str | None:
        """The key from the environment.

        Raises:
            ValueError: the variable is named but not set, or holds more than a key.
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
                f"{self.label}: {self.api_key_env} holds more than a key, such as a line end"
            )
        return key


def parse_endpoint(said: Any, *, where: str, beside: Path) -> Endpoint:
    """The entry of a model that is asked, as a panel says it.

    Args:
        said: the mapping of the YAML file.
        where: the file and the entry, for messages.
        beside: the file's folder; relative paths start there.

    Raises:
        ValueError: with `where` and what is wrong.
    """
    check_type(where, "the entry", said, dict)
    check_keys(
        where,
        said,
        required=("name", "model", "revision", "sampling"),
        optional=("base_url", "serve", *_PLUMBING, "price", "license"),
    )
    for key in ("name", "model", *(["license"] if "license" in said else [])):
        check_name(where, key, said[key])
    check_type(where, "revision", said["revision"], (str, type(None)))
    for key, kind in _PLUMBING.items():
        if key in said:
            check_type(where, key, said[key], kind)
    for key in ("max_in_flight", "timeout"):
        if not 0 < said.get(key, 1) < math.inf:
            raise ValueError(f"{where}: {key} {said[key]} must be above 0")
    if not 0 <= said.get("retries", 0) <= _MOST_RETRIES:
        raise ValueError(f"{where}: retries {said['retries']} must be 0 to {_MOST_RETRIES}")
    if ("base_url" in said) == ("serve" in said):
        raise ValueError(f"{where}: say either base_url, where its server is, or serve")
    serve = (
        parse_serve(said["serve"], where=f"{where}: serve", beside=beside)
        if "serve" in said
        else None
    )
    price = parse_price(said["price"], where=where) if "price" in said else None
    return Endpoint(
        name=said["name"],
        model=said["model"],
        revision=said["revision"],
        base_urls=_base_urls(where, said["base_url"]) if "base_url" in said else (),
        sampling=parse_sampling(where, said["sampling"]),
        serve=serve,
        price=price,
        license=said.get("license"),
        **{key: said[key] for key in _PLUMBING if key in said},
    )


def _base_urls(where: str, said: Any) -> tuple[str, ...]:
    addresses = said if isinstance(said, list) else [said]
    if not addresses:
        raise ValueError(f"{where}: base_url is empty")
    for address in addresses:
        check_name(where, "base_url", address)
        if not address.startswith(("http://", "https://")):
            raise ValueError(f"{where}: base_url {address!r} must start with http(s)://")
        _check_address(where, address)
        if [one.rstrip("/") for one in addresses].count(address.rstrip("/")) > 1:
            raise ValueError(f"{where}: base_url names {address} twice")
    return tuple(addresses)


def _check_address(where: str, address: str) -> None:
    try:
        parts = urlsplit(address)
        known = bool(parts.hostname) and parts.port != 0
    except ValueError as error:
        raise ValueError(f"{where}: base_url {address!r} is no address: {error}") from error
    if not known:
        raise ValueError(f"{where}: base_url {address!r} names no host")
    if parts.username is not None or parts.password is not None:
        raise ValueError(
            f"{where}: base_url holds a name or a password, which logs would show: use api_key_env"
        )


def parse_sampling(where: str, said: Any) -> dict[str, Any]:
    """The `sampling` of a model, checked.

    Raises:
        ValueError: with `where` and what is wrong.
    """
    check_type(where, "sampling", said, dict)
    check_keys(
        f"{where}: sampling", said, required=("temperature", "max_tokens"), optional=_SAMPLING
    )
    for key, value in said.items():
        check_type(f"{where}: sampling", key, value, _SAMPLING[key])
    if said["max_tokens"] < 1:
        raise ValueError(f"{where}: sampling: max_tokens {said['max_tokens']} must be at least 1")
    if said.get("logprobs", False) != bool(said.get("top_logprobs", 0)):
        raise ValueError(
            f"{where}: sampling: write logprobs: true and top_logprobs (20 is what most servers "
            "allow) together, or neither"
        )
    try:
        canonical_json(said)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: sampling must be JSON, not {said}: {error}") from error
    return said
