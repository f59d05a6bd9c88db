"""The arithmetic of one pair, as `sp2dpo explain` writes it down."""

from dataclasses import replace

import pytest

from sp2dpo.betas.arms import Arm
from sp2dpo.betas.explain import explain_lines
from sp2dpo.betas.schedule import load_schedule, schedule_betas
from sp2dpo.panel.rubric import CHOSEN_FIRST, REJECTED_FIRST, load_rubric
from support.harness import SCHEDULE, filled, kept_reply, refused_reply

BLIND = load_rubric("semantic-gap-blind")
PAPER = load_schedule(SCHEDULE)


def lines_of(store, pair_id, schedule=PAPER, **change):
    """The explanation of a pair, from the table of its replies on."""
    table = schedule_betas(store.annotations(), schedule)
    row = next(row for row in table.iter_rows(named=True) if row["pair_id"] == pair_id)
    lines = explain_lines(
        store.corpus.pair(pair_id),
        list(store.replies(pair_id)),
        row | change,
        rubric=store.rubric(),
        arm=Arm(of=schedule),
    )
    start = next(number for number, line in enumerate(lines) if line.startswith("teacher"))
    return lines[start:]


def test_a_labelled_pair_goes_from_replies_to_beta_line_by_line(new_store):
    store = new_store()
    (pair_id,) = filled(store, 1, "a", "bb")
    store.add_replies(
        [kept_reply(pair_id, "a", "critic", 8, 10), kept_reply(pair_id, "a", "direct", 10, 5)]
    )
    store.add_replies(
        [
            kept_reply(pair_id, "bb", "direct", 2, 5, "clarity"),
            refused_reply(pair_id, "bb", "reader"),
        ]
    )
    assert lines_of(store, pair_id) == [
        "teacher  variant  category  magnitude  confidence  gap  rationale",
        "a        critic   style             8          10  0.8  because",
        "a        direct   style            10           5  0.5  because",
        "bb       direct   clarity           2           5  0.1  because",
        "bb       reader   refused                               empty",
        "",
        "gap of a reply  magnitude x confidence, the scores as shares of their scales",
        "a   median(0.5, 0.8) = 0.65",
        "bb  median(0.1) = 0.1",
        "gap   mean(0.65, 0.1) = 0.375",
        "beta  0.03 + (0.3 - 0.03) x 0.375 = 0.13125",
        "category  style (67% of 3 replies), spread between teachers 0.275",
    ]


def test_a_blind_pair_shows_signs_orders_and_the_clip(new_store):
    store = new_store()
    (pair_id,) = filled(store, 1, "a", "b", rubric=BLIND)
    for teacher, variant, order, better, magnitude in [
        ("a", "critic", CHOSEN_FIRST, "A", 6),
        ("a", "critic", REJECTED_FIRST, "A", 8),
        ("a", "direct", REJECTED_FIRST, "A", 4),
        ("b", "direct", CHOSEN_FIRST, "tie", 2),
        ("b", "direct", REJECTED_FIRST, "B", 1),
    ]:
        store.add_replies(
            [kept_reply(pair_id, teacher, variant, magnitude, 10, order=order, better=better)]
        )
    assert lines_of(store, pair_id) == [
        "teacher  variant  order           category  better       magnitude  confidence   gap  "
        "rationale",
        "a        critic   chosen-first    style     A, chosen            6          10   0.6  "
        "because",
        "a        critic   rejected-first  style     A, rejected          8          10  -0.8  "
        "because",
        "a        direct   rejected-first  style     A, rejected          4          10  -0.4  "
        "because",
        "b        direct   chosen-first    style     tie                  2          10     0  "
        "because",
        "b        direct   rejected-first  style     B, chosen            1          10   0.1  "
        "because",
        "",
        "gap of a reply  sign x magnitude x confidence, the scores as shares of their scales",
        "sign  +1 for chosen, -1 for rejected, 0 for a tie",
        "teacher  variant  over the orders",
        "a        critic   mean(0.6, -0.8) = -0.1",
        "a        direct   mean(-0.4) = -0.4",
        "b        direct   mean(0, 0.1) = 0.05",
        "a  median(-0.4, -0.1) = -0.25",
        "b  median(0.05) = 0.05",
        "signed gap  mean(-0.25, 0.05) = -0.1, so the label is disputed",
        "gap   max(0, -0.1) = 0",
        "beta  0.03 + (0.3 - 0.03) x 0 = 0.03",
        "category  style (100% of 5 replies), spread between teachers 0.15",
    ]


def test_expectations_are_shown_where_they_count(new_store):
    store = new_store()
    (pair_id,) = filled(store, 1, "a")
    for variant, expected in (("critic", (7.25, 8.0)), ("direct", (5.0, 6.0))):
        store.add_replies([kept_reply(pair_id, "a", variant, 9, 9, expected=expected)])
    store.add_replies([kept_reply(pair_id, "a", "reader", 9, 9)])
    schedule = replace(PAPER, quorum=2, estimate="expected")
    assert lines_of(store, pair_id, schedule)[:7] == [
        "teacher  variant  category  expected magnitude  expected confidence  gap      rationale",
        "a        critic   style                   7.25                    8  0.58     because",
        "a        direct   style                      5                    6  0.3      because",
        "a        reader   style                                              no vote  because",
        "",
        "gap of a reply  magnitude x confidence, the expected scores as shares of their scales",
        "a  median(0.3, 0.58) = 0.44",
    ]
    (beta_line,) = [
        line for line in lines_of(store, pair_id, replace(schedule, quorum=3)) if "none" in line
    ]
    assert beta_line == "beta  none: 2 replies, 1 that does not count, the quorum is 3"


@pytest.mark.parametrize("column", ["signed_gap", "beta"])
def test_a_table_that_says_otherwise_is_caught(new_store, column):
    store = new_store()
    (pair_id,) = filled(store, 1, "a")
    store.add_replies([kept_reply(pair_id, "a", v, 5, 5) for v in ("direct", "critic", "reader")])
    assert lines_of(store, pair_id)
    for wrong in (0.2, None):
        with pytest.raises(ValueError, match=f"says {column.replace('_', ' ')} {wrong}, but its"):
            lines_of(store, pair_id, **{column: wrong})
