"""The command line. Every command imports what it needs when it runs, so that help is instant."""

import math
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sp2dpo import __version__

if TYPE_CHECKING:
    from sp2dpo.annotation_table import AnnotationTable
    from sp2dpo.panel import Panel
    from sp2dpo.schedule import Betas
    from sp2dpo.store import Store

FILE = click.Path(path_type=Path, dir_okay=False)
FOLDER = click.Path(path_type=Path, file_okay=False)


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


@cli.command()
@click.option("--pairs", metavar="P", help="A .jsonl, .jsonl.gz or .parquet file, or a Hub id.")
@click.option("--panel", "panel_file", type=FILE, required=True, help="Whom to ask what.")
@click.option("--store", "store_file", type=FILE, required=True, help="Where replies are kept.")
@click.option(
    "--patience",
    type=click.FloatRange(min=0, max=1e6),
    default=900,
    show_default=True,
    help="Seconds for which a request is tried again while its server is away.",
)
@click.option("--retry-refused", is_flag=True, help="Ask again where a reply was refused.")
def annotate(
    pairs: str | None, panel_file: Path, store_file: Path, patience: float, retry_refused: bool
) -> None:
    """Ask a panel of teachers about every pair.

    Running it again asks only what is missing; --pairs may then be left out.
    """
    from sp2dpo.database import only_writer
    from sp2dpo.panel import load_panel
    from sp2dpo.sources import find, read
    from sp2dpo.store import Store
    from sp2dpo.summary import source_lines

    if math.isnan(patience):
        raise click.UsageError("--patience must be a number of seconds")
    panel = load_panel(panel_file)
    source = find(pairs) if pairs else None
    if source is None and not store_file.exists():
        raise click.UsageError(f"{store_file} does not exist yet: say where the --pairs are")
    with only_writer(store_file):
        fresh = not store_file.exists()
        try:
            with Store(store_file, write=True) as store:
                if source:
                    store.corpus.add(source, read(source))
                _say(source_lines(store.corpus))
                read_in = store.corpus.source()
                if read_in is None or not read_in.pairs:
                    raise ValueError(f"{source or store_file}: no row holds a preference pair")
                store.check(panel)
                fresh = False
                _ask(store, panel, patience=patience, again=retry_refused)
        finally:
            if fresh:  # nothing was taken in: leave no empty store behind
                store_file.unlink(missing_ok=True)


def _say(lines: list[str]) -> None:
    from sp2dpo.terminal import harmless

    for line in lines:
        click.echo(harmless(line))


def _ask(store: "Store", panel: "Panel", *, patience: float, again: bool) -> None:
    import asyncio

    from sp2dpo.annotate import annotate as ask_panel
    from sp2dpo.annotate import tally
    from sp2dpo.progress import bar
    from sp2dpo.summary import tally_lines

    wanted = sum(one.wanted(again) for one in tally(store, panel))
    try:
        if wanted:
            with bar(wanted) as progress:
                asyncio.run(
                    ask_panel(store, panel, patience=patience, again=again, progress=progress)
                )
    finally:
        tallies = tally(store, panel)
        _say(tally_lines(tallies))
    silent = [one.teacher for one in tallies if not one.kept]
    if silent:
        raise ValueError(f"no reply of {', '.join(silent)} could be kept")
    if any(one.pending for one in tallies):
        raise ValueError("some replies are still missing: run the same command again")


@cli.command()
@click.option("--store", "store_file", type=FILE, required=True, help="What `annotate` made.")
@click.option(
    "--schedule", "schedule_file", type=FILE, required=True, help="How gaps become betas."
)
@click.option("--out", type=FILE, required=True, help="The Parquet file to write.")
def schedule(store_file: Path, schedule_file: Path, out: Path) -> None:
    """Turn annotations into one beta for every pair."""
    from sp2dpo.schedule import Betas, betas, load_schedule, write_betas
    from sp2dpo.store import Store

    said = load_schedule(schedule_file)
    with Store(store_file) as store:
        annotations = store.annotations()
    table = betas(annotations, said)
    if not table["has_beta"].any():
        raise ValueError(
            f"no pair has the quorum of {said.quorum} replies, the most is {table['votes'].max()}: "
            "lower `quorum` in the schedule, or ask more"
        )
    write_betas(Betas(table=table, schedule=said, annotations_hash=annotations.hash), out)
    beta = table["beta"].drop_nulls()
    without = len(table) - len(beta)
    click.echo(f"{len(table)} pairs, {without} below the quorum of {said.quorum} replies")
    click.echo(f"beta mean {beta.mean():.4g}, min {beta.min():.4g}, max {beta.max():.4g}")
    click.echo(f"wrote {out}")


@cli.command()
@click.argument("pair_id")
@click.option("--store", "store_file", type=FILE, required=True, help="What `annotate` made.")
@click.option("--betas", "betas_file", type=FILE, required=True, help="What `schedule` made.")
def explain(pair_id: str, store_file: Path, betas_file: Path) -> None:
    """Show how the beta of a pair came about.

    PAIR_ID is the pair's id, its first digits, or the source's own name for it.
    """
    from sp2dpo.explain import explain as lines_of

    with _opened(store_file, betas_file) as (store, made, _):
        pair = store.corpus.pair(pair_id)
        row = made.table.filter(made.table["pair_id"] == pair.id).row(0, named=True)
        lines = lines_of(
            pair,
            list(store.replies(pair.id)),
            row,
            rubric=store.rubric(),
            schedule=made.schedule,
        )
    click.echo("\n".join(lines))


@cli.command()
@click.option("--store", "store_file", type=FILE, required=True, help="What `annotate` made.")
@click.option("--betas", "betas_file", type=FILE, required=True, help="What `schedule` made.")
@click.option("--out", type=FOLDER, required=True, help="The folder to write.")
def build(store_file: Path, betas_file: Path, out: Path) -> None:
    """Make a data set that anybody can load, with betas and all replies."""
    from sp2dpo.dataset import build as build_folder

    with _opened(store_file, betas_file) as (store, made, _):
        rows, replies = build_folder(store, made, out)
    click.echo(f"wrote {out}: {rows} rows, {replies} annotations")


@cli.command()
@click.option("--store", "store_file", type=FILE, required=True, help="What `annotate` made.")
@click.option("--betas", "betas_file", type=FILE, required=True, help="What `schedule` made.")
@click.option("--out", type=FILE, help="The HTML page to write.")
@click.option("--json", "as_json", is_flag=True, help="Print the same as JSON.")
def report(store_file: Path, betas_file: Path, out: Path | None, as_json: bool) -> None:
    """Draw one page that shows the betas, the agreement and what looks wrong."""
    import json

    from sp2dpo.files import refuse_foreign, whole
    from sp2dpo.page import draw, is_report
    from sp2dpo.report import report as report_of

    if out is None and not as_json:
        raise click.UsageError("say --out PAGE.html, --json, or both")
    if out is not None:
        refuse_foreign(out, is_report, "a report")
    with _opened(store_file, betas_file) as (store, made, annotations):
        found = report_of(store, made, annotations)
    if out is not None:
        with whole(out) as unfinished:
            unfinished.write_text(draw(found), encoding="utf-8")
        click.echo(f"wrote {out}", err=as_json)
    if as_json:
        click.echo(json.dumps(found, indent=2))


@contextmanager
def _opened(store_file: Path, betas_file: Path) -> "Iterator[tuple[Store, Betas, AnnotationTable]]":
    """A store and the betas that were made from it."""
    from sp2dpo.schedule import check_origin, read_betas
    from sp2dpo.store import Store

    made = read_betas(betas_file)
    with Store(store_file) as store, store.snapshot():
        annotations = store.annotations()
        check_origin(made, annotations, path=betas_file, store=store_file)
        yield store, made, annotations


def main() -> None:
    """Runs the command line; an error is one line, never a traceback (but for --debug)."""
    debug = "--debug" in sys.argv[1:]  # wherever it stands
    try:
        cli([word for word in sys.argv[1:] if word != "--debug"], standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("stopped; the same command goes on from here", err=True)
        sys.exit(130)
    except (ValueError, OSError, sqlite3.Error) as error:
        if debug:
            raise
        click.echo(f"sp2dpo: {_said(error)}", err=True)
        sys.exit(1)


def _said(error: Exception) -> str:
    from sp2dpo.terminal import harmless

    if isinstance(error, sqlite3.Error):
        return f"the store cannot be used: {error}; what it has taken before is safe"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return harmless(str(error))
