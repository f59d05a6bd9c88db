"""How fast annotating is, and how soon a reply is on the disk. Nothing is asserted.

Against a scripted teacher that answers at once, on the same machine: requests per second of the
whole command, validation and commits included. Against one that takes 50 ms, 16 requests in flight:
the time from a reply's arrival to its being seen by another reader of the store.

    python tests/benchmarks/annotate.py [--pairs 2000]
"""

import argparse
import os
import platform
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from harness import COMMAND, TESTS, process, write_pairs, write_panel


def command(folder, url, pairs, **panel):
    write_pairs(folder / "pairs.jsonl", pairs)
    write_panel(folder / "panel.yaml", url, **panel)
    files = {"pairs": "pairs.jsonl", "panel": "panel.yaml", "store": "run.sqlite"}
    options = [word for name, file in files.items() for word in (f"--{name}", folder / file)]
    return [*COMMAND, "annotate", *map(str, options)]


def throughput(folder, pairs):
    with process(TESTS / "scripted_teacher.py", "--log", folder / "log") as url:
        started = time.perf_counter()
        subprocess.run(command(folder, url, pairs), check=True, stdout=subprocess.DEVNULL)
        return 3 * pairs / (time.perf_counter() - started)


def seen(database, last):
    """New replies with the seconds since their arrival; none before the store is ready."""
    try:
        query = "SELECT rowid, arrived FROM replies WHERE rowid > ?"
        rows = database.execute(query, (last,)).fetchall()
    except sqlite3.OperationalError:
        return last, []
    now = time.time()
    return max((row for row, _ in rows), default=last), [now - arrived for _, arrived in rows]


def delays(folder, pairs):
    found, last = [], 0
    with (
        process(TESTS / "scripted_teacher.py", "--log", folder / "log", "--delay", "0.05") as url,
        subprocess.Popen(
            command(folder, url, pairs, max_in_flight=16), stdout=subprocess.DEVNULL
        ) as running,
    ):
        store = folder / "run.sqlite"
        while running.poll() is None:
            if store.exists():
                database = sqlite3.connect(f"file:{store}?mode=ro", uri=True)
                while running.poll() is None:
                    last, new = seen(database, last)
                    found += new
                    time.sleep(0.002)
            time.sleep(0.002)
    return sorted(found)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=2000)
    pairs = parser.parse_args().pairs
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores, {3 * pairs} requests")
    with tempfile.TemporaryDirectory() as name:
        rates = [throughput(Path(tempfile.mkdtemp(dir=name)), pairs) for _ in range(3)]
        late = delays(Path(tempfile.mkdtemp(dir=name)), max(1, pairs // 6))
    print(f"requests/s: {min(rates):,.0f} to {max(rates):,.0f} in 3 runs")
    print(
        f"on the disk after: median {1000 * statistics.median(late):.1f} ms, "
        f"p99 {1000 * late[int(0.99 * len(late))]:.1f} ms, max {1000 * late[-1]:.1f} ms "
        f"({len(late)} replies)"
    )


if __name__ == "__main__":
    main()
