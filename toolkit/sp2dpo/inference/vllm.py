"""Build the command and environment variables of a vLLM server, and format them for the user."""

import json
import os
import re
import shlex
from collections.abc import Mapping

from sp2dpo.inference.serve import Serve, flag_value, has_flag, is_path, turns_on

_SECRET = re.compile(r"TOKEN|KEY|SECRET|PASSWORD", re.IGNORECASE)
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_PARALLEL = (
    *("--tensor-parallel-size", "--pipeline-parallel-size", "--data-parallel-size"),
    *("-tp", "-pp", "-dp"),
)
# vLLM's xgrammar backend produces invalid JSON for `maxLength`, and small models repeat optional
# white space until the token limit.
_STRUCTURED_OUTPUTS = {"backend": "guidance", "disable_any_whitespace": True}


def vllm_command(model: str, revision: str | None, serve: Serve, *, port: int) -> list[str]:
    """Return the command that serves a model.

    Args:
        model: Name of the served model, and the model to load unless `serve.model` is set.
        revision: Commit of the weights; passed to vLLM if they come from the Hub.
        serve: Settings of the servers.
        port: Port of this replica.

    Raises:
        ValueError: If the model begins with a dash, like a flag.
    """
    loaded = serve.model or model
    if loaded.startswith("-"):
        raise ValueError(f"model {loaded!r} must not begin with a dash")
    defaults = {
        "--served-model-name": model,
        # vLLM's API key does not protect all endpoints: do not expose the server to other machines.
        "--host": "127.0.0.1",
        "--port": str(port),
        # Otherwise the model's generation_config.json would change the sampling.
        "--generation-config": "vllm",
        "--structured-outputs-config": json.dumps(_STRUCTURED_OUTPUTS, separators=(",", ":")),
        "--enable-prefix-caching": None,
        # Without it, replies do not count cached prompt tokens.
        "--enable-prompt-tokens-details": None,
    }
    if revision is not None and not is_path(loaded):
        defaults |= {"--revision": revision, "--tokenizer-revision": revision}
    if serve.gpus_each > 1 and not any(has_flag(serve.args, flag) for flag in _PARALLEL):
        defaults["--tensor-parallel-size"] = str(serve.gpus_each)
    flags = [
        # Joined by =, so that a model name with a dash in front is not read as a flag.
        flag if value is None else f"{flag}={value}"
        for flag, value in defaults.items()
        if not has_flag(serve.args, flag)
    ]
    return [str(serve.program), "serve", loaded, *flags, *serve.args]


def environment_variables(
    inherited: Mapping[str, str], serve: Serve, *, replica: int
) -> dict[str, str]:
    """Return a replica's environment: inherited variables, then ours, then the panel's."""
    # As in an activated environment.
    path = f"{serve.environment / 'bin'}{os.pathsep}{inherited.get('PATH', os.defpath)}"
    return {**inherited, "PATH": path, **_own_variables(serve, replica)}


def _own_variables(serve: Serve, replica: int) -> dict[str, str]:
    # Otherwise vLLM reports usage statistics.
    variables = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    if serve.gpus:
        first = replica * serve.gpus_each
        variables["CUDA_VISIBLE_DEVICES"] = ",".join(serve.gpus[first : first + serve.gpus_each])
    return {**variables, **serve.env}


def command_lines(
    model: str, revision: str | None, serve: Serve, *, ports: tuple[int, ...] | None = None
) -> list[str]:
    """Return one shell command per replica to show to the user, with secret variables hidden.

    Args:
        model: Model to serve.
        revision: Commit of its weights.
        serve: Settings of the servers.
        ports: Ports of the replicas; None for those of `serve`, shown as PORT if not chosen yet.
    """
    lines = []
    for replica in range(serve.replicas):
        variables = {
            name: "(hidden)" if _SECRET.search(name) else text
            for name, text in _own_variables(serve, replica).items()
        }
        assignments = [f"{name}={shlex.quote(text)}" for name, text in variables.items()]
        assignments.insert(0, f'PATH={shlex.quote(str(serve.environment / "bin"))}:"$PATH"')
        words = _replica_command(model, revision, serve, replica, ports)
        lines.append(f"{' '.join(assignments)} {shlex.join(words)}")
    return lines


def _replica_command(
    model: str, revision: str | None, serve: Serve, replica: int, ports: tuple[int, ...] | None
) -> list[str]:
    if ports is None and serve.port is None:
        words = vllm_command(model, revision, serve, port=0)
        return ["--port=PORT" if word == "--port=0" else word for word in words]
    port = ports[replica] if ports else (serve.port or 0) + replica
    return vllm_command(model, revision, serve, port=port)


def serve_warnings(serve: Serve) -> list[str]:
    """Return warnings about settings that are a security risk or hide other settings."""
    messages = []
    if has_flag(serve.args, "--trust-remote-code") and turns_on(serve.args, "--trust-remote-code"):
        messages.append("--trust-remote-code runs code that comes with the model, as you")
    host = flag_value(serve.args, "--host")
    if host is not None and host not in _LOOPBACK:
        messages.append(f"--host {host!r} offers the server to other computers, without a password")
    if has_flag(serve.args, "--config"):
        messages.append("--config reads more settings from a file that is not shown here")
    if has_flag(serve.args, "-sc") or any(word.startswith("--spec") for word in serve.args):
        messages.append(
            "speculative decoding together with structured output cuts replies off or fails in "
            "several versions of vLLM: leave it off for teachers"
        )
    return messages
