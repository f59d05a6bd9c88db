"""TRL's DPO trainer with per-pair columns, and the runs of the training recipes."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sp2dpo.training.batch import Mixture, PairBatch
    from sp2dpo.training.columns import apply_marks
    from sp2dpo.training.commands import reward_command, train_command
    from sp2dpo.training.config import PairDPOConfig
    from sp2dpo.training.console import one_line_errors
    from sp2dpo.training.data import DataConfig
    from sp2dpo.training.losses import LogRatios
    from sp2dpo.training.reward_model import ScoreSummary, Scoring, prompt_fold, score_dataset
    from sp2dpo.training.reward_run import (
        FoldConfig,
        RewardModelConfig,
        RewardRun,
        prepare_reward_run,
    )
    from sp2dpo.training.run import TrainingRun, prepare_run
    from sp2dpo.training.run_config import parse_settings
    from sp2dpo.training.stopping import stoppable
    from sp2dpo.training.sweep import Interrupted, SweepResult, SweepRun, run_sweep, sweep_lines
    from sp2dpo.training.sweep_command import sweep_command
    from sp2dpo.training.trainer import PairColumnsMixin, PairDPOTrainer

# Type checkers cannot follow `__getattr__`: the block above shows them the same names.
_NAMES = {
    "batch": ("Mixture", "PairBatch"),
    "columns": ("apply_marks",),
    "commands": ("reward_command", "train_command"),
    "config": ("PairDPOConfig",),
    "console": ("one_line_errors",),
    "losses": ("LogRatios",),
    "reward_model": ("ScoreSummary", "Scoring", "prompt_fold", "score_dataset"),
    "reward_run": ("FoldConfig", "RewardModelConfig", "RewardRun", "prepare_reward_run"),
    "data": ("DataConfig",),
    "run": ("TrainingRun", "prepare_run"),
    "run_config": ("parse_settings",),
    "stopping": ("stoppable",),
    "sweep": ("Interrupted", "SweepResult", "SweepRun", "run_sweep", "sweep_lines"),
    "sweep_command": ("sweep_command",),
    "trainer": ("PairColumnsMixin", "PairDPOTrainer"),
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names}

__all__ = [
    "DataConfig",
    "FoldConfig",
    "Interrupted",
    "LogRatios",
    "Mixture",
    "PairBatch",
    "PairColumnsMixin",
    "PairDPOConfig",
    "PairDPOTrainer",
    "RewardModelConfig",
    "RewardRun",
    "ScoreSummary",
    "Scoring",
    "SweepResult",
    "SweepRun",
    "TrainingRun",
    "apply_marks",
    "one_line_errors",
    "parse_settings",
    "prepare_reward_run",
    "prepare_run",
    "prompt_fold",
    "reward_command",
    "run_sweep",
    "score_dataset",
    "stoppable",
    "sweep_command",
    "sweep_lines",
    "train_command",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: importing the package does not load torch."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value  # the next access does not call this function
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
