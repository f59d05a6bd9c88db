"""Where an annotation stands: everything asked for is kept, refused, spared or pending."""

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from sp2dpo.inference.endpoint import Endpoint
from sp2dpo.panel.panel import Panel
from sp2dpo.store.annotations import AnnotationTable
from sp2dpo.store.corpus import Corpus
from sp2dpo.store.questions import KeyCount, count_outcomes
from sp2dpo.store.store import Store


@dataclass(frozen=True, kw_only=True)
class ReplyCounts:
    """Where a teacher stands: `kept + refused + spared + pending == all`.

    Attributes:
        teacher: its name.
        all: replies that a full budget takes.
        kept: those that hold an annotation.
        refused: those that hold none and are not asked for again by themselves, by reason.
        spared: those that an adaptive panel does without.
    """

    teacher: str
    all: int
    kept: int
    refused: dict[str, int]
    spared: int = 0

    @property
    def pending(self) -> int:
        """Replies that are still to come."""
        return self.all - self.kept - sum(self.refused.values()) - self.spared

    def wanted(self, again: bool) -> int:
        """Requests to be made; those refused before count if they are asked again."""
        return self.pending + (sum(self.refused.values()) if again else 0)


def count_replies(
    store: Store, panel: Panel, annotations: AnnotationTable | None = None
) -> list[ReplyCounts]:
    """What the store holds of what the panel asks, by teacher.

    Args:
        store: with what came.
        panel: what it asks.
        annotations: of the store, where they are at hand: it need not count them again then.
    """
    wanted = store.backlog.pair_count() * panel.questions()
    adaptive = panel.budget == "adaptive"
    spared = store.backlog.saved_replies(panel.variants, panel.questions()) if adaptive else {}
    kept = store.backlog.kept() if annotations is None else _kept(annotations)
    outcomes = [*kept, *store.backlog.refused()]
    tallies = []
    for teacher in panel.teachers:
        said = [
            one
            for one in outcomes
            if one.teacher == teacher.name
            and one.variant in panel.variants
            and one.is_final(teacher.retries)
        ]
        refused = count_outcomes(said)
        tallies.append(
            ReplyCounts(
                teacher=teacher.name,
                all=wanted,
                kept=refused.pop("kept", 0),
                refused=refused,
                spared=spared.get(teacher.name, spared.get("", 0)),
            )
        )
    return tallies


def _kept(annotations: AnnotationTable) -> list[KeyCount]:
    """As `Backlog.kept`: a key that has two kept replies counts once."""
    key = ["teacher", "variant", "order"]
    keys = annotations.replies.select("pair_id", *key)
    again = pl.all_horizontal(pl.all() == pl.all().shift())
    counts = keys.filter(~again.fill_null(False)).group_by(key).len()
    return [
        KeyCount(teacher=teacher, variant=variant, order=order, reason=None, attempt=0, count=count)
        for teacher, variant, order, count in counts.iter_rows()
    ]


def recorded_panel(store: Store) -> Panel:
    """The last panel of a store as far as a tally needs it: its teachers cannot be asked."""
    said = store.panel()
    return Panel(
        rubric=store.rubric(),
        variants=tuple(said["variants"]),
        budget=said["budget"],
        tolerance=said["tolerance"],
        teachers=tuple(
            Endpoint(
                name=teacher["name"],
                model="",
                revision=None,
                base_urls=(),
                sampling={},
                retries=teacher["retries"],
            )
            for teacher in said["teachers"]
        ),
    )


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


def tally_lines(tallies: Sequence[ReplyCounts]) -> list[str]:
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
