"""Count the replies that a panel asks for; each is kept, refused, spared or pending."""

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from sp2dpo.inference.endpoint import Endpoint
from sp2dpo.panel.panel import Panel
from sp2dpo.store.annotations import AnnotationTable
from sp2dpo.store.corpus import Corpus
from sp2dpo.store.questions import KeyCount, count_outcomes
from sp2dpo.store.store import Store
from sp2dpo.text import count_noun


@dataclass(frozen=True, kw_only=True)
class ReplyCounts:
    """Counts of one teacher's replies: `kept + refused + spared + pending == all`.

    Attributes:
        teacher: Name of the teacher.
        all: Number of replies that a full budget requires.
        kept: Number of replies with a valid annotation.
        refused: Number of replies without a valid annotation that are not requested again
            automatically, by reason.
        spared: Number of replies that an adaptive panel does not need.
    """

    teacher: str
    all: int
    kept: int
    refused: dict[str, int]
    spared: int = 0

    @property
    def pending(self) -> int:
        """Number of replies that are still to be requested."""
        return self.all - self.kept - sum(self.refused.values()) - self.spared

    def requests_needed(self, again: bool) -> int:
        """Return the number of requests to send, including refused replies if `again` is set."""
        return self.pending + (sum(self.refused.values()) if again else 0)


def count_replies(
    store: Store, panel: Panel, annotations: AnnotationTable | None = None
) -> list[ReplyCounts]:
    """Count the replies of each teacher of a panel.

    Args:
        store: Store with the replies.
        panel: Panel that determines which replies are needed.
        annotations: The store's annotations, if already loaded; kept replies are then counted
            without another query.
    """
    expected = store.questions.pair_count() * panel.questions()
    adaptive = panel.budget == "adaptive"
    spared = store.questions.saved_replies(panel.variants, panel.questions()) if adaptive else {}
    kept = store.questions.kept() if annotations is None else _kept(annotations)
    outcomes = [*kept, *store.questions.refused()]
    tallies = []
    # Outcomes that are not final will be requested again, so they count as pending.
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
                # A teacher without replies about settled pairs has no key of its own.
                spared=spared.get(teacher.name, spared.get("", 0)),
            )
        )
    return tallies


def _kept(annotations: AnnotationTable) -> list[KeyCount]:
    """Return what `Questions.kept` returns; a key with two kept replies counts once."""
    key = ["teacher", "variant", "order"]
    keys = annotations.replies.select("pair_id", *key)
    # The table is sorted by key, so two replies that differ only in `attempt` are neighbours.
    again = pl.all_horizontal(pl.all() == pl.all().shift())
    counts = keys.filter(~again.fill_null(False)).group_by(key).len()
    return [
        # The attempt does not matter: a kept reply is always final.
        KeyCount(teacher=teacher, variant=variant, order=order, reason=None, attempt=0, count=count)
        for teacher, variant, order, count in counts.iter_rows()
    ]


def load_recorded_panel(store: Store) -> Panel:
    """Return the last panel of a store, with the fields that counting needs, but not asking."""
    record = store.panel()
    return Panel(
        rubric=store.rubric(),
        variants=tuple(record.variants),
        budget=record.budget,
        tolerance=record.tolerance,
        covers=record.covers,
        teachers=tuple(
            Endpoint(
                name=teacher.name,
                model="",
                revision=None,
                base_urls=(),
                sampling={},
                retries=teacher.retries,
            )
            for teacher in record.teachers
        ),
    )


_NAMED = 5
"""Number of example rows per reason."""


def source_lines(corpus: Corpus) -> list[str]:
    """Return lines with the counts of the source's rows, why rows were set aside, and notes."""
    source = corpus.source()
    if source is None:
        return []
    aside = source.rows - source.usable
    lines = [
        f"{source.name}: {source.rows} rows = {source.usable} usable + {aside} set aside; "
        f"{source.pairs} distinct pairs",
        *corpus.reading_summary().lines(),
    ]
    rows: dict[str, list[int]] = {reason: [] for reason in source.set_aside}
    for row in corpus.set_aside():
        rows[row.reason].append(row.row)
    for reason, count in source.set_aside.items():
        examples = ", ".join(map(str, rows[reason][:_NAMED])) + (", ..." if count > _NAMED else "")
        lines.append(f"  set aside {count}: {reason} (row {examples})")
    return [*lines, *marked_lines(corpus.marked_pairs())]


def marked_lines(pairs: int | None) -> list[str]:
    """Return a line on pairs with control tokens, or none; None if they were not counted."""
    if not pairs:
        return []
    return [
        f"{count_noun(pairs, 'pair')} with control tokens of chat templates, such as <|im_start|>: "
        "requests contain each with a space inside, so that no server reads it as one"
    ]


def reply_count_lines(teachers: Sequence[ReplyCounts]) -> list[str]:
    """Return a line with the counts of each teacher, and one with their sums."""
    lines = []
    for counts in teachers:
        reasons = ", ".join(f"{reason} {count}" for reason, count in counts.refused.items())
        text = _counts_text(counts, f" ({reasons})" if reasons else "")
        lines.append(f"{counts.teacher}: {text}")
    total = ReplyCounts(
        teacher="",
        all=sum(counts.all for counts in teachers),
        kept=sum(counts.kept for counts in teachers),
        refused={"": sum(sum(counts.refused.values()) for counts in teachers)},
        spared=sum(counts.spared for counts in teachers),
    )
    return [*lines, _counts_text(total)]


def _counts_text(counts: ReplyCounts, reasons: str = "") -> str:
    spared = f" + {counts.spared} spared" if counts.spared else ""
    return (
        f"{counts.all} asked for = {counts.kept} kept + {sum(counts.refused.values())} refused"
        f"{reasons}{spared} + {counts.pending} pending"
    )
