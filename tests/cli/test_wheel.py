"""The wheel carries the inspector and the recipes, and trains in an empty folder."""

import json
import os
import subprocess
import sys
import zipfile

import pytest

from sp2dpo.recipes import list_recipes
from support.harness import ROOT

pytestmark = pytest.mark.slow
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [*PIP, "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run(command, check=True)
    (path,) = folder.glob("*.whl")
    return path


def files_in(wheel, folder):
    names = zipfile.ZipFile(wheel).namelist()
    return {name.removeprefix(folder) for name in names if name.startswith(folder)}


def test_the_wheel_carries_the_inspector_and_the_recipes(wheel):
    inspector = ROOT / "spaces" / "inspector"
    expected = {
        path.relative_to(inspector).as_posix()
        for path in inspector.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert files_in(wheel, "sp2dpo/inspector/") == expected
    # The data set of the demo is the inspector's.
    recipes = {recipe.relative.as_posix() for recipe in list_recipes() if recipe.path.is_file()}
    assert files_in(wheel, "sp2dpo/recipe_files/") == recipes


def test_the_wheel_trains_in_an_empty_folder(wheel, tmp_path, tiny_student):
    site, folder = tmp_path / "site", tmp_path / "an empty folder"
    folder.mkdir()
    zipfile.ZipFile(wheel).extractall(site)  # as pip does, without its seconds

    def run(*words):
        result = subprocess.run(
            [sys.executable, "-m", "sp2dpo", *map(str, words)],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(site)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        return result

    run("recipes", "copy", "demo/dataset", "--to", ".")
    trained = run(
        "train", "--config", "dpo/tiny-demo", "--model_name_or_path", tiny_student, "--engine",
        "single", "--max_steps", 1, "--eval_strategy", "no",
    )  # fmt: skip
    carried = site / "sp2dpo" / "recipe_files" / "dpo" / "tiny-demo.yaml"
    assert f"--config dpo/tiny-demo is the recipe {carried}" in trained.stderr
    results = json.loads((folder / "demo" / "students" / "per-pair" / "results.json").read_text())
    assert results["dataset"] == "dataset"
