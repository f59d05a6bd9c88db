"""How each teacher does: what came of its replies, and what they took."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sp2dpo.backlog import Outcome, counted
from sp2dpo.forecast import Text, text_of
from sp2dpo.ledger import Usage, usage
from sp2dpo.panel import Panel
from sp2dpo.store import Store


def used_by(store: Store, panel: Panel) -> dict[str, Usage]:
    """What each teacher of a panel took, under the panel's variants."""
    slices = [one for one in store.ledger.slices() if one.variant in panel.variants]
    return {
        teacher.name: usage(one for one in slices if one.teacher == teacher.name)
        for teacher in panel.teachers
    }


def performance(store: Store, panel: Panel, used: Mapping[str, Usage]) -> list[dict[str, Any]]:
    """What came of each teacher's replies, and what they took.

    Returns:
        name; heard (questions with an answer), kept, refused by reason, refused_share of the heard;
        requests (replies, those asked for again included); prompt_tokens, cached_tokens and
        completion_tokens of a reply, means; cached_share of the prompt tokens and cacheable_share,
        which the layout of the requests allows (None for an adaptive panel, which asks about a pair
        at different times); busy_seconds while requests were in flight, and replies, prompt tokens
        and completion tokens for each of them; details: for each reason of a refusal, what more was
        said of one that was refused with it.
    """
    outcomes = [one for one in store.backlog.outcomes() if one.variant in panel.variants]
    layout, details = _layout(store, panel), _details(store, panel.variants)
    return [
        _teacher(
            teacher.name,
            [one for one in outcomes if one.teacher == teacher.name],
            used[teacher.name],
            cacheable=None if panel.budget == "adaptive" else layout.share,
            details=details.get(teacher.name, {}),
        )
        for teacher in panel.teachers
    ]


def _details(store: Store, variants: Collection[str]) -> dict[str, dict[str, str]]:
    """The detail of the first refusal for each reason, by teacher."""
    found: dict[str, dict[str, str]] = {}
    for reply in store.replies():
        if reply["reason"] is not None and reply["detail"] and reply["variant"] in variants:
            found.setdefault(reply["teacher"], {}).setdefault(reply["reason"], reply["detail"])
    return found


def _teacher(
    name: str,
    outcomes: Sequence[Outcome],
    used: Usage,
    *,
    cacheable: float | None,
    details: Mapping[str, str],
) -> dict[str, Any]:
    refused = counted(outcomes)
    kept = refused.pop("kept", 0)
    heard = kept + sum(refused.values())
    told = used.timed + used.untimed - used.untold
    seconds = None if used.untimed else used.seconds
    return {
        "name": name,
        "heard": heard,
        "kept": kept,
        "refused": refused,
        "refused_share": _over(sum(refused.values()), heard),
        "requests": used.requests,
        "untold": used.untold,
        "prompt_tokens": _over(used.prompt, told),
        "cached_tokens": None if used.cached is None else _over(used.cached, told),
        "completion_tokens": _over(used.completion, told),
        "cached_share": used.cached_share,
        "cacheable_share": cacheable,
        "busy_seconds": used.busy,
        "replies_per_second": used.rate,
        "prompt_tokens_per_second": _over(used.prompt, seconds) if told else None,
        "completion_tokens_per_second": _over(used.completion, seconds) if told else None,
        "details": details,
    }


def _over(part: float, whole: float | None) -> float | None:
    return part / whole if whole else None


def _layout(store: Store, panel: Panel) -> Text:
    """What a teacher reads that is asked everything about every sampled pair."""
    found = Text()
    seen: set[str] = set()
    for row, pair_id in store.corpus.rows():
        if pair_id not in seen:
            seen.add(pair_id)
            orders = panel.rubric.orders(pair_id)
            asked = [(variant, order) for order in orders for variant in panel.variants]
            found += text_of(row.pair, asked, panel.rubric)
    return found
