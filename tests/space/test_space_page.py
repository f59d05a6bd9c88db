"""The inspector in a browser, used as a person would: by clicking and typing."""

import io
import json
import re

import polars as pl
import pyarrow.parquet as pq
import pytest
import yaml

from support.browser import inspector
from support.harness import BUILD, DEMO, ROOT, TESTS, process, run, succeed, write_panel

LOOKS = {
    "desktop, light": {"viewport": {"width": 1440, "height": 950}, "color_scheme": "light"},
    "phone, dark": {"viewport": {"width": 390, "height": 844}, "color_scheme": "dark"},
}
CODE = "Use **this**:\n\n```python\nprint(1 < 2)\n```\n\n1. first\n2. second"
SERVER = re.compile("component_server")
UNNAMED = """
() => {
  const which = ["button", "input", "select", "svg[role=img]", "[role=region]", "[role=tab]",
    "textarea", "canvas"].map((one) => `.inspector ${one}`).join(", ");
  return [...document.querySelectorAll(which)].filter((one) => one.checkVisibility() &&
    !(one.getAttribute("aria-label") || one.textContent.trim() || one.closest("label")))
    .map((one) => one.outerHTML.slice(0, 120));
}
"""
SIGNED = ROOT / "recipes" / "schedules" / "signed.yaml"
SCHEDULE = ROOT / "recipes" / "schedules" / "sp2dpo.yaml"


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """The demo's pairs with a source each and one of code, read by three teachers."""
    folder = tmp_path_factory.mktemp("inspected")
    rows = [json.loads(line) for line in (DEMO / "pairs.jsonl").read_text().splitlines()]
    rows = [row | {"source": "exam" if n % 3 else "forum"} for n, row in enumerate(rows)]
    code = {"id": "code", "prompt": "How do I compare?", "chosen": CODE, "rejected": "No idea."}
    rows.append(code | {"source": "exam"})
    pairs = folder / "pairs.jsonl"
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    log, store = folder / "log", folder / "run.sqlite"
    log.touch()
    command = [TESTS / "servers" / "openai_server.py", "scripted", "--log", log]
    with process(*command) as good, process(*command, "--muddled", "do I compare") as bad:
        panel = write_panel(folder / "panel.yaml", good, names=("scripted-a", "scripted-b"))
        settings = yaml.safe_load(panel.read_text())
        settings["teachers"].append(
            settings["teachers"][0] | {"name": "scripted-c", "base_url": bad}
        )
        panel.write_text(yaml.safe_dump(settings))
        done = run("annotate", "--pairs", pairs, "--panel", panel, "--store", store)
        assert "3 refused" in done.stdout, done.stdout + done.stderr
    for name, schedule in (("betas", SCHEDULE), ("signed", SIGNED)):
        betas = folder / f"{name}.parquet"
        succeed("schedule", "--store", store, "--schedule", schedule, "--out", betas)
    also = ("--also", f"signed={folder / 'signed.parquet'}", "--license", "mit")
    built = ("--store", store, "--betas", folder / "betas.parquet", "--out", folder / "dataset")
    succeed(*BUILD, *built, *also)
    return folder


@pytest.fixture(scope="module")
def table(run_folder):
    return pl.read_parquet(run_folder / "dataset" / "data" / "*.parquet")


@pytest.fixture(scope="module")
def url(run_folder):
    with inspector(run_folder / "dataset") as url:
        yield url


@pytest.fixture(scope="module")
def looks(browser):
    """The two looks, each with what went wrong in it."""
    contexts = {}
    for name, options in LOOKS.items():
        context = browser.new_context(**options, accept_downloads=True)
        context.set_default_timeout(45_000)
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        contexts[name] = context
    yield contexts
    for context in contexts.values():
        context.close()


@pytest.fixture(params=LOOKS)
def page(request, looks, url):
    """An open page; it must leave no error, and ask no other host for anything."""
    page = looks[request.param].new_page()
    wrong = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: message.type == "error" and wrong.append(message.text))
    page.on("request", lambda outgoing: outside(outgoing.url, url) and wrong.append(outgoing.url))
    opened(page, url)
    yield page
    page.close()
    assert wrong == []


def outside(target, url):
    return not target.startswith((url, "data:", "blob:", "about:"))


def opened(page, address):
    page.goto("about:blank")
    page.goto(address)
    ready(page)


def ready(page):
    page.wait_for_selector('.inspector[data-state="ready"]')


def enter_query(page, query):
    """Types a query, as a person would, and waits until it is shown."""
    page.get_by_role("searchbox", name="filter and search").fill(query)
    page.keyboard.press("Enter")


def shows(page, count, of=97):
    page.locator(".shown").get_by_text(f"{count} of {of} pairs", exact=True).wait_for()


def listed(page, count):
    """Waits until so many rows are there."""
    page.wait_for_function(f"document.querySelectorAll('.listing tbody tr').length === {count}")


def filters_open(page):
    """The facets are folded away on a phone."""
    summary = page.locator(".facets > summary")
    if summary.is_visible() and page.locator(".facets[open]").count() == 0:
        summary.click()


def level(page, field, word):
    return page.locator(f'[data-field="{field}"][data-word="{word}"]')


def count_of(page, field, word):
    return int(level(page, field, word).locator(".count").inner_text())


def tab(page, name):
    page.get_by_role("tab", name=name, exact=True).click()
    ready(page)


def address(page):
    page.wait_for_timeout(200)
    return page.evaluate("location.hash")


def test_it_opens_with_all_pairs_and_says_so_to_everybody(page, table):
    shows(page, 97)
    listed(page, 50)
    assert page.get_by_role("status").filter(has_text="1 to 50 of 97 pairs").count() == 1
    unnamed = page.evaluate(UNNAMED)
    assert unnamed == []
    wide = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert wide[0] <= wide[1]


def test_a_facet_narrows_all_others_and_the_count(page, table):
    filters_open(page)
    forum = table.filter(pl.col("source") == "forum")
    level(page, "source", "forum").click()
    shows(page, len(forum))
    assert level(page, "source", "forum").get_attribute("aria-pressed") == "true"
    # Its own counts stay; those of the others follow.
    assert count_of(page, "source", "exam") == len(table) - len(forum)
    for category, count in forum["category"].value_counts().iter_rows():
        name = opened_name(page, category)
        assert count_of(page, "category", name) == count
    level(page, "source", "exam").click()
    shows(page, 97)
    page.get_by_role("button", name="clear source").click()
    assert "q=" not in address(page)


def opened_name(page, place):
    """The category at a place of the list."""
    return page.locator('[data-field="category"]').nth(place).get_attribute("data-word")


def chosen_range(page):
    """The ends of what is brushed, as the address says them."""
    low, high = re.search(r"beta%3A([\d.]+)\.\.([\d.]+)", address(page)).groups()
    return float(low), float(high)


def test_the_histogram_is_brushed_and_its_bars_are_clicked(page, table):
    chart = page.locator('svg.histogram[data-name="beta"]')
    box = chart.bounding_box()
    across = lambda share: box["x"] + 46 + share * (box["width"] - 58)  # noqa: E731
    middle = box["y"] + box["height"] / 2
    page.mouse.move(across(0.02), middle)
    page.mouse.down()
    page.mouse.move(across(0.2), middle, steps=4)
    page.mouse.move(across(0.4), middle, steps=4)
    page.mouse.up()
    low, high = chosen_range(page)
    inside = table.filter(pl.col("beta").is_between(low - 1e-6, high + 1e-6))
    shows(page, len(inside))
    assert 0 < len(inside) < 97
    page.mouse.click(across(0.9), middle)
    low, high = chosen_range(page)
    assert high - low < 0.02
    page.mouse.click(across(0.9), middle)  # the same bar once more
    shows(page, 97)
    chart.focus()
    page.keyboard.press("ArrowRight")
    assert "beta" in address(page)
    page.keyboard.press("Escape")
    shows(page, 97)


def contents(row):
    return " ".join(
        turn["content"] for name in ("prompt", "chosen", "rejected") for turn in row[name]
    )


def test_text_is_searched_whatever_its_case(page, table):
    enter_query(page, "MOON")
    matching = [row for row in table.iter_rows(named=True) if "moon" in contents(row).lower()]
    shows(page, len(matching))
    enter_query(page, '-moon "no such words"')
    shows(page, 0)
    assert (
        page.get_by_role("status").filter(has_text="no pair matches: clear a filter").count() == 1
    )
    page.get_by_role("button", name="clear all").click()
    shows(page, 97)


def test_a_query_that_cannot_be_read_says_why_and_keeps_what_is_shown(page):
    enter_query(page, "beta:high")
    page.get_by_role("alert").filter(has_text="beta: takes numbers").wait_for()
    shows(page, 97)
    enter_query(page, "beta:..0.1")
    assert page.locator(".search .problem").is_hidden()


def test_the_list_is_sorted_and_turned_over(page, table):
    page.get_by_role("combobox", name="sort").select_option("-beta")
    ready(page)
    highest = f"{table['beta'].max():.4f}"
    page.locator(".listing td.beta").first.get_by_text(highest).wait_for()
    shown = [float(text) for text in page.locator(".listing td.beta").all_inner_texts()]
    assert shown == sorted(shown, reverse=True)
    assert shown[0] == pytest.approx(table["beta"].max(), abs=1e-4)
    page.get_by_role("button", name="next", exact=True).click()
    page.get_by_text("51 to 97 of 97 pairs").wait_for()
    assert "n=1" in address(page)


def test_a_pair_shows_its_replies_and_the_arithmetic_of_explain(page, run_folder, table):
    enter_query(page, '"do I compare"')
    listed(page, 1)
    page.locator(".listing .open").first.click()
    pair = page.get_by_role("dialog")
    pair.get_by_role("heading", name="from the replies to beta").wait_for()
    (row,) = table.filter(pl.col("source_id") == "code").to_dicts()
    store = ("--store", run_folder / "run.sqlite", "--betas", run_folder / "betas.parquet")
    explained = succeed("explain", row["pair_id"], *store)
    gap = re.search(r"gap   mean\(([^)]*)\) = ([\d.]+)", explained)
    steps = pair.locator(".steps").inner_text()
    assert f"mean({gap[1]})" in steps
    assert re.search(r"= ([\d.]+)", explained.split("beta  ")[-1])[1][:6] in steps
    assert f"{row['beta']:.6f}" in steps
    rows = pair.locator(".replies tbody tr")
    assert rows.count() == 6 + 9  # each unreadable one was asked for twice more
    assert rows.filter(has_text="refused: ").count() == 9
    rows.filter(has_text="scripted-a").first.locator("summary").click()
    assert '"rationale"' in rows.filter(has_text="scripted-a").first.inner_text()
    # Code and lists are shown as such.
    assert pair.locator(".chosen pre code").inner_text() == "print(1 < 2)"
    assert pair.locator(".chosen li").count() == 2
    pair.get_by_role("button", name="word diff").click()
    assert "first" in pair.locator(".diff ins").all_inner_texts()[-1]
    pair.get_by_role("button", name="plain text").click()
    assert "```python" in pair.locator(".chosen pre.raw").inner_text()
    page.keyboard.press("Escape")
    assert page.get_by_role("dialog").count() == 0


def test_pairs_are_walked_by_the_keys(page):
    page.locator(".listing .open").first.click()
    heading = page.locator("#pair-title")
    heading.get_by_text("beta").wait_for()
    first = heading.inner_text()
    page.keyboard.press("ArrowRight")
    page.locator("#pair-title:not(:text-is('" + first + "'))").wait_for()
    page.keyboard.press("ArrowLeft")
    heading.get_by_text(first, exact=True).wait_for()
    page.keyboard.press("Escape")
    page.keyboard.press("4")
    page.get_by_role("heading", name="teachers").wait_for()
    page.keyboard.press("/")
    page.keyboard.type("beta:0.03\n")
    page.get_by_role("tab", name="pairs", selected=True).wait_for()
    assert "beta" in address(page)


def test_two_schedules_are_compared_and_a_mover_is_one_click_away(page, table, run_folder):
    tab(page, "compare")
    signed = pl.read_parquet(run_folder / "signed.parquet").select("pair_id", other="beta")
    joined = table.join(signed, on="pair_id")
    moved = joined.with_columns(by=pl.col("other") - pl.col("beta")).filter(
        pl.col("by").abs() > 1e-6
    )
    page.get_by_text(f"{len(moved)} pairs").first.wait_for()
    most = moved.sort(pl.col("by").abs(), descending=True)["by"][0]
    first = page.locator(".compare .movers tbody tr").first
    assert float(first.locator("th").inner_text()) == pytest.approx(most, abs=1e-4)
    assert (
        page.locator("canvas.scatter")
        .get_attribute("aria-label")
        .startswith("published against signed")
    )
    first.locator(".open").click()
    page.locator("#pair-title").get_by_text("beta").wait_for()
    page.keyboard.press("Escape")
    page.get_by_role("combobox", name="to schedule").select_option("published")
    page.get_by_text("Choose two different schedules.").wait_for()


def test_the_schedule_is_edited_and_taken_home(page, run_folder, table, tmp_path):
    tab(page, "schedule")
    page.get_by_role("spinbutton", name="beta_min").fill("0.05")
    page.get_by_role("combobox", name="gap", exact=True).select_option("signed")
    page.get_by_role("combobox", name="map").select_option("power")
    page.get_by_role("spinbutton", name="exponent").fill("2")
    page.get_by_role("checkbox", name="own envelope for safety").check()
    page.get_by_role("spinbutton", name="safety beta_max").fill("0.9")
    page.get_by_text("beta_max: 0.9").wait_for()
    page.get_by_role("button", name="copy YAML").click()
    page.get_by_text("copied").first.wait_for()
    text = page.evaluate("navigator.clipboard.readText()")
    (tmp_path / "edited.yaml").write_text(text)
    betas = tmp_path / "betas.parquet"
    words = ("--schedule", tmp_path / "edited.yaml", "--out", betas)
    succeed("schedule", "--store", run_folder / "run.sqlite", *words)
    ours = pl.read_parquet(betas)
    with page.expect_download() as coming:
        page.get_by_role("button", name="download betas").click()
    theirs = pl.read_parquet(coming.value.path())
    joined = ours.join(theirs, on="pair_id", suffix="_page")
    assert len(joined) == 97
    assert (joined["beta"] - joined["beta_page"]).abs().max() < 1e-9
    mean = page.locator('[data-fact="mean"]').inner_text()
    assert float(mean) == pytest.approx(ours["beta"].mean(), abs=1e-4)
    assert page.locator(".editor .movers tbody tr").count() == 30
    page.get_by_role("spinbutton", name="beta_min", exact=True).fill("0.4")
    page.get_by_role("alert").filter(has_text="beta_min must be below beta_max").wait_for()
    assert page.get_by_role("button", name="copy YAML").is_disabled()
    page.get_by_role("button", name="reset").click()
    page.get_by_text("No beta differs.").wait_for()


def test_the_teachers_are_beside_each_other(page, run_folder):
    tab(page, "teachers")
    page.get_by_role("heading", name="teachers").wait_for()
    agreement = json.loads(succeed("agreement", "--store", run_folder / "run.sqlite", "--json"))
    rows = page.locator(".teacher-table tbody tr")
    assert rows.count() == 3
    last = rows.nth(2)
    assert "scripted-c" in last.inner_text()
    assert re.search(r"[a-z] 3$", last.locator("td").nth(1).locator("div div").inner_text())
    pairs = agreement["teachers"]["twos"]
    matrix = page.locator(".matrix").first.locator("tbody tr").first.locator("td").nth(1)
    (between,) = [
        pair for pair in pairs if {pair["one"], pair["other"]} == {"scripted-a", "scripted-b"}
    ]
    assert float(matrix.inner_text()) == pytest.approx(between["same_category"], abs=0.006)
    last.get_by_role("button", name="refused").click()
    shows(page, 1)


def test_a_copied_link_opens_the_same(page, url):
    enter_query(page, "category:safety sort:-gap")
    page.get_by_role("status").filter(has_text="1 to ").wait_for()
    page.locator(".listing:not([aria-busy])").wait_for()
    page.locator(".listing .open").first.click()
    page.locator("#pair-title").get_by_text("beta").wait_for()
    title = page.locator("#pair-title").inner_text()
    page.get_by_role("dialog").get_by_role("button", name="word diff").click()
    page.wait_for_timeout(300)
    page.get_by_role("dialog").get_by_role("button", name="copy link").click()
    link = page.evaluate("navigator.clipboard.readText()")
    opened(page, link)
    page.locator("#pair-title").get_by_text(title).wait_for()
    assert page.get_by_role("button", name="word diff").get_attribute("aria-pressed") == "true"
    page.keyboard.press("Escape")
    assert page.get_by_role("searchbox").input_value() == "category:safety sort:-gap"


def test_what_is_filtered_is_exported(page, table):
    enter_query(page, "source:forum sort:-beta")
    forum = table.filter(pl.col("source") == "forum")
    shows(page, len(forum))
    with page.expect_download() as coming:
        page.get_by_role("button", name="export Parquet").click()
    exported = pq.read_table(io.BytesIO(coming.value.path().read_bytes())).to_pylist()
    assert {row["pair_id"] for row in exported} == set(forum["pair_id"])
    betas = [row["beta"] for row in exported]
    assert betas == sorted(betas, reverse=True)
    assert isinstance(exported[0]["category"], str)
    with page.expect_download() as coming:
        page.get_by_role("button", name="export JSONL").click()
    lines = [json.loads(line) for line in coming.value.path().read_text().splitlines()]
    assert lines == exported


def test_what_cannot_be_opened_says_so(page, url):
    page.get_by_role("textbox", name="data set on the Hub").fill("no/path/../etc")
    page.get_by_role("button", name="open", exact=True).click()
    page.get_by_role("heading", name="This data set cannot be shown").wait_for()
    page.get_by_text("name a data set on the Hub: org/name").wait_for()


def test_a_server_that_does_not_answer_is_said_and_asked_again(looks, url):
    page = looks["desktop, light"].new_page()
    page.route(SERVER, lambda route: route.abort())
    page.goto(url)
    page.get_by_role("alert").filter(has_text="the server does not answer: try again").wait_for()
    page.unroute(SERVER)
    page.get_by_role("button", name="try again").click()
    ready(page)
    shows(page, 97)
    # A page that is lost later leaves what is shown, and says so where it is missed.
    page.route(SERVER, lambda route: route.abort())
    page.get_by_role("button", name="next", exact=True).click()
    page.get_by_role("status").filter(has_text="the server does not answer").first.wait_for()
    page.close()


def test_while_it_opens_it_says_so(looks, url):
    page = looks["desktop, light"].new_page()
    page.route(SERVER, lambda route: None)
    page.goto(url)
    page.get_by_role("status").filter(has_text="opening the data set…").wait_for()
    page.close()


def test_the_about_page_says_what_it_is(page):
    tab(page, "about")
    text = page.locator(".about").inner_text()
    for words in ("mit", "97 pairs", "semantic-gap", "find_pairs", "over_variants: median"):
        assert words in text
