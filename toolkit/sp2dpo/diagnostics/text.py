"""Format the results of the diagnostics as lines and tables of text."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sp2dpo.text import (
    UNKNOWN,
    count_noun,
    format_fixed,
    format_interval,
    format_percent,
    format_table,
    interval_note,
)


def audit_lines(result: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of `sp2dpo audit`.

    Args:
        result: from `audit.audit_betas`.
    """
    rows = []
    for row in result["signatures"]:
        format_value = format_percent if row["unit"] == "share" else format_fixed
        side = "or more" if row["bad"] > row["look"] else "or less"
        value = format_value(row["value"])
        if row["low"] is not None:
            value += f" ({format_value(row['low'])} to {format_value(row['high'])})"
        limits = f"look {format_value(row['look'])}, bad {format_value(row['bad'])} {side}"
        rows.append((row["verdict"], row["name"], value, limits, row["title"]))
    yield from format_table(("verdict", "check", "value", "thresholds", "what it means"), rows)
    for row in result["signatures"]:
        if row["verdict"] not in ("ok", "cannot be told"):
            yield ""
            yield f"{row['name']}: {row['measure']}{_note(row)}"
            yield f"  {row['advice']}"
    unknown = [row for row in result["signatures"] if row["reason"]]
    if unknown:
        yield ""
        yield from (f"{row['name']}: cannot be told: {row['reason']}" for row in unknown)
    if result["gold"]:
        yield ""
        yield from _gold(result["gold"])
    yield ""
    counts = ", ".join(f"{count} {verdict}" for verdict, count in result["counts"].items() if count)
    yield f"{result['verdict']}: {counts}"


def _note(row: Mapping[str, Any]) -> str:
    return f" ({row['note']})" if row["note"] else ""


def _gold(gold: Mapping[str, Any]) -> Iterator[str]:
    from sp2dpo.diagnostics.gold import RULES  # noqa: PLC0415 - reads polars, which help does without

    panel = gold["panel"]
    yield f"truth known of {panel['judged']} pairs with a gap (given: {panel['given']})"
    yield from format_table(
        ("wrong labels found by", "found", "recall", "precision", "AUC"),
        [
            (
                RULES[rule],
                str(row["found"]),
                _share(row["recall"], row["wrong"]),
                _share(row["precision"], row["found"]),
                format_interval(row["auc"]),
            )
            for rule, row in gold["labels"].items()
        ],
    )
    confidence = gold["confidence"]
    yield (
        f"rho with the known magnitude over right labels: "
        f"{format_interval(confidence['with'], 3)} with "
        f"confidence, {format_interval(confidence['without'], 3)} without it, gain "
        f"{format_interval(confidence['gain'], 3, signed=True)}"
    )


def _share(row: Mapping[str, Any], of: int) -> str:
    if row["share"] is None:
        return UNKNOWN
    return f"{row['count']}/{of} {row['share']:.2f} ({row['low']:.2f} to {row['high']:.2f})"


def ablation_lines(rows: Sequence[Mapping[str, Any]], *, draws: int) -> Iterator[str]:
    """Yield the lines of `sp2dpo estimators`.

    Args:
        rows: from `ablation.compare_estimators`.
        draws: number of bootstrap samples.
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
    yield interval_note(draws) + (" Shares: Wilson's." if gold else "")


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


def agreement_lines(result: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of `sp2dpo agreement`.

    Args:
        result: from `panel_agreement.measure_agreement`; split pairs may have a source_id.
    """
    yield (
        f"{count_noun(result['pairs'], 'pair')}, "
        f"{count_noun(result['replies'], 'reply', 'replies')}"
    )
    head = ("Krippendorff's alpha", "category", "magnitude", "confidence", "gap")
    rows = [_alphas("between teachers", result["teachers"]["alpha"])]
    rows += [_alphas("between variants", result["variants"]["alpha"])]
    rows += [
        _alphas(f"{teacher}, between variants", alpha)
        for teacher, alpha in result["variants"]["by_teacher"].items()
    ]
    yield ""
    yield from format_table(head, rows)
    for axis in ("teachers", "variants"):
        if result[axis]["twos"]:
            yield ""
            yield from _twos(axis, result[axis]["twos"])
    yield ""
    yield from _outliers(result["outliers"])
    yield ""
    yield from _splits(result["splits"])
    yield ""
    yield (
        "1 is always alike, 0 as by chance, below 0 less than by chance. Nominal for the category, "
        "ordinal for the rest."
    )
    yield interval_note(result["draws"])


def _alphas(name: str, alpha: Mapping[str, Any]) -> tuple[str, ...]:
    measures = ("category", "magnitude", "confidence", "gap")
    return (name, *(format_interval(alpha[what]) if what in alpha else "" for what in measures))


def _twos(axis: str, twos: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = [
        (
            f"{row['one']}, {row['other']}",
            str(row["pairs"]),
            format_percent(row["same_category"]),
            format_fixed(row["spearman"]),
            format_fixed(row["difference"]),
        )
        for row in twos
    ]
    head = (f"two {axis}", "pairs", "same category", "rho of gaps", "mean |difference|")
    return format_table(head, rows)


def _outliers(outliers: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    rows = [
        (
            row["teacher"],
            format_interval(row["without"]["gap"], signed=True),
            format_interval(row["without"]["category"], signed=True),
            format_interval(row["bias"], signed=True),
            format_fixed(row["spearman"]),
        )
        for row in outliers
    ]
    head = (
        "teacher", "alpha of gaps without it", "of categories", "its gap less the others'",
        "rho with each other",
    )  # fmt: skip
    yield from format_table(head, rows)
    odd = [row["teacher"] for row in outliers if row["stands_out"]]
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
            _name(row),
            format_fixed(row["spread"]),
            ", ".join(
                f"{who} {reading['gap']:.2f} {reading['category']}"
                for who, reading in row["said"].items()
            ),
        )
        for row in splits["pairs"]
        if row["spread"]
    ]
    if rows:
        yield from format_table(("pairs that split the panel", "spread", "gap and category"), rows)


def _name(row: Mapping[str, Any]) -> str:
    return row.get("source_id") or row["pair_id"][:12]


def comparison_lines(result: Mapping[str, Any], first: str, second: str) -> Iterator[str]:
    """Yield the lines of `sp2dpo compare`.

    Args:
        result: from `comparison.compare_betas`; its movers may have a source_id.
        first: name of the first table.
        second: name of the second table.
    """
    pairs, kept = result["pairs"], result["kept"]
    yield f"A  {first}"
    yield f"B  {second}"
    yield (
        f"{count_noun(pairs['compared'], 'pair')} with a beta in both (only in A: "
        f"{pairs['only_one'] + pairs['beta_only_one']}, only in B: "
        f"{pairs['only_other'] + pairs['beta_only_other']})"
    )
    yield (
        f"kept for training by both {kept['both']}, by A alone {kept['only_one']}, by B alone "
        f"{kept['only_other']}"
    )
    for key, (here, there) in result["differs"].items():
        yield f"{key}: A {_plain(here)}, B {_plain(there)}"
    if not result["same_annotations"]:
        yield "they were made from different annotations"
    yield ""
    yield from format_table(
        ("beta", "mean", "std", "min", "max"),
        [
            (name, *(format_fixed(result[side][what], 4) for what in ("mean", "std", "min", "max")))
            for name, side in (("A", "one"), ("B", "other"))
        ],
    )
    yield ""
    yield f"Pearson   {format_interval(result['pearson'], 3)}"
    yield f"Spearman  {format_interval(result['spearman'], 3)}"
    yield f"shift     {format_interval(result['shift'], 4, signed=True)} (mean of B less A)"
    mean, largest = format_fixed(result["distance"], 4), format_fixed(result["largest"], 4)
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
            for row in result["categories"]
        ],
    )
    if result["movers"]:
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
                for row in result["movers"]
            ],
        )
    yield ""
    yield interval_note(result["draws"])


def _plain(value: Any) -> str:
    return "none" if value is None else str(value)
