"""Read gold labels, the known truth about pairs, and measure how well a panel recovers it.

A line of a gold file is a JSON object:

    {"pair_id": "demo-002", "label": "rejected", "category": "factuality", "magnitude": 5}

pair_id: the pair's id, or its name in the source. label: the better response, `chosen`, `rejected`
or `tie`; alternatively `label_flipped` or `label_ok`, true or false. category, magnitude: optional;
magnitude is on the rubric's scale, and 0 means `tie`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from sp2dpo.diagnostics.agreement import Proportion, spearman, wilson_interval
from sp2dpo.diagnostics.bootstrap import Estimate, rank_correlation
from sp2dpo.diagnostics.intervals import auc_estimate, mean_share
from sp2dpo.files import read_json_lines
from sp2dpo.panel.rubric import Rubric
from sp2dpo.settings import check_keys, check_type
from sp2dpo.store.store import Store

LABELS = ("chosen", "rejected", "tie")
NEAR = 0.05
"""Gaps below this threshold count as no preference. Our choice."""
_LABEL_KEYS = ("label", "label_flipped", "label_ok")


@dataclass(frozen=True, kw_only=True)
class Truth:
    """The known truth about a pair.

    Attributes:
        name: the pair's id, or its name in the source.
        label: the better response: `chosen`, `rejected` or `tie`.
        category: category of the difference; None if unknown.
        magnitude: magnitude of the difference, on the rubric's scale; None if unknown.
    """

    name: str
    label: str
    category: str | None = None
    magnitude: float | None = None


@dataclass(frozen=True, kw_only=True)
class GoldComparison:
    """How often a panel is right.

    Attributes:
        truths, sampled, judged: number of truths in the gold file, of those about pairs of the
            store, and of the latter whose pair has a gap.
        threshold: `NEAR`.
        counts: number of judged pairs with each true label.
        labels: share that the panel gets right of the pairs with each true label.
        accuracy: share of all pairs that the panel gets right.
        balanced, balanced_low, balanced_high: mean of the shares in `labels` without that of
            `tie`, and the ends of its interval, see `intervals.mean_share`; 0.5 is chance level.
            None unless there is a pair with each of these labels.
        always_chosen: accuracy of a panel that agrees with every label, in [0, 1].
        category: share of the pairs with a known category to which the panel gives this category.
        magnitude: Spearman's rho between the known magnitude and that of the panel, over pairs
            whose label is not wrong.
    """

    truths: int = field(metadata={"json": "given"})
    sampled: int
    judged: int
    threshold: float
    counts: Mapping[str, int]
    labels: Mapping[str, Proportion]
    accuracy: Proportion
    balanced: float | None
    balanced_low: float | None
    balanced_high: float | None
    always_chosen: float | None
    category: Proportion
    magnitude: float | None


@dataclass(frozen=True, kw_only=True)
class LabelDetection:
    """How well a rule detects wrong labels.

    Attributes:
        right, wrong, flagged: number of pairs with a right label, with a wrong one, and of pairs
            that the rule flags.
        recall, precision: share of the wrong labels that are flagged, and of the flagged labels
            that are wrong.
        auc: probability that a pair with a wrong label has a lower signed gap than one with a right
            label. Equal gaps count one half; true ties are left out.
    """

    right: int
    wrong: int
    flagged: int = field(metadata={"json": "found"})
    recall: Proportion
    precision: Proportion
    auc: Estimate


def read_gold(path: Path, rubric: Rubric) -> list[Truth]:
    """Read the truths in a JSON Lines file.

    Raises:
        ValueError: a line is invalid; the message names the file, the line, the rule and the value.
        OSError: the file cannot be read.
    """
    truths: dict[str, Truth] = {}
    for number, fields in read_json_lines(path):
        where = f"{path}: line {number}"
        truth = _truth(fields, where, rubric)
        if truth.name in truths:
            raise ValueError(f"{where}: {truth.name!r} is repeated; keep one line per pair")
        truths[truth.name] = truth
    if not truths:
        raise ValueError(f"{path}: the file is empty; write one JSON object per line")
    return list(truths.values())


def _truth(fields: dict[str, Any], where: str, rubric: Rubric) -> Truth:
    check_keys(
        where, fields, required=("pair_id",), optional=(*_LABEL_KEYS, "category", "magnitude")
    )
    check_type(where, "pair_id", fields["pair_id"], str)
    category, magnitude = fields.get("category"), fields.get("magnitude")
    check_type(where, "category", category, (str, type(None)))
    check_type(where, "magnitude", magnitude, (int, float, type(None)))
    if category is not None:
        rubric.check_category(category, where=f"{where}: ")
    scale = rubric.magnitude
    # Not `magnitude < scale.min or ...`: NaN fails every comparison and is refused this way.
    if magnitude is not None and not scale.min <= magnitude <= scale.max:
        raise ValueError(f"{where}: magnitude {magnitude} must be {scale.min} to {scale.max}")
    label = _label(fields, where)
    if magnitude == 0 and label == "rejected":
        raise ValueError(f"{where}: magnitude 0 means a tie, which contradicts a wrong label")
    if label == "tie":
        if magnitude:
            raise ValueError(
                f"{where}: a tie has the magnitude 0, which contradicts magnitude {magnitude}"
            )
        # Said either way, a tie is the same truth.
        magnitude = 0 if scale.min <= 0 else None
    return Truth(
        name=fields["pair_id"],
        label="tie" if magnitude == 0 else label,
        category=category,
        magnitude=magnitude,
    )


def _label(fields: dict[str, Any], where: str) -> str:
    keys = [key for key in _LABEL_KEYS if key in fields]
    if len(keys) != 1:
        raise ValueError(f"{where}: give exactly one of {', '.join(_LABEL_KEYS)}, not {len(keys)}")
    key, value = keys[0], fields[keys[0]]
    if key == "label":
        if value not in LABELS:
            raise ValueError(f"{where}: label {value!r} must be one of {', '.join(LABELS)}")
        return value
    check_type(where, key, value, bool)
    # `label_flipped: false` and `label_ok: true` both mean a right label.
    return "chosen" if value == (key == "label_ok") else "rejected"


def check_matched(truths: Sequence[Truth], pairs: int, *, path: Path, source: str) -> None:
    """Check that a gold file names at least one pair of the source.

    Raises:
        ValueError: no truth names a pair of the source.
    """
    if not pairs:
        raise ValueError(
            f"none of the {len(truths)} names in {path} is a pair of {source} (first: "
            f"{truths[0].name!r}); a name is a pair's id, or its source_id, pair_id or id there"
        )


def load_gold(path: Path | str, store: Store) -> tuple[dict[str, Truth], int]:
    """Return the truths of a gold file about a store's pairs, and the number of all its truths.

    Raises:
        ValueError: a line is invalid, or no truth names a pair of the store.
        OSError: the file cannot be read.
    """
    path = Path(path)
    truths = read_gold(path, store.rubric())
    matched = match_pairs(truths, store.corpus.names())
    check_matched(truths, len(matched), path=path, source=str(store.path))
    return matched, len(truths)


def match_pairs(
    truths: Iterable[Truth], names: Iterable[tuple[str, str | None]]
) -> dict[str, Truth]:
    """Return the truths about the given pairs, by pair id; other truths are left out.

    Args:
        truths: truths in a gold file.
        names: id and name in the source (or None) of every pair.

    Raises:
        ValueError: a name matches several pairs, or two truths are about the same pair.
    """
    by_name = {truth.name: truth for truth in truths}
    by_pair: dict[str, Truth] = {}
    pair_by_name: dict[str, str] = {}
    for pair_id, source_id in names:
        for name in (pair_id, source_id):
            if name is None or name not in by_name:
                continue
            if pair_by_name.setdefault(name, pair_id) != pair_id:
                raise ValueError(f"gold: {name!r} names several pairs; name each by its id")
            # The same line may match twice: a source may repeat a pair, or name it by its id.
            if by_pair.setdefault(pair_id, by_name[name]) is not by_name[name]:
                raise ValueError(
                    f"gold: {name!r} and {by_pair[pair_id].name!r} are the same pair; keep one line"
                )
    return by_pair


def compare_with_gold(
    table: pl.DataFrame, truths: Mapping[str, Truth], rubric: Rubric, *, gold_count: int
) -> GoldComparison:
    """Measure how often a panel is right.

    The labelled protocol only shows whether the teachers see the labelled difference: a gap of
    `NEAR` or more means `chosen`, a smaller one `not chosen`, which covers `rejected` and `tie`.
    The blind protocol distinguishes all three by the signed gap: `NEAR` or more means `chosen`,
    -`NEAR` or less means `rejected`, and anything between means `tie`.

    Args:
        table: from `schedule.schedule_betas`.
        truths: truths by pair_id.
        rubric: rubric of the annotations.
        gold_count: number of truths in the gold file.
    """
    rows = [
        (truths[row["pair_id"]], row)
        for row in table.drop_nulls("gap").iter_rows(named=True)
        if row["pair_id"] in truths
    ]
    pairs = [(_true_label(truth, rubric), _panel_label(row, rubric)) for truth, row in rows]
    counts = {
        label: sum(true == label for true, _ in pairs)
        for label in (LABELS if rubric.blind else ("chosen", "not chosen"))
    }
    labels = {
        label: wilson_interval(sum(true == judged == label for true, judged in pairs), count)
        for label, count in counts.items()
    }
    # A tie has no direction to get right; between the two labels left, 0.5 is chance.
    balanced = mean_share([share for label, share in labels.items() if label != "tie"])
    categories = [(truth.category, row["category"]) for truth, row in rows if truth.category]
    return GoldComparison(
        truths=gold_count,
        sampled=len(truths),
        judged=len(rows),
        threshold=NEAR,
        counts=counts,
        labels=labels,
        accuracy=wilson_interval(sum(true == judged for true, judged in pairs), len(pairs)),
        balanced=balanced.value,
        balanced_low=balanced.low,
        balanced_high=balanced.high,
        always_chosen=counts["chosen"] / len(pairs) if pairs else None,
        category=wilson_interval(
            sum(true == judged for true, judged in categories), len(categories)
        ),
        magnitude=_rank(rows),
    )


def _true_label(truth: Truth, rubric: Rubric) -> str:
    return truth.label if rubric.blind or truth.label == "chosen" else "not chosen"


def _panel_label(row: Mapping[str, Any], rubric: Rubric) -> str:
    # Round, so that floating-point error does not move a gap across the threshold.
    gap = round(row["signed_gap"], 9)
    if gap >= NEAR:
        return "chosen"
    if not rubric.blind:
        return "not chosen"
    return "rejected" if gap <= -NEAR else "tie"


def _rank(rows: Sequence[tuple[Truth, Mapping[str, Any]]]) -> float | None:
    # For a wrong label, the labelled scale has no value but its lowest, "no better, or worse".
    magnitudes = [
        (truth.magnitude, row["magnitude"])
        for truth, row in rows
        if truth.magnitude is not None and truth.label != "rejected"
    ]
    if not magnitudes:
        return None
    true, judged = zip(*magnitudes, strict=True)
    return spearman(pl.Series(true), pl.Series(judged))


RULES = {
    "weak": f"a gap below {NEAR}",
    "disputed": f"a signed gap of -{NEAR} or less",
}
"""Rules that flag a label as wrong. A weak pair may be a tie; a disputed one is not."""


def with_gold(table: pl.DataFrame, truths: Mapping[str, Truth]) -> pl.DataFrame:
    """Return the pairs with a gap and a known truth, with columns label and known_magnitude."""
    # With a schema: without any known magnitude, that column would have no type.
    truth_table = pl.DataFrame(
        [(pair_id, truth.label, truth.magnitude) for pair_id, truth in truths.items()],
        schema={"pair_id": pl.String, "label": pl.String, "known_magnitude": pl.Float64},
        orient="row",
    )
    return table.drop_nulls("gap").join(truth_table, on="pair_id").sort("pair_id")


def label_detection(pairs: pl.DataFrame, rule: str) -> LabelDetection:
    """Measure how well one of `RULES` detects wrong labels, in the pairs of `with_gold`."""
    # Rounded for the same reason as in `_panel_label`.
    signed, wrong = pl.col("signed_gap").round(9), pl.col("label") == "rejected"
    # By the signed gap: under `disputed: flip`, the gap is that of the exchanged responses.
    flagged = signed < NEAR if rule == "weak" else signed <= -NEAR
    wrong_count, flagged_count, both = pairs.select(
        wrong.sum(), flagged=flagged.sum(), both=(wrong & flagged).sum()
    ).row(0)
    return LabelDetection(
        right=pairs.filter(label="chosen").height,
        wrong=wrong_count,
        flagged=flagged_count,
        recall=wilson_interval(both, wrong_count),
        precision=wilson_interval(both, flagged_count),
        # Negated: the AUC is high if wrong labels have the lower gaps.
        auc=auc_estimate(
            -pairs.filter(label="rejected")["signed_gap"].to_numpy(),
            -pairs.filter(label="chosen")["signed_gap"].to_numpy(),
        ),
    )


def magnitude_rank(pairs: pl.DataFrame, column: str, *, draws: int) -> Estimate:
    """Compute Spearman's rho of a column with the known magnitude, over right labels."""
    right = pairs.filter(pl.col("label") != "rejected").drop_nulls(["known_magnitude", column])
    return rank_correlation(right["known_magnitude"], right[column], draws=draws)
