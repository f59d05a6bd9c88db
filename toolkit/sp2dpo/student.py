"""A student under evaluation: which model answers, where it runs, how it samples."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sp2dpo.panel import Teacher, sampling_of, teacher_of
from sp2dpo.settings import check_keys, check_name, check_type, read_yaml

LOCAL_SAMPLING = ("temperature", "max_tokens", "top_p", "top_k", "seed", "repetition_penalty")
"""What a local model's sampling may say."""


@dataclass(frozen=True, kw_only=True)
class Local:
    """A model that transformers runs in this process.

    Attributes:
        device: `cpu`, `cuda`...; None: a GPU if there is one.
        dtype: as transformers names it, `bfloat16`; `auto` as the weights are.
        batch_size: prompts at a time.
    """

    device: str | None = None
    dtype: str = "auto"
    batch_size: int = 16


@dataclass(frozen=True, kw_only=True)
class Student:
    """What is evaluated.

    Attributes:
        model: its name, model, revision and sampling; and where its servers are.
        local: where transformers runs it; None where a server does.
        system: a system message for every prompt; None for none.
    """

    model: Teacher
    local: Local | None
    system: str | None

    def at(self, *, temperature: float | None, seed: int | None) -> "Student":
        """The same student with another temperature or seed; None keeps its own."""
        sampling = dict(self.model.sampling)
        if temperature is not None:
            sampling["temperature"] = temperature
        if seed is not None:
            sampling["seed"] = seed
        return replace(self, model=replace(self.model, sampling=sampling))

    def record(self) -> dict[str, Any]:
        """What defines its outputs; no addresses."""
        return {
            "student": self.model.name,
            "model": self.model.model,
            "revision": self.model.revision,
            "system": self.system,
            "sampling": self.model.sampling,
        }

    def messages(self, instruction: str) -> list[dict[str, str]]:
        """The chat of a prompt."""
        said = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*said, {"role": "user", "content": instruction}]


def load_student(path: Path) -> Student:
    """The student in a YAML file.

    It is the entry of a teacher in a panel (`name`, `model`, `revision`, `sampling` and `base_url`
    or `serve`), with `local` in place of a server where transformers is to run the model, and an
    optional `system` message.

    Raises:
        ValueError: naming the file, the key and the value.
        OSError: it cannot be read.
    """
    where, said = str(path), read_yaml(path)
    system = said.pop("system", None)
    if system is not None:
        check_type(where, "system", system, str)
    if "local" not in said:
        model = teacher_of(said, where=where, beside=path.parent)
        return Student(model=replace(model, role="student"), local=None, system=system)
    check_keys(where, said, required=("name", "model", "revision", "sampling", "local"))
    for key in ("name", "model"):
        check_name(where, key, said[key])
    check_type(where, "revision", said["revision"], (str, type(None)))
    sampling = sampling_of(where, said["sampling"])
    check_keys(
        f"{where}: sampling of a local model", sampling,
        required=("temperature", "max_tokens"), optional=LOCAL_SAMPLING,
    )  # fmt: skip
    model = Teacher(
        name=said["name"], model=said["model"], revision=said["revision"], base_urls=(),
        sampling=sampling, role="student",
    )  # fmt: skip
    return Student(model=model, local=_local(f"{where}: local", said["local"]), system=system)


def _local(where: str, said: Any) -> Local:
    check_type(where, "the entry", said, dict)
    check_keys(where, said, required=(), optional=("device", "dtype", "batch_size"))
    for key, kind in (("device", str), ("dtype", str), ("batch_size", int)):
        if key in said:
            check_type(where, key, said[key], kind)
    if said.get("batch_size", 1) < 1:
        raise ValueError(f"{where}: batch_size {said['batch_size']} must be at least 1")
    return Local(**said)
