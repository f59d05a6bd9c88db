"""Thinking and code blocks around an annotation are not part of it; refusals have their reason."""

import json
import time

import pytest

from sp2dpo.inference.completion import parse_reply
from sp2dpo.inference.endpoint import Endpoint
from sp2dpo.panel.advice import LENGTH, LENGTH_OF_THINKING, advise, advise_all
from sp2dpo.panel.annotation import Key, Refusal, object_span, parse_annotation
from sp2dpo.panel.logprobs import expected_scores, tokens_of_values
from sp2dpo.panel.rubric import load_rubric
from sp2dpo.store.records import OF_REPLIES, UNREADABLE, record_reply

RUBRIC = load_rubric("semantic-gap")
TEACHER = Endpoint(
    name="t", model="m", revision=None, base_urls=("http://127.0.0.1:1/v1",),
    sampling={"temperature": 0, "max_tokens": 1000},
)  # fmt: skip
KEY = Key(pair_id="0" * 64, teacher="t", variant="direct")


def annotation(rationale="Clear."):
    values = {"rationale": rationale, "category": "style", "magnitude": 3, "confidence": 9}
    return json.dumps(values)


PLAIN, ODD = annotation(), annotation("It ends </think> and shows ```json\n{}\n``` and <|end|>.")
AROUND = {
    "nothing": "{}",
    "a block": "<think>\nLet me see.\n</think>\n\n{}",
    "no first mark": "Okay, let me see.\n</think>\n\n{}",
    "no text between": "<think></think>{}",
    "two blocks": "<think>a</think>\n<think>b</think>\n{}",
    "a block in a block": "<think>a <think> b</think> c</think>{}",
    "another word": "<thinking>hm</thinking>\n{}",
    "capitals": "<THINK>hm</THINK>\n{}",
    "a draft": '{"magnitude": 1, "confidence": 2}\nNo.\n</think>\n{}',
    "two ends": "a</think>b</think>{}",
    "seed": "<seed:think>hm</seed:think>{}",
    "mistral": "[THINK]hm[/THINK]{}",
    "kimi": "◁think▷hm◁/think▷{}",
    "gemma": "<|channel>thought\nhm<channel|>{}",
    "harmony": "<|channel|>analysis<|message|>We {see}<|end|><|start|>assistant"
    "<|channel|>final <|constrain|>json<|message|>{}<|return|>",
    "harmony without marks": "analysisWe see.assistantfinal{}",
    "a code block": "```json\n{}\n```",
    "a plain block": "\n```\n{}\n```\n",
    "tildes": "~~~JSON\r\n{}\r\n~~~",
    "long fence": "````json\n{}\n````",
    "both": "<think>hm</think>\n```json\n{}\n```",
}


def put(around, text):
    before, _, after = around.rpartition("{}")
    return before + text + after


@pytest.mark.parametrize("text", [PLAIN, ODD], ids=["plain", "odd"])
@pytest.mark.parametrize("around", AROUND.values(), ids=AROUND)
def test_thinking_before_an_annotation_and_a_code_block_around_it_are_not_part_of_it(around, text):
    assert parse_annotation(put(around, text), RUBRIC) == parse_annotation(text, RUBRIC)


@pytest.mark.parametrize("text", [PLAIN, ODD], ids=["plain", "odd"])
@pytest.mark.parametrize("around", AROUND.values(), ids=AROUND)
def test_log_probabilities_are_found_behind_thinking_and_in_a_code_block(around, text):
    whole = put(around, text)
    three = whole.encode().rindex(b'"magnitude": 3') + len('"magnitude": ')
    content = [
        {"token": chr(byte), "bytes": [byte], "logprob": -0.1, "top_logprobs": []}
        for byte in whole.encode()
    ]
    content[three]["top_logprobs"] = [{"token": "5", "bytes": [53], "logprob": -2.5}]
    # The token that ends a turn, which servers list or not.
    for end in ([], [{"token": "<|im_end|>", "bytes": None, "logprob": 0.0, "top_logprobs": []}]):
        tokens = tokens_of_values([*content, *end], whole, object_span(whole))
        assert tokens is not None
        assert {token.field for token in tokens} == {"category", "magnitude", "confidence"}
        assert three in {token.at for token in tokens if token.field == "magnitude"}
        assert 3.0 < expected_scores(tokens, "magnitude", RUBRIC.magnitude) < 3.5


REFUSED = {
    "prose before": f"Here it is:\n{PLAIN}",
    "prose after": f"{PLAIN}\nI hope this helps.",
    "prose before a block": f"Sure!\n```json\n{PLAIN}\n```",
    "prose after a block": f"```json\n{PLAIN}\n```\nDone.",
    "two blocks": f"```json\n{PLAIN}\n```\n```json\n{PLAIN}\n```",
    "no end of the block": f"```json\n{PLAIN}",
    "two words of a block": f"```json lines\n{PLAIN}\n```",
    "inline code": f"`{PLAIN}`",
    "thinking after": f"{PLAIN}<think>hm</think>",
    "prose after thinking": f"<think>hm</think>Here: {PLAIN}",
    "prose after that mentions it": f"Here: {ODD}",
    "two objects": f"<think>hm</think>{PLAIN}{PLAIN}",
    "two ends of a turn": f"{PLAIN}<|im_end|></s>",
    "a start of a turn": f"{PLAIN}<|im_start|>",
}


@pytest.mark.parametrize("text", REFUSED.values(), ids=REFUSED)
def test_anything_else_around_an_annotation_is_refused(text):
    with pytest.raises(Refusal, match="at character") as error:
        parse_annotation(text, RUBRIC)
    assert error.value.reason == "not-json"


@pytest.mark.parametrize("text", ["<think>hm</think>", "<think>hm", "hm\n</think>\n \n", "[THINK]"])
def test_thinking_without_an_answer_is_a_reason_of_its_own(text):
    with pytest.raises(Refusal) as error:
        parse_annotation(text, RUBRIC)
    assert error.value.reason == "reasoning-only"


def test_the_rules_of_an_annotation_hold_behind_thinking():
    for values, reason in (('{"magnitude": 1, "magnitude": 2}', "duplicate"), ("[1]", "got list")):
        with pytest.raises(Refusal, match=reason):
            parse_annotation(f"<think>hm</think>{values}", RUBRIC)


def test_a_long_reply_is_searched_quickly():
    for piece in ("</think>", "</think>{", '{"a":[', "```json\n", "<think>", "}<|im_end|>", " "):
        start = time.monotonic()
        object_span(piece * 10_000)
        assert time.monotonic() - start < 2


CALL = [{"function": {"name": "annotation", "arguments": PLAIN}}]
REPLIES = {
    "stop": ({"content": PLAIN}, "stop", None),
    "eos": ({"content": PLAIN}, "eos_token", None),
    "null": ({"content": PLAIN}, None, None),
    "null, cut": ({"content": PLAIN[:-1]}, None, "unfinished"),
    "a call beside": ({"content": PLAIN, "tool_calls": CALL}, "tool_calls", None),
    "length": ({"content": PLAIN[:20]}, "length", "length"),
    "length, thinking": ({"content": "<think>Let me"}, "MAX_TOKENS", "length"),
    "length, reasoning": ({"content": None, "reasoning_content": "hm"}, "length", "length"),
    "reasoning": ({"content": None, "reasoning_content": PLAIN}, "stop", "reasoning-only"),
    "reasoning, empty": ({"content": "", "reasoning": "hm"}, "stop", "reasoning-only"),
    "thinking part": ({"content": [{"type": "thinking", "thinking": "hm"}]}, "stop",
                      "reasoning-only"),
    "think": ({"content": "<think>hm</think>"}, None, "reasoning-only"),
    "call": ({"content": None, "tool_calls": CALL}, "tool_calls", "tool-call"),
    "call, old": ({"content": None, "function_call": CALL[0]["function"]}, "stop", "tool-call"),
    "call, prose": ({"content": "I call it.", "tool_calls": CALL}, "tool_use", "tool-call"),
    "refusal": ({"content": None, "refusal": "I cannot judge this."}, "stop", "refusal"),
    "refusal, ending": ({"content": "I cannot."}, "refusal", "refusal"),
    "filter": ({"content": None}, "content_filter", "content-filter"),
    "filter, cut": ({"content": PLAIN[:9]}, "SAFETY", "content-filter"),
    "empty": ({"content": ""}, "stop", "empty"),
    "null content": ({"content": None}, "stop", "empty"),
    "image": ({"content": [{"type": "image"}]}, "stop", "empty"),
    "prose": ({"content": "It is style."}, "stop", "not-json"),
    "other": ({"content": PLAIN}, "kept", "unfinished"),
}  # fmt: skip


@pytest.mark.parametrize(("message", "finish", "reason"), REPLIES.values(), ids=REPLIES)
def test_every_reply_is_kept_or_has_its_reason_and_loses_nothing(message, finish, reason):
    choice = {"message": {"role": "assistant", **message}, "finish_reason": finish}
    record = record_reply(KEY, parse_reply(TEACHER, {"choices": [choice]}, None), RUBRIC)
    assert (record.reason, record.annotation is None) == (reason, reason is not None)
    content = message["content"]
    if reason is None or (isinstance(content, str) and len(message) == 1):
        assert record.raw == content
    else:
        assert json.loads(record.raw) == {"role": "assistant", **message}
    if reason is not None:
        assert reason in OF_REPLIES
        assert (reason in UNREADABLE) == (reason not in ("refusal", "content-filter"))
        assert len(advise(reason, record.detail)) > 20


def test_a_limit_inside_thinking_comes_with_advice_about_thinking():
    details = {}
    for name in ("length", "length, thinking", "length, reasoning"):
        message, finish, _ = REPLIES[name]
        choice = {"message": message, "finish_reason": finish}
        reply = parse_reply(TEACHER, {"choices": [choice]}, None)
        details[name] = record_reply(KEY, reply, RUBRIC).detail
    assert list(details.values()) == [LENGTH, LENGTH_OF_THINKING, LENGTH_OF_THINKING]
    assert advise("length", LENGTH) == "raise max_tokens in its sampling"
    assert "enable_thinking: false" in advise("length", LENGTH_OF_THINKING)


def test_only_replies_that_are_not_json_raise_the_question_of_json_schema():
    reasons = [*OF_REPLIES, "too-long", "http-400", "http-422", "http-500", "no-answer"]
    asked = [why for why in reasons if "response_format json_schema?" in advise(why, "detail")]
    assert asked == ["not-json"]


def test_a_declined_request_comes_with_what_the_server_says():
    assert advise("http-400", "the prompt is rude") == "the server says: the prompt is rude"
    assert advise("http-422", None) == "the server says: nothing"
    for detail in ("System role not supported", "no system", "The role 'system' is"):
        advice = advise("http-400", detail)
        assert ('system: ""' in advice) == (detail != "no system")
        assert advice.endswith(f"the server says: {detail}")


@pytest.mark.parametrize("structured", ["json_schema_plain", "json_object", "none"])
def test_a_server_that_is_not_asked_for_the_schema_is_not_blamed_for_it(structured):
    for reason in ("not-json", "schema"):
        advice = advise(reason, structured=structured)
        assert "set `structured: json_schema`" in advice
        assert "does its server support" not in advice
    assert advise("length", LENGTH, structured=structured) == advise("length", LENGTH)


def test_advice_on_several_reasons_begins_with_the_most_frequent():
    advice = advise_all({"not-json": 2, "length": 3}, {"length": LENGTH})
    assert advice.startswith("length 3: raise max_tokens in its sampling; not-json 2: does its")
