"""The inspector refuses files that the manifest does not list, and damaged or hostile content."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from support.browser import INSPECTOR
from support.listing import list_files

sys.path.insert(0, str(INSPECTOR))
import loader
import opening
from errors import UnusableDataset

TRAIN = "train-00000-of-00001.parquet"
DATA, REPLIES, SCHEDULES = f"data/{TRAIN}", f"annotations/{TRAIN}", f"schedules/{TRAIN}"
SCALES = "name: x\nmagnitude: {min: 0, max: 9}\nconfidence: {min: 0, max: 9}\n"
ALIASES = "a: &a [x, x, x]\nb: &b [*a, *a, *a]\nname: [*b, *b, *b]\n"


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(INSPECTOR / "demo", tmp_path / "dataset")


def refusal(folder):
    """The message that refuses a data set."""
    scratch = folder.parent / "scratch"
    scratch.mkdir(exist_ok=True)
    with pytest.raises(UnusableDataset, match=r"\Aorg/x: ") as caught:
        loader.open_folder(folder, scratch, name="org/x", commit=None)
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 500
    return message


def change_table(folder, name, change):
    """Write another table to a file that the manifest lists with its new hash."""
    pq.write_table(change(pq.read_table(folder / name)), folder / name)
    list_files(folder, folder / name)


def replaced(table, name, values, kind=None):
    place = table.schema.get_field_index(name)
    column = values if isinstance(values, pa.Array) else pa.array(values, kind)
    return table.set_column(place, name, column)


def all_alike(value, kind=None):
    return lambda table, name: replaced(table, name, [value] * len(table), kind)


def test_a_file_that_the_manifest_does_not_list_is_not_read(folder):
    shutil.copy(folder / DATA, folder / "data" / "train-00001-of-00002.parquet")
    (folder / "data" / "train-00002.parquet").write_bytes(b"x")
    opened = loader.open_folder(folder, folder.parent, name="x", commit=None)
    assert len(opened.texts) == 96


@pytest.mark.parametrize("name", [DATA, REPLIES, SCHEDULES, "rubric.yaml"])
@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda path: path.unlink(), "is missing"),
        (lambda path: path.write_bytes(path.read_bytes() + b" "), "another size"),
        (lambda path: path.write_bytes(path.read_bytes()[:-9] + b"123456789"), "another SHA-256"),
    ],
)
def test_a_file_must_be_the_one_that_the_manifest_lists(folder, name, damage, why):
    damage(folder / name)
    message = refusal(folder)
    assert name in message
    assert why in message


@pytest.mark.parametrize(
    ("keys", "value", "why"),
    [
        ((), [], "not a data set of sp2dpo"),
        (("toolkit",), "sp2dpo", "not a data set of sp2dpo"),
        (("format",), 2, "format 2"),
        (("files",), [], "files: must be an object"),
        (("files", DATA), {}, "sha256: is missing"),
        (("files", DATA, "bytes"), -1, "bytes: must be a whole number"),
        (("files", "data/../../x.parquet"), {}, "is not a name of a file"),
        (("files", "data/more/x.parquet"), {}, "is not a name of a file"),
        (("schedule",), None, "schedule: must be an object"),
        (("schedule", "beta_min"), "0.1", "beta_min: must be a number"),
        (("schedule", "beta_max"), True, "beta_max: must be a number"),
        (("schedule", "quorum"), 10**400, "quorum: must be a whole number"),
        (("schedule", "gap"), "other", "gap: must be a gap form"),
        (("schedule", "envelopes"), {"a": None}, "envelopes, a: must be an object"),
        (("teachers",), {"a": 1}, "teachers: must be a list"),
        (("teachers", 0), None, "teachers, 1: must be an object"),
        (("teachers", 0, "model"), 5, "model: must be a text"),
        (("rubric", "protocol"), "none", "protocol: must be a protocol"),
        (("rubric", "sha256"), "\ud800" * 64, "sha256: must be a SHA-256"),
        (("license",), "\ud800", "license: is not valid Unicode"),
        (("audit", "checks", 0), 7, "checks, 1: must be an object"),
        (("agreement", "teachers"), [], "agreement, teachers: must be an object"),
        (("arm",), {"a": "x" * 30_000}, "arm, a: must be a text"),
    ],
)  # fmt: skip
def test_a_manifest_is_checked_before_it_is_used(folder, keys, value, why):
    path = folder / "manifest.json"
    manifest = place = json.loads(path.read_text())
    for key in keys[:-1]:
        place = place[key]
    if keys:
        place[keys[-1]] = value
    path.write_text(json.dumps(manifest if keys else value))
    assert why in refusal(folder)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"{", "not valid JSON"),
        (b"\xff", "not valid JSON"),
        (b"", "not valid JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": 1, "a": 2}', "a key twice"),
        (b'{"format": NaN}', "NaN is not a number"),
        (b'{"format": ' + b"1" * 10_000 + b"}", "not valid JSON"),
        (b" " * 9_000_000, "larger than 8 MB"),
    ],
)
def test_a_manifest_that_is_no_json_is_refused(folder, content, why):
    (folder / "manifest.json").write_bytes(content)
    assert why in refusal(folder)


def test_the_number_of_files_is_limited(folder):
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    entry = manifest["files"][DATA]
    manifest["files"] |= {f"data/train-{number:05}.parquet": entry for number in range(3000)}
    path.write_text(json.dumps(manifest))
    assert "at most 2,000 are read" in refusal(folder)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("a: [b", "not valid YAML"),
        ("7", "must be an object"),
        ("", "must be an object"),
        ("name: x\x07", "not valid YAML"),
        ("? [a]\n: b", "not valid YAML"),
        (ALIASES, "has an alias"),
        ("name: &a x\nother: *a", "has an alias"),
        ("a: &a {b: *a}", "has an alias"),
        ("[" * 500 + "]" * 500, "more than 20 levels"),
        ("- a\n" * 40_000, "more than 30,000 values"),
        ("#" * 1_500_000, "larger than 1 MB"),
        (f"{SCALES}categories: [a]", "categories: must be an object"),
        (SCALES + "categories: {a: [b]}", "categories, a: must be a text"),
        (SCALES + "categories: {a: b}\nmagnitude: {min: 0, max: 1e3}", "max: must be a whole"),
        (SCALES + "categories: {a: b}\nmagnitude: {min: 3, max: 3}", "magnitude: must be a scale"),
        (SCALES + f"categories: {{{', '.join(f'c{n}: d' for n in range(200))}}}", "at most 127"),
    ],
)
def test_a_rubric_is_checked_before_it_is_used(folder, content, why):
    (folder / "rubric.yaml").write_text(content)
    list_files(folder, folder / "rubric.yaml")
    message = refusal(folder)
    assert "rubric.yaml" in message
    assert why in message


@pytest.mark.parametrize(
    ("name", "column", "change", "why"),
    [
        (DATA, "pair_id", all_alike("x"), "not a SHA-256"),
        (DATA, "pair_id", all_alike(None, pa.string()), "not a SHA-256"),
        (DATA, "beta", all_alike("0.1"), "the column beta must be numbers, not string"),
        (DATA, "beta", all_alike(np.float16(1), pa.float16()), "must be numbers, not halffloat"),
        (DATA, "beta", all_alike(float("inf")), "beta has a value outside"),
        (DATA, "gap", all_alike(-1e300), "gap has a value outside"),
        (DATA, "keep", all_alike(2), "the column keep must be yes or no"),
        (DATA, "category", all_alike(8), "category has a value outside 0 to 7"),
        (DATA, "category", all_alike(-1), "category has a value outside 0 to 7"),
        (DATA, "prompt", all_alike("text"), "prompt must be messages"),
        (DATA, "chosen", all_alike([{"role": "user"}]), "chosen must be messages"),
        (DATA, "chosen", all_alike([{"role": "a", "content": 1}]), "chosen must be messages"),
        (DATA, "source_id", lambda t, n: t.remove_column(0), "it has no column pair_id"),
        (DATA, "source_id", lambda t, n: t.append_column("beta", t["gap"]), "columns of one name"),
        (DATA, "source_id", lambda t, n: t.append_column("__text", t[n]), "uses itself"),
        (DATA, "source_id", lambda t, n: t.append_column("", t[n]), "name of a column is empty"),
        (DATA, "source_id", lambda t, n: t.slice(0, 0), "has no rows"),
        (DATA, "source_id", lambda t, n: t.slice(1), "a reply is about an unknown pair"),
        (DATA, "source_row", all_alike(2**55, pa.timestamp("ms")), "is damaged"),
        (REPLIES, "status", all_alike("lost"), "another status"),
        (REPLIES, "status", all_alike(None, pa.string()), "a reply has no status"),
        (REPLIES, "order", all_alike("both"), "another order"),
        (REPLIES, "teacher", all_alike(None, pa.string()), "a reply has no teacher"),
        (REPLIES, "category", all_alike(None, pa.int64()), "a kept reply has no category"),
        (REPLIES, "category", all_alike(2**40), "category has a value outside"),
        (REPLIES, "magnitude", all_alike(11), "magnitude has a value outside 0 to 10"),
        (REPLIES, "confidence", all_alike(-(2**31)), "confidence has a value outside"),
        (REPLIES, "expected_magnitude", all_alike(1e9), "expected_magnitude has a value outside"),
        (REPLIES, "raw", all_alike(b"\xff"), "the column raw must be text"),
        (SCHEDULES, "signed", all_alike("x"), "the column signed must be numbers"),
        (SCHEDULES, "pair_id", all_alike("0" * 64), "a beta for an unknown pair"),
    ],
)  # fmt: skip
def test_rows_are_checked_before_they_are_used(folder, name, column, change, why):
    change_table(folder, name, lambda table: change(table, column))
    assert why in refusal(folder)


def test_text_that_is_no_utf8_is_refused(folder):
    def change(table):
        bad = pa.array([b"\xff\xfe"] * len(table), pa.binary())
        view = pa.StringArray.from_buffers(len(bad), bad.buffers()[1], bad.buffers()[2])
        return replaced(table, "source_id", view)

    change_table(folder, DATA, change)
    assert "is damaged" in refusal(folder)


@pytest.mark.parametrize("seed", range(12))
def test_changed_bytes_of_a_listed_file_are_refused_or_harmless(folder, seed):
    path = folder / (DATA, REPLIES, SCHEDULES)[seed % 3]
    content = bytearray(path.read_bytes())
    for step in range(1, 40):
        content[(seed * 7919 + step * 104_729) % len(content)] ^= 1 << (step % 8)
    path.write_bytes(content)
    list_files(folder, path)
    refusal(folder)


def texts(count, *values):
    """A column of texts that its file holds as a few distinct ones."""
    codes = np.arange(count) * len(values) // count
    return pa.DictionaryArray.from_arrays(pa.array(codes.astype(np.int32)), pa.array(values))


def lists(count, each, value):
    offsets = pa.array(np.arange(0, count * each + 1, each, np.int32))
    return pa.ListArray.from_arrays(offsets, texts(count * each, value))


def add(column):
    return lambda table: table.append_column("note", column(len(table)))


HOSTILE = {
    "one text for all rows": add(lambda count: texts(count, "x" * 2_000_000)),
    "lists of one text": add(lambda count: lists(count, 20, "x" * 100_000)),
    "small texts before large ones": add(lambda count: texts(count, "", "x" * 4_000_000)),
    "runs of equal numbers": add(lambda count: lists(count, 300_000, 1)),
    "one page": add(lambda count: pa.array(["x" * 190_000_000, *[""] * (count - 1)])),
}


@pytest.mark.parametrize(
    "kind",
    [
        kind if kind.endswith("rows") else pytest.param(kind, marks=pytest.mark.slow)
        for kind in HOSTILE
    ],
)
def test_a_small_file_that_unpacks_to_gigabytes_is_refused(folder, tmp_path, kind):
    table = HOSTILE[kind](pq.read_table(folder / DATA))
    pq.write_table(table, folder / DATA, compression="zstd", store_schema=False)
    list_files(folder, folder / DATA)
    assert (folder / DATA).stat().st_size < 2_000_000
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    limits = opening.Limits(unpacked=100_000_000, memory=700_000_000)
    job = opening.Job(
        name="org/x", source=str(folder), is_folder=True, scratch=str(scratch), limits=limits
    )
    with pytest.raises(UnusableDataset, match=r"unpacked, which is the limit|more memory"):
        opening.open_dataset(job)
    written = sum(path.stat().st_size for path in Path(scratch).rglob("*") if path.is_file())
    assert written <= 2 * limits.unpacked


def test_what_kills_the_reader_leaves_the_server_alone(folder, tmp_path, monkeypatch):
    reader = tmp_path / "reader.py"
    reader.write_text("import os\nos.kill(os.getpid(), 11)\n")
    monkeypatch.setattr(opening, "__file__", str(reader))
    job = opening.Job(
        name="org/x", source=str(folder), is_folder=True, scratch=str(tmp_path), limits=None
    )
    with pytest.raises(UnusableDataset, match="org/x: its files are damaged"):
        opening.open_dataset(job)


def test_an_opened_data_set_is_what_was_opened(folder, tmp_path):
    directly = loader.open_folder(folder, tmp_path, name="x", commit=None)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    job = opening.Job(
        name="x", source=str(folder), is_folder=True, scratch=str(scratch), limits=opening.Limits()
    )
    opened = opening.open_dataset(job)
    assert opened.packed == directly.packed
    assert opened.packed_scores == directly.packed_scores
    assert opened.fingerprint == directly.fingerprint
    assert opened.row(95) == directly.row(95)
    assert opened.pair_replies(0) == directly.pair_replies(0)


@pytest.mark.parametrize("name", ["teacher", "variant"])
def test_a_name_that_is_too_long_to_be_shown_is_refused(folder, name):
    change_table(folder, REPLIES, lambda table: all_alike("x" * 301)(table, name))
    assert f"the name of a {name} is longer than 300 characters" in refusal(folder)


def test_long_words_of_a_column_are_no_field(folder):
    change_table(
        folder, DATA, lambda table: table.append_column("topic", [["x" * 301] * len(table)])
    )
    opened = loader.open_folder(folder, folder.parent, name="x", commit=None)
    assert "topic" not in opened.fields


def test_what_a_library_prints_is_no_answer(folder):
    program = (
        "import opening, os, sys\n"
        "tell = opening._take_output()\n"
        "print('a warning of a library', flush=True)\n"
        "os.write(1, b'and of C code')\n"
        "tell('{}')\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=INSPECTOR, capture_output=True, text=True, check=True
    )
    assert ended.stdout == "{}\n"
    assert "a warning of a library" in ended.stderr
