"""What the inspector exports can be read by every JSON parser, and is never another folder's."""

import json
import sys
from pathlib import Path

import pytest

from sp2dpo.betas.arms import Arm, compute_betas
from sp2dpo.betas.file import BetaTable
from sp2dpo.betas.schedule import load_schedule
from sp2dpo.dataset.build import write_dataset
from sp2dpo.pairs.sources import Source, SourceRow
from support.browser import INSPECTOR
from support.harness import SCHEDULE, kept_reply, pairs_of, panel_of

sys.path.insert(0, str(INSPECTOR))
import api
import loader

NAN = float("nan")
COLUMNS = {
    "score": [NAN, float("inf"), -float("inf"), 0.5],
    "list": [[NAN, 1.0], [float("inf")], [], None],
    "object": [{"a": NAN}, {"a": 1.5}, {"a": None}, None],
    "objects": [[{"a": [NAN]}], [{"a": [2.0]}], [], None],
    "ids": [[2**60 + 1], [1], [], None],
    "mixed": [1, "one", None, 2.5],
}


def refuse(constant):
    raise ValueError(constant)


def strict(text):
    return json.loads(text, parse_constant=refuse)


def build(store, folder, value=0):
    rows = [
        SourceRow(row=n, pair=row.pair, source_id=None,
                  columns={name: values[n - 1] for name, values in COLUMNS.items()} | {"v": value})
        for n, row in enumerate(pairs_of(4), 1)
    ]  # fmt: skip
    store.corpus.add(Source(name="hand.jsonl"), rows)
    store.record_panel(panel_of("a"))
    variants = ("direct", "critic", "reader")
    store.add_replies([kept_reply(rows[0].pair.id, "a", variant, 5, 5) for variant in variants])
    annotations, arm = store.annotations(), Arm(of=load_schedule(SCHEDULE))
    table = compute_betas(annotations, arm)
    betas = BetaTable(table=table, arm=arm, annotations_hash=annotations.hash)
    write_dataset(store, betas, folder, draws=20)
    return folder


@pytest.fixture
def opened(new_store, tmp_path, monkeypatch):
    """Opens a data set with odd columns as the inspector's own."""
    (tmp_path / "files").mkdir()
    monkeypatch.setattr(api, "EXPORTS", api.Exports(tmp_path / "files"))

    def open_with(value, parent="one"):
        folder = build(new_store(f"{parent}.sqlite"), tmp_path / parent / "dataset", value)
        scratch = tmp_path / f"scratch-{parent}"
        scratch.mkdir()
        dataset = loader.open_folder(folder, scratch, name="dataset", commit=None)
        monkeypatch.setattr(api.LIBRARY, "get", lambda name: dataset)

    return open_with


def exported():
    path = Path(api.export({"kind": "jsonl", "query": ""})["path"])
    return [strict(line) for line in path.read_text("utf-8").split("\n") if line]


def test_exported_lines_are_json_and_nan_is_null(opened):
    opened(0)
    rows = exported()
    assert [row["score"] for row in rows] == [None, None, None, 0.5]
    assert [row["list"] for row in rows] == [[None, 1.0], [None], [], None]
    assert [row["object"] for row in rows] == [{"a": None}, {"a": 1.5}, {"a": None}, None]
    assert rows[0]["objects"] == [{"a": [None]}]
    assert [row["ids"] for row in rows] == [[2**60 + 1], [1], [], None]


def test_pairs_for_programs_are_json(opened):
    opened(0)
    answer = strict(api.find_pairs("", "", 4, 0))
    assert [pair["score"] for pair in answer["pairs"]] == [None, None, None, 0.5]
    assert strict(json.dumps(api.pair({"place": 0}), allow_nan=False))["row"]["list"] == [None, 1]


def test_an_export_is_never_that_of_another_folder_of_the_same_name(opened):
    values = []
    for value, parent in enumerate(("one", "two")):
        opened(value, parent)
        values.append({row["v"] for row in exported()})
    assert values == [{0}, {1}]
