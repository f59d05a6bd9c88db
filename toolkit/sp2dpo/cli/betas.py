"""The commands `schedule` and `explain`."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sp2dpo.cli.options import (
    BETAS,
    FILE,
    SCHEDULE_FILE,
    STORE,
    print_lines,
)

if TYPE_CHECKING:
    from sp2dpo.betas.file import BetaTable


@click.command()
@STORE
@click.option(
    "--schedule",
    "schedule_file",
    type=SCHEDULE_FILE,
    required=True,
    help="Schedule or arm YAML file.",
)
@click.option(
    "--scores", "scores_file", type=FILE, help="Scores written by `score`, for MADPO and ODPO."
)
@click.option(
    "--gold",
    "gold_file",
    type=FILE,
    help="JSON Lines file of pairs with known labels, to which the slope of "
    "`label_smoothing: calibrated` is fitted.",
)
@click.option("--out", type=FILE, required=True, help="Parquet file to write.")
def schedule(
    store_file: Path,
    schedule_file: Path,
    scores_file: Path | None,
    gold_file: Path | None,
    out: Path,
) -> None:
    """Compute one beta per pair from the replies.

    The YAML file is a schedule, or an arm: a baseline or ablation of a schedule.
    """
    from sp2dpo.betas.compute import schedule_store
    from sp2dpo.betas.file import write_betas

    truths = _read_truths(gold_file, store_file) if gold_file else None
    result = schedule_store(store_file, schedule_file, scores_file, truths=truths)
    write_betas(result.betas, out)
    pairs = len(result.betas.table)
    share = (
        f" (shard {result.shard}: {result.shard_pairs} of {pairs} pairs)" if result.shard else ""
    )
    print_lines([*_beta_lines(result.betas, share)])
    if result.pending:
        print_lines(
            [
                f"{result.pending} of {result.requested} replies are still pending: these betas "
                "are not final"
            ]
        )
    if result.uncovered:
        print_lines(
            [
                "warning: the adaptive panel stops when the gap of SP2DPO is near that of all "
                f"replies. This does not cover {result.uncovered}: they may differ from the full "
                "panel's (`budget: full`)"
            ]
        )
    print_lines([f"wrote {out}"])


def _read_truths(gold_file: Path, store_file: Path) -> dict[str, bool]:
    """Return whether the label of each pair is right; true ties are left out."""
    from sp2dpo.diagnostics.gold import load_gold
    from sp2dpo.store.store import Store

    with Store(store_file) as store:
        truths, _ = load_gold(gold_file, store)
    return {name: truth.label == "chosen" for name, truth in truths.items() if truth.label != "tie"}


def _beta_lines(betas: "BetaTable", share: str) -> "Iterator[str]":
    """Yield lines that summarise a table of betas."""
    table, quorum = betas.table, betas.schedule.quorum
    beta = table["beta"].drop_nulls()
    without = len(table) - len(beta)
    yield f"{len(table)} pairs, {without} below the quorum of {quorum} replies{share}"
    # `schedule_store` refuses a table without any beta, so these statistics exist.
    yield f"beta mean {beta.mean():.4g}, min {beta.min():.4g}, max {beta.max():.4g}"
    for key, value in betas.arm.departures().items():
        yield f"{key}: {value}"
    for name in ("weight", "margin"):
        if name in table.columns:
            # Training uses the kept pairs only; an arm may leave the value of the others undefined.
            kept = table.filter("keep")[name]
            yield f"{name} mean {kept.mean():.4g}, min {kept.min():.4g}, max {kept.max():.4g}"
    if betas.labels is not None:
        yield from betas.labels.lines()
        yield from (f"warning: {caution}" for caution in betas.labels.cautions())
    # The column is null throughout if the replies cannot dispute any label.
    if (disputed := table["label_disputed"]).count():
        yield f"{disputed.sum()} labels disputed: the panel considers them wrong"
    flipped = f", {table['flip'].sum()} with their responses exchanged" if "flip" in table else ""
    if betas.arm.departures():
        yield f"{table['keep'].sum()} pairs are kept for training{flipped}"


@click.command()
@click.argument("pair_id")
@STORE
@BETAS
def explain(pair_id: str, store_file: Path, betas_file: Path) -> None:
    """Show how the beta of a pair was computed.

    PAIR_ID is the pair's id, at least eight of its first digits, or its name in the source.
    """
    from sp2dpo.betas.explain import explain_pair

    # `explain_pair` has escaped the control characters in its lines.
    click.echo("\n".join(explain_pair(store_file, betas_file, pair_id).lines))
