"""Choices that take numbers: read, written, and every mistake one line."""

from typing import Annotated

import pytest

from sp2dpo.betas.baselines import Madpo
from sp2dpo.betas.choices import choice_of, format_choice, parse_choice
from sp2dpo.betas.estimators import GAP_FORMS, Product, Shrink
from sp2dpo.betas.maps import MAPS, Power, Quantile
from sp2dpo.settings import Settings, validate

WEIGHTS = {"madpo": Madpo}


class GapConfig(Settings):
    gap: Annotated[object, choice_of(GAP_FORMS)]


@pytest.mark.parametrize(
    ("text", "choices", "choice"),
    [
        ("product", GAP_FORMS, Product()),
        (" product ", GAP_FORMS, Product()),
        ("product()", GAP_FORMS, Product()),
        ("shrink(0.3)", GAP_FORMS, Shrink(0.3)),
        ("shrink( m0 = 1 )", GAP_FORMS, Shrink(1.0)),
        ("power(5e-1)", MAPS, Power(0.5)),
        ("quantile", MAPS, Quantile()),
        ("madpo(2, 0.5, 1, 7)", WEIGHTS, Madpo(2, 0.5, 1, 7)),
        (
            "madpo(c_max=2, c_min=0.5, lam=1, tau=7, only=amplify)",
            WEIGHTS,
            Madpo(2, 0.5, 1, 7, "amplify"),
        ),
    ],
)
def test_a_choice_is_read_and_written_back(text, choices, choice):
    assert parse_choice(text, choices) == choice
    assert parse_choice(format_choice(choice, choices), choices) == choice


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("prodct", "'prodct' is not known, did you mean 'product'? (known: product, shrink(m0)"),
        (3, "gap: 3 is not known"),
        (None, "gap: None is not known"),
        (["product"], "is not known"),
        ("", "is not known"),
        ("product(1)", "write product"),
        ("shrink", "write shrink(m0)"),
        ("shrink()", "write shrink(m0)"),
        ("shrink(0.1, 0.2)", "write shrink(m0)"),
        ("shrink(0.1, m0=0.2)", "write shrink(m0)"),
        ("shrink(m1=0.2)", "write shrink(m0)"),
        ("shrink(1.5)", "m0 must be a number of at least 0, at most 1, not 1.5"),
        ("shrink(nan)", "m0 must be a number of at least 0, at most 1, not 'nan'"),
        ("shrink(1e999)", "m0 must be a number of at least 0, at most 1, not inf"),
        ("shrink(True)", "True is not a number"),
        ("shrink('0.1')", "is not a number"),
        ("shrink(print(1))", "print(1) is not a number"),
        ("shrink(**x)", "must contain a list of numbers"),
        ("shrink(0.1", "must contain a list of numbers"),
        ("shrink(0.1)(2)", "must contain a list of numbers"),
        ("shrink(" + "(" * 5000 + ")", "must contain a list of numbers"),
    ],
)
def test_every_mistake_is_one_line_with_file_key_and_value(value, message):
    with pytest.raises(ValueError, match=r"^schedule\.yaml: gap: ") as error:
        validate(GapConfig, {"gap": value}, where="schedule.yaml")
    assert message in str(error.value)
    assert "\n" not in str(error.value)
