"""What it takes to build, publish and verify a large data set, and what a second release sends.

A store as a large run leaves it, 59,960 pairs with nine replies each, every reply with words of its
own, is built with two schedules, one after the other, and both are published to the Hub of the
tests (hub_server.py) by the real client: over LFS, and with hf_xet into a store on this disk, whose
growth is what is sent. Printed are seconds and peak memory from start to exit, and bytes. Nothing
is asserted; the whole takes some minutes and 4 GB of disk.

    python tests/benchmarks/publish.py [--pairs 59960]
"""

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from itertools import islice, product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from scale import EACH, QUIET, TEACHERS, WORDS, identities

from annotate import VARIANTS, write_long_pairs
from sp2dpo.inference.client import Reply
from sp2dpo.pairs.sources import open_source, read_rows
from sp2dpo.panel.annotation import Key
from sp2dpo.panel.panel import load_panel
from sp2dpo.store.records import record_reply
from sp2dpo.store.store import Store
from support.harness import COMMAND, ROOT, SCHEDULE, TESTS, process, write_panel

SIGNED = ROOT / "recipes" / "schedules" / "signed.yaml"
BATCH = 20_000
LEXICON = [
    f"{first}{second}" for first, second in product(
        ("the", "an", "re", "mis", "over", "un", "pre", "out", "in", "sub"),
        ("answer", "claim", "step", "fact", "tone", "format", "number", "source", "limit", "word"),
    )
]  # fmt: skip


def replies(pair_ids, rubric):
    """The full set of replies, each with scores near its pair's and words of its own."""
    rng, categories = random.Random(0), list(rubric.categories)
    for pair_id in pair_ids:
        middle, category = rng.gauss(5, 2.5), rng.choice(categories)
        for teacher, variant in product(TEACHERS, VARIANTS):
            annotation = {
                "rationale": " ".join(rng.choices(LEXICON, k=rng.randint(12, 30))),
                "category": category if rng.random() < 0.8 else rng.choice(categories),
                "magnitude": min(10, max(0, round(rng.gauss(middle, 1)))),
                "confidence": min(10, max(0, round(rng.gauss(8, 1.5)))),
            }
            reply = Reply(
                text=json.dumps(annotation), finish_reason="stop", model="m", prompt_tokens=900,
                completion_tokens=80, cached_tokens=None, seconds=0.5,
            )  # fmt: skip
            yield record_reply(
                Key(pair_id=pair_id, teacher=teacher, variant=variant), reply, rubric
            )


def make_store(folder, pairs):
    panel = load_panel(write_panel(folder / "panel.yaml", "http://127.0.0.1:9/v1", names=TEACHERS))
    source = open_source(str(write_long_pairs(folder / "pairs.jsonl", pairs, WORDS)))
    with Store(folder / "run.sqlite", write=True) as store:
        store.corpus.add(source, read_rows(source))
        store.record_panel(panel)
        coming = replies(identities(pairs), panel.rubric)
        while batch := list(islice(coming, BATCH)):
            store.add_replies(batch)
    size = (folder / "run.sqlite").stat().st_size / 1e6
    print(f"store: {pairs:,} pairs, {EACH * pairs:,} replies, {size:,.0f} MB", flush=True)


def timed(what, *words, env=None):
    """Runs a command that must succeed, and prints what it took."""
    started = time.perf_counter()
    command = [*COMMAND, *map(str, words)]
    running = subprocess.Popen(command, env=os.environ | (env or {}), **QUIET)
    _, status, usage = os.wait4(running.pid, 0)
    running.returncode = os.waitstatus_to_exitcode(status)
    if status:
        sys.exit(f"this failed: {' '.join(command)}")
    seconds = time.perf_counter() - started
    print(f"  {what:34}{seconds:7.1f} s{usage.ru_maxrss / 1024:8.0f} MB", flush=True)


def size_of(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def publish_releases(folder, *, xet):
    how = "hf_xet" if xet else "LFS"
    with tempfile.TemporaryDirectory() as root:
        server = [TESTS / "servers" / "hub_server.py", "--root", root, *(["--xet"] if xet else [])]
        with process(*server) as url:
            env = {
                "HF_ENDPOINT": url, "HF_TOKEN": "hf_benchmark", "HF_HUB_OFFLINE": "0",
                "HF_HOME": f"{root}/home", "HF_HUB_DISABLE_XET": "0" if xet else "1",
                "HF_HUB_DISABLE_TELEMETRY": "1",
            }  # fmt: skip
            stored, grown = Path(root, "xet" if xet else "objects"), []
            for tag in ("v1", "v2"):
                before = size_of(stored)
                words = ("publish", folder / tag, "--repo", "org/pairs", "--tag", tag)
                timed(f"publish {tag}, {how}", *words, "--license", "mit", env=env)
                grown.append(size_of(stored) - before)
            sent = f"{grown[0] / 1e6:,.1f} MB, then {grown[1] / 1e6:,.1f} MB"
            print(f"  stored: {sent}, {grown[1] / grown[0]:.1%} of the first", flush=True)
            if not xet:
                timed("verify org/pairs@v2", "verify", "org/pairs@v2", env=env)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=59_960)
    options = parser.parse_args()
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the "
        f"start, Python {platform.python_version()}, huggingface_hub "
        f"{version('huggingface_hub')}, hf_xet {version('hf_xet')}, pyarrow {version('pyarrow')}"
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_store(folder, options.pairs)
        for tag, schedule in (("v1", SCHEDULE), ("v2", SIGNED)):
            betas = folder / f"{tag}.parquet"
            store = ("--store", folder / "run.sqlite")
            timed(f"schedule {tag}", "schedule", *store, "--schedule", schedule, "--out", betas)
            timed(f"build {tag}", "build", *store, "--betas", betas, "--out", folder / tag)
        publish_releases(folder, xet=False)
        publish_releases(folder, xet=True)


if __name__ == "__main__":
    main()
