"""The commands that check annotations and betas: agreement, estimators, compare, audit."""

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sp2dpo.cli.options import (
    BETAS,
    CHOSEN_SCORE,
    COLUMNS,
    DRAWS,
    FILE,
    GOLD,
    JSON,
    PAIRS_FROM,
    REJECTED_SCORE,
    SCHEDULE_FILE,
    STORE,
    print_lines,
    print_result,
)

if TYPE_CHECKING:
    from sp2dpo.pairs.reading import PairsFrom

FAILED = 3
"""Exit code of an audit that fails `--fail-on`."""


@click.command()
@STORE
@click.option(
    "--schedule",
    "schedule_file",
    type=SCHEDULE_FILE,
    help="Schedule YAML file [default: the paper's].",
)
@click.option(
    "--ids",
    "ids_file",
    type=FILE,
    help="Text file of pairs to use, one pair id or source name per line.",
)
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
    """Measure the agreement of teachers and of prompt variants.

    Prints Krippendorff's alpha with intervals, the agreement of every two teachers, outliers, and
    the pairs about which the teachers disagree.
    """
    from sp2dpo.diagnostics.panel_agreement import measure_store_agreement
    from sp2dpo.diagnostics.text import agreement_lines

    result = measure_store_agreement(
        store_file,
        schedule_file=schedule_file,
        ids_file=ids_file,
        category=category,
        sample=sample,
        draws=draws,
    )
    print_result(result, agreement_lines(result), as_json=as_json)


@click.command()
@STORE
@click.option(
    "--schedule",
    "schedule_file",
    type=SCHEDULE_FILE,
    required=True,
    help="Schedule YAML file that the alternatives are compared with.",
)
@GOLD
@DRAWS
@JSON
def estimators(
    store_file: Path, schedule_file: Path, gold_file: Path | None, draws: int, as_json: bool
) -> None:
    """Compare the betas of every estimator, gap form and map.

    Also uses each teacher and each variant alone. With --gold, measures how well each set of betas
    correlates with the known magnitudes and detects wrong labels.
    """
    from sp2dpo.diagnostics.ablation import compare_store_estimators
    from sp2dpo.diagnostics.text import ablation_lines

    result = compare_store_estimators(store_file, schedule_file, gold_file=gold_file, draws=draws)
    print_result(result, ablation_lines(result), as_json=as_json)


@click.command("gold-size")
@click.option(
    "--accuracy",
    type=click.FloatRange(0, 1),
    required=True,
    help="Assumed share of the pairs with a right label about which the teachers are right.",
)
@click.option(
    "--accuracy-wrong",
    type=click.FloatRange(0, 1),
    help="The same of the pairs with a wrong label [default: that of --accuracy].",
)
@click.option(
    "--power",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.8,
    show_default=True,
    help="Wanted probability that the rule passes.",
)
@JSON
def gold_size(accuracy: float, accuracy_wrong: float | None, power: float, as_json: bool) -> None:
    """Compute how many known labels a pilot needs.

    A pilot with --gold passes its rule `gold` if the teachers are significantly better than chance.
    Prints how many right and wrong labels must be known for the wanted power.
    """
    from sp2dpo.diagnostics.gold_size import gold_size as compute_gold_size
    from sp2dpo.diagnostics.text import gold_size_lines

    for number in (accuracy, accuracy_wrong, power):
        # NaN passes click's range, because every comparison with it is false.
        if number is not None and math.isnan(number):
            raise click.UsageError("--accuracy, --accuracy-wrong and --power must be numbers")
    wrong = accuracy if accuracy_wrong is None else accuracy_wrong
    result = compute_gold_size((accuracy, wrong), power=power)
    print_result(result, gold_size_lines(result), as_json=as_json)


@click.command()
@click.argument("one_file", metavar="A.parquet", type=FILE)
@click.argument("other_file", metavar="B.parquet", type=FILE)
@click.option(
    "--store", "store_file", type=FILE, help="Store, to show the names of the pairs in the source."
)
@click.option(
    "--movers",
    type=click.IntRange(min=0),
    default=10,
    show_default=True,
    help="Number of pairs with the largest changes to list.",
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
    """Compare two files of betas.

    Prints their correlation, the shift of the betas, overall and by category, and the pairs with
    the largest changes.
    """
    from sp2dpo.betas.file import read_betas
    from sp2dpo.diagnostics.comparison import compare_betas
    from sp2dpo.diagnostics.text import comparison_lines
    from sp2dpo.report import plots

    if picture:
        # Before the bootstrap, not after it.
        plots.check_picture_name(picture)
    one, other = read_betas(one_file), read_betas(other_file)
    try:
        result = compare_betas(one, other, store_file=store_file, movers=movers, draws=draws)
    except ValueError as error:
        # `compare_betas` takes tables, and does not know the names of their files.
        raise ValueError(f"{one_file} and {other_file}: {error}") from error
    if picture:
        figure = plots.draw_beta_comparison(one, other, names=(one_file.name, other_file.name))
        plots.save_figure(figure, picture)
    print_result(result, comparison_lines(result, str(one_file), str(other_file)), as_json=as_json)
    if picture:
        # With --json, stdout is one JSON document.
        print_lines([f"wrote {picture}"], err=as_json)


@click.command()
@STORE
@BETAS
@GOLD
@click.option(
    "--fail-on",
    type=click.Choice(["look", "bad"]),
    help=f"Exit with {FAILED} if a check has this verdict or worse.",
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
    """Check replies and betas for common problems.

    The checks look for teachers that guess, clumped betas, length bias, uninformative confidence
    and disputed labels. Each prints a value, its thresholds and, where possible, a 95 % interval.
    """
    from sp2dpo.diagnostics.audit import audit_store
    from sp2dpo.diagnostics.text import audit_lines

    result = audit_store(store_file, betas_file, gold_file=gold_file, draws=draws)
    print_result(result, audit_lines(result), as_json=as_json)
    if fail_on and result.has_failed(fail_on):
        sys.exit(FAILED)


@click.command("export-gold")
@click.option(
    "--pairs", metavar="P", required=True, help="Pairs: a file or a data set, as for `annotate`."
)
@COLUMNS
@PAIRS_FROM
@CHOSEN_SCORE(required=True)
@REJECTED_SCORE(required=True)
@click.option("--out", type=FILE, required=True, help="Output .jsonl file.")
def export_gold(
    pairs: str,
    columns: dict[str, str],
    pairs_from: "PairsFrom | None",
    chosen: str,
    rejected: str,
    out: Path,
) -> None:
    """Write a gold file from scores beside the labels.

    The response with the higher score is the better one; pairs with equal scores are left out. The
    scores must be others than those that the labels were made from.
    """
    from sp2dpo.diagnostics.gold_scores import export_gold
    from sp2dpo.text import count_noun

    result = export_gold(
        pairs, out, chosen=chosen, rejected=rejected, columns=columns, pairs_from=pairs_from
    )
    reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(result.left_out.items()))
    print_lines(
        [
            f"{count_noun(result.pairs, 'pair')} = {result.chosen} right labels + "
            f"{result.rejected} wrong labels + {result.ties} ties + {result.left_out.total()} "
            f"left out{f' ({reasons})' if reasons else ''}; {out} holds the first two"
        ]
    )
    if not result.rejected:
        print_lines(
            [
                "no label contradicts these scores: if the labels were made from them, they "
                "cannot show whether teachers recognise wrong labels"
            ],
            err=True,
        )
