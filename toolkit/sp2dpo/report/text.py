"""Format the status of a run and the result of a pilot as lines for a terminal."""

from collections.abc import Mapping, Sequence

from sp2dpo.diagnostics.agreement import Proportion
from sp2dpo.diagnostics.gold import GoldComparison
from sp2dpo.pairs.sample import SkippedPairs
from sp2dpo.report.cost import CostProjection, SweepComparison, TeacherPerformance
from sp2dpo.report.pilot import PilotAgreement, PilotResult, SampleSummary
from sp2dpo.report.status import Progress, RunStatus, TeacherStatus
from sp2dpo.report.verdict import ASK, Verdict
from sp2dpo.store.counts import marked_lines
from sp2dpo.store.usage import RECENT
from sp2dpo.text import (
    UNKNOWN,
    WIDTH,
    format_count,
    format_duration,
    format_fixed,
    format_money,
    format_narrow_table,
    format_percent,
    format_significant,
    wrap,
)

_BAR = 40
"""Length of the longest bar of the printed histogram, in characters."""
_BINS_PER_BAR = 2  # ten bars fit a terminal
_MARKS = {True: "ok", False: "NO", None: "?"}


def pilot_lines(result: PilotResult) -> list[str]:
    """Return the lines that `sp2dpo pilot` prints."""
    sections = [
        _sample_lines(result.sample),
        _reply_lines(result),
        _performance_lines(result.teachers),
        _beta_lines(result),
        _agreement_lines(result.agreement),
        _gold_lines(result.gold),
        _projection_lines(result),
        verdict_lines(result.verdict),
    ]
    # Without the blank line after the last section.
    return [line for section in sections if section for line in (*section, "")][:-1]


def _wrapped(*lines: str) -> list[str]:
    return [part for line in lines for part in wrap(line)]


def _table(
    columns: Mapping[str, Sequence[str]], *, names: int = 1, indent: str = "  "
) -> list[str]:
    """Return the lines of a table with these columns; its first `names` columns may be cut."""
    rows = list(zip(*columns.values(), strict=True))
    return format_narrow_table(list(columns), rows, names=names, indent=indent)


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {format_count(count)}" for name, count in counts.items())


def _sample_lines(sample: SampleSummary) -> list[str]:
    usable = sample.rows - sample.set_aside
    table = {
        "prompt": [_span(stratum.prompt) for stratum in sample.strata],
        "difference": [_span(stratum.difference) for stratum in sample.strata],
        "pairs": [format_count(stratum.pairs) for stratum in sample.strata],
        "sampled": [format_count(stratum.sampled) for stratum in sample.strata],
    }
    return [
        f"{sample.rows} rows = {usable} usable + {sample.set_aside} set aside; "
        f"{sample.pairs} distinct pairs",
        *_wrapped(
            *sample.reading.lines(),
            *map(_skipped, sample.skipped),
            f"{format_count(sample.drawn)} of {format_count(sample.pairs)} pairs, by the length "
            "of the prompt and by how much longer the chosen response is (characters)",
            *_added(sample),
            *marked_lines(sample.marked_pairs),
        ),
        *_table(table),
    ]


def _added(sample: SampleSummary) -> list[str]:
    added = sample.sampled - sample.drawn
    if not added:
        return []
    return [
        f"{format_count(added)} more with a known label, for the comparison with these labels only"
    ]


def _skipped(skipped: SkippedPairs) -> str:
    more = ", ..." if skipped.count > len(skipped.rows) else ""
    rows = ", ".join(map(str, skipped.rows)) + more
    return f"  set aside {skipped.count}: {skipped.reason} (row {rows})"


def _span(ends: Sequence[int]) -> str:
    return f"{ends[0]:,} to {ends[1]:,}"


def _reply_lines(result: PilotResult) -> list[str]:
    teachers = result.teachers
    table = {
        "teacher": [teacher.name for teacher in teachers],
        "answered": [format_count(teacher.answered) for teacher in teachers],
        "kept": [format_count(teacher.kept) for teacher in teachers],
        "refused": [format_percent(teacher.refused_share) for teacher in teachers],
    }
    notes = [
        f"  {teacher.name} refused: {_counted(teacher.refused)}"
        for teacher in teachers
        if teacher.refused
    ]
    if result.trouble:
        notes.append(f"  the annotation ended early: {result.trouble}")
    some = result.trouble is None and result.sample.sampled > result.sample.drawn
    head = "replies about the drawn pairs" if some else "replies"
    return [head, *_table(table), *_wrapped(*notes)]


def _performance_lines(teachers: Sequence[TeacherPerformance]) -> list[str]:
    table = {
        "teacher": [teacher.name for teacher in teachers],
        "prompt": [format_significant(teacher.prompt_tokens) for teacher in teachers],
        "cached": [format_percent(teacher.cached_share) for teacher in teachers],
        "cacheable": [format_percent(teacher.cacheable_share) for teacher in teachers],
        "reply": [format_significant(teacher.completion_tokens) for teacher in teachers],
        "replies/s": [format_significant(teacher.replies_per_second) for teacher in teachers],
        "prompt/s": [format_significant(teacher.prompt_tokens_per_second) for teacher in teachers],
        "reply/s": [
            format_significant(teacher.completion_tokens_per_second) for teacher in teachers
        ],
    }
    return ["tokens per request, and throughput", *_table(table)]


def _beta_lines(result: PilotResult) -> list[str]:
    betas = result.betas
    lines = [f"betas of {format_count(betas.with_beta)} of {format_count(betas.pairs)} pairs"]
    if not betas.with_beta:
        return lines
    low, high = result.schedule.beta_min, result.schedule.beta_max
    bins = len(betas.histogram)
    starts = range(0, bins, _BINS_PER_BAR)
    counts = [sum(betas.histogram[start : start + _BINS_PER_BAR]) for start in starts]
    for start, count in zip(starts, counts, strict=True):
        # At least one beta exists here, so the largest count is not 0.
        bar = "#" * round(_BAR * count / max(counts))
        beta = low + (high - low) * start / bins
        lines.append(f"  {beta:8.3g}  {bar:<{_BAR}} {format_count(count)}".rstrip())
    quantiles = ", ".join(
        f"{float(quantile):.0%} {format_significant(beta)}"
        for quantile, beta in betas.quantiles.items()
    )
    return [
        *lines,
        *_wrapped(f"  mean {format_significant(betas.mean)}; quantiles {quantiles}"),
        f"  {format_percent(betas.floor)} in the lowest 5% of the envelope, "
        f"{format_percent(betas.ceiling)} in the highest",
    ]


def _agreement_lines(agreement: PilotAgreement) -> list[str]:
    lines = _wrapped(
        f"agreement: {format_percent(agreement.agreement)} of the replies name their pair's "
        "category; spread of the gaps between teachers "
        f"{format_fixed(agreement.spread)}"
    )
    rows = [*agreement.between_teachers, *agreement.between_variants]
    if rows:
        table = {
            "one": [row.one for row in rows],
            "other": [row.other for row in rows],
            "same category": [format_percent(row.same_category) for row in rows],
            "rank correlation": [format_fixed(row.spearman) for row in rows],
            "mean difference": [format_fixed(row.difference) for row in rows],
        }
        lines += _table(table, names=2)
    for row in agreement.position or ():
        consistent, first, second, tie = (
            format_percent(part.share) for part in (row.consistent, row.first, row.second, row.tie)
        )
        lines += _wrapped(
            f"  {row.teacher} in both orders: same response {consistent}, A twice {first}, "
            f"B twice {second}, tie {tie}"
        )
    return lines


def _gold_lines(gold: GoldComparison | None) -> list[str]:
    if gold is None:
        return []
    return _wrapped(
        f"gold: {format_count(gold.judged)} pairs judged of {format_count(gold.truths)} with "
        f"a known label; a gap below {gold.threshold:g} counts as no preference",
        f"  accuracy: {_share(gold.accuracy)}; if every label were trusted: "
        f"{format_percent(gold.always_chosen)}",
        *(f"  true label {label}: {_share(share)}" for label, share in gold.labels.items()),
        f"  mean over the true labels {format_percent(gold.balanced)} "
        f"({format_percent(gold.balanced_low)} to {format_percent(gold.balanced_high)})",
        f"  category: {_share(gold.category)}; rank correlation of the magnitudes "
        f"{format_fixed(gold.magnitude)}",
    )


def _share(part: Proportion) -> str:
    if part.share is None:
        return UNKNOWN
    value, low, high = map(format_percent, (part.share, part.low, part.high))
    return f"{value} ({low} to {high})"


def _projection_lines(result: PilotResult) -> list[str]:
    projection = result.projection
    if projection is None:
        return []
    costs = projection.teachers
    table = {
        "teacher": [cost.name for cost in costs],
        "requests": [format_count(cost.requests) for cost in costs],
        "prompt tokens": [format_count(cost.prompt_tokens) for cost in costs],
        "reply tokens": [format_count(cost.completion_tokens) for cost in costs],
        "time": [_hours(cost.hours) for cost in costs],
        "GPU-hours": [format_significant(cost.gpu_hours) for cost in costs],
        "money": [_amount(cost.money, cost.currency) for cost in costs],
    }
    adaptive = result.panel.budget == "adaptive"
    at_most = "; an upper bound, because a large corpus spares more" if adaptive else ""
    notes = [
        f"  total {_hours(projection.hours)}, {format_significant(projection.gpu_hours)} "
        f"GPU-hours, {format_money(projection.money) or 'cost not known'}",
    ]
    if projection.unpriced and projection.money:
        notes.append(
            f"  without {', '.join(projection.unpriced)}: no price, or no token counts reported"
        )
    if result.sweep is not None:
        notes.append(f"  {_sweep_line(result.sweep, projection)}")
    return [
        *_wrapped(
            f"all {format_count(projection.pairs)} pairs at the pilot's throughput, without "
            f"starting the servers (a long run is usually faster{at_most})"
        ),
        *_table(table),
        *_wrapped(*notes),
    ]


def _hours(hours: float | None) -> str:
    return format_duration(None if hours is None else hours * 3600)


def _sweep_line(sweep: SweepComparison, projection: CostProjection) -> str:
    runs = f"a sweep of {sweep.runs} runs"
    if projection.money:
        unknown = (
            f"the annotation costs as much as {runs} of {format_money(sweep.even_money)} each; its "
            "GPU-hours are not known"
        )
    else:
        unknown = (
            f"the cost of the annotation, to compare with {runs}, is not known: add a price to the "
            "panel"
        )
    if sweep.gpu_hours is not None:
        line = (
            f"{runs} of {sweep.run_hours:g} GPU-hours each takes "
            f"{format_significant(sweep.gpu_hours)} GPU-hours"
        )
        if sweep.ratio is None:
            return f"{line}; {unknown}"
        return f"{line}; the annotation takes {format_significant(sweep.ratio)} times as much"
    if sweep.even_run_hours is not None:
        return (
            f"the annotation costs as much as {runs} of {format_significant(sweep.even_run_hours)} "
            "GPU-hours each (set the GPU-hours of a run with --run-hours)"
        )
    return unknown


def verdict_lines(verdict: Verdict) -> list[str]:
    """Return the lines of a pilot's rules and of its verdict, which is the last paragraph."""
    lines = []
    for rule in verdict.rules:
        value = format_count(rule.value) if rule.name == "enough" else format_fixed(rule.value, 3)
        lines.append(f"  {_MARKS[rule.passed]:<2}  {rule.name} {value}: {rule.rule}")
        if rule.passed is not True:
            lines += [f"        {text}" for text in (rule.note, rule.advice) if text]
    failed = [rule.name for rule in verdict.rules if rule.passed is False]
    conclusion = "GO" if verdict.go else f"NO-GO: {', '.join(failed)}"
    if verdict.decision == ASK:
        more = next(rule.more for rule in verdict.rules if rule.more is not None)
        asked = ", ".join(f"{count} {label}" for label, count in more.items() if count)
        conclusion = f"ASK for the truth about {sum(more.values())} more pairs: {asked}"
    return ["rules", *_wrapped(*lines), "", *_wrapped(conclusion)]


def status_lines(status: RunStatus) -> list[str]:
    """Return the lines that `sp2dpo status` prints."""
    lines = _wrapped(*_status_head(status))
    if status.integrity:
        return lines + _wrapped(*(f"  {problem}" for problem in status.integrity))
    if not status.teachers:
        return [*lines, "no annotation yet: run `sp2dpo annotate`"]
    notes = _wrapped(*_status_notes(status))
    return [*lines, "", *_reply_counts(status), "", *_throughput(status.teachers), "", *notes]


def _status_head(status: RunStatus) -> list[str]:
    shard = f" (shard {status.shard})" if status.shard else ""
    pairs = f"{format_count(status.pairs)} pairs{shard} of {status.source or 'nothing'}"
    pid = status.annotating
    return [
        # Nothing is read out of a damaged file, so there are no counts to show.
        status.store if status.integrity else f"{status.store}: {pairs}",
        "no process is annotating into it now"
        if pid is None
        else f"process {pid} is annotating into it now",
        "the file is DAMAGED:" if status.integrity else "the file is intact",
    ]


def _reply_counts(status: RunStatus) -> list[str]:
    """Return a row for each teacher, variant and order, and one for their sum."""
    cells = [(teacher.name, cell) for teacher in status.teachers for cell in teacher.cells]
    keys = {
        "teacher": [*(name for name, _ in cells), "all"],
        "variant": [*(cell.variant for _, cell in cells), ""],
    }
    # The labelled protocol has one order only, which need not be shown.
    if len({cell.order for _, cell in cells}) > 1:
        keys["order"] = [*(cell.order for _, cell in cells), ""]
    rows: list[Progress] = [*(cell for _, cell in cells), status.total]
    counts = {
        "asked": [format_count(row.asked) for row in rows],
        "kept": [format_count(row.kept) for row in rows],
        "refused": [format_count(sum(row.refused.values())) for row in rows],
        "spared": [format_count(row.spared) for row in rows],
        "pending": [format_count(row.pending) for row in rows],
    }
    if status.budget != "adaptive":
        del counts["spared"]
    tokens = {
        "prompt tokens": [format_count(row.prompt_tokens) for row in rows],
        "cached": [format_percent(row.cached_share) for row in rows],
        "reply tokens": [format_count(row.completion_tokens) for row in rows],
    }
    lines = _table(keys | counts | tokens, names=2, indent="")
    # Two narrow tables are easier to read than one with cut names.
    if max(map(len, lines)) > WIDTH or any("..." in line for line in lines):
        first, second = (_table(keys | part, names=2, indent="") for part in (counts, tokens))
        lines = [*first, "", *second]
    reasons = _counted(status.total.refused)
    return [*lines, *(wrap(f"refused: {reasons}") if reasons else [])]


def _throughput(teachers: Sequence[TeacherStatus]) -> list[str]:
    table = {
        "teacher": [teacher.name for teacher in teachers],
        "replies/s": [format_fixed(teacher.replies_per_second) for teacher in teachers],
        "busy": [format_duration(teacher.busy_seconds) for teacher in teachers],
        "time left": [format_duration(teacher.seconds_left) for teacher in teachers],
        "cost": [_amount(teacher.money, teacher.currency) for teacher in teachers],
        "cost left": [_amount(teacher.money_left, teacher.currency) for teacher in teachers],
    }
    return _table(table, indent="")


def _amount(amount: float | None, currency: str | None) -> str:
    if amount is None or currency is None:
        return UNKNOWN
    return format_money({currency: amount})


def _status_notes(status: RunStatus) -> list[str]:
    total = status.total
    lines = [
        f"replies/s: over the last {RECENT // 60} minutes before a teacher's newest reply, while "
        "requests were in flight"
    ]
    if total.pending and total.seconds_left_in_turn is not None:
        lines.append(_time_left(status))
    if total.money:
        left = format_money(total.money_left) or "not known"
        lines.append(f"cost so far: {format_money(total.money)}; left: {left}")
    if total.unpriced and total.money:
        unpriced = ", ".join(total.unpriced)
        lines.append(f"not included: {unpriced} (price, tokens or time unknown)")
    if total.uncounted:
        lines.append(f"{format_count(total.uncounted)} replies came without token counts")
    if total.untimed:
        lines.append(
            f"{format_count(total.untimed)} replies have no response time, such as imported ones; "
            "replies/s and the estimates from it leave them out"
        )
    if status.outside.replies:
        lines.append(
            f"{format_count(status.outside.replies)} replies of teachers or variants that the last "
            "panel does not include are also in the file; they are not counted above"
        )
    return [*lines, *marked_lines(status.marked_pairs)]


def _time_left(status: RunStatus) -> str:
    begin = "left, at most" if status.budget == "adaptive" else "left"
    side_by_side = format_duration(status.total.seconds_left_side_by_side)
    in_turn = format_duration(status.total.seconds_left_in_turn)
    # One teacher, or only one with work left.
    if side_by_side == in_turn:
        return f"{begin}: {in_turn}"
    return (
        f"{begin}: {side_by_side} if the teachers work in parallel, {in_turn} one after the other"
    )
