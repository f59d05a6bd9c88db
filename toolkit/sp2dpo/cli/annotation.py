"""The commands that ask teachers, and those that say how the asking stands."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sp2dpo.cli.options import (
    FILE,
    PAIRS,
    PANEL,
    PATIENCE,
    RETRY_REFUSED,
    RUN_STORE,
    SERVE,
    SHARD,
    open_store_for_writing,
    open_store_with_pairs,
    print_lines,
)

if TYPE_CHECKING:
    import asyncio
    from collections import Counter
    from collections.abc import Awaitable, Callable

    from sp2dpo.annotation.run import RunOptions
    from sp2dpo.inference.endpoint import Endpoint
    from sp2dpo.panel.panel import Panel
    from sp2dpo.store.questions import Shard
    from sp2dpo.store.store import Store

    Engine = Callable[[Store, Panel, RunOptions], Awaitable[None]]


@click.command()
@PAIRS
@PANEL
@RUN_STORE
@PATIENCE
@RETRY_REFUSED
@SHARD
@SERVE
@click.option("--dry-run", is_flag=True, help="Say what would be asked, and ask nothing.")
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="Ask from this computer, or from all nodes of a Ray cluster.",
)
@click.option("--ray-address", metavar="A", help="The cluster; $RAY_ADDRESS unless given.")
def annotate(
    pairs: str | None,
    panel_file: Path,
    store_file: Path,
    patience: float,
    retry_refused: bool,
    shard: "Shard | None",
    serve: bool,
    dry_run: bool,
    engine: str,
    ray_address: str | None,
) -> None:
    """Ask a panel of teachers about every pair.

    Running it again asks only what is missing; --pairs may then be left out.
    """
    from sp2dpo.panel.panel import load_panel

    if math.isnan(patience):
        raise click.UsageError("--patience must be a number of seconds")
    panel = load_panel(panel_file)
    asks = _engine(engine, ray_address)
    with open_store_with_pairs(pairs, store_file, panel, keep=not dry_run) as store:
        if dry_run:
            from sp2dpo.annotation.dry_run import plan_lines

            print_lines(plan_lines(store, panel, shard=shard))
            return
        store.questions.restrict_to_shard(shard)
        store.reopen_settled(panel)
        ask(store, panel, patience=patience, again=retry_refused, serve=serve, engine=asks)


def _engine(name: str, ray_address: str | None) -> "Engine":
    if ray_address is not None and name != "ray":
        raise click.UsageError("--ray-address belongs to --engine ray")
    if name == "local":
        from sp2dpo.annotation.run import annotate as ask_panel

        return ask_panel
    from functools import partial

    try:
        from sp2dpo.annotation.ray import annotate_on_ray
    except ModuleNotFoundError as error:
        raise click.UsageError('--engine ray needs Ray: pip install "sp2dpo[ray]"') from error
    return partial(annotate_on_ray, address=ray_address)


def ask(
    store: "Store",
    panel: "Panel",
    *,
    patience: float,
    again: bool,
    serve: bool,
    engine: "Engine | None" = None,
) -> None:
    """Asks what is missing, with a bar, and says how it stands in the end.

    Raises:
        ValueError: a teacher could keep nothing, or something is still missing.
        Interrupted: somebody said stop.
        OSError: a teacher cannot be asked, or its server not started.
    """
    import asyncio

    from sp2dpo.annotation.run import RunOptions
    from sp2dpo.annotation.run import annotate as ask_panel
    from sp2dpo.cli.progress import reply_bar
    from sp2dpo.interrupts import interruptible
    from sp2dpo.store.counts import count_replies, reply_count_lines

    tallies = count_replies(store, panel)
    waiting = {one.teacher: one.requests_needed(again) for one in tallies}
    wanted = sum(waiting.values())
    if not serve:
        for teacher in panel.teachers:
            if waiting[teacher.name]:
                consent(teacher)
    try:
        if wanted:
            with reply_bar(wanted) as progress:

                async def work(stop: "asyncio.Event") -> None:
                    terms = RunOptions(
                        patience=patience,
                        again=again,
                        stop=stop,
                        progress=progress,
                        spare=progress.spare,
                        say=progress.say,
                    )
                    await (engine or ask_panel)(store, panel, terms)

                asyncio.run(interruptible(work, say=progress.say))
        else:
            store.record_panel(panel)  # its prices, say, may be new
    finally:
        if wanted:
            tallies = count_replies(store, panel)
        print_lines(reply_count_lines(tallies))
    if not any(one.all for one in tallies):
        print_lines([f"no pair falls into the shard {store.questions.shard()}"])
    silent = [one.teacher for one in tallies if one.all and not one.kept]
    if silent:
        raise ValueError(f"no reply of {', '.join(silent)} could be kept")
    if any(one.pending for one in tallies):
        raise ValueError("some replies are still missing: run the same command again")
    if panel.budget == "full" and any(one.refused for one in tallies):
        print_lines(["--retry-refused asks once more for those that were refused"])


def consent(teacher: "Endpoint") -> None:
    """Has a person agree to run the command of a panel, which somebody else may have written."""
    import sys

    from sp2dpo.inference.vllm import command_lines, serve_warnings
    from sp2dpo.text import shell_lines

    if teacher.serve is None:
        return
    lines = command_lines(teacher.model, teacher.revision, teacher.serve)
    folded = [part for line in lines for part in shell_lines(line)]
    print_lines([f"{teacher.label} would be served by:", *(f"  {part}" for part in folded)])
    print_lines([f"  WARNING: {line}" for line in serve_warnings(teacher.serve)])
    if not (sys.stdin.isatty() and click.confirm("Run this?")):
        raise ValueError(
            f"{teacher.label}: a file's command is never run unasked; give --serve if you trust "
            "this one"
        )


@click.command()
@click.argument("panel_file", metavar="PANEL.yaml", type=FILE)
@click.option("--teacher", "name", required=True, help="The teacher of the panel to serve.")
@click.option("--log", type=FILE, help="What the server says; serve.TEACHER.log if left out.")
def serve(panel_file: Path, name: str, log: Path | None) -> None:
    """Run the server of a panel's teacher, and nothing else, until you stop it."""
    import asyncio

    from sp2dpo.annotation.run import server_log_path
    from sp2dpo.interrupts import Interrupted, interruptible
    from sp2dpo.panel.panel import load_panel
    from sp2dpo.settings import did_you_mean

    teachers = {teacher.name: teacher for teacher in load_panel(panel_file).teachers}
    if name not in teachers:
        hint = did_you_mean(name, teachers)
        raise ValueError(f"{panel_file}: no teacher is called {name!r}{hint}")
    teacher = teachers[name]
    if teacher.serve is None:
        raise ValueError(f"{panel_file}: {name} has a base_url, not a `serve` that can be run")
    path = log or server_log_path(Path("serve"), name)

    async def work(stop: asyncio.Event) -> None:
        await _serve_until(stop, teacher, path)

    try:
        asyncio.run(interruptible(work, say=lambda _: _echo(f"stopping {name}")))
    except Interrupted as stopped:
        raise SystemExit(128 + stopped.number) from None


async def _serve_until(stop: "asyncio.Event", teacher: "Endpoint", log: Path) -> None:
    from contextlib import AsyncExitStack

    from sp2dpo.inference.servers import start_servers
    from sp2dpo.interrupts import wait_unless_stopped

    if teacher.serve is None:
        return
    async with AsyncExitStack() as stack:
        started = start_servers(
            teacher.name, teacher.model, teacher.revision, teacher.serve, log=log, say=_echo
        )
        servers = await wait_unless_stopped(stop, stack.enter_async_context(started))
        if servers is not None:
            for url in servers.urls:
                _echo(f"{teacher.name} is served at {url}; logs: {log.stem}*{log.suffix}")
            await wait_unless_stopped(stop, servers.watch())


def _echo(line: str) -> None:
    from sp2dpo.text import escape_controls

    click.echo(escape_controls(line), err=True)


@click.command("export-requests")
@PAIRS
@PANEL
@RUN_STORE
@click.option("--out", type=FILE, required=True, help="The .jsonl file to write.")
@click.option("--teacher", help="The only teacher to export; all of the panel unless given.")
@RETRY_REFUSED
@SHARD
@click.option("--per-file", type=click.IntRange(min=1), help="Requests in one file at most.")
def export_requests(
    pairs: str | None,
    panel_file: Path,
    store_file: Path,
    out: Path,
    teacher: str | None,
    retry_refused: bool,
    shard: "Shard | None",
    per_file: int | None,
) -> None:
    """Write what is missing as files of requests.

    The files are those of OpenAI's Batch API, one for each teacher; `vllm run-batch` takes them,
    too. No server is asked. `import-replies` takes what comes back.
    """
    from sp2dpo.annotation.request_files import export_requests
    from sp2dpo.panel.panel import load_panel
    from sp2dpo.store.counts import count_replies, reply_count_lines
    from sp2dpo.text import count_noun

    panel = load_panel(panel_file)
    with open_store_with_pairs(pairs, store_file, panel) as store:
        store.questions.restrict_to_shard(shard)
        store.record_panel(panel)
        written = export_requests(
            store, panel, out, teacher=teacher, again=retry_refused, per_file=per_file
        )
        for one in written:
            where = f" in {', '.join(map(str, one.files))}" if one.files else ""
            left = [
                f"  NOT part of it: {it} of an earlier export; remove it" for it in one.leftover
            ]
            print_lines([f"{one.teacher}: {count_noun(one.requests, 'request')}{where}", *left])
        print_lines(reply_count_lines(count_replies(store, panel)))


@click.command("import-replies")
@PANEL
@RUN_STORE
@click.argument("replies", metavar="REPLIES.jsonl...", type=FILE, nargs=-1, required=True)
def import_replies(panel_file: Path, store_file: Path, replies: tuple[Path, ...]) -> None:
    """Take in the replies to exported requests.

    The same file again changes nothing. Whatever was not answered stays pending: export again.
    """
    from sp2dpo.annotation.reply_files import import_replies as take_in
    from sp2dpo.panel.panel import load_panel
    from sp2dpo.store.counts import count_replies, reply_count_lines
    from sp2dpo.text import count_noun

    panel = load_panel(panel_file)
    if not store_file.exists():
        raise FileNotFoundError(f"{store_file}: no such store; `sp2dpo export-requests` makes one")
    with open_store_for_writing(store_file) as store:
        done = take_in(store, panel, replies, say=lambda line: print_lines([line], err=True))
        stored = done.kept + done.refused.total()
        print_lines(
            [
                f"{count_noun(done.lines, 'line')} = {stored} new ({done.kept} kept, "
                f"{done.refused.total()} refused{_named(done.refused)}) + {done.known} known + "
                f"{done.failed.total()} failed{_named(done.failed)} + "
                f"{done.left_out.total()} left out{_named(done.left_out)}"
            ]
        )
        print_lines(reply_count_lines(count_replies(store, panel)))
        silent = [one.name for one in panel.teachers if _is_silent(store, one.name, panel.variants)]
    if done.left_out:
        lines = count_noun(done.left_out.total(), "line")
        raise ValueError(f"{lines} could not be filed; the others are stored")
    if done.empty:
        raise ValueError(f"no line in {', '.join(map(str, done.empty))}")
    if silent:
        raise ValueError(
            f"no reply of {', '.join(silent)} could be kept so far: see that the service heeds "
            "response_format json_schema before you export again (--retry-refused asks all again)"
        )


def _is_silent(store: "Store", teacher: str, variants: tuple[str, ...]) -> bool:
    """Whether a teacher has replied, and nothing that can be read."""
    counts = store.counts(teacher, variants)
    return bool(counts) and "kept" not in counts


@click.command()
@click.option("--out", type=FILE, required=True, help="The store to make, or to add to.")
@click.argument("shards", metavar="SHARD.sqlite...", type=FILE, nargs=-1, required=True)
def merge(out: Path, shards: tuple[Path, ...]) -> None:
    """Put the stores of several shards together into one.

    Their source, rubric, teachers and panel must be the same. More shards may be added later; the
    same ones again change nothing.
    """
    from sp2dpo.store.counts import count_replies, load_recorded_panel, reply_count_lines
    from sp2dpo.store.merge import merge_stores as put_together
    from sp2dpo.store.store import Store
    from sp2dpo.text import count_noun

    done = put_together(out, shards)
    new = count_noun(done.added, "new reply", "new replies")
    lines = [f"{out}: {new} of {count_noun(len(shards), 'store')}"]
    if done.missing:
        lines.append(f"NOT among them: shard {', '.join(map(str, done.missing))}")
    with Store(out) as store:
        print_lines([*lines, *reply_count_lines(count_replies(store, load_recorded_panel(store)))])


def _named(counts: "Counter[str]") -> str:
    named = ", ".join(f"{reason} {count}" for reason, count in sorted(counts.items()))
    return f" ({named})" if named else ""
