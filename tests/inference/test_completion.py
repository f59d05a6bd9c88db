"""Chat completions as servers write them: text, other messages, finish reasons, errors in 200."""

import json
from dataclasses import replace

import pytest

from sp2dpo.evaluation.requests import reply_problem
from sp2dpo.inference.client import Declined, EndpointError, Unavailable, parse_reply
from sp2dpo.inference.completion import parse_body
from sp2dpo.inference.endpoint import Endpoint
from sp2dpo.inference.thinking import split_thinking

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
    "nested lists": [[{"type": "text", "text": "Ye"}], {"type": "Text", "text": "s."}],
    "input_text": [{"type": "input_text", "text": "Yes."}],
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
        ("contentFiltered", "content_filter"), ("ContentFilter", "content_filter"),
        ("IMAGE_SAFETY", "content_filter"), ("guardrail", "content_filter"),
        ("moderation", "content_filter"), ("max_new_tokens", "length"), ("token_limit", "length"),
        ("MaxTokens", "length"), ("endTurn", "stop"), ("stop_token", "stop"), ("done", "stop"),
        ("endoftext", "stop"), ("finished", "stop"),
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


BLOCKS = {
    "two blocks": "<think>a</think>\n<think>b</think>\nYes.",
    "three kinds": "<think>a</think><reasoning>b</reasoning>[THINK]c[/THINK]Yes.",
    "attributes": "<think foo=1>a</think>Yes.",
    "template opened it, then another block": "a\n</think>\n<think>b</think>Yes.",
    "template opened it, no line end": "a </think>Yes.",
    "template opened it, Mistral": "a[/THINK]Yes.",
    "header": "<|start|>assistant<|channel|>analysis<|message|>a<|end|><|start|>assistant"
    "<|channel|>final<|message|>Yes.<|return|>",
    "constrained": "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final "
    "<|constrain|>json<|message|>Yes.",
    "commentary": "<|channel|>commentary<|message|>a<|end|><|start|>assistant<|channel|>final"
    "<|message|>Yes.<|end|>",
    "header of the answer alone": "a<|end|><|start|>assistant<|channel|>final<|message|>Yes.",
}


@pytest.mark.parametrize("text", BLOCKS.values(), ids=BLOCKS)
def test_every_form_of_thinking_is_split_off(text):
    thinking, after = split_thinking(text)
    assert (thinking is not None, after) == (True, "Yes.")


@pytest.mark.parametrize("header", ["", "<|start|>assistant"])
def test_the_header_of_an_answer_alone_is_no_thinking(header):
    text = f"{header}<|channel|>final<|message|>Yes.<|return|>"
    assert split_thinking(text) == (None, "Yes.")


@pytest.mark.parametrize(
    "text",
    [
        "End it with </think> yourself.",
        'The mark "</think>" ends it.',
        "```\nhm\n</think>\n```\nis a template.",
        "It is <s>old</s>",
        "(</think> is a mark)",
    ],
)
def test_a_text_about_the_marks_remains_whole(text):
    assert split_thinking(text) == (None, text)


HIDDEN = {
    "redacted": {"content": [{"type": "redacted_thinking", "data": "x"}]},
    "signed": {"content": [{"type": "thinking", "thinking": "", "signature": "x"}]},
    "encrypted": {"content": [{"type": "reasoning", "encrypted_content": "x", "summary": []}]},
    "beside an empty text": {
        "content": "",
        "reasoning_details": [{"type": "reasoning.encrypted", "data": "x"}],
    },
    "a blank text": {"content": " \n", "reasoning": {"encrypted_content": "x"}},
    "in capitals": {"content": [{"type": "Redacted_Thinking", "data": "x"}]},
}


@pytest.mark.parametrize("message", HIDDEN.values(), ids=HIDDEN)
def test_hidden_thinking_alone_is_no_empty_answer(message):
    reply = reply_to(message)
    assert (reply.text.strip(), reply.reasoning) == ("", "")
    assert json.loads(reply.message) == {"role": "assistant"} | message
    assert reply_problem(reply) == "reasoning-only"


@pytest.mark.parametrize("text", [None, 5, {"x": 1}, [], True])
def test_a_part_whose_text_is_no_text_is_no_empty_answer(text):
    reply = reply_to({"content": [{"type": "text", "text": text}]})
    assert (reply.text, reply_problem(reply)) == ("", "no-content")
    assert json.loads(reply.message)["content"] == [{"type": "text", "text": text}]


def test_an_empty_text_is_complete_and_one_after_counted_thinking_is_not():
    assert reply_problem(reply_to({"content": ""})) is None
    usage = {"completion_tokens": 9, "completion_tokens_details": {"reasoning_tokens": 9}}
    assert reply_problem(reply_to({"content": ""}, usage=usage)) == "reasoning-only"
    assert reply_problem(reply_to({"content": "Yes."}, usage=usage)) is None


@pytest.mark.parametrize("refusal", [True, {"code": "x"}, ["no"], {"message": "policy"}])
def test_a_refusal_of_another_type_is_one(refusal):
    reply = reply_to({"content": "I am sorry.", "refusal": refusal})
    assert reply_problem(reply) == "refusal"
    assert json.loads(reply.message)["refusal"] == refusal


@pytest.mark.parametrize(
    "finish", [None, "", "null", "None", "FINISH_REASON_UNSPECIFIED", 0, 1, [], ["stop"], {}, True]
)
def test_without_a_finish_reason_a_students_text_needs_a_count_of_tokens(finish):
    student = replace(TEACHER, role="student")
    answer = {"choices": [{"message": {"content": "The answer is yo"}, "finish_reason": finish}]}
    for count, problem, ending in ((None, "unfinished", None), (30, None, "stop")):
        reply = parse_reply(student, answer | {"usage": {"completion_tokens": count}}, None)
        assert (reply_problem(reply), reply.finish_reason) == (problem, ending)
        assert reply.served_finish_reason is None


@pytest.mark.parametrize(
    "word",
    [
        "abort", "canceled", "Cancelled", "timeout", "server_error", "overloaded", "networkError",
        "interrupted",
    ],
)  # fmt: skip
def test_a_reply_that_the_server_gave_up_is_transient(word):
    with pytest.raises(Unavailable, match=word):
        reply_to({"content": "Yes."}, finish=word)


SUCCESS = [{"code": 0, "message": "success"}, {"code": 200, "message": "OK"}, "none", {"code": "0"}]


@pytest.mark.parametrize("error", SUCCESS)
def test_a_report_of_success_beside_a_choice_is_no_error(error):
    choice = GOOD | {"error": error, "message": GOOD["message"] | {"error": error}}
    assert parse_reply(TEACHER, {"error": error, "choices": [choice]}, None).text == "Yes."


@pytest.mark.parametrize("error", [True, "boom", {"message": "upstream"}, {"code": 0, "m": "bad"}])
def test_an_error_in_the_message_counts_as_one_in_the_choice(error):
    choice = GOOD | {"message": GOOD["message"] | {"error": error}}
    with pytest.raises(Unavailable, match="error"):
        parse_reply(TEACHER, {"choices": [choice]}, None)


def test_a_message_nested_too_deeply_is_no_traceback():
    content = []
    for _ in range(5000):
        content = [{"type": "thinking", "thinking": content}]
    with pytest.raises(Unavailable, match="nested"):
        reply_to({"content": content})


def test_thinking_with_hundreds_of_end_marks_is_split():
    assert split_thinking("ok\n" + "</think>\n" * 2000 + "Hello") == ("ok", "Hello")
