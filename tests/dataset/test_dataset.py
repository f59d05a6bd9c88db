"""The data set on disk, as somebody reads it who has never heard of this toolkit."""

import gzip
import hashlib
import json
import subprocess
import sys
from dataclasses import replace

import polars as pl
import pytest
import yaml

import sp2dpo.dataset.build
from sp2dpo.betas.arms import Arm
from sp2dpo.betas.file import BetaTable
from sp2dpo.betas.schedule import load_schedule, schedule_betas
from sp2dpo.dataset.columns import MAX_COLUMNS, MAX_FIELDS
from sp2dpo.dataset.manifest import read_manifest
from sp2dpo.pairs.pair import Pair
from sp2dpo.pairs.sources import SetAside, Source, SourceRow
from sp2dpo.panel.logprobs import ValueToken, parse_tokens
from sp2dpo.panel.rubric import load_rubric
from sp2dpo.tables import read_listed
from support.harness import (
    BUILD,
    SCHEDULE,
    fail,
    filled,
    kept_reply,
    pairs_of,
    panel_of,
    refused_reply,
    run,
    succeed,
)

PAPER = load_schedule(SCHEDULE)


def beta_table_of(store):
    annotations = store.annotations()
    return BetaTable(
        table=schedule_betas(annotations, PAPER),
        arm=Arm(of=PAPER),
        annotations_hash=annotations.hash,
    )


def read(folder, tmp_path, config=None):
    """All rows of a config, read by stock `datasets` in a process that cannot see the toolkit."""
    script = (
        "import json, sys; sys.modules['sp2dpo'] = None\n"
        "from datasets import load_dataset\n"
        f"rows = load_dataset({str(folder)!r}, {config!r}, split='train')\n"
        "print(json.dumps([dict(row) for row in rows]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
        env={"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin"},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def build(store, folder):
    from sp2dpo.dataset.build import write_dataset

    result = write_dataset(store, beta_table_of(store), folder, draws=BUILD[-1])
    return result.rows, result.annotations


def test_all_rows_come_in_their_order_with_their_own_columns(new_store, tmp_path):
    store = new_store()
    good = [
        SourceRow(row=n, pair=row.pair, source_id=f"id-{n}", columns=columns)
        for n, row, columns in [
            (1, pairs_of(2)[1], {"score": 1, "beta": "theirs", "tags": ["x", "y"]}),
            (3, pairs_of(2)[0], {"score": 2.5, "beta": None, "meta": {"a": 1}}),
            (4, pairs_of(2)[1], {"score": None, "beta": "again", "mixed": 1}),
            (5, pairs_of(2)[0], {"mixed": "text"}),
        ]
    ]
    aside = SetAside(row=2, reason="empty chosen", raw="{}")
    store.corpus.add(Source(name="hand.jsonl"), [good[0], aside, *good[1:]])
    store.record_panel(panel_of("a"))
    first_id, second_id = (row.pair.id for row in pairs_of(2))
    store.add_replies(
        [kept_reply(first_id, "a", v, 10, 10, "safety") for v in ("direct", "critic", "reader")]
    )
    store.add_replies([kept_reply(second_id, "a", v, 0, 10, "style") for v in ("direct", "critic")])
    assert build(store, tmp_path / "out") == (4, 5)
    rows = read(tmp_path / "out", tmp_path)
    assert [row["source_row"] for row in rows] == [1, 3, 4, 5]
    assert [row["source_id"] for row in rows] == ["id-1", "id-3", "id-4", "id-5"]
    assert [row["pair_id"] for row in rows] == [second_id, first_id, second_id, first_id]
    assert [row["score"] for row in rows] == [1.0, 2.5, None, None]
    assert [row["source_beta"] for row in rows] == ["theirs", None, "again", None]
    assert [row["tags"] for row in rows] == [["x", "y"], None, None, None]
    assert [row["mixed"] for row in rows] == [None, None, "1", '"text"']  # as JSON text
    assert rows[1]["meta"] == {"a": 1}
    assert rows[1]["prompt"] == [{"role": "user", "content": "Question 1?"}]
    assert rows[1]["chosen"] == [{"role": "assistant", "content": "Good answer 1."}]
    # The second pair has fewer replies than the quorum of three.
    assert [row["beta"] for row in rows] == [None, 0.3, None, 0.3]
    assert [row["has_beta"] for row in rows] == [False, True, False, True]
    assert [row["votes"] for row in rows] == [2, 3, 2, 3]
    lines = (tmp_path / "out" / "set_aside.jsonl").read_text().splitlines()
    expected = {"file": "hand.jsonl", "row": 2, "reason": "empty chosen"}
    assert [json.loads(line) for line in lines] == [expected]


def test_every_reply_is_there_kept_or_refused(new_store, tmp_path):
    store = new_store()
    (pair_id,) = filled(store, 1, "a", "b")
    store.add_replies(
        [kept_reply(pair_id, "a", v, 5, 10, "factuality") for v in ("direct", "critic", "reader")]
    )
    store.add_replies(
        [kept_reply(pair_id, "b", v, 9, 10, "factuality") for v in ("direct", "critic")]
    )
    key = (pair_id, "b", "reader")
    store.add_replies([refused_reply(*key, reason="not-json", raw="Well...")])
    assert build(store, tmp_path / "out") == (1, 6)
    replies = read(tmp_path / "out", tmp_path, "annotations")
    assert [reply["status"] for reply in replies] == ["kept"] * 5 + ["refused"]
    last = replies[-1]
    assert (last["reason"], last["raw"], last["category"]) == ("not-json", "Well...", None)
    assert replies[0]["model"] == "model-a"
    (row,) = read(tmp_path / "out", tmp_path)
    assert row["beta"] == pytest.approx(0.03 + 0.27 * (0.5 + 0.9) / 2)
    assert row["category"] == 1  # factuality, the rubric's second


def test_what_a_blind_reply_adds_is_there(new_store, tmp_path):
    store = new_store()
    (pair_id,) = filled(store, 1, "a", rubric=load_rubric("semantic-gap-blind"))
    choices = [("direct", "A"), ("critic", "B"), ("reader", "tie")]
    entries = [
        kept_reply(pair_id, "a", variant, 9, 10, order="rejected-first", better=better)
        for variant, better in choices
    ]
    tokens = [ValueToken(field="magnitude", at=3, token="9", logprob=-0.5, top=[])]
    entries[0] = replace(entries[0], tokens=tokens, magnitude=8.5, confidence=9.5)
    store.add_replies(entries)
    build(store, tmp_path / "out")
    (row,) = read(tmp_path / "out", tmp_path)
    assert (row["gap"], row["signed_gap"], row["label_disputed"]) == (0, 0, False)
    replies = {reply["variant"]: reply for reply in read(tmp_path / "out", tmp_path, "annotations")}
    assert {variant: reply["better"] for variant, reply in replies.items()} == dict(choices)
    assert {reply["order"] for reply in replies.values()} == {"rejected-first"}
    direct = replies["direct"]
    assert (direct["expected_magnitude"], direct["expected_confidence"]) == (8.5, 9.5)
    assert parse_tokens(direct["logprobs"]) == tokens
    assert replies["critic"]["logprobs"] is replies["critic"]["expected_magnitude"] is None


def test_a_labelled_data_set_says_that_it_cannot_tell_disputes(new_store, tmp_path):
    store = new_store()
    (pair_id,) = filled(store, 1, "a")
    store.add_replies([kept_reply(pair_id, "a", v, 5, 10) for v in ("direct", "critic", "reader")])
    build(store, tmp_path / "out")
    (row,) = read(tmp_path / "out", tmp_path)
    assert row["gap"] == row["signed_gap"] == pytest.approx(0.5)
    assert row["label_disputed"] is None
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| `label_disputed` | null | " in card
    assert "blind" not in card
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["counts"]["labels_disputed"] is None
    assert manifest["rubric"]["protocol"] == "labelled"


def test_votes_and_kept_replies_are_counted_apart(new_store, tmp_path):
    from sp2dpo.dataset.build import write_dataset

    store = new_store()
    (pair_id,) = filled(store, 1, "a")
    store.add_replies([kept_reply(pair_id, "a", "direct", 5, 10, expected=(4.0, 10.0))])
    store.add_replies(
        [kept_reply(pair_id, "a", "critic", 5, 10), refused_reply(pair_id, "a", "reader")]
    )
    store.add_replies([refused_reply(pair_id, "a", "reader", attempt=1)])
    schedule = replace(PAPER, quorum=1, estimate="expected")
    annotations = store.annotations()
    table = schedule_betas(annotations, schedule)
    betas = BetaTable(table=table, arm=Arm(of=schedule), annotations_hash=annotations.hash)
    result = write_dataset(store, betas, tmp_path / "out", draws=BUILD[-1])
    assert (result.rows, result.annotations) == (1, 4)
    counts = json.loads((tmp_path / "out" / "manifest.json").read_text())["counts"]
    reply_counts = {key: counts[key] for key in ("annotations", "kept", "refused", "votes")}
    assert reply_counts == {"annotations": 4, "kept": 2, "refused": 2, "votes": 1}
    assert "expectations" in (tmp_path / "out" / "README.md").read_text()


def test_tool_calls_and_tools_survive(new_store, tmp_path):
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": [1, "two"]}}}
    pair = Pair(
        prompt=({"role": "user", "content": "Call f."},),
        chosen=({"role": "assistant", "content": None, "tool_calls": [call]},),
        rejected=({"role": "assistant", "content": "I would rather not."},),
        tools=({"type": "function", "function": {"name": "f"}},),
    )
    store = new_store()
    store.corpus.add(Source(name="hand.jsonl"), [SourceRow(row=1, pair=pair, source_id=None)])
    store.record_panel(panel_of("a"))
    store.add_replies([kept_reply(pair.id, "a", "direct", 5, 10)])
    build(store, tmp_path / "out")
    (row,) = read(tmp_path / "out", tmp_path)
    assert row["chosen"][0]["tool_calls"] == [call]
    assert row["rejected"][0]["tool_calls"] is None
    assert row["tools"] == list(pair.tools)


@pytest.mark.parametrize(
    ("values", "read_back"),
    [
        ([{}, {}], ["{}", "{}"]),
        ([{"a": {}}, None], ['{"a": {}}', None]),
        ([2**63, 1], ["9223372036854775808", "1"]),
        ([2**53 + 1, 0.5], ["9007199254740993", "0.5"]),
        ([{"_type": "x"}, None], ['{"_type": "x"}', None]),
        ([float("nan"), "x"], ["NaN", '"x"']),
        (["1", 1], ['"1"', "1"]),
        ([[[[1]]], [[[2]]]], [[[[1]]], [[[2]]]]),
        ([{"a": 1}, {"a": 2, "b": ["x"]}], [{"a": 1, "b": None}, {"a": 2, "b": ["x"]}]),
    ],
)
def test_columns_of_any_values_come_through(new_store, tmp_path, values, read_back):
    build_rows(new_store(), [{"theirs": value} for value in values], tmp_path / "out")
    assert [row["theirs"] for row in read(tmp_path / "out", tmp_path)] == read_back


@pytest.mark.parametrize(
    ("values", "read_back"),
    [
        ([[2**60 + 1], [0.5]], ["[1152921504606846977]", "[0.5]"]),
        ([{"a": [2**53 + 1]}, {"a": [1.5]}], ['{"a": [9007199254740993]}', '{"a": [1.5]}']),
        ([[{"n": 0.5}], [{"n": -(2**62) - 1}]], ['[{"n": 0.5}]', '[{"n": -4611686018427387905}]']),
        ([[2**60 + 1, 0.5], None], ["[1152921504606846977, 0.5]", None]),
        ([[2**70], [1]], ["[1180591620717411303424]", "[1]"]),
        ([{"a": 2**63}, {"a": 1}], ['{"a": 9223372036854775808}', '{"a": 1}']),
        (
            [{"id": 2**60 + 1, "x": 1}, {"id": 7, "x": 0.5}],
            [{"id": 2**60 + 1, "x": 1.0}, {"id": 7, "x": 0.5}],
        ),
        ([[2**60 + 1], [2]], [[2**60 + 1], [2]]),
        ([[2**53], [0.5]], [[2.0**53], [0.5]]),
    ],
)
def test_large_integers_keep_their_digits_wherever_they_are(new_store, tmp_path, values, read_back):
    build_rows(new_store(), [{"theirs": value} for value in values], tmp_path / "out")
    assert [row["theirs"] for row in read_here(tmp_path / "out")] == read_back


HAND = Source(name="hand.jsonl")
WIDE = {f"k{number}": number for number in range(MAX_FIELDS + 1)}


@pytest.mark.parametrize(
    "columns",
    [
        [{"wide": {name: value}} for name, value in WIDE.items()],
        [{"wide": [{"a": [{name: value}]}]} for name, value in WIDE.items()],
        [{"wide": {"a": {name: 1}, "b": {name: 2}}} for name in list(WIDE)[:80]],
        [{"wide": WIDE}, {"wide": None}],
    ],
)
def test_objects_with_more_fields_than_the_bound_are_json_text(new_store, tmp_path, columns):
    build_rows(new_store(), columns, tmp_path / "out")
    rows = read_here(tmp_path / "out")
    assert [{"wide": row["wide"] and json.loads(row["wide"])} for row in rows] == columns
    manifest = read_manifest(tmp_path / "out")
    assert manifest.json_columns == {"wide": "its objects have more than 128 distinct fields"}
    card = (tmp_path / "out" / "README.md").read_text()
    assert "- wide: its objects have more than 128 distinct fields" in card
    assert len(card.splitlines()) < 600


def test_objects_with_as_many_fields_as_the_bound_stay_objects(new_store, tmp_path):
    del (columns := dict(WIDE))["k0"]
    build_rows(new_store(), [{"wide": columns}], tmp_path / "out")
    assert read_here(tmp_path / "out")[0]["wide"] == columns


def test_columns_that_few_rows_have_are_stored_together_beyond_the_bound(new_store, tmp_path):
    columns = [
        {"all": number, f"k{number}": number, "beta": "theirs"} for number in range(MAX_COLUMNS)
    ]
    build_rows(new_store(), columns, tmp_path / "out")
    rows = read_here(tmp_path / "out")
    for number in (0, 1, MAX_COLUMNS - 1):
        assert json.loads(rows[number]["source_columns"]) == {f"k{number}": number}
        assert (rows[number]["all"], rows[number]["source_beta"]) == (number, "theirs")
    assert not any(name in rows[0] for name in ("k0", "k1"))


def test_many_columns_that_every_row_has_stay_columns(new_store, tmp_path):
    columns = {f"k{number}": number for number in range(MAX_COLUMNS + 10)}
    build_rows(new_store(), [columns, columns], tmp_path / "out")
    assert columns.items() <= read_here(tmp_path / "out")[1].items()


@pytest.mark.parametrize(
    ("columns", "read_back"),
    [
        ({"_type": "x", "dtype": "int64"}, {"source__type": "x", "dtype": "int64"}),
        ({"a\0b": 1, "a\\0b": 2}, {"source_a\\0b": 1, "a\\0b": 2}),
        ({"beta": 1, "source_beta": 2}, {"source_source_beta": 1, "source_beta": 2}),
        ({"o": {"a\0b": 1}}, {"o": '{"a\\u0000b": 1}'}),
        ({"": "x", "a|b\nc": 1, "é.ü": {"ö x": 2}}, {"": "x", "a|b\nc": 1, "é.ü": {"ö x": 2}}),
    ],
)
def test_columns_of_any_names_come_through(new_store, tmp_path, columns, read_back):
    build_rows(new_store(), [columns], tmp_path / "out")
    assert read_back.items() <= read_here(tmp_path / "out")[0].items()


def test_the_build_names_columns_of_json_text(new_store, tmp_path):
    store = new_store()
    build_rows(store, [{"mix": 1, "many": WIDE}, {"mix": "one", "many": {}}], tmp_path / "out")
    betas = tmp_path / "betas.parquet"
    succeed("schedule", "--store", store.path, "--schedule", SCHEDULE, "--out", betas)
    output = succeed(*BUILD, "--store", store.path, "--betas", betas, "--out", tmp_path / "again")
    assert "mix: stored as JSON text: its values have no common type" in output
    assert "many: stored as JSON text: its objects have more than 128 distinct fields" in output
    # The replies of this test have no raw texts, which is the only difference.
    output = run("verify", tmp_path / "again").stdout
    assert output.count("DIFFERS") == 2
    assert "ok       pairs" in output


def read_here(folder):
    """All rows, read in this process."""
    rows = read_listed(folder)
    assert rows
    return list(rows)


@pytest.mark.parametrize(
    ("name", "revision", "named"),
    [
        ("org/pairs:train", "c" * 40, ["org/pairs"]),
        ("org/pairs/con fig:test", "c" * 40, ["org/pairs"]),
        ("org/pairs/config:train, sample of 5", "c" * 40, ["org/pairs"]),
        ("odd:name.jsonl", None, None),
    ],
)
def test_the_card_names_the_source_on_the_hub(new_store, tmp_path, name, revision, named):
    source = Source(name=name, revision=revision)
    build_rows(new_store(), [{}], tmp_path / "out", source=source)
    card = (tmp_path / "out" / "README.md").read_text()
    assert yaml.safe_load(card.split("---\n")[1]).get("source_datasets") == named


def build_rows(store, columns, folder, source=HAND):
    """Build a data set whose rows have these columns."""
    rows = [
        SourceRow(row=row.row, pair=row.pair, source_id=None, columns=values)
        for row, values in zip(pairs_of(len(columns)), columns, strict=True)
    ]
    store.corpus.add(source, rows)
    store.record_panel(panel_of("a"))
    variants = ("direct", "critic", "reader")
    store.add_replies([kept_reply(rows[0].pair.id, "a", variant, 5, 5) for variant in variants])
    build(store, folder)


def test_columns_nested_too_deeply_for_readers_come_through_as_text(new_store, tmp_path):
    deep = value = []
    for _ in range(100):
        value.append([])
        value = value[0]
    store = new_store()
    (row,) = pairs_of(1)
    store.corpus.add(
        Source(name="hand.jsonl"),
        [SourceRow(row=1, pair=row.pair, source_id=None, columns={"deep": deep})],
    )
    store.record_panel(panel_of("a"))
    store.add_replies([kept_reply(row.pair.id, "a", "direct", 5, 5)])
    build(store, tmp_path / "out")
    (read_back,) = read(tmp_path / "out", tmp_path)
    assert json.loads(read_back["deep"]) == deep


def test_a_folder_that_build_did_not_write_is_never_replaced(demo, tmp_path):
    store_and_betas = ["--store", demo / "run.sqlite", "--betas", demo / "betas.parquet"]
    site = tmp_path / "site"
    site.mkdir()
    (site / "manifest.json").write_text('{"name": "my web application"}')
    assert "did not write (manifest.json)" in fail(*BUILD, *store_and_betas, "--out", site)
    out = tmp_path / "out"
    succeed(*BUILD, *store_and_betas, "--out", out)
    (out / "data" / "notes.txt").write_text("mine")
    assert "did not write (data/notes.txt)" in fail(*BUILD, *store_and_betas, "--out", out)
    assert (out / "data" / "notes.txt").read_text() == "mine"


def test_a_link_to_a_folder_stays_a_link(demo, tmp_path):
    store_and_betas = ["--store", demo / "run.sqlite", "--betas", demo / "betas.parquet"]
    (tmp_path / "target").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "target")
    for _ in range(2):
        succeed(*BUILD, *store_and_betas, "--out", tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target" / "manifest.json").is_file()


def test_the_manifest_states_the_number_of_bootstrap_samples(demo):
    manifest = json.loads((demo / "dataset" / "manifest.json").read_text())
    assert manifest["agreement"]["draws"] == manifest["audit"]["draws"] == BUILD[-1]


def test_a_second_build_changes_no_byte(demo, tmp_path):
    store_and_betas = ["--store", demo / "run.sqlite", "--betas", demo / "betas.parquet"]

    def bytes_of(folder):
        return {
            path.relative_to(folder): path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file()
        }

    before = bytes_of(demo / "dataset")
    succeed(*BUILD, *store_and_betas, "--out", tmp_path / "again")
    succeed(*BUILD, *store_and_betas, "--out", tmp_path / "again")
    assert bytes_of(tmp_path / "again") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again"]


def test_the_manifest_holds_the_hash_of_every_file(demo):
    folder = demo / "dataset"
    manifest = json.loads((folder / "manifest.json").read_text())
    present = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} - {
        "manifest.json", "README.md",
    }  # fmt: skip
    assert set(manifest["files"]) == present
    for name, entry in manifest["files"].items():
        content = (folder / name).read_bytes()
        assert entry == {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}


def test_a_failed_build_leaves_the_last_one_whole(demo, tmp_path):
    """The largest file that the process may write stands in for the end of the disk."""
    import resource

    store_and_betas = ["--store", demo / "run.sqlite", "--betas", demo / "betas.parquet"]
    out = tmp_path / "dataset"
    succeed(*BUILD, *store_and_betas, "--out", out)
    before = (out / "manifest.json").read_bytes()

    def small_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))

    done = run(*BUILD, *store_and_betas, "--out", out, preexec_fn=small_files)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert (out / "manifest.json").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dataset"]


def test_a_build_that_fails_at_the_last_step_puts_the_old_one_back(
    new_store, tmp_path, monkeypatch
):
    store = new_store()
    (pair_id,) = filled(store, 1, "a")
    store.add_replies([kept_reply(pair_id, "a", "direct", 5, 5)])
    build(store, tmp_path / "out")

    def fails(first, second):
        raise PermissionError("not today")

    monkeypatch.setattr("sp2dpo.replacement._rename_exchange", fails)
    with pytest.raises(PermissionError, match="not today"):
        build(store, tmp_path / "out")
    assert (tmp_path / "out" / "manifest.json").is_file()
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["out"]


def test_the_card_shows_hostile_names_as_text(new_store, tmp_path):
    store = new_store()
    store.corpus.add(Source(name="<script>x</script>|a.jsonl"), pairs_of(1))
    store.record_panel(panel_of("![x](http://evil/x.png)"))
    (pair,) = pairs_of(1)
    store.add_replies([kept_reply(pair.pair.id, "![x](http://evil/x.png)", "direct", 5, 5)])
    build(store, tmp_path / "out")
    body = (tmp_path / "out" / "README.md").read_text().split("---\n", 2)[2]
    assert "<script>" not in body
    assert "![x](" not in body


def test_sources_of_every_kind_give_the_same_data(tmp_path, new_store):
    import pyarrow as pa
    import pyarrow.parquet as pq

    from sp2dpo.pairs.sources import open_source, read_rows

    rows = [
        {"prompt": f"Q{n}", "chosen": f"yes {n}", "rejected": f"no {n}", "score": n / 2}
        for n in range(3)
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "a.jsonl").write_text(text)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "c.parquet")
    rows_by_file = [
        list(read_rows(open_source(str(tmp_path / name))))
        for name in ("a.jsonl", "b.jsonl.gz", "c.parquet")
    ]
    assert rows_by_file[0] == rows_by_file[1] == rows_by_file[2]
    assert [row.columns for row in rows_by_file[0]] == [
        {"score": 0.0},
        {"score": 0.5},
        {"score": 1.0},
    ]


def test_another_schedule_in_a_folder_of_that_name_is_not_served_from_the_cache(demo, tmp_path):
    """`datasets` keeps local folders by their card and name: the card must tell them apart."""
    store, betas = demo / "run.sqlite", tmp_path / "betas.parquet"
    beta_columns = []
    for name in ("sp2dpo.yaml", "arms/constant.yaml", "arms/permuted.yaml"):
        schedule = SCHEDULE.parent / name
        succeed("schedule", "--store", store, "--schedule", schedule, "--out", betas)
        succeed(*BUILD, "--store", store, "--betas", betas, "--out", tmp_path / "dataset")
        loaded = read(tmp_path / "dataset", tmp_path)
        written = pl.read_parquet(tmp_path / "dataset" / "data" / "*.parquet")["beta"]
        assert [row["beta"] for row in loaded] == written.to_list()
        beta_columns.append(tuple(written))
    assert len(set(beta_columns)) == 3


def test_a_file_that_somebody_puts_into_the_folder_during_a_build_stays(
    new_store, tmp_path, monkeypatch
):
    store, out = new_store(), tmp_path / "out"
    (pair_id,) = filled(store, 1, "a")
    store.add_replies([kept_reply(pair_id, "a", "direct", 5, 5)])
    build(store, out)
    render = sp2dpo.dataset.build.render_card

    def meanwhile(*arguments):
        (out / "notes.txt").write_text("mine")
        return render(*arguments)

    monkeypatch.setattr("sp2dpo.dataset.build.render_card", meanwhile)
    with pytest.raises(ValueError, match=rf"{out} holds files .*\(notes\.txt\)"):
        build(store, out)
    assert (out / "notes.txt").read_text() == "mine"
    assert (out / "manifest.json").is_file()
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["out"]
