"""The lines that tell how a source was read and how an annotation stands; their numbers add up."""

from collections.abc import Sequence

from sp2dpo.corpus import Corpus
from sp2dpo.tally import Tally

_NAMED = 5
"""Rows that are named for each reason."""


def source_lines(corpus: Corpus) -> list[str]:
    """How the rows of the source became pairs, and why the others did not."""
    source = corpus.source()
    if source is None:
        return []
    aside = source.rows - source.usable
    lines = [
        f"{source.name}: {source.rows} rows = {source.usable} usable + {aside} set aside; "
        f"{source.pairs} distinct pairs"
    ]
    rows: dict[str, list[int]] = {reason: [] for reason in source.set_aside}
    for one in corpus.set_aside():
        rows[one.reason].append(one.row)
    for reason, count in source.set_aside.items():
        some = ", ".join(map(str, rows[reason][:_NAMED])) + (", ..." if count > _NAMED else "")
        lines.append(f"  set aside {count}: {reason} (row {some})")
    return lines


def tally_lines(tallies: Sequence[Tally]) -> list[str]:
    """What became of everything that was asked for: a line for each teacher, and one for all."""
    lines = []
    for one in tallies:
        reasons = ", ".join(f"{reason} {count}" for reason, count in one.refused.items())
        lines.append(
            f"{one.teacher}: {one.all} asked for = {one.kept} kept + {sum(one.refused.values())} "
            f"refused{f' ({reasons})' if reasons else ''}"
            f"{f' + {one.spared} spared' if one.spared else ''} + {one.pending} pending"
        )
    spared = sum(one.spared for one in tallies)
    lines.append(
        f"{sum(one.all for one in tallies)} asked for = {sum(one.kept for one in tallies)} kept + "
        f"{sum(sum(one.refused.values()) for one in tallies)} refused + "
        f"{f'{spared} spared + ' if spared else ''}{sum(one.pending for one in tallies)} pending"
    )
    return lines
