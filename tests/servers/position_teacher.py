"""A teacher that knows the truth about the demo's pairs and yet leans on the place of a response.

It answers blind requests: it names the response that is better by what the writers of the corpus
planted, but in a share of the requests, which the name of the model says and a hash of the request
draws, it names A regardless. An OpenAI-compatible server for the tests.

    python tests/servers/position_teacher.py    # serves leans-0, leans-20 and leans-50
"""

import asyncio
import hashlib
import json
from pathlib import Path

from aiohttp import web

DEMO = Path(__file__).parents[2] / "recipes" / "demo"
MODELS = ("leans-0", "leans-20", "leans-50")
KNOWN = web.AppKey("known", list)


def pairs_and_truth():
    """Each pair of the demo with what was planted in it."""
    lines = [(DEMO / name).read_text().splitlines() for name in ("pairs.jsonl", "planted.jsonl")]
    return [(json.loads(pair), json.loads(truth)) for pair, truth in zip(*lines, strict=True)]


def answer(model, asked, known):
    """The reply to a request; None where it shows no pair of the demo."""
    for pair, truth in known:
        shown = [asked.find(f"\n{pair[part][-1]['content']}\n#") for part in ("chosen", "rejected")]
        if min(shown) >= 0:
            return judged(model, asked, truth, chosen_is_a=shown[0] < shown[1])
    return None


def judged(model, asked, truth, *, chosen_is_a):
    digest = hashlib.sha256(f"{model} {asked}".encode()).digest()
    leans = int.from_bytes(digest[:8], "big") / 2**64 < int(model.split("-")[1]) / 100
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


async def models(_):
    return web.json_response({"data": [{"id": name} for name in MODELS]})


async def chat(request):
    body = await request.json()
    fields = body["response_format"]["json_schema"]["schema"]["properties"]
    asked = body["messages"][-1]["content"]
    said = answer(body["model"], asked, request.app[KNOWN]) if "better" in fields else None
    if said is None:
        return web.json_response({"error": {"message": "this is no blind demo pair"}}, status=400)
    message = {"role": "assistant", "content": json.dumps(said)}
    choice = {"message": message, "finish_reason": "stop"}
    usage = {"prompt_tokens": len(asked) // 4, "completion_tokens": 40}
    return web.json_response({"model": body["model"], "choices": [choice], "usage": usage})


async def serve():
    application = web.Application()
    application[KNOWN] = pairs_and_truth()
    application.router.add_get("/v1/models", models)
    application.router.add_post("/v1/chat/completions", chat)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(f"http://127.0.0.1:{runner.addresses[0][1]}/v1", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve())
