"""The page's betas are those of `sp2dpo schedule`, whatever the schedule, and so is its YAML."""

import random
import sys

import numpy as np
import pytest
import yaml

from servers.openai_server import serving
from sp2dpo.betas.schedule import parse_schedule, schedule_betas
from sp2dpo.store.store import Store
from support.browser import INSPECTOR, bare
from support.harness import BUILD, SCHEDULE, succeed, write_pairs, write_panel

sys.path.insert(0, str(INSPECTOR))
import loader

RECOMPUTE = """
async ([packed, rubric, specs]) => {
  const scores = schedule.prepared({slots: packed.slots, ...(await page.unpacked(packed))});
  return specs.map((said) => {
    const spec = schedule.read(said);
    try {
      const {beta} = schedule.compute(spec, rubric, scores);
      return {yaml: schedule.written(spec),
        beta: Array.from(beta, (one) => (Number.isNaN(one) ? null : one))};
    } catch (error) {
      if (!(error instanceof schedule.Refused)) throw error;
      return {yaml: schedule.written(spec), error: error.message};
    }
  });
}
"""


@pytest.fixture(scope="module")
def page(browser):
    with bare(browser, "lib/schedule", "lib/page") as page:
        yield page


@pytest.fixture(scope="module")
def doubting(tmp_path_factory):
    """Five blind teachers, three variants, both orders, with expectations; 60 pairs."""
    folder = tmp_path_factory.mktemp("doubting")
    names = tuple(f"scripted-{n}" for n in range(5))
    sampling = {"temperature": 0, "max_tokens": 300, "logprobs": True, "top_logprobs": 5}
    pairs, store = write_pairs(folder / "pairs.jsonl", 60), folder / "run.sqlite"
    command = ["scripted", "--log", folder / "log", "--unsure", 1]
    with serving(*command) as url:
        panel = write_panel(
            folder / "panel.yaml", url, names=names, rubric="semantic-gap-blind", sampling=sampling
        )
        succeed("annotate", "--pairs", pairs, "--panel", panel, "--store", store)
    betas = folder / "betas.parquet"
    succeed("schedule", "--store", store, "--schedule", SCHEDULE, "--out", betas)
    succeed(*BUILD, "--store", store, "--betas", betas, "--out", folder / "dataset")
    return folder


def any_schedule(rng, *, teachers, variants, categories, expected):
    """A schedule that a file could say."""
    low = round(rng.uniform(0.001, 0.2), 4)
    schedule = {
        "beta_min": low,
        "beta_max": round(low + rng.uniform(0.01, 1), 4),
        "quorum": rng.choice([1, 3, 7, 100]),
        "estimate": rng.choice(["sampled", "expected"] if expected else ["sampled"]),
        "gap": rng.choice(["product", "magnitude", "signed", f"shrink(m0={rng.random():.3f})"]),
        "over_variants": rng.choice(["median", "mean", "trimmed", *variants]),
        "over_teachers": rng.choice(["median", "mean", "trimmed", *teachers]),
        "map": rng.choice(
            ["linear", "log-linear", f"power(exponent={rng.uniform(0.1, 4):.3f})", "quantile"]
        ),
    }
    if rng.random() < 0.4:
        schedule["envelopes"] = {
            category: {"beta_min": 0.01, "beta_max": round(rng.uniform(0.02, 0.9), 3)}
            for category in rng.sample(categories, 2)
        }
    return schedule


def compute_betas(annotations, spec):
    """The toolkit's betas; None where it refuses the schedule."""
    try:
        return schedule_betas(annotations, spec)
    except ValueError:
        return None


def betas_of_page_and_toolkit(page, folder, dataset, *, count, expected):
    """Pairs of betas, the page's and the toolkit's, by schedule; refusals on both sides agree."""
    opened = loader.open_folder(dataset, folder, name="x", commit=None)
    with Store(folder / "run.sqlite") as store:
        annotations = store.annotations()
    rng = random.Random(0)
    names = {axis: sorted(annotations.replies[axis].unique()) for axis in ("teacher", "variant")}
    specs = [
        any_schedule(
            rng, teachers=names["teacher"], variants=names["variant"],
            categories=list(annotations.rubric.categories), expected=expected,
        )
        for _ in range(count)
    ]  # fmt: skip
    results = page.evaluate(RECOMPUTE, [opened.packed_scores, opened.rubric, specs])
    for schedule, result in zip(specs, results, strict=True):
        spec = parse_schedule(yaml.safe_load(result["yaml"]), where="the page's YAML")
        assert spec == parse_schedule(schedule, where="the test")
        table = compute_betas(annotations, spec)
        assert ("error" in result) == (table is None), (schedule, result)
        if table is None:
            continue
        ours = dict(table.select("pair_id", "beta").iter_rows())
        theirs = np.array([np.nan if beta is None else beta for beta in result["beta"]])
        yield schedule, theirs, np.array([ours[pair] for pair in opened.ids], float)


def test_every_schedule_gives_the_same_betas_on_the_demo(page, demo, tmp_path):
    (tmp_path / "run.sqlite").write_bytes((demo / "run.sqlite").read_bytes())
    compared = 0
    for schedule, theirs, ours in betas_of_page_and_toolkit(
        page, tmp_path, demo / "dataset", count=60, expected=False
    ):
        np.testing.assert_allclose(theirs, ours, atol=1e-9, err_msg=str(schedule))
        compared += 1
    assert compared > 20


def test_every_schedule_gives_the_same_betas_with_doubts_and_expectations(page, doubting):
    compared = 0
    for schedule, theirs, ours in betas_of_page_and_toolkit(
        page, doubting, doubting / "dataset", count=120, expected=True
    ):
        np.testing.assert_allclose(theirs, ours, atol=1e-6, err_msg=str(schedule))
        compared += 1
    assert compared > 60


def test_the_yaml_of_odd_names_and_small_numbers_is_read_back(page):
    schedule = {
        "beta_min": 1e-7, "beta_max": 1, "quorum": 2, "estimate": "sampled", "gap": "product",
        "over_variants": "on", "over_teachers": "a: b #c", "map": "power(exponent=0.5)",
        "envelopes": {"no": {"beta_min": 0.1, "beta_max": 0.2}},
    }  # fmt: skip
    text = page.evaluate("(said) => schedule.written(schedule.read(said))", schedule)
    parsed = yaml.safe_load(text)
    assert parsed == schedule


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"beta_min": 0}, "beta_min must be above 0"),
        ({"beta_min": 0.5}, "beta_min must be below beta_max"),
        ({"quorum": 0}, "quorum must be a whole number"),
        ({"gap": "shrink(m0=2)"}, "m0 must be from 0 to 1"),
        ({"map": "power(exponent=0)"}, "exponent must be above 0"),
        ({"estimate": "expected"}, "no reply has expected scores"),
        ({"over_teachers": "trimmed"}, "trimmed needs at least 5 teachers, and there are 3"),
        ({"over_variants": "nobody"}, "no kept reply has the variant nobody"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(page, demo, tmp_path, change, why):
    opened = loader.open_folder(demo / "dataset", tmp_path, name="x", commit=None)
    schedule = yaml.safe_load(SCHEDULE.read_text()) | change
    (result,) = page.evaluate(RECOMPUTE, [opened.packed_scores, opened.rubric, [schedule]])
    assert why in result["error"]
