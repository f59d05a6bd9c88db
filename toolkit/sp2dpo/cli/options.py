"""What commands share: options, how a store is opened to be written to, what they say."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from click.decorators import FC

    from sp2dpo.panel.panel import Panel
    from sp2dpo.store.questions import Shard
    from sp2dpo.store.store import Store


FILE = click.Path(path_type=Path, dir_okay=False)
FOLDER = click.Path(path_type=Path, file_okay=False)
STORE = click.option(
    "--store", "store_file", type=FILE, required=True, help="Store written by `annotate`."
)
RUN_STORE = click.option(
    "--store", "store_file", type=FILE, required=True, help="Store that the replies go to."
)
BETAS = click.option(
    "--betas", "betas_file", type=FILE, required=True, help="Betas written by `schedule`."
)
PAIRS = click.option(
    "--pairs", metavar="P", help="A .jsonl, .jsonl.gz or .parquet file, or a dataset on the Hub."
)
PANEL = click.option("--panel", "panel_file", type=FILE, required=True, help="Panel YAML file.")
GOLD = click.option(
    "--gold", "gold_file", type=FILE, help="JSON Lines file of pairs whose truth is known."
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
PATIENCE = click.option(
    "--patience",
    type=click.FloatRange(min=0, max=1e6),
    default=900,
    show_default=True,
    help="Seconds without any reply from a model after which the run ends.",
)
SERVE = click.option(
    "--serve", is_flag=True, help="Start the servers described in the YAML without asking first."
)
RETRY_REFUSED = click.option(
    "--retry-refused", is_flag=True, help="Ask again where a reply was refused."
)


def draws_option(default: int) -> "Callable[[FC], FC]":
    """Return the option `--draws`, the number of bootstrap samples, with a command's default."""
    return click.option(
        "--draws",
        type=click.IntRange(min=1, max=100_000),
        default=default,
        show_default=True,
        help="Number of bootstrap samples for the intervals.",
    )


DRAWS = draws_option(1000)


class ShardType(click.ParamType):
    """`I/N`."""

    name = "I/N"

    def convert(
        self, value: str, param: click.Parameter | None, ctx: click.Context | None
    ) -> "Shard":
        """Parse a shard."""
        from sp2dpo.store.questions import Shard

        try:
            return Shard.parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


SHARD = click.option("--shard", type=ShardType(), help="Annotate only shard I of N of the pairs.")


def print_lines(lines: Sequence[str], *, err: bool = False) -> None:
    """Prints lines, whatever is in them."""
    from sp2dpo.text import escape_controls

    for line in lines:
        click.echo(escape_controls(line), err=err)


@contextmanager
def open_store_for_writing(store_file: Path, *, keep: bool = True) -> "Iterator[Store]":
    """The store, to be written to by this process alone.

    Args:
        store_file: the file; it is made where it is not.
        keep: whether a new one may stay; one that took no pair in never does.
    """
    from sp2dpo.store.database import only_writer
    from sp2dpo.store.store import Store

    with only_writer(store_file):
        goes = not store_file.exists()
        try:
            with Store(store_file, write=True) as store:
                try:
                    yield store
                finally:
                    source = store.corpus.source()
                    goes = goes and not (keep and source and source.pairs)
        finally:
            if goes:
                store_file.unlink(missing_ok=True)


@contextmanager
def open_store_with_pairs(
    pairs: str | None, store_file: Path, panel: "Panel", *, keep: bool = True
) -> "Iterator[Store]":
    """The store, to be written to, with the pairs in it and nothing that contradicts the panel.

    Args:
        pairs: where they are; None where the store has them.
        store_file: the file.
        panel: that is to be asked.
        keep: as `writing`.
    """
    from sp2dpo.pairs.sources import open_source, read_rows
    from sp2dpo.store.counts import source_lines

    source = open_source(pairs) if pairs else None
    if source is None and not store_file.exists():
        raise click.UsageError(f"{store_file} does not exist yet: say where the --pairs are")
    with open_store_for_writing(store_file, keep=keep) as store:
        if source:
            store.corpus.add(source, read_rows(source))
        print_lines(source_lines(store.corpus))
        read_in = store.corpus.source()
        if read_in is None or not read_in.pairs:
            raise ValueError(f"{source or store_file}: no row holds a preference pair")
        store.check_panel(panel)
        yield store
