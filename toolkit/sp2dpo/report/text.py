"""A pilot's findings, as lines for a terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from sp2dpo.report.status import Progress, RunStatus, TeacherStatus
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
"""The length of the longest bar of the histogram."""
_TOGETHER = 2
"""Parts of the envelope that share a bar."""
_MARKS = {True: "ok", False: "NO", None: "?"}


def pilot_lines(found: dict[str, Any]) -> list[str]:
    """What `sp2dpo pilot` prints.

    Args:
        found: as `pilot.pilot_findings` returns it.
    """
    parts = [
        _sample(found["sample"]),
        _replies(found),
        _measured(found["teachers"]),
        _betas(found),
        _agreement(found["agreement"]),
        _gold(found["gold"]),
        _projection(found),
        _verdict(found),
    ]
    return [line for part in parts if part for line in (*part, "")][:-1]


def _wrapped(*lines: str) -> list[str]:
    return [part for line in lines for part in wrap(line)]


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {format_count(count)}" for name, count in counts.items())


def _sample(sample: dict[str, Any]) -> list[str]:
    rows = [
        [
            _span(one["prompt"]),
            _span(one["difference"]),
            format_count(one["pairs"]),
            format_count(one["sampled"]),
        ]
        for one in sample["strata"]
    ]
    usable = sample["rows"] - sample["set_aside"]
    return [
        f"{sample['rows']} rows = {usable} usable + {sample['set_aside']} set aside; "
        f"{sample['pairs']} distinct pairs",
        *_wrapped(*map(_aside, sample["aside"])),
        *_wrapped(
            f"{format_count(sample['sampled'])} of {format_count(sample['pairs'])} pairs, by "
            f"the length of the "
            "prompt and by how much longer the chosen response is (characters)"
        ),
        *format_narrow_table(
            ["prompt", "difference", "pairs", "sampled"], rows, names=1, indent="  "
        ),
    ]


def _aside(one: dict[str, Any]) -> str:
    rows = ", ".join(map(str, one["rows"])) + (", ..." if one["count"] > len(one["rows"]) else "")
    return f"  set aside {one['count']}: {one['reason']} (row {rows})"


def _span(ends: Sequence[int]) -> str:
    return f"{ends[0]:,} to {ends[1]:,}"


def _replies(found: dict[str, Any]) -> list[str]:
    rows = [
        [
            one["name"],
            format_count(one["heard"]),
            format_count(one["kept"]),
            format_percent(one["refused_share"]),
        ]
        for one in found["teachers"]
    ]
    why = [
        f"  {one['name']} refused: "
        + ", ".join(f"{reason} {format_count(count)}" for reason, count in one["refused"].items())
        for one in found["teachers"]
        if one["refused"]
    ]
    trouble = found["trouble"]
    return [
        "what came back",
        *format_narrow_table(["teacher", "heard", "kept", "refused"], rows, names=1, indent="  "),
        *_wrapped(*why, *([f"  the asking ended early: {trouble}"] if trouble else [])),
    ]


def _measured(teachers: Sequence[dict[str, Any]]) -> list[str]:
    rows = [
        [
            one["name"],
            format_significant(one["prompt_tokens"]),
            format_percent(one["cached_share"]),
            format_percent(one["cacheable_share"]),
            format_significant(one["completion_tokens"]),
            format_significant(one["replies_per_second"]),
            format_significant(one["prompt_tokens_per_second"]),
            format_significant(one["completion_tokens_per_second"]),
        ]
        for one in teachers
    ]
    head = ["teacher", "prompt", "cached", "could be", "reply", "replies/s", "prompt/s", "reply/s"]
    return [
        "tokens of a request, and what came in a second",
        *format_narrow_table(head, rows, names=1, indent="  "),
    ]


def _betas(found: dict[str, Any]) -> list[str]:
    betas, schedule = found["betas"], found["schedule"]
    lines = [f"betas of {format_count(betas['with_beta'])} of {format_count(betas['pairs'])} pairs"]
    if not betas["with_beta"]:
        return lines
    low, high = schedule["beta_min"], schedule["beta_max"]
    counts, bins = betas["histogram"], len(betas["histogram"])
    sums = [sum(counts[at : at + _TOGETHER]) for at in range(0, bins, _TOGETHER)]
    for number, count in enumerate(sums):
        begin = low + (high - low) * number * _TOGETHER / bins
        bar = "#" * round(_BAR * count / max(sums))
        lines.append(f"  {begin:8.3g}  {bar:<{_BAR}} {format_count(count)}".rstrip())
    quantiles = ", ".join(
        f"{float(at):.0%} {format_significant(beta)}" for at, beta in betas["quantiles"].items()
    )
    return [
        *lines,
        *_wrapped(f"  mean {format_significant(betas['mean'])}; quantiles {quantiles}"),
        f"  {format_percent(betas['floor'])} in the lowest 5% of the envelope, "
        f"{format_percent(betas['ceiling'])} in the highest",
    ]


def _agreement(agreement: dict[str, Any]) -> list[str]:
    lines = _wrapped(
        f"agreement: {format_percent(agreement['agreement'])} of the replies name their "
        f"pair's category; "
        f"spread of the gaps between teachers {format_fixed(agreement['spread'])}"
    )
    rows = [
        [one["one"], one["other"], *_compared(one)]
        for one in (*agreement["between_teachers"], *agreement["between_variants"])
    ]
    if rows:
        head = ["one", "other", "same category", "rank correlation", "mean difference"]
        lines += format_narrow_table(head, rows, names=2, indent="  ")
    for one in agreement["position"] or ():
        lines += _wrapped(
            f"  {one['teacher']} in both orders: same response "
            f"{format_percent(one['consistent']['share'])}, A twice "
            f"{format_percent(one['first']['share'])}, "
            f"B twice {format_percent(one['second']['share'])}, tie "
            f"{format_percent(one['tie']['share'])}"
        )
    return lines


def _compared(one: dict[str, Any]) -> list[str]:
    return [
        format_percent(one["same_category"]),
        format_fixed(one["spearman"]),
        format_fixed(one["difference"]),
    ]


def _gold(gold: dict[str, Any] | None) -> list[str]:
    if gold is None:
        return []
    labels = [
        f"  of those that are {label}: {_share(one)}" for label, one in gold["labels"].items()
    ]
    return _wrapped(
        f"gold: {format_count(gold['judged'])} pairs judged of {format_count(gold['given'])} "
        f"with a known truth; "
        f"a gap below {gold['threshold']:g} is no preference",
        f"  right: {_share(gold['accuracy'])}; believing every label gives "
        f"{format_percent(gold['always_chosen'])}",
        *labels,
        f"  mean over the true labels {format_percent(gold['balanced'])}, at least "
        f"{format_percent(gold['balanced_low'])}",
        f"  category: {_share(gold['category'])}; rank correlation of the magnitudes "
        f"{format_fixed(gold['magnitude'])}",
    )


def _share(one: dict[str, Any]) -> str:
    if one["share"] is None:
        return UNKNOWN
    return (
        f"{format_percent(one['share'])} ({format_percent(one['low'])} to "
        f"{format_percent(one['high'])})"
    )


def _projection(found: dict[str, Any]) -> list[str]:
    whole_corpus = found["projection"]
    if whole_corpus is None:
        return []
    rows = [
        [
            one["name"],
            format_count(one["requests"]),
            format_count(one["prompt_tokens"]),
            format_count(one["completion_tokens"]),
            format_duration(one["hours"] and one["hours"] * 3600),
            format_significant(one["gpu_hours"]),
            format_money({one["currency"]: one["money"]}) if one["money"] is not None else UNKNOWN,
        ]
        for one in whole_corpus["teachers"]
    ]
    hours = whole_corpus["hours"]
    at_most = "; at most, for a large corpus spares more" if _is_adaptive(found) else ""
    head = ["teacher", "requests", "prompt tokens", "reply tokens", "time", "GPU-hours", "money"]
    rest = [
        f"  together {format_duration(hours and hours * 3600)}, "
        f"{format_significant(whole_corpus['gpu_hours'])} GPU-hours, "
        f"{format_money(whole_corpus['money']) or 'money not known'}",
    ]
    if whole_corpus["unpriced"] and whole_corpus["money"]:
        rest.append(f"  without {', '.join(whole_corpus['unpriced'])}: no price, or no tokens told")
    return [
        *_wrapped(
            f"all {format_count(whole_corpus['pairs'])} pairs at the pilot's pace, without "
            f"starting the "
            f"servers (a short run is slower than a long one{at_most})"
        ),
        *format_narrow_table(head, rows, names=1, indent="  "),
        *_wrapped(*rest, *_sweep(found["sweep"], whole_corpus)),
    ]


def _is_adaptive(found: dict[str, Any]) -> bool:
    return found["panel"]["budget"] == "adaptive"


def _sweep(sweep: dict[str, Any] | None, whole_corpus: dict[str, Any]) -> list[str]:
    if sweep is None:
        return []
    runs = f"a sweep of {sweep['runs']} runs"
    if sweep["gpu_hours"] is not None:
        told = (
            f"  {runs} of {sweep['run_hours']:g} GPU-hours each takes "
            f"{format_significant(sweep['gpu_hours'])} GPU-hours"
        )
        if sweep["ratio"] is not None:
            return [
                f"{told}; the annotation takes {format_significant(sweep['ratio'])} times as much"
            ]
        return [told, *_beside(sweep, whole_corpus, runs)]
    if sweep["even_run_hours"] is not None:
        return [
            f"  the annotation costs as much as {runs} of "
            f"{format_significant(sweep['even_run_hours'])} GPU-hours each (what a run takes: "
            f"--run-hours)"
        ]
    return _beside(sweep, whole_corpus, runs)


def _beside(sweep: dict[str, Any], whole_corpus: dict[str, Any], runs: str) -> list[str]:
    """What can be said where nobody knows the annotation's GPU-hours."""
    if whole_corpus["money"]:
        return [
            f"  the annotation costs as much as {runs} of {format_money(sweep['even_money'])} "
            f"each; its "
            "GPU-hours are not known"
        ]
    return [f"  what the annotation costs beside {runs} is not known: state a price in the panel"]


def _verdict(found: dict[str, Any]) -> list[str]:
    rules = found["verdict"]["rules"]
    lines = []
    for one in rules:
        lines.append(f"  {_MARKS[one['passed']]:<2}  {one['name']} {_value(one)}: {one['rule']}")
        if one["passed"] is not True:
            lines += [f"        {said}" for said in (one["note"], one["advice"]) if said]
    failed = [one["name"] for one in rules if one["passed"] is False]
    said = "GO" if found["verdict"]["go"] else f"NO-GO: {', '.join(failed)}"
    return ["rules", *_wrapped(*lines), "", *_wrapped(said)]


def _value(rule: dict[str, Any]) -> str:
    value = rule["value"]
    if value is None:
        return UNKNOWN
    return format_count(value) if rule["name"] == "enough" else format_fixed(value, 3)


def status_lines(status: RunStatus) -> list[str]:
    """Return the lines that `sp2dpo status` prints.

    Args:
        status: state of the run, from `collect_status`.
    """
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
        status.store if status.integrity else f"{status.store}: {pairs}",
        "no process is annotating into it now"
        if pid is None
        else f"process {pid} is annotating into it now",
        "the file is DAMAGED; SQLite finds:" if status.integrity else "the file is sound",
    ]


def _reply_counts(status: RunStatus) -> list[str]:
    """Return a row for each teacher, variant and order, and one for their sum."""
    cells = [(teacher.name, cell) for teacher in status.teachers for cell in teacher.cells]
    names = ["teacher", "variant"]
    keys = [[name, cell.variant] for name, cell in cells] + [["all", ""]]
    if len({cell.order for _, cell in cells}) > 1:
        names.append("order")
        keys = [
            [*key, order]
            for key, order in zip(keys, [*(cell.order for _, cell in cells), ""], strict=True)
        ]
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
    lines = _count_table(names, keys, counts | tokens)
    if max(map(len, lines)) > WIDTH or any("..." in line for line in lines):
        lines = [*_count_table(names, keys, counts), "", *_count_table(names, keys, tokens)]
    reasons = _counted(status.total.refused)
    return [*lines, *(wrap(f"refused: {reasons}") if reasons else [])]


def _count_table(
    names: Sequence[str], keys: Sequence[Sequence[str]], columns: dict[str, list[str]]
) -> list[str]:
    rows = [[*key, *numbers] for key, *numbers in zip(keys, *columns.values(), strict=True)]
    return format_narrow_table([*names, *columns], rows, names=2)


def _throughput(teachers: Sequence[TeacherStatus]) -> list[str]:
    rows = [
        [
            teacher.name,
            format_fixed(teacher.replies_per_second),
            format_duration(teacher.busy_seconds),
            format_duration(teacher.seconds_left),
            _amount(teacher.money, teacher.currency),
            _amount(teacher.money_left, teacher.currency),
        ]
        for teacher in teachers
    ]
    head = ["teacher", "replies/s", "worked", "left", "cost", "to come"]
    return format_narrow_table(head, rows, names=1)


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
        lines.append(f"cost until now: {format_money(total.money)}; to come: {left}")
    if total.unpriced and total.money:
        unpriced = ", ".join(total.unpriced)
        lines.append(f"not included: {unpriced} (price, tokens or time unknown)")
    if total.untold:
        lines.append(f"{format_count(total.untold)} replies came without token counts")
    if total.untimed:
        lines.append(
            f"{format_count(total.untimed)} replies came without a time, as imported ones do; "
            "replies/s and what follows from it leave them out"
        )
    if status.outside.replies:
        lines.append(
            f"{format_count(status.outside.replies)} replies of teachers or variants that the last "
            "panel does not include are also in the file, and in none of the rows above"
        )
    return lines


def _time_left(status: RunStatus) -> str:
    begin = "left, at most" if status.budget == "adaptive" else "left"
    side_by_side = format_duration(status.total.seconds_left_side_by_side)
    in_turn = format_duration(status.total.seconds_left_in_turn)
    if side_by_side == in_turn:
        return f"{begin}: {in_turn}"
    return (
        f"{begin}: {side_by_side} if the teachers work side by side, {in_turn} one after the other"
    )
