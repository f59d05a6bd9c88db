"""From gaps to betas, and the file that holds them."""

import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
import yaml

from sp2dpo.betas.arms import Arm
from sp2dpo.betas.columns import REQUIRED
from sp2dpo.betas.compute import schedule_store
from sp2dpo.betas.file import BetaTable, check_origin, read_betas, write_betas
from sp2dpo.betas.maps import Linear
from sp2dpo.betas.schedule import load_schedule, parse_schedule, schedule_betas
from sp2dpo.store.questions import Shard
from sp2dpo.store.store import Store
from support.harness import SCHEDULE, change_store, filled, kept_reply, pairs_of, succeed

PAPER = load_schedule(SCHEDULE)
ONE_VOTE = replace(PAPER, quorum=1)


def test_the_shipped_schedule_is_the_papers():
    assert (PAPER.beta_min, PAPER.beta_max) == (0.03, 0.3)
    assert (PAPER.over_variants, PAPER.over_teachers, PAPER.map) == ("median", "mean", Linear())


def test_beta_is_linear_in_the_gap_and_exact_at_both_ends(new_store):
    store = new_store()
    none, half, all_of_it = filled(store, 3, "a")
    store.add_replies(
        [
            kept_reply(none, "a", "direct", 0, 10),
            kept_reply(half, "a", "direct", 5, 10),
            kept_reply(all_of_it, "a", "direct", 10, 10),
        ]
    )
    table = schedule_betas(store.annotations(), ONE_VOTE)
    beta = dict(zip(table["pair_id"], table["beta"], strict=True))
    assert beta[none] == 0.03
    assert beta[half] == pytest.approx(0.165, abs=1e-15)
    assert beta[all_of_it] == 0.3


def test_below_the_quorum_the_row_stays_without_a_beta(new_store):
    store = new_store()
    enough, too_few = filled(store, 2, "a")
    store.add_replies([kept_reply(enough, "a", v, 5, 10) for v in ("direct", "critic", "reader")])
    store.add_replies([kept_reply(too_few, "a", v, 5, 10) for v in ("direct", "critic")])
    table = schedule_betas(store.annotations(), replace(PAPER, quorum=3))
    rows = {row["pair_id"]: row for row in table.iter_rows(named=True)}
    assert rows[enough]["has_beta"]
    assert not rows[too_few]["has_beta"]
    assert rows[too_few]["beta"] is rows[too_few]["gap"] is None
    assert (rows[too_few]["votes"], rows[too_few]["category"]) == (2, "style")


def test_the_table_is_sorted_and_has_the_promised_columns(new_store):
    store = new_store()
    ids = filled(store, 30, "a")
    store.add_replies([kept_reply(ids[3], "a", "direct", 5, 5)])
    table = schedule_betas(store.annotations(), ONE_VOTE)
    assert tuple(table.columns) == REQUIRED
    assert table["pair_id"].to_list() == sorted(ids)


@pytest.fixture
def betas(new_store):
    store = new_store()
    ids = filled(store, 5, "a")
    store.add_replies([kept_reply(pair_id, "a", "direct", 5, 9) for pair_id in ids])
    annotations = store.annotations()
    return BetaTable(
        table=schedule_betas(annotations, ONE_VOTE),
        arm=Arm(of=ONE_VOTE),
        annotations_hash=annotations.hash,
    )


def test_a_file_of_betas_reads_back_and_repeats_its_bytes(betas, tmp_path):
    first_path, second_path = tmp_path / "1.parquet", tmp_path / "2.parquet"
    write_betas(betas, first_path)
    write_betas(betas, second_path)
    assert first_path.read_bytes() == second_path.read_bytes()
    again = read_betas(first_path)
    assert again.table.equals(betas.table)
    assert (again.schedule, again.annotations_hash) == (ONE_VOTE, betas.annotations_hash)
    assert sorted(path.name for path in tmp_path.glob("*.parquet*")) == ["1.parquet", "2.parquet"]


def test_files_that_are_no_betas_are_refused(betas, tmp_path):
    text = tmp_path / "text.parquet"
    text.write_text("not a table")
    foreign = tmp_path / "foreign.parquet"
    pl.DataFrame({"x": [1]}).write_parquet(foreign)
    for number, metadata in enumerate(("[]", "null", '"x"', "7", "{")):
        path = tmp_path / f"{number}.parquet"
        pl.DataFrame({"x": [1]}).write_parquet(path, metadata={"sp2dpo": metadata})
    for path in (text, foreign, *tmp_path.glob("[0-9].parquet")):
        with pytest.raises(ValueError, match="not a table of betas"):
            read_betas(path)
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_betas(tmp_path / "nowhere.parquet")
    changed = tmp_path / "changed.parquet"
    write_betas(replace(betas, table=betas.table.drop("gap")), changed)
    with pytest.raises(ValueError, match="its columns are not those"):
        read_betas(changed)


def test_betas_of_other_pairs_or_older_replies_are_refused(betas, new_store):
    paths = {"path": Path("betas.parquet"), "store": Path("run.sqlite")}
    other_store = new_store("other.sqlite")
    ids = filled(other_store, 3, "a")
    other_store.add_replies([kept_reply(ids[0], "a", "direct", 5, 9)])
    with pytest.raises(ValueError, match="belong to other pairs than"):
        check_origin(betas, other_store.annotations(), **paths)
    grown = new_store("grown.sqlite")
    ids = filled(grown, 5, "a")
    grown.add_replies(
        [kept_reply(pair_id, "a", v, 5, 9) for pair_id in ids for v in ("direct", "critic")]
    )
    with pytest.raises(ValueError, match="were computed from other replies than"):
        check_origin(betas, grown.annotations(), **paths)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"beta_min": 0.4}, "beta_min 0.4 must be below beta_max 0.3"),
        ({"beta_min": 0}, "beta_min: must be a number above 0, at most 1e6, not 0"),
        ({"beta_max": float("inf")}, "beta_max: must be a number above 0, at most 1e6, not inf"),
        ({"beta_max": "0.3"}, "beta_max: must be a number above 0, at most 1e6, not '0.3'"),
        ({"beta_max": True}, "beta_max: must be a number above 0, at most 1e6, not True"),
        ({"quorum": 0}, "quorum: must be a whole number of at least 1, at most 1e6, not 0"),
        ({"quorum": 10**30}, "quorum: must be a whole number of at least 1, at most 1e6, not 1000"),
        ({"beta_max": 10**400}, "beta_max: must be a number above 0, at most 1e6, not 1000"),
        ({"quorum": 2.5}, "quorum: must be a whole number of at least 1, at most 1e6, not 2.5"),
        ({"estimate": "expcted"}, "estimate: 'expcted' is not known, did you mean 'expected'"),
        ({"estimate": None}, "estimate: None is not known (known: sampled, expected)"),
        ({"map": "liner"}, "map: 'liner' is not known, did you mean 'linear'"),
        ({"quorom": 5}, "unknown key 'quorom', did you mean 'quorum'"),
    ],
)
def test_a_schedule_that_makes_no_sense_is_named(change, message):
    mapping = yaml.safe_load(SCHEDULE.read_text()) | change
    with pytest.raises(ValueError, match=r"^here: ") as error:
        parse_schedule(mapping, where="here")
    assert message in str(error.value)


def test_a_schedule_has_no_defaults():
    with pytest.raises(ValueError, match="missing key 'map'"):
        parse_schedule(
            {key: value for key, value in vars(PAPER).items() if key != "map"}, where="s"
        )


def test_a_schedule_without_an_estimate_is_told_what_to_write():
    mapping = {key: value for key, value in vars(PAPER).items() if key != "estimate"}
    with pytest.raises(ValueError, match=r"^s: missing key 'estimate'") as error:
        parse_schedule(mapping, where="s")
    assert "`estimate: sampled`" in str(error.value)
    assert "`estimate: expected`" in str(error.value)


def test_the_adaptive_schedule_is_the_papers_but_for_the_quorum():
    assert load_schedule(SCHEDULE.with_name("adaptive.yaml")) == ONE_VOTE


def test_a_schedule_can_take_expectations(new_store):
    store = new_store()
    enough, too_few = filled(store, 2, "a")
    for variant, magnitude in (("direct", 2.0), ("critic", 4.5), ("reader", 9.0)):
        store.add_replies([kept_reply(enough, "a", variant, 10, 10, expected=(magnitude, 10.0))])
        expected_scores = (magnitude, 10.0) if magnitude > 4 else (None, None)
        store.add_replies([kept_reply(too_few, "a", variant, 10, 10, expected=expected_scores)])
    table = schedule_betas(store.annotations(), replace(PAPER, estimate="expected"))
    rows = {row["pair_id"]: row for row in table.iter_rows(named=True)}
    assert rows[enough]["beta"] == pytest.approx(0.03 + 0.27 * 0.45)
    assert (rows[too_few]["votes"], rows[too_few]["beta"]) == (2, None)


def test_a_table_of_other_columns_is_refused_for_its_columns(betas, tmp_path):
    path = tmp_path / "other.parquet"
    table = betas.table.drop("signed_gap", "label_disputed")
    metadata = {"sp2dpo": '{"schedule": {"quorum": 3}, "annotations": "x"}'}
    table.write_parquet(path, metadata=metadata)
    with pytest.raises(ValueError, match=r"its columns are not those .* run it again"):
        read_betas(path)


def test_betas_whose_file_name_looks_like_a_pattern_read_back(betas, tmp_path):
    (tmp_path / "x1.parquet").write_bytes(b"another file that the pattern would match")
    for name in ("x[1].parquet", "x*.parquet", "x?.parquet"):
        path = tmp_path / name
        for _ in range(2):  # the second time it takes the place of the first
            write_betas(betas, path)
        assert read_betas(path).table.equals(betas.table)


def test_a_disk_that_is_full_leaves_no_half_of_a_file(betas, tmp_path):
    path = tmp_path / "betas.parquet"
    script = (
        "import resource, signal, sys; from pathlib import Path; "
        "from sp2dpo.betas.file import read_betas, write_betas; "
        "made = read_betas(Path(sys.argv[1])); "
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100)); "
        "write_betas(made, Path(sys.argv[2]))"
    )
    write_betas(betas, tmp_path / "made.parquet")
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "made.parquet", path],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert f"OSError: {path}: cannot be written" in done.stderr
    assert [leftover.name for leftover in tmp_path.glob("*betas*")] == []


@pytest.fixture
def planned(new_store, tmp_path):
    """Schedules a store of four pairs with three replies to each; returns the output."""
    store = new_store()
    ids = filled(store, 4, "a")

    def schedule(replies, shard=None):
        store.questions.restrict_to_shard(shard)
        store.add_replies(
            [
                kept_reply(pair_id, "a", variant, 5, 9)
                for pair_id in ids
                if shard is None or shard.contains(pair_id)
                for variant in ("direct", "critic", "reader")[:replies]
            ]
        )
        plan = tmp_path / "schedule.yaml"
        plan.write_text(yaml.safe_dump(yaml.safe_load(SCHEDULE.read_text()) | {"quorum": 2}))
        out = tmp_path / "betas.parquet"
        return succeed("schedule", "--store", store.path, "--schedule", plan, "--out", out)

    return schedule


def test_betas_of_a_run_that_is_not_finished_are_called_so(planned):
    assert "4 of 12 replies are still pending: these betas are not final\n" in planned(2)


def test_betas_of_a_finished_run_are_not_doubted(planned):
    output = planned(3)
    assert "pending" not in output
    assert "shard" not in output


def test_betas_of_a_shard_say_of_which(planned):
    shard = Shard(index=0, total=2)
    mine = sum(shard.contains(row.pair.id) for row in pairs_of(4))
    output = planned(2, shard)
    assert 0 < mine < 4
    assert (
        f"4 pairs, {4 - mine} below the quorum of 2 replies (shard 0/2: {mine} of 4 pairs)"
        in output
    )
    assert f"{mine} of {mine * 3} replies are still pending: these betas are not final\n" in output


def test_a_damaged_record_of_the_panel_is_an_error_and_none_counts_nothing_as_pending(tmp_path):
    path = tmp_path / "run.sqlite"
    with Store(path, write=True) as store:
        (pair_id,) = filled(store, 1, "a")
        store.add_replies(
            [kept_reply(pair_id, "a", v, 5, 10) for v in ("direct", "critic", "reader")]
        )
    assert schedule_store(path, SCHEDULE).requested == 3
    for record in ("{", "{}", '{"variants": 1}', "[]"):
        change_store(path, "UPDATE meta SET value = ? WHERE key = 'panel'", (record,))
        with pytest.raises(ValueError, match="the record of its panel is damaged"):
            schedule_store(path, SCHEDULE)
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("DELETE FROM meta WHERE key = 'panel'")
    assert schedule_store(path, SCHEDULE).requested == 0
