"""Refuse requests that the inspector has no use for, before Gradio sees them.

Gradio has routes for uploads, streams, proxies and code generation, reads bodies of any size, and
answers to any host name and any web site. `Guard` lets through the routes of the page, the API and
the MCP tool, under the names of this server, with small bodies that arrive in time.
"""

import asyncio
import ipaddress
import re
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

MAX_BODY = 1 << 20
"""Largest body of a request in bytes; the betas that the page sends are 0.7 MB at a time."""
BODY_SECONDS = 20.0
"""Time that a client has to send a body."""
MAX_FORWARDED = 300
"""Largest number of characters of a header that names a host."""
HUB = "https://huggingface.co"
_READ = re.compile(
    r"/|/(config|gradio_api/(info|app_id|user|login_check))/?"
    r"|/(theme\.css|favicon\.ico|robots\.txt|manifest\.json|pwa_icon(/\d+)?)"
    r"|/(assets|static|svelte)/.+"
    r"|/gradio_api/(theme\.css|openapi\.json|startup-events|queue/(data|status))"
    r"|/gradio_api/call/(v2/)?find_pairs/\w+"
)
_CALLED = re.compile(
    r"/gradio_api/(component_server/?|queue/join|cancel|reset/?|((run|api|call|call/v2)/find_pairs/?))"
)
_MCP = re.compile(r"/gradio_api/mcp(/|/(http|sse|messages|schema)/?)?")
_FILE = "/gradio_api/file="
QUEUED = re.compile(r"/gradio_api/(queue/join|call/.+)")
"""Paths whose answers Gradio keeps until they are fetched."""


@dataclass(frozen=True)
class Names:
    """Host names of this server.

    Attributes:
        hosts: Names and addresses in lower case.
        any_address: Whether every IP address is one of them. A site that rebinds its own name to
            this server (DNS rebinding) is never called by an address.
        origins: Other sites that may call the server.
        frames: Sites that may show the page in a frame, in the notation of Content-Security-Policy.
    """

    hosts: frozenset[str]
    any_address: bool
    origins: frozenset[str] = frozenset()
    frames: str = "'self'"

    def has(self, host: str) -> bool:
        """Return whether a host, without its port, is this server."""
        if host in self.hosts:
            return True
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            return False
        return self.any_address or address.is_loopback


def find_names(bound: str, env: Mapping[str, str]) -> Names:
    """Return the names of a server.

    Args:
        bound: Address that it listens on.
        env: Environment; SP2DPO_HOSTS adds names, separated by commas, and SPACE_HOST is set on
            the Hub.
    """
    listed = f"{env.get('SP2DPO_HOSTS', '')},{env.get('SPACE_HOST', '')}".lower().split(",")
    hosts = {"localhost", bound.lower().strip("[]")} | {name.strip() for name in listed}
    everywhere = bound.strip("[]") in ("", "0.0.0.0", "::")
    if everywhere:
        machine = socket.gethostname().lower()
        hosts |= {machine, f"{machine}.local"}
    hosts -= {"", "0.0.0.0", "::"}
    if "SPACE_HOST" in env or "SPACE_ID" in env:
        frames = f"'self' {HUB} https://*.hf.space"
        return Names(frozenset(hosts), True, frozenset({HUB}), frames)
    added = {f"{scheme}://{name.strip()}" for name in listed for scheme in ("http", "https")}
    return Names(frozenset(hosts), everywhere, frozenset(added))


def split_host(text: str) -> str | None:
    """Return the host of `host:port` in lower case; None if the text is nothing of the kind."""
    if len(text) > MAX_FORWARDED or not re.fullmatch(
        r"[\w.-]+(:\d+)?|\[[\da-fA-F:.]+\](:\d+)?", text
    ):
        return None
    host = urlsplit(f"//{text}").hostname
    return host.rstrip(".") if host else None


class Refused(Exception):
    """A request that is not answered.

    Attributes:
        status: Status of the response.
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Guard:
    """An ASGI application that passes on to Gradio what it does not refuse."""

    def __init__(
        self, app: Any, names: Names, files: str, before_queue: Callable[[], None] = lambda: None
    ) -> None:
        """Create a guard.

        Args:
            app: Gradio's application.
            names: Names of this server.
            files: Folder whose files visitors may download.
            before_queue: Called before each request that puts an answer into Gradio's queue.
        """
        self._app, self._names, self._before_queue = app, names, before_queue
        self._files = files.rstrip("/") + "/"
        self._headers = [
            (b"content-security-policy", f"frame-ancestors {names.frames}".encode()),
            (b"x-content-type-options", b"nosniff"),
            (b"referrer-policy", b"same-origin"),
            (b"cross-origin-resource-policy", b"same-origin"),
        ]

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # the inspector has no websockets
            await send({"type": "websocket.close", "code": 1008})
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = message | {"headers": [*message.get("headers", []), *self._headers]}
            await send(message)

        try:
            fields = self._check_headers(scope)
            self._check_route(scope, fields)
            body = await self._read_body(receive, fields)
        except Refused as refusal:
            await _refuse(refusal, send_guarded)
            return
        if scope["method"] == "POST" and QUEUED.fullmatch(scope["path"]):
            self._before_queue()
        await self._app(scope, _replay(body, receive), send_guarded)

    def _check_headers(self, scope: Message) -> dict[str, str]:
        """Return the headers by name, after a check of the host and of the site that asks."""
        fields: dict[str, str] = {}
        for raw_name, value in scope["headers"]:
            name = raw_name.decode("latin-1").lower()
            if name in fields and name in ("host", "origin", "content-length"):
                raise Refused(400, f"more than one header {name}")
            fields[name] = value.decode("latin-1")
        host = split_host(fields.get("host", ""))
        if host is None or not self._names.has(host):
            shown = (host or "without a name")[:100]
            raise Refused(403, f"this server does not answer to {shown}: name it with --allow-host")
        # Gradio puts the forwarded name into the addresses that it gives to the page.
        forwarded = fields.get("x-forwarded-host")
        if forwarded is not None:
            first = split_host(forwarded.split(",")[0].strip())
            if first is None or not self._names.has(first):
                scope["headers"] = [
                    pair for pair in scope["headers"] if pair[0].lower() != b"x-forwarded-host"
                ]
        self._check_site(scope["method"], fields)
        return fields

    def _check_site(self, method: str, fields: Mapping[str, str]) -> None:
        """Refuse requests that another web site makes."""
        origin = fields.get("origin")
        if origin is not None:
            same = _netloc(origin) == _netloc(f"//{fields['host']}")
            if not same and origin.lower() not in self._names.origins:
                raise Refused(403, f"{origin[:100]} may not call this server")
            return
        # A link from another site may be followed; a script or picture may not be loaded.
        followed = fields.get("sec-fetch-mode") == "navigate" and method in ("GET", "HEAD")
        if fields.get("sec-fetch-site") in ("cross-site", "same-site") and not followed:
            raise Refused(403, "another site may not call this server")

    def _check_route(self, scope: Message, fields: Mapping[str, str]) -> None:
        """Refuse every route that neither the page nor the API or the MCP tool needs."""
        method, path = scope["method"], scope["path"]
        if _MCP.fullmatch(path):
            allowed = method in ("GET", "HEAD", "POST", "DELETE", "OPTIONS")
        elif path.startswith(_FILE):
            requested = path.removeprefix(_FILE)
            inside = requested.startswith(self._files) and "/" not in requested[len(self._files) :]
            allowed = inside and method in ("GET", "HEAD", "OPTIONS")
        elif _CALLED.fullmatch(path):
            allowed = method in ("POST", "OPTIONS")
        else:
            allowed = _READ.fullmatch(path) is not None and method in ("GET", "HEAD", "OPTIONS")
        if not allowed:
            raise Refused(404, "the inspector has no such address")
        if fields.get("content-type", "").lower().startswith("multipart/"):
            raise Refused(415, "the inspector takes no files")

    async def _read_body(self, receive: Receive, fields: Mapping[str, str]) -> bytes:
        """Return the whole body of a request."""
        size = fields.get("content-length")
        if size is None and "transfer-encoding" not in fields:
            return b""
        if size is not None and (not size.isdecimal() or int(size[:20]) > MAX_BODY):
            raise Refused(413, f"a request takes at most {MAX_BODY:,} bytes")
        body = bytearray()
        try:
            async with asyncio.timeout(BODY_SECONDS):
                while True:
                    message = await receive()
                    if message["type"] != "http.request":
                        raise Refused(400, "the client has gone")
                    body += message.get("body", b"")
                    if len(body) > MAX_BODY:
                        raise Refused(413, f"a request takes at most {MAX_BODY:,} bytes")
                    if not message.get("more_body", False):
                        return bytes(body)
        except TimeoutError as error:
            raise Refused(408, f"a body must arrive within {BODY_SECONDS:.0f} s") from error


def _netloc(url: str) -> tuple[str | None, int]:
    """Return host and port of an address; a missing port is 80 or 443, which count as the same."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return None, -1
    return parts.hostname, 80 if port in (None, 443) else port


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a channel that yields a body that has been read, and then what the client does."""
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> Message:
        return waiting.pop() if waiting else await receive()

    return receive_again


async def _refuse(refusal: Refused, send: Send) -> None:
    content = f"{refusal}\n".encode()
    headers = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", str(len(content)).encode()),
        # What is left of a refused body would be read as the next request.
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": content})
