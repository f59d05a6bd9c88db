"""Chat completions as servers write them: text, other messages, finish reasons, errors in 200."""

import json

import pytest

from sp2dpo.inference.client import Declined, EndpointError, Unavailable, parse_reply
from sp2dpo.inference.completion import parse_body, split_thinking
from sp2dpo.inference.endpoint import Endpoint

TEACHER = Endpoint(
    name="t", model="m", revision=None, base_urls=("http://127.0.0.1:1/v1",),
    sampling={"temperature": 0, "max_tokens": 100},
)  # fmt: skip
GOOD = {"index": 0, "message": {"role": "assistant", "content": "Yes."}, "finish_reason": "stop"}


def reply_to(message=None, *, finish="stop", **fields):
    choice = {"message": {"role": "assistant", **(message or {})}, "finish_reason": finish}
    return parse_reply(TEACHER, {"choices": [choice], **fields}, None)


TEXTS = {
    "text": "Yes.",
    "one part": [{"type": "text", "text": "Yes."}],
    "two parts": [{"type": "text", "text": "Ye"}, {"type": "output_text", "text": "s."}],
    "text without a type": [{"text": "Yes."}],
    "strings": ["Ye", "s."],
    "a part alone": {"type": "text", "text": "Yes."},
    "content in a part": [{"type": "text", "content": "Yes."}],
    "a value": [{"type": "text", "text": {"value": "Yes.", "annotations": []}}],
}


@pytest.mark.parametrize("content", TEXTS.values(), ids=TEXTS)
def test_the_text_parts_of_a_content_are_joined(content):
    reply = reply_to({"content": content})
    assert (reply.text, reply.message, reply.reasoning) == ("Yes.", None, None)


THOUGHTS = {
    "magistral": [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}],
    "anthropic": [{"type": "thinking", "thinking": "hm", "signature": "x"}],
    "gemini": [{"text": "hm", "thought": True}],
    "summary": [{"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]}],
}


@pytest.mark.parametrize("parts", THOUGHTS.values(), ids=THOUGHTS)
def test_parts_with_thinking_are_reasoning_and_no_text(parts):
    reply = reply_to({"content": [*parts, {"type": "text", "text": "Yes."}]})
    assert (reply.text, reply.reasoning, reply.message) == ("Yes.", "hm", None)
    reply = reply_to({"content": parts})
    assert (reply.text, reply.reasoning) == ("", "hm")
    assert json.loads(reply.message)["content"] == parts


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
@pytest.mark.parametrize("content", [None, "", []])
def test_a_message_that_only_reasons_is_no_text_and_remains_whole(name, content):
    reply = reply_to({"content": content, name: "hm"})
    assert (reply.text, reply.reasoning) == ("", "hm")
    assert json.loads(reply.message)[name] == "hm"


@pytest.mark.parametrize("nothing", [None, "", [], {}])
def test_empty_fields_beside_a_text_mean_nothing(nothing):
    message = dict.fromkeys(
        ("reasoning_content", "reasoning", "refusal", "tool_calls", "function_call"), nothing
    )
    reply = reply_to(message | {"content": "Yes."})
    assert (reply.reasoning, reply.refusal, reply.has_tool_calls) == (None, None, False)
    assert reply.message is None


@pytest.mark.parametrize("content", [{"magnitude": 3}, 7, True, [[1]], [{"type": "image"}], None])
def test_a_content_of_another_type_never_becomes_its_python_text(content):
    reply = reply_to({"content": content})
    assert reply.text == ""
    assert json.loads(reply.message)["content"] == content


@pytest.mark.parametrize(
    "message",
    [
        {"content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]},
        {"content": "", "function_call": {"name": "f", "arguments": "{}"}},
        {"content": [{"type": "tool_use", "name": "f", "input": {}}]},
    ],
)
def test_a_tool_call_is_reported_and_remains_whole(message):
    reply = reply_to(message, finish="tool_use")
    assert (reply.text, reply.finish_reason) == ("", "tool_calls")
    assert reply.has_tool_calls
    assert json.loads(reply.message) == {"role": "assistant"} | message


def test_a_refusal_is_reported_and_remains_whole():
    for message in (
        {"content": None, "refusal": "I cannot."},
        {"content": [{"type": "refusal", "refusal": "I cannot."}]},
    ):
        reply = reply_to(message)
        assert (reply.text, reply.refusal) == ("", "I cannot.")
        assert json.loads(reply.message) == {"role": "assistant"} | message


@pytest.mark.parametrize(
    ("served", "expected"),
    [
        ("stop", "stop"), ("STOP", "stop"), ("eos", "stop"), ("eos_token", "stop"),
        ("end_turn", "stop"), ("stop_sequence", "stop"), ("COMPLETE", "stop"),
        ("FinishReason.STOP", "stop"), ("FINISH_REASON_STOP", "stop"), ("length", "length"),
        ("MAX_TOKENS", "length"), ("model_length", "length"), ("SAFETY", "content_filter"),
        ("content_filter", "content_filter"), ("unload", "unload"), ("Kept", "Kept"),
    ],
)  # fmt: skip
def test_finish_reasons_have_one_table_and_remain_in_the_servers_words(served, expected):
    reply = reply_to({"content": "Yes."}, finish=served)
    assert (reply.finish_reason, reply.served_finish_reason) == (expected, served)


def test_a_finish_reason_may_be_an_object_with_its_type():
    for kind in ("stop", "length", "abort"):
        finish = {"type": kind, "matched": 151645}
        if kind == "abort":
            with pytest.raises(Unavailable):
                reply_to({"content": "Yes."}, finish=finish)
        else:
            assert reply_to({"content": "Yes."}, finish=finish).finish_reason == kind


@pytest.mark.parametrize(
    ("content", "tokens", "expected"),
    [
        ("Yes.", 30, "stop"), ("Yes.", None, "stop"), ("Yes.", 100, "length"), (None, 30, None),
        ("", 0, None), ("<think>Let me", 30, None), ("<think>hm</think>Yes.", 30, "stop"),
    ],
)  # fmt: skip
def test_without_a_finish_reason_a_text_below_the_limit_is_complete(content, tokens, expected):
    usage = {"completion_tokens": tokens}
    assert reply_to({"content": content}, finish=None, usage=usage).finish_reason == expected


@pytest.mark.parametrize("usage", ["n/a", None, [], 3, {"prompt_tokens_details": "none"}])
def test_a_usage_that_is_no_object_has_no_counts(usage):
    reply = reply_to({"content": "Yes."}, usage=usage)
    assert (reply.prompt_tokens, reply.completion_tokens, reply.cached_tokens) == (None, None, None)


ERRORS = {
    "beside choices": {"error": {"message": "Overloaded", "code": 503}, "choices": [GOOD]},
    "in place of choices": {"error": {"message": "Overloaded", "code": "503"}},
    "with no choice": {
        "error": {"message": "Overloaded", "type": "overloaded_error"},
        "choices": [],
    },
    "as a number with a point": {"error": {"message": "Overloaded", "code": 429.0}},
    "with null choices": {"error": {"message": "Overloaded", "code": 429}, "choices": None},
    "in the choice": {"choices": [GOOD | {"error": {"message": "Overloaded", "code": 529}}]},
    "vLLM's old form": {"object": "error", "message": "Overloaded", "code": 503},
}


@pytest.mark.parametrize("answer", ERRORS.values(), ids=ERRORS)
def test_an_overload_inside_200_counts_as_one(answer):
    with pytest.raises(Unavailable, match=r"Overloaded") as caught:
        parse_reply(TEACHER, answer, None)
    assert caught.value.overloaded


@pytest.mark.parametrize(
    "answer",
    [
        {"choices": [GOOD | {"finish_reason": "error", "message": {"content": ""}}]},
        {"choices": [GOOD | {"finish_reason": "abort"}]},
        {"error": "Provider returned error"},
        {"error": {"message": "Upstream idle timeout", "code": 502}, "choices": [GOOD]},
        {"choices": []},
        {"choices": None, "usage": {"prompt_tokens": 1}},
        {"choices": [{"message": None}]},
        {"choices": ["Yes."]},
        {"choices": {"0": GOOD}},
        {},
    ],
)
def test_an_answer_without_a_reply_is_transient(answer):
    with pytest.raises(Unavailable):
        parse_reply(TEACHER, answer, None)


@pytest.mark.parametrize("error", [None, {}, "", [], False, {"code": None, "message": ""}])
def test_an_empty_error_beside_a_good_choice_is_none(error):
    answer = {"error": error, "choices": [GOOD | {"error": error}]}
    assert parse_reply(TEACHER, answer, None).text == "Yes."


@pytest.mark.parametrize("code", [400, "422", "context_length_exceeded", "invalid_request_error"])
def test_an_error_of_the_request_inside_200_declines_it(code):
    with pytest.raises(Declined, match="too long"):
        parse_reply(TEACHER, {"error": {"message": "too long", "code": code}}, None)


@pytest.mark.parametrize(
    "error",
    [
        {"code": 402, "message": "Insufficient credits"},
        {"code": "insufficient_quota", "message": "You exceeded your current quota"},
        {"code": 429, "type": "insufficient_quota", "message": "plan and billing"},
        {"type": "billing_error", "message": "x"},
    ],
)
def test_missing_credit_inside_200_ends_the_run(error):
    with pytest.raises(EndpointError, match="add credit") as caught:
        parse_reply(TEACHER, {"error": error}, None)
    assert not isinstance(caught.value, Unavailable)


def test_billing_in_prose_is_no_missing_credit():
    error = {"code": 429, "message": "Rate limited; add credits or see your billing details."}
    with pytest.raises(Unavailable):
        parse_reply(TEACHER, {"error": error}, None)


@pytest.mark.parametrize(
    ("choice", "named"),
    [({"text": "Yes."}, "text completion"), ({"delta": {"content": "Yes."}}, "chunk of a stream")],
)
def test_another_kind_of_completion_is_refused_by_its_name(choice, named):
    with pytest.raises(EndpointError, match=named):
        parse_reply(TEACHER, {"choices": [choice]}, None)


@pytest.mark.parametrize(
    "body",
    [
        b'{"a": 1}\n{"b": 2}\n',
        b"data: {}\n\ndata: [DONE]\n\n",
        b": OPENROUTER PROCESSING\n\n",
        b"event: error\n",
    ],
)
def test_a_stream_of_events_is_refused_by_its_name(body):
    with pytest.raises(EndpointError, match="a stream"):
        parse_body(TEACHER, body)


@pytest.mark.parametrize(
    ("text", "thinking", "after"),
    [
        ("<think>\nhm\n</think>\n\nYes.", "hm", "Yes."),
        ("  <THINK>hm</THINK>Yes.", "hm", "Yes."),
        ("[THINK]hm[/THINK]Yes.", "hm", "Yes."),
        ("<seed:think>hm</seed:think>Yes.", "hm", "Yes."),
        ("◁think▷hm◁/think▷Yes.", "hm", "Yes."),
        (
            "<|START_THINKING|>hm<|END_THINKING|><|START_RESPONSE|>Yes.<|END_RESPONSE|>",
            "hm",
            "Yes.",
        ),
        ("<|channel>thought\nhm<channel|>Yes.", "hm", "Yes."),
        (
            "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>Yes."
            "<|return|>",
            "<|message|>hm<|end|><|start|>assistant",
            "Yes.",
        ),
        ("analysisThe user asks.assistantfinalYes.", "The user asks.", "Yes."),
        ("analysis is what I do.", None, "analysis is what I do."),
        ("Okay, so.\n</think>\n\nYes.", "Okay, so.", "Yes."),
        ("<think></think>Yes.", "", "Yes."),
        ("<think>hm", "hm", ""),
        ("Yes.", None, "Yes."),
        ("Write `</think>` at the end.", None, "Write `</think>` at the end."),
        ("Like so:\n<think>\nhm\n</think>\n", None, "Like so:\n<think>\nhm\n</think>\n"),
    ],
)
def test_a_block_of_thinking_before_a_text_is_split_off(text, thinking, after):
    assert split_thinking(text) == (thinking, after)


def test_a_message_nested_too_deeply_is_no_traceback():
    content = []
    for _ in range(5000):
        content = [{"type": "thinking", "thinking": content}]
    with pytest.raises(Unavailable, match="nested"):
        reply_to({"content": content})
