"""The arithmetic of one pair, from its replies to its beta, line by line."""

import math
import statistics
from typing import Any

from sp2dpo.pairs import Message, Pair
from sp2dpo.rubric import Rubric
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
        ValueError: the table says another beta than the replies give.
    """
    lines = [f"pair {pair.id}", *_conversation(pair), "", *_replies(replies, rubric)]
    kept = [reply for reply in replies if reply["status"] == "kept"]
    if len(kept) < schedule.quorum:
        given = None
        lines += ["", f"beta  none: {len(kept)} replies, the quorum is {schedule.quorum}"]
    else:
        gap, steps = _gap(kept, rubric)
        given = schedule.beta_min * (1 - gap) + schedule.beta_max * gap
        low, high = f"{schedule.beta_min:g}", f"{schedule.beta_max:g}"
        lines += ["", *steps, f"beta  {low} + ({high} - {low}) x {gap:.4g} = {given:.6g}"]
    _check(row["beta"], given)
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


def _replies(replies: list[dict[str, Any]], rubric: Rubric) -> list[str]:
    rows = []
    for reply in replies:
        who = (reply["teacher"], reply["variant"])
        if reply["status"] == "kept":
            gap = _product(reply, rubric)
            scores = (str(reply["magnitude"]), str(reply["confidence"]), f"{gap:.4g}")
            rows.append((*who, reply["category"], *scores, _flat(reply["rationale"])))
        else:
            rows.append(
                (*who, "refused", "", "", "", _flat(f"{reply['reason']} {reply['detail']}"))
            )
    head = ("teacher", "variant", "category", "magnitude", "confidence", "gap", "rationale")
    return table(head, rows)


def _flat(text: str) -> str:
    return " ".join(harmless(text).split())


def _product(reply: dict[str, Any], rubric: Rubric) -> float:
    return rubric.magnitude.share(reply["magnitude"]) * rubric.confidence.share(reply["confidence"])


def _gap(kept: list[dict[str, Any]], rubric: Rubric) -> tuple[float, list[str]]:
    """JMAMP of one pair, and how it came about."""
    by_teacher: dict[str, list[float]] = {}
    for reply in kept:
        by_teacher.setdefault(reply["teacher"], []).append(_product(reply, rubric))
    medians = {teacher: statistics.median(gaps) for teacher, gaps in by_teacher.items()}
    width = max(map(len, medians))
    lines = ["gap of a reply  share of the magnitude scale x share of the confidence scale"]
    for teacher, gaps in by_teacher.items():
        listed = ", ".join(f"{gap:.4g}" for gap in sorted(gaps))
        lines.append(f"{teacher:<{width}}  median({listed}) = {medians[teacher]:.4g}")
    gap = statistics.fmean(medians.values())
    listed = ", ".join(f"{median:.4g}" for median in medians.values())
    return gap, [*lines, f"gap   mean({listed}) = {gap:.4g}"]


def _check(stored: float | None, given: float | None) -> None:
    same = (
        stored is given
        if stored is None or given is None
        else math.isclose(stored, given, rel_tol=1e-9)
    )
    if not same:
        raise ValueError(f"the table of betas says {stored}, but its replies give {given}")
