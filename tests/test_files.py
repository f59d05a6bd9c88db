"""A journal: what was written is read again, what broke off is cut off, the rest is left."""

import gzip
import json

import pytest

from sp2dpo.evaluation.prompts import read_prompts
from sp2dpo.files import Journal, atomic_write, read_json_lines

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


@pytest.mark.parametrize("length", [1, 10, -20, -1])
def test_a_line_that_broke_off_is_cut_off(tmp_path, length):
    path = tmp_path / "journal.jsonl"
    with Journal(path, HEAD) as journal:
        journal.add("a", said="yes")
    content = path.read_bytes()
    path.write_bytes(content[:length])
    with Journal(path, HEAD) as journal:
        journal.add("a", said="yes")
    assert path.read_bytes() == content


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
    with pytest.raises(ValueError, match=r"not a journal|started with another of"):
        Journal(path, HEAD)
    assert path.read_text() == content


def test_a_head_without_results_may_change(tmp_path):
    path = tmp_path / "journal.jsonl"
    Journal(path, {"model": "nowhere"}).close()
    with Journal(path, {"model": "here"}) as journal:
        journal.add("a", value=1)
    with pytest.raises(ValueError, match="started with another model"):
        Journal(path, {"model": "nowhere"})
    with Journal(path, {"model": "here"}) as journal:
        assert journal.lines == {"a": {"key": "a", "value": 1}}


def test_json_lines_are_numbered_as_an_editor_numbers_them(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\r\n\n  \n{"a": "x\xe2\x80\xa8y"}\n{"a": ')
    rows = read_json_lines(path)
    assert [next(rows), next(rows)] == [(1, {"a": 1}), (4, {"a": "x\u2028y"})]
    with pytest.raises(ValueError, match=r"rows\.jsonl: line 5 is not JSON: Expecting value"):
        next(rows)


def test_json_lines_may_be_compressed(tmp_path):
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"a": 1}\n{"a": 2}\n'))
    assert [row["a"] for _, row in read_json_lines(path)] == [1, 2]


@pytest.mark.parametrize("value", ["[]", "true", "1.5", "null", '"text"'])
def test_json_lines_must_be_objects(tmp_path, value):
    path = tmp_path / "rows.jsonl"
    path.write_text(value)
    with pytest.raises(ValueError, match="line 1 is not an object but "):
        list(read_json_lines(path))


def test_prompts_may_contain_line_separators(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"instruction": "one\u2028two\x85three"}\n{"instruction": "four"}\n', "utf-8")
    assert read_prompts(str(path)).instructions == ("one\u2028two\x85three", "four")


def test_a_reader_of_the_old_file_keeps_it_until_it_closes_it(tmp_path):
    path = tmp_path / "out.txt"
    path.write_text("old")
    with path.open() as reader:
        with atomic_write(path) as unfinished:
            unfinished.write_text("new")
            assert path.read_text() == "old"
        assert reader.read() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "out.txt"
    path.write_text("old")

    def write_half():
        with atomic_write(path) as unfinished:
            unfinished.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_half()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
