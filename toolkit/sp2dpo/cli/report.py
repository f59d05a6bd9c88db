"""The commands `status`, `pilot` and `report`."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sp2dpo.cli.options import (
    BETAS,
    COLUMNS,
    DRAWS,
    FILE,
    FOLDER,
    GOLD,
    JSON,
    PAIRS_FROM,
    PANEL,
    PATIENCE,
    SCHEDULE_FILE,
    SEND_KEY,
    SERVE,
    STORE,
    annotation_callbacks,
    confirm_keys,
    print_lines,
    print_result,
)

if TYPE_CHECKING:
    from sp2dpo.pairs.reading import PairsFrom

EXIT_CODES = {"go": 0, "no-go": 3, "ask": 4}
"""Exit code of a pilot, by its decision."""


@click.command()
@STORE
@JSON
def status(store_file: Path, as_json: bool) -> None:
    """Show the progress, cost and remaining time of an annotation run.

    Can be used during the run.
    """
    from sp2dpo.report.status import collect_status
    from sp2dpo.report.text import status_lines

    result = collect_status(store_file)
    print_result(result, status_lines(result), as_json=as_json)
    # An error gives the exit status that a script looks at; the problems are printed above.
    if result.integrity:
        raise ValueError(f"{store_file} is damaged: {result.advice}")


@click.command()
@click.option(
    "--pairs",
    metavar="P",
    required=True,
    help="All pairs, of which a sample is drawn: a file or Hub data set, as in `annotate`.",
)
@COLUMNS
@PAIRS_FROM
@PANEL
@click.option("--store", "store_file", type=FILE, required=True, help="Store for the pilot only.")
@click.option(
    "--n",
    type=click.IntRange(min=1),
    default=300,
    show_default=True,
    help="Number of pairs to draw.",
)
@GOLD
@click.option(
    "--n-gold",
    type=click.IntRange(min=1),
    help="Largest number of pairs with a known label to add to the drawn ones [default: --n].",
)
@click.option(
    "--schedule",
    "schedule_file",
    type=SCHEDULE_FILE,
    help="Schedule YAML file [default: the paper's].",
)
@click.option(
    "--sweep",
    "runs",
    type=click.IntRange(min=1),
    help="Number of runs in a sweep over global betas, to compare its cost with the annotation's.",
)
@click.option(
    "--run-hours",
    type=click.FloatRange(min=0, min_open=True, max=1e9),
    help="GPU hours of one run of that sweep.",
)
@SERVE
@SEND_KEY
@PATIENCE
@JSON
def pilot(
    pairs: str,
    columns: dict[str, str],
    pairs_from: "PairsFrom | None",
    panel_file: Path,
    store_file: Path,
    n: int,
    gold_file: Path | None,
    n_gold: int | None,
    schedule_file: Path | None,
    runs: int | None,
    run_hours: float | None,
    serve: bool,
    send_keys: tuple[str, ...],
    patience: float,
    as_json: bool,
) -> None:
    """Try a panel on a sample: estimate quality, time and cost.

    Prints a verdict with its reasons: go, no-go, or ask for more known labels. The exit code is 0
    for go, 3 for no-go and 4 for ask. A rerun requests only missing replies.
    """
    import sys
    from contextlib import redirect_stdout

    from sp2dpo.panel.panel import load_panel
    from sp2dpo.report.pilot import DEFAULT_SCHEDULE, run_pilot
    from sp2dpo.report.text import pilot_lines

    if run_hours is not None and runs is None:
        raise click.UsageError("--run-hours requires --sweep")
    if n_gold is not None and gold_file is None:
        raise click.UsageError("--n-gold requires --gold")
    # NaN passes click's range, because every comparison with it is false.
    if run_hours is not None and math.isnan(run_hours):
        raise click.UsageError("--run-hours must be a number of hours")
    panel = load_panel(panel_file)
    # Lines about the annotation must not mix with the JSON.
    with redirect_stdout(sys.stderr if as_json else sys.stdout):
        result = run_pilot(
            pairs,
            panel,
            store_file,
            columns=columns,
            pairs_from=pairs_from,
            n=n,
            gold=gold_file,
            n_gold=n_gold,
            schedule=schedule_file or DEFAULT_SCHEDULE,
            runs=runs,
            run_hours=run_hours,
            patience=patience,
            send_keys=confirm_keys(panel.teachers, send_keys),
            **annotation_callbacks(serve=serve),
        )
    print_result(result, ["", *pilot_lines(result)], as_json=as_json)
    if not result.verdict.go:
        sys.exit(EXIT_CODES[result.verdict.decision])


@click.command()
@STORE
@BETAS
@click.option("--out", type=FILE, help="HTML file to write.")
@click.option("--plots", "folder", type=FOLDER, help="Folder for the plots, as PNG and SVG.")
@GOLD
@DRAWS
@JSON
def report(
    store_file: Path,
    betas_file: Path,
    out: Path | None,
    folder: Path | None,
    gold_file: Path | None,
    draws: int,
    as_json: bool,
) -> None:
    """Write an HTML report and plots of an annotation run.

    It shows the betas, the agreement of the teachers, and the checks of `audit`.
    """
    from sp2dpo.report.page import write_report
    from sp2dpo.text import format_json

    if out is None and folder is None and not as_json:
        raise click.UsageError("give --out PAGE.html, --plots FOLDER, --json, or several of them")
    result = write_report(store_file, betas_file, out, plots=folder, gold=gold_file, draws=draws)
    # With --json, stdout is one JSON document.
    print_lines([f"wrote {path}" for path in result.files], err=as_json)
    if as_json:
        click.echo(format_json(result.report))
