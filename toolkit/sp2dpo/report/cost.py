"""Measure the refusals, throughput and tokens of teachers, and project the cost of a corpus."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from sp2dpo.annotation.dry_run import Text, count_text
from sp2dpo.annotation.local import phases
from sp2dpo.inference.endpoint import Endpoint
from sp2dpo.panel.panel import Panel
from sp2dpo.report.status import sum_by_currency
from sp2dpo.store.questions import count_outcomes
from sp2dpo.store.store import Store
from sp2dpo.store.usage import Slice, Usage, sum_usage


@dataclass(frozen=True, kw_only=True)
class TeacherPerformance:
    """Replies of one teacher: their outcomes, tokens and throughput.

    Attributes:
        name: name of the teacher in the panel.
        answered: number of questions with at least one reply.
        kept: number of questions with a valid reply.
        refused: number of questions whose last reply was refused, by reason.
        refused_share: refused questions as a share of `answered`, in [0, 1]; None without one.
        requests: number of replies received, including retries.
        uncounted: number of replies without token counts.
        prompt_tokens, completion_tokens: mean tokens of a reply; None if unknown.
        cached_tokens: mean prompt tokens per reply that came from a prefix cache; None if unknown.
        cached_share: share of the prompt tokens that a prefix cache served; None if unknown.
        cacheable_share: share of the prompt tokens that a prefix cache could serve, given the order
            of the requests; None for an adaptive panel, which asks about a pair at different times.
        busy_seconds: seconds with at least one timed request in flight; None without timed replies.
        replies_per_second: timed replies per busy second.
        prompt_tokens_per_second, completion_tokens_per_second: tokens per busy second.
        details: the detail of the first refusal, by reason.
        structured: how far its server follows a schema, a setting of the panel.
    """

    name: str
    answered: int = field(metadata={"json": "heard"})
    kept: int
    refused: dict[str, int]
    refused_share: float | None
    requests: int
    uncounted: int = field(metadata={"json": "untold"})
    prompt_tokens: float | None
    cached_tokens: float | None
    completion_tokens: float | None
    cached_share: float | None
    cacheable_share: float | None
    busy_seconds: float | None
    replies_per_second: float | None
    prompt_tokens_per_second: float | None
    completion_tokens_per_second: float | None
    details: Mapping[str, str]
    structured: str


@dataclass(frozen=True, kw_only=True)
class TeacherCost:
    """Projected cost of one teacher; None marks an unknown value.

    Attributes:
        name: name of the teacher in the panel.
        requests: number of replies, including retries.
        prompt_tokens, completion_tokens: tokens of these replies.
        cached_tokens: prompt tokens that a prefix cache serves.
        hours: hours with requests in flight.
        gpus: number of GPUs, from the price or from `serve`.
        gpu_hours: `hours` times `gpus`.
        money, currency: cost, and currency of the price.
    """

    name: str
    requests: int
    prompt_tokens: int
    cached_tokens: int | None
    completion_tokens: int
    hours: float | None
    gpus: int | None
    gpu_hours: float | None
    money: float | None
    currency: str | None


@dataclass(frozen=True, kw_only=True)
class CostProjection:
    """Projected cost of annotating a whole corpus.

    Attributes:
        pairs: number of pairs in the corpus.
        teachers: cost of each teacher.
        hours: total hours: teachers with running servers in parallel, then each teacher whose
            servers are started by the run; None if unknown.
        gpu_hours: sum over the teachers; None if it is unknown for any teacher.
        money: sum by currency, over the teachers whose cost is known.
        unpriced: names of the teachers whose cost is unknown.
    """

    pairs: int
    teachers: list[TeacherCost]
    hours: float | None
    gpu_hours: float | None
    money: dict[str, float]
    unpriced: list[str]


@dataclass(frozen=True, kw_only=True)
class SweepComparison:
    """Cost of the annotation compared with a sweep of the global beta.

    Attributes:
        runs: number of training runs of the sweep.
        run_hours: GPU-hours of one run; None if not given.
        gpu_hours: GPU-hours of the sweep; None without `run_hours`.
        ratio: GPU-hours of the annotation divided by those of the sweep; None if either is unknown.
        even_run_hours: GPU-hours of one run at which the sweep and the annotation cost the same;
            None if the GPU-hours of the annotation are unknown.
        even_money: price of one run, by currency, at which the sweep and the annotation cost the
            same.
    """

    runs: int
    run_hours: float | None
    gpu_hours: float | None
    ratio: float | None
    even_run_hours: float | None
    even_money: dict[str, float]


def measure_usage(
    store: Store, panel: Panel, *, pair_ids: Collection[str] | None = None
) -> dict[str, Usage]:
    """Return the tokens and time of each teacher, for the variants that the panel asks.

    Args:
        store: store with the replies.
        panel: panel that was asked.
        pair_ids: count only the replies about these pairs; None for all. The time in which a
            teacher was busy with other pairs, too, is shared in proportion to the replies.
    """
    everything = _sum_slices(store.usage.slices(), panel)
    if pair_ids is None:
        return everything
    selected = _sum_slices(store.usage.slices(pair_ids), panel)
    return {
        name: replace(
            usage,
            seconds=everything[name].seconds * usage.timed / everything[name].timed
            if usage.timed
            else 0.0,
        )
        for name, usage in selected.items()
    }


def _sum_slices(slices: Sequence[Slice], panel: Panel) -> dict[str, Usage]:
    # The store may hold replies to variants that an earlier panel asked and this one does not.
    asked = [part for part in slices if part.variant in panel.variants]
    return {
        teacher.name: sum_usage(part for part in asked if part.teacher == teacher.name)
        for teacher in panel.teachers
    }


def measure_performance(
    store: Store, panel: Panel, *, pair_ids: Collection[str] | None = None
) -> list[TeacherPerformance]:
    """Return the outcomes, tokens and throughput of each teacher, for the variants of the panel.

    Args:
        store: store with the replies.
        panel: panel that was asked.
        pair_ids: use only the replies about these pairs; None for all. Busy seconds are shared as
            in `measure_usage`.
    """
    usage = measure_usage(store, panel, pair_ids=pair_ids)
    outcomes = [key for key in store.questions.outcomes(pair_ids) if key.variant in panel.variants]
    details = _first_details(store, panel.variants, pair_ids)
    # An adaptive panel asks about a pair at different times, when its prefix may be gone.
    # The share of characters stands for that of tokens, which no tokenizer counts here.
    cacheable = None if panel.budget == "adaptive" else _prompt_text(store, panel, pair_ids).share
    rows = []
    for teacher in panel.teachers:
        teacher_usage = usage[teacher.name]
        refused = count_outcomes([key for key in outcomes if key.teacher == teacher.name])
        # `count_outcomes` counts kept questions beside the reasons of refusals.
        kept = refused.pop("kept", 0)
        answered = kept + sum(refused.values())
        # A declined request took no tokens, and an answer without counts an unknown number.
        counted_answers = teacher_usage.timed + teacher_usage.untimed - teacher_usage.uncounted
        # Without the times of all replies, their tokens per second are unknown.
        seconds = teacher_usage.seconds if counted_answers and not teacher_usage.untimed else None
        rows.append(
            TeacherPerformance(
                name=teacher.name,
                answered=answered,
                kept=kept,
                refused=refused,
                refused_share=_divide(sum(refused.values()), answered),
                requests=teacher_usage.requests,
                uncounted=teacher_usage.uncounted,
                prompt_tokens=_divide(teacher_usage.prompt, counted_answers),
                cached_tokens=_divide(teacher_usage.cached, counted_answers),
                completion_tokens=_divide(teacher_usage.completion, counted_answers),
                cached_share=teacher_usage.cached_share,
                cacheable_share=cacheable,
                busy_seconds=teacher_usage.busy,
                replies_per_second=teacher_usage.rate,
                prompt_tokens_per_second=_divide(teacher_usage.prompt, seconds),
                completion_tokens_per_second=_divide(teacher_usage.completion, seconds),
                details=details.get(teacher.name, {}),
                structured=teacher.structured,
            )
        )
    return rows


def _first_details(
    store: Store, variants: Collection[str], pair_ids: Collection[str] | None
) -> dict[str, dict[str, str]]:
    """Return the detail of the first refusal for each teacher and reason."""
    details: dict[str, dict[str, str]] = {}
    for reply in store.replies():
        if pair_ids is not None and reply.pair_id not in pair_ids:
            continue
        if reply.reason is not None and reply.detail and reply.variant in variants:
            details.setdefault(reply.teacher, {}).setdefault(reply.reason, reply.detail)
    return details


def _prompt_text(store: Store, panel: Panel, pair_ids: Collection[str] | None) -> Text:
    """Return the size of all prompts of one teacher about these pairs of a store, or about all."""
    text = Text()
    counted: set[str] = set()
    for row, pair_id in store.corpus.rows():
        if pair_ids is not None and pair_id not in pair_ids:
            continue
        # A pair that the source repeats is asked about once.
        if pair_id not in counted:
            counted.add(pair_id)
            orders = panel.rubric.orders(pair_id)
            questions = [(variant, order) for order in orders for variant in panel.variants]
            text += count_text(row.pair, questions, panel.rubric)
    return text


def _divide(part: float | None, total: float | None) -> float | None:
    return part / total if part is not None and total else None


def project_costs(
    panel: Panel, usage: Mapping[str, Usage], *, sampled: int, pairs: int
) -> CostProjection:
    """Scale the cost of a sample of pairs to a whole corpus.

    Args:
        panel: panel that was asked.
        usage: tokens and time that each teacher took for the sample.
        sampled: number of pairs in the sample.
        pairs: number of pairs in the corpus.
    """
    teachers = [_scale(teacher, usage[teacher.name], pairs / sampled) for teacher in panel.teachers]
    hours = {cost.name: cost.hours for cost in teachers}
    # Teachers at running servers are asked side by side; the others one after the other.
    turns = [
        _combine(max, [hours[teacher.name] for teacher in phase])
        for phase in phases(panel.teachers)
    ]
    return CostProjection(
        pairs=pairs,
        teachers=teachers,
        hours=_combine(sum, turns),
        gpu_hours=_combine(sum, [cost.gpu_hours for cost in teachers]),
        money=sum_by_currency((cost.money, cost.currency) for cost in teachers),
        unpriced=[cost.name for cost in teachers if cost.money is None],
    )


def _scale(teacher: Endpoint, usage: Usage, factor: float) -> TeacherCost:
    price = teacher.price
    # A price can state the GPUs of a server that runs elsewhere, `serve` those of our own.
    gpus = price.gpus if price and price.gpus else None
    if gpus is None and teacher.serve:
        gpus = len(teacher.serve.gpus) or None
    corpus_usage = Usage(
        requests=round(usage.requests * factor),
        uncounted=round(usage.uncounted * factor),
        timed=round(usage.timed * factor),
        untimed=round(usage.untimed * factor),
        prompt=round(usage.prompt * factor),
        completion=round(usage.completion * factor),
        cached=None if usage.cached is None else round(usage.cached * factor),
        seconds=usage.seconds * factor,
    )
    # Untimed replies took time that nobody measured.
    hours = None if usage.rate is None or usage.untimed else corpus_usage.seconds / 3600
    return TeacherCost(
        name=teacher.name,
        requests=corpus_usage.requests,
        prompt_tokens=corpus_usage.prompt,
        cached_tokens=corpus_usage.cached,
        completion_tokens=corpus_usage.completion,
        hours=hours,
        gpus=gpus,
        gpu_hours=None if hours is None or gpus is None else hours * gpus,
        money=corpus_usage.cost(price),
        currency=None if price is None else price.currency,
    )


def _combine(
    combine: Callable[[Sequence[float]], float], values: Sequence[float | None]
) -> float | None:
    """Return the sum, or the largest, of values; None if any of them is unknown."""
    numbers = [value for value in values if value is not None]
    return combine(numbers) if len(numbers) == len(values) else None


def compare_with_sweep(
    projection: CostProjection, *, runs: int, run_hours: float | None
) -> SweepComparison:
    """Compare the projected cost of an annotation with a sweep of `runs` training runs."""
    annotation = projection.gpu_hours
    sweep = None if run_hours is None else runs * run_hours
    return SweepComparison(
        runs=runs,
        run_hours=run_hours,
        gpu_hours=sweep,
        ratio=None if annotation is None or not sweep else annotation / sweep,
        even_run_hours=None if annotation is None else annotation / runs,
        even_money={currency: money / runs for currency, money in projection.money.items()},
    )
