"""The command that opens the inspector, and the one that puts it on the Hub."""

import sys

import click

from sp2dpo.cli.options import print_lines


@click.group(invoke_without_command=True)
@click.option("--data", default="", metavar="DIR_OR_REPO", help="What to show; the demo if none.")
@click.option("--port", type=click.IntRange(1, 65535), help="The first free one from 7860 on.")
@click.option("--host", default="127.0.0.1", show_default=True, help="0.0.0.0 lets others in.")
@click.pass_context
def space(context: click.Context, data: str, port: int | None, host: str) -> None:
    """Open the inspector in a browser: pairs, their betas, and the replies behind them.

    `sp2dpo space deploy` puts it on the Hub.
    """
    if context.invoked_subcommand is not None:
        if data:
            raise click.UsageError(f"--data belongs behind {context.invoked_subcommand}")
        return
    from sp2dpo.dataset.space import load_space_data

    sys.exit(load_space_data(data, port=port, host=host))


@space.command()
@click.option("--repo", required=True, metavar="ORG/NAME", help="The Space on the Hub.")
@click.option(
    "--data", default="", metavar="ORG/NAME[@TAG]", help="What it shows; the demo if none."
)
@click.option("--private", is_flag=True, help="A new Space is seen by its owners only.")
@click.option("--overwrite", is_flag=True, help="Also where the Space is another program.")
def deploy(repo: str, data: str, private: bool, overwrite: bool) -> None:
    """Put the inspector on the Hub as a Space, in one commit.

    The token is that of `hf auth login` or HF_TOKEN. Running it again changes nothing.
    """
    from sp2dpo.dataset import space as inspector
    from sp2dpo.text import count_noun

    done = inspector.deploy_space(
        repo,
        data,
        private=private,
        overwrite=overwrite,
        say=lambda line: print_lines([line], err=True),
    )
    changed = count_noun(len(done.changed), "file")
    print_lines([f"{repo}: {changed} changed, {done.unchanged} there already, at {done.commit}"])
