"""What a Space on the open net must bear: texts that bite, odd requests, crowds, curious names."""

import asyncio
import base64
import json
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from support.browser import INSPECTOR, inspector
from support.listing import list_files

sys.path.insert(0, str(INSPECTOR))
import library
from opening import Limits

BITE = """<script>window.bitten = 1</script><img src=x onerror="window.bitten = 2">
<svg onload="window.bitten = 3"></svg> ![tracked](https://tracker.example/pixel.png)
[link](javascript:window.bitten=4) <a href="https://evil.example">click</a> {{value}} ${value}
```html
<iframe src="https://evil.example"></iframe>
```
- <b onmouseover="window.bitten = 5">item</b>
# <h1 onclick="window.bitten = 6">heading</h1>
**<i>bold</i>** `<u>code</u>`"""
FUNCTIONS = ("start", "scores", "rows", "pair", "find", "search", "betas", "export")


@pytest.fixture(scope="module")
def biting(demo, tmp_path_factory):
    """The demo's data set, as somebody mean would publish it: names, texts, replies and facts."""
    folder = shutil.copytree(demo / "dataset", tmp_path_factory.mktemp("biting") / "dataset")
    for name, columns in {
        "data/train-00000-of-00001.parquet": ("prompt", "chosen", "rejected", "source_id"),
        "annotations/train-00000-of-00001.parquet": ("rationale", "raw", "model", "revision"),
    }.items():
        table = pq.read_table(folder / name)
        for column in columns:
            field = table.schema.field(column)
            values = table[column].to_pylist()
            turn = [{"role": BITE, "content": BITE}]
            bad = [turn if isinstance(value, list) else BITE for value in values]
            table = table.set_column(
                table.schema.get_field_index(column), field, pa.array(bad, field.type)
            )
        pq.write_table(table, folder / name)
    list_files(folder)
    facts = json.loads((folder / "manifest.json").read_text())
    facts["source"] |= {"name": BITE, "revision": BITE}
    facts["license"] = BITE
    facts["teachers"][0]["model"] = BITE
    facts["teachers"][0]["refused"] = {BITE: 3}
    facts["audit"]["checks"][0]["title"] = BITE
    facts["arm"] = {BITE: BITE}
    (folder / "manifest.json").write_text(json.dumps(facts))
    return folder


@pytest.fixture(scope="module")
def url(biting, demo, hub, releases):
    """An inspector of it, which reaches the Hub of the tests, and has a token of its own."""
    hub.publish(releases / "one", "org/open")
    hub.publish(releases / "two", "org/closed-pairs", "--private")
    with inspector(biting, **hub.env | {"HF_HUB_DISABLE_PROGRESS_BARS": "1"}) as url:
        yield url


@pytest.fixture(scope="module")
def ask(url):
    """Calls a function of the page's, as anybody could."""
    return caller(url)


def caller(url):
    config = httpx.get(f"{url}config").json()
    (part,) = [
        component["id"]
        for component in config["components"]
        if component["props"].get("server_fns")
    ]

    def call(name, arguments, *, timeout=60):
        body = {"data": arguments, "fn_name": name, "component_id": part, "session_hash": "s"}
        while True:
            answer = httpx.post(f"{url}gradio_api/component_server", json=body, timeout=timeout)
            answer.raise_for_status()
            result = answer.json()
            if not (isinstance(result, dict) and result.get("again")):
                return result
            time.sleep(0.1)

    return call


def test_texts_bite_nobody(browser, url):
    context = browser.new_context(viewport={"width": 1440, "height": 950})
    context.set_default_timeout(45_000)
    page = context.new_page()
    outside = []
    page.on("request", lambda request: outside.append(request.url))
    page.goto(url)
    page.wait_for_selector('.inspector[data-state="ready"]')
    for look in ("side by side", "word diff", "plain text"):
        page.locator(".listing .open").first.click()
        page.get_by_role("heading", name="from the replies to beta").wait_for()
        page.get_by_role("button", name=look).click()
        page.wait_for_timeout(200)
        dialog = page.get_by_role("dialog")
        assert "<script>window.bitten" in dialog.inner_text()
        for summary in dialog.locator(".replies summary").all()[:2]:
            summary.click()
        page.keyboard.press("Escape")
    for tab in ("compare", "schedule", "teachers", "about"):
        page.get_by_role("tab", name=tab, exact=True).click()
        page.wait_for_selector('.inspector[data-state="ready"]')
        page.wait_for_timeout(300)
    assert "tracker.example" in page.locator(".about").inner_text()
    assert page.evaluate("window.bitten") is None
    count_elements = (
        "document.querySelectorAll('.inspector :is(script, img, iframe, a, object, embed)').length"
    )
    assert page.evaluate(count_elements) == 0
    assert [address for address in outside if not address.startswith((url, "data:", "blob:"))] == []
    context.close()


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize(
    "arguments",
    [
        None, [], "x", 7, {"data": 5}, {"data": "x" * 5000}, {"data": "../../etc"},
        {"data": "/etc/passwd"}, {"places": [10**30]}, {"places": [-1]}, {"places": ["1"]},
        {"places": list(range(101))}, {"place": 1e9}, {"place": True}, {"place": -1},
        {"id": "g" * 65}, {"id": 3}, {"id": ""}, {"wanted": [["text", "x" * 2000]]},
        {"wanted": [["text", "a"]] * 11}, {"wanted": [["path", "/etc"]]}, {"wanted": 3},
        {"values": "!!"}, {"values": "A" * 10**6}, {"values": base64.b64encode(b"12").decode()},
        {"kind": "csv", "query": ""}, {"kind": "jsonl", "query": "colour:red"},
        {"kind": "parquet", "query": "x" * 1001}, {"kind": "../x", "query": ""},
    ],
)  # fmt: skip
def test_every_function_bears_odd_requests(ask, name, arguments):
    result = ask(name, arguments)
    assert isinstance(result, dict | list)
    if isinstance(result, dict) and "error" in result:
        assert "Traceback" not in result["error"]
        assert len(result["error"]) < 1500


def test_no_file_of_the_machine_is_given(url, biting, ask):
    for path in ("/etc/passwd", str(INSPECTOR / "app.py"), str(biting / "manifest.json")):
        answer = httpx.get(f"{url}gradio_api/file={path}")
        assert answer.status_code in (403, 404), path
    for name in (str(biting), "..", "/etc", "org/../etc", "~", "org/open@../../x"):
        result = ask("start", {"data": name})
        if name != str(biting):  # what the Space is for may be named
            assert "error" in result, name


def test_what_a_visitor_names_is_read_without_the_spaces_token(ask, hub):
    assert ask("start", {"data": "org/open"})["count"] == 96
    result = ask("start", {"data": "org/closed-pairs"})
    assert result == {
        "error": "org/closed-pairs: the Hub has no public data set of that name, or cannot be "
        "reached"
    }
    hub.python(
        "from huggingface_hub import HfApi\n"
        "HfApi().create_repo('org/other-data', repo_type='dataset', exist_ok=True)"
    )
    result = ask("start", {"data": "org/other-data"})
    assert result == {"error": "org/other-data: not a data set of sp2dpo (it has no manifest.json)"}


@pytest.mark.slow
def test_the_space_itself_may_be_for_a_private_data_set(hub, releases, url):
    with inspector("org/closed-pairs", **hub.env) as private_url:
        result = caller(private_url)("start", {})
        assert result["count"] == 96
        assert result["commit"] == hub.head("org/closed-pairs")


@pytest.mark.parametrize(
    ("limits", "why"),
    [
        ({"packed": 1000}, "but this Space opens at most 0 MB for visitors"),
        ({"unpacked": 1000}, "0 MB unpacked, which is the limit for data sets that visitors name"),
        ({"rows": 100}, "the limit is 100 for data sets that visitors"),
    ],
)
def test_a_visitors_data_set_has_a_size(hub, url, limits, why):
    output = hub.python(
        f"import sys; sys.path.insert(0, {str(INSPECTOR)!r})\n"
        "from pathlib import Path\n"
        "import errors, library, opening\n"
        f"opened = library.Library('', Path('demo'), opening.Limits(**{limits!r}))\n"
        "try:\n"
        "    opened.wait('org/open')\n"
        "except errors.UnusableDataset as error:\n"
        "    print(error)\n"
    )
    assert why in output


def test_few_data_sets_stay_open(tmp_path, monkeypatch):
    opened = library.Library("", INSPECTOR / "demo", Limits(open=2))
    monkeypatch.setattr(opened, "_open", lambda key: key)
    for name in ("", "a/a", "b/b", "c/c", "a/a"):
        opened.wait(name)
    assert list(opened._open_datasets) == ["", "c/c", "a/a"]


def test_fifty_people_at_once(ask):
    def visit(number):
        places = list(range(number, number + 20))
        assert len(ask("rows", {"places": places})) == 20
        assert len(ask("pair", {"place": number})["replies"]) == 9
        return len(ask("search", {"wanted": [["text", f"word {number}"]]}))

    with ThreadPoolExecutor(50) as crowd:
        assert list(crowd.map(visit, range(50))) == [1] * 50


def test_the_api_and_the_tool_find_what_the_page_finds(url):
    from gradio_client import Client

    client = Client(url, verbose=False)

    def find(**options):
        return json.loads(client.predict(**options, api_name="/find_pairs"))

    while "is being opened" in find(data="org/open").get("error", ""):
        time.sleep(0.1)
    result = find(query="category:style sort:-beta", data="org/open", limit=3, offset=1)
    assert result["count"] > 3
    assert len(result["pairs"]) == 3
    assert {pair["category"] for pair in result["pairs"]} == {"style"}
    betas = [pair["beta"] for pair in result["pairs"]]
    assert betas == sorted(betas, reverse=True)
    assert len(result["pairs"][0]["replies"]) == 9
    assert find(query="beta:x")["error"].startswith("beta: takes numbers")
    assert "0 to 100" in find(limit=101)["error"]
    named = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    assert list(named) == ["/find_pairs"]
    with ThreadPoolExecutor(1) as aside:  # where no other loop runs
        tools, mcp_result = aside.submit(asyncio.run, over_mcp(f"{url}gradio_api/mcp/")).result()
    assert len(tools) == 1
    assert tools[0].endswith("find_pairs")
    assert mcp_result["count"] == result["count"]


async def over_mcp(address):
    """The tools of the server, and what its tool finds."""
    from mcp import ClientSession
    from mcp.client.streamable_http import streamable_http_client

    async with (
        streamable_http_client(address) as (read, write, *_),
        ClientSession(read, write) as session,
    ):
        await session.initialize()
        tools = [tool.name for tool in (await session.list_tools()).tools]
        arguments = {"query": "category:style", "data": "org/open", "limit": 1}
        done = await session.call_tool(tools[0], arguments)
        return tools, json.loads(done.content[0].text)
