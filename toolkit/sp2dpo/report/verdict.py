"""Go or no-go: the rules that a pilot must pass before a whole corpus is asked.

Every rule has a number and a threshold, and all thresholds are our choice. A rule that cannot be
told does not stand in the way, but for `enough`, without which there is no go, and `gold`: whoever
gives truths wants them to be met.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sp2dpo.diagnostics.checks import BAD, FEWEST, UNKNOWN, Check
from sp2dpo.text import shorten

MOST_REFUSED = 0.05
"""Of a teacher's last replies, and of the pairs that may be left without a beta."""
COIN = 0.5
"""What a coin gets right."""
CACHE_WORKS = 0.5
"""Of what the prefix cache could serve, the share from which it is said to work."""
_NO_SCHEMA = (
    "see whether its server supports response_format json_schema, and read the replies in the store"
)
_REMEDIES = {
    "length": "raise max_tokens in its sampling",
    "not-json": _NO_SCHEMA,
    "schema": _NO_SCHEMA,
    "empty": "see whether its server puts the answer elsewhere, as reasoning parsers do",
    "too-long": "raise --max-model-len, or do without its longest pairs",
}


@dataclass(frozen=True, kw_only=True)
class GoRule:
    """One rule, applied.

    Attributes:
        name: for programs; never changes.
        rule: in words, with its threshold.
        value: what was measured; None where it cannot be told.
        threshold: that decides.
        passed: None where it cannot be told.
        note: whom the value is of, or why it cannot be told; None where that is plain.
        advice: what to do; None where the rule did not fail.
    """

    name: str
    rule: str
    value: float | None
    threshold: float
    passed: bool | None
    note: str | None = None
    advice: str | None = None


def decide(
    teachers: Sequence[Mapping[str, Any]],
    betas: Mapping[str, Any],
    signatures: Sequence[Check],
    *,
    position: Sequence[Mapping[str, Any]] | None,
    gold: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Whether to go on.

    Args:
        teachers: with name, refused, refused_share, details, cached_share and cacheable_share.
        betas: with pairs and with_beta.
        signatures: of the betas.
        position: as `agreement.compare_orders` makes it; None under the labelled protocol.
        gold: as `gold.compare_with_gold` gives it; None where there is none.

    Returns:
        go: whether no rule failed. rules: each as a mapping, see `GoRule`.
    """
    rules = [_refused(teachers), *_betas(betas), *map(_signature, signatures)]
    if position is not None:
        rules.append(_place(position))
    if gold is not None:
        rules.append(_gold(gold))
    rules.append(_cache(teachers))
    failed = [one for one in rules if one.passed is False]
    return {"go": not failed, "rules": [asdict(one) for one in rules]}


def _refused(teachers: Sequence[Mapping[str, Any]]) -> GoRule:
    known = [one for one in teachers if one["refused_share"] is not None]
    worst = max(known, key=lambda one: one["refused_share"], default=None)
    value = None if worst is None else worst["refused_share"]
    passed = None if value is None else value <= MOST_REFUSED
    return GoRule(
        name="refused",
        rule=f"of no teacher's answers more than {MOST_REFUSED:.0%} are refused",
        value=value,
        threshold=MOST_REFUSED,
        passed=passed,
        note=f"the worst: {worst['name']}" if worst else "nobody was heard",
        advice=_cure(worst) if worst and passed is False else None,
    )


def _cure(teacher: Mapping[str, Any]) -> str:
    """What to do about each reason of a teacher's refusals, the most frequent first."""
    refused, details = teacher["refused"], teacher["details"]
    reasons = sorted(refused, key=lambda reason: -refused[reason])
    return "; ".join(
        f"{reason} {refused[reason]}: {_remedy(reason, details.get(reason))}" for reason in reasons
    )


def _remedy(reason: str, detail: str | None) -> str:
    if reason in _REMEDIES:
        return _REMEDIES[reason]
    if reason.startswith("http-"):
        return f"the server says: {shorten(detail or 'nothing')}"
    return shorten(detail or "read the replies in the store")


def _betas(betas: Mapping[str, Any]) -> list[GoRule]:
    pairs, told = betas["pairs"], betas["with_beta"]
    without = 1 - told / pairs
    return [
        GoRule(
            name="enough",
            rule=f"at least {FEWEST} pairs have a beta: fewer could look well by chance",
            value=told,
            threshold=FEWEST,
            passed=told >= FEWEST,
        ),
        GoRule(
            name="without-beta",
            rule=f"no more than {MOST_REFUSED:.0%} of the pairs are left without a beta",
            value=without,
            threshold=MOST_REFUSED,
            passed=without <= MOST_REFUSED,
        ),
    ]


def _signature(one: Check) -> GoRule:
    above = one.bad > one.look
    unknown = one.verdict == UNKNOWN
    bad = f"{one.bad:.0%}" if one.unit == "share" else f"{one.bad:g}"
    return GoRule(
        name=one.name,
        rule=f"{one.measure}: {'below' if above else 'above'} {bad}",
        value=one.value,
        threshold=one.bad,
        passed=None if unknown else one.verdict != BAD,
        note="; ".join(note for note in (one.reason, one.note) if note) or None,
        advice=one.advice if one.verdict == BAD else None,
    )


def _place(position: Sequence[Mapping[str, Any]]) -> GoRule:
    """Of the answers that name one response or one place twice, those that name one response."""
    shares = {}
    for one in position:
        told = {kind: one[kind]["count"] for kind in ("consistent", "first", "second")}
        if sum(told.values()) >= FEWEST:
            shares[one["teacher"]] = told["consistent"] / sum(told.values())
    worst = min(shares, key=lambda teacher: shares[teacher], default=None)
    return GoRule(
        name="place",
        rule="shown in both orders, every teacher names the same response more often than the same "
        "place",
        value=None if worst is None else shares[worst],
        threshold=COIN,
        passed=None if worst is None else shares[worst] > COIN,
        note=f"no teacher did either {FEWEST} times" if worst is None else f"the worst: {worst}",
    )


def _gold(gold: Mapping[str, Any]) -> GoRule:
    low, judged = gold["balanced_low"], gold["judged"]
    note = None
    if judged < FEWEST:
        note = f"{judged} pairs with a known truth were judged; it takes {FEWEST}"
    elif low is None:
        note = "all that is known are ties"
    return GoRule(
        name="gold",
        rule="the teachers tell right labels from wrong ones: the lower end of the 95% interval of "
        f"what they get right, mean over the true labels, is above {COIN:g}, which is a coin's",
        value=low,
        threshold=COIN,
        passed=low is not None and note is None and low > COIN,
        note=note,
        advice=note and "give more truths, a larger --n, or no --gold",
    )


def _cache(teachers: Sequence[Mapping[str, Any]]) -> GoRule:
    shares = {
        one["name"]: one["cached_share"] / one["cacheable_share"]
        for one in teachers
        if one["cached_share"] is not None and one["cacheable_share"]
    }
    worst = min(shares, key=lambda name: shares[name], default=None)
    value = None if worst is None else shares[worst]
    passed = None if value is None else value >= CACHE_WORKS
    note = f"the worst: {worst}"
    if worst is None:
        silent = all(one["cached_share"] is None for one in teachers)
        note = "no server says what came from its cache"
        note = note if silent else "an adaptive panel asks about a pair at different times"
    advice = (
        "see whether its server caches prefixes, whether something between spreads the requests "
        "about a pair over several servers, and try warm_prefix: true"
    )
    return GoRule(
        name="cache",
        rule="of what the layout of the requests lets a prefix cache serve, it serves at least "
        f"{CACHE_WORKS:.0%}",
        value=value,
        threshold=CACHE_WORKS,
        passed=passed,
        note=note,
        advice=advice if passed is False else None,
    )
