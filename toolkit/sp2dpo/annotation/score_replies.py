"""Store a data set's own scores as the replies of a teacher.

The teacher has no server: its replies come from columns that stay with the pairs in a store, such
as UltraFeedback's scores. They count as those of any other teacher, in schedules, agreement and
audit, and `explain` shows the numbers that they come from. With the difference d of the scores as a
share of their width (`pairs.source_scores`), a reply is (our choice)

    magnitude    |d| on the rubric's scale, rounded; under the labelled protocol 0 if d < 0, because
                 such a teacher cannot dispute the label
    better       under the blind protocol: the response with the higher score, or a tie
    confidence   stated by the user, or with votes their agreement on the rubric's scale, rounded
    category     stated by the user, because scores have none

There is one reply in each order of the rubric and for the panel's first variant alone.

A blind teacher is a witness of the labels: the checks of validity and the soft labels ask how often
it agrees with them. Scores that the labels were made from always agree, so under the blind protocol
scores that contradict no label are refused. Under the labelled protocol no teacher is such a
witness, and they add the size of a gap alone.
"""

import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from sp2dpo.pairs.source_scores import NoScore, ScoreColumns, SourceScore, read_score
from sp2dpo.panel.annotation import Annotation, Key
from sp2dpo.panel.panel import Panel, load_panel
from sp2dpo.panel.rubric import CHOSEN_FIRST, Rubric, Scale
from sp2dpo.store.counts import load_recorded_panel
from sp2dpo.store.records import ReplyRecord
from sp2dpo.store.store import Store, StoredTeacher, open_store_for_writing
from sp2dpo.text import count_noun

_PAGE = 500
"""Pairs whose replies are committed at a time."""
FEW_CONTRADICTED = 0.01
"""Share of contradicted labels below which blind scores are suspected to repeat the labels, but for
errors of the data. Our choice: people who judge pairs again contradict far more of them."""
MODEL = "scores of the data set"
"""Model of a teacher whose replies are a data set's own scores."""


@dataclass(frozen=True, kw_only=True)
class ScoreImport:
    """What became of the pairs of a store: pairs = added + known + the sum of left_out.

    Attributes:
        teacher: Name of the teacher.
        pairs: Pairs of the store; with a shard, of the shard.
        added: Pairs that have a new reply.
        known: Pairs that had one already.
        left_out: Pairs without a reply, by reason.
        agreeing: Pairs with a reply whose chosen response has the higher score.
        contradicting: Pairs with a reply whose rejected response has the higher score.
        blind: Whether the replies count as those of a teacher who does not know the labels.
    """

    teacher: str
    pairs: int
    added: int
    known: int
    left_out: Counter[str]
    agreeing: int
    contradicting: int
    blind: bool

    @property
    def repeats_labels(self) -> bool:
        """Whether a blind teacher contradicts so few labels that they may be made from its scores.

        It is True if the share is below `FEW_CONTRADICTED`.
        """
        decided = self.agreeing + self.contradicting
        return self.blind and decided > 0 and self.contradicting < FEW_CONTRADICTED * decided


def import_scores(
    store: Store | str | Path,
    teacher: str,
    scores: ScoreColumns,
    *,
    confidence: int | None = None,
    category: str,
    panel: Panel | str | Path | None = None,
) -> ScoreImport:
    """Store the scores of a store's source as replies. The same call again changes nothing.

    Args:
        store: The store: its file, or an open store.
        teacher: Name of the teacher; no teacher of the panel.
        scores: Columns with the scores.
        confidence: Confidence of all replies, on the rubric's scale; None with votes.
        category: Category of all replies.
        panel: Panel whose rubric the replies answer, for a store without replies; its own if None.

    Raises:
        ValueError: The category or the confidence is not of the rubric, the teacher has another
            definition, a difference is larger than the width, no pair has scores, or the protocol
            is blind and the scores contradict no label.
        OSError: The file cannot be read or written.
    """
    with ExitStack() as stack:
        if not isinstance(store, Store):
            path = Path(store)
            if not path.exists():
                raise FileNotFoundError(f"{path}: no such store; `sp2dpo annotate` creates one")
            store = stack.enter_context(open_store_for_writing(path))
        if panel is None:
            asked = load_recorded_panel(store)
        else:
            asked = panel if isinstance(panel, Panel) else load_panel(Path(panel))
            store.check_panel(asked)
        _check(asked, teacher, scores, confidence, category)
        definition = StoredTeacher(
            name=teacher,
            model=MODEL,
            revision=None,
            sampling=scores.as_mapping()
            | ({} if confidence is None else {"confidence": confidence})
            | {"category": category},
        )
        store.check_teacher(definition)
        found, left_out = _read(store, scores)
        if asked.rubric.blind:
            _check_contradicts(found, teacher, asked.rubric.name)
        new = sorted(found.keys() - store.replied_pairs(teacher))
        if new and panel is not None:
            # A recorded panel has only what counting needs, so it is not recorded again.
            store.record_panel(asked)
        if new:
            store.record_teacher(definition)
        # All replies to a pair in one transaction: a pair with any reply counts as known.
        for first in range(0, len(new), _PAGE):
            store.add_replies(
                [
                    record
                    for pair_id in new[first : first + _PAGE]
                    for record in _records(
                        pair_id, teacher, found[pair_id], asked, confidence, category
                    )
                ]
            )
        return ScoreImport(
            teacher=teacher,
            pairs=len(found) + left_out.total(),
            added=len(new),
            known=len(found) - len(new),
            left_out=left_out,
            agreeing=sum(score.difference > 0 for score in found.values()),
            contradicting=sum(score.difference < 0 for score in found.values()),
            blind=asked.rubric.blind,
        )


def _check(
    panel: Panel, teacher: str, scores: ScoreColumns, confidence: int | None, category: str
) -> None:
    if any(teacher == each.name for each in panel.teachers):
        raise ValueError(
            f"the panel has a teacher {teacher} with a server: give the scores another name"
        )
    panel.rubric.check_category(category, where="")
    if (confidence is None) == (scores.votes is None):
        raise ValueError(
            "the confidence of a reply is either `confidence` (--confidence), one number for all "
            "pairs, or the agreement of `votes` (--votes): give exactly one of them"
        )
    scale = panel.rubric.confidence
    if confidence is not None and not scale.min <= confidence <= scale.max:
        raise ValueError(f"confidence {confidence} must be {scale.min} to {scale.max}")


def _read(store: Store, names: ScoreColumns) -> tuple[dict[str, SourceScore], Counter[str]]:
    """Return the scores by pair, and the number of pairs without a score by reason."""
    found: dict[str, SourceScore] = {}
    missing: dict[str, str] = {}
    conflicting: set[str] = set()
    columns: dict[str, None] = {}
    shard = store.questions.shard()
    for row, pair_id in store.corpus.rows():
        if shard is not None and not shard.contains(pair_id):
            continue
        try:
            score = read_score(row.columns, names)
        except NoScore as error:
            missing.setdefault(pair_id, str(error))
            columns |= dict.fromkeys(row.columns)
            continue
        except ValueError as error:
            raise ValueError(f"row {row.row}: {error}") from None
        if found.setdefault(pair_id, score) != score:
            conflicting.add(pair_id)
    left_out = Counter(reason for pair_id, reason in missing.items() if pair_id not in found)
    if not found and left_out:
        reasons = ", ".join(f"{reason} ({count})" for reason, count in left_out.items())
        raise ValueError(
            f"{store.path}: no pair has scores: {reasons}; the columns beside the pairs are "
            f"{', '.join(columns) or 'none'}"
        )
    # With either of them, the reply would depend on the order of the rows.
    left_out["several rows with different scores"] += len(conflicting)
    return {i: score for i, score in found.items() if i not in conflicting}, +left_out


def _check_contradicts(scores: Mapping[str, SourceScore], teacher: str, rubric: str) -> None:
    """Refuse scores that differ and never prefer the rejected response: they repeat the labels."""
    differences = [score.difference for score in scores.values()]
    agreeing = sum(difference > 0 for difference in differences)
    if agreeing and not any(difference < 0 for difference in differences):
        raise ValueError(
            f"{teacher}: the scores contradict the label of no pair ({agreeing} agree, "
            f"{count_noun(len(differences) - agreeing, 'tie')}), as scores do from which the "
            f"labels were made. Under the blind rubric {rubric} they would count as a teacher who "
            "did not know the labels, so that checks of validity and soft labels would confirm "
            "the labels by themselves: import them under a labelled rubric such as semantic-gap, "
            "where they add the size of a gap alone, or, if they are trusted as known labels, "
            "write them with `sp2dpo export-gold`"
        )


def _records(
    pair_id: str,
    teacher: str,
    score: SourceScore,
    panel: Panel,
    confidence: int | None,
    category: str,
) -> Iterator[ReplyRecord]:
    rubric = panel.rubric
    difference = score.difference
    if not rubric.blind:
        difference = max(0.0, difference)
    magnitude = _on_scale(abs(difference), rubric.magnitude)
    if confidence is None:
        confidence = _on_scale(score.agreement or 0.0, rubric.confidence)
    for order in rubric.orders(pair_id):
        annotation = Annotation(
            category=category,
            magnitude=magnitude,
            confidence=confidence,
            rationale=score.text[: rubric.rationale_length],
            better=_better(difference, order) if rubric.blind else None,
        )
        yield ReplyRecord(
            key=Key(pair_id=pair_id, teacher=teacher, variant=panel.variants[0], order=order),
            annotation=annotation,
            reason=None,
            detail=None,
            raw=_as_text(annotation, rubric),
            reply=None,
            arrived=time.time(),
        )


def _on_scale(share: float, scale: Scale) -> int:
    # Half upwards, because Python rounds 2.5 and 3.5 to even numbers.
    return scale.min + int(share * (scale.max - scale.min) + 0.5)


def _better(difference: float, order: str) -> str:
    if difference == 0:
        return "tie"
    return "A" if (difference > 0) == (order == CHOSEN_FIRST) else "B"


def _as_text(annotation: Annotation, rubric: Rubric) -> str:
    """Return the JSON that a teacher would have sent."""
    values = {key: getattr(annotation, key) for key in rubric.reply_keys}
    return json.dumps(values, ensure_ascii=False)
