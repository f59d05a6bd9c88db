"""Serve recorded replies of teachers, as an OpenAI-compatible server for the demo and the tests.

It looks up a reply by the content of the request: the model, the two responses and the paragraph of
the variant. It does not share any code with the toolkit.

    python recipes/demo/replay_teacher.py --port 8765
"""

import argparse
import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import yaml
from aiohttp import web

HERE = Path(__file__).parent
RUBRIC = HERE.parent / "rubrics" / "semantic-gap.yaml"


class Recording:
    """Recorded replies, looked up by the text of a request."""

    def __init__(self, pairs: Path, replies: Path, rubric: Path) -> None:
        # `splitlines` would also split at characters such as U+2028 inside a text.
        self._pairs, recorded = (
            [json.loads(line) for line in path.read_bytes().split(b"\n") if line]
            for path in (pairs, replies)
        )
        self._replies = {(r["pair_id"], r["teacher"], r["variant"]): r["reply"] for r in recorded}
        variants = yaml.safe_load(rubric.read_text())["variants"]
        self._variants = {_normalise(text): name for name, text in variants.items()}
        self.models = sorted({r["teacher"] for r in recorded})

    def find(self, model: str, request: str) -> dict[str, Any] | None:
        """Return a model's reply to a request; None if it was not recorded."""
        pair_id = next((p["pair_id"] for p in self._pairs if _shows(p, request)), None)
        last = _normalise(request.rsplit("\n\n", 1)[-1])
        return self._replies.get((pair_id, model, self._variants.get(last)))


def _normalise(text: str) -> str:
    return " ".join(text.split())


def _shows(pair: dict[str, Any], request: str) -> bool:
    """Return whether a request has this pair: its prompt, then `chosen`, then `rejected`."""
    position = 0
    for turn in [*pair["prompt"], *pair["chosen"], *pair["rejected"]]:
        position = request.find(turn["content"], position)
        if position < 0:
            return False
        position += len(turn["content"])
    return True


def application(recording: Recording) -> web.Application:
    """Return the server application with its two endpoints."""

    async def models(_: web.Request) -> web.Response:
        listed = [{"id": name, "object": "model"} for name in recording.models]
        return web.json_response({"object": "list", "data": listed})

    async def chat(request: web.Request) -> web.Response:
        body = await request.json()
        prompt = body["messages"][-1]["content"]
        reply = recording.find(body["model"], prompt)
        if reply is None:
            error = {"message": f"{body['model']} has no recorded reply to this", "code": 400}
            return web.json_response({"error": error}, status=400)
        text = json.dumps(reply, ensure_ascii=False)
        message = {"role": "assistant", "content": text}
        counts = {"prompt_tokens": len(prompt) // 4, "completion_tokens": len(text) // 4}
        return web.json_response(
            {
                "object": "chat.completion",
                "model": body["model"],
                "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                "usage": counts,
            }
        )

    server = web.Application()
    server.router.add_get("/v1/models", models)
    server.router.add_post("/v1/chat/completions", chat)
    return server


def main() -> int:
    """Serve until it is stopped; print the address on the first line."""
    parser = argparse.ArgumentParser(description="Serve recorded replies of teachers.")
    parser.add_argument("--pairs", type=Path, default=HERE / "pairs.jsonl")
    parser.add_argument("--replies", type=Path, default=HERE / "replies.jsonl")
    parser.add_argument("--rubric", type=Path, default=RUBRIC)
    parser.add_argument("--port", type=int, default=0, help="0 for a free port")
    options = parser.parse_args()
    try:
        recording = Recording(options.pairs, options.replies, options.rubric)
    except (OSError, KeyError, json.JSONDecodeError) as error:
        print(f"replay_teacher: {error}", file=sys.stderr)
        return 2

    try:
        asyncio.run(serve(application(recording), options.port))
    except KeyboardInterrupt:
        return 130
    return 0


async def serve(server: web.Application, port: int) -> None:
    """Answer requests until it is stopped."""
    runner = web.AppRunner(server)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    print(f"http://127.0.0.1:{runner.addresses[0][1]}/v1", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    sys.exit(main())
