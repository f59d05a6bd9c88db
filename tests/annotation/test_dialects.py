"""The same betas, whichever server or gateway answers."""

import sqlite3
from contextlib import closing

import pytest

from servers.dialects import DIALECTS
from servers.openai_server import serving
from support.harness import SCHEDULE, run, succeed, write_pairs, write_panel

SETTINGS = {
    "litellm": {"model": "openai/scripted"},
    "openrouter": {
        "model": "vendor/scripted", "extra": {"provider": {"require_parameters": True}},
    },
    "tgi": {"structured": "none"},
    "reasoning-gateway": {
        "sampling": {"temperature": 0, "max_completion_tokens": 300},
        "structured": "json_schema_plain",
    },
}  # fmt: skip
"""What a panel must say for a server that departs from the default."""
ASKED = ("ollama", "litellm", "reasoning-gateway")
"""Servers whose lists do not show the model."""


def annotate(folder, dialect, **settings):
    write_pairs(folder / "pairs.jsonl", 5)
    with serving(dialect) as url:
        write_panel(folder / "panel.yaml", url, names=("teacher",), **settings)
        result = run(
            "annotate", "--pairs", folder / "pairs.jsonl", "--panel", folder / "panel.yaml",
            "--store", folder / "run.sqlite", "--patience", 20,
        )  # fmt: skip
    assert "Traceback" not in result.stderr
    return result


def betas(folder):
    out = folder / "betas.parquet"
    succeed("schedule", "--store", folder / "run.sqlite", "--schedule", SCHEDULE, "--out", out)
    return out.read_bytes()


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The betas of the first dialect."""
    folder = tmp_path_factory.mktemp("plain")
    result = annotate(folder, "vllm", model="scripted")
    assert result.returncode == 0, result.stderr
    return betas(folder)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_dialect_gives_the_same_betas(tmp_path, plain, dialect):
    result = annotate(tmp_path, dialect, **{"model": "scripted"} | SETTINGS.get(dialect, {}))
    assert result.returncode == 0, result.stdout + result.stderr
    assert "15 asked for = 15 kept + 0 refused + 0 pending" in result.stdout
    assert ("one question was sent to" in result.stderr) == (dialect in ASKED)
    with closing(sqlite3.connect(tmp_path / "run.sqlite")) as store:
        assert store.execute("SELECT max(attempt), count(*) FROM replies").fetchone() == (0, 15)
    assert betas(tmp_path) == plain


@pytest.mark.parametrize(
    ("dialect", "settings", "advice"),
    [
        ("openrouter", {"model": "vendor/scripted"}, "set structured: json_schema_plain"),
        ("tgi", {}, "set structured: json_schema_plain or json_object or none"),
        ("reasoning-gateway", {}, "write max_completion_tokens in sampling in place"),
        ("reasoning-gateway", {"sampling": {"temperature": 0, "max_completion_tokens": 9}},
         "set structured: json_schema_plain"),
        ("ollama", {"model": "other"}, "does not serve other"),
    ],
)  # fmt: skip
def test_a_panel_without_the_dialects_settings_is_told_which(tmp_path, dialect, settings, advice):
    result = annotate(tmp_path, dialect, **{"model": "scripted", "retries": 0} | settings)
    assert result.returncode == 1
    assert advice in result.stderr
