"""What the memory of an inspector does under many calls; prints a table in Markdown.

Four callers make ordinary calls (rows, pairs, searches, exports, `find_pairs`), calls whose answer
nobody fetches, and calls that hang up in the middle (tests/support/space_calls.py). The memory is
that of the serving process without the pages that are mapped from files. Nothing is asserted.

    python tests/benchmarks/space_calls.py [--dataset FOLDER] [--calls 50000] [--every 2500]
"""

import argparse
import json
import os
import platform
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from space import build
from support.browser import INSPECTOR, inspector
from support.space_calls import calls


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--dataset", type=Path, help="otherwise one of --pairs pairs is built")
    parser.add_argument("--pairs", type=int, default=2000)
    parser.add_argument("--calls", type=int, default=50_000)
    parser.add_argument("--every", type=int, default=2500)
    parser.add_argument("--inspector", type=Path, default=INSPECTOR)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        dataset = options.dataset or build(Path(name), options.pairs)
        print(
            f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
            f"gradio {version('gradio')}\n\n| calls | not fetched | hung up | MB | seconds |\n"
            "|---:|---:|---:|---:|---:|",
            flush=True,
        )
        with inspector(dataset, folder=options.inspector) as url:
            pairs = json.loads((dataset / "manifest.json").read_text())["counts"]["pairs"]
            steps = calls(url, pairs, options.calls, every=options.every)
            for done, megabytes, seconds, kinds in steps:
                print(
                    f"| {done:,} | {kinds['forgotten']:,} | {kinds['rude']:,} | "
                    f"{megabytes:,.0f} | {seconds:,.0f} |",
                    flush=True,
                )
        if kinds["failed"]:
            print(f"\n{kinds['failed']} calls failed")


if __name__ == "__main__":
    main()
