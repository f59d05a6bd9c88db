"""Find the questions to be asked about the pairs of a store, and count the outcomes of others."""

import json
import sqlite3
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from sp2dpo.inference.endpoint import Endpoint
from sp2dpo.pairs.pair import Pair
from sp2dpo.panel.annotation import Key
from sp2dpo.panel.panel import Panel
from sp2dpo.panel.rubric import Rubric
from sp2dpo.store.corpus import load_pair
from sp2dpo.store.database import read_meta, transaction, write_meta
from sp2dpo.store.records import UNREADABLE, StoredReply


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One of `total` shares of the pairs.

    Attributes:
        index: Number of this share, from 0 to `total` - 1.
        total: Number of shares.
    """

    index: int
    total: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse `I/N`, with I from 0 to N-1.

        Raises:
            ValueError: If the text is not of this form.
        """
        first, slash, last = text.partition("/")
        if not (slash and first.isdecimal() and last.isdecimal() and int(first) < int(last)):
            raise ValueError(f"shard {text!r}: write I/N with I from 0 to N-1, such as 0/4")
        return cls(index=int(first), total=int(last))

    def contains(self, pair_id: str) -> bool:
        """Return whether a pair belongs to this share. Ids are hashes, so shares are even."""
        return int(pair_id[:15], 16) % self.total == self.index

    def __str__(self) -> str:
        """Return the text that `parse` reads."""
        return f"{self.index}/{self.total}"


_KEPT = "FROM replies r INDEXED BY replies_narrow WHERE status = 'kept'"
_SAME_KEY = (
    '(k.pair_id, k.teacher, k.variant, k."order") = (r.pair_id, r.teacher, r.variant, r."order")'
)
_UNREADABLE = ", ".join(f"'{reason}'" for reason in UNREADABLE)


@dataclass(frozen=True, kw_only=True)
class QuestionPlan:
    """What to ask a teacher about every pair, and when a refusal is final.

    Attributes:
        teacher: Name of the teacher.
        variants: Variants of the rubric to ask, in this order.
        rubric: The rubric; it determines the orders in which responses are shown.
        retries: Number of retries after an unreadable reply.
        again: Whether refused replies count as missing.
    """

    teacher: str
    variants: tuple[str, ...]
    rubric: Rubric
    retries: int
    again: bool

    @classmethod
    def from_panel(cls, panel: Panel, teacher: Endpoint, *, again: bool) -> Self:
        """Return what a panel asks one of its teachers."""
        return cls(
            teacher=teacher.name,
            variants=panel.variants,
            rubric=panel.rubric,
            retries=teacher.retries,
            again=again,
        )


@dataclass(frozen=True, kw_only=True)
class Question:
    """A missing reply.

    Attributes:
        key: Key of the reply, with the number of the next attempt.
        last: Number of the last attempt, after which an unreadable reply is final.
    """

    key: Key
    last: int


@dataclass(frozen=True, kw_only=True)
class Job:
    """The missing replies of one teacher about one pair.

    Attributes:
        number: Number of the pair in source order.
        pair: The pair.
        questions: Questions in the order to ask them; never empty.
    """

    number: int
    pair: Pair
    questions: tuple[Question, ...]


@dataclass(frozen=True, kw_only=True)
class PairReplies:
    """A pair with its replies.

    Attributes:
        number: Number of the pair in source order.
        pair: The pair.
        replies: All replies, without the fields that no sampled reading depends on: the
            expectations, texts and counts of tokens are None or empty.
    """

    number: int
    pair: Pair
    replies: list[StoredReply]


@dataclass(frozen=True, kw_only=True)
class SettledPair:
    """A pair about which an adaptive panel does not ask further questions.

    Attributes:
        pair_id: Id of the pair.
        replies: Number of its replies.
        chance: Estimated probability that the full panel would not change its gap beyond the
            tolerance, in [0, 1].
    """

    pair_id: str
    replies: int
    chance: float


@dataclass(frozen=True, kw_only=True)
class KeyCount:
    """Number of keys with the same outcome: a reply was kept, or the last one was refused.

    Attributes:
        teacher: Name of the teacher.
        variant: Variant of the rubric.
        order: Order in which the responses were shown.
        reason: Reason of the refusal; None if a reply was kept.
        attempt: Number of the refused attempt, from 0.
        count: Number of keys.
    """

    teacher: str
    variant: str
    order: str
    reason: str | None
    attempt: int
    count: int

    def is_final(self, retries: int) -> bool:
        """Return whether these keys are not retried automatically."""
        return self.reason not in UNREADABLE or self.attempt >= retries


class Questions:
    """The questions of an open store."""

    def __init__(self, database: sqlite3.Connection, path: Path) -> None:
        self._db = database
        self._path = path

    def shard(self) -> Shard | None:
        """Return the shard that this store is restricted to; None for all pairs."""
        text = read_meta(self._db, "shard")
        return Shard.parse(text) if text else None

    def restrict_to_shard(self, shard: Shard | None) -> None:
        """Restrict the store to a shard permanently; None changes nothing.

        Raises:
            ValueError: If it is restricted to another shard, or already has replies.
        """
        current = self.shard()
        if shard is None or shard == current:
            return
        if current is not None:
            raise ValueError(
                f"{self._path} is for the shard {current}, not {shard}; use its own store"
            )
        if self._db.execute("SELECT EXISTS (SELECT 1 FROM replies)").fetchone()[0]:
            raise ValueError(
                f"{self._path} was annotated without --shard; give each shard a new store"
            )
        with transaction(self._db):
            write_meta(self._db, "shard", str(shard))

    def pair_count(self) -> int:
        """Return the number of distinct pairs in the store's shard."""
        query = "SELECT count(*) FROM pairs"
        return self._db.execute(f"{query} WHERE {self._in_shard()}").fetchone()[0]

    def next_jobs(self, plan: QuestionPlan, *, after: int, limit: int) -> list[Job]:
        """Return the next pairs with missing replies, in source order.

        Args:
            plan: The teacher and what to ask it.
            after: Number of the last pair of the previous call; 0 at first.
            limit: Largest number of pairs.
        """
        marks = ", ".join("?" * len(plan.variants))
        final = "status = 'kept'"
        if not plan.again:  # the last reply to a key decides whether it is final
            final += f""" OR (
                (attempt >= {int(plan.retries)} OR reason NOT IN ({_UNREADABLE}))
                AND NOT EXISTS (SELECT 1 FROM replies later WHERE
                    (later.pair_id, later.teacher, later.variant, later."order")
                    = (r.pair_id, r.teacher, r.variant, r."order") AND later.attempt > r.attempt)
            )"""
        condition = f"r.pair_id = p.pair_id AND teacher = ? AND variant IN ({marks})"
        values = (plan.teacher, *plan.variants)
        # The number of orders is the same for every id. A key is counted once (DISTINCT), although
        # each attempt has a row.
        questions = len(plan.variants) * len(plan.rubric.orders("0"))
        # From a number and not an OFFSET on, because answered pairs drop out between two calls.
        rows = self._db.execute(
            f"""
            SELECT number, pair_id, prompt, chosen, rejected, tools,
                (SELECT json_group_array(json_array(variant, "order", {final}, attempt))
                 FROM replies r WHERE {condition})
            FROM pairs p WHERE number > ? AND {self._in_shard()} AND (
                SELECT count(DISTINCT variant || "order") FROM replies r
                WHERE {condition} AND ({final})
            ) < ?
            ORDER BY number LIMIT ?
            """,
            (*values, after, *values, questions, limit),
        )
        return [
            _job(plan, number, load_pair(texts, pair_id), replies)
            for number, pair_id, *texts, replies in rows
        ]

    def outcomes(self, pair_ids: Collection[str] | None = None) -> list[KeyCount]:
        """Count the outcomes of all keys: a kept reply, or the reason of the last refusal.

        Args:
            pair_ids: Count only the keys of these pairs; None for all pairs.
        """
        return [*self.kept(pair_ids), *self.refused(pair_ids)]

    def kept(self, pair_ids: Collection[str] | None = None) -> list[KeyCount]:
        """Count the keys with a kept reply, of these pairs or of all."""
        highest = self._db.execute(f"SELECT max(attempt) {_KEPT}").fetchone()[0]
        about, values = _about(pair_ids)
        # `attempt < ?` skips the subquery for all rows if no key has a second attempt.
        rows = self._db.execute(
            f"""SELECT teacher, variant, "order", NULL, 0, count(*) {_KEPT} {about}
            AND NOT (attempt < ? AND EXISTS (
                SELECT 1 FROM replies k WHERE {_SAME_KEY} AND k.status = 'kept'
                AND k.attempt > r.attempt
            )) GROUP BY 1, 2, 3""",
            (*values, highest),
        )
        return _key_counts(rows)

    def refused(self, pair_ids: Collection[str] | None = None) -> list[KeyCount]:
        """Count the keys without a kept reply, by the reason of their last refusal."""
        about, values = _about(pair_ids)
        rows = self._db.execute(
            f"""SELECT teacher, variant, "order", reason, attempt, count(*)
            FROM replies r INDEXED BY replies_narrow WHERE status = 'refused' {about}
            AND NOT EXISTS (
                SELECT 1 FROM replies k WHERE {_SAME_KEY}
                AND (k.status = 'kept' OR k.attempt > r.attempt)
            ) GROUP BY 1, 2, 3, 4, 5""",
            values,
        )
        return _key_counts(rows)

    def replied_pairs(self, *, settled: bool, after: int, limit: int) -> list[PairReplies]:
        """Return the next pairs with all their replies, in source order.

        Args:
            settled: Whether to include settled pairs.
            after: Number of the last pair of the previous call; 0 at first.
            limit: Largest number of pairs.
        """
        rows = self._db.execute(
            f"""
            SELECT number, pair_id, prompt, chosen, rejected, tools,
                (SELECT json_group_array(json_array(pair_id, teacher, variant, "order", attempt,
                    status, reason, category, magnitude, confidence, better))
                 FROM replies r WHERE r.pair_id = p.pair_id)
            FROM pairs p WHERE number > ? AND {self._in_shard()}
                AND (? OR pair_id NOT IN (SELECT pair_id FROM settled))
            ORDER BY number LIMIT ?
            """,
            (after, settled, limit),
        )
        return [
            PairReplies(
                number=number,
                pair=load_pair(texts, pair_id),
                # The query selects the first fields of `StoredReply`, in their order.
                replies=[StoredReply(*values) for values in json.loads(replies)],
            )
            for number, pair_id, *texts, replies in rows
        ]

    def reopen(self) -> None:
        """Mark all pairs as not settled, because a changed panel may need more replies."""
        with transaction(self._db):
            self._db.execute("DELETE FROM settled")

    def saved_replies(self, variants: Sequence[str], questions: int) -> dict[str, int]:
        """Count the replies that were saved because pairs are settled.

        Args:
            variants: Variants that the panel asks.
            questions: Number of replies per pair and teacher under a full budget.

        Returns:
            The number of saved replies by teacher. The key "" is for all teachers without replies
            about these pairs.
        """
        settled = self._db.execute("SELECT count(*) FROM settled").fetchone()[0]
        # DISTINCT without `attempt`, because every retry of a question has a row of its own.
        replied = self._db.execute(
            'SELECT teacher, count(*) FROM (SELECT DISTINCT pair_id, teacher, variant, "order" '
            "FROM replies WHERE pair_id IN (SELECT pair_id FROM settled) "
            f"AND variant IN ({', '.join('?' * len(variants))})) GROUP BY teacher",
            tuple(variants),
        )
        return {"": settled * questions} | {
            teacher: settled * questions - count for teacher, count in replied
        }

    def _in_shard(self) -> str:
        shard = self.shard()
        if shard is None:
            return "true"
        # SQLite evaluates it row by row, so that pairs of other shards never become objects.
        self._db.create_function("in_shard", 1, shard.contains, deterministic=True)
        return "in_shard(pair_id)"


def _about(pair_ids: Collection[str] | None) -> tuple[str, tuple[str, ...]]:
    """Return an SQL condition on the pair of a reply, and its values; empty for all pairs."""
    if pair_ids is None:
        return "", ()
    return "AND pair_id IN (SELECT value FROM json_each(?))", (json.dumps(list(pair_ids)),)


def _key_counts(rows: Iterable[tuple[Any, ...]]) -> list[KeyCount]:
    # The queries select their columns in the order of these fields.
    names = KeyCount.__dataclass_fields__
    return [KeyCount(**dict(zip(names, row, strict=True))) for row in rows]


def _job(plan: QuestionPlan, number: int, pair: Pair, replies: str) -> Job:
    states: dict[tuple[str, str], tuple[bool, int]] = {}
    for variant, order, final, attempt in json.loads(replies):
        done, last = states.get((variant, order), (False, -1))
        states[variant, order] = (done or bool(final), max(last, attempt))
    questions = []
    # All variants of one order first: their requests begin alike, so a prefix cache can serve them.
    for order in plan.rubric.orders(pair.id):
        for variant in plan.variants:
            done, last = states.get((variant, order), (False, -1))
            if not done:
                key = Key(
                    pair_id=pair.id,
                    teacher=plan.teacher,
                    variant=variant,
                    order=order,
                    attempt=last + 1,
                )
                # A question that is asked again gets as many retries as it had at first.
                until = max(plan.retries, last + 1 + plan.retries * plan.again)
                questions.append(Question(key=key, last=until))
    return Job(number=number, pair=pair, questions=tuple(questions))


def count_outcomes(outcomes: Sequence[KeyCount]) -> dict[str, int]:
    """Return the number of keys by outcome (`kept` or a reason), in alphabetical order."""
    counts: dict[str, int] = {}
    for outcome in sorted(outcomes, key=lambda outcome: outcome.reason or "kept"):
        reason = outcome.reason or "kept"
        counts[reason] = counts.get(reason, 0) + outcome.count
    return counts
