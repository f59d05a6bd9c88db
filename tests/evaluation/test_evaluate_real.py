"""A student and a judge served by a real vLLM: the tiny random model, as both."""

import json

import pytest
import yaml

from support.harness import succeed
from support.services_fixtures import TEACHER_NAME

pytestmark = pytest.mark.services

COUNT = 16
EVERY_TOKEN = 2000
"""Log-probabilities asked for: about the whole vocabulary, so that both verdicts are among them."""


def test_outputs_verdicts_and_a_win_rate(vllm_url, tmp_path):
    prompts = [
        {"instruction": f"Say something of {n}.", "output": f"It is {n}.", "generator": "base"}
        for n in range(COUNT)
    ]
    (tmp_path / "prompts.json").write_text(json.dumps(prompts))
    model = {"model": TEACHER_NAME, "revision": None, "base_url": vllm_url}
    for name, settings in (
        ("student", {"sampling": {"temperature": 1.0, "max_tokens": 24, "seed": 1}}),
        ("judge", {"sampling": {"temperature": 1, "max_tokens": 1, "logprobs": True,
                                "top_logprobs": EVERY_TOKEN}}),
    ):  # fmt: skip
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({"name": name, **model, **settings}))
    common = ("--prompts", tmp_path / "prompts.json")
    succeed("evaluate", "generate", *common, "--student", tmp_path / "student.yaml",
            "--out", tmp_path / "outputs")  # fmt: skip
    record = json.loads((tmp_path / "outputs" / "generation.json").read_text())
    assert record["outputs"] == COUNT
    assert record["ended"].get("length", 0) > 0  # it never learned to end
    output = succeed("evaluate", "judge", *common, "--outputs", tmp_path / "outputs",
                     "--judge", tmp_path / "judge.yaml", "--out", tmp_path / "judged",
                     "--draws", 50)  # fmt: skip
    assert f"0 of {COUNT}" in output
    rows = json.loads((tmp_path / "judged" / "annotations.json").read_text())
    assert all(1 < row["preference"] < 2 for row in rows)
    assert len({row["preference"] for row in rows}) > 1  # the judge reads what it is shown
