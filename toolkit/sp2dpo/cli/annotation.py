"""The commands that annotate pairs: with servers, by files, in shards."""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from sp2dpo.cli.options import (
    CHOSEN_SCORE,
    COLUMNS,
    FILE,
    PAIRS,
    PAIRS_FROM,
    PANEL,
    PANEL_FILE,
    PATIENCE,
    REJECTED_SCORE,
    RETRY_REFUSED,
    RUN_STORE,
    SEND_KEY,
    SERVE,
    SHARD,
    annotation_callbacks,
    confirm_keys,
    print_lines,
)

if TYPE_CHECKING:
    from collections import Counter

    from sp2dpo.pairs.reading import PairsFrom
    from sp2dpo.store.corpus import Corpus
    from sp2dpo.store.questions import Shard


@click.command()
@PAIRS
@COLUMNS
@PAIRS_FROM
@click.option(
    "--panel", "panel_file", type=PANEL_FILE, help="Panel YAML file; required except with --reread."
)
@RUN_STORE
@PATIENCE
@RETRY_REFUSED
@SHARD
@SERVE
@SEND_KEY
@click.option(
    "--dry-run",
    is_flag=True,
    help="Print the requests that would be sent; send none and write nothing.",
)
@click.option(
    "--reread",
    is_flag=True,
    help="Keep refused replies that can be read now, and end; needs only --store.",
)
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="Send the requests from this machine, or from all nodes of a Ray cluster.",
)
@click.option(
    "--ray-address",
    metavar="A",
    help="Address of the Ray cluster [default: $RAY_ADDRESS, or a new local cluster].",
)
def annotate(
    pairs: str | None,
    columns: dict[str, str],
    pairs_from: "PairsFrom | None",
    panel_file: Path | None,
    store_file: Path,
    patience: float,
    retry_refused: bool,
    shard: "Shard | None",
    serve: bool,
    send_keys: tuple[str, ...],
    dry_run: bool,
    reread: bool,
    engine: Literal["local", "ray"],
    ray_address: str | None,
) -> None:
    """Annotate pairs with a panel of teacher models.

    Sends each pair to every teacher, once per prompt variant, and writes the replies to a store.
    Safe to interrupt: run the same command again to request only the missing replies. Once the
    store exists, --pairs is optional. Refused replies in the store that can be read now are kept
    first, without a request.
    """
    if reread:
        if dry_run or retry_refused:
            raise click.UsageError("--reread sends no request: omit --dry-run and --retry-refused")
        _reread(store_file, panel_file)
        return
    if panel_file is None:
        raise click.UsageError("Missing option '--panel'.")
    from sp2dpo.annotation.dry_run import plan_lines
    from sp2dpo.annotation.run import annotate_pairs, open_store_with_pairs
    from sp2dpo.panel.panel import load_panel

    panel = load_panel(panel_file)
    if ray_address is not None and engine != "ray":
        raise click.UsageError("--ray-address requires --engine ray")
    if engine == "ray" and find_spec("ray") is None:
        raise click.UsageError('--engine ray needs Ray: pip install "sp2dpo[ray]"')
    _require_pairs(pairs, store_file, how=columns or pairs_from)
    if dry_run:
        # A store that is created for the plan alone is removed again (`keep=False`).
        with open_store_with_pairs(
            pairs,
            panel,
            store_file,
            columns=columns,
            pairs_from=pairs_from,
            keep=False,
            on_source=_print_source,
        ) as store:
            print_lines(plan_lines(store, panel, shard=shard))
        return
    result = annotate_pairs(
        pairs,
        panel,
        store_file,
        columns=columns,
        pairs_from=pairs_from,
        retry_refused=retry_refused,
        shard=shard,
        patience=patience,
        engine=engine,
        ray_address=ray_address,
        send_keys=confirm_keys(panel.teachers, send_keys),
        on_source=_print_source,
        **annotation_callbacks(serve=serve),
    )
    # --retry-refused is not available for an adaptive panel.
    if panel.budget == "full" and result.refused:
        print_lines(["use --retry-refused to request refused replies once more"])


def _reread(store_file: Path, panel_file: Path | None) -> None:
    from sp2dpo.panel.panel import load_panel
    from sp2dpo.store.counts import count_replies, load_recorded_panel, reply_count_lines
    from sp2dpo.store.reread import reread_lines, reread_replies
    from sp2dpo.store.store import open_store_for_writing

    if not store_file.exists():
        raise FileNotFoundError(f"{store_file}: no such store; `sp2dpo annotate` creates one")
    with open_store_for_writing(store_file) as store:
        panel = load_recorded_panel(store)
        if panel_file is not None:
            panel = load_panel(panel_file)
            store.check_panel(panel)
        lines = reread_lines(reread_replies(store)) or ["no refused reply holds a text to read"]
        print_lines([*lines, *reply_count_lines(count_replies(store, panel))])


def _require_pairs(pairs: str | None, store_file: Path, *, how: object) -> None:
    if pairs is None and how:
        raise click.UsageError("--columns and --pairs-from say how --pairs are read: give --pairs")
    if pairs is None and not store_file.exists():
        raise click.UsageError(f"{store_file} does not exist yet: give --pairs")


def _print_source(corpus: "Corpus") -> None:
    from sp2dpo.store.counts import source_lines

    print_lines(source_lines(corpus))


@click.command()
@click.argument("panel_file", metavar="PANEL.yaml", type=PANEL_FILE)
@click.option("--teacher", "name", required=True, help="Name of the teacher to serve.")
@click.option("--log", type=FILE, help="Log file of the server [default: serve.TEACHER.log].")
def serve(panel_file: Path, name: str, log: Path | None) -> None:
    """Run the vLLM server of one teacher until interrupted.

    Prints the command of the server and starts it without asking.
    """
    from sp2dpo.annotation.serving import serve_teacher
    from sp2dpo.interrupts import Interrupted

    try:
        serve_teacher(panel_file, name, log=log, report=lambda line: print_lines([line], err=True))
    except Interrupted as stopped:
        raise SystemExit(128 + stopped.number) from None  # without the hint to run it again


@click.command("export-requests")
@PAIRS
@COLUMNS
@PAIRS_FROM
@PANEL
@RUN_STORE
@click.option(
    "--out",
    type=FILE,
    required=True,
    help="Output .jsonl file; with several teachers, -TEACHER is inserted before .jsonl.",
)
@click.option("--teacher", help="Export the requests to this teacher only [default: all teachers].")
@RETRY_REFUSED
@SHARD
@click.option("--per-file", type=click.IntRange(min=1), help="Maximum number of requests per file.")
def export_requests(
    pairs: str | None,
    columns: dict[str, str],
    pairs_from: "PairsFrom | None",
    panel_file: Path,
    store_file: Path,
    out: Path,
    teacher: str | None,
    retry_refused: bool,
    shard: "Shard | None",
    per_file: int | None,
) -> None:
    """Write requests for missing replies to batch files.

    Writes one file for each teacher, in the format of OpenAI's Batch API, which `vllm run-batch`
    reads too. No request is sent. `import-replies` stores the replies.
    """
    from sp2dpo.annotation.request_files import export_requests
    from sp2dpo.panel.panel import load_panel
    from sp2dpo.store.counts import reply_count_lines
    from sp2dpo.text import count_noun

    panel = load_panel(panel_file)
    _require_pairs(pairs, store_file, how=columns or pairs_from)
    result = export_requests(
        pairs,
        panel,
        store_file,
        out,
        columns=columns,
        pairs_from=pairs_from,
        teacher=teacher,
        retry_refused=retry_refused,
        shard=shard,
        per_file=per_file,
        on_source=_print_source,
    )
    for export in result.exports:
        where = f" in {', '.join(map(str, export.files))}" if export.files else ""
        print_lines([f"{export.teacher}: {count_noun(export.requests, 'request')}{where}"])
        print_lines(
            [
                f"  NOT part of it: {file} of an earlier export; remove it"
                for file in export.leftover
            ]
        )
    print_lines(reply_count_lines(result.teachers))


@click.command("import-replies")
@PANEL
@RUN_STORE
@click.argument("replies", metavar="REPLIES.jsonl...", type=FILE, nargs=-1, required=True)
def import_replies(panel_file: Path, store_file: Path, replies: tuple[Path, ...]) -> None:
    """Store the replies to exported requests.

    Importing the same file again changes nothing. Requests without a reply stay pending and can be
    exported again.
    """
    from sp2dpo.annotation.reply_files import import_replies
    from sp2dpo.store.counts import reply_count_lines
    from sp2dpo.text import count_noun

    result = import_replies(
        replies, panel_file, store_file, report=lambda line: print_lines([line], err=True)
    )
    refused, failed, left_out = (
        f"{counts.total()} {outcome}{_reasons(counts)}"
        for counts, outcome in (
            (result.refused, "refused"),
            (result.failed, "failed"),
            (result.left_out, "left out"),
        )
    )
    new = result.kept + result.refused.total()
    print_lines(
        [
            f"{count_noun(result.lines, 'line')} = {new} new ({result.kept} kept, {refused}) + "
            f"{result.known} known + {failed} + {left_out}",
            *reply_count_lines(result.teachers),
        ]
    )
    # All usable lines are stored by now; an error gives the exit status that a script looks at.
    if result.left_out:
        lines = count_noun(result.left_out.total(), "line")
        raise ValueError(f"{lines} could not be stored; the others are stored")
    if result.empty:
        raise ValueError(f"no line in {', '.join(map(str, result.empty))}")
    if result.silent:
        raise ValueError(
            f"no reply of {', '.join(result.silent)} is valid so far: {result.advice}; "
            "--retry-refused exports all of them again"
        )


@click.command("import-scores")
@RUN_STORE
@click.option("--teacher", required=True, help="Name to store the scores under.")
@CHOSEN_SCORE()
@REJECTED_SCORE()
@click.option(
    "--strength",
    metavar="COLUMN",
    help="Column with the strength of the preference, in place of two scores.",
)
@click.option(
    "--votes",
    metavar="COLUMN",
    help="Column with a list of the annotators' strengths; their agreement is the confidence.",
)
@click.option(
    "--width",
    type=float,
    required=True,
    help="Largest possible difference of two scores (9 for scores from 1 to 10), or strength.",
)
@click.option(
    "--confidence",
    type=int,
    help="Confidence of all replies, on the rubric's scale; omit it with --votes.",
)
@click.option("--category", required=True, help="Category of all replies; scores have none.")
@click.option(
    "--panel",
    "panel_file",
    type=PANEL_FILE,
    help="Panel YAML file, for a store without replies [default: the store's panel].",
)
def import_scores(
    store_file: Path,
    teacher: str,
    chosen: str | None,
    rejected: str | None,
    strength: str | None,
    votes: str | None,
    width: float,
    confidence: int | None,
    category: str,
    panel_file: Path | None,
) -> None:
    """Store a data set's own scores as the replies of a teacher.

    The scores are read from columns that stay with the pairs, such as score_chosen and
    score_rejected; A.B names a value inside a column. Importing them again changes nothing. Under a
    blind rubric, scores that contradict no label are refused, because they only repeat the labels.
    """
    from sp2dpo.annotation.score_replies import import_scores
    from sp2dpo.pairs.source_scores import ScoreColumns
    from sp2dpo.text import count_noun

    scores = ScoreColumns(
        chosen=chosen, rejected=rejected, strength=strength, votes=votes, width=width
    )
    result = import_scores(
        store_file, teacher, scores, confidence=confidence, category=category, panel=panel_file
    )
    print_lines(
        [
            f"{teacher}: {count_noun(result.pairs, 'pair')} = {result.added} new + {result.known} "
            f"known + {result.left_out.total()} left out{_reasons(result.left_out)}"
        ]
    )
    if result.blind:
        decided = result.agreeing + result.contradicting
        print_lines([f"the scores contradict {result.contradicting} of {decided} labels"])
    if result.repeats_labels:
        print_lines(
            [
                "warning: so few that the labels may have been made from these scores; then checks "
                "of validity and soft labels confirm the labels by themselves: import the scores "
                "under a labelled rubric instead"
            ],
            err=True,
        )


@click.command()
@click.option("--out", type=FILE, required=True, help="Store to create or to add to.")
@click.argument("shards", metavar="SHARD.sqlite...", type=FILE, nargs=-1, required=True)
def merge(out: Path, shards: tuple[Path, ...]) -> None:
    """Merge the stores of several shards into one.

    All stores must have the same source, rubric, teachers and panel. More shards can be added
    later; merging a shard again changes nothing.
    """
    from sp2dpo.store.counts import reply_count_lines
    from sp2dpo.store.merge import merge_stores
    from sp2dpo.text import count_noun

    result = merge_stores(out, shards)
    added = count_noun(result.added, "new reply", "new replies")
    print_lines([f"{out}: {added} of {count_noun(len(shards), 'store')}"])
    if result.missing:
        print_lines([f"missing: shard {', '.join(map(str, result.missing))}"])
    print_lines(reply_count_lines(result.teachers))


def _reasons(counts: "Counter[str]") -> str:
    listed = ", ".join(f"{reason} {count}" for reason, count in sorted(counts.items()))
    return f" ({listed})" if listed else ""
