"""The command line. A command is imported when it is used, so that help is instant."""

import io
import os
import shlex
import signal
import sqlite3
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import click

from sp2dpo import __version__
from sp2dpo.interrupts import Interrupted, end_at_next_signal, raise_on_signals

# click would join these lines into one paragraph; \b at its beginning forbids that.
_PATH = """\b
sp2dpo annotate --pairs pairs.jsonl --panel panel.yaml --store run.sqlite
sp2dpo schedule --store run.sqlite --schedule schedule.yaml --out betas.parquet
sp2dpo build    --store run.sqlite --betas betas.parquet --out dataset/
sp2dpo report   --store run.sqlite --betas betas.parquet --out report.html
"""


_COMMANDS = {
    "pilot": (
        "report",
        "Try a panel on a sample: estimate quality, time and cost.",
    ),
    "status": (
        "report",
        "Show the progress, cost and remaining time of an annotation run.",
    ),
    "annotate": (
        "annotation",
        "Annotate pairs with a panel of teacher models.",
    ),
    "serve": (
        "annotation",
        "Run the vLLM server of one teacher until interrupted.",
    ),
    "export-requests": (
        "annotation",
        "Write requests for missing replies to batch files.",
    ),
    "import-replies": (
        "annotation",
        "Store the replies to exported requests.",
    ),
    "import-scores": (
        "annotation",
        "Store a data set's own scores as the replies of a teacher.",
    ),
    "export-gold": (
        "diagnostics",
        "Write a gold file from scores beside the labels.",
    ),
    "merge": (
        "annotation",
        "Merge the stores of several shards into one.",
    ),
    "schedule": (
        "betas",
        "Compute one beta per pair from the replies.",
    ),
    "explain": (
        "betas",
        "Show how the beta of a pair was computed.",
    ),
    "agreement": (
        "diagnostics",
        "Measure the agreement of teachers and of prompt variants.",
    ),
    "estimators": (
        "diagnostics",
        "Compare the betas of every estimator, gap form and map.",
    ),
    "compare": (
        "diagnostics",
        "Compare two files of betas.",
    ),
    "audit": (
        "diagnostics",
        "Check replies and betas for common problems.",
    ),
    "gold-size": (
        "diagnostics",
        "Compute how many known labels a pilot needs.",
    ),
    "score": (
        "training",
        "Score every pair with a reward model, for MADPO and ODPO.",
    ),
    "train": (
        "training",
        "Train a model with one beta per pair.",
    ),
    "reward": (
        "training",
        "Train a reward model on all prompts but those of one fold.",
    ),
    "sweep": (
        "training",
        "Train a model with several settings and compare them.",
    ),
    "recipes": (
        "recipes",
        "List, show and copy the recipes: configurations, scripts, demo data.",
    ),
    "build": (
        "dataset",
        "Build a data set with betas and all replies.",
    ),
    "publish": (
        "dataset",
        "Publish a data set on the Hugging Face Hub.",
    ),
    "verify": (
        "dataset",
        "Recompute every hash and every beta of a data set.",
    ),
    "space": (
        "space",
        "Inspect pairs, betas and replies in a browser.",
    ),
    "evaluate": (
        "evaluation",
        "Evaluate trained models with AlpacaEval's method.",
    ),
    "report": (
        "report",
        "Write an HTML report and plots of an annotation run.",
    ),
    "schema": (
        "schema",
        "Print the JSON Schema of a type of YAML file.",
    ),
}
"""Commands by name: module in `sp2dpo.cli` and one-line help.

The help is repeated here so that `sp2dpo --help` need not import the commands; a test compares it
with each command's own.
"""


class _LazyGroup(click.Group):
    """A group that imports a command's module when the command is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands."""
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command; return None if there is no command with this name."""
        if cmd_name not in _COMMANDS:
            return None
        module = import_module(f"sp2dpo.cli.{_COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, cmd_name.replace("-", "_"))
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that the arguments name; suggest a similar one if there is none."""
        # click suggests names since 8.4 only, and knows only commands that are imported.
        # `resilient_parsing`: a shell completes the line, and an unfinished word is no error.
        if args[0] not in _COMMANDS and not args[0].startswith("-") and not ctx.resilient_parsing:
            from sp2dpo.settings import did_you_mean

            ctx.fail(f"no command is called {args[0]!r}{did_you_mean(args[0], _COMMANDS)}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; raise _ClosedPipe if nobody reads its output, as after `| head`."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            # click would exit with 1, as after an error.
            raise _ClosedPipe from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands; click's own method imports each of them."""
        # The width that click's own method leaves for the help.
        limit = formatter.width - 6 - max(map(len, _COMMANDS))
        rows = [
            (name, click.Command(name, help=_COMMANDS[name][1]).get_short_help_str(limit))
            for name in self.list_commands(ctx)
        ]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


class _ClosedPipe(Exception):
    """Nobody reads the output any more."""


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]}, epilog=_PATH)
@click.version_option(__version__, prog_name="sp2dpo")
# Declared for --help only: `main` takes it out of the arguments before click reads them.
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def cli(debug: bool) -> None:
    """DPO with a separate beta for every preference pair."""


_DAMAGE = ("malformed", "not a database", "decode")
"""Parts of SQLite's messages about a damaged file."""


def main() -> None:
    """Run the command line; print an error as one line, or as a traceback with --debug."""
    debug = "--debug" in sys.argv[1:]  # before or after the command
    # By default, most signals end Python at once, without the clean-up of temporary files.
    received = raise_on_signals()
    try:
        _run(debug, received)
    except Interrupted as stopped:
        _stop(stopped.number)
    except SystemExit:
        raise
    except BaseException:
        # The exception of a signal, or by which a library has replaced it.
        if not received:
            raise
        _stop(received[0])


def _run(debug: bool, received: Sequence[int]) -> None:
    try:
        # In its standalone mode, click prints errors itself, without escaping the names in them.
        words = [word for word in sys.argv[1:] if word != "--debug"]
        cli(words, standalone_mode=False, obj=debug)
        sys.stdout.flush()
    except (_ClosedPipe, BrokenPipeError):
        # The exit status of a program that SIGPIPE ended. What Python has not written yet would
        # fail again when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except click.ClickException as error:
        text = io.StringIO()
        error.show(text)
        click.echo(_escape(text.getvalue()), err=True, nl=False)
        sys.exit(error.exit_code)
    except click.Abort:
        # Also at a prompt whose input has ended.
        _stop(signal.SIGINT)
    except (ValueError, OSError, sqlite3.Error) as error:
        if received:
            raise
        click.echo(_traceback() if debug else f"sp2dpo: {_message(error)}", err=True)
        sys.exit(1)


def _stop(number: int) -> NoReturn:
    """Say which command continues, and exit with the status of a program that a signal ended."""
    end_at_next_signal()
    name = "" if number == signal.SIGINT else f" by {signal.Signals(number).name}"
    module = Path(sys.argv[0]).name == "__main__.py"
    command = shlex.join(["python", "-m", "sp2dpo"] if module else ["sp2dpo"])
    words = " ".join(shlex.quote(word) for word in sys.argv[1:])
    click.echo(
        f"stopped{name}; run the same command again to resume: {command} {_escape(words)}", err=True
    )
    # By convention, 128 + N is the exit status of a program that signal N ended.
    sys.exit(128 + number)


def _message(error: Exception) -> str:
    return _escape(_describe(error))


def _describe(error: Exception) -> str:
    message = str(error)
    if isinstance(error, sqlite3.Error):
        # Damage first: text that is not UTF-8 is an OperationalError, too, but means damage.
        if any(word in message for word in _DAMAGE):
            return (
                f"the store is damaged ({message}): keep it and its -wal file, and copy what can "
                "be read with `sqlite3 FILE .recover`"
            )
        # An OperationalError, such as a full disk or a lock, leaves committed replies intact.
        safe = "; the replies stored so far are safe" * isinstance(error, sqlite3.OperationalError)
        return f"the store cannot be used: {message}{safe}"
    # An OSError with a message of its own, such as EndpointError, has no strerror.
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return message


def _escape(text: str) -> str:
    from sp2dpo.text import escape_controls, redact

    return escape_controls(redact(text))


def _traceback() -> str:
    import traceback

    return _escape(traceback.format_exc().rstrip())
