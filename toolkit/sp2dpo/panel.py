"""The panel: which teachers are asked, under which rubric, in which variants."""

import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sp2dpo.pairs import canonical_json
from sp2dpo.rubric import Rubric, load_rubric
from sp2dpo.settings import check_keys, check_name, check_type, did_you_mean, read_yaml

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
}


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """A model that annotates, behind an OpenAI-compatible server.

    Attributes:
        name: what replies are filed under; its model, revision and sampling never change.
        model: as the server lists it.
        revision: the commit of its weights; None where it has none (a hosted model).
        base_url: of the API, `http://127.0.0.1:8000/v1`.
        sampling: sent with every request; has `temperature` and `max_tokens` at least.
        max_in_flight: requests at a time.
        timeout: seconds for one request.
        api_key_env: name of the environment variable that holds the API key.
    """

    name: str
    model: str
    revision: str | None
    base_url: str
    sampling: dict[str, Any]
    max_in_flight: int = 32
    timeout: float = 300.0
    api_key_env: str | None = None

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
                f"teacher {self.name}: the environment variable {self.api_key_env} is not set"
            )
        if not key.isprintable():
            raise ValueError(
                f"teacher {self.name}: {self.api_key_env} holds more than a key, such as a line end"
            )
        return key


@dataclass(frozen=True, kw_only=True)
class Panel:
    """All teachers, and what each is asked.

    Attributes:
        rubric: what they are told.
        variants: the rubric's variants that are asked, in this order.
        teachers: in the file's order; names are unique.
    """

    rubric: Rubric
    variants: tuple[str, ...]
    teachers: tuple[Teacher, ...] = field(default_factory=tuple)


def load_panel(path: Path) -> Panel:
    """The panel in a YAML file, all its problems found before anything is asked.

    Raises:
        ValueError: naming the file, the key and the value.
        OSError: the file or its rubric cannot be read.
    """
    where = str(path)
    said = read_yaml(path)
    check_keys(where, said, required=("rubric", "variants", "teachers"))
    check_type(where, "rubric", said["rubric"], str)
    check_type(where, "teachers", said["teachers"], list)
    try:
        rubric = load_rubric(said["rubric"], beside=path.parent)
    except ValueError as error:
        raise ValueError(f"{where}: rubric: {error}") from error
    if not said["teachers"]:
        raise ValueError(f"{where}: teachers is empty")
    teachers = tuple(_teacher(where, number, one) for number, one in enumerate(said["teachers"], 1))
    names = [teacher.name for teacher in teachers]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{where}: two teachers are called {name!r}")
    return Panel(
        rubric=rubric, variants=_variants(where, said["variants"], rubric), teachers=teachers
    )


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


def _teacher(where: str, number: int, said: Any) -> Teacher:
    where = f"{where}: teacher {number}"
    check_type(where, "the entry", said, dict)
    check_keys(
        where,
        said,
        required=("name", "model", "revision", "base_url", "sampling"),
        optional=("max_in_flight", "timeout", "api_key_env"),
    )
    for key in ("name", "model", "base_url"):
        check_name(where, key, said[key])
    check_type(where, "revision", said["revision"], (str, type(None)))
    check_type(where, "api_key_env", said.get("api_key_env"), (str, type(None)))
    if not said["base_url"].startswith(("http://", "https://")):
        raise ValueError(f"{where}: base_url {said['base_url']!r} must start with http(s)://")
    check_type(where, "max_in_flight", said.get("max_in_flight", 1), int)
    check_type(where, "timeout", said.get("timeout", 1), (int, float))
    for key in ("max_in_flight", "timeout"):
        if not 0 < said.get(key, 1) < math.inf:
            raise ValueError(f"{where}: {key} {said[key]} must be above 0")
    return Teacher(
        **(said | {"sampling": _sampling(where, said["sampling"])}),
    )


def _sampling(where: str, said: Any) -> dict[str, Any]:
    check_type(where, "sampling", said, dict)
    check_keys(
        f"{where}: sampling", said, required=("temperature", "max_tokens"), optional=_SAMPLING
    )
    for key, value in said.items():
        check_type(f"{where}: sampling", key, value, _SAMPLING[key])
    if said["max_tokens"] < 1:
        raise ValueError(f"{where}: sampling: max_tokens {said['max_tokens']} must be at least 1")
    try:
        canonical_json(said)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: sampling must be JSON, not {said}: {error}") from error
    return said
