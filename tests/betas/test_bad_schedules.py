"""What is wrong with a schedule, an arm or scores: one clear line, and nothing is written."""

import math

import polars as pl
import pytest
import yaml

from sp2dpo.betas.file import read_betas
from support.harness import SCHEDULE, fail, filled, kept_reply, refused_reply, succeed

PAPER = yaml.safe_load(SCHEDULE.read_text())


@pytest.fixture
def refuse(demo, tmp_path):
    """Run `schedule` with changed files and return its error; check that it wrote nothing."""

    def refuse(changes=None, *, arm=None, scores=None, store=demo / "run.sqlite"):
        schedule = {
            key: value for key, value in (PAPER | (changes or {})).items() if value is not ...
        }
        path, out = tmp_path / "schedule.yaml", tmp_path / "betas.parquet"
        path.write_text(yaml.safe_dump(schedule))
        if arm is not None:
            path = tmp_path / "arm.yaml"
            path.write_text(yaml.safe_dump(arm))
        options = []
        if scores is not None:
            pair_ids = read_betas(demo / "betas.parquet").table["pair_id"]
            table = pl.DataFrame({"pair_id": pair_ids, "reward_margin": scores})
            table.write_parquet(tmp_path / "scores.parquet")
            options = ["--scores", tmp_path / "scores.parquet"]
        out.write_bytes((demo / "betas.parquet").read_bytes())
        before = out.read_bytes()
        error = fail("schedule", "--store", store, "--schedule", path, "--out", out, *options)
        assert out.read_bytes() == before
        assert error.startswith("sp2dpo: ")
        assert error.count("\n") == 1
        return error

    return refuse


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"beta_min": 0.4}, "schedule.yaml:1: beta_max: beta_min 0.4 must be below beta_max 0.3"),
        ({"beta_min": math.nan}, "beta_min: must be a number above 0, at most 1e6, not nan"),
        ({"over_teachers": "reader-d"}, "over_teachers 'reader-d': no kept reply has a teacher"),
        ({"over_teachers": "reader-d"}, "did you mean 'reader-"),
        ({"over_variants": "trimmed"}, "trimmed requires at least 5 variants"),
        ({"estimate": "expected"}, "no reply has expected scores"),
        (
            {"gap": "shrink(2)"},
            "gap: 'shrink(2)': m0 must be a number of at least 0, at most 1, not 2",
        ),
        ({"map": "quadratic"}, "map: 'quadratic' is not known"),
        ({"quorum": 10}, "no pair has the quorum of 10 replies, the most is 9"),
        ({"gap": ...}, "missing key 'gap'"),
        ({"gapp": "product"}, "unknown key 'gapp', did you mean 'gap'?"),
        (
            {"envelopes": {"stile": {"beta_min": 0.1, "beta_max": 0.2}}},
            "has no category 'stile', did you mean 'style'?",
        ),
        (
            {"envelopes": {"style": {"beta_min": 0.3, "beta_max": 0.2}}},
            "envelopes.style.beta_max: beta_min 0.3 must be below beta_max 0.2",
        ),
        ({"envelopes": ["style"]}, "envelopes: must be keys and values, not ['style']"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_schedule(refuse, changes, message):
    assert message in refuse(changes)


MADPO = "madpo(c_max=2, c_min=0.5, lam=1, tau=7)"


@pytest.mark.parametrize(
    ("arm", "message"),
    [
        ({"of": "nowhere.yaml", "beta": "permuted(seed=0)"}, "nowhere.yaml"),
        ({"of": "arm.yaml", "beta": "permuted(seed=0)"}, "of: arm.yaml is an arm itself"),
        ({"beta": "permuted(seed=0)"}, "add `of: FILE`"),
        ({"of": "schedule.yaml"}, "an arm departs from its schedule in one of beta"),
        ({"of": "schedule.yaml", "disputed": "drop"}, "set `gap: signed` in the schedule"),
        ({"of": "schedule.yaml", "disputed": "flop"}, "did you mean 'flip'?"),
        ({"of": "schedule.yaml", "weigth": "gap"}, "did you mean 'weight'?"),
        ({"of": "schedule.yaml", "weight": MADPO}, "give --scores SCORES.parquet"),
        (
            {"of": "schedule.yaml", "keep": "drop-lowest(percent=100)"},
            "percent must be a number above 0, below 100, not 100",
        ),
        ({"of": "schedule.yaml", "beta": "uniform(seed=-1)"}, "seed must be a whole number"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_an_arm(refuse, arm, message):
    assert message in refuse(arm=arm)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (math.nan, "1 of 96 reward margins are not numbers from -1e4 to 1e4, the first is nan"),
        (1e5, "the first is 100000.0"),
    ],
)
def test_scores(refuse, wrong, message):
    arm = {"of": "schedule.yaml", "weight": MADPO}
    assert message in refuse(arm=arm, scores=[wrong, *[1.0] * 95])


def test_scores_that_nothing_uses(refuse):
    assert "--scores is not used" in refuse(scores=[1.0] * 96)


def test_a_store_without_a_kept_reply(refuse, new_store, tmp_path):
    store = new_store("empty.sqlite")
    (pair_id,) = filled(store, 1, "a")
    out = tmp_path / "none.parquet"
    fail("schedule", "--store", store.path, "--schedule", SCHEDULE, "--out", out)
    assert not out.exists()
    store.add_replies([refused_reply(pair_id, "a", "direct")])
    assert "no reply was kept" in refuse(store=store.path)


@pytest.mark.parametrize("command", ["explain", "build", "report", "audit"])
def test_betas_of_another_store(demo, new_store, tmp_path, command):
    store, out = new_store("other.sqlite"), tmp_path / "out"
    (pair_id,) = filled(store, 1, "a", "b")
    store.add_replies([kept_reply(pair_id, "a", v, 5, 5) for v in ("direct", "critic", "reader")])
    words = [command, *([pair_id] if command == "explain" else [])]
    words += ["--store", store.path, "--betas", demo / "betas.parquet"]
    words += ["--out", out] if command in ("build", "report") else []
    assert "belong to other pairs than" in fail(*words)
    assert not out.exists()
    betas = tmp_path / "own.parquet"
    succeed("schedule", "--store", store.path, "--schedule", SCHEDULE, "--out", betas)
    store.add_replies([kept_reply(pair_id, "b", "direct", 9, 9)])
    words[words.index(demo / "betas.parquet")] = betas
    assert "were computed from other replies than those in" in fail(*words)
