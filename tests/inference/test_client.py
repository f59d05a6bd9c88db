"""How a client meets servers, gateways and proxies: what it sends, accepts, waits for, refuses."""

import asyncio
import base64
import gzip
import json
import time
import zlib
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from aiohttp import web

from sp2dpo.inference import client as clients
from sp2dpo.inference.caller import Caller
from sp2dpo.inference.client import (
    Client,
    Declined,
    EndpointError,
    Unavailable,
    open_session,
    request_body,
)
from sp2dpo.inference.connection import Proxy, find_proxy, is_loopback, requested_wait
from sp2dpo.inference.endpoint import Endpoint
from sp2dpo.panel.panel import load_panel
from sp2dpo.panel.rubric import load_rubric
from sp2dpo.store.store import Store
from support.harness import run, write_pairs, write_panel

SCHEMA = load_rubric("semantic-gap").schema()
GOOD = {"choices": [{"message": {"content": "Yes."}, "finish_reason": "stop"}]}
MESSAGES = [{"role": "user", "content": "Well?"}]


def endpoint(url="http://127.0.0.1:1/v1", **settings):
    sampling = settings.pop("sampling", {"temperature": 0, "max_tokens": 100})
    return Endpoint(
        name="t", model="m", revision=None, base_urls=(url,), sampling=sampling, **settings
    )


@asynccontextmanager
async def serving(chat=None, models=None):
    """A server that answers with these; gives its base URL and the bodies of chats."""
    bodies = []

    async def on_chat(request):
        bodies.append(await request.json())
        return await result(chat, request)

    async def on_models(request):
        return await result(models, request)

    async def result(answer, request):
        answer = answer(request) if callable(answer) else answer
        return answer if isinstance(answer, web.StreamResponse) else web.json_response(answer)

    application = web.Application()
    application.router.add_post("/v1/chat/completions", on_chat)
    application.router.add_get("/v1/models", on_models)
    runner = web.AppRunner(application)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1", bodies
    finally:
        await runner.cleanup()


def ask(chat, **settings):
    """The reply of a server, or the error that it leads to."""

    async def main():
        async with serving(chat) as (url, _), open_session() as session:
            return await Client(session, endpoint(url, **settings), None).ask(url, MESSAGES, 0)

    return asyncio.run(main())


def check(models, chat=GOOD, **settings):
    """The result of the check of a server, and the chats that it was asked."""

    async def main():
        async with serving(chat, models) as (url, bodies), open_session() as session:
            return await Client(session, endpoint(url, **settings), None).check(url), bodies

    return asyncio.run(main())


def encoded(body, coding):
    return lambda _: web.Response(
        body=body, headers={"Content-Encoding": coding, "Content-Type": "application/json"}
    )


PLAIN = json.dumps({"choices": [{"message": {"content": "Ja, süß."}, "finish_reason": "stop"}]})
UTF8 = json.dumps(json.loads(PLAIN), ensure_ascii=False).encode()
RAW_DEFLATE = zlib.compressobj(wbits=-15)
ENCODED = {
    "gzip": encoded(gzip.compress(UTF8), "gzip"),
    "deflate": encoded(zlib.compress(UTF8), "deflate"),
    "raw deflate": encoded(RAW_DEFLATE.compress(UTF8) + RAW_DEFLATE.flush(), "deflate"),
    "wrong charset": lambda _: web.Response(
        body=UTF8, headers={"Content-Type": "application/json; charset=latin-1"}
    ),
    "unknown charset": lambda _: web.Response(
        body=UTF8, headers={"Content-Type": "text/plain; charset=x-nonsense"}
    ),
    "latin-1 and said so": lambda _: web.Response(
        body=UTF8.decode().encode("latin-1"),
        headers={"Content-Type": "application/json; charset=latin-1"},
    ),
    "201 Created": lambda _: web.Response(body=UTF8, status=201),
    "byte order mark": lambda _: web.Response(body=b"\xef\xbb\xbf" + UTF8),
    "white space first": lambda _: web.Response(body=b"\n\n  " + UTF8),
}


@pytest.mark.parametrize("chat", ENCODED.values(), ids=ENCODED)
def test_an_answer_is_read_in_any_encoding(chat):
    assert ask(chat).text == "Ja, süß."


@pytest.mark.parametrize("coding", ["br", "zstd", "compress", "gzip, gzip", "deflate, br"])
def test_an_answer_compressed_unasked_is_refused_with_what_to_do(coding):
    with pytest.raises(EndpointError, match=r"Content-Encoding .* turn compression off"):
        ask(encoded(UTF8, coding))


DAMAGED = {
    "cut": (gzip.compress(UTF8)[:-9], "gzip"),
    "continued": (gzip.compress(UTF8) + b"more", "gzip"),
    "two members": (gzip.compress(UTF8) * 2, "gzip"),
    "not compressed": (UTF8, "gzip"),
    "wrong checksum": (zlib.compress(UTF8)[:-4] + b"abcd", "deflate"),
}


@pytest.mark.parametrize(("body", "coding"), DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_compressed_answer_is_no_answer(body, coding):
    with pytest.raises(Unavailable, match=rf"damaged body \({coding}\)"):
        ask(encoded(body, coding))


@pytest.mark.parametrize("charset", ["punycode", "idna", "undefined", "unicode_escape", "zlib"])
def test_character_sets_that_are_none_are_not_decoded(charset):
    def chat(_):
        headers = {"Content-Type": f"application/json; charset={charset}"}
        return web.Response(body=UTF8.decode().encode("latin-1"), headers=headers)

    with pytest.raises(Unavailable, match="not a JSON object"):
        ask(chat)


def test_an_answer_is_read_in_chunks():
    async def main():
        async def chat(request):
            response = web.StreamResponse()
            response.enable_chunked_encoding()
            await response.prepare(request)
            for place in range(0, len(UTF8), 7):  # splits the umlauts, too
                await response.write(UTF8[place : place + 7])
            return response

        application = web.Application()
        application.router.add_post("/v1/chat/completions", chat)
        runner = web.AppRunner(application)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        try:
            async with open_session() as session:
                return await Client(session, endpoint(url), None).ask(url, MESSAGES, 0)
        finally:
            await runner.cleanup()

    assert asyncio.run(main()).text == "Ja, süß."


def answer(status, body, **headers):
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    text = body if isinstance(body, str) else json.dumps(body)
    return lambda _: web.Response(status=status, text=text, headers=names)


@pytest.mark.parametrize("status", [301, 302, 307, 308])
@pytest.mark.parametrize(
    ("location", "advice"),
    [
        ("/real/v1{path}", "write base_url: http://127.0.0.1:{port}/real/v1"),
        ("https://api.example/v1{path}?x=1", "write base_url: https://api.example/v1"),
        ("https://login.example/sign-in", "a page to sign in"),
        (None, "names no Location"),
    ],
)
def test_a_redirect_is_not_followed_and_names_the_address_to_write(status, location, advice):
    def redirect(path):
        headers = {} if location is None else {"Location": location.format(path=path)}
        return answer(status, "", **headers)

    for attempt in (
        lambda: ask(redirect("/chat/completions")),
        lambda: check(redirect("/models")),
    ):
        with pytest.raises(EndpointError) as caught:
            attempt()
        assert not isinstance(caught.value, Unavailable)
        before, _, after = advice.partition("{port}")
        assert before in str(caught.value)
        assert after in str(caught.value)


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (402, {"error": {"message": "Insufficient credits. Add more and retry.", "code": 402}}),
        (402, "Payment Required"),
        (429, {"error": {"message": "x", "type": "insufficient_quota"}}),
        (429, {"error": {"message": "x", "type": "exceeded_current_quota_error"}}),
        (429, [{"error": {"code": "insufficient_quota"}}]),
        (403, {"error": {"code": "billing_not_active"}}),
        (403, {"error": {"code": "insufficient_user_quota", "type": "new_api_error"}}),
        (400, {"error": {"code": "Arrearage", "message": "x"}}),
        (400, {"code": "InsufficientBalance", "message": "x"}),
    ],
)
def test_an_account_without_credit_ends_the_run_at_once(status, body):
    with pytest.raises(EndpointError, match="add credit") as caught:
        ask(answer(status, body))
    assert not isinstance(caught.value, Unavailable)


@pytest.mark.parametrize(
    "body",
    [
        {
            "error": {
                "message": "Rate limit reached. Visit your billing page.",
                "code": "rate_limit",
            }
        },
        "You exceeded your quota of requests per minute; billing is unaffected.",
        {"error": {"message": "Quota exceeded", "status": "RESOURCE_EXHAUSTED", "code": 429}},
    ],
)
def test_a_rate_limit_that_mentions_money_is_only_a_rate_limit(body):
    with pytest.raises(Unavailable) as caught:
        ask(answer(429, body))
    assert caught.value.overloaded


@pytest.mark.parametrize(
    ("status", "body", "advice"),
    [
        (401, "no key", "set api_key_env in the panel"),
        (403, {"detail": "Forbidden"}, "access refused"),
        (404, {"detail": "Not Found"}, "wrong base_url or model"),
        (410, {"detail": "This model was retired"}, "wrong base_url or model"),
        (404, {"error": {"message": "No endpoints found that support the requested parameters"}},
         "set structured: json_schema_plain or json_object or none"),
        (407, "", "exclude the host with NO_PROXY"),
    ],
)  # fmt: skip
def test_an_error_of_access_advises_what_to_do(status, body, advice):
    with pytest.raises(EndpointError, match=advice):
        ask(answer(status, body))


@pytest.mark.parametrize(
    ("message", "settings", "advice"),
    [
        ("Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.", {},
         "write max_completion_tokens in sampling in place of max_tokens"),
        ("For 'integer' type, properties maximum, minimum are not supported", {},
         "set structured: json_schema_plain or json_object or none"),
        ("Invalid schema for response_format", {"structured": "json_schema_plain"},
         "set structured: json_object or none"),
        ("'messages' must contain the word 'json'", {}, None),
        ("Invalid schema for response_format", {"role": "judge"}, None),
        ("response_format is not known", {"structured": "none"}, None),
    ],
)  # fmt: skip
def test_a_refused_request_advises_where_its_message_allows_it(message, settings, advice):
    with pytest.raises(Declined) as caught:
        ask(answer(400, {"error": {"message": message}}), **settings)
    text = str(caught.value)
    assert (advice in text) if advice else ("; " not in text)


def test_a_prompt_that_moderation_flags_is_one_refused_request():
    body = {"error": {"code": 403, "metadata": {"flagged_input": "...", "reasons": ["x"]}}}
    with pytest.raises(Declined):
        ask(answer(403, body))


def http_date(seconds):
    return format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, 0), ({"Retry-After": "7"}, 7), ({"Retry-After": "1.5"}, 1.5),
        ({"Retry-After": "20s"}, 20), ({"Retry-After": "-5"}, 0), ({"Retry-After": "soon"}, 0),
        ({"Retry-After": ""}, 0), ({"Retry-After": "nan"}, 0), ({"Retry-After": "inf"}, 300),
        ({"Retry-After": "1e99"}, 300), ({"Retry-After": "Wed, 99 Foo 2026"}, 0),
        ({"Retry-After": "Fri, 31 Dec 1999 23:59:59 GMT"}, 0),
        ({"retry-after-ms": "1500", "Retry-After": "9"}, 1.5),
        ({"retry-after-ms": "x", "Retry-After": "9"}, 9),
        ({"Retry-After": "Fri, 01 Jan 2027 00:00:30 GMT",
          "Date": "Fri, 01 Jan 2027 00:00:00 GMT"}, 30),
    ],
)  # fmt: skip
def test_the_wait_that_a_server_asks_for_is_read_in_any_form(headers, expected):
    assert requested_wait(headers) == expected


def test_a_retry_after_in_the_form_of_a_date_counts_from_now():
    assert requested_wait({"Retry-After": http_date(60)}) == pytest.approx(60, abs=2)


@pytest.mark.parametrize("wait", ["100000", pytest.param(http_date(3600), id="a date"), "inf"])
def test_no_wait_outlasts_the_patience(wait):
    async def main():
        async with (
            serving(answer(429, "later", Retry_After=wait)) as (url, bodies),
            open_session() as session,
        ):
            client = Client(session, endpoint(url), None)
            caller = Caller(client, (url,), patience=0.4, stop=asyncio.Event())
            started = time.monotonic()
            with pytest.raises(EndpointError, match="no answer for"):
                await caller.ask(MESSAGES, 0, caller.route("a"))
            assert len(bodies) > 1
            return time.monotonic() - started

    assert asyncio.run(main()) < 3


PROXIES = {
    "HTTP_PROXY": "http://proxy.example:3128",
    "HTTPS_PROXY": "http://user:pass%20word@proxy.example:3129",
    "NO_PROXY": "inner.example,.dotted.example, 10.0.0.0/8,ported.example:8000",
}


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("http://api.example/v1", "http://proxy.example:3128"),
        ("https://api.example/v1", "http://proxy.example:3129"),
        ("http://inner.example/v1", None), ("http://a.inner.example:80/v1", None),
        ("http://notinner.example/v1", "http://proxy.example:3128"),
        ("http://a.dotted.example/v1", None), ("http://10.1.2.3:8000/v1", None),
        ("http://11.1.2.3/v1", "http://proxy.example:3128"),
        ("http://ported.example:8000/v1", None),
        ("http://ported.example:9000/v1", "http://proxy.example:3128"),
        ("http://localhost:8000/v1", None), ("http://127.0.0.7:8000/v1", None),
        ("http://[::1]:8000/v1", None), ("http://0.0.0.0:8000/v1", None),
        ("http://[::ffff:127.0.0.1]/v1", None),
    ],
)  # fmt: skip
def test_a_proxy_is_used_off_loopback_unless_no_proxy_names_the_host(
    monkeypatch, address, expected
):
    for name, value in PROXIES.items():
        monkeypatch.setenv(name, value)
    proxy = find_proxy(address)
    assert (proxy and proxy.url) == expected


def test_the_password_of_a_proxy_is_sent_and_not_shown(monkeypatch):
    for name, value in PROXIES.items():
        monkeypatch.setenv(name, value)
    proxy = find_proxy("https://api.example/v1")
    assert isinstance(proxy, Proxy)
    encoded = base64.b64encode(b"user:pass word").decode()
    assert proxy.headers == {"Proxy-Authorization": f"Basic {encoded}"}
    assert "pass" not in proxy.url


@pytest.mark.parametrize(
    ("scheme", "first"), [("http", "POST http://api.example/v1/chat/"), ("https", "CONNECT api.")]
)
def test_a_proxy_gets_its_password_and_is_named_when_it_refuses(monkeypatch, scheme, first):
    heads = []

    async def refuse(reader, writer):
        heads.append((await reader.readuntil(b"\r\n\r\n")).decode())
        writer.write(b"HTTP/1.1 407 Who are you\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        writer.close()

    async def main():
        proxy = await asyncio.start_server(refuse, "127.0.0.1", 0)
        port = proxy.sockets[0].getsockname()[1]
        monkeypatch.setenv(f"{scheme.upper()}_PROXY", f"http://user:secret@127.0.0.1:{port}")
        url = f"{scheme}://api.example/v1"
        async with proxy, open_session() as session:
            await Client(session, endpoint(url), None).ask(url, MESSAGES, 0)

    with pytest.raises(EndpointError, match="NO_PROXY") as caught:
        asyncio.run(main())
    assert not isinstance(caught.value, Unavailable)
    assert "secret" not in str(caught.value)
    assert heads[0].startswith(first)
    assert base64.b64encode(b"user:secret").decode() in heads[0]


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"ALL_PROXY": "proxy.example:1"}, "http://proxy.example:1"),
        ({"all_proxy": "http://proxy.example"}, "http://proxy.example"),
        ({"HTTPS_PROXY": "http://proxy.example"}, None),
        ({"HTTP_PROXY": ""}, None),
        ({"HTTP_PROXY": "http://proxy.example", "NO_PROXY": "*"}, None),
        ({"http_proxy": "http://[fd00::1]:8080"}, "http://[fd00::1]:8080"),
    ],
)
def test_the_variables_of_proxies_are_read_in_all_their_forms(monkeypatch, variables, expected):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    proxy = find_proxy("http://api.example/v1")
    assert (proxy and proxy.url) == expected


@pytest.mark.parametrize(
    "url", ["socks5://proxy.example:1080", "http://proxy.example:port", "http://[x"]
)
def test_a_proxy_that_cannot_be_used_is_refused(monkeypatch, url):
    monkeypatch.setenv("HTTP_PROXY", url)
    with pytest.raises(ValueError, match="HTTP_PROXY or ALL_PROXY"):
        find_proxy("http://api.example/v1")


@pytest.mark.parametrize("host", ["", "localhost.example", "128.0.0.1", "api.example"])
def test_other_hosts_are_not_loopback(host):
    assert not is_loopback(host)


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def test_requests_go_through_the_proxy_and_the_run_says_so(tmp_path, monkeypatch, scripted):
    """The scripted teacher as a proxy: it gets the requests to a host that does not exist."""
    teacher = scripted()
    monkeypatch.setenv("HTTP_PROXY", teacher.url.removesuffix("/v1"))
    write_pairs(tmp_path / "pairs.jsonl", 2)
    write_panel(tmp_path / "panel.yaml", "http://teacher.invalid:8000/v1")
    output = annotate(tmp_path)
    assert f"go through the proxy {teacher.url.removesuffix('/v1')} (HTTP_PROXY)" in output
    assert "add teacher.invalid to NO_PROXY" in output
    assert len(teacher.requests) == 6


def annotate(folder, *, ends_well=True):
    words = [
        "annotate", "--pairs", folder / "pairs.jsonl", "--panel", folder / "panel.yaml",
        "--store", folder / "run.sqlite", "--patience", 5,
    ]  # fmt: skip
    result = run(*words)
    assert (result.returncode == 0) == ends_well, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    return result.stdout + result.stderr


LISTS = {
    "no list": answer(404, {"detail": "Not Found"}),
    "method not allowed": answer(405, ""),
    "empty": {"object": "list", "data": []},
    "null": {"object": "list", "data": None},
    "of another form": {"object": "list"},
    "a wildcard": {"data": [{"id": "anthropic/*"}, {"id": "*"}]},
    "a wildcard of a provider": {"data": [{"id": "openai/*"}]},
    "Ollama's tag": {"data": [{"id": "m:latest"}]},
    "Gemini's prefix": {"data": [{"id": "models/m"}]},
    "display names": {"models": [{"name": "Model M"}]},
    "ids that are null": {"data": [{"id": None}, {"id": None}]},
    "an empty answer": answer(200, ""),
    "a page": answer(200, "<html>login</html>"),
    "names alone": ["m", "n"],
    "the first page": {"data": [{"id": "a"}, {"id": "b"}], "has_more": True},
}


@pytest.mark.parametrize("models", LISTS.values(), ids=LISTS)
def test_a_server_that_lists_no_such_model_is_asked_one_short_question(models):
    result, bodies = check(models)
    assert "one question was sent to m" in result.notice
    assert [body["max_tokens"] for body in bodies] == [16]


@pytest.mark.parametrize(
    "models",
    [
        {"data": [{"id": "other"}, {"id": "m", "max_model_len": 99}]},
        [{"id": "m", "max_model_len": 99}],
        [{"name": "m", "max_model_len": 99}],
        {"models": [{"id": None, "model": "m", "max_model_len": 99}]},
        {"data": [{"id": "m-2026", "aliases": ["m"], "max_model_len": 99}]},
    ],
)
def test_a_server_that_lists_the_model_is_asked_nothing(models):
    result, bodies = check(models)
    assert (result.context, result.notice, bodies) == (99, None, [])


@pytest.mark.parametrize("names", [["other"], ["m:8b"], ["M"]])
def test_a_server_that_lists_other_models_alone_is_refused(names):
    with pytest.raises(EndpointError, match="does not serve m"):
        check({"data": [{"id": name} for name in names]})


def test_a_variant_of_a_listed_model_is_asked_for():
    async def main():
        models = {"data": [{"id": "vendor/m"}]}
        async with serving(GOOD, models) as (url, bodies), open_session() as session:
            teacher = replace(endpoint(url), model="vendor/m:nitro")
            return await Client(session, teacher, None).check(url), bodies

    result, bodies = asyncio.run(main())
    assert result.notice
    assert [body["model"] for body in bodies] == ["vendor/m:nitro"]


def test_a_page_in_place_of_the_list_of_models_asks_for_the_address(monkeypatch):
    monkeypatch.setattr(clients, "_LONGEST_PAUSE", 0)
    page = answer(200, "<!doctype html><title>Welcome</title>")
    with pytest.raises(EndpointError, match="is base_url the address of the API"):
        check(page, page)


@pytest.mark.parametrize("status", [429, 500, 502, 503])
def test_a_server_that_cannot_list_its_models_now_is_waited_for(monkeypatch, status):
    monkeypatch.setattr(clients, "_LONGEST_PAUSE", 0)
    answers = [answer(503, "loading")] * 5 + [lambda _: GOOD]
    result, bodies = check(answer(status, ""), lambda request: answers.pop(0)(request))
    assert f"answers HTTP {status} in place of a list of its models" in result.notice
    assert len(bodies) == 6


def test_a_server_that_is_never_ready_ends_the_check_after_the_patience():
    async def main():
        busy = answer(429, "slow down")
        async with serving(busy, busy) as (url, _), open_session() as session:
            await Client(session, endpoint(url), None).check(url, patience=0.2)

    with pytest.raises(Unavailable, match="set a longer --patience"):
        asyncio.run(main())


@pytest.mark.parametrize("failure", ["dead", 403, 502, "page"])
def test_a_proxy_that_fails_the_first_check_is_named(monkeypatch, failure):
    monkeypatch.setattr(clients, "_LONGEST_PAUSE", 0)

    async def refuse(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        status = 200 if failure == "page" else failure
        body = b"<html>Blocked</html>"
        head = f"HTTP/1.1 {status} Odd\r\nConnection: close\r\nContent-Length: {len(body)}"
        writer.write(head.encode() + b"\r\n\r\n" + body)
        await writer.drain()
        writer.close()

    async def main():
        proxy = await asyncio.start_server(refuse, "127.0.0.1", 0)
        port = proxy.sockets[0].getsockname()[1]
        if failure == "dead":
            proxy.close()
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{port}")
        url = "http://api.example/v1"
        async with proxy, open_session() as session:
            await Client(session, endpoint(url), None).check(url, patience=0.2)

    with pytest.raises(EndpointError) as caught:
        asyncio.run(main())
    assert "through the proxy http://127.0.0.1:" in str(caught.value)
    assert "(HTTP_PROXY): correct it, or add api.example to NO_PROXY" in str(caught.value)


@pytest.mark.parametrize("location", ["http://[bad", "//[", "http://[::1"])
def test_an_unreadable_redirect_names_the_teacher_and_the_status(location):
    with pytest.raises(EndpointError, match=r"teacher t: .*HTTP 302.*correct base_url") as caught:
        check(answer(302, "", Location=location))
    assert repr(location) in str(caught.value)


def test_a_long_list_is_shortened_and_the_nearest_name_is_shown():
    names = [f"vendor/model-{number}" for number in range(400)] + ["mm"]
    with pytest.raises(EndpointError, match="did you mean 'mm'") as caught:
        check({"data": [{"id": name} for name in names]})
    assert len(str(caught.value)) < 600


def test_the_question_is_sent_again_while_a_server_loads_the_model(monkeypatch):
    monkeypatch.setattr(clients, "_LONGEST_PAUSE", 0)
    answers = [answer(503, "loading", Retry_After="900"), {"choices": []}, GOOD]

    def chat(request):
        first = answers.pop(0)
        return first(request) if callable(first) else first

    result, bodies = check(LISTS["empty"], chat)
    assert result.notice
    assert len(bodies) == 3


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (404, {"error": {"message": "model 'm' not found, try pulling it first"}}),
        (400, {"error": {"message": "Invalid model name passed in model=m"}}),
        (401, "no key"),
    ],
)
def test_a_question_that_is_refused_ends_the_run_with_the_servers_words(status, body):
    with pytest.raises(EndpointError) as caught:
        check(LISTS["no list"], answer(status, body))
    assert not isinstance(caught.value, Unavailable)
    assert (body if isinstance(body, str) else body["error"]["message"]) in str(caught.value)


def test_settings_of_thinking_may_need_more_tokens_than_the_question():
    limits = []

    async def main():
        def chat(request):
            limits.append(bodies[-1]["max_tokens"])
            return answer(400, "too few for thinking")(request) if limits[-1] < 50 else GOOD

        async with serving(chat, LISTS["empty"]) as (url, bodies), open_session() as session:
            return await Client(session, endpoint(url), None).check(url)

    assert asyncio.run(main()).notice
    assert limits == [16, 100]


def test_extra_keys_are_sent_as_they_are_and_take_the_place_of_max_tokens():
    extra = {"max_completion_tokens": 50, "provider": {"order": ["a"]}}
    body = request_body(endpoint(extra=extra), MESSAGES, SCHEMA, 1)
    assert list(body) == [
        "messages", "model", "response_format", "temperature", "max_completion_tokens",
        "provider", "seed",
    ]  # fmt: skip
    assert (body["max_completion_tokens"], body["provider"]) == (50, {"order": ["a"]})


def test_a_schema_is_sent_whole_without_bounds_as_json_or_not_at_all():
    formats = {
        structured: request_body(endpoint(structured=structured), MESSAGES, SCHEMA, 0).get(
            "response_format"
        )
        for structured in ("json_schema", "json_schema_plain", "json_object", "none")
    }
    assert formats["json_schema"]["json_schema"]["schema"] == SCHEMA
    plain = formats["json_schema_plain"]["json_schema"]["schema"]
    assert plain["properties"]["magnitude"] == {"type": "integer"}
    assert plain["properties"]["rationale"] == {"type": "string"}
    assert plain["properties"]["category"] == SCHEMA["properties"]["category"]
    assert plain["required"] == SCHEMA["required"]
    assert plain["additionalProperties"] is False
    assert formats["json_object"] == {"type": "json_object"}
    assert formats["none"] is None


def test_a_field_that_is_called_like_a_bound_remains():
    schema = {"type": "object", "properties": {"format": {"type": "string", "format": "date"}}}
    plain = clients.plain_schema(schema)
    assert plain["properties"] == {"format": {"type": "string"}}


def panel_of(folder, **settings):
    write_panel(folder / "panel.yaml", "http://127.0.0.1:9/v1", **settings)
    return load_panel(folder / "panel.yaml").teachers[0]


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"extra": {"messages": []}}, "'messages' is written by the package"),
        ({"extra": {"model": "x"}}, "'model' is written by the package"),
        ({"extra": {"response_format": {}}}, "set `structured`"),
        ({"extra": {"stream": True}}, "'stream' may only be false"),
        ({"extra": {"n": 4}}, "'n' may only be 1"),
        ({"extra": {"top_p": 1}}, "'top_p' belongs into `sampling`"),
        ({"extra": {"max_completion_tokens": 0}}, "whole number of at least 1"),
        ({"extra": [1]}, "extra: must be keys and values"),
        ({"structured": "json"}, "is not known"),
        ({"sampling": {"temperature": 0}}, "missing key 'max_tokens'"),
        ({"sampling": {"temperature": 0, "max_tokens": 1, "max_completion_tokens": 1}},
         "either max_tokens or"),
        ({"sampling": {"temperature": 0, "max_completion_tokens": 1},
          "extra": {"max_completion_tokens": 1}}, "write it once"),
    ],
)  # fmt: skip
def test_keys_that_contradict_each_other_are_refused(tmp_path, settings, problem):
    with pytest.raises(ValueError, match=r"panel\.yaml") as caught:
        panel_of(tmp_path, **settings)
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "limit"),
    [
        ({"sampling": {"temperature": 0, "max_tokens": 5}}, 5),
        ({"sampling": {"temperature": 0, "max_completion_tokens": 6}}, 6),
        ({"sampling": {"temperature": 0}, "extra": {"max_completion_tokens": 7}}, 7),
        ({"sampling": {"temperature": 0, "max_tokens": 5},
          "extra": {"max_completion_tokens": 7, "stream": False}}, 7),
    ],
)  # fmt: skip
def test_the_token_limit_stands_in_one_of_three_places(tmp_path, settings, limit):
    assert panel_of(tmp_path, **settings).token_limit == limit


def test_a_rubric_without_the_format_needs_a_server_that_gets_the_schema(tmp_path):
    rubric = load_rubric("semantic-gap").as_mapping()
    rubric["task"] = "{categories} {magnitude} {confidence} rationale category JSON"
    (tmp_path / "rubric.yaml").write_text(json.dumps(rubric))
    for structured in ("json_schema", "json_schema_plain"):
        panel_of(tmp_path, rubric="rubric.yaml", structured=structured)
    for structured in ("json_object", "none"):
        with pytest.raises(ValueError, match="does not name magnitude, confidence"):
            panel_of(tmp_path, rubric="rubric.yaml", structured=structured)


def test_what_determines_replies_cannot_change_for_a_teacher_with_replies(tmp_path, scripted):
    write_pairs(tmp_path / "pairs.jsonl", 2)
    url = scripted().url
    write_panel(tmp_path / "panel.yaml", url, extra={"user": "me"})
    annotate(tmp_path)
    with Store(tmp_path / "run.sqlite") as store:
        assert store.teachers()[0].sampling["extra"] == {"user": "me"}
    write_panel(tmp_path / "panel.yaml", url)
    assert "give the changed teacher another name" in annotate(tmp_path, ends_well=False)
    write_panel(tmp_path / "panel.yaml", url, extra={"user": "me"}, structured="none")
    assert "give the changed teacher another name" in annotate(tmp_path, ends_well=False)
    # The default is what stores of earlier versions have.
    write_panel(tmp_path / "panel.yaml", url, extra={"user": "me"}, structured="json_schema")
    annotate(tmp_path)


def test_exported_requests_have_the_same_extra_keys_and_schema(tmp_path):
    write_pairs(tmp_path / "pairs.jsonl", 2)
    extra = {"max_completion_tokens": 50, "provider": {"order": ["a"]}}
    teacher = panel_of(tmp_path, extra=extra, structured="json_schema_plain")
    out = tmp_path / "requests.jsonl"
    result = run(
        "export-requests", "--pairs", tmp_path / "pairs.jsonl", "--panel", tmp_path / "panel.yaml",
        "--store", tmp_path / "run.sqlite", "--out", out,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    bodies = [json.loads(line)["body"] for line in out.read_text().splitlines()]
    assert len(bodies) == 6
    for body in bodies:
        assert body == request_body(teacher, body["messages"], SCHEMA, 0)
