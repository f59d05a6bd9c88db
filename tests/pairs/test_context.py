"""Rows whose pair would lack a part of the prompt, or hold something twice."""

import json

import pytest

from sp2dpo.pairs.sources import SetAside, SourceRow, open_source, read_rows
from support.shapes import assistant, user

PAIR = {"prompt": "How many are in it?", "chosen": "Five of them.", "rejected": "No idea."}


def read(tmp_path, row, columns=None):
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(row))
    (only,) = read_rows(open_source(str(path), columns=columns))
    return only


def reason(tmp_path, row, columns=None):
    only = read(tmp_path, row, columns)
    assert isinstance(only, SetAside), only
    return only.reason


def pair(tmp_path, row, columns=None):
    only = read(tmp_path, row, columns)
    assert isinstance(only, SourceRow), only
    return only


@pytest.mark.parametrize(
    "more",
    [
        {"question": "How many fingers are on a hand?"},
        {"Instruction": "Count the fingers"},
        {"input": "a hand"},
        {"user_query": "fingers?"},
        {"history": [["Hello", "Hi"]]},
        {"history": ["Look at a hand."]},
        {"context": "A hand has five fingers."},
        {"documents": ["A hand has five fingers."]},
        {"messages": [{"role": "system", "content": "Be rude."}, user(PAIR["prompt"])]},
        {"conversations": [{"from": "human", "value": "Look at a hand."}]},
        {"context": [user("Look."), assistant("I do."), user(PAIR["prompt"])]},
        {"initial_reason_steps": "Let me count: one, two,"},
    ],
)
def test_a_prompt_does_not_hide_what_it_is_about(tmp_path, more):
    (name,) = more
    why = reason(tmp_path, PAIR | more)
    assert f"column {name!r} may be a part of the prompt" in why
    assert "--columns prompt=prompt to leave it out" in why
    left_out = pair(tmp_path, PAIR | more, {"prompt": "prompt"})
    assert left_out.columns == more
    if isinstance(more[name], str):
        joined = pair(tmp_path, PAIR | more, {"prompt": f"{name}+prompt"})
        assert joined.pair.prompt[0]["content"] == f"{more[name]}\n\n{PAIR['prompt']}"


@pytest.mark.parametrize("name", ["System", "sys_prompt", "system_instruction", "systemPrompt"])
def test_a_system_message_under_another_name_is_asked_about(tmp_path, name):
    talk = {side: [user("Sky?"), assistant(side)] for side in ("chosen", "rejected")}
    for row in (PAIR, {**PAIR, "prompt": [user("Q")]}, talk):
        full = row | {name: "Be rude."}
        if isinstance(row.get("prompt"), list):
            full |= {"chosen": [assistant("A")], "rejected": [assistant("B")]}
        assert f"in column {name!r}: give --columns system={name}" in reason(tmp_path, full)
        used = pair(tmp_path, full, {"system": name})
        assert used.pair.prompt[0] == {"role": "system", "content": "Be rude."}
        assert pair(tmp_path, full, {"system": ""}).columns == {name: "Be rude."}


@pytest.mark.parametrize(
    "more",
    [
        {"prompt_id": "a b c", "source": "x y", "score_chosen": 4.0},
        {"question": "How many are in it?", "instruction": " How many  are "},
        {"input": "", "history": [], "context": None, "messages": [], "query": "  "},
        {"messages": [user("How many are in it?"), assistant("Five of them.")]},
        {"messages": [user("How many are in it?"), assistant("Another answer.")]},
        {"answer": "5", "solution": "Count them", "category": "maths", "task": "counting"},
        {"question": 7, "input": 3.5},
        {"System": ""},
    ],
)
def test_columns_that_repeat_the_prompt_or_describe_it_stay_with_it(tmp_path, more):
    only = pair(tmp_path, PAIR | more)
    assert only.columns == more
    assert only.pair.prompt == (user(PAIR["prompt"]),)
    assert only.pair.id == pair(tmp_path, PAIR).pair.id


@pytest.mark.parametrize(
    "texts",
    [
        ("How many are in it? Five.", "How many are in it? None."),
        ("\nHow many are in it?\n\nFive.", "How many are in it?\nNone."),
        (
            "\n\nHuman: How many are in it?\n\nAssistant: Five.",
            "\n\nHuman: How many are in it?\n\nAssistant: None.",
        ),
    ],
)
@pytest.mark.parametrize("prompt", ["{}", " {}\n"])
def test_a_prompt_that_both_responses_repeat_is_not_judged_twice(tmp_path, texts, prompt):
    row = {"prompt": prompt.format(PAIR["prompt"]), "chosen": texts[0], "rejected": texts[1]}
    assert "repeat the prompt: give --columns prompt= to" in reason(tmp_path, row)
    shared = pair(tmp_path, row | {"rejected": texts[1].lstrip(), "chosen": texts[0].lstrip()},
                  {"prompt": ""})  # fmt: skip
    assert shared.implicit
    assert pair(tmp_path, row, {"prompt": "prompt"}).pair.chosen == (assistant(texts[0]),)


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ("Hello", ("Hello! How are you?", "Hello there.")),
        ("How many are in it?", ("How many are in it? Five.", "Five.")),
        ("How many are in it?", ("Five.", "How many are in it?")),
    ],
)
def test_responses_may_quote_a_prompt(tmp_path, prompt, texts):
    row = {"prompt": prompt, "chosen": texts[0], "rejected": texts[1]}
    assert pair(tmp_path, row).pair.chosen == (assistant(texts[0]),)


@pytest.mark.parametrize(
    ("labels", "more"),
    [
        (("a", "b"), {"response_a": "Five.", "response_b": "None."}),
        (("response_2", "response_1"), {"response_1": "None.", "response_2": "Five."}),
        (("0", "1"), {"response_0": "Five.", "response_1": "None."}),
        (("0", "1"), {"responses": ["Five.", "None."]}),
        (("B", "A"), {"completions": ["None.", "Five."]}),
        (("gpt", "llama"), {"gpt": "Five.", "llama": "None."}),
    ],
)
def test_the_labels_of_responses_are_no_responses(tmp_path, labels, more):
    row = {"prompt": "How many?", "chosen": labels[0], "rejected": labels[1]} | more
    why = reason(tmp_path, row)
    assert "chosen and rejected are labels of responses" in why
    if "winner=chosen" in why:
        columns = dict(item.split("=") for item in why.rpartition("--columns ")[2].split(","))
        resolved = pair(tmp_path, row, columns).pair
        assert (resolved.chosen, resolved.rejected) == (
            (assistant("Five."),),
            (assistant("None."),),
        )


@pytest.mark.parametrize(
    "more",
    [{}, {"answer": "A", "model": "m"}, {"answers": ["A"]}, {"options": ["x", "y"]}],
)
def test_letters_may_be_responses(tmp_path, more):
    only = pair(tmp_path, {"prompt": "A or B?", "chosen": "A", "rejected": "B"} | more)
    assert only.pair.chosen == (assistant("A"),)


@pytest.mark.parametrize("asked", ["Sea?", "Sky? And sea?"])
def test_a_prompt_beside_two_conversations_is_compared_with_theirs(tmp_path, asked):
    talks = {f"conversation_{n}": [user("Sky?"), assistant(n)] for n in "ab"}
    row = talks | {"winner": "model_a"}
    assert pair(tmp_path, row | {"prompt": "Sky?"}).pair.id == pair(tmp_path, row).pair.id
    assert "prompt column is not in the conversations" in reason(tmp_path, row | {"prompt": asked})


def test_a_system_message_begins_a_prompt_that_two_texts_share(tmp_path):
    row = {
        "system": "Be brief.",
        "chosen": "What is the sea? Wet.",
        "rejected": "What is the sea? Dry.",
    }
    only = pair(tmp_path, row, {"prompt": ""})
    assert only.pair.prompt == (
        {"role": "system", "content": "Be brief."},
        user("What is the sea?"),
    )
    assert only.pair.chosen == (assistant(" Wet."),)
    assert only.implicit
    assert only.columns == {}
    without = pair(tmp_path, row, {"prompt": "", "system": ""})
    assert without.pair.prompt == (user("What is the sea?"),)


TALK = [user("Sky?"), assistant("Blue.")]


@pytest.mark.parametrize(
    "value",
    [
        {"role": "user", "content": "Sky?"},
        {"messages": TALK},
        {"id": 4, "conversations": [{"from": "human", "value": "Sky?"}]},
        [{"id": 1, "role": "user", "content": "Sky?"}],
        [{"from": "human", "value": "Sky?"}],
        ["Sky?"],
        ["Sky?", "And sea?"],
    ],
)
def test_json_text_is_no_prompt_of_messages(tmp_path, value):
    row = PAIR | {"prompt": json.dumps(value)}
    assert reason(tmp_path, row) == "prompt is text that lists messages, not a list of messages"
    question = {"question": row.pop("prompt")}
    assert "prompt is text that lists messages" in reason(tmp_path, question | row)


@pytest.mark.parametrize(
    "values",
    [
        (TALK, [user("Sky?"), assistant("Green.")]),
        ({"messages": TALK}, {"messages": TALK[:1]}),
        (TALK[1], assistant("Green.")),
    ],
)
def test_json_text_is_no_response_of_messages(tmp_path, values):
    chosen, rejected = map(json.dumps, values)
    for more in ({}, {"prompt": "Sky?"}):
        why = reason(tmp_path, {"chosen": chosen, "rejected": rejected} | more)
        assert "chosen and rejected are text that lists messages" in why


@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [
        ('{"a": 1}', '{"a": 2}'),
        ('["red", "blue"]', '["red"]'),
        ('{"value": 3}', '{"content": "x"}'),
        ("[1, 2]", "{}"),
        ('[{"role": "user", "content": "Hi"}]', "I cannot write JSON."),
    ],
)
def test_an_answer_may_be_json(tmp_path, chosen, rejected):
    row = {"prompt": "Give me JSON.", "chosen": chosen, "rejected": rejected}
    assert pair(tmp_path, row).pair.chosen == (assistant(chosen),)
    row["prompt"] = '{"task": "sort", "items": [3, 1]}'
    assert pair(tmp_path, row).pair.prompt == (user(row["prompt"]),)
