"""The panel: which teachers are asked, under which rubric, in which variants."""

import math
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sp2dpo.pairs import canonical_json
from sp2dpo.price import Price, price_of
from sp2dpo.rubric import Rubric, load_rubric
from sp2dpo.serve_block import Serve, serve_of
from sp2dpo.settings import check_keys, check_name, check_type, did_you_mean, read_yaml

BUDGETS = ("full", "adaptive")
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
class Teacher:
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


@dataclass(frozen=True, kw_only=True)
class Panel:
    """All teachers, and what each is asked.

    Attributes:
        rubric: what they are told.
        variants: the rubric's variants that are asked, in this order.
        teachers: in the file's order; names are unique.
        budget: `full` asks every teacher every variant of every pair (the paper's way);
            `adaptive` asks until more replies could hardly move the gap (ours).
        tolerance: by how much a gap may still move when an adaptive panel stops asking, in (0, 1].
            0.074 is 0.02 in beta under SP2DPO's envelope.
    """

    rubric: Rubric
    variants: tuple[str, ...]
    teachers: tuple[Teacher, ...] = field(default_factory=tuple)
    budget: str = "full"
    tolerance: float = 0.074

    def record(self) -> dict[str, Any]:
        """What a store remembers of a panel, as JSON: who is asked what, under which terms.

        No addresses, no commands and no names of keys.
        """
        return {
            "variants": list(self.variants),
            "budget": self.budget,
            "tolerance": self.tolerance,
            "teachers": [
                {
                    "name": teacher.name,
                    "retries": teacher.retries,
                    "price": None if teacher.price is None else asdict(teacher.price),
                    "license": teacher.license,
                }
                for teacher in self.teachers
            ],
        }

    def questions(self) -> int:
        """Replies that a full budget takes for each pair and teacher."""
        return len(self.variants) * len(self.rubric.orders("0"))


def load_panel(path: Path) -> Panel:
    """The panel in a YAML file, all its problems found before anything is asked.

    Raises:
        ValueError: naming the file, the key and the value.
        OSError: the file or its rubric cannot be read.
    """
    where = str(path)
    said = read_yaml(path)
    check_keys(
        where, said, required=("rubric", "variants", "teachers"), optional=("budget", "tolerance")
    )
    check_type(where, "rubric", said["rubric"], str)
    check_type(where, "teachers", said["teachers"], list)
    try:
        rubric = load_rubric(said["rubric"], beside=path.parent)
    except ValueError as error:
        raise ValueError(f"{where}: rubric: {error}") from error
    if not said["teachers"]:
        raise ValueError(f"{where}: teachers is empty")
    teachers = tuple(
        teacher_of(one, where=f"{where}: teacher {number}", beside=path.parent)
        for number, one in enumerate(said["teachers"], 1)
    )
    names = [teacher.name for teacher in teachers]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{where}: two teachers are called {name!r}")
    return Panel(
        rubric=rubric,
        variants=_variants(where, said["variants"], rubric),
        teachers=teachers,
        **_budget(where, said),
    )


def _budget(where: str, said: dict[str, Any]) -> dict[str, Any]:
    if "budget" not in said:
        if "tolerance" in said:
            raise ValueError(f"{where}: tolerance belongs to `budget: adaptive`")
        return {}
    if said["budget"] not in BUDGETS:
        hint = did_you_mean(said["budget"], BUDGETS)
        raise ValueError(f"{where}: budget {said['budget']!r} is not known{hint} (full, adaptive)")
    tolerance = said.get("tolerance", Panel.tolerance)
    check_type(where, "tolerance", tolerance, (int, float))
    if not 0 < tolerance <= 1:
        raise ValueError(f"{where}: tolerance {tolerance} must be above 0, at most 1")
    return {"budget": said["budget"], "tolerance": float(tolerance)}


def _variants(where: str, said: Any, rubric: Rubric) -> tuple[str, ...]:
    check_type(where, "variants", said, list)
    if not said or len(set(map(str, said))) < len(said):
        raise ValueError(f"{where}: variants must name at least one variant, each once")
    for name in said:
        check_type(where, "each of variants", name, str)
        if name not in rubric.variants:
            known = list(rubric.variants)
            hint = did_you_mean(name, known)
            raise ValueError(
                f"{where}: rubric {rubric.name} has no variant {name!r}{hint} "
                f"(known: {', '.join(known)})"
            )
    return tuple(said)


def teacher_of(said: Any, *, where: str, beside: Path) -> Teacher:
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
        serve_of(said["serve"], where=f"{where}: serve", beside=beside) if "serve" in said else None
    )
    price = price_of(said["price"], where=where) if "price" in said else None
    return Teacher(
        name=said["name"],
        model=said["model"],
        revision=said["revision"],
        base_urls=_base_urls(where, said["base_url"]) if "base_url" in said else (),
        sampling=sampling_of(where, said["sampling"]),
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


def sampling_of(where: str, said: Any) -> dict[str, Any]:
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
