"""How the rows of a source were read, in lines for people."""

import json

import pytest

from sp2dpo.pairs.reading import Reading, parse_columns
from sp2dpo.pairs.sample import draw_sample
from sp2dpo.pairs.sources import open_source, read_rows
from sp2dpo.pairs.tally import ReadingSummary, ReadingTally, no_pair_error
from support.shapes import write_shape


def summary(tmp_path, *rows):
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tally = ReadingTally()
    for row in read_rows(open_source(str(path))):
        tally.add(row)
    return tally.summary()


def sure(n):
    return {"chosen": f"Sure! It is {n}.", "rejected": f"Sure! I cannot say {n}."}


def dialogue(question, n):
    start = f"\n\nHuman: {question}\n\nAssistant: "
    return {"chosen": f"{start}Yes {n}.", "rejected": f"{start}No {n}."}


def test_nothing_is_said_of_explicit_prompts_in_the_columns_of_trl(tmp_path):
    rows = [{"prompt": "Q", "chosen": f"A{n}", "rejected": "B"} for n in range(3)]
    assert summary(tmp_path, *rows).lines() == []


def test_the_most_repeated_implicit_prompt_is_named(tmp_path):
    counts = summary(tmp_path, sure(1), sure(2), sure(2), sure(3), dialogue("Sky?", 1))
    assert counts == ReadingSummary(implicit=5, repeated=1, most_repeated="Sure!", most_pairs=3)
    first, second = counts.lines()
    assert first == "  5 implicit prompts: the beginning that chosen and rejected share"
    assert second.startswith(
        "  WARNING: 1 of them repeats over different pairs, most often 'Sure!' (3 pairs): "
    )


@pytest.mark.parametrize(
    "rows",
    [
        [dialogue("Sky?", 1), dialogue("Sea?", 1)],
        [dialogue("Sky?", 1), dialogue("Sky?", 1)],
        [sure(1)],
    ],
)
def test_implicit_prompts_that_differ_or_one_pair_twice_are_no_repetition(tmp_path, rows):
    counts = summary(tmp_path, *rows)
    assert (counts.implicit, counts.repeated, counts.most_repeated) == (len(rows), 0, None)


def test_a_long_repeated_prompt_is_shortened(tmp_path):
    counts = summary(tmp_path, *(dialogue("word " * 100, n) for n in range(2)))
    assert counts.most_repeated is not None
    assert len(counts.most_repeated) < 70


def test_a_summary_can_be_stored(tmp_path):
    counts = summary(tmp_path, sure(1), sure(2), {"question": "\ud83dQ"} | sure(3))
    assert ReadingSummary.load(counts.dump()) == counts


def test_a_sample_knows_how_its_source_was_read(tmp_path):
    path = write_shape(tmp_path / "p.jsonl", "nectar", 3)
    sample = draw_sample(read_rows(open_source(str(path))), 2)
    rule = "the best response against each worse one"
    assert sample.reading.lines() == [f"  read as Nectar: prompt, answers; {rule} (6 rows)"]
    assert (sample.rows, sample.set_aside) == (6, 0)


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("prompt=question", {"prompt": "question"}),
        ("prompt=a b, chosen=c", {"prompt": "a b", "chosen": "c"}),
        ("prompt=a,b,chosen=c", {"prompt": "a,b", "chosen": "c"}),
        ("prompt=,system=", {"prompt": "", "system": ""}),
        ("prompt=a=b", {"prompt": "a=b"}),
    ],
)
def test_columns_are_named_by_role(text, columns):
    assert parse_columns(text) == columns


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("question", "'question': write ROLE=COLUMN"),
        ("", "'': write ROLE=COLUMN"),
        ("=question", "'=question': write ROLE=COLUMN"),
        ("prompt=a,prompt=b", "the role prompt has two columns; join texts as prompt=FIRST+SECOND"),
    ],
)
def test_columns_without_a_role_are_refused(text, expected):
    with pytest.raises(ValueError, match=r"write ROLE|two columns") as refused:
        parse_columns(text)
    assert expected in str(refused.value)


def test_the_options_of_a_reading_can_be_typed_again():
    reading = Reading(columns={"prompt": "the question", "system": ""}, pairs_from="all")
    assert reading.options() == "--columns 'prompt=the question,system=' --pairs-from all"
    assert Reading.load(reading.dump()) == reading


def test_an_error_about_no_pair_names_the_columns_or_the_way_out():
    problem = "f: no row holds a preference pair"
    assert str(no_pair_error("f", {}, None)) == f"{problem}: it has no rows"
    assert str(no_pair_error("f", {"a": 1, "give --columns x": 2}, "{}")) == (
        f"{problem}: give --columns x"
    )
    assert str(no_pair_error("f", {"missing column chosen": 3}, '{"Chosen": "A", "b": 1}')) == (
        f"{problem}: missing column chosen. Its columns are 'Chosen', 'b'; if some of them are a "
        "pair's, name them with --columns prompt=COLUMN,chosen=COLUMN,rejected=COLUMN"
    )
    asked = str(no_pair_error("f", {"missing column chosen": 1}, '{"answer_x": "A", "w": 1}'))
    assert asked.endswith("prompt=COLUMN,response_a=COLUMN,response_b=COLUMN,winner=COLUMN")


@pytest.mark.parametrize(
    "prompt",
    [
        "Human: Hi\n\nAssistant:",
        "\r\n\r\nHuman: Hi\r\n\r\nAssistant:",
        "### Human: Hi ### there\n### Assistant:",
        "User: Hi\nAI: Hello\nUser: Bye",
        "<|im_start|>user\nHi<|im_end|>",
        "<|prompter|>Hi<|endoftext|><|assistant|>",
        "[INST] Hi [/INST]",
    ],
)
def test_prompts_with_the_marks_of_a_dialogue_are_counted(tmp_path, prompt):
    row = {"prompt": prompt, "chosen": "A", "rejected": "B"}
    plain = [row | {"prompt": text} for text in ("Hi", "The human: who?", "\n\nHuman: Hi")]
    counts = summary(tmp_path, row, row, *plain)
    assert counts.marked == 2
    (line,) = counts.lines()
    assert line.startswith("  WARNING: the prompts of 2 rows have marks of a dialogue")
    assert ReadingSummary.load(counts.dump()) == counts
