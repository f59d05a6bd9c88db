"""The columns of well-known data sets: what is recognised, and what must be named."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sp2dpo.pairs.sources import SetAside, SourceRow, open_source, read_rows
from support.shapes import PAIRS_PER_ROW, SHAPES, answers, assistant, prompt_text, user, write_shape


def read(tmp_path, *rows, **options):
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return list(read_rows(open_source(str(path), **options)))


def pair(tmp_path, row, **options):
    (only,) = read(tmp_path, row, **options)
    assert isinstance(only, SourceRow), only
    return only


def texts(row):
    """Prompt, chosen and rejected, each as the contents of its turns."""
    parts = (row.pair.prompt, row.pair.chosen, row.pair.rejected)
    return tuple([turn["content"] for turn in part] for part in parts)


def reason(tmp_path, row, **options):
    (only,) = read(tmp_path, row, **options)
    assert isinstance(only, SetAside), only
    return only.reason


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_the_preferred_answer_of_each_shape_is_chosen(tmp_path, name, ending):
    path = write_shape(tmp_path / "pairs.jsonl", name, 4)
    if ending == "parquet":
        lines = path.read_text().splitlines()
        path = tmp_path / "pairs.parquet"
        pq.write_table(pa.Table.from_pylist([json.loads(line) for line in lines]), path)
    rows = list(read_rows(open_source(str(path))))
    per_row = PAIRS_PER_ROW.get(name, 1)
    assert [row.row for row in rows] == list(range(1, 4 * per_row + 1))
    for number, row in enumerate(rows):
        n = number // per_row
        assert isinstance(row, SourceRow)
        prompt, chosen, rejected = texts(row)
        assert prompt[-1] == prompt_text(n)
        assert chosen == [answers(n)[0]]
        assert rejected[0].startswith(answers(n)[1])
        assert len(rejected) == 1


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("orca", "orca: system, question, chosen, rejected"),
        ("ultrafeedback_binarized", ""),
        ("distilabel", "distilabel: instruction, chosen, rejected"),
        (
            "ultrafeedback",
            "UltraFeedback: instruction, completions; the best response against each worse one",
        ),
        (
            "helpsteer3",
            "HelpSteer3: context, response1, response2, by overall_preference",
        ),
        ("sharegpt", "ShareGPT: conversations, chosen, rejected"),
        (
            "pku_saferlhf",
            "PKU-SafeRLHF: prompt, response_0, response_1, by better_response_id",
        ),
        ("hh_rlhf", ""),
        ("messages", "messages, chosen, rejected"),
    ],
)
def test_a_shape_is_named_with_the_columns_that_were_read(tmp_path, name, shape):
    assert pair_shapes(tmp_path, name) == {shape}


def pair_shapes(tmp_path, name):
    path = write_shape(tmp_path / "pairs.jsonl", name, 2)
    return {row.shape for row in read_rows(open_source(str(path)))}


SURE = {"chosen": "Sure! It is five.", "rejected": "Sure! I do not know."}


@pytest.mark.parametrize(
    ("columns", "name"),
    [
        ({"Prompt": "Q?"}, "Prompt"),
        ({"Question": "Name a colour."}, "Question"),
        ({"query": "five"}, "query"),
        ({"user_prompt": "hi"}, "user_prompt"),
        ({"task": "Write a poem"}, "task"),
        ({"user": "What is it"}, "user"),
        ({"problem": "2 + 3"}, "problem"),
        ({"text": "Tell me about the sea"}, "text"),
        ({"the_question": "how many"}, "the_question"),
        ({"x": "Which number comes after four?"}, "x"),
        ({"x": "これは何ですか教えて"}, "x"),
        ({"turns": [{"role": "user", "content": "Q"}]}, "turns"),
        ({"question": "How many?", "context": "A hand."}, "question"),
        ({"instruction": "Count.", "input": "A hand."}, "instruction"),
        ({"instruction": "Count.", "history": [["a", "b"]]}, "instruction"),
        ({"question": "Which?", "choices": ["five", "six"]}, "question"),
        ({"question": "Which?", "documents": ["A hand has five fingers.", "Or four."]}, "question"),
        ({"task_description": "Count the fingers of a hand."}, "task_description"),
        ({"model_input": "Count."}, "model_input"),
        ({"user_prompt_id": "Count the fingers"}, "user_prompt_id"),
        ({"image_question": "How many?", "id": 3}, "image_question"),
        ({"comment": "Count"}, "comment"),
        ({"Notes": "Count the fingers."}, "Notes"),
        ({"q": "Count"}, "q"),
        ({"title": "Fingers", "source": "quiz"}, "title"),
        ({"prompt_zh": "写诗"}, "prompt_zh"),
        ({"问题": "数到五"}, "问题"),
        ({"source": "Count the fingers of a hand."}, "source"),
        ({"q": ["Count"]}, "q"),
        ({"info": {"text": "Count"}}, "info"),
        ({"post": {"text": "Count"}}, "post"),
        ({"metadata": {"question": "How many?"}}, "metadata"),
        ({"task": "qa", "user": "anna"}, "task"),
        ({"topics": ["a", "b"]}, "topics"),
    ],
)
def test_no_prompt_is_invented_beside_a_column_that_may_hold_it(tmp_path, columns, name):
    why = reason(tmp_path, SURE | columns)
    assert f"the prompt may be in column {name!r}" in why
    assert f"--columns prompt={name}" in why


@pytest.mark.parametrize(
    "columns",
    [
        {},
        {"source": "evol_instruct", "category": "maths"},
        {"system": "", "tags": ["a", "b", "c", "d"], "metadata": {"lang": "en", "turn": 3}},
        {"prompt_id": "f00", "question_id": 7, "turns": 1, "task_type": "qa", "note": None},
        {"chosen_model": "gpt-4", "rejected-model": "o1", "modelName": "x y", "Timestamp": "1 May"},
        {"url": "https://a.b/c?", "license": "Creative Commons, by attribution", "is_safe": True},
        {"answer": "It is five, is it not?", "reference_answers": 5, "full_response": "Five."},
        {"rationale": "The first one is a complete answer.", "model_name": "a b c d e"},
        {"score_chosen": 4.5, "input_tokens": 12, "question_number": 4},
    ],
)
def test_columns_that_hold_no_prompt_leave_it_implicit(tmp_path, columns):
    row = pair(tmp_path, SURE | columns)
    assert texts(row)[0] == ["Sure!"]
    assert row.implicit
    assert row.columns == columns


@pytest.mark.parametrize("empty", ["", "  ", None])
@pytest.mark.parametrize(
    "name",
    [
        "question", "instruction", "conversations", "prompt", "query", "Question", "inputs",
        "user_input", "context", "history",
    ],
)  # fmt: skip
def test_a_known_column_that_is_empty_is_an_empty_prompt(tmp_path, name, empty):
    assert reason(tmp_path, SURE | {name: empty}) == f"empty {name}"


def test_a_system_message_alone_is_no_prompt(tmp_path):
    for name in ("system", "system_prompt", "system_message", "System", "sys", "systemInstruction"):
        why = reason(tmp_path, SURE | {name: "You are brief."})
        assert reason(tmp_path, SURE | {name: "Brief"}) == why
        assert f"a column {name}, but none with the prompt" in why


def conversation(text):
    return [user("Sky?"), assistant(text)]


@pytest.mark.parametrize(
    ("columns", "fits"),
    [
        ({"question": "Sky?"}, True),
        ({"question": " Sky? "}, True),
        ({"messages": [user("Sky?"), assistant("Blue.")]}, True),
        ({"messages": [{"role": "system", "content": "S"}, user("Sky?")]}, True),
        ({"conversations": [{"from": "human", "value": "Sky?"}]}, True),
        ({"context": "About the weather of today", "task": "answer it"}, True),
        ({"question": "Sea?"}, False),
        ({"instruction": "Say what the sea is."}, False),
        ({"messages": [user("Sea?")]}, False),
        ({"history": [user("Hi"), assistant("Hello"), user("Sky?")]}, False),
    ],
)
def test_conversations_agree_with_the_column_of_another_prompt(tmp_path, columns, fits):
    row = {"chosen": conversation("Blue."), "rejected": conversation("Green.")} | columns
    if fits:
        only = pair(tmp_path, row)
        assert texts(only) == (["Sky?"], ["Blue."], ["Green."])
        # The same columns as ever: a store that was made from this file accepts it.
        assert only.columns == columns
    else:
        assert next(iter(columns)) in reason(tmp_path, row)


def test_a_dialogue_agrees_with_the_column_of_its_question(tmp_path):
    start = "\n\nHuman: Sky?\n\nAssistant: "
    row = {"chosen": f"{start}Blue.", "rejected": f"{start}Green."}
    assert texts(pair(tmp_path, row | {"question": "Sky?"}))[0] == ["Sky?"]
    assert "'question'" in reason(tmp_path, row | {"question": "Sea?"})


def test_a_system_column_begins_the_prompt_of_every_form(tmp_path):
    system = {"system": "Be brief."}
    forms = [
        {"prompt": "Sky?", "chosen": "Blue.", "rejected": "Green."},
        {
            "prompt": [user("Sky?")],
            "chosen": [assistant("Blue.")],
            "rejected": [assistant("Green.")],
        },
        {"chosen": conversation("Blue."), "rejected": conversation("Green.")},
        {"prompt": "Sky?", "chosen": conversation("Blue."), "rejected": conversation("Green.")},
        {"question": "Sky?", "chosen": "Blue.", "rejected": "Green."},
        {
            "chosen": "\n\nHuman: Sky?\n\nAssistant: Blue.",
            "rejected": "\n\nHuman: Sky?\n\nAssistant: Green.",
        },
    ]
    ids = {pair(tmp_path, form | system).pair.id for form in forms}
    assert len(ids) == 1
    told = [{"role": "system", "content": "Be brief."}, *conversation("Blue.")]
    other = [{"role": "system", "content": "Be brief."}, *conversation("Green.")]
    only = pair(tmp_path, {"chosen": told, "rejected": other} | system)
    assert only.pair.id in ids
    assert only.columns == system
    row = {"chosen": told, "rejected": other, "system": "Be long."}
    assert "system column" in reason(tmp_path, row)
    row = SURE | {"prompt": "Q"}
    assert reason(tmp_path, row | {"system": ["a"]}) == "system is not text"
    assert texts(pair(tmp_path, row | {"system_prompt": "S", "system": ""}))[0] == ["S", "Q"]
    why = reason(tmp_path, row | {"system_prompt": "S", "system": "T"})
    assert why.endswith("give --columns system=system")
    only = pair(tmp_path, row | {"system_prompt": "S", "system": "T"}, columns={"system": ""})
    assert texts(only)[0] == ["Q"]


@pytest.mark.parametrize("row", [
    {"prompt": "Q", "response_a": "A", "response_b": "B", "winner": "model_a"},
    {"prompt": "Q", "response_a": "A", "response_b": "B", "preference": "A"},
    {"question": "Q", "response_a": "B", "response_b": "A", "label": "response_b"},
    {"prompt": "Q", "response_0": "B", "response_1": "A", "label": 1},
    {"prompt": "Q", "response_1": "A", "response_2": "B", "winner": 1},
    {"prompt": "Q", "response_1": "B", "response_2": "A", "label": 2.0},
    {"prompt": "Q", "response_1": "B", "response_2": "A", "preference_strength": 1},
    {"history": "Q", "human_ref_A": "A", "human_ref_B": "B", "labels": 1},
    {"instruction": "Q", "chosen_response": "A", "rejected_response": "B"},
    {"question": "Q", "response_j": "A", "response_k": "B"},
    {"prompt": "Q", "generations": ["B", "A"], "ratings": ["1", "4"]},
    {"prompt": "Q", "completions": [{"text": "A", "score": 2}, {"text": "B", "score": 1}]},
    {"prompt": "Q", "responses": ["B", "A"], "ranks": [2, 1]},
    {"instruction": "Q", "generations": ["A", "B"], "ratings": [5.0, 4.0], "models": ["m", "n"]},
    {"prompt": "Q", "responses": [{"text": "B"}, {"text": "A", "model": "m"}], "scores": [1, 2]},
    {"prompt": "Q", "responses": [[assistant("B")], [assistant("A")]], "scores": [1, 2]},
    {"prompt": "Q", "completion_a": "A", "completion_b": "B", "winner": "completion_a"},
    {"prompt": "Q", "response_A": "B", "response_B": "A", "preference": "b"},
    {"prompt": "Q", "answer_0": "A", "answer_1": "B", "label": "answer 0"},
    {"instruction": "Q", "output_1": "B", "output_2": "A", "preference": 2},
    {"prompt": "Q", "response1": "B", "response2": "A", "preference": "model_2"},
    {"prompt": "Q", "response_1": "B", "response_2": "A", "preference_strength": "3"},
    {"prompt": "Q", "response_1": "A", "response_2": "B", "preference_strength": "-1.0"},
    {"history": "Q", "human_ref_A": "B", "human_ref_B": "A", "labels": "0"},
    {"history": "Q", "human_ref_A": "A", "human_ref_B": "B", "labels": True},
    {"prompt": "Q", "response_a": "A", "response_b": "B", "winner_model_a": 1,
     "winner_model_b": 0, "winner_tie": 0},
    {"prompt": "Q", "response_a": "B", "response_b": "A", "model_a": "x", "model_b": "y",
     "winner": "y"},
    {"question": "Q", "answers": [{"text": "A", "pm_score": 4}, {"text": "B", "pm_score": 0}]},
    {"question": "Q", "completions": [{"response": "A", "fine-grained_score": 2.5},
                                      {"response": "B", "fine-grained_score": 2}]},
])  # fmt: skip
def test_two_responses_and_a_preference_are_a_pair(tmp_path, row):
    assert texts(pair(tmp_path, row)) == (["Q"], ["A"], ["B"])


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"response_a": "A", "response_b": "B", "winner": "tie (bothbad)"}, "a tie"),
        ({"response_a": "A", "response_b": "B", "winner": "both_bad"}, "a tie"),
        ({"response_a": "A", "response_b": "B", "winner": "1"}, "winner is a number, not a, b"),
        ({"response_a": "A", "response_b": "B", "winner_model_a": 0, "winner_model_b": 0}, "a tie"),
        ({"response_1": "A", "response_2": "B", "preference_strength": "4"}, "not a number from"),
        ({"response_0": "A", "response_1": "B", "label": True}, "label is neither 0 nor 1"),
        ({"response1": "A", "response2": "B", "overall_preference": 0}, "a tie"),
        ({"responses": ["A", "B", "C"], "scores": [1, 1, 1.0]}, "a tie"),
        ({"responses": ["A", "B"], "scores": [1, None]}, "fewer than two responses"),
        ({"responses": ["A", "B"], "scores": [1, float("nan")]}, "fewer than two responses"),
        ({"responses": ["A", "B"], "scores": [True, False]}, "fewer than two responses"),
        ({"responses": ["A", "B"], "scores": [1]}, "not as many scores"),
        ({"response_a": "A", "response_b": "B", "winner": 1}, "winner is a number, not a, b"),
        ({"response_a": "A", "response_b": "B", "winner": "c"}, "winner is not a, b or a tie"),
        ({"response_a": "A", "response_b": "B", "winner": None}, "empty winner"),
        ({"response_0": "A", "response_1": "B", "better_response_id": 2}, "neither 0 nor 1"),
        ({"response_0": "A", "response_1": "B", "better_response_id": True}, "neither 0 nor 1"),
        ({"response1": "A", "response2": "B", "overall_preference": -100}, "from -3 to 3"),
        (
            {"response_a": "A", "response_b": "B", "winner": "a", "preference": "b"},
            "--columns winner=winner",
        ),
        (
            {"responses": ["A", "B"], "generations": ["C", "D"], "scores": [1, 2]},
            "--columns responses=responses,scores=scores",
        ),
        (
            {"answers": [{"answer": "A", "rank": 1, "score": 2}, {"answer": "B", "rank": 2}]},
            "more than one of score, rank",
        ),
        ({"responses": ["A", "B"]}, "missing column chosen"),
        ({"response_a": "A", "response_b": "B"}, "missing column chosen"),
    ],
)
def test_without_a_clear_preference_a_row_is_set_aside(tmp_path, row, expected):
    assert expected in reason(tmp_path, {"prompt": "Q"} | row)


@pytest.mark.parametrize(
    "row",
    [
        {"response_a": "A", "response_b": "B", "winner": "a"},
        {"responses": ["A", "B"], "scores": [1, 2]},
        {"response_0": "A", "response_1": "B", "better_response_id": 0},
    ],
)
def test_two_responses_without_a_prompt_share_none(tmp_path, row):
    assert "no column holds the prompt" in reason(tmp_path, row)
    assert reason(tmp_path, row | {"prompt": " "}) == "empty prompt"
    assert "prompt=Question" in reason(tmp_path, row | {"Question": "Q"})


SCORED = {
    "id": "r1",
    "prompt": "Q",
    "completions": [
        {"response": "A", "score": 3, "model": "m"},
        {"response": "B", "score": 1, "model": "n"},
        {"response": "C", "score": 3, "model": "o"},
        {"response": "D", "score": None, "model": "p"},
        {"response": "E", "score": 2, "model": "q"},
    ],
    "note": "kept",
}


def test_the_best_of_several_responses_meets_each_worse_one(tmp_path):
    rows = read(tmp_path, SCORED, SCORED | {"id": None})
    assert [row.row for row in rows] == list(range(1, 9))
    made = [row for row in rows[:4] if isinstance(row, SourceRow)]
    assert [texts(row)[1:] for row in made] == [(["A"], ["B"]), (["A"], ["E"])]
    assert [row.source_id for row in made] == ["r1:0-1", "r1:0-4"]
    aside = [row.reason for row in rows[:4] if isinstance(row, SetAside)]
    assert aside == ["a tie: no response is preferred", "a response without a score"]
    assert made[0].columns == {
        "note": "kept",
        "comparison": {
            "row": 1,
            "chosen": 0,
            "rejected": 1,
            "chosen_score": 3.0,
            "rejected_score": 1.0,
            "chosen_details": {"model": "m"},
            "rejected_details": {"model": "n"},
        },
    }
    second = rows[4]
    assert isinstance(second, SourceRow)
    assert second.columns["comparison"]["row"] == 2
    assert second.source_id is None


def test_all_pairs_of_responses_with_different_scores(tmp_path):
    rows = read(tmp_path, SCORED, pairs_from="all")
    made = [row for row in rows if isinstance(row, SourceRow)]
    assert [row.source_id for row in made] == ["r1:0-1", "r1:0-4", "r1:2-1", "r1:4-1", "r1:2-4"]
    # Six pairs of four scored responses, one of them a tie, and one response without a score.
    assert len(rows) == 7
    with pytest.raises(ValueError, match="pairs_from is 'some': use 'best-rest' or 'all'"):
        read(tmp_path, SCORED, pairs_from="some")


def test_the_better_rank_is_the_lower_one(tmp_path):
    first, second = read(tmp_path, {
        "prompt": "Q",
        "answers": [{"answer": text, "rank": at} for text, at in (("B", 2), ("A", 1), ("C", 9))],
        "comparison": "mine",
    })  # fmt: skip
    assert (texts(first)[1:], texts(second)[1:]) == ((["A"], ["B"]), (["A"], ["C"]))
    assert first.columns["comparison"] == "mine"
    assert first.columns["comparison_"]["chosen_rank"] == 1.0


def test_named_columns_are_read_whatever_they_are_called(tmp_path):
    row = {"q": "Q", "ctx": "C", "good": "A", "bad": "B", "sys": "S", "key": 7, "prompt": "mine"}
    columns = {"prompt": "ctx+q", "chosen": "good", "rejected": "bad", "system": "sys"}
    only = pair(tmp_path, row, columns=columns | {"source_id": "key"})
    assert texts(only) == (["S", "C\n\nQ"], ["A"], ["B"])
    assert (only.source_id, only.columns) == ("7", {"prompt": "mine"})


@pytest.mark.parametrize(
    ("row", "columns", "prompt"),
    [
        (SURE | {"question": "Q", "context": "C"}, {"prompt": "question"}, ["Q"]),
        (SURE | {"question": "Q", "context": "C"}, {"prompt": ""}, ["Sure!"]),
        (SURE | {"past": [["a", "b"]], "now": "Q"}, {"messages": "past", "prompt": "now"},
         ["a", "b", "Q"]),
        (SURE | {"past": [user("Q")]}, {"messages": "past"}, ["Q"]),
        (SURE | {"q": "Which?", "choices": ["five", "six"], "note": None},
         {"prompt": "q+choices+note"}, ["Which?\n\nfive\nsix"]),
        (SURE | {"a+b": "Q", "a": "x", "b": "y"}, {"prompt": "a+b"}, ["Q"]),
        (SURE | {"a,b": "Q"}, {"prompt": "a,b"}, ["Q"]),
        (SURE | {"prompt": "Q", "a": "S", "b": " ", "c": "T"}, {"system": "a+b+c"},
         ["S\n\nT", "Q"]),
        ({"prompt": "Q", "response_a": "A", "response_b": "B", "label": 2},
         {"response_1": "response_a", "response_2": "response_b"}, ["Q"]),
        (SURE | {"prompt": "Q", "system": "S"}, {"system": ""}, ["Q"]),
        (
            {"q": "Q", "outs": ["A", "B"], "stars": [1, 2], "ratings": [9, 1]},
            {"prompt": "q", "responses": "outs", "scores": "stars"},
            ["Q"],
        ),
        (
            {"q": "Q", "x": "A", "y": "B", "best": 1},
            {"prompt": "q", "response_0": "x", "response_1": "y", "winner": "best"},
            ["Q"],
        ),
        (
            {"q": "Q", "x": "A", "y": "B", "best": "b"},
            {"prompt": "q", "response_a": "x", "response_b": "y", "winner": "best"},
            ["Q"],
        ),
    ],
)  # fmt: skip
def test_a_named_column_wins_over_every_other(tmp_path, row, columns, prompt):
    assert texts(pair(tmp_path, row, columns=columns))[0] == prompt


def test_the_safer_response_can_be_named_as_the_winner(tmp_path):
    row = {"prompt": "Q", "response_0": "A", "response_1": "B"}
    row |= {"better_response_id": 0, "safer_response_id": 1}
    assert texts(pair(tmp_path, row))[1] == ["A"]
    assert texts(pair(tmp_path, row, columns={"winner": "safer_response_id"}))[1] == ["B"]


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"responses": ["A", "B"], "scores": [1, 2]}, "--columns winner=winner"),
        ({"responses": ["A", "B"], "scores": [1, 2]}, "responses=responses,scores=scores"),
        ({"preference": "b"}, "winner and preference may say"),
        (
            {"response_1": "C", "response_2": "D", "label": 1},
            "--columns response_a=response_a,response_b=response_b,winner=winner",
        ),
    ],
)
def test_a_row_of_two_shapes_is_refused_until_one_is_named(tmp_path, more, expected):
    row = {"prompt": "Q", "response_a": "A", "response_b": "B", "winner": "a"} | more
    assert expected in reason(tmp_path, row)
    named = {"response_a": "response_a", "response_b": "response_b", "winner": "winner"}
    assert texts(pair(tmp_path, row, columns=named))[1] == ["A"]
    if "scores" in more:
        named = {"responses": "responses", "scores": "scores"}
        assert texts(pair(tmp_path, row, columns=named))[1] == ["B"]


def test_a_named_winner_wins_over_chosen_and_rejected(tmp_path):
    row = SURE | {"prompt": "Q", "response_a": "A", "response_b": "B", "best": "b"}
    assert texts(pair(tmp_path, row))[1] == ["Sure! It is five."]
    assert texts(pair(tmp_path, row, columns={"winner": "best"}))[1] == ["B"]


def test_a_known_data_set_decides_before_columns_of_any(tmp_path):
    row = {"prompt": "Q", "response_1": "A", "response_2": "B", "preference_strength": -1}
    assert texts(pair(tmp_path, row | {"preference": 2}))[1] == ["A"]


def test_a_column_that_only_some_rows_have_sets_the_others_aside(tmp_path):
    first, second, third = read(
        tmp_path, SURE | {"q": "Q"}, SURE, SURE | {"q": None}, columns={"prompt": "q"}
    )
    assert isinstance(first, SourceRow)
    assert (second.reason, third.reason) == ("missing column q", "empty prompt")


def test_only_texts_are_joined(tmp_path):
    row = SURE | {"prompt": "Q", "a": 1, "b": 2}
    why = reason(tmp_path, row, columns={"source_id": "a+b"})
    assert why == "source_id takes one column: give --columns source_id=a"
    why = reason(tmp_path, row, columns={"system": "a+b"})
    assert why == "columns joined by + do not all hold text"


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"promt": "q"}, "unknown role 'promt', did you mean 'prompt'?"),
        ({"prompt": "qestion"}, "no column 'qestion' for prompt, did you mean 'question'?"),
        ({"prompt": "question+contxt"}, "no column 'contxt' for prompt, did you mean 'context'?"),
        ({"prompt": None}, "the column of prompt is None: write its name as text"),
        ({"prompt": "x", "chosen": "y"}, "no column 'x' for prompt; there is no column 'y'"),
    ],
)
def test_a_role_or_column_that_does_not_exist_is_an_error(tmp_path, columns, expected):
    with pytest.raises(ValueError, match=r"column|unknown role") as refused:
        read(tmp_path, SURE | {"question": "Q", "context": "C"}, columns=columns)
    assert expected in str(refused.value)


@pytest.mark.parametrize(
    ("turns", "expected"),
    [
        ([{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}], ["Q", "A"]),
        ([{"from": "user", "value": "Q"}, {"role": None, "from": "model", "value": "A"}],
         ["Q", "A"]),
        ([["Q", "A"]], ["Q", "A"]),
        ([user([{"type": "text", "text": "Q"}, {"type": "text", "text": "!"}])], ["Q!"]),
        ({"role": "user", "content": "Q"}, ["Q"]),
    ],
)  # fmt: skip
def test_a_conversation_may_be_written_in_other_ways(tmp_path, turns, expected):
    row = {"prompt": turns, "chosen": "B", "rejected": "C"}
    assert texts(pair(tmp_path, row))[0] == expected


ASKED = [user("Q"), assistant("A")]
SHARED = [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A "}]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": ASKED, "chosen": [assistant("A")], "rejected": [assistant("B")]},
        {"messages": ASKED, "chosen": "A", "rejected": "B"},
        {"conversations": SHARED, "chosen": "A", "rejected": "B"},
        {"conversations": SHARED, "chosen": {"from": "gpt", "value": "A"},
         "rejected": [{"from": "gpt", "value": "B"}]},
        {"messages": ASKED, "response_a": "B", "response_b": "A", "winner": "b"},
        {"messages": ASKED, "responses": ["B", "A"], "scores": [1, 2]},
        {"messages": [user("Q"), assistant("B")], "chosen": "A", "rejected": "B"},
    ],
)  # fmt: skip
def test_messages_that_end_with_a_response_are_the_prompt_without_it(tmp_path, row):
    assert texts(pair(tmp_path, row)) == (["Q"], ["A"], ["B"])


def test_messages_that_end_with_another_response_are_refused(tmp_path):
    row = {"messages": [user("Q"), assistant("C")], "chosen": "A", "rejected": "B"}
    assert "ends with a turn of the assistant" in reason(tmp_path, row)
    assert texts(pair(tmp_path, row, columns={"prompt": "messages"}))[0] == ["Q", "C"]


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"summaries": [{"text": "A"}, {"text": "B"}], "choice": 1, "info": {}}, "summaries"),
        ({"question": {"full_text": "Q"}, "answer_0": "A", "answer_1": "B", "score_0": 1.0,
          "score_1": -1.0}, "answer_0, answer_1, score_0, score_1 hold"),
        ({"conversation_a": None, "conversation_b": [user("Q")], "winner": "model_a"},
         "empty conversation_a"),
        ({"conversation_a": "[]", "conversation_b": "[]", "winner": "model_a"},
         "conversation_a is not a list of messages"),
    ],
)  # fmt: skip
def test_two_responses_that_are_not_read_are_explained(tmp_path, columns, expected):
    assert expected in reason(tmp_path, columns)


@pytest.mark.parametrize("speaker", ["Human", "USER", "human"])
def test_the_names_of_speakers_are_read_in_any_case(tmp_path, speaker):
    turns = [
        {"from": speaker, "value": "Q"},
        {"from": "function_call", "value": "{}"},
        {"from": "observation", "value": "3"},
    ]
    only = pair(tmp_path, {"conversations": turns, "chosen": "A", "rejected": "B"})
    assert [turn["role"] for turn in only.pair.prompt] == ["user", "assistant", "tool"]


def test_an_unknown_speaker_is_named(tmp_path):
    row = {"conversations": [{"from": "narrator", "value": "Q"}], "chosen": "B", "rejected": "C"}
    assert "speaker is not known (known: human, user, gpt" in reason(tmp_path, row)
    row["conversations"][0]["from"] = ["human"]
    assert "speaker is not known" in reason(tmp_path, row)


def test_the_columns_of_a_labelling_step_are_no_prompts(tmp_path):
    row = SURE | {
        "system": "S",
        "input": "Q",
        "generations": ["Sure! It is five.", "Sure! I do not know."],
        "labelling_model": "model-a",
        "labelling_prompt": [user("Which answer is better, the first or the second?")],
        "raw_labelling_response": "The first one is better.",
        "rating": [9, 3],
        "rationale": "The first one answers.",
        "original_chosen": "Sure! It is five.",
        "in_gsm8k_train": False,
    }
    assert texts(pair(tmp_path, row))[0] == ["S", "Q"]


HISTORY = [["Hi", "Hello"], ["And?", "Yes"]]
TWO_LISTS = [{"text": "a", "score": 1}, {"text": "b", "score": 2}]
ADVICE = {
    "text beside a list of messages": (
        {"instruction": "More", "history": HISTORY, "chosen": "So be it", "rejected": "So what"},
        {"messages": "history", "prompt": "instruction"},
    ),
    "two texts": (
        {"instruction": "Add", "input": "1, 2", "chosen": "It is 3", "rejected": "It is 4"},
        {"prompt": "instruction+input"},
    ),
    "scores in the objects of two lists": (
        {"prompt": "Q", "responses": TWO_LISTS, "generations": TWO_LISTS},
        {"responses": "responses"},
    ),
}


@pytest.mark.parametrize(("row", "columns"), ADVICE.values(), ids=ADVICE)
def test_what_a_reason_says_to_give_makes_the_row_a_pair(tmp_path, row, columns):
    given = ",".join(f"{role}={name}" for role, name in columns.items())
    assert given in reason(tmp_path, row)
    assert pair(tmp_path, row, columns=columns)


def test_a_pair_of_several_that_is_set_aside_leaves_the_others_of_its_row(tmp_path):
    question = "What is the capital of France?"
    responses = [f"{question} Paris", "Lyon", f"{question} Rome", "Nice"]
    row = {"prompt": question, "responses": responses, "scores": [4, 3, 2, 1]}
    rows = read(tmp_path, row)
    assert [isinstance(item, SourceRow) for item in rows] == [True, False, True]


def test_the_last_turn_of_the_user_stays_in_the_prompt_if_a_response_repeats_it(tmp_path):
    turns = [user("Say hello in one word"), assistant("hello"), user("thanks")]
    row = {"messages": turns, "chosen": "thanks", "rejected": "bye"}
    assert texts(pair(tmp_path, row))[0] == ["Say hello in one word", "hello", "thanks"]


def test_a_preference_in_numbers_must_be_named(tmp_path):
    row = {"prompt": "Q", "response_1": "a", "response_2": "b", "preference": 1}
    assert "winner=preference" in reason(tmp_path, row)
    assert texts(pair(tmp_path, row, columns={"winner": "preference"}))[1:] == (["a"], ["b"])
