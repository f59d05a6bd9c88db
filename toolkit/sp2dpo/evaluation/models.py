"""Read the YAML files of students and judges: the model, where it runs, how it samples."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import ConfigDict, Field, RootModel, field_validator

from sp2dpo.evaluation.prompts import PromptSet
from sp2dpo.inference.endpoint import (
    Endpoint,
    EndpointConfig,
    LocalSamplingConfig,
    SamplingConfig,
)
from sp2dpo.settings import (
    ABSENT,
    NAME,
    AsWritten,
    Settings,
    number,
    read_yaml_file,
    validate,
)

OFFICIAL_MODEL = "gpt-4-1106-preview"
OFFICIAL_HOST = "api.openai.com"
SAMPLING: dict[str, Any] = {
    "temperature": 1,
    "max_tokens": 1,
    "logprobs": True,
    "top_logprobs": 5,
}
"""AlpacaEval 2.0's sampling: one token, weighted by the log-probabilities of both verdicts."""
MARKS = ("m", "M")
"""The judge's answers: the output that it sees first is called `m`, the other one `M`."""


class JudgeConfig(EndpointConfig):
    """A model that judges outputs, behind an OpenAI-compatible server."""

    model_config = ConfigDict(title="SP2DPO judge")

    sampling: Annotated[dict[str, Any], AsWritten(SamplingConfig)] = Field(
        default_factory=SAMPLING.copy, json_schema_extra={"default": SAMPLING}
    )
    """How the judge samples; by default as AlpacaEval 2.0."""

    @field_validator("sampling")
    @classmethod
    def _asks_for_logprobs(cls, sampling: dict[str, Any]) -> dict[str, Any]:
        if not sampling.get("logprobs"):
            raise ValueError(
                "a judge needs `logprobs: true` and `top_logprobs`: AlpacaEval 2.0 weighs both "
                "verdicts by their probabilities; leave `sampling` out for its own values"
            )
        return sampling


def load_judge(path: Path) -> Endpoint:
    """Return the judge in a YAML file: an entry like a teacher's, with optional `sampling`.

    Raises:
        ValueError: With every problem of the file: line, key, rule and value.
        OSError: The file cannot be read.
    """
    source = read_yaml_file(path)
    config = validate(
        JudgeConfig, source.values, where=str(path), source=source, beside=path.parent
    )
    return config.build(role="judge")


def is_official(judge: Endpoint) -> bool:
    """Whether this is AlpacaEval 2.0's own judge at its own host."""
    hosts = {urlsplit(url).hostname for url in judge.base_urls}
    return judge.model == OFFICIAL_MODEL and hosts == {OFFICIAL_HOST}


def title(prompts: PromptSet, judge: Endpoint, *, baseline: str, own_reference: bool) -> str:
    """Return the title of a table; "AlpacaEval 2.0" only if all its parts are AlpacaEval 2.0's.

    Args:
        prompts: The prompts.
        judge: The judge.
        baseline: Name of the reference.
        own_reference: Whether the reference comes with the prompts.
    """
    if not prompts.is_alpaca_eval:
        return f"{prompts.name}, judge {judge.name}, against {baseline}"
    if is_official(judge) and own_reference:
        return "AlpacaEval 2.0"
    return f"AlpacaEval prompts, judge {judge.name}, against {baseline}"


@dataclass(frozen=True, kw_only=True)
class Local:
    """A model that transformers runs in this process.

    Attributes:
        device: `cpu`, `cuda`...; None for a GPU if there is one.
        dtype: Data type as transformers names it, such as `bfloat16`; `auto` for that of the
            weights.
        batch_size: Prompts per batch.
    """

    device: str | None = None
    dtype: str = "auto"
    batch_size: int = 16


@dataclass(frozen=True, kw_only=True)
class Student:
    """A model to evaluate.

    Attributes:
        model: Its name, model, revision, sampling and servers.
        local: How transformers runs it in this process; None if a server runs it.
        system: System message of every prompt; None for none.
    """

    model: Endpoint
    local: Local | None
    system: str | None

    def at(self, *, temperature: float | None, seed: int | None) -> "Student":
        """Return the student with another temperature or seed; None does not change them."""
        sampling = dict(self.model.sampling)
        if temperature is not None:
            sampling["temperature"] = temperature
        if seed is not None:
            sampling["seed"] = seed
        return replace(self, model=replace(self.model, sampling=sampling))

    def record(self) -> dict[str, Any]:
        """Return the settings that define its outputs, without addresses."""
        return {
            "student": self.model.name,
            "model": self.model.model,
            "revision": self.model.revision,
            "system": self.system,
            "sampling": self.model.sampling,
        }

    def messages(self, instruction: str) -> list[dict[str, str]]:
        """Return the chat of a prompt."""
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*system, {"role": "user", "content": instruction}]


class LocalConfig(Settings):
    """How transformers runs a model in this process."""

    device: str = ABSENT
    """cpu, cuda, ...; by default a GPU if there is one."""
    dtype: str = Local.dtype
    """Data type as transformers names it, such as bfloat16; auto for that of the weights."""
    batch_size: Annotated[int, number(least=1, whole=True)] = Local.batch_size
    """Prompts in a batch."""


class StudentConfig(EndpointConfig):
    """A model to evaluate, behind an OpenAI-compatible server."""

    system: str | None = None
    """System message of every prompt."""


class LocalStudentConfig(Settings):
    """A model to evaluate that transformers runs in this process."""

    name: Annotated[str, NAME]
    """Name of the student."""
    model: Annotated[str, NAME]
    """Folder of the model, or its id on the Hub."""
    revision: str | None
    """Commit of the weights; null for a folder."""
    sampling: Annotated[dict[str, Any], AsWritten(LocalSamplingConfig)]
    """How the model samples."""
    local: LocalConfig
    """How it is run; {} for the defaults."""
    system: str | None = None
    """System message of every prompt."""


def load_student(path: Path) -> Student:
    """Return the student in a YAML file.

    The file holds an entry like a teacher's (`name`, `model`, `revision`, `sampling` and `base_url`
    or `serve`), with `local` in place of a server if transformers runs the model, and an optional
    `system` message.

    Raises:
        ValueError: With every problem of the file: line, key, rule and value.
        OSError: The file cannot be read.
    """
    source = read_yaml_file(path)
    where, values = str(path), source.values
    if "local" not in values:
        config = validate(StudentConfig, values, where=where, source=source, beside=path.parent)
        return Student(model=config.build(role="student"), local=None, system=config.system)
    config = validate(LocalStudentConfig, values, where=where, source=source)
    model = Endpoint(
        name=config.name, model=config.model, revision=config.revision, base_urls=(),
        sampling=config.sampling, role="student",
    )  # fmt: skip
    local = Local(
        device=config.local.device, dtype=config.local.dtype, batch_size=config.local.batch_size
    )
    return Student(model=model, local=local, system=config.system)


class StudentFile(RootModel[StudentConfig | LocalStudentConfig]):
    """A model to evaluate: behind a server, or run in this process (`local`)."""

    model_config = ConfigDict(title="SP2DPO student")
