"""Options, prompts and output that several commands share."""

import math
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from click.decorators import FC

    from sp2dpo.annotation.run import AnnotationResult
    from sp2dpo.inference.endpoint import Endpoint
    from sp2dpo.store.questions import Shard


def find_yaml(name: str, folder: str, *, option: str, program: str) -> Path:
    """Return the path of a YAML file that is named by its path or as a recipe.

    A line on stderr says which recipe it is.

    Args:
        name: The path, or the name of a recipe.
        folder: Folder of the recipes that are meant, such as `dpo`, for a hint.
        option: Name of the option, for messages.
        program: Name of the program, for messages.

    Raises:
        ValueError: If it is a folder, or there is neither a file nor a recipe of this name.
    """
    path = Path(name)
    if path.exists() and not path.is_dir():  # also a pipe, as of `<(...)`
        return path
    from sp2dpo.recipes import find_recipe, recipe_hint

    recipe = find_recipe(name)
    if recipe is not None and recipe.path.is_file():
        print_lines([f"{program}: {option} {name} is the recipe {recipe.path}"], err=True)
        return recipe.path
    if path.is_dir():
        raise ValueError(f"{option} {name} is a folder: name a YAML file in it")
    raise ValueError(
        f"{option} {name}: there is no such file, and no such recipe{recipe_hint(name, folder)}"
    )


class YamlType(click.ParamType):
    """A YAML file, by its path or as the name of a recipe.

    Args:
        folder: Folder of the recipes that are meant, such as `panels`, for a hint.
    """

    name = "FILE_OR_RECIPE"

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def convert(
        self, value: str | Path, param: click.Parameter | None, ctx: click.Context | None
    ) -> Path:
        """Return the path; raise ValueError if there is neither a file nor a recipe."""
        if isinstance(value, Path):
            return value
        option = ""
        if param is not None:
            is_option = isinstance(param, click.Option)
            option = param.opts[0] if is_option else param.metavar or param.human_readable_name
        program = ctx.command_path if ctx else "sp2dpo"
        return find_yaml(value, self._folder, option=option, program=program)


FILE = click.Path(path_type=Path, dir_okay=False)
PANEL_FILE, SCHEDULE_FILE, EVALUATION_FILE = map(YamlType, ("panels", "schedules", "evaluate"))
FOLDER = click.Path(path_type=Path, file_okay=False)
STORE = click.option(
    "--store", "store_file", type=FILE, required=True, help="Store written by `annotate`."
)
RUN_STORE = click.option(
    "--store", "store_file", type=FILE, required=True, help="Store to write the replies to."
)
BETAS = click.option(
    "--betas", "betas_file", type=FILE, required=True, help="Betas written by `schedule`."
)
PAIRS = click.option(
    "--pairs",
    metavar="P",
    help="Pairs: a .jsonl, .jsonl.gz or .parquet file, or a data set on the Hub, "
    "org/name/config:split@revision with the last three optional.",
)


class ColumnsType(click.ParamType):
    """Columns by role, written as `ROLE=COLUMN,ROLE=COLUMN`."""

    name = "ROLE=COLUMN,..."

    def convert(
        self,
        value: str | dict[str, str],
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> dict[str, str]:
        """Parse the columns."""
        from sp2dpo.pairs.reading import Reading, parse_columns

        if isinstance(value, dict):
            return value
        try:
            return dict(Reading(columns=parse_columns(value)).columns)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def _merge_columns(
    context: click.Context, parameter: click.Parameter, values: tuple[dict[str, str], ...]
) -> dict[str, str]:
    columns: dict[str, str] = {}
    for value in values:
        twice = columns.keys() & value.keys()
        if twice:
            raise click.UsageError(f"--columns names {', '.join(sorted(twice))} twice")
        columns |= value
    return columns


COLUMNS = click.option(
    "--columns",
    type=ColumnsType(),
    multiple=True,
    callback=_merge_columns,
    help="Columns of the pairs by role, such as prompt=question,chosen=good,rejected=bad.",
)
PAIRS_FROM = click.option(
    "--pairs-from",
    type=click.Choice(["best-rest", "all"]),
    help="Pairs of a row with several scored responses: the best against each worse one, or all "
    "that differ [default: best-rest].",
)
PANEL = click.option(
    "--panel", "panel_file", type=PANEL_FILE, required=True, help="Panel YAML file."
)
GOLD = click.option(
    "--gold",
    "gold_file",
    type=FILE,
    help="JSON Lines file of pairs whose correct labels are known.",
)
CHOSEN_SCORE = partial(
    click.option,
    "--chosen",
    metavar="COLUMN",
    help="Column with the score of the chosen response.",
)
REJECTED_SCORE = partial(
    click.option,
    "--rejected",
    metavar="COLUMN",
    help="Column with the score of the rejected response.",
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def _check_patience(context: click.Context, parameter: click.Parameter, value: float) -> float:
    if math.isnan(value):  # it passes every comparison with the limits
        raise click.UsageError("--patience must be a number of seconds")
    return value


PATIENCE = click.option(
    "--patience",
    callback=_check_patience,
    type=click.FloatRange(min=0, max=1e6),
    default=900,
    show_default=True,
    help="End the run if a model sends no reply for this many seconds.",
)
SERVE = click.option(
    "--serve", is_flag=True, help="Start the servers described in the YAML without asking first."
)


class KeyUseType(click.ParamType):
    """A use of an API key, written as `VARIABLE=HOST`."""

    name = "VARIABLE=HOST"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Check the form."""
        from sp2dpo.inference.keys import KeyUse

        try:
            return str(KeyUse.parse(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


SEND_KEY = click.option(
    "--send-key",
    "send_keys",
    type=KeyUseType(),
    multiple=True,
    help="Send the API key in this environment variable to this host without asking first, such as "
    "OPENAI_API_KEY=api.openai.com; can be repeated.",
)
RETRY_REFUSED = click.option(
    "--retry-refused",
    is_flag=True,
    help="Request refused (unreadable or failed) replies once more.",
)


def draws_option(default: int) -> "Callable[[FC], FC]":
    """Return the option `--draws`, the number of bootstrap samples, with a command's default."""
    return click.option(
        "--draws",
        type=click.IntRange(min=1, max=100_000),
        default=default,
        show_default=True,
        help="Number of bootstrap samples for the intervals.",
    )


DRAWS = draws_option(1000)


class ShardType(click.ParamType):
    """A shard, written as `I/N`."""

    name = "I/N"

    def convert(
        self, value: str, param: click.Parameter | None, ctx: click.Context | None
    ) -> "Shard":
        """Parse a shard."""
        from sp2dpo.store.questions import Shard

        try:
            return Shard.parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


SHARD = click.option(
    "--shard", type=ShardType(), help="Use only shard I of N of the pairs; I starts at 0."
)


def command_words() -> list[str]:
    """Return the words of the command that the user has given."""
    is_module = Path(sys.argv[0]).name == "__main__.py"
    return [*(["python", "-m", "sp2dpo"] if is_module else ["sp2dpo"]), *sys.argv[1:]]


def print_lines(lines: Sequence[str], *, err: bool = False) -> None:
    """Print lines with control characters escaped."""
    from sp2dpo.text import escape_controls

    for line in lines:
        click.echo(escape_controls(line), err=err)


def print_result(result: Any, lines: Iterable[str], *, as_json: bool) -> None:
    """Print a result as JSON or as lines."""
    from sp2dpo.text import format_json

    if as_json:
        click.echo(format_json(result))
    else:
        print_lines(list(lines))


def annotation_callbacks(*, serve: bool) -> dict[str, Any]:
    """Return the arguments of `annotate_pairs` that print to the terminal and ask at it.

    Args:
        serve: Whether to start the servers of the panel without asking.
    """
    from sp2dpo.annotation.run import do_nothing
    from sp2dpo.cli.progress import print_above_bars, reply_bar
    from sp2dpo.store.counts import reply_count_lines

    def print_counts(result: "AnnotationResult") -> None:
        print_lines(reply_count_lines(result.teachers))
        if not any(counts.all for counts in result.teachers):
            print_lines([f"no pair falls into the shard {result.shard}"])

    return {
        "approve": do_nothing if serve else confirm_serve,
        "progress": reply_bar,
        "report": print_above_bars,
        "on_result": print_counts,
    }


def confirm_keys(endpoints: "Sequence[Endpoint]", send_keys: Sequence[str]) -> tuple[str, ...]:
    """Ask at the terminal before a YAML file has an API key sent to another machine.

    Args:
        endpoints: Models of the YAML files.
        send_keys: Uses that are allowed on the command line.

    Returns:
        The allowed uses, remembered ones aside. Without a terminal, those of the command line:
        sending any other key is an error of the function that is called with them.

    Raises:
        ValueError: The user declines.
    """
    from sp2dpo.inference.keys import key_uses, refusal, remember_keys, remembered_keys

    allowed = list(send_keys)
    needed = {use: endpoint for endpoint in endpoints for use in key_uses(endpoint)}
    if all(str(use) in allowed for use in needed) or not sys.stdin.isatty():
        return tuple(allowed)
    known, confirmed = remembered_keys(), []
    for use, endpoint in needed.items():
        if use in known or str(use) in allowed or use.host.startswith("http://"):
            continue
        endpoint.api_key()  # one that is not set is an error of its own
        print_lines([f"{endpoint.label} gets the API key in {use.variable}, at {use.host}"])
        if not click.confirm("Send this key to this host?"):
            raise ValueError(refusal(endpoint, use))
        confirmed.append(use)
    if confirmed:
        try:
            path = remember_keys(confirmed)
        except OSError as error:
            print_lines([f"the answer cannot be remembered: {error}"])
        else:
            print_lines([f"remembered in {path}"] if path else [])
    return (*allowed, *map(str, confirmed))


def confirm_serve(endpoint: "Endpoint") -> None:
    """Ask before the servers of a YAML file, which somebody else may have written, are started.

    Raises:
        ValueError: The user declines, or there is no terminal to ask at.
    """
    from sp2dpo.inference.vllm import command_lines, serve_warnings
    from sp2dpo.text import shell_lines

    if endpoint.serve is None:
        return
    commands = command_lines(endpoint.model, endpoint.revision, endpoint.serve)
    lines = [part for command in commands for part in shell_lines(command)]
    print_lines([f"{endpoint.label} would be served by:", *(f"  {line}" for line in lines)])
    print_lines([f"  WARNING: {warning}" for warning in serve_warnings(endpoint.serve)])
    # Without a terminal, the first line of whatever is piped in would count as the answer.
    if not (sys.stdin.isatty() and click.confirm("Run this?")):
        raise ValueError(
            f"{endpoint.label}: a command in a file runs only after confirmation; give --serve if "
            "you trust this file"
        )
