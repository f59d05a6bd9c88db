"""Read the configuration of a study from a YAML file."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from methods import Method, load_methods
from sp2dpo.settings import check_keys, did_you_mean
from sp2dpo.yaml_files import read_yaml
from teachers import SimulatedTeacher

TEACHER_KEYS = [field.name for field in fields(SimulatedTeacher)]


@dataclass(frozen=True, kw_only=True)
class Run:
    """One student to train.

    Attributes:
        method: Name of the method that trains the student.
        panel: Name of the panel whose replies the method uses.
        scale: Factor by which the betas are multiplied.
        seed: Seed of the world, the first model, the pairs, the labels, the teachers and the order
            of training.
        corrected: Whether the labels that a careless annotator flipped are restored.
        chosen: Whether this is a trial, one of the runs from which validation chooses the best.
        order: Number of the order of training; each number shuffles the pairs in another way.
    """

    method: str
    panel: str
    scale: float
    seed: int
    corrected: bool
    chosen: bool
    order: int = 0

    @property
    def name(self) -> str:
        """Name of the file with the results of the run."""
        suffix = "-corrected" if self.corrected else ""
        suffix += f"-order-{self.order}" if self.order else ""
        return f"seed-{self.seed}-{self.method}-{self.panel}-x{self.scale:g}{suffix}"


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """The configuration of a study.

    Attributes:
        seeds: Seeds; each gives its own world, first model, pairs, labels, teachers and order.
        model: Keyword arguments of `new_model`.
        sft: Keyword arguments of `fine_tune`.
        prompts: Keyword arguments of `split_prompts`.
        pairs: `each`, the number of pairs tried for each prompt; `sharpness` and `flips`, keyword
            arguments of `label_pairs`.
        clean: Number of pairs tried for each test prompt, to measure accuracy.
        training: Trainer settings for every student; a method adds its own.
        reward_model: `folds`, and the trainer settings for every reward model.
        samples: Number of samples for each test prompt at each temperature; validation takes twice
            as many.
        samples_at_one: Number of samples for each test prompt at temperature 1.
        judge: `noise` and `length_bias` of the judge of the validation samples; empty if validation
            sees the true reward.
        orders: Number of orders of training of each trial.
        panels: Teachers of each panel, by name of the panel.
        scales: Factors of the betas to try, the same for every method.
        methods: Methods that run at all scales, as `NAME` or `NAME@PANEL`; none in a study that
            only adds scales to another.
        defaults: Further methods, which run only at scale 1.
        sweep: Further scales of a method, which are reported but never chosen.
        corrected: Methods that run again at scale 1 with the flipped labels restored.
        against: Name of the method that all others are compared with; empty for runs that
            `uses.py` compares.
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
    samples_at_one: int
    judge: dict[str, Any]
    orders: int
    panels: dict[str, list[SimulatedTeacher]]
    scales: list[float]
    methods: list[str]
    defaults: list[str]
    sweep: dict[str, list[float]]
    corrected: list[str]
    against: str

    def runs(self) -> list[Run]:
        """Return all runs, seed by seed."""
        methods = load_methods()
        runs = []
        for seed in self.seeds:
            for name in self.methods:
                runs += [
                    _run(methods, name, scale, seed, chosen=True, order=order)
                    for order in range(self.orders)
                    for scale in self.scales
                ]
            runs += [_run(methods, name, 1.0, seed) for name in self.defaults]
            for name, scales in self.sweep.items():
                runs += [
                    _run(methods, name, scale, seed, order=order)
                    for order in range(self.orders)
                    for scale in scales
                ]
            runs += [_run(methods, name, 1.0, seed, corrected=True) for name in self.corrected]
        return runs


def _run(
    methods: Mapping[str, Method],
    name: str,
    scale: float,
    seed: int,
    *,
    chosen: bool = False,
    corrected: bool = False,
    order: int = 0,
) -> Run:
    method, _, panel = name.partition("@")
    return Run(
        method=method, panel=panel or methods[method].panel, scale=float(scale), seed=seed,
        corrected=corrected, chosen=chosen, order=order,
    )  # fmt: skip


def load_config(path: Path) -> StudyConfig:
    """Return the configuration in a YAML file.

    `like: FILE` takes every key that the file does not set from another configuration.

    Raises:
        ValueError: If a file is not valid, with the file, the key and the problem.
        OSError: If a file cannot be read.
    """
    values = _read_values(path)
    check_keys(str(path), values, required=[field.name for field in fields(StudyConfig)])
    panels = {
        name: _parse_panel(f"{path}: panels: {name}", teachers)
        for name, teachers in values["panels"].items()
    }
    arguments: dict[str, Any] = values | {"panels": panels}
    config = StudyConfig(**arguments)
    _check_names(config, str(path))
    return config


def _read_values(path: Path) -> dict[str, Any]:
    values = read_yaml(path)
    if "like" not in values:
        return values
    base = values.pop("like")
    if not isinstance(base, str):
        raise ValueError(f"{path}: like must be text, not {base!r}")
    return _read_values(path.parent / base) | values


def _parse_panel(where: str, teachers: Any) -> list[SimulatedTeacher]:
    if not isinstance(teachers, list):
        raise ValueError(f"{where}: must be a list, not {teachers!r}")
    for teacher in teachers:
        check_keys(where, teacher, required=("name",), optional=TEACHER_KEYS)
    parsed = [SimulatedTeacher(**teacher) for teacher in teachers]
    if len({teacher.labelled for teacher in parsed}) > 1:
        raise ValueError(f"{where}: labelled: the teachers of a panel are told the label alike")
    return parsed


def _check_names(config: StudyConfig, where: str) -> None:
    """Refuse unknown methods and panels, and trials without scale 1."""
    methods = load_methods()
    for name in (*config.methods, *config.defaults, *config.sweep, *config.corrected):
        method, _, panel = name.partition("@")
        if method not in methods:
            raise ValueError(f"{where}: no method {method!r}{did_you_mean(method, methods)}")
        panel = panel or methods[method].panel
        if panel not in config.panels:
            raise ValueError(f"{where}: {name}: no panel {panel!r}")
    if config.against and config.against not in config.methods:
        raise ValueError(f"{where}: against: {config.against!r} is none of its methods")
    if 1 not in config.scales:
        raise ValueError(f"{where}: scales: the default, 1, must be one of the trials")
