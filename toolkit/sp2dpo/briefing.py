"""A pilot's findings, as lines for a terminal."""

from collections.abc import Sequence
from typing import Any

from sp2dpo.amounts import (
    UNKNOWN,
    duration,
    fixed,
    money,
    narrow_table,
    percent,
    significant,
    whole,
    wrapped,
)

_BAR = 40
"""The length of the longest bar of the histogram."""
_TOGETHER = 2
"""Parts of the envelope that share a bar."""
_MARKS = {True: "ok", False: "NO", None: "?"}


def briefing(found: dict[str, Any]) -> list[str]:
    """What `sp2dpo pilot` prints.

    Args:
        found: as `pilot.findings` gives it.
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
    return [part for line in lines for part in wrapped(line)]


def _sample(sample: dict[str, Any]) -> list[str]:
    rows = [
        [_span(one["prompt"]), _span(one["difference"]), whole(one["pairs"]), whole(one["sampled"])]
        for one in sample["strata"]
    ]
    usable = sample["rows"] - sample["set_aside"]
    return [
        f"{sample['rows']} rows = {usable} usable + {sample['set_aside']} set aside; "
        f"{sample['pairs']} distinct pairs",
        *_wrapped(*map(_aside, sample["aside"])),
        *_wrapped(
            f"{whole(sample['sampled'])} of {whole(sample['pairs'])} pairs, by the length of the "
            "prompt and by how much longer the chosen response is (characters)"
        ),
        *narrow_table(["prompt", "difference", "pairs", "sampled"], rows, names=1, indent="  "),
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
            whole(one["heard"]),
            whole(one["kept"]),
            percent(one["refused_share"]),
        ]
        for one in found["teachers"]
    ]
    why = [
        f"  {one['name']} refused: "
        + ", ".join(f"{reason} {whole(count)}" for reason, count in one["refused"].items())
        for one in found["teachers"]
        if one["refused"]
    ]
    trouble = found["trouble"]
    return [
        "what came back",
        *narrow_table(["teacher", "heard", "kept", "refused"], rows, names=1, indent="  "),
        *_wrapped(*why, *([f"  the asking ended early: {trouble}"] if trouble else [])),
    ]


def _measured(teachers: Sequence[dict[str, Any]]) -> list[str]:
    rows = [
        [
            one["name"],
            significant(one["prompt_tokens"]),
            percent(one["cached_share"]),
            percent(one["cacheable_share"]),
            significant(one["completion_tokens"]),
            significant(one["replies_per_second"]),
            significant(one["prompt_tokens_per_second"]),
            significant(one["completion_tokens_per_second"]),
        ]
        for one in teachers
    ]
    head = ["teacher", "prompt", "cached", "could be", "reply", "replies/s", "prompt/s", "reply/s"]
    return [
        "tokens of a request, and what came in a second",
        *narrow_table(head, rows, names=1, indent="  "),
    ]


def _betas(found: dict[str, Any]) -> list[str]:
    betas, schedule = found["betas"], found["schedule"]
    lines = [f"betas of {whole(betas['with_beta'])} of {whole(betas['pairs'])} pairs"]
    if not betas["with_beta"]:
        return lines
    low, high = schedule["beta_min"], schedule["beta_max"]
    counts, bins = betas["histogram"], len(betas["histogram"])
    sums = [sum(counts[at : at + _TOGETHER]) for at in range(0, bins, _TOGETHER)]
    for number, count in enumerate(sums):
        begin = low + (high - low) * number * _TOGETHER / bins
        bar = "#" * round(_BAR * count / max(sums))
        lines.append(f"  {begin:8.3g}  {bar:<{_BAR}} {whole(count)}".rstrip())
    quantiles = ", ".join(
        f"{float(at):.0%} {significant(beta)}" for at, beta in betas["quantiles"].items()
    )
    return [
        *lines,
        *_wrapped(f"  mean {significant(betas['mean'])}; quantiles {quantiles}"),
        f"  {percent(betas['floor'])} in the lowest 5% of the envelope, "
        f"{percent(betas['ceiling'])} in the highest",
    ]


def _agreement(agreement: dict[str, Any]) -> list[str]:
    lines = _wrapped(
        f"agreement: {percent(agreement['agreement'])} of the replies name their pair's category; "
        f"spread of the gaps between teachers {fixed(agreement['spread'])}"
    )
    rows = [
        [one["one"], one["other"], *_compared(one)]
        for one in (*agreement["between_teachers"], *agreement["between_variants"])
    ]
    if rows:
        head = ["one", "other", "same category", "rank correlation", "mean difference"]
        lines += narrow_table(head, rows, names=2, indent="  ")
    for one in agreement["position"] or ():
        lines += _wrapped(
            f"  {one['teacher']} in both orders: same response "
            f"{percent(one['consistent']['share'])}, A twice {percent(one['first']['share'])}, "
            f"B twice {percent(one['second']['share'])}, tie {percent(one['tie']['share'])}"
        )
    return lines


def _compared(one: dict[str, Any]) -> list[str]:
    return [percent(one["same_category"]), fixed(one["spearman"]), fixed(one["difference"])]


def _gold(gold: dict[str, Any] | None) -> list[str]:
    if gold is None:
        return []
    labels = [
        f"  of those that are {label}: {_share(one)}" for label, one in gold["labels"].items()
    ]
    return _wrapped(
        f"gold: {whole(gold['judged'])} pairs judged of {whole(gold['given'])} with a known truth; "
        f"a gap below {gold['threshold']:g} is no preference",
        f"  right: {_share(gold['accuracy'])}; believing every label gives "
        f"{percent(gold['always_chosen'])}",
        *labels,
        f"  mean over the true labels {percent(gold['balanced'])}, at least "
        f"{percent(gold['balanced_low'])}",
        f"  category: {_share(gold['category'])}; rank correlation of the magnitudes "
        f"{fixed(gold['magnitude'])}",
    )


def _share(one: dict[str, Any]) -> str:
    if one["share"] is None:
        return UNKNOWN
    return f"{percent(one['share'])} ({percent(one['low'])} to {percent(one['high'])})"


def _projection(found: dict[str, Any]) -> list[str]:
    whole_corpus = found["projection"]
    if whole_corpus is None:
        return []
    rows = [
        [
            one["name"],
            whole(one["requests"]),
            whole(one["prompt_tokens"]),
            whole(one["completion_tokens"]),
            duration(one["hours"] and one["hours"] * 3600),
            significant(one["gpu_hours"]),
            money({one["currency"]: one["money"]}) if one["money"] is not None else UNKNOWN,
        ]
        for one in whole_corpus["teachers"]
    ]
    hours = whole_corpus["hours"]
    at_most = "; at most, for a large corpus spares more" if _is_adaptive(found) else ""
    head = ["teacher", "requests", "prompt tokens", "reply tokens", "time", "GPU-hours", "money"]
    rest = [
        f"  together {duration(hours and hours * 3600)}, "
        f"{significant(whole_corpus['gpu_hours'])} GPU-hours, "
        f"{money(whole_corpus['money']) or 'money not known'}",
    ]
    if whole_corpus["unpriced"] and whole_corpus["money"]:
        rest.append(f"  without {', '.join(whole_corpus['unpriced'])}: no price, or no tokens told")
    return [
        *_wrapped(
            f"all {whole(whole_corpus['pairs'])} pairs at the pilot's pace, without starting the "
            f"servers (a short run is slower than a long one{at_most})"
        ),
        *narrow_table(head, rows, names=1, indent="  "),
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
            f"{significant(sweep['gpu_hours'])} GPU-hours"
        )
        if sweep["ratio"] is not None:
            return [f"{told}; the annotation takes {significant(sweep['ratio'])} times as much"]
        return [told, *_beside(sweep, whole_corpus, runs)]
    if sweep["even_run_hours"] is not None:
        return [
            f"  the annotation costs as much as {runs} of "
            f"{significant(sweep['even_run_hours'])} GPU-hours each (what a run takes: --run-hours)"
        ]
    return _beside(sweep, whole_corpus, runs)


def _beside(sweep: dict[str, Any], whole_corpus: dict[str, Any], runs: str) -> list[str]:
    """What can be said where nobody knows the annotation's GPU-hours."""
    if whole_corpus["money"]:
        return [
            f"  the annotation costs as much as {runs} of {money(sweep['even_money'])} each; its "
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
    return whole(value) if rule["name"] == "enough" else fixed(value, 3)
