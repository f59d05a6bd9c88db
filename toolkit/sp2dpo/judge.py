"""The judge: which model compares two outputs, and what a table may be called by it."""

from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sp2dpo.panel import Teacher, teacher_of
from sp2dpo.prompt_sets import PromptSet
from sp2dpo.settings import read_yaml

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


def load_judge(path: Path) -> Teacher:
    """The judge in a YAML file: the entry of a teacher in a panel, `sampling` where it differs.

    Raises:
        ValueError: naming the file, the key and the value.
        OSError: it cannot be read.
    """
    said = read_yaml(path)
    judge = teacher_of({"sampling": SAMPLING, **said}, where=str(path), beside=path.parent)
    if not judge.sampling.get("logprobs"):
        raise ValueError(
            f"{path}: sampling: a judge needs `logprobs: true` and `top_logprobs`: AlpacaEval 2.0 "
            "weighs both verdicts by their probabilities; leave `sampling` out for its own values"
        )
    return replace(judge, role="judge")


def is_official(judge: Teacher) -> bool:
    """Whether it is AlpacaEval 2.0's own judge, asked at its own host."""
    hosts = {urlsplit(url).hostname for url in judge.base_urls}
    return judge.model == OFFICIAL_MODEL and hosts == {OFFICIAL_HOST}


def title(prompts: PromptSet, judge: Teacher, *, baseline: str, own_reference: bool) -> str:
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
