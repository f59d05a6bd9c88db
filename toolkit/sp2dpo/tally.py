"""Where an annotation stands: everything asked for is kept, refused, spared or pending."""

from dataclasses import dataclass

import polars as pl

from sp2dpo.annotation_table import AnnotationTable
from sp2dpo.backlog import Outcome, counted
from sp2dpo.panel import Panel, Teacher
from sp2dpo.store import Store


@dataclass(frozen=True, kw_only=True)
class Tally:
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


def tally(store: Store, panel: Panel, annotations: AnnotationTable | None = None) -> list[Tally]:
    """What the store holds of what the panel asks, by teacher.

    Args:
        store: with what came.
        panel: what it asks.
        annotations: of the store, where they are at hand: it need not count them again then.
    """
    wanted = store.backlog.pairs() * panel.questions()
    adaptive = panel.budget == "adaptive"
    spared = store.backlog.spared(panel.variants, panel.questions()) if adaptive else {}
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
        refused = counted(said)
        tallies.append(
            Tally(
                teacher=teacher.name,
                all=wanted,
                kept=refused.pop("kept", 0),
                refused=refused,
                spared=spared.get(teacher.name, spared.get("", 0)),
            )
        )
    return tallies


def _kept(annotations: AnnotationTable) -> list[Outcome]:
    """As `Backlog.kept`: a key that has two kept replies counts once."""
    key = ["teacher", "variant", "order"]
    keys = annotations.replies.select("pair_id", *key)
    again = pl.all_horizontal(pl.all() == pl.all().shift())
    counts = keys.filter(~again.fill_null(False)).group_by(key).len()
    return [
        Outcome(teacher=teacher, variant=variant, order=order, reason=None, attempt=0, count=count)
        for teacher, variant, order, count in counts.iter_rows()
    ]


def panel_of(store: Store) -> Panel:
    """The last panel of a store as far as a tally needs it: its teachers cannot be asked."""
    said = store.panel()
    return Panel(
        rubric=store.rubric(),
        variants=tuple(said["variants"]),
        budget=said["budget"],
        tolerance=said["tolerance"],
        teachers=tuple(
            Teacher(
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
