"""Pairs whose truth is known: whether the label is right, and what a panel makes of it.

A line of a gold file is a JSON object:

    {"pair_id": "demo-002", "label": "rejected", "category": "factuality", "magnitude": 5}

pair_id: the pair's id, or the source's own name for it. label: which response is better, `chosen`,
`rejected` or `tie`; in its place `label_flipped` or `label_ok`, true or false. category, magnitude:
optional, on the rubric's scale; a magnitude of 0 says `tie`.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from sp2dpo.diagnostics.agreement import spearman, wilson
from sp2dpo.diagnostics.bootstrap import Ranked, bootstrap_estimates, rank_correlation
from sp2dpo.panel.rubric import Rubric
from sp2dpo.settings import check_keys, check_type, did_you_mean

LABELS = ("chosen", "rejected", "tie")
NEAR = 0.05
"""A gap below it is no preference. Our choice."""
_SAYS_LABEL = ("label", "label_flipped", "label_ok")


@dataclass(frozen=True, kw_only=True)
class Truth:
    """What is known of a pair.

    Attributes:
        name: the pair's id, or the source's own name for it.
        label: which response is better: `chosen`, `rejected` or `tie`.
        category: of the difference; None where nobody says.
        magnitude: of the difference, on the rubric's scale; None where nobody says.
    """

    name: str
    label: str
    category: str | None = None
    magnitude: float | None = None


def read_gold(path: Path, rubric: Rubric) -> list[Truth]:
    """The truths in a JSON Lines file.

    Raises:
        ValueError: naming the file, the line, the rule and the value.
        OSError: the file cannot be read.
    """
    found: dict[str, Truth] = {}
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 at byte {error.start + 1}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}: line {number}"
        truth = _truth(_object(line, where), where, rubric)
        if truth.name in found:
            raise ValueError(f"{where}: {truth.name!r} stands there before")
        found[truth.name] = truth
    if not found:
        raise ValueError(f"{path}: no line says anything")
    return list(found.values())


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        said = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: not JSON: {error}") from error
    if not isinstance(said, dict):
        raise ValueError(f"{where}: not an object but a {type(said).__name__}")
    return said


def _truth(said: dict[str, Any], where: str, rubric: Rubric) -> Truth:
    check_keys(where, said, required=("pair_id",), optional=(*_SAYS_LABEL, "category", "magnitude"))
    check_type(where, "pair_id", said["pair_id"], str)
    category, magnitude = said.get("category"), said.get("magnitude")
    check_type(where, "category", category, (str, type(None)))
    check_type(where, "magnitude", magnitude, (int, float, type(None)))
    if category is not None and category not in rubric.categories:
        known = list(rubric.categories)
        hint = did_you_mean(category, known)
        raise ValueError(f"{where}: the rubric has no category {category!r}{hint}")
    scale = rubric.magnitude
    if magnitude is not None and not scale.min <= magnitude <= scale.max:
        raise ValueError(f"{where}: magnitude {magnitude} must be {scale.min} to {scale.max}")
    label = _label(said, where)
    if magnitude == 0 and label == "rejected":
        raise ValueError(f"{where}: a magnitude of 0 and a wrong label contradict each other")
    return Truth(
        name=said["pair_id"],
        label="tie" if magnitude == 0 else label,
        category=category,
        magnitude=magnitude,
    )


def _label(said: dict[str, Any], where: str) -> str:
    given = [key for key in _SAYS_LABEL if key in said]
    if len(given) != 1:
        raise ValueError(f"{where}: say one of {', '.join(_SAYS_LABEL)}, not {len(given)} of them")
    key, value = given[0], said[given[0]]
    if key == "label":
        if value not in LABELS:
            raise ValueError(f"{where}: label {value!r} must be one of {', '.join(LABELS)}")
        return value
    check_type(where, key, value, bool)
    return "chosen" if value == (key == "label_ok") else "rejected"


def check_matched(truths: Sequence[Truth], pairs: int, *, path: Path, source: str) -> None:
    """Refuses truths none of which is about a pair of the source.

    Args:
        truths: of the file.
        pairs: of the source that they name.
        path: of the file.
        source: for people.

    Raises:
        ValueError: there is none.
    """
    if not pairs:
        raise ValueError(
            f"none of the {len(truths)} names in {path} is a pair of {source} (first: "
            f"{truths[0].name!r}); a name is a pair's id, or its source_id, pair_id or id there"
        )


def match_pairs(
    truths: Iterable[Truth], names: Iterable[tuple[str, str | None]]
) -> dict[str, Truth]:
    """The truths about some pairs, by the pairs' ids; others are left out.

    Args:
        truths: of a file.
        names: the pairs' ids and the source's own names for them, of every row.

    Raises:
        ValueError: a name means several pairs, or two truths are about one pair.
    """
    known = {truth.name: truth for truth in truths}
    found: dict[str, Truth] = {}
    meant: dict[str, str] = {}
    for pair_id, source_id in names:
        for name in (pair_id, source_id):
            if name is None or name not in known:
                continue
            if meant.setdefault(name, pair_id) != pair_id:
                raise ValueError(f"gold: {name!r} names several pairs; name each by its id")
            if found.setdefault(pair_id, known[name]) is not known[name]:
                raise ValueError(
                    f"gold: {name!r} and {found[pair_id].name!r} are one pair, said twice"
                )
    return found


def compare_with_gold(
    table: pl.DataFrame, truths: Mapping[str, Truth], rubric: Rubric, *, given: int
) -> dict[str, Any]:
    """How often a panel is right.

    The labelled protocol shows only whether the teachers see the labelled difference: a gap of
    `NEAR` or more says `chosen`, a smaller one `not chosen`, which `rejected` and `tie` both are.
    The blind one tells three: a signed gap of `NEAR` or more, of -`NEAR` or less, and between.

    Args:
        table: as `schedule.betas` makes it.
        truths: by pair_id.
        rubric: that the teachers were asked under.
        given: truths in the gold file.

    Returns:
        given, sampled (of them in the sample), judged (of those with a gap), threshold.
        labels: by true label: count, share, low, high of what is right (see `agreement.wilson`).
        accuracy: of all.
        balanced, balanced_low: mean over the true labels but `tie` (blind; labelled: over `chosen`
            and `not chosen`) of the share that is right, and of the lower ends of its intervals;
            0.5 is what a coin gives. None where there is none.
        always_chosen: what a panel would get that believes every label.
        category: share of the pairs with a known category that the panel gives the same.
        magnitude: Spearman's rho between the known magnitude and the panel's, over right labels.
    """
    rows = [
        (truths[row["pair_id"]], row)
        for row in table.drop_nulls("gap").iter_rows(named=True)
        if row["pair_id"] in truths
    ]
    pairs = [(_true(truth, rubric), _said(row, rubric)) for truth, row in rows]
    labels = {
        label: wilson(
            sum(true == said == label for true, said in pairs),
            sum(true == label for true, _ in pairs),
        )
        for label in (LABELS if rubric.blind else ("chosen", "not chosen"))
    }
    telling = [one for label, one in labels.items() if label != "tie" and one["share"] is not None]
    named = [(truth.category, row["category"]) for truth, row in rows if truth.category]
    return {
        "given": given,
        "sampled": len(truths),
        "judged": len(rows),
        "threshold": NEAR,
        "labels": labels,
        "accuracy": wilson(sum(true == said for true, said in pairs), len(pairs)),
        "balanced": _mean([one["share"] for one in telling]),
        "balanced_low": _mean([one["low"] for one in telling]),
        "always_chosen": _mean([float(true == "chosen") for true, _ in pairs]),
        "category": wilson(sum(true == said for true, said in named), len(named)),
        "magnitude": _rank(rows),
    }


def _true(truth: Truth, rubric: Rubric) -> str:
    return truth.label if rubric.blind or truth.label == "chosen" else "not chosen"


def _said(row: Mapping[str, Any], rubric: Rubric) -> str:
    # Rounded, so that floating point does not put a gap on the wrong side of the threshold.
    gap = round(row["signed_gap"], 9)
    if gap >= NEAR:
        return "chosen"
    if not rubric.blind:
        return "not chosen"
    return "rejected" if gap <= -NEAR else "tie"


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def _rank(rows: Sequence[tuple[Truth, Mapping[str, Any]]]) -> float | None:
    known = [
        (truth.magnitude, row["magnitude"])
        for truth, row in rows
        if truth.magnitude is not None and truth.label != "rejected"
    ]
    if not known:
        return None
    one, other = zip(*known, strict=True)
    return spearman(pl.Series(one), pl.Series(other))


RULES = {
    "weak": f"a gap below {NEAR}",
    "disputed": f"a signed gap of -{NEAR} or less",
}
"""Which pairs count as found. A weak pair may as well be a tie; a disputed one is told apart."""


def with_gold(table: pl.DataFrame, truths: Mapping[str, Truth]) -> pl.DataFrame:
    """The pairs with a gap whose truth is known, by pair_id, with label and known_magnitude.

    Args:
        table: of betas.
        truths: by pair_id.
    """
    said = pl.DataFrame(
        [(pair_id, truth.label, truth.magnitude) for pair_id, truth in truths.items()],
        schema={"pair_id": pl.String, "label": pl.String, "known_magnitude": pl.Float64},
        orient="row",
    )
    return table.drop_nulls("gap").join(said, on="pair_id").sort("pair_id")


def label_detection(pairs: pl.DataFrame, rule: str, *, draws: int) -> dict[str, Any]:
    """How well a rule finds wrong labels.

    Args:
        pairs: as `known` makes them.
        rule: one of `RULES`.
        draws: bootstrap samples.

    Returns:
        wrong, found: pairs with a wrong label, pairs that the rule finds.
        recall, precision: count, share, low, high: see `agreement.wilson`.
        auc: the chance that a wrong label has a lower signed gap than a right one (ties in the
            truth left out), half of it where they are equal; value, low, high.
    """
    signed = pl.col("signed_gap").round(9)
    finds = signed < NEAR if rule == "weak" else signed <= -NEAR
    marked = pairs.select(wrong=pl.col("label") == "rejected", found=finds)
    both = int((marked["wrong"] & marked["found"]).sum())
    return {
        "wrong": int(marked["wrong"].sum()),
        "found": int(marked["found"].sum()),
        "recall": wilson(both, int(marked["wrong"].sum())),
        "precision": wilson(both, int(marked["found"].sum())),
        "auc": _auc(pairs.filter(pl.col("label") != "tie"), draws=draws),
    }


def magnitude_rank(pairs: pl.DataFrame, column: str, *, draws: int) -> dict[str, float | None]:
    """Spearman's rho of a column with the known magnitude, over labels that are not wrong.

    Args:
        pairs: as `known` makes them.
        column: gap or beta.
        draws: bootstrap samples.
    """
    told = pairs.filter(pl.col("label") != "rejected").drop_nulls(["known_magnitude", column])
    return rank_correlation(told["known_magnitude"], told[column], draws=draws)


def _auc(pairs: pl.DataFrame, *, draws: int) -> dict[str, float | None]:
    wrong = (pairs["label"] == "rejected").to_numpy()
    ranked = Ranked(-pairs["signed_gap"].to_numpy())

    def auc(weights: NDArray[np.float64]) -> float | None:
        ones = float(weights[wrong].sum())
        others = float(weights.sum()) - ones
        if not ones or not others:
            return None
        above = float((weights * ranked.ranks(weights))[wrong].sum()) - ones * (ones + 1) / 2
        return above / (ones * others)

    return bootstrap_estimates(auc, len(pairs), draws=draws)
