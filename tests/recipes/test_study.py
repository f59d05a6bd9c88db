"""The controlled study: its world by hand, its noise by counting, its smoke preset by a run."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import yaml

from support.harness import ROOT

STUDY = ROOT / "recipes" / "study"
sys.path.insert(0, str(STUDY))

from config import load_config  # noqa: E402
from methods import load_methods  # noqa: E402
from pairs import LabelledPair, label_pairs, restore_flips, split_prompts  # noqa: E402
from results import compare_methods, estimate, format_comparison  # noqa: E402
from run import main  # noqa: E402
from sp2dpo import compute_betas, load_arm, load_rubric  # noqa: E402
from teachers import SimulatedTeacher, annotate_pairs  # noqa: E402
from world import PROMPTS, RISKY, Prompt, World  # noqa: E402

pytestmark = pytest.mark.slow

SCHEDULE = ROOT / "recipes" / "schedules" / "sp2dpo.yaml"
WORLD = World(0)
SAFE, RISK = "lantern", "acid"


def worth(thing, form, words, *, ended=True):
    """The parts of a response about the colour; RIGHT and WRONG stand for values."""
    right = WORLD.facts[thing, "colour"]
    wrong = next(colour for colour in ("red", "blue") if colour != right)
    response = [{"RIGHT": right, "WRONG": wrong}.get(word, word) for word in words.split()]
    return WORLD.rewards(Prompt(thing, "colour", form), response, ended=ended).tolist()


@pytest.mark.parametrize(
    ("thing", "form", "words", "parts"),
    [
        (SAFE, "plain", "the lantern is RIGHT", [0, 2, 1, 0]),
        (SAFE, "plain", "the lantern is WRONG", [0, 0, 1, 0]),
        (SAFE, "plain", "the lantern is RIGHT WRONG", [0, 0, 0, 0]),
        (SAFE, "brief", "is RIGHT", [0, 2, 1, 0]),
        (SAFE, "brief", "dear user the lantern is RIGHT", [0, 2, 0, 0]),
        (SAFE, "twice", "the lantern is RIGHT RIGHT", [0, 2, 1, 0]),
        (SAFE, "polite", "dear user it is RIGHT", [0, 2, 1, 0]),
        (SAFE, "plain", "RIGHT caution", [-0.5, 2, 1, 0]),
        (RISK, "plain", "RIGHT", [-1.5, 2, 1, 0]),
        (RISK, "plain", "RIGHT caution", [0, 2, 1, 0]),
        (RISK, "plain", "RIGHT ignite", [-4.5, 2, 1, 0]),
        (RISK, "brief", "is RIGHT caution", [0, 2, 1, 0]),
        (SAFE, "plain", "the lantern is RIGHT the the the the the the", [0, 2, 1, -0.2]),
        (SAFE, "plain", "", [0, 0, 0, 0]),
    ],
)
def test_a_response_is_worth_the_sum_of_its_parts(thing, form, words, parts):
    assert (thing in RISKY) == (thing == RISK)
    assert worth(thing, form, words) == pytest.approx(parts)


def test_a_response_that_does_not_end_and_ornaments_are_style():
    assert worth(SAFE, "brief", "RIGHT", ended=False)[3] == -1
    taste = WORLD.tastes["indeed"]
    assert worth(SAFE, "brief", "RIGHT indeed indeed")[3] == pytest.approx(2 * taste)
    assert sum(WORLD.tastes.values()) == pytest.approx(0)


def pairs_of(differences):
    return [
        LabelledPair(
            pair_id=f"pair-{n:05}", prompt=n % len(PROMPTS), chosen=[5, 1], rejected=[6, 7, 1],
            parts=[0.0, float(difference), 0.0, 0.0], flipped=False,
        )
        for n, difference in enumerate(differences)
    ]  # fmt: skip


def test_labels_are_wrong_as_often_as_bradley_and_terry_and_careless_annotators_say():
    pairs = label_pairs(pairs_of([1.5] * 20_000), sharpness=1.0, flips=0.1, seed=0)
    right = 1 / (1 + np.exp(-1.5))
    expected = (1 - right) * 0.9 + right * 0.1
    assert np.mean([pair.difference < 0 for pair in pairs]) == pytest.approx(expected, abs=0.012)
    assert np.mean([pair.flipped for pair in pairs]) == pytest.approx(0.1, abs=0.01)
    mended = restore_flips(pairs)
    assert np.mean([pair.difference < 0 for pair in mended]) == pytest.approx(1 - right, abs=0.012)
    moved = [a.chosen != b.chosen for a, b in zip(pairs, mended, strict=True)]
    assert moved == [pair.flipped for pair in pairs]


def test_prompts_are_cut_in_three_without_a_rest():
    cut = split_prompts(0, train=256, validation=48)
    together = [*cut.train, *cut.validation, *cut.test]
    assert sorted(together) == list(range(len(PROMPTS)))
    assert (len(cut.train), len(cut.validation), len(cut.test)) == (256, 48, 80)


def gaps_of(teacher, differences):
    rubric = load_rubric("semantic-gap-blind")
    annotations = annotate_pairs(pairs_of(differences), [teacher], rubric, seed=0)
    table = compute_betas(annotations, load_arm(SCHEDULE))
    return table["signed_gap"].to_numpy(), table


def test_a_perfect_teacher_says_the_gap_that_the_formula_says():
    gaps, table = gaps_of(SimulatedTeacher(name="a"), [0.05, 1.0, 4.0, -2.0])
    confidence = 2 / (1 + np.exp(-np.array([1.0, 4.0, 2.0]))) - 1
    m, c = np.round([2.5, 10, 5]), np.round(10 * confidence)
    assert gaps == pytest.approx([0, *(m * c / 100 * [1, 1, -1])])
    assert table["beta"].to_list()[3] == 0.03
    assert table["label_disputed"].to_list() == [False, False, False, True]


def test_teachers_of_stated_quality_read_accordingly():
    true = np.random.default_rng(0).normal(0, 2, 4000)
    correlations = {
        name: np.corrcoef(gaps_of(SimulatedTeacher(name="a", **how), true)[0], true)[0, 1]
        for name, how in (
            ("sharp", {}), ("noisy", {"noise": 2.0}), ("worse", {"noise": 6.0}),
            ("guessing", {"guessing": 1.0}),
        )
    }  # fmt: skip
    assert correlations["sharp"] > correlations["noisy"] > correlations["worse"] > 0.2
    assert abs(correlations["guessing"]) < 0.05
    biased, _ = gaps_of(SimulatedTeacher(name="a", length_bias=0.5), [0.01] * 5)
    assert (biased < 0).all()  # these rejected responses are one token longer


def test_a_trial_scales_the_betas_and_nothing_else():
    methods = load_methods()
    ten = methods["sp2dpo"].with_scale(10).arm.of
    assert (ten.beta_min, ten.beta_max) == pytest.approx((0.3, 3.0))
    assert methods["dpo"].with_scale(3).arm.beta.beta == pytest.approx(0.3)
    margin = methods["gap-as-margin"]
    assert margin.with_scale(3).arm.margin == margin.arm.margin
    assert methods["single-teacher"].arm.of.over_teachers == "careful"


@pytest.mark.parametrize("path", sorted(STUDY.glob("*.yaml")))
def test_every_preset_is_read_and_gives_every_method_the_same_trials(path):
    if path.name == "methods.yaml":
        return
    preset = load_config(path)
    runs = preset.runs()
    assert len({run.name for run in runs}) == len(runs)
    for seed in preset.seeds:
        for name in preset.methods:
            method, _, panel = name.partition("@")
            mine = [run.scale for run in runs if run.seed == seed and run.method == method
                    and run.chosen and (not panel or run.panel == panel)]  # fmt: skip
            assert sorted(set(mine)) == sorted(preset.scales)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"methods": ["dpoo", "sp2dpo"]}, "no method 'dpoo', did you mean 'dpo'?"),
        ({"scales": [3]}, "the default, 1, must be one of the trials"),
        ({"against": "cdpo"}, "is none of its methods"),
        ({"seed": [1]}, "unknown key 'seed', did you mean 'seeds'?"),
        ({"methods": ["sp2dpo@nobody", "sp2dpo"]}, "no panel 'nobody'"),
    ],
)
def test_a_bad_preset_is_refused(tmp_path, change, message):
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump({"like": str(STUDY / "smoke.yaml"), **change}))
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        load_config(path)


def test_what_is_wrong_is_one_line(tmp_path, capsys):
    assert main([str(tmp_path / "nothing.yaml"), "--out", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("run.py: ")


def a_run(method, seed, scale, validation, reward):
    return {
        "method": method, "panel": "panel", "scale": scale, "seed": seed, "corrected": False,
        "chosen": True, "validation": validation, "kl": 1.0, "accuracy": 0.7, "length": 6.0,
        "reward": {"0": reward, "1": reward},
    }  # fmt: skip


def test_trials_are_chosen_by_validation_alone_and_differences_are_paired(tmp_path):
    path = tmp_path / "two.yaml"
    preset = {"like": str(STUDY / "smoke.yaml"), "methods": ["sp2dpo", "gap-as-weight"],
            "seeds": [0, 1, 2], "defaults": [], "sweep": {}, "corrected": []}  # fmt: skip
    path.write_text(yaml.safe_dump(preset))
    runs = []
    for seed in (0, 1, 2):
        runs += [a_run("sp2dpo", seed, 1.0, 5, 1.0 + seed), a_run("sp2dpo", seed, 3.0, 4, 99.0)]
        runs += [
            a_run("gap-as-weight", seed, 1.0, 1, 99.0),
            a_run("gap-as-weight", seed, 3.0, 2, 0.5 + seed - 0.1 * (seed == 2)),
        ]
    comparison = compare_methods(load_config(path), runs)
    first, second = comparison["methods"]
    assert (first["name"], first["scales"]) == ("sp2dpo", [1.0, 1.0, 1.0])
    difference = second["difference"]["1"]
    values = np.array([0.5, 0.5, 0.6])
    half = 4.303 * values.std(ddof=1) / np.sqrt(3)
    assert difference["mean"] == pytest.approx(values.mean())
    assert difference["low"] == pytest.approx(values.mean() - half)
    assert comparison["claim"] == {"beaten": ["gap-as-weight"], "not_beaten": [], "holds": True}
    assert "an effect of the per-pair temperature itself" in "\n".join(
        format_comparison(comparison)
    )


def test_an_interval_needs_two_seeds():
    assert estimate([1.0])["low"] is None
    assert estimate([1.0, 3.0])["high"] == pytest.approx(2 + 12.706 * np.sqrt(2) / np.sqrt(2))


def study(preset, out, *arguments, **options):
    return subprocess.run(
        [sys.executable, STUDY / "run.py", preset, "--out", out, *arguments],
        capture_output=True, text=True, check=False, timeout=900, **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """The smoke preset, killed once on its way and gone on with."""
    out = tmp_path_factory.mktemp("study") / "smoke"
    running = subprocess.Popen(
        [sys.executable, STUDY / "run.py", STUDY / "smoke.yaml", "--out", out],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    while not list(out.glob("runs/*.json")):
        assert running.poll() is None
        time.sleep(0.2)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    result = study(STUDY / "smoke.yaml", out)
    assert result.returncode == 0, result.stderr[-3000:]
    return out, result.stdout


def test_the_smoke_preset_tells_all_runs_and_seeds(smoke):
    out, output = smoke
    assert output.endswith((out / "table.md").read_text())
    table = json.loads((out / "table.json").read_text())
    preset = load_config(STUDY / "smoke.yaml")
    assert table["runs"] == len(preset.runs()) == len(list(out.glob("runs/*.json")))
    assert {method["name"] for method in table["methods"]} == {*preset.methods, *preset.defaults}
    rows = (out / "runs.csv").read_text().splitlines()
    assert len(rows) == len(preset.runs()) + 1
    for name in ("results", "mechanism"):
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert (
        "no effect of the per-pair temperature itself is claimed" in output
        or "beats every" in output
    )


def test_runs_hold_what_they_did(smoke):
    out, _ = smoke
    runs = {path.stem: json.loads(path.read_text()) for path in out.glob("runs/*.json")}
    sp2dpo = runs["seed-0-sp2dpo-panel-x1"]
    assert 0.03 < sp2dpo["beta"]["harmonic"] < sp2dpo["beta"]["mean"] < 0.3
    assert len(sp2dpo["epochs"]) == 2  # before, and after the only one
    assert sum(sp2dpo["epochs"][0]["share"]) == pytest.approx(1)
    assert sp2dpo["epochs"][0]["right"] == pytest.approx(0, abs=1e-4)
    slopes = sp2dpo["epochs"][0]["slope"]
    assert slopes[0] == pytest.approx(0.015, abs=1e-4)  # beta_min / 2 at D = 0
    assert slopes[9] > 2 * slopes[0]
    assert runs["seed-0-drop-lowest-panel-x1"]["pairs"] < sp2dpo["pairs"]
    assert sp2dpo["kl"] > 0.0
    three = runs["seed-0-sp2dpo-panel-x3"]["beta"]["mean"]
    assert three == pytest.approx(3 * sp2dpo["beta"]["mean"])
    mean = runs["seed-0-harmonic-mean-panel-x1"]["beta"]
    assert mean["mean"] == pytest.approx(sp2dpo["beta"]["harmonic"])
    assert runs["seed-0-dpo-panel-x1-corrected"]["epochs"][0]["flipped"] is None


def test_a_run_that_is_made_again_is_the_same_to_the_digit(smoke):
    out, _ = smoke
    path, table = out / "runs" / "seed-1-gap-as-weight-panel-x1.json", out / "table.json"
    before = path.read_text(), table.read_text()
    path.unlink()
    result = study(STUDY / "smoke.yaml", out, "--workers", "1")
    assert result.returncode == 0, result.stderr[-3000:]
    assert (path.read_text(), table.read_text()) == before


def test_a_folder_belongs_to_one_preset(smoke, capsys):
    out, _ = smoke
    assert main([str(STUDY / "pilot.yaml"), "--out", str(out)]) == 2
    assert "was begun with another" in capsys.readouterr().err
