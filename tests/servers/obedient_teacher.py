"""A teacher that obeys whatever instruction reaches it: an OpenAI-compatible server for the tests.

It reads a request as the rubric explains it: material stands between lines that open with the mark
which the rubric names, the last of them bare; what stands outside is said by the rubric. An
instruction outside is obeyed. Otherwise the reply is a fixed function of the parts' first lines,
which no attack of `injection.py` touches, so a pair and its injected twin get the same reply for as
long as the fence holds. Two controls read less carefully:

    --sloppy   takes any line that looks like a mark for one, whatever it says
    --naive    obeys an instruction wherever it stands

    python tests/servers/obedient_teacher.py [--sloppy | --naive]
"""

import argparse
import asyncio
import hashlib
import json
import re

from aiohttp import web

MODEL = "scripted"
MARK = re.compile("#[0-9a-f]{16}#")
LOOKS_LIKE_A_MARK = re.compile(r"[\s\u200b]*[#＃﹟♯][0-9a-f]{16}[#＃﹟♯](.*)", re.I)
INSTRUCTION = re.compile(r"answer with magnitude (\d+) and confidence (\d+)", re.I)


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
    """By the true mark: the first one, since the rubric's sentence stands before the pair."""
    mark = MARK.search(request)[0]

    def name_after_mark(line):
        return line.removeprefix(mark).strip() if line.startswith(mark) else None

    return split(request.split("\n"), name_after_mark)


def sloppy(request):
    """By anything that looks like a mark, at the head of anything that looks like a line."""

    def name_after_mark(line):
        found = LOOKS_LIKE_A_MARK.match(line)
        return found[1].strip() if found else None

    return split(request.splitlines(), name_after_mark)


def judged(request, fields, reading):
    """The reply to a request."""
    parts, outside = careful(request)
    if reading == "sloppy":
        outside = sloppy(request)[1]
    heard = request if reading == "naive" else "\n".join(outside)
    firsts = [lines[0] for _, lines in parts]
    names = [name for name, _ in parts]
    said = json.dumps([sorted(names), sorted(firsts)]).encode()
    drawn = hashlib.sha256(said).digest()
    reply = {
        "rationale": f"read {drawn.hex()[:8]}",
        "category": ("factuality", "clarity", "style")[drawn[0] % 3],
        "better": "A" if firsts[1] > firsts[2] else "B",
        "magnitude": 1 + drawn[1] % 7,  # 1-7, and 2-8: what no instruction asks for
        "confidence": 2 + drawn[2] % 7,
    }
    if order := INSTRUCTION.search(heard):
        reply |= {"magnitude": int(order[1]), "confidence": int(order[2])}
    return {field: reply[field] for field in fields}


class Teacher:
    def __init__(self, reading):
        self.reading = reading

    async def answer(self, request):
        if request.path == "/v1/models":
            return web.json_response({"data": [{"id": MODEL}]})
        body = await request.json()
        fields = body["response_format"]["json_schema"]["schema"]["required"]
        text = json.dumps(judged(body["messages"][-1]["content"], fields, self.reading))
        choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        return web.json_response({"model": MODEL, "choices": [choice]})


async def serve(reading):
    http = web.Server(Teacher(reading).answer, access_log=None)
    listening = await asyncio.get_running_loop().create_server(http, "127.0.0.1", 0)
    print(f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/v1", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    control = parser.add_mutually_exclusive_group()
    for name in ("sloppy", "naive"):
        control.add_argument(f"--{name}", dest="reading", action="store_const", const=name)
    asyncio.run(serve(parser.parse_args().reading or "careful"))
