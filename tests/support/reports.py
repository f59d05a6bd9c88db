"""Stores made by hand, and the reports on them."""

from sp2dpo.betas.arms import Arm
from sp2dpo.betas.file import BetaTable
from sp2dpo.betas.schedule import load_schedule, parse_schedule, schedule_betas
from sp2dpo.pairs.pair import Pair
from sp2dpo.pairs.sources import Source, SourceRow
from sp2dpo.panel.annotation import Key
from sp2dpo.panel.rubric import load_rubric
from sp2dpo.report.report import build_report
from sp2dpo.store.store import ReplyRecord
from support.harness import SCHEDULE, kept_reply, panel_of

VARIANTS = ("direct", "critic", "reader")


def pair(number):
    return Pair(
        prompt=({"role": "user", "content": f"Question {number}?"},),
        chosen=({"role": "assistant", "content": f"Good {number}."},),
        rejected=({"role": "assistant", "content": f"Bad {number}."},),
    )


def source_rows(*pairs):
    return [
        SourceRow(row=row, pair=pair, source_id=f"row-{row}") for row, pair in enumerate(pairs, 1)
    ]


def says(pair, teacher, variant, magnitude, confidence=10, category="style", **fields):
    return kept_reply(pair.id, teacher, variant, magnitude, confidence, category, **fields)


def refused_reply(pair, teacher, variant, reason):
    return ReplyRecord(
        key=Key(pair_id=pair.id, teacher=teacher, variant=variant),
        annotation=None,
        reason=reason,
        detail="",
        raw="?",
        reply=None,
        arrived=0.0,
    )


def fill(store, rows, entries, *, teachers=("x", "y"), rubric=None, name="hand.jsonl"):
    store.corpus.add(Source(name=name), rows)
    rubric = rubric or load_rubric("semantic-gap")
    store.record_panel(panel_of(*teachers, rubric=rubric, variants=tuple(rubric.variants)))
    store.add_replies(entries)


def make_report(store, *, quorum=1, **changed):
    settings = load_schedule(SCHEDULE).as_mapping() | {"quorum": quorum} | changed
    schedule = parse_schedule(settings, where="test")
    annotations = store.annotations()
    betas = BetaTable(
        table=schedule_betas(annotations, schedule),
        arm=Arm(of=schedule),
        annotations_hash=annotations.hash,
    )
    # Few bootstrap samples: no test here looks at an interval.
    return build_report(store, betas, annotations, draws=20)
