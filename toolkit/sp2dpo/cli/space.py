"""Commands that run the inspector on this machine and deploy it to the Hub."""

import sys

import click

from sp2dpo.cli.options import print_lines


@click.group(invoke_without_command=True)
@click.option(
    "--data", default="", metavar="DIR_OR_REPO", help="Data set to show [default: the demo]."
)
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    help="Port [default: the first free port from 7860 on].",
)
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen on; 0.0.0.0 lets other machines connect.",
)
@click.pass_context
def space(context: click.Context, data: str, port: int | None, host: str) -> None:
    """Inspect pairs, betas and replies in a browser.

    Runs the inspector as a local web server. `sp2dpo space deploy` deploys it as a Space on the
    Hub.
    """
    if context.invoked_subcommand is not None:
        # click reads --data before the subcommand as the group's own, and it would have no effect.
        if data:
            raise click.UsageError(f"--data must be given after {context.invoked_subcommand}")
        return
    from sp2dpo.dataset.space import run_inspector

    sys.exit(run_inspector(data, port=port, host=host))


@space.command()
@click.option("--repo", required=True, metavar="ORG/NAME", help="Space on the Hub.")
@click.option(
    "--data", default="", metavar="ORG/NAME[@TAG]", help="Data set to show [default: the demo]."
)
@click.option("--private", is_flag=True, help="If the Space is created, make it private.")
@click.option(
    "--overwrite", is_flag=True, help="Deploy even if the Space contains another program."
)
def deploy(repo: str, data: str, private: bool, overwrite: bool) -> None:
    """Deploy the inspector as a Space on the Hub, in one commit.

    Uses the token of `hf auth login` or HF_TOKEN. A rerun makes no commit if nothing has changed.
    """
    from sp2dpo.dataset.space import deploy_space
    from sp2dpo.text import count_noun

    result = deploy_space(
        repo,
        data,
        private=private,
        overwrite=overwrite,
        notify=lambda line: print_lines([line], err=True),
    )
    changed = count_noun(len(result.changed), "file")
    print_lines([f"{repo}: {changed} changed, {result.unchanged} up to date, at {result.commit}"])
