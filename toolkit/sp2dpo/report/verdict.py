"""Decide go or no-go from the rules that a pilot must pass before a whole corpus is annotated."""

from collections.abc import Sequence
from dataclasses import dataclass

from sp2dpo.diagnostics.agreement import OrderConsistency
from sp2dpo.diagnostics.checks import BAD, FEWEST, UNKNOWN, Check
from sp2dpo.diagnostics.gold import GoldComparison
from sp2dpo.panel.advice import advise_all
from sp2dpo.report.cost import TeacherPerformance

# All thresholds are our choice.
MAX_REFUSED = 0.05
"""Largest share of refused questions of a teacher, and of pairs without a beta."""
CHANCE = 0.5
"""Accuracy of random guessing between two responses."""
MIN_CACHED = 0.5
"""Smallest share of the cacheable prompt tokens that a working prefix cache serves."""


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
        advice: what to do about a failed rule; None if it did not fail.
    """

    name: str
    rule: str
    value: float | None
    threshold: float
    passed: bool | None
    note: str | None = None
    advice: str | None = None


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Go or no-go, with the rules behind it.

    Attributes:
        go: whether no rule failed.
        rules: results of all rules.
    """

    go: bool
    rules: list[GoRule]


def decide(
    teachers: Sequence[TeacherPerformance],
    checks: Sequence[Check],
    *,
    pairs: int,
    with_beta: int,
    position: Sequence[OrderConsistency] | None,
    gold: GoldComparison | None,
) -> Verdict:
    """Apply all rules to the results of a pilot.

    A rule without a verdict does not prevent a go, but too few betas (`enough`) and too few gold
    labels (`gold`) count as failures.

    Args:
        teachers: outcomes and throughput of each teacher.
        checks: checks of the betas.
        pairs: pairs of the sample.
        with_beta: pairs that have a beta.
        position: consistency over both orders, from `compare_orders`; None under the labelled
            protocol.
        gold: comparison with known labels, from `compare_with_gold`; None without them.
    """
    rules = [_refused(teachers), *_betas(pairs, with_beta), *map(_check, checks)]
    if position is not None:
        rules.append(_position(position))
    if gold is not None:
        rules.append(_gold(gold))
    rules.append(_cache(teachers))
    return Verdict(go=all(rule.passed is not False for rule in rules), rules=rules)


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
    bad = f"{check.bad:.0%}" if check.unit == "share" else f"{check.bad:g}"
    return GoRule(
        name=check.name,
        rule=f"{check.measure}: {'below' if check.bad > check.look else 'above'} {bad}",
        value=check.value,
        threshold=check.bad,
        # `look` only asks to read some pairs, so it does not prevent a go.
        passed=None if check.verdict == UNKNOWN else check.verdict != BAD,
        note="; ".join(note for note in (check.reason, check.note) if note) or None,
        advice=check.advice if check.verdict == BAD else None,
    )


def _position(position: Sequence[OrderConsistency]) -> GoRule:
    """Compare how often a teacher prefers the same response, or the same position, twice."""
    shares = {}
    for row in position:
        # A tie is evidence neither of a preference nor of a position bias.
        total = row.consistent.count + row.first.count + row.second.count
        # In fewer cases, the same position could be preferred by chance.
        if total >= FEWEST:
            shares[row.teacher] = row.consistent.count / total
    worst = min(shares, key=lambda teacher: shares[teacher], default=None)
    return GoRule(
        name="place",
        rule="when asked in both orders, every teacher prefers the same response more often than "
        "the same position",
        value=None if worst is None else shares[worst],
        threshold=CHANCE,
        passed=None if worst is None else shares[worst] > CHANCE,
        note=f"no teacher has {FEWEST} such cases" if worst is None else f"the worst: {worst}",
    )


def _gold(gold: GoldComparison) -> GoRule:
    low, judged = gold.balanced_low, gold.judged
    note = None
    if judged < FEWEST:
        note = f"{judged} pairs with a known label were judged; at least {FEWEST} are needed"
    elif low is None:
        note = "all known labels are ties"
    return GoRule(
        name="gold",
        rule="the teachers distinguish right labels from wrong ones: the lower end of the 95% "
        "interval of their accuracy, averaged over the true labels, is above "
        f"{CHANCE:g} (chance)",
        value=low,
        threshold=CHANCE,
        # A user who supplies gold labels relies on them, so an unknown accuracy fails, too.
        passed=low is not None and note is None and low > CHANCE,
        note=note,
        advice=note and "provide more known labels, use a larger --n, or omit --gold",
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
