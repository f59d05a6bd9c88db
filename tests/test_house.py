"""The order of the packages: each imports only from the rows below its own."""

import ast
import re
from pathlib import Path

import pytest

import sp2dpo.training
from support.harness import ROOT

PACKAGE = ROOT / "toolkit" / "sp2dpo"
GROUND = {
    "text", "settings", "files", "hub", "interrupts", "replacement", "batches", "listing", "tables",
    "recipes", "yaml_files",
}  # fmt: skip
ORDER = [
    {"pairs", "inference"},
    {"panel", "training"},
    {"store"},
    {"betas"},
    {"annotation", "diagnostics"},
    {"report"},
    {"dataset", "evaluation"},
    {"cli"},
]
HEAVY = {"torch", "trl", "transformers", "peft", "accelerate", "deepspeed", "gradio", "vllm"}
FILES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


def imported(path):
    """Every absolute import of a file, wherever it is made, as `package.module.name`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("file", FILES, ids=str)
def test_imports_point_down_and_torch_stays_in_training(file):
    room = file.parts[0].removesuffix(".py")
    names = set(imported(PACKAGE / file))
    used = {name.split(".")[1] for name in names if name.startswith("sp2dpo.")} - {"__version__"}
    if room in GROUND:
        assert used <= GROUND
    elif room not in ("__init__", "__main__"):  # these lead to every package
        row = next(number for number, rooms in enumerate(ORDER) if room in rooms)
        assert used <= GROUND.union(*ORDER[:row], {room})
    if room != "training" and file != Path("evaluation", "local_model.py"):
        assert {name.split(".")[0] for name in names}.isdisjoint(HEAVY)


RECIPES = sorted(path.relative_to(ROOT) for path in ROOT.glob("recipes/**/*.py"))


@pytest.mark.parametrize("file", RECIPES, ids=str)
def test_a_recipe_imports_the_public_api_alone(file):
    public = {f"sp2dpo.{name}" for name in sp2dpo.__all__}
    public |= {f"sp2dpo.training.{name}" for name in sp2dpo.training.__all__}
    page = (ROOT / "docs" / "python.md").read_text()
    public |= set(re.findall(r"`(sp2dpo\.(?:settings|files|yaml_files)\.\w+)`", page))
    assert {name for name in imported(ROOT / file) if name.startswith("sp2dpo.")} <= public


def test_nothing_imports_vllm():
    for folder in ("toolkit", "recipes", "spaces"):
        for path in (ROOT / folder).rglob("*.py"):
            assert "vllm" not in {name.split(".")[0] for name in imported(path)}, path
