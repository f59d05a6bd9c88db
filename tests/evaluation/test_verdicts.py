"""Which replies of a judge are verdicts."""

import pytest

from sp2dpo.evaluation.verdicts import verdict_problem
from sp2dpo.inference.client import parse_reply
from sp2dpo.inference.endpoint import Endpoint

JUDGE = Endpoint(
    name="j", model="m", revision=None, base_urls=("http://127.0.0.1:1/v1",),
    sampling={"temperature": 0, "max_tokens": 1, "logprobs": True, "top_logprobs": 5}, role="judge",
)  # fmt: skip


def problem_of(message, token="m", finish="length", logprob=-0.1):
    top = [{"token": "m", "logprob": -1.0}, {"token": "M", "logprob": -2.0}]
    tokens = {"content": [{"token": token, "logprob": logprob, "top_logprobs": top}]}
    choice = {"message": message, "finish_reason": finish, "logprobs": tokens}
    usage = {"completion_tokens": 1}
    return verdict_problem(parse_reply(JUDGE, {"choices": [choice], "usage": usage}, None))


@pytest.mark.parametrize("finish", ["length", "stop", None])
@pytest.mark.parametrize("content", ["m", [{"type": "text", "text": "M"}], ["M"]])
def test_one_token_is_a_verdict_however_it_ends(content, finish):
    assert problem_of({"content": content}, finish=finish) is None


@pytest.mark.parametrize("finish", ["length", "stop"])
@pytest.mark.parametrize(
    "token", ["<|channel|>", "<|start|>", "<think>", "<s>", "[THINK]", "\n", " ", ""]
)
def test_a_first_token_that_is_a_mark_or_blank_is_none(token, finish):
    assert problem_of({"content": "m"}, token, finish) == "no-verdict"


@pytest.mark.parametrize(("logprob", "expected"), [(-0.6, "no-verdict"), (-0.8, None), (-9, None)])
@pytest.mark.parametrize("token", ["<s>", "\n"])
def test_a_judge_that_samples_such_a_token_by_chance_has_a_verdict(token, logprob, expected):
    assert problem_of({"content": token}, token, logprob=logprob) == expected


@pytest.mark.parametrize("finish", ["length", "stop"])
@pytest.mark.parametrize(
    "message",
    [
        {"content": [{"type": "text", "text": None}]},
        {"content": [{"text": {"x": 1}}]},
        {"content": 5},
        {"content": [{"type": "image", "data": "x"}]},
    ],
)
def test_a_content_that_is_no_text_is_none(message, finish):
    assert problem_of(message, finish=finish) == "no-content"


@pytest.mark.parametrize(
    "message",
    [
        {"content": [{"type": "redacted_thinking", "data": "x"}, {"type": "text", "text": "m"}]},
        {"content": "m", "reasoning_details": [{"type": "reasoning.encrypted", "data": "x"}]},
        {"content": [{"type": "thinking", "thinking": "", "signature": "x"}, "m"]},
        {"content": [{"type": "reasoning", "encrypted_content": "x", "summary": []}]},
        {"content": "m", "reasoning": "hm"},
    ],
)
def test_a_verdict_beside_thinking_is_none(message):
    assert problem_of(message) == "thinking"
