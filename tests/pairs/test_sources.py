"""Files of pairs: every row becomes a pair or is set aside, and what is broken is named."""

import gzip
import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from datetime import date
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sp2dpo.pairs.sources import SetAside, Source, SourceRow, open_source, read_rows
from sp2dpo.store.store import Store

GOOD = {"prompt": "Q?", "chosen": "A.", "rejected": "B."}
REAL = os.environ.get("SP2DPO_REAL_PAIRS")


def rows_of(path):
    return list(read_rows(open_source(str(path))))


def write(path, *rows):
    """JSON Lines of rows; a row of bytes stands as it is."""
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    text = b"".join(line + b"\n" for line in lines)
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def error_of(path):
    with pytest.raises(ValueError, match=path.name) as refused:
        rows_of(path)
    message = str(refused.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz", "parquet"])
def test_all_kinds_of_files_hold_the_same_pairs(tmp_path, ending):
    source_rows = [GOOD | {"prompt": f"Question {n}: é🍌?", "n": n} for n in range(3)]
    path = tmp_path / f"pairs.{ending}"
    if ending == "parquet":
        pq.write_table(pa.Table.from_pylist(source_rows), path)
    else:
        write(path, *source_rows)
    rows = rows_of(path)
    assert [row.row for row in rows] == [1, 2, 3]
    assert [row.columns for row in rows] == [{"n": 0}, {"n": 1}, {"n": 2}]
    assert rows[2].pair.prompt == ({"role": "user", "content": "Question 2: é🍌?"},)


def test_a_pair_has_one_id_in_every_kind_of_file(tmp_path):
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    second_call = {"type": "function", "function": {"name": "g", "arguments": {"content": "y"}}}
    source_rows = [
        {
            "prompt": [{"role": "system", "content": "S"}, {"role": "user", "content": "Q?"}],
            "chosen": [{"role": "assistant", "tool_calls": [call]}],
            "rejected": [{"role": "assistant", "content": "B.", "name": "Bo"}],
            "tools": [{"name": "f", "parameters": {"x": {"type": "integer"}}}],
        },
        {
            "prompt": [{"role": "user", "content": "P?"}],
            "chosen": [{"role": "assistant", "content": "A.", "tool_calls": [second_call]}],
            "rejected": [{"role": "assistant", "content": "B."}],
            "tools": [{"name": "g", "parameters": {"y": {"type": "string", "default": "y"}}}],
        },
    ]
    lines = write(tmp_path / "pairs.jsonl", *source_rows)
    pq.write_table(pa.Table.from_pylist(source_rows[::-1]), tmp_path / "pairs.parquet")
    packed = write(tmp_path / "pairs.jsonl.gz", *source_rows)
    ids = [row.pair.id for row in rows_of(lines)]
    assert len(set(ids)) == 2
    assert [row.pair.id for row in rows_of(packed)] == ids
    assert [row.pair.id for row in rows_of(tmp_path / "pairs.parquet")] == ids[::-1]


def test_other_columns_stay_even_where_they_are_called_like_ours(tmp_path):
    columns = {"beta": 3, "category": "mine", "gap": None, "messages": [{"role": "x"}], "": 0}
    (row,) = rows_of(write(tmp_path / "p.jsonl", GOOD | columns))
    assert row.columns == columns
    assert row.source_id is None


@pytest.mark.parametrize(
    ("columns", "source_id", "left"),
    [
        ({"id": 7}, "7", {}),
        ({"id": 0}, "0", {}),
        ({"pair_id": "p-1", "id": 7}, "p-1", {"id": 7}),
        ({"source_id": "s", "pair_id": "p"}, "s", {"pair_id": "p"}),
        ({"source_id": None, "id": "i"}, None, {"id": "i"}),
        ({"prompt_id": "x"}, None, {"prompt_id": "x"}),
    ],
)
def test_an_id_of_the_source_becomes_its_source_id(tmp_path, columns, source_id, left):
    (row,) = rows_of(write(tmp_path / "p.jsonl", GOOD | columns))
    assert (row.source_id, row.columns) == (source_id, left)


def test_the_sources_id_does_not_change_the_pair(tmp_path):
    first, second = rows_of(write(tmp_path / "p.jsonl", GOOD | {"id": 1}, GOOD | {"id": 2, "x": 1}))
    assert first.pair.id == second.pair.id


def test_rows_that_hold_no_pair_are_set_aside_whole(tmp_path):
    bad = GOOD | {"rejected": "", "note": "keep me"}
    first, second, third = rows_of(write(tmp_path / "p.jsonl", GOOD, bad, GOOD))
    assert isinstance(first, SourceRow)
    assert isinstance(third, SourceRow)
    assert isinstance(second, SetAside)
    assert (second.row, second.reason) == (2, "empty rejected")
    assert json.loads(second.raw) == bad


def test_every_way_to_hold_no_pair_has_its_reason(tmp_path):
    rows_by_reason = {
        "missing column chosen": {"prompt": "Q", "rejected": "B"},
        "empty prompt": GOOD | {"prompt": " "},
        "chosen equals rejected": GOOD | {"rejected": "A."},
        "no common prompt": {"chosen": "A", "rejected": "B"},
        "empty chosen": GOOD | {"chosen": [{"role": "assistant"}]},
        "chosen and rejected are of different kinds": GOOD
        | {"chosen": [{"role": "assistant", "content": "A."}]},
    }
    assert [
        row.reason for row in rows_of(write(tmp_path / "p.jsonl", *rows_by_reason.values()))
    ] == [*rows_by_reason]


def test_half_of_a_surrogate_pair_is_set_aside_wherever_it_would_be_stored(tmp_path):
    half = "\ud83d"
    call = {"function": {"name": half}}
    rows = rows_of(
        write(
            tmp_path / "p.jsonl",
            GOOD | {"chosen": half},
            GOOD | {"id": half},
            {
                "prompt": "Q?",
                "chosen": [{"role": "assistant", "content": "A", "tool_calls": [call]}],
                "rejected": [{"role": "assistant", "content": "B"}],
            },
        )
    )
    assert [row.reason for row in rows] == [
        "chosen holds half of a surrogate pair, not a character",
        "a column holds half of a surrogate pair, not a character",
        "holds half of a surrogate pair, not a character",
    ]
    assert all(row.raw.isascii() for row in rows)


def test_two_halves_in_json_are_one_character(tmp_path):
    line = b'{"prompt": "\\ud83c\\udf4c?", "chosen": "A.", "rejected": "B."}'
    (row,) = rows_of(write(tmp_path / "p.jsonl", line))
    assert row.pair.prompt[0]["content"] == "🍌?"


def test_not_a_number_in_another_column_is_kept_and_in_a_message_set_aside(tmp_path):
    turns = {
        "prompt": "Q?",
        "chosen": [{"role": "assistant", "content": "A", "weight": float("nan")}],
        "rejected": [{"role": "assistant", "content": "B"}],
    }
    row, aside = rows_of(write(tmp_path / "p.jsonl", GOOD | {"score": float("nan")}, turns))
    assert str(row.columns["score"]) == "nan"
    assert aside.reason == "holds a value that JSON does not know"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b'{"prompt": "Q?", ', "line 2 is not JSON: "),
        (b"[1, 2]", "line 2 is not an object but a list"),
        (b'"text"', "line 2 is not an object but a text"),
        (b"null", "line 2 is not an object but null"),
        (b'{"prompt": "\xff"}', "line 2 is not UTF-8 at column 13"),
        (b'{"prompt": "a\tb"}', "line 2 is not JSON: Invalid control character"),
        (b'\xef\xbb\xbf{"a": 1}', "line 2 is not JSON: A byte order mark stands at column 1"),
        (b"{} {}", "line 2 is not JSON: Extra data at column 4"),
        (b'{"prompt": "Q?", "chosen": "A.", "chosen": "C."}', "line 2 has the key 'chosen' twice"),
        (b'{"a": [{"b": 1, "b": 1}]}', "line 2 has the key 'b' twice"),
        (b'{"a": ' + b"[" * 100_000, "line 2 is nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", "line 2 has a number of too many digits: write it"),
    ],
)
def test_a_row_that_is_no_json_object_is_an_error_that_names_it(tmp_path, line, expected):
    path = write(tmp_path / "p.jsonl", GOOD, line, GOOD)
    assert error_of(path).startswith(f"{path}: {expected}")


def test_lines_may_end_as_on_windows_and_empty_ones_hold_nothing(tmp_path):
    line = json.dumps(GOOD).encode()
    path = tmp_path / "p.jsonl"
    path.write_bytes(line + b"\r\n" + b"\n \t\r\n" + line + b"\n\n\r\n")
    assert [row.row for row in rows_of(path)] == [1, 2]


def test_the_last_line_needs_no_end(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_bytes(json.dumps(GOOD).encode())
    assert len(rows_of(path)) == 1


def test_a_line_separator_inside_a_text_ends_no_row(tmp_path):
    source_row = GOOD | {"chosen": "one\u2028two\u2029three\x85four"}
    path = write(tmp_path / "p.jsonl", json.dumps(source_row, ensure_ascii=False).encode())
    (row,) = rows_of(path)
    assert row.pair.chosen[0]["content"] == source_row["chosen"]


def test_a_byte_order_mark_belongs_to_no_row(tmp_path):
    path = write(tmp_path / "p.jsonl", b"\xef\xbb\xbf" + json.dumps(GOOD).encode(), GOOD)
    assert [row.pair for row in rows_of(path)] == [rows_of(path)[0].pair] * 2


def test_an_empty_file_has_no_rows(tmp_path):
    assert rows_of(write(tmp_path / "p.jsonl")) == []
    (tmp_path / "p.jsonl.gz").write_bytes(gzip.compress(b""))
    assert rows_of(tmp_path / "p.jsonl.gz") == []


def test_a_cut_gzip_names_the_last_whole_row(tmp_path):
    path = tmp_path / "p.jsonl.gz"
    compressed = gzip.compress(
        b"".join(json.dumps(GOOD | {"n": n}).encode() + b"\n" for n in range(9))
    )
    path.write_bytes(compressed[:-8])  # without the checksum and the length
    assert "damaged after line 9" in error_of(path)
    path.write_bytes(b'{"not": "gzip"}')
    assert "damaged after line 0" in error_of(path)


def test_a_gzip_with_a_wrong_checksum_is_damaged(tmp_path):
    path = tmp_path / "p.jsonl.gz"
    compressed = bytearray(gzip.compress(json.dumps(GOOD).encode() + b"\n"))
    compressed[-8] ^= 1
    path.write_bytes(compressed)
    assert "damaged after line" in error_of(path)


def test_a_huge_row_is_a_row_like_any_other(tmp_path):
    huge_row = GOOD | {"chosen": "word " * 1_000_000}
    rows = rows_of(write(tmp_path / "p.jsonl", huge_row, GOOD))
    assert len(rows[0].pair.chosen[0]["content"]) == 5_000_000
    assert len(rows) == 2


def test_a_parquet_file_without_our_columns_gives_no_pair(tmp_path):
    path = tmp_path / "p.parquet"
    pq.write_table(pa.table({"question": ["Q?", "P?"], "answer": ["A", "B"]}), path)
    assert [row.reason for row in rows_of(path)] == ["missing column chosen"] * 2


def test_nulls_in_parquet_are_empty_columns(tmp_path):
    path = tmp_path / "p.parquet"
    table = pa.Table.from_pylist([GOOD, GOOD | {"chosen": None}, GOOD | {"prompt": None}])
    pq.write_table(table, path)
    good, no_chosen, no_prompt = rows_of(path)
    assert isinstance(good, SourceRow)
    assert no_chosen.reason == "empty chosen"
    assert no_prompt.reason == "no common prompt"


def test_a_column_nested_deeper_than_we_can_follow_sets_its_row_aside(tmp_path):
    deep = "[" * 700 + "]" * 700
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps(GOOD)[:-1] + f', "deep": {deep}}}\n' + json.dumps(GOOD) + "\n")
    aside, row = rows_of(path)
    assert aside.reason == "nested too deeply"
    assert row.pair


def test_dates_decimals_and_bytes_of_parquet_become_text(tmp_path):
    columns = {"day": date(2026, 1, 1), "blob": b"\x00\xff", "cost": Decimal("1.50")}
    path = tmp_path / "p.parquet"
    pq.write_table(pa.Table.from_pylist([GOOD | columns, GOOD | columns | {"chosen": ""}]), path)
    row, aside = rows_of(path)
    assert row.columns == {"day": "2026-01-01", "blob": "AP8=", "cost": "1.50"}
    assert "2026-01-01" in aside.raw


@pytest.mark.parametrize("content", [b"", b"PAR1", b"not parquet at all", b"PAR1" + b"\0" * 64])
def test_a_file_that_is_no_parquet_is_named(tmp_path, content):
    path = tmp_path / "p.parquet"
    path.write_bytes(content)
    assert "not a readable Parquet file" in error_of(path)


def test_a_damaged_parquet_page_is_named(tmp_path):
    path = tmp_path / "p.parquet"
    source_rows = [GOOD | {"chosen": f"answer {n} " * 20} for n in range(500)]
    pq.write_table(pa.Table.from_pylist(source_rows), path, compression="gzip")
    data = bytearray(path.read_bytes())
    data[200:600] = b"\xff" * 400
    path.write_bytes(data)
    assert "not a readable Parquet file after row 0" in error_of(path)


def test_two_columns_of_one_name_are_refused(tmp_path):
    path = tmp_path / "p.parquet"
    column = pa.array(["A"])
    pq.write_table(pa.table([column] * 3, names=["chosen", "rejected", "chosen"]), path)
    assert "two columns have one name" in error_of(path)


def test_a_file_is_found_by_its_path_and_has_no_revision(tmp_path):
    path = write(tmp_path / "p.jsonl", GOOD)
    source = open_source(str(path))
    assert source == Source(name="p.jsonl", path=path)
    assert str(source) == "p.jsonl"
    assert str(Source(name="a/b:train", revision="c0ffee")) == "a/b:train@c0ffee"


@pytest.mark.parametrize(
    "text", ["nowhere", "", "a/b/c/d", "org/", "org/name:", "org/name@", "org/na me", "../pairs"]
)
def test_what_is_neither_file_nor_hub_id_is_refused(text):
    with pytest.raises(ValueError, match="neither a file"):
        open_source(text)


def test_files_of_other_kinds_and_folders_are_refused(tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_text("prompt,chosen,rejected\n")
    with pytest.raises(ValueError, match="pairs are read from"):
        open_source(str(path))
    with pytest.raises(ValueError, match="neither a file"):
        open_source(str(tmp_path))


def test_a_missing_file_is_missing_and_no_hub_id(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        open_source(str(tmp_path / "pairs.jsonl"))
    with pytest.raises(FileNotFoundError, match="no such file"):
        open_source("org/name.parquet")


def turns(answer):
    return [{"role": "user", "content": "Sky?"}, {"role": "assistant", "content": answer}]


def dialogue(answer):
    return f"\n\nHuman: Sky?\n\nAssistant: {answer}"


STORED = [
    GOOD,
    GOOD | {"id": 7, "score": float("nan"), "note": "keep me", "messages": turns("A.")[1:]},
    {"chosen": turns("Blue."), "rejected": turns("Green."), "instruction": "Sky?", "ratings": [2]},
    {"prompt": "Sky?", "chosen": turns("Blue."), "rejected": turns("Green."), "system": None},
    {"chosen": dialogue("Blue."), "rejected": dialogue("Green."), "source": "a"},
    {"chosen": "The sky is blue.", "rejected": "The sky is black.", "category": "x"},
    GOOD | {"tools": [{"name": "sky"}], "images": [], "image": None, "input": ""},
    {"prompt": "Q", "rejected": "B"},
    {"chosen": "A", "rejected": "B"},
    GOOD | {"rejected": "A."},
    {"prompt": "Q", "chosen": "A", "rejected": "B", "answers": ["x"], "comparison": 1},
]


RECORDED = "a5b64697d86e5e9bb182be0801262acd346727edb54564adaed4e4234c863be2"


def test_a_source_gives_the_same_records_as_ever(tmp_path):
    """A store refuses its own source if one of its records changes."""
    path = write(tmp_path / "pairs.jsonl", *STORED)
    with Store(tmp_path / "run.sqlite", write=True) as store:
        store.corpus.add(open_source(str(path)), read_rows(open_source(str(path))))
    with closing(sqlite3.connect(tmp_path / "run.sqlite")) as database:
        query = "SELECT value FROM meta WHERE key = 'source_digest'"
        assert database.execute(query).fetchone() == (RECORDED,)


def test_reading_lines_imports_neither_arrow_nor_the_hub(tmp_path):
    path = write(tmp_path / "p.jsonl", GOOD)
    program = (
        "import sys; from sp2dpo.pairs.sources import open_source, read_rows; "
        f"assert len(list(read_rows(open_source({str(path)!r})))) == 1; "
        "sys.exit(bool({'pyarrow', 'datasets', 'huggingface_hub'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


if REAL:

    def test_all_419_pairs_of_llmbar_are_usable():
        rows = rows_of(Path(REAL) / "llmbar.jsonl")
        assert len(rows) == 419
        assert all(isinstance(row, SourceRow) for row in rows)
        assert all([*row.columns] == ["subset"] for row in rows)
        assert len({row.pair.id for row in rows}) == 419

    def test_hh_rlhf_gives_2308_pairs_and_sets_four_empty_ones_aside():
        rows = rows_of(Path(REAL) / "hh-harmless-test.jsonl.gz")
        assert [row.row for row in rows] == list(range(1, 2313))
        aside = [row.reason for row in rows if isinstance(row, SetAside)]
        assert len(aside) == 4
        assert all(reason.startswith("empty") for reason in aside)
        pairs = [row.pair for row in rows if isinstance(row, SourceRow)]
        assert len(pairs) == 2308
        assert {pair.prompt[-1]["role"] for pair in pairs} <= {"user", "assistant"}
        assert {pair.chosen[0]["role"] for pair in pairs} == {"assistant"}

    def test_every_hh_dialogue_can_be_put_together_again():
        names = {"user": "Human", "assistant": "Assistant"}
        path = Path(REAL) / "hh-harmless-test.jsonl.gz"
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            source_rows = [json.loads(line) for line in lines]
        for row in rows_of(path):
            if isinstance(row, SetAside):
                continue
            for column in ("chosen", "rejected"):
                turns = (*row.pair.prompt, *getattr(row.pair, column))
                heads = [f"\n\n{names[turn['role']]}:" for turn in turns]
                remaining_text = source_rows[row.row - 1][column]
                for head, turn in zip(heads, turns, strict=True):
                    assert remaining_text.startswith(head)
                    remaining_text = remaining_text[len(head) :].removeprefix(" ")
                    assert remaining_text.startswith(turn["content"])
                    remaining_text = remaining_text[len(turn["content"]) :]
                assert remaining_text == ""
