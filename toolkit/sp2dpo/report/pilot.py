"""Try a panel on a sample of the pairs, and project the cost of annotating the whole corpus."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import polars as pl

from sp2dpo.annotation.run import (
    AnnotationResult,
    NoReplyKept,
    Progress,
    annotate_pairs,
    do_nothing,
    no_progress,
)
from sp2dpo.annotation.teacher import NOTHING_READABLE
from sp2dpo.betas.arms import Arm
from sp2dpo.betas.estimators import Product
from sp2dpo.betas.file import BetaTable
from sp2dpo.betas.gaps import average_orders
from sp2dpo.betas.maps import Linear
from sp2dpo.betas.schedule import Schedule, load_schedule, schedule_betas
from sp2dpo.diagnostics.agreement import (
    OrderConsistency,
    compare_orders,
    panel_reply_gaps,
    teacher_readings,
)
from sp2dpo.diagnostics.bootstrap import DRAWS
from sp2dpo.diagnostics.checks import END, check_betas, envelope_shares
from sp2dpo.diagnostics.gold import (
    GoldComparison,
    Truth,
    check_matched,
    compare_with_gold,
    match_pairs,
    read_gold,
)
from sp2dpo.diagnostics.validity import check_validity
from sp2dpo.inference.endpoint import Endpoint
from sp2dpo.inference.errors import EndpointError
from sp2dpo.pairs.reading import PairsFrom
from sp2dpo.pairs.sample import Sample, SkippedPairs, Stratum, draw_sample, read_sampled
from sp2dpo.pairs.sources import Source, choose_source, read_rows
from sp2dpo.pairs.tally import ReadingSummary, no_pair_error
from sp2dpo.panel.panel import Panel, load_panel
from sp2dpo.report.cost import (
    CostProjection,
    SweepComparison,
    TeacherPerformance,
    compare_with_sweep,
    measure_performance,
    measure_usage,
    project_costs,
)
from sp2dpo.report.report import Agreement, compare_panel, mean
from sp2dpo.report.verdict import Verdict, decide
from sp2dpo.store.annotations import AnnotationTable, build_annotation_table
from sp2dpo.store.store import Store, open_store_for_writing

BINS = 20
"""Number of bars in the histogram of beta; each covers a twentieth of the envelope."""
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
# JMAMP (arXiv 2601.22385, section 4.3.3): the median over the variants, then the mean over the
# teachers. The paper does not publish the gap of a single reply; `Product` is our choice.
DEFAULT_SCHEDULE = Schedule(
    beta_min=0.03,
    beta_max=0.3,
    quorum=1,
    estimate="sampled",
    gap=Product(),
    over_variants="median",
    over_teachers="mean",
    map=Linear(),
)
"""SP2DPO's schedule, for a pilot without a schedule file. The quorum is our choice."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Settings and sample of a pilot.

    Attributes:
        panel: panel that is asked.
        sample: sampled pairs.
        schedule: schedule that turns the annotations into betas.
        truths: known labels of some pairs; None without a gold file.
        runs: training runs of the sweep to compare with; None for no comparison.
        run_hours: GPU-hours of one run; None if unknown.
        trouble: why the annotation ended early; None if it was completed.
    """

    panel: Panel
    sample: Sample
    schedule: Schedule
    truths: Sequence[Truth] | None = None
    runs: int | None = None
    run_hours: float | None = None
    trouble: str | None = None


@dataclass(frozen=True, kw_only=True)
class SampleSummary:
    """Rows of the source and pairs of the sample.

    Attributes:
        rows: number of rows of the source.
        set_aside: number of rows without a usable pair.
        pairs: number of distinct pairs of the source.
        sampled: number of annotated pairs: those that were drawn, and pairs with a known label.
        drawn: number of drawn pairs. Refusals, throughput, betas, checks, agreement and cost are
            about these alone, because pairs with a known label are no random sample of the source.
        skipped: the rows without a usable pair, by reason.
        strata: the strata that the sample was drawn from.
        reading: shapes and implicit prompts of the source.
        marked_pairs: number of pairs in the sample with control tokens of chat templates; None if
            they were not counted.
    """

    rows: int
    set_aside: int
    pairs: int
    sampled: int
    drawn: int
    skipped: Sequence[SkippedPairs] = field(metadata={"json": "aside"})
    strata: Sequence[Stratum]
    reading: ReadingSummary
    marked_pairs: int | None


@dataclass(frozen=True, kw_only=True)
class PanelSummary:
    """Identity of the panel.

    Attributes:
        rubric, sha256: name and hash of the rubric.
        protocol: `labelled` or `blind`.
        variants: variants that are asked.
        budget: `full` or `adaptive`.
    """

    rubric: str
    sha256: str
    protocol: str
    variants: list[str]
    budget: str


@dataclass(frozen=True, kw_only=True)
class BetaSummary:
    """Distribution of the betas over the envelope; means are None without any beta.

    Attributes:
        pairs, with_beta: number of drawn pairs, and of those that have a beta.
        mean, std: mean and standard deviation of the betas.
        quantiles: betas at `QUANTILES`, by quantile.
        floor, ceiling: share of the betas in the lowest and in the highest 5 % of the envelope.
        histogram: number of betas in each of `BINS` equal parts of the envelope, the lowest first.
            A part includes its lower border; the last part also includes its upper border.
    """

    pairs: int
    with_beta: int
    mean: float | None
    std: float | None
    quantiles: dict[str, float | None]
    floor: float | None
    ceiling: float | None
    histogram: list[int]


@dataclass(frozen=True, kw_only=True)
class PilotAgreement(Agreement):
    """Agreement of teachers and variants; the spread is over pairs annotated by several teachers.

    Attributes:
        position: consistency over both orders, from `compare_orders`; None for a labelled rubric.
    """

    position: list[OrderConsistency] | None


@dataclass(frozen=True, kw_only=True)
class PilotResult:
    """Result of a pilot; `json_values` gives the JSON of `sp2dpo pilot --json`.

    Attributes:
        sample: rows of the source and pairs of the sample.
        panel: identity of the panel.
        schedule: the schedule of the betas.
        trouble: why the annotation ended early; None if it was completed.
        teachers: outcomes, tokens and throughput of each teacher for the drawn pairs; for all pairs
            if the annotation ended early, because the reason may be in either.
        betas: distribution of the betas.
        agreement: agreement of teachers and variants.
        gold: comparison with known labels, from `compare_with_gold`; None without a gold file.
        projection: cost of the whole corpus, without the start of servers; None if the annotation
            ended early.
        sweep: comparison with a sweep of the global beta; None if not requested.
        verdict: go or no-go, with the rules behind it.
    """

    sample: SampleSummary
    panel: PanelSummary
    schedule: Schedule
    trouble: str | None
    teachers: list[TeacherPerformance]
    betas: BetaSummary
    agreement: PilotAgreement
    gold: GoldComparison | None
    projection: CostProjection | None
    sweep: SweepComparison | None
    verdict: Verdict


def run_pilot(
    pairs: Source | str | Path,
    panel: Panel | str | Path,
    store: str | Path,
    *,
    columns: Mapping[str, str] | None = None,
    pairs_from: PairsFrom | None = None,
    n: int = 300,
    gold: Path | str | None = None,
    n_gold: int | None = None,
    schedule: Schedule | Path | str = DEFAULT_SCHEDULE,
    runs: int | None = None,
    run_hours: float | None = None,
    patience: float = 900,
    send_keys: Collection[str] = (),
    approve: Callable[[Endpoint], object] = do_nothing,
    progress: Progress = no_progress,
    report: Callable[[str], None] = do_nothing,
    on_result: Callable[[AnnotationResult], object] = do_nothing,
) -> PilotResult:
    """Annotate a sample of the pairs, and decide whether to annotate the whole corpus.

    A rerun with the same arguments asks only for missing replies.

    Args:
        pairs: file or Hub id of the whole corpus, see `open_source`.
        panel: the teachers and what they are asked: a loaded panel or its YAML file.
        store: store that holds only this pilot; created if it does not exist.
        columns: columns of the pairs by role, see `annotate_pairs`.
        pairs_from: pairs of a row with several scored responses, see `annotate_pairs`.
        n: number of pairs to draw.
        gold: JSON Lines file of pairs whose label is known. Up to `n_gold` of them are annotated in
            addition to the drawn pairs; they enter the comparison with known labels only.
        n_gold: largest number of pairs with a known label to add; None for `n`.
        schedule: how annotations become betas: a loaded schedule or its YAML file.
        runs: training runs of a sweep to compare the cost with; None for no comparison.
        run_hours: GPU-hours of one of these runs; None if unknown.
        patience: seconds without any reply from a teacher after which the run ends.
        send_keys: see `annotate_pairs`.
        approve: see `annotate_pairs`.
        progress: see `annotate_pairs`.
        report: see `annotate_pairs`.
        on_result: see `annotate_pairs`.

    Raises:
        ValueError: a file is invalid, or the store holds other pairs than this sample.
        OSError: a file cannot be read or written, or a server cannot be started.
        EndpointError: a teacher cannot be reached. If it replies but no reply is readable, the
            result is a no-go verdict instead.
        Interrupted: a signal stopped the run.
    """
    gold = None if gold is None else Path(gold)
    where = "panel" if isinstance(panel, Panel) else str(panel)
    panel = panel if isinstance(panel, Panel) else load_panel(Path(panel))
    source = choose_source(pairs, columns=columns, pairs_from=pairs_from, images=panel.sees_images)
    schedule = schedule if isinstance(schedule, Schedule) else load_schedule(Path(schedule))
    # Everything that can be wrong with the files is found before a request costs anything.
    _check_estimate(panel, schedule, where=where)
    truths = None if gold is None else read_gold(gold, panel.rubric)
    # Known truths are few: a random sample would hold too few of them for a verdict.
    names = [truth.name for truth in truths or ()]
    sample = draw_sample(read_rows(source), n, add=names, add_most=n_gold)
    reading = replace(sample.reading, options=source.reading.options())
    sample = replace(sample, reading=reading)
    if not sample.pairs:
        reasons = {skipped.reason: skipped.count for skipped in sample.skipped}
        raise no_pair_error(str(source), reasons, sample.example)
    if truths is not None and gold is not None:
        check_matched(truths, sample.named, path=gold, source=str(source))
    trial = Trial(
        panel=panel, sample=sample, schedule=schedule, truths=truths, runs=runs, run_hours=run_hours
    )
    with open_store_for_writing(Path(store)) as opened:
        _add_sample(opened, source, sample)
        try:
            annotate_pairs(
                None,
                panel,
                opened,
                patience=patience,
                send_keys=send_keys,
                approve=approve,
                progress=progress,
                report=report,
                on_result=on_result,
            )
        except NoReplyKept as error:
            # That a teacher sends nothing readable is a result of the pilot, not a failure of it.
            trial = replace(trial, trouble=str(error))
        except EndpointError as error:
            # Not by the replies in the store: a rerun may fail for another reason, such as a server
            # that is gone.
            if error.reason != NOTHING_READABLE:
                raise
            trial = replace(trial, trouble=str(error))
    # The lock of the writer is released, so read one state while others may write.
    with Store(Path(store)) as opened, opened.snapshot():
        return evaluate_pilot(opened, trial)


def _check_estimate(panel: Panel, schedule: Schedule, *, where: str) -> None:
    silent = [teacher.name for teacher in panel.teachers if not teacher.sampling.get("logprobs")]
    if schedule.estimate == "expected" and silent:
        raise ValueError(
            f"{where}: teacher {', '.join(silent)}: sampling has no `logprobs: true` and "
            "`top_logprobs`, without which the schedule's `estimate: expected` uses no reply; "
            "add them, or set `estimate: sampled`"
        )


def _add_sample(store: Store, source: Source, sample: Sample) -> None:
    named = replace(source, name=f"{source.name}, sample of {len(sample.pair_ids)}")
    try:
        # The rows are read a second time, because the first pass keeps no texts in memory.
        store.corpus.add(named, read_sampled(read_rows(source), sample))
    except ValueError as error:
        raise ValueError(
            f"{store.path} contains other pairs than this sample: use a separate --store for "
            "every pilot, and never the store of a whole run"
        ) from error


def evaluate_pilot(store: Store, trial: Trial) -> PilotResult:
    """Evaluate the replies to the sample of a pilot.

    Args:
        store: store with the sampled pairs and the replies.
        trial: settings and sample of the pilot.

    Raises:
        ValueError: the gold file names a pair twice, or the schedule needs values that the replies
            do not have.
    """
    panel, sample = trial.panel, trial.sample
    everything = _load_annotations(store, panel)
    # Before the betas: a map such as `quantile` depends on all pairs.
    annotations = _select_pairs(everything, sample.drawn_ids)
    betas = BetaTable(
        table=schedule_betas(annotations, trial.schedule),
        arm=Arm(of=trial.schedule),
        annotations_hash=annotations.hash,
    )
    # Why the annotation ended early may be in the replies about any pair.
    measured = None if trial.trouble is not None else sample.drawn_ids
    teachers = measure_performance(store, panel, pair_ids=measured)
    replies = panel_reply_gaps(annotations, trial.schedule.estimator)
    names = [teacher.name for teacher in panel.teachers]
    compared = compare_panel(
        replies,
        trial.schedule.estimator,
        panel.rubric,
        teachers=names,
        variants=panel.variants,
        pairs=betas.table,
        # A single teacher has no spread, which is not the same as a spread of 0.
        spread=betas.table.filter(pl.col("teachers") > 1)["spread"],
    )
    position = compare_orders(annotations.replies, names) if panel.rubric.blind else None
    gold = None
    if trial.truths is not None:
        truths = match_pairs(trial.truths, store.corpus.names())
        table = schedule_betas(everything, trial.schedule)
        gold = compare_with_gold(table, truths, panel.rubric, gold_count=len(trial.truths))
    summary = _summarize_betas(betas)
    readings = teacher_readings(replies, list(panel.rubric.categories), trial.schedule.estimator)
    checks = check_betas(betas, average_orders(replies), readings, draws=DRAWS)
    # Under the labelled protocol only known labels can show validity: the rule `gold`.
    if panel.rubric.blind or gold is None:
        checks.append(check_validity(betas.table, panel.rubric, None))
    projection = sweep = None
    # Costs cannot be scaled up from a sample that was not asked in full.
    if trial.trouble is None:
        drawn_usage = measure_usage(store, panel, pair_ids=sample.drawn_ids)
        projection = project_costs(
            panel, drawn_usage, sampled=len(sample.drawn_ids), pairs=sample.pairs
        )
        if trial.runs is not None:
            sweep = compare_with_sweep(projection, runs=trial.runs, run_hours=trial.run_hours)
    return PilotResult(
        sample=SampleSummary(
            rows=sample.rows,
            set_aside=sample.set_aside,
            pairs=sample.pairs,
            sampled=len(sample.pair_ids),
            drawn=len(sample.drawn_ids),
            skipped=sample.skipped,
            strata=sample.strata,
            reading=sample.reading,
            marked_pairs=store.corpus.marked_pairs(),
        ),
        panel=PanelSummary(
            rubric=panel.rubric.name,
            sha256=panel.rubric.hash,
            protocol=panel.rubric.protocol,
            variants=list(panel.variants),
            budget=panel.budget,
        ),
        schedule=trial.schedule,
        trouble=trial.trouble,
        teachers=teachers,
        betas=summary,
        agreement=PilotAgreement(**vars(compared), position=position),
        gold=gold,
        projection=projection,
        sweep=sweep,
        verdict=decide(
            teachers,
            checks,
            pairs=summary.pairs,
            with_beta=summary.with_beta,
            position=position,
            gold=gold,
            left_out=sample.left_out,
        ),
    )


def _load_annotations(store: Store, panel: Panel) -> AnnotationTable:
    """Return the annotations by the panel's teachers and variants; the table may be empty."""
    # `annotations` refuses a store without a kept reply, which is a result of a pilot.
    if not any(key.reason is None for key in store.questions.outcomes()):
        return build_annotation_table([], pair_ids=store.corpus.pair_ids(), rubric=panel.rubric)
    annotations = store.annotations()
    names = [teacher.name for teacher in panel.teachers]
    # The store may hold replies of teachers or variants that only an earlier panel had.
    in_panel = pl.col("teacher").is_in(names) & pl.col("variant").is_in(panel.variants)
    return AnnotationTable(
        replies=annotations.replies.filter(in_panel),
        pair_ids=annotations.pair_ids,
        rubric=annotations.rubric,
    )


def _select_pairs(annotations: AnnotationTable, pair_ids: Collection[str]) -> AnnotationTable:
    return AnnotationTable(
        replies=annotations.replies.filter(pl.col("pair_id").is_in(list(pair_ids))),
        pair_ids=[pair_id for pair_id in annotations.pair_ids if pair_id in pair_ids],
        rubric=annotations.rubric,
    )


def _summarize_betas(betas: BetaTable) -> BetaSummary:
    beta = betas.table["beta"].drop_nulls()
    shares = envelope_shares(betas.table, betas.schedule).drop_nulls()
    # Without the clip, a beta at the upper end would be in a bin of its own.
    bins = (shares * BINS).floor().clip(0, BINS - 1).cast(pl.Int32).to_list()
    std = beta.std(ddof=0)
    return BetaSummary(
        pairs=len(betas.table),
        with_beta=len(beta),
        mean=mean(beta),
        std=std if isinstance(std, float) else None,
        quantiles={str(quantile): beta.quantile(quantile, "linear") for quantile in QUANTILES},
        floor=mean(shares <= END),
        ceiling=mean(shares >= 1 - END),
        histogram=[bins.count(number) for number in range(BINS)],
    )
