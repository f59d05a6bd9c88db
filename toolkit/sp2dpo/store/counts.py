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

    def requests_needed(self, again: bool) -> int:
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
    expected = store.questions.pair_count() * panel.questions()
    adaptive = panel.budget == "adaptive"
    spared = store.questions.saved_replies(panel.variants, panel.questions()) if adaptive else {}
    kept = store.questions.kept() if annotations is None else _kept(annotations)
    outcomes = [*kept, *store.questions.refused()]
    tallies = []
    for teacher in panel.teachers:
        outcomes_of_teacher = [
            outcome
            for outcome in outcomes
            if outcome.teacher == teacher.name
            and outcome.variant in panel.variants
            and outcome.is_final(teacher.retries)
        ]
        refused = count_outcomes(outcomes_of_teacher)
        tallies.append(
            ReplyCounts(
                teacher=teacher.name,
                all=expected,
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


def load_recorded_panel(store: Store) -> Panel:
    """The last panel of a store as far as a tally needs it: its teachers cannot be asked."""
    record = store.panel()
    return Panel(
        rubric=store.rubric(),
        variants=tuple(record["variants"]),
        budget=record["budget"],
        tolerance=record["tolerance"],
        teachers=tuple(
            Endpoint(
                name=teacher["name"],
                model="",
                revision=None,
                base_urls=(),
                sampling={},
                retries=teacher["retries"],
            )
            for teacher in record["teachers"]
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
    for row in corpus.set_aside():
        rows[row.reason].append(row.row)
    for reason, count in source.set_aside.items():
        examples = ", ".join(map(str, rows[reason][:_NAMED])) + (", ..." if count > _NAMED else "")
        lines.append(f"  set aside {count}: {reason} (row {examples})")
    return lines


def reply_count_lines(teachers: Sequence[ReplyCounts]) -> list[str]:
    """What became of everything that was asked for: a line for each teacher, and counts for all."""
    lines = []
    for counts in teachers:
        reasons = ", ".join(f"{reason} {count}" for reason, count in counts.refused.items())
        refused = sum(counts.refused.values())
        lines.append(
            f"{counts.teacher}: {counts.all} asked for = {counts.kept} kept + {refused} refused"
            f"{f' ({reasons})' if reasons else ''}"
            f"{f' + {counts.spared} spared' if counts.spared else ''} + {counts.pending} pending"
        )
    total = sum(counts.all for counts in teachers)
    kept = sum(counts.kept for counts in teachers)
    refused = sum(sum(counts.refused.values()) for counts in teachers)
    spared = sum(counts.spared for counts in teachers)
    pending = sum(counts.pending for counts in teachers)
    lines.append(
        f"{total} asked for = {kept} kept + {refused} refused + "
        f"{f'{spared} spared + ' if spared else ''}{pending} pending"
    )
    return lines
