"""The commands that need no teacher: betas, where they come from, the data set, the report."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sp2dpo.cli_store import FILE

if TYPE_CHECKING:
    from sp2dpo.annotation_table import AnnotationTable
    from sp2dpo.schedule import Betas
    from sp2dpo.store import Store

FOLDER = click.Path(path_type=Path, file_okay=False)


@click.command()
@click.option("--store", "store_file", type=FILE, required=True, help="What `annotate` made.")
@click.option(
    "--schedule", "schedule_file", type=FILE, required=True, help="How gaps become betas."
)
@click.option("--out", type=FILE, required=True, help="The Parquet file to write.")
def schedule(store_file: Path, schedule_file: Path, out: Path) -> None:
    """Turn annotations into one beta for every pair."""
    from sp2dpo.schedule import Betas, betas, load_schedule, write_betas
    from sp2dpo.store import Store
    from sp2dpo.terminal import harmless

    said = load_schedule(schedule_file)
    with Store(store_file) as store, store.snapshot():
        annotations = store.annotations()
        shard, mine = store.backlog.shard(), store.backlog.pairs()
        pending, asked = _pending(store)
    table = betas(annotations, said)
    if not table["has_beta"].any():
        raise ValueError(
            f"no pair has the quorum of {said.quorum} replies, the most is {table['votes'].max()}: "
            "lower `quorum` in the schedule, or ask more"
        )
    write_betas(Betas(table=table, schedule=said, annotations_hash=annotations.hash), out)
    beta = table["beta"].drop_nulls()
    without = len(table) - len(beta)
    share = f" (shard {shard}: {mine} of {len(table)} pairs)" if shard else ""
    click.echo(f"{len(table)} pairs, {without} below the quorum of {said.quorum} replies{share}")
    click.echo(f"beta mean {beta.mean():.4g}, min {beta.min():.4g}, max {beta.max():.4g}")
    if annotations.rubric.blind:
        disputed = table["label_disputed"].sum()
        click.echo(f"{disputed} labels disputed: the panel prefers the rejected response")
    if pending:
        click.echo(f"{pending} of {asked} replies are still pending: these betas are not final")
    click.echo(harmless(f"wrote {out}"))


def _pending(store: "Store") -> tuple[int, int]:
    """Replies that are still to come under the last panel, and all that it asks for.

    None where the store does not say what its last panel was.
    """
    from sp2dpo.tally import panel_of, tally

    try:
        panel = panel_of(store)
    except ValueError:
        return 0, 0
    tallies = tally(store, panel)
    return sum(one.pending for one in tallies), sum(one.all for one in tallies)


@click.command()
@click.argument("pair_id")
@click.option("--store", "store_file", type=FILE, required=True, help="What `annotate` made.")
@click.option("--betas", "betas_file", type=FILE, required=True, help="What `schedule` made.")
def explain(pair_id: str, store_file: Path, betas_file: Path) -> None:
    """Show how the beta of a pair came about.

    PAIR_ID is the pair's id, at least eight of its first digits, or the source's own name for it.
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


@click.command()
@click.option("--store", "store_file", type=FILE, required=True, help="What `annotate` made.")
@click.option("--betas", "betas_file", type=FILE, required=True, help="What `schedule` made.")
@click.option("--out", type=FOLDER, required=True, help="The folder to write.")
def build(store_file: Path, betas_file: Path, out: Path) -> None:
    """Make a data set that anybody can load, with betas and all replies."""
    from sp2dpo.dataset import build as build_folder
    from sp2dpo.terminal import harmless

    with _opened(store_file, betas_file) as (store, made, _):
        rows, replies = build_folder(store, made, out)
    click.echo(harmless(f"wrote {out}: {rows} rows, {replies} annotations"))


@click.command()
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
    from sp2dpo.terminal import harmless

    if out is None and not as_json:
        raise click.UsageError("say --out PAGE.html, --json, or both")
    if out is not None:
        refuse_foreign(out, is_report, "a report")
    with _opened(store_file, betas_file) as (store, made, annotations):
        found = report_of(store, made, annotations)
    if out is not None:
        with whole(out) as unfinished:
            unfinished.write_text(draw(found), encoding="utf-8")
        click.echo(harmless(f"wrote {out}"), err=as_json)
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
