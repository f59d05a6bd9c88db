"""Experiment trackers: their packages, what they know of a run, and a run that outlives them."""

import importlib.util
import os
import sqlite3
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from accelerate.logging import get_logger
from huggingface_hub.errors import HTTPError
from transformers.integrations import integration_utils

from sp2dpo.settings import did_you_mean
from sp2dpo.text import one_line, redact

PACKAGES = {
    "azure_ml": ("azureml.core", "azureml-core"),
    "clearml": ("clearml", "clearml"),
    "codecarbon": ("codecarbon", "codecarbon"),
    "comet_ml": ("comet_ml", "comet-ml"),
    "dagshub": ("dagshub", "dagshub mlflow"),
    "dvclive": ("dvclive", "dvclive"),
    "flyte": ("flytekit", "flytekit"),
    "mlflow": ("mlflow", "mlflow"),
    "neptune": ("neptune", "neptune"),
    "swanlab": ("swanlab", "swanlab"),
    "tensorboard": ("tensorboard", "tensorboard"),
    "trackio": ("trackio", "trackio"),
    "wandb": ("wandb", "wandb"),
}
"""For each tracker of transformers, its module and the package to install."""
ALTERNATIVES = {"tensorboard": "tensorboardX", "mlflow": "mlflow_skinny"}
"""Another module that will do."""
PROJECT = "sp2dpo"
"""Project of a run that names none."""
PROJECT_VARIABLES = {
    "wandb": ("WANDB_PROJECT",),
    "mlflow": ("MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID", "MLFLOW_RUN_ID"),
}
"""Variables from which a tracker takes its project, the one that is set for it first."""
_projects_set: dict[str, str] = {}
"""Projects that this process has set in these variables, by tracker."""
FAILURES = (
    OSError, HTTPError, RuntimeError, ValueError, TypeError, LookupError, AttributeError,
    sqlite3.Error,
)  # fmt: skip
"""Errors that trackers raise; `_own_errors` adds those that they define."""
_DEFINED = (
    ("wandb.errors", "Error"), ("mlflow.exceptions", "MlflowException"),
    ("swanlab.error", "ApiError"), ("httpx", "HTTPError"), ("requests", "RequestException"),
)  # fmt: skip

logger = get_logger(__name__)


def check_trackers(names: list[str]) -> None:
    """Check that the trackers exist and their packages are installed.

    Args:
        names: The setting `report_to`, as TrainingArguments has it after parsing.

    Raises:
        ValueError: If a tracker is unknown or its package is missing; the message has the command
            that installs it.
    """
    known = integration_utils.INTEGRATION_TO_CALLBACK
    for name in names:
        if name not in known:
            raise ValueError(
                f"report_to: {name} is not one of {', '.join(sorted(known))}, none, all"
                f"{did_you_mean(name, known)}"
            )
        module, package = PACKAGES.get(name, (name, name))
        modules = [module, ALTERNATIVES.get(name, module)]
        if not any(map(_is_installed, modules)):
            raise ValueError(
                f"report_to: {name} needs a package that is not installed: run `pip install"
                f" {package}`, or set report_to: none"
            )


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package around it
        return False


def describe_run(args: Any, facts: Mapping[str, Any]) -> None:
    """Give trackers a name of the run, a project, and facts about it beside its settings.

    Trackers of transformers record `args.to_dict()` and the model's configuration.

    Args:
        args: A PairDPOConfig or RewardModelConfig, whose `to_dict` adds the facts; `run_name`
            becomes the name of the output folder if it is not set.
        facts: What the run is trained on; keys of nested mappings are joined by `/`.
    """
    if args.run_name is None:
        args.run_name = Path(str(args.output_dir)).resolve().name
    if getattr(args, "project", None) == "huggingface":  # the default of transformers
        args.project = PROJECT
    for name in args.report_to or []:
        variables = PROJECT_VARIABLES.get(name, ())
        values = [os.environ.get(variable) or None for variable in variables]
        # An earlier run of this process may have set it.
        is_ours = values == [_projects_set.get(name), *[None] * len(values[1:])]
        # transformers gives the setting `project` to Trackio alone.
        if variables and (is_ours or not any(values)):
            _projects_set[name] = getattr(args, "project", None) or PROJECT
            os.environ[variables[0]] = _projects_set[name]
    args.run_facts = flatten(facts)


def flatten(facts: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one, with keys such as `data/schedule/beta_min`.

    Lists of mappings have numbers in their keys, from 0. Null values are left out.
    """
    flat: dict[str, Any] = {}
    for key, value in facts.items():
        name = f"{prefix}{key}"
        if isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
            value = {str(number): item for number, item in enumerate(value)}
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{name}/")
        elif value is not None:
            flat[name] = value
    return flat


def guard_trackers(trainer: Any) -> None:
    """Let a training go on without a tracker that fails after the training has begun."""
    names = {kind: name for name, kind in integration_utils.INTEGRATION_TO_CALLBACK.items()}
    for callback in trainer.callback_handler.callbacks:
        name = names.get(type(callback))
        if name is None:
            continue
        if name == "swanlab":
            callback._swanlab = SwanLab(callback._swanlab, trainer.args)
        guard = TrackerGuard(name)
        # Attributes of the object, whose type stays that by which a trainer finds it.
        for event in dir(callback):
            if event.startswith("on_"):
                setattr(callback, event, guard.wrap(event, getattr(callback, event)))


class SwanLab:
    """The module swanlab, as the callback of transformers uses it.

    Args:
        module: The module. `get_run` of SwanLab 0.10 raises RuntimeError where the callback expects
            None, and SwanLab 0.10 does not start with the variable from which the callback takes
            the project.
        args: TrainingArguments, whose `project` becomes the project of a run that has none.
    """

    def __init__(self, module: Any, args: Any) -> None:
        self._module, self._args = module, args

    def init(self, *, project: str | None = None, **options: Any) -> Any:
        """Start a run."""
        project = project or getattr(self._args, "project", None) or PROJECT
        return self._module.init(project=project, **options)

    def get_run(self) -> Any:
        """Return the current run; None if there is none."""
        try:
            return self._module.get_run()
        except RuntimeError:
            return None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


class TrackerGuard:
    """What turns a tracker off at its first error during the training.

    An error before the first step ends the run, since somebody waits for the tracker then.

    Args:
        name: Name of the tracker in messages.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._is_off = False

    def wrap(self, event: str, method: Callable[..., Any]) -> Callable[..., Any]:
        """Return a method of the tracker's callback that no longer ends the training.

        Args:
            event: Name of the method, such as `on_log`.
            method: The method.
        """

        def call(args: Any, state: Any, control: Any, **more: Any) -> Any:
            if self._is_off:
                return None
            try:
                return method(args, state, control, **more)
            except (*FAILURES, *_own_errors()) as error:
                reason = f"{type(error).__name__}: {redact(one_line(error))}"
                if event == "on_train_begin":
                    raise ValueError(
                        f"report_to: {self._name} cannot start ({reason}): correct its settings, or"
                        " set report_to: none"
                    ) from error
                self._is_off = True
                logger.warning(
                    f"{self._name} failed at step {state.global_step} and gets no more numbers"
                    f" ({reason}): the training goes on, and trainer_state.json of each checkpoint"
                    " has all of them"
                )
                return None

        return call


def _own_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions that the trackers in use define; only modules that are loaded."""
    defined = [getattr(sys.modules.get(module), name, None) for module, name in _DEFINED]
    return tuple(kind for kind in defined if isinstance(kind, type))
