"""Parse chat completions, as the many servers with an OpenAI-compatible API write them."""

import json
import re
from dataclasses import dataclass
from typing import Any

from sp2dpo.inference.endpoint import Endpoint
from sp2dpo.inference.errors import (
    EndpointError,
    Unavailable,
    is_error,
    is_filled,
    served_error,
    shorten_body,
)
from sp2dpo.inference.thinking import split_thinking

_WORDS = {
    "stop": "stop eos eos_token end_turn end stop_sequence stop_token stop_string stop_word"
    " complete completed endoftext end_of_text end_of_sequence finish finished done",
    "length": "length max_tokens model_length max_output_tokens max_length max_new_tokens"
    " max_completion_tokens token_limit model_context_window_exceeded context_length_exceeded",
    "tool_calls": "tool_calls tool_call tool_use function_call",
    "content_filter": "content_filter content_filtered safety image_safety recitation"
    " image_recitation blocklist prohibited_content image_prohibited_content spii sensitive"
    " guardrail guardrails guardrail_intervened moderation moderated content_policy"
    " content_policy_violation error_toxic",
    "refusal": "refusal",
    # The server gave up; the same request may be answered later.
    "error": "error abort aborted canceled cancelled user_cancel interrupted timeout timed_out"
    " time_limit server_error internal_error internal_server_error network_error overloaded"
    " insufficient_system_resource unavailable preempted",
    # The same as no reason.
    "": "null none unknown unspecified",
}
_FINISH_REASONS = {word: reason for reason, words in _WORDS.items() for word in words.split()}
"""Our finish reasons by those of servers, in lower case. One that is missing here is unchanged."""
_OVERLOADED = ("insufficient_system_resource", "overloaded")
_THINKING = re.compile("(redacted_|encrypted_)?(thinking|thought|reasoning|summary_text)", re.I)
"""Beginning of the types of content parts that hold the model's thinking."""
_TEXT = ("text", "output_text", "input_text")
_FORMAL = ("type", "format", "index", "id", "object", "status", "thought")
"""Keys of a part that describe it, without being content."""


@dataclass(frozen=True, kw_only=True)
class Reply:
    """A parsed chat completion. Counts and the model name are None if the server omits them.

    Attributes:
        text: Content of the message; its text parts are joined. Empty if there is none.
        finish_reason: `stop` if the model ended its reply, `length` at the token limit,
            `tool_calls`, `content_filter`, `refusal`, or the server's word if it has another
            meaning. None if the server states none, and nothing else shows that the reply ended.
        model: Model name.
        prompt_tokens: Tokens of the request.
        completion_tokens: Tokens of the reply.
        cached_tokens: Prompt tokens that came from the prefix cache.
        seconds: Latency of the complete reply; None if it was not measured.
        logprobs: Log-probabilities of the tokens, in the server's format.
        served_finish_reason: The finish reason in the server's words; None if it states none.
        reasoning: The model's thinking, if the server separates it from the text; empty if the
            model thought, but the server hides or encrypts what.
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


_FREE_NESTED, _BYTES_PER_NESTED = 200_000, 12
"""Lists and objects that an answer may have; more only up to one per so many bytes."""


def parse_body(endpoint: Endpoint, body: bytes) -> dict[str, Any]:
    """Parse the JSON object of an answer.

    Raises:
        Unavailable: If it is not a JSON object, for example a proxy's page or a truncated answer.
        EndpointError: If it is a stream of events.
    """
    # Each takes 60 bytes or more of memory. Log-probabilities, the densest part of a real answer,
    # have one per 20 bytes.
    most = max(_FREE_NESTED, len(body) // _BYTES_PER_NESTED)
    if len(body) > most and body.count(b"[") + body.count(b"{") > most:
        text = f"{endpoint.label}: not a chat completion, but hardly more than lists and objects"
        raise Unavailable(f"{text}: {shorten_body(body)}", reason="no-answer")
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
    ending = _FINISH_REASONS.get(word, served)
    if ending == "error":
        raise Unavailable(
            f"{endpoint.label}: the server ended a reply with finish_reason {served}",
            reason="server-error",
            overloaded=word in _OVERLOADED,
        )
    usage = _object(answer.get("usage"))
    parts = _parts(message.get("content"))
    by_kind = {
        kind: escape_surrogates("".join(text for name, text in parts if name == kind))
        for kind in ("text", "thinking", "refusal")
    }
    text, kinds = by_kind["text"], {kind for kind, _ in parts}
    reasoning = _reasoning(message, usage, by_kind["thinking"], kinds, text)
    refusal = _first_text(message, "refusal") or by_kind["refusal"] or None
    if refusal is None and is_filled(message.get("refusal")):
        refusal = json.dumps(message["refusal"])
    has_tool_calls = "tool" in kinds or any(
        is_filled(message.get(name)) for name in ("tool_calls", "function_call")
    )
    has_text = "text" in kinds and (text.strip() != "" or reasoning is None)
    is_text = has_text and kinds <= {"text", "thinking", "hidden-thinking"}
    completion_tokens = parse_count(usage.get("completion_tokens"))
    return Reply(
        text=text,
        finish_reason=ending or _unstated_reason(endpoint, text, completion_tokens),
        model=_label(answer.get("model")),
        prompt_tokens=parse_count(usage.get("prompt_tokens")),
        completion_tokens=completion_tokens,
        cached_tokens=parse_count(_object(usage.get("prompt_tokens_details")).get("cached_tokens")),
        seconds=seconds,
        logprobs=_logprobs(choice),
        served_finish_reason=served if ending else None,
        reasoning=reasoning,
        refusal=refusal,
        has_tool_calls=has_tool_calls,
        message=None if is_text and not (refusal or has_tool_calls) else json.dumps(message),
    )


def _choice(endpoint: Endpoint, answer: dict[str, Any]) -> dict[str, Any]:
    """Return the first choice; raise the error that stands beside it, in it, or in its place."""
    choices = answer.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    if is_error(answer.get("error")):
        raise served_error(endpoint, answer["error"])
    if not isinstance(choice, dict):
        # An old form of vLLM and others: the fields of the error are those of the answer.
        if answer.get("object") == "error" or "code" in answer:
            raise served_error(endpoint, answer)
        raise _no_completion(endpoint, answer, {})
    for place in (choice, _object(choice.get("message"))):
        if is_error(place.get("error")):
            raise served_error(endpoint, place["error"])
    return choice


def _reasoning(
    message: dict[str, Any], usage: dict[str, Any], thinking: str, kinds: set[str], text: str
) -> str | None:
    """Return the model's thinking; "" if it thought, but the server hides what; None if not."""
    names = ("reasoning_content", "reasoning", "thinking", "reasoning_details")
    if reasoning := _first_text(message, *names) or thinking:
        return reasoning
    details = _object(usage.get("completion_tokens_details"))
    is_hidden = "hidden-thinking" in kinds or any(_has_content(message.get(name)) for name in names)
    # An empty text after thinking is no answer, but beside a text the count changes nothing.
    is_counted = not text.strip() and bool(parse_count(details.get("reasoning_tokens")))
    return "" if is_hidden or is_counted else None


def _has_content(value: Any) -> bool:
    """Return whether a part, or a list of parts, holds more than words that describe it."""
    if isinstance(value, list):
        return any(map(_has_content, value))
    if not isinstance(value, dict):
        return bool(value)
    return any(_has_content(entry) for name, entry in value.items() if name not in _FORMAL)


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
    return _label(value.get("type") if isinstance(value, dict) else value)


def _word(served: str) -> str:
    """Return a finish reason in lower case, without the name of an enumeration before it."""
    word = re.sub("(?<=[a-z0-9])(?=[A-Z])", "_", served.strip().rpartition(".")[2])
    return re.sub("[- ]+", "_", word).lower().removeprefix("finish_reason_")


def _unstated_reason(endpoint: Endpoint, text: str, tokens: int | None) -> str | None:
    """Return how a reply ended that comes without a finish reason; None if nothing shows it."""
    # Servers that state no reason may count tokens, and a reply at the limit may be cut off.
    if tokens is not None and tokens >= endpoint.token_limit:
        return "length"
    if not split_thinking(text)[1]:
        return None
    # A teacher's JSON object and the one token of a judge show by themselves that they are
    # complete. The text of a student does not: it ended by itself if it is below the limit.
    return "stop" if tokens is not None or endpoint.role != "student" else None


def _parts(content: Any) -> list[tuple[str, str]]:
    """Return the parts of a message's content as (kind, text).

    Kinds are `text`, `thinking`, `refusal`, and three without a text: `hidden-thinking`, `tool` and
    `other`.
    """
    if not isinstance(content, list):
        return [_part(content)]
    return [part for entry in content for part in _parts(entry)] or [("other", "")]


def _part(part: Any) -> tuple[str, str]:
    if isinstance(part, str):
        return "text", part
    if not isinstance(part, dict):
        return "other", ""
    kind, text = part.get("type"), _nested_text(part)
    word = str(kind or "").lower()
    if _THINKING.match(word) or part.get("thought") is True:
        is_hidden = not text and (_has_content(part) or word.startswith(("redacted", "encrypted")))
        return ("hidden-thinking" if is_hidden else "thinking"), text
    if word == "refusal":
        return "refusal", text or (json.dumps(part) if _has_content(part) else "")
    # Gemini and Bedrock write parts without a type.
    if word in _TEXT or (kind is None and "text" in part):
        # A text that is null or a number is not an empty text.
        return ("text", text) if text or part.get("text") == "" else ("other", "")
    return ("tool" if "tool" in word or "function" in word else "other"), ""


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


_LONGEST_LABEL = 200
"""Characters of a model's name or of a finish reason that are used."""


def _label(value: Any) -> str | None:
    text = _text(value)
    return None if text is None else text[:_LONGEST_LABEL]


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def parse_count(value: Any) -> int | None:
    """Return a token count, or None if the value cannot be one."""
    # The columns of these counts in a data set are int32, and servers may send anything.
    return value if type(value) is int and 0 <= value < 2**31 else None
