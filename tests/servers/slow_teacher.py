"""Another teacher's answers, later: an OpenAI-compatible server in front of another.

python tests/servers/slow_teacher.py http://127.0.0.1:8000/v1 --delay 0.1
"""

import argparse
import asyncio

import aiohttp
from aiohttp import web


async def serve(options):
    async with aiohttp.ClientSession() as session:

        async def forward(request):
            body = await request.read()
            if body:
                await asyncio.sleep(options.delay)
            address = options.url + request.path.removeprefix("/v1")
            async with session.request(request.method, address, data=body or None) as answer:
                return web.Response(
                    body=await answer.read(), status=answer.status, content_type="application/json"
                )

        application = web.Application()
        application.router.add_route("*", "/{path:.*}", forward)
        runner = web.AppRunner(application)
        await runner.setup()
        await web.TCPSite(runner, options.host, 0).start()
        print(f"http://{options.host}:{runner.addresses[0][1]}/v1", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen at")
    parser.add_argument("--delay", type=float, required=True, help="seconds before each answer")
    asyncio.run(serve(parser.parse_args()))
