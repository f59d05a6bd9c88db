"""Compute every number that the report on a run shows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from sp2dpo import __version__
from sp2dpo.betas.estimators import Estimator
from sp2dpo.betas.file import BetaTable
from sp2dpo.betas.formulas import Formulas, describe_formulas
from sp2dpo.betas.gaps import disputes_labels
from sp2dpo.betas.label_fit import LabelFit
from sp2dpo.betas.schedule import Schedule
from sp2dpo.diagnostics.ablation import VariationResult, compare_estimators
from sp2dpo.diagnostics.agreement import (
    OrderConsistency,
    ReaderComparison,
    compare_orders,
    compare_readers,
    panel_reply_gaps,
    teacher_readings,
    variant_readings,
)
from sp2dpo.diagnostics.alpha import Alpha
from sp2dpo.diagnostics.audit import GoldAudit, audit_betas
from sp2dpo.diagnostics.biases import LengthBin, bin_by_length
from sp2dpo.diagnostics.bootstrap import DRAWS
from sp2dpo.diagnostics.checks import Check
from sp2dpo.diagnostics.gold import Truth
from sp2dpo.diagnostics.panel_agreement import Splits, TeacherEffect, measure_agreement
from sp2dpo.diagnostics.uses import Suggestion, suggest_use
from sp2dpo.panel.rubric import Rubric
from sp2dpo.report.charts import Histogram, build_histogram
from sp2dpo.report.examples import Example, select_examples
from sp2dpo.store.annotations import AnnotationTable
from sp2dpo.store.corpus import SourceSummary
from sp2dpo.store.questions import count_outcomes
from sp2dpo.store.store import Store, StoredTeacher


@dataclass(frozen=True, kw_only=True)
class ReplyTotals:
    """Questions by outcome: asked = kept + refused + spared + pending.

    Attributes:
        asked: number of questions: one for each teacher, variant, order and pair.
        kept: number of questions with a valid reply.
        refused: number of questions whose last reply was refused.
        spared: number of questions that an adaptive panel skips.
        pending: number of questions without a reply.
    """

    asked: int
    kept: int
    refused: int
    spared: int
    pending: int


@dataclass(frozen=True, kw_only=True)
class BetaStatistics:
    """Distribution of the betas; the statistics are None without any beta.

    Attributes:
        pairs: number of pairs in the store.
        with_beta: number of pairs that have a beta.
        without_beta: number of pairs without a beta.
        without_reply: number of pairs without a kept reply.
        mean, min, max, median, std: statistics of the betas.
    """

    pairs: int
    with_beta: int
    without_beta: int
    without_reply: int
    mean: float | None
    min: float | None
    max: float | None
    median: float | None
    std: float | None


@dataclass(frozen=True, kw_only=True)
class CategoryStatistics:
    """Pairs of one category; means are None without any pair.

    Attributes:
        name: the category.
        pairs, without_beta: number of its pairs, and of those without a beta.
        beta, gap: mean beta and mean gap.
        agreement: mean share of a pair's replies that name the category.
        spread: mean spread of the gaps between teachers.
    """

    name: str
    pairs: int
    without_beta: int
    beta: float | None
    gap: float | None
    agreement: float | None
    spread: float | None


@dataclass(frozen=True, kw_only=True)
class LabelDisputes:
    """Pairs whose label the teachers contradict.

    Attributes:
        pairs, with_gap: number of these pairs, and of all pairs that have a gap.
        share: `pairs` divided by `with_gap`; None if no pair has a gap.
        signed_gap: mean signed gap of the disputed pairs; None if there are none.
    """

    pairs: int
    with_gap: int = field(metadata={"json": "of"})
    share: float | None
    signed_gap: float | None


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Agreement of teachers and variants; means are None without any pair.

    Attributes:
        agreement: mean share of a pair's replies that name its category.
        spread: mean spread of the gaps between teachers.
        between_teachers: comparison of every two teachers, from `compare_readers`.
        between_variants: comparison of every two variants.
    """

    agreement: float | None
    spread: float | None
    between_teachers: list[ReaderComparison]
    between_variants: list[ReaderComparison]


@dataclass(frozen=True, kw_only=True)
class Alphas:
    """Krippendorff's alpha by measure, from `measure_agreement`.

    Attributes:
        teachers, variants: alpha between the teachers, and between the variants.
        by_teacher: alpha between the variants of each teacher.
    """

    teachers: Mapping[str, Alpha]
    variants: Mapping[str, Alpha]
    by_teacher: Mapping[str, Mapping[str, Alpha]]


@dataclass(frozen=True, kw_only=True)
class ReportAgreement(Agreement):
    """Agreement with its intervals, and the teachers and pairs behind disagreement.

    Attributes:
        alpha: Krippendorff's alpha with intervals.
        outliers: effect of leaving out each teacher, from `measure_agreement`.
        splits: pairs on which the panel is divided, from `measure_agreement`.
    """

    alpha: Alphas
    outliers: Sequence[TeacherEffect]
    splits: Splits


@dataclass(frozen=True, kw_only=True)
class RubricSummary:
    """Identity and scales of the rubric.

    Attributes:
        name, sha256: name and hash of the rubric.
        protocol: `labelled` or `blind`.
        categories: name and text of each category, in order of priority.
        magnitude, confidence: `min` and `max` of the scale.
    """

    name: str
    sha256: str
    protocol: str
    categories: list[dict[str, str]]
    magnitude: dict[str, int]
    confidence: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class TeacherSummary(StoredTeacher):
    """A teacher that replied, with its questions by outcome.

    Attributes:
        kept: number of questions with a valid reply.
        refused: number of questions whose last reply was refused, by reason.
    """

    kept: int
    refused: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class Report:
    """Numbers of a report; `json_values` gives the JSON of `sp2dpo report --json`.

    Attributes:
        toolkit: version of the toolkit.
        source: counts of the source's rows.
        marked_pairs: number of pairs with control tokens of chat templates; None if not counted.
        rubric: identity and scales of the rubric.
        schedule: the schedule of the betas.
        arm: the arm's departures from the schedule.
        formulas: the computation of the betas in words.
        annotations: hash of the annotations.
        teachers: the teachers that replied, by name.
        variants: variants with a reply.
        replies: questions by outcome.
        beta: distribution of the betas.
        labels: what the estimate of the labels found; None for an arm without one.
        label_cautions: reasons to doubt it, in words.
        suggestion: which use of the annotations is suggested, and why.
        histogram: histogram of beta by category.
        categories: statistics of each category, in order of priority.
        disputed: pairs whose label is disputed; None if the replies cannot dispute labels.
        position: consistency over both orders, from `compare_orders`; None for a labelled rubric.
        agreement: agreement of teachers and variants.
        checks: results of all checks, from `audit_betas`.
        gold: comparison with known labels; None without them.
        lengths: mean signed gap by difference of length, from `bin_by_length`.
        estimators: betas under other estimators, from `compare_estimators`.
        draws: bootstrap samples behind each interval.
        most_telling: pairs with the largest betas.
        least_telling: pairs with the smallest betas.
        most_disputed: disputed pairs with the lowest signed gaps; None if `disputed` is None.
    """

    toolkit: dict[str, str]
    source: SourceSummary
    marked_pairs: int | None
    rubric: RubricSummary
    schedule: Schedule
    arm: dict[str, Any]
    formulas: Formulas
    annotations: str
    teachers: list[TeacherSummary]
    variants: list[str]
    replies: ReplyTotals
    beta: BetaStatistics
    labels: LabelFit | None
    label_cautions: list[str]
    suggestion: Suggestion
    histogram: Histogram
    categories: list[CategoryStatistics]
    disputed: LabelDisputes | None
    position: list[OrderConsistency] | None
    agreement: ReportAgreement
    checks: Sequence[Check] = field(metadata={"json": "signatures"})
    gold: GoldAudit | None
    lengths: list[LengthBin]
    estimators: list[VariationResult]
    draws: int
    most_telling: list[Example]
    least_telling: list[Example]
    most_disputed: list[Example] | None


def build_report(
    store: Store,
    betas: BetaTable,
    annotations: AnnotationTable,
    *,
    truths: Mapping[str, Truth] | None = None,
    gold_count: int = 0,
    draws: int = DRAWS,
) -> Report:
    """Compute the numbers of a report. Unknown values are None.

    Args:
        store: store of the run.
        betas: betas of the run.
        annotations: annotations of the store that the betas were computed from.
        truths: known labels by pair_id; None without a gold file.
        gold_count: number of truths in the gold file.
        draws: number of bootstrap samples.

    Raises:
        ValueError: the store holds no pairs.
    """
    source = store.corpus.source()
    if source is None:
        raise ValueError(f"{store.path} holds no pairs, so there is nothing to report")
    rubric, table, estimator = annotations.rubric, betas.table, betas.schedule.estimator
    categories, lengths = list(rubric.categories), store.corpus.lengths()
    teachers, variants = describe_teachers(store, rubric), store.variants()
    names = [teacher.name for teacher in teachers]
    has_disputes = disputes_labels(rubric, estimator)
    audit = audit_betas(
        betas, annotations, lengths, truths=truths, gold_count=gold_count, draws=draws
    )
    measures = measure_agreement(annotations, estimator, draws=draws)
    compared = compare_panel(
        panel_reply_gaps(annotations, estimator),
        estimator,
        rubric,
        teachers=names,
        variants=variants,
        pairs=table,
        spread=table["spread"],
    )
    examples = select_examples(store, betas, rubric)
    return Report(
        toolkit={"version": __version__},
        source=source,
        marked_pairs=store.corpus.marked_pairs(),
        rubric=_describe_rubric(rubric),
        schedule=betas.schedule,
        arm=betas.arm.departures(),
        formulas=describe_formulas(betas.arm, rubric),
        annotations=betas.annotations_hash,
        teachers=teachers,
        variants=variants,
        replies=_count_replies(store, teachers, rubric, variants),
        beta=_beta_statistics(table),
        labels=betas.labels,
        label_cautions=betas.labels.cautions() if betas.labels else [],
        suggestion=suggest_use(annotations, betas.schedule, audit.checks, truths=truths),
        histogram=build_histogram(betas, categories),
        categories=_category_statistics(table, categories),
        disputed=_count_disputes(table) if has_disputes else None,
        position=compare_orders(annotations.replies, names) if rubric.blind else None,
        agreement=ReportAgreement(
            **vars(compared),
            alpha=Alphas(
                teachers=measures.teachers.alpha,
                variants=measures.variants.alpha,
                by_teacher=measures.variants.by_teacher,
            ),
            outliers=measures.outliers,
            splits=measures.splits.with_source_ids(store),
        ),
        checks=audit.checks,
        gold=audit.gold,
        lengths=bin_by_length(table, lengths),
        estimators=compare_estimators(annotations, betas.schedule, truths=truths, draws=draws),
        draws=draws,
        most_telling=examples.most_telling,
        least_telling=examples.least_telling,
        # An empty list would say that no label is disputed, where none can be.
        most_disputed=examples.most_disputed if has_disputes else None,
    )


def _describe_rubric(rubric: Rubric) -> RubricSummary:
    return RubricSummary(
        name=rubric.name,
        sha256=rubric.hash,
        protocol=rubric.protocol,
        categories=[{"name": name, "text": text} for name, text in rubric.categories.items()],
        magnitude={"min": rubric.magnitude.min, "max": rubric.magnitude.max},
        confidence={"min": rubric.confidence.min, "max": rubric.confidence.max},
    )


def describe_teachers(store: Store, rubric: Rubric) -> list[TeacherSummary]:
    """Return each teacher that replied, by name; only variants of the rubric are counted."""
    outcomes = [key for key in store.questions.outcomes() if key.variant in rubric.variants]
    teachers = []
    for teacher in store.teachers():
        counts = count_outcomes([key for key in outcomes if key.teacher == teacher.name])
        kept = counts.pop("kept", 0)
        teachers.append(TeacherSummary(**vars(teacher), kept=kept, refused=counts))
    return teachers


def _count_replies(
    store: Store, teachers: Sequence[TeacherSummary], rubric: Rubric, variants: Sequence[str]
) -> ReplyTotals:
    kept = sum(teacher.kept for teacher in teachers)
    refused = sum(sum(teacher.refused.values()) for teacher in teachers)
    # The protocol decides the number of orders, so any id will do.
    questions = len(variants) * len(rubric.orders(""))
    settled = store.questions.saved_replies(variants, questions)
    spared = 0
    # Under a full budget, pairs that an earlier adaptive panel settled are asked after all.
    if settled[""] and store.panel().budget == "adaptive":
        spared = sum(settled.get(teacher.name, settled[""]) for teacher in teachers)
    asked = store.questions.pair_count() * questions * len(teachers)
    return ReplyTotals(
        asked=asked,
        kept=kept,
        refused=refused,
        spared=spared,
        pending=asked - kept - refused - spared,
    )


def _beta_statistics(table: pl.DataFrame) -> BetaStatistics:
    beta = pl.col("beta")
    with_beta = len(table) - table["beta"].null_count()
    return BetaStatistics(
        pairs=len(table),
        with_beta=with_beta,
        without_beta=len(table) - with_beta,
        without_reply=int((table["votes"] == 0).sum()),
        **table.select(
            mean=beta.mean(),
            min=beta.min(),
            max=beta.max(),
            median=beta.median(),
            std=beta.std(ddof=0),
        ).row(0, named=True),
    )


def _category_statistics(
    table: pl.DataFrame, categories: Sequence[str]
) -> list[CategoryStatistics]:
    means = table.group_by("category").agg(
        pairs=pl.len(),
        without_beta=pl.col("beta").null_count(),
        **{name: pl.col(name).mean() for name in ("beta", "gap", "agreement", "spread")},
    )
    # A category without pairs has a row, too: that it is never named is a result.
    rows = (
        pl.DataFrame({"category": list(categories)})
        .join(means, on="category", how="left", maintain_order="left")
        .with_columns(pl.col("pairs", "without_beta").fill_null(0))
        .rename({"category": "name"})
    )
    return [CategoryStatistics(**row) for row in rows.to_dicts()]


def _count_disputes(table: pl.DataFrame) -> LabelDisputes:
    # It is null below the quorum, where a pair has no gap.
    disputed = table["label_disputed"].drop_nulls()
    return LabelDisputes(
        pairs=int(disputed.sum()),
        with_gap=len(disputed),
        share=mean(disputed),
        signed_gap=mean(table.filter("label_disputed")["signed_gap"]),
    )


def compare_panel(
    replies: pl.DataFrame,
    estimator: Estimator,
    rubric: Rubric,
    *,
    teachers: Sequence[str],
    variants: Sequence[str],
    pairs: pl.DataFrame,
    spread: pl.Series,
) -> Agreement:
    """Compare every two teachers, and every two variants.

    Args:
        replies: gaps of all replies, from `panel_reply_gaps`.
        estimator: how a teacher's variants are combined.
        rubric: rubric of the replies.
        teachers: teachers to compare, in this order.
        variants: variants to compare, in this order.
        pairs: table of betas.
        spread: spreads that enter the mean.
    """
    categories = list(rubric.categories)
    by_teacher = teacher_readings(replies, categories, estimator)
    return Agreement(
        agreement=mean(pairs["agreement"]),
        spread=mean(spread),
        between_teachers=compare_readers(by_teacher, teachers),
        between_variants=compare_readers(variant_readings(replies, categories), variants),
    )


def mean(values: pl.Series) -> float | None:
    """Return the mean of numbers; None without any."""
    # polars types the mean as any value a cell can hold.
    result = values.mean()
    return result if isinstance(result, float) else None
