"""What a person reads of the audit and of the ensembling ablation: lines and tables."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sp2dpo.amounts import UNKNOWN, fixed, interval, intervals_hold, percent
from sp2dpo.terminal import table


def audit_lines(found: Mapping[str, Any]) -> Iterator[str]:
    """The lines of `sp2dpo audit`.

    Args:
        found: as `audit.audit` gives it.
    """
    rows = []
    for one in found["signatures"]:
        as_said = percent if one["unit"] == "share" else fixed
        side = "or more" if one["bad"] > one["look"] else "or less"
        value = as_said(one["value"])
        if one["low"] is not None:
            value += f" ({as_said(one['low'])} to {as_said(one['high'])})"
        limits = f"look {as_said(one['look'])}, bad {as_said(one['bad'])} {side}"
        rows.append((one["verdict"], one["name"], value, limits, one["title"]))
    yield from table(("verdict", "check", "value", "thresholds", "what it means"), rows)
    for one in found["signatures"]:
        if one["verdict"] not in ("ok", "cannot be told"):
            yield ""
            yield f"{one['name']}: {one['measure']}{_note(one)}"
            yield f"  {one['advice']}"
    told = [one for one in found["signatures"] if one["reason"]]
    if told:
        yield ""
        yield from (f"{one['name']}: cannot be told: {one['reason']}" for one in told)
    if found["gold"]:
        yield ""
        yield from _gold(found["gold"])
    yield ""
    counts = ", ".join(f"{count} {verdict}" for verdict, count in found["counts"].items() if count)
    yield f"{found['verdict']}: {counts}"


def _note(one: Mapping[str, Any]) -> str:
    return f" ({one['note']})" if one["note"] else ""


def _gold(gold: Mapping[str, Any]) -> Iterator[str]:
    from sp2dpo.detection import RULES  # noqa: PLC0415 - reads polars, which help does without

    panel = gold["panel"]
    yield f"truth known of {panel['judged']} pairs with a gap (given: {panel['given']})"
    yield from table(
        ("wrong labels found by", "found", "recall", "precision", "AUC"),
        [
            (
                RULES[rule],
                str(one["found"]),
                _share(one["recall"], one["wrong"]),
                _share(one["precision"], one["found"]),
                interval(one["auc"]),
            )
            for rule, one in gold["labels"].items()
        ],
    )
    confidence = gold["confidence"]
    yield (
        f"rho with the known magnitude over right labels: {interval(confidence['with'], 3)} with "
        f"confidence, {interval(confidence['without'], 3)} without it, gain "
        f"{interval(confidence['gain'], 3, signed=True)}"
    )


def _share(one: Mapping[str, Any], of: int) -> str:
    if one["share"] is None:
        return UNKNOWN
    return f"{one['count']}/{of} {one['share']:.2f} ({one['low']:.2f} to {one['high']:.2f})"


def ablation_lines(rows: Sequence[Mapping[str, Any]], *, draws: int) -> Iterator[str]:
    """The lines of `sp2dpo estimators`.

    Args:
        rows: as `ablation.ablation` gives them.
        draws: bootstrap samples.
    """
    gold = rows[0]["gold"] is not None
    head = ["what is varied", "to", "pairs", "mean", "std", "at floor", "rho", "moved"]
    if gold:
        head += ["rho with known magnitude", "wrong found", "precision", "AUC"]
    yield from table(head, [_variation(row, gold=gold) for row in rows])
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
    yield intervals_hold(draws) + (" Shares: Wilson's." if gold else "")


def _variation(row: Mapping[str, Any], *, gold: bool) -> list[str]:
    cells = [
        row["group"], row["name"], str(row["pairs"]), fixed(row["mean"], 3), fixed(row["std"], 3),
        percent(row["floor"]), interval(row["rho"], 3), fixed(row["moved"], 3),
    ]  # fmt: skip
    if gold:
        labels = row["gold"]["labels"]
        cells += [
            interval(row["gold"]["magnitude"]),
            _share(labels["recall"], labels["wrong"]),
            _share(labels["precision"], labels["found"]),
            interval(labels["auc"]),
        ]
    return cells
