"""The commands that look at annotations and betas: agreement, estimators, compare, audit."""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sp2dpo.cli.options import BETAS, DRAWS, FILE, GOLD, JSON, STORE, load_gold, print_lines

if TYPE_CHECKING:
    from sp2dpo.store.store import Store


FAILED = 3
"""The exit code of an audit that `--fail-on` does not take."""


@click.command()
@STORE
@click.option(
    "--schedule", "schedule_file", type=FILE, help="Schedule YAML file [default: SP2DPO's]."
)
@click.option("--ids", "ids_file", type=FILE, help="File of pairs to use, one id or name a line.")
@click.option("--category", help="Use only pairs whose most frequent category is this one.")
@click.option("--sample", type=click.IntRange(min=1), help="Use a random sample of this size.")
@DRAWS
@JSON
def agreement(
    store_file: Path,
    schedule_file: Path | None,
    ids_file: Path | None,
    category: str | None,
    sample: int | None,
    draws: int,
    as_json: bool,
) -> None:
    """Show how far the teachers, and the variants, agree.

    Krippendorff's alpha with intervals, all twos, who stands out, and which pairs split the panel.
    """
    from sp2dpo.betas.estimators import JMAMP
    from sp2dpo.betas.schedule import load_schedule
    from sp2dpo.diagnostics.panel_agreement import measure_agreement, select_pairs
    from sp2dpo.diagnostics.text import agreement_lines
    from sp2dpo.store.store import Store

    estimator = load_schedule(schedule_file).estimator if schedule_file else JMAMP
    with Store(store_file) as store, store.snapshot():
        annotations = store.annotations()
        wanted = _named(ids_file, store) if ids_file else None
        some = select_pairs(annotations, pair_ids=wanted, category=category, sample=sample)
        found = measure_agreement(some, estimator, draws=draws)
        _name(found["splits"]["pairs"], store)
    _print(found, agreement_lines(found), as_json=as_json)


def _named(path: Path, store: "Store") -> set[str]:
    """The pairs that the lines of a file name.

    Raises:
        ValueError: a line names no pair, or the file has none.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").split("\n")]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 at byte {error.start + 1}") from error
    names = [line for line in lines if line]
    if not names:
        raise ValueError(f"{path}: no line names a pair")
    known: dict[str, str] = {}
    for pair_id, source_id in store.corpus.names():
        known[pair_id] = pair_id
        if source_id is not None:
            known.setdefault(source_id, pair_id)
    missing = [name for name in names if name not in known]
    if missing:
        raise ValueError(
            f"{path}: {len(missing)} of {len(names)} lines name no pair of {store.path}, the first "
            f"is {missing[0]!r}; a name is a pair's id, or the source's own name for it"
        )
    return {known[name] for name in names}


@click.command()
@STORE
@click.option(
    "--schedule",
    "schedule_file",
    type=FILE,
    required=True,
    help="Schedule YAML file, the baseline.",
)
@GOLD
@DRAWS
@JSON
def estimators(
    store_file: Path, schedule_file: Path, gold_file: Path | None, draws: int, as_json: bool
) -> None:
    """Show the betas under every estimator, gap form and map: the ensembling ablation.

    With --gold also how well each follows the known magnitude, and finds wrong labels.
    """
    from sp2dpo.betas.schedule import load_schedule
    from sp2dpo.diagnostics.ablation import compare_estimators
    from sp2dpo.diagnostics.text import ablation_lines
    from sp2dpo.store.store import Store

    schedule = load_schedule(schedule_file)
    with Store(store_file) as store, store.snapshot():
        annotations = store.annotations()
        truths = load_gold(gold_file, store)[0] if gold_file else None
    rows = compare_estimators(annotations, schedule, truths=truths, draws=draws)
    found = {"schedule": schedule.as_mapping(), "draws": draws, "rows": rows}
    _print(found, ablation_lines(rows, draws=draws), as_json=as_json)


@click.command()
@click.argument("one_file", metavar="A.parquet", type=FILE)
@click.argument("other_file", metavar="B.parquet", type=FILE)
@click.option("--store", "store_file", type=FILE, help="Store, to show the source names of pairs.")
@click.option(
    "--movers", type=click.IntRange(min=0), default=10, show_default=True, help="Pairs to list."
)
@click.option("--picture", type=FILE, help="Scatter plot to write, .png or .svg.")
@DRAWS
@JSON
def compare(
    one_file: Path,
    other_file: Path,
    store_file: Path | None,
    movers: int,
    picture: Path | None,
    draws: int,
    as_json: bool,
) -> None:
    """Compare two files of betas: correlation, shift, what moved, by category."""
    from sp2dpo.betas.file import read_betas
    from sp2dpo.diagnostics.comparison import compare_betas
    from sp2dpo.diagnostics.text import comparison_lines
    from sp2dpo.report import plots
    from sp2dpo.store.store import Store

    if picture:
        plots.check_picture_name(picture)
    one, other = read_betas(one_file), read_betas(other_file)
    try:
        found = compare_betas(one, other, movers=movers, draws=draws)
    except ValueError as error:
        raise ValueError(f"{one_file} and {other_file}: {error}") from error
    if store_file:
        with Store(store_file) as store:
            _name(found["movers"], store)
    if picture:
        figure = plots.draw_beta_comparison(one, other, names=(one_file.name, other_file.name))
        plots.save_figure(figure, picture)
    _print(found, comparison_lines(found, str(one_file), str(other_file)), as_json=as_json)
    if picture:
        print_lines([f"wrote {picture}"], err=as_json)


@click.command()
@STORE
@BETAS
@GOLD
@click.option(
    "--fail-on",
    type=click.Choice(["look", "bad"]),
    help=f"Exit with {FAILED} if a check has this verdict or a worse one.",
)
@DRAWS
@JSON
def audit(
    store_file: Path,
    betas_file: Path,
    gold_file: Path | None,
    fail_on: str | None,
    draws: int,
    as_json: bool,
) -> None:
    """Test betas for what goes wrong: guessing, clumping, length bias, noise.

    Every check has a number, an interval where there is one, and thresholds.
    """
    from sp2dpo.betas.file import open_store_and_betas
    from sp2dpo.diagnostics.audit import audit_betas as audit_of
    from sp2dpo.diagnostics.audit import has_failed
    from sp2dpo.diagnostics.text import audit_lines

    with open_store_and_betas(store_file, betas_file) as (store, made, annotations):
        truths, given = load_gold(gold_file, store) if gold_file else (None, 0)
        found = audit_of(
            made, annotations, store.corpus.lengths(), truths=truths, gold_count=given, draws=draws
        )
    _print(found, audit_lines(found), as_json=as_json)
    if fail_on and has_failed(found, fail_on):
        sys.exit(FAILED)


def _name(rows: list[dict[str, Any]], store: "Store") -> None:
    """Adds the source's own names to rows that have a pair_id."""
    names = store.corpus.source_ids([row["pair_id"] for row in rows])
    for row in rows:
        row["source_id"] = names.get(row["pair_id"])


def _print(found: dict[str, Any], lines: Iterable[str], *, as_json: bool) -> None:
    import json

    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        print_lines(list(lines))
