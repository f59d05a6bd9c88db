"""The command line. Every command imports what it needs when it runs, so that help is instant."""

import io
import signal
import sqlite3
import sys
from types import FrameType

import click

from sp2dpo import __version__
from sp2dpo.cli import annotation, betas, dataset, diagnostics, evaluation, rewards, schema, space
from sp2dpo.cli import report as report_commands
from sp2dpo.interrupts import Interrupted

_PATH = """\b
sp2dpo annotate --pairs pairs.jsonl --panel panel.yaml --store run.sqlite
sp2dpo schedule --store run.sqlite --schedule schedule.yaml --out betas.parquet
sp2dpo build    --store run.sqlite --betas betas.parquet --out dataset/
sp2dpo report   --store run.sqlite --betas betas.parquet --out report.html
"""


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, epilog=_PATH)
@click.version_option(__version__, prog_name="sp2dpo")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def cli(debug: bool) -> None:
    """Preference optimisation with a temperature for every pair."""


for _command in (
    report_commands.pilot,
    report_commands.status,
    annotation.annotate,
    annotation.serve,
    annotation.export_requests,
    annotation.import_replies,
    annotation.merge,
    betas.schedule,
    betas.explain,
    diagnostics.agreement,
    diagnostics.estimators,
    diagnostics.compare,
    diagnostics.audit,
    rewards.score,
    betas.build,
    dataset.publish,
    dataset.verify,
    space.space,
    evaluation.evaluate,
    betas.report,
    schema.schema,
):
    cli.add_command(_command)


_STOPPED = "stopped; the same command goes on from here"
_DAMAGE = ("malformed", "not a database", "decode")
"""Words of SQLite about a file whose bytes are not what it wrote."""


def main() -> None:
    """Runs the command line; an error is one line, never a traceback (but for --debug)."""
    debug = "--debug" in sys.argv[1:]  # wherever it stands
    signal.signal(signal.SIGTERM, _terminate)
    try:
        cli([word for word in sys.argv[1:] if word != "--debug"], standalone_mode=False)
    except click.ClickException as error:
        shown = io.StringIO()
        error.show(shown)
        click.echo(_escape(shown.getvalue()), err=True, nl=False)
        sys.exit(error.exit_code)
    except Interrupted as stopped:
        click.echo(_STOPPED, err=True)
        sys.exit(128 + stopped.number)
    except _Terminated:
        click.echo(_STOPPED, err=True)
        sys.exit(128 + signal.SIGTERM)
    except (click.Abort, KeyboardInterrupt):
        click.echo(_STOPPED, err=True)
        sys.exit(130)
    except (ValueError, OSError, sqlite3.Error) as error:
        click.echo(_traceback() if debug else f"sp2dpo: {_message(error)}", err=True)
        sys.exit(1)


class _Terminated(BaseException):
    """The process was told to end (SIGTERM); as with Ctrl-C, nothing but `main` may catch it."""


def _terminate(number: int, frame: FrameType | None) -> None:
    """While teachers are asked, `interruptible` has handlers of its own in place of this one."""
    raise _Terminated


def _message(error: Exception) -> str:
    return _escape(_describe(error))


def _describe(error: Exception) -> str:
    said = str(error)
    if isinstance(error, sqlite3.Error):
        if any(word in said for word in _DAMAGE):
            return (
                f"the store is damaged ({said}): keep it and its -wal file, and copy what can be "
                "read with `sqlite3 FILE .recover`"
            )
        safe = "; what it has taken before is safe" * isinstance(error, sqlite3.OperationalError)
        return f"the store cannot be used: {said}{safe}"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return said


def _escape(text: str) -> str:
    from sp2dpo.text import escape_controls, redact

    return escape_controls(redact(text))


def _traceback() -> str:
    import traceback

    from sp2dpo.text import redact

    return redact(traceback.format_exc().rstrip())
