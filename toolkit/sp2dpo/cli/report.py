"""The commands that say how a run stands, and whether to begin a long one."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sp2dpo.cli.options import (
    FILE,
    GOLD,
    JSON,
    PANEL,
    PATIENCE,
    SERVE,
    STORE,
    annotation_callbacks,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sp2dpo.betas.schedule import Schedule
    from sp2dpo.pairs.sources import Source, SourceRow
    from sp2dpo.panel.panel import Panel
    from sp2dpo.report.pilot import Trial
    from sp2dpo.store.store import Store


NO_GO = 3
"""The exit code of a pilot that says no-go."""
_MANY = 20
"""Replies after which a teacher none of which can be read is of no use."""


@click.command()
@STORE
@JSON
def status(store_file: Path, as_json: bool) -> None:
    """Say where a run stands, also while another process annotates."""
    from dataclasses import asdict

    from sp2dpo.report.status import collect_status
    from sp2dpo.report.text import status_lines

    result = collect_status(store_file)
    _print(asdict(result), [] if as_json else status_lines(result), as_json=as_json)
    if result.integrity:
        raise ValueError(
            f"{store_file} is damaged: keep it and its -wal file, and copy what can be read with "
            "`sqlite3 FILE .recover`"
        )


@click.command()
@click.option("--pairs", metavar="P", required=True, help="As for `annotate`: the whole corpus.")
@PANEL
@click.option(
    "--store", "store_file", type=FILE, required=True, help="A store for the pilot alone."
)
@click.option("--n", type=click.IntRange(min=1), default=300, show_default=True, help="Pairs.")
@GOLD
@click.option("--schedule", "schedule_file", type=FILE, help="From replies to betas; or SP2DPO's.")
@click.option("--sweep", "runs", type=click.IntRange(min=1), help="Compare with so many runs.")
@click.option(
    "--run-hours",
    type=click.FloatRange(min=0, min_open=True, max=1e9),
    help="GPU-hours of one run of the sweep.",
)
@SERVE
@PATIENCE
@JSON
def pilot(
    pairs: str,
    panel_file: Path,
    store_file: Path,
    n: int,
    gold_file: Path | None,
    schedule_file: Path | None,
    runs: int | None,
    run_hours: float | None,
    serve: bool,
    patience: float,
    as_json: bool,
) -> None:
    """Try a panel on a sample of the pairs: go or no-go, and at what cost.

    Ends with 0 for go and 3 for no-go. Running it again asks only what is missing.
    """
    import sys
    from contextlib import redirect_stdout
    from dataclasses import asdict, replace

    from sp2dpo.pairs.sources import open_source
    from sp2dpo.report.pilot import evaluate_pilot
    from sp2dpo.report.text import pilot_lines
    from sp2dpo.store.store import Store

    if run_hours is not None and runs is None:
        raise click.UsageError("--run-hours belongs to --sweep")
    if math.isnan(patience):
        raise click.UsageError("--patience must be a number of seconds")
    if run_hours is not None and math.isnan(run_hours):
        raise click.UsageError("--run-hours must be a number of hours")
    source = open_source(pairs)
    trial = _trial(source, n, panel_file, gold_file, schedule_file)
    trial = replace(trial, runs=runs, run_hours=run_hours)
    # What the asking prints is no part of the JSON.
    with redirect_stdout(sys.stderr if as_json else sys.stdout):
        trouble = _try(source, trial, store_file, patience=patience, serve=serve)
    with Store(store_file) as store, store.snapshot():
        result = evaluate_pilot(store, replace(trial, trouble=trouble))
    _print(asdict(result), [] if as_json else ["", *pilot_lines(result)], as_json=as_json)
    if not result.verdict.go:
        sys.exit(NO_GO)


def _trial(
    source: "Source", n: int, panel_file: Path, gold_file: Path | None, schedule_file: Path | None
) -> "Trial":
    """What is to be found out, with all that is wrong with the files found before."""
    from sp2dpo.betas.schedule import load_schedule
    from sp2dpo.diagnostics.gold import check_matched, read_gold
    from sp2dpo.pairs.sample import draw_sample
    from sp2dpo.pairs.sources import read_rows
    from sp2dpo.panel.panel import load_panel
    from sp2dpo.report.pilot import DEFAULT_SCHEDULE, Trial

    panel = load_panel(panel_file)
    schedule = load_schedule(schedule_file) if schedule_file else DEFAULT_SCHEDULE
    _check_estimate(panel, panel_file, schedule)
    truths = read_gold(gold_file, panel.rubric) if gold_file else None
    sample = draw_sample(read_rows(source), n, prefer=[truth.name for truth in truths or ()])
    if not sample.pairs:
        raise ValueError(f"{source}: no row holds a preference pair")
    if truths is not None and gold_file is not None:
        check_matched(truths, sample.preferred, path=gold_file, source=str(source))
    return Trial(panel=panel, sample=sample, schedule=schedule, truths=truths)


def _check_estimate(panel: "Panel", panel_file: Path, schedule: "Schedule") -> None:
    """Refuses a schedule that wants expectations of teachers who give none."""
    silent = [one.name for one in panel.teachers if not one.sampling.get("logprobs")]
    if schedule.estimate == "expected" and silent:
        raise ValueError(
            f"{panel_file}: teacher {', '.join(silent)}: sampling has no `logprobs: true` and "
            "`top_logprobs`, without which the schedule's `estimate: expected` counts no reply; "
            "add them, or write `estimate: sampled`"
        )


def _try(
    source: "Source", trial: "Trial", store_file: Path, *, patience: float, serve: bool
) -> str | None:
    """Asks the panel about the sample; why that ended early, where a teacher is of no use."""
    from dataclasses import replace

    from sp2dpo.annotation.run import annotate_pairs
    from sp2dpo.pairs.sample import read_sampled
    from sp2dpo.pairs.sources import read_rows
    from sp2dpo.store.store import open_store_for_writing

    sampled = len(trial.sample.pair_ids)
    named = replace(source, name=f"{source.name}, sample of {sampled}")
    with open_store_for_writing(store_file) as store:
        _take_in(store, named, read_sampled(read_rows(source), trial.sample))
        try:
            annotate_pairs(
                None, trial.panel, store, patience=patience, **annotation_callbacks(serve=serve)
            )
        except (ValueError, OSError) as error:
            if not _is_hopeless(store, trial.panel):
                raise
            return str(error)
    return None


def _take_in(store: "Store", source: "Source", rows: "Iterator[SourceRow]") -> None:
    try:
        store.corpus.add(source, rows)
    except ValueError as error:
        raise ValueError(
            f"{store.path} holds other pairs than this sample: give every pilot a --store of its "
            "own, which a whole run is never kept in"
        ) from error


def _is_hopeless(store: "Store", panel: "Panel") -> bool:
    """Whether a teacher answers, and says nothing that can be read: that is a finding, no fault."""
    from sp2dpo.store.counts import count_replies

    outcomes = store.questions.outcomes()
    for one in count_replies(store, panel):
        heard = [outcome for outcome in outcomes if outcome.teacher == one.teacher]
        replies = sum((outcome.attempt + 1) * outcome.count for outcome in heard)
        enough = replies >= _MANY or (one.refused and not one.pending)
        if enough and all(outcome.reason is not None for outcome in heard):
            return True
    return False


def _print(found: dict[str, Any], lines: list[str], *, as_json: bool) -> None:
    import json

    for line in [json.dumps(found, indent=2)] if as_json else lines:
        click.echo(line)
