"""Choose the pairs that the report shows as examples, with their texts and one rationale."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from sp2dpo.betas.estimators import Estimator
from sp2dpo.betas.file import BetaTable
from sp2dpo.betas.gaps import compute_signed_gap
from sp2dpo.pairs.pair import Message
from sp2dpo.panel.rubric import CHOSEN_FIRST, Rubric
from sp2dpo.store.store import Store
from sp2dpo.text import canonical_json, count_noun

EXAMPLES = 10
"""Number of pairs in each list of examples."""
MAX_TEXT = 600
"""Maximum number of characters of a prompt or response that are shown."""


@dataclass(frozen=True, kw_only=True)
class Rationale:
    """The rationale of one reply.

    Attributes:
        teacher, variant: teacher that replied, and variant that it was asked.
        rationale: text of the rationale.
        response_a: response shown as A, `chosen` or `rejected`; None for a labelled rubric.
    """

    teacher: str
    variant: str
    rationale: str
    response_a: str | None = field(metadata={"json": "a"})


@dataclass(frozen=True, kw_only=True)
class Example:
    """A pair with its beta, its texts (shortened) and one rationale.

    Attributes:
        pair_id: id of the pair.
        source_id: the source's own id of the pair; None if it has none.
        category, beta: category and beta of the pair.
        gap, signed_gap: gap of the pair, in [0, 1] and in [-1, 1].
        label_disputed: whether the teachers contradict the label; None if they cannot.
        agreement: share of the replies that name the category.
        spread: spread of the gaps between teachers.
        votes: number of replies.
        prompt: last turn of the prompt.
        chosen, rejected: the responses.
        rationale: the rationale whose gap is nearest to the pair's; None if there is none.
    """

    pair_id: str
    source_id: str | None
    category: str
    beta: float
    gap: float
    signed_gap: float
    label_disputed: bool | None
    agreement: float
    spread: float
    votes: int
    prompt: str
    chosen: str
    rejected: str
    rationale: Rationale | None


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Examples of extreme pairs.

    Attributes:
        most_telling: pairs with the largest betas.
        least_telling: pairs with the smallest betas.
        most_disputed: disputed pairs with the lowest signed gaps.
    """

    most_telling: list[Example]
    least_telling: list[Example]
    most_disputed: list[Example]


def select_examples(store: Store, betas: BetaTable, rubric: Rubric) -> Examples:
    """Return the pairs with extreme betas or signed gaps; ties are ordered by pair_id.

    Args:
        store: store of the run.
        betas: betas of the run.
        rubric: rubric of the annotations.
    """
    # Round, so that betas that differ only by floating-point error are ties.
    table = betas.table.drop_nulls("beta").with_columns(
        rounded_beta=pl.col("beta").round(9), rounded_gap=pl.col("signed_gap").round(9)
    )
    disputed = table.filter("label_disputed")
    tables = {
        "most_telling": table.sort("rounded_beta", "pair_id", descending=[True, False]),
        "least_telling": table.sort("rounded_beta", "pair_id"),
        "most_disputed": disputed.sort("rounded_gap", "pair_id"),
    }
    rows = {key: ordered.head(EXAMPLES).to_dicts() for key, ordered in tables.items()}
    # One query for the source's ids of all examples, instead of one for each.
    source_ids = store.corpus.source_ids({row["pair_id"] for key in rows for row in rows[key]})
    return Examples(
        **{
            key: [
                _example(store, row, source_ids.get(row["pair_id"]), rubric, betas)
                for row in selected
            ]
            for key, selected in rows.items()
        }
    )


def _example(
    store: Store, row: Mapping[str, Any], source_id: str | None, rubric: Rubric, betas: BetaTable
) -> Example:
    pair = store.corpus.pair(row["pair_id"])
    return Example(
        pair_id=pair.id,
        source_id=source_id,
        category=row["category"],
        beta=row["beta"],
        gap=row["gap"],
        signed_gap=row["signed_gap"],
        label_disputed=row["label_disputed"],
        agreement=row["agreement"],
        spread=row["spread"],
        votes=row["votes"],
        prompt=_render_turns(pair.prompt[-1:]),
        chosen=_render_turns(pair.chosen),
        rejected=_render_turns(pair.rejected),
        rationale=_nearest_rationale(store, row, rubric, betas.schedule.estimator),
    )


def _render_turns(turns: Iterable[Message]) -> str:
    """Return the shortened text of turns; content that is not text is written as JSON."""
    texts = []
    for turn in turns:
        content = turn.get("content")
        parts = (
            [content if isinstance(content, str) else canonical_json(content)] if content else []
        )
        if images := turn.get("images"):
            parts.append(f"[{count_noun(len(images), 'image')}]")
        extra = {key: turn[key] for key in turn if key not in ("role", "content", "images")}
        # Tool calls and names are part of what the teacher read.
        texts.append("\n".join([*parts, canonical_json(extra)] if extra else parts))
    joined = "\n\n".join(texts)
    return joined if len(joined) <= MAX_TEXT else joined[: MAX_TEXT - 1].rstrip() + "…"


def _nearest_rationale(
    store: Store, row: Mapping[str, Any], rubric: Rubric, estimator: Estimator
) -> Rationale | None:
    """Return the rationale of the reply in the pair's category with the nearest signed gap.

    Ties are broken by teacher, variant and order.
    """
    nearest, smallest = None, None
    for reply in store.replies(row["pair_id"]):
        if reply.status != "kept" or reply.category != row["category"]:
            continue
        gap = compute_signed_gap(reply, rubric, estimator)
        # Round, so that distances that differ only by floating-point error are ties.
        distance = None if gap is None else round(abs(gap - row["signed_gap"]), 9)
        # `replies` yields them in the order of their keys, so the first of equals wins the tie.
        if distance is not None and (smallest is None or distance < smallest):
            nearest, smallest = reply, distance
    if nearest is None:
        return None
    response_a = "chosen" if nearest.order == CHOSEN_FIRST else "rejected"
    return Rationale(
        teacher=nearest.teacher,
        variant=nearest.variant,
        rationale=nearest.rationale or "",
        response_a=response_a if rubric.blind else None,
    )
