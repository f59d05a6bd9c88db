"""Hostile teachers: none of them holds up a run, fills its memory or makes it show a key."""

import asyncio
import codecs
import json
import time

import pytest

from benchmarks.hostile_teachers import OTHER_KEY, writings
from servers.hostile_servers import CASES, KEY, KEY_VARIABLE, MODEL, hostile_server
from sp2dpo.inference.bodies import to_utf8
from sp2dpo.inference.client import Client, Declined, EndpointError, open_session
from sp2dpo.inference.endpoint import Endpoint
from sp2dpo.inference.secrets import Secrets

LONGEST = 30.0
"""Seconds for one answer, of which 0.3 are the time-out; a guard against hangs."""


def ask(hostile, notices):
    """What the client makes of a hostile server: the reply, or the error."""

    async def main(url):
        endpoint = Endpoint(
            name="t", model=MODEL, revision=None, base_urls=(url,), timeout=0.3,
            api_key_env=KEY_VARIABLE, sampling={"temperature": 0, "max_tokens": 300},
        )  # fmt: skip
        async with open_session() as session:
            client = Client(session, endpoint, None, say=notices.append)
            if hostile.models:
                return await client.check(url, patience=0)
            return await client.ask(url, [{"role": "user", "content": "Hello?"}], 0)

    with hostile_server(hostile) as server:
        try:
            return asyncio.run(main(server.url)), server
        except (EndpointError, Declined) as error:
            return error, server


@pytest.mark.parametrize("hostile", CASES, ids=lambda hostile: hostile.name)
def test_a_hostile_server_leads_to_one_short_error_or_to_a_reply(hostile, monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    started, notices = time.monotonic(), []
    outcome, server = ask(hostile, notices)
    # A server that sends without a pause also keeps the test's only processor busy.
    assert time.monotonic() - started < LONGEST
    assert server.strangers_requests == 0
    content = repr(outcome).lower().encode()
    assert not [writing for writing in writings(KEY) if writing in content]
    if isinstance(outcome, Exception):
        assert len(str(outcome)) < 1000
        assert "\n" not in str(outcome)
    if "the key in" in hostile.name:
        assert "its server sent back an API key" in "".join(notices)
    else:
        assert not notices


WRITINGS = {
    "base64 in base64's URL alphabet": "c2staG9zdGlsZS9UZWFjaGVyK0tleSIwMTIzNDU2Nzg5",
    "upper case": KEY.upper(),
    "some letters escaped": KEY.replace("H", "\\u0048").replace("T", "\\u0054"),
    "slashes escaped": KEY.replace("/", "\\/").replace('"', '\\"'),
    "escapes inside of escapes": KEY.replace("s", "\\u0073").replace('"', "\\u0022"),
    "bytes": str(list(KEY.encode())),
    "HTML": KEY.replace('"', "&quot;"),
    "entities": "".join(f"&#x{ord(letter):X};" for letter in KEY),
    "some entities": KEY.replace("-", "&#45;").replace("/", "&#x2F;"),
    "some percents": KEY.replace("-", "%2d").replace("+", "%2B"),
    "some bytes": KEY.replace("-", "\\x2d").replace("/", "\\\\x2f"),
    "percent": "".join(f"%{ord(letter):X}" for letter in KEY),
}


@pytest.mark.parametrize("writing", WRITINGS.values(), ids=WRITINGS)
def test_a_key_is_removed_in_other_writings(writing, monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    secrets = Secrets([KEY_VARIABLE])
    assert secrets.hide_in_body(f"a {writing} b".encode()).startswith(b"a ")
    assert b"***" in secrets.hide_in_body(f"a {writing} b".encode())
    assert "***" in secrets.hide_in_text(f"a {writing} b")
    assert secrets.count == 3


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_a_key_is_removed_in_every_encoding_of_json(encoding, monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    secrets = Secrets([KEY_VARIABLE])
    body = to_utf8(json.dumps({"echo": KEY}).encode(encoding), None)
    assert json.loads(secrets.hide_in_body(body)) == {"echo": "***"}


def test_a_key_beside_an_escaped_key_does_not_save_it(monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    secrets = Secrets([KEY_VARIABLE])
    twice = "".join(f"\\\\u{ord(letter):04x}" for letter in KEY)
    assert secrets.hide_in_body(f"{KEY} {twice}".encode()) == b"*** ***"
    partly = KEY.replace("s", "\\\\u0073")
    assert secrets.hide_in_body(f"{KEY} {partly}".encode()) == b"***"


def test_utf_16_within_utf_16_is_no_json():
    inner = codecs.BOM_UTF16_LE + json.dumps({"echo": KEY}).encode("utf-16-le")
    for outer in (inner.decode("latin-1").encode("utf-16-le"), codecs.BOM_UTF16_LE + inner[2:-1]):
        body = to_utf8(outer, None)
        assert json.detect_encoding(body) == "utf-8"
        with pytest.raises(ValueError, match="Expecting value"):
            json.loads(body)


def test_texts_without_a_key_are_unchanged(monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    secrets = Secrets([KEY_VARIABLE, "NO_SUCH_VARIABLE"])
    for text in ("", KEY[:-1], KEY[1:], "\\u00e9 \\/ \\\\u0041", "\ud800 emoji \U0001f600"):
        assert secrets.hide_in_text(text) == text
    assert secrets.count == 0


def test_short_keys_such_as_empty_are_no_secret(monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, "EMPTY")
    assert Secrets([KEY_VARIABLE]).hide_in_text("EMPTY is empty") == "EMPTY is empty"


def test_the_keys_of_all_teachers_are_removed_from_the_answers_of_each(monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    monkeypatch.setenv("OTHER", OTHER_KEY)
    secrets = Secrets([KEY_VARIABLE, "OTHER"])
    text = secrets.hide_in_text(f"{OTHER_KEY} and {KEY}")
    assert text == "*** and ***"
