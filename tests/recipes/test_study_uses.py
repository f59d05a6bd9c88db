"""The second part of the study: its statistics by hand, its teachers, its judge."""

import json
import subprocess
import sys
from dataclasses import asdict, replace

import numpy as np
import polars as pl
import pytest
import yaml
from scipy import stats

from support.harness import ROOT

STUDY = ROOT / "recipes" / "study"
sys.path.insert(0, str(STUDY))

from config import load_config  # noqa: E402
from metrics import judge_rewards  # noqa: E402
from pairs import LabelledPair  # noqa: E402
from panels import format_panels, measure_panels  # noqa: E402
from seed_data import annotate  # noqa: E402
from sp2dpo import compute_betas, load_arm, load_rubric  # noqa: E402
from teachers import SimulatedTeacher, annotate_pairs  # noqa: E402
from uses import (  # noqa: E402
    BAD_PANELS,
    POOLED,
    Difference,
    Runs,
    answer_questions,
    detectable,
    format_answers,
    format_methods,
    holm,
    main,
    write_results,
)

SCHEDULE = ROOT / "recipes" / "schedules" / "sp2dpo.yaml"
METHODS = (
    "dpo", "sp2dpo", "beta-as-weight", "gap-as-weight", "soft-calibrated", "soft-latent",
    "temperature-turned", "temperature-only",
)  # fmt: skip


def trial(method, seed, scale, *, order=0, panel="panel", reward=1.0, validation=1.0, kl=1.0):
    row = {
        "method": method, "panel": panel, "scale": scale, "seed": seed, "order": order,
        "validation": validation, "chosen": True, "corrected": False, "reward_0": reward + 1,
        "reward_1": reward, "kl": kl, "accuracy": 0.7,
    }  # fmt: skip
    row |= {f"D_{label}_{epoch}": float(epoch) for label in ("right", "wrong") for epoch in (0, 1)}
    row |= {f"slope_{w}_{d}": 0.1 * (d + 1) for w in ("start", "end") for d in range(10)}
    return row


def study_of(gains, *, seeds=6, spread=0.01):
    """Runs in which each method has its gain over DPO, at scale 3; other scales are worse."""
    draw = np.random.default_rng(3)
    rows = []
    for seed in range(seeds):
        world = draw.normal(1.5, 0.3)
        for name, gain in gains.items():
            method, _, panel = name.partition("@")
            best = world + gain + draw.normal(0, spread)
            shared = {"method": method, "seed": seed, "panel": panel or "panel"}
            rows.append(trial(**shared, scale=1.0, reward=best - 0.2, validation=0.5, kl=4.0))
            rows.append(trial(**shared, scale=3.0, reward=best, validation=0.9, kl=1.5))
            rows.append(trial(**shared, scale=10.0, reward=best - 0.1, validation=0.4, kl=0.5))
    return Runs(pl.DataFrame(rows))


def gains(**more):
    bad = {f"{method}@{panel}": 0.0 for method in ("soft-latent", "soft-anchored")
           for panel in BAD_PANELS}  # fmt: skip
    return dict.fromkeys(METHODS, 0.0) | {"soft-calibrated": 0.3, "gap-as-weight": 0.1} | bad | more


def test_trials_are_chosen_for_each_order_by_validation_and_orders_are_averaged():
    runs = Runs(
        pl.DataFrame(
            [
                trial("dpo", 7, 1.0, order=0, reward=1.0, validation=2.0),
                trial("dpo", 7, 3.0, order=0, reward=5.0, validation=1.0),
                trial("dpo", 7, 1.0, order=1, reward=9.0, validation=1.0),
                trial("dpo", 7, 3.0, order=1, reward=2.0, validation=3.0),
            ]
        )
    )
    assert runs.tuned("dpo").tolist() == [1.5]
    assert runs.at_scale("dpo", 1.0).tolist() == [5.0]
    assert runs.scales("dpo") == {1.0: 1, 3.0: 1}


def test_a_scale_for_equal_kl_is_never_chosen():
    rows = [
        trial("dpo", 0, 10.0, reward=1.0, kl=2.0),
        trial("dpo", 0, 30.0, reward=2.0, kl=0.5, validation=9.0) | {"chosen": False},
    ]
    runs = Runs(pl.DataFrame(rows))
    assert runs.tuned("dpo").tolist() == [1.0]
    assert runs.at_kl("dpo", 1.0)[0] == pytest.approx(1.5)


def test_the_scales_of_the_margin_compete_as_trials_of_one_method():
    rows = [
        trial("gap-as-margin", 0, 1.0, reward=1.0, validation=0.5),
        trial("gap-as-margin-3", 0, 1.0, reward=2.0, validation=0.7),
        trial("gap-as-margin-0.3", 0, 3.0, reward=9.0, validation=0.6),
    ]
    runs = Runs(pl.DataFrame(rows))
    assert runs.tuned("gap-as-margin, best scale").tolist() == [2.0]
    assert runs.tuned("gap-as-margin").tolist() == [1.0]
    assert np.isnan(runs.at_kl("gap-as-margin, best scale", 1.0)).all()


def test_a_reward_at_a_kl_lies_between_trials_and_is_never_extrapolated():
    rows = [
        trial("dpo", 0, 1.0, reward=1.0, kl=4.0),
        trial("dpo", 0, 3.0, reward=2.0, kl=1.0),
        trial("dpo", 0, 10.0, reward=0.0, kl=0.25),
    ]
    runs = Runs(pl.DataFrame(rows))
    assert runs.at_kl("dpo", 2.0)[0] == pytest.approx(1.5)  # the middle of log 1 and log 4
    assert runs.at_kl("dpo", 0.5)[0] == pytest.approx(1.0)
    assert np.isnan(runs.at_kl("dpo", 5.0)[0])
    assert np.isnan(runs.at_kl("dpo", 0.2)[0])


def test_a_curve_that_turns_back_is_followed_from_the_largest_scale():
    # Scale 1 collapsed: its KL is lower than that of scale 3.
    rows = [
        trial("dpo", 0, 10.0, reward=1.0, kl=0.25),
        trial("dpo", 0, 3.0, reward=2.0, kl=4.0),
        trial("dpo", 0, 1.0, reward=-5.0, kl=0.5),
    ]
    assert Runs(pl.DataFrame(rows)).at_kl("dpo", 1.0)[0] == pytest.approx(1.5)


def test_neighbours_in_kl_ignore_the_scales_between_them():
    rows = [
        trial("dpo", 0, 10.0, reward=1.0, kl=0.25),
        trial("dpo", 0, 3.0, reward=2.0, kl=4.0),
        trial("dpo", 0, 1.0, reward=-5.0, kl=2.0),  # collapsed, between the two in KL
    ]
    runs = Runs(pl.DataFrame(rows))
    assert runs.at_kl("dpo", 1.0)[0] == pytest.approx(1.5)
    # A third of the way from log 2 to log 0.25.
    expected = -5.0 + 6.0 / 3
    assert runs.at_kl("dpo", 1.0, neighbours="kl")[0] == pytest.approx(expected)


def test_the_trials_leave_out_further_scales_and_count_pooled_methods_once():
    rows = [
        trial("gap-as-margin", 0, 1.0), trial("gap-as-margin-3", 0, 1.0),
        trial("gap-as-margin-0.3", 0, 3.0), trial("dpo", 0, 1.0),
        trial("dpo", 0, 30.0) | {"chosen": False},
    ]  # fmt: skip
    trials = Runs(pl.DataFrame(rows)).trials().table
    assert trials.filter(pl.col("name") == "dpo")["scale"].to_list() == [1.0]
    assert len(trials.filter(pl.col("name") == "gap-as-margin, best scale")) == 3
    assert len(trials) == 4 + 3


def cells(runs, name, names):
    """The cells of a method in the table, by column."""
    header, _, *rows = (line.strip("| ").split(" | ") for line in format_methods(runs, names))
    row = next(row for row in rows if row[0] == name)
    return dict(zip(header, row, strict=True))


def test_a_method_with_a_bad_panel_is_compared_with_those_of_the_same_panel():
    names = {
        "dpo": 0.0, "sp2dpo": 0.5, "gap-as-weight": 0.6, "soft-latent@shared": 0.1,
        "sp2dpo@shared": -0.2, "soft-latent@opinion": -0.7,
    }  # fmt: skip
    runs = study_of(names)
    shared = cells(runs, "soft-latent@shared", [*names])
    for column in ("tuned: less sp2dpo", "default: less sp2dpo", "KL 1: less sp2dpo"):
        assert float(shared[column].split()[0]) == pytest.approx(0.3, abs=0.03)
    assert float(shared["tuned: less dpo"].split()[0]) == pytest.approx(0.1, abs=0.03)
    assert shared["tuned: less gap-as-weight"] == ""  # not run with this panel
    opinion = cells(runs, "soft-latent@opinion", [*names])
    assert opinion["tuned: less sp2dpo"] == opinion["KL 1: less sp2dpo"] == ""
    assert float(opinion["default: less dpo"].split()[0]) == pytest.approx(-0.7, abs=0.03)
    assert opinion["scale chosen"] == "3: 6"


def test_methods_that_compete_as_one_have_no_default_scale():
    names = {"dpo": 0.0, "gap-as-margin": 0.1, "gap-as-margin-3": 0.3, "gap-as-margin-0.3": 0.1}
    pooled = cells(study_of(names), "gap-as-margin, best scale", [*names, *POOLED])
    assert pooled["reward, default"] == pooled["default: less dpo"] == "-"
    assert pooled["tuned: less sp2dpo"] == ""
    assert float(pooled["tuned: less dpo"].split()[0]) == pytest.approx(0.2, abs=0.15)


def test_question_1_is_answered_by_the_rules_before_their_amendments_too(tmp_path):
    first, second = [
        line
        for line in write_results(study_of(gains(**{"beta-as-weight": 0.2})), None, tmp_path)
        if line.startswith("Question 1")
    ]
    assert "over the 6 seeds" in first
    assert "by the first rule of interpolation" in second
    for line in (first, second):
        assert float(line.split("KL: ")[1].split()[0]) == pytest.approx(-0.2, abs=0.03)


@pytest.mark.parametrize("seeds", ["0", "1", "-3"])
def test_a_power_needs_two_seeds(seeds, capsys):
    with pytest.raises(SystemExit) as error:
        main([str(STUDY / "results" / "uses-pilot"), "--power", seeds])
    assert error.value.code == 2
    assert "a paired test needs at least 2 seeds" in capsys.readouterr().err


def test_the_rules_quote_what_the_pilot_prints(capsys):
    assert main([str(STUDY / "results" / "uses-pilot"), "--power", "12"]) == 0
    assert capsys.readouterr().out in (STUDY / "RULES-2.md").read_text()


def test_intervals_and_p_values_are_those_of_scipy():
    values = np.random.default_rng(0).normal(0.05, 0.1, 12)
    difference = Difference(values=values)
    statistic, p_value = stats.ttest_1samp(values, 0.0)
    assert difference.p_value() == pytest.approx(p_value)
    half = stats.t.ppf(0.975, 11) * values.mean() / statistic
    assert difference.interval == pytest.approx((values.mean() - half, values.mean() + half))
    _, above = stats.ttest_1samp(values, -0.1, alternative="greater")
    assert difference.p_value(above=-0.1) == pytest.approx(above)


@pytest.mark.parametrize(
    ("p_values", "adjusted"),
    [
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ([0.5, 0.6], [1.0, 1.0]),
        ([0.02], [0.02]),
    ],
)
def test_holm_by_hand(p_values, adjusted):
    assert holm(p_values) == pytest.approx(adjusted)


def test_the_detectable_difference_has_the_power_that_it_names():
    mean = detectable(0.1, 12)
    draws = np.random.default_rng(1).normal(mean, 0.1, (20_000, 12))
    _, p_values = stats.ttest_1samp(draws, 0.0, axis=1)
    assert (np.asarray(p_values) < 0.05).mean() == pytest.approx(0.8, abs=0.02)


def test_a_claim_about_several_differences_needs_all_of_them():
    won = answer_questions(study_of(gains()))[1]
    assert won.p_value < 0.001
    lost = answer_questions(study_of(gains(**{"gap-as-weight": 0.3})))[1]
    assert lost.p_value > 0.01  # sp2dpo alone is beaten


def test_a_method_that_is_worse_than_both_does_not_beat_them():
    answer = answer_questions(study_of(gains(**{"soft-calibrated": -0.5})))[1]
    assert answer.p_value > 0.99


def test_safety_is_lost_with_one_panel():
    safe, unsafe = (
        answer_questions(study_of(gains(**{"soft-latent@opinion": loss})))[2] for loss in (0, -0.3)
    )
    assert safe.p_value < 0.001
    assert unsafe.p_value > 0.99


def test_the_temperature_is_judged_at_equal_kl():
    answer = answer_questions(study_of(gains(**{"beta-as-weight": 0.2})))[0]
    assert answer.differences["sp2dpo less beta-as-weight"].mean == pytest.approx(-0.2, abs=0.02)
    assert "-0.2" in format_answers([answer])[2]


def test_results_are_written_and_a_missing_seed_is_an_error(tmp_path):
    runs = study_of(gains())
    lines = write_results(runs, None, tmp_path / "out")
    assert (tmp_path / "out" / "table.md").read_text() == "\n".join(lines) + "\n"
    assert (tmp_path / "out" / "uses.png").read_bytes().startswith(b"\x89PNG")
    short = runs.table.filter((pl.col("name") != "dpo") | (pl.col("seed") > 0)).drop("name")
    with pytest.raises(ValueError, match=r"dpo: no run of the seeds \[0\]"):
        write_results(Runs(short), None, tmp_path / "other")


def test_runs_of_several_files_are_joined_and_none_counts_twice(tmp_path):
    first = pl.DataFrame([trial("dpo", 0, 1.0)])
    first.write_csv(tmp_path / "runs-a.csv")
    pl.DataFrame([trial("sp2dpo", 0, 1.0)]).write_csv(tmp_path / "runs-b.csv")
    assert Runs.read(tmp_path).names() == ["dpo", "sp2dpo"]
    first.write_csv(tmp_path / "runs-c.csv")
    with pytest.raises(ValueError, match="occurs twice"):
        Runs.read(tmp_path)
    with pytest.raises(ValueError, match=r"no file runs\*\.csv"):
        Runs.read(tmp_path / "nowhere")


def pairs_of(differences):
    return [
        LabelledPair(
            pair_id=f"pair-{number:05}", prompt=0, chosen=[5, 1], rejected=[5, 6, 1],
            parts=[0.0, difference, 0.0, 0.0], flipped=False,
        )
        for number, difference in enumerate(differences)
    ]  # fmt: skip


def opinions(panel, differences):
    config = load_config(STUDY / "uses-panels.yaml")
    table = annotate(config, panel, pairs_of(differences), 0)
    gaps = table.replies.group_by("pair_id", "teacher").len()
    assert len(gaps) == 3 * len(differences)
    return compute_betas(table, load_arm(SCHEDULE))["signed_gap"].to_numpy()


def test_panels_are_as_bad_as_they_are_called():
    true = np.random.default_rng(0).normal(0, 2, 1500)
    correlation = {
        panel: np.corrcoef(opinions(panel, true), true)[0, 1]
        for panel in ("panel", "guessing", "shared", "opinion")
    }
    assert correlation["panel"] > 0.85
    assert 0.5 < correlation["shared"] < 0.8
    assert abs(correlation["guessing"]) < 0.08
    assert abs(correlation["opinion"]) < 0.08
    labelled = opinions("labelled", true)
    assert labelled.min() == 0  # the label cannot be disputed
    assert (labelled[true < -3] < 0.05).mean() > 0.8


def test_the_panels_are_measured_from_the_pairs_of_a_seed(tmp_path):
    config = load_config(STUDY / "uses-panels.yaml")
    config = replace(config, seeds=[7], panels={k: config.panels[k] for k in ("panel", "labelled")})
    differences = np.random.default_rng(1).normal(1.0, 1.5, 400)
    pairs = pairs_of(differences)
    (tmp_path / "seed-7").mkdir()
    (tmp_path / "seed-7" / "pairs-given.json").write_text(
        json.dumps([asdict(pair) for pair in pairs])
    )
    table = measure_panels(config, tmp_path)
    good, labelled = table.rows(named=True)
    assert good["right"] == labelled["right"] == pytest.approx((differences > 0).mean())
    assert good["correlation"] == pytest.approx(
        np.corrcoef(annotated_gaps(config, pairs), differences)[0, 1]
    )
    assert good["k_low"] < good["k"] < good["k_high"]
    assert good["k_low"] > 1
    assert good["latent"] == pytest.approx(good["right"], abs=0.1)
    # Teachers who are told the label cannot dispute it.
    assert {labelled[name] for name in ("recall", "precision", "k", "latent", "anchored")} == {None}
    shown = format_panels(table)
    assert shown[2].startswith(f"| panel | {good['correlation']:.2f} (")
    filled = [bool(cell.strip()) for cell in shown[3].strip("|").split("|")]
    assert filled == [True, True, False, False, False, True, False, False]


def annotated_gaps(config, pairs):
    table = annotate(config, "panel", pairs, 7)
    return compute_betas(table, load_arm(SCHEDULE))["signed_gap"].to_numpy()


def test_the_teachers_of_a_panel_are_told_the_label_alike(tmp_path):
    panels = {"mixed": [{"name": "a", "labelled": True}, {"name": "b"}]}
    (tmp_path / "x.yaml").write_text(
        yaml.safe_dump({"like": str(STUDY / "uses.yaml"), "panels": panels})
    )
    with pytest.raises(ValueError, match="panels: mixed: labelled: the teachers of a panel"):
        load_config(tmp_path / "x.yaml")


def test_teachers_share_an_error_and_keep_their_own():
    teachers = [SimulatedTeacher(name=name, shared=3.0, noise=0.3) for name in "ab"]
    rubric = load_rubric("semantic-gap-blind")
    table = annotate_pairs(pairs_of(np.full(800, 0.01)), teachers, rubric, seed=0).replies
    sign = {"A": 1, "B": -1, "tie": 0}
    shown = table.filter(pl.col("order") == "chosen-first").with_columns(
        value=pl.col("better").replace_strict(sign) * pl.col("magnitude")
    )
    means = shown.group_by("pair_id", "teacher").agg(pl.col("value").mean()).sort("pair_id")
    a, b = (means.filter(pl.col("teacher") == name)["value"].to_numpy() for name in "ab")
    assert 0.9 < np.corrcoef(a, b)[0, 1] < 0.999


def test_a_judge_errs_anew_for_each_run_and_likes_length():
    rewards, responses = np.zeros((4000, 4)), [[1, 2, 3]] * 4000
    judge = {"noise": 1.0, "length_bias": 0.1}
    judged, again, other = (
        judge_rewards(rewards, responses, judge, name=name) for name in ("a", "a", "b")
    )
    assert judged.mean() == pytest.approx(0.3, abs=0.05)
    assert judged.std() == pytest.approx(1.0, abs=0.05)
    assert (again == judged).all()
    assert abs(np.corrcoef(other, judged)[0, 1]) < 0.05
    assert judge_rewards(rewards, responses, {}, name="a").tolist() == [0.0] * 4000


@pytest.mark.slow
def test_orders_of_training_differ_and_a_further_scale_is_no_trial(tmp_path):
    settings = {
        "like": str(STUDY / "smoke.yaml"), "seeds": [2], "reward_model": {}, "orders": 2,
        "judge": {"noise": 1.0, "length_bias": 0.1}, "samples_at_one": 4, "scales": [1],
        "methods": ["soft-latent"], "sweep": {"soft-latent": [3]}, "defaults": [], "corrected": [],
        "against": "",
    }  # fmt: skip
    (tmp_path / "uses.yaml").write_text(yaml.safe_dump(settings))
    command = [sys.executable, STUDY / "run.py", tmp_path / "uses.yaml", "--out", tmp_path / "out"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.endswith(f"wrote {tmp_path / 'out' / 'runs.csv'}\n")
    runs = Runs.read(tmp_path / "out")
    rows = {(row["scale"], row["order"]): row for row in runs.table.to_dicts()}
    assert {key: row["chosen"] for key, row in rows.items()} == {
        (1.0, 0): True, (1.0, 1): True, (3.0, 0): False, (3.0, 1): False,
    }  # fmt: skip
    first, second = rows[1.0, 0], rows[1.0, 1]
    assert first["D_right_1"] != second["D_right_1"]
    assert first["slope_start_9"] == second["slope_start_9"]  # the same pairs and labels
    assert first["D_right_0"] == pytest.approx(0, abs=1e-4)
    assert runs.tuned("soft-latent").tolist() == [
        pytest.approx((first["reward_1"] + second["reward_1"]) / 2)
    ]
