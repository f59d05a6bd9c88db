"""Read the methods to compare from `methods.yaml`: each is an arm of a schedule with settings."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import polars as pl

from sp2dpo import (
    AnnotationTable,
    Arm,
    Scores,
    compute_betas,
    fit_slope,
    load_arm,
    parse_arm,
    parse_schedule,
)
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
        margins: `reward-model`, or `panel` to take the reward margins h from the panel.
    """

    name: str
    arm: Arm
    panel: str
    train: dict[str, Any] = field(default_factory=dict)
    margins: str = "reward-model"

    def with_scale(self, scale: float) -> "Method":
        """Return the method with its betas multiplied by `scale`."""
        return replace(self, arm=self.arm.scale_betas(scale))

    def compute_table(self, annotations: AnnotationTable, scores: Scores | None) -> pl.DataFrame:
        """Return the betas, weights and margins, as `sp2dpo schedule` computes them.

        Args:
            annotations: Replies of the method's panel.
            scores: Reward margins of the seed's reward models, for a method that uses them.
        """
        if self.margins == "panel":
            scores = panel_margins(annotations, self.arm)
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
        check_keys(where, config, required=(), optional=KEYS)
        methods[name] = Method(
            name=name,
            arm=_load_arm(config, where),
            panel=config.get("panel", "panel"),
            train=config.get("train", {}),
            margins=config.get("margins", "reward-model"),
        )
    return MappingProxyType(methods)


def panel_margins(annotations: AnnotationTable, arm: Arm) -> Scores:
    """Return h_i = k s_i: the panel's signed gaps as log odds, with k fitted to the labels.

    As for a reward model's margin, s(h_i) is then the probability that the label agrees.
    """
    table = compute_betas(annotations, Arm(of=arm.of)).drop_nulls("signed_gap")
    slope = fit_slope(table["signed_gap"].to_numpy()).slope
    margins = table.select("pair_id", reward_margin=slope * pl.col("signed_gap"))
    return Scores(table=margins, name="the panel")


KEYS = ("schedule", "arm", "change", "panel", "train", "margins")


def _load_arm(config: dict[str, Any], where: str) -> Arm:
    """Return the arm of a method; keys under `schedule` replace those of the arm's schedule."""
    file = f"arms/{config['arm']}" if "arm" in config else "sp2dpo.yaml"
    arm = load_arm(SCHEDULES / file)
    schedule = parse_schedule(arm.of.as_mapping() | config.get("schedule", {}), where=where)
    departures = arm.departures() | config.get("change", {})
    if not departures:
        return Arm(of=schedule)
    return parse_arm(departures, schedule, where=where)
