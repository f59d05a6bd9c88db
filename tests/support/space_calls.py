"""Calls on a running inspector: those of its page and of programs, forgotten ones and rude ones."""

import http.client
import json
import random
import socket
import struct
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from urllib.parse import urlsplit

import psutil


class Caller:
    """Somebody with one connection, who calls the server again and again."""

    def __init__(self, url, seed, pairs):
        self.address = urlsplit(url).netloc
        self.random, self.session = random.Random(seed), f"first-{seed}"
        self.connection = http.client.HTTPConnection(self.address, timeout=120)
        config = self.fetch("GET", "/config")
        (self.part,) = [
            component["id"]
            for component in config["components"]
            if component["props"].get("server_fns")
        ]
        self.count = pairs
        self.page("start")
        self.done = Counter()

    def fetch(self, method, path, body=None):
        """The answer to a request, read as JSON if it is."""
        headers = {} if body is None else {"Content-Type": "application/json"}
        text = None if body is None else json.dumps(body)
        try:
            self.connection.request(method, path, text, headers)
            response = self.connection.getresponse()
            content = response.read()
        except (OSError, http.client.HTTPException):
            self.connection.close()
            raise
        if response.status >= 400:
            raise ValueError(f"{path}: {response.status} {content[:200]}")
        with suppress(ValueError):
            return json.loads(content)
        return content.decode()

    def page(self, name, **arguments):
        """The answer of a function of the page, or its first part, once the data set is open."""
        path, end = "/gradio_api/component_server", time.monotonic() + 60
        while True:
            answer = self.fetch("POST", path, self.body(name, arguments))
            if not isinstance(answer, dict) or "again" not in answer or time.monotonic() > end:
                return answer
            time.sleep(0.2)

    def body(self, name, arguments):
        if self.random.random() < 0.05:  # another visitor
            self.session = f"{self.random.getrandbits(50):x}"
        return {
            "data": arguments, "fn_name": name, "component_id": self.part,
            "session_hash": self.session,
        }  # fmt: skip

    def ask(self):
        """Put a call of `find_pairs` into the queue; its answer waits under the number."""
        query = self.random.choice(["", "beta:..0.2", "sort:-gap", "category:style,safety"])
        data = [query, "", 5, self.random.randrange(self.count)]
        return self.fetch("POST", "/gradio_api/call/find_pairs", {"data": data})["event_id"]

    def place(self):
        return self.random.randrange(self.count)

    def ordinary(self):
        """One call as the page or a program makes it."""
        kind = self.random.random()
        if kind < 0.4:
            self.page("rows", places=[self.place() for _ in range(20)])
        elif kind < 0.75:
            self.page("pair", place=self.place())
        elif kind < 0.85:
            self.page("search", wanted=[["text", f"word{self.random.randrange(1000)}"]])
        elif kind < 0.9:
            self.page("find", id=f"{self.random.getrandbits(64):016x}")
        elif kind < 0.92:
            self.page("start")
        elif kind < 0.93:
            self.page("export", kind="jsonl", query=f"beta:..{self.random.random():.2f}")
        else:
            answer = self.fetch("GET", f"/gradio_api/call/find_pairs/{self.ask()}")
            if "event: complete" not in answer:
                raise ValueError(answer[:200])

    def forgotten(self):
        """A call whose answer nobody fetches."""
        self.ask()

    def rude(self):
        """A call whose caller hangs up: in the middle of it, before its answer, or within it."""
        kind = self.random.randrange(4)
        body = json.dumps(self.body("pair", {"place": self.place()})).encode()
        head = (
            f"POST /gradio_api/component_server HTTP/1.1\r\nHost: {self.address}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        ).encode()
        if kind == 3:
            head = f"GET /gradio_api/call/find_pairs/{self.ask()} HTTP/1.1\r\n".encode()
            head, body = head + f"Host: {self.address}\r\n\r\n".encode(), b""
        name, port = self.address.split(":")
        with socket.create_connection((name, int(port)), timeout=60) as rude:
            rude.sendall(head[: len(head) // 2] if kind == 0 else head)
            if kind == 1:
                rude.sendall(body[: len(body) // 2])
            if kind >= 2:
                rude.sendall(body)
                rude.recv(1)
            # With a lingering time of zero, closing resets the connection.
            rude.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def call(self, _=None):
        """Any of these: mostly ordinary, one in five forgotten, one in ten rude."""
        kind = self.random.choices(("ordinary", "forgotten", "rude"), (70, 20, 10))[0]
        try:
            getattr(self, kind)()
        except (OSError, http.client.HTTPException, ValueError):
            self.done["failed"] += 1
        self.done[kind] += 1


def serving_process(url):
    """The process that listens at an address."""
    port = int(urlsplit(url).netloc.rpartition(":")[2])
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if any(
                place.laddr.port == port and place.status == psutil.CONN_LISTEN
                for place in child.net_connections("tcp")
            ):
                return child
    raise LookupError(f"nobody listens at {url}")


def calls(url, pairs, count, *, every, callers=4):
    """Make calls about a data set of so many pairs.

    Yield (number of calls so far, megabytes of the server, seconds, kinds) at the steps.
    """
    process, started = serving_process(url), time.monotonic()
    people = [Caller(url, seed, pairs) for seed in range(callers)]

    def megabytes():
        memory = process.memory_info()
        return (memory.rss - memory.shared) / 1e6

    yield 0, megabytes(), 0.0, Counter()
    with ThreadPoolExecutor(callers) as crowd:
        for done in range(every, count + 1, every):
            share = every // callers
            list(crowd.map(lambda caller: [caller.call() for _ in range(share)], people))  # noqa: B023
            kinds = sum((caller.done for caller in people), Counter())
            yield done, megabytes(), time.monotonic() - started, kinds
    for caller in people:
        caller.connection.close()
