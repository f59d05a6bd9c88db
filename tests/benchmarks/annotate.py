"""How fast annotating is beside other clients, and how soon a reply is on the disk.

Every client in turn sends prompts of about 4.5 kB, 64 in flight, to a server that answers at once
(zero_latency.py, a process of its own; one for every run), so that what is measured is the client:

- `sp2dpo annotate`, checks and durable storage included: from its start to its exit, and the steady
  rate between the first and the last reply by the `arrived` times in its store;
- the peers of peers/ (see its README for their environments), of which the bare loops store
  nothing: the steady rate between the first and the last request by the server's clock.

A round runs all of them once; ratios are taken within a round, so that a machine that is busy with
other things slows both sides. Then, with a teacher that takes 50 ms, 16 requests in flight: the
time from a reply's arrival to its being seen by another reader of the store. Nothing is asserted.

    python tests/benchmarks/annotate.py [--pairs 5000] [--without-peers] [--peer-envs DIR]
"""

import argparse
import json
import os
import platform
import random
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from sp2dpo.pairs.pair import Pair
from sp2dpo.panel.rubric import load_rubric
from support.harness import COMMAND, TESTS, process, write_panel

HERE = Path(__file__).parent
VARIANTS = ("direct", "critic", "reader")
SAMPLING = {"temperature": 0, "max_tokens": 300}
ROUNDS = 3
LONGEST = 600
"""Seconds for one run of a peer."""
TEXT = (
    "the answer says in plain words how one would cook rice in a small pot while the water boils "
    "and why the lid stays on until the last of the steam has gone from under the brim of it"
)


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A client to compare with.

    Attributes:
        script: in peers/; its environment is called the same.
        share: of our requests that it is given, because some are slow.
        goal: what our steady rate should be at least, as a multiple of its own.
        packages: whose versions are printed.
    """

    script: str
    share: float
    goal: float
    packages: tuple[str, ...]
    options: tuple[str, ...] = ()

    @property
    def name(self):
        return " ".join((self.script, *self.options))


PEERS = (
    Peer(script="bare_aiohttp", share=1, goal=0.4, packages=("aiohttp",)),
    Peer(script="bare_openai", share=0.1, goal=3, packages=("openai",)),
    Peer(script="datatrove_runner", share=0.2, goal=3, packages=("datatrove",)),
    Peer(
        script="datatrove_runner",
        share=0.1,
        goal=3,
        packages=("datatrove",),
        options=("--checkpoints",),
    ),
    Peer(script="inspect_eval", share=0.025, goal=3, packages=("inspect-ai", "openai")),
)


def long_pairs(count, words=535):
    """Plain, distinct pairs of about 5.3 characters a word: rows as a source holds them."""
    draw, vocabulary = random.Random(0), TEXT.split()

    def text(share):
        return " ".join(draw.choices(vocabulary, k=int(words * share)))

    for number in range(count):
        yield {
            "prompt": f"Question {number}? {text(0.2)}",
            "chosen": f"Good answer {number}. {text(0.4)}",
            "rejected": f"Bad answer {number}. {text(0.4)}",
        }


def write_long_pairs(path, count, words=535):
    with path.open("w") as file:
        file.writelines(json.dumps(row) + "\n" for row in long_pairs(count, words))
    return path


def write_bodies(path, count):
    """The requests that a panel's run sends, one a line, for the peers."""
    rubric = load_rubric("semantic-gap")
    form = {"name": "annotation", "strict": True, "schema": rubric.schema()}
    speakers = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    sizes = []
    with path.open("w") as file:
        for row in long_pairs(count):
            turns = {
                part: ({"role": role, "content": row[part]},) for part, role in speakers.items()
            }
            for variant in VARIANTS:
                body = {
                    "model": "scripted",
                    "messages": rubric.messages(Pair(**turns), variant),
                    "response_format": {"type": "json_schema", "json_schema": form},
                    **SAMPLING,
                }
                sizes.append(sum(len(turn["content"]) for turn in body["messages"]))
                file.write(json.dumps(body) + "\n")
    return statistics.mean(sizes)


def annotation(folder, url, pairs, max_in_flight=64, **panel):
    write_panel(folder / "panel.yaml", url, max_in_flight=max_in_flight, sampling=SAMPLING, **panel)
    files = {"pairs": pairs, "panel": folder / "panel.yaml", "store": folder / "run.sqlite"}
    return [*COMMAND, "annotate", *(str(word) for n, f in files.items() for word in (f"--{n}", f))]


def ours(pairs):
    """Replies a second: (from start to exit, between the first and the last)."""
    with tempfile.TemporaryDirectory() as name, process(HERE / "zero_latency.py") as url:
        folder = Path(name)
        started = time.perf_counter()
        silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        subprocess.run(annotation(folder, url, pairs), check=True, **silent)
        taken = time.perf_counter() - started
        query = "SELECT count(*), max(arrived) - min(arrived) FROM replies WHERE status = 'kept'"
        kept_count, steady = sqlite3.connect(folder / "run.sqlite").execute(query).fetchone()
    return kept_count / taken, (kept_count - 1) / steady


def theirs(peer, python, bodies, count):
    """Requests a second, between the first and the last."""
    with process(HERE / "zero_latency.py") as url:
        command = [python, HERE / "peers" / f"{peer.script}.py", url, bodies, count, *peer.options]
        result = subprocess.run(
            [*map(str, command)], capture_output=True, text=True, check=False, timeout=LONGEST
        )
        with urllib.request.urlopen(f"{url.removesuffix('/v1')}/counts") as answer:
            counts = json.load(answer)
    if result.returncode or counts["chats"] != count:
        last = (result.stderr.strip().splitlines() or ["no message"])[-1]
        raise OSError(
            f"answered {counts['chats']} of {count} requests, exit {result.returncode}: {last}"
        )
    return (count - 1) / (counts["last"] - counts["first"])


def present(envs):
    """The peers that have an environment, each with its Python; why the others are left out."""
    available = []
    for peer in PEERS:
        python = Path(sys.executable)
        if peer.script != "bare_aiohttp":
            python = envs / peer.script / "bin" / "python" if envs else None
        if python is None or not python.exists():
            where = f"no environment {envs / peer.script}" if envs else "no --peer-envs given"
            print(f"{peer.name}: left out, {where} (peers/README.md says how it is made)")
        else:
            available.append((peer, python))
    return available


def versions(peer, python):
    code = (
        "import sys, importlib.metadata as m; print(*(f'{n} {m.version(n)}' for n in sys.argv[1:]))"
    )
    command = [str(python), "-c", code, *peer.packages]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def side_by_side(folder, pairs, peers):
    rows = write_long_pairs(folder / "pairs.jsonl", pairs)
    size = write_bodies(folder / "bodies.jsonl", min(pairs, 500))
    print(f"{3 * pairs} requests of {size:,.0f} characters, 64 in flight, {ROUNDS} rounds")
    total, steady = [], []
    rates = {peer: [] for peer, _ in peers}
    for _ in range(ROUNDS):
        our_rates = ours(rows)
        total.append(our_rates[0])
        steady.append(our_rates[1])
        for peer, python in peers:
            count = max(200, int(3 * pairs * peer.share))
            try:
                rates[peer].append(theirs(peer, python, folder / "bodies.jsonl", count))
            except (OSError, subprocess.TimeoutExpired) as error:
                rates[peer].append(None)
                print(f"{peer.name}: {error}")
    return total, steady, rates


def table(total, steady, rates, peers):
    print(f"{'':34}{'requests/s':>16}   ours / it (each round)   goal")
    print(f"{'sp2dpo annotate, start to exit':34}{_range(total):>16}")
    print(f"{'sp2dpo annotate, steady':34}{_range(steady):>16}")
    for peer, python in peers:
        pairs = [(us, it) for us, it in zip(steady, rates[peer], strict=True) if it is not None]
        if not pairs:
            continue
        ratios = [us / it for us, it in pairs]
        print(
            f"{peer.name:34}{_range([it for _, it in pairs]):>16}   "
            f"{statistics.median(ratios):5.2f} ({min(ratios):.2f}-{max(ratios):.2f})".ljust(77)
            + f"{peer.goal:g} or more   {versions(peer, python)}"
        )


def _range(values):
    return f"{min(values):,.0f}-{max(values):,.0f}"


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
    waits, last = [], 0
    rows = write_long_pairs(folder / "few.jsonl", pairs)
    with (
        process(
            TESTS / "servers" / "openai_server.py",
            "scripted",
            "--log",
            folder / "log",
            "--delay",
            "0.05",
        ) as url,
        subprocess.Popen(
            annotation(folder, url, rows, max_in_flight=16),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as running,
    ):
        store = folder / "run.sqlite"
        while running.poll() is None:
            if store.exists():
                database = sqlite3.connect(f"file:{store}?mode=ro", uri=True)
                while running.poll() is None:
                    last, new = seen(database, last)
                    waits += new
                    time.sleep(0.002)
            time.sleep(0.002)
    return sorted(waits)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=5000)
    parser.add_argument("--without-peers", action="store_true", help="ours alone")
    parser.add_argument("--peer-envs", type=Path, metavar="DIR", help="their environments")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, load {load:.1f} at the start, "
        f"Python {platform.python_version()}, sp2dpo {version('sp2dpo')}"
    )
    peers = [] if options.without_peers else present(options.peer_envs)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        table(*side_by_side(folder, options.pairs, peers), peers)
        late = delays(folder, max(1, options.pairs // 15))
    print(
        f"on the disk after: median {1000 * statistics.median(late):.1f} ms, "
        f"p99 {1000 * late[int(0.99 * len(late))]:.1f} ms, max {1000 * late[-1]:.1f} ms "
        f"({len(late)} replies)"
    )


if __name__ == "__main__":
    main()
