"""The recipes: configurations, scripts and demo data that the package carries.

They are the folder `recipes/` of the repository; the wheel contains a copy of it. A recipe is named
by its path in that folder, YAML files without their suffix: `dpo/tiny-demo`, `dpo/slurm.sh`.
"""

import ast
import itertools
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sp2dpo.replacement import atomic_write
from sp2dpo.settings import did_you_mean
from sp2dpo.text import count_noun, shorten

FOLDER = "recipes"
_CARRIED = Path(__file__).with_name("recipe_files")
_CHECKOUT = Path(__file__).parents[2] / FOLDER
_DATASET = "demo/dataset"
"""Name of the demo's data set, which is the one that the inspector starts with."""
_LEFT_OUT = ("study", "README.md", "__pycache__")
"""What the wheel does not carry; the study is reproduced from a checkout."""
_NO_SUMMARY = ("#!", "# JSON Schema for editors:")
_LONGEST_SUMMARY = 100
_KINDS = (".yaml", ".py", ".sh", ".jsonl")


@dataclass(frozen=True)
class Recipe:
    """A file of the recipes, or the demo's data set.

    Attributes:
        name: Its name: the path in the folder of the recipes, of a YAML file without the suffix.
        path: The file, or the folder of the data set.
        relative: The path in the folder of the recipes.
    """

    name: str
    path: Path
    relative: Path

    def files(self) -> list[tuple[Path, Path]]:
        """Return each file, and its path in the folder of the recipes."""
        if self.path.is_file():
            return [(self.path, self.relative)]
        files = sorted(path for path in self.path.rglob("*") if path.is_file())
        return [(path, self.relative / path.relative_to(self.path)) for path in files]

    def summary(self) -> str:
        """Return what the file says of itself in one sentence, or its number of rows."""
        if self.path.is_dir():
            return "The demo's data set, as `sp2dpo build` writes it."
        text = self.path.read_text(encoding="utf-8")
        if self.path.suffix == ".jsonl":
            return count_noun(len(text.splitlines()), "row")
        if self.path.suffix == ".py":
            return (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]
        lines = [line for line in text.splitlines() if not line.startswith(_NO_SUMMARY)]
        head = itertools.takewhile(lambda line: line.startswith("# "), lines)
        comment = " ".join(line.removeprefix("# ") for line in head)
        sentence = re.match(r".*?\.(?=\s|$)", comment)
        return shorten(sentence.group() if sentence else comment, _LONGEST_SUMMARY)


@dataclass(frozen=True)
class CopiedRecipes:
    """The result of `copy_recipes`.

    Attributes:
        written: Paths that were written.
        unchanged: Paths that had the same content before.
    """

    written: tuple[Path, ...]
    unchanged: tuple[Path, ...]


def recipes_folder() -> Path:
    """Return the folder of the recipes: of the installed package, or of the checkout.

    Raises:
        FileNotFoundError: If the package was installed without them.
    """
    # Not both: an editable installation has the checkout, a wheel its own copy.
    for folder in (_CARRIED, _CHECKOUT):
        if (folder / "dpo").is_dir():
            return folder
    raise FileNotFoundError(f"{_CARRIED}: the recipes are not installed: install sp2dpo again")


def list_recipes() -> list[Recipe]:
    """Return all recipes, sorted by name."""
    folder = recipes_folder()
    recipes = []
    for path in folder.rglob("*"):
        relative = path.relative_to(folder)
        if path.suffix in _KINDS and not set(relative.parts).intersection(_LEFT_OUT):
            recipes.append(Recipe(_name(relative), path, relative))
    inspector = folder.parent / ("inspector" if folder == _CARRIED else "spaces/inspector")
    recipes.append(Recipe(_DATASET, inspector / "demo", Path(_DATASET)))
    return sorted(recipes, key=lambda recipe: recipe.name)


def find_recipe(name: str) -> Recipe | None:
    """Return the recipe of a name; None if there is none.

    Args:
        name: With or without the suffix `.yaml`, and with or without `recipes/` before it.
    """
    wanted = _normalise(name)
    return next((recipe for recipe in list_recipes() if recipe.name == wanted), None)


def find_recipes(name: str) -> list[Recipe]:
    """Return the recipe of a name, or all recipes of a folder.

    Raises:
        ValueError: If there is no recipe and no folder of this name.
    """
    wanted, recipes = _normalise(name), list_recipes()
    selected = [recipe for recipe in recipes if wanted in (recipe.name, *_folders(recipe.relative))]
    if not selected:
        raise ValueError(f"no recipe is called {name!r}{recipe_hint(name)}")
    return selected


def recipe_hint(name: str, within: str = "") -> str:
    """Return what to do about an unknown name: the nearest one, and the command that lists all.

    Args:
        name: The unknown name.
        within: Folder whose recipes are meant, such as `dpo`; empty for all.
    """
    names = [recipe.name for recipe in list_recipes() if recipe.name.startswith(within)]
    wanted = _normalise(name)
    # `tiny-demo` stands for dpo/tiny-demo: the last part of a path is what people remember.
    last = [known for known in names if known.rpartition("/")[2] == wanted.rpartition("/")[2]]
    if any(known.startswith(f"{wanted}/") for known in names):
        return f" ({wanted!r} is a folder of recipes; `sp2dpo recipes` lists them)"
    near = f", did you mean {last[0]!r}?" if last else did_you_mean(wanted, names)
    return f"{near} (`sp2dpo recipes` lists them)"


def copy_recipes(names: Sequence[str], folder: Path, *, force: bool = False) -> CopiedRecipes:
    """Copy recipes to a folder, each to its path in the folder of the recipes.

    Args:
        names: Names of recipes, or of folders of recipes.
        folder: Folder to write to; it is created.
        force: Whether to replace files that differ.

    Raises:
        ValueError: If a name is unknown, or a file differs and `force` is false; then nothing is
            written.
        OSError: If a file cannot be written.
    """
    recipes = {recipe.name: recipe for name in names for recipe in find_recipes(name)}
    files = dict(file for recipe in recipes.values() for file in recipe.files())
    targets = {source: folder / relative for source, relative in files.items()}
    unchanged = [
        target
        for source, target in targets.items()
        if target.is_file() and target.read_bytes() == source.read_bytes()
    ]
    changed = {source: target for source, target in targets.items() if target not in set(unchanged)}
    taken = [target for target in changed.values() if target.exists() or target.is_symlink()]
    if taken and not force:
        raise ValueError(
            f"{taken[0]} exists and differs from the recipe"
            + (f", and so do {count_noun(len(taken) - 1, 'other file')}" if taken[1:] else "")
            + ": nothing was copied; give --force to replace it, or --to another folder"
        )
    for source, target in changed.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(target) as unfinished:
            unfinished.write_bytes(source.read_bytes())
            if os.access(source, os.X_OK):
                unfinished.chmod(0o755)
    return CopiedRecipes(written=tuple(changed.values()), unchanged=tuple(unchanged))


def _name(relative: Path) -> str:
    return relative.as_posix().removesuffix(".yaml")


def _normalise(name: str) -> str:
    wanted = Path(name).as_posix().removesuffix(".yaml")
    return wanted.removeprefix(f"{FOLDER}/")


def _folders(relative: Path) -> list[str]:
    return [parent.as_posix() for parent in relative.parents[:-1]]
