"""Read the bodies of answers, up to a limit, however large or compressed a server makes them."""

import json
import re
import zlib
from contextlib import suppress

import aiohttp

ACCEPTED = "gzip, deflate"
"""Value of Accept-Encoding. Others can be decompressed only as a whole, without a limit."""
_LARGEST = 512 * 2**20
_REPLY = 8 * 2**20
_PER_TOKEN = 256
MODELS_LIMIT = 8 * 2**20
"""Largest list of models in bytes; gateways with hundreds of models send about 1 MB."""
ERROR_LIMIT = 256 * 2**10
"""Bytes of an error that are read; messages quote the beginning."""
_CHARSETS = re.compile(
    "(utf|iso|latin|windows|cp|us-ascii|ascii|gb|big5|shift|euc|koi|ks_c)[a-z0-9_-]*", re.I
)
"""Character sets that are decoded. Others, such as Python's punycode, take quadratic time."""


class BodyTooLarge(Exception):
    """A body is larger than the limit for its kind.

    Attributes:
        limit: The limit, in bytes.
    """

    def __init__(self, limit: int) -> None:
        super().__init__(f"more than {limit / 2**20:.3g} MiB after decompression")
        self.limit = limit


class UnknownEncoding(Exception):
    """A body is compressed in a way that was not asked for."""


def reply_limit(token_limit: int, top_logprobs: int) -> int:
    """Return the largest body of a chat completion, in bytes.

    This is 8 MiB, and 256 bytes for each token and each of its alternatives, at most 512 MiB. An
    alternative with its bytes takes about 100.

    Args:
        token_limit: Largest number of tokens of the reply.
        top_logprobs: Number of alternatives of each token.
    """
    return min(_LARGEST, _REPLY + token_limit * _PER_TOKEN * (1 + top_logprobs))


async def read_body(response: aiohttp.ClientResponse, limit: int, *, cut: bool = False) -> bytes:
    """Return the body of an answer, decompressed and in UTF-8 if its character set is known.

    The session must not decompress by itself.

    Args:
        response: The answer.
        limit: Largest size in bytes, of the body as it is sent and as it is decompressed.
        cut: Whether the beginning of a larger body is returned.

    Raises:
        BodyTooLarge: If the body is larger.
        UnknownEncoding: If it is compressed in another way than `ACCEPTED`.
        aiohttp.ClientError: If it is damaged, or the connection is lost.
    """
    encoding = ", ".join(response.headers.getall("Content-Encoding", ())).strip().lower()
    decoder = None if encoding in ("", "identity") else _Decoder(encoding)
    if not cut and (response.content_length or 0) > limit:
        response.close()
        raise BodyTooLarge(limit)
    parts, received, size = [], 0, 0
    try:
        while part := await response.content.readany():
            received += len(part)
            if decoder is not None:
                part = decoder.decode(part, limit + 1 - size)
            parts.append(part)
            size += len(part)
            if size > limit or received > limit:
                # The rest is not read, so that the connection cannot be used again.
                response.close()
                if cut:
                    break
                raise BodyTooLarge(limit)
        else:
            if decoder is not None and received:
                decoder.finish()
    except zlib.error as error:
        raise aiohttp.ClientPayloadError(f"a damaged body ({encoding}): {error}") from error
    body = parts[0] if len(parts) == 1 else b"".join(parts)
    return to_utf8(body[:limit], response.charset)


class _Decoder:
    """Decompress a body part by part."""

    def __init__(self, encoding: str) -> None:
        if encoding not in ("gzip", "x-gzip", "deflate"):
            raise UnknownEncoding(encoding)
        self._is_gzip = encoding != "deflate"
        self._stream: zlib._Decompress | None = None

    def decode(self, part: bytes, limit: int) -> bytes:
        """Return at most `limit` bytes, or all if they are fewer."""
        if self._stream is None:
            # Servers also send deflate without the header of zlib, whose first half byte is 8.
            wbits = 31 if self._is_gzip else 15 if part[0] & 15 == 8 else -15
            self._stream = zlib.decompressobj(wbits)
        if self._stream.eof:
            raise zlib.error("more bytes after its end")
        text = self._stream.decompress(part, limit)
        if self._stream.unused_data:
            raise zlib.error("more bytes after its end")
        return text

    def finish(self) -> None:
        """Check that the stream is complete."""
        if self._stream is None or not self._stream.eof:
            raise zlib.error("its end is missing")


def to_utf8(body: bytes, charset: str | None) -> bytes:
    """Return the body of an answer in UTF-8, which JSON must be in, whatever its header claims.

    Args:
        body: The body.
        charset: Character set of the answer's Content-Type; used only if the body is not UTF-8.
    """
    # The parser of JSON would read UTF-16 and UTF-32, which hide a text from every search.
    encoding = json.detect_encoding(body)
    if not encoding.startswith("utf-8"):
        with suppress(UnicodeError):
            body = body.decode(encoding, "surrogatepass").encode("utf-8", "surrogatepass")
        # No parser must see more in it than was searched, as in UTF-16 within UTF-16.
        if not json.detect_encoding(body).startswith("utf-8"):
            body = body.replace(b"\0", b"").decode("latin-1").encode()
        return body
    try:
        body.decode()
    except UnicodeDecodeError:
        if charset is None or not _CHARSETS.fullmatch(charset):
            return body
        try:
            return body.decode(charset).encode()
        # An unknown or a wrong one: the body stays, and is refused where it is parsed.
        except (LookupError, UnicodeError):
            return body
    return body
