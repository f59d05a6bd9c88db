"""A pilot's findings, as lines for a terminal."""

from collections.abc import Sequence
from typing import Any

from sp2dpo.store.usage import RECENT
from sp2dpo.text import (
    UNKNOWN,
    WIDTH,
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


def status_lines(found: dict[str, Any]) -> list[str]:
    """What `sp2dpo status` prints.

    Args:
        found: as `status.status` gives it.
    """
    lines = [part for line in _head(found) for part in wrapped(line)]
    if found["integrity"]:
        return lines + [part for one in found["integrity"] for part in wrapped(f"  {one}")]
    if not found["teachers"]:
        return [*lines, "nothing was annotated yet: `sp2dpo annotate` asks"]
    rest = [part for line in _rest(found) for part in wrapped(line)]
    return [*lines, "", *_reply_counts(found), "", *_teachers(found), "", *rest]


def _head(found: dict[str, Any]) -> list[str]:
    pid, share = found["annotating"], f" (shard {found['shard']})" if found["shard"] else ""
    held = f"{whole(found['pairs'])} pairs{share} of {found['source'] or 'nothing'}"
    return [
        found["store"] if found["integrity"] else f"{found['store']}: {held}",
        "nobody annotates into it now" if pid is None else f"process {pid} annotates into it now",
        "the file is DAMAGED; SQLite finds:" if found["integrity"] else "the file is sound",
    ]


def _reply_counts(found: dict[str, Any]) -> list[str]:
    """What became of what was asked: a row for each teacher, variant and order, and their sum.

    The tokens stand beside it, or below where there is no room.
    """
    cells = [
        {"teacher": teacher["name"], **cell}
        for teacher in found["teachers"]
        for cell in teacher["cells"]
    ]
    blind = len({cell["order"] for cell in cells}) > 1
    cells.append({"teacher": "all", "variant": "", "order": "", **found["total"]})
    names = ["teacher", "variant", *(["order"] if blind else [])]
    counts = {
        "asked": [whole(cell["asked"]) for cell in cells],
        "kept": [whole(cell["kept"]) for cell in cells],
        "refused": [whole(sum(cell["refused"].values())) for cell in cells],
        "spared": [whole(cell["spared"]) for cell in cells],
        "pending": [whole(cell["pending"]) for cell in cells],
    }
    if found["budget"] != "adaptive":
        del counts["spared"]
    tokens = {
        "prompt tokens": [whole(cell["prompt_tokens"]) for cell in cells],
        "cached": [percent(cell["cached_share"]) for cell in cells],
        "reply tokens": [whole(cell["completion_tokens"]) for cell in cells],
    }
    who = [[cell[name] for name in names] for cell in cells]
    lines = _table(names, who, counts | tokens)
    if max(map(len, lines)) > WIDTH or any("..." in line for line in lines):
        lines = [*_table(names, who, counts), "", *_table(names, who, tokens)]
    reasons = ", ".join(f"{why} {whole(n)}" for why, n in found["total"]["refused"].items())
    return [*lines, *(wrapped(f"refused: {reasons}") if reasons else [])]


def _table(
    names: Sequence[str], who: Sequence[Sequence[str]], columns: dict[str, list[str]]
) -> list[str]:
    rows = [[*one, *numbers] for one, *numbers in zip(who, *columns.values(), strict=True)]
    return narrow_table([*names, *columns], rows, names=2)


def _teachers(found: dict[str, Any]) -> list[str]:
    rows = [
        [
            one["name"],
            fixed(one["replies_per_second"]),
            duration(one["busy_seconds"]),
            duration(one["seconds_left"]),
            _amount(one["money"], one["currency"]),
            _amount(one["money_left"], one["currency"]),
        ]
        for one in found["teachers"]
    ]
    head = ["teacher", "replies/s", "worked", "left", "cost", "to come"]
    return narrow_table(head, rows, names=1)


def _amount(amount: float | None, currency: str | None) -> str:
    return fixed(None) if amount is None or currency is None else money({currency: amount})


def _rest(found: dict[str, Any]) -> list[str]:
    total, teachers = found["total"], found["teachers"]
    lines = [
        f"replies/s: over the last {RECENT // 60} minutes before a teacher's newest reply, while "
        "requests were in flight"
    ]
    if total["pending"] and total["seconds_left_in_turn"] is not None:
        lines.append(_left(total, teachers, at_most=found["budget"] == "adaptive"))
    if total["money"]:
        said = f"cost until now: {money(total['money'])}"
        lines.append(f"{said}; to come: {money(total['money_left']) or 'not known'}")
    if total["unpriced"] and total["money"]:
        lines.append(f"not in it: {', '.join(total['unpriced'])} (price, tokens or time unknown)")
    if total["untold"]:
        lines.append(f"{whole(total['untold'])} replies came without counts of tokens")
    if total["untimed"]:
        lines.append(
            f"{whole(total['untimed'])} replies came without a time, as imported ones do; "
            "replies/s and what follows from it are of the others"
        )
    if found["outside"]["replies"]:
        lines.append(
            f"{whole(found['outside']['replies'])} replies of teachers or variants that the last "
            "panel does not ask are in the file too, and in no row above"
        )
    return lines


def _left(total: dict[str, Any], teachers: Sequence[dict[str, Any]], *, at_most: bool) -> str:
    begin = "left, at most" if at_most else "left"
    side, turn = total["seconds_left_side_by_side"], total["seconds_left_in_turn"]
    if len(teachers) == 1 or side == turn:
        return f"{begin}: {duration(turn)}"
    return (
        f"{begin}: {duration(side)} if the teachers work side by side, {duration(turn)} one after "
        "the other"
    )
