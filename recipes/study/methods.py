"""Read the methods to compare from `methods.yaml`: each is an arm of a schedule with settings."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import polars as pl

from sp2dpo import AnnotationTable, Arm, Scores, compute_betas, load_arm, parse_schedule
from sp2dpo.settings import check_keys
from sp2dpo.yaml_files import read_yaml

HERE = Path(__file__).parent
SCHEDULES = HERE.parent / "schedules"


@dataclass(frozen=True, kw_only=True)
class Method:
    """A method of preference optimisation.

    Attributes:
        name: Key of the method in `methods.yaml`.
        arm: How the replies become betas, weights and margins.
        panel: Name of the panel whose replies the method uses.
        train: Trainer settings that are specific to this method.
    """

    name: str
    arm: Arm
    panel: str
    train: dict[str, Any] = field(default_factory=dict)

    def with_scale(self, scale: float) -> "Method":
        """Return the method with its betas multiplied by `scale`."""
        return replace(self, arm=self.arm.scale_betas(scale))

    def compute_table(self, annotations: AnnotationTable, scores: Scores) -> pl.DataFrame:
        """Return the betas, weights and margins, as `sp2dpo schedule` computes them."""
        return compute_betas(annotations, self.arm, scores if self.arm.uses_scores else None)


@lru_cache
def load_methods(path: Path = HERE / "methods.yaml") -> Mapping[str, Method]:
    """Return all methods by name; a file is read once in each process.

    Raises:
        ValueError: If the file is not valid, with the file, the method and the problem.
        OSError: If a file cannot be read.
    """
    methods = {}
    for name, config in read_yaml(path).items():
        where = f"{path}: {name}"
        check_keys(where, config, required=(), optional=("schedule", "arm", "panel", "train"))
        methods[name] = Method(
            name=name,
            arm=_load_arm(config, where),
            panel=config.get("panel", "panel"),
            train=config.get("train", {}),
        )
    return MappingProxyType(methods)


def _load_arm(config: dict[str, Any], where: str) -> Arm:
    """Return the arm of a method; keys under `schedule` replace those of the arm's schedule."""
    file = f"arms/{config['arm']}" if "arm" in config else "sp2dpo.yaml"
    arm = load_arm(SCHEDULES / file)
    schedule = arm.of.as_mapping() | config.get("schedule", {})
    return replace(arm, of=parse_schedule(schedule, where=where))
