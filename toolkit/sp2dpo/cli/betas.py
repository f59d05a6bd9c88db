"""The commands that need no teacher: betas, where they come from, the data set, the report."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sp2dpo.cli.options import DRAWS, FILE, GOLD, load_gold, print_lines

if TYPE_CHECKING:
    from sp2dpo.betas.file import BetaTable
    from sp2dpo.store.annotations import AnnotationTable
    from sp2dpo.store.store import Store


FOLDER = click.Path(path_type=Path, file_okay=False)


@click.command()
@click.option("--store", "store_file", type=FILE, required=True, help="What `annotate` made.")
@click.option(
    "--schedule", "schedule_file", type=FILE, required=True, help="How gaps become betas."
)
@click.option("--scores", "scores_file", type=FILE, help="A reward model's, for MADPO and ODPO.")
@click.option("--out", type=FILE, required=True, help="The Parquet file to write.")
def schedule(store_file: Path, schedule_file: Path, scores_file: Path | None, out: Path) -> None:
    """Turn annotations into one beta for every pair.

    The schedule's file says how, or an arm's: what a schedule is compared with.
    """
    from concurrent.futures import ThreadPoolExecutor

    from sp2dpo.betas.arms import compute_betas, load_arm
    from sp2dpo.betas.file import BetaTable, write_betas
    from sp2dpo.betas.scores import read_scores
    from sp2dpo.store.store import Store

    arm = load_arm(schedule_file)
    scores = read_scores(scores_file) if scores_file else None
    with ThreadPoolExecutor(max_workers=1) as beside:
        with Store(store_file) as store, store.snapshot():
            annotations = store.annotations()
            hashing = beside.submit(getattr, annotations, "hash")
            shard, mine = store.questions.shard(), store.questions.pair_count()
            pending, asked = _pending(store, annotations)
        table = compute_betas(annotations, arm, scores)
        annotations_hash = hashing.result()
    if not table["has_beta"].any():
        raise ValueError(
            f"no pair has the quorum of {arm.of.quorum} replies, the most is "
            f"{table['votes'].max()}: lower `quorum` in the schedule, or ask more"
        )
    made = BetaTable(
        table=table,
        arm=arm,
        annotations_hash=annotations_hash,
        scores_hash=scores.hash if scores else None,
    )
    write_betas(made, out)
    share = f" (shard {shard}: {mine} of {len(table)} pairs)" if shard else ""
    print_lines([*_made_lines(made, share)])
    if pending:
        print_lines([f"{pending} of {asked} replies are still pending: these betas are not final"])
    print_lines([f"wrote {out}"])


def _made_lines(made: "BetaTable", share: str) -> "Iterator[str]":
    """What came out, in a few lines."""
    table, quorum = made.table, made.schedule.quorum
    beta = table["beta"].drop_nulls()
    without = len(table) - len(beta)
    yield f"{len(table)} pairs, {without} below the quorum of {quorum} replies{share}"
    yield f"beta mean {beta.mean():.4g}, min {beta.min():.4g}, max {beta.max():.4g}"
    for key, said in made.arm.departures().items():
        yield f"{key}: {said}"
    for name in ("weight", "margin"):
        if name in table.columns:
            kept = table.filter("keep")[name]
            yield f"{name} mean {kept.mean():.4g}, min {kept.min():.4g}, max {kept.max():.4g}"
    if (disputed := table["label_disputed"]).count():
        yield f"{disputed.sum()} labels disputed: the panel thinks them wrong"
    flipped = f", {table['flip'].sum()} with their responses exchanged" if "flip" in table else ""
    if made.arm.departures():
        yield f"{table['keep'].sum()} pairs are kept for training{flipped}"


def _pending(store: "Store", annotations: "AnnotationTable") -> tuple[int, int]:
    """Replies that are still to come under the last panel, and all that it asks for.

    None where the store does not say what its last panel was.
    """
    from sp2dpo.store.counts import count_replies, load_recorded_panel

    try:
        panel = load_recorded_panel(store)
    except ValueError:
        return 0, 0
    tallies = count_replies(store, panel, annotations)
    return sum(one.pending for one in tallies), sum(one.all for one in tallies)


@click.command()
@click.argument("pair_id")
@click.option("--store", "store_file", type=FILE, required=True, help="What `annotate` made.")
@click.option("--betas", "betas_file", type=FILE, required=True, help="What `schedule` made.")
def explain(pair_id: str, store_file: Path, betas_file: Path) -> None:
    """Show how the beta of a pair came about.

    PAIR_ID is the pair's id, at least eight of its first digits, or the source's own name for it.
    """
    import polars as pl

    from sp2dpo.betas.explain import explain_lines as lines_of
    from sp2dpo.betas.maps import places

    with open_store_and_betas(store_file, betas_file) as (store, made, _):
        pair = store.corpus.pair(pair_id)
        table = made.table.with_columns(place=places(pl.col("gap")))
        row = table.filter(pl.col("pair_id") == pair.id).row(0, named=True)
        lines = lines_of(
            pair,
            list(store.replies(pair.id)),
            row,
            rubric=store.rubric(),
            arm=made.arm,
            place=row["place"],
        )
    click.echo("\n".join(lines))


@click.command()
@click.option("--store", "store_file", type=FILE, required=True, help="What `annotate` made.")
@click.option("--betas", "betas_file", type=FILE, required=True, help="What `schedule` made.")
@click.option(
    "--also",
    metavar="NAME=BETAS",
    multiple=True,
    help="Other betas of this store, for a column NAME of the config `schedules`.",
)
@click.option(
    "--license", help="Of the data set, as the Hub names it; that of the source if known."
)
@click.option("--out", type=FOLDER, required=True, help="The folder to write.")
def build(
    store_file: Path, betas_file: Path, also: tuple[str, ...], license: str | None, out: Path
) -> None:
    """Make a data set that anybody can load, with betas and all replies.

    `publish` puts it on the Hub.
    """
    from sp2dpo.betas.file import check_origin, read_betas
    from sp2dpo.cli.progress import progress_rows
    from sp2dpo.dataset.build import build_dataset as build_folder

    files = dict(map(_named_file, also))
    if len(files) < len(also):
        raise click.UsageError("--also names a column twice")
    with open_store_and_betas(store_file, betas_file) as (store, made, annotations):
        others = {name: read_betas(path) for name, path in files.items()}
        for name, one in others.items():
            check_origin(one, annotations, path=files[name], store=store_file)
        rows, replies = build_folder(
            store, made, out, others=others, license=license, watch=progress_rows
        )
    print_lines([f"wrote {out}: {rows} rows, {replies} annotations"])


def _named_file(text: str) -> tuple[str, Path]:
    name, stands, path = text.partition("=")
    if not stands or not name or not path:
        raise click.UsageError(f"--also {text}: say NAME=BETAS.parquet")
    return name, Path(path)


@click.command()
@click.option("--store", "store_file", type=FILE, required=True, help="What `annotate` made.")
@click.option("--betas", "betas_file", type=FILE, required=True, help="What `schedule` made.")
@click.option("--out", type=FILE, help="The HTML page to write.")
@click.option("--plots", "folder", type=FOLDER, help="A folder for each plot as PNG and SVG.")
@GOLD
@DRAWS
@click.option("--json", "as_json", is_flag=True, help="Print the same as JSON.")
def report(
    store_file: Path,
    betas_file: Path,
    out: Path | None,
    folder: Path | None,
    gold_file: Path | None,
    draws: int,
    as_json: bool,
) -> None:
    """Draw one page that shows the betas, the agreement and what looks wrong."""
    import json

    from sp2dpo.files import atomic_write, check_overwrite
    from sp2dpo.report.page import is_report, render_page
    from sp2dpo.report.report import build_report as report_of
    from sp2dpo.text import escape_controls

    if out is None and folder is None and not as_json:
        raise click.UsageError("say --out PAGE.html, --plots FOLDER, --json, or several of them")
    if out is not None:
        check_overwrite(out, is_report, "a report")
    with open_store_and_betas(store_file, betas_file) as (store, made, annotations):
        truths, given = load_gold(gold_file, store) if gold_file else (None, 0)
        found = report_of(store, made, annotations, truths=truths, given=given, draws=draws)
    if folder is not None:
        from sp2dpo.report import plots

        for path in plots.save_all(found, folder):
            click.echo(escape_controls(f"wrote {path}"), err=as_json)
    if out is not None:
        with atomic_write(out) as unfinished:
            unfinished.write_text(render_page(found), encoding="utf-8")
        click.echo(escape_controls(f"wrote {out}"), err=as_json)
    if as_json:
        click.echo(json.dumps(found, indent=2))


@contextmanager
def open_store_and_betas(
    store_file: Path, betas_file: Path
) -> "Iterator[tuple[Store, BetaTable, AnnotationTable]]":
    """A store and the betas that were made from it."""
    from sp2dpo.betas.file import check_origin, read_betas
    from sp2dpo.store.store import Store

    made = read_betas(betas_file)
    with Store(store_file) as store, store.snapshot():
        annotations = store.annotations()
        check_origin(made, annotations, path=betas_file, store=store_file)
        yield store, made, annotations
