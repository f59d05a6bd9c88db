"""The commands that carry a data set to the Hub, and check one that is there."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sp2dpo.cli.options import (
    FILE,
    FOLDER,
    JSON,
    PATIENCE,
    SERVE,
    open_store_for_writing,
    print_lines,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sp2dpo.dataset.publish import PublishOptions, PublishResult


DIFFERS = 3
"""The exit code of `verify` where something differs."""


@click.command()
@click.argument("folder", metavar="DIR", type=FOLDER)
@click.option("--repo", required=True, metavar="ORG/NAME", help="The data set on the Hub.")
@click.option("--tag", help="A name for this release; it never moves.")
@click.option("--license", help="Of the data set, as the Hub names it (apache-2.0, cc-by-4.0).")
@click.option("--private", is_flag=True, help="A new repo is seen by its owners only.")
@click.option(
    "--gated", type=click.Choice(["auto", "manual"]), help="People have to ask for access."
)
@click.option("--create-pr", is_flag=True, help="Open a pull request; change nothing else.")
@click.option("--overwrite", is_flag=True, help="Also where the repo holds other data.")
@click.option("--dry-run", is_flag=True, help="Only say what would change, and how many bytes.")
def publish(
    folder: Path,
    repo: str,
    tag: str | None,
    license: str | None,
    private: bool,
    gated: str | None,
    create_pr: bool,
    overwrite: bool,
    dry_run: bool,
) -> None:
    """Put a data set that `build` made on the Hub: one commit, or none.

    The token is that of `hf auth login` or HF_TOKEN. Running it again changes nothing; what people
    wrote on the card stays.
    """
    from sp2dpo.dataset.publish import PublishOptions, read_release
    from sp2dpo.dataset.publish import publish_dataset as send

    if tag is not None and create_pr:
        raise click.UsageError("--tag names a commit of the main branch, --create-pr makes none")
    order = PublishOptions(
        repo=repo,
        tag=tag,
        private=private,
        gated=gated,
        create_pr=create_pr,
        overwrite=overwrite,
        license=license,
        dry_run=dry_run,
    )
    done = send(read_release(folder), order, say=lambda line: print_lines([line], err=True))
    print_lines([*_lines(order, done)])


def _lines(order: "PublishOptions", done: "PublishResult") -> "Iterator[str]":
    from sp2dpo.text import count_noun

    for change in done.changes:
        yield f"  {change.what:8} {change.bytes:>12,} B  {change.path}"
    size = sum(one.bytes for one in done.changes) / 1e6
    changed = count_noun(len(done.changes), "file")
    if order.dry_run:
        yield f"would change {changed} ({size:.1f} MB at most), {done.unchanged} are there already"
    elif done.pull_request:
        yield f"{order.repo}: pull request {done.pull_request}"
    elif done.changes:
        yield f"{order.repo}: {changed} changed ({size:.1f} MB at most) in commit {done.commit}"
    else:
        yield f"{order.repo}: everything is there already, at {done.commit}"
    if order.tag and not order.dry_run:
        yield f"tag {order.tag}" + ("" if done.tagged else " was there already")


@click.command()
@click.argument("what", metavar="DIR_OR_REPO")
@JSON
@click.option(
    "--resample",
    type=click.IntRange(min=1),
    metavar="N",
    help="Ask the teachers again, of N pairs.",
)
@click.option("--panel", "panel_file", type=FILE, help="With --resample: where the teachers are.")
@click.option("--store", "store_file", type=FILE, help="With --resample: keeps the new replies.")
@click.option("--seed", type=int, default=0, show_default=True, help="Another one draws others.")
@SERVE
@PATIENCE
def verify(
    what: str,
    as_json: bool,
    resample: int | None,
    panel_file: Path | None,
    store_file: Path | None,
    seed: int,
    serve: bool,
    patience: float,
) -> None:
    """Recompute every hash and every beta of a data set.

    DIR_OR_REPO is a folder, org/name, or org/name@tag. Ends with 0 where all is consistent, and
    with 3 where something differs. What the teachers say when they are asked again is reported, and
    does not decide.
    """
    import json
    from contextlib import redirect_stdout
    from dataclasses import asdict

    from sp2dpo.cli.progress import progress_parts
    from sp2dpo.dataset.load import fetch
    from sp2dpo.dataset.resample import resample_lines
    from sp2dpo.dataset.verify import is_consistent
    from sp2dpo.dataset.verify import verify_dataset as look

    if resample is not None and (panel_file is None or store_file is None):
        raise click.UsageError("--resample needs --panel PANEL.yaml and --store FILE")
    fetched = fetch(what)
    checks = look(fetched.folder, watch=progress_parts)
    good = is_consistent(checks)
    again = None
    if resample is not None and panel_file is not None and store_file is not None:
        with redirect_stdout(sys.stderr if as_json else sys.stdout):
            again = _ask_again(
                fetched.folder,
                resample,
                seed,
                panel_file,
                store_file,
                serve=serve,
                patience=patience,
            )
    if as_json:
        said = {"consistent": good, "name": fetched.name, "commit": fetched.commit}
        said |= {"checks": [asdict(one) for one in checks], "resampled": again}
        click.echo(json.dumps(said, indent=2))
    else:
        print_lines(
            [f"{'ok' if one.holds else 'DIFFERS':8} {one.name:10} {one.said}" for one in checks]
        )
        print_lines([f"{'consistent' if good else 'NOT consistent'}: {fetched}"])
        if good:
            print_lines(
                ["This shows that the betas follow from the replies, not that a teacher gave them."]
            )
        if again is not None:
            print_lines(["", *resample_lines(again)])
    if not good:
        sys.exit(DIFFERS)


def _ask_again(
    folder: Path,
    count: int,
    seed: int,
    panel_file: Path,
    store_file: Path,
    *,
    serve: bool,
    patience: float,
) -> dict[str, Any]:
    """Asks the panel about some pairs once more; the same command goes on where it stopped."""
    from sp2dpo.cli.annotation import ask
    from sp2dpo.dataset.resample import check_panel, compare_replies, draw_pairs
    from sp2dpo.pairs.sources import Source
    from sp2dpo.panel.panel import load_panel

    panel = load_panel(panel_file)
    check_panel(folder, panel)
    rows = draw_pairs(folder, count, seed)
    with open_store_for_writing(store_file) as store:
        store.corpus.add(Source(name=f"{len(rows)} pairs, seed {seed}"), rows)
        ask(store, panel, patience=patience, again=False, serve=serve)
        return compare_replies(store, folder)
