"""A real `vllm serve` as a context manager: `with serve(model, ...) as url:`.

The settings are the ones that work on a machine without a GPU. vLLM lives in an environment of its
own (tests/vllm_environment/install.sh) and is a program here, never an import.
"""

import http.client
import json
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

HOST = "127.0.0.1"
HEALTHY_WITHIN = 240.0  # seconds; 20 on an idle machine, over 60 on a loaded one
STOPPED_WITHIN = 15.0  # seconds between asking the server to stop and killing it
LOG_LINES = 40

SETTINGS = {
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
}
# xgrammar turns `maxLength` into invalid JSON, and a random model loops on legal white space.
STRUCTURED_OUTPUTS = {"backend": "guidance", "disable_any_whitespace": True}


@contextmanager
def serve(
    model: Path,
    *,
    environment: Path,
    served_name: str,
    port: int | None = None,
    extra: Sequence[str] = (),
    log: Path | None = None,
    healthy_within: float = HEALTHY_WITHIN,
) -> Iterator[str]:
    """Serve `model` and yield the base URL, such as `http://127.0.0.1:41233/v1`.

    The server and all its children are killed when the block ends, however it ends. The log goes to
    `log`, or to a temporary file, and stays there; a failure to start names it.

    Raises:
        RuntimeError: The server died before it was healthy.
        TimeoutError: It was not healthy within `healthy_within` seconds.
    """
    port = port or _free_port()
    log = log or _temporary_log()
    command = _command(model, environment, served_name, port, extra)
    path = f"{environment.absolute() / 'bin'}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    with log.open("wb") as sink:
        server = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            env={**os.environ, **SETTINGS, "PATH": path},
            start_new_session=True,
        )
    try:
        _wait_until_healthy(server, port, log, healthy_within)
        yield f"http://{HOST}:{port}/v1"
    finally:
        _stop(server)


def _command(
    model: Path, environment: Path, served_name: str, port: int, extra: Sequence[str]
) -> list[str]:
    positions = json.loads((model / "config.json").read_text())["max_position_embeddings"]
    return [
        str(environment.absolute() / "bin" / "vllm"),
        "serve",
        str(model.absolute()),
        f"--served-model-name={served_name}",
        f"--host={HOST}",
        f"--port={port}",
        "--enforce-eager",
        "--max-num-seqs=32",
        "--generation-config=vllm",
        # A seeded request whose prompt is read in chunks kills the engine on a CPU ("CPU Generator
        # does not use offset"): read every prompt in one step.
        "--no-enable-chunked-prefill",
        f"--max-num-batched-tokens={positions}",
        "--enable-prefix-caching",
        "--enable-prompt-tokens-details",
        f"--structured-outputs-config={json.dumps(STRUCTURED_OUTPUTS)}",
        *extra,
    ]


def _wait_until_healthy(
    server: subprocess.Popen[bytes], port: int, log: Path, seconds: float
) -> None:
    deadline = time.monotonic() + seconds
    while not _is_healthy(port):
        if server.poll() is not None:
            raise RuntimeError(f"vllm exited with {server.returncode}; {_last_lines(log)}")
        if time.monotonic() > deadline:
            raise TimeoutError(f"vllm was not healthy within {seconds:g} s; {_last_lines(log)}")
        time.sleep(0.25)


def _is_healthy(port: int) -> bool:
    connection = http.client.HTTPConnection(HOST, port, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _stop(server: subprocess.Popen[bytes]) -> None:
    """Ask the process group to stop, kill what is left of it and reap the server."""
    _signal_group(server, signal.SIGTERM)
    try:
        server.wait(STOPPED_WITHIN)
    except subprocess.TimeoutExpired:
        pass
    finally:
        _signal_group(server, signal.SIGKILL)
        server.wait()


def _signal_group(server: subprocess.Popen[bytes], number: signal.Signals) -> None:
    try:
        os.killpg(server.pid, number)  # it leads its own session, so its id is the group's
    except ProcessLookupError:
        return


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


def _temporary_log() -> Path:
    handle, name = tempfile.mkstemp(prefix="vllm-", suffix=".log")
    os.close(handle)
    return Path(name)


def _last_lines(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join([f"the end of {log}:", *lines[-LOG_LINES:]])
