"""A journal: what was written is read again, what broke off is cut off, the rest is left."""

import codecs
import gzip
import json
import re
from pathlib import Path

import pytest

from sp2dpo import files
from sp2dpo.evaluation.prompts import read_prompts
from sp2dpo.files import Journal, read_json_lines, read_text
from sp2dpo.replacement import atomic_write
from sp2dpo.training.run_config import compose
from sp2dpo.yaml_files import read_yaml

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


ROWS = b'{"instruction": "one"}\n{"instruction": "two\xe2\x80\xa8\xc2\x85lines"}\n'
TEXTS = ["one", "two\u2028\x85lines"]


@pytest.mark.parametrize(
    "content",
    [
        ROWS,
        codecs.BOM_UTF8 + ROWS,
        ROWS.replace(b"\n", b"\r\n"),
        ROWS.rstrip(b"\n"),
        b"\n\n \t\r\n" + ROWS.replace(b"\n", b"\n\n"),
        pytest.param(gzip.compress(codecs.BOM_UTF8 + ROWS), id="gzip"),
    ],
)
def test_json_lines_are_read_however_they_were_saved(tmp_path, content):
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(content)
    assert [row["instruction"] for _, row in read_json_lines(path)] == TEXTS
    assert list(read_prompts(str(path)).instructions) == TEXTS


LIST = b"[" + ROWS.strip().replace(b"\n", b",\n") + b"]"


@pytest.mark.parametrize(
    "content",
    [
        LIST,
        codecs.BOM_UTF8 + LIST,
        LIST.replace(b"\n", b"\r\n") + b"\r\n",
        json.dumps(json.loads(LIST), indent=4).encode(),
        b" \n\t" + LIST.replace(b",", b" ,\n\n "),
        pytest.param(gzip.compress(LIST), id="gzip"),
    ],
)
def test_a_json_list_is_read_however_it_was_saved(tmp_path, content):
    path = tmp_path / "prompts.json"
    path.write_bytes(content)
    assert list(read_prompts(str(path)).instructions) == TEXTS


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[\n {"instruction": "a"},\n {"instruction": broken}\n]', "(line 3, column 18)"),
        ('[\n {"instruction": "a"}\n {"instruction": "b"}\n]', "',' or ']' (line 3, column 2)"),
        ('[{"instruction": "a"},\n]', "Expecting value (line 2, column 1)"),
        ('[{"instruction": "a"}]\n\n]', "Extra data (line 3, column 1)"),
        ('[{"instruction": "a"}', "(line 1, column 22)"),
        ('[{"a": 1},\n\n {"b": 1, "b": 2}]', "key 'b' stands twice in the object that begins here "
                                            "(line 3, column 2)"),
        ('[{"a": 1},\n 7]', "Expecting an object, not a number (line 2, column 2)"),
        ('\n{"a": 1}', "Expecting a list of objects (line 2, column 1)"),
        ("", "Expecting a list of objects (line 1, column 1)"),
        ('["' + "[" * 3, "(line 1, column 2)"),
        ("[" * 100_000, "Nested too deeply (line 1, column 2)"),
        ('[\n"é", "\udcff"]', "not UTF-8 (line 2, column 7)"),
    ],
)  # fmt: skip
def test_an_error_in_a_json_list_names_line_and_column(tmp_path, content, message):
    path = tmp_path / "prompts.json"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        read_prompts(str(path))
    assert str(error.value).startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.jsonl", '{"instruction": "a"}\n\n{"output": "b"}', "line 3, row 2: no `instruction`"),
        ("p.json", '[{"instruction": "a"},\n\n{"output": "b"}]', "line 3, row 2: no `instruction`"),
        ("p.jsonl", '\n{"instruction": "\\ud800"}', "line 2, row 1: `instruction` holds half of"),
        ("p.json", '\n[{"prompt": "x\\udfff"}]', "line 2, row 1: `prompt` holds half of"),
        ("p.jsonl", '{"prompt": "é", "": x}', "line 1 is not JSON: Expecting value at column 21"),
        ("p.jsonl", '\ufeff{"instruction": x}', "line 1 is not JSON: Expecting value at column 17"),
    ],
)  # fmt: skip
def test_an_error_in_a_row_names_the_line_of_the_file(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_text(content, "utf-8")
    with pytest.raises(ValueError, match=re.escape(f"{path}: {message}")):
        read_prompts(str(path))


@pytest.mark.parametrize(
    ("encoding", "named"),
    [
        ("utf-16", "UTF-16"),
        ("utf-16-le", "UTF-16LE"),
        ("utf-16-be", "UTF-16BE"),
        ("utf-32", "UTF-32"),
        ("utf-32-le", "UTF-32LE"),
        ("utf-32-be", "UTF-32BE"),
    ],
)
@pytest.mark.parametrize(
    "read", [read_prompts, lambda path: list(read_json_lines(Path(path))),
             lambda path: read_text(Path(path)), lambda path: read_yaml(Path(path))]
)  # fmt: skip
def test_another_encoding_is_named(tmp_path, encoding, named, read):
    path = tmp_path / "p.json"
    path.write_text('[{"instruction": "a"}]', encoding)
    with pytest.raises(ValueError, match="in UTF-16 or UTF-32, not UTF-8: convert it") as error:
        read(str(path))
    assert str(error.value).endswith(f"with `iconv -f {named} -t UTF-8`")


def test_a_byte_order_mark_belongs_to_no_text_and_no_settings(tmp_path):
    path = tmp_path / "settings.yaml"
    path.write_text("\ufeffname: é\r\nsize: 1\r\n", "utf-8")
    assert read_yaml(path) == {"name": "é", "size": 1}
    assert compose([path]).settings == {"name": "é", "size": 1}
    assert read_text(path).startswith("name")


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


def compress(path, parts):
    with gzip.open(path, "wb", compresslevel=1) as file:
        for part in parts:
            file.write(part)
    return path


@pytest.fixture
def low_limits(monkeypatch):
    """Limits a thousandth of the real ones, so that a test need not write as much."""
    for name in ("LONGEST_LINE", "LARGEST_JSON", "_FREE_BYTES", "_FREE_NESTED"):
        monkeypatch.setattr(files, name, getattr(files, name) >> 10)


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.jsonl.gz", b'{"a": "' + b"x" * (1 << 20), "line 1 has more than 0 MiB: write one row"),
        ("a.jsonl", b"{}\n" + b"x" * (1 << 17), "line 2 has more than 0 MiB: write one row"),
        ("a.jsonl.gz", b"\n" * (1 << 20), "decompresses to more than 200 times its size at line"),
        ("a.jsonl.gz", (b'{"a": "' + b"x" * 5000 + b'"}\n') * 1000, "more than 200 times its size"),
        ("a.jsonl", b'{"a": [' + b"[]," * 5000 + b"[]]}", "line 1 consists of lists and objects"),
    ],
    ids=["one line", "one plain line", "empty lines", "equal lines", "lists"],
)
def test_a_file_that_stands_for_too_much_is_refused_while_it_is_read(
    tmp_path, low_limits, name, content, problem
):
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    with pytest.raises(ValueError, match=re.escape(problem)):
        list(read_json_lines(path))


@pytest.mark.parametrize("name", ["rows.json", "rows.json.gz"])
def test_a_list_of_more_than_is_read_at_once_is_refused(tmp_path, low_limits, name):
    content = b"[" + b" " * (1 << 20) + b"]"
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    with pytest.raises(ValueError, match="MiB: write it as JSON Lines"):
        read_prompts(str(path))


def test_long_rows_are_read_whole(tmp_path, low_limits):
    # Code has many brackets.
    row = {"a": "call(x[1]) { return }\n" * 2500, "b": ["\u2028"] * 10}
    path = tmp_path / "rows.jsonl"
    path.write_text((json.dumps(row) + "\n") * 3)
    assert [value for _, value in read_json_lines(path)] == [row] * 3


def test_a_number_of_too_many_digits_is_named_with_its_line(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text('[{"prompt": "a"},\n {"prompt": "b", "n": ' + "9" * 5000 + "}]")
    with pytest.raises(ValueError, match=r"A number of too many digits .* \(line 2, column 2\)"):
        read_prompts(str(path))
