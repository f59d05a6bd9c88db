"""The command line. Every command imports what it needs when it runs, so that help is instant."""

import sqlite3
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sp2dpo import __version__

if TYPE_CHECKING:
    from sp2dpo.annotate import Tally
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
    type=click.FloatRange(min=0),
    default=900,
    show_default=True,
    help="Seconds for which a request is tried again while its server is away.",
)
def annotate(pairs: str | None, panel_file: Path, store_file: Path, patience: float) -> None:
    """Ask a panel of teachers about every pair.

    Running it again asks only what is missing; --pairs may then be left out.
    """
    from sp2dpo.annotate import tally
    from sp2dpo.panel import load_panel
    from sp2dpo.sources import find, read
    from sp2dpo.store import Store

    panel = load_panel(panel_file)
    source = find(pairs) if pairs else None
    fresh = not store_file.exists()
    if source is None and fresh:
        raise click.UsageError(f"{store_file} does not exist yet: say where the --pairs are")
    try:
        with Store(store_file, create=True) as store:
            if source:
                store.corpus.add(source, read(source))
            _say_source(store)
            store.adopt(panel)
            fresh = False
            _ask(store, panel, patience)
            tallies = tally(store, panel)
    finally:
        if fresh:  # nothing was taken in: leave no empty store behind
            store_file.unlink(missing_ok=True)
    silent = [one.teacher for one in tallies if not one.kept]
    if silent:
        raise ValueError(f"no reply of {', '.join(silent)} could be kept")


def _say_source(store: "Store") -> None:
    from sp2dpo.terminal import harmless

    source = store.corpus.source()
    if source is None:
        raise ValueError(f"{store.path} holds no pairs yet: say where the --pairs are")
    aside = source.rows - source.usable
    click.echo(
        f"{source.name}: {source.rows} rows = {source.usable} usable + {aside} set aside; "
        f"{source.pairs} distinct pairs"
    )
    for reason, count in source.set_aside.items():
        click.echo(f"  set aside {count}: {harmless(reason)}")
    if not source.pairs:
        raise ValueError(f"{source.name}: no row holds a preference pair")


def _ask(store: "Store", panel: "Panel", patience: float) -> None:
    import asyncio

    from sp2dpo.annotate import annotate as ask_panel
    from sp2dpo.annotate import tally
    from sp2dpo.progress import bar

    pending = sum(one.pending for one in tally(store, panel))
    try:
        if pending:
            with bar(pending) as progress:
                asyncio.run(ask_panel(store, panel, patience=patience, progress=progress))
    finally:
        _say_tallies(tally(store, panel))


def _say_tallies(tallies: "list[Tally]") -> None:
    for one in tallies:
        reasons = ", ".join(f"{reason} {count}" for reason, count in one.refused.items())
        refused = sum(one.refused.values())
        click.echo(
            f"{one.teacher}: {one.all} asked for = {one.kept} kept + {refused} refused"
            f"{f' ({reasons})' if reasons else ''} + {one.pending} pending"
        )
    kept, refused, pending = (
        sum(one.kept for one in tallies),
        sum(sum(one.refused.values()) for one in tallies),
        sum(one.pending for one in tallies),
    )
    click.echo(
        f"{kept + refused + pending} asked for = "
        f"{kept} kept + {refused} refused + {pending} pending"
    )


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
    write_betas(Betas(table=table, schedule=said, annotations_hash=annotations.hash), out)
    without = len(table) - int(table["has_beta"].sum())
    click.echo(f"{len(table)} pairs, {without} below the quorum of {said.quorum} replies")
    if without < len(table):
        beta = table["beta"].drop_nulls()
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

    from sp2dpo.files import whole
    from sp2dpo.page import draw
    from sp2dpo.report import report as report_of

    if out is None and not as_json:
        raise click.UsageError("say --out PAGE.html, --json, or both")
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
    with Store(store_file) as store:
        annotations = store.annotations()
        check_origin(made, annotations, path=betas_file, store=store_file)
        yield store, made, annotations


def main() -> None:
    """Runs the command line; an error is one line, never a traceback (but for --debug)."""
    try:
        cli(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("stopped; the same command goes on from here", err=True)
        sys.exit(130)
    except (ValueError, OSError, sqlite3.Error) as error:
        if "--debug" in sys.argv:
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
