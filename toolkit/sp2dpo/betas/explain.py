"""Explain the beta of one pair: the arithmetic from its replies, line by line."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from sp2dpo.betas.arms import Arm
from sp2dpo.betas.estimators import WAYS, Estimator, combine
from sp2dpo.betas.file import open_store_and_betas
from sp2dpo.betas.gaps import NOISE, compute_signed_gap, disputes_labels
from sp2dpo.betas.label_fit import LabelFit
from sp2dpo.betas.maps import Quantile, places
from sp2dpo.betas.schedule import Schedule
from sp2dpo.betas.soft_labels import Anchored, Calibrated, Free, SoftLabel
from sp2dpo.pairs.pair import Message, Pair
from sp2dpo.panel.rubric import CHOSEN_FIRST, Rubric
from sp2dpo.store.records import StoredReply
from sp2dpo.text import escape_controls, format_table, one_line, shorten


@dataclass(frozen=True, kw_only=True)
class PairExplanation:
    """How the beta of a pair was computed.

    Attributes:
        pair: the pair.
        replies: all replies about the pair; see `Store.replies`.
        row: row of the pair in the table of betas; see `schedule.schedule_betas`.
        lines: the conversation, the replies and the arithmetic as text.
    """

    pair: Pair
    replies: tuple[StoredReply, ...]
    row: Mapping[str, Any]
    lines: tuple[str, ...]


def explain_pair(store_file: Path | str, betas_file: Path | str, pair_id: str) -> PairExplanation:
    """Explain the beta of a pair: repeat the arithmetic from its replies, line by line.

    Args:
        store_file: annotation store.
        betas_file: betas computed from this store.
        pair_id: the pair's id, at least eight of its first digits, or its name in the source.

    Raises:
        ValueError: no pair has this name, the betas were computed from other annotations, or the
            replies give another beta than the table.
        OSError: a file cannot be read.
    """
    with open_store_and_betas(store_file, betas_file) as (store, betas, _):
        pair = store.corpus.pair(pair_id)
        # The rank of a gap depends on all pairs, so it is computed before one is selected.
        table = betas.table.with_columns(place=places(pl.col("gap")))
        row = table.filter(pl.col("pair_id") == pair.id).row(0, named=True)
        # Only columns of the table may remain: `row` is part of the result.
        place = row.pop("place")
        replies = list(store.replies(pair.id))
        lines = explain_lines(
            pair,
            replies,
            row,
            rubric=store.rubric(),
            arm=betas.arm,
            place=place,
            labels=betas.labels,
        )
    return PairExplanation(pair=pair, replies=tuple(replies), row=row, lines=tuple(lines))


def explain_lines(
    pair: Pair,
    replies: Sequence[StoredReply],
    row: Mapping[str, Any],
    *,
    rubric: Rubric,
    arm: Arm,
    place: float | None = None,
    labels: LabelFit | None = None,
) -> list[str]:
    """Return the lines that `sp2dpo explain` prints.

    The arithmetic is repeated for this pair alone and must give the beta in the table. Values that
    depend on all pairs (the rank of a gap, a mean, a random draw) are taken from the table.

    Raises:
        ValueError: the replies give another gap or beta than the table.
    """
    estimator = arm.of.estimator
    lines = [f"pair {pair.id}", *_conversation(pair), "", *_replies(replies, rubric, estimator)]
    kept = [reply for reply in replies if reply.status == "kept"]
    votes = [reply for reply in kept if compute_signed_gap(reply, rubric, estimator) is not None]
    signed = beta = None
    if len(votes) < arm.of.quorum:
        lost = len(kept) - len(votes)
        without = f", {lost} that {'does' if lost == 1 else 'do'} not count" if lost else ""
        counts = f"{len(votes)} replies{without}, the quorum is {arm.of.quorum}"
        lines += ["", f"beta  none: {counts}"]
    else:
        signed, steps = _gap(votes, rubric, estimator)
        flipped = bool(row.get("flip"))
        # As in `add_betas`: the gap of the exchanged responses.
        gap = max(0.0, -signed if flipped else signed)
        if flipped:
            steps.append(f"flipped, so the gap is {_number(gap)}")
        beta, step = _beta(gap, row["category"], arm.of, place)
        lines += ["", *steps, step]
    _check("signed gap", row["signed_gap"], signed)
    # Other betas depend on other pairs or on a seed, and cannot be repeated here.
    if arm.beta is None and arm.temperature is None:
        _check("beta", row["beta"], beta)
    # Null if no reply counts.
    if row["category"]:
        share = f"{row['agreement']:.0%} of {row['votes']} replies"
        spread = f"spread between teachers {row['spread']:.3g}"
        lines.append(f"category  {row['category']} ({share}), {spread}")
    # Texts are those of models and of the source: control characters must not reach a terminal.
    return [escape_controls(line) for line in (*lines, *_departures(row, arm, labels))]


def _beta(gap: float, category: str, schedule: Schedule, place: float | None) -> tuple[float, str]:
    """Return the beta of a gap and the line that shows its computation."""
    envelope = schedule.envelope(category)
    low, high = envelope.beta_min, envelope.beta_max
    what = gap if place is None or not isinstance(schedule.map, Quantile) else place
    # Not clipped as in `schedule.beta`: that corrects rounding alone, which `_check` tolerates.
    beta = schedule.map.beta(what, low, high)
    words = schedule.map.words(f"{what:.4g}", f"{low:g}", f"{high:g}")
    whose = f"  (the envelope of {category})" if category in schedule.envelopes else ""
    return beta, f"beta  {words} = {beta:.6g}{whose}"


def _departures(row: Mapping[str, Any], arm: Arm, labels: LabelFit | None) -> list[str]:
    """Return the lines on what the arm did with this pair, from the table."""
    departures = arm.departures()
    lines = []
    for key in ("beta", "temperature"):
        if key in departures and row["beta"] is not None:
            by = departures[key] if key == "beta" else f"{key}: {departures[key]}"
            lines.append(f"beta  replaced by {by}: {row['beta']:.6g}")
    if row.get("reward_margin") is not None:
        lines.append(f"reward margin  {row['reward_margin']:.6g}")
    for key in ("weight", "margin"):
        if row.get(key) is not None:
            # `temperature` sets the weight, too.
            by = departures.get(key, f"temperature: {departures.get('temperature')}")
            lines.append(f"{key}  {by}: {row[key]:.6g}")
    if row.get("label_smoothing") is not None:
        eps = row["label_smoothing"]
        right = eps if row["flip"] else 1 - eps
        formula = _probability(row["signed_gap"], arm.label_smoothing, labels)
        lines.append(
            f"label  {departures['label_smoothing']}: right with probability {formula}{right:.3g}, "
            f"so the label smoothing is {eps:.6g}"
        )
    if departures and row["has_beta"]:
        flipped = ", with its responses exchanged" if row.get("flip") else ""
        lines.append(
            "trained on" + flipped if row["keep"] else "not trained on: the arm leaves it out"
        )
    return lines


def _probability(s: float, soft_label: SoftLabel | None, labels: LabelFit | None) -> str:
    """Return the formula of the probability that a label is right, with an equals sign."""
    if isinstance(soft_label, Free):
        return f"(1 + {_number(s)}) / 2 = "
    # What `Latent` computes has no formula of one line.
    if isinstance(soft_label, Calibrated):
        slope = labels.slope.estimate if labels and labels.slope else soft_label.slope
        return f"sigmoid({_number(slope)} x {_number(s)}) = "
    if isinstance(soft_label, Anchored) and labels and labels.slope and labels.label_accuracy:
        odds = f"logit({_number(labels.label_accuracy.estimate)})"
        return f"sigmoid({odds} + {_number(labels.slope.estimate)} x {_number(s)}) = "
    return ""


def _conversation(pair: Pair) -> list[str]:
    lines = []
    for part in ("prompt", "chosen", "rejected"):
        for turn in getattr(pair, part):
            lines += ["", f"{part} ({turn['role']})", *_indented(turn)]
    return lines


def _indented(turn: Message) -> list[str]:
    more = [f"{key}: {turn[key]}" for key in turn if key not in ("role", "content", "images")]
    # The data of an image would fill many screens.
    more += [f"image: {shorten(image, 80)}" for image in turn.get("images") or ()]
    lines = [*(turn.get("content") or "").split("\n"), *more]
    return [f"  | {line}" for line in lines]


def _replies(replies: Sequence[StoredReply], rubric: Rubric, estimator: Estimator) -> list[str]:
    """Return a table of all replies; refused replies are listed with their reasons."""
    scores = ("magnitude", "confidence")
    if estimator.estimate == "expected":
        scores = ("expected magnitude", "expected confidence")
    head = (
        "teacher", "variant", *(("order",) if rubric.blind else ()), "category",
        *(("better",) if rubric.blind else ()), *scores, "gap", "rationale",
    )  # fmt: skip
    rows = []
    for reply in replies:
        cells = dict.fromkeys(head, "") | {
            "teacher": reply.teacher,
            "variant": reply.variant,
            "order": reply.order,
        }
        if reply.status == "kept":
            gap = compute_signed_gap(reply, rubric, estimator)
            cells["category"] = reply.category or ""
            cells["better"] = _named(reply)
            cells |= {name: _number(getattr(reply, name.replace(" ", "_"))) for name in scores}
            cells["gap"] = "no vote" if gap is None else _number(gap)
            cells["rationale"] = _flat(reply.rationale or "")
        else:
            cells["category"] = "refused"
            cells["rationale"] = _flat(f"{reply.reason} {reply.detail}")
        rows.append(tuple(cells[name] for name in head))
    return format_table(head, rows)


def _named(reply: StoredReply) -> str:
    """Return which response a blind reply prefers: its letter, and the response shown as it."""
    if reply.better not in ("A", "B"):
        return reply.better or ""
    shown = ("chosen", "rejected") if reply.order == CHOSEN_FIRST else ("rejected", "chosen")
    return f"{reply.better}, {shown['AB'.index(reply.better)]}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value + 0.0:.4g}"  # + 0.0 turns -0.0 into 0.0


def _flat(text: str) -> str:
    return one_line(escape_controls(text))


def _gap(
    votes: Sequence[StoredReply], rubric: Rubric, estimator: Estimator
) -> tuple[float, list[str]]:
    """Return the signed gap of one pair, not clipped, and the lines that show its computation."""
    readings: dict[str, dict[str, list[float]]] = {}
    for reply in votes:
        gap = compute_signed_gap(reply, rubric, estimator)
        if gap is not None:
            by_variant = readings.setdefault(reply.teacher, {})
            by_variant.setdefault(reply.variant, []).append(gap)
    read = "expected scores" if estimator.estimate == "expected" else "scores"
    formula = estimator.gap.words(blind=rubric.blind)
    lines = [f"gap of a reply  {formula}, the {read} as shares of their scales"]
    if rubric.blind:
        lines.append("sign  +1 for chosen, -1 for rejected, 0 for a tie")
        lines += _over_orders(readings)
    means = {
        teacher: [statistics.fmean(gaps) for gaps in by_variant.values()]
        for teacher, by_variant in readings.items()
    }
    way = estimator.over_variants
    by_teacher = {teacher: combine(gaps, way) for teacher, gaps in means.items()}
    width = max(map(len, by_teacher))
    for teacher, gaps in means.items():
        listed = f"{_way(way)}({_listed(sorted(gaps))}) = {_number(by_teacher[teacher])}"
        lines.append(f"{teacher:<{width}}  {listed}")
    gap = combine(list(by_teacher.values()), estimator.over_teachers)
    # As `compute_gaps` does: residue of values that cancel must not dispute a label.
    gap = 0.0 if abs(gap) <= NOISE else gap
    listed = f"{_way(estimator.over_teachers)}({_listed(by_teacher.values())}) = {_number(gap)}"
    if not disputes_labels(rubric, estimator):
        return gap, [*lines, f"gap   {listed}"]
    disputed = ", so the label is disputed" if gap < 0 else ""
    clipped = f"gap   max(0, {_number(gap)}) = {_number(max(0.0, gap))}"
    return gap, [*lines, f"signed gap  {listed}{disputed}", clipped]


def _way(way: str) -> str:
    return WAYS[way].label if way in WAYS else "only"


def _over_orders(readings: dict[str, dict[str, list[float]]]) -> list[str]:
    """Return a line for each teacher and variant: the mean over the orders."""
    rows = [
        (teacher, variant, f"mean({_listed(gaps)}) = {_number(statistics.fmean(gaps))}")
        for teacher, by_variant in readings.items()
        for variant, gaps in by_variant.items()
    ]
    return format_table(("teacher", "variant", "over the orders"), rows)


def _listed(gaps: Iterable[float]) -> str:
    return ", ".join(map(_number, gaps))


def _check(what: str, stored: float | None, computed: float | None) -> None:
    same = (
        stored is computed
        if stored is None or computed is None
        # `fmean` sums exactly and polars does not, so the last bits may differ.
        else math.isclose(stored, computed, rel_tol=1e-9, abs_tol=NOISE)
    )
    if not same:
        raise ValueError(
            f"the table of betas says {what} {stored}, but its replies give {computed}"
        )
