"""What a person reads of the audit and of the ensembling ablation: lines and tables."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sp2dpo.text import (
    UNKNOWN,
    count_noun,
    format_fixed,
    format_interval,
    format_percent,
    format_table,
    intervals_reliable,
)


def audit_lines(found: Mapping[str, Any]) -> Iterator[str]:
    """The lines of `sp2dpo audit`.

    Args:
        found: as `audit.audit` gives it.
    """
    rows = []
    for one in found["signatures"]:
        as_said = format_percent if one["unit"] == "share" else format_fixed
        side = "or more" if one["bad"] > one["look"] else "or less"
        value = as_said(one["value"])
        if one["low"] is not None:
            value += f" ({as_said(one['low'])} to {as_said(one['high'])})"
        limits = f"look {as_said(one['look'])}, bad {as_said(one['bad'])} {side}"
        rows.append((one["verdict"], one["name"], value, limits, one["title"]))
    yield from format_table(("verdict", "check", "value", "thresholds", "what it means"), rows)
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
    from sp2dpo.diagnostics.gold import RULES  # noqa: PLC0415 - reads polars, which help does without

    panel = gold["panel"]
    yield f"truth known of {panel['judged']} pairs with a gap (given: {panel['given']})"
    yield from format_table(
        ("wrong labels found by", "found", "recall", "precision", "AUC"),
        [
            (
                RULES[rule],
                str(one["found"]),
                _share(one["recall"], one["wrong"]),
                _share(one["precision"], one["found"]),
                format_interval(one["auc"]),
            )
            for rule, one in gold["labels"].items()
        ],
    )
    confidence = gold["confidence"]
    yield (
        f"rho with the known magnitude over right labels: "
        f"{format_interval(confidence['with'], 3)} with "
        f"confidence, {format_interval(confidence['without'], 3)} without it, gain "
        f"{format_interval(confidence['gain'], 3, signed=True)}"
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
    yield from format_table(head, [_variation(row, gold=gold) for row in rows])
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
    yield intervals_reliable(draws) + (" Shares: Wilson's." if gold else "")


def _variation(row: Mapping[str, Any], *, gold: bool) -> list[str]:
    cells = [
        row["group"], row["name"], str(row["pairs"]),
        format_fixed(row["mean"], 3), format_fixed(row["std"], 3),
        format_percent(row["floor"]), format_interval(row["rho"], 3), format_fixed(row["moved"], 3),
    ]  # fmt: skip
    if gold:
        labels = row["gold"]["labels"]
        cells += [
            format_interval(row["gold"]["magnitude"]),
            _share(labels["recall"], labels["wrong"]),
            _share(labels["precision"], labels["found"]),
            format_interval(labels["auc"]),
        ]
    return cells


def agreement_lines(found: Mapping[str, Any]) -> Iterator[str]:
    """The lines of `sp2dpo agreement`.

    Args:
        found: as `concord.concord` gives it; its split pairs may have a source_id.
    """
    yield (
        f"{count_noun(found['pairs'], 'pair')}, {count_noun(found['replies'], 'reply', 'replies')}"
    )
    head = ("Krippendorff's alpha", "category", "magnitude", "confidence", "gap")
    rows = [_alphas("between teachers", found["teachers"]["alpha"])]
    rows += [_alphas("between variants", found["variants"]["alpha"])]
    rows += [
        _alphas(f"{teacher}, between variants", alpha)
        for teacher, alpha in found["variants"]["by_teacher"].items()
    ]
    yield ""
    yield from format_table(head, rows)
    for axis in ("teachers", "variants"):
        if found[axis]["twos"]:
            yield ""
            yield from _twos(axis, found[axis]["twos"])
    yield ""
    yield from _outliers(found["outliers"])
    yield ""
    yield from _splits(found["splits"])
    yield ""
    yield (
        "1 is always alike, 0 as by chance, below 0 less than by chance. Nominal for the category, "
        "ordinal for the rest."
    )
    yield intervals_reliable(found["draws"])


def _alphas(name: str, alpha: Mapping[str, Any]) -> tuple[str, ...]:
    measures = ("category", "magnitude", "confidence", "gap")
    return (name, *(format_interval(alpha[what]) if what in alpha else "" for what in measures))


def _twos(axis: str, twos: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = [
        (
            f"{one['one']}, {one['other']}",
            str(one["pairs"]),
            format_percent(one["same_category"]),
            format_fixed(one["spearman"]),
            format_fixed(one["difference"]),
        )
        for one in twos
    ]
    head = (f"two {axis}", "pairs", "same category", "rho of gaps", "mean |difference|")
    return format_table(head, rows)


def _outliers(outliers: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    rows = [
        (
            one["teacher"],
            format_interval(one["without"]["gap"], signed=True),
            format_interval(one["without"]["category"], signed=True),
            format_interval(one["bias"], signed=True),
            format_fixed(one["spearman"]),
        )
        for one in outliers
    ]
    head = (
        "teacher", "alpha of gaps without it", "of categories", "its gap less the others'",
        "rho with each other",
    )  # fmt: skip
    yield from format_table(head, rows)
    odd = [one["teacher"] for one in outliers if one["stands_out"]]
    if len(outliers) > 2:
        yield f"stands out: {', '.join(odd)}" if odd else "no teacher stands out"


def _splits(splits: Mapping[str, Any]) -> Iterator[str]:
    if not splits["of"]:
        yield "no pair was read by two teachers"
        return
    yield (
        f"of {count_noun(splits['of'], 'pair')} that several teachers read, "
        f"{format_percent(splits['apart'])} have gaps 0.5 or more apart, "
        f"{format_percent(splits['no_majority'])} "
        "no category of most teachers"
    )
    rows = [
        (
            _name(one),
            format_fixed(one["spread"]),
            ", ".join(
                f"{who} {said['gap']:.2f} {said['category']}" for who, said in one["said"].items()
            ),
        )
        for one in splits["pairs"]
        if one["spread"]
    ]
    if rows:
        yield from format_table(("pairs that split the panel", "spread", "gap and category"), rows)


def _name(one: Mapping[str, Any]) -> str:
    return one.get("source_id") or one["pair_id"][:12]


def comparison_lines(found: Mapping[str, Any], one: str, other: str) -> Iterator[str]:
    """The lines of `sp2dpo compare`.

    Args:
        found: as `comparison.comparison` gives it; its movers may have a source_id.
        one: what to call the first table.
        other: what to call the second.
    """
    pairs, kept = found["pairs"], found["kept"]
    yield f"A  {one}"
    yield f"B  {other}"
    yield (
        f"{count_noun(pairs['compared'], 'pair')} with a beta in both (only in A: "
        f"{pairs['only_one'] + pairs['beta_only_one']}, only in B: "
        f"{pairs['only_other'] + pairs['beta_only_other']})"
    )
    yield (
        f"kept for training by both {kept['both']}, by A alone {kept['only_one']}, by B alone "
        f"{kept['only_other']}"
    )
    for key, (here, there) in found["differs"].items():
        yield f"{key}: A {_plain(here)}, B {_plain(there)}"
    if not found["same_annotations"]:
        yield "they were made from different annotations"
    yield ""
    yield from format_table(
        ("beta", "mean", "std", "min", "max"),
        [
            (name, *(format_fixed(found[side][what], 4) for what in ("mean", "std", "min", "max")))
            for name, side in (("A", "one"), ("B", "other"))
        ],
    )
    yield ""
    yield f"Pearson   {format_interval(found['pearson'], 3)}"
    yield f"Spearman  {format_interval(found['spearman'], 3)}"
    yield f"shift     {format_interval(found['shift'], 4, signed=True)} (mean of B less A)"
    mean, largest = format_fixed(found["distance"], 4), format_fixed(found["largest"], 4)
    yield f"distance  {mean} (mean), {largest} (largest)"
    yield ""
    yield from format_table(
        ("category", "pairs", "A", "B", "shift", "Spearman"),
        [
            (
                row["category"],
                str(row["pairs"]),
                format_fixed(row["one"], 4),
                format_fixed(row["other"], 4),
                format_fixed(row["shift"], 4, signed=True),
                format_fixed(row["spearman"], 3),
            )
            for row in found["categories"]
        ],
    )
    if found["movers"]:
        yield ""
        yield from format_table(
            ("moved most", "category", "A", "B", "shift"),
            [
                (
                    _name(row),
                    row["category"],
                    format_fixed(row["one"], 4),
                    format_fixed(row["other"], 4),
                    format_fixed(row["shift"], 4, signed=True),
                )
                for row in found["movers"]
            ],
        )
    yield ""
    yield intervals_reliable(found["draws"])


def _plain(value: Any) -> str:
    return "none" if value is None else str(value)
