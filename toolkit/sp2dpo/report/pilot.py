"""A pilot's findings: how a panel does on a sample, and what the whole corpus would take."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import polars as pl

from sp2dpo.betas.arms import Arm
from sp2dpo.betas.estimators import Product
from sp2dpo.betas.file import BetaTable
from sp2dpo.betas.gaps import average_orders
from sp2dpo.betas.maps import Linear
from sp2dpo.betas.schedule import Schedule, schedule_betas
from sp2dpo.diagnostics.agreement import (
    compare_orders,
    compare_readers,
    panel_reply_gaps,
    teacher_readings,
    variant_readings,
)
from sp2dpo.diagnostics.checks import END, check_betas, envelope_shares
from sp2dpo.diagnostics.gold import Truth, compare_with_gold, match_pairs
from sp2dpo.pairs.sample import Sample
from sp2dpo.panel.panel import Panel
from sp2dpo.report.cost import measure_performance, project_costs, sweep_concurrency, used_by
from sp2dpo.report.verdict import decide
from sp2dpo.store.annotations import AnnotationTable, build_annotation_table
from sp2dpo.store.store import Store
from sp2dpo.store.usage import Usage

BINS = 20
"""Of the histogram; each is a twentieth of the envelope wide."""
_READ = {"gap": pl.Float64, "category": pl.String}
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
USUAL = Schedule(
    beta_min=0.03,
    beta_max=0.3,
    quorum=1,
    estimate="sampled",
    gap=Product(),
    over_variants="median",
    over_teachers="mean",
    map=Linear(),
)
"""SP2DPO's schedule for a pilot that is given none; the quorum is our choice."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What a pilot was to find out.

    Attributes:
        panel: that was asked.
        sample: the pairs.
        schedule: from annotations to betas.
        truths: what is known of some pairs; None where no gold file was given.
        runs: of the sweep to compare with; None for no comparison.
        run_hours: GPU-hours of one of them; None where nobody says.
        trouble: why the asking ended early; None where it did not.
    """

    panel: Panel
    sample: Sample
    schedule: Schedule
    truths: Sequence[Truth] | None = None
    runs: int | None = None
    run_hours: float | None = None
    trouble: str | None = None


def pilot_findings(store: Store, trial: Trial) -> dict[str, Any]:
    """Everything that `sp2dpo pilot` says, as JSON values; what is not known is None.

    Args:
        store: holds the sampled pairs and what the panel said of them.
        trial: what was to be found out.

    Returns:
        sample: rows, set_aside and pairs of the source, sampled, aside (set_aside by reason, with
            the first rows), and the strata.
        panel: rubric, sha256, protocol, variants, budget. schedule: that was used.
        trouble: why the asking ended early.
        teachers: see `cost.measure_performance`.
        betas: see `_betas`.
        agreement: between_teachers and between_variants as `agreement.comparisons` makes them,
            spread (over the pairs that several teachers have read) and agreement as means over
            the pairs, position (blind, else None).
        gold: see `gold.compare_with_gold`; None without.
        projection: see `cost.project_costs`, without starting the servers; None where the
            asking ended early. sweep: beside it; None where nobody asked.
        verdict: go and rules.

    Raises:
        ValueError: the gold file names pairs in two ways, or the schedule wants what is not there.
    """
    annotations = _annotations(store, trial.panel)
    made = BetaTable(
        table=schedule_betas(annotations, trial.schedule),
        arm=Arm(of=trial.schedule),
        annotations_hash=annotations.hash,
    )
    used = used_by(store, trial.panel)
    teachers = measure_performance(store, trial.panel, used)
    replies = panel_reply_gaps(annotations, trial.schedule.estimator)
    agreement = _agreement(annotations, replies, made.table, trial)
    position, gold = agreement["position"], _gold(store, made.table, trial)
    between = agreement["between_teachers"]
    told = _betas(made)
    return {
        "sample": _sample(trial.sample),
        "panel": _panel(trial.panel),
        "schedule": trial.schedule.as_mapping(),
        "trouble": trial.trouble,
        "teachers": teachers,
        "betas": told,
        "agreement": agreement,
        "gold": gold,
        **_cost(trial, used),
        "verdict": decide(
            teachers,
            told,
            check_betas(made, average_orders(replies), between),
            position=position,
            gold=gold,
        ),
    }


def _annotations(store: Store, panel: Panel) -> AnnotationTable:
    """What was kept, by the panel's own teachers and variants; there may be nothing."""
    if not any(one.reason is None for one in store.questions.outcomes()):
        return build_annotation_table([], pair_ids=store.corpus.pair_ids(), rubric=panel.rubric)
    held = store.annotations()
    names = [teacher.name for teacher in panel.teachers]
    asked = pl.col("teacher").is_in(names) & pl.col("variant").is_in(panel.variants)
    return AnnotationTable(
        replies=held.replies.filter(asked), pair_ids=held.pair_ids, rubric=held.rubric
    )


def _agreement(
    annotations: AnnotationTable, replies: pl.DataFrame, table: pl.DataFrame, trial: Trial
) -> dict[str, Any]:
    panel = trial.panel
    names, categories = [one.name for one in panel.teachers], list(panel.rubric.categories)
    nothing = pl.DataFrame(schema={"reader": pl.String, "pair_id": pl.String, **_READ})
    there = not replies.is_empty()
    teachers = teacher_readings(replies, categories, trial.schedule.estimator) if there else nothing
    variants = variant_readings(replies, categories) if there else nothing
    return {
        "agreement": table["agreement"].mean(),
        "spread": table.filter(pl.col("teachers") > 1)["spread"].mean(),
        "between_teachers": compare_readers(teachers, names),
        "between_variants": compare_readers(variants, list(panel.variants)),
        "position": compare_orders(annotations.replies, names) if panel.rubric.blind else None,
    }


def _betas(made: BetaTable) -> dict[str, Any]:
    """Where the betas stand in the envelope: floor and ceiling are its lowest and highest 5 %.

    Returns:
        pairs, with_beta; mean, std; quantiles, the betas at `QUANTILES`; floor and ceiling, shares
        of the betas; histogram, counts over `BINS` parts of the envelope, from the lowest on: a
        part holds its lower border, the last one its upper border too.
    """
    beta, shares = made.table["beta"].drop_nulls(), envelope_shares(made.table, made.schedule)
    shares = shares.drop_nulls()
    bins = (shares * BINS).floor().clip(0, BINS - 1).cast(pl.Int32).to_list()
    return {
        "pairs": len(made.table),
        "with_beta": len(beta),
        "mean": beta.mean(),
        "std": beta.std(ddof=0),
        "quantiles": {str(at): beta.quantile(at, "linear") for at in QUANTILES},
        "floor": (shares <= END).mean(),
        "ceiling": (shares >= 1 - END).mean(),
        "histogram": [bins.count(number) for number in range(BINS)],
    }


def _gold(store: Store, table: pl.DataFrame, trial: Trial) -> dict[str, Any] | None:
    if trial.truths is None:
        return None
    truths = match_pairs(trial.truths, store.corpus.names())
    return compare_with_gold(table, truths, trial.panel.rubric, gold_count=len(trial.truths))


def _cost(trial: Trial, used: dict[str, Usage]) -> dict[str, Any]:
    if trial.trouble is not None:
        return {"projection": None, "sweep": None}
    sample = trial.sample
    found = project_costs(trial.panel, used, tried=len(sample.pair_ids), pairs=sample.pairs)
    beside = None
    if trial.runs is not None:
        beside = sweep_concurrency(found, runs=trial.runs, run_hours=trial.run_hours)
    return {"projection": found, "sweep": beside}


def _sample(sample: Sample) -> dict[str, Any]:
    return {
        "rows": sample.rows,
        "set_aside": sample.set_aside,
        "pairs": sample.pairs,
        "sampled": len(sample.pair_ids),
        "aside": [asdict(aside) for aside in sample.skipped],
        "strata": [asdict(stratum) for stratum in sample.strata],
    }


def _panel(panel: Panel) -> dict[str, Any]:
    return {
        "rubric": panel.rubric.name,
        "sha256": panel.rubric.hash,
        "protocol": panel.rubric.protocol,
        "variants": list(panel.variants),
        "budget": panel.budget,
    }
