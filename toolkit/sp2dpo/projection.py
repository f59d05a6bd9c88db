"""What a whole corpus will take, scaled up from a pilot, beside a sweep of the global beta."""

from collections.abc import Mapping, Sequence
from typing import Any

from sp2dpo.annotate import phases
from sp2dpo.ledger import Usage
from sp2dpo.panel import Panel, Teacher


def projection(
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


def _scaled(teacher: Teacher, used: Usage, factor: float) -> dict[str, Any]:
    price = teacher.price
    gpus = price.gpus if price and price.gpus else _served_on(teacher)
    scaled = Usage(
        requests=round(used.requests * factor),
        untold=round(used.untold * factor),
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


def _served_on(teacher: Teacher) -> int | None:
    return len(teacher.serve.gpus) or None if teacher.serve else None


def _longest(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return max(known) if len(known) == len(values) else None


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def sweep(found: dict[str, Any], *, runs: int, run_hours: float | None) -> dict[str, Any]:
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
