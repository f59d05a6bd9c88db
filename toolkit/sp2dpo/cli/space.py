"""Commands that run the inspector on this machine and deploy it to the Hub."""

import click
from click.core import ParameterSource

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
@click.option(
    "--allow-host",
    "hosts",
    multiple=True,
    metavar="NAME",
    help="Further host name that the server answers to, such as that of a proxy; repeatable.",
)
@click.pass_context
def space(
    context: click.Context, data: str, port: int | None, host: str, hosts: tuple[str, ...]
) -> None:
    """Inspect pairs, betas and replies in a browser.

    Runs the inspector as a local web server. `sp2dpo space deploy` deploys it as a Space on the
    Hub.
    """
    if (subcommand := context.invoked_subcommand) is not None:
        # click reads options before the subcommand as the group's own; they would have no effect.
        if data:
            raise click.UsageError(f"--data must be given after {subcommand}")
        for name, option in (("port", "--port"), ("host", "--host"), ("hosts", "--allow-host")):
            if context.get_parameter_source(name) is not ParameterSource.DEFAULT:
                raise click.UsageError(
                    f"{option} is for the inspector on this machine, not for {subcommand}: omit it"
                )
        return
    from sp2dpo.dataset.space import become_inspector

    become_inspector(data, port=port, host=host, hosts=hosts)


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
