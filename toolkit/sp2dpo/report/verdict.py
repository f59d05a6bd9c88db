"""Decide from rules whether a pilot is a go, a no-go, or needs more known labels.

A rule fails where the evidence is against the panel, not where it is missing: rules about quality
look at a 95 % interval. Two need evidence for the panel, because agreement alone does not show that
the teachers are right: `validity`, which fails if the interval is not wholly above 0 although there
are enough pairs to tell, and `gold`, where too few known labels lead to the verdict `ask`. A pilot
that follows such a request looks at the same rule again at the same level, so that teachers who
guess pass more often than at a single look (tests/benchmarks/audit_power.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sp2dpo.diagnostics.agreement import OrderConsistency, wilson_interval
from sp2dpo.diagnostics.checks import BAD, FEWEST, UNKNOWN, Check
from sp2dpo.diagnostics.gold import GoldComparison
from sp2dpo.diagnostics.gold_size import CHANCE, LARGEST, POWER, further_truths
from sp2dpo.panel.advice import advise_all
from sp2dpo.report.cost import TeacherPerformance
from sp2dpo.text import count_noun

# All thresholds are our choice.
MAX_REFUSED = 0.05
"""Largest share of refused questions of a teacher, and of pairs without a beta."""
MIN_CACHED = 0.5
"""Smallest share of the cacheable prompt tokens that a working prefix cache serves."""
GO, NO_GO, ASK = "go", "no-go", "ask"
_POWER_NOTE = (
    f": if the accuracy is as estimated, the rule then passes with a probability of {POWER:.0%}. "
    "Teachers who guess pass it more often the more often one looks: with 25 truths of each label "
    "in 3.2% of the pilots at the first look, 4.8% with a second one"
)


@dataclass(frozen=True, kw_only=True)
class GoRule:
    """Result of one rule.

    Attributes:
        name: stable identifier.
        rule: the rule in words, with its threshold.
        value: measured value; None if it cannot be computed.
        threshold: threshold of the rule.
        passed: whether the rule passed; None if there is no verdict.
        note: which teacher the value describes, or why there is no verdict; None if obvious.
        advice: what to do about a failed or undecided rule; None if there is nothing to do.
        more: number of further truths, by true label, that would probably decide the rule; None if
            the rule is decided or does not depend on truths.
    """

    name: str
    rule: str
    value: float | None
    threshold: float
    passed: bool | None
    note: str | None = None
    advice: str | None = None
    more: Mapping[str, int] | None = None


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Go, no-go, or a request for more known labels, with the rules behind it.

    Attributes:
        go: whether the decision is `go`.
        decision: `no-go` if a rule failed; else `ask` if more known labels are needed; else `go`.
        rules: results of all rules.
    """

    go: bool
    decision: str
    rules: list[GoRule]


def decide(
    teachers: Sequence[TeacherPerformance],
    checks: Sequence[Check],
    *,
    pairs: int,
    with_beta: int,
    position: Sequence[OrderConsistency] | None,
    gold: GoldComparison | None,
    left_out: int = 0,
) -> Verdict:
    """Apply all rules to the results of a pilot.

    A rule without a verdict does not prevent a go, with two exceptions: too few betas (`enough`)
    are a failure, and too few known labels (`gold`) a request for more of them.

    Args:
        teachers: outcomes and throughput of each teacher.
        checks: checks of the betas.
        pairs: pairs of the sample.
        with_beta: pairs that have a beta.
        position: consistency over both orders, from `compare_orders`; None under the labelled
            protocol.
        gold: comparison with known labels, from `compare_with_gold`; None without them.
        left_out: number of pairs with a known label that the sample left out.

    Raises:
        ValueError: a check has no threshold `bad`: it states a fact, which no rule can be about.
    """
    rules = [_refused(teachers), *_betas(pairs, with_beta), *map(_check, checks)]
    if position is not None:
        rules.append(_position(position))
    if gold is not None:
        rules.append(_gold(gold, left_out))
    rules.append(_cache(teachers))
    decision = GO
    if any(rule.passed is False for rule in rules):
        decision = NO_GO
    elif any(rule.more is not None for rule in rules):
        decision = ASK
    return Verdict(go=decision == GO, decision=decision, rules=rules)


def _refused(teachers: Sequence[TeacherPerformance]) -> GoRule:
    shares = {
        teacher.name: teacher.refused_share
        for teacher in teachers
        if teacher.refused_share is not None
    }
    worst = max(shares, key=lambda name: shares[name], default=None)
    passed = None if worst is None else shares[worst] <= MAX_REFUSED
    advice = None
    if passed is False:
        advice = next(
            advise_all(teacher.refused, teacher.details, structured=teacher.structured)
            for teacher in teachers
            if teacher.name == worst
        )
    return GoRule(
        name="refused",
        rule=f"no teacher has more than {MAX_REFUSED:.0%} of its answers refused",
        value=None if worst is None else shares[worst],
        threshold=MAX_REFUSED,
        passed=passed,
        note="no teacher has replied" if worst is None else f"the worst: {worst}",
        advice=advice,
    )


def _betas(pairs: int, with_beta: int) -> list[GoRule]:
    without = 1 - with_beta / pairs
    return [
        GoRule(
            name="enough",
            rule=f"at least {FEWEST} pairs have a beta: fewer could look good by chance",
            value=with_beta,
            threshold=FEWEST,
            passed=with_beta >= FEWEST,
        ),
        GoRule(
            name="without-beta",
            rule=f"no more than {MAX_REFUSED:.0%} of the pairs are left without a beta",
            value=without,
            threshold=MAX_REFUSED,
            passed=without <= MAX_REFUSED,
        ),
    ]


def _check(check: Check) -> GoRule:
    threshold = check.bad
    if threshold is None:
        raise ValueError(f"check {check.name} has no threshold `bad`, so it cannot be a rule")
    bound = f"{threshold:.0%}" if check.unit == "share" else f"{threshold:g}"
    good, bad = ("below", "above") if check.high_is_bad else ("above", "below")
    wanted = f"wholly {good}" if check.needs_proof else f"not wholly {bad}"
    return GoRule(
        name=check.name,
        rule=f"{check.measure}: the 95% interval is {wanted} {bound}",
        value=check.value,
        threshold=threshold,
        # `look` only asks to read some pairs, so it does not prevent a go.
        passed=None if check.verdict == UNKNOWN else check.verdict != BAD,
        note="; ".join(note for note in (check.reason, check.note) if note) or None,
        advice=check.advice if check.verdict == BAD else None,
    )


def _position(position: Sequence[OrderConsistency]) -> GoRule:
    """Compare how often a teacher prefers the same response, or the same position, twice.

    The rule fails if the 95 % Wilson interval of any teacher's share is wholly at or below chance.
    """
    shares, ends = {}, {}
    for row in position:
        # A tie is evidence neither of a preference nor of a position bias.
        total = row.consistent.count + row.first.count + row.second.count
        # In fewer cases, the same position could be preferred by chance.
        if total >= FEWEST:
            shares[row.teacher] = row.consistent.count / total
            ends[row.teacher] = wilson_interval(row.consistent.count, total).high or 0.0
    # By the end that decides, not by the share: a few pairs may have a smaller share by chance.
    worst = min(ends, key=lambda teacher: ends[teacher], default=None)
    return GoRule(
        name="place",
        rule="when asked in both orders, no teacher prefers the same position more often than the "
        "same response: part of the 95% interval of the latter's share above "
        f"{CHANCE:g}",
        value=None if worst is None else shares[worst],
        threshold=CHANCE,
        passed=None if worst is None else ends[worst] > CHANCE,
        note=f"no teacher has {FEWEST} such cases" if worst is None else f"the worst: {worst}",
    )


def _gold(gold: GoldComparison, left_out: int) -> GoRule:
    low, balanced = gold.balanced_low, gold.balanced
    counts = {label: count for label, count in gold.counts.items() if label != "tie"}
    passed, note, more, advice = None, None, None, None
    if balanced is None or low is None or gold.judged < FEWEST:
        note = _explain_few_truths(gold, counts)
        more = _further_truths(gold, counts)
        if more:
            advice = f"{_request(more, gold, left_out)}{_POWER_NOTE}"
        else:
            # Too few truths to estimate an accuracy from: ask for as many as any verdict needs.
            more = {label: max(FEWEST // 2 - count, 0) for label, count in counts.items()}
            advice = _request(more, gold, left_out)
    elif low > CHANCE:
        passed = True
    else:
        more = _further_truths(gold, counts) if balanced > CHANCE else None
        passed = None if more else False
        if more:
            advice = f"{_request(more, gold, left_out)}{_POWER_NOTE}"
        if balanced <= CHANCE:
            note = "the estimate itself is at or below chance: more truths would not help"
        elif not more:
            note = f"at this estimate, {LARGEST} truths of each label would not be enough"
    return GoRule(
        name="gold",
        rule="the teachers distinguish right labels from wrong ones: the lower end of the 95% "
        "interval of their accuracy, averaged over the true labels, is above "
        f"{CHANCE:g} (chance)",
        value=low,
        threshold=CHANCE,
        passed=passed,
        note="; ".join(text for text in (note, _explain_left_out(left_out)) if text) or None,
        advice=advice,
        more=more,
    )


def _explain_few_truths(gold: GoldComparison, counts: Mapping[str, int]) -> str:
    missing = [label for label, count in counts.items() if not count]
    if gold.judged < FEWEST:
        return f"{gold.judged} pairs with a known label were judged; at least {FEWEST} are needed"
    if len(missing) == len(counts):
        return "all known labels are ties"
    return f"no judged pair has the true label {missing[0]}"


def _further_truths(gold: GoldComparison, counts: Mapping[str, int]) -> dict[str, int] | None:
    """Return how many more truths of each label would give the rule its power; None if unknown."""
    shares = [gold.labels[label].share for label in counts]
    known = [share for share in shares if share is not None]
    if len(known) < len(shares):
        return None
    needed = further_truths(known, list(counts.values()))
    if needed is None or not any(needed):
        return None
    return dict(zip(counts, needed, strict=True))


def _explain_left_out(left_out: int) -> str | None:
    if not left_out:
        return None
    pairs = count_noun(left_out, "pair")
    return (
        f"{pairs} with a known label left out, because at most --n-gold, by default --n, are added "
        "to the drawn ones"
    )


def _request(more: Mapping[str, int], gold: GoldComparison, left_out: int) -> str:
    """Return what to do for the truths in `more`: a sample and its store cannot be extended."""
    asked = " and ".join(
        f"{count} with the true label {label}" for label, count in more.items() if count
    )
    # All pairs in the gold file, or those so far and the new ones, whichever is more. As --n-gold:
    # a larger --n would draw, and pay for, as many other pairs.
    size = gold.sampled + max(left_out, sum(more.values()))
    known = " (those left out count)" if left_out else ""
    return (
        f"find out the truth about more pairs, {asked}{known}, and run the pilot again with all "
        f"truths in --gold, --n-gold {size} or more, and a new --store, which asks about all pairs "
        "again"
    )


def _cache(teachers: Sequence[TeacherPerformance]) -> GoRule:
    shares = {
        teacher.name: teacher.cached_share / teacher.cacheable_share
        for teacher in teachers
        # A single variant shares no prefix with another one, so nothing is cacheable.
        if teacher.cached_share is not None and teacher.cacheable_share
    }
    worst = min(shares, key=lambda name: shares[name], default=None)
    value = None if worst is None else shares[worst]
    passed = None if value is None else value >= MIN_CACHED
    if worst is not None:
        note = f"the worst: {worst}"
    elif all(teacher.cached_share is None for teacher in teachers):
        note = "no server reports its cached tokens"
    else:
        note = "unknown for an adaptive panel, which asks about a pair at different times"
    advice = (
        "check whether its server caches prefixes and whether a proxy spreads the requests about "
        "a pair over several servers, and try warm_prefix: true"
    )
    return GoRule(
        name="cache",
        rule=f"the prefix cache serves at least {MIN_CACHED:.0%} of the prompt tokens that it "
        "could serve, given the order of the requests",
        value=value,
        threshold=MIN_CACHED,
        passed=passed,
        note=note,
        advice=advice if passed is False else None,
    )
