"""TRL's DPO trainer with per-pair columns."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sp2dpo.training.batch import Mixture, PairBatch
    from sp2dpo.training.config import PairDPOConfig
    from sp2dpo.training.losses import LogRatios
    from sp2dpo.training.reward_model import prompt_fold
    from sp2dpo.training.trainer import PairColumnsMixin, PairDPOTrainer

__all__ = [
    "LogRatios",
    "Mixture",
    "PairBatch",
    "PairColumnsMixin",
    "PairDPOConfig",
    "PairDPOTrainer",
    "prompt_fold",
]

_MODULES = {
    "LogRatios": "sp2dpo.training.losses",
    "Mixture": "sp2dpo.training.batch",
    "PairBatch": "sp2dpo.training.batch",
    "PairColumnsMixin": "sp2dpo.training.trainer",
    "PairDPOConfig": "sp2dpo.training.config",
    "PairDPOTrainer": "sp2dpo.training.trainer",
    "prompt_fold": "sp2dpo.training.reward_model",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: importing the package does not load torch."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_MODULES[name]), name)
    globals()[name] = value  # found without this function from now on
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
