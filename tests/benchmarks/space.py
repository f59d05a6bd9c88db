"""How quick the inspector is on a large data set, in a headless Chromium, and what it takes.

A data set of 59,960 pairs with nine replies each (the store of publish.py, built) is opened in the
inspector, and in the browser: first paint, data shown, a brush and a facet until the next frame is
painted, a pair opened, a search, bytes over the wire, memory of server and browser. With --copies
N the pairs stand in the data set N times, under other ids. Medians of --rounds; nothing is
asserted.

    python tests/benchmarks/space.py [--pairs 59960] [--copies 1] [--rounds 7]
"""

import argparse
import hashlib
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from publish import make_store

from support.browser import chromium, inspector
from support.harness import COMMAND, SCHEDULE
from support.listing import list_files

READY = '.inspector[data-state="ready"]'


def build(folder, pairs):
    """A data set of that many pairs."""
    make_store(folder, pairs)
    store, betas = ("--store", folder / "run.sqlite"), folder / "betas.parquet"
    for words in (
        ("schedule", *store, "--schedule", SCHEDULE, "--out", betas),
        ("build", *store, "--betas", betas, "--license", "mit", "--out", folder / "dataset"),
    ):
        subprocess.run([*COMMAND, *map(str, words)], check=True, capture_output=True)
    return folder / "dataset"


def multiplied(dataset, copies):
    """The same rows again and again, each time under other ids."""
    for config in ("data", "annotations"):
        for path in sorted((dataset / config).glob("*.parquet")):
            table = pq.read_table(path)
            at = table.schema.get_field_index("pair_id")
            for number in range(1, copies):
                ids = [
                    hashlib.sha256(f"{number} {pair_id}".encode()).hexdigest()
                    for pair_id in table["pair_id"].to_pylist()
                ]
                name = f"{config}/train-{number:05}-{path.name}"
                copy = table.set_column(at, "pair_id", pa.array(ids))
                pq.write_table(copy, dataset / name)
    list_files(dataset)


def opened(running, url):
    """A fresh page: milliseconds to first paint and to the data, and bytes that came."""
    context = running.new_context(viewport={"width": 1440, "height": 950})
    page = context.new_page()
    page.add_init_script(path=Path(__file__).with_suffix(".js"))
    wire = context.new_cdp_session(page)
    wire.send("Network.enable")
    came = []
    wire.on("Network.loadingFinished", lambda event: came.append(event["encodedDataLength"]))
    started = time.perf_counter()
    page.goto(url, wait_until="commit")
    page.wait_for_selector(READY, timeout=900_000)
    page.evaluate("clocks.painted()")
    shown = 1000 * (time.perf_counter() - started)
    first = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    page.wait_for_load_state("networkidle")
    return page, first, shown, sum(came)


def brushed(page, rounds):
    """Milliseconds from each move of the pointer over the histogram to the painted frame."""
    chart = page.locator('svg.histogram[data-name="beta"]').bounding_box()
    middle = chart["y"] + chart["height"] / 2
    page.evaluate("window.moved = clocks.moves()")
    page.mouse.move(chart["x"] + 0.1 * chart["width"], middle)
    page.mouse.down()
    for number in range(rounds + 1):
        page.mouse.move(chart["x"] + (0.2 + 0.7 * number / rounds) * chart["width"], middle)
        page.wait_for_timeout(250)
    page.mouse.up()
    frame_times = page.evaluate("window.moved")
    page.evaluate("clocks.query('')")
    return frame_times[1:]


def clocked(page, what, values):
    """Milliseconds of each of some actions, one after the other."""
    return [page.evaluate(f"(value) => clocks.{what}(value)", value) for value in values]


def rare(dataset, count):
    """The beginnings of some pairs' prompts, which hardly any other pair has."""
    path = next((dataset / "data").glob("*.parquet"))
    rows = next(pq.ParquetFile(path).iter_batches(100, columns=["prompt"])).to_pylist()
    return [pair["prompt"][-1]["content"][:40].replace('"', "") for pair in rows[:count]]


def resident(process):
    """Megabytes of a process and its children, what is mapped from files left out."""
    every = [process, *process.children(recursive=True)]
    return sum(member.memory_info().rss - member.memory_info().shared for member in every) / 1e6


def row(what, values, unit, digits=0):
    typical = f"{statistics.median(values):,.{digits}f} {unit}"
    print(
        f"  {what:38}{typical:>14}   {min(values):,.{digits}f} to {max(values):,.{digits}f}",
        flush=True,
    )


def measure(dataset, rounds):
    started = time.perf_counter()
    with inspector(dataset) as url, chromium() as running:
        opened(running, url)[0].context.close()
        print(f"  {'from nothing to the first page':38}{time.perf_counter() - started:12.1f} s")
        pages = []
        for _ in range(rounds):
            pages.append(opened(running, url))
            if len(pages) < rounds:
                pages[-1][0].context.close()
        page = pages[-1][0]
        row("first paint", [visit[1] for visit in pages], "ms")
        row("data shown", [visit[2] for visit in pages], "ms")
        row("bytes over the wire", [visit[3] / 1e6 for visit in pages], "MB", 2)
        row("brush until painted", brushed(page, rounds), "ms")
        words = page.locator('[data-field="category"]').evaluate_all(
            "(all) => all.map((one) => one.dataset.word)"
        )
        facets = [words[number % 4] for number in range(rounds)]
        row("facet until painted", clocked(page, "facet", facets), "ms")
        page.evaluate("clocks.query('beta:..1')")
        page.wait_for_timeout(600)
        row("pair opened", clocked(page, "pair", range(rounds)), "ms")
        searches = []
        for text in rare(dataset, rounds):
            searches += clocked(page, "query", [f'"{text}"'])
            page.evaluate("clocks.query('')")
        row("search until painted", searches, "ms")
        page.locator("#tab-schedule").click()
        page.locator('[data-fact="mean"]').wait_for()
        edits = [str(0.4 + number / 100) for number in range(rounds)]
        row("schedule edited until painted", clocked(page, "edit", edits), "ms")
        heap = page.context.new_cdp_session(page).send("Runtime.getHeapUsage")["usedSize"] / 1e6
        (served,) = [
            child for child in psutil.Process().children() if "app.py" in " ".join(child.cmdline())
        ]
        row("memory of the server", [resident(served)], "MB")
        row("heap of the page", [heap], "MB")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=59_960)
    parser.add_argument("--copies", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the "
        f"start, Python {platform.python_version()}, gradio {version('gradio')}, "
        f"pyarrow {version('pyarrow')}; medians of {options.rounds}, and least to most"
    )
    with tempfile.TemporaryDirectory() as name:
        dataset = build(Path(name), options.pairs)
        if options.copies > 1:
            multiplied(dataset, options.copies)
            print(f"{options.copies} times: {options.copies * options.pairs:,} pairs")
        measure(dataset, options.rounds)


if __name__ == "__main__":
    main()
