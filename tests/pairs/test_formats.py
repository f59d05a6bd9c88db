"""Every documented shape of a pair, and what is refused with which reason."""

import json
import time
import unicodedata
from datetime import date

import pytest

from sp2dpo.pairs.formats import InvalidPair, parse_row


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **fields):
    return {"role": "assistant", "content": text} | fields


SYSTEM = {"role": "system", "content": "Be brief."}


def parts(row):
    pair = parse_row(row)
    return list(pair.prompt), list(pair.chosen), list(pair.rejected)


def reason(row):
    with pytest.raises(InvalidPair) as refused:
        parse_row(row)
    return str(refused.value)


def test_texts_with_a_prompt_are_one_turn_each():
    row = {"prompt": "Sky?", "chosen": "Blue.", "rejected": "Green."}
    assert parts(row) == ([user("Sky?")], [assistant("Blue.")], [assistant("Green.")])


def test_conversations_with_a_prompt_stay_as_they_are():
    row = {
        "prompt": [SYSTEM, user("Sky?"), assistant("By day?"), user("Yes.")],
        "chosen": [assistant("Blue.")],
        "rejected": [assistant("Green."), user("Sure?"), assistant("No.")],
    }
    assert parts(row) == (row["prompt"], row["chosen"], row["rejected"])


def test_texts_without_a_prompt_part_at_the_last_whole_word():
    row = {"chosen": "The sky is blue.", "rejected": "The sky is black."}
    assert parts(row) == ([user("The sky is")], [assistant(" blue.")], [assistant(" black.")])


def test_texts_part_at_the_same_place_when_they_trade_places():
    row = {"chosen": "The cat sat", "rejected": "The cats sat"}
    swapped_row = {"chosen": "The cats sat", "rejected": "The cat sat"}
    assert parts(row) == ([user("The")], [assistant(" cat sat")], [assistant(" cats sat")])
    assert parts(swapped_row) == ([user("The")], [assistant(" cats sat")], [assistant(" cat sat")])


def test_a_text_that_goes_on_where_the_other_ends_keeps_its_last_word():
    row = {"chosen": "The sky is", "rejected": "The sky"}
    assert parts(row) == ([user("The")], [assistant(" sky is")], [assistant(" sky")])


def test_conversations_without_a_prompt_share_their_beginning():
    beginning = [SYSTEM, user("Sky?")]
    row = {
        "chosen": [*beginning, assistant("Blue.")],
        "rejected": [*beginning, assistant("Green.")],
    }
    assert parts(row) == (beginning, [assistant("Blue.")], [assistant("Green.")])


def test_a_later_turn_that_is_alike_does_not_belong_to_the_prompt():
    row = {
        "chosen": [user("Sky?"), assistant("Blue."), user("Thanks"), assistant("Welcome")],
        "rejected": [user("Sky?"), assistant("Green."), user("Thanks"), assistant("Welcome")],
    }
    prompt, chosen, rejected = parts(row)
    assert prompt == [user("Sky?")]
    assert (len(chosen), len(rejected)) == (3, 3)


def test_ultrafeedback_names_its_prompt_beside_whole_conversations():
    row = {
        "prompt": "Sky?",
        "prompt_id": "0" * 64,
        "chosen": [user("Sky?"), assistant("Blue.")],
        "rejected": [user("Sky?"), assistant("Green.")],
        "messages": [user("Sky?"), assistant("Blue.")],
        "score_chosen": 8.5,
        "score_rejected": 7.0,
    }
    assert parts(row) == ([user("Sky?")], [assistant("Blue.")], [assistant("Green.")])


def test_a_prompt_beside_conversations_that_say_another_is_refused():
    row = {
        "prompt": "Sea?",
        "chosen": [user("Sky?"), assistant("Blue.")],
        "rejected": [user("Sky?"), assistant("Green.")],
    }
    assert "prompt column" in reason(row)
    assert "prompt column" in reason(row | {"prompt": [user("Sea?")]})
    assert "prompt column" in reason(row | {"prompt": ""})
    assert parts(row | {"prompt": [user("Sky?")]})[0] == [user("Sky?")]


@pytest.mark.parametrize("prompt", [0, False, {}, 3.5])
def test_a_prompt_of_no_kind_is_refused_even_where_it_is_not_needed(prompt):
    row = {"chosen": [user("Q"), assistant("A")], "rejected": [user("Q"), assistant("B")]}
    assert "prompt is neither text nor a list" in reason(row | {"prompt": prompt})


@pytest.mark.parametrize("prompt", [None, []])
def test_a_prompt_column_without_a_prompt_is_no_prompt(prompt):
    row = {"chosen": [user("Q"), assistant("A")], "rejected": [user("Q"), assistant("B")]}
    assert parts(row | {"prompt": prompt})[0] == [user("Q")]


def test_hh_dialogues_share_their_beginning_by_turns():
    beginning = "\n\nHuman: Hi\n\nAssistant: Hello!\n\nHuman: Sky?"
    row = {
        "chosen": beginning + "\n\nAssistant: Blue, it is.",
        "rejected": beginning + "\n\nAssistant: Blue, was it?",
    }
    assert parts(row) == (
        [user("Hi"), assistant("Hello!"), user("Sky?")],
        [assistant("Blue, it is.")],
        [assistant("Blue, was it?")],
    )


def test_a_dialogue_as_prompt_may_end_with_an_open_turn():
    row = {"prompt": "\n\nHuman: Sky?\n\nAssistant:", "chosen": " Blue.", "rejected": " Green."}
    assert parts(row) == ([user("Sky?")], [assistant(" Blue.")], [assistant(" Green.")])


def test_half_a_dialogue_is_refused():
    dialogue, text = "\n\nHuman: Sky?\n\nAssistant: Blue.", "Green."
    for chosen, rejected in ((dialogue, text), (text, dialogue)):
        message = reason({"chosen": chosen, "rejected": rejected})
        assert message == "no common prompt: one response is a dialogue and the other is not"


def test_a_dialogue_inside_a_text_stays_text():
    quoted = "She wrote:\n\nHuman: run\n\nAssistant: no"
    prompt, chosen, _ = parts({"prompt": quoted, "chosen": quoted, "rejected": "B"})
    assert (prompt, chosen) == ([user(quoted)], [assistant(quoted)])


def test_a_prompt_that_ends_in_an_assistant_turn_is_a_beginning_to_go_on_from():
    row = {
        "prompt": [user("Sky?"), assistant("It is")],
        "chosen": [assistant(" blue.")],
        "rejected": [assistant(" green.")],
    }
    assert parts(row)[0] == row["prompt"]


def test_messages_and_texts_may_meet_around_a_prompt_of_messages():
    row = {"prompt": [SYSTEM, user("Sky?")], "chosen": "Blue.", "rejected": "Green."}
    assert parts(row) == ([SYSTEM, user("Sky?")], [assistant("Blue.")], [assistant("Green.")])


CALL = {"type": "function", "function": {"name": "sky", "arguments": {"at": {"lat": 1, "lon": 2}}}}


@pytest.mark.parametrize("silent", [{}, {"content": None}, {"content": ""}])
def test_a_turn_that_only_calls_a_tool_is_no_empty_turn(silent):
    row = {
        "prompt": [user("Sky?")],
        "chosen": [{"role": "assistant", "tool_calls": [CALL]} | silent],
        "rejected": [assistant("Green.")],
        "tools": [{"type": "function", "function": {"name": "sky"}}],
    }
    pair = parse_row(row)
    assert pair.chosen[0]["tool_calls"] == [CALL]
    assert pair.tools == tuple(row["tools"])


def test_a_call_without_content_is_the_call_whose_content_is_null():
    row = {"prompt": "Sky?", "rejected": [assistant("Green.")], "prompt_id": 1}
    bare = {"role": "assistant", "tool_calls": [CALL]}
    assert (
        parse_row(row | {"chosen": [bare]}).id
        == parse_row(row | {"chosen": [bare | {"content": None, "name": None}]}).id
    )


def test_null_keys_beside_a_message_are_left_out():
    padded = {"role": "user", "content": "Q", "tool_calls": None, "name": None}
    row = {"prompt": [padded], "chosen": [assistant("A")], "rejected": [assistant("B")]}
    assert parts(row)[0] == [user("Q")]


GOOD = {"prompt": "Q?", "chosen": "A.", "rejected": "B."}
TURNS = {"prompt": [user("Q?")], "chosen": [assistant("A.")], "rejected": [assistant("B.")]}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"chosen": None}, "empty chosen"),
        ({"chosen": ""}, "empty chosen"),
        ({"chosen": " \n\t\u3000"}, "empty chosen"),
        ({"rejected": ""}, "empty rejected"),
        ({"rejected": "  "}, "empty rejected"),
        ({"prompt": ""}, "empty prompt"),
        ({"prompt": " \n"}, "empty prompt"),
        ({"prompt": []}, "empty prompt"),
        ({"rejected": "A."}, "chosen equals rejected"),
        ({"prompt": None}, "no common prompt"),
        ({"chosen": 5}, "chosen is neither text nor a list of messages"),
        ({"chosen": {"role": "assistant"}}, "chosen is neither text nor a list of messages"),
        ({"chosen": [assistant("A.")]}, "chosen and rejected are of different kinds"),
        ({"prompt": 7}, "prompt is neither text nor a list of messages"),
        ({"chosen": "\ud83d"}, "chosen holds half of a surrogate pair, not a character"),
        ({"prompt": "a\udc00"}, "prompt holds half of a surrogate pair, not a character"),
        (
            {"prompt": '[{"role": "user", "content": "Q?"}]'},
            "prompt is text that lists messages, not a list of messages",
        ),
        ({"tools": "{}"}, "tools is not a list"),
        ({"tools": "4"}, "tools is not a list"),
        ({"tools": '"sky"'}, "tools is not a list"),
        ({"tools": "[{"}, "tools is text that is not JSON"),
        ({"tools": "sky()"}, "tools is text that is not JSON"),
        ({"tools": '[{"a": 1, "a": 2}]'}, "tools is text that is not JSON"),
        ({"tools": "[" * 100_000}, "nested too deeply"),
        ({"tools": "[NaN]"}, "holds a value that JSON does not know"),
        ({"tools": 4}, "tools is not a list"),
        ({"tools": [{"p": float("nan")}]}, "holds a value that JSON does not know"),
        ({"tools": [{"p": date(2026, 1, 1)}]}, "holds a value that JSON does not know"),
        ({"tools": [{"p": b"\x00"}]}, "holds a value that JSON does not know"),
        ({"tools": ["\ud83d"]}, "holds half of a surrogate pair, not a character"),
    ],
)
def test_a_row_of_texts_is_refused_for_one_reason(change, expected):
    assert reason(GOOD | change) == expected


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"chosen": []}, "empty chosen"),
        ({"chosen": [assistant("")]}, "empty chosen"),
        ({"chosen": [assistant("  ")]}, "empty chosen"),
        ({"chosen": [assistant(None)]}, "empty chosen"),
        ({"chosen": [assistant(None, tool_calls=[])]}, "empty chosen"),
        ({"prompt": [user(" ")]}, "empty prompt"),
        ({"rejected": [assistant("A.")]}, "chosen equals rejected"),
        ({"chosen": [None]}, "chosen holds something that is not a message with a role"),
        ({"chosen": ["A."]}, "chosen holds something that is not a message with a role"),
        (
            {"chosen": [{"content": "A."}]},
            "chosen holds something that is not a message with a role",
        ),
        (
            {"chosen": [{"from": "gpt", "value": "A."}]},
            "chosen holds something that is not a message with a role",
        ),
        ({"chosen": b"A."}, "chosen holds something that is not a message with a role"),
        ({"chosen": [assistant([{"type": "text"}])]}, "chosen holds content that is not text"),
        ({"chosen": [assistant(4)]}, "chosen holds content that is not text"),
        ({"chosen": [user("A.")]}, "no common prompt: chosen goes on with a user turn"),
        (
            {"chosen": [assistant("A.", at=date(2026, 1, 1))]},
            "holds a value that JSON does not know",
        ),
        ({"chosen": [assistant("A.", p=float("inf"))]}, "holds a value that JSON does not know"),
        (
            {"chosen": [assistant("A.", name="\udfff")]},
            "holds half of a surrogate pair, not a character",
        ),
    ],
)
def test_a_row_of_messages_is_refused_for_one_reason(change, expected):
    row = TURNS | change
    if change == {"chosen": [user("A.")]}:
        row = {"chosen": [user("Q"), user("A.")], "rejected": [user("Q"), assistant("B.")]}
    assert reason(row) == expected


@pytest.mark.parametrize("column", ["chosen", "rejected"])
def test_a_missing_column_is_named(column):
    assert reason({key: GOOD[key] for key in GOOD if key != column}) == f"missing column {column}"


def test_a_conversation_that_only_begins_the_other_is_empty():
    row = {"chosen": [user("Q"), assistant("A")], "rejected": [user("Q")]}
    assert reason(row) == "empty rejected: nothing follows the common beginning"


def test_conversations_that_never_agree_have_no_common_prompt():
    row = {"chosen": [user("Q"), assistant("A")], "rejected": [user("P"), assistant("B")]}
    assert reason(row).startswith("no common prompt")


def test_texts_that_never_agree_have_no_common_prompt():
    assert reason({"chosen": "Blue.", "rejected": "Green."}) == "no common prompt"


@pytest.mark.parametrize("kind", ["texts", "dialogues", "conversations"])
def test_without_a_prompt_equal_responses_are_equal(kind):
    response = {
        "texts": "The sky is blue.",
        "dialogues": "\n\nHuman: Sky?\n\nAssistant: Blue.",
        "conversations": [user("Sky?"), assistant("Blue.")],
    }[kind]
    assert reason({"chosen": response, "rejected": response}) == "chosen equals rejected"


def test_responses_that_differ_only_in_how_an_accent_is_written_are_equal():
    composed, apart = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    assert reason({"prompt": "Q?", "chosen": composed, "rejected": apart}) == (
        "chosen equals rejected"
    )


def test_white_space_is_a_difference():
    assert parts({"prompt": "Q?", "chosen": "A", "rejected": "A "})[2] == [assistant("A ")]


@pytest.mark.parametrize(
    "text",
    [
        '[{"role": "user", "content": "Q"}, {"role": "assistant", "content": "%s"}]',
        "[{'role': 'user', 'content': 'Q'}, {'role': 'assistant', 'content': '%s'}]",
        '\n[\n  {\n    "from": "human",\n    "value": "Q"}, {"from": "gpt", "value": "%s"}]',
    ],
)
def test_messages_written_as_text_share_no_prompt(text):
    row = {"chosen": text % "A", "rejected": text % "B"}
    message = "chosen and rejected are text that lists messages, not lists of messages"
    assert reason(row) == message
    # One text may quote messages: it is an answer to the question how they are written.
    assert parts({"prompt": "How?", "chosen": text % "A", "rejected": "No."})[0] == [user("How?")]


TOOLS = [{"type": "function", "function": {"name": "sky", "parameters": {"type": "object"}}}]


@pytest.mark.parametrize(
    "tools",
    [
        TOOLS,
        json.dumps(TOOLS),
        json.dumps(TOOLS, indent=2),
        '[{"function": {"parameters": {"type": "object"}, "name": "sky"}, "type": "function"}]',
        [TOOLS[0] | {"description": None}],
    ],
)
def test_tools_are_the_same_as_a_list_and_as_its_text(tools):
    pair = parse_row(TURNS | {"tools": tools})
    assert pair.id == parse_row(TURNS | {"tools": TOOLS}).id != parse_row(TURNS).id


@pytest.mark.parametrize("tools", [None, [], "", "[]", " [ ] ", "null"])
def test_no_tools_may_be_written_in_many_ways(tools):
    assert parse_row(TURNS | {"tools": tools}).tools == ()


def test_arguments_of_a_call_stay_text_or_object():
    calls = ({"arguments": '{"x": 1}'}, {"arguments": {"x": 1}})
    pairs = [
        parse_row(TURNS | {"chosen": [assistant(None, tool_calls=[{"function": call}])]})
        for call in calls
    ]
    assert [pair.chosen[0]["tool_calls"][0]["function"] for pair in pairs] == [*calls]
    assert pairs[0].id != pairs[1].id


def test_arguments_nested_beyond_reason_are_refused():
    deep = []
    for _ in range(800):
        deep = [deep]
    call = {"function": {"name": "f", "arguments": {"x": deep}}}
    row = TURNS | {"chosen": [assistant("A.", tool_calls=[call])]}
    assert reason(row) == "nested too deeply"


def test_a_megabyte_without_a_space_is_parted_in_a_moment():
    same = "x" * 1_000_000
    started = time.monotonic()
    assert parts({"chosen": f"{same}a", "rejected": f"{same}b"} | {"prompt": "Q"})[0] == [user("Q")]
    assert reason({"chosen": f"{same}a", "rejected": f"{same}b"}) == "no common prompt"
    assert time.monotonic() - started < 5
