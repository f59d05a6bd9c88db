"""A sample of pairs to try a panel on: as long and as uneven as all pairs are, and always the same.

The strata are quantiles of two lengths in characters: of the prompt, and by how much the chosen
response is longer than the rejected one. Each gives its share of the sample; inside a stratum the
pairs' own hashes decide. Nothing depends on the order of the rows. Our choice.
"""

import hashlib
from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sp2dpo.pairs.pair import Message, Pair
from sp2dpo.pairs.sources import SetAside, SourceRow
from sp2dpo.text import canonical_json

_BINS = 3
"""Quantiles of each length."""
_NAMED = 5
"""Rows that are named for each reason to set them aside."""


@dataclass(frozen=True, kw_only=True)
class Stratum:
    """Pairs of like lengths.

    Attributes:
        prompt: the shortest and the longest prompt, in characters.
        difference: by how much the chosen response is longer, at least and at most, in characters.
        pairs: in all.
        sampled: of them.
    """

    prompt: tuple[int, int]
    difference: tuple[int, int]
    pairs: int
    sampled: int


@dataclass(frozen=True, kw_only=True)
class SkippedPairs:
    """Rows that hold no pair for one reason.

    Attributes:
        reason: in words.
        count: of rows.
        rows: the first few of them.
    """

    reason: str
    count: int
    rows: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Which pairs are tried.

    Attributes:
        pair_ids: of them.
        strata: that they were taken from; none is empty.
        rows: of the source.
        pairs: distinct ones in it.
        set_aside: rows that hold no pair.
        skipped: Rows without a usable pair, grouped by reason, in source order.
        preferred: pairs of the source that were to go first.
    """

    pair_ids: frozenset[str]
    strata: tuple[Stratum, ...]
    rows: int
    pairs: int
    set_aside: int
    skipped: tuple[SkippedPairs, ...]
    preferred: int


@dataclass(kw_only=True)
class _SourceIndex:
    """What a source holds, without its texts."""

    lengths: dict[str, tuple[int, int]] = field(default_factory=dict)
    preferred: set[str] = field(default_factory=set)
    rows: int = 0
    set_aside: dict[str, tuple[int, list[int]]] = field(default_factory=dict)
    """How many rows, and the first few of them, by reason."""


def draw_sample(
    rows: Iterable[SourceRow | SetAside], n: int, *, prefer: Collection[str] = ()
) -> Sample:
    """A stratified sample of the pairs of a source.

    Args:
        rows: all of them; their texts are not held on to.
        n: pairs wanted, at least 1; fewer come where there are no more.
        prefer: ids, or names in the source, of pairs that go first in their strata: those whose
            truth is known.
    """
    index = _read(rows, frozenset(prefer))
    places = _strata(index.lengths)
    quotas = _quotas({place: len(ids) for place, ids in places.items()}, n)
    chosen: set[str] = set()
    strata = []
    for place, ids in sorted(places.items()):
        candidates = sorted(
            ids, key=lambda pair_id: (pair_id not in index.preferred, _shuffle_key(pair_id))
        )
        chosen.update(candidates[: quotas[place]])
        prompts, differences = zip(*(index.lengths[pair_id] for pair_id in ids), strict=True)
        strata.append(
            Stratum(
                prompt=(min(prompts), max(prompts)),
                difference=(min(differences), max(differences)),
                pairs=len(ids),
                sampled=quotas[place],
            )
        )
    return Sample(
        pair_ids=frozenset(chosen),
        strata=tuple(strata),
        rows=index.rows,
        pairs=len(index.lengths),
        set_aside=sum(count for count, _ in index.set_aside.values()),
        skipped=tuple(
            SkippedPairs(reason=reason, count=count, rows=tuple(first))
            for reason, (count, first) in index.set_aside.items()
        ),
        preferred=len(index.preferred),
    )


def read_sampled(rows: Iterable[SourceRow | SetAside], sample: Sample) -> Iterator[SourceRow]:
    """The rows that hold a sampled pair."""
    for row in rows:
        if isinstance(row, SourceRow) and row.pair.id in sample.pair_ids:
            yield row


def _read(rows: Iterable[SourceRow | SetAside], prefer: frozenset[str]) -> _SourceIndex:
    index = _SourceIndex()
    for row in rows:
        index.rows += 1
        if isinstance(row, SetAside):
            count, first = index.set_aside.get(row.reason, (0, []))
            examples = [*first, row.row] if count < _NAMED else first
            index.set_aside[row.reason] = (count + 1, examples)
            continue
        pair_id = row.pair.id
        if pair_id not in index.lengths:
            index.lengths[pair_id] = _lengths(row.pair)
        if prefer and (pair_id in prefer or row.source_id in prefer):
            index.preferred.add(pair_id)
    return index


def _lengths(pair: Pair) -> tuple[int, int]:
    return _length(pair.prompt), _length(pair.chosen) - _length(pair.rejected)


def _length(turns: Iterable[Message]) -> int:
    return sum(_characters(turn.get("content")) for turn in turns)


def _characters(content: Any) -> int:
    return len(content if isinstance(content, str) else canonical_json(content or ""))


def _strata(lengths: Mapping[str, tuple[int, int]]) -> dict[tuple[int, int], list[str]]:
    """The ids of each stratum, by the numbers of its quantiles."""
    prompts = _borders([prompt for prompt, _ in lengths.values()])
    differences = _borders([difference for _, difference in lengths.values()])
    places: dict[tuple[int, int], list[str]] = {}
    for pair_id, (prompt, difference) in lengths.items():
        place = (bisect_right(prompts, prompt), bisect_right(differences, difference))
        places.setdefault(place, []).append(pair_id)
    return places


def _borders(values: Sequence[int]) -> list[int]:
    """Where the second quantile begins, and the third; equal values stay together."""
    ordered = sorted(values)
    return [ordered[len(ordered) * part // _BINS] for part in range(1, _BINS)] if ordered else []


def _quotas(sizes: Mapping[tuple[int, int], int], n: int) -> dict[tuple[int, int], int]:
    """Shares of n by the sizes of the strata: the largest remainders are rounded up."""
    total = sum(sizes.values())
    n = min(n, total)
    quotas = {place: n * size // total for place, size in sizes.items()}
    by_remainder = sorted(sizes, key=lambda place: (-(n * sizes[place] % total), place))
    for place in by_remainder[: n - sum(quotas.values())]:
        quotas[place] += 1
    return quotas


def _shuffle_key(pair_id: str) -> str:
    """Orders the pairs of a stratum in a way that has nothing to do with what they say."""
    return hashlib.sha256(f"pilot {pair_id}".encode()).hexdigest()
