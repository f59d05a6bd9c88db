"""What the tests do again and again: run the command line, write small inputs, start servers."""

import asyncio
import atexit
import importlib.util
import io
import itertools
import json
import os
import select
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections import Counter
from contextlib import closing, contextmanager, suppress
from functools import cache
from pathlib import Path
from unittest import mock

import yaml

from sp2dpo.inference.endpoint import Endpoint
from sp2dpo.interrupts import stopping_signals
from sp2dpo.pairs.pair import Pair
from sp2dpo.pairs.sources import Source, SourceRow
from sp2dpo.panel.annotation import Annotation, Key
from sp2dpo.panel.panel import Panel
from sp2dpo.panel.rubric import load_rubric
from sp2dpo.store.store import ReplyRecord

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"
DEMO = ROOT / "recipes" / "demo"
SCHEDULE = ROOT / "recipes" / "schedules" / "sp2dpo.yaml"
BUILD = ("build", "--draws", 20)
"""The command where a test does not look at intervals: 1,000 samples take most of its time."""
COMMAND = [sys.executable, "-m", "sp2dpo"]
START = 300
"""Seconds after which a server that has not started counts as hanging."""


@contextmanager
def process(*command, **options):
    """A server that prints its address on its first line; ended when the block is left."""
    with subprocess.Popen(
        [sys.executable, *map(str, command)], stdout=subprocess.PIPE, text=True, **options
    ) as server:
        try:
            assert server.stdout is not None
            assert select.select([server.stdout], [], [], START)[0], (
                f"{command} gives no address in {START} s"
            )
            address = server.stdout.readline().strip()
            assert address.startswith("http://"), f"{command} did not start"
            yield address
        finally:
            server.kill()


class Scripted:
    """A running scripted teacher."""

    def __init__(self, url, log):
        self.url = url
        self.log = log

    @property
    def requests(self):
        """The hashes of what it was asked, in order."""
        return self.log.read_text().split() if self.log.exists() else []


class CommandServer:
    """Runs `sp2dpo` in processes of their own that start fast; see `command_server`."""

    def __init__(self, settings, modules=()):
        self.folder = tempfile.TemporaryDirectory()
        self.socket = Path(self.folder.name) / "socket"
        self.server = subprocess.Popen(
            [sys.executable, TESTS / "support" / "command_server.py", self.socket, *modules],
            stdin=subprocess.PIPE,
            env=os.environ | settings,
        )
        self.count = itertools.count()
        client = (TESTS / "support" / "fork_client.py").read_text()
        client = client.replace('SOCKET = ""', f"SOCKET = {str(self.socket)!r}")
        self.python = Path(self.folder.name) / "python"
        """A program that runs a script or `-m MODULE` in a fork; ready after the first `run`."""
        self.python.write_text(f"#!{sys.executable} -IS\n{client}")
        self.python.chmod(0o700)
        command = Path(self.folder.name) / "bin" / "sp2dpo"
        command.parent.mkdir()
        command.write_text(f'#!/bin/sh\nexec {self.python} -m sp2dpo "$@"\n')
        command.chmod(0o700)

    def run(
        self, *arguments, env=None, timeout=300, script=None, module=None, folder=None, kill=None
    ):
        """Run a command; its exit code and output.

        `kill` is a signal and the seconds after which the command gets it.
        """
        arguments = list(map(str, arguments))
        here = Path(self.folder.name) / str(next(self.count))
        outputs = [here.with_suffix(f".{name}") for name in ("stdout", "stderr")]
        for path in outputs:
            path.touch()
        command = {
            "arguments": arguments,
            "environment": dict(os.environ) | (env or {}),
            "folder": str(folder or Path.cwd()),
            "stdout": str(outputs[0]),
            "stderr": str(outputs[1]),
            "script": script and str(script),
            "module": module,
        }
        with self.connect() as connection, connection.makefile("r") as lines:
            connection.settimeout(START)
            connection.sendall(json.dumps(command).encode() + b"\n")
            child = int(lines.readline())
            if kill is not None:
                number, seconds = kill
                # The command server waits for its child, whose id is not taken again before.
                if not select.select([connection], [], [], seconds)[0]:
                    with suppress(ProcessLookupError):
                        os.kill(child, number)
            connection.settimeout(timeout)
            try:
                code = int(lines.readline())
            except TimeoutError:
                os.kill(child, signal.SIGABRT)  # faulthandler prints what it waits for
                select.select([connection], [], [], 5)
                with suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
                expired = subprocess.TimeoutExpired(arguments, timeout)
                expired.add_note(outputs[1].read_text(errors="replace")[-5000:])
                raise expired from None
        return subprocess.CompletedProcess(arguments, code, *(path.read_text() for path in outputs))

    def connect(self):
        end = time.monotonic() + START
        while self.server.poll() is None:
            if time.monotonic() > end:
                raise TimeoutError(f"the command server is not ready after {START} s")
            connection = socket.socket(socket.AF_UNIX)
            try:
                connection.connect(str(self.socket))
            except OSError:
                connection.close()
                time.sleep(0.02)
            else:
                return connection
        raise ConnectionError("the command server has ended")

    def close(self):
        self.server.stdin.close()
        try:
            self.server.wait(60)
        except subprocess.TimeoutExpired:  # it still imports
            self.server.kill()
            self.server.wait()
        self.folder.cleanup()


@cache
def command_server(settings):
    """The command server under these environment variables, started when first asked for."""
    server = CommandServer(dict(settings))
    atexit.register(server.close)
    return server


def forking_path(env):
    """A PATH whose `sp2dpo` runs in forks under these environment variables; see `run`."""
    server = command_server(frozenset(_settings(env)))
    server.run("--version")  # it is ready
    return f"{server.folder.name}/bin:{Path(sys.executable).parent}:{os.environ['PATH']}"


USES = Counter()
SETTINGS = ("HF_", "MPL", "OMP_", "POLARS_", "PYTHON")
"""Beginnings of environment variables that Python or a library reads when it is imported."""


def run(*arguments, env=None, timeout=300, own_process=False, **options):
    """Run `sp2dpo` and return the result as `subprocess.run` does.

    The command runs in the process of the tests, which saves its imports, unless `env` has
    variables that are read on import or an event loop is running (Playwright's): then it runs in a
    fork of a process that has imported the libraries under these variables, if they come twice. It
    runs in a new process if `own_process` is true or options of `subprocess.run` are given.
    """
    env = env or {}
    settings = frozenset(_settings(env))
    is_plain = not own_process and not options
    if is_plain and not settings and not _loop_runs():
        return _run_here([str(argument) for argument in arguments], env, timeout)
    USES[settings] += 1
    if is_plain and USES[settings] > 1:
        return command_server(settings).run(*arguments, env=env, timeout=timeout)
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env=os.environ | env,
        **options,
    )


def _settings(env):
    return (item for item in env.items() if item[0].startswith(SETTINGS))


def _loop_runs():
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _run_here(arguments, env, timeout):
    """Call the entry point of the command line with these arguments."""
    from sp2dpo.cli.main import main

    def give_up(number, frame):
        expired = subprocess.TimeoutExpired(arguments, timeout)
        for note in _stacks():
            expired.add_note(note)
        raise expired

    handlers = {number: signal.getsignal(number) for number in stopping_signals()}
    handlers[signal.SIGALRM] = signal.signal(signal.SIGALRM, give_up)
    with (
        _captured(1) as output,
        _captured(2) as errors,
        mock.patch.dict(os.environ, env),
        mock.patch.object(sys, "argv", ["sp2dpo", *arguments]),
        warnings.catch_warnings(),
    ):
        warnings.resetwarnings()
        for category in (DeprecationWarning, PendingDeprecationWarning, ImportWarning,
                         ResourceWarning):  # fmt: skip
            warnings.simplefilter("ignore", category)
        signal.setitimer(signal.ITIMER_REAL, timeout)
        try:
            main()
            code = 0
        except SystemExit as ended:
            code = ended.code or 0
        except subprocess.TimeoutExpired:
            raise
        except Exception:  # noqa: BLE001 - what ends a process
            traceback.print_exc()
            code = 1
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            for number, handler in handlers.items():
                signal.signal(number, handler)
    return subprocess.CompletedProcess(["sp2dpo", *arguments], code, output(), errors())


def _stacks():
    """What each thread, and each task of the main thread's event loop, is doing."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    for number, frame in sys._current_frames().items():
        name = names.get(number, number)
        yield f"thread {name}:\n{''.join(traceback.format_stack(frame, 20))}"
    if _loop_runs():
        for task in asyncio.all_tasks():
            text = io.StringIO()
            task.print_stack(file=text)
            yield text.getvalue()


@contextmanager
def _captured(descriptor):
    """Capture descriptor 1 or 2, so that the output of child processes is captured too."""
    name = {1: "stdout", 2: "stderr"}[descriptor]
    with tempfile.TemporaryFile() as file:
        before, stream = os.dup(descriptor), getattr(sys, name)
        os.dup2(file.fileno(), descriptor)
        bytes_out = io.FileIO(descriptor, "w", closefd=False)
        ours = io.TextIOWrapper(
            io.BufferedWriter(bytes_out), "utf-8", "backslashreplace", line_buffering=True
        )
        setattr(sys, name, ours)
        text = ""
        try:
            yield lambda: text
        finally:
            ours.flush()
            setattr(sys, name, stream)
            os.dup2(before, descriptor)
            os.close(before)
            file.seek(0)
            text = io.StringIO(file.read().decode(), newline=None).read()  # as in text mode


def succeed(*arguments, **options):
    """Runs `sp2dpo`, which must end well; its output."""
    result = run(*arguments, **options)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def fail(*arguments, code=1, **options):
    """Runs `sp2dpo`, which must end with an error for people; what it says."""
    result = run(*arguments, **options)
    assert result.returncode == code, result.stdout + result.stderr
    assert "Traceback" not in result.stderr, result.stderr
    assert result.stderr.strip()
    return result.stderr


def recipe(name):
    """Import a script of the recipes as a module, once."""
    alias = f"recipe_{Path(name).name}"
    if alias not in sys.modules:
        path = (ROOT / "recipes" / name).with_suffix(".py")
        spec = importlib.util.spec_from_file_location(alias, path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[alias] = module  # dataclasses look their own module up
        with mock.patch.object(sys, "path", [str(path.parent), *sys.path]):
            spec.loader.exec_module(module)
    return sys.modules[alias]


def _training_words(model, dataset, output, *arguments):
    words = [
        "--config", ROOT / "recipes" / "dpo" / "tiny-demo.yaml", "--model_name_or_path", model,
        "--dataset", dataset, "--output_dir", output, "--traceback", "true", *arguments,
    ]  # fmt: skip
    return [str(word) for word in words]


def launch_training(model, dataset, output, *arguments, env):
    """Launch the training recipe as a user does, and return its results.json."""
    recipes = ROOT / "recipes"
    command = [
        Path(sys.executable).with_name("accelerate"), "launch",
        "--config_file", recipes / "accelerate" / "single.yaml", recipes / "train.py",
        *_training_words(model, dataset, output, *arguments),
    ]  # fmt: skip
    result = subprocess.run(
        [str(word) for word in command],
        env=os.environ | env,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads((output / "results.json").read_text())


def train(model, dataset, output, *arguments):
    """Run the recipe that trains on the demo's settings; what it wrote to results.json."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        recipe("train").main(_training_words(model, dataset, output, *arguments))
    return json.loads((output / "results.json").read_text())


def write_panel(
    path, url, *, names=("scripted",), rubric="semantic-gap", variants=None, **teacher_keys
):
    """A panel file whose teachers all live at one address."""
    teachers = [
        {
            "name": name,
            "model": "scripted" if name.startswith("scripted") else name,
            "revision": None,
            "base_url": url,
            "sampling": {"temperature": 0, "max_tokens": 300},
            **teacher_keys,
        }
        for name in names
    ]
    panel = {
        "rubric": str(rubric),
        "variants": variants or ["direct", "critic", "reader"],
        "teachers": teachers,
    }
    path.write_text(yaml.safe_dump(panel, allow_unicode=True))
    return path


def write_pairs(path, count):
    """A file of plain, distinct pairs."""
    rows = [
        {"prompt": f"Question {n}?", "chosen": f"Good answer {n}.", "rejected": f"Bad answer {n}."}
        for n in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def panel_of(*teachers, rubric=None, variants=("direct", "critic", "reader")):
    """A panel whose teachers are never asked."""
    return Panel(
        rubric=rubric or load_rubric("semantic-gap"),
        variants=variants,
        teachers=tuple(
            Endpoint(
                name=name,
                model=f"model-{name}",
                revision=None,
                base_urls=("http://127.0.0.1:9/v1",),
                sampling={"temperature": 0, "max_tokens": 100},
            )
            for name in teachers
        ),
    )


def change_store(path, statement, values=()):
    """Change a store as an earlier release would have written it: without digests."""
    with closing(sqlite3.connect(path)) as database, database:
        database.execute(statement, values)
        database.executescript("DELETE FROM reply_digests; DELETE FROM digests;")


def kept_reply(
    pair_id,
    teacher,
    variant,
    magnitude,
    confidence,
    category="style",
    *,
    order="chosen-first",
    better=None,
    expected=(None, None),
    rationale="because",
):
    """A kept reply, for stores made by hand; `expected` is of magnitude and of confidence."""
    return ReplyRecord(
        key=Key(pair_id=pair_id, teacher=teacher, variant=variant, order=order),
        annotation=Annotation(
            category=category,
            magnitude=magnitude,
            confidence=confidence,
            rationale=rationale,
            better=better,
        ),
        reason=None,
        detail=None,
        raw="{}",
        reply=None,
        arrived=0.0,
        magnitude=expected[0],
        confidence=expected[1],
    )


def refused_reply(pair_id, teacher, variant, *, attempt=0, reason="empty", raw=""):
    """A refused reply, for stores made by hand."""
    return ReplyRecord(
        key=Key(pair_id=pair_id, teacher=teacher, variant=variant, attempt=attempt),
        annotation=None,
        reason=reason,
        detail="",
        raw=raw,
        reply=None,
        arrived=0.0,
    )


def pairs_of(count):
    """Plain, distinct pairs as source rows."""
    return [
        SourceRow(
            row=number,
            pair=Pair(
                prompt=({"role": "user", "content": f"Question {number}?"},),
                chosen=({"role": "assistant", "content": f"Good answer {number}."},),
                rejected=({"role": "assistant", "content": f"Bad answer {number}."},),
            ),
            source_id=f"q{number}",
        )
        for number in range(1, count + 1)
    ]


def filled(store, count, *teachers, rubric=None, variants=("direct", "critic", "reader")):
    """Gives a new store its pairs and its panel; returns the ids of the pairs."""
    rows = pairs_of(count)
    store.corpus.add(Source(name="hand.jsonl"), rows)
    store.record_panel(panel_of(*teachers, rubric=rubric, variants=variants))
    return [row.pair.id for row in rows]
