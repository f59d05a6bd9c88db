"""What a reward margin makes of a pair: MADPO's weight and ODPO's offset."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sp2dpo.betas.baselines import Madpo, Odpo

NOTEBOOK = {"c_max": 2, "c_min": 0.5, "lam": 1, "tau": math.log(0.999 / 0.001)}
quick = settings(derandomize=True, deadline=None, max_examples=200)


def plain(h, *, c_max, c_min, lam, tau):
    """The formula as it stands, for where floating point takes it."""
    c = c_min + (c_max - c_min) / (1 + (c_max - 1) / (1 - c_min) * math.exp(lam * (abs(h) - tau)))

    def s(z):
        return 1 / (1 + math.exp(-z))

    return s(c * h) / s(h) if h > -tau else 1.0


@pytest.mark.parametrize(
    ("h", "weight"),
    [
        (-4, 0.033667),
        (-1, 0.446409),
        (0.5, 1.173688),
        (1, 1.203655),
        (4, 1.017699),
        (8, 0.997072),
    ],
)
def test_the_weight_is_that_of_the_released_code(h, weight):
    assert Madpo(**NOTEBOOK).values(h) == pytest.approx(weight, abs=1e-6)


def test_the_weight_is_1_without_a_margin_and_at_and_below_minus_tau():
    tau = NOTEBOOK["tau"]
    assert Madpo(**NOTEBOOK).values([0.0, -tau, -tau - 1, -1e4]).tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("settings_", [NOTEBOOK, {"c_max": 4, "c_min": 0.25, "lam": 1, "tau": 7}])
def test_the_weight_is_continuous(settings_):
    tau = settings_["tau"]
    assert Madpo(**settings_).values(-tau + 1e-9) == pytest.approx(1, abs=1e-6)
    h = np.linspace(-3 * tau, 3 * tau, 200_001)
    w = Madpo(**settings_).values(h)
    assert np.abs(np.diff(w)).max() < 40 * (h[1] - h[0])


@quick
@given(st.floats(-1e4, 1e4), st.floats(1.01, 100), st.floats(0.01, 0.99))
def test_the_weight_is_a_number_above_0_for_every_margin(h, c_max, c_min):
    weight = float(Madpo(c_max=c_max, c_min=c_min, lam=1.0, tau=7.0).values(h))
    assert math.isfinite(weight)
    assert weight >= 0


@quick
@given(st.floats(-20, 20))
def test_the_weight_equals_the_plain_formula_where_that_can_be_computed(h):
    assert Madpo(**NOTEBOOK).values(h) == pytest.approx(plain(h, **NOTEBOOK), rel=1e-9)


def test_the_ablations_hold_c_on_one_side_of_1():
    h = np.linspace(-6.5, 20, 1000)
    unrestricted, amplify, regularise = (
        Madpo(only=only, **NOTEBOOK).values(h) for only in (None, "amplify", "regularise")
    )
    inside = np.abs(h) < NOTEBOOK["tau"]
    assert np.allclose(amplify[inside], unrestricted[inside])
    assert np.allclose(amplify[~inside], 1)
    assert np.allclose(regularise[inside], 1)
    assert np.allclose(regularise[~inside], unrestricted[~inside])


def test_the_shape_of_the_margins_stays():
    assert Madpo(**NOTEBOOK).values(np.zeros((2, 3))).shape == (2, 3)
    assert Madpo(**NOTEBOOK).values(1.0).shape == ()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"c_max": 1}, "c_max must be a number above 1, at most 10000, not 1"),
        ({"c_min": 1}, "c_min must be a number above 0, below 1, not 1"),
        ({"lam": 0}, "lam must be a number above 0, at most 10000, not 0"),
        ({"tau": -1}, "tau must be a number above 0, at most 10000, not -1"),
        ({"tau": math.nan}, "tau must be a number above 0, at most 10000, not nan"),
        ({"c_max": True}, "c_max must be a number above 1, at most 10000, not True"),
        ({"only": "both"}, "only 'both' is not known"),
    ],
)
def test_numbers_that_mean_nothing_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Madpo(**(NOTEBOOK | wrong))


def test_odpos_offset_is_the_scaled_logarithm_of_the_margin():
    values = Odpo(alpha=2, f="log").values([math.e, 1.0, 0.5, 0.0, -3.0])
    assert values[:3] == pytest.approx([2, 0, 2 * math.log(0.5)])
    assert np.isnan(values[3:]).all()
    assert Odpo(alpha=2, f="identity").values([1.5]) == pytest.approx([3])
    with pytest.raises(ValueError, match=r"f 'sqrt' is not known \(known: log, identity\)"):
        Odpo(alpha=1, f="sqrt")
