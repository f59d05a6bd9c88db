"""A teacher in a storm: an OpenAI-compatible server that fails on a seeded schedule.

What a request gets depends on its last message and on how often that was asked, so every run can be
foretold and repeated. In the end each request gets a valid reply, but for chosen shares that are
never readable, always declined, or always an error. Each request is noted in a log, one line each:

    seconds  SHA-256 of the last message  seed or -  what was done  SHA-256 of the text sent or -

`GET /stats` counts what was done.

    python tests/servers/faulty_teacher.py --log requests.log --faulty 0.3 --never 0.02 \\
        --storms 0.05
"""

import argparse
import asyncio
import hashlib
import json
import random
import socket
import struct
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

MODEL = "scripted"
UNREADABLE = {
    "prose": "not-json",
    "fenced": "not-json",
    "control": "not-json",
    "out-of-scale": "schema",
    "empty": "empty",
    "length": "length",
}
"""Replies that hold no annotation, and the reason each must be refused for."""
PASSING = ("429", "500", "503", "reset", "closed", "half", "truncated", "page", "hang", "drip")
"""Faults of the server or the line: no reply at all."""
OFTEN = (60, 60, 60, 60, 60, 60, 60, 60, 1, 1)
"""How often each of these is drawn: what a client waits for in vain comes seldom."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A line of the log."""

    at: float
    question: str
    seed: int | None
    done: str
    text: str | None


def read_log(path):
    """All requests of a run, in order."""
    lines = (line.split() for line in path.read_text().splitlines())
    return [
        Asked(
            at=float(at),
            question=question,
            seed=None if seed == "-" else int(seed),
            done=done,
            text=None if text == "-" else text,
        )
        for at, question, seed, done, text in lines
    ]


def digest(text):
    return hashlib.sha256(text.encode()).hexdigest()


def plan(question, options):
    """What a question gets each time it is asked; the last for ever."""
    dice = random.Random(f"{options.seed} {question}")
    fate = dice.random()
    faults = dice.choices(PASSING, OFTEN, k=dice.randint(1, 3))
    faults = faults if dice.random() < options.faulty else []
    if fate < options.declined:
        return [str(options.decline_with)]
    if fate < options.declined + options.poisoned:
        return ["500"]
    if fate < options.declined + options.poisoned + options.never:
        return [*faults, *dice.choices(list(UNREADABLE), k=20)]
    if options.script:
        return options.script.split(",")
    if dice.random() < options.faulty:  # two at most: the third attempt can be read
        faults += dice.choices(list(UNREADABLE), k=dice.randint(1, 2))
        dice.shuffle(faults)
    return [*faults, "slow" if dice.random() < options.slow else "valid"]


def content(done, question, serial):
    """The text of a reply; the serial number makes each one of its kind."""
    place = int(question[:8], 16)
    said = {
        "rationale": f"reply {serial} to {question[:8]}",
        "category": ("safety", "style", "none")[place % 3],
        "magnitude": place % 11,
        "confidence": place // 11 % 11,
    }
    if done == "prose":
        return f"I would say, for the time number {serial}, that the first one is better."
    if done == "empty":
        return ""
    if done == "length":
        return json.dumps(said)[:-9]
    if done == "fenced":
        return f"```json\n{json.dumps(said)}\n```"
    if done == "control":
        return json.dumps(said).replace("reply", "reply\n\t\x01")
    if done == "out-of-scale":
        return json.dumps(said | {"magnitude": 1000})
    return json.dumps(said)


def completion(done, text):
    """The body that carries a text."""
    choice = {
        "message": {"role": "assistant", "content": text},
        "finish_reason": "length" if done == "length" else "stop",
    }
    usage = {"prompt_tokens": 100, "completion_tokens": 20}
    return json.dumps({"model": MODEL, "choices": [choice], "usage": usage}).encode()


class Teacher:
    def __init__(self, options):
        self.options = options
        self.log = options.log.open("a", buffering=1)
        self.asked = 0
        self.seen = Counter()
        self.done = Counter()
        self.plans = {}
        self.port = options.port
        self.http = web.Server(self.answer, access_log=None)
        self.away_since = None
        self.stubborn = {}

    async def listen(self):
        loop = asyncio.get_running_loop()
        self.listening = await loop.create_server(self.http, "127.0.0.1", self.port)
        self.port = self.listening.sockets[0].getsockname()[1]

    async def answer(self, request):
        if request.path == "/stats":
            return web.json_response(self.done)
        if request.path == "/v1/models":
            return web.json_response({"data": [{"id": MODEL}]})
        body = await request.json()
        said = body["messages"][-1]["content"]
        question = digest(said)
        done = self.choose(question, said)
        text = None
        if done in ("valid", "slow", *UNREADABLE):
            text = content(done, question, self.asked)
        noted = digest(text) if text is not None else "-"
        seed = body.get("seed", "-")
        self.done[done] += 1
        self.log.write(f"{time.time():.3f} {question} {seed} {done} {noted}\n")
        if done == "refused":
            return await self.vanish(request)
        await asyncio.sleep(self.options.delay)
        return await self.act(request, done, completion(done, text))

    def choose(self, question, said):
        """What this request gets, by the outage, the storm, or its own plan."""
        options, number = self.options, self.asked
        self.asked += 1
        if self.away():
            return options.then
        if number % options.window == 0:
            dice = random.Random(f"{options.seed} window {number // options.window}")
            self.storm = dice.random() < options.storms
        if self.storm:
            return "429"
        if question not in self.plans:
            poison = [how for text, how in options.poison_texts.items() if text in said]
            self.plans[question] = poison or plan(question, options)
        planned = self.plans[question]
        if planned == ["stubborn"]:
            since = self.stubborn.setdefault(question, time.monotonic())
            return "500" if time.monotonic() < since + options.lasting else "valid"
        seen = self.seen[question]
        self.seen[question] += 1
        return planned[min(seen, len(planned) - 1)]

    def away(self):
        """Whether the outage after `--good` replies is on; it lasts for `--lasting` seconds."""
        options = self.options
        if options.then is None or self.done["valid"] < options.good:
            return False
        if self.away_since is None:
            self.away_since = time.monotonic()
        return time.monotonic() < self.away_since + options.lasting

    async def act(self, request, done, body):
        if done.isdigit():
            return web.Response(status=int(done), text="scripted fault")
        if done in ("reset", "closed", "half"):
            return self.hang_up(request, done, body)
        if done == "hang":
            await asyncio.Event().wait()
        if done in ("slow", "drip"):
            return await self.trickle(request, body, pause=0.06 if done == "slow" else 0.6)
        if done == "truncated":
            body = body[: len(body) // 2]
        if done == "page":
            return web.Response(text="<html>a proxy's page</html>", content_type="text/html")
        return web.Response(body=body, content_type="application/json")

    def hang_up(self, request, done, body):
        """Ends the connection before an answer, or in the middle of one."""
        if done == "half":
            head = (
                f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
            )
            request.transport.write(head.encode() + b"\r\n\r\n" + body[: len(body) // 2])
        if done == "reset":
            at_once = struct.pack("ii", 1, 0)
            line = request.transport.get_extra_info("socket")
            line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
            request.transport.abort()
        request.transport.close()
        return web.Response()

    async def trickle(self, request, body, *, pause):
        """A body in five pieces; byte by byte where the pause is long: no time-out is so long."""
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        response.content_length = len(body)
        size = len(body) // 4 if pause < 0.1 else 1
        try:
            await response.prepare(request)
            for start in range(0, len(body), size):
                await asyncio.sleep(pause)
                await response.write(body[start : start + size])
            await response.write_eof()
        except ConnectionError:
            pass  # whoever asked has given up
        return response

    async def vanish(self, request):
        """Nobody listens any more, and all lines are cut, until the outage is over."""
        if self.listening.is_serving():
            self.listening.close()
            for line in self.http.connections:
                if line.transport is not None:
                    line.transport.abort()
            asyncio.get_running_loop().call_later(
                self.options.lasting, lambda: asyncio.ensure_future(self.listen())
            )
        return web.Response(status=503)


async def serve(options):
    teacher = Teacher(options)
    await teacher.listen()
    print(f"http://127.0.0.1:{teacher.port}/v1", flush=True)
    await asyncio.Event().wait()


def parsed(words=None):
    """The options of a teacher, from the command line or from the words given."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--log", type=Path)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0, help="of the schedule")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds before each answer")
    parser.add_argument("--script", help="what each request gets in turn: reset,prose,valid")
    parser.add_argument("--faulty", type=float, default=0.0, help="share with passing faults")
    parser.add_argument("--slow", type=float, default=0.0, help="share of bodies sent in pieces")
    parser.add_argument("--never", type=float, default=0.0, help="share that is never readable")
    parser.add_argument("--declined", type=float, default=0.0, help="share always declined")
    parser.add_argument("--decline-with", type=int, default=400)
    parser.add_argument("--poisoned", type=float, default=0.0, help="share that is always a 500")
    parser.add_argument(
        "--poison-texts",
        type=json.loads,
        default={},
        help="JSON, text -> how requests that hold it fail; `stubborn`: a 500 for --lasting s",
    )
    parser.add_argument("--storms", type=float, default=0.0, help="share of windows of 429")
    parser.add_argument("--window", type=int, default=200, help="requests in a window")
    parser.add_argument("--good", type=int, default=0, help="valid replies before --then")
    parser.add_argument("--then", help="an outage: a status, hang, or refused")
    parser.add_argument("--lasting", type=float, default=1e6, help="seconds of the outage")
    return parser.parse_args(words)


if __name__ == "__main__":
    asyncio.run(serve(parsed()))
