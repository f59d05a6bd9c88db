"""Students and a judge on demand: an OpenAI-compatible server for the tests of the evaluation.

As `judge` it answers AlpacaEval's prompt with `m` or `M` and the log-probabilities of both, as a
function of the two outputs alone: the longer it is, and the more its hash says so, the likelier an
output wins. Every other model is a student, whose output depends on prompt, temperature and seed.

    python tests/servers/scripted_judge.py --log requests.log
"""

import argparse
import asyncio
import hashlib
import json
import math
import re
from pathlib import Path

from aiohttp import web

OUTPUT = re.compile(r'"output": """(.*?)"""\n    \}', re.DOTALL)


def number(text):
    """In [0, 1), from a hash."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") / 2**32


def strength(output):
    return 3 * number(output) + 0.004 * len(output)


def chance_of_second(first, second):
    """That the second output is the better one."""
    return 1 / (1 + math.exp(strength(first) - strength(second)))


def answer_of(body):
    """What a student says; hotter ones say less."""
    said = json.dumps([body["messages"], body.get("seed"), body["model"]])
    words = 5 + int(60 * number(said)) - int(4 * body["temperature"])
    return " ".join(f"word{int(997 * number(f'{said}{place}'))}" for place in range(words))


def verdict(content, options):
    first, second = OUTPUT.findall(content)
    chance = chance_of_second(first, second)
    tokens = {"m": 1 - chance, "M": chance}
    if options.unreadable and options.unreadable in content:
        tokens = {"The": 0.7, "Both": 0.3}
    told = [
        {"token": one, "bytes": list(one.encode()), "logprob": math.log(max(share, 1e-9))}
        for one, share in sorted(tokens.items(), key=lambda item: -item[1])
    ]
    return told[0]["token"], [told[0] | {"top_logprobs": told}]


class Server:
    def __init__(self, options):
        self.options = options
        self.asked = 0

    async def models(self, _):
        return web.json_response({"data": [{"id": one} for one in self.options.models.split(",")]})

    async def chat(self, request):
        body = await request.json()
        content = body["messages"][-1]["content"]
        self.asked += 1
        with self.options.log.open("a") as log:
            log.write(hashlib.sha256(content.encode()).hexdigest() + "\n")
        await asyncio.sleep(self.options.delay)
        if self.asked <= self.options.faults:
            return web.Response(status=500, text="scripted fault")
        if self.options.declined and self.options.declined in content:
            return web.Response(status=400, text="scripted refusal")
        choice = {"index": 0, "finish_reason": "stop"}
        if body["model"] == "judge":
            text, told = verdict(content, self.options)
            if self.options.logprobs:
                choice["logprobs"] = {"content": told}
        else:
            text = answer_of(body)
            if self.options.silent and self.options.silent in content:
                text = ""
        choice["message"] = {"role": "assistant", "content": text}
        usage = {"prompt_tokens": 10, "completion_tokens": len(text) // 4, "total_tokens": 10}
        return web.json_response(
            {"id": "1", "object": "chat.completion", "created": 0, "model": body["model"],
             "choices": [choice], "usage": usage}
        )  # fmt: skip


async def serve(options):
    server = Server(options)
    application = web.Application(client_max_size=2**26)
    application.router.add_get("/v1/models", server.models)
    application.router.add_post("/v1/chat/completions", server.chat)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(f"http://127.0.0.1:{runner.addresses[0][1]}/v1", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--models", default="judge,student,other")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds before each answer")
    parser.add_argument("--faults", type=int, default=0, help="answers of 500 at first")
    parser.add_argument("--logprobs", type=int, default=1, help="0: tells none")
    parser.add_argument("--unreadable", default="", help="words; a verdict on them is neither")
    parser.add_argument("--declined", default="", help="words; what holds them gets a 400")
    parser.add_argument("--silent", default="", help="words; a student says nothing to them")
    asyncio.run(serve(parser.parse_args()))
