"""Remove API keys from what servers send, before it is shown, logged or stored.

A server gets a key with every request and can send it back: in a reply, an error or a header, in
plain text or in another writing.
"""

import base64
import json
import os
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from typing import Any
from urllib.parse import quote

from sp2dpo.inference.completion import Reply
from sp2dpo.text import HIDDEN

_SHORTEST = 8
"""Least length of a key in characters; replacing a shorter one, such as EMPTY, garbles texts."""
_HIDDEN = HIDDEN.encode()
_MARKS = (rb"\\u00", rb"\u00", b"%", b"\\\\x", b"\\x", b"&#")
_ESCAPES = (rb"\\u00%02x", rb"\u00%02x", rb"\\x%02x", rb"\x%02x", b"%%%02x", b"&#x%x;", b"&#%d;")
_ESCAPE_MARKS = (rb"\u00", rb"\/", rb"\x", b"%", b"&#")
_OTHER_ESCAPE = re.compile(
    rb"(?:%|\\{1,2}x|&#x)([0-9a-f]{2})(?:(?<=&#x..);)?|&#([0-9]{2,3});", re.IGNORECASE
)
# Pairs, because the second backslash of an escaped one escapes nothing.
_ESCAPE = re.compile(rb"\\(?:u00([2-7][0-9a-fA-F])|.)", re.DOTALL)


class Secrets:
    """The API keys of a run, in all the writings that are recognized.

    These are, in upper and lower case: the key itself, escapes of JSON, URLs and HTML, base64 also
    inside a longer text, hexadecimal digits, and lists of its bytes.
    """

    def __init__(self, variables: Iterable[str]) -> None:
        """Read keys from the environment.

        Args:
            variables: Names of environment variables; those that are not set are ignored.
        """
        keys = {os.environ.get(name, "").strip() for name in variables}
        forms = {form for key in keys if len(key) >= _SHORTEST for form in _writings(key)}
        # The longest first, because a writing may be part of another one.
        ordered = sorted((form.encode().lower() for form in forms), key=len, reverse=True)
        self._forms = tuple(dict.fromkeys(ordered))
        # A body is searched for rare writings only if it has their mark, which is quicker.
        marks = {
            form: next((mark for mark in _MARKS if form.startswith(mark)), b"")
            for form in self._forms
        }
        self._marked = tuple((marks[form], form) for form in self._forms)
        letters = {letter for key in keys for letter in key.lower() + key.upper()}
        self._escapes = (
            *(
                (escape % ord(letter), letter.lower().encode())
                for letter in letters
                if letter < "\x7f"
                for escape in _ESCAPES
            ),
            (rb"\/", b"/"),
        )
        self._escape = re.compile(_escape_pattern({*"".join(letters)}).encode())
        alternatives = b"|".join(map(re.escape, self._forms))
        # None if there is nothing to find: an empty pattern would match everywhere.
        self._pattern = re.compile(alternatives, re.IGNORECASE) if self._forms else None
        self.count = 0
        """Number of answers in which a key was found."""

    def hide_in_body(self, body: bytes) -> bytes:
        """Return the body of an answer without keys."""
        if self._pattern is None:
            return body
        lowered = body.lower()
        if self._is_in(lowered):
            self.count += 1
            body = self._pattern.sub(_HIDDEN, body)
            lowered = body.lower()
        if self._has_escapes(lowered) and self._is_in(self._without_escapes(lowered)):
            self.count += 1
            body = self._pattern.sub(_HIDDEN, _ESCAPE.sub(_unescape, body))
            body = self._pattern.sub(_HIDDEN, _OTHER_ESCAPE.sub(_decode, body))
            # Escapes inside of escapes, for which no ordinary answer has a reason.
            if self._is_in(self._without_escapes(body.lower())):
                return _HIDDEN
        return body

    def _has_escapes(self, lowered: bytes) -> bool:
        # Each test is much quicker than the next: marks of escapes, one search for those of letters
        # of keys, and later a replacement for each.
        has_marks = any(mark in lowered for mark in _ESCAPE_MARKS)
        return has_marks and self._escape.search(lowered) is not None

    def _without_escapes(self, lowered: bytes) -> bytes:
        # Whether backslashes are escaped themselves does not matter for finding a key.
        for escape, letter in self._escapes:
            lowered = lowered.replace(escape, letter)
        return lowered

    def _is_in(self, lowered: bytes) -> bool:
        return any(mark in lowered and form in lowered for mark, form in self._marked)

    def hide_in_text(self, text: str) -> str:
        """Return a text without keys."""
        if self._pattern is None:
            return text
        body = text.encode("utf-8", "surrogatepass")
        hidden = self.hide_in_body(body)
        return text if hidden is body else hidden.decode("utf-8", "surrogatepass")

    def hide_in_reply(self, reply: Reply) -> Reply:
        """Return a reply without keys that its body did not show, such as over several parts."""
        if self._pattern is None:
            return reply
        is_plain = reply.message is None and reply.logprobs is None and reply.reasoning is None
        if is_plain and self.hide_in_text(reply.text) is reply.text:
            return reply
        text, reasoning, refusal = (
            None if part is None else self.hide_in_text(part)
            for part in (reply.text, reply.reasoning, reply.refusal)
        )
        message, logprobs = reply.message, reply.logprobs
        if message is not None and self._is_split(json.loads(message)):
            message = json.dumps({"content": HIDDEN})
        if logprobs is not None and self._is_split(logprobs):
            logprobs = None
        return replace(
            reply, text=text or "", reasoning=reasoning, refusal=refusal, message=message,
            logprobs=logprobs,
        )  # fmt: skip

    def _is_split(self, value: Any) -> bool:
        """Return whether texts under equal keys, such as `arguments`, spell a key together."""
        texts: dict[str, list[str]] = {}
        for name, text in _texts(value, ""):
            texts.setdefault(name, []).append(text)
        joined = ("".join(parts) for parts in texts.values())
        return any(self.hide_in_text(text) != text for text in joined)


def _texts(value: Any, name: str) -> Iterator[tuple[str, str]]:
    """Yield all texts in a JSON value, with the name of the nearest key."""
    waiting = [(name, value)]
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, str):
            yield name, value
        elif isinstance(value, list):
            waiting += [(name, entry) for entry in reversed(value)]
        elif isinstance(value, dict):
            waiting += reversed(value.items())


def _unescape(match: re.Match[bytes]) -> bytes:
    if match[0] == rb"\/":
        return b"/"
    if match[1] is None:
        return match[0]
    letter = bytes.fromhex(match[1].decode())
    # These two must stay escaped in JSON.
    return b"\\" + letter if letter in b'"\\' else letter


def _decode(match: re.Match[bytes]) -> bytes:
    code = int(match[1], 16) if match[1] else int(match[2])
    return bytes([code]) if 32 <= code < 127 else match[0]


def _escape_pattern(letters: Collection[str]) -> str:
    r"""Return a pattern of the escapes of letters, such as `\\u00(?:4[89]|6[1c])`, and of `\/`.

    The codes stand after `%`, `\\x` and `&#x`, too; every `&#` with decimal digits counts.
    """
    digits: dict[str, str] = {}
    for code in sorted(f"{ord(letter):02x}" for letter in letters if letter < "\x7f"):
        digits[code[0]] = digits.get(code[0], "") + code[1]
    codes = "|".join(f"{first}[{second}]" for first, second in digits.items())
    return rf"\\(?:/|(?:u00|x)(?:{codes}))|%(?:{codes})|&#(?:x(?:{codes})|[0-9])"


def _writings(key: str) -> Iterator[str]:
    """Yield the writings of a key that are recognized."""
    raw = key.encode()
    yield key
    yield json.dumps(key)[1:-1]
    yield json.dumps(json.dumps(key)[1:-1])[1:-1]  # JSON in a text of JSON
    for safe in ("", "/"):
        yield quote(key, safe=safe)
    yield "".join(f"%{byte:02x}" for byte in raw)
    yield raw.hex()
    yield "".join(f"\\x{byte:02x}" for byte in raw)
    yield "".join(f"\\\\x{byte:02x}" for byte in raw)
    for backslash in ("\\\\", "\\"):
        yield "".join(f"{backslash}u{ord(letter):04x}" for letter in key)
    yield "".join(f"&#{byte};" for byte in raw)
    yield "".join(f"&#x{byte:x};" for byte in raw)
    yield key.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")
    for comma in (",", ", "):
        yield comma.join(map(str, raw))
    for shift in range(3):
        # At each of the three places in a group; letters that neighbours change are left out.
        text = base64.b64encode(bytes(shift) + raw).decode()
        first = -(-8 * shift // 6)
        text = text[first : 4 * ((shift + len(raw)) // 3) + (shift + len(raw)) % 3]
        yield text
        yield text.translate(str.maketrans("+/", "-_"))
