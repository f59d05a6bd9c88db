"""A loop on AsyncOpenAI that stores nothing: `python bare_openai.py URL BODIES COUNT`."""

import asyncio
import itertools
import json
import sys
from pathlib import Path

from openai import AsyncOpenAI

IN_FLIGHT = 64


async def main(url, bodies, count):
    waiting = itertools.islice(itertools.cycle(bodies), count)

    async def ask():
        for body in waiting:
            answer = await client.chat.completions.create(**body)
            assert answer.choices[0].message.content

    async with AsyncOpenAI(base_url=url, api_key="none") as client:
        await asyncio.gather(*(ask() for _ in range(IN_FLIGHT)))


if __name__ == "__main__":
    lines = Path(sys.argv[2]).read_text().splitlines()
    asyncio.run(main(sys.argv[1], [json.loads(line) for line in lines], int(sys.argv[3])))
