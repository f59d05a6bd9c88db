"""What an OpenAI-compatible server answers in place of a reply, and what to do about it."""

import json
import re
from collections.abc import Iterator
from typing import Any

from sp2dpo.inference.endpoint import STRUCTURED, Endpoint
from sp2dpo.text import shorten


class EndpointError(OSError):
    """A model cannot be reached or used. The run stops, and the request remains pending.

    Attributes:
        reason: Reason in one word, such as `http-401`.
    """

    def __init__(self, text: str, *, reason: str = "refused") -> None:
        super().__init__(text)
        self.reason = reason


class Unavailable(EndpointError):
    """A transient error: overload, a server error, a lost connection, a timeout.

    Attributes:
        reason: Reason to record if the request fails permanently, such as `http-500`.
        overloaded: Whether the error (429, 503, timeout) is a sign of too many requests in flight.
        lost: Whether there was no answer at all.
        wait: Seconds to wait before a retry, as the server requests (Retry-After).
        is_ours: Whether this machine lacks a resource, such as files that may be open: the fault is
            neither the server's nor the request's.
    """

    def __init__(
        self,
        text: str,
        *,
        reason: str,
        overloaded: bool = False,
        lost: bool = False,
        wait: float = 0.0,
        is_ours: bool = False,
    ) -> None:
        super().__init__(text, reason=reason)
        self.overloaded = overloaded
        self.lost = lost
        self.wait = wait
        self.is_ours = is_ours


class Declined(ValueError):
    """The server refuses this request (HTTP 400, 413, 422); a retry would not help.

    Attributes:
        status: HTTP status code.
        reason: Reason to record: `content-filter`, or the status as in `http-400`.
    """

    def __init__(self, status: int, body: str, *, reason: str | None = None) -> None:
        super().__init__(f"HTTP {status}: {body}")
        self.status = status
        self.reason = reason or f"http-{status}"


_DECLINED = (400, 413, 422)
_OVERLOADED = (429, 503, 529)
_BILLING = re.compile(
    "insufficient[a-z_ -]*(quota|balance|credit|fund)|billing|payment.?required|arrearage|overdue"
    "|exceeded.?current.?quota|out.?of.?credit|credits?.?(limit|exhausted)|balance.?not.?enough",
    re.I,
)
"""Codes of an account without money. Messages mention billing anyway, so that only these count:"""
_NO_CREDIT = re.compile(
    # Anthropic, DeepSeek, OpenRouter, Together, xAI, Gemini, Moonshot, Zhipu, Alibaba.
    r"your credit balance is too low|^\W*insufficient (account )?balance|^\W*insufficient credits"
    r"|this request requires more credits, or fewer max_tokens|^\W*credit limit exceeded"
    r"|used all available credits or reached its monthly spending limit"
    r"|your prepayment credits are depleted|is suspended.{0,40} check your plan and billing"
    r"|suspended due to insufficient balance|\u4f59\u989d\u4e0d\u8db3"
    r"|make sure your account is in good standing",
    re.I,
)
"""Phrases of providers that send no such code."""
_FILTER = re.compile(
    "content.?(policy|filter|management)|responsible.?ai|data.?inspection|sensitive.?content"
    "|moderation|flagged",
    re.I,
)
"""Codes of a filter that stops a request for its content."""
_STATUS_OF_CODE = {
    re.compile("rate.?limit|too.?many.?requests|overload|resource.?exhausted", re.I): 429,
    re.compile("unavailable|capacity", re.I): 503,
    re.compile("timeout|timed.?out", re.I): 504,
    re.compile("context.?length|invalid.?request|bad.?request|invalid.?prompt", re.I): 400,
    re.compile("content.?(policy|filter)", re.I): 400,
    re.compile("authentication|invalid.?api.?key|unauthori[sz]ed", re.I): 401,
    re.compile("permission|forbidden", re.I): 403,
    re.compile("not.?found", re.I): 404,
}
"""HTTP status that a code in words stands for, where an error comes with HTTP 200."""


def is_filled(value: Any) -> bool:
    """Return whether a JSON value is more than null, "", 0, [], {} or objects of these.

    Servers write such values of `error` and `tool_calls` where there is none.
    """
    if isinstance(value, dict):
        return any(is_filled(entry) for entry in value.values())
    return bool(value)


_SUCCESS = re.compile(r"\s*(0|200|ok|success(ful)?|none|null|no.?error)?\s*", re.I)


def is_error(value: Any) -> bool:
    """Return whether the value of `error` is one: filled, and no report of success."""
    return is_filled(value) and not _is_success(value)


def _is_success(value: Any) -> bool:
    """Return whether a value says that all is well, such as {"code": 0, "message": "success"}."""
    if isinstance(value, dict):
        return all(map(_is_success, value.values()))
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, str | int | float):
        return _SUCCESS.fullmatch(str(value)) is not None
    return not value


def served_error(endpoint: Endpoint, error: Any) -> EndpointError | Declined:
    """Return the exception for an error that came with HTTP 200, as for that error's own status.

    Args:
        endpoint: The model that was asked, for messages.
        error: Value of `error`: an object with `code` and `message`, or text.
    """
    codes = [code.strip() for code in _codes(error)]
    numbers = [int(code) for code in codes if re.fullmatch("[45][0-9][0-9]", code)]
    words = [
        status for code in codes for known, status in _STATUS_OF_CODE.items() if known.search(code)
    ]
    body = json.dumps({"error": error}).encode()
    status = next(iter([*numbers, *words]), None)
    if status is not None or _lacks_credit(error):
        return status_error(endpoint, 402 if status is None else status, body, inside_200=True)
    return Unavailable(
        f"{endpoint.label}: HTTP 200 with an error in place of a reply: {shorten_body(body)}",
        reason="server-error",
    )


def status_error(
    endpoint: Endpoint, status: int, body: bytes, *, wait: float = 0.0, inside_200: bool = False
) -> EndpointError | Declined:
    """Return the exception for an HTTP status other than 200.

    Args:
        endpoint: The model that was asked, for messages.
        status: HTTP status.
        body: Body of the answer.
        wait: Seconds to wait before a retry, as the server requests.
        inside_200: Whether the status is that of an error inside an answer of HTTP 200.
    """
    text, reason = shorten_body(body), f"http-{status}"
    where = f"HTTP 200 with an error {status}" if inside_200 else f"HTTP {status}"
    beginning = f"{endpoint.label}: {where}"
    error = _parse_error(body)
    if status == 402 or (400 <= status < 500 and _lacks_credit(error)):
        return EndpointError(
            f"{beginning}, the account has no credit or quota left: add credit at the provider and"
            f" run the same command again, which continues; the server says: {text}",
            reason=reason,
        )
    # OpenRouter answers so to a single request that its moderation flags.
    if status in _DECLINED or (status == 403 and b"flagged_input" in body):
        is_filter = any(_FILTER.search(code) for code in _codes(error)) or status == 403
        reason = "content-filter" if is_filter else None
        return Declined(status, text + _request_advice(endpoint, body), reason=reason)
    if status == 407:
        return EndpointError(
            f"{beginning}: the proxy wants a name and a password; write them into the proxy's"
            f" address in HTTP_PROXY or HTTPS_PROXY, or exclude the host with NO_PROXY: {text}",
            reason=reason,
        )
    if status in (401, 403):
        hint = (
            "set api_key_env in the panel" if endpoint.api_key_env is None else "check its API key"
        )
        return EndpointError(f"{beginning}, access refused; {hint}: {text}", reason=reason)
    if status in (404, 405, 410):
        # A router that has the model, but no provider for this kind of request.
        if b"no endpoints found" in body.lower() or b"no allowed providers" in body.lower():
            hint = (
                f"no provider of {endpoint.model} allows such a request;"
                f" {_structured_advice(endpoint)}, leave out sampling keys that it does not"
                " support, or change the routing in `extra`"
            )
        else:
            hint = f"wrong base_url or model ({endpoint.model})"
        return EndpointError(f"{beginning}: {hint}: {text}", reason=reason)
    # Some servers fail with 500 at a key that they do not support.
    advice = _request_advice(endpoint, body) if status in (500, 501) else ""
    return Unavailable(
        f"{beginning}: {text}{advice}",
        reason=reason,
        overloaded=status in _OVERLOADED,
        wait=wait,
    )


_TOKENS = re.compile(rb"max_completion_tokens")
_SCHEMA = re.compile(
    rb"response_?(format|schema)|json.?schema|output_config|guided|grammar|structured.?output"
    rb"|(maximum|minimum|max_?length).*not.*(support|permit|allow)"
    rb"|(unknown|unrecognized|unsupported|invalid)\W+(name|key\w*|field|property)?\W*"
    rb"(maximum|minimum|max_?length)",
    re.I | re.S,
)
_REFUSED_KEY = re.compile(
    rb"unsupported|not (be )?(support|permit|allow|recogni)|unknown|unrecogni|unexpected|deprecated"
    rb"|extra (inputs|fields)|no such (parameter|field)",
    re.I,
)


def _request_advice(endpoint: Endpoint, body: bytes) -> str:
    """Return advice on a request that a server refuses, where its message allows some."""
    if _TOKENS.search(body) and "max_tokens" in endpoint.sampling:
        return (
            "; write max_completion_tokens in sampling in place of max_tokens"
            f"{_as_another(endpoint)}"
        )
    # Students and judges get no schema.
    if endpoint.role == "teacher" and endpoint.structured != "none" and _SCHEMA.search(body):
        return f"; {_structured_advice(endpoint)}"
    if key := _refused_key(endpoint, body):
        where = "extra" if key in endpoint.extra else "sampling"
        advice = (
            "set the temperature that the server allows (often temperature: 1)"
            if key == "temperature"
            else f"leave {key} out of {where}"
        )
        return f"; {advice}{_as_another(endpoint)}"
    return ""


def _refused_key(endpoint: Endpoint, body: bytes) -> str | None:
    """Return the key of the model's settings that a server says it does not support."""
    if not _REFUSED_KEY.search(body):
        return None
    error = _parse_error(body)
    message = " ".join(_texts(error, "message", "msg", "detail", "param", "loc", "error"))
    keys = [*endpoint.sampling, *endpoint.extra]
    return next((key for key in keys if re.search(rf"\b{re.escape(key)}\b", message)), None)


def _as_another(endpoint: Endpoint) -> str:
    # The settings of replies in a store must not change.
    if endpoint.role != "teacher":
        return ""
    return ", and give the teacher another name, or use a new --store, if it has stored replies"


def _structured_advice(endpoint: Endpoint) -> str:
    weaker = STRUCTURED[STRUCTURED.index(endpoint.structured) + 1 :]
    if not weaker:
        return "see its documentation"
    return f"set structured: {' or '.join(weaker)}{_as_another(endpoint)}"


_LEVELS = 30
"""Levels of an error's JSON; deeper ones are not read."""


def _parse_error(body: bytes) -> Any:
    try:
        error = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return error if _is_shallow(error, _LEVELS) else None


def _is_shallow(value: Any, levels: int) -> bool:
    if isinstance(value, dict | list):
        entries = value.values() if isinstance(value, dict) else value
        return levels > 0 and all(_is_shallow(entry, levels - 1) for entry in entries)
    return True


def _texts(value: Any, *names: str) -> Iterator[str]:
    """Yield the texts under some keys of an error, at any depth."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for entry in value:
            yield from _texts(entry, *names)
    elif isinstance(value, dict):
        for name in names:
            yield from _texts(value.get(name), *names)


def _codes(value: Any) -> Iterator[str]:
    """Yield the values of `code`, `type` and `status` in an error, outer ones first."""
    if isinstance(value, list):
        for entry in value:
            yield from _codes(entry)
    elif isinstance(value, dict):
        for name in ("code", "status_code", "status", "type"):
            code = value.get(name)
            if isinstance(code, str):
                yield code
            # No code is a larger number, and of very large ones `:g` fails.
            elif isinstance(code, int | float) and not isinstance(code, bool) and abs(code) < 1e9:
                yield f"{code:g}"
        yield from _codes(value.get("error"))


def _lacks_credit(error: Any) -> bool:
    """Return whether an error, or a body with one, says that the account has no money left."""
    return any(_BILLING.search(code) for code in _codes(error)) or any(
        _NO_CREDIT.search(text) for text in _texts(error, "error", "message", "msg", "detail")
    )


def shorten_body(body: bytes) -> str:
    """Return the beginning of an answer, for an error message."""
    return shorten(body.decode(errors="replace")) or "(an empty body)"
