"""The commands that carry requests, replies and shares of a store about as files."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from sp2dpo.cli_store import FILE, ShardType, say, taken_in, writing

if TYPE_CHECKING:
    from collections import Counter

    from sp2dpo.shards import Shard
    from sp2dpo.store import Store


@click.command("export-requests")
@click.option("--pairs", metavar="P", help="A .jsonl, .jsonl.gz or .parquet file, or a Hub id.")
@click.option("--panel", "panel_file", type=FILE, required=True, help="Whom to ask what.")
@click.option("--store", "store_file", type=FILE, required=True, help="Where replies are kept.")
@click.option("--out", type=FILE, required=True, help="The .jsonl file to write.")
@click.option("--teacher", help="The only teacher to export; all of the panel unless given.")
@click.option("--retry-refused", is_flag=True, help="Ask again where a reply was refused.")
@click.option("--shard", type=ShardType(), help="Ask about one of N shares of the pairs only.")
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
    from sp2dpo.batch import export
    from sp2dpo.panel import load_panel
    from sp2dpo.summary import tally_lines
    from sp2dpo.tally import tally
    from sp2dpo.terminal import number_of

    panel = load_panel(panel_file)
    with taken_in(pairs, store_file, panel) as store:
        store.backlog.take_shard(shard)
        store.adopt(panel)
        written = export(store, panel, out, teacher=teacher, again=retry_refused, per_file=per_file)
        for one in written:
            where = f" in {', '.join(map(str, one.files))}" if one.files else ""
            left = [
                f"  NOT part of it: {it} of an earlier export; remove it" for it in one.leftover
            ]
            say([f"{one.teacher}: {number_of(one.requests, 'request')}{where}", *left])
        say(tally_lines(tally(store, panel)))


@click.command("import-replies")
@click.option("--panel", "panel_file", type=FILE, required=True, help="Who was asked what.")
@click.option("--store", "store_file", type=FILE, required=True, help="Where replies are kept.")
@click.argument("replies", metavar="REPLIES.jsonl...", type=FILE, nargs=-1, required=True)
def import_replies(panel_file: Path, store_file: Path, replies: tuple[Path, ...]) -> None:
    """Take in the replies to exported requests.

    The same file again changes nothing. Whatever was not answered stays pending: export again.
    """
    from sp2dpo.inbox import import_replies as take_in
    from sp2dpo.panel import load_panel
    from sp2dpo.summary import tally_lines
    from sp2dpo.tally import tally
    from sp2dpo.terminal import number_of

    panel = load_panel(panel_file)
    if not store_file.exists():
        raise FileNotFoundError(f"{store_file}: no such store; `sp2dpo export-requests` makes one")
    with writing(store_file) as store:
        done = take_in(store, panel, replies, say=lambda line: say([line], err=True))
        stored = done.kept + done.refused.total()
        say(
            [
                f"{number_of(done.lines, 'line')} = {stored} new ({done.kept} kept, "
                f"{done.refused.total()} refused{_named(done.refused)}) + {done.known} known + "
                f"{done.failed.total()} failed{_named(done.failed)} + "
                f"{done.left_out.total()} left out{_named(done.left_out)}"
            ]
        )
        say(tally_lines(tally(store, panel)))
        silent = [one.name for one in panel.teachers if _is_silent(store, one.name, panel.variants)]
    if done.left_out:
        lines = number_of(done.left_out.total(), "line")
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
    from sp2dpo.merge import merge as put_together
    from sp2dpo.store import Store
    from sp2dpo.summary import tally_lines
    from sp2dpo.tally import panel_of, tally
    from sp2dpo.terminal import number_of

    done = put_together(out, shards)
    new = number_of(done.added, "new reply", "new replies")
    lines = [f"{out}: {new} of {number_of(len(shards), 'store')}"]
    if done.missing:
        lines.append(f"NOT among them: shard {', '.join(map(str, done.missing))}")
    with Store(out) as store:
        say([*lines, *tally_lines(tally(store, panel_of(store)))])


def _named(counts: "Counter[str]") -> str:
    named = ", ".join(f"{reason} {count}" for reason, count in sorted(counts.items()))
    return f" ({named})" if named else ""
