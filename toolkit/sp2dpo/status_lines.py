"""Where a run stands, as lines for a terminal."""

from collections.abc import Sequence
from typing import Any

from sp2dpo.amounts import duration, fixed, money, percent, whole
from sp2dpo.ledger import RECENT
from sp2dpo.terminal import harmless, table


def status_lines(found: dict[str, Any]) -> list[str]:
    """What `sp2dpo status` prints.

    Args:
        found: as `status.status` gives it.
    """
    lines = [harmless(line) for line in _head(found)]
    if found["integrity"]:
        return [*lines, *(f"  {harmless(problem)}" for problem in found["integrity"])]
    if not found["teachers"]:
        return [*lines, "nothing was annotated yet: `sp2dpo annotate` asks"]
    return [*lines, "", *_replies(found), "", *_teachers(found), "", *_rest(found)]


def _head(found: dict[str, Any]) -> list[str]:
    pid, share = found["annotating"], f" (shard {found['shard']})" if found["shard"] else ""
    held = f"{whole(found['pairs'])} pairs{share} of {found['source'] or 'nothing'}"
    return [
        found["store"] if found["integrity"] else f"{found['store']}: {held}",
        "nobody annotates into it now" if pid is None else f"process {pid} annotates into it now",
        "the file is DAMAGED; SQLite finds:" if found["integrity"] else "the file is sound",
    ]


def _replies(found: dict[str, Any]) -> list[str]:
    """What became of what was asked: a row for each teacher, variant and order, and their sum."""
    orders = {cell["order"] for teacher in found["teachers"] for cell in teacher["cells"]}
    adaptive = found["budget"] == "adaptive"
    rows = [
        _row(teacher["name"], cell, len(orders) > 1, adaptive)
        for teacher in found["teachers"]
        for cell in teacher["cells"]
    ]
    total = found["total"] | {"variant": "", "order": ""}
    rows.append(_row("all", total, len(orders) > 1, adaptive))
    head = [
        "teacher",
        "variant",
        *(["order"] if len(orders) > 1 else []),
        "asked",
        "kept",
        "refused",
        *(["spared"] if adaptive else []),
        *("pending", "prompt tokens", "cached", "reply tokens"),
    ]
    reasons = ", ".join(f"{why} {whole(n)}" for why, n in found["total"]["refused"].items())
    return [*table(head, rows), *([f"refused: {harmless(reasons)}"] if reasons else [])]


def _row(name: str, cell: dict[str, Any], blind: bool, adaptive: bool) -> list[str]:
    return [
        harmless(name),
        harmless(cell["variant"]),
        *([cell["order"]] if blind else []),
        whole(cell["asked"]),
        whole(cell["kept"]),
        whole(sum(cell["refused"].values())),
        *([whole(cell["spared"])] if adaptive else []),
        whole(cell["pending"]),
        whole(cell["prompt_tokens"]),
        percent(cell["cached_share"]),
        whole(cell["completion_tokens"]),
    ]


def _teachers(found: dict[str, Any]) -> list[str]:
    rows = [
        [
            harmless(one["name"]),
            fixed(one["replies_per_second"]),
            duration(one["busy_seconds"]),
            duration(one["seconds_left"]),
            _amount(one["money"], one["currency"]),
            _amount(one["money_left"], one["currency"]),
        ]
        for one in found["teachers"]
    ]
    head = ["teacher", "replies/s", "worked", "left", "cost", "to come"]
    return table(head, rows)


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
        lines.append(
            f"not in it: {harmless(', '.join(total['unpriced']))} (price or tokens unknown)"
        )
    if total["untold"]:
        lines.append(f"{whole(total['untold'])} replies came without counts of tokens")
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
