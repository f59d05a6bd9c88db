"""What a person reads of a panel's agreement: lines and tables."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sp2dpo.amounts import fixed, interval, intervals_hold, percent
from sp2dpo.terminal import number_of, table


def agreement_lines(found: Mapping[str, Any]) -> Iterator[str]:
    """The lines of `sp2dpo agreement`.

    Args:
        found: as `concord.concord` gives it; its split pairs may have a source_id.
    """
    yield f"{number_of(found['pairs'], 'pair')}, {number_of(found['replies'], 'reply', 'replies')}"
    head = ("Krippendorff's alpha", "category", "magnitude", "confidence", "gap")
    rows = [_alphas("between teachers", found["teachers"]["alpha"])]
    rows += [_alphas("between variants", found["variants"]["alpha"])]
    rows += [
        _alphas(f"{teacher}, between variants", alpha)
        for teacher, alpha in found["variants"]["by_teacher"].items()
    ]
    yield ""
    yield from table(head, rows)
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
    yield intervals_hold(found["draws"])


def _alphas(name: str, alpha: Mapping[str, Any]) -> tuple[str, ...]:
    measures = ("category", "magnitude", "confidence", "gap")
    return (name, *(interval(alpha[what]) if what in alpha else "" for what in measures))


def _twos(axis: str, twos: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = [
        (
            f"{one['one']}, {one['other']}",
            str(one["pairs"]),
            percent(one["same_category"]),
            fixed(one["spearman"]),
            fixed(one["difference"]),
        )
        for one in twos
    ]
    head = (f"two {axis}", "pairs", "same category", "rho of gaps", "mean |difference|")
    return table(head, rows)


def _outliers(outliers: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    rows = [
        (
            one["teacher"],
            interval(one["without"]["gap"], signed=True),
            interval(one["without"]["category"], signed=True),
            interval(one["bias"], signed=True),
            fixed(one["spearman"]),
        )
        for one in outliers
    ]
    head = (
        "teacher", "alpha of gaps without it", "of categories", "its gap less the others'",
        "rho with each other",
    )  # fmt: skip
    yield from table(head, rows)
    odd = [one["teacher"] for one in outliers if one["stands_out"]]
    if len(outliers) > 2:
        yield f"stands out: {', '.join(odd)}" if odd else "no teacher stands out"


def _splits(splits: Mapping[str, Any]) -> Iterator[str]:
    if not splits["of"]:
        yield "no pair was read by two teachers"
        return
    yield (
        f"of {number_of(splits['of'], 'pair')} that several teachers read, "
        f"{percent(splits['apart'])} have gaps 0.5 or more apart, {percent(splits['no_majority'])} "
        "no category of most teachers"
    )
    rows = [
        (
            _name(one),
            fixed(one["spread"]),
            ", ".join(
                f"{who} {said['gap']:.2f} {said['category']}" for who, said in one["said"].items()
            ),
        )
        for one in splits["pairs"]
        if one["spread"]
    ]
    if rows:
        yield from table(("pairs that split the panel", "spread", "gap and category"), rows)


def _name(one: Mapping[str, Any]) -> str:
    return one.get("source_id") or one["pair_id"][:12]
