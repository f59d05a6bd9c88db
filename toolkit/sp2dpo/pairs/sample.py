"""Draw a deterministic sample of pairs, stratified by length, to try a panel on.

Strata are quantile bins of two lengths in characters: the length of the prompt, and the length of
the chosen response minus that of the rejected one. Each stratum contributes in proportion to its
size. Within a stratum, pairs are ordered by a hash of their ids, so the sample does not depend on
the order of rows. Pairs with a known answer may be added: the drawn pairs alone describe the
source. This method is our choice.
"""

import hashlib
from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from sp2dpo.pairs.pair import Message
from sp2dpo.pairs.sources import SetAside, SourceRow
from sp2dpo.pairs.tally import ReadingSummary, ReadingTally
from sp2dpo.text import canonical_json

_BINS = 3
"""Number of quantile bins of each length."""
_NAMED = 5
"""Number of example rows that are listed for each reason why rows were set aside."""


@dataclass(frozen=True, kw_only=True)
class Stratum:
    """Pairs of similar lengths.

    Attributes:
        prompt: Shortest and longest prompt, in characters.
        difference: Smallest and largest length of chosen minus rejected response, in characters.
        pairs: Number of pairs.
        sampled: Number of drawn pairs.
    """

    prompt: tuple[int, int]
    difference: tuple[int, int]
    pairs: int
    sampled: int


@dataclass(frozen=True, kw_only=True)
class SkippedPairs:
    """The rows that were set aside for one reason.

    Attributes:
        reason: Why the rows do not contain a usable pair.
        count: Number of rows.
        rows: Numbers of the first few rows.
    """

    reason: str
    count: int
    rows: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A stratified sample of the pairs in a source.

    Attributes:
        pair_ids: Ids of the sampled pairs: those that were drawn, and those that were added.
        drawn_ids: Ids of the drawn pairs; only these are a random sample of the source.
        strata: Strata that the pairs were drawn from, without empty ones.
        rows: Number of rows in the source.
        pairs: Number of distinct pairs in the source.
        set_aside: Number of rows without a usable pair.
        skipped: Rows without a usable pair, grouped by reason, in source order.
        named: Number of pairs in the source that `add` names.
        left_out: Number of these that were neither drawn nor added, for the limit on added pairs.
        example: Content of the first row without a usable pair, as JSON; None if there is none.
        reading: Shapes and implicit prompts of the source.
    """

    pair_ids: frozenset[str]
    drawn_ids: frozenset[str]
    strata: tuple[Stratum, ...]
    rows: int
    pairs: int
    set_aside: int
    skipped: tuple[SkippedPairs, ...]
    named: int
    left_out: int = 0
    example: str | None = None
    reading: ReadingSummary = field(default_factory=ReadingSummary)


@dataclass(kw_only=True)
class _SourceIndex:
    """The lengths of a source's pairs and the counts of its rows, without texts."""

    lengths: dict[str, tuple[int, int]] = field(default_factory=dict)
    named: set[str] = field(default_factory=set)
    rows: int = 0
    set_aside: dict[str, tuple[int, list[int]]] = field(default_factory=dict)
    """Number of rows and the row numbers of the first few, by reason."""
    example: str | None = None
    tally: ReadingTally = field(default_factory=ReadingTally)


def draw_sample(
    rows: Iterable[SourceRow | SetAside],
    n: int,
    *,
    add: Collection[str] = (),
    add_most: int | None = None,
) -> Sample:
    """Draw a stratified sample of the pairs in a source.

    Args:
        rows: All rows of the source; their texts are not kept in memory.
        n: Number of pairs to draw, at least 1; fewer are drawn if the source has fewer.
        add: Pair ids or source ids of pairs to add to those that are drawn, such as pairs with a
            known answer; the draw does not depend on them.
        add_most: Largest number of pairs to add; None for n.
    """
    index = _read(rows, frozenset(add))
    places = _strata(index.lengths)
    quotas = _quotas({place: len(ids) for place, ids in places.items()}, n)
    chosen: set[str] = set()
    strata = []
    # Sorted, because otherwise the order of the strata would follow that of the rows.
    for place, ids in sorted(places.items()):
        chosen.update(sorted(ids, key=_shuffle_key)[: quotas[place]])
        prompts, differences = zip(*(index.lengths[pair_id] for pair_id in ids), strict=True)
        strata.append(
            Stratum(
                prompt=(min(prompts), max(prompts)),
                difference=(min(differences), max(differences)),
                pairs=len(ids),
                sampled=quotas[place],
            )
        )
    # Limited, because every pair that is asked about costs requests.
    candidates = sorted(index.named - chosen, key=_shuffle_key)
    added = candidates[: n if add_most is None else add_most]
    return Sample(
        pair_ids=frozenset(chosen).union(added),
        drawn_ids=frozenset(chosen),
        strata=tuple(strata),
        rows=index.rows,
        pairs=len(index.lengths),
        set_aside=sum(count for count, _ in index.set_aside.values()),
        skipped=tuple(
            SkippedPairs(reason=reason, count=count, rows=tuple(first))
            for reason, (count, first) in index.set_aside.items()
        ),
        named=len(index.named),
        left_out=len(candidates) - len(added),
        example=index.example,
        reading=index.tally.summary(),
    )


def read_sampled(rows: Iterable[SourceRow | SetAside], sample: Sample) -> Iterator[SourceRow]:
    """Yield the rows whose pair was sampled."""
    for row in rows:
        if isinstance(row, SourceRow) and row.pair.id in sample.pair_ids:
            yield row


def _read(rows: Iterable[SourceRow | SetAside], add: frozenset[str]) -> _SourceIndex:
    index = _SourceIndex()
    for row in rows:
        index.rows += 1
        index.tally.add(row)
        if isinstance(row, SetAside):
            index.example = index.example or row.raw
            count, first = index.set_aside.get(row.reason, (0, []))
            examples = [*first, row.row] if count < _NAMED else first
            index.set_aside[row.reason] = (count + 1, examples)
            continue
        pair_id = row.pair.id
        if pair_id not in index.lengths:
            chosen, rejected = _length(row.pair.chosen), _length(row.pair.rejected)
            index.lengths[pair_id] = (_length(row.pair.prompt), chosen - rejected)
        if add and (pair_id in add or row.source_id in add):
            index.named.add(pair_id)
    return index


def _length(turns: Iterable[Message]) -> int:
    # The content is null in a turn that only calls a tool.
    contents = [turn.get("content") or "" for turn in turns]
    return sum(len(c if isinstance(c, str) else canonical_json(c)) for c in contents)


def _strata(lengths: Mapping[str, tuple[int, int]]) -> dict[tuple[int, int], list[str]]:
    """Return the pair ids of each stratum, by the numbers of its two quantile bins."""
    prompts = _borders([prompt for prompt, _ in lengths.values()])
    differences = _borders([difference for _, difference in lengths.values()])
    places: dict[tuple[int, int], list[str]] = {}
    for pair_id, (prompt, difference) in lengths.items():
        place = (bisect_right(prompts, prompt), bisect_right(differences, difference))
        places.setdefault(place, []).append(pair_id)
    return places


def _borders(values: Sequence[int]) -> list[int]:
    """Return the lower bounds of the second and later quantile bins; ties stay together."""
    ordered = sorted(values)
    return [ordered[len(ordered) * part // _BINS] for part in range(1, _BINS)] if ordered else []


def _quotas(sizes: Mapping[tuple[int, int], int], n: int) -> dict[tuple[int, int], int]:
    """Divide n in proportion to the strata's sizes by the largest-remainder method."""
    total = sum(sizes.values())
    n = min(n, total)
    # In integers, so that rounding cannot change a quota.
    quotas = {place: n * size // total for place, size in sizes.items()}
    # Ties go to the lower bins, so that the sample does not depend on the order of rows.
    by_remainder = sorted(sizes, key=lambda place: (-(n * sizes[place] % total), place))
    for place in by_remainder[: n - sum(quotas.values())]:
        quotas[place] += 1
    return quotas


def _shuffle_key(pair_id: str) -> str:
    """Return a sort key that does not depend on a pair's position or length."""
    return hashlib.sha256(f"pilot {pair_id}".encode()).hexdigest()
