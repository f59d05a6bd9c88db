"""A student under evaluation: which model answers, where it runs, how it samples."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sp2dpo.evaluation.prompts import PromptSet
from sp2dpo.inference.endpoint import Endpoint, parse_endpoint, parse_sampling
from sp2dpo.settings import check_keys, check_name, check_type, read_yaml

OFFICIAL_MODEL = "gpt-4-1106-preview"
OFFICIAL_HOST = "api.openai.com"
SAMPLING: dict[str, Any] = {
    "temperature": 1,
    "max_tokens": 1,
    "logprobs": True,
    "top_logprobs": 5,
}
"""AlpacaEval 2.0's: one token, weighed by the log-probabilities of both verdicts."""
MARKS = ("m", "M")
"""What the judge answers: the output that it is shown first is called `m`, the other one `M`."""


def load_judge(path: Path) -> Endpoint:
    """The judge in a YAML file: the entry of a teacher in a panel, `sampling` where it differs.

    Raises:
        ValueError: naming the file, the key and the value.
        OSError: it cannot be read.
    """
    said = read_yaml(path)
    judge = parse_endpoint({"sampling": SAMPLING, **said}, where=str(path), beside=path.parent)
    if not judge.sampling.get("logprobs"):
        raise ValueError(
            f"{path}: sampling: a judge needs `logprobs: true` and `top_logprobs`: AlpacaEval 2.0 "
            "weighs both verdicts by their probabilities; leave `sampling` out for its own values"
        )
    return replace(judge, role="judge")


def is_official(judge: Endpoint) -> bool:
    """Whether it is AlpacaEval 2.0's own judge, asked at its own host."""
    hosts = {urlsplit(url).hostname for url in judge.base_urls}
    return judge.model == OFFICIAL_MODEL and hosts == {OFFICIAL_HOST}


def title(prompts: PromptSet, judge: Endpoint, *, baseline: str, own_reference: bool) -> str:
    """What a table of these verdicts may be called: AlpacaEval 2.0 only where all of it is.

    Args:
        prompts: that were answered.
        judge: that compared.
        baseline: the name of the reference.
        own_reference: whether it is the one that comes with the prompts.
    """
    if not prompts.is_alpaca_eval:
        return f"{prompts.name}, judge {judge.name}, against {baseline}"
    if is_official(judge) and own_reference:
        return "AlpacaEval 2.0"
    return f"AlpacaEval prompts, judge {judge.name}, against {baseline}"


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

    model: Endpoint
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
        model = parse_endpoint(said, where=where, beside=path.parent)
        return Student(model=replace(model, role="student"), local=None, system=system)
    check_keys(where, said, required=("name", "model", "revision", "sampling", "local"))
    for key in ("name", "model"):
        check_name(where, key, said[key])
    check_type(where, "revision", said["revision"], (str, type(None)))
    sampling = parse_sampling(where, said["sampling"])
    check_keys(
        f"{where}: sampling of a local model", sampling,
        required=("temperature", "max_tokens"), optional=LOCAL_SAMPLING,
    )  # fmt: skip
    model = Endpoint(
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
