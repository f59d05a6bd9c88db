"""Answers a file of requests with the help of a server, and writes what `vllm run-batch` writes.

python tests/support/run_batch.py requests.jsonl replies.jsonl http://127.0.0.1:8000/v1
"""

import asyncio
import json
import sys
import uuid
from pathlib import Path

import aiohttp


def answered(request, status, body):
    """A line of the replies, key by key as vLLM 0.32 writes it."""
    response = {
        "status_code": status,
        "request_id": f"vllm-batch-{uuid.uuid4().hex[:16]}",
        "body": body if status == 200 else None,
    }
    return {
        "id": f"vllm-{uuid.uuid4().hex[:16]}",
        "custom_id": request["custom_id"],
        "response": response,
        "error": None if status == 200 else body,
    }


async def ask(session, url, request):
    async with session.post(f"{url}/chat/completions", json=request["body"]) as response:
        return answered(request, response.status, await response.json())


async def main(requests, replies, url):
    batch = [json.loads(line) for line in Path(requests).read_text().splitlines()]
    async with aiohttp.ClientSession() as session:
        lines = await asyncio.gather(*(ask(session, url, request) for request in batch))
    Path(replies).write_text("".join(json.dumps(line) + "\n" for line in lines))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
