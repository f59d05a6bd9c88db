"""Where a run stands, as lines for a terminal."""

from collections.abc import Sequence
from typing import Any

from sp2dpo.amounts import WIDTH, duration, fixed, money, narrow_table, percent, whole, wrapped
from sp2dpo.ledger import RECENT


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
    return [*lines, "", *_replies(found), "", *_teachers(found), "", *rest]


def _head(found: dict[str, Any]) -> list[str]:
    pid, share = found["annotating"], f" (shard {found['shard']})" if found["shard"] else ""
    held = f"{whole(found['pairs'])} pairs{share} of {found['source'] or 'nothing'}"
    return [
        found["store"] if found["integrity"] else f"{found['store']}: {held}",
        "nobody annotates into it now" if pid is None else f"process {pid} annotates into it now",
        "the file is DAMAGED; SQLite finds:" if found["integrity"] else "the file is sound",
    ]


def _replies(found: dict[str, Any]) -> list[str]:
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
