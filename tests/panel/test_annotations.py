"""A reply is an annotation to the letter, or it is refused with a reason."""

import json

import pytest

from sp2dpo.panel.annotation import Annotation, Key, Refusal, parse_annotation
from sp2dpo.panel.rubric import CHOSEN_FIRST, load_rubric, parse_rubric

RUBRIC = load_rubric("semantic-gap")
GOOD = {"rationale": "Because.", "category": "style", "magnitude": 3, "confidence": 9}


def refused(text, rubric=RUBRIC):
    with pytest.raises(Refusal) as error:
        parse_annotation(text, rubric)
    error.value.detail.encode()  # a store has to hold it
    return error.value


def reply(**change):
    return json.dumps(GOOD | change)


def test_a_reply_is_read():
    assert parse_annotation(reply(), RUBRIC) == Annotation(
        rationale="Because.", category="style", magnitude=3, confidence=9
    )


def test_space_around_a_reply_and_the_order_of_its_keys_do_not_matter():
    turned = json.dumps(dict(reversed(GOOD.items())), indent=4)
    assert parse_annotation(f"\n\t {turned} \r\n", RUBRIC) == parse_annotation(reply(), RUBRIC)


@pytest.mark.parametrize("text", ["", " ", "\n\t\r\n", "\u3000"])
def test_an_empty_reply_is_empty(text):
    error = refused(text)
    assert (error.reason, error.detail, str(error)) == ("empty", "", "empty")


@pytest.mark.parametrize(
    "text",
    [
        "The answer is style.",
        reply()[:-1],
        reply() + reply(),
        reply() + ".",
        "\u200b" + reply(),
        reply() + "</s></s>",
        reply()[:-1] + "<|im_end|>",
        reply().replace('"', "'"),
        reply()[:-1] + ",}",
        reply(rationale="x").replace('"x"', '"a\nb"'),
        reply().replace(": 3", ": 03"),
        reply().replace(": 3", ": +3"),
        "\u200b",
        "None",
    ],
)
def test_what_is_not_one_json_text_is_not_json(text):
    error = refused(text)
    assert error.reason == "not-json"
    assert "at character" in error.detail


@pytest.mark.parametrize("text", ["null", "[]", "7", '"style"', f"[{reply()}]", "true", "NaN"])
def test_what_is_no_object_breaks_the_schema(text):
    error = refused(text)
    assert error.reason == "schema"
    assert error.detail.startswith("expected a JSON object, got ")


@pytest.mark.parametrize("key", [*GOOD])
def test_no_key_may_be_missing_and_none_may_be_null(key):
    assert refused(json.dumps({k: GOOD[k] for k in GOOD if k != key})).reason == "schema"
    assert refused(reply(**{key: None})).reason == "schema"


@pytest.mark.parametrize("key", ["score", "", "Category", "\ud800", "rationale "])
def test_no_key_may_be_added(key):
    error = refused(reply(**{key: 1}))
    assert error.reason == "schema"
    assert repr(key) in error.detail


@pytest.mark.parametrize(
    "text",
    [
        reply()[:-1] + ', "magnitude": 3}',
        reply().replace("3", '{"a": 1, "a": 2}'),
        reply()[:-1] + ', "\\u006dagnitude": 4}',
    ],
)
def test_a_key_that_stands_twice_is_no_answer(text):
    error = refused(text)
    assert (error.reason, error.detail) == ("schema", "duplicate key")


@pytest.mark.parametrize("key", ["magnitude", "confidence"])
@pytest.mark.parametrize("value", [0, 10, 7.0, 1e1, -0.0])
def test_json_knows_no_integers_so_seven_point_nought_is_seven(key, value):
    read = getattr(parse_annotation(reply(**{key: value}), RUBRIC), key)
    assert (read, type(read)) == (int(value), int)


@pytest.mark.parametrize("key", ["magnitude", "confidence"])
@pytest.mark.parametrize(
    "value",
    [-1, 11, 10**30, 3.5, 1e300, float("nan"), float("inf"), -float("inf"), "3", True, False, [3]],
)
def test_a_score_off_its_scale_is_refused(key, value):
    error = refused(reply(**{key: value}))
    assert error.reason == "schema"
    assert error.detail.startswith(f"{key} ")


@pytest.mark.parametrize("category", ["Style", "style ", "", "taste", 3, True, ["style"], {"a": 1}])
def test_a_category_is_one_of_the_rubrics_to_the_letter(category):
    error = refused(reply(category=category))
    assert error.reason == "schema"
    assert error.detail.endswith("is not in the rubric")


def test_a_rationale_may_be_as_long_as_the_rubric_allows():
    assert parse_annotation(reply(rationale="é🍌" * 100), RUBRIC).rationale == "é🍌" * 100
    error = refused(reply(rationale="x" * 201))
    assert (error.reason, error.detail) == ("schema", "rationale of 201 characters, 200 allowed")


@pytest.mark.parametrize("rationale", [3, ["x"], "\ud800", "a\udfff"])
def test_a_rationale_is_text_that_can_be_stored(rationale):
    assert refused(reply(rationale=rationale)).reason == "schema"


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"a":' * 100_000,
        '{"magnitude": ' + "9" * 5000 + "}",
        reply(category="x" * 100_000),
    ],
)
def test_replies_made_to_break_a_parser_are_refused_like_any_other(text):
    assert refused(text).reason == "schema"


def test_the_rubric_decides_what_may_be_answered():
    mapping = RUBRIC.as_mapping() | {
        "categories": {"véracité": "faux", "ton": "le ton", "aucune": "rien"},
        "magnitude": {"min": -3, "max": 3, "text": "de -3 à 3"},
        "confidence": {"min": 1, "max": 100, "text": "de 1 à 100"},
        "rationale_length": 5,
    }
    french = parse_rubric(mapping, where="french")
    good = {"rationale": "Juste", "category": "véracité", "magnitude": -3, "confidence": 100}
    assert parse_annotation(json.dumps(good), french).magnitude == -3
    for change in (
        {"category": "style"},
        {"magnitude": 4},
        {"confidence": 0},
        {"rationale": "Faux !"},
    ):
        assert refused(json.dumps(good | change), french).reason == "schema"
        assert parse_annotation(json.dumps(good), french).confidence == 100


def test_a_key_of_a_reply_is_the_labelled_order_and_the_first_attempt_unless_said():
    key = Key(pair_id="p", teacher="t", variant="v")
    assert (key.order, key.attempt) == (CHOSEN_FIRST, 0) == ("chosen-first", 0)
    assert len({key, Key(pair_id="p", teacher="t", variant="v", attempt=1)}) == 2


AROUND = {
    "a mark of the end of a turn": "{}<|im_end|>",
    "Llama's": "{} <|eot_id|>\n",
    "Llama 2's": "{}</s>",
    "a mark after a code block": "```json\n{}\n```<|im_end|>",
    "a mark after thinking": "<think>hm</think>{}<|endoftext|>",
    "a byte order mark": "\ufeff{}",
    "hard blanks": "\u00a0{}\u00a0\n",
    "a code block of another language": "```javascript\n{}\n```",
    "a code block of one more": "```c++\n{}\n```",
    "attributes of a block of thinking": "<think foo=1>hm</think>{}",
    "two blocks of thinking": "<think>hm</think><think>so</think>{}",
    "the header of an answer": "<|start|>assistant<|channel|>final<|message|>{}<|return|>",
}


@pytest.mark.parametrize("form", AROUND.values(), ids=AROUND)
def test_what_servers_and_models_leave_around_an_object_is_no_part_of_it(form):
    assert parse_annotation(form.replace("{}", reply()), RUBRIC).magnitude == 3
