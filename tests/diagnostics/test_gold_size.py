"""The size of a gold file: the power of the rule, by hand, by simulation and from the command."""

import json

import numpy as np
import pytest

from sp2dpo.diagnostics.agreement import wilson_interval
from sp2dpo.diagnostics.gold_size import further_truths, gold_size, rule_power
from sp2dpo.diagnostics.intervals import mean_share
from support.harness import fail, succeed


def test_the_power_for_few_truths_by_hand():
    # 4 of 4 is 0.5101 to 1, 3 of 4 0.3006. Right about all of both: low end 1 - 0.4899 / sqrt 2 =
    # 0.65. 4 and 3: 0.875 - sqrt(0.4899^2 + 0.4494^2) / 2 = 0.54. 4 and 2 (0.15): 0.75 -
    # sqrt(0.4899^2 + 0.35^2) / 2 = 0.449. 3 and 3: 0.75 - 0.4494 / sqrt 2 = 0.43.
    p, q = 0.9, 0.8
    all_right = p**4 * q**4
    one_wrong = 4 * p**3 * (1 - p) * q**4 + p**4 * 4 * q**3 * (1 - q)
    assert rule_power((p, q), (4, 4)) == pytest.approx(all_right + one_wrong)
    assert rule_power((1.0, 1.0), (4, 4)) == 1
    assert rule_power((0.0, 0.0), (4, 4)) == 0


def test_the_power_is_the_share_of_passes():
    rng = np.random.default_rng(0)
    right = rng.binomial((42, 8), (0.7, 0.7), size=(4000, 2)).tolist()
    passed = np.mean(
        [mean_share([wilson_interval(a, 42), wilson_interval(b, 8)]).low > 0.5 for a, b in right]
    )
    # Three standard errors of 4,000 trials are 0.023.
    assert rule_power((0.7, 0.7), (42, 8)) == pytest.approx(passed, abs=0.024)


@pytest.mark.parametrize("accuracy", [0.6, 0.7, 0.75])
def test_the_size_has_the_power_and_a_tenth_less_has_not(accuracy):
    size = gold_size((accuracy, accuracy))
    assert size.reached == rule_power(size.accuracies, (size.each, size.each)) >= 0.8
    fewer = int(0.88 * size.each)
    assert rule_power(size.accuracies, (fewer, fewer)) < 0.8


def test_sizes_have_a_least_and_a_largest():
    assert gold_size((1.0, 1.0)).each == 10  # twenty truths: below, no verdict
    assert gold_size((0.51, 0.51)).each is None
    assert gold_size((0.5, 0.5)).each is None
    assert gold_size((0.4, 0.4)).reached is None
    with pytest.raises(ValueError, match=r"accuracy 1\.2 must be from 0 to 1"):
        gold_size((1.2, 0.5))
    with pytest.raises(ValueError, match="power 1 must be above 0 and below 1"):
        gold_size((0.7, 0.7), power=1)


def test_further_truths_are_those_that_are_missing():
    shares = (0.69, 0.625)
    more = further_truths(shares, (42, 8))
    assert more[0] == 0
    assert rule_power(shares, (42, 8 + more[1])) >= 0.8
    assert rule_power(shares, (42, 8 + more[1] // 2)) < 0.8
    assert further_truths((0.5, 0.5), (40, 40)) is None


def test_the_command_prints_the_size():
    assert succeed("gold-size", "--accuracy", 0.7) == (
        "teachers who are right about 70.0% of the right and 70.0% of the wrong labels: 23 right "
        "and 23 wrong labels give a power of 80.9%\n"
    )
    size = json.loads(succeed("gold-size", "--accuracy", 0.9, "--accuracy-wrong", 0.5, "--json"))
    assert size["accuracies"] == [0.9, 0.5]
    assert size["each"] == gold_size((0.9, 0.5)).each
    assert "are too few for a power of 80.0%" in succeed("gold-size", "--accuracy", 0.51)
    assert succeed("gold-size", "--accuracy", 0.9, "--accuracy-wrong", 0.1) == (
        "teachers who are right about 90.0% of the right and 10.0% of the wrong labels are on "
        "average not better than chance (50.0%): no number of known labels can show that they are\n"
    )
    assert "must be numbers" in fail("gold-size", "--accuracy", "nan", code=2)
