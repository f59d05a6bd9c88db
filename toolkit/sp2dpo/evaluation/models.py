"""Read the YAML files of students and judges, which say where a model runs and how it samples."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import ConfigDict, Field, RootModel

from sp2dpo.evaluation.prompts import PromptSet
from sp2dpo.inference.endpoint import Endpoint, EndpointConfig, LocalSamplingConfig, SamplingConfig
from sp2dpo.settings import ABSENT, NAME, AsWritten, Settings, number, validate
from sp2dpo.yaml_files import Keys, read_yaml_file

OFFICIAL_MODEL = "gpt-4-1106-preview"
OFFICIAL_HOST = "api.openai.com"
SAMPLING: dict[str, Any] = {"temperature": 1, "max_tokens": 1, "logprobs": True, "top_logprobs": 5}
"""Sampling of AlpacaEval 2.0: one token, weighted by the log-probabilities of both verdicts."""
MARKS = ("m", "M")
"""The two answers of a judge: the prompt calls the first output `m` and the second one `M`."""


class JudgeConfig(EndpointConfig):
    """A model that judges outputs, behind an OpenAI-compatible server."""

    model_config = ConfigDict(title="SP2DPO judge")

    sampling: Annotated[dict[str, Any], AsWritten(SamplingConfig)] = Field(
        default_factory=SAMPLING.copy, json_schema_extra={"default": SAMPLING}
    )
    """How the judge samples; by default as AlpacaEval 2.0."""

    @classmethod
    def conflicts(cls, values: Mapping[str, Any]) -> Iterator[tuple[Keys, str]]:
        """Yield a problem if log-probabilities are not asked for."""
        yield from super().conflicts(values)
        sampling = values.get("sampling")
        if isinstance(sampling, dict) and not (
            sampling.get("logprobs") or sampling.get("top_logprobs")
        ):
            yield (
                ("sampling",),
                "a judge needs `logprobs: true` and `top_logprobs`: AlpacaEval 2.0 weighs both "
                "verdicts by their probabilities; leave `sampling` out for its own values",
            )


def load_judge(path: Path | str) -> Endpoint:
    """Return the judge in a YAML file, which has the keys of a teacher; `sampling` is optional.

    Raises:
        ValueError: With every problem of the file: line, key, rule and value.
        OSError: The file cannot be read.
    """
    path = Path(path)
    source = read_yaml_file(path)
    config = validate(
        JudgeConfig, source.values, where=str(path), source=source, beside=path.parent
    )
    return config.build(role="judge")


def is_official(judge: Endpoint) -> bool:
    """Return whether this is the judge of AlpacaEval 2.0, served by its own provider."""
    # Of every replica: the verdicts of one at another host would be those of another judge.
    hosts = {urlsplit(url).hostname for url in judge.base_urls}
    return judge.model == OFFICIAL_MODEL and hosts == {OFFICIAL_HOST}


def title(prompts: PromptSet, judge: Endpoint, *, baseline: str, own_reference: bool) -> str:
    """Return the title of a table; "AlpacaEval 2.0" if prompts, judge and baseline are its own.

    Args:
        prompts: The prompts.
        judge: The judge.
        baseline: Name of the model that wrote the reference outputs.
        own_reference: Whether the reference outputs come with the prompts.
    """
    if not prompts.is_alpaca_eval:
        return f"{prompts.name}, judge {judge.name}, against {baseline}"
    if is_official(judge) and own_reference:
        return "AlpacaEval 2.0"
    return f"AlpacaEval prompts, judge {judge.name}, against {baseline}"


class LocalConfig(Settings):
    """How transformers runs a model in this process."""

    device: str = ABSENT
    """cpu, cuda, ...; by default a GPU if there is one."""
    dtype: str = "auto"
    """Data type as transformers names it, such as bfloat16; auto for that of the weights."""
    batch_size: Annotated[int, number(least=1, integer=True)] = 16
    """Prompts in a batch."""


@dataclass(frozen=True, kw_only=True)
class Student:
    """A model to evaluate.

    Attributes:
        model: Name, model, revision, sampling and servers of the student.
        local: How transformers runs the student in this process; None if a server runs it.
        system: System message of every prompt; None for none.
    """

    model: Endpoint
    local: LocalConfig | None
    system: str | None

    def at(self, *, temperature: float | None, seed: int | None) -> "Student":
        """Return the student with another temperature or seed; None keeps the current value."""
        sampling = dict(self.model.sampling)
        if temperature is not None:
            sampling["temperature"] = temperature
        if seed is not None:
            sampling["seed"] = seed
        return replace(self, model=replace(self.model, sampling=sampling))

    def messages(self, instruction: str) -> list[dict[str, str]]:
        """Return the chat messages for a prompt."""
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*system, {"role": "user", "content": instruction}]


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


def load_student(path: Path | str) -> Student:
    """Return the student in a YAML file.

    The file has the keys of a teacher (`name`, `model`, `revision`, `sampling` and `base_url` or
    `serve`) and optionally a `system` message. If transformers runs the model, it has `local` in
    place of a server.

    Raises:
        ValueError: With every problem of the file: line, key, rule and value.
        OSError: The file cannot be read.
    """
    path = Path(path)
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
    return Student(model=model, local=config.local, system=config.system)


# For the JSON Schema only: `load_student` chooses the form by the key `local`, so that the errors
# concern one form and not both.
class StudentFile(RootModel[StudentConfig | LocalStudentConfig]):
    """A model to evaluate: behind a server, or run in this process (`local`)."""

    model_config = ConfigDict(title="SP2DPO student")
