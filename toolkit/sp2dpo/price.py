"""What asking a teacher costs: by the GPU and hour, or by the token."""

import math
from dataclasses import dataclass
from typing import Any

from sp2dpo.settings import check_keys, check_type

_AMOUNTS = ("gpu_hour", "prompt", "completion", "cached")


@dataclass(frozen=True, kw_only=True)
class Price:
    """The price of a teacher; either `gpu_hour` and `gpus`, or `prompt` and `completion`, are set.

    Attributes:
        gpu_hour: money for one GPU for one hour.
        gpus: how many GPUs are paid for at the same time.
        prompt: money for a million prompt tokens.
        completion: money for a million tokens of replies.
        cached: money for a million prompt tokens that came from a prefix cache; None: as `prompt`.
        currency: what the money is called.
    """

    gpu_hour: float | None = None
    gpus: int | None = None
    prompt: float | None = None
    completion: float | None = None
    cached: float | None = None
    currency: str = "USD"


def price_of(said: Any, *, where: str) -> Price:
    """The price that a panel states for a teacher.

    Args:
        said: `{gpu_hour, gpus}` or `{prompt, completion, cached?}`, either with a `currency`.
        where: the file and the teacher, for the message.

    Raises:
        ValueError: naming every wrong key with its rule and its value.
    """
    where = f"{where}: price"
    check_type(where, "the entry", said, dict)
    by_hour = "gpu_hour" in said or "gpus" in said
    if by_hour and not said.keys().isdisjoint(("prompt", "completion", "cached")):
        raise ValueError(
            f"{where}: state gpu_hour and gpus, or prompt and completion (and cached), not both"
        )
    check_keys(
        where,
        said,
        required=("gpu_hour", "gpus") if by_hour else ("prompt", "completion"),
        optional=("currency",) if by_hour else ("cached", "currency"),
    )
    problems = [
        f"{key} must be a number of at least 0, not {said[key]!r}"
        for key in _AMOUNTS
        if key in said and not _is_amount(said[key])
    ]
    if by_hour and (type(said["gpus"]) is not int or said["gpus"] < 1):
        problems.append(f"gpus must be a whole number of at least 1, not {said['gpus']!r}")
    currency = said.get("currency", Price.currency)
    if not isinstance(currency, str) or not currency.strip() or not currency.isprintable():
        problems.append(f"currency must be text such as USD, not {currency!r}")
    if problems:
        raise ValueError(f"{where}: {'; '.join(problems)}")
    return Price(**said)


def _is_amount(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < math.inf


def cost(price: Price, *, prompt: int, cached: int, completion: int, seconds: float) -> float:
    """What so much asking cost, in the price's currency; our choice.

    Args:
        price: of the teacher.
        prompt: prompt tokens, the cached ones among them (as OpenAI-compatible servers count).
        cached: those of them that came from a prefix cache.
        completion: tokens of the replies.
        seconds: for which the GPUs were held; counts only by the hour.
    """
    if price.gpu_hour is not None and price.gpus is not None:
        return price.gpu_hour * price.gpus * seconds / 3600
    if price.prompt is None or price.completion is None:
        raise ValueError("a price is by gpu_hour and gpus, or by prompt and completion")
    reused = price.prompt if price.cached is None else price.cached
    millions = (prompt - cached) * price.prompt + cached * reused + completion * price.completion
    return millions / 1e6
