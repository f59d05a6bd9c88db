"""The recipes that the package carries: listed, shown and copied."""

import shutil

import pytest

from sp2dpo.recipes import find_recipe, list_recipes
from support.harness import ROOT, fail, succeed

RECIPES = ROOT / "recipes"


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_every_recipe_is_listed_with_what_it_says_of_itself():
    lines = succeed("recipes").splitlines()
    listed = {line.split()[0]: line.partition("  ")[2].strip() for line in lines if "  " in line}
    files = {
        path.relative_to(RECIPES).as_posix().removesuffix(".yaml")
        for path in RECIPES.rglob("*")
        if path.suffix in (".yaml", ".sh", ".py", ".jsonl") and "study" not in path.parts
    }
    assert listed.keys() == files | {"demo/dataset"}
    assert all(listed.values())
    assert listed["dpo/tiny-demo"].startswith("The demo: train a tiny random model on")
    assert listed["train.py"].startswith("Train one model with one beta per pair")
    assert listed["panels/one-teacher"] == "One open teacher on a running vLLM server."
    assert listed["demo/pairs.jsonl"] == "96 rows"


@pytest.mark.parametrize(
    "name", ["dpo/tiny-demo", "dpo/tiny-demo.yaml", "recipes/dpo/tiny-demo.yaml", "./dpo/tiny-demo"]
)
def test_a_recipe_is_named_as_a_file_or_without_its_suffix(name):
    assert find_recipe(name).path == RECIPES / "dpo" / "tiny-demo.yaml"
    assert succeed("recipes", "show", name) == (RECIPES / "dpo" / "tiny-demo.yaml").read_text()


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("dpo/tinydemo", "did you mean 'dpo/tiny-demo'?"),
        ("tuned-beta", "did you mean 'dpo/methods/tuned-beta'?"),
        ("dpo", "'dpo' is a folder of recipes"),
        ("../../etc/passwd", "`sp2dpo recipes` lists them"),
    ],
)
def test_an_unknown_recipe_gets_a_hint(name, hint):
    error = fail("recipes", "show", name)
    assert hint in error
    assert len(error.splitlines()) == 1


def test_recipes_are_copied_to_their_places(tmp_path):
    output = succeed("recipes", "copy", "dpo", "demo/dataset", "rubrics/semantic-gap")
    assert "wrote recipes/dpo/tiny-demo.yaml" in output
    copied = {path.relative_to("recipes") for path in map(type(tmp_path), output.split()[1::2])}
    expected = {path.relative_to(RECIPES) for path in (RECIPES / "dpo").rglob("*.*")}
    inspector = ROOT / "spaces" / "inspector" / "demo"
    dataset = type(tmp_path)("demo", "dataset")
    expected |= {dataset / path.relative_to(inspector) for path in inspector.rglob("*.*")}
    assert copied == expected | {type(tmp_path)("rubrics", "semantic-gap.yaml")}
    for path in copied:
        target = tmp_path / "recipes" / path
        assert target.is_file()
        assert not target.is_symlink()
    assert (tmp_path / "recipes" / "dpo" / "slurm.sh").stat().st_mode & 0o100


def test_a_changed_copy_is_replaced_by_force_alone(tmp_path):
    folder = tmp_path / "my recipes"
    succeed("recipes", "copy", "dpo/methods", "--to", folder)
    mine = folder / "dpo" / "methods" / "sp2dpo.yaml"
    mine.write_text("seed: 7\n")
    shutil.rmtree(folder / "dpo" / "adapters", ignore_errors=True)
    error = fail("recipes", "copy", "dpo", "--to", folder)
    assert f"{mine} exists and differs from the recipe: nothing was copied; give --force" in error
    assert not (folder / "dpo" / "adapters").exists()
    assert mine.read_text() == "seed: 7\n"
    output = succeed("recipes", "copy", "dpo/methods", "--to", folder, "--force")
    assert output.splitlines()[0] == f"wrote {mine}"
    assert "files up to date" in output
    assert mine.read_text() == (RECIPES / "dpo" / "methods" / "sp2dpo.yaml").read_text()


def test_the_names_of_recipes_are_unique():
    names = [recipe.name for recipe in list_recipes()]
    assert len(set(names)) == len(names)
