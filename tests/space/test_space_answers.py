"""Answers of the inspector are short, complete in parts, and forgotten if nobody fetches them."""

import asyncio
import base64
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from support.browser import INSPECTOR, inspector
from support.space_calls import calls

sys.path.insert(0, str(INSPECTOR))
import answers
import api
import exports
import loader
from query import BadRequest


@pytest.fixture
def opened(demo, tmp_path, monkeypatch):
    """Opens a data set whose first pair has these texts as the inspector's own."""

    def open_with(chosen="short", rationale="short"):
        folder = tmp_path / "dataset"
        folder.symlink_to(demo / "dataset")
        dataset = loader.open_folder(folder, tmp_path, name="dataset", commit=None)
        whole = type(dataset).row, type(dataset).pair_replies

        def row(self, place):
            changed = {"chosen": [{"role": "assistant", "content": chosen}]} if place == 0 else {}
            return whole[0](self, place) | changed

        def replies(self, place):
            changed = {"rationale": rationale} if place == 0 else {}
            return [reply | changed for reply in whole[1](self, place)]

        monkeypatch.setattr(type(dataset), "row", row)
        monkeypatch.setattr(type(dataset), "pair_replies", replies)
        monkeypatch.setattr(api.LIBRARY, "get", lambda name: dataset)
        (tmp_path / "files").mkdir()
        monkeypatch.setattr(api, "EXPORTS", exports.Exports(tmp_path / "files"))
        monkeypatch.setattr(api, "ANSWERS", answers.Answers())
        return dataset

    return open_with


def whole(function, **request):
    """An answer, put together from its parts as the page does it; and the number of parts."""
    first = function(request)
    if "piece" not in first:
        return first, 1
    text = first["piece"]
    count = 1
    while len(text) < first["size"]:
        part = function(request | {"offset": len(text)})
        assert part["of"] == first["of"]
        assert 0 < len(part["piece"]) <= answers.MAX_ANSWER
        text += part["piece"]
        count += 1
    return json.loads(text), count


@pytest.mark.parametrize("letter", ["x", "ü", "字", "\U0001f321", '"', "\\", "\n", "\x00"])
def test_a_long_answer_to_the_page_comes_in_parts(opened, letter):
    opened(chosen=letter * 90_000)
    answer, count = whole(api.pair, place=0)
    assert answer["row"]["chosen"][0]["content"] == letter * 90_000
    assert (count > 1) is (len(json.dumps(answer)) > answers.MAX_ANSWER)
    assert whole(api.pair, place=1)[1] == 1


def test_a_part_that_does_not_exist_is_refused(opened):
    opened(chosen="x" * 200_000)
    size = api.pair({"place": 0})["size"]
    for offset in (size, 10**12, -1, True, "1", None, 1.5):
        assert "offset: " in api.pair({"place": 0, "offset": offset})["error"]
    assert "offset: " in api.rows({"places": [1], "offset": 10**6})["error"]


def test_long_answers_in_memory_have_a_largest_size(monkeypatch):
    monkeypatch.setattr(answers, "MAX_WHOLE", 1_000_000)
    memory = answers.Answers()
    for number in range(50):
        memory.part(0, lambda dataset, request: "x" * 200_000, None, {"number": number})
    assert sum(map(len, memory._texts.values())) <= 1_000_000
    assert memory._texts


def test_requests_for_short_answers_do_not_fill_the_memory():
    memory = answers.Answers()
    for number in range(1000):
        request = {"offset": 1, "junk": f"{number} {'x' * 100_000}"}
        memory.part(0, lambda dataset, request: "an answer", None, request)
    assert len(memory._texts) <= 200
    assert all(len(key) == 64 for key in memory._texts)


def test_a_page_of_another_state_of_the_data_set_is_told_to_reload(opened):
    dataset = opened()
    for name, request in (("rows", {"places": [0]}), ("pair", {"place": 0}),
                          ("search", {"wanted": []}), ("export", {"kind": "jsonl"})):  # fmt: skip
        function = getattr(api, name)
        for fingerprint in ("0" * 64, 5, ["x"], "x" * 2000):
            assert "error" in function(request | {"fingerprint": fingerprint})
        assert "reload the page" in function(request | {"fingerprint": "0" * 64})["error"]
        assert "error" not in function(request | {"fingerprint": dataset.fingerprint})
    assert api.start({})["fingerprint"] == dataset.fingerprint


def test_programs_get_as_many_pairs_as_fit_and_read_on(opened, monkeypatch):
    dataset = opened()
    monkeypatch.setattr(answers, "MAX_ANSWER", 20_000)
    ids, offset = [], 0
    while offset is not None:
        text = api.find_pairs("", "", 100, offset)
        assert len(text) <= 20_000
        answer = json.loads(text)
        ids += [pair["pair_id"] for pair in answer["pairs"]]
        offset = answer.get("next_offset")
    assert ids == list(dataset.ids)[:100]


@pytest.mark.parametrize("letter", ["x", "ü", "字", "\U0001f321", '"'])
def test_programs_read_a_long_pair_to_its_end(opened, letter):
    opened(chosen=letter * 30_000, rationale=letter * 20_000)
    chosen, start = "", 0
    while start is not None:
        text = api.find_pairs(f"text_from:{start}", "", 1, 0)
        assert len(json.dumps(json.loads(text))) <= answers.MAX_ANSWER
        answer = json.loads(text)
        (pair,) = answer["pairs"]
        assert len(pair["replies"]) == 9
        chosen += pair["chosen"][0]["content"]
        start = answer.get("next_text")
    assert chosen == letter * 30_000


def test_a_pair_with_endless_replies_or_columns_is_cut():
    for pair in (
        {"pair_id": "a", "replies": [{"raw": "y" * 300}] * 2_000},
        {"pair_id": "a", "list": [1.5] * 10**5, "replies": []},
        {"pair_id": "a", "deep": [[["z" * 1000] * 100] * 20], "replies": []},
        {"pair_id": "a", **{f"column {n}": n for n in range(20_000)}, "replies": []},
    ):
        text = answers.fit({"count": 1}, [pair], 1, 0, 0)
        assert len(text) <= answers.MAX_ANSWER
        assert json.loads(text)["pairs"][0]["pair_id"] == "a"


def test_a_pair_of_many_megabytes_is_refused_in_a_line(opened, monkeypatch):
    opened()
    monkeypatch.setattr(api, "MAX_PAIR", 1000)
    for function, request in ((api.pair, {"place": 3}), (api.pair, {"place": 0})):
        assert "load the data set itself" in function(request)["error"]
    answer = json.loads(api.find_pairs("", "", 3, 0))
    assert ["error" in pair for pair in answer["pairs"]] == [True, True, True]
    assert "too long to be shown" in api.rows({"places": [0]})[0]["prompt"]


def test_betas_arrive_in_parts_and_become_one_file(opened):
    dataset = opened()
    count = len(dataset.ids)
    values = np.linspace(0.1, 0.3, count)
    values[5] = np.nan
    name, answer = "", {}
    for first in range(0, count, 40):
        part = base64.b64encode(values[first : first + 40].astype("<f8").tobytes()).decode()
        answer = api.betas({"values": part, "first": first, "file": name})
        name = answer.get("file", "")
    table = pq.read_table(answer["path"])
    assert table["pair_id"].to_pylist() == list(dataset.ids)
    assert table["beta"].to_pylist() == [None if v != v else v for v in values.tolist()]


@pytest.mark.parametrize(
    "request_",
    [
        {"first": 40, "file": ""}, {"first": 40, "file": "../../../etc/passwd"},
        {"first": 40, "file": "0" * 32}, {"first": 10**9}, {"first": -1}, {"first": True},
        {"first": 95, "values": base64.b64encode(bytes(16)).decode()}, {"values": ""},
        {"values": base64.b64encode(bytes(9)).decode()},
    ],
)  # fmt: skip
def test_parts_of_betas_that_do_not_fit_are_refused(opened, tmp_path, request_):
    opened()
    values = base64.b64encode(bytes(8)).decode()
    assert "error" in api.betas({"values": values} | request_)
    assert list((tmp_path / "files").iterdir()) == []


def test_files_are_few_and_have_a_largest_size(tmp_path, monkeypatch):
    files = exports.Exports(tmp_path)
    table = pa.table({"text": ["x" * 1000] * 100})
    for number in range(30):
        files.write(f"pairs-{number}", "jsonl", lambda: iter([table]))
        files.add_part("", 0, b"12345678")
    assert len(list(tmp_path.iterdir())) <= exports.MAX_FILES
    monkeypatch.setattr(exports, "MAX_FILE", 150_000)
    for kind in ("jsonl", "parquet"):
        wide = pa.table({"number": np.random.default_rng(0).random(40_000)})
        with pytest.raises(BadRequest, match="take more than"):
            files.write("large", kind, lambda wide=wide: iter([wide] * 3))
    monkeypatch.setattr(exports, "MAX_BYTES", 300_000)
    files.write("last", "jsonl", lambda: iter([table]))
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 300_000


def test_many_visitors_who_wait_for_files_are_refused(tmp_path):
    files = exports.Exports(tmp_path)
    for _ in range(exports.MAX_WAITING):
        files._waiting.acquire()
    with pytest.raises(BadRequest, match="try again"):
        files.write("pairs", "jsonl", lambda: iter([]))


def test_an_export_is_that_of_the_data_set_as_it_was_opened(opened, tmp_path):
    """Even if name, commit and manifest of another data set are the same."""
    dataset = opened()
    first = Path(api.export({"kind": "jsonl", "query": ""})["path"])
    same = Path(api.export({"kind": "jsonl", "query": ""})["path"])
    import dataclasses

    again = dataclasses.replace(dataset, opening=dataset.opening + 1)
    api.LIBRARY.get = lambda name: again
    other = Path(api.export({"kind": "jsonl", "query": ""})["path"])
    assert first == same != other


def test_answers_that_nobody_fetches_are_forgotten():
    queue = SimpleNamespace(
        pending_event_ids_session={}, pending_messages_per_session={}, event_ids_to_events={}
    )
    running = queue.event_ids_to_events["late 0"] = SimpleNamespace(alive=True)
    for number in range(1000):
        answers.forget_unfetched(queue)
        session = f"{('late', 'same', 'done')[number % 3]} {number if number % 3 != 1 else ''}"
        events = queue.pending_event_ids_session.setdefault(session, set())
        queue.pending_messages_per_session[session] = asyncio.Queue()
        if number % 3 != 2:
            events.add(f"late {number}")
    counts = [len(events) for events in queue.pending_event_ids_session.values()]
    assert sum(counts) <= answers.MAX_UNFETCHED
    assert len(queue.pending_messages_per_session) <= answers.MAX_UNFETCHED + 1
    assert not running.alive


@pytest.mark.slow
def test_memory_stays_bounded_under_calls_of_all_kinds(demo):
    """1,500 calls: 20 % whose answer nobody fetches, 10 % that hang up."""
    with inspector(demo / "dataset") as url:
        steps = list(calls(url, 96, 1600, every=400))
    # The first steps fill what is bounded: sessions, waiting answers, threads.
    megabytes = [step[1] for step in steps]
    assert megabytes[-1] - megabytes[1] < 60, megabytes
    assert megabytes[-1] < 500, megabytes
    assert steps[-1][3]["failed"] <= 5
