"""Run the hostile teachers beside a good one, and print what each could do.

    python tests/benchmarks/hostile_teachers.py [--case TEXT] [--jobs 2]

Each case annotates the same pairs with a panel of the hostile and a good teacher, in a process of
its own with 3 GB of address space. The table of docs/security.md comes from this command.
"""

import argparse
import base64
import contextlib
import json
import multiprocessing
import os
import resource
import sqlite3
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import yaml

sys.path.insert(0, str(Path(__file__).parents[1]))

from servers.hostile_servers import CASES, KEY, KEY_VARIABLE, hostile_server
from servers.openai_server import serving

PAIRS = 6
ADDRESS_SPACE = 3 * 2**30
OTHER_VARIABLE, OTHER_KEY = "SP2DPO_OTHER_KEY", "sk-the-good-teachers-own-key-9876543210"
TIMEOUT, PATIENCE = 1.0, 2.0
"""Time-out of a request and patience of the run, in seconds."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run with a hostile teacher did.

    Attributes:
        code: Exit code; None if it had to be killed.
        seconds: Duration.
        megabytes: Largest resident memory.
        grown: Of these, what was added after the start.
        output: What it printed, standard output and errors.
        given: Replies that the good teacher gave.
        stored: Replies of the good teacher in the store.
        kept: Replies of the hostile teacher that were kept.
        requests: Requests that the hostile teacher got.
        strangers_requests: Requests to an address that only the hostile teacher named.
        leaks: Files (or `output`) with a key of the panel.
        escapes: Whether the output has control characters.
    """

    code: int | None
    seconds: float
    megabytes: float
    grown: float
    output: str
    given: int
    stored: int
    kept: int
    requests: int
    strangers_requests: int
    leaks: list[str]
    escapes: bool


def annotate(folder, results):
    """Run the command line in this (forked) process."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    os.environ |= {KEY_VARIABLE: KEY, OTHER_VARIABLE: OTHER_KEY}
    sink = os.open(folder / "output.txt", os.O_WRONLY | os.O_CREAT)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    from sp2dpo.cli.main import main

    sys.argv = [
        "sp2dpo", "annotate", "--pairs", str(folder / "pairs.jsonl"),
        "--panel", str(folder / "panel.yaml"), "--store", str(folder / "run.sqlite"),
        "--patience", str(PATIENCE),
    ]  # fmt: skip
    before = peak()
    code = 1
    try:
        main()
        code = 0
    except SystemExit as end:
        code = end.code or 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        results.put((code, peak(), peak() - before))


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def write_inputs(folder, hostile_url, good_url):
    rows = [
        {"prompt": f"Question {n}?", "chosen": f"Good answer {n}.", "rejected": f"Bad answer {n}."}
        for n in range(PAIRS)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = {
        "model": "scripted", "revision": None, "sampling": {"temperature": 0, "max_tokens": 300},
    }  # fmt: skip
    hostile = {
        "name": "hostile", "base_url": hostile_url, "api_key_env": KEY_VARIABLE,
        "timeout": TIMEOUT, "retries": 1,
    }  # fmt: skip
    good = {"name": "good", "base_url": good_url, "api_key_env": OTHER_VARIABLE}
    panel = {
        "rubric": "semantic-gap",
        "variants": ["direct", "critic", "reader"],
        "teachers": [hostile | common, good | common],
    }
    (folder / "panel.yaml").write_text(yaml.safe_dump(panel))


def run_case(hostile, *, limit=60.0):
    """Annotate beside a hostile teacher, in a process that is killed after `limit` seconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["sp2dpo.cli.main", "sp2dpo.annotation.run"])
    with (
        tempfile.TemporaryDirectory() as name,
        hostile_server(hostile) as server,
        serving("scripted", "--log", Path(name) / "good.log") as good_url,
    ):
        folder = Path(name)
        write_inputs(folder, server.url, good_url)
        results = context.Queue()
        process = context.Process(target=annotate, args=(folder, results))
        started = time.monotonic()
        process.start()
        process.join(limit)
        seconds = time.monotonic() - started
        if process.is_alive():
            process.kill()
            process.join()
        code, most, grown = (None, 0.0, 0.0) if results.empty() else results.get()
        output = (folder / "output.txt").read_text(errors="replace")
        log = folder / "good.log"
        given = len(log.read_text().split()) if log.exists() else 0
        stored, kept = counts(folder / "run.sqlite")
        return Outcome(
            code=code, seconds=seconds, megabytes=most, grown=grown, output=output,
            given=given, stored=stored, kept=kept, requests=server.requests,
            strangers_requests=server.strangers_requests, leaks=sorted(find_keys(folder)),
            escapes=any(letter < " " and letter not in "\r\n\t" for letter in output),
        )  # fmt: skip


def run_cases(cases, *, jobs):
    """The outcomes of cases, several at a time."""
    with ThreadPoolExecutor(jobs) as pool:
        yield from pool.map(run_case, cases)


def counts(store):
    with contextlib.closing(sqlite3.connect(store)) as database:
        try:
            rows = database.execute(
                "SELECT teacher, count(*) FROM replies WHERE status = 'kept' GROUP BY teacher"
            )
            by_teacher = dict(rows)
        except sqlite3.OperationalError:
            by_teacher = {}
    return by_teacher.get("good", 0), by_teacher.get("hostile", 0)


def find_keys(folder):
    """The files of a run in which a key stands, in any of its writings."""
    for path in folder.iterdir():
        content = path.read_bytes().lower()
        for key in (KEY, OTHER_KEY):
            if any(writing in content for writing in writings(key)):
                yield path.name


def writings(key):
    raw = key.encode()
    yield raw.lower()
    yield raw.hex().encode()
    yield quote(key, safe="").lower().encode()
    yield json.dumps(key)[1:-1].lower().encode()
    for shift in range(3):
        # Without the letters at both ends, which depend on what stands beside the key.
        yield base64.b64encode(b"x" * shift + raw)[4:-4].lower()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", default="", help="run the cases whose names hold this text")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, help="JSON file of the outcomes")
    parser.add_argument("--verbose", action="store_true", help="print the output of each run")
    options = parser.parse_args()
    chosen = [each for each in CASES if options.case in each.name]
    outcomes = []
    print_table(chosen, noting(run_cases(chosen, jobs=options.jobs), outcomes), options.verbose)
    if options.out is not None:
        options.out.write_text(json.dumps([vars(outcome) for outcome in outcomes]))


def noting(outcomes, into):
    """Pass outcomes on, and add them to a list."""
    for outcome in outcomes:
        into.append(outcome)
        yield outcome


def print_table(cases, outcomes, verbose):
    print("| hostile teacher | seconds | memory, MB | exit | good replies stored | key leaked |")
    print("|---|--:|--:|--:|--:|---|")
    for each, outcome in zip(cases, outcomes, strict=True):
        leaked = ", ".join(outcome.leaks) or "no"
        print(
            f"| {each.name} | {outcome.seconds:.1f} | {outcome.megabytes:.0f} (+"
            f"{outcome.grown:.0f}) | {outcome.code} | {outcome.stored} of {outcome.given} |"
            f" {leaked} |",
            flush=True,
        )
        if verbose:
            print("    " + outcome.output[-1500:].replace("\n", "\n    "))


if __name__ == "__main__":
    main()
