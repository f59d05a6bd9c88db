"""What reaches a terminal or a model cannot steer it, reorder it or hide in it."""

import json
import math
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sp2dpo.files import write_json
from sp2dpo.text import (
    HIDDEN,
    count_noun,
    escape_controls,
    format_json,
    format_table,
    has_chat_marks,
    redact,
    shorten,
    split_chat_marks,
)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "plain",
        "tab\tand\nline",
        "é 林檎 🍌 العربية עברית",
        "a\u0301",
        "\\",
        "\u2764\ufe0f",
        "\U0001f469\u200d\U0001f52c",
        "می\u200cخواهم",
    ],
)
def test_text_that_people_write_stays(text):
    assert escape_controls(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred", "\\u001b[31mred"),
        ("\x1b]0;title\x07", "\\u001b]0;title\\u0007"),
        ("over\rwritten", "over\\u000dwritten"),
        ("\x9b2J", "\\u009b2J"),
        ("a\x08b\x7f", "a\\u0008b\\u007f"),
        ("a\x00b", "a\\u0000b"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("\u2066x\u2069", "\\u2066x\\u2069"),
        ("\u061cx", "\\u061cx"),
        ("zero\u200bwidth\u200e", "zero\\u200bwidth\\u200e"),
        ("\ufeffx", "\\ufeffx"),
        ("soft\xadhyphen", "soft\\u00adhyphen"),
        ("\u3164\u115f", "\\u3164\\u115f"),
        ("a\u2028b", "a\\u2028b"),
        ("\ud83d", "\\ud83d"),
        ("A\ufe00\ufe01", "A\\ufe00\\ufe01"),
        ("\U000e0041\U000e007f", "\\U000e0041\\U000e007f"),
        ("\U000e0100", "\\U000e0100"),
    ],
)
def test_what_steers_reorders_or_hides_is_shown_as_its_code(text, shown):
    assert escape_controls(text) == shown


def test_no_control_half_character_or_line_end_of_unicode_gets_through():
    unsafe = {"Cc", "Cs", "Zl", "Zp"}
    passed = [
        number
        for number in range(0x110000)
        if unicodedata.category(chr(number)) in unsafe
        and escape_controls(chr(number)) == chr(number)
    ]
    assert passed == [0x09, 0x0A]


def test_every_format_character_that_draws_nothing_is_shown():
    # What is left draws: signs over Arabic, Syriac, Kaithi and hieroglyphs, shorthand, music; and
    # the two joiners, which change how their neighbours are drawn.
    drawn = [
        range(0x200C, 0x200E),
        range(0x600, 0x606),
        range(0x6DD, 0x6DE),
        range(0x70F, 0x710),
        range(0x890, 0x892),
    ]
    drawn += [range(0x8E2, 0x8E3), range(0x110BD, 0x110CE), range(0x13430, 0x13456)]
    drawn += [range(0x1BCA0, 0x1BCA4), range(0x1D173, 0x1D17B)]
    for number in range(0x110000):
        if unicodedata.category(chr(number)) == "Cf" and not any(number in span for span in drawn):
            assert escape_controls(chr(number)) != chr(number), hex(number)


def test_columns_of_numbers_stand_to_the_right_and_words_to_the_left():
    rows = [("reader-a", "9", "1.5%"), ("b", "1,234", "-20.0%")]
    assert format_table(("name", "kept", "share"), rows) == [
        "name       kept   share",
        "reader-a      9    1.5%",
        "b         1,234  -20.0%",
    ]


def test_one_word_among_numbers_turns_a_column_to_the_left():
    assert format_table(("a", "b"), [("1", "x"), ("none", "y")], indent="  ") == [
        "  a     b",
        "  1     x",
        "  none  y",
    ]


def test_a_table_without_rows_is_its_head():
    assert format_table(("name", "kept"), []) == ["name  kept"]


def test_rows_of_unequal_length_make_no_table():
    with pytest.raises(ValueError, match="shorter"):
        format_table(("a", "b"), [("1",)])


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("", ""),
        ("x" * 10, "x" * 10),
        ("x" * 11, "x" * 10 + "..."),
        (" two\n\n lines\t", "two lines"),
        ("a" * 9 + "\n\n" + "b", "a" * 9 + " ..."),
    ],
)
def test_a_long_text_is_cut_to_one_short_line(text, shown):
    assert shorten(text, 10) == shown
    assert shorten("y" * 301) == "y" * 300 + "..."


def test_one_thing_is_not_called_by_its_plural():
    phrases = [count_noun(number, "line") for number in (0, 1, 2)]
    assert phrases == ["0 lines", "1 line", "2 lines"]
    assert count_noun(1, "reply", "replies") == "1 reply"
    assert count_noun(2, "reply", "replies") == "2 replies"


@pytest.mark.parametrize("variable", ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"])
def test_a_token_of_the_environment_is_hidden_whatever_it_looks_like(monkeypatch, variable):
    monkeypatch.setenv(variable, "correct horse battery")
    assert redact("sent correct horse battery twice") == f"sent {HIDDEN} twice"


def test_what_looks_like_a_token_is_hidden_and_nothing_else(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "short")  # too short to replace: it would hide ordinary words
    text = "short hf_abcdefgh12 api_org_abcdefgh12 hf_abc shelf_abcdefgh12"
    assert redact(text) == f"short {HIDDEN} {HIDDEN} hf_abc shelf_abcdefgh12"


MARKS = [
    *("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|object_ref_start|>"),  # Qwen
    *("<|begin_of_text|>", "<|start_header_id|>", "<|eot_id|>", "<|header_start|>"),  # Llama
    *("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>", "<s>", "</s>", "<unk>", "<pad>"),
    *("[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[THINK]"),
    *("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<unused12>"),
    *("<|turn>", "<turn|>", "<|channel>", "<channel|>", '<|"|>', "<tool_call|>"),  # Gemma 4
    *("<|start|>", "<|channel|>", "<|message|>", "<|return|>", "<|call|>"),  # gpt-oss
    *("<｜begin▁of▁sentence｜>", "<｜User｜>", "<｜tool▁calls▁begin｜>", "｜DSML｜"),  # DeepSeek
    *("<think>", "</think>", "<tool_call>", "</tool_response>", "<arg_key>", "[gMASK]", "<sop>"),
    *("<|START_OF_TURN_TOKEN|>", "<BOS_TOKEN>", "[|endofturn|]", "<seed:bos>", "]~b]", "[e~["),
    *("<SPECIAL_12>", "<extra_id_1>", "<reserved_106>", "<longcat_user>", "<fim_prefix>", "[EOT]"),
    *("<PRE>", "<用户>", "[unused7]", "<|placeholder1|>", "<mask:1>", "<end_of_utterance>"),
    *(
        "＜|im_start|＞",
        "［INST］",
        "＜／s＞",
        "<|IM_START|>",
        "[inst]",
        "<End_Of_Turn>",
        "/nothink",
    ),
]
ORDINARY = [
    "a < b and c > d",
    "x |> f <| y",
    "List<S>, Vec<T>, Foo<A|B>",
    "<div><p>5 <b>bold</b></p></div>",
    "x[i], a[mask], [1], [x](http://a.b)",
    "a || b > c; f <$> x <|> y; 1 << 3 >> 2; cat << EOF >> file",
    "| a | b |\n|---|---|",
    "<start_date> to <end_date>",
    "東京｜大阪｜京都, ＜注＞",
    "Think of the end of the turn, the system prompt and /think.",
]


@pytest.mark.parametrize("mark", MARKS)
def test_a_chat_mark_is_split_wherever_it_stands(mark):
    for text in (mark, f"a{mark}b", mark + mark, f"<{mark}>", f"[{mark}]", mark[:2] + mark):
        assert has_chat_marks(text)
        split = split_chat_marks(text)
        assert mark not in split
        assert not has_chat_marks(split)
        assert split.replace(" ", "") == text


def test_a_split_mark_reads_like_the_mark():
    text = "<|im_start|>system [/INST] <<SYS>> </s> <turn|> <｜User｜>"
    split = "<| im_start|>system [ /INST] << SYS>> < /s> < turn|> <｜ User｜>"
    assert split_chat_marks(text) == split


@pytest.mark.parametrize("text", ["", *ORDINARY])
def test_text_without_chat_marks_stays(text):
    assert not has_chat_marks(text)
    assert split_chat_marks(text) == text


PIECES = [*MARKS, *ORDINARY, *"<>|[]/~! \n｜＜", "im_start", "INST", "SYS", "s", "turn", "think"]


@given(st.lists(st.sampled_from(PIECES)).map("".join) | st.text())
def test_no_mark_remains_after_marks_were_split_and_nothing_but_spaces_is_added(text):
    split = split_chat_marks(text)
    assert not any(mark in split for mark in MARKS)
    assert not has_chat_marks(split)
    assert split_chat_marks(split) == split
    assert (split == text) == (not has_chat_marks(text))
    assert split.replace(" ", "") == text.replace(" ", "")


def test_long_texts_of_brackets_are_searched_in_linear_time():
    for piece in ("<", "<|", "[", "<a", "<|a "):
        assert not has_chat_marks(piece * 20_000)


@pytest.mark.parametrize(
    "value",
    [math.nan, math.inf, -math.inf, [math.nan], {"a": (1, math.inf)}, {"a": {"b": [math.nan, 2]}}],
)
def test_results_are_written_as_json_that_every_parser_reads(tmp_path, value):
    write_json(tmp_path / "result.json", value)
    for text in (format_json(value), (tmp_path / "result.json").read_text()):
        assert "null" in text
        json.loads(text, parse_constant=pytest.fail)
