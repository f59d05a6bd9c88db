"""The command `recipes`."""

from pathlib import Path

import click

from sp2dpo.cli.options import FOLDER, print_lines


@click.group(invoke_without_command=True)
@click.pass_context
def recipes(context: click.Context) -> None:
    """List, show and copy the recipes: configurations, scripts, demo data.

    `sp2dpo train --config` and its relatives take their names in place of a file; to change one,
    copy it.
    """
    if context.invoked_subcommand is not None:
        return
    from sp2dpo.recipes import list_recipes, recipes_folder

    listed = list_recipes()
    width = max(len(recipe.name) for recipe in listed)
    lines = [f"{recipe.name:<{width}}  {recipe.summary()}".rstrip() for recipe in listed]
    print_lines([*lines, "", f"They are in {recipes_folder()}; `sp2dpo recipes copy` copies them."])


@recipes.command()
@click.argument("name")
def show(name: str) -> None:
    """Print a recipe."""
    from sp2dpo.recipes import find_recipe, recipe_hint

    recipe = find_recipe(name)
    if recipe is None or recipe.path.is_dir():
        raise ValueError(f"no recipe is called {name!r}{recipe_hint(name)}")
    print_lines(recipe.path.read_text(encoding="utf-8").splitlines())


@recipes.command()
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@click.option(
    "--to",
    "folder",
    type=FOLDER,
    default=Path("recipes"),
    show_default=True,
    help="Folder to copy to.",
)
@click.option("--force", is_flag=True, help="Replace files that differ.")
def copy(names: tuple[str, ...], folder: Path, force: bool) -> None:
    """Copy recipes, or folders of recipes such as `dpo`, to a folder of your own.

    Nothing is copied if a file exists that differs, unless --force is given.
    """
    from sp2dpo.recipes import copy_recipes
    from sp2dpo.text import count_noun

    copied = copy_recipes(names, folder, force=force)
    lines = [f"wrote {path}" for path in copied.written]
    if copied.unchanged:
        lines.append(f"{count_noun(len(copied.unchanged), 'file')} up to date")
    print_lines(lines)
