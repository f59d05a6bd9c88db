"""Pairs from a Hub: the real clients, in a process of their own, against a small server."""

import json
import os
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from servers.hub_server import folder_commit
from support.harness import TESTS, process

NAME = "org/pairs"
SINGLE = "org/single"
SPLITS = {"main": ("train", "test"), "v1": ("train", "validation", "test")}
PROGRAM = """
import json, sys
from sp2dpo.pairs.sources import SourceRow, open_source, read_rows

found = []
for text in sys.argv[1:]:
    try:
        source = open_source(text)
        rows = [
            [row.row, row.pair.id, row.pair.prompt[-1]["content"], row.source_id, row.columns]
            if isinstance(row, SourceRow)
            else [row.row, row.reason]
            for row in read_rows(source)
        ]
        named = {"name": source.name, "revision": source.revision, "license": source.license}
        found.append(named | {"rows": rows})
    except (ValueError, OSError) as error:
        found.append({"error": type(error).__name__, "said": str(error)})
json.dump(found, sys.stdout)
"""
CALL = {"function": {"name": "f", "arguments": '{"x": 1}'}}


def rows_of(ref, split):
    return [
        {
            "id": f"{ref}-{split}-{n}",
            "prompt": [{"role": "user", "content": f"{ref} {split} {n}: é?"}],
            "chosen": [{"role": "assistant", "content": "A.", "tool_calls": [CALL] if n else None}],
            "rejected": [{"role": "assistant", "content": "A." if n == 2 else "B."}],
            "score": n / 2,
        }
        for n in range(3)
    ]


def hub(name, root):
    """A Hub that has the data set."""
    objects = root.with_name(f"{root.name}-objects")
    return process(
        TESTS / "servers" / "hub_server.py", "--root", objects, "--seed", f"{name}={root}"
    )


def client(url, home, *texts, **variables):
    """What a process with the real clients makes of the sources; `home` holds its cache."""
    settings = {"HF_ENDPOINT": url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(home)}
    settings |= {
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, *texts],
        env=os.environ | settings | variables,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A data set that was JSON Lines at the tag `v1`, with a split more, and is Parquet now."""
    root = tmp_path_factory.mktemp("hub")
    for ref in ("main", "v1"):
        (root / ref / "data").mkdir(parents=True)
        (root / ref / "README.md").write_text(f"---\nlicense: mit\n---\n{ref}\n")
        for split in SPLITS[ref]:
            name, rows = root / ref / "data" / split, rows_of(ref, split)
            if ref == "main":
                pq.write_table(pa.Table.from_pylist(rows), f"{name}-00000-of-00001.parquet")
            else:
                text = "".join(json.dumps(row) + "\n" for row in rows)
                name.with_suffix(".jsonl").write_text(text)
    return root


@pytest.fixture(scope="module")
def hub_answers(root, tmp_path_factory):
    """The answers of the clients, by the name of the source."""
    names = (
        *(
            NAME,
            f"{NAME}:test",
            f"{NAME}@v1",
            f"{NAME}:test@v1",
            f"{NAME}:test@{commit(root, 'v1')}",
        ),
        *(f"{NAME}:nope", f"{NAME}:train[:1]", f"{NAME}@v7", f"{NAME}:test@{'0' * 40}"),
        *(f"datasets/{NAME}:test", f"https://huggingface.co/datasets/{NAME}/"),
        *("org/none", "org/na..me", f"{NAME}:validation", f"{NAME}:validation@v1"),
    )
    with hub(NAME, root) as url:
        answers = client(url, tmp_path_factory.mktemp("home"), *names)
    return dict(zip(names, answers, strict=True))


def commit(root, ref):
    return folder_commit(root / ref)


def read_from(path):
    from sp2dpo.pairs.sources import SourceRow, open_source, read_rows

    return [
        [row.row, row.pair.id, row.pair.prompt[-1]["content"], row.source_id, row.columns]
        if isinstance(row, SourceRow)
        else [row.row, row.reason]
        for row in read_rows(open_source(str(path)))
    ]


@pytest.mark.parametrize(
    ("name", "split", "ref"),
    [
        (NAME, "train", "main"),
        (f"{NAME}:test", "test", "main"),
        (f"{NAME}@v1", "train", "v1"),
        (f"{NAME}:test@v1", "test", "v1"),
        (f"{NAME}:validation@v1", "validation", "v1"),
        (f"datasets/{NAME}:test", "test", "main"),
        (f"https://huggingface.co/datasets/{NAME}/", "train", "main"),
    ],
)
def test_a_split_at_a_ref_is_read_and_its_commit_is_recorded(root, hub_answers, name, split, ref):
    answer = hub_answers[name]
    assert answer["name"] == f"{NAME}:{split}"
    assert answer["revision"] == commit(root, ref)
    assert answer["license"] == "mit"
    assert [row[2:] for row in answer["rows"][:2]] == [
        [f"{ref} {split} {n}: é?", f"{ref}-{split}-{n}", {"score": n / 2}] for n in range(2)
    ]


def test_a_commit_names_what_its_tag_names(hub_answers, root):
    assert hub_answers[f"{NAME}:test@{commit(root, 'v1')}"] == hub_answers[f"{NAME}:test@v1"]


def test_the_hubs_rows_are_the_files_rows(hub_answers, root):
    parquet = read_from(root / "main" / "data" / "train-00000-of-00001.parquet")
    lines = read_from(root / "v1" / "data" / "test.jsonl")
    assert hub_answers[NAME]["rows"] == parquet
    assert hub_answers[f"{NAME}:test@v1"]["rows"] == lines
    assert len(parquet) == len(lines) == 3


def test_rows_of_the_hub_that_hold_no_pair_are_set_aside(tmp_path):
    root = tmp_path / "root"
    (root / "main").mkdir(parents=True)
    good = {"prompt": "Q?", "chosen": "A.", "rejected": "B."}
    lines = [good, good | {"rejected": "A."}, good | {"prompt": None}]
    (root / "main" / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    with hub(SINGLE, root) as url:
        (answer,) = client(url, tmp_path / "home", SINGLE)
    assert answer["name"] == f"{SINGLE}:test"  # the only split needs no name
    assert answer["rows"][1:] == [[2, "chosen equals rejected"], [3, "no common prompt"]]
    assert answer["rows"][0][0] == 1


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        (
            f"{NAME}:nope",
            "ValueError",
            f"{NAME} has the splits train, test: name one as {NAME}:SPLIT",
        ),
        (f"{NAME}:validation", "ValueError", f"{NAME} has the splits train, test: name"),
        (f"{NAME}:train[:1]", "ValueError", f"{NAME}:train[:1]: neither a file"),
        (f"{NAME}@v7", "OSError", f"{NAME}@v7: the data set has no such revision"),
        (f"{NAME}:test@{'0' * 40}", "OSError", f"{NAME}@{'0' * 40}: the data set has no such"),
        ("org/none", "OSError", "org/none: the Hub has no such data set"),
        ("org/na..me", "ValueError", "org/na..me: "),
    ],
)
def test_what_is_not_on_the_hub_is_said_in_one_line(hub_answers, name, error, message):
    answer = hub_answers[name]
    assert answer["error"] == error
    assert answer["said"].startswith(message)
    assert "\n" not in answer["said"]
    assert len(answer["said"]) < 200


def test_a_hub_that_cannot_be_reached_is_said_in_one_line(tmp_path):
    (answer,) = client("http://127.0.0.1:9", tmp_path, NAME)
    assert answer["error"] == "OSError"
    assert answer["said"].startswith(f"{NAME}: the Hub's client reports: ")
    assert "\n" not in answer["said"]


def test_without_the_network_the_hub_is_not_asked(tmp_path):
    (answer,) = client("http://127.0.0.1:9", tmp_path, NAME, HF_HUB_OFFLINE="1")
    assert answer["error"] == "OSError"
    assert "offline" in answer["said"].lower()


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("train.parquet", "not parquet", "The split names could not be parsed"),
        ("train.jsonl", '{"prompt": "Q?"}\n{"prompt": \n', "An error occurred while generating"),
        ("README.md", "Nothing yet.\n", "doesn't contain any data files"),
    ],
)
def test_a_data_set_that_cannot_be_read_is_said_in_one_line(tmp_path, file, content, message):
    root = tmp_path / "root"
    (root / "main").mkdir(parents=True)
    (root / "main" / file).write_text(content)
    with hub(SINGLE, root) as url:
        (answer,) = client(url, tmp_path / "home", SINGLE)
    assert answer["said"].startswith(SINGLE)
    assert message in answer["said"]
    assert "\n" not in answer["said"]


def test_images_of_a_hub_data_set_are_bytes_and_not_opened(tmp_path):
    import datasets

    root = tmp_path / "root"
    (root / "main").mkdir(parents=True)
    png = b"\x89PNG\r\n\x1a\n" + bytes(30)  # no image that could be opened
    text = datasets.Value("string")
    types = dict.fromkeys(("prompt", "chosen", "rejected"), text)
    types |= {"images": datasets.List(datasets.Image()), "photo": datasets.Image()}
    good = {"prompt": "Q?", "chosen": "A.", "rejected": "B."}
    image = {"bytes": png, "path": None}
    rows = [good | {"images": [image], "photo": None}, good | {"images": [], "photo": image}]
    datasets.Dataset.from_list(rows, features=datasets.Features(types)).to_parquet(
        root / "main" / "train.parquet"
    )
    with hub(SINGLE, root) as url:
        (answer,) = client(url, tmp_path / "home", SINGLE)
    first, second = answer["rows"]
    assert "holds images, which teachers do not see" in first[1]
    assert "column 'photo' holds an image" in second[1]
