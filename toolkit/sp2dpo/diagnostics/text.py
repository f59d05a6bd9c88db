"""Format the results of the diagnostics as lines and tables of text."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sp2dpo.diagnostics.ablation import Ablation, VariationResult
from sp2dpo.diagnostics.agreement import Proportion, ReaderComparison
from sp2dpo.diagnostics.alpha import Alpha
from sp2dpo.diagnostics.audit import Audit, GoldAudit
from sp2dpo.diagnostics.bootstrap import Estimate
from sp2dpo.diagnostics.checks import BAD, LOOK, SCHEDULE_NOTE, Check
from sp2dpo.diagnostics.checks import UNKNOWN as UNKNOWN_VERDICT
from sp2dpo.diagnostics.comparison import (
    BetaComparison,
    CategoryComparison,
    Mover,
    NamedMover,
)
from sp2dpo.diagnostics.gold import RULES
from sp2dpo.diagnostics.gold_size import CHANCE, LARGEST, GoldSize
from sp2dpo.diagnostics.panel_agreement import MEASURES, PanelAgreement, Splits, TeacherEffect
from sp2dpo.text import (
    UNKNOWN,
    count_noun,
    format_fixed,
    format_interval,
    format_percent,
    format_table,
    interval_note,
)


def audit_lines(audit: Audit) -> Iterator[str]:
    """Yield the lines of `sp2dpo audit`."""
    yield from format_table(
        ("verdict", "check", "value", "thresholds", "checks for"),
        list(map(_check, audit.checks)),
    )
    for check in audit.checks:
        if check.verdict in (LOOK, BAD):
            note = f" ({check.note})" if check.note else ""
            yield from ("", f"{check.name}: {check.measure}{note}", f"  {check.advice}")
    unknown = [check for check in audit.checks if check.reason]
    if unknown:
        yield ""
        yield from (f"{check.name}: cannot be told: {check.reason}" for check in unknown)
    replaced = [check.name for check in audit.checks if check.note == SCHEDULE_NOTE]
    if replaced:
        yield ""
        yield f"{', '.join(replaced)}: {SCHEDULE_NOTE}"
    if audit.gold:
        yield ""
        yield from _gold(audit.gold)
    yield ""
    yield (
        "Verdicts are those of the 95 % intervals. Agreement is reliability, not validity: "
        "teachers who share an error agree."
    )
    if any(check.name == "validity" and check.verdict == UNKNOWN_VERDICT for check in audit.checks):
        yield "Whether these teachers are right is not known, so the verdict is at best `look`."
    yield ""
    counts = ", ".join(f"{count} {verdict}" for verdict, count in audit.counts.items() if count)
    yield f"{audit.verdict}: {counts}"


def _check(check: Check) -> tuple[str, ...]:
    format_value = format_percent if check.unit == "share" else format_fixed
    value = format_value(check.value)
    if check.low is not None:
        value += f" ({format_value(check.low)} to {format_value(check.high)})"
    return (check.verdict, check.name, value, check.thresholds, check.title)


def _gold(gold: GoldAudit) -> Iterator[str]:
    counts = f"known labels: {gold.panel.truths}"
    yield f"{gold.panel.judged} pairs with a gap and a known label ({counts})"
    yield from format_table(
        ("wrong labels found by", "flagged", "recall", "precision", "AUC"),
        [
            (
                RULES[rule],
                str(detection.flagged),
                _share(detection.recall, detection.wrong),
                _share(detection.precision, detection.flagged),
                _interval(detection.auc),
            )
            for rule, detection in gold.labels.items()
        ],
    )
    confidence = gold.confidence
    yield (
        f"rho with the known magnitude over right labels: "
        f"{_interval(confidence.with_confidence, 3)} with confidence, "
        f"{_interval(confidence.without_confidence, 3)} without it, gain "
        f"{_interval(confidence.gain, 3, signed=True)}"
    )


def _share(part: Proportion, total: int) -> str:
    if part.share is None:
        return UNKNOWN
    return f"{part.count}/{total} {part.share:.2f} ({part.low:.2f} to {part.high:.2f})"


def _interval(estimate: Estimate, digits: int = 2, *, signed: bool = False) -> str:
    return format_interval(estimate.value, estimate.low, estimate.high, digits, signed=signed)


def gold_size_lines(size: GoldSize) -> Iterator[str]:
    """Yield the lines of `sp2dpo gold-size`."""
    right, wrong = map(format_percent, size.accuracies)
    teachers = f"teachers who are right about {right} of the right and {wrong} of the wrong labels"
    if size.each is None and sum(size.accuracies) / 2 <= CHANCE:
        yield (
            f"{teachers} are on average not better than chance ({format_percent(CHANCE)}): no "
            "number of known labels can show that they are"
        )
        return
    if size.each is None:
        yield (
            f"{teachers}: {LARGEST} right and {LARGEST} wrong labels are too few for a power of "
            f"{format_percent(size.power)}"
        )
        return
    yield (
        f"{teachers}: {size.each} right and {size.each} wrong labels give a power of "
        f"{format_percent(size.reached)}"
    )


def ablation_lines(ablation: Ablation) -> Iterator[str]:
    """Yield the lines of `sp2dpo estimators`."""
    # Either all rows have it or none does.
    gold = ablation.rows[0].gold is not None
    head = ["what is varied", "to", "pairs", "mean", "std", "at floor", "rho", "moved"]
    if gold:
        head += ["rho with known magnitude", "wrong found", "precision", "AUC"]
    yield from format_table(head, list(map(_variation, ablation.rows)))
    yield ""
    yield (
        "rho: rank correlation with the schedule's betas; moved: mean |difference| from them; at "
        "floor: betas in the lowest 5 % of the envelope."
    )
    if gold:
        yield (
            "wrong found: wrong labels among pairs with a gap below 0.05 (recall); AUC: the chance "
            "that a wrong label has a lower signed gap than a right one."
        )
    yield interval_note(ablation.draws) + (" Shares: Wilson's; AUC: Newcombe's." if gold else "")


def _variation(row: VariationResult) -> list[str]:
    cells = [
        row.group, row.name, str(row.pairs), format_fixed(row.mean, 3), format_fixed(row.std, 3),
        format_percent(row.floor), _interval(row.rho, 3), format_fixed(row.moved, 3),
    ]  # fmt: skip
    if row.gold:
        labels = row.gold.labels
        cells += [
            _interval(row.gold.magnitude),
            _share(labels.recall, labels.wrong),
            _share(labels.precision, labels.flagged),
            _interval(labels.auc),
        ]
    return cells


def agreement_lines(agreement: PanelAgreement) -> Iterator[str]:
    """Yield the lines of `sp2dpo agreement`."""
    teachers, variants = agreement.teachers, agreement.variants
    replies = count_noun(agreement.replies, "reply", "replies")
    yield f"{count_noun(agreement.pairs, 'pair')}, {replies}"
    yield ""
    rows = [
        _alphas("between teachers", teachers.alpha),
        _alphas("between variants", variants.alpha),
    ]
    rows += [
        _alphas(f"{teacher}, between variants", alpha)
        for teacher, alpha in variants.by_teacher.items()
    ]
    yield from format_table(("Krippendorff's alpha", *MEASURES), rows)
    for axis, twos in (("teachers", teachers.twos), ("variants", variants.twos)):
        if twos:
            yield ""
            yield from _twos(axis, twos)
    yield ""
    yield from _outliers(agreement.outliers)
    yield ""
    yield from _splits(agreement.splits)
    yield ""
    yield (
        "Alpha: 1 is perfect agreement, 0 is agreement by chance, below 0 is less than by chance. "
        "Nominal for the category, ordinal for the other measures."
    )
    yield interval_note(agreement.draws)


def _alphas(name: str, alpha: Mapping[str, Alpha]) -> tuple[str, ...]:
    return (name, *(_interval(alpha[what]) if what in alpha else "" for what in MEASURES))


def _twos(axis: str, twos: Sequence[ReaderComparison]) -> list[str]:
    rows = [
        (
            f"{row.one}, {row.other}",
            str(row.pairs),
            format_percent(row.same_category),
            format_fixed(row.spearman),
            format_fixed(row.difference),
        )
        for row in twos
    ]
    head = (f"two {axis}", "pairs", "same category", "rho of gaps", "mean |difference|")
    return format_table(head, rows)


def _outliers(effects: Sequence[TeacherEffect]) -> Iterator[str]:
    rows = [
        (
            effect.teacher,
            _interval(effect.without["gap"], signed=True),
            _interval(effect.without["category"], signed=True),
            _interval(effect.bias, signed=True),
            format_fixed(effect.spearman),
        )
        for effect in effects
    ]
    head = (
        "teacher", "gain in alpha (gap) without it", "(category)", "its gap minus the others'",
        "mean rho with the others",
    )  # fmt: skip
    yield from format_table(head, rows)
    odd = [effect.teacher for effect in effects if effect.stands_out]
    # Of two teachers, agreement cannot tell which one is the outlier.
    if len(effects) > 2:
        yield f"outlier: {', '.join(odd)}" if odd else "no teacher is an outlier"


def _splits(splits: Splits) -> Iterator[str]:
    if not splits.of:
        yield "no pair was annotated by two teachers"
        return
    yield (
        f"of {count_noun(splits.of, 'pair')} annotated by several teachers, "
        f"{format_percent(splits.apart)} have gaps that differ by 0.5 or more, "
        f"{format_percent(splits.no_majority)} have no majority category"
    )
    rows = [
        (
            _name(pair.pair_id, pair.source_id),
            format_fixed(pair.spread),
            ", ".join(
                f"{teacher} {reading.gap:.2f} {reading.category}"
                for teacher, reading in pair.readings.items()
            ),
        )
        for pair in splits.pairs
        # The list is filled up with pairs on which all teachers agree; these are not shown.
        if pair.spread
    ]
    if rows:
        yield from format_table(
            ("pairs with the largest disagreement", "spread", "gap and category"), rows
        )


def _name(pair_id: str, source_id: str | None) -> str:
    return source_id or pair_id[:12]


def comparison_lines(comparison: BetaComparison, first: str, second: str) -> Iterator[str]:
    """Yield the lines of `sp2dpo compare`, with the names of both tables."""
    pairs, kept = comparison.pairs, comparison.kept
    yield f"A  {first}"
    yield f"B  {second}"
    yield (
        f"{count_noun(pairs.compared, 'pair')} with a beta in both (only in A: "
        f"{pairs.only_one + pairs.beta_only_one}, only in B: "
        f"{pairs.only_other + pairs.beta_only_other})"
    )
    yield (
        f"kept for training by both {kept.both}, by A alone {kept.only_one}, by B alone "
        f"{kept.only_other}"
    )
    for key, (here, there) in comparison.differs.items():
        yield f"{key}: A {_plain(here)}, B {_plain(there)}"
    if not comparison.same_annotations:
        yield "the two were computed from different annotations"
    yield ""
    yield from format_table(
        ("beta", "mean", "std", "min", "max"),
        [
            (name, *(format_fixed(value, 4) for value in (beta.mean, beta.std, beta.min, beta.max)))
            for name, beta in (("A", comparison.one), ("B", comparison.other))
        ],
    )
    yield ""
    yield f"Pearson   {_interval(comparison.pearson, 3)}"
    yield f"Spearman  {_interval(comparison.spearman, 3)}"
    yield f"shift     {_interval(comparison.shift, 4, signed=True)} (mean of B minus A)"
    mean, largest = format_fixed(comparison.distance, 4), format_fixed(comparison.largest, 4)
    yield f"distance  {mean} (mean), {largest} (largest)"
    yield ""
    yield from format_table(
        ("category", "pairs", "A", "B", "shift", "Spearman"),
        [
            (row.category, str(row.pairs), *_shift(row), format_fixed(row.spearman, 3))
            for row in comparison.categories
        ],
    )
    if comparison.movers:
        rows = [
            (
                _name(row.pair_id, row.source_id if isinstance(row, NamedMover) else None),
                row.category,
                *_shift(row),
            )
            for row in comparison.movers
        ]
        yield ""
        yield from format_table(("moved most", "category", "A", "B", "shift"), rows)
    yield ""
    yield interval_note(comparison.draws)


def _shift(row: CategoryComparison | Mover) -> tuple[str, str, str]:
    shift = format_fixed(row.shift, 4, signed=True)
    return (format_fixed(row.one, 4), format_fixed(row.other, 4), shift)


def _plain(value: Any) -> str:
    return "none" if value is None else str(value)
