"""Settings of the vLLM servers that are started for a model (`serve:` in YAML)."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationInfo, field_validator

from sp2dpo.settings import Settings, number, rule, validate

_PATH = re.compile(r"/|~|\.{1,2}(/|$)")  # beginning of a folder; other names are Hub ids
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
    """How to start a model's servers with vLLM, installed in its own environment.

    Attributes:
        environment: Virtual environment with `bin/vllm`.
        model: Folder or id on the Hub that vLLM loads; None for the `model` of the endpoint.
        args: More arguments for `vllm serve`; a flag named here replaces the one set by default.
        gpus: GPUs for `CUDA_VISIBLE_DEVICES`, divided evenly among the replicas; empty for all.
        replicas: Number of servers.
        env: More environment variables.
        port: Port of the first replica; the others use the next ports. None for free ports.
        healthy_within: Timeout until a server has started and loaded the model, in seconds.
        restarts: Largest number of restarts of each replica in a run.
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
        """Path of the `vllm` program."""
        return self.environment / "bin" / "vllm"

    @property
    def gpus_each(self) -> int:
        """Number of GPUs of one replica; 0 if none are named."""
        return len(self.gpus) // self.replicas

    @property
    def host(self) -> str:
        """Host at which the servers are reached."""
        host = flag_value(self.args, "--host")
        # A server can listen at these addresses, but a client should not connect to them.
        return "127.0.0.1" if not host or host in _ANY else host


def _is_text(value: Any) -> bool:
    # A NUL would end an argument or an environment variable.
    if not isinstance(value, str) or "\0" in value:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which no command line can carry
        return False
    return True


def _is_line(value: Any) -> bool:
    return _is_text(value) and value.isprintable() and value == value.strip() != ""


def _is_list(value: Any, is_valid: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and all(map(is_valid, value))


def _is_gpu(value: Any) -> bool:
    if isinstance(value, str):
        return bool(re.fullmatch(r"[\w./:-]+", value))
    return type(value) is int and value >= 0


def _is_env(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(name, str) and _VARIABLE.fullmatch(name) and _is_text(text)
        for name, text in value.items()
    )


_MODEL = rule(
    lambda value: _is_line(value) and value[0] != "-",
    "a path or an id on the Hub",
    type="string",
    minLength=1,
)
_ARGS = rule(
    lambda value: _is_list(value, _is_text),
    "a list of texts (quote numbers)",
    type="array",
    items={"type": "string"},
)
_GPUS = rule(
    lambda value: (
        _is_list(value, _is_gpu) and value != [] and len({*map(str, value)}) == len(value)
    ),
    "a list of numbers or ids of GPUs, each once",
    type="array",
    items={"anyOf": [{"type": "integer", "minimum": 0}, {"type": "string"}]},
    minItems=1,
    uniqueItems=True,
)
_ENV = rule(
    _is_env,
    "names of environment variables with texts (quote numbers)",
    type="object",
    additionalProperties={"type": "string"},
)
_SECONDS = rule(
    lambda value: type(value) in (int, float) and 0 < value < math.inf,
    "a number of seconds above 0",
    type="number",
    exclusiveMinimum=0,
)
_PORT = rule(
    lambda value: type(value) is int and 0 < value < 65536,
    "a number from 1 to 65535",
    type="integer",
    minimum=1,
    maximum=65535,
)


class ServeConfig(Settings):
    """How to start the model's servers: vLLM, installed in an environment of its own."""

    # Any, because the validator below turns the text into a Path.
    environment: Annotated[Any, rule(_is_line, "a path", type="string", minLength=1)]
    """Virtual environment with bin/vllm; a relative path starts from this file's folder."""
    model: Annotated[str | None, _MODEL] = None
    """What vLLM loads, a folder or an id on the Hub; by default the model of the endpoint."""
    args: Annotated[list[str], _ARGS] = Field(default_factory=list)
    """More arguments for `vllm serve`. A flag named here replaces the one set by default."""
    gpus: Annotated[list[int | str], _GPUS] = Field(default_factory=list)
    """GPUs by number or id, shared evenly by the replicas; by default all."""
    replicas: Annotated[int, number(least=1, integer=True)] = Serve.replicas
    """Number of servers."""
    env: Annotated[dict[str, str], _ENV] = Field(default_factory=dict)
    """More environment variables."""
    port: Annotated[int | None, _PORT] = None
    """Port of the first replica, the others use the following ones; by default free ports."""
    healthy_within: Annotated[float, _SECONDS] = Serve.healthy_within
    """Seconds that a server may take to start and load."""
    restarts: Annotated[int, number(least=0, integer=True)] = Serve.restarts
    """Restarts of each replica in a run, at most."""

    @field_validator("environment")
    @classmethod
    def _resolve_environment(cls, environment: str, info: ValidationInfo) -> Path:
        return _path(environment, info)

    @field_validator("model")
    @classmethod
    def _resolve_folder(cls, model: str, info: ValidationInfo) -> str:
        return str(_path(model, info)) if is_path(model) else model

    @field_validator("args")
    @classmethod
    def _set_no_flag_of_ours(cls, args: list[str]) -> list[str]:
        problems = [
            f"must not hold {flag}: {reason}"
            for flag, reason in _REFUSED.items()
            if has_flag(args, flag)
        ]
        if problems:
            raise ValueError("; ".join(problems))
        return args

    @field_validator("replicas")
    @classmethod
    def _share_gpus_evenly(cls, replicas: int, info: ValidationInfo) -> int:
        # pydantic validates keys in the order of the class; `data` lacks those that were not valid.
        gpus = info.data.get("gpus", [])
        if len(gpus) % replicas:
            raise ValueError(f"{len(gpus)} gpus cannot be shared evenly by {replicas} replicas")
        # Ports that are chosen later must exist, too.
        _check_last_port(1, replicas)
        return replicas

    @field_validator("env")
    @classmethod
    def _name_gpus_once(cls, env: dict[str, str], info: ValidationInfo) -> dict[str, str]:
        if info.data.get("gpus") and "CUDA_VISIBLE_DEVICES" in env:
            raise ValueError("CUDA_VISIBLE_DEVICES and gpus set the same: remove one of them")
        return env

    @field_validator("port")
    @classmethod
    def _leave_ports_for_all(cls, port: int, info: ValidationInfo) -> int:
        _check_last_port(port, info.data.get("replicas", 1))
        return port

    def build(self) -> Serve:
        """Return these settings as `Serve`, with absolute paths."""
        return Serve(
            environment=self.environment,
            model=self.model,
            args=tuple(self.args),
            gpus=tuple(map(str, self.gpus)),
            replicas=self.replicas,
            env=self.env,
            port=self.port,
            healthy_within=self.healthy_within,
            restarts=self.restarts,
        )


def parse_serve(config: Any, *, where: str, beside: Path) -> Serve:
    """Check the `serve` mapping of a YAML file and return it as settings of servers.

    Args:
        config: The mapping of the YAML file.
        where: File and key, for messages.
        beside: Folder that relative paths start from.

    Raises:
        ValueError: With every problem: key, rule and value.
    """
    return validate(ServeConfig, config, where=where, beside=beside).build()


def _check_last_port(first_port: int, replicas: int) -> None:
    if first_port + replicas - 1 > 65535:
        raise ValueError(f"{replicas} ports from {first_port} on go beyond 65535")


def _path(text: str, info: ValidationInfo) -> Path:
    beside = (info.context or {}).get("beside") or Path()
    try:
        return (beside / Path(text).expanduser()).resolve()
    except RuntimeError as error:  # unknown home directory, or a cycle of links
        raise ValueError(f"{text!r} is not a path: {error}") from error


def is_path(model: str) -> bool:
    """Return whether a model is given as a path: it begins with `/`, `./`, `../` or `~`."""
    return bool(_PATH.match(model))


def _flag(argument: str) -> str:
    """Return the flag in an argument, as vLLM reads it: `--no_x.y=z` is `--x`."""
    name = re.split("[=.]", argument, maxsplit=1)[0].replace("_", "-")
    return f"--{name.removeprefix('--no-')}" if name.startswith("--no-") else name


def has_flag(args: Sequence[str], flag: str) -> bool:
    """Return whether the arguments contain a flag."""
    return any(_is_for(argument, flag) for argument in args)


def _is_for(argument: str, flag: str) -> bool:
    # vLLM accepts unique prefixes of flags. That `--tokenizer` also counts as
    # `--tokenizer-revision` is intended: another tokenizer has other revisions.
    name = _flag(argument)
    return name == flag or (len(name) > 3 and name[:2] == "--" and flag.startswith(name))


def flag_value(args: Sequence[str], flag: str) -> str | None:
    """Return the value of a flag's last occurrence, as `--flag=value` or `--flag value`."""
    value = None
    for argument, following in zip(args, [*args, None][1:], strict=True):
        if _is_for(argument, flag):
            value = argument.partition("=")[2] if "=" in argument else following
    return value


def turns_on(args: Sequence[str], flag: str) -> bool:
    """Return whether a switch's last occurrence turns it on."""
    occurrences = [argument for argument in args if _is_for(argument, flag)]
    return bool(occurrences) and not occurrences[-1].startswith(("--no-", "--no_"))
