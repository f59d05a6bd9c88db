"""Parse chat completions, as the many servers with an OpenAI-compatible API write them."""

import json
import re
from dataclasses import dataclass
from typing import Any

from sp2dpo.inference.endpoint import Endpoint
from sp2dpo.inference.errors import (
    EndpointError,
    Unavailable,
    is_filled,
    served_error,
    shorten_body,
)

_FINISH_REASONS = {
    "stop": "stop", "eos": "stop", "eos_token": "stop", "end_turn": "stop", "end": "stop",
    "stop_sequence": "stop", "complete": "stop", "completed": "stop",
    "length": "length", "max_tokens": "length", "model_length": "length",
    "max_output_tokens": "length", "max_length": "length",
    "model_context_window_exceeded": "length",
    "tool_calls": "tool_calls", "tool_call": "tool_calls", "tool_use": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter", "content_filtered": "content_filter",
    "safety": "content_filter", "recitation": "content_filter", "blocklist": "content_filter",
    "prohibited_content": "content_filter", "spii": "content_filter",
    "guardrail_intervened": "content_filter", "sensitive": "content_filter",
    "refusal": "refusal",
    "error": "error",
}  # fmt: skip
"""Our finish reasons by those of servers, in lower case. One that is missing here is unchanged."""
_INTERRUPTED = ("abort", "aborted", "cancelled", "insufficient_system_resource")
"""Finish reasons of a server that gave up; the same request may be answered later."""
_THINKING = ("thinking", "reasoning", "redacted_thinking", "reasoning_content", "thought")
"""Types of content parts that hold the model's thinking."""
_FINAL = r"<\|channel\|>final\s*<\|message\|>"
_BLOCKS = tuple(
    (re.compile(rf"\s*{start}", re.I), re.compile(end, re.I))
    for start, end in (
        *(
            (f"<{tag}>", f"</{tag}>")
            for tag in (
                "think",
                "thinking",
                "thoughts?",
                "reasoning",
                "seed:think",
                "longcat_think",
            )
        ),
        (r"\[THINK\]", r"\[/THINK\]"),
        ("◁think▷", "◁/think▷"),
        (r"<\|START_THINKING\|>", r"<\|END_THINKING\|>(?:\s*<\|START_RESPONSE\|>)?"),
        (r"<\|channel>thought", r"<channel\|>"),
        (r"<\|channel\|>(?:analysis|commentary)", _FINAL),
        # gpt-oss, from a server that drops control tokens.
        (r"analysis(?=[A-Z][^\0]*assistantfinal)", "assistantfinal"),
    )
)
"""Marks before and after a model's thinking: Qwen and DeepSeek, Seed, LongCat, Mistral, Kimi,
Command, Gemma, gpt-oss."""
_TRAILER = re.compile(r"\s*<\|(?:return|end|END_RESPONSE)\|>\s*$")
_END_OF_THINKING = re.compile(r"^[ \t]*</think>[ \t]*$", re.M)


@dataclass(frozen=True, kw_only=True)
class Reply:
    """A parsed chat completion. Counts and the model name are None if the server omits them.

    Attributes:
        text: Content of the message; its text parts are joined. Empty if there is none.
        finish_reason: `stop` if the model ended its reply, `length` at the token limit,
            `tool_calls`, `content_filter`, `refusal`, or the server's word if it has another
            meaning. None if the server states none and there is no text.
        model: Model name.
        prompt_tokens: Tokens of the request.
        completion_tokens: Tokens of the reply.
        cached_tokens: Prompt tokens that came from the prefix cache.
        seconds: Latency of the complete reply; None if it was not measured.
        logprobs: Log-probabilities of the tokens, in the server's format.
        served_finish_reason: The finish reason in the server's words.
        reasoning: The model's thinking, if the server separates it from the text.
        refusal: Text of a refusal; None if the model did not refuse.
        has_tool_calls: Whether the model called a tool.
        message: JSON of the whole message if it is more or other than text; else None.
    """

    text: str
    finish_reason: str | None
    model: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    cached_tokens: int | None
    seconds: float | None
    logprobs: list[Any] | None = None
    served_finish_reason: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    has_tool_calls: bool = False
    message: str | None = None


def parse_body(endpoint: Endpoint, body: bytes) -> dict[str, Any]:
    """Parse the JSON object of an answer.

    Raises:
        Unavailable: If it is not a JSON object, for example a proxy's page or a truncated answer.
        EndpointError: If it is a stream of events.
    """
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError) as error:
        if re.match(rb"\s*(data|event|id|retry)?:", body) or _is_json_lines(body):
            raise EndpointError(
                f"{endpoint.label}: a stream (server-sent events or lines of JSON), not the JSON"
                " object that a request without `stream` asks for; turn streaming off at the server"
                f" or gateway, or try extra: {{stream: false}}: {shorten_body(body)}",
                reason="stream",
            ) from error
        raise _unreadable(endpoint, body) from error
    if not isinstance(answer, dict):
        raise _unreadable(endpoint, body)
    return answer


def _is_json_lines(body: bytes) -> bool:
    lines = body.strip().splitlines()
    try:
        return len(lines) > 1 and all(isinstance(json.loads(line), dict) for line in lines[:2])
    except (ValueError, RecursionError):
        return False


def _unreadable(endpoint: Endpoint, body: bytes) -> Unavailable:
    text = f"{endpoint.label}: not a JSON object: {shorten_body(body)}"
    return Unavailable(text, reason="no-answer")


def parse_reply(endpoint: Endpoint, answer: dict[str, Any], seconds: float | None) -> Reply:
    """Parse a chat completion.

    Args:
        endpoint: The model that answered.
        answer: The completion's JSON object.
        seconds: Latency of the complete reply; None if it was not measured.

    Raises:
        Unavailable: If the object is not a chat completion, or holds a transient error.
        Declined: If it holds an error for which a retry would not help.
        EndpointError: If it holds an error for which the run must end, such as missing credit.
    """
    try:
        return _parse(endpoint, answer, seconds)
    except RecursionError as error:
        text = f"{endpoint.label}: not a chat completion: its JSON is nested too deeply"
        raise Unavailable(text, reason="no-answer") from error


def _parse(endpoint: Endpoint, answer: dict[str, Any], seconds: float | None) -> Reply:
    choice = _choice(endpoint, answer)
    message = choice.get("message")
    if not isinstance(message, dict):
        raise _no_completion(endpoint, answer, choice)
    served = _served_reason(choice.get("finish_reason"))
    word = "" if served is None else _word(served)
    if word == "error" or word in _INTERRUPTED:
        raise Unavailable(
            f"{endpoint.label}: the server ended a reply with finish_reason {served}",
            reason="server-error",
            overloaded=word == "insufficient_system_resource",
        )
    usage = _object(answer.get("usage"))
    parts = _parts(message.get("content"))
    by_kind = {
        kind: escape_surrogates("".join(text for name, text in parts if name == kind))
        for kind in ("text", "thinking", "refusal")
    }
    text, kinds = by_kind["text"], {kind for kind, _ in parts}
    names = ("reasoning_content", "reasoning", "thinking", "reasoning_details")
    reasoning = _first_text(message, *names) or by_kind["thinking"] or None
    refusal = _first_text(message, "refusal") or by_kind["refusal"] or None
    has_tool_calls = "tool" in kinds or any(
        is_filled(message.get(name)) for name in ("tool_calls", "function_call")
    )
    is_text = kinds <= {"text", "thinking"} and (text or not reasoning)
    completion_tokens = parse_count(usage.get("completion_tokens"))
    return Reply(
        text=text,
        finish_reason=_finish_reason(endpoint, word, served, text, completion_tokens),
        model=_text(answer.get("model")),
        prompt_tokens=parse_count(usage.get("prompt_tokens")),
        completion_tokens=completion_tokens,
        cached_tokens=parse_count(_object(usage.get("prompt_tokens_details")).get("cached_tokens")),
        seconds=seconds,
        logprobs=_logprobs(choice),
        served_finish_reason=served,
        reasoning=reasoning,
        refusal=refusal,
        has_tool_calls=has_tool_calls,
        message=None if is_text and not (refusal or has_tool_calls) else json.dumps(message),
    )


def _choice(endpoint: Endpoint, answer: dict[str, Any]) -> dict[str, Any]:
    """Return the first choice; raise the error that stands beside it, in it, or in its place."""
    choices = answer.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    if is_filled(answer.get("error")):
        raise served_error(endpoint, answer["error"])
    if not isinstance(choice, dict):
        # An old form of vLLM and others: the fields of the error are those of the answer.
        if answer.get("object") == "error" or "code" in answer:
            raise served_error(endpoint, answer)
        raise _no_completion(endpoint, answer, {})
    if is_filled(choice.get("error")):
        raise served_error(endpoint, choice["error"])
    return choice


def _no_completion(
    endpoint: Endpoint, answer: dict[str, Any], choice: dict[str, Any]
) -> EndpointError:
    beginning = shorten_body(json.dumps(answer).encode())
    if "text" in choice or "delta" in choice:
        kind = "text completion" if "text" in choice else "chunk of a stream"
        return EndpointError(
            f"{endpoint.label}: a {kind}, not a chat completion with a `message`: use a server or"
            f" gateway that answers at /chat/completions: {beginning}",
            reason="no-answer",
        )
    return Unavailable(f"{endpoint.label}: not a chat completion: {beginning}", reason="no-answer")


def _served_reason(value: Any) -> str | None:
    # SGLang's own API writes {"type": "stop", "matched": 151645}.
    return _text(value.get("type") if isinstance(value, dict) else value)


def _word(served: str) -> str:
    """Return a finish reason in lower case, without the name of an enumeration before it."""
    word = served.strip().rpartition(".")[2].lower().replace("-", "_").replace(" ", "_")
    return word.removeprefix("finish_reason_")


def _finish_reason(
    endpoint: Endpoint, word: str, served: str | None, text: str, tokens: int | None
) -> str | None:
    if word:
        return _FINISH_REASONS.get(word, served)
    # Servers that state no reason still count tokens, and a reply at the limit may be cut off.
    if tokens is not None and tokens >= endpoint.token_limit:
        return "length"
    return "stop" if split_thinking(text)[1] else None


def _parts(content: Any) -> list[tuple[str, str]]:
    """Return the parts of a message's content as (kind, text).

    Kinds are `text`, `thinking`, `refusal`, `tool` and `other`; the last two have no text.
    """
    parts = content if isinstance(content, list) else [content]
    return [_part(part) for part in parts] or [("other", "")]


def _part(part: Any) -> tuple[str, str]:
    if isinstance(part, str):
        return "text", part
    if not isinstance(part, dict):
        return "other", ""
    kind = part.get("type")
    if kind in _THINKING or part.get("thought") is True:
        return "thinking", _nested_text(part)
    if kind == "refusal":
        return "refusal", _nested_text(part)
    # Gemini and Bedrock write parts without a type.
    if kind in ("text", "output_text") or (kind is None and "text" in part):
        return "text", _nested_text(part)
    return ("tool" if "tool" in str(kind) or "function" in str(kind) else "other"), ""


def _nested_text(value: Any) -> str:
    """Return the text in a part of any depth, such as a list of parts in `thinking`."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "".join(map(_nested_text, value))
    if not isinstance(value, dict):
        return ""
    names = ("text", "thinking", "reasoning", "summary", "content", "refusal", "value")
    return next((text for name in names if (text := _nested_text(value.get(name)))), "")


def _first_text(message: dict[str, Any], *names: str) -> str | None:
    """Return the first of the values that holds text; None if there is none."""
    texts = (_nested_text(message.get(name)) for name in names)
    return next((escape_surrogates(text) for text in texts if text), None)


def split_thinking(text: str) -> tuple[str | None, str]:
    """Split a reply into the block of thinking that it begins with, and the text after it.

    A block is `<think>...</think>`, or has other marks of `_BLOCKS`. `<think>` may be missing: many
    chat templates write it into the prompt. Then `</think>` must be a line. The text is empty
    if the block does not end. The block is None if there is none.
    """
    for start, end in _BLOCKS:
        if begin := start.match(text):
            stop = end.search(text, begin.end())
            if stop is None:
                return text[begin.end() :].strip(), ""
            after = _TRAILER.sub("", text[stop.end() :])
            return text[begin.end() : stop.start()].strip(), after.lstrip()
    if (match := _END_OF_THINKING.search(text)) and "<think>" not in text[: match.start()]:
        return text[: match.start()].strip(), text[match.end() :].lstrip()
    return None, text


def _logprobs(choice: dict[str, Any]) -> list[Any] | None:
    """Return the log-probabilities of the reply's tokens; None if the server sent none."""
    logprobs = choice.get("logprobs")
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    return content if isinstance(content, list) else None


def escape_surrogates(text: str) -> str:
    """Return the text with unpaired surrogates, which UTF-8 cannot encode, written as escapes.

    A JSON reply with an unpaired surrogate is still refused, because parsing the JSON turns the
    escape into the surrogate again.
    """
    return text.encode("utf-8", "backslashreplace").decode()


def _text(value: Any) -> str | None:
    return escape_surrogates(value) if isinstance(value, str) else None


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def parse_count(value: Any) -> int | None:
    """Return a token count, or None if the value cannot be one."""
    # The columns of these counts in a data set are int32, and servers may send anything.
    return value if type(value) is int and 0 <= value < 2**31 else None
