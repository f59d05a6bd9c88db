"""What a person reads of two tables of betas side by side: lines and tables."""

from collections.abc import Iterator, Mapping
from typing import Any

from sp2dpo.amounts import fixed, interval, intervals_hold
from sp2dpo.terminal import number_of, table


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
        f"{number_of(pairs['compared'], 'pair')} with a beta in both (only in A: "
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
    yield from table(
        ("beta", "mean", "std", "min", "max"),
        [
            (name, *(fixed(found[side][what], 4) for what in ("mean", "std", "min", "max")))
            for name, side in (("A", "one"), ("B", "other"))
        ],
    )
    yield ""
    yield f"Pearson   {interval(found['pearson'], 3)}"
    yield f"Spearman  {interval(found['spearman'], 3)}"
    yield f"shift     {interval(found['shift'], 4, signed=True)} (mean of B less A)"
    mean, largest = fixed(found["distance"], 4), fixed(found["largest"], 4)
    yield f"distance  {mean} (mean), {largest} (largest)"
    yield ""
    yield from table(
        ("category", "pairs", "A", "B", "shift", "Spearman"),
        [
            (
                row["category"],
                str(row["pairs"]),
                fixed(row["one"], 4),
                fixed(row["other"], 4),
                fixed(row["shift"], 4, signed=True),
                fixed(row["spearman"], 3),
            )
            for row in found["categories"]
        ],
    )
    if found["movers"]:
        yield ""
        yield from table(
            ("moved most", "category", "A", "B", "shift"),
            [
                (
                    _name(row),
                    row["category"],
                    fixed(row["one"], 4),
                    fixed(row["other"], 4),
                    fixed(row["shift"], 4, signed=True),
                )
                for row in found["movers"]
            ],
        )
    yield ""
    yield intervals_hold(found["draws"])


def _plain(value: Any) -> str:
    return "none" if value is None else str(value)


def _name(one: Mapping[str, Any]) -> str:
    return one.get("source_id") or one["pair_id"][:12]
