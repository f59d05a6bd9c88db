"""What asking costs, by hand."""

from typing import Annotated

import pytest

from sp2dpo.inference.endpoint import PRICE, Price, cost
from sp2dpo.settings import Settings, validate


class Priced(Settings):
    price: Annotated[Price, PRICE]


def parse_price(config, *, where):
    return validate(Priced, {"price": config}, where=where).price


def test_gpus_are_paid_by_the_hour():
    price = parse_price({"gpu_hour": 2.5, "gpus": 4}, where="panel.yaml: teacher 1")

    # half an hour of 4 GPUs at 2.50; tokens do not count
    assert cost(price, prompt=10**9, cached=0, completion=10**9, seconds=1800) == 5.0
    assert price.currency == "USD"


def test_tokens_are_paid_by_the_million():
    price = parse_price({"prompt": 3, "completion": 15, "currency": "EUR"}, where="panel.yaml")

    # 2 million at 3 and 0.1 million at 15; cached ones cost the same; time does not count
    assert cost(price, prompt=2_000_000, cached=500_000, completion=100_000, seconds=9e9) == 7.5
    assert price.currency == "EUR"


def test_cached_tokens_have_a_price_of_their_own():
    price = parse_price({"prompt": 3, "completion": 15, "cached": 0.3}, where="panel.yaml")

    # 1.5 million at 3, 0.5 million at 0.30, 0.1 million at 15
    amount = cost(price, prompt=2_000_000, cached=500_000, completion=100_000, seconds=0)
    assert amount == pytest.approx(4.5 + 0.15 + 1.5)


def test_cached_tokens_may_be_free():
    price = parse_price({"prompt": 3, "completion": 0, "cached": 0}, where="panel.yaml")

    assert cost(price, prompt=1_000_000, cached=1_000_000, completion=5, seconds=0) == 0


def test_nothing_asked_costs_nothing():
    price = Price(prompt=1, completion=1)

    assert cost(price, prompt=0, cached=0, completion=0, seconds=0) == 0


def test_a_price_made_of_nothing_is_refused():
    with pytest.raises(ValueError, match="gpu_hour and gpus, or"):
        cost(Price(), prompt=1, cached=0, completion=1, seconds=1)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (7, "price: must be keys and values, not 7"),
        ({}, r"price: missing key 'prompt'\n.*price: missing key 'completion'"),
        ({"gpu_hour": 2}, "missing key 'gpus'"),
        ({"gpu_hour": 2, "gpus": 1, "prompt": 1}, "not both"),
        ({"prompt": 1, "completion": 1, "curency": "EUR"}, "did you mean 'currency'"),
        ({"prompt": -1, "completion": 1}, r"price\.prompt: must be a number of at least 0, not -1"),
        (
            {"prompt": True, "completion": 1},
            r"price\.prompt: must be a number of at least 0, not True",
        ),
        (
            {"prompt": "3", "completion": 1},
            r"price\.prompt: must be a number of at least 0, not '3'",
        ),
        ({"prompt": float("nan"), "completion": 1}, "at least 0, not nan"),
        ({"gpu_hour": float("inf"), "gpus": 1}, "at least 0, not inf"),
        ({"gpu_hour": 1, "gpus": 0}, r"price\.gpus: must be a whole number of at least 1, not 0"),
        (
            {"gpu_hour": 1, "gpus": 1.5},
            r"price\.gpus: must be a whole number of at least 1, not 1.5",
        ),
        (
            {"prompt": 1, "completion": 1, "currency": ""},
            r"price\.currency: must be text such as USD",
        ),
        ({"prompt": 1, "completion": 1, "cached": None}, r"price\.cached: must be a number"),
    ],
)
def test_a_wrong_price_is_named(config, message):
    with pytest.raises(ValueError, match=message) as caught:
        parse_price(config, where="panel.yaml: teacher 2")
    assert str(caught.value).startswith("panel.yaml: teacher 2: price")


def test_all_that_is_wrong_is_said_at_once():
    config = {"prompt": -1, "completion": "a", "cached": [], "currency": 5}

    with pytest.raises(ValueError, match=r"(?s)prompt.*completion.*cached.*currency"):
        parse_price(config, where="panel.yaml")
