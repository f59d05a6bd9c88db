"""No request waits for a data set: names are queued, failures remembered, slow Hubs given up."""

import socket
import sys
import threading
import time
from contextlib import contextmanager

import numpy as np
import pyarrow as pa
import pytest

from support.browser import INSPECTOR

sys.path.insert(0, str(INSPECTOR))
import library
import searches
from errors import NotYet, UnusableDataset
from opening import Limits

NAMES = [f"org/unknown-{number}" for number in range(45)]


@contextmanager
def silent_hub(monkeypatch):
    """A Hub that accepts every connection and never answers; gives the connections."""
    accepted = []
    with socket.create_server(("127.0.0.1", 0), backlog=100) as listener:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{listener.getsockname()[1]}")
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")

        def accept():
            while True:
                try:
                    accepted.append(listener.accept()[0])
                except OSError:
                    return

        threading.Thread(target=accept, daemon=True).start()
        yield accepted
        for connection in accepted:
            connection.close()
        listener.shutdown(socket.SHUT_RDWR)


def reason(opened, name):
    """What a visitor reads, and whether asking again helps."""
    with pytest.raises(UnusableDataset) as caught:
        opened.get(name)
    return str(caught.value), isinstance(caught.value, NotYet)


def test_many_names_on_a_slow_hub_hold_nobody_up(monkeypatch):
    with silent_hub(monkeypatch):
        opened = library.Library("", INSPECTOR / "demo", Limits(lookup_seconds=6, waiting=8))
        started = time.monotonic()
        answers = [reason(opened, name) for name in NAMES]
        assert time.monotonic() - started < 5
        assert all(again for _, again in answers)
        assert sum("is being opened" in text for text, _ in answers) == 2 + 8
        assert "8 data sets wait to be opened: ask again in a minute" in answers[-1][0]
        assert len(opened.wait("").ids) == 96  # the Space's own data set is not delayed
        end = time.monotonic() + 60
        while (answer := reason(opened, NAMES[0]))[1] and time.monotonic() < end:
            time.sleep(0.1)
        assert answer == (
            f"{NAMES[0]}: opening it takes too long: the Hub is slow, or it is large",
            False,
        )


def test_a_failure_is_remembered_for_a_while(monkeypatch):
    opened = library.Library("", INSPECTOR / "demo", Limits(retry_seconds=0.5))
    calls = []

    def fail(key):
        calls.append(key)
        raise UnusableDataset("no such name")

    monkeypatch.setattr(opened, "_open", fail)
    for _ in range(3):
        with pytest.raises(UnusableDataset, match="no such name"):
            opened.wait("org/x")
    assert calls == ["org/x"]
    time.sleep(0.6)
    with pytest.raises(UnusableDataset, match="no such name"):
        opened.wait("org/x")
    assert calls == ["org/x"] * 2


def test_few_failures_are_remembered(monkeypatch):
    opened = library.Library("", INSPECTOR / "demo")

    def fail(key):
        raise UnusableDataset(key)

    monkeypatch.setattr(opened, "_open", fail)
    for number in range(300):
        opened._work(f"org/x{number}")
    assert len(opened._failures) == 200


def test_what_waits_is_opened_in_turn(monkeypatch):
    opened = library.Library("", INSPECTOR / "demo", Limits(at_once=1, open=9))
    order, go = [], threading.Event()

    def open_in_turn(key):
        go.wait(10)
        order.append(key)
        return key

    monkeypatch.setattr(opened, "_open", open_in_turn)
    names = ["org/a", "org/b", "org/c", "org/d"]
    for name in names:
        assert reason(opened, name)[1]
    go.set()
    assert [opened.wait(name) for name in names] == names
    assert order == names


def test_only_the_files_of_the_manifest_are_downloaded(hub, releases):
    hub.publish(releases / "one", "org/listed-only")
    output = hub.python(
        "from huggingface_hub import HfApi\n"
        "hub = HfApi()\n"
        "for path in ('data/more.parquet', 'annotations/x/y.bin', 'big.bin'):\n"
        "    hub.upload_file(path_or_fileobj=b'x' * 100, path_in_repo=path,\n"
        "                    repo_id='org/listed-only', repo_type='dataset')\n"
        f"import sys, tempfile; sys.path.insert(0, {str(INSPECTOR)!r})\n"
        "from pathlib import Path\n"
        "import download\n"
        "folder = Path(tempfile.mkdtemp())\n"
        "download.download('org/listed-only', folder, most=10**9, token=False, notify=print)\n"
        "names = [path.relative_to(folder) for path in folder.rglob('*') if path.is_file()]\n"
        "print(sorted(str(name) for name in names if name.parts[0] != '.cache'))\n"
    )
    assert "more" not in output
    assert "big" not in output
    assert "data/train-00000-of-00001.parquet" in output
    assert "README.md" not in output


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ("hub.delete_file('rubric.yaml', 'org/changed', repo_type='dataset')", "rubric.yaml is"),
        pytest.param(
            "add_file(b'x', 'data/train-00000-of-00001.parquet')",
            "data/train-00000-of-00001.parquet is missing, or has another size",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "add_file(b'name: other', 'rubric.yaml')",
            "rubric.yaml is missing, or has another size",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "add_file(b'x' * 9_000_000, 'manifest.json')",
            "manifest.json is larger than 8 MB",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_repo_whose_files_are_not_those_of_its_manifest_is_refused(hub, releases, change, why):
    hub.publish(releases / "one", "org/changed", "--overwrite")
    output = hub.python(
        "from huggingface_hub import HfApi\n"
        "hub = HfApi()\n"
        "def add_file(content, path):\n"
        "    hub.upload_file(path_or_fileobj=content, path_in_repo=path, repo_id='org/changed',\n"
        "                    repo_type='dataset')\n"
        f"{change}\n"
        f"import sys; sys.path.insert(0, {str(INSPECTOR)!r})\n"
        "from pathlib import Path\n"
        "import errors, library\n"
        "try:\n"
        "    library.Library('', Path('demo')).wait('org/changed')\n"
        "except errors.UnusableDataset as error:\n"
        "    print(error)\n"
    )
    assert why in output
    assert output.startswith("org/changed")
    assert output.count("\n") == 1


def flags(*values):
    return pa.chunked_array([pa.array(values, pa.bool_())])


def test_a_search_is_done_once_and_remembered_within_bounds():
    scans = []
    memory = searches.Searches(3, first_seconds=0)

    def scan():
        scans.append(1)
        return flags(True, False, None)

    for _ in range(3):
        assert memory.run(("text", "a"), scan).tolist() == [True, False, False]
    assert len(scans) == 1
    for number in range(500):
        memory.run(("text", str(number)), scan)
    assert len(memory._results) == searches.MAX_REMEMBERED
    large = searches.Searches(30_000_000, first_seconds=0)
    for number in range(5):
        large.run(
            ("text", str(number)), lambda: pa.chunked_array([pa.array(np.ones(30_000_000, bool))])
        )
    assert sum(result.nbytes for result in large._results.values()) <= searches.MAX_REMEMBERED_BYTES


def test_searches_run_one_at_a_time_and_no_request_waits_long():
    memory, running, most, refused = searches.Searches(1, first_seconds=3), [0], [0], []

    def scan():
        running[0] += 1
        most[0] = max(most[0], running[0])
        time.sleep(0.3)
        running[0] -= 1
        return flags(True)

    def ask(number):
        try:
            memory.run(("text", str(number)), scan)
        except NotYet as error:
            refused.append(str(error))

    crowd = [threading.Thread(target=ask, args=(number,)) for number in range(20)]
    for visitor in crowd:
        visitor.start()
    for visitor in crowd:
        visitor.join()
    assert most == [1]
    # Two waits of an estimated 3 s are more than a request may wait.
    assert len(refused) == 18
    assert "ask again" in refused[0]


def test_an_error_of_any_kind_ends_an_opening(monkeypatch):
    opened = library.Library("", INSPECTOR / "demo", Limits(at_once=1))
    monkeypatch.setattr(threading, "excepthook", lambda args: None)

    def fail(key):
        raise LookupError(key)

    monkeypatch.setattr(opened, "_open", fail)
    for name in ("org/a", "org/b", "org/c"):
        with pytest.raises(UnusableDataset, match="cannot be opened: see the log"):
            opened.wait(name)
    assert not opened._opening


def test_without_another_thread_a_visitor_asks_again(monkeypatch):
    opened = library.Library("", INSPECTOR / "demo")

    def fail(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", fail)
    assert reason(opened, "org/a")[1]
    assert not opened._opening
