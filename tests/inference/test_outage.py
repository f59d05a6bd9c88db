"""An outage that begins while replies are in flight: no request is blamed for it."""

import asyncio

import pytest
from aiohttp import web

from servers.openai_server import text_of
from sp2dpo.annotation.teacher import TeacherSession
from sp2dpo.inference import caller as calling
from sp2dpo.inference.client import Client, Unavailable, open_session
from sp2dpo.panel.annotation import Key
from sp2dpo.panel.rubric import load_rubric
from sp2dpo.store.questions import Job, Question
from support.harness import pairs_of, panel_of

RUBRIC = load_rubric("semantic-gap")


class Server:
    """Answers the first request late; whoever comes in the meantime is cut off, for a while."""

    def __init__(self, seconds, late):
        self.until = None
        self.seconds = seconds
        self.late = late

    async def chat(self, request):
        body = await request.json()
        now = asyncio.get_running_loop().time()
        if self.until is None:
            self.until = now + self.seconds
            await asyncio.sleep(self.late)
        elif now < self.until:
            request.transport.abort()
            return web.Response()
        choice = {"message": {"content": text_of("valid", body)}, "finish_reason": "stop"}
        return web.json_response({"choices": [choice]})

    async def start(self):
        application = web.Application()
        application.router.add_post("/v1/chat/completions", self.chat)
        self.runner = web.AppRunner(application)
        await self.runner.setup()
        await web.TCPSite(self.runner, "127.0.0.1", 0).start()
        return f"http://127.0.0.1:{self.runner.addresses[0][1]}/v1"


def job_of(pair):
    key = Key(pair_id=pair.id, teacher="a", variant="direct")
    return Job(number=1, pair=pair, questions=(Question(key=key, last=0),))


async def ask_through(seconds, count, *, late=0.2):
    server, entries = Server(seconds, late), []

    async def take(entry, final):
        entries.append(entry)

    url = await server.start()
    try:
        async with open_session() as session:
            client = Client(session, panel_of("a").teachers[0], RUBRIC.schema())
            teacher = TeacherSession(client, RUBRIC, (url,), patience=60, stop=asyncio.Event())
            async with asyncio.TaskGroup() as group:
                for row in pairs_of(count):
                    group.create_task(teacher.ask(job_of(row.pair), take))
    finally:
        await server.runner.cleanup()
    return entries


@pytest.mark.parametrize("late", [0.2, 1, 3])
def test_requests_are_not_refused_for_an_outage_that_one_reply_outlived(monkeypatch, late):
    monkeypatch.setattr(calling, "_MAX_FAILURES", 3)  # ten failures take most of a minute
    entries = asyncio.run(ask_through(5, 12, late=late))
    assert [entry.reason for entry in entries] == [None] * 12


@pytest.mark.parametrize("count", [1, 5])
def test_without_an_outage_every_request_is_answered(count):
    assert len(asyncio.run(ask_through(0, count))) == count


@pytest.mark.parametrize(
    ("status", "overloaded"), [(429, True), (500, False), (502, False), (503, True)]
)
def test_only_429_and_503_ask_for_fewer_requests_in_flight(status, overloaded):
    async def main():
        async def chat(_):
            return web.Response(status=status, text="no", headers={"Retry-After": "7"})

        application = web.Application()
        application.router.add_post("/v1/chat/completions", chat)
        runner = web.AppRunner(application)
        await runner.setup()
        try:
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
            (teacher,) = panel_of("a").teachers
            async with open_session() as session:
                with pytest.raises(Unavailable) as caught:
                    await Client(session, teacher, None).ask(url, [], 0)
        finally:
            await runner.cleanup()
        return caught.value

    error = asyncio.run(main())
    assert (error.reason, error.overloaded, error.wait) == (f"http-{status}", overloaded, 7.0)
