"""Commands that build a data set, publish it to the Hub, and verify one."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sp2dpo.cli.options import (
    BETAS,
    DRAWS,
    FILE,
    FOLDER,
    JSON,
    PANEL_FILE,
    PATIENCE,
    SEND_KEY,
    SERVE,
    STORE,
    annotation_callbacks,
    confirm_keys,
    print_lines,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sp2dpo.dataset.publish import PublishOptions, PublishResult
    from sp2dpo.dataset.resample import ResampleResult
    from sp2dpo.dataset.verify import VerifyResult


DIFFERS = 3
"""Exit code of `verify` if the data set is inconsistent."""


@click.command()
@STORE
@BETAS
@click.option(
    "--also",
    metavar="NAME=BETAS",
    multiple=True,
    help="Betas of another schedule of this store, for the column NAME of the config `schedules`.",
)
@click.option(
    "--license",
    help="Licence identifier of the Hub, such as mit [default: the source's, if known].",
)
@click.option("--out", type=FOLDER, required=True, help="Folder to write.")
@DRAWS
def build(
    store_file: Path,
    betas_file: Path,
    also: tuple[str, ...],
    license: str | None,
    out: Path,
    draws: int,
) -> None:
    """Build a data set with betas and all replies.

    The folder loads with the `datasets` library; `publish` uploads it to the Hub.
    """
    from sp2dpo.cli.progress import progress_rows
    from sp2dpo.dataset.build import build_dataset

    others = dict(map(_parse_also, also))
    if len(others) < len(also):
        raise click.UsageError("--also names a column twice")
    result = build_dataset(
        store_file,
        betas_file,
        out,
        others=others,
        license=license,
        draws=draws,
        progress=progress_rows,
    )
    print_lines(
        [
            *(f"{name}: stored as JSON text: {why}" for name, why in result.json_columns.items()),
            f"wrote {out}: {result.rows} rows, {result.annotations} annotations",
        ]
    )


def _parse_also(text: str) -> tuple[str, Path]:
    # The first = separates; a path may contain others.
    name, _, path = text.partition("=")
    if not name or not path:
        raise click.UsageError(f"--also {text}: write NAME=BETAS.parquet")
    return name, Path(path)


@click.command()
@click.argument("folder", metavar="DIR", type=FOLDER)
@click.option("--repo", required=True, metavar="ORG/NAME", help="Data set repo on the Hub.")
@click.option("--tag", help="Tag to create for this release; an existing tag is never moved.")
@click.option("--license", help="Licence identifier of the Hub, such as apache-2.0 or cc-by-4.0.")
@click.option("--private", is_flag=True, help="If the repo is created, make it private.")
@click.option(
    "--gated", type=click.Choice(["auto", "manual"]), help="Require users to request access."
)
@click.option(
    "--create-pr",
    is_flag=True,
    help="Open a pull request instead of committing to the main branch.",
)
@click.option("--overwrite", is_flag=True, help="Publish even if the repo holds another data set.")
@click.option(
    "--dry-run",
    is_flag=True,
    help="Print the files that would change and their sizes; upload nothing.",
)
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
    """Publish a data set on the Hugging Face Hub.

    DIR is a folder written by `build`; it is uploaded in one commit. Uses the token of `hf auth
    login` or HF_TOKEN. A rerun makes no commit if nothing has changed. Text that people added to
    the card is preserved.
    """
    from sp2dpo.dataset.publish import PublishOptions, publish_dataset

    if tag is not None and create_pr:
        raise click.UsageError("--tag names a commit of the main branch, --create-pr makes none")
    options = PublishOptions(
        repo=repo,
        tag=tag,
        private=private,
        gated=gated,
        create_pr=create_pr,
        overwrite=overwrite,
        license=license,
        dry_run=dry_run,
    )
    result = publish_dataset(folder, options, notify=lambda line: print_lines([line], err=True))
    print_lines([*_publish_lines(options, result)])


def _publish_lines(options: "PublishOptions", result: "PublishResult") -> "Iterator[str]":
    from sp2dpo.text import count_noun

    for change in result.changes:
        yield f"  {change.what:8} {change.bytes:>12,} B  {change.path}"
    size = sum(change.bytes for change in result.changes) / 1e6
    changed = count_noun(len(result.changes), "file")
    if options.dry_run:
        yield f"would change {changed} ({size:.1f} MB at most), {result.unchanged} are up to date"
    elif result.pull_request:
        yield f"{options.repo}: pull request {result.pull_request}"
    elif result.changes:
        yield f"{options.repo}: {changed} changed ({size:.1f} MB at most) in commit {result.commit}"
    else:
        yield f"{options.repo}: everything is up to date, at {result.commit}"
    if options.tag and not options.dry_run:
        yield f"tag {options.tag}" + ("" if result.tagged else " existed already")


@click.command()
@click.argument("source", metavar="DIR_OR_REPO")
@JSON
@click.option(
    "--resample",
    type=click.IntRange(min=1),
    metavar="N",
    help="Ask the teachers again about N pairs and compare the replies.",
)
@click.option("--panel", "panel_file", type=PANEL_FILE, help="Panel YAML file, for --resample.")
@click.option("--store", "store_file", type=FILE, help="Store of the new replies, for --resample.")
@click.option("--seed", type=int, default=0, show_default=True, help="Random seed of the sample.")
@SERVE
@SEND_KEY
@PATIENCE
def verify(
    source: str,
    as_json: bool,
    resample: int | None,
    panel_file: Path | None,
    store_file: Path | None,
    seed: int,
    serve: bool,
    send_keys: tuple[str, ...],
    patience: float,
) -> None:
    """Recompute every hash and every beta of a data set.

    DIR_OR_REPO is a folder, org/name, or org/name@tag. The exit code is 0 if the data set is
    consistent and 3 if something differs; the comparison of --resample does not affect it.
    """
    from contextlib import redirect_stdout

    from sp2dpo.cli.progress import progress_parts
    from sp2dpo.dataset.verify import verify_dataset

    if resample is not None and (panel_file is None or store_file is None):
        raise click.UsageError("--resample needs --panel PANEL.yaml and --store FILE")
    result = verify_dataset(source, progress=progress_parts)
    comparison = None
    if resample is not None and panel_file is not None and store_file is not None:
        # Lines about the annotation must not mix with the JSON.
        with redirect_stdout(sys.stderr if as_json else sys.stdout):
            from sp2dpo.annotation.run import annotate_pairs
            from sp2dpo.dataset.resample import resample_dataset

            comparison = resample_dataset(
                # The files that were verified: the repo may have a newer commit by now.
                result.data.folder,
                panel_file,
                store_file,
                count=resample,
                seed=seed,
                annotate=lambda panel, store: annotate_pairs(
                    None,
                    panel,
                    store,
                    patience=patience,
                    send_keys=confirm_keys(panel.teachers, send_keys),
                    **annotation_callbacks(serve=serve),
                ),
            )
    _print_verification(result, comparison, as_json=as_json)
    if not result.consistent:
        sys.exit(DIFFERS)


def _print_verification(
    result: "VerifyResult", comparison: "ResampleResult | None", *, as_json: bool
) -> None:
    from dataclasses import asdict

    from sp2dpo.text import format_json

    if as_json:
        report = {
            "consistent": result.consistent,
            "name": result.data.name,
            "commit": result.data.commit,
            "checks": [
                {"name": check.name, "holds": check.holds, "said": check.message}
                for check in result.checks
            ],
            "resampled": asdict(comparison) if comparison else None,
        }
        click.echo(format_json(report))
        return
    print_lines(
        [
            f"{'ok' if check.holds else 'DIFFERS':8} {check.name:10} {check.message}"
            for check in result.checks
        ]
    )
    print_lines([f"{'consistent' if result.consistent else 'NOT consistent'}: {result.data}"])
    if result.consistent:
        print_lines(
            ["This shows that the betas follow from the replies, not that a teacher gave them."]
        )
    if comparison is not None:
        from sp2dpo.dataset.resample import resample_lines

        print_lines(["", *resample_lines(comparison)])
