"""What a panel says about the servers that are started for a teacher."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sp2dpo.settings import check_keys, check_type

_OPTIONAL = ("model", "args", "gpus", "replicas", "env", "port", "healthy_within", "restarts")
_PATH = re.compile(r"/|~|\.{1,2}(/|$)")  # what a folder begins with; anything else is a Hub id
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_ANY = ("0.0.0.0", "::")
_REFUSED = {
    "--port": "write it as the key port",
    "--model": "write it as the key model",
    "--api-key": "write it as VLLM_API_KEY into env, which is not shown",
    "--hf-token": "write it as HF_TOKEN into env, which is not shown",
    "--uds": "a server is reached by its port",
    "--ssl-keyfile": "a server is reached by plain http",
    "--ssl-certfile": "a server is reached by plain http",
}


@dataclass(frozen=True, kw_only=True)
class Serve:
    """How a teacher's server is started: vLLM, from an environment of its own.

    Attributes:
        environment: the virtual environment that holds `bin/vllm`.
        model: what vLLM loads, a folder or an id on the Hub; None: the teacher's `model`.
        args: more arguments for `vllm serve`; one that names a flag of ours replaces it.
        gpus: what `CUDA_VISIBLE_DEVICES` may name, shared out evenly; empty: all that there are.
        replicas: how many servers.
        env: more environment variables.
        port: of the first replica, the others follow; None: free ones.
        healthy_within: seconds for starting and loading.
        restarts: how often each replica is started again in one run.
    """

    environment: Path
    model: str | None = None
    args: tuple[str, ...] = ()
    gpus: tuple[str, ...] = ()
    replicas: int = 1
    env: Mapping[str, str] = field(default_factory=dict)
    port: int | None = None
    healthy_within: float = 1800.0
    restarts: int = 3

    @property
    def program(self) -> Path:
        """The file that is run."""
        return self.environment / "bin" / "vllm"

    @property
    def gpus_each(self) -> int:
        """GPUs of one replica; 0 where the panel names none."""
        return len(self.gpus) // self.replicas

    @property
    def host(self) -> str:
        """Where the server is reached."""
        said = flag_value(self.args, "--host")
        return "127.0.0.1" if not said or said in _ANY else said


def parse_serve(said: Any, *, where: str, beside: Path) -> Serve:
    """The `serve` of a teacher, as a panel says it.

    Args:
        said: the mapping of the YAML file.
        where: the file, the teacher and the key, for the message.
        beside: the panel's folder; relative paths start there.

    Raises:
        ValueError: naming every wrong key with its rule and its value.
    """
    check_type(where, "the entry", said, dict)
    check_keys(where, said, required=("environment",), optional=_OPTIONAL)
    problems = _problems(said) or _contradictions(said)
    if problems:
        raise ValueError(f"{where}: {'; '.join(problems)}")
    changed: dict[str, Any] = {"environment": _path(where, said["environment"], beside)}
    if "model" in said and is_path(said["model"]):
        changed["model"] = str(_path(where, said["model"], beside))
    for key in ("args", "gpus"):
        changed[key] = tuple(map(str, said.get(key, ())))
    return Serve(**said | changed)


def _problems(said: Mapping[str, Any]) -> list[str]:
    """Every key whose value breaks its rule."""
    rules = {
        "environment": (_is_line, "a path"),
        "model": (lambda one: _is_line(one) and one[0] != "-", "a path or an id on the Hub"),
        "args": (lambda one: _is_list(one, _is_text), "a list of texts (quote numbers)"),
        "gpus": (
            lambda one: _is_list(one, _is_gpu) and bool(one) and len({*map(str, one)}) == len(one),
            "a list of numbers or ids of GPUs, each once",
        ),
        "replicas": (lambda one: type(one) is int and one >= 1, "a whole number of at least 1"),
        "env": (_is_env, "names of environment variables with texts (quote numbers)"),
        "port": (lambda one: type(one) is int and 0 < one < 65536, "a number from 1 to 65535"),
        "healthy_within": (
            lambda one: type(one) in (int, float) and 0 < one < math.inf,
            "a number of seconds above 0",
        ),
        "restarts": (lambda one: type(one) is int and one >= 0, "a whole number of at least 0"),
    }
    return [
        f"{key} must be {rule}, not {said[key]!r}"
        for key, (keeps, rule) in rules.items()
        if key in said and not keeps(said[key])
    ]


def _contradictions(said: Mapping[str, Any]) -> list[str]:
    """What is wrong with values that are each well-formed."""
    gpus, replicas = said.get("gpus", []), said.get("replicas", 1)
    problems = []
    if len(gpus) % replicas:
        problems.append(f"{len(gpus)} gpus cannot be shared evenly by {replicas} replicas")
    first = said.get("port", 1)
    if first + replicas - 1 > 65535:
        problems.append(f"{replicas} ports from {first} on go beyond 65535")
    if gpus and "CUDA_VISIBLE_DEVICES" in said.get("env", {}):
        problems.append("gpus and CUDA_VISIBLE_DEVICES in env say the same: leave one out")
    for flag, reason in _REFUSED.items():
        if has_flag(said.get("args", []), flag):
            problems.append(f"args must not hold {flag}: {reason}")
    return problems


def _is_text(value: Any) -> bool:
    if not isinstance(value, str) or "\0" in value:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which no command line can carry
        return False
    return True


def _is_line(value: Any) -> bool:
    return _is_text(value) and value.isprintable() and value == value.strip() != ""


def _is_list(value: Any, keeps: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and all(map(keeps, value))


def _is_gpu(value: Any) -> bool:
    if isinstance(value, str):
        return bool(re.fullmatch(r"[\w./:-]+", value))
    return type(value) is int and value >= 0


def _is_env(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(name, str) and _VARIABLE.fullmatch(name) and _is_text(text)
        for name, text in value.items()
    )


def _path(where: str, text: str, beside: Path) -> Path:
    try:
        return (beside / Path(text).expanduser()).resolve()
    except RuntimeError as error:  # no such home, or links in a circle
        raise ValueError(f"{where}: {text!r} is no path: {error}") from error


def is_path(model: str) -> bool:
    """Whether a model is named as a folder: by `/`, `./`, `../` or `~` at its beginning."""
    return bool(_PATH.match(model))


def _flag(word: str) -> str:
    """The flag that an argument names, as vLLM reads it: `--no_x.y=z` is `--x`."""
    name = re.split("[=.]", word, maxsplit=1)[0].replace("_", "-")
    return f"--{name.removeprefix('--no-')}" if name.startswith("--no-") else name


def has_flag(args: Sequence[str], flag: str) -> bool:
    """Whether the arguments say anything about a flag."""
    return any(_is_for(word, flag) for word in args)


def _is_for(word: str, flag: str) -> bool:
    # vLLM takes the beginning of a flag for the flag. `--tokenizer` rightly stands for
    # `--tokenizer-revision` too: another tokenizer has other revisions.
    name = _flag(word)
    return name == flag or (len(name) > 3 and name[:2] == "--" and flag.startswith(name))


def flag_value(args: Sequence[str], flag: str) -> str | None:
    """What the last naming of a flag says, as `--flag=value` or as `--flag value`."""
    value = None
    for word, following in zip(args, [*args, None][1:], strict=True):
        if _is_for(word, flag):
            value = word.partition("=")[2] if "=" in word else following
    return value


def turns_on(args: Sequence[str], flag: str) -> bool:
    """Whether the last naming of a switch turns it on."""
    named = [word for word in args if _is_for(word, flag)]
    return bool(named) and not named[-1].startswith(("--no-", "--no_"))
