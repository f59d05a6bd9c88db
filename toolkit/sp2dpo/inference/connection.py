"""How requests reach a server: proxies, redirects, and the waits that servers ask for."""

import base64
import errno
import ipaddress
import math
import os
import resource
import socket
import time
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from urllib.parse import unquote, urljoin, urlsplit

_RESERVED_FILES = 64
"""Files that a run has open besides its connections: the store, logs, the terminal, libraries."""
_MOST_FILES = 65_536
"""Limit on open files that a run asks for; it has some thousands of connections at most."""
_FEWEST_CONNECTIONS = 4
_SHORTAGES = {
    errno.EMFILE: "too many open files in this process: raise `ulimit -n`, or lower max_in_flight",
    errno.ENFILE: "too many open files on this machine: close other programs, or raise fs.file-max",
    errno.EADDRNOTAVAIL: "this machine has no free port, or no address, for a connection: lower"
    " max_in_flight, or correct base_url",
    errno.ENOBUFS: "this machine has no buffer for another connection: lower max_in_flight",
    errno.ENOMEM: "this machine has no memory for another connection: lower max_in_flight",
    errno.ENOSPC: "this machine has no space left for a connection: free some",
}
"""Errors of this machine, which neither a server nor a request causes, and what to do."""
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


def most_connections() -> int:
    """Return how many connections this process can have open, and raise its limit if it may.

    Beyond it, requests wait for a connection in place of failing.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < _MOST_FILES:
        most = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
        # Some systems allow fewer than they say.
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
            soft = most
    files = _MOST_FILES if soft == resource.RLIM_INFINITY else soft
    return max(_FEWEST_CONNECTIONS, files - _RESERVED_FILES)


def shortage(error: BaseException) -> str | None:
    """Return which resource of this machine an error shows to be exhausted; None if none."""
    causes = [error, *(getattr(error, name, None) for name in ("os_error", "__cause__"))]
    for cause in causes:
        # The resolver of names has numbers of its own.
        if isinstance(cause, socket.gaierror):
            if cause.errno in (socket.EAI_MEMORY, socket.EAI_SYSTEM):
                return f"names cannot be resolved on this machine ({cause}): raise `ulimit -n`"
        elif isinstance(cause, OSError) and cause.errno in _SHORTAGES:
            return _SHORTAGES[cause.errno]
    return None


def is_loopback(host: str) -> bool:
    """Return whether a host is this machine itself: localhost, 127.0.0.1, ::1, 0.0.0.0, ..."""
    host = host.rstrip(".")
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
            is_other = urlsplit(target).hostname != urlsplit(address).hostname
            return (
                f"it redirects to {'another host, ' * is_other}{target}, and redirects are not"
                f" followed: {'if you trust that host, ' * is_other}write base_url:"
                f" {path.removesuffix(suffix)}"
            )
    return (
        f"it redirects to {target}, which is no address of this API, but perhaps a page to sign in:"
        " correct base_url"
    )


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
