"""Win rates by other roads: the plain one by hand, the length-controlled one refitted."""

import logging

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize
from sklearn.model_selection import GroupKFold

from sp2dpo.evaluation import winrates
from sp2dpo.evaluation.prompts import Output
from sp2dpo.evaluation.temperatures import summarise_temperature
from sp2dpo.evaluation.verdicts import import_alpaca_eval
from support import alpaca

REGULARISED = 0.2
"""AlpacaEval's weight of the gamed baselines, over both of them."""


@pytest.fixture(scope="module")
def gamed(tmp_path_factory):
    """The gamed annotations, as alpaca_eval reads them."""
    path = alpaca.write(tmp_path_factory.mktemp("gamed")) / "df_gamed.csv"
    with pytest.MonkeyPatch.context() as patch:
        import_alpaca_eval()
        import alpaca_eval.metrics.glm_winrate as glm

        patch.setattr(glm, "hf_hub_download", lambda **_: str(path))
        yield pd.read_csv(path)


@pytest.fixture
def table():
    draw = np.random.default_rng(3)
    count = alpaca.COUNT
    lengths = draw.integers(20, 900, size=(count, 2)) + np.array(
        [0, 300]
    )  # longer than the baseline's
    z = 0.002 * (lengths[:, 1] - lengths[:, 0]) + draw.normal(0.2, 1, count)
    chance = 1 / (1 + np.exp(-z))
    return pd.DataFrame(
        {
            "instruction": [f"q{n}" for n in range(count)],
            "output_1": ["x" * n for n in lengths[:, 0]],
            "output_2": ["x" * n for n in lengths[:, 1]],
            "generator_1": "base",
            "generator_2": "mine",
            "annotator": "judge",
            "preference": 1 + chance,
        }
    )


def refitted(table, gamed):
    """The length-controlled rate, from the description of the regression alone.

    p = s(a tanh(length difference / its deviation) + b difficulty + c [not a gamed baseline]), an
    L1 penalty whose strength five folds choose, each verdict a weight on both labels; the rate is
    the mean of p at a length difference of 0.
    """
    difficulty = gamed.drop_duplicates("index").set_index("index")["instruction_difficulty"]
    longer = table["output_1"].str.len() - table["output_2"].str.len()
    mine = np.column_stack(
        [np.tanh(longer / longer.std()), difficulty[table.index], np.ones(len(table))]
    )
    baseline = np.column_stack(
        [np.tanh(gamed["std_delta_len"]), gamed["instruction_difficulty"], np.zeros(len(gamed))]
    )
    x = np.vstack([baseline, mine])
    p = np.concatenate([gamed["preference"], table["preference"] - 1])
    w = np.concatenate([np.full(len(gamed), REGULARISED / 2), np.ones(len(table))])
    scored = ~np.isnan(p)
    x, p, w = x[scored], p[scored], w[scored]

    def fit(x, p, w, strength):
        def loss(split):
            z = x @ (split[:3] - split[3:])
            lost = w @ (p * np.logaddexp(0, -z) + (1 - p) * np.logaddexp(0, z))
            slope = x.T @ (w * (1 / (1 + np.exp(-z)) - p))
            return strength * lost + split.sum(), np.concatenate(
                [strength * slope + 1, -strength * slope + 1]
            )

        optimum = minimize(
            loss, np.full(6, 0.1), jac=True, bounds=[(0, None)] * 6, method="L-BFGS-B",
            options={"ftol": 1e-14, "gtol": 1e-10, "maxiter": 5000},
        )  # fmt: skip
        return optimum.x[:3] - optimum.x[3:]

    groups = np.arange(len(p))
    strengths = np.logspace(-4, 4, 10)
    lost = np.zeros((5, len(strengths)))
    twice = np.concatenate([groups, groups])  # each row stands there for both of its labels
    for fold, (train, test) in enumerate(GroupKFold(5).split(twice, groups=twice)):
        train, test = np.unique(twice[train]), np.unique(twice[test])
        for place, strength in enumerate(strengths):
            z = x[test] @ fit(x[train], p[train], w[train], strength)
            lost[fold, place] = np.mean(
                w[test] * (p[test] * np.logaddexp(0, -z) + (1 - p[test]) * np.logaddexp(0, z))
            )
    b = fit(x, p, w, strengths[lost.mean(0).argmin()])
    at_equal_length = mine * [0, 1, 1]
    return 100 * np.mean(1 / (1 + np.exp(-at_equal_length @ b)))


def test_the_length_controlled_rate_is_that_of_an_independent_refit(table, gamed):
    rates = winrates.win_rates(table, length_controlled=True)
    assert rates["length_controlled"] == pytest.approx(refitted(table, gamed), abs=0.02)
    assert rates["win_rate"] - rates["length_controlled"] > 3  # length matters here


def test_it_is_under_resampling_as_well_since_rows_keep_their_index(table, gamed):
    rows = np.random.default_rng(4).integers(len(table), size=len(table))
    resampled = table.iloc[rows]
    rate = winrates.win_rates(resampled, length_controlled=True)["length_controlled"]
    assert rate == pytest.approx(refitted(resampled, gamed), abs=0.05)
    lost = winrates.win_rates(resampled.reset_index(drop=True), length_controlled=True)[
        "length_controlled"
    ]
    assert abs(lost - rate) > 1e-3  # other difficulties: that is what the index is for


def test_the_root_logger_keeps_its_level(table, gamed):
    root = logging.getLogger()
    before, levels = root.level, []
    try:
        for level in (logging.DEBUG, logging.ERROR):
            root.setLevel(level)
            import_alpaca_eval()
            winrates.win_rates(table, length_controlled=True)
            levels.append(root.level)
    finally:
        root.setLevel(before)
    assert levels == [logging.DEBUG, logging.ERROR]


def test_unscored_rows_take_no_part(table, gamed):
    table.loc[:99, "preference"] = np.nan
    rates = winrates.win_rates(table, length_controlled=True)
    assert rates["win_rate"] == pytest.approx(100 * (table["preference"].mean() - 1))
    assert rates["length_controlled"] == pytest.approx(refitted(table, gamed), abs=0.02)


def test_a_tie_counts_half(table):
    four_rows = table.iloc[:4].assign(preference=[1.0, 2.0, 0.0, 1.5])
    assert winrates.win_rates(four_rows, length_controlled=False)["win_rate"] == pytest.approx(50)


def test_no_verdict_at_all_is_no_rate(table):
    unscored = table.assign(preference=np.nan)
    assert np.isnan(winrates.win_rates(unscored, length_controlled=False)["win_rate"])


def a_student(name, rate, controlled, *, difference=None, seeds=1, unscored=0, length=300):
    def rate_around(value):
        return winrates.Rate(value=value, low=value - 1, high=value + 1)

    return winrates.StudentRates(
        name=name, seeds=seeds, prompts=805, unscored=[unscored], length=length,
        baseline_length=300,
        rates={"win_rate": rate_around(rate), "length_controlled": rate_around(controlled)},
        difference=difference and {
            "win_rate": rate_around(difference[0]), "length_controlled": rate_around(difference[1])
        },
    )  # fmt: skip


def notes_on(*students):
    return winrates.comparison_notes(
        winrates.Comparison(
            title="t", judge="j", against="a", draws=1, length_controlled=True, students=students
        )
    )


@pytest.mark.parametrize(
    ("student", "message"),
    [
        (a_student("b", 55, 52, difference=(5, -6)), "WR up, LC down: it wins by length"),
        (a_student("b", 51, 50, difference=(1, 2)), "no difference can be claimed"),
        (a_student("b", 60, 50, length=900), "its outputs are 3.00 times as long"),
        (a_student("b", 50, 50, unscored=7), "7 of 805 outputs have no verdict"),
    ],
)
def test_what_must_be_said_is_said_aloud(student, message):
    notes = notes_on(a_student("a", 50, 50), student)
    assert len(notes) == 1
    assert message in notes[0]


def test_several_seeds_may_claim_what_one_may_not():
    student = a_student("b", 52, 51, difference=(2, 2), seeds=3)
    assert notes_on(student) == []


def test_a_temperature_leaves_unscored_verdicts_out():
    outputs = [Output(instruction="q", output=text, generator="m") for text in ("ab", "", "abcd")]
    summary = summarise_temperature(
        0.5, outputs, rewards=[1.0, 2.0, 3.0], preferences=[2.0, None, 1.0], draws=200, seed=0
    )
    assert summary.win_rate.value == 50
    assert summary.unscored == 1
    assert summary.empty == 1
    assert summary.length == 2
    assert summary.reward.value == 2
    assert summary.reward.low < 2 < summary.reward.high
