"""What is published of the study: tables are those of the runs, pages quote the tables."""

import re
import sys

import numpy as np
import polars as pl
import pytest

from support.harness import ROOT

STUDY = ROOT / "recipes" / "study"
sys.path.insert(0, str(STUDY))

from config import load_config  # noqa: E402
from metrics import judge_rewards  # noqa: E402
from results import compare_methods, format_comparison  # noqa: E402
from uses import Runs, format_curves  # noqa: E402

RESULTS = STUDY / "results"
PRESETS = {
    "cpu": "cpu.yaml",
    "readings": "ablation-readings.yaml",
    "noise": "ablation-noise.yaml",
    "weights": "exploration-weights.yaml",
}
NUMBER = re.compile(r"[+-]?\d+\.\d+")
INTERVAL = re.compile(r"[+-]\d\.\d\d \([+-]\d\.\d\d to [+-]\d\.\d\d\)")


def runs_of(name):
    """The runs as results.py takes them, from the published file."""
    rows = pl.read_csv(RESULTS / name / "runs.csv").to_dicts()
    for row in rows:
        heats = [key for key in row if key.startswith("reward_")]
        row["reward"] = {key.removeprefix("reward_"): row[key] for key in heats}
    return rows


@pytest.mark.parametrize("name", PRESETS)
def test_a_table_is_that_of_its_runs(name):
    preset = load_config(STUDY / PRESETS[name])
    runs = runs_of(name)
    assert len(runs) == len(preset.runs())
    table = format_comparison(compare_methods(preset, runs))
    published = (RESULTS / name / "table.md").read_text().splitlines()[: len(table)]
    assert len(table) == len(published)
    for ours, theirs in zip(table, published, strict=True):
        assert NUMBER.sub("#", ours) == NUMBER.sub("#", theirs)
        for value, expected in zip(NUMBER.findall(ours), NUMBER.findall(theirs), strict=True):
            assert float(value) == pytest.approx(float(expected), abs=0.0101)  # runs.csv is rounded


@pytest.mark.parametrize("name", PRESETS)
def test_the_page_shows_the_table(name):
    page = (STUDY / "README.md").read_text()
    shown = page.split(f"<!-- {name} -->\n")[1].split(f"<!-- /{name} -->")[0]
    assert shown == (RESULTS / name / "table.md").read_text()


def test_the_comparison_at_equal_kl_is_that_of_the_runs():
    runs = Runs.read(RESULTS / "cpu")
    table = "\n".join(format_curves(runs, runs.names())) + "\n"
    assert table == (RESULTS / "cpu" / "equal-kl.md").read_text()
    assert f"<!-- equal-kl -->\n{table}<!-- /equal-kl -->" in (STUDY / "README.md").read_text()


@pytest.mark.parametrize("file", sorted(RESULTS.glob("uses*/runs-*.csv")), ids=lambda f: f.stem)
def test_the_judge_has_erred_anew_in_each_published_run(file):
    """The scores of the first runs were computed again: none may have been missed."""
    name = "uses" if file.stem == "runs-uses" else f"uses-{file.stem.removeprefix('runs-')}"
    config = load_config(STUDY / f"{name}.yaml")
    rows = pl.read_csv(file).rows(named=True)
    names = {
        (run.method, run.panel, run.scale, run.seed, run.order): run.name for run in config.runs()
    }
    samples = 2 * config.samples * config.prompts["validation"]
    errors, read = {}, {}
    for row in rows:
        key = tuple(row[column] for column in ("method", "panel", "scale", "seed", "order"))
        name = names.pop(key)
        error = judge_rewards(np.zeros((samples, 4)), [[]] * samples, config.judge, name=name)
        errors.setdefault(row["seed"], []).append(error.mean())
        # What is left are the difference of the prompts, equal for a seed, and that of the samples.
        true = row["reward_1"] + config.judge["length_bias"] * row["length"]
        read.setdefault(row["seed"], []).append(row["validation"] - true)
    assert not names
    slopes = [np.polyfit(errors[seed], read[seed], 1)[0] for seed in errors]
    assert np.mean(slopes) == pytest.approx(1, abs=0.25)


@pytest.mark.parametrize("page", ["README.md", "docs/results.md"])
def test_what_other_pages_quote_stands_in_the_table(page):
    text = (ROOT / page).read_text()
    start = text.index("controlled study")
    quoted = INTERVAL.findall(text[start : start + 1800])
    table = (RESULTS / "cpu" / "table.md").read_text()
    assert len(quoted) >= 2
    assert [interval for interval in quoted if interval not in table] == []
