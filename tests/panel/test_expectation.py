"""Expectations over label tokens, computed by hand, and what is no reply to compute them from."""

import json
import math
import random
import time

import pytest

from sp2dpo.panel.logprobs import (
    expected_scores,
    format_tokens,
    parse_tokens,
    tokens_of_values,
)
from sp2dpo.panel.rubric import Scale

TEN = Scale(min=0, max=10, text="")
FIVE = Scale(min=1, max=5, text="")
SIGNED = Scale(min=-5, max=5, text="")


def token(text, probability=1.0, **others):
    """A token of the wire with what stood beside it, by probability."""
    spelt = text if isinstance(text, bytes) else text.encode()
    wire_token = {
        "token": spelt.decode(errors="replace"),
        "bytes": list(spelt),
        "logprob": log(probability),
    }
    top = [wire_token, *(token(label, share) for label, share in others.get("beside", {}).items())]
    top.sort(key=lambda candidate: -candidate["logprob"])
    return wire_token | {"top_logprobs": [{**candidate, "top_logprobs": None} for candidate in top]}


def log(probability):
    return math.log(probability) if probability else -9999.0


def reply(*magnitude, rationale=None):
    """The tokens of a reply and its text; `magnitude` up to and without what ends it."""
    content = [
        *[
            token('{"'),
            token("rationale"),
            token('":"'),
            *(rationale or [token("clear")]),
            token('","'),
        ],
        *[token("category"), token('":"'), token("sty"), token("le"), token('","')],
        *[token("magnitude"), token('":'), *magnitude],
        *[token(',"'), token("confidence"), token('":'), token("8"), token("}")],
    ]
    return content, b"".join(bytes(wire_token["bytes"]) for wire_token in content).decode()


def magnitude_of(*magnitude, scale=TEN):
    return expected_scores(tokens_of_values(*reply(*magnitude)), "magnitude", scale)


def test_labels_of_one_token():
    seven = token("7", 0.5, beside={"8": 0.3, "6": 0.2})
    assert magnitude_of(seven) == pytest.approx(0.5 * 7 + 0.3 * 8 + 0.2 * 6, abs=1e-12)


def test_ten_as_one_token():
    wire_token = token("7", 0.5, beside={"10": 0.3, "9": 0.2})
    assert magnitude_of(wire_token) == pytest.approx(3.5 + 3.0 + 1.8, abs=1e-12)


def test_ten_as_two_tokens():
    wire_tokens = token("1", 0.6, beside={"9": 0.4}), token("0", 0.75, beside={",": 0.25})
    by_hand = 0.4 * 9 + 0.6 * 0.75 * 10 + 0.6 * 0.25 * 1
    assert magnitude_of(*wire_tokens) == pytest.approx(by_hand, abs=1e-12)


def test_a_one_that_could_have_become_ten():
    """The comma after it tells how probable a ten was; the place is kept with the field."""
    content, text = reply(token("1", 0.6, beside={"9": 0.4}))
    comma = next(at for at, wire_token in enumerate(content) if wire_token["token"] == ',"')
    content[comma] = token(',"', 0.25, beside={"0": 0.75})
    value_tokens = tokens_of_values(content, text)
    assert [
        value_token.token for value_token in value_tokens if value_token.field == "magnitude"
    ] == ["1", ',"']
    by_hand = 0.4 * 9 + 0.6 * 0.75 * 10 + 0.6 * 0.25 * 1
    assert expected_scores(value_tokens, "magnitude", TEN) == pytest.approx(by_hand, abs=1e-12)


def test_a_one_that_nobody_followed_up_is_left_out():
    wire_token = token("9", 0.92, beside={"1": 0.08})
    assert magnitude_of(wire_token) == pytest.approx(9, abs=1e-12)
    wire_token = token("9", 0.6, beside={"1": 0.08, "5": 0.32})
    assert magnitude_of(wire_token) == pytest.approx((0.6 * 9 + 0.32 * 5) / 0.92, abs=1e-12)


def test_where_too_much_could_have_become_ten_there_is_no_expectation():
    assert magnitude_of(token("9", 0.8, beside={"1": 0.2})) is None


def test_on_a_scale_without_ten_a_one_is_a_one():
    wire_token = token("5", 0.8, beside={"1": 0.2})
    assert magnitude_of(wire_token, scale=FIVE) == pytest.approx(4.2, abs=1e-12)


@pytest.mark.parametrize(
    ("scale", "share_of_one"),
    [((0, 9), 0.2), ((0, 10), None), ((1, 19), None), ((0, 100), None), ((-20, 5), 0.2)],
)
def test_a_one_stands_for_itself_where_no_other_label_begins_with_it(scale, share_of_one):
    scale = Scale(min=scale[0], max=scale[1], text="")
    expectation = magnitude_of(token("3", 0.8, beside={"1": 0.2}), scale=scale)
    by_hand = share_of_one and 0.8 * 3 + share_of_one * 1
    assert expectation == (by_hand if by_hand is None else pytest.approx(by_hand, abs=1e-12))


def test_probability_off_the_scale_is_left_out():
    wire_token = token("7", 0.57, beside={"8": 0.38, "x": 0.03, "-": 0.02})
    assert magnitude_of(wire_token) == pytest.approx((0.57 * 7 + 0.38 * 8) / 0.95, abs=1e-12)
    wire_token = token("7", 0.57, beside={"8": 0.38, "11": 0.05})
    assert magnitude_of(wire_token) == pytest.approx((0.57 * 7 + 0.38 * 8) / 0.95, abs=1e-12)


def test_below_nine_tenths_there_is_no_expectation():
    assert magnitude_of(token("7", 0.8999)) is None
    assert magnitude_of(token("7", 0.9001)) == pytest.approx(7)


def test_the_token_that_was_said_counts_where_the_server_lists_others_only():
    wire_token = token("7", 0.5, beside={"8": 0.5})
    wire_token["top_logprobs"] = [
        candidate for candidate in wire_token["top_logprobs"] if candidate["token"] == "8"
    ]
    assert magnitude_of(wire_token) == pytest.approx(7.5, abs=1e-12)


@pytest.mark.parametrize(
    ("before", "value", "after"),
    [
        (":", "7,", ""),
        ("", ":7", ","),
        (":", " 7", ","),
        (":", " 7 ", ","),
        (":", "\n  7,\n", ""),
        (":", " 7", ",\n"),
    ],
)
def test_blanks_and_punctuation_may_be_part_of_a_label_token(before, value, after):
    others = {value.replace("7", "9"): 0.25, "8": 0.25}
    wire_tokens = [
        token('"magnitude"'),
        token(before),
        token(value, 0.5, beside=others),
        token(after),
    ]
    content = [token("{"), *wire_tokens, token('"confidence":3}')]
    text = "".join(wire_token["token"] for wire_token in content)
    value_tokens = tokens_of_values(content, text)
    assert expected_scores(value_tokens, "magnitude", TEN) == pytest.approx(
        0.5 * 7 + 0.25 * 17, abs=1e-12
    )
    assert (
        expected_scores(value_tokens, "confidence", TEN) is None
    )  # its token says more than the value


def test_the_last_value_may_share_its_token_with_the_end():
    content = [token('{"confidence":'), token("7\n}", 0.5, beside={"6": 0.5})]
    value_tokens = tokens_of_values(content, '{"confidence":7\n}')
    assert expected_scores(value_tokens, "confidence", TEN) == pytest.approx(6.5, abs=1e-12)


def test_a_label_may_be_written_with_a_decimal_point():
    wire_tokens = token("7", 0.5, beside={"9": 0.5}), token(".", 0.9, beside={",": 0.1}), token("0")
    assert magnitude_of(*wire_tokens) == pytest.approx(0.5 * 9 + 0.5 * 7, abs=1e-12)
    assert magnitude_of(token("7.0", 0.5, beside={"8.0": 0.5})) == pytest.approx(7.5, abs=1e-12)
    assert magnitude_of(token("7.0", 0.5, beside={"8.5": 0.5})) is None


def test_negative_labels():
    wire_tokens = token("-", 0.5, beside={"3": 0.5}), token("5", 0.4, beside={"2": 0.6})
    by_hand = 0.5 * 3 - 0.5 * (0.4 * 5 + 0.6 * 2)
    assert magnitude_of(*wire_tokens, scale=SIGNED) == pytest.approx(by_hand, abs=1e-12)
    assert magnitude_of(*wire_tokens, scale=TEN) is None
    wire_token = token("3", 0.95, beside={"-": 0.05})  # less than what, nobody knows
    assert magnitude_of(wire_token, scale=SIGNED) == pytest.approx(3, abs=1e-12)
    wire_token = token("-4", 0.5, beside={"-5": 0.5})
    assert magnitude_of(wire_token, scale=SIGNED) == pytest.approx(-4.5, abs=1e-12)


def test_what_the_grammar_rules_out_has_no_probability_and_is_not_kept():
    content, text = reply(token("7", 0.5, beside={"8": 0.5, "x": 0, "12": 0}))
    value_tokens = tokens_of_values(content, text)
    assert expected_scores(value_tokens, "magnitude", TEN) == pytest.approx(7.5, abs=1e-12)
    assert [
        value_token.top for value_token in value_tokens if value_token.field == "magnitude"
    ] == [[["7", math.log(0.5)], ["8", math.log(0.5)]]]


@pytest.mark.parametrize("seed", range(20))
def test_where_the_beginning_was_followed_up_the_expectation_is_the_models_own(seed):
    """A model that says 0-10 digit by digit: enumerated here, read from one reply there."""
    draw = random.Random(seed)
    weights = [draw.random() for _ in range(10)]
    digits = {str(digit): weight / sum(weights) for digit, weight in enumerate(weights)}
    zero = draw.random()
    labels = {int(digit): share for digit, share in digits.items()}
    labels |= {1: digits["1"] * (1 - zero), 10: digits["1"] * zero}
    beside = {digit: share for digit, share in digits.items() if digit != "1"}
    wire_tokens = token("1", digits["1"], beside=beside), token("0", zero, beside={",": 1 - zero})
    by_hand = sum(label * share for label, share in labels.items())
    assert magnitude_of(*wire_tokens) == pytest.approx(by_hand, abs=1e-9)


def test_exactly_the_tokens_of_the_values_are_kept():
    content, text = reply(token("7", 0.5, beside={"8": 0.5}))
    value_tokens = tokens_of_values(content, text)
    assert [
        (value_token.field, value_token.at, value_token.token) for value_token in value_tokens
    ] == [
        ("category", 7, "sty"),
        ("category", 8, "le"),
        ("magnitude", 12, "7"),
        ("confidence", 16, "8"),
    ]
    assert all(
        content[value_token.at]["token"] == value_token.token for value_token in value_tokens
    )
    assert list(json.loads(format_tokens(value_tokens))[0]) == [
        "field",
        "at",
        "token",
        "logprob",
        "top",
    ]


def test_what_is_kept_survives_being_stored_as_json():
    value_tokens = tokens_of_values(*reply(token("7", 0.5, beside={"8": 0.5})))
    assert parse_tokens(format_tokens(value_tokens)) == value_tokens


def test_the_answer_of_a_blind_rubric_is_kept_too():
    content = [token('{"better":"'), token("tie", 0.5, beside={"A": 0.5}), token('"}')]
    value_tokens = tokens_of_values(content, '{"better":"tie"}')
    assert [(value_token.field, value_token.token) for value_token in value_tokens] == [
        ("better", "tie")
    ]


def test_keys_inside_the_rationale_are_not_the_keys():
    rationale = [
        token(r"\"magnitude\":"),
        token("2", 0.9, beside={"3": 0.1}),
        token(r",\"category\":"),
    ]
    content, text = reply(token("7", 0.5, beside={"8": 0.5}), rationale=rationale)
    assert json.loads(text)["rationale"] == '"magnitude":2,"category":'
    value_tokens = tokens_of_values(content, text)
    assert [value_token.token for value_token in value_tokens] == ["sty", "le", "7", "8"]
    assert expected_scores(value_tokens, "magnitude", TEN) == pytest.approx(7.5, abs=1e-12)


def test_keys_inside_an_unknown_object_are_not_the_keys():
    content = [token('{"more":{"magnitude":3},"magnitude":'), token("7"), token("}")]
    value_tokens = tokens_of_values(content, '{"more":{"magnitude":3},"magnitude":7}')
    assert [(value_token.field, value_token.at) for value_token in value_tokens] == [
        ("magnitude", 1)
    ]


def test_characters_before_the_values_may_take_several_bytes_and_several_tokens():
    hand = "✋".encode()
    rationale = [
        token("日本語 é "),
        token(hand[:1]),
        token(hand[1:2]),
        token(hand[2:]),
        token(" ok"),
    ]
    content, text = reply(token("7", 0.5, beside={"8": 0.5}), rationale=rationale)
    assert "日本語 é ✋ ok" in text
    value_tokens = tokens_of_values(content, text)
    assert [value_token.token for value_token in value_tokens] == ["sty", "le", "7", "8"]
    for wire_token in content:
        if "\ufffd" not in wire_token["token"]:
            wire_token["bytes"] = None
    assert tokens_of_values(content, text) == value_tokens


def test_reasoning_before_the_text_and_the_end_of_the_turn_behind_it_do_not_count():
    content, text = reply(token("7", 0.5, beside={"8": 0.5}))
    before = [token("<think>"), token('{"magnitude":'), token("3"), token("}"), token("</think>")]
    around = [*before, *content, token("<|end|>")]
    value_tokens = tokens_of_values(around, text)
    assert [(value_token.at, value_token.token) for value_token in value_tokens] == [
        (12, "sty"),
        (13, "le"),
        (17, "7"),
        (21, "8"),
    ]
    assert tokens_of_values([*around, token("<|end|>")], text) is None


def test_tokens_that_do_not_add_up_to_the_text_are_not_guessed_at():
    content, text = reply(token("7"))
    assert tokens_of_values(content[:-2], text) is None
    assert tokens_of_values(content[14:], text) is None
    assert tokens_of_values([*content[:12], token("6"), *content[13:]], text) is None
    assert tokens_of_values([*content[:8], *content[9:]], text) is None
    assert tokens_of_values([], text) is None
    assert tokens_of_values(content, text.replace('":7', '": 7')) is None


@pytest.mark.parametrize(
    "text",
    [
        *["", " ", "7", "[]", "{}", "null", '{"magnitude":}', '{"magnitude":7', '{"magnitude":7}}'],
        *['{"magnitude":7,}', '{"magnitude":7,"magnitude":7}', "{7:7}", '{"x":1}'],
        *['{"magnitude":"\ud800"}', '{"magnitude":' + "9" * 5000 + "}", None, 7, b"{}"],
        *["[" * 200_000, '{"a":' * 200_000],
    ],
    ids=lambda text: repr(text)[:30],
)
def test_a_text_that_is_no_reply_has_no_tokens(text):
    content = [token(text)] if isinstance(text, str) and text.isascii() else [token("x")]
    assert tokens_of_values(content, text) is None


GOOD = {"token": '{"magnitude":7}', "bytes": None, "logprob": 0.0, "top_logprobs": []}


@pytest.mark.parametrize(
    "content",
    [
        *[None, 7, "text", {}, {"a": 1}, [None], [7], ["7"], [[]], [{}]],
        *[[GOOD | {"token": None}], [GOOD | {"token": 7}], [GOOD | {"token": "\ud800"}]],
        *[[GOOD | {"bytes": [256]}], [GOOD | {"bytes": "7"}], [GOOD | {"bytes": [None]}]],
        *[[GOOD | {"bytes": 10**12}], [GOOD | {"bytes": [-1]}], [GOOD | {"bytes": [55.0]}]],
        *[[GOOD | {"logprob": None}], [GOOD | {"logprob": "0"}], [GOOD | {"logprob": True}]],
        *[[GOOD | {"logprob": 10**400}], [GOOD | {"top_logprobs": 7}]],
        *[[GOOD | {"top_logprobs": [None]}], [GOOD | {"top_logprobs": [{"token": "7"}]}]],
    ],
    ids=lambda content: repr(content)[-40:],
)
def test_log_probabilities_of_another_form_are_none(content):
    assert tokens_of_values([GOOD], GOOD["token"])
    assert tokens_of_values(content, GOOD["token"]) is None


@pytest.mark.parametrize("logprob", [math.nan, math.inf, -math.inf, -1e308])
def test_a_logprob_that_is_no_number_has_no_probability(logprob):
    wire_token = token("7", 0.5, beside={"8": 0.5})
    wire_token["top_logprobs"][1]["logprob"] = logprob
    assert magnitude_of(wire_token) is None
    value_tokens = tokens_of_values(*reply(wire_token))
    assert json.dumps([vars(value_token) for value_token in value_tokens], allow_nan=False)


def test_a_field_without_tokens_has_no_expectation():
    assert expected_scores([], "magnitude", TEN) is None


def test_a_hundred_thousand_tokens_take_less_than_two_seconds():
    content, text = reply(token("7"), rationale=[token("word ")] * 100_000)
    begun = time.monotonic()
    assert len(tokens_of_values(content, text)) == 4
    assert time.monotonic() - begun < 2


# The end of a reply of vLLM 0.32 to `logprobs: true, top_logprobs: 20`, under the packaged rubric's
# schema with the `guidance` backend: a model of random weights, trained on nothing. Beside each
# token stand all others of probability and the first of those that the grammar rules out.
RULED_OUT = [["<|user|>", -9999.0], ["-", -9999.0], ["%", -9999.0]]
RECORDED = [
    *[(text, 0.0, [[text, 0.0], *RULED_OUT]) for text in ('",', '"', "m", "ag", "n", "it", "ud")],
    *[(text, 0.0, [[text, 0.0], *RULED_OUT]) for text in ("e", '":')],
    (
        "7",
        -2.134140729904175,
        [
            *[["7", -2.134140729904175], ["9", -2.127304792404175], ["8", -2.197861433029175]],
            *[["4", -2.261460065841675], ["0", -2.287216901779175], ["5", -2.323593854904175]],
            *[["2", -2.380234479904175], ["3", -2.411484479904175], ["6", -2.477890729904175]],
            *[["1", -2.505234479904175], ["+", -9999.0], ["*", -9999.0]],
        ],
    ),
    *[(text, 0.0, [[text, 0.0], *RULED_OUT]) for text in ("}", "<|end|>")],
]


def test_a_reply_of_a_real_server():
    wire_tokens = [
        {
            "token": text,
            "logprob": logprob,
            "bytes": list(text.encode()),
            "top_logprobs": [
                {
                    "token": candidate,
                    "logprob": candidate_logprob,
                    "bytes": list(candidate.encode()),
                }
                for candidate, candidate_logprob in top
            ],
        }
        for text, logprob, top in RECORDED
    ]
    value_tokens = tokens_of_values(wire_tokens, '{"rationale":"her","magnitude":7}')
    assert [(value_token.token, len(value_token.top)) for value_token in value_tokens] == [
        ("7", 10)
    ]
    top = dict(RECORDED[9][2])
    shares = {
        int(digit): math.exp(top[digit]) for digit in "023456789"
    }  # a 1 may be the half of a 10
    assert sum(shares.values()) == pytest.approx(1 - math.exp(top["1"]), abs=1e-6)
    by_hand = sum(label * share for label, share in shares.items()) / sum(shares.values())
    assert expected_scores(value_tokens, "magnitude", TEN) == pytest.approx(by_hand, abs=1e-12)
    assert by_hand == pytest.approx(5.0669, abs=1e-4)
