"""The commands that carry a data set to the Hub, and check one that is there."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sp2dpo.cli_store import say

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sp2dpo.publish import Order, Outcome

DIFFERS = 3
"""The exit code of `verify` where something differs."""


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path, file_okay=False))
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
    from sp2dpo.publish import Order
    from sp2dpo.publish import publish as send
    from sp2dpo.release import read_release

    if tag is not None and create_pr:
        raise click.UsageError("--tag names a commit of the main branch, --create-pr makes none")
    order = Order(
        repo=repo,
        tag=tag,
        private=private,
        gated=gated,
        create_pr=create_pr,
        overwrite=overwrite,
        license=license,
        dry_run=dry_run,
    )
    done = send(read_release(folder), order, say=lambda line: say([line], err=True))
    say([*_lines(order, done)])


def _lines(order: "Order", done: "Outcome") -> "Iterator[str]":
    from sp2dpo.terminal import number_of

    for change in done.changes:
        yield f"  {change.what:8} {change.bytes:>12,} B  {change.path}"
    size = sum(one.bytes for one in done.changes) / 1e6
    changed = number_of(len(done.changes), "file")
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
@click.option("--json", "as_json", is_flag=True, help="Print the same as JSON.")
def verify(what: str, as_json: bool) -> None:
    """Recompute every hash and every beta of a data set.

    DIR_OR_REPO is a folder, org/name, or org/name@tag. Ends with 0 where all is consistent, and
    with 3 where something differs.
    """
    import json
    from dataclasses import asdict

    from sp2dpo.loading import fetch
    from sp2dpo.progress import watched_parts
    from sp2dpo.verify import consistent
    from sp2dpo.verify import verify as look

    fetched = fetch(what)
    checks = look(fetched.folder, watch=watched_parts)
    good = consistent(checks)
    if as_json:
        said = {"consistent": good, "name": fetched.name, "commit": fetched.commit}
        click.echo(json.dumps(said | {"checks": [asdict(one) for one in checks]}, indent=2))
    else:
        say([f"{'ok' if one.holds else 'DIFFERS':8} {one.name:10} {one.said}" for one in checks])
        say([f"{'consistent' if good else 'NOT consistent'}: {fetched}"])
        if good:
            say(
                ["This shows that the betas follow from the replies, not that a teacher gave them."]
            )
    if not good:
        sys.exit(DIFFERS)
