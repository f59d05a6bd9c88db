"""Kill every command that writes, at random moments, and run it again until it ends.

    python tests/attack/kills.py [--kills 200] [--seed 0] [--only build,publish]

At the end of each round, the output must be that of a run that nobody disturbed, and nothing may be
left beside it. A quarter of the signals are SIGTERM, the others SIGKILL. The commands run in forks
of a process that has imported their libraries, so that the moments fall into their work; one kill
of each command hits a process of its own. Each moment is drawn from the measured seconds of an
undisturbed run of the same kind. The result is a table in Markdown, which grows with each command;
the exit code is 1 if something was lost or different, hangs, or cannot be hit.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from servers.openai_server import serving
from sp2dpo.store.store import Store
from support.harness import (
    BUILD,
    COMMAND,
    DEMO,
    ROOT,
    SCHEDULE,
    TESTS,
    CommandServer,
    process,
    recipe,
    refused_reply,
    write_pairs,
    write_panel,
)
from support.hub import LICENSE, TOKEN, Hub

OFFLINE = {
    "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false",
    "MPLBACKEND": "agg",
}  # fmt: skip
MODULES = {
    "plain": ("openai.resources", "tiktoken_ext.openai_public"),
    "torch": (
        "sp2dpo.training.run", "sp2dpo.training.reward_model", "sp2dpo.training.trainer",
        "sp2dpo.training.commands",
    ),
}  # fmt: skip
"""What a command server imports in addition to its own libraries, so that no command does."""
IN_A_ROW = 4
"""Kills of one command before it may end, so that also what resumes is killed."""
TRIES = 10
"""Signals for each kill, after which a command counts as one that cannot be hit."""
LIMIT = 120
"""Seconds after which a run, or a killed process, counts as hanging."""


@dataclass
class Case:
    """A command, and what it is to write.

    Attributes:
        name: of the command.
        share: of the kills.
        words: Given a folder, returns the command.
        result: Given the folder, returns what must be the same in every run.
        prepare: Given an empty folder, writes the inputs.
        server: where the command runs in forks.
        script: to run in place of `sp2dpo`.
        env: Environment variables.
    """

    name: str
    share: int
    words: callable
    result: callable
    prepare: callable = lambda folder: None
    server: str = "plain"
    script: Path | None = None
    env: dict = field(default_factory=dict)


@dataclass
class Tally:
    """What became of the kills of one command."""

    name: str
    kills: int = 0
    terminated: int = 0
    ended: int = 0
    problems: list = field(default_factory=list)


class Laboratory:
    """The inputs of all commands, a teacher, a Hub and processes to fork from."""

    def __init__(self, folder, stack):
        self.folder, self.stack = folder, stack
        (folder / "requests.log").touch()
        options = ("--log", folder / "requests.log", "--delay", "0.004")
        self.teacher = stack.enter_context(serving("scripted", *options))
        self.judge = stack.enter_context(serving("judge", *options))
        root = folder / "hub"
        hub = process(TESTS / "servers" / "hub_server.py", "--root", root, "--token", TOKEN)
        self.hub = Hub(stack.enter_context(hub), folder / "home")
        self.servers = {}
        self.repos = 0

    def server_of(self, case):
        """Return the process to fork from, once it has imported its libraries."""
        if case.server not in self.servers:
            settings = OFFLINE | (self.hub.env if case.server == "hub" else {})
            server = CommandServer(settings, MODULES.get(case.server, ()))
            self.stack.callback(server.close)
            self.servers[case.server] = server
            assert server.run("--version").returncode == 0
        return self.servers[case.server]

    def fork(self, case, folder, kill=None):
        """Run the command of a case in a fork, and kill it; return its result."""
        return self.server_of(case).run(
            *case.words(folder), env=case.env, script=case.script, kill=kill, timeout=LIMIT
        )

    def sp2dpo(self, *words):
        """Run a command that prepares inputs."""
        done = self.fork(Case("prepare", 0, lambda _: words, str), self.folder)
        assert done.returncode == 0, done.stdout + done.stderr

    def real(self, case, folder, kill=None):
        """Run the command of a case in a process of its own, and kill it; return its result."""
        command = [sys.executable, case.script] if case.script else COMMAND
        with (
            tempfile.TemporaryFile("w+", errors="replace") as errors,
            subprocess.Popen(
                [str(word) for word in (*command, *case.words(folder))],
                env=os.environ | OFFLINE | case.env | {"PYTHONFAULTHANDLER": "1"},
                stdout=subprocess.DEVNULL,
                stderr=errors,
            ) as running,
        ):
            if kill is not None:
                number, seconds = kill
                with suppress(subprocess.TimeoutExpired):
                    running.wait(seconds)
                running.send_signal(number)  # which does nothing to a process that has ended
            try:
                running.wait(LIMIT)
            except subprocess.TimeoutExpired as expired:
                running.send_signal(signal.SIGABRT)  # faulthandler prints what it waits for
                with suppress(subprocess.TimeoutExpired):
                    running.wait(5)
                running.kill()
                errors.seek(0)
                expired.add_note(errors.read()[-5000:])
                raise
            errors.seek(0)
            return subprocess.CompletedProcess(command, running.returncode, "", errors.read())

    def prepare(self):
        """Write the inputs that the cases share."""
        here = self.folder
        self.pairs = write_pairs(here / "pairs.jsonl", 30)
        self.panel = write_panel(here / "panel.yaml", self.teacher, max_in_flight=4)
        plan = ("--pairs", self.pairs, "--panel", self.panel)
        self.annotate = ("annotate", *plan)
        self.store, self.betas = here / "run.sqlite", here / "betas.parquet"
        self.sp2dpo(*self.annotate, "--store", self.store)
        self.sp2dpo("schedule", "--store", self.store, "--schedule", SCHEDULE, "--out", self.betas)
        self.built = ("--store", self.store, "--betas", self.betas)
        self.sp2dpo(*BUILD, *self.built, "--out", here / "dataset")
        self.empty = here / "empty.sqlite"
        requests = here / "requests.jsonl"
        self.sp2dpo("export-requests", *plan, "--store", self.empty, "--out", requests)
        self.replies = here / "replies.jsonl"
        self.replies.write_text("".join(self.answer(line) for line in requests.open()))
        self.shards = []
        for number in range(2):
            self.shards.append(here / f"shard-{number}.sqlite")
            self.sp2dpo(*self.annotate, "--shard", f"{number}/2", "--store", self.shards[-1])
        rows = [{"instruction": f"Do {n}.", "output": f"base {n}", "generator": "base"}
                for n in range(30)]  # fmt: skip
        self.prompts = here / "prompts.json"
        self.prompts.write_text(json.dumps(rows))
        self.student, self.judge_file = here / "student.yaml", here / "judge.yaml"
        for path, model in ((self.student, "student"), (self.judge_file, "judge")):
            entry = {"name": f"a-{model}", "model": model, "revision": None,
                     "base_url": self.judge, "max_in_flight": 3}  # fmt: skip
            if model == "student":
                entry["sampling"] = {"temperature": 0.7, "max_tokens": 200, "seed": 0}
            path.write_text(json.dumps(entry))  # JSON is YAML
        self.sp2dpo("evaluate", "generate", "--prompts", self.prompts, "--student", self.student,
                    "--out", here / "outputs")  # fmt: skip
        self.refused = here / "refused.sqlite"
        self.refuse_some()

    def answer(self, line):
        request = json.loads(line)
        url = f"{self.teacher}/chat/completions"
        head = {"Content-Type": "application/json"}
        body = json.dumps(request["body"]).encode()
        with urllib.request.urlopen(urllib.request.Request(url, body, head), timeout=60) as reply:
            response = {"status_code": 200, "body": json.load(reply)}
        return json.dumps({"custom_id": request["custom_id"], "response": response}) + "\n"

    def refuse_some(self):
        """Write a store with replies that were refused, and can be read."""
        shutil.copy(self.empty, self.refused)
        with closing(sqlite3.connect(self.store)) as database:
            replies = database.execute("SELECT pair_id, teacher, variant, raw FROM replies")
            rows = replies.fetchall()
        with Store(self.refused, write=True) as store:
            from sp2dpo.panel.panel import load_panel

            store.record_panel(load_panel(self.panel))
            store.add_replies(
                [refused_reply(*key, reason="unfinished", raw=raw) for *key, raw in rows]
            )

    def train_inputs(self):
        """Write the model that the cases train; only if they are asked for."""
        self.model = self.folder / "model"
        words = ["--text", DEMO / "pairs.jsonl", "--out", self.model, "--vocab", 400]
        assert recipe("demo/tiny_model").main([str(word) for word in words]) == 0

    def new_repo(self, folder):
        self.repos += 1
        (folder / "repo").write_text(f"org/killed-{self.repos}")


def replies_of(store):
    """The content of a store, without times and without the attempts' order."""
    with closing(sqlite3.connect(store)) as database:
        rows = database.execute(
            'SELECT pair_id, teacher, variant, "order", attempt, status, reason, category, '
            "magnitude, confidence, raw FROM replies ORDER BY 1, 2, 3, 4, 5"
        ).fetchall()
        pairs = database.execute("SELECT pair_id FROM pairs ORDER BY 1").fetchall()
        sound = database.execute("PRAGMA integrity_check").fetchall()
    return rows, pairs, sound


def digest_of(path):
    """A hash of a file, or of all files of a folder by name."""
    if path.is_file():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    return {
        str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(path.rglob("*"))
        if file.is_file()
    }


def journal_of(folder, name):
    """The rows of an evaluation, which are in the order of the prompts."""
    return json.loads((folder / name).read_text())


def published(hub, folder):
    """A repo's files by name, with its own name left out, and whether its tag is its head."""
    repo = (folder / "repo").read_text()
    head = hub.head(repo)
    refs = hub.ask(f"/api/datasets/{repo}/refs")
    tags = {tag["name"]: tag["targetCommit"] == head for tag in refs["tags"]}
    names = ("README.md", "manifest.json")
    texts = [hub.text(repo, name).replace(repo, "REPO") for name in names]
    manifest = json.loads(texts[1])
    return tags, texts[0], {key: manifest[key] for key in ("files", "schedule", "counts")}


def trained(folder):
    """The weights and the numbers of a training."""
    results = json.loads((folder / "out" / "results.json").read_text())
    # Times differ, and TRL counts tokens from the last start on.
    evaluation = {
        key: value
        for key, value in results["eval"].items()
        if not any(word in key for word in ("runtime", "per_second", "num_tokens"))
    }
    weights = hashlib.sha256((folder / "out" / "model.safetensors").read_bytes()).hexdigest()
    return weights, evaluation, round(results["train_loss"], 6)


def cases(lab):
    """All commands that write."""
    here, plan = lab.folder, ("--pairs", lab.pairs, "--panel", lab.panel)

    def copied(source, name):
        return lambda folder: shutil.copy(source, folder / name)

    def out(name):
        return lambda folder: digest_of(folder / name)

    def annotated(folder):
        return replies_of(folder / "run.sqlite")

    evaluate = ("evaluate", "judge", "--prompts", lab.prompts, "--outputs", here / "outputs",
                "--judge", lab.judge_file, "--draws", "8")  # fmt: skip
    training = [
        "--config", ROOT / "recipes" / "dpo" / "tiny-demo.yaml", "--model_name_or_path",
        here / "model", "--dataset", here / "dataset", "--max_steps", "6", "--logging_steps", "1",
        "--save_strategy", "steps", "--save_steps", "2", "--eval_strategy", "no",
        "--per_device_train_batch_size", "4", "--resume_from_checkpoint", "true",
    ]  # fmt: skip
    return [
        Case("annotate", 40, lambda f: (*lab.annotate, "--store", f / "run.sqlite"), annotated),
        Case("annotate --reread", 10,
             lambda f: ("annotate", "--reread", "--store", f / "run.sqlite"), annotated,
             copied(lab.refused, "run.sqlite")),
        Case("export-requests", 10,
             lambda f: ("export-requests", *plan, "--store", f / "run.sqlite",
                        "--out", f / "requests.jsonl"),
             out("requests.jsonl"), copied(lab.empty, "run.sqlite")),
        Case("import-replies", 20,
             lambda f: ("import-replies", "--panel", lab.panel, "--store", f / "run.sqlite",
                        lab.replies),
             annotated, copied(lab.empty, "run.sqlite")),
        Case("merge", 15, lambda f: ("merge", "--out", f / "run.sqlite", *lab.shards), annotated),
        Case("schedule", 15,
             lambda f: ("schedule", "--store", lab.store, "--schedule", SCHEDULE,
                        "--out", f / "betas.parquet"),
             out("betas.parquet")),
        Case("build", 25, lambda f: (*BUILD, *lab.built, "--out", f / "dataset"), out("dataset")),
        Case("report", 15,
             lambda f: ("report", *lab.built, "--draws", "20", "--out", f / "report.html"),
             lambda f: (f / "report.html").stat().st_size),
        Case("publish", 15,
             lambda f: ("publish", here / "dataset", "--repo", (f / "repo").read_text(), *LICENSE,
                        "--tag", "v1"),
             lambda f: published(lab.hub, f), lab.new_repo, server="hub", env=lab.hub.env),
        Case("evaluate generate", 15,
             lambda f: ("evaluate", "generate", "--prompts", lab.prompts, "--student", lab.student,
                        "--out", f / "out"),
             lambda f: journal_of(f / "out", "outputs.json")),
        Case("evaluate judge", 10, lambda f: (*evaluate, "--out", f / "out"),
             lambda f: journal_of(f / "out", "annotations.json")),
        Case("recipes/train.py", 10, lambda f: [*training, "--output_dir", f / "out"], trained,
             server="torch", script=ROOT / "recipes" / "train.py"),
    ]  # fmt: skip


def attack(lab, case, kills, draw):
    """Kill a command so many times; return the tally."""
    tally = Tally(case.name)
    try:
        seconds, expected, names = undisturbed(lab, case, tally)
        tries = 0
        while tally.kills < kills and tries < TRIES * kills:
            folder = fresh(lab, case)
            for in_a_row in range(min(IN_A_ROW, kills - tally.kills)):
                number = signal.SIGTERM if draw.random() < 0.25 else signal.SIGKILL
                run = lab.fork if tally.kills else lab.real
                started = time.monotonic()
                done = run(case, folder, (number, draw.uniform(0, seconds[run])))
                tries += 1
                if done.returncode == 0:  # it was faster
                    if in_a_row == 0:
                        seconds[run] = time.monotonic() - started
                    break
                tally.kills += 1
                tally.terminated += number == signal.SIGTERM
                check_end(tally, done, number)
            else:
                done = lab.fork(case, folder)
            check_result(tally, case, done, folder, expected, names)
            shutil.rmtree(folder)
        if tally.kills < kills:
            tally.problems.append(f"{tries} signals hit it {tally.kills} times, not {kills}")
    except subprocess.TimeoutExpired as expired:
        tally.problems.append("\n".join([f"hangs: {expired}", *expired.__notes__]))
    return tally


def undisturbed(lab, case, tally):
    """Run a command in a fork and in a process of its own.

    Returns:
        The seconds of each, the result, and the names of the files.
    """
    seconds, results = {}, []
    lab.server_of(case)
    for run in (lab.fork, lab.real):
        folder = fresh(lab, case)
        started = time.monotonic()
        done = run(case, folder)
        seconds[run] = time.monotonic() - started
        if done.returncode:
            raise RuntimeError(f"{case.name} fails undisturbed: {done.stdout}{done.stderr}")
        results.append((case.result(folder), names_in(folder)))
        shutil.rmtree(folder)
    if results[0] != results[1]:
        tally.problems.append("two runs that nobody disturbed differ")
    return seconds, *results[0]


def check_result(tally, case, done, folder, expected, names):
    """Note what differs from an undisturbed run, once a command has ended."""
    tally.ended += done.returncode == 0
    if done.returncode:
        tally.problems.append(f"does not go on: {done.stdout}{done.stderr}")
    elif case.result(folder) != expected:
        tally.problems.append("other content")
    elif names_in(folder) != names:
        tally.problems.append(f"left behind: {names_in(folder) - names}")


def check_end(tally, done, number):
    """Note what a killed command says that it should not."""
    # Before a command handles signals, SIGTERM ends it as SIGKILL does.
    expected = {-number, 128 + number} if number == signal.SIGTERM else {-number}
    if done.returncode not in expected or "Traceback" in done.stderr:
        tally.problems.append(f"ended with {done.returncode}: {done.stderr[-2000:]}")
    if done.returncode == 128 + number and "to resume" not in done.stderr:
        tally.problems.append(f"does not say how to go on: {done.stderr}")


def fresh(lab, case):
    folder = Path(tempfile.mkdtemp(dir=lab.folder))
    case.prepare(folder)
    return folder


def names_in(folder):
    """All paths below a folder; checkpoints are what a killed training leaves."""
    paths = {str(path.relative_to(folder)) for path in folder.rglob("*")}
    # The files of SQLite stay beside a store that a killed process had open.
    return {
        path
        for path in paths
        if not path.endswith(("-wal", "-shm", ".sqlite.lock")) and "checkpoint-" not in path
    }


def attack_all(folder, *, kills, seed, only=()):
    """Kill all commands, in proportion to their shares; yield their tallies."""
    with ExitStack() as stack:
        lab = Laboratory(folder, stack)
        lab.prepare()
        chosen = [case for case in cases(lab) if not only or case.name in only]
        if any(case.server == "torch" for case in chosen):
            lab.train_inputs()
        total = sum(case.share for case in chosen)
        for case in chosen:
            count = max(1, round(kills * case.share / total))
            yield attack(lab, case, count, random.Random(f"{seed} {case.name}"))


def row(name, tallies):
    """A row of the table, of one command or of all."""
    counts = ("kills", "terminated", "ended")
    sums = [sum(getattr(tally, count) for tally in tallies) for count in counts]
    problems = sum(len(tally.problems) for tally in tallies)
    return " | ".join(map(str, (f"| {name}", *sums, f"{problems} |")))


def main():
    """Print the table, each row when its command is done, and what was wrong."""
    parser = argparse.ArgumentParser(description="Kill every command that writes.")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="names of commands, by commas")
    options = parser.parse_args()
    only = [name for name in options.only.split(",") if name]
    started, tallies = time.monotonic(), []
    print("| command | kills | of them SIGTERM | runs ended after them | differences |")
    print("|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for tally in attack_all(Path(folder), kills=options.kills, seed=options.seed, only=only):
            tallies.append(tally)
            print(row(f"`{tally.name}`", [tally]), flush=True)
            seconds = f"{time.monotonic() - started:.0f} s: {tally.name}"
            print("\n".join([seconds, *tally.problems]), file=sys.stderr, flush=True)
    print(row("all", tallies))
    return any(tally.problems for tally in tallies)


if __name__ == "__main__":
    sys.exit(main())
