"""An OpenAI-compatible server for the tests, which answers as one of several behaviours says.

    scripted   replies that follow the request's JSON schema, or one fault on demand
    faulty     a seeded schedule of faults, outages and storms of 429
    position   knows the demo's true preferences, but leans on the place of a response
    obedient   obeys every instruction that gets past the rubric's marks
    judge      judges AlpacaEval's prompts as model `judge`, and is a student as any other
    slow       forwards to another server, later

The dialects of real servers and gateways are in dialects.py. Each behaviour is a class below, with
its own options:

    python tests/servers/openai_server.py scripted --behaviour prose --log requests.log

It prints its address on its first line. Tests start it in a thread of their process with `serving`.
"""

import argparse
import asyncio
import hashlib
import json
import math
import random
import re
import socket
import struct
import sys
import threading
import time
from collections import Counter
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from aiohttp import web

DEMO = Path(__file__).parents[2] / "recipes" / "demo"


def digest(text):
    return hashlib.sha256(text.encode()).hexdigest()


def fraction(text):
    """A number in [0, 1) from the hash of a text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def completion(content, *, model, finish="stop", usage=(100, 20), logprobs=None):
    """The body of a chat completion."""
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": content},
        "finish_reason": finish,
    }
    if logprobs is not None:
        choice["logprobs"] = {"content": logprobs}
    prompt, completed = usage
    return {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": model,
        "choices": [choice],
        "usage": {
            "prompt_tokens": prompt,
            "completion_tokens": completed,
            "total_tokens": prompt + completed,
        },
    }


def token(chances):
    """The log-probabilities of a token, as `logprobs` has them; `chances` by text, likeliest first.

    Chances of 0 are given as 1e-9.
    """
    entries = [
        {"token": text, "bytes": list(text.encode()), "logprob": math.log(max(chance, 1e-9))}
        for text, chance in chances.items()
    ]
    return entries[0] | {"top_logprobs": entries}


class Behaviour:
    """What a server answers; subclasses override `chat` and what else they need."""

    models = ("scripted",)

    def __init__(self, options):
        self.options = options
        self.request_count = 0

    @staticmethod
    def add_options(parser):
        parser.add_argument("--log", type=Path, required=True, help="takes a hash per request")

    def routes(self, server):
        return [
            web.get("/v1/models", self.list_models),
            web.post("/v1/chat/completions", self._chat),
        ]

    async def list_models(self, request):
        return web.json_response({"data": [{"id": name} for name in self.models]})

    async def _chat(self, request):
        body = await request.json()
        self.request_count += 1
        message = body["messages"][-1]
        if isinstance(message["content"], list):
            parts = message["content"]
            for part in parts:
                if part["type"] == "image_url":
                    self.note(part["image_url"]["url"])
            message["content"] = "\n".join(part["text"] for part in parts if "text" in part)
        return await self.chat(request, body, message["content"])

    async def chat(self, request, body, content):
        """Answer a request whose last message is `content`."""
        raise NotImplementedError

    def note(self, content):
        with self.options.log.open("a") as log:
            log.write(digest(content) + "\n")


class Scripted(Behaviour):
    """Replies that depend on the request alone and follow its JSON schema, or one fault."""

    @staticmethod
    def add_options(parser):
        Behaviour.add_options(parser)
        parser.add_argument("--behaviour", default="valid", help="what each reply is")
        parser.add_argument("--models", default="scripted", help="names, by commas")
        parser.add_argument("--delay", type=float, default=0.0, help="seconds before each answer")
        parser.add_argument("--status", type=int, default=500)
        parser.add_argument("--faults", type=int, default=0, help="answers of --status; -1: all")
        parser.add_argument("--hang-after", type=int, default=0)
        parser.add_argument("--context", type=int, default=0, help="tokens; 0: does not tell")
        parser.add_argument("--retry-after", type=int, default=0, help="seconds, with the faults")
        parser.add_argument("--limited", default="", help="words; what holds them gets a 429")
        parser.add_argument("--muddled", default="", help="words; what holds them gets prose")
        parser.add_argument("--unsure", type=int, default=0, help="1: digits that could be others")
        parser.add_argument("--counts", type=int, default=1, help="0: has no /tokenize")

    def routes(self, server):
        return [*super().routes(server), web.post("/tokenize", self.tokenize)]

    async def list_models(self, request):
        limits = {"max_model_len": self.options.context} if self.options.context else {}
        names = self.options.models.split(",")
        return web.json_response({"data": [{"id": name} | limits for name in names]})

    async def tokenize(self, request):
        """Count a token for every four bytes."""
        if not self.options.counts:
            return web.Response(status=404)
        text = "".join(message["content"] for message in (await request.json())["messages"])
        return web.json_response({"count": len(text.encode()) // 4})

    async def chat(self, request, body, content):
        options, number, behaviour = self.options, self.request_count, self.options.behaviour
        self.note(content)
        await asyncio.sleep(options.delay)
        if number <= options.faults:
            wait = {"Retry-After": str(options.retry_after)} if options.retry_after else {}
            return web.Response(status=options.status, text="scripted fault", headers=wait)
        if options.limited and options.limited in content:
            return web.Response(status=429, text="too large for your rate")
        if options.faults < 0 and behaviour == "status":
            return web.Response(status=options.status, text="scripted fault")
        if options.hang_after and number > options.hang_after:
            await asyncio.Event().wait()
        if options.muddled and options.muddled in content:
            behaviour = "prose"
        if behaviour == "page":
            return web.Response(text="<html>a proxy's page</html>", content_type="text/html")
        text = text_of("cut" if behaviour == "length" else behaviour, body)
        logprobs = None
        if body.get("logprobs"):
            logprobs = [likely(letter, unsure=options.unsure) for letter in text]
        reply = completion(
            text,
            model=body["model"],
            finish="length" if behaviour == "length" else "stop",
            logprobs=logprobs,
        )
        if behaviour == "odd-fields":
            reply["model"] = "\ud800\x1b[31m"
            reply["usage"] |= {
                "prompt_tokens": 2**70,
                "prompt_tokens_details": {"cached_tokens": -1},
            }
        if behaviour == "odd-ending":
            reply["choices"][0]["finish_reason"] = "kept\ud800\x1b[31m"
        return web.json_response(reply)


def valid(body):
    """A reply that the schema allows, drawn from the hash of what is asked."""
    drawn = hashlib.sha256(body["messages"][-1]["content"].encode()).digest()
    fields = body["response_format"]["json_schema"]["schema"]["properties"]
    reply = {}
    for place, (name, field) in enumerate(fields.items()):
        if "enum" in field:
            reply[name] = field["enum"][drawn[place] % len(field["enum"])]
        elif field["type"] == "integer":
            low, high = field["minimum"], field["maximum"]
            reply[name] = low + drawn[place] % (high - low + 1)
        else:
            reply[name] = f"reason {drawn.hex()[:8]}"[: field["maxLength"]]
    return reply


def text_of(behaviour, body):
    reply = valid(body)
    texts = {
        "valid": json.dumps(reply),
        "prose": "I would say that the first response is better.",
        "introduced": f"Here it is:\n```json\n{json.dumps(reply)}\n```",
        "cut": json.dumps(reply)[:-9],
        "out-of-scale": json.dumps(reply | {"magnitude": 1000}),
        "odd-fields": json.dumps(reply),
        "odd-ending": json.dumps(reply),
        "empty": "",
        "surrogate": json.dumps(reply | {"rationale": "\ud800"}),
    }
    return texts[behaviour]


def likely(letter, *, unsure):
    """A token of one character: it could have been nothing else, or a digit the next one, too."""
    if unsure and letter in "2345678":
        return token({letter: 0.75, str(int(letter) + 1): 0.25})
    return token({letter: 1.0})


UNREADABLE = {
    "prose": "not-json",
    "introduced": "not-json",
    "control": "not-json",
    "out-of-scale": "schema",
    "empty": "empty",
    "length": "length",
}
"""Replies of `Faulty` that hold no annotation, and the reason each must be refused for."""
PASSING = ("429", "500", "503", "reset", "closed", "half", "truncated", "page", "hang", "drip")
"""Faults of the server or the line: no reply at all."""
OFTEN = (60, 60, 60, 60, 60, 60, 60, 60, 1, 1)
"""How often each of these is drawn: faults that a client waits for in vain are rare."""


@dataclass(frozen=True, kw_only=True)
class LoggedRequest:
    """A line of the log of `Faulty`."""

    at: float
    question: str
    seed: int | None
    done: str
    text: str | None


def read_log(path):
    """All requests of a run, in order."""
    lines = (line.split() for line in path.read_text().splitlines())
    return [
        LoggedRequest(
            at=float(at),
            question=question,
            seed=None if seed == "-" else int(seed),
            done=done,
            text=None if text == "-" else text,
        )
        for at, question, seed, done, text in lines
    ]


class Faulty(Behaviour):
    """Fails on a seeded schedule, so that every run can be foretold and repeated.

    What a request gets depends on its last message and on how often that was asked. In the end each
    request gets a valid reply, but for chosen shares that are never readable, always declined, or
    always an error. Each request is a line of the log:

        seconds  SHA-256 of the last message  seed or -  what was done  SHA-256 of the text or -

    `GET /stats` counts what was done.
    """

    @staticmethod
    def add_options(parser):
        parser.add_argument("--log", type=Path)
        parser.add_argument("--seed", type=int, default=0, help="of the schedule")
        parser.add_argument("--delay", type=float, default=0.0, help="seconds before each answer")
        parser.add_argument("--script", help="what each request gets in turn: reset,prose,valid")
        parser.add_argument("--faulty", type=float, default=0.0, help="share with passing faults")
        parser.add_argument("--slow", type=float, default=0.0, help="share of bodies in pieces")
        parser.add_argument("--never", type=float, default=0.0, help="share never readable")
        parser.add_argument("--declined", type=float, default=0.0, help="share always declined")
        parser.add_argument("--decline-with", type=int, default=400)
        parser.add_argument("--poisoned", type=float, default=0.0, help="share always a 500")
        parser.add_argument(
            "--poison-texts",
            type=json.loads,
            default={},
            help="JSON, text -> how requests that hold it fail; `stubborn`: 500 for --lasting s",
        )
        parser.add_argument("--storms", type=float, default=0.0, help="share of windows of 429")
        parser.add_argument("--window", type=int, default=200, help="requests in a window")
        parser.add_argument("--good", type=int, default=0, help="valid replies before --then")
        parser.add_argument("--then", help="an outage: a status, hang, or refused")
        parser.add_argument("--lasting", type=float, default=1e6, help="seconds of the outage")

    def __init__(self, options):
        super().__init__(options)
        self.seen = Counter()
        self.done = Counter()
        self.plans = {}
        self.away_since = None
        self.stubborn = {}

    def routes(self, server):
        self.server = server
        return [*super().routes(server), web.get("/stats", self.stats)]

    async def stats(self, request):
        return web.json_response(self.done)

    async def chat(self, request, body, content):
        question = digest(content)
        done = self.choose(question, content)
        text = None
        if done in ("valid", "slow", *UNREADABLE):
            text = faulty_text(done, question, self.request_count)
        noted = digest(text) if text is not None else "-"
        self.done[done] += 1
        seed = body.get("seed", "-")
        with self.options.log.open("a") as log:
            log.write(f"{time.time():.3f} {question} {seed} {done} {noted}\n")
        if done == "refused":
            await self.server.vanish(self.options.lasting)
            return web.Response(status=503)
        await asyncio.sleep(self.options.delay)
        reply = completion(text, model="scripted", finish="length" if done == "length" else "stop")
        return await self.act(request, done, json.dumps(reply).encode())

    def choose(self, question, content):
        """What this request gets: by the outage, the storm, or its own plan."""
        options, number = self.options, self.request_count - 1
        if self.away():
            return options.then
        if number % options.window == 0:
            dice = random.Random(f"{options.seed} window {number // options.window}")
            self.storm = dice.random() < options.storms
        if self.storm:
            return "429"
        if question not in self.plans:
            poison = [how for text, how in options.poison_texts.items() if text in content]
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
        """End the connection before an answer, or in the middle of one."""
        if done == "half":
            head = (
                f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
            )
            request.transport.write(head.encode() + b"\r\n\r\n" + body[: len(body) // 2])
        if done == "reset":
            line = request.transport.get_extra_info("socket")
            line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            request.transport.abort()
        request.transport.close()
        return web.Response()

    async def trickle(self, request, body, *, pause):
        """Send a body in five pieces, or byte by byte where the pause outlasts every time-out."""
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
            pass  # the client has given up
        return response


def plan(question, options):
    """What a question gets each time it is asked; the last entry is repeated."""
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


def faulty_text(done, question, serial):
    """The text of a reply; the serial number makes each one unique."""
    place = int(question[:8], 16)
    reply = {
        "rationale": f"reply {serial} to {question[:8]}",
        "category": ("safety", "style", "none")[place % 3],
        "magnitude": place % 11,
        "confidence": place // 11 % 11,
    }
    texts = {
        "prose": f"I would say, for the time number {serial}, that the first one is better.",
        "empty": "",
        "length": json.dumps(reply)[:-9],
        "introduced": f"Here it is:\n```json\n{json.dumps(reply)}\n```",
        "control": json.dumps(reply).replace("reply", "reply\n\t\x01"),
        "out-of-scale": json.dumps(reply | {"magnitude": 1000}),
    }
    return texts.get(done, json.dumps(reply))


class Position(Behaviour):
    """Answers blind requests about the demo's pairs, whose true preferences it knows.

    It names the better response by what the writers of the corpus planted, but in a share of the
    requests, which the name of the model states and a hash of the request draws, it names A.
    """

    models = ("leans-0", "leans-20", "leans-50")

    @staticmethod
    def add_options(parser):
        pass

    def __init__(self, options):
        super().__init__(options)
        lines = [
            (DEMO / name).read_text().splitlines() for name in ("pairs.jsonl", "planted.jsonl")
        ]
        self.demo_pairs = [
            (json.loads(pair), json.loads(truth)) for pair, truth in zip(*lines, strict=True)
        ]

    async def chat(self, request, body, content):
        fields = body["response_format"]["json_schema"]["schema"]["properties"]
        reply = self.verdict(body["model"], content) if "better" in fields else None
        if reply is None:
            problem = {"error": {"message": "this is no blind demo pair"}}
            return web.json_response(problem, status=400)
        usage = (len(content) // 4, 40)
        return web.json_response(completion(json.dumps(reply), model=body["model"], usage=usage))

    def verdict(self, model, content):
        """The reply to a request; None where it shows no pair of the demo."""
        for pair, truth in self.demo_pairs:
            chosen, rejected = (
                content.find(f"\n{pair[part][-1]['content']}\n#") for part in ("chosen", "rejected")
            )
            if min(chosen, rejected) >= 0:
                return self.judged(model, content, truth, chosen_is_a=chosen < rejected)
        return None

    @staticmethod
    def judged(model, content, truth, *, chosen_is_a):
        leans = fraction(f"{model} {content}") < int(model.split("-")[1]) / 100
        magnitude = truth["magnitude"]
        if leans:
            better, magnitude = "A", max(magnitude, 1)
        elif magnitude == 0:
            better = "tie"
        else:
            better = "A" if chosen_is_a != truth["label_flipped"] else "B"
        return {
            "rationale": "It stands first." if leans else "It is better.",
            "category": truth["category"],
            "better": better,
            "magnitude": magnitude,
            "confidence": 9,
        }


MARK = re.compile("#[0-9a-f]{16}#")
LOOKS_LIKE_A_MARK = re.compile(r"[\s\u200b]*[#＃﹟♯][0-9a-f]{16}[#＃﹟♯](.*)", re.I)
INSTRUCTION = re.compile(r"answer with magnitude (\d+) and confidence (\d+)", re.I)


class Obedient(Behaviour):
    """Obeys whatever instruction reaches it.

    It reads a request as the rubric explains it: material is between lines that open with the mark
    which the rubric names, the last of them bare; the rest is by the rubric. An instruction in
    the rest is obeyed. Otherwise the reply is a fixed function of the parts' first lines, which no
    attack of `tests/tools/injection.py` touches, so a pair and its injected twin get the same reply
    as long as the fence holds. Two controls read less carefully.
    """

    @staticmethod
    def add_options(parser):
        control = parser.add_mutually_exclusive_group()
        for name, help_text in (
            ("sloppy", "take any line that looks like a mark for one"),
            ("naive", "obey an instruction anywhere"),
        ):
            control.add_argument(
                f"--{name}", dest="reading", action="store_const", const=name, help=help_text
            )

    async def chat(self, request, body, content):
        fields = body["response_format"]["json_schema"]["schema"]["required"]
        text = json.dumps(obeyed(content, fields, self.options.reading))
        return web.json_response(completion(text, model="scripted"))


def obeyed(request, fields, reading):
    """The reply to a request."""
    parts, outside = careful(request)
    if reading == "sloppy":
        outside = sloppy(request)[1]
    visible = request if reading == "naive" else "\n".join(outside)
    firsts = [lines[0] for _, lines in parts]
    names = [name for name, _ in parts]
    drawn = hashlib.sha256(json.dumps([sorted(names), sorted(firsts)]).encode()).digest()
    reply = {
        "rationale": f"read {drawn.hex()[:8]}",
        "category": ("factuality", "clarity", "style")[drawn[0] % 3],
        "better": "A" if firsts[1] > firsts[2] else "B",
        "magnitude": 1 + drawn[1] % 7,  # 1-7, and 2-8: what no instruction asks for
        "confidence": 2 + drawn[2] % 7,
    }
    if order := INSTRUCTION.search(visible):
        reply |= {"magnitude": int(order[1]), "confidence": int(order[2])}
    return {field: reply[field] for field in fields}


def split(lines, name_after_mark):
    """The parts of a request as (name, lines), and the lines outside.

    A line with a mark and a name opens a part; one with a bare mark ends it.
    """
    parts, outside, inside = [], [], False
    for line in lines:
        name = name_after_mark(line)
        if name is None:
            (parts[-1][1] if inside else outside).append(line)
        else:
            inside = bool(name)
            parts += [(name, [])] if inside else []
    return parts, outside


def careful(request):
    """Split by the true mark: the first one, since the rubric's sentence precedes the pair."""
    mark = MARK.search(request)[0]

    def name_after_mark(line):
        return line.removeprefix(mark).strip() if line.startswith(mark) else None

    return split(request.split("\n"), name_after_mark)


def sloppy(request):
    """Split by anything that looks like a mark, at the head of anything that looks like a line."""

    def name_after_mark(line):
        match = LOOKS_LIKE_A_MARK.match(line)
        return match[1].strip() if match else None

    return split(request.splitlines(), name_after_mark)


OUTPUT = re.compile(r'"output": """(.*?)"""\n    \}', re.DOTALL)


class Judge(Behaviour):
    """Students, and as model `judge` the judge of AlpacaEval.

    The judge answers with `m` or `M` and the log-probabilities of both, as a function of the two
    outputs alone: the longer it is, and the more its hash says so, the likelier an output wins.
    A student's output depends on prompt, temperature and seed.
    """

    @staticmethod
    def add_options(parser):
        Behaviour.add_options(parser)
        parser.add_argument("--models", default="judge,student,other")
        parser.add_argument("--delay", type=float, default=0.0, help="seconds before each answer")
        parser.add_argument("--faults", type=int, default=0, help="answers of 500 at first")
        parser.add_argument("--logprobs", type=int, default=1, help="0: tells none")
        parser.add_argument("--unreadable", default="", help="words; a verdict on them is neither")
        parser.add_argument("--declined", default="", help="words; what holds them gets a 400")
        parser.add_argument("--silent", default="", help="words; a student says nothing to them")
        parser.add_argument(
            "--odd",
            type=json.loads,
            default={},
            help="JSON, words -> fields of the choice where a request holds them",
        )

    def __init__(self, options):
        super().__init__(options)
        self.models = options.models.split(",")

    async def chat(self, request, body, content):
        options, number = self.options, self.request_count
        self.note(content)
        await asyncio.sleep(options.delay)
        if number <= options.faults:
            return web.Response(status=500, text="scripted fault")
        if options.declined and options.declined in content:
            return web.Response(status=400, text="scripted refusal")
        logprobs = None
        if body["model"] == "judge":
            likelihood = self.verdict(content)
            text = likelihood["token"]
            logprobs = [likelihood] if options.logprobs else None
        else:
            text = "" if options.silent and options.silent in content else student_output(body)
        usage = (10, len(text) // 4)
        answer = completion(text, model=body["model"], usage=usage, logprobs=logprobs)
        for words, fields in options.odd.items():
            if words in content:
                answer["choices"][0] |= fields
        return web.json_response(answer)

    def verdict(self, content):
        first, second = OUTPUT.findall(content)
        chance = 1 / (1 + math.exp(strength(first) - strength(second)))
        chances = {"m": 1 - chance, "M": chance}
        if self.options.unreadable and self.options.unreadable in content:
            chances = {"The": 0.7, "Both": 0.3}
        return token(dict(sorted(chances.items(), key=lambda item: -item[1])))


def strength(output):
    return 3 * fraction(output) + 0.004 * len(output)


def student_output(body):
    """The output of a student; a higher temperature makes it shorter."""
    key = json.dumps([body["messages"], body.get("seed"), body["model"]])
    words = 5 + int(60 * fraction(key)) - int(4 * body["temperature"])
    return " ".join(f"word{int(997 * fraction(f'{key}{place}'))}" for place in range(words))


class Slow(Behaviour):
    """Forwards every request to another server, and each chat request after a delay."""

    @staticmethod
    def add_options(parser):
        parser.add_argument("url")
        parser.add_argument("--delay", type=float, required=True, help="seconds before each answer")

    def routes(self, server):
        return [web.route("*", "/{path:.*}", self.forward)]

    async def forward(self, request):
        body = await request.read()
        if body:
            await asyncio.sleep(self.options.delay)
        address = self.options.url + request.path.removeprefix("/v1")
        async with (
            aiohttp.ClientSession() as session,
            session.request(request.method, address, data=body or None) as answer,
        ):
            return web.Response(
                body=await answer.read(), status=answer.status, content_type="application/json"
            )


BEHAVIOURS = {
    "scripted": Scripted,
    "faulty": Faulty,
    "position": Position,
    "obedient": Obedient,
    "judge": Judge,
    "slow": Slow,
}


class Server:
    """A behaviour behind HTTP."""

    def __init__(self, options):
        self.host, self.port = options.host, options.port
        application = web.Application(client_max_size=2**26)
        application.add_routes(BEHAVIOURS[options.name](options).routes(self))
        self.runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.05)

    async def start(self):
        await self.runner.setup()
        await self.listen()

    async def listen(self):
        self.site = web.TCPSite(self.runner, self.host, self.port)
        await self.site.start()
        self.port = self.runner.addresses[0][1]

    @property
    def url(self):
        return f"http://{self.host}:{self.port}/v1"

    async def vanish(self, seconds):
        """Stop listening and cut all connections, for some seconds."""
        if self.site is None:
            return
        site, self.site = self.site, None
        await site.stop()
        for line in self.runner.server.connections:
            if line.transport is not None:
                line.transport.abort()
        asyncio.get_running_loop().call_later(seconds, lambda: asyncio.ensure_future(self.listen()))


def parse(name, words=()):
    """The options of a behaviour, from words of a command line."""
    parser = argparse.ArgumentParser(description=BEHAVIOURS[name].__doc__)
    BEHAVIOURS[name].add_options(parser)
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen at")
    parser.add_argument("--port", type=int, default=0)
    options = parser.parse_args([str(word) for word in words])
    options.name = name
    return options


@contextmanager
def serving(name, *words):
    """Run a server in a thread of its own; gives its address."""
    server, started, stop = Server(parse(name, words)), Future(), asyncio.Event()

    async def serve():
        try:
            await server.start()
        except BaseException as error:
            started.set_exception(error)
            raise
        started.set_result(asyncio.get_running_loop())
        await stop.wait()
        await server.runner.cleanup()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    loop = started.result()
    try:
        yield server.url
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()


async def serve_forever(options):
    server = Server(options)
    await server.start()
    print(server.url, flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in BEHAVIOURS:
        sys.exit(f"usage: openai_server.py {{{','.join(BEHAVIOURS)}}} [options]")
    asyncio.run(serve_forever(parse(sys.argv[1], sys.argv[2:])))
