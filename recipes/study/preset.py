"""A preset: one YAML file that says a whole study."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from methods import Method, load_methods
from simulated import SimulatedTeacher
from sp2dpo.settings import check_keys, check_type, did_you_mean, read_yaml

TEACHER = [one.name for one in fields(SimulatedTeacher)]


@dataclass(frozen=True, kw_only=True)
class Run:
    """One student.

    Attributes:
        method: its name.
        panel: whose replies it takes.
        scale: what its betas are multiplied by.
        seed: of everything.
        corrected: whether the flips of the labels are undone.
        chosen: whether it is one of the trials that a method's best is chosen from.
    """

    method: str
    panel: str
    scale: float
    seed: int
    corrected: bool
    chosen: bool

    @property
    def name(self) -> str:
        """Of its file."""
        more = "-corrected" * self.corrected
        return f"seed-{self.seed}-{self.method}-{self.panel}-x{self.scale:g}{more}"


@dataclass(frozen=True, kw_only=True)
class Preset:
    """What is done.

    Attributes:
        seeds: each stands for another world, first model, pairs, labels, teachers and order.
        model: keys of `new_model`.
        sft: keys of `fine_tune`.
        prompts: keys of `split`.
        pairs: `each`, how many are tried for each prompt; `sharpness` and `flips` of `labelled`.
        clean: how many pairs are tried for each test prompt, to measure accuracy.
        training: settings of every student, beside those of its method.
        reward_model: `folds`, and settings of every reward model.
        samples: of each test prompt at each temperature.
        panels: teachers by the name of their panel.
        scales: of the trials; the same number for every method.
        methods: that get all trials, `NAME` or `NAME@PANEL`.
        defaults: further methods that are run at scale 1 alone.
        sweep: further scales of a method, shown and never chosen.
        corrected: methods that are run once more at scale 1 with the flips undone.
        against: the method that all others are compared with.
    """

    seeds: list[int]
    model: dict[str, Any]
    sft: dict[str, Any]
    prompts: dict[str, Any]
    pairs: dict[str, Any]
    clean: int
    training: dict[str, Any]
    reward_model: dict[str, Any]
    samples: int
    panels: dict[str, list[SimulatedTeacher]]
    scales: list[float]
    methods: list[str]
    defaults: list[str]
    sweep: dict[str, list[float]]
    corrected: list[str]
    against: str

    def runs(self) -> list[Run]:
        """All of them, one seed after the other."""
        known = load_methods()
        found = []
        for seed in self.seeds:
            for name in self.methods:
                found += [_run(known, name, scale, seed, chosen=True) for scale in self.scales]
            found += [_run(known, name, 1.0, seed) for name in self.defaults]
            for name, scales in self.sweep.items():
                found += [_run(known, name, scale, seed) for scale in scales]
            found += [_run(known, name, 1.0, seed, corrected=True) for name in self.corrected]
        return found


def _run(
    known: dict[str, Method],
    name: str,
    scale: float,
    seed: int,
    *,
    chosen: bool = False,
    corrected: bool = False,
) -> Run:
    method, _, panel = name.partition("@")
    return Run(
        method=method, panel=panel or known[method].panel, scale=float(scale), seed=seed,
        corrected=corrected, chosen=chosen,
    )  # fmt: skip


def load_preset(path: Path) -> Preset:
    """The preset in a YAML file; `like: FILE` takes the keys of another one that it does not say.

    Raises:
        ValueError: naming the file, the key and what is wrong.
        OSError: a file cannot be read.
    """
    said = _said(path)
    keys = [one.name for one in fields(Preset)]
    check_keys(str(path), said, required=keys)
    panels = {name: _panel(f"{path}: panels: {name}", one) for name, one in said["panels"].items()}
    made: dict[str, Any] = said | {"panels": panels}
    preset = Preset(**made)
    _check_names(preset, str(path))
    return preset


def _said(path: Path) -> dict[str, Any]:
    said = read_yaml(path)
    if "like" not in said:
        return said
    check_type(str(path), "like", said["like"], str)
    return _said(path.parent / said.pop("like")) | said


def _panel(where: str, said: Any) -> list[SimulatedTeacher]:
    check_type(where, "it", said, list)
    for teacher in said:
        check_keys(where, teacher, required=("name",), optional=TEACHER)
    return [SimulatedTeacher(**teacher) for teacher in said]


def _check_names(preset: Preset, where: str) -> None:
    """Every method and panel that is named is there, and so is a trial at scale 1."""
    known = load_methods()
    for name in (*preset.methods, *preset.defaults, *preset.sweep, *preset.corrected):
        method, _, panel = name.partition("@")
        if method not in known:
            raise ValueError(f"{where}: no method {method!r}{did_you_mean(method, known)}")
        panel = panel or known[method].panel
        if panel not in preset.panels:
            raise ValueError(f"{where}: {name}: no panel {panel!r}")
    if preset.against not in preset.methods:
        raise ValueError(f"{where}: against: {preset.against!r} is none of its methods")
    if 1 not in preset.scales:
        raise ValueError(f"{where}: scales: the default, 1, must be one of the trials")
