"""The report on a run: every number that the page shows, as plain values."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import polars as pl

from sp2dpo import __version__
from sp2dpo.agreement import by_teacher, by_variant, comparisons, steady
from sp2dpo.annotation_table import AnnotationTable
from sp2dpo.pairs import Message, Pair, canonical_json
from sp2dpo.rubric import Rubric
from sp2dpo.schedule import Betas
from sp2dpo.signatures import envelope_shares, signatures
from sp2dpo.store import Store

BINS = 20
"""Bars of the histogram; each is a twentieth of the envelope wide."""
SHOWN = 10
"""Pairs shown at either end."""
LONGEST = 600
"""Characters of a text that are shown."""


def report(store: Store, made: Betas, annotations: AnnotationTable) -> dict[str, Any]:
    """Everything that `sp2dpo report` says, as JSON values; what is not known is None.

    Args:
        store: the run.
        made: its betas.
        annotations: of the store, which the betas were made from.

    Raises:
        ValueError: the store holds no pairs.
    """
    rubric = annotations.rubric
    categories = list(rubric.categories)
    replies = steady(annotations)
    teachers = _teachers(store, rubric)
    names = [teacher["name"] for teacher in teachers]
    variants = store.variants()
    between_teachers = comparisons(by_teacher(replies, categories), names)
    between_variants = comparisons(by_variant(replies, categories), variants)
    table = made.table
    return {
        "toolkit": {"version": __version__},
        "source": _source(store),
        "rubric": _rubric(rubric),
        "schedule": asdict(made.schedule),
        "annotations": made.annotations_hash,
        "teachers": teachers,
        "variants": variants,
        "replies": _replies(teachers, asked=len(table) * len(variants) * len(teachers)),
        "beta": _beta(table),
        "histogram": _histogram(made, categories),
        "categories": _categories(table, categories),
        "agreement": {
            "agreement": table["agreement"].mean(),
            "spread": table["spread"].mean(),
            "between_teachers": between_teachers,
            "between_variants": between_variants,
        },
        "signatures": [asdict(one) for one in signatures(made, replies, between_teachers)],
        **_shown(store, table, rubric),
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
        "categories": [{"name": name, "text": text} for name, text in rubric.categories.items()],
        "magnitude": {"min": rubric.magnitude.min, "max": rubric.magnitude.max},
        "confidence": {"min": rubric.confidence.min, "max": rubric.confidence.max},
    }


def _teachers(store: Store, rubric: Rubric) -> list[dict[str, Any]]:
    """Every teacher that was asked, by name, with what became of its replies."""
    found = []
    for teacher in store.teachers():
        counts = store.counts(teacher["name"], list(rubric.variants))
        kept = counts.pop("kept", 0)
        found.append({**teacher, "kept": kept, "refused": counts})
    return found


def _replies(teachers: Sequence[dict[str, Any]], *, asked: int) -> dict[str, int]:
    """Kept + refused + pending = asked: all teachers, variants and pairs that appear in the run."""
    kept = sum(teacher["kept"] for teacher in teachers)
    refused = sum(sum(teacher["refused"].values()) for teacher in teachers)
    return {"asked": asked, "kept": kept, "refused": refused, "pending": asked - kept - refused}


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


def _histogram(made: Betas, categories: Sequence[str]) -> dict[str, Any]:
    """How many betas of each category fall into each twentieth of the envelope.

    A bin holds its lower border; the last one its upper border too.
    """
    low, high = made.schedule.beta_min, made.schedule.beta_max
    bins = (
        made.table.select("category", share=envelope_shares(made.table, made.schedule))
        .drop_nulls("share")
        .with_columns(bin=(pl.col("share") * BINS).floor().clip(0, BINS - 1))
        .group_by("category", pl.col("bin").cast(pl.Int32))
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


def _shown(store: Store, table: pl.DataFrame, rubric: Rubric) -> dict[str, Any]:
    """The most and the least telling pairs; equal betas stand in the order of their ids."""
    told = table.drop_nulls("beta").with_columns(pl.col("beta").round(9).alias("place"))
    most = told.sort("place", "pair_id", descending=[True, False]).head(SHOWN).to_dicts()
    least = told.sort("place", "pair_id").head(SHOWN).to_dicts()
    names = store.corpus.source_ids({row["pair_id"] for row in most + least})
    return {
        key: [_example(store, row, names, rubric) for row in rows]
        for key, rows in (("most_telling", most), ("least_telling", least))
    }


def _example(
    store: Store, row: dict[str, Any], names: dict[str, str | None], rubric: Rubric
) -> dict[str, Any]:
    pair = store.corpus.pair(row["pair_id"])
    return {
        "pair_id": pair.id,
        "source_id": names.get(pair.id),
        **{key: row[key] for key in ("category", "beta", "gap", "agreement", "spread", "votes")},
        **_texts(pair),
        "rationale": _rationale(store, row, rubric),
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


def _rationale(store: Store, row: dict[str, Any], rubric: Rubric) -> dict[str, Any] | None:
    """Of the replies that name the pair's category, the one whose gap is nearest to the pair's.

    Of equally near ones the first by teacher and variant.
    """
    named = [
        reply
        for reply in store.replies(row["pair_id"])
        if reply["status"] == "kept" and reply["category"] == row["category"]
    ]

    def distance(reply: dict[str, Any]) -> float:
        magnitude = rubric.magnitude.share(reply["magnitude"])
        return round(abs(magnitude * rubric.confidence.share(reply["confidence"]) - row["gap"]), 9)

    nearest = min(named, key=distance, default=None)
    if nearest is None:
        return None
    return {key: nearest[key] for key in ("teacher", "variant", "rationale")}
