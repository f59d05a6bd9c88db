"""How requests reach a server: proxies, redirects, and the waits that servers ask for."""

import base64
import ipaddress
import math
import os
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from urllib.parse import unquote, urljoin, urlsplit

_LONGEST_WAIT = 300.0
"""Upper limit of the wait that a server asks for, in seconds."""


@dataclass(frozen=True, kw_only=True)
class Proxy:
    """The proxy for requests to one address.

    Attributes:
        url: Its address, without a name and a password.
        headers: Headers with its name and password; empty if it needs none.
    """

    url: str
    headers: dict[str, str] = field(default_factory=dict)


def find_proxy(address: str) -> Proxy | None:
    """Return the proxy that HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY name for an address.

    It is None for loopback addresses, whatever the variables say.

    Raises:
        ValueError: If the proxy is not an HTTP proxy.
    """
    parts = urlsplit(address)
    host = parts.hostname or ""
    proxies = urllib.request.getproxies_environment()
    url = proxies.get(parts.scheme) or proxies.get("all")
    if not url or is_loopback(host) or _is_excluded(host, parts.port, proxies.get("no", "")):
        return None
    variable = f"{parts.scheme.upper()}_PROXY or ALL_PROXY"
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        port = "" if parts.port is None else f":{parts.port}"
    except ValueError as error:
        raise ValueError(f"{variable} holds no address of a proxy: {error}") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(
            f"{variable} names a proxy of the kind {parts.scheme}://, and only http:// and https://"
            f" proxies are supported: set NO_PROXY={host} to connect without it"
        )
    name = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    headers = {}
    if parts.username:
        login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        encoded = base64.b64encode(login.encode()).decode()
        headers["Proxy-Authorization"] = f"Basic {encoded}"
    return Proxy(url=f"{parts.scheme}://{name}{port}", headers=headers)


def is_loopback(host: str) -> bool:
    """Return whether a host is this machine itself: localhost, 127.0.0.1, ::1, 0.0.0.0, ..."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None) or address
    return mapped.is_loopback or mapped.is_unspecified


def _is_excluded(host: str, port: int | None, no_proxy: str) -> bool:
    """Return whether NO_PROXY names a host: by name or domain, with or without port, or network."""
    for entry in filter(None, no_proxy.lower().replace(",", " ").split()):
        name = entry.removeprefix("*").removeprefix(".")
        if not name or any(
            full == name or full.endswith(f".{name}") for full in (host, f"{host}:{port}")
        ):
            return True
        # Clusters exclude networks, such as 10.0.0.0/8.
        if _is_in_network(host, entry):
            return True
    return False


def _is_in_network(host: str, entry: str) -> bool:
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(entry, strict=False)
    except ValueError:
        return False


def redirect_target(address: str, location: str | None) -> str:
    """Return what to do about a redirect, which is not followed.

    Args:
        address: Address that was requested.
        location: The answer's Location; None if it has none.
    """
    if not location:
        return "it redirects, but names no Location: correct base_url"
    try:
        target = urljoin(address, location)
        urlsplit(target)
    except ValueError:
        return f"it redirects to {location!r}, which is no address: correct base_url"
    for suffix in ("/models", "/chat/completions"):
        path = urlsplit(target)._replace(query="", fragment="").geturl().rstrip("/")
        if address.endswith(suffix) and path.endswith(suffix):
            return (
                f"it redirects to {target}, and redirects are not followed: write base_url:"
                f" {path.removesuffix(suffix)}"
            )
    return (
        f"it redirects to {target}, which is no address of this API, but perhaps a page to sign in:"
        " correct base_url"
    )


def to_utf8(body: bytes, charset: str | None) -> bytes:
    """Return the body of an answer in UTF-8, which JSON must be in, whatever its header claims.

    Args:
        body: The body.
        charset: Character set of the answer's Content-Type; used only if the body is not UTF-8.
    """
    try:
        body.decode()
    except UnicodeDecodeError:
        try:
            return body.decode(charset or "utf-8").encode()
        # An unknown or a wrong one: the body stays, and is refused where it is parsed.
        except (LookupError, UnicodeDecodeError):
            return body
    return body


def requested_wait(headers: Mapping[str, str]) -> float:
    """Return the seconds that a server asks to wait before a retry, at most 300; 0 for none.

    It reads Retry-After in seconds or as an HTTP date, and OpenAI's retry-after-ms. Values that are
    neither count as none, so that our own backoff applies.
    """
    milliseconds = _seconds(headers.get("retry-after-ms", ""))
    header = headers.get("Retry-After", "")
    wait = _seconds(header) if milliseconds is None else milliseconds / 1000
    if wait is None:
        # By the server's own clock where it sends its time, because clocks differ.
        date, now = _date(header), _date(headers.get("Date", ""))
        wait = 0.0 if date is None else date - (time.time() if now is None else now)
    return min(max(0.0, wait), _LONGEST_WAIT)


def _seconds(text: str) -> float | None:
    try:
        value = float(text.strip().removesuffix("s"))
    except ValueError:
        return None
    return None if math.isnan(value) else value


def _date(text: str) -> float | None:
    try:
        return parsedate_to_datetime(text).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError, OSError):
        return None


def proxy_notice(label: str, url: str, proxy: Proxy) -> str:
    """Return the notice that requests go through a proxy."""
    host = urlsplit(url).hostname
    return (
        f"{label}: requests to {host} go through the proxy {proxy.url} ({_variables()}); to connect"
        f" without it, add {host} to NO_PROXY"
    )


def proxy_hint(url: str, proxy: Proxy) -> str:
    """Return what to do about a failed request to a base URL that went through a proxy."""
    return (
        f"the request went through the proxy {proxy.url} ({_variables()}): correct it, or add"
        f" {urlsplit(url).hostname} to NO_PROXY"
    )


def _variables() -> str:
    names = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
    return ", ".join(name for name in os.environ if name.upper() in names)
