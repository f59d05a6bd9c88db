"""Read the answer in a line of a batch service's output, in the forms that services write.

The form of OpenAI's Batch API is `response.status_code` and `response.body`. Services also write
the completion in place of `response.body` or beside `custom_id`, a body as JSON text, a status as
text, and an empty `error` beside a reply. What is not an OpenAI chat completion is refused.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sp2dpo.inference.errors import is_error, is_filled
from sp2dpo.text import shorten

_FORMATS = {
    "candidates": "Gemini",
    "modelOutput": "Amazon Bedrock",
    "stop_reason": "Anthropic",
    "output": "OpenAI's Responses API",
    "generations": "Cohere",
    "outputs": "another API",
    "message": "another chat API",
}
"""APIs by a key of their replies, the more telling ones first."""


class OtherFormat(ValueError):
    """A line does not hold an OpenAI chat completion; the message says what it holds."""


@dataclass(frozen=True, kw_only=True)
class BatchAnswer:
    """The answer of a batch service to one request.

    Attributes:
        status: HTTP status; None if the service did not send the request, or does not state it.
        body: Body of the answer, a chat completion if the status is 200; else it may be text.
        error: What the service says went wrong; None if it says nothing.
    """

    status: int | None
    body: Any
    error: Any


def parse_answer(line: Mapping[str, Any]) -> BatchAnswer:
    """Return the answer in a line.

    Raises:
        OtherFormat: If the line holds neither a chat completion nor an error.
    """
    error = line.get("error") if is_error(line.get("error")) else None
    response = _decode(line.get("response"))
    if not response:
        response = _without_response(line)
    if response is None and error is None:
        raise OtherFormat("neither a response nor an error")
    if response is None:
        return BatchAnswer(status=None, body=None, error=error)
    if not isinstance(response, dict):
        raise OtherFormat(f"response {_shorten(response)} is not an object")
    status, body = _status(response), _decode(response.get("body"))
    if body is None and not response.keys().isdisjoint(("choices", "error", *_FORMATS)):
        body = response
    if status is None and isinstance(body, dict) and "choices" in body:
        status = 200
    if status is None and error is None:
        error = _error_in(body)
        if error is None:
            _refuse_format(body)
            raise OtherFormat("a response without status_code and without choices")
    if status == 200 and error is None:
        _check_completion(body)
    return BatchAnswer(status=status, body=body, error=error)


def _without_response(line: Mapping[str, Any]) -> Any:
    """Return what stands for the response in a line without one; None if there is nothing."""
    if "choices" in line:
        return line
    if is_filled(line.get("body")):
        return {name: line[name] for name in ("status_code", "body") if name in line}
    result = line.get("result")
    if isinstance(result, dict):  # Anthropic's Message Batches
        if result.get("type") == "succeeded" or "message" in result:
            _refuse_format(result.get("message"))
        return {"error": result.get("error") or result}
    _refuse_format(line)
    return None


def _status(response: dict[str, Any]) -> int | None:
    value = response.get("status_code")
    if value is None and isinstance(response.get("status"), int | float):
        value = response["status"]
    if value is None:
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, str) and re.fullmatch(r"\s*[0-9]{3}\b.*", value, re.ASCII):
        value = int(value.split()[0][:3])
    if not isinstance(value, int) or isinstance(value, bool):
        raise OtherFormat(f"status_code {_shorten(value)} is not a number")
    return 200 if 200 <= value < 300 else value


def _check_completion(body: Any) -> None:
    if not isinstance(body, dict):
        raise OtherFormat(f"body {_shorten(body)} is not a JSON object")
    if "choices" not in body and _error_in(body) is None:
        _refuse_format(body)


def _error_in(body: Any) -> Any:
    error = body.get("error") if isinstance(body, dict) else None
    return error if is_error(error) else None


def _refuse_format(value: Any) -> None:
    if isinstance(value, dict) and "choices" not in value:
        name = next((name for key, name in _FORMATS.items() if key in value), None)
        if name is not None:
            raise OtherFormat(
                f"a reply in the format of {name}, not an OpenAI chat completion with `choices`: "
                "convert it, or use the OpenAI-compatible batches of the service"
            )


def _decode(value: Any) -> Any:
    """Return the JSON that a text holds; any other value, and other text, as it is."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def _shorten(value: Any) -> str:
    return shorten(json.dumps(value))
