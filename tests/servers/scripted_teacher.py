"""A teacher that misbehaves on demand: an OpenAI-compatible server for the tests.

Its replies follow the JSON schema of the request, whatever the rubric, and depend on the request
alone. Every request is noted in a log, one line each, before it is answered.

    python tests/servers/scripted_teacher.py --behaviour valid --log requests.log
"""

import argparse
import asyncio
import hashlib
import json
import math
from pathlib import Path

from aiohttp import web


def valid(body):
    """A reply that the schema allows, drawn from the hash of what is asked."""
    digest = hashlib.sha256(body["messages"][-1]["content"].encode()).digest()
    fields = body["response_format"]["json_schema"]["schema"]["properties"]
    said = {}
    for place, (name, field) in enumerate(fields.items()):
        if "enum" in field:
            said[name] = field["enum"][digest[place] % len(field["enum"])]
        elif field["type"] == "integer":
            low, high = field["minimum"], field["maximum"]
            said[name] = low + digest[place] % (high - low + 1)
        else:
            said[name] = f"reason {digest.hex()[:8]}"[: field["maxLength"]]
    return said


def text_of(behaviour, body):
    said = valid(body)
    texts = {
        "valid": json.dumps(said),
        "prose": "I would say that the first response is better.",
        "fenced": f"```json\n{json.dumps(said)}\n```",
        "cut": json.dumps(said)[:-9],
        "out-of-scale": json.dumps(said | {"magnitude": 1000}),
        "odd-fields": json.dumps(said),
        "odd-ending": json.dumps(said),
        "empty": "",
        "surrogate": json.dumps(said | {"rationale": "\ud800"}),
    }
    return texts[behaviour]


def likely(letter, *, unsure):
    """A token of one character: it could have been nothing else, or a digit the next one, too."""
    chances = {letter: 1.0}
    if unsure and letter in "2345678":
        chances = {letter: 0.75, str(int(letter) + 1): 0.25}
    told = [
        {"token": one, "bytes": list(one.encode()), "logprob": math.log(chance)}
        for one, chance in chances.items()
    ]
    return told[0] | {"top_logprobs": told}


class Teacher:
    def __init__(self, options):
        self.options = options
        self.asked = 0

    async def models(self, _):
        more = {"max_model_len": self.options.context} if self.options.context else {}
        names = self.options.models.split(",")
        return web.json_response({"data": [{"id": name} | more for name in names]})

    async def tokenize(self, request):
        """A token for every four bytes."""
        if not self.options.counts:
            return web.Response(status=404)
        said = "".join(one["content"] for one in (await request.json())["messages"])
        return web.json_response({"count": len(said.encode()) // 4})

    async def chat(self, request):
        body = await request.json()
        self.asked += 1
        self.note(body)
        number = self.asked
        await asyncio.sleep(self.options.delay)
        behaviour = self.options.behaviour
        if number <= self.options.faults:
            wait = (
                {"Retry-After": str(self.options.retry_after)} if self.options.retry_after else {}
            )
            return web.Response(status=self.options.status, text="scripted fault", headers=wait)
        if self.options.limited and self.options.limited in body["messages"][-1]["content"]:
            return web.Response(status=429, text="too large for your rate")
        if self.options.faults < 0 and behaviour == "status":
            return web.Response(status=self.options.status, text="scripted fault")
        if self.options.hang_after and number > self.options.hang_after:
            await asyncio.Event().wait()
        if self.options.muddled and self.options.muddled in body["messages"][-1]["content"]:
            behaviour = "prose"
        if behaviour == "page":
            return web.Response(text="<html>a proxy's page</html>", content_type="text/html")
        finish = "length" if behaviour == "length" else "stop"
        content = text_of("cut" if behaviour == "length" else behaviour, body)
        choice = {"message": {"role": "assistant", "content": content}, "finish_reason": finish}
        usage = {"prompt_tokens": 100, "completion_tokens": 20}
        if body.get("logprobs"):
            choice["logprobs"] = {
                "content": [likely(letter, unsure=self.options.unsure) for letter in content]
            }
        said = {"model": body["model"], "choices": [choice], "usage": usage}
        if behaviour == "odd-fields":
            said["model"] = "\ud800\x1b[31m"
            usage |= {"prompt_tokens": 2**70, "prompt_tokens_details": {"cached_tokens": -1}}
        if behaviour == "odd-ending":
            choice["finish_reason"] = "kept\ud800\x1b[31m"
        return web.json_response(said)

    def note(self, body):
        asked = body["messages"][-1]["content"]
        with self.options.log.open("a") as log:
            log.write(hashlib.sha256(asked.encode()).hexdigest() + "\n")


async def serve(options):
    teacher = Teacher(options)
    application = web.Application()
    application.router.add_get("/v1/models", teacher.models)
    application.router.add_post("/v1/chat/completions", teacher.chat)
    application.router.add_post("/tokenize", teacher.tokenize)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(f"http://127.0.0.1:{runner.addresses[0][1]}/v1", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--behaviour", default="valid")
    parser.add_argument("--models", default="scripted", help="names, by commas")
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--delay", type=float, default=0.0, help="seconds before each answer")
    parser.add_argument("--status", type=int, default=500)
    parser.add_argument("--faults", type=int, default=0, help="answers of --status; -1 for ever")
    parser.add_argument("--hang-after", type=int, default=0)
    parser.add_argument("--context", type=int, default=0, help="tokens; 0: does not tell")
    parser.add_argument("--retry-after", type=int, default=0, help="seconds, with the faults")
    parser.add_argument("--limited", default="", help="words; what holds them always gets a 429")
    parser.add_argument("--muddled", default="", help="words; what holds them is not understood")
    parser.add_argument("--unsure", type=int, default=0, help="1: digits that could be others")
    parser.add_argument("--counts", type=int, default=1, help="0: has no /tokenize")
    asyncio.run(serve(parser.parse_args()))
