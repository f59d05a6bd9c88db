"""What is verified is what is read: files that the manifest does not list are found, not loaded."""

import json
import os
import shutil
from copy import deepcopy

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from sp2dpo import batches
from sp2dpo.dataset.card import digest
from sp2dpo.dataset.load import load_pairs
from sp2dpo.dataset.verify import verify_dataset
from sp2dpo.listing import compute_fingerprint
from sp2dpo.training.provenance import read_split

ROWS = "data/train-00000-of-00001.parquet"


@pytest.fixture
def folder(demo, tmp_path):
    return shutil.copytree(demo / "dataset", tmp_path / "dataset")


def swap(source, target):
    """Writes the same rows with the responses exchanged."""
    table = pq.read_table(source)
    names = ["rejected" if name == "chosen" else name for name in table.column_names]
    names[table.column_names.index("rejected")] = "chosen"
    target.parent.mkdir(exist_ok=True)
    swapped = table.rename_columns(names).select(table.column_names)
    pq.write_table(swapped.replace_schema_metadata(table.schema.metadata), target)


def edit_header(folder, change):
    """Changes the YAML of the card, and writes the hash that verify expects."""
    card = folder / "README.md"
    _, header, text = card.read_text().split("---\n", 2)
    values = yaml.safe_load(header)
    card.write_text(f"---\n{yaml.safe_dump(change(values) or values)}---\n{text}")
    forge_hash(folder)


def forge_hash(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["card_sha256"] = digest((folder / "README.md").read_text(), where="card")
    (folder / "manifest.json").write_text(json.dumps(manifest))


def differences(folder):
    return {
        check.name: check.message
        for check in verify_dataset(folder).checks
        if not check.holds
    }  # fmt: skip


def first_chosen(folder):
    return pq.read_table(folder / ROWS)["chosen"][0].as_py()


def read_other_files(values, files="data/other.parquet"):
    values["configs"][0]["data_files"] = [{"split": "train", "path": [files]}]


def test_labels_swapped_in_a_file_beside_those_of_the_manifest_are_found_and_not_read(folder):
    swap(folder / ROWS, folder / "data" / "other.parquet")
    edit_header(folder, read_other_files)
    found = differences(folder)
    assert set(found) == {"files", "card"}
    assert "the manifest does not list data/other.parquet" in found["files"]
    assert "data_files is [{'path': ['data/other.parquet']" in found["card"]
    assert read_split(str(folder), "train", None)[0]["chosen"] == first_chosen(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda values: read_other_files(values, "data/*.parquet"),
        lambda values: read_other_files(values, "./" + ROWS),
        lambda values: read_other_files(values, "DATA" + ROWS.removeprefix("data")),
        lambda values: values["configs"][0].update(data_files=ROWS),
        lambda values: values["configs"][0].update(data_dir="annotations"),
        lambda values: values["configs"][0].update(drop_labels=False),
        lambda values: values["configs"][0].update(filters=[["beta", ">", 0.2]]),
        lambda values: values["configs"][0].update(default=1),
        lambda values: values["configs"][0].update(description="SHA-256 0"),
        lambda values: values["configs"][0].pop("default"),
        lambda values: values["configs"].reverse() or values["configs"][0].update(default=True),
        lambda values: values["configs"].append(deepcopy(values["configs"][0])),
        lambda values: values["configs"].append({"config_name": "x", "data_files": ROWS}),
        lambda values: values["configs"].append({"config_name": "Default", "data_files": ROWS}),
        lambda values: values["configs"].pop(),
        lambda values: values.pop("configs"),
        lambda values: values.update(configs={"config_name": "default"}),
        lambda values: values["dataset_info"].pop(0),
        lambda values: values["dataset_info"][0]["features"].pop(),
        lambda values: values["dataset_info"][0]["features"][0].update(dtype="int64"),
        lambda values: values["dataset_info"].append({"config_name": "x", "features": []}),
        lambda values: values.pop("dataset_info"),
    ],
)
def test_a_card_that_describes_other_data_than_the_manifest_is_found(folder, change):
    edit_header(folder, lambda values: change(values) and None)
    assert set(differences(folder)) == {"card"}


@pytest.mark.parametrize(
    "edit",
    [
        lambda text: "\n" + text,
        lambda text: text.replace("\n---\n", "\nconfigs: []\n---\n", 1),
        lambda text: text.replace("\n---\n", "\r---\n# of the Hub\n---\n", 1),
    ],
    ids=["an empty line above", "a key twice", "an end that only the Hub sees"],
)
def test_a_header_that_others_may_read_otherwise_is_found(folder, edit):
    card = folder / "README.md"
    card.write_bytes(edit(card.read_text()).encode())
    assert "card" in differences(folder)


@pytest.mark.parametrize(
    "name",
    [
        "data/train-00001-of-00002.parquet", "extra.csv", "rows.jsonl.gz", "more/x.arrow",
        "dataset.py", "dataset_infos.json", ".huggingface.yaml", "data/README.md", "readme.md",
        "Manifest.json", "images.zip", "notes.txt", "data/[a]*.parquet", "state.json",
    ],
)  # fmt: skip
def test_a_file_that_could_be_read_in_place_of_the_data_is_found(folder, name):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("x")
    assert f"the manifest does not list {name}" in differences(folder)["files"]


def test_links_to_files_and_folders_are_found_and_loops_end(folder, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    swap(folder / ROWS, tmp_path / "elsewhere" / "other.parquet")
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    assert "linked/other.parquet" in differences(folder)["files"]
    (folder / "linked").unlink()
    (folder / "assets" / "again").symlink_to(folder)
    assert "assets/again/" in differences(folder)["files"]


@pytest.mark.parametrize("name", ["README.md", "rubric.yaml", ROWS])
def test_a_pipe_in_place_of_a_file_is_not_waited_for(folder, name):
    (folder / name).unlink()
    os.mkfifo(folder / name)
    assert any("not a regular file" in message for message in differences(folder).values())


def test_words_pictures_and_files_of_git_may_stand_beside_the_data(folder):
    for name in (
        "NOTES.md",
        "LICENSE",
        "plot.png",
        ".gitattributes",
        ".git/config",
        "CITATION.cff",
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("mine")
    edit_header(folder, lambda values: values.update(language=["en"], viewer=False))
    assert differences(folder) == {}


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("data/train-00001-of-00001.parquet", "do not run from 0 to their count"),
        ("data/train-00000-of-00002.parquet", "do not run from 0 to their count"),
        ("data/Train-00000-of-00001.parquet", "is not a file of a data set"),
        ("data//train-00000-of-00001.parquet", "is not a file of a data set"),
        ("data/./train-00000-of-00001.parquet", "is not a file of a data set"),
        ("data/*", "is not a file of a data set"),
        ("README.md", "is not a file of a data set"),
        ("data/train-00000-of-00001.parquet\u202e", "is not a file of a data set"),
    ],
)
def test_a_manifest_lists_the_files_that_build_writes_and_no_others(folder, name, problem):
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"][name] = manifest["files"][ROWS]
    path.write_text(json.dumps(manifest))
    assert problem in differences(folder)["manifest"]
    with pytest.raises(ValueError, match="is damaged: files: "):
        read_split(str(folder), "train", None)


def test_a_manifest_that_lists_a_file_twice_is_found(folder):
    path = folder / "manifest.json"
    text = path.read_text()
    entry = '"data/train-00000-of-00001.parquet": {"sha256": "' + "0" * 64 + '", "bytes": 1},'
    path.write_text(text.replace('"files": {', f'"files": {{{entry}', 1))
    assert f"has the key '{ROWS}' twice" in differences(folder)["manifest"]


def test_training_and_loading_refuse_a_file_that_was_replaced(folder):
    before = (folder / ROWS).stat()
    load_pairs(str(folder))
    data = bytearray((folder / ROWS).read_bytes())
    data[100] ^= 1
    (folder / ROWS).write_bytes(data)
    # With its size and time, it would have been served from the cache of `datasets`.
    os.utime(folder / ROWS, ns=(before.st_atime_ns, before.st_mtime_ns))
    for read in (load_pairs, lambda name: read_split(name, "train", None)):
        with pytest.raises(ValueError, match="has another SHA-256 than the manifest states"):
            read(str(folder))


def test_rows_of_the_same_name_size_and_time_are_those_of_the_file(folder, tmp_path):
    again = shutil.copytree(folder, tmp_path / "again")
    load_pairs(str(folder))
    shutil.rmtree(folder)
    again.rename(folder)
    swapped = tmp_path / "other" / "swapped.parquet"
    swap(folder / ROWS, swapped)
    manifest = json.loads((folder / "manifest.json").read_text())
    shutil.copy(swapped, folder / ROWS)
    facts = compute_fingerprint(folder / ROWS)
    manifest["files"][ROWS] = {"sha256": facts.sha256, "bytes": facts.bytes}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    rows = read_split(str(folder), "train", None)
    assert rows[0]["chosen"] == first_chosen(folder)
    with pytest.raises(ValueError, match="its id is not the hash of its texts"):
        load_pairs(str(folder))


def test_betas_of_schedules_that_the_manifest_does_not_name_are_found(folder):
    table = pa.table({"pair_id": ["a"], "default": [9.99]})
    (folder / "schedules").mkdir()
    name = "schedules/train-00000-of-00001.parquet"
    pq.write_table(table, folder / name)
    manifest = json.loads((folder / "manifest.json").read_text())
    facts = compute_fingerprint(folder / name)
    manifest["files"][name] = {"sha256": facts.sha256, "bytes": facts.bytes}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert "lists files of schedules, and no schedule" in differences(folder)["schedules"]


def hostile_column(name):
    """A column of a few kilobytes that stands for a thousand times as much."""
    index = pa.array([0] * 5000, pa.int32())
    texts = pa.DictionaryArray.from_arrays(index, pa.array(["x" * 4000]))
    if name == "a text in a dictionary":
        return texts
    if name == "texts in a list":
        return pa.ListArray.from_arrays(pa.array([0, 5000], pa.int32()), texts)
    if name == "texts in objects":
        return pa.StructArray.from_arrays([texts], ["content"])
    if name == "a run of nulls":
        return pa.ListArray.from_arrays(pa.array([0, 400_000], pa.int32()), pa.nulls(400_000))
    return pa.array([b"x" * 3_000_000])


@pytest.mark.parametrize(
    "name",
    [
        "a text in a dictionary", "texts in a list", "texts in objects", "a run of nulls",
        "a compressed page",
    ],
)  # fmt: skip
def test_a_small_file_that_stands_for_too_much_is_refused(tmp_path, monkeypatch, name):
    # A 256th of the real limits.
    for limit in ("BATCH_BYTES", "ROW_BYTES", "_FREE_BYTES", "_FREE_PAGES", "_FREE_VALUES"):
        monkeypatch.setattr(batches, limit, getattr(batches, limit) >> 8)
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"a": hostile_column(name)}), path, compression="zstd")
    assert path.stat().st_size < 100_000
    seen = []
    with pytest.raises(batches.TooLarge):
        seen.extend(batch.nbytes for batch in batches.read_batches(path))
    assert max(seen, default=0) <= batches.BATCH_BYTES


def test_columns_of_all_types_are_read_as_pyarrow_reads_them(tmp_path):
    texts = ["a" * 3000, None, "b"] * 500
    table = pa.table(
        {
            "text": texts,
            "large": pa.array(texts, pa.large_string()),
            "bytes": pa.array([text and text.encode() for text in texts]),
            "list": [[text, "c"] for text in texts],
            "nested": [{"a": {"b": [text]}, "c": None} for text in texts],
            "map": pa.array([[("k", text)] for text in texts], pa.map_(pa.string(), pa.string())),
            "fixed": pa.array([[text, "d"] for text in texts], pa.list_(pa.string(), 2)),
            "labels": pa.array(texts).dictionary_encode(),
            "number": range(len(texts)),
            "null": pa.nulls(len(texts)),
        }
    )
    path = tmp_path / "a.parquet"
    pq.write_table(table, path)
    parts = list(batches.read_batches(path, rows=700))
    assert [row for batch in parts for row in batch.to_pylist()] == table.to_pylist()
    assert all(batch.schema.equals(table.schema) for batch in parts)


@pytest.mark.parametrize("options", [{"row_group_size": 300}, {"dictionary_pagesize_limit": 5000}])
def test_nested_texts_of_several_dictionaries_are_read_in_their_order(tmp_path, options):
    rows = [
        {"id": f"{number}", "turns": [{"role": "user", "content": f"text {number} " * 50}]}
        for number in range(3000)
    ]
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path, **options)
    assert [row for batch in batches.read_batches(path) for row in batch.to_pylist()] == rows
