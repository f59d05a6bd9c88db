"""Every shape of a preference data set, from its file to a verified data set."""

import json
from dataclasses import replace

import pytest

from sp2dpo import build_dataset, schedule_store, verify_dataset, write_betas
from sp2dpo.dataset.load import load_pairs
from sp2dpo.pairs.sources import open_source, read_rows
from sp2dpo.store.store import Store
from support.harness import SCHEDULE, kept_reply, panel_of
from support.shapes import PAIRS_PER_ROW, SHAPES, answers, prompt_text, write_shape

ROWS = 2


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_becomes_a_data_set_with_its_pairs_and_columns(tmp_path, name):
    path = write_shape(tmp_path / "pairs.jsonl", name, ROWS)
    source = open_source(str(path))
    with Store(tmp_path / "run.sqlite", write=True) as store:
        store.corpus.add(source, read_rows(source))
        store.record_panel(panel_of("one", variants=("direct",)))
        pair_ids = store.corpus.pair_ids()
        reply = {"category": "style", "magnitude": 3, "confidence": 4, "rationale": "because"}
        replies = [kept_reply(pair_id, "one", "direct", 3, 4) for pair_id in pair_ids]
        store.add_replies([replace(record, raw=json.dumps(reply)) for record in replies], [])
    schedule = tmp_path / "schedule.yaml"
    schedule.write_text(SCHEDULE.read_text().replace("quorum: 3", "quorum: 1"))
    write_betas(schedule_store(tmp_path / "run.sqlite", schedule).betas, tmp_path / "b.parquet")
    build_dataset(tmp_path / "run.sqlite", tmp_path / "b.parquet", tmp_path / "dataset", draws=20)
    assert verify_dataset(tmp_path / "dataset").consistent
    pairs = load_pairs(tmp_path / "dataset")
    per_row = PAIRS_PER_ROW.get(name, 1)
    assert len(pairs) == ROWS * per_row
    for number, row in enumerate(pairs):
        assert row["prompt"][-1]["content"] == prompt_text(number // per_row)
        assert row["chosen"][0]["content"] == answers(number // per_row)[0]
        assert row["source_row"] == number + 1
        assert row["beta"] is not None
    first = json.loads(path.read_text().splitlines()[0])
    if per_row > 1:
        assert pairs[1]["comparison"]["row"] == 1
        assert pairs[1]["source"] == first["source"]
