"""Examples: the pairs that a report shows, with their texts and one teacher's reason."""

from typing import Any

import polars as pl

from sp2dpo.betas_file import Betas
from sp2dpo.estimators import Estimator
from sp2dpo.gaps import signed_gap, tells_labels
from sp2dpo.pairs import Message, Pair, canonical_json
from sp2dpo.rubric import CHOSEN_FIRST, Rubric
from sp2dpo.store import Store

SHOWN = 10
"""Pairs shown of each kind."""
LONGEST = 600
"""Characters of a text that are shown."""


def examples(store: Store, made: Betas, rubric: Rubric) -> dict[str, Any]:
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
    tells = tells_labels(rubric, made.schedule.estimator)
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
        gap = signed_gap(reply, rubric, estimator)
        distance = None if gap is None else round(abs(gap - row["signed_gap"]), 9)
        if distance is not None and (nearest is None or distance < nearest):
            found, nearest = reply, distance
    if found is None:
        return None
    shown = "chosen" if found["order"] == CHOSEN_FIRST else "rejected"
    said = {key: found[key] for key in ("teacher", "variant", "rationale")}
    return said | {"a": shown if rubric.blind else None}
