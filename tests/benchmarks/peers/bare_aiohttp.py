"""A loop on aiohttp that stores nothing: `python bare_aiohttp.py URL BODIES COUNT`."""

import asyncio
import itertools
import json
import sys
from pathlib import Path

import aiohttp

IN_FLIGHT = 64


async def main(url, bodies, count):
    waiting = itertools.islice(itertools.cycle(bodies), count)

    async def ask():
        for body in waiting:
            async with session.post(f"{url}/chat/completions", json=body) as response:
                answer = json.loads(await response.read())
            assert answer["choices"][0]["message"]["content"]

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        await asyncio.gather(*(ask() for _ in range(IN_FLIGHT)))


if __name__ == "__main__":
    lines = Path(sys.argv[2]).read_text().splitlines()
    asyncio.run(main(sys.argv[1], [json.loads(line) for line in lines], int(sys.argv[3])))
