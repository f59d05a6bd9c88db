"""The methods that are compared, as `methods.yaml` says them: arms of schedules, and settings."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import polars as pl

from sp2dpo.betas.arms import Arm, compute_betas, parse_arm
from sp2dpo.betas.baselines import Constant
from sp2dpo.betas.schedule import Schedule, load_schedule, parse_schedule
from sp2dpo.betas.scores import Scores
from sp2dpo.settings import check_keys, read_yaml
from sp2dpo.store.annotations import AnnotationTable

HERE = Path(__file__).parent
SCHEDULES = HERE.parent / "schedules"


@dataclass(frozen=True, kw_only=True)
class Method:
    """One of them.

    Attributes:
        name: its name.
        arm: of its schedule.
        panel: whose replies it takes.
        train: settings of the trainer.
    """

    name: str
    arm: Arm
    panel: str
    train: dict[str, Any] = field(default_factory=dict)

    def at(self, scale: float) -> "Method":
        """The method with its betas multiplied."""
        of = self.arm.of
        of = replace(of, beta_min=of.beta_min * scale, beta_max=of.beta_max * scale)
        beta = self.arm.beta
        if isinstance(beta, Constant):
            beta = Constant(beta.beta * scale)
        return replace(self, arm=replace(self.arm, of=of, beta=beta))

    def table(self, annotations: AnnotationTable, scores: Scores) -> pl.DataFrame:
        """Its betas, weights and margins, as `sp2dpo schedule` makes them."""
        return compute_betas(annotations, self.arm, scores if self.arm.uses_scores else None)


def load_methods(path: Path = HERE / "methods.yaml") -> dict[str, Method]:
    """All of them, by name.

    Raises:
        ValueError: naming the file, the method and what is wrong.
        OSError: a file cannot be read.
    """
    found = {}
    for name, said in read_yaml(path).items():
        where = f"{path}: {name}"
        check_keys(where, said, required=(), optional=("schedule", "arm", "panel", "train"))
        found[name] = Method(
            name=name,
            arm=_arm(said, where),
            panel=said.get("panel", "panel"),
            train=said.get("train", {}),
        )
    return found


def _arm(said: dict[str, Any], where: str) -> Arm:
    if "arm" not in said:
        return Arm(of=_schedule(SCHEDULES / "sp2dpo.yaml", said, where))
    path = SCHEDULES / "arms" / said["arm"]
    arm = read_yaml(path)
    return parse_arm(arm, _schedule(path.parent / arm["of"], said, where), where=where)


def _schedule(path: Path, said: dict[str, Any], where: str) -> Schedule:
    schedule = load_schedule(path)
    return parse_schedule(schedule.as_mapping() | said.get("schedule", {}), where=where)
