"""Signals of terminals and schedulers stop a command as Ctrl-C does, and say how to go on."""

import os
import shlex
import signal
import sqlite3
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

import sp2dpo.cli.main
from sp2dpo.interrupts import (
    Interrupted,
    Terminated,
    end_at_next_signal,
    forward_signals,
    raise_on_signals,
    run_interruptible,
    stopping_signals,
)
from sp2dpo.store.store import Store
from support.harness import COMMAND, DEMO, run, write_panel

SCHEDULERS = [
    signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU,
]  # fmt: skip


@pytest.fixture(autouse=True)
def handlers():
    before = {number: signal.getsignal(number) for number in [signal.SIGINT, *SCHEDULERS]}
    for number in SCHEDULERS:
        signal.signal(number, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", SCHEDULERS)
def test_a_signal_raises_and_is_recorded(number):
    received = raise_on_signals()
    with pytest.raises(Terminated) as stopped:
        send(number)
    assert stopped.value.number == number
    assert received == [number]


def test_ctrl_c_stays_ctrl_c():
    received = raise_on_signals()
    with pytest.raises(KeyboardInterrupt):
        send(signal.SIGINT)
    assert received == [signal.SIGINT]


@pytest.mark.parametrize("number", SCHEDULERS[1:])
def test_an_ignored_signal_stays_ignored(number):
    signal.signal(number, signal.SIG_IGN)
    raise_on_signals()
    send(number)
    assert number not in stopping_signals()
    run_interruptible(lambda stop: sleep_and_send(number), say=print)


@pytest.mark.parametrize("number", SCHEDULERS[1:])
def test_a_signal_that_the_caller_uses_stays_with_the_caller(number):
    received = []
    signal.signal(number, lambda *_: received.append(number))
    run_interruptible(lambda stop: sleep_and_send(number), say=print)
    send(number)
    assert received == [number, number]


async def sleep_and_send(number):
    import asyncio

    send(number)
    await asyncio.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGINT, *SCHEDULERS])
@pytest.mark.parametrize("times", [1, 2])
def test_the_first_signal_asks_requests_to_stop_and_the_second_cancels_them(number, times):
    import asyncio

    ended, lines = [], []
    raise_on_signals()

    async def work(stop):
        try:
            for _ in range(times):
                send(number)
                await asyncio.sleep(0.01)
            await stop.wait()
            if times == 2:
                await asyncio.sleep(100)
            ended.append("finished")
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    with pytest.raises(Interrupted) as stopped:
        run_interruptible(work, say=lines.append)
    assert stopped.value.number == number
    assert ended == ["finished" if times == 1 else "cancelled"]
    assert len(lines) == 1
    if number != signal.SIGINT:  # the handler that was there before is back
        with pytest.raises(Terminated):
            send(number)


@pytest.mark.parametrize("number", [signal.SIGINT, *SCHEDULERS])
def test_a_signal_while_the_loop_is_created_stops_the_work_that_it_runs(monkeypatch, number):
    import asyncio

    class SlowLoop(asyncio.SelectorEventLoop):
        def __init__(self):
            send(number)
            super().__init__()

    raise_on_signals()
    monkeypatch.setattr(asyncio.events, "new_event_loop", SlowLoop)
    lines = []
    with pytest.raises(Interrupted) as stopped:
        run_interruptible(lambda stop: stop.wait(), say=lines.append)
    assert stopped.value.number == number
    assert len(lines) == 1


def test_signals_go_to_a_child_process_until_it_has_ended():
    raise_on_signals()
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    sent = []
    with forward_signals(lambda numbers: sent.append(list(numbers))) as received:
        for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
            send(number)
    assert sent == [[signal.SIGINT], [signal.SIGINT, signal.SIGUSR2]]  # one is ignored
    assert received == sent[-1]
    with pytest.raises(Terminated):  # the handlers that were there before are back
        send(signal.SIGUSR2)
    with ThreadPoolExecutor(1) as pool:  # Python allows handlers in the main thread alone
        assert pool.submit(forward_in_thread).result() == []


def forward_in_thread():
    with forward_signals(print) as received:
        return received


@pytest.mark.parametrize("number", [signal.SIGINT, *SCHEDULERS])
def test_while_a_command_ends_the_next_signal_ends_it_at_once(number):
    raise_on_signals()
    end_at_next_signal()
    assert signal.getsignal(number) == signal.SIG_DFL
    signal.signal(number, signal.SIG_IGN)
    end_at_next_signal()
    assert signal.getsignal(number) == signal.SIG_IGN


def swallow_sqlite(number):
    """SQLite's progress handler raises: the query reports its own error."""
    with closing(sqlite3.connect(":memory:")) as database:
        database.set_progress_handler(lambda: send(number) or 0, 1)
        database.execute("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i FROM n) SELECT i "
                         "FROM n LIMIT 1000000").fetchall()  # fmt: skip


def swallow_import(number):
    """As the C extensions of some libraries do."""
    try:
        send(number)
    except BaseException as error:
        raise ImportError("cannot be imported") from error


def swallow_value(number):
    try:
        send(number)
    except BaseException as error:
        raise ValueError("a parser has failed") from error


@pytest.mark.parametrize("swallow", [swallow_sqlite, swallow_import, swallow_value])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_whose_exception_a_library_replaces_still_stops(monkeypatch, swallow, number):
    monkeypatch.setattr(sp2dpo.cli.main, "cli", lambda *_, **__: swallow(number))
    result = run("status", "--store", "a b.sqlite")
    assert result.returncode == 128 + number
    assert "Traceback" not in result.stderr
    (line,) = [line for line in result.stderr.splitlines() if line]
    name = "" if number == signal.SIGINT else f" by {signal.Signals(number).name}"
    assert line == (
        f"stopped{name}; run the same command again to resume: sp2dpo status --store 'a b.sqlite'"
    )


def test_a_command_that_waits_for_another_writer_still_hears_a_signal(tmp_path):
    panel = write_panel(tmp_path / "panel.yaml", "http://127.0.0.1:9/v1")
    store = tmp_path / "run.sqlite"
    with Store(store, write=True):
        pass
    with closing(sqlite3.connect(store, isolation_level=None)) as database:
        database.execute("BEGIN IMMEDIATE")
        words = ["annotate", "--pairs", DEMO / "pairs.jsonl", "--panel", panel, "--store", store]
        with subprocess.Popen(
            [*COMMAND, *map(str, words)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            text=True,
        ) as waiting:  # fmt: skip
            wait_until(lambda: (tmp_path / "run.sqlite.lock").exists(), waiting)
            time.sleep(0.3)
            waiting.send_signal(signal.SIGUSR1)
            _, error = waiting.communicate(timeout=20)
    assert waiting.returncode == 128 + signal.SIGUSR1
    command = shlex.join(["python", "-m", "sp2dpo", *map(str, words)])
    assert error == f"stopped by SIGUSR1; run the same command again to resume: {command}\n"


def test_under_nohup_a_run_outlives_its_terminal_and_stops_for_the_scheduler(scripted, tmp_path):
    teacher = scripted(delay=0.05)
    panel = write_panel(tmp_path / "panel.yaml", teacher.url, max_in_flight=2)
    store = tmp_path / "run.sqlite"
    words = ["annotate", "--pairs", DEMO / "pairs.jsonl", "--panel", panel, "--store", store]
    with subprocess.Popen(
        ["nohup", *COMMAND, *map(str, words)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    ) as running:  # fmt: skip
        wait_until(lambda: len(teacher.requests) > 4, running)
        running.send_signal(signal.SIGHUP)
        before = len(teacher.requests)
        wait_until(lambda: len(teacher.requests) > before + 4, running)
        running.send_signal(signal.SIGUSR1)
        _, error = running.communicate(timeout=20)
    assert running.returncode == 128 + signal.SIGUSR1
    assert "stopped by SIGUSR1; run the same command again to resume: " in error
    with closing(sqlite3.connect(store)) as database:
        (stored,) = database.execute("SELECT count(*) FROM replies").fetchone()
    assert stored == len(teacher.requests)  # what was in flight was finished


def wait_until(condition, process):
    end = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_reader_that_has_enough_ends_the_command_as_sigpipe_does():
    reader = subprocess.Popen(["true"], stdin=subprocess.PIPE)
    reader.wait()
    writer = subprocess.run(
        [*COMMAND, "schema", "panel"], stdout=reader.stdin, stderr=subprocess.PIPE, text=True,
        check=False,
    )  # fmt: skip
    reader.stdin.close()
    assert writer.returncode == 128 + signal.SIGPIPE
    assert writer.stderr == ""
