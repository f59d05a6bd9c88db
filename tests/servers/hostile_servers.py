"""Hostile teachers: servers that attack the client, each in its own way, at raw sockets.

Each case is a coroutine that answers one request. It may write anything, for ever. `GET /v1/models`
is answered as by an ordinary server, unless the case attacks it.
"""

import asyncio
import base64
import gzip
import json
import threading
import zlib
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from urllib.parse import quote

MODEL = "scripted"
KEY_VARIABLE = "SP2DPO_TEACHER_KEY"
KEY = 'sk-hostile/Teacher+Key"0123456789'
"""Key of the hostile teacher; JSON, URLs and base64 write some of its characters otherwise."""
ANNOTATION = {"rationale": "fine", "category": "style", "magnitude": 3, "confidence": 7}
MEGABYTE = 2**20


@dataclass(frozen=True, kw_only=True)
class Request:
    """A request as it was received."""

    path: str
    headers: dict[str, str]
    body: bytes


@dataclass(kw_only=True)
class Line:
    """The connection of one request."""

    writer: asyncio.StreamWriter
    stranger: str

    async def send(self, *parts: bytes) -> None:
        for part in parts:
            self.writer.write(part)
        await self.writer.drain()

    async def send_for_ever(self, part: bytes, *, pause: float = 0.0) -> None:
        while True:
            await self.send(part)
            await asyncio.sleep(pause)


Answer = Callable[[Line, Request], Awaitable[None]]


@dataclass(frozen=True, kw_only=True)
class Case:
    """A hostile teacher.

    Attributes:
        name: Name of the case.
        answer: Answers a request.
        models: Whether `answer` also gets the request for the list of models.
        message: What the output of the run must contain.
        is_kept: Whether its replies are usable nevertheless, so that the run succeeds.
        exits: Exit code of the run.
    """

    name: str
    answer: Answer
    models: bool = False
    message: str = ""
    is_kept: bool = False
    exits: int = field(default=1)


CASES: list[Case] = []


def case(name, **settings):
    def register(answer):
        CASES.append(Case(name=name, answer=answer, **settings))
        return answer

    return register


def response(body, *, status="200 OK", headers=(), length=None):
    """An HTTP response."""
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [
        f"HTTP/1.1 {status}",
        "Content-Type: application/json",
        f"Content-Length: {len(body) if length is None else length}",
        *headers,
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def completion(text=None, *, message=None, **fields):
    """A chat completion whose reply is valid unless another text is given."""
    content = json.dumps(ANNOTATION) if text is None else text
    choice = {
        "index": 0,
        "message": message or {"role": "assistant", "content": content},
        "finish_reason": "stop",
    }
    usage = {"prompt_tokens": 9, "completion_tokens": 9}
    return {"model": MODEL, "choices": [choice], "usage": usage} | fields


def error(text, **fields):
    return {"error": {"message": text, **fields}}


def bomb(compress, megabytes=2000):
    """A compressed body of zeros without its checksum; some 2 MB for 2 GB."""
    zeros = bytes(MEGABYTE)
    # After a full flush, equal blocks are compressed equally, so that the second one is repeated.
    first, block = (compress.compress(zeros) + compress.flush(zlib.Z_FULL_FLUSH) for _ in "12")
    return first + block * (megabytes - 1)


@cache
def gzip_bomb(megabytes=2000):
    return bomb(zlib.compressobj(9, wbits=31), megabytes)


@case("a gzip bomb as a reply: 2 MB become 2 GB", message="too-large")
async def gzip_reply(line, request):
    await line.send(response(gzip_bomb(), headers=["Content-Encoding: gzip"]))


@case("a deflate bomb as a reply", message="too-large")
async def deflate_reply(line, request):
    body = bomb(zlib.compressobj(9))
    await line.send(response(body, headers=["Content-Encoding: deflate"]))


@case("a gzip bomb inside gzip", message="Content-Encoding")
async def gzip_twice(line, request):
    body = gzip.compress(gzip_bomb())
    await line.send(response(body, headers=["Content-Encoding: gzip, gzip"]))


@case("a Brotli body, which was not asked for", message="Content-Encoding")
async def brotli_reply(line, request):
    # 24 bytes of Brotli stand for any number of zeros.
    await line.send(response(bytes(24), headers=["Content-Encoding: br"]))


@case("a gzip bomb as the list of models", models=True, message="list of models")
async def gzip_models(line, request):
    await line.send(response(gzip_bomb(), headers=["Content-Encoding: gzip"]))


@case("a list of models without end", models=True, message="list of models")
async def endless_models(line, request):
    await line.send(b"HTTP/1.1 200 OK\r\n\r\n" + b'{"data": [')
    await line.send_for_ever(b'{"id": "m"},' * 5000)


@case("200,000 models", models=True, message="does not serve")
async def million_models(line, request):
    models = ",".join(f'{{"id":"{number}"}}' for number in range(200_000))
    await line.send(response(f'{{"data":[{models}]}}'.encode()))


@case("a reply without end, in chunks", message="too-large")
async def endless_chunks(line, request):
    await line.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    await line.send_for_ever(b"10000\r\n" + b" " * 65536 + b"\r\n")


@case("a million events of a stream", message="too-large")
async def endless_events(line, request):
    await line.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
    await line.send_for_ever(b'data: {"choices": [{"delta": {"content": "x"}}]}\n\n' * 500)


@case("an error page of 2 GB", message="HTTP 400")
async def large_error(line, request):
    body = gzip_bomb()
    head = response(body, status="400 Bad Request", headers=["Content-Encoding: gzip"])
    await line.send(head)


@case("headers without end", message="no answer")
async def endless_headers(line, request):
    await line.send(b"HTTP/1.1 200 OK\r\n")
    await line.send_for_ever(b"X-Header: value\r\n" * 4000)


@case("one header line without end", message="no answer")
async def endless_header(line, request):
    await line.send(b"HTTP/1.1 200 OK\r\nX-Header: ")
    await line.send_for_ever(b"x" * 65536)


@case("interim answers without end (100 Continue)", message="no answer")
async def endless_interim(line, request):
    await line.send_for_ever(b"HTTP/1.1 100 Continue\r\n\r\n" * 2000)


@case("a body that drips, a byte every 0.1 s", message="no answer")
async def dripping_body(line, request):
    await line.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    await line.send_for_ever(b" ", pause=0.1)


@case("headers that drip", message="no answer")
async def dripping_headers(line, request):
    await line.send(b"HTTP/1.1 200 OK\r\nX-Header: ")
    await line.send_for_ever(b"x", pause=0.1)


@case("no answer at all", message="no answer")
async def silence(line, request):
    await asyncio.sleep(3600)


@case("a Content-Length of 10^18", message="too-large")
async def huge_length(line, request):
    await line.send(response(b"{}", length=10**18))
    await asyncio.sleep(3600)


@case("bytes that are no HTTP, with escapes of a terminal", message="no answer")
async def no_http(line, request):
    await line.send(b"\x1b]0;owned\x07\x1b[2J\r\n\r\n")


@case("a redirect of the chat to a stranger", message="redirect")
async def redirect_chat(line, request):
    where = f"Location: {line.stranger}/v1/chat/completions"
    await line.send(response(b"", status="307 Temporary Redirect", headers=[where]))


@case("a redirect of the list of models to a stranger", models=True, message="redirect")
async def redirect_models(line, request):
    where = f"Location: {line.stranger}{request.path}"
    await line.send(response(b"", status="308 Permanent Redirect", headers=[where]))


@case("a page that refreshes itself to a stranger", message="not a JSON object")
async def refreshing_page(line, request):
    page = f'<meta http-equiv="refresh" content="0; url={line.stranger}/v1/chat/completions">'
    headers = [f"Refresh: 0; url={line.stranger}/v1/chat/completions"]
    await line.send(response(page.encode(), headers=headers))


@case("the key in a usable reply", is_kept=True, exits=0, message="sent back")
async def key_in_reply(line, request):
    echo = json.dumps(ANNOTATION | {"rationale": f"Your key is {sent_key(request)}."})
    await line.send(response(completion(echo)))


@case("the key in prose, thinking, names and tool calls", message="sent back")
async def key_everywhere(line, request):
    key = sent_key(request)
    call = {"id": key, "type": "function", "function": {"name": key, "arguments": key}}
    message = {"role": "assistant", "content": f"{key}!", "reasoning_content": key,
               "tool_calls": [call], key: key}  # fmt: skip
    await line.send(response(completion(message=message, model=key, system_fingerprint=key)))


@case("the key in pieces, over the parts of a message and tool calls", message="sent back")
async def key_in_pieces(line, request):
    key = sent_key(request)
    pieces = [key[:9], key[9:20], key[20:]]
    parts = [{"type": "text", "text": piece} for piece in pieces]
    calls = [{"type": "function", "function": {"name": "f", "arguments": piece}}
             for piece in pieces]  # fmt: skip
    message = {"role": "assistant", "content": parts, "tool_calls": calls}
    await line.send(response(completion(message=message)))


@case("the key in pieces, over the parts of a text", message="sent back")
async def key_in_parts(line, request):
    key = sent_key(request)
    parts = [{"type": "text", "text": piece} for piece in ("I see ", key[:9], key[9:20], key[20:])]
    await line.send(response(completion(message={"role": "assistant", "content": parts})))


@case("the key in UTF-16", is_kept=True, exits=0, message="sent back")
async def key_in_utf16(line, request):
    echo = json.dumps(ANNOTATION | {"rationale": f"Your key is {sent_key(request)}."})
    body = json.dumps(completion(echo)).encode("utf-16-le")
    await line.send(response(body))


@case("the key in an error", message="***")
async def key_in_error(line, request):
    key = sent_key(request)
    body = error(f"Incorrect API key provided: {key}", param=key)
    await line.send(response(body, status="400 Bad Request"))


@case("the key in other writings: base64, hex, escapes of URLs and of JSON", message="***")
async def key_in_disguise(line, request):
    key = sent_key(request)
    writings = [
        base64.b64encode(key.encode()).decode(),
        base64.b64encode(f"Bearer {key}".encode()).decode(),
        base64.urlsafe_b64encode(f"x{key}".encode()).decode(),
        key.encode().hex(),
        quote(key, safe=""),
        "".join(f"%{byte:02x}" for byte in key.encode()),
        json.dumps(key),
        key.upper(),
    ]
    body = error(" ".join(writings))
    escaped = "".join(f"\\u{ord(letter):04x}" for letter in key)
    text = json.dumps(body).replace("0123456789", "0123456789").replace('"}}', f' {escaped}"}}}}')
    await line.send(response(text.encode(), status="400 Bad Request"))


@case("the key in a broken status line and headers", message="no answer")
async def key_in_headers(line, request):
    key = sent_key(request).encode()
    await line.send(b"HTTP/1.1 " + key + b"\r\n" + key + b"\r\n\r\n")


@case("the key in a redirect", message="redirect")
async def key_in_redirect(line, request):
    where = f"Location: {line.stranger}/?key={quote(sent_key(request), safe='')}"
    await line.send(response(b"", status="302 Found", headers=[where]))


@case("escapes of a terminal in an error", message="HTTP 400")
async def terminal_escapes(line, request):
    text = "\x1b]0;owned\x07\x1b[2J\x1b[1;31mpaid\u202e\x9b31m\r\nsp2dpo: all is well"
    await line.send(response(error(text), status="400 Bad Request"))


@case("JSON of a million levels", message="not a chat completion")
async def deep_reply(line, request):
    await line.send(response(b"[" * 1_000_000 + b"]" * 1_000_000))


@case("8 MB of empty lists", message="not a chat completion")
async def many_lists(line, request):
    await line.send(response(b'{"choices": [' + b"[]," * 2_600_000 + b"[]]}"))


@case("errors nested just below the limit of the parser", message="HTTP 4")
async def deep_error(line, request):
    levels = 900 if len(request.body) % 2 else 700
    body = b'{"error":' * levels + b'"e"' + b"}" * levels
    await line.send(response(body, status="400 Bad Request"))


@case("numbers of 400 digits as counts, codes and statuses", is_kept=True, exits=0)
async def giant_counts(line, request):
    giant = 10**400
    usage = {"prompt_tokens": giant, "completion_tokens": -giant, "total_tokens": giant}
    usage["prompt_tokens_details"] = {"cached_tokens": giant}
    await line.send(response(completion(usage=usage, created=giant)))


@case("an error whose code has 400 digits", message="HTTP 400")
async def giant_code(line, request):
    body = error("no", code=10**400, status=-(10**400), type=1e308)
    await line.send(response(body, status="400 Bad Request"))


@case("a number of 100,000 digits", message="not a JSON object")
async def giant_number(line, request):
    await line.send(response(b'{"choices": ' + b"9" * 100_000 + b"}"))


@case("a reply whose keys come twice", is_kept=True, exits=0)
async def double_keys(line, request):
    good = json.dumps(completion())[1:]
    await line.send(response(b'{"choices": 1, "choices": [], ' + good.encode()))


@case("a wait of a thousand years (Retry-After)", message="no answer")
async def long_wait(line, request):
    headers = ["Retry-After: 31536000000", "retry-after-ms: 1e300"]
    await line.send(response(error("later"), status="429 Too Many Requests", headers=headers))


@case("clocks that are wrong by centuries", message="no answer")
async def wrong_clock(line, request):
    headers = [
        "Date: Mon, 01 Jan 0001 00:00:00 GMT",
        "Retry-After: Fri, 31 Dec 9999 23:59:59 GMT",
    ]
    await line.send(response(error("later"), status="503 Busy", headers=headers))


@case("names of 200 kB, with escapes", message="unfinished")
async def long_names(line, request):
    await line.send(named_response("\x1b[31m" * 40_000))


@cache
def named_response(name):
    body = completion(model=name)
    body["choices"][0]["finish_reason"] = name
    return response(body)


@case("connections that are reset in the middle of a reply", message="no answer")
async def reset(line, request):
    await line.send(response(b"{", length=1000))
    line.writer.transport.abort()


def sent_key(request):
    """The key that came with a request; a name in its place if there was none."""
    return request.headers.get("authorization", "Bearer no-key").removeprefix("Bearer ")


class HostileServer:
    """One case behind a socket, and a stranger that notes who asks it."""

    def __init__(self, hostile):
        self.hostile = hostile
        self.requests = 0
        self.strangers_requests = 0
        self.writers = set()

    async def start(self):
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        self.other = await asyncio.start_server(self.note_stranger, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self.server.sockets[0].getsockname()[1]}/v1"
        self.stranger = f"http://127.0.0.1:{self.other.sockets[0].getsockname()[1]}"

    async def stop(self):
        self.server.close()
        self.other.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for writer in self.writers:
            # A transport that is closed has no event loop any more.
            with suppress(AttributeError):
                writer.transport.abort()
        # The transports close their sockets in the next steps of the loop.
        await asyncio.sleep(0.01)

    async def serve(self, reader, writer):
        self.writers.add(writer)
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            request = await read_request(reader)
            self.requests += 1
            line = Line(writer=writer, stranger=self.stranger)
            if request.path.endswith("/models") and not self.hostile.models:
                await line.send(response({"data": [{"id": MODEL}]}, headers=["Connection: close"]))
            else:
                await self.hostile.answer(line, request)
        writer.close()

    async def note_stranger(self, reader, writer):
        self.strangers_requests += 1
        writer.write(response(completion()))
        writer.close()


async def read_request(reader):
    head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    pairs = (text.partition(": ") for text in head[1:] if text)
    headers = {name.lower(): value for name, _, value in pairs}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Request(path=head[0].split()[1], headers=headers, body=body)


@contextmanager
def hostile_server(hostile):
    """Run a case in a thread of its own; gives the server."""
    server, started, stop = HostileServer(hostile), Future(), asyncio.Event()

    async def serve():
        await server.start()
        started.set_result(asyncio.get_running_loop())
        await stop.wait()
        await server.stop()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    loop = started.result()
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
