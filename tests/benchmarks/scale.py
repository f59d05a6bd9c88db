"""What a long run costs: memory by what is pending, and the time to open a full store.

Memory: the peak of `sp2dpo annotate`, taking in the pairs included, with few and with many requests
pending; it is stopped by SIGINT after the same number of replies from a server that answers at once
(zero_latency.py). A store as a large run leaves it, 59,960 pairs with nine replies each, is made
through `Store.add`; then come the time and the peak memory of the commands that open it. Nothing is
asserted; the whole takes some minutes and 2 GB of disk.

    python tests/benchmarks/scale.py [--memory | --store] [--pairs 59960] [--pending 500000]
"""

import argparse
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import replace
from itertools import islice, product
from json import load
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from annotate import HERE, VARIANTS, annotation, long_pairs, write_long_pairs
from sp2dpo.inference.client import Reply
from sp2dpo.pairs.pair import Pair
from sp2dpo.pairs.sources import open_source, read_rows
from sp2dpo.panel.panel import load_panel
from sp2dpo.store.store import Store
from support.harness import COMMAND, SCHEDULE, kept_reply, process, write_panel
from zero_latency import ANNOTATION, completion

TEACHERS = ("scripted-1", "scripted-2", "scripted-3")
EACH = len(TEACHERS) * len(VARIANTS)
WORDS = 680
"""Of a pair: about 3.5 kB of text."""
FEW = 10_000
REPLIES = 5_000
"""After which the run is stopped."""
BATCH = 20_000
QUIET = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


def peak(process_id):
    """The most memory that a running process has held so far, in MB; None once it has ended."""
    try:
        status = Path(f"/proc/{process_id}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    values = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")]
    return int(values[0]) / 1024 if values else None


def answered(url):
    with urllib.request.urlopen(f"{url.removesuffix('/v1')}/counts") as answer:
        return load(answer)["chats"]


def memory(pending):
    """The peak in MB of a run that has so many requests to make, stopped after REPLIES."""
    with tempfile.TemporaryDirectory() as name, process(HERE / "zero_latency.py") as url:
        folder, most, stopped = Path(name), 0.0, False
        pairs = write_long_pairs(folder / "pairs.jsonl", -(-pending // EACH), WORDS)
        command = annotation(folder, url, pairs, names=TEACHERS)
        with subprocess.Popen(command, **QUIET) as running:
            while running.poll() is None:
                most = max(most, peak(running.pid) or 0.0)
                if not stopped and answered(url) >= REPLIES:
                    running.send_signal(signal.SIGINT)
                    stopped = True
                time.sleep(0.02)
        if not stopped or running.returncode != 130:
            raise OSError(f"the run was to be stopped, and ended with {running.returncode}")
    return most


def print_memory(pending):
    few, many = memory(FEW), memory(pending)
    print(f"peak memory, stopped after {REPLIES:,} replies:")
    print(f"  {FEW:>9,} requests pending  {few:8.0f} MB")
    print(f"  {pending:>9,} requests pending  {many:8.0f} MB   {many / few:.2f} times as much")


def replies(pair_ids):
    """The full set of kept replies, in the order in which they come."""
    payload = completion()
    choice, usage = payload["choices"][0], payload["usage"]
    reply = Reply(
        text=choice["message"]["content"],
        finish_reason=choice["finish_reason"],
        model=payload["model"],
        prompt_tokens=usage["prompt_tokens"],
        completion_tokens=usage["completion_tokens"],
        cached_tokens=None,
        seconds=0.5,
    )
    for number, (pair_id, teacher, variant) in enumerate(product(pair_ids, TEACHERS, VARIANTS)):
        entry = kept_reply(pair_id, teacher, variant, number % 11, (number // 7) % 11)
        worded = replace(entry.annotation, rationale=ANNOTATION["rationale"])
        yield replace(
            entry, annotation=worded, raw=reply.text, reply=reply, arrived=1.8e9 + number / 100
        )


def make_store(folder, pairs, panel):
    rows = write_long_pairs(folder / "pairs.jsonl", pairs, WORDS)
    source = open_source(str(rows))
    started = time.perf_counter()
    with Store(folder / "run.sqlite", write=True) as store:
        store.corpus.add(source, read_rows(source))
        taken_in = time.perf_counter() - started
        store.record_panel(load_panel(panel))
        coming = replies(identities(pairs))
        while batch := list(islice(coming, BATCH)):
            store.add_replies(batch)
    stored = time.perf_counter() - started - taken_in
    size = (folder / "run.sqlite").stat().st_size / 1e6
    print(
        f"store: {pairs:,} pairs taken in in {taken_in:.1f} s, {EACH * pairs:,} replies added "
        f"in {stored:.1f} s, {size:,.0f} MB"
    )
    return rows


def identities(count):
    for row in long_pairs(count, WORDS):
        yield Pair(
            prompt=({"role": "user", "content": row["prompt"]},),
            chosen=({"role": "assistant", "content": row["chosen"]},),
            rejected=({"role": "assistant", "content": row["rejected"]},),
        ).id


def timed(*words):
    """Seconds, peak memory in MB and the exit code of a command, from its start to its exit."""
    started = time.perf_counter()
    running = subprocess.Popen([*COMMAND, *map(str, words)], **QUIET)
    _, status, usage = os.wait4(running.pid, 0)
    running.returncode = os.waitstatus_to_exitcode(status)
    return time.perf_counter() - started, usage.ru_maxrss / 1024, running.returncode


def print_store(pairs, rounds=3):
    with tempfile.TemporaryDirectory() as name, process(HERE / "zero_latency.py") as url:
        folder = Path(name)
        panel = write_panel(folder / "panel.yaml", url, names=TEACHERS, max_in_flight=64)
        rows = make_store(folder, pairs, panel)
        store = folder / "run.sqlite"
        commands = {
            "annotate, nothing missing": ("annotate", "--panel", panel, "--store", store),
            "the same with --pairs": (
                *("annotate", "--pairs", rows, "--panel", panel, "--store", store),
            ),
            "schedule": (
                *("schedule", "--store", store, "--schedule", SCHEDULE),
                *("--out", folder / "betas.parquet"),
            ),
        }
        if timed("status", "--help")[2] == 0:
            commands["status"] = ("status", "--store", store)
        for what, words in commands.items():
            taken, most, codes = zip(*(timed(*words) for _ in range(rounds)), strict=True)
            ended = "" if not any(codes) else f", exit {max(codes)}"
            print(f"{what:28}{min(taken):6.2f}-{max(taken):.2f} s{max(most):8.0f} MB{ended}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--memory", action="store_true", help="only this part")
    parser.add_argument("--store", action="store_true", help="only this part")
    parser.add_argument("--pairs", type=int, default=59_960, help="of the full store")
    parser.add_argument("--pending", type=int, default=500_000, help="requests, for the memory")
    options = parser.parse_args()
    load_now = os.getloadavg()[0]
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, load {load_now:.1f} at the start, "
        f"Python {platform.python_version()}"
    )
    if options.memory or not options.store:
        print_memory(options.pending)
    if options.store or not options.memory:
        print_store(options.pairs)


if __name__ == "__main__":
    main()
