"""How each teacher does: what came of its replies, and what they took."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sp2dpo.annotation.dry_run import Text, text_of
from sp2dpo.annotation.run import phases
from sp2dpo.inference.endpoint import Endpoint
from sp2dpo.panel.panel import Panel
from sp2dpo.store.questions import KeyCount, count_outcomes
from sp2dpo.store.store import Store
from sp2dpo.store.usage import Usage, sum_usage


def used_by(store: Store, panel: Panel) -> dict[str, Usage]:
    """What each teacher of a panel took, under the panel's variants."""
    slices = [one for one in store.usage.slices() if one.variant in panel.variants]
    return {
        teacher.name: sum_usage(one for one in slices if one.teacher == teacher.name)
        for teacher in panel.teachers
    }


def measure_performance(
    store: Store, panel: Panel, used: Mapping[str, Usage]
) -> list[dict[str, Any]]:
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
    outcomes = [one for one in store.questions.outcomes() if one.variant in panel.variants]
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
    outcomes: Sequence[KeyCount],
    used: Usage,
    *,
    cacheable: float | None,
    details: Mapping[str, str],
) -> dict[str, Any]:
    refused = count_outcomes(outcomes)
    kept = refused.pop("kept", 0)
    heard = kept + sum(refused.values())
    told = used.timed + used.untimed - used.uncounted
    seconds = None if used.untimed else used.seconds
    return {
        "name": name,
        "heard": heard,
        "kept": kept,
        "refused": refused,
        "refused_share": _over(sum(refused.values()), heard),
        "requests": used.requests,
        "untold": used.uncounted,
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


def project_costs(
    panel: Panel, used: Mapping[str, Usage], *, tried: int, pairs: int
) -> dict[str, Any]:
    """What a whole corpus will take, if it is like the pairs that were tried.

    Args:
        panel: whom to ask what.
        used: what each teacher took for the pairs that were tried.
        tried: how many those are.
        pairs: of the whole corpus.

    Returns:
        pairs.
        teachers: for each name, requests, prompt_tokens, cached_tokens, completion_tokens, hours,
            gpus (of the price, or of `serve`), gpu_hours, money, currency; None where not known.
        hours: teachers whose servers are there side by side, those we serve one after the other.
        gpu_hours: of all.
        money: by currency, of those that have a price; unpriced: the others.
    """
    teachers = [_scaled(teacher, used[teacher.name], pairs / tried) for teacher in panel.teachers]
    by_name = {one["name"]: one for one in teachers}
    money: dict[str, float] = {}
    for one in teachers:
        if one["money"] is not None:
            money[one["currency"]] = money.get(one["currency"], 0.0) + one["money"]
    return {
        "pairs": pairs,
        "teachers": teachers,
        "hours": _sum(
            [
                _longest([by_name[teacher.name]["hours"] for teacher in phase])
                for phase in phases(panel.teachers)
            ]
        ),
        "gpu_hours": _sum([one["gpu_hours"] for one in teachers]),
        "money": money,
        "unpriced": [one["name"] for one in teachers if one["money"] is None],
    }


def _scaled(teacher: Endpoint, used: Usage, factor: float) -> dict[str, Any]:
    price = teacher.price
    gpus = price.gpus if price and price.gpus else _served_on(teacher)
    scaled = Usage(
        requests=round(used.requests * factor),
        uncounted=round(used.uncounted * factor),
        timed=round(used.timed * factor),
        untimed=round(used.untimed * factor),
        prompt=round(used.prompt * factor),
        completion=round(used.completion * factor),
        cached=None if used.cached is None else round(used.cached * factor),
        seconds=used.seconds * factor,
    )
    hours = None if used.rate is None or used.untimed else scaled.seconds / 3600
    return {
        "name": teacher.name,
        "requests": scaled.requests,
        "prompt_tokens": scaled.prompt,
        "cached_tokens": scaled.cached,
        "completion_tokens": scaled.completion,
        "hours": hours,
        "gpus": gpus,
        "gpu_hours": None if hours is None or gpus is None else hours * gpus,
        "money": scaled.cost(price),
        "currency": price and price.currency,
    }


def _served_on(teacher: Endpoint) -> int | None:
    return len(teacher.serve.gpus) or None if teacher.serve else None


def _longest(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return max(known) if len(known) == len(values) else None


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def sweep_concurrency(
    found: dict[str, Any], *, runs: int, run_hours: float | None
) -> dict[str, Any]:
    """What annotating costs beside a sweep of the global beta, in GPU-hours.

    Args:
        found: as `projection` gives it.
        runs: of the sweep.
        run_hours: GPU-hours of one of them; None where nobody says.

    Returns:
        runs, run_hours.
        gpu_hours: of the sweep; ratio: annotation over sweep; None without `run_hours`.
        even_run_hours: what a run would have to take for the two to cost the same; None where the
            annotation's GPU-hours are not known.
        even_money: the same in money, by currency.
    """
    annotation = found["gpu_hours"]
    hours = None if run_hours is None else runs * run_hours
    return {
        "runs": runs,
        "run_hours": run_hours,
        "gpu_hours": hours,
        "ratio": None if annotation is None or not hours else annotation / hours,
        "even_run_hours": None if annotation is None else annotation / runs,
        "even_money": {currency: money / runs for currency, money in found["money"].items()},
    }
