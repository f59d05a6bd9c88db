"""The report on a run: every number that the page shows, as plain values."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import polars as pl

from sp2dpo import __version__
from sp2dpo.betas.estimators import Estimator
from sp2dpo.betas.file import BetaTable
from sp2dpo.betas.formulas import describe_formulas
from sp2dpo.betas.gaps import compute_signed_gap, disputes_labels
from sp2dpo.diagnostics.ablation import compare_estimators
from sp2dpo.diagnostics.agreement import (
    compare_orders,
    compare_readers,
    panel_reply_gaps,
    teacher_readings,
    variant_readings,
)
from sp2dpo.diagnostics.audit import audit_betas
from sp2dpo.diagnostics.biases import bin_by_length
from sp2dpo.diagnostics.bootstrap import DRAWS
from sp2dpo.diagnostics.gold import Truth
from sp2dpo.diagnostics.panel_agreement import measure_agreement
from sp2dpo.pairs.pair import Message, Pair
from sp2dpo.panel.rubric import CHOSEN_FIRST, Rubric
from sp2dpo.store.annotations import AnnotationTable
from sp2dpo.store.questions import count_outcomes
from sp2dpo.store.store import Store
from sp2dpo.text import canonical_json

BINS = 20
"""Bars of the histogram; each is a twentieth of the envelope wide."""


def build_report(
    store: Store,
    made: BetaTable,
    annotations: AnnotationTable,
    *,
    truths: Mapping[str, Truth] | None = None,
    given: int = 0,
    draws: int = DRAWS,
) -> dict[str, Any]:
    """Everything that `sp2dpo report` says, as JSON values; what is not known is None.

    Args:
        store: the run.
        made: its betas.
        annotations: of the store, which the betas were made from.
        truths: what is known of some pairs, by pair_id; None where nothing is.
        given: truths in the file.
        draws: bootstrap samples behind the intervals.

    Raises:
        ValueError: the store holds no pairs.
    """
    rubric = annotations.rubric
    categories = list(rubric.categories)
    replies = panel_reply_gaps(annotations, made.schedule.estimator)
    teachers = describe_teachers(store, rubric)
    names = [teacher["name"] for teacher in teachers]
    variants = store.variants()
    between_teachers = compare_readers(
        teacher_readings(replies, categories, made.schedule.estimator), names
    )
    between_variants = compare_readers(variant_readings(replies, categories), variants)
    table, lengths = made.table, store.corpus.lengths()
    agreed = measure_agreement(annotations, made.schedule.estimator, draws=draws)
    audited = audit_betas(made, annotations, lengths, truths=truths, gold_count=given, draws=draws)
    return {
        "toolkit": {"version": __version__},
        "source": _source(store),
        "rubric": _rubric(rubric),
        "schedule": made.schedule.as_mapping(),
        "arm": made.arm.departures(),
        "formulas": asdict(describe_formulas(made.arm, rubric)),
        "annotations": made.annotations_hash,
        "teachers": teachers,
        "variants": variants,
        "replies": _replies(store, teachers, rubric, variants),
        "beta": _beta(table),
        "histogram": histogram(made, categories),
        "categories": _categories(table, categories),
        "disputed": _disputed(table) if disputes_labels(rubric, made.schedule.estimator) else None,
        "position": compare_orders(annotations.replies, names) if rubric.blind else None,
        "agreement": {
            "agreement": table["agreement"].mean(),
            "spread": table["spread"].mean(),
            "between_teachers": between_teachers,
            "between_variants": between_variants,
            "alpha": {
                "teachers": agreed["teachers"]["alpha"],
                "variants": agreed["variants"]["alpha"],
                "by_teacher": agreed["variants"]["by_teacher"],
            },
            "outliers": agreed["outliers"],
            "splits": _named(agreed["splits"], store),
        },
        "signatures": audited["signatures"],
        "gold": audited["gold"],
        "lengths": bin_by_length(table, lengths),
        "estimators": compare_estimators(annotations, made.schedule, truths=truths, draws=draws),
        "draws": draws,
        **examples(store, made, rubric),
    }


def _named(splits: dict[str, Any], store: Store) -> dict[str, Any]:
    """With the source's own names of the pairs."""
    names = store.corpus.source_ids([one["pair_id"] for one in splits["pairs"]])
    return splits | {
        "pairs": [one | {"source_id": names.get(one["pair_id"])} for one in splits["pairs"]]
    }


def _source(store: Store) -> dict[str, Any]:
    source = store.corpus.source()
    if source is None:
        raise ValueError(f"{store.path} holds no pairs, so there is nothing to report")
    return asdict(source)


def _rubric(rubric: Rubric) -> dict[str, Any]:
    return {
        "name": rubric.name,
        "sha256": rubric.hash,
        "protocol": rubric.protocol,
        "categories": [{"name": name, "text": text} for name, text in rubric.categories.items()],
        "magnitude": {"min": rubric.magnitude.min, "max": rubric.magnitude.max},
        "confidence": {"min": rubric.confidence.min, "max": rubric.confidence.max},
    }


def describe_teachers(store: Store, rubric: Rubric) -> list[dict[str, Any]]:
    """Every teacher that was asked, by name, with what became of its replies."""
    found, outcomes = [], store.questions.outcomes()
    for teacher in store.teachers():
        counts = count_outcomes(
            [
                one
                for one in outcomes
                if one.teacher == teacher["name"] and one.variant in rubric.variants
            ]
        )
        kept = counts.pop("kept", 0)
        found.append({**teacher, "kept": kept, "refused": counts})
    return found


def _replies(
    store: Store, teachers: Sequence[dict[str, Any]], rubric: Rubric, variants: Sequence[str]
) -> dict[str, int]:
    """Kept + refused + spared + pending = asked: all teachers, variants, orders and pairs.

    Spared are those that an adaptive panel does without.
    """
    kept = sum(teacher["kept"] for teacher in teachers)
    refused = sum(sum(teacher["refused"].values()) for teacher in teachers)
    questions = len(variants) * len(rubric.orders(""))
    settled = store.questions.saved_replies(variants, questions)
    spared = 0
    if settled[""] and store.panel()["budget"] == "adaptive":
        spared = sum(settled.get(teacher["name"], settled[""]) for teacher in teachers)
    asked = store.questions.pair_count() * questions * len(teachers)
    pending = asked - kept - refused - spared
    return {
        "asked": asked, "kept": kept, "refused": refused, "spared": spared, "pending": pending,
    }  # fmt: skip


def _beta(table: pl.DataFrame) -> dict[str, Any]:
    beta = table["beta"].drop_nulls()
    return {
        "pairs": len(table),
        "with_beta": len(beta),
        "without_beta": len(table) - len(beta),
        "without_reply": int((table["votes"] == 0).sum()),
        "mean": beta.mean(),
        "min": beta.min(),
        "max": beta.max(),
        "median": beta.median(),
        "std": beta.std(ddof=0),
    }


def _disputed(table: pl.DataFrame) -> dict[str, Any]:
    """The pairs whose label the teachers contradict: how many of those with a gap."""
    told = table["label_disputed"].drop_nulls()
    return {
        "pairs": int(told.sum()),
        "of": len(told),
        "share": told.mean(),
        "signed_gap": table.filter("label_disputed")["signed_gap"].mean(),
    }


def histogram(made: BetaTable, categories: Sequence[str]) -> dict[str, Any]:
    """How many betas of each category fall into each twentieth of the axis.

    It reaches from the lowest to the highest end of the envelopes, further where a baseline does. A
    bin holds its lower border; the last one its upper border too.
    """
    beta, envelope = made.table["beta"].drop_nulls(), made.schedule.widest
    low, high = min([envelope.beta_min, *beta]), max([envelope.beta_max, *beta])
    share = ((pl.col("beta") - low) / (high - low)).round(9)  # on a border, if it is
    bins = (
        made.table.drop_nulls("beta")
        .group_by("category", bin=(share * BINS).floor().clip(0, BINS - 1).cast(pl.Int32))
        .len()
    )
    counts = {category: [0] * BINS for category in categories}
    for category, number, count in bins.iter_rows():
        counts[category][number] = count
    return {
        "edges": [low * (1 - end / BINS) + high * (end / BINS) for end in range(BINS + 1)],
        "categories": [{"name": name, "counts": bars} for name, bars in counts.items()],
    }


def _categories(table: pl.DataFrame, categories: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each category, in order of priority; those that no pair has included."""
    means = table.group_by("category").agg(
        pairs=pl.len(),
        without_beta=pl.col("beta").null_count(),
        **{name: pl.col(name).mean() for name in ("beta", "gap", "agreement", "spread")},
    )
    return (
        pl.DataFrame({"category": list(categories)})
        .join(means, on="category", how="left", maintain_order="left")
        .with_columns(pl.col("pairs", "without_beta").fill_null(0))
        .rename({"category": "name"})
        .to_dicts()
    )


SHOWN = 10
"""Pairs shown of each kind."""
LONGEST = 600
"""Characters of a text that are shown."""


def examples(store: Store, made: BetaTable, rubric: Rubric) -> dict[str, Any]:
    """The most and the least telling pairs, and those whose labels are disputed the most.

    Equal ones stand in the order of their ids. Where there is no telling which labels are disputed,
    `most_disputed` is None.

    Args:
        store: the run.
        made: its betas.
        rubric: that was asked under.
    """
    told = made.table.drop_nulls("beta").with_columns(
        place=pl.col("beta").round(9), dispute=pl.col("signed_gap").round(9)
    )
    shown = {
        "most_telling": told.sort("place", "pair_id", descending=[True, False]).head(SHOWN),
        "least_telling": told.sort("place", "pair_id").head(SHOWN),
        "most_disputed": told.filter("label_disputed").sort("dispute", "pair_id").head(SHOWN),
    }
    rows = {key: some.to_dicts() for key, some in shown.items()}
    names = store.corpus.source_ids({row["pair_id"] for some in rows.values() for row in some})
    examples = {
        key: [_example(store, row, names, rubric, made.schedule.estimator) for row in some]
        for key, some in rows.items()
    }
    tells = disputes_labels(rubric, made.schedule.estimator)
    return examples if tells else examples | {"most_disputed": None}


def _example(
    store: Store,
    row: dict[str, Any],
    names: dict[str, str | None],
    rubric: Rubric,
    estimator: Estimator,
) -> dict[str, Any]:
    pair = store.corpus.pair(row["pair_id"])
    shown = (
        "category", "beta", "gap", "signed_gap", "label_disputed", "agreement", "spread", "votes",
    )  # fmt: skip
    return {
        "pair_id": pair.id,
        "source_id": names.get(pair.id),
        **{key: row[key] for key in shown},
        **_texts(pair),
        "rationale": _rationale(store, row, rubric, estimator),
    }


def _texts(pair: Pair) -> dict[str, str]:
    return {
        "prompt": _short(_said(pair.prompt[-1])),
        "chosen": _short("\n\n".join(_said(turn) for turn in pair.chosen)),
        "rejected": _short("\n\n".join(_said(turn) for turn in pair.rejected)),
    }


def _said(turn: Message) -> str:
    """What a turn says; what is not text (tool calls, parts of a message) as JSON."""
    content = turn.get("content")
    said = [content if isinstance(content, str) else canonical_json(content)] if content else []
    more = {key: turn[key] for key in turn if key not in ("role", "content")}
    return "\n".join([*said, canonical_json(more)] if more else said)


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST - 1].rstrip() + "…"


def _rationale(
    store: Store, row: dict[str, Any], rubric: Rubric, estimator: Estimator
) -> dict[str, Any] | None:
    """Of the replies that name the pair's category, the one whose gap is nearest to the pair's.

    Of equally near ones the first by teacher, variant and order. `a` says which response the
    rationale calls A; None under the labelled protocol.
    """
    found, nearest = None, None
    for reply in store.replies(row["pair_id"]):
        if reply["status"] != "kept" or reply["category"] != row["category"]:
            continue
        gap = compute_signed_gap(reply, rubric, estimator)
        distance = None if gap is None else round(abs(gap - row["signed_gap"]), 9)
        if distance is not None and (nearest is None or distance < nearest):
            found, nearest = reply, distance
    if found is None:
        return None
    shown = "chosen" if found["order"] == CHOSEN_FIRST else "rejected"
    said = {key: found[key] for key in ("teacher", "variant", "rationale")}
    return said | {"a": shown if rubric.blind else None}
