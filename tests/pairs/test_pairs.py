"""A pair is known by what it says."""

import hashlib
import unicodedata

import pytest

from sp2dpo.pairs.formats import parse_row
from sp2dpo.pairs.pair import Pair
from sp2dpo.text import canonical_json


def pair(prompt="Name a red fruit.", chosen="An apple.", rejected="A banana.", **fields):
    return Pair(
        prompt=({"role": "user", "content": prompt},),
        chosen=({"role": "assistant", "content": chosen},),
        rejected=({"role": "assistant", "content": rejected},),
        **fields,
    )


def test_the_id_is_the_hash_of_the_canonical_json_written_out():
    text = (
        '{"chosen":[{"content":"An apple.","role":"assistant"}],'
        '"prompt":[{"content":"Name a red fruit.","role":"user"}],'
        '"rejected":[{"content":"A banana.","role":"assistant"}]}'
    )
    assert pair().id == hashlib.sha256(text.encode()).hexdigest()


def test_text_beyond_ascii_is_hashed_as_itself():
    text = (
        '{"chosen":[{"content":"é\\n\\"ü\\"","role":"assistant"}],'
        '"prompt":[{"content":"林檎","role":"user"}],'
        '"rejected":[{"content":"🍌","role":"assistant"}]}'
    )
    spoken = pair("林檎", 'é\n"ü"', "🍌")
    assert spoken.id == hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize("word", ["é", "Å", "가", "ệ"])
def test_an_accent_written_in_two_ways_is_one_pair(word):
    composed, apart = (unicodedata.normalize(form, word) for form in ("NFC", "NFD"))
    assert composed != apart
    assert pair(prompt=composed).id == pair(prompt=apart).id
    assert pair(chosen=composed).id == pair(chosen=apart).id


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("apple", "apple "),
        ("apple", "\napple"),
        ("apple", "Apple"),
        ("apple", "ap\u200bple"),  # zero width
        ("ﬁg", "fig"),  # a ligature: compatible, not canonical
        ("a\nb", "a\r\nb"),
    ],
)
def test_nothing_else_is_made_the_same(first, second):
    assert pair(prompt=first).id != pair(prompt=second).id


def test_the_three_parts_cannot_trade_places():
    ids = {
        pair("a", "b", "c").id,
        pair("b", "a", "c").id,
        pair("a", "c", "b").id,
        pair("ab", "", "c").id,
        pair("a", "bc", "").id,
    }
    assert len(ids) == 5


def test_where_the_prompt_ends_is_part_of_the_pair():
    turns = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": "A fruit?"},
    ]
    apple, pear = (
        {"role": "assistant", "content": "apple"},
        {"role": "assistant", "content": "pear"},
    )
    late = Pair(prompt=tuple(turns), chosen=(apple,), rejected=(pear,))
    early = Pair(prompt=tuple(turns[:1]), chosen=(*turns[1:], apple), rejected=(*turns[1:], pear))
    assert late.id != early.id


def test_the_order_of_a_messages_keys_does_not_count():
    turned = Pair(
        prompt=({"content": "Name a red fruit.", "role": "user"},),
        chosen=({"content": "An apple.", "role": "assistant"},),
        rejected=({"content": "A banana.", "role": "assistant"},),
    )
    assert turned.id == pair().id


def test_a_system_turn_counts_and_so_does_a_role():
    system = {"role": "system", "content": "Be brief."}
    plain = pair()
    instructed = Pair(prompt=(system, *plain.prompt), chosen=plain.chosen, rejected=plain.rejected)
    tool = Pair(
        prompt=({"role": "tool", "content": "Name a red fruit."},),
        chosen=plain.chosen,
        rejected=plain.rejected,
    )
    assert len({plain.id, instructed.id, tool.id}) == 3


def test_tools_count_and_none_of_them_is_like_no_column():
    assert pair(tools=()).id == pair().id
    assert pair(tools=({"name": "search"},)).id != pair().id
    assert pair(tools=({"name": "search"},)).id != pair(tools=({"name": "read"},)).id


def test_null_keys_are_absent_keys_however_deep_they_stand():
    def calling(*arguments):
        call = {"function": {"name": "find", "arguments": dict(arguments)}}
        return Pair(
            prompt=({"role": "user", "content": "Find it."},),
            chosen=({"role": "assistant", "content": None, "tool_calls": [call]},),
            rejected=({"role": "assistant", "content": "No."},),
        )

    # Parquet gives every struct the keys of all: `content` may well be one of them.
    assert calling(("q", "x")).id == calling(("q", "x"), ("content", None), ("n", None)).id
    assert calling(("q", "x")).id != calling(("q", "x"), ("content", "y")).id


def test_extra_keys_of_a_message_count_where_they_say_something():
    named = Pair(
        prompt=({"role": "user", "content": "Name a red fruit.", "name": "Ada"},),
        chosen=pair().chosen,
        rejected=pair().rejected,
    )
    assert named.id != pair().id


def test_plain_strings_and_messages_are_the_same_pair():
    texts = {"prompt": "Q?", "chosen": "A.", "rejected": "B."}
    messages = {
        "prompt": [{"role": "user", "content": "Q?"}],
        "chosen": [{"role": "assistant", "content": "A."}],
        "rejected": [{"role": "assistant", "content": "B."}],
    }
    implicit = {
        "chosen": messages["prompt"] + messages["chosen"],
        "rejected": messages["prompt"] + messages["rejected"],
    }
    mixed = {"prompt": "Q?"} | implicit
    dialogue = {
        "chosen": "\n\nHuman: Q?\n\nAssistant: A.",
        "rejected": "\n\nHuman: Q?\n\nAssistant: B.",
    }
    assert len({parse_row(row).id for row in (texts, messages, implicit, mixed, dialogue)}) == 1


def test_canonical_json_sorts_keys_and_knows_no_nan():
    assert canonical_json({"b": [1, 2.5, None], "a": "é"}) == '{"a":"é","b":[1,2.5,null]}'
    with pytest.raises(ValueError, match="Out of range float"):
        canonical_json({"a": float("nan")})


def test_a_megabyte_is_hashed_like_a_word():
    long_pair = pair(prompt="word " * 200_000)
    assert long_pair.id == pair(prompt="word " * 200_000).id
    assert long_pair.id != pair(prompt="word " * 200_000 + "word").id
