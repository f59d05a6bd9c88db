"""What is published of the study: tables are those of the runs, pages quote the tables."""

import re
import sys
from collections import Counter

import numpy as np
import polars as pl
import pytest

from support.harness import ROOT

STUDY = ROOT / "recipes" / "study"
sys.path.insert(0, str(STUDY))

from config import load_config  # noqa: E402
from metrics import judge_rewards  # noqa: E402
from results import compare_methods, format_comparison  # noqa: E402
from uses import (  # noqa: E402
    POOLED,
    Runs,
    answer_questions,
    format_answers,
    format_curves,
    write_results,
)

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
        name = names[key]
        error = judge_rewards(np.zeros((samples, 4)), [[]] * samples, config.judge, name=name)
        errors.setdefault(row["seed"], []).append(error.mean())
        # What is left are the difference of the prompts, equal for a seed, and that of the samples.
        true = row["reward_1"] + config.judge["length_bias"] * row["length"]
        read.setdefault(row["seed"], []).append(row["validation"] - true)
    slopes = [np.polyfit(errors[seed], read[seed], 1)[0] for seed in errors]
    assert np.mean(slopes) == pytest.approx(1, abs=0.25)


def test_the_tables_of_the_second_part_are_those_of_its_runs(tmp_path):
    folder = RESULTS / "uses"
    runs, panels = Runs.read(folder), pl.read_csv(folder / "panels.csv")
    assert len(panels) == len(runs.seeds) * panels["panel"].n_unique()
    lines = write_results(runs, panels, tmp_path)
    table = "\n".join(lines) + "\n"
    assert table == (folder / "table.md").read_text()
    assert f"<!-- uses -->\n{table}<!-- /uses -->" in (STUDY / "USES.md").read_text()
    answers = "\n".join(format_answers(answer_questions(runs)))
    assert answers in (ROOT / "docs" / "results.md").read_text()


def test_no_method_of_the_second_part_is_published_in_part():
    table = Runs.read(RESULTS / "uses").table.filter(~pl.col("name").is_in([*POOLED]))
    configs = [load_config(STUDY / f"uses{part}.yaml") for part in ("", "-kl", "-panels", "-arms")]
    expected = Counter((run.method, run.panel) for config in configs for run in config.runs())
    published = Counter(table.select("method", "panel").iter_rows())
    assert published == {key: count for key, count in expected.items() if key in published}


@pytest.mark.parametrize(
    ("page", "start", "end"),
    [
        ("README.md", "controlled study", "## Guides"),
        ("docs/results.md", "## The controlled study", "## Evaluating"),
        ("recipes/study/README.md", "## Which use to pick", "## Findings"),
    ],
)
def test_what_pages_quote_stands_in_the_tables(page, start, end):
    text = (ROOT / page).read_text()
    quoted = INTERVAL.findall(text[text.index(start) : text.index(end)])
    tables = "".join((RESULTS / name / "table.md").read_text() for name in ("cpu", "uses"))
    assert len(quoted) >= 3
    assert [interval for interval in quoted if interval not in tables] == []
