"""A journal: what was written is read again, what broke off is cut off, the rest is left."""

import json

import pytest

from sp2dpo.files import Journal

HEAD = {"of": "one", "sampling": {"temperature": 0.7}}


def test_what_came_is_there_again_and_of_two_lines_the_later_counts(tmp_path):
    path = tmp_path / "journal.jsonl"
    with Journal(path, HEAD) as journal:
        journal.add("a", said="no")
        journal.add("b", said="é\u2028\n")
        journal.add("a", said="yes")
    with Journal(path, HEAD) as journal:
        assert {key: line["said"] for key, line in journal.lines.items()} == {
            "a": "yes", "b": "é\u2028\n",
        }  # fmt: skip


@pytest.mark.parametrize("kept", [1, 10, -20, -1])
def test_a_line_that_broke_off_is_cut_off(tmp_path, kept):
    path = tmp_path / "journal.jsonl"
    with Journal(path, HEAD) as journal:
        journal.add("a", said="yes")
    whole = path.read_bytes()
    path.write_bytes(whole[:kept])
    with Journal(path, HEAD) as journal:
        journal.add("a", said="yes")
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    "content",
    [
        "notes of mine",
        "notes of mine\nin two lines, and",
        '{"of": "one"}\n{"no": "key"}\n',
        '[1]\n{"key": "a"}\n',
        json.dumps(HEAD | {"of": "another"}) + '\n{"key": "a"}\n{"key": "b',
    ],
)
def test_what_is_not_ours_is_refused_and_left_as_it_is(tmp_path, content):
    path = tmp_path / "journal.jsonl"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"not a journal|begun with another of"):
        Journal(path, HEAD)
    assert path.read_text() == content
