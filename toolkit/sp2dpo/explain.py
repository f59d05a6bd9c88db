"""The arithmetic of one pair, from its replies to its beta, line by line."""

import math
import statistics
from collections.abc import Iterable
from typing import Any

from sp2dpo.gaps import NOISE, signed_gap
from sp2dpo.pairs import Message, Pair
from sp2dpo.rubric import CHOSEN_FIRST, Rubric
from sp2dpo.schedule import Schedule
from sp2dpo.terminal import harmless, table


def explain(
    pair: Pair,
    replies: list[dict[str, Any]],
    row: dict[str, Any],
    *,
    rubric: Rubric,
    schedule: Schedule,
) -> list[str]:
    """The lines that `sp2dpo explain` prints.

    The arithmetic is done here once more, by hand and for this pair alone; it must arrive at the
    table's beta.

    Args:
        pair: what was judged.
        replies: all its replies, as `Store.replies` gives them.
        row: its row in the table of betas.
        rubric: that was asked under.
        schedule: that made the table.

    Raises:
        ValueError: the table says another gap or beta than the replies give.
    """
    estimate = schedule.estimate
    lines = [f"pair {pair.id}", *_conversation(pair), "", *_replies(replies, rubric, estimate)]
    kept = [reply for reply in replies if reply["status"] == "kept"]
    votes = [reply for reply in kept if signed_gap(reply, rubric, estimate) is not None]
    signed = beta = None
    if len(votes) < schedule.quorum:
        without = f", {len(kept) - len(votes)} without expectations" if kept != votes else ""
        counts = f"{len(votes)} replies{without}, the quorum is {schedule.quorum}"
        lines += ["", f"beta  none: {counts}"]
    else:
        signed, steps = _gap(votes, rubric, estimate)
        gap = max(0.0, signed)
        beta = schedule.beta_min * (1 - gap) + schedule.beta_max * gap
        low, high = f"{schedule.beta_min:g}", f"{schedule.beta_max:g}"
        lines += ["", *steps, f"beta  {low} + ({high} - {low}) x {gap:.4g} = {beta:.6g}"]
    _check("signed gap", row["signed_gap"], signed)
    _check("beta", row["beta"], beta)
    if row["category"]:
        share = f"{row['agreement']:.0%} of {row['votes']} replies"
        lines.append(f"kind  {row['category']} ({share}), spread between teachers {_g(row)}")
    return [harmless(line) for line in lines]


def _g(row: dict[str, Any]) -> str:
    return f"{row['spread']:.3g}"


def _conversation(pair: Pair) -> list[str]:
    lines = []
    for part in ("prompt", "chosen", "rejected"):
        for turn in getattr(pair, part):
            lines += ["", f"{part} ({turn['role']})", *_indented(turn)]
    return lines


def _indented(turn: Message) -> list[str]:
    more = [f"{key}: {turn[key]}" for key in turn if key not in ("role", "content")]
    said = [*(turn.get("content") or "").split("\n"), *more]
    return [f"  | {line}" for line in said]


def _replies(replies: list[dict[str, Any]], rubric: Rubric, estimate: str) -> list[str]:
    """A table of all replies, refused ones with their reasons."""
    scores = ("magnitude", "confidence")
    if estimate == "expected":
        scores = ("expected magnitude", "expected confidence")
    head = (
        "teacher", "variant", *(("order",) if rubric.blind else ()), "category",
        *(("better",) if rubric.blind else ()), *scores, "gap", "rationale",
    )  # fmt: skip
    rows = []
    for reply in replies:
        said = dict.fromkeys(head, "") | {key: reply[key] for key in ("teacher", "variant")}
        said["order"] = reply["order"]
        if reply["status"] == "kept":
            gap = signed_gap(reply, rubric, estimate)
            said["category"] = reply["category"]
            said["better"] = _named(reply)
            said |= {name: _number(reply[name.replace(" ", "_")]) for name in scores}
            said["gap"] = "no vote" if gap is None else _number(gap)
            said["rationale"] = _flat(reply["rationale"])
        else:
            said["category"] = "refused"
            said["rationale"] = _flat(f"{reply['reason']} {reply['detail']}")
        rows.append(tuple(said[name] for name in head))
    return table(head, rows)


def _named(reply: dict[str, Any]) -> str:
    """What a blind reply calls the better one, and which response that is."""
    if reply["better"] not in ("A", "B"):
        return reply["better"] or ""
    shown = ("chosen", "rejected") if reply["order"] == CHOSEN_FIRST else ("rejected", "chosen")
    return f"{reply['better']}, {shown['AB'.index(reply['better'])]}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value + 0.0:.4g}"  # adding nought makes -0 plain 0


def _flat(text: str) -> str:
    return " ".join(harmless(text).split())


def _gap(votes: list[dict[str, Any]], rubric: Rubric, estimate: str) -> tuple[float, list[str]]:
    """JMAMP of one pair, before it is clipped, and how it came about."""
    readings: dict[str, dict[str, list[float]]] = {}
    for reply in votes:
        gap = signed_gap(reply, rubric, estimate)
        if gap is not None:
            by_variant = readings.setdefault(reply["teacher"], {})
            by_variant.setdefault(reply["variant"], []).append(gap)
    expected = "expected " if estimate == "expected" else ""
    product = f"share of the {expected}magnitude on its scale x share of the {expected}confidence"
    lines = [f"gap of a reply  {'sign x ' if rubric.blind else ''}{product}"]
    if rubric.blind:
        lines.append("sign  +1 for chosen, -1 for rejected, 0 for a tie")
        lines += _over_orders(readings)
    means = {
        teacher: [statistics.fmean(gaps) for gaps in by_variant.values()]
        for teacher, by_variant in readings.items()
    }
    medians = {teacher: statistics.median(gaps) for teacher, gaps in means.items()}
    width = max(map(len, medians))
    for teacher, gaps in means.items():
        lines.append(
            f"{teacher:<{width}}  median({_listed(sorted(gaps))}) = {_number(medians[teacher])}"
        )
    gap = statistics.fmean(medians.values())
    gap = 0.0 if abs(gap) <= NOISE else gap
    listed = f"mean({_listed(medians.values())}) = {_number(gap)}"
    if not rubric.blind:
        return gap, [*lines, f"gap   {listed}"]
    disputed = ", so the label is disputed" if gap < 0 else ""
    clipped = f"gap   max(0, {_number(gap)}) = {_number(max(0.0, gap))}"
    return gap, [*lines, f"signed gap  {listed}{disputed}", clipped]


def _over_orders(readings: dict[str, dict[str, list[float]]]) -> list[str]:
    """A line for each teacher and variant: the mean over the orders that came."""
    rows = [
        (teacher, variant, f"mean({_listed(gaps)}) = {_number(statistics.fmean(gaps))}")
        for teacher, by_variant in readings.items()
        for variant, gaps in by_variant.items()
    ]
    return table(("teacher", "variant", "over the orders"), rows)


def _listed(gaps: Iterable[float]) -> str:
    return ", ".join(map(_number, gaps))


def _check(what: str, stored: float | None, given: float | None) -> None:
    same = (
        stored is given
        if stored is None or given is None
        else math.isclose(stored, given, rel_tol=1e-9, abs_tol=NOISE)
    )
    if not same:
        raise ValueError(f"the table of betas says {what} {stored}, but its replies give {given}")
